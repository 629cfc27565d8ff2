"""Runs that several processes share, stopped by a signal or by the loss of one, go on with any number of processes."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from sharded_run import CLASSES, RESUMED, run

from unidd_pl.console import EXIT_LOST
from unidd_pl.distilled import DistilledSet

pytestmark = [pytest.mark.ddp, pytest.mark.timeout(600)]  # each process imports torch anew
SCRIPT = Path(__file__).parent / "sharded_run.py"
STEPS = 40
STOP = 14
"""In the middle of the first chunk of one case, of the second chunk, of one image, of the other."""
MINUTE = 60.0  # seconds for the others to end after one was lost


def start(ranks: int, *arguments: str | Path, lightning: bool = False) -> list[subprocess.Popen[str]]:
    """Start the processes as torchrun does, or the first one, which has Lightning start the others."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    common = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(SCRIPT.parent.parent)}
    common |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    command = [sys.executable, str(SCRIPT), *map(str, arguments)]
    if lightning:
        environments, command = [common], [*command, "--devices", str(ranks)]
    else:
        shared = {"TORCHELASTIC_RUN_ID": "x", "WORLD_SIZE": str(ranks), "LOCAL_WORLD_SIZE": str(ranks), **common}
        shared |= {"GROUP_RANK": "0", "TORCHELASTIC_MAX_RESTARTS": "0"}
        environments = [{**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(ranks)]
    return [
        subprocess.Popen(command, env=one, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        for one in environments
    ]


def finish(processes: list[subprocess.Popen[str]]) -> list[tuple[int, str]]:
    """Return exit status and messages of each."""
    outputs = [process.communicate(timeout=300)[0] for process in processes]
    return [(process.returncode, output) for process, output in zip(processes, outputs, strict=True)]


def on_ranks(ranks: int, *arguments: str | Path, lightning: bool = False) -> None:
    for status, output in finish(start(ranks, *arguments, lightning=lightning)):
        assert status == 0, output[-3000:]


def chunks(folder: Path) -> torch.Tensor:
    """Return the images of all finished chunks, normalised."""
    files = sorted(folder.glob("round_*"))
    return torch.cat([DistilledSet.load(file).images for file in files])


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[str, torch.Tensor]:
    """The images of uninterrupted runs of one process."""
    folder = tmp_path_factory.mktemp("alone")
    for name, settings in RESUMED.items():
        run(folder / name, **settings)
    images = {name: chunks(folder / name) for name in RESUMED}
    assert all(len(one) == 2 * CLASSES for one in images.values())
    return images


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """Folders with the checkpoints that SIGUSR1 left of one process, and of two, of which the second got it."""
    folder = tmp_path_factory.mktemp("stopped")
    for ranks in (1, 2):
        for status, output in finish(start(ranks, folder / str(ranks), "--cases", *RESUMED, "--stop", str(STOP))):
            assert status == 0, output[-3000:]
            assert output.count("Stopped by SIGUSR1 in round 1, chunk ") == len(RESUMED), "all of them stop"
    return {ranks: folder / str(ranks) for ranks in (1, 2)}


def step_of(checkpoint: Path) -> int:
    return int(torch.load(checkpoint, weights_only=True)["distillation"]["step"])


@pytest.mark.parametrize(("before", "after"), [(1, 2), (2, 1), (2, 3)])
def test_a_run_goes_on_with_another_number_of_processes(
    before: int, after: int, stopped: dict[int, Path], alone: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    shutil.copytree(stopped[before], tmp_path, dirs_exist_ok=True)
    for name in RESUMED:
        assert step_of(tmp_path / name / "last.ckpt") == STOP + 1
    on_ranks(after, tmp_path, "--cases", *RESUMED, "--resume")
    seen = torch.load(tmp_path / f"{after}.pt")
    assert seen["world size"] == after
    for name, expected in alone.items():
        assert len(seen[name]["losses"]) == STEPS - STOP - 1, "no step is made again"
        images = chunks(tmp_path / name)
        assert images.shape == expected.shape
        assert float((images - expected).abs().max()) < 1e-6


@pytest.mark.parametrize(
    ("victim", "lightning"),
    [
        pytest.param(1, True, id="second-of-lightning"),
        pytest.param(0, True, id="first-of-lightning", marks=pytest.mark.slow),
        pytest.param(1, False, id="second-of-torchrun", marks=pytest.mark.slow),
    ],
)
def test_the_loss_of_a_process_ends_the_others_and_no_image_is_lost(
    victim: int, lightning: bool, alone: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    processes = start(2, tmp_path, "--cases", "chunks", "--kill", str(victim), str(STOP), lightning=lightning)
    if not (lightning and victim):  # one that Lightning has started cannot be waited for
        processes[victim].wait(300)
    began = time.monotonic()
    ended = finish(processes)  # also of a process that Lightning has started, whose output is the first one's
    statuses = [status for status, _ in ended]
    output = "".join(text for _, text in ended)
    assert "error: another of the processes that share the run has ended (" in output
    assert "--ckpt_path last" in output
    if not lightning:
        assert statuses == [EXIT_LOST, -signal.SIGKILL]
    else:
        assert statuses == [EXIT_LOST if victim else -signal.SIGKILL]
    assert time.monotonic() - began < MINUTE  # with the start, where the loss was not waited for
    assert step_of(tmp_path / "chunks" / "last.ckpt") == STOP // 4 * 4
    on_ranks(2, tmp_path, "--cases", "chunks", "--resume", lightning=lightning)
    images = chunks(tmp_path / "chunks")
    assert float((images - alone["chunks"]).abs().max()) < 1e-6
