"""Processes that meet over several addresses, as machines and pods do: torchrun on nodes, and docker/pod.sh.

The nodes are loopback addresses of this machine, 127.0.0.1 and 127.0.0.2; processes, rendezvous and gloo are real.
"""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from unidd_pl.distilled import DistilledSet

ROOT = Path(__file__).parent.parent
FIT = [sys.executable, str(ROOT / "tests" / "float64_fit.py")]
POD = ROOT / "docker" / "pod.sh"
SETTINGS = {
    "teacher.epochs": 1, "model.init_args.iterations": 30, "model.init_args.ipc": 4, "model.init_args.chunk_size": 7,
    "trainer.logger": "false", "trainer.enable_progress_bar": "false", "pixel_type": "float32", "checkpoint_every": 5,
}  # fmt: skip


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def options(folder: Path, **settings: str | int) -> list[str]:
    """Return what `unidd` is told; the teacher is made once for all."""
    given = [f"--{name}={value}" for name, value in {**SETTINGS, **settings}.items()]
    config = ["fit", "--config", str(ROOT / "configs" / "cfm_digits.yaml")]
    return [*config, *given, f"--output_dir={folder}", f"--cache_dir={folder.parent / 'cache'}"]


def started(*command: str | Path, **environment: str) -> subprocess.Popen[str]:
    surroundings = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), **environment}
    return subprocess.Popen(
        [str(part) for part in command], env=surroundings, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def ended(processes: Sequence[subprocess.Popen[str]]) -> tuple[list[int], str]:
    said = "".join(process.communicate(timeout=900)[0] for process in processes)
    return [process.returncode for process in processes], said


def same_images(folder: Path, expected: DistilledSet) -> None:
    made = DistilledSet.load(folder / "distilled.safetensors")
    assert made.labels.tolist() == expected.labels.tolist()
    assert float((made.images - expected.images).abs().max()) < 1e-6


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("machines")


@pytest.fixture(scope="module")
def alone(folder: Path) -> DistilledSet:
    """What one process makes."""
    statuses, said = ended([started(*FIT, *options(folder / "alone"))])
    assert statuses == [0], said
    made = DistilledSet.load(folder / "alone" / "distilled.safetensors")
    assert made.images.dtype == torch.float32
    assert float(made.images.std()) > 0.01
    return made


@pytest.mark.slow
@pytest.mark.ddp
@pytest.mark.timeout(3000)
@pytest.mark.parametrize("processes", [1, 2])
def test_torchrun_on_two_nodes_makes_what_one_process_makes(processes: int, folder: Path, alone: DistilledSet) -> None:
    output, port = folder / f"torchrun{processes}", free_port()
    nodes = [
        started(
            sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--nproc-per-node", str(processes),
            "--rdzv-backend", "c10d", "--rdzv-id", "unidd", "--rdzv-endpoint", f"127.0.0.1:{port}",
            "--local-addr", f"127.0.0.{node + 1}", *FIT[1:], *options(output),
        )
        for node in range(2)
    ]  # fmt: skip
    statuses, said = ended(nodes)
    assert statuses == [0, 0], said
    assert said.count("Distilled set: 40 images") == 1, "one process of all nodes speaks"
    same_images(output, alone)


class Pods:
    """Pods of an indexed Job, with the variables that Kubernetes and docker/kubernetes.yaml set."""

    def __init__(self, folder: Path, count: int, arguments: Sequence[str]) -> None:
        self.count = count
        self.arguments = arguments
        command = folder / "bin" / "unidd"
        command.parent.mkdir(exist_ok=True)
        command.write_text(f'#!/bin/sh\nexec {FIT[0]} {FIT[1]} "$@"\n')
        command.chmod(0o755)
        self.path = f"{command.parent}:{os.environ['PATH']}"

    def start(self) -> list[subprocess.Popen[str]]:
        port = str(free_port())
        return [
            started(
                POD, *self.arguments, PATH=self.path, PODS=str(self.count), JOB_COMPLETION_INDEX=str(index),
                MASTER_ADDR="127.0.0.2", MASTER_PORT=port,
            )
            for index in range(self.count)
        ]  # fmt: skip


@pytest.mark.slow
@pytest.mark.ddp
@pytest.mark.timeout(3000)
class TestPods:
    def test_two_pods_stop_together_and_make_what_one_process_makes(self, folder: Path, alone: DistilledSet) -> None:
        output = folder / "pods"
        pods = Pods(folder, 2, [*options(output), "--ckpt_path", "last"])
        running = pods.start()
        while not (output / "last.ckpt").exists():
            assert all(pod.poll() is None for pod in running), ended(running)
            time.sleep(0.02)
        running[1].send_signal(signal.SIGTERM)  # to the one that is taken away
        statuses, said = ended(running)
        assert statuses == [143, 143], said
        assert not (output / "distilled.safetensors").exists()

        statuses, said = ended(pods.start())
        assert statuses == [0, 0], said
        assert said.count("Distilled set: 40 images") == 1
        same_images(output, alone)

    def test_bad_input_ends_every_pod_with_status_2(self, folder: Path, alone: DistilledSet) -> None:
        arguments = options(folder / "bad", **{"model.init_args.eta": -1})
        statuses, said = ended(Pods(folder, 2, arguments).start())
        assert statuses == [2, 2], said
        assert said.count("eta: got -1") == 2


PODS = {"PODS": "2", "JOB_COMPLETION_INDEX": "1", "MASTER_ADDR": "first", "MASTER_PORT": ""}


class TestPodScript:
    @pytest.fixture
    def path(self, tmp_path: Path) -> str:
        """A stand-in for `unidd` that says what it got."""
        (tmp_path / "unidd").write_text('#!/bin/sh\necho "$@"\nenv\nexit 3\n')
        (tmp_path / "unidd").chmod(0o755)
        return f"{tmp_path}:/usr/bin:/bin"

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"PODS": ""}, "got PODS '', expected the Job's number of completions"),
            ({"PODS": "0"}, "got PODS '0', expected the Job's number of completions"),
            ({"PODS": "many"}, "got PODS 'many', expected the Job's number of completions"),
            ({"JOB_COMPLETION_INDEX": ""}, "got JOB_COMPLETION_INDEX '', expected a pod's number: .* Indexed"),
            ({"JOB_COMPLETION_INDEX": "-1"}, "got JOB_COMPLETION_INDEX '-1', expected a pod's number"),
            ({"JOB_COMPLETION_INDEX": "2"}, "got the pod 2 of 2, expected PODS to be"),
            ({"MASTER_ADDR": ""}, "got no MASTER_ADDR, expected the first pod's name"),
        ],
    )
    def test_bad_surroundings_are_refused(self, change: dict[str, str], message: str, path: str) -> None:
        pod = subprocess.run(
            [POD, "fit"], env={"PATH": path, **PODS, **change}, capture_output=True, text=True, check=False
        )
        assert (pod.returncode, pod.stdout) == (2, "")
        assert re.match(f"pod.sh: {message}", pod.stderr)

    def test_arguments_and_status_pass_through(self, path: str) -> None:
        pod = subprocess.run(
            [POD, "fit", "a b"], env={"PATH": path, **PODS}, capture_output=True, text=True, check=False
        )
        assert pod.returncode == 3
        said = pod.stdout.splitlines()
        assert said[0] == "fit a b"
        expected = {"RANK=1", "WORLD_SIZE=2", "LOCAL_RANK=0", "LOCAL_WORLD_SIZE=1", "GROUP_RANK=1"}
        assert expected | {"MASTER_ADDR=first", "MASTER_PORT=29500", "TORCHELASTIC_RUN_ID=pod"} <= set(said)

    def test_one_pod_is_one_process(self, path: str) -> None:
        surroundings = {"PATH": path, "PODS": "1", "JOB_COMPLETION_INDEX": "0"}
        pod = subprocess.run([POD, "fit"], env=surroundings, capture_output=True, text=True, check=False)
        assert pod.returncode == 3
        assert not [line for line in pod.stdout.splitlines() if line.startswith(("RANK", "TORCHELASTIC"))]
