"""Runs are read back with MlflowClient: what the code believes it wrote is not evidence."""

from __future__ import annotations

import logging
import os
import signal
import socket
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.loggers import Logger
from lightning_utilities.core.rank_zero import rank_zero_only
from torch.utils.data import DataLoader, TensorDataset

from unidd_pl.console import Stopped
from unidd_pl.tracking import Tracking, store


@pytest.fixture(scope="module")
def tracking(tmp_path_factory: pytest.TempPathFactory) -> Tracking:
    """One database for the file: creating it takes seconds."""
    folder = tmp_path_factory.mktemp("mlflow")
    return Tracking(f"sqlite:///{folder}/new/mlflow.db", "tests")


@pytest.fixture
def client(tracking: Tracking) -> Any:
    from mlflow.tracking import MlflowClient

    return MlflowClient(tracking.uri)


@pytest.fixture
def unset(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Run without MLflow's variables, and take away again what the code sets."""
    for key in ("MLFLOW_TRACKING_URI", *store._IMPATIENT, *store._NO_TELEMETRY):
        monkeypatch.setenv(key, "")  # so that monkeypatch remembers the key even where it is absent
        monkeypatch.delenv(key)
    yield
    monkeypatch.undo()


def closed_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return int(server.getsockname()[1])


def test_run_is_recorded_and_nothing_is_printed(
    tracking: Tracking, client: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    image = tmp_path / "grid.png"
    image.write_bytes(b"png")
    config = "model:\n  lr: 0.1\n  betas: [0.5, 0.9]\n  none: null\ncallbacks:\n- class_path: A\n- class_path: B\n"
    with tracking.run("teacher", "resnet", {"teacher_hash": "abc", "long": "x" * 9000}, config) as run:
        run.metrics({"loss": 2.0, "top1@5 (%)": torch.tensor(0.5)})  # type: ignore[dict-item]
        run.metrics({"loss": 1.0, "/a/../b": float("nan")}, step=7)
        run.artifact(image, "previews")
        run.tag("fingerprint", "f00")
        assert client.get_run(run.run_id).info.status == "RUNNING"
    stored = client.get_run(run.run_id)
    assert stored.info.status == "FINISHED"
    assert stored.info.run_name == "resnet"
    assert client.get_experiment(stored.info.experiment_id).name == "tests"
    assert stored.data.tags["stage"] == "teacher"
    assert stored.data.tags["teacher_hash"] == "abc"
    assert stored.data.tags["fingerprint"] == "f00"
    assert stored.data.params == {
        "model.lr": "0.1",
        "model.betas": "[0.5, 0.9]",
        "model.none": "None",
        "callbacks.0.class_path": "A",
        "callbacks.1.class_path": "B",
    }
    assert [(m.step, m.value) for m in client.get_metric_history(run.run_id, "loss")] == [(0, 2.0), (7, 1.0)]
    assert stored.data.metrics["top1_5 ___"] == 0.5
    assert "a/b" in stored.data.metrics
    assert {f.path for f in client.list_artifacts(run.run_id)} == {"config.yaml", "previews"}
    assert {f.path for f in client.list_artifacts(run.run_id, "previews")} == {"previews/grid.png"}
    folder = Path(tracking.uri.removeprefix("sqlite:///")).parent / "mlartifacts"
    assert (folder / run.run_id / "artifacts" / "config.yaml").read_text() == config
    assert [p.name for p in tmp_path.iterdir()] == ["grid.png"]
    assert "INFO" not in "".join(capfd.readouterr())
    assert logging.getLogger("mlflow").level >= logging.WARNING


def test_runs_follow_each_other_and_nest(tracking: Tracking, client: Any) -> None:
    with tracking.run("distillation", "outer") as outer:
        with tracking.run("teacher", "first") as first:
            first.metrics({"who": 1})
        with tracking.run("statistics", "second") as second:
            second.metrics({"who": 2})
        outer.metrics({"who": 0})
    runs = [client.get_run(run.run_id) for run in (outer, first, second)]
    assert [run.data.metrics["who"] for run in runs] == [0, 1, 2]
    assert {run.info.status for run in runs} == {"FINISHED"}


@pytest.mark.parametrize(
    ("error", "status"),
    [(RuntimeError, "FAILED"), (KeyboardInterrupt, "KILLED"), (SystemExit, "KILLED")],
)
def test_an_exception_ends_the_run(tracking: Tracking, client: Any, error: type[BaseException], status: str) -> None:
    with pytest.raises(error), tracking.run("evaluation", "broken") as run:
        raise error
    assert client.get_run(run.run_id).info.status == status


def test_long_and_many_params(tracking: Tracking, client: Any, tmp_path: Path) -> None:
    (tmp_path / "inner.txt").write_text("text")
    config = "\n".join(f"key{i}: {i}" for i in range(230)) + f"\n{'k' * 400}: {'v' * 9000}\n"
    with tracking.run("evaluation", "wide", config=config) as run:
        run.params({"key0": "changed"})  # MLflow would refuse; the first value stays
        run.artifact(tmp_path, "folder")
    params = client.get_run(run.run_id).data.params
    assert len(params) == 231
    assert params["key0"] == "0"
    assert params["k" * 250] == "v" * 500
    assert [f.path for f in client.list_artifacts(run.run_id, "folder")] == ["folder/inner.txt"]


class Tiny(LightningModule):
    def __init__(self, lr: float = 0.5) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.layer = torch.nn.Linear(2, 1)

    def training_step(self, batch: list[torch.Tensor], batch_idx: int) -> torch.Tensor:
        loss = self.layer(batch[0]).square().mean()
        self.log("loss", loss, prog_bar=False)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def fit(logger: Any, folder: Path) -> Trainer:
    trainer = Trainer(
        accelerator="cpu",
        devices=1,
        max_steps=2,
        logger=logger,
        log_every_n_steps=1,
        default_root_dir=folder,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*does not have many workers.*")  # four rows of data
        trainer.fit(Tiny(), DataLoader(TensorDataset(torch.ones(4, 2)), batch_size=2))
    return trainer


def test_trainer_logs_through_the_run(tracking: Tracking, client: Any, tmp_path: Path) -> None:
    with tracking.run("teacher", "fit") as run:
        assert isinstance(run.logger, Logger)
        trainer = fit(run.logger, tmp_path)
        assert client.get_run(run.run_id).info.status == "RUNNING"
        run.artifact(Path(trainer.checkpoint_callback.best_model_path), "after")  # type: ignore[union-attr]
    stored = client.get_run(run.run_id)
    assert stored.info.status == "FINISHED"
    assert [m.step for m in client.get_metric_history(run.run_id, "loss")] == [0, 1]
    assert stored.data.params["lr"] == "0.5"
    assert [f.path for f in client.list_artifacts(run.run_id)] == ["after"]  # no checkpoint but ours


def test_other_ranks_record_nothing(tracking: Tracking, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rank_zero_only, "rank", 1)
    with tracking.run("teacher", "rank 1", config="a: 1") as run:
        assert run.run_id is None
        assert isinstance(run.logger, Logger)
        run.logger.log_metrics({"loss": 1.0}, 0)
        run.tag("a", "b")


def test_unusable_database_fails_at_once(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no database " * 100)
    began = time.monotonic()
    for path in (tmp_path / "file", tmp_path / "file" / "mlflow.db"):
        with (
            pytest.raises(ValueError, match=r"cannot start an MLflow run.*check --tracking\.uri"),
            Tracking(f"sqlite:///{path}").run("teacher", "never"),
        ):
            pass
    assert time.monotonic() - began < 5


def test_config_must_be_a_mapping(tracking: Tracking) -> None:
    with (
        pytest.raises(ValueError, match="expected a YAML mapping"),
        tracking.run("teacher", "x", config="- 1"),
    ):
        pass


@pytest.mark.usefixtures("unset")
def test_uri_and_ui_command(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Tracking().ui_command() == "mlflow ui --backend-store-uri sqlite:///runs/mlflow.db"
    assert Tracking("sqlite:///a b.db").ui_command() == "mlflow ui --backend-store-uri 'sqlite:///a b.db'"
    assert Tracking(enabled=False).ui_command() == ""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://server:5000")
    assert Tracking().ui_command() == "http://server:5000"
    assert Tracking("sqlite:///mine.db").uri == "sqlite:///mine.db"


def test_missing_mlflow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match="pip install mlflow"):
        Tracking()
    assert not Tracking(enabled=False).enabled


def test_disabled_needs_no_mlflow(tmp_path: Path) -> None:
    code = """
import sys
from pathlib import Path
sys.modules["mlflow"] = None  # importing it raises
from unidd_pl.console import Stopped
from unidd_pl.tracking import Tracking, store
tracking = Tracking(enabled=False)
with tracking.run("teacher", "name", {"a": "b"}, "c: 1") as run:
    assert run.run_id is None and run.logger is False
    run.metrics({"loss": 1.0}, 3); run.artifact(Path("absent")); run.tag("a", "b")
del sys.modules["mlflow"]
assert not [name for name in sys.modules if name.split(".")[0] == "mlflow"]
"""
    path = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=path, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_stage_that_was_stopped_is_killed_not_failed(tmp_path: Path) -> None:
    tracking = Tracking(f"sqlite:///{tmp_path / 'mlflow.db'}")
    with pytest.raises(Stopped), tracking.run("teacher", "stopped") as run:
        raise Stopped(signal.SIGINT, "stopped in epoch 3 of 9")
    from mlflow.tracking import MlflowClient

    assert MlflowClient(tracking.uri).get_run(str(run.run_id)).info.status == "KILLED"
