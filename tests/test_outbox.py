"""Records with the server away: kept on the disk, said once, sent later, and the same as if it had been there."""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import time
from pathlib import Path
from typing import Any

import pytest

from unidd_pl.cli import main
from unidd_pl.tracking import StageRun, Store, Tracking, sender, sync
from unidd_pl.tracking.journal import Journal, Start


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sender, "INTERVAL", 0.05)
    monkeypatch.setattr(sender, "_told", set())


@pytest.fixture(scope="module")
def uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    """One database for the file: creating it takes seconds."""
    return f"sqlite:///{tmp_path_factory.mktemp('store')}/mlflow.db"


POINTS = 1100  # more than one call takes
AWAY = "http://me:secret@127.0.0.1:9"  # the port "discard": nothing listens there


class Patient(Tracking):
    """Tracking to a server that is away until `answers` names a store."""

    answers: str | None = None
    tries = 0

    def store(self) -> Store:
        self.tries += 1
        if self.answers is None:
            raise OSError("connection refused")
        return Store(self.answers)


def record(run: StageRun, file: Path) -> None:
    run.params({"lr": 0.1})
    for step in range(POINTS):
        run.metrics({"loss": 1 / (step + 1)}, step)
    run.artifact(file, "pictures")
    file.unlink()
    run.tag("distilled_set", "f00")
    run.input("digits", "a" * 64, "digits", "training")


def check(uri: str, experiment: str, name: str, status: str = "FINISHED") -> Any:
    store = Store(uri)
    identity = store.experiment_id(experiment)
    assert identity is not None
    (found,) = [one for one in store.runs(identity) if one.name == name]
    assert found.status == status
    assert found.params == {"lr": "0.1"}
    assert found.tags["distilled_set"] == "f00"
    assert store.history(found.run_id, "loss") == [(step, 1 / (step + 1)) for step in range(POINTS)]
    assert store.artifacts(found.run_id, "pictures") == ["pictures/grid.png"]
    return found


def test_nothing_is_lost_and_the_run_does_not_wait(
    uri: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    outbox = tmp_path / "outbox"
    tracking = Patient(AWAY, "away", outbox=str(outbox))
    (tmp_path / "grid.png").write_bytes(b"png")
    began = time.monotonic()
    with tracking.run("distillation", "alone", {"method": "cfm"}) as run:
        record(run, tmp_path / "grid.png")
        assert run.run_id is None
        time.sleep(0.3)
    assert time.monotonic() - began < 3
    with tracking.run("evaluation", "child", parent=run.key_tags) as child:
        child.params({"lr": 0.1})
    said = capsys.readouterr().out
    assert said.count("does not take records now") == 1
    assert f"unidd sync --outbox {outbox}" in said
    assert "secret" not in said
    assert not [file for file in outbox.rglob("*") if file.is_file() and b"secret" in file.read_bytes()]

    assert sync(outbox, uri) == 2
    assert not outbox.exists()
    parent = check(uri, "away", "alone")
    (sent,) = [one for one in Store(uri).runs(Store(uri).experiment_id("away") or "") if one.name == "child"]
    assert sent.tags["mlflow.parentRunId"] == parent.run_id


def test_a_server_that_comes_back_gets_all_during_the_run(uri: str, tmp_path: Path) -> None:
    tracking = Patient(AWAY, "back", outbox=str(tmp_path / "outbox"))
    (tmp_path / "grid.png").write_bytes(b"png")
    with tracking.run("distillation", "interrupted") as run:
        record(run, tmp_path / "grid.png")
        while tracking.tries < 2:
            time.sleep(0.01)
        tracking.answers = uri
    assert not (tmp_path / "outbox").exists()
    check(uri, "back", "interrupted")


def test_a_cut_between_sending_and_noting_leaves_nothing_twice(
    uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = Journal.begin(tmp_path / "outbox", Start(AWAY, "cut", "twice", {"stage": "x"}))
    run = StageRun(journal)
    (tmp_path / "grid.png").write_bytes(b"png")
    record(run, tmp_path / "grid.png")
    run.close("FINISHED")
    monkeypatch.setattr(Journal, "mark_sent", lambda *_: None)
    sender.Sender(journal, lambda: Store(uri)).send()
    monkeypatch.undo()
    journal.unlock()
    assert sync(tmp_path / "outbox", uri) == 1
    check(uri, "cut", "twice")


def _killed(outbox: str, file: str) -> None:
    with Patient(AWAY, "killed", outbox=outbox).run("distillation", "killed") as run:
        record(run, Path(file))
        os._exit(9)


def test_a_killed_process_leaves_its_record(uri: str, tmp_path: Path) -> None:
    (tmp_path / "grid.png").write_bytes(b"png")
    process = multiprocessing.get_context("spawn").Process(
        target=_killed, args=(str(tmp_path / "outbox"), str(tmp_path / "grid.png"))
    )
    process.start()
    process.join()
    assert process.exitcode == 9
    (folder,) = (tmp_path / "outbox").iterdir()
    with (folder / "journal.jsonl").open("ab") as file:
        file.write(b'{"metrics": [["loss"')  # the line that was being written
    assert sync(tmp_path / "outbox", uri) == 1
    check(uri, "killed", "killed", "KILLED")


def test_what_a_running_command_sends_is_left_to_it(
    uri: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    journal = Journal.begin(tmp_path / "outbox", Start(AWAY, "busy", "busy", {}))
    assert sync(tmp_path / "outbox", uri) == 0
    assert "1 are being sent by commands that run" in capsys.readouterr().out
    journal.unlock()
    assert sync(tmp_path / "outbox", uri) == 1


def test_a_refused_part_does_not_keep_the_rest(uri: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    journal = Journal.begin(tmp_path / "outbox", Start(AWAY, "refused", "refused", {}))
    journal.append({"params": {"lr": "1"}})
    journal.append({"tag": ["../up", "1"]})
    journal.append({"metrics": [["loss", 0.5, 0, 1]]})
    journal.append({"end": ["FINISHED", 5]})
    journal.unlock()
    assert sync(tmp_path / "outbox", uri) == 1
    assert "refuses a part of refused: tag" in capsys.readouterr().out
    (found,) = Store(uri).runs(Store(uri).experiment_id("refused") or "")
    assert (found.params, found.metrics) == ({"lr": "1"}, {"loss": 0.5})


def test_shared_runs_are_recorded_once_an_experiment(uri: str) -> None:
    for experiment in ("one", "one", "two"):
        tracking = Tracking(uri, experiment)
        with tracking.run("teacher", "t", {"teacher": "abc"}, unless={"stage": "teacher", "teacher": "abc"}) as run:
            run.metrics({"accuracy": 0.5})
    store = Store(uri)
    assert [len(list(store.runs(store.experiment_id(name) or ""))) for name in ("one", "two")] == [1, 1]


class TestCommand:
    def test_nothing_to_send(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        main(["sync", "--outbox", str(tmp_path / "none")])
        assert "Nothing to send" in capsys.readouterr().out

    def test_a_server_that_is_away_keeps_the_records(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        Journal.begin(tmp_path / "outbox", Start("http://127.0.0.1:9", "e", "mine", {})).unlock()
        with pytest.raises(SystemExit) as ended:
            main(["sync", "--outbox", str(tmp_path / "outbox")])
        assert ended.value.code == 2
        assert "could not send the run mine to http://127.0.0.1:9" in capsys.readouterr().err
        assert len(Journal.waiting(tmp_path / "outbox")) == 1

    def test_a_record_that_is_none(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        (tmp_path / "outbox/x").mkdir(parents=True)
        (tmp_path / "outbox/x/journal.jsonl").write_text(json.dumps({"other": 1}) + "\n")
        with pytest.raises(SystemExit):
            main(["sync", "--outbox", str(tmp_path / "outbox")])
        assert "cannot read the record" in capsys.readouterr().err

    @pytest.mark.parametrize("line", ['{"metrics": [["loss", 0.1', "[1]", "{}", "\x00\x00"])
    def test_a_damaged_line_is_told_and_keeps_nothing_else(
        self, uri: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], line: str
    ) -> None:
        experiment = f"damaged {line!r}"
        for name in ("first", "second"):
            journal = Journal.begin(tmp_path / "outbox", Start(uri, experiment, name, {"name": name}))
            journal.append({"metrics": [["loss", 0.5, 0, 1]]})
            if name == "first":
                with (journal.folder / "journal.jsonl").open("a") as file:
                    file.write(line + "\n")
                spoiled = journal.folder
            journal.append({"end": ["FINISHED", 5]})
            journal.unlock()
        with pytest.raises(SystemExit) as ended:
            main(["sync", "--outbox", str(tmp_path / "outbox")])
        assert ended.value.code == 2
        message = capsys.readouterr().err
        assert re.search(rf"{spoiled}/journal.jsonl: got a damaged line at byte \d+ .*delete the line", message)
        store = Store(uri)
        found = {one.name: one for one in store.runs(store.experiment_id(experiment) or "")}
        assert found["second"].status == "FINISHED"
        assert found["first"].metrics == {"loss": 0.5}  # what stands before the line
        whole = [one for one in (spoiled / "journal.jsonl").read_text().splitlines() if one != line]
        (spoiled / "journal.jsonl").write_text("\n".join(whole) + "\n")
        main(["sync", "--outbox", str(tmp_path / "outbox")])
        assert {one.status for one in store.runs(store.experiment_id(experiment) or "")} == {"FINISHED"}
        assert not (tmp_path / "outbox").exists()
