"""Rounds side by side: the images of one process, whoever makes which round, and wherever one is stopped."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch

from unidd_pl import rounds
from unidd_pl.curriculum import CurriculumCallback
from unidd_pl.distillation import DistillationModule
from unidd_pl.distilled import DistilledSet
from unidd_pl.probe import ProbeCallback
from unidd_pl.real_side import RealSide
from unidd_pl.resume import Interrupted
from unidd_pl.rounds import Rounds, Spread, check_apart, in_turn
from unidd_pl.run_folder import RunFolder
from unidd_pl.spectral import CFM, CosineCurriculum
from unidd_pl.synthetic import ChunkStore, Position
from unidd_pl.team import Team
from unidd_pl.tracking import Store

ROOT = Path(__file__).parent.parent
IPC = 5
SETTINGS: dict[str, Any] = {"ipc": IPC, "iterations": 4, "chunk_size": 2, "lr": 0.1, "running": "off"}


class Seen(L.Callback):
    """Keeps place and β of each step, where its figures are logged, and how many rounds were made; stops at a place."""

    def __init__(self, stop: Position | None = None) -> None:
        self.stop = stop
        self.places: list[Position] = []
        self.betas: dict[int, float] = {}
        self.logged: list[int] = []
        self.made = 0

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        assert isinstance(pl_module, DistillationModule)
        self.places.append(pl_module.position)
        self.betas[pl_module.position.round_index] = pl_module.matching.betas[0]
        if pl_module.position == self.stop:
            os.kill(os.getpid(), signal.SIGTERM)

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        self.logged.append(int(trainer.callback_metrics.get("step", torch.tensor(trainer.global_step - 1))))


def make(
    real: RealSide, folder: Path, spread: Spread, *, checkpoint: Path | None = None, stop: Position | None = None
) -> Seen:
    """Make rounds; return what was seen of them."""
    module = DistillationModule(method=CFM(), **SETTINGS)
    module.prepare(real, ChunkStore(folder / "chunks", real.teacher.spec, "float32"))
    seen = Seen(stop)
    callbacks = [CurriculumCallback(CosineCurriculum()), seen]
    trainer = {"accelerator": "cpu", "enable_progress_bar": False, "log_every_n_steps": 1, "callbacks": callbacks}
    made = Rounds(module, folder, {**trainer, "logger": False}, 3, spread)
    made.check(None)
    try:
        made.make(False, checkpoint, [])
    finally:
        seen.made = made.made
    return seen


def images(folder: Path) -> torch.Tensor:
    files = sorted((folder / "chunks").glob("round_*"))
    return torch.cat([DistilledSet.load(file).images for file in files])


@pytest.fixture
def in_order(real: RealSide, tmp_path: Path) -> torch.Tensor:
    """What one process makes, round after round."""
    make(real, tmp_path / "in order", "chunks")
    return images(tmp_path / "in order")


@pytest.mark.parametrize("size", [1, 2, 3, 8])
def test_processes_take_all_rounds_each_once(size: int) -> None:
    taken = [list(in_turn(Team(rank, size), IPC)) for rank in range(size)]
    assert sorted(one.start for own in taken for one in own) == list(range(IPC))
    assert all(len(one) == 1 for own in taken for one in own)
    counts = [len(own) for own in taken]
    assert max(counts) - min(counts) <= 1


@pytest.mark.parametrize("size", [1, 2, 7])
def test_the_images_are_those_of_one_process(
    size: int, real: RealSide, in_order: torch.Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    places: list[Position] = []
    betas: dict[int, float] = {}
    for rank in reversed(range(size)):  # one after another: none needs another
        monkeypatch.setattr(rounds, "launched_team", lambda rank=rank: Team(rank, size))
        seen = make(real, tmp_path / "apart", "rounds")
        assert {place.round_index for place in seen.places} == set(range(rank, IPC, size))
        schedule_steps = [place.round_index * 8 + place.chunk_index * 4 + place.iteration for place in seen.places]
        assert seen.logged == schedule_steps, "figures stand at the steps of the whole run"
        places += seen.places
        betas |= seen.betas
    assert len(places) == len(set(places)) == IPC * 2 * 4
    assert [betas[i] for i in range(IPC)] == pytest.approx(
        [CosineCurriculum().betas_at(0.1, i, IPC, [torch.ones(1)])[0] for i in range(IPC)]
    )
    assert images(tmp_path / "apart").equal(in_order)
    assert seen.made == IPC


@pytest.mark.parametrize("after", [1, 2, 3])
def test_any_number_of_processes_goes_on_where_two_were_stopped(
    after: int, real: RealSide, in_order: torch.Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stops = [Position(2, 1, 2), Position(1, 0, 1)]  # the first has made round 0 by then
    for rank, stop in enumerate(stops):
        monkeypatch.setattr(rounds, "launched_team", lambda rank=rank: Team(rank, 2))
        with pytest.raises(Interrupted, match=f"round {stop.round_index + 1}, chunk {stop.chunk_index + 1}"):
            make(real, tmp_path, "rounds", stop=stop)
    folder = RunFolder(tmp_path, apart=True)
    assert [path.name for path in folder.checkpoints] == [f"round_{i:04d}.ckpt" for i in range(3)]
    again: list[Position] = []
    for rank in range(after):
        monkeypatch.setattr(rounds, "launched_team", lambda rank=rank: Team(rank, after))
        again += make(real, tmp_path, "rounds", checkpoint=folder.going_on_from("last")).places
    assert len(again) == len(set(again)) == IPC * 8 - (8 + 7 + 2), "no step is made again"
    assert images(tmp_path).equal(in_order)


def test_a_checkpoint_of_another_round_is_refused(real: RealSide, tmp_path: Path) -> None:
    make(real, tmp_path, "rounds")
    folder = RunFolder(tmp_path, apart=True)
    os.replace(folder.checkpoint_of(3), folder.checkpoint_of(1))
    with pytest.raises(ValueError, match="got a checkpoint of the step 32, expected 9 to 16: it is damaged"):
        make(real, tmp_path, "rounds")


@pytest.mark.parametrize(
    ("settings", "trainer", "checkpoint", "message"),
    [
        (
            {"running": "auto"},
            {},
            None,
            r"running moments \(auto\).*leave --spread out, or match each round on its own",
        ),
        ({"running": "merge"}, {}, None, r"running moments \(merge\)"),
        ({}, {"callbacks": [ProbeCallback()]}, None, "a ProbeCallback, which looks at rounds in their order"),
        ({}, {}, "runs/x/last.ckpt", "--ckpt_path runs/x/last.ckpt, expected last"),
        ({}, {"devices": 2}, None, r"trainer\.devices 2 on 1 machine\(s\), expected processes that torchrun or srun"),
        ({}, {"num_nodes": 2}, "last", r"trainer\.devices auto on 2 machine\(s\)"),
    ],
)
def test_what_rounds_cannot_be_apart_with_is_refused(
    settings: dict[str, Any], trainer: dict[str, Any], checkpoint: str | None, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        check_apart(DistillationModule(method=CFM(), **{**SETTINGS, **settings}), trainer, checkpoint)


def test_a_run_goes_on_as_it_was_begun(real: RealSide, tmp_path: Path) -> None:
    for begun, other in (("chunks", "rounds"), ("rounds", "chunks")):
        make(real, tmp_path / begun, begun)  # type: ignore[arg-type]
        with pytest.raises(ValueError, match=f"holds a run that was begun with --spread {begun}"):
            RunFolder(tmp_path / begun, apart=other == "rounds").going_on_from("last")
        for apart in (False, True):
            with pytest.raises(ValueError, match=r"already holds (last\.ckpt|rounds_apart): go on with"):
                RunFolder(tmp_path / begun, apart).check_replaceable()
        RunFolder(tmp_path / begun).clear()
        assert RunFolder(tmp_path / begun, apart=other == "rounds").going_on_from("last") is None


# ---- real processes ----

FIT = {
    "teacher.epochs": 1, "model.init_args.iterations": 60, "model.init_args.ipc": 3, "model.init_args.running": "off",
    "trainer.accelerator": "cpu", "trainer.log_every_n_steps": 10, "checkpoint_every": 10,
}  # fmt: skip


def start(folder: Path, output: str, processes: int, *more: str) -> list[subprocess.Popen[str]]:
    """Start `unidd fit` as torchrun starts it; one process alone."""
    options = [f"--{name}={value}" for name, value in FIT.items()]
    places = [f"--output_dir={folder / output}", f"--cache_dir={folder / 'cache'}"]
    places += [
        "--tracking.experiment=rounds",
        f"--tracking.uri=sqlite:///{folder / output}.db",
        f"--tracking.outbox={folder / 'outbox'}",
    ]
    command = [sys.executable, "-m", "unidd_pl.cli", "fit", "--config", str(ROOT / "configs/cfm_digits.yaml")]
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = str(server.getsockname()[1])
    common = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    torchrun = {
        "TORCHELASTIC_RUN_ID": "x", "WORLD_SIZE": str(processes), "LOCAL_WORLD_SIZE": str(processes),
        "GROUP_RANK": "0", "TORCHELASTIC_MAX_RESTARTS": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port,
    }  # fmt: skip
    return [
        subprocess.Popen(
            [*command, *options, *places, *more], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            env={**common, **torchrun, "RANK": str(rank), "LOCAL_RANK": str(rank)} if processes > 1 else common,
        )
        for rank in range(processes)
    ]  # fmt: skip


def end(processes: Sequence[subprocess.Popen[str]]) -> tuple[list[int], str]:
    said = "".join(process.communicate(timeout=300)[0] for process in processes)
    return [process.returncode for process in processes], said


@pytest.mark.ddp
@pytest.mark.slow  # four starts of the program
@pytest.mark.timeout(600)
def test_two_processes_make_the_set_of_one_and_one_is_lost_and_made_up_for(tmp_path: Path) -> None:
    statuses, said = end(start(tmp_path, "alone", 1))
    assert statuses == [0], said
    expected = DistilledSet.load(tmp_path / "alone" / "distilled.safetensors")

    both = start(tmp_path, "apart", 2, "--spread", "rounds")
    begun = tmp_path / "apart" / "rounds_apart" / "round_0001.ckpt"  # of the second, in the middle of its round
    while not begun.exists():
        assert both[1].poll() is None, both[1].communicate()
        time.sleep(0.01)
    both[1].kill()
    both[1].wait()
    made_before = step_of(begun)
    assert 60 < made_before < 120
    # torchrun would end the first; alone it makes its own rounds, and waits for that of the second until it is told.
    last = begun.with_name("round_0002.ckpt")
    deadline = time.monotonic() + 60
    while not (last.exists() and step_of(last) == 3 * 60):
        assert both[0].poll() is None, both[0].communicate()
        assert time.monotonic() < deadline
        time.sleep(0.1)
    time.sleep(1)
    assert both[0].poll() is None
    both[0].terminate()
    statuses, said = end(both)
    assert statuses == [-signal.SIGTERM, -signal.SIGKILL], said
    assert not (tmp_path / "apart" / "distilled.safetensors").exists()

    statuses, said = end(start(tmp_path, "apart", 1, "--spread", "rounds", "--ckpt_path", "last"))
    assert statuses == [0], said
    made = DistilledSet.load(tmp_path / "apart" / "distilled.safetensors")
    assert made.images.equal(expected.images)
    assert made.labels.equal(expected.labels)
    assert len(list((tmp_path / "apart" / "rounds").glob("*.png"))) == 3
    store = Store(f"sqlite:///{tmp_path}/apart.db")
    (record,) = store.runs(store.experiment_id("rounds") or "", "tags.stage = 'distillation'")
    assert record.status == "FINISHED"
    steps = [step for step, _ in store.history(record.run_id, "loss/total")]
    assert steps == [*range(9, 60, 10), *range(made_before + 9, 120, 10), *range(129, 180, 10)]


def step_of(checkpoint: Path) -> int:
    return int(torch.load(checkpoint, weights_only=True)["distillation"]["step"])
