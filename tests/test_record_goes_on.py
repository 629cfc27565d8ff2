"""A run that goes on has the record of before, however it ended."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from unidd_pl.console import Stopped
from unidd_pl.standing import STANDING_FILE, Standing, is_finished, recorded
from unidd_pl.tracking import Store, StoredRun, Tracking, sync

ROOT = Path(__file__).parent.parent
CONFIG = "lr: 1\nname: first\n"
KILLED = """
import os, signal, sys
from pathlib import Path
from unidd_pl.standing import recorded
from unidd_pl.tracking import Tracking
folder = Path(sys.argv[1])
tracking = Tracking(sys.argv[2], sys.argv[3])
with recorded(tracking, folder, {"seed": "1"}, "lr: 1\\nname: first\\n", None, going_on=False, complete=bool) as run:
    run.metrics({"loss": 1.0}, 1)
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture(scope="module")
def uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    """One database for the file: creating it takes seconds."""
    return f"sqlite:///{tmp_path_factory.mktemp('store')}/mlflow.db"


@pytest.fixture
def tracking(uri: str, request: pytest.FixtureRequest) -> Tracking:
    return Tracking(uri, request.node.name)


def runs(tracking: Tracking) -> list[StoredRun]:
    store = Store(tracking.uri)
    return list(store.runs(store.experiment_id(tracking.experiment) or ""))


def go_on(
    tracking: Tracking, folder: Path, config: str = CONFIG, *, complete: bool = True, from_checkpoint: bool = True
) -> None:
    with recorded(
        tracking, folder, {"seed": "1"}, config, None, going_on=True, from_checkpoint=from_checkpoint,
        complete=lambda: complete,
    ) as run:  # fmt: skip
        if tracking.enabled:
            assert Store(tracking.uri).run(run.run_id or "").status == "RUNNING"
        run.metrics({"loss": 0.5}, 2)


def check_continued(tracking: Tracking) -> None:
    (only,) = runs(tracking)
    assert (only.status, only.params) == ("FINISHED", {"lr": "1", "name": "first"})
    assert Store(tracking.uri).history(only.run_id, "loss") == [(1, 1.0), (2, 0.5)]
    assert not list(tracking.outbox.glob("*"))


def kill(tracking: Tracking, folder: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", KILLED, str(folder), tracking.uri, tracking.experiment]
    assert subprocess.run(command, env=environment, check=False).returncode == -signal.SIGKILL
    assert list(tracking.outbox.glob("*")), "what it had not sent"


def stop(tracking: Tracking, folder: Path) -> None:
    def begin() -> None:
        with recorded(tracking, folder, {"seed": "1"}, CONFIG, None, going_on=False, complete=bool) as run:
            run.metrics({"loss": 1.0}, 1)
            raise Stopped(signal.SIGTERM, "stopped")

    with pytest.raises(Stopped):
        begin()


def test_a_stopped_run_has_one_record(tracking: Tracking, tmp_path: Path) -> None:
    stop(tracking, tmp_path)
    assert [one.status for one in runs(tracking)] == ["KILLED"]
    go_on(tracking, tmp_path, "lr: 1\nname: second\n")  # MLflow keeps the first value of a setting
    check_continued(tracking)


def test_a_killed_run_has_one_record(tracking: Tracking, tmp_path: Path) -> None:
    kill(tracking, tmp_path)
    go_on(tracking, tmp_path)
    check_continued(tracking)


def test_a_killed_run_that_was_sent_in_between_has_one_record(tracking: Tracking, tmp_path: Path) -> None:
    kill(tracking, tmp_path)
    assert sync(tracking.outbox) == 1
    assert [one.status for one in runs(tracking)] == ["KILLED"]
    go_on(tracking, tmp_path)
    check_continued(tracking)


def test_a_run_killed_before_its_first_checkpoint_has_one_record(tracking: Tracking, tmp_path: Path) -> None:
    kill(tracking, tmp_path)
    go_on(tracking, tmp_path, f"{CONFIG}ckpt_path: last\noverwrite: false\n", from_checkpoint=False)
    (only,) = runs(tracking)
    assert only.status == "FINISHED"


def test_one_that_begins_anew_with_another_config_has_another_record(tracking: Tracking, tmp_path: Path) -> None:
    kill(tracking, tmp_path)
    go_on(tracking, tmp_path, CONFIG.replace("lr: 1", "lr: 2"), from_checkpoint=False)
    assert sync(tracking.outbox) == 1
    assert [(one.status, one.params["lr"]) for one in runs(tracking)] == [("FINISHED", "2"), ("KILLED", "1")]


def test_a_record_that_was_deleted_starts_anew(tracking: Tracking, tmp_path: Path) -> None:
    kill(tracking, tmp_path)
    (old,) = runs(tracking)
    tracking.store()._client.delete_run(old.run_id)
    go_on(tracking, tmp_path)
    (new,) = runs(tracking)
    assert new.run_id != old.run_id
    assert (new.status, new.metrics, new.params) == ("FINISHED", {"loss": 0.5}, {"lr": "1", "name": "first"})


def test_another_experiment_has_a_record_of_its_own(tracking: Tracking, tmp_path: Path) -> None:
    kill(tracking, tmp_path)
    other = Tracking(tracking.uri, "other")
    go_on(other, tmp_path)
    assert [one.status for one in runs(other)] == ["FINISHED"]
    assert [one.status for one in runs(tracking)] == ["RUNNING"]
    assert sync(tracking.outbox) == 1


def test_a_start_without_a_record_does_not_lose_it(tracking: Tracking, tmp_path: Path) -> None:
    stop(tracking, tmp_path)
    go_on(Tracking(enabled=False), tmp_path, complete=False)
    go_on(tracking, tmp_path)
    check_continued(tracking)


def test_a_new_run_has_a_new_record(tracking: Tracking, tmp_path: Path) -> None:
    stop(tracking, tmp_path)
    stop(tracking, tmp_path)
    assert len({one.run_id for one in runs(tracking)}) == 2


def test_only_a_complete_run_with_its_result_is_finished(tmp_path: Path) -> None:
    off = Tracking(enabled=False)
    assert not is_finished(tmp_path, "set")
    go_on(off, tmp_path, complete=False)
    (tmp_path / "set").touch()
    assert not is_finished(tmp_path, "set")
    go_on(off, tmp_path)
    assert is_finished(tmp_path, "set")
    (tmp_path / "set").unlink()
    assert not is_finished(tmp_path, "set")


@pytest.mark.parametrize(
    "content", [b"", b"[]", b"{", b"\xff", b'{"record": 1, "finished": 1}', b'{"record": "../up", "finished": "yes"}']
)
def test_a_damaged_note_is_none(content: bytes, tmp_path: Path) -> None:
    (tmp_path / STANDING_FILE).write_bytes(content)
    assert Standing.load(tmp_path) == Standing()


def test_the_note_is_what_was_noted(tmp_path: Path) -> None:
    noted: Any = Standing("1795596803804-d69efc20d558", finished=True, config="a0")
    noted.save(tmp_path)
    assert Standing.load(tmp_path) == noted
