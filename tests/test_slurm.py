"""`unidd fit` as tasks of srun: real processes, with stand-ins for SLURM's commands and environment."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from unidd_pl import cluster
from unidd_pl.distilled import DistilledSet
from unidd_pl.sharding import sharded_trainer_arguments
from unidd_pl.tracking import Store

ROOT = Path(__file__).parent.parent
STOPPED = 128 + signal.SIGUSR1
SETTINGS = {
    "teacher.epochs": 1, "model.init_args.iterations": 300, "model.init_args.ipc": 2, "checkpoint_every": 10,
    "trainer.accelerator": "cpu", "trainer.enable_progress_bar": "false", "trainer.log_every_n_steps": 10,
}  # fmt: skip


class Job:
    """A job of some tasks on one node, as srun starts them."""

    def __init__(self, folder: Path, tasks: int) -> None:
        self.folder = folder
        self.tasks = tasks
        (folder / "bin").mkdir()
        scontrol = folder / "bin" / "scontrol"
        scontrol.write_text(f'#!/bin/sh\necho "$@" >> {folder}/scontrol.log\n')
        scontrol.chmod(0o755)

    @property
    def asked(self) -> list[str]:
        """What scontrol was called with."""
        log = self.folder / "scontrol.log"
        return log.read_text().splitlines() if log.exists() else []

    def start(self) -> list[subprocess.Popen[str]]:
        options = [f"--{name}={value}" for name, value in SETTINGS.items()]
        places = [f"--cache_dir={self.folder}/cache", f"--output_dir={self.folder}/out"]
        tracking = [f"--tracking.uri=sqlite:///{self.folder}/mlflow.db", "--tracking.experiment=slurm"]
        command = [sys.executable, "-m", "unidd_pl.cli", "fit", "--config", str(ROOT / "configs/cfm_digits.yaml")]
        common = {
            **os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "SLURM_JOB_ID": "7041", "SLURM_NNODES": "1",
            "SLURM_NTASKS": str(self.tasks), "SLURM_NTASKS_PER_NODE": str(self.tasks), "SLURM_JOB_NAME": "unidd",
            "SLURM_NODEID": "0", "SLURM_NODELIST": "127.0.0.1", "PATH": f"{self.folder}/bin:{os.environ['PATH']}",
        }  # fmt: skip
        return [
            subprocess.Popen(
                [*command, *options, *places, *tracking, "--ckpt_path=last"],
                env={**common, "SLURM_PROCID": str(task), "SLURM_LOCALID": str(task)},
                stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            )
            for task in range(self.tasks)
        ]  # fmt: skip

    def run(self) -> tuple[list[int], str]:
        """Start the job; return statuses and messages at its end."""
        return end(self.start())

    def runs(self) -> list[Any]:
        """Return the records of the distillation."""
        store = Store(f"sqlite:///{self.folder}/mlflow.db")
        return list(store.runs(store.experiment_id("slurm") or "", "tags.stage = 'distillation'"))


def end(tasks: list[subprocess.Popen[str]]) -> tuple[list[int], str]:
    said = "".join(task.communicate(timeout=200)[0] for task in tasks)
    return [task.returncode for task in tasks], said


@pytest.fixture(params=[1, pytest.param(2, marks=[pytest.mark.slow, pytest.mark.ddp])], ids=["one", "two"])
def job(request: pytest.FixtureRequest, tmp_path: Path) -> Job:
    return Job(tmp_path, request.param)


@pytest.mark.timeout(600)
def test_a_job_at_its_time_limit_is_queued_again_once_and_goes_on(job: Job) -> None:
    tasks = job.start()
    checkpoint = job.folder / "out" / "last.ckpt"
    while not checkpoint.exists():
        assert all(task.poll() is None for task in tasks)
        time.sleep(0.05)
    for task in tasks:  # as srun hands it on
        task.send_signal(signal.SIGUSR1)
    statuses, said = end(tasks)
    assert statuses == [STOPPED] * job.tasks, said
    assert job.asked == ["requeue 7041"]
    assert "The job 7041 is queued again" in said
    assert "Stopped by SIGUSR1 in round 1, chunk 1, iteration " in said
    (stopped,) = job.runs()
    assert stopped.status == "KILLED"

    statuses, said = job.run()
    assert statuses == [0] * job.tasks, said
    assert job.asked == ["requeue 7041"], "a job that ends by itself is not queued again"
    assert len(DistilledSet.load(job.folder / "out" / "distilled.safetensors")) == 20
    (finished,) = job.runs()
    assert (finished.run_id, finished.status) == (stopped.run_id, "FINISHED"), "the record is continued"
    store = Store(f"sqlite:///{job.folder}/mlflow.db")
    steps = [step for step, _ in store.history(finished.run_id, "loss/total")]
    assert steps == list(range(9, 600, 10)), "its curve has no gap and no step twice"
    assert list((job.folder / "outbox").glob("*")) == []

    statuses, said = job.run()  # queued again by hand, or by an administrator
    assert statuses == [0] * job.tasks, said
    assert "distilled.safetensors is finished: nothing is left to do" in said
    assert [run.run_id for run in job.runs()] == [finished.run_id]


def slurm(monkeypatch: pytest.MonkeyPatch, **variables: str) -> None:
    for name in [name for name in os.environ if name.startswith("SLURM_")]:
        monkeypatch.delenv(name)
    for name, value in variables.items():
        monkeypatch.setenv(f"SLURM_{name}", value)


def test_the_processes_are_those_of_srun(monkeypatch: pytest.MonkeyPatch) -> None:
    slurm(monkeypatch, NTASKS="8", NTASKS_PER_NODE="4", NNODES="2", PROCID="0", LOCALID="0", NODEID="0")
    assert cluster.launched_processes() == (4, 2)
    arguments = sharded_trainer_arguments({})
    assert (arguments["devices"], arguments["num_nodes"]) == (4, 2)
    assert [plugin.auto_requeue for plugin in arguments["plugins"]] == [False]
    with pytest.raises(ValueError, match=r"got trainer\.devices 2, but torchrun or srun has started 4 processes"):
        sharded_trainer_arguments({"devices": 2})


def test_an_interactive_job_is_not_srun_s(monkeypatch: pytest.MonkeyPatch) -> None:
    slurm(monkeypatch, NTASKS="8", NTASKS_PER_NODE="4", JOB_NAME="bash", JOB_ID="1")
    assert cluster.launched_processes() is None
    assert cluster.slurm_plugins() == []
    assert cluster.requeue_job() == ""


def test_tasks_without_a_number_a_machine_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    slurm(monkeypatch, NTASKS="8")
    with pytest.raises(ValueError, match="got 8 tasks from srun, expected --ntasks-per-node beside --nodes"):
        cluster.launched_processes()


@pytest.mark.parametrize(
    ("script", "told"),
    [
        ("exit 0", r"The job 5_3 is queued again"),
        ("echo denied >&2; exit 1", r"SLURM did not queue the job 5_3 again \(denied\): submit it anew"),
        (None, r"Could not queue the job 5_3 again \(.*\): submit it anew"),
    ],
)
def test_what_comes_of_a_requeue_is_told(
    script: str | None, told: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    slurm(monkeypatch, NTASKS="1", JOB_ID="9", ARRAY_JOB_ID="5", ARRAY_TASK_ID="3")
    if script is not None:
        (tmp_path / "scontrol").write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / "scontrol").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin" if script else str(tmp_path))
    assert re.match(told, cluster.requeue_job())
