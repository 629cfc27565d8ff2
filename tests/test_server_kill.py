"""A tracking server that goes away in the middle of a fit neither stops nor slows it; nothing recorded is missing."""

from __future__ import annotations

import json
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
from records import missing
from server_kill import measure, plain_server, speeds

from unidd_pl.tracking import Store, Tracking
from unidd_pl.tracking.journal import Journal, Start


def check(result: dict[str, Any]) -> None:
    """What holds however the server went away; other work on the machine moves a rate, a wait for a server stops it."""
    assert result["missing"] == []
    assert result["left_in_the_outbox"] == 0
    assert result["said_so"] == 1
    assert result["compared"]["metric_points"] > 4000
    assert min(result["compared"].values()) > 0
    assert result["iterations_per_second_after"] > 0.6 * result["iterations_per_second_before"]
    assert result["longest_pause_after_s"] < 3 + 2 * result["longest_pause_before_s"]


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])  # dead, and one that takes calls without an answer
def test_a_server_goes_away_in_the_middle_of_a_fit(
    how: signal.Signals, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server = plain_server(tmp_path)
    try:
        result = measure(server, tmp_path, how)
    finally:
        server.kill()
    with capsys.disabled():
        sys.stdout.write(f"\n{result}\n")
    check(result)


def test_speeds_are_those_of_the_parts() -> None:
    times = [(step, step / 10) for step in range(101)]  # ten a second, then after a pause of three five a second
    times += [(100 + step, 13 + step / 5) for step in range(1, 51)]
    assert speeds(times, moment=10.0) == {
        "iterations_per_second_before": 10.0, "iterations_per_second_after": 3.85, "longest_pause_before_s": 0.1,
        "longest_pause_after_s": 3.2,
    }  # fmt: skip


def test_what_is_missing_is_found(tmp_path: Path) -> None:
    """The comparison of the slow tests is worth something only if it sees a gap."""
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    (tmp_path / "grid.png").write_bytes(b"png")
    tracking = Tracking(uri, "gaps")
    with tracking.run("distillation", "one", {"method": "cfm"}) as run:
        run.metrics({"loss": 0.5, "beta": float("nan")})
        run.params({"lr": 0.1})
        run.artifact(tmp_path / "grid.png", "pictures")
        run.input("digits", "d", "here", "training")
    (stored,) = Store(uri).runs(Store(uri).experiment_id("gaps") or "")
    key = stored.tags["unidd.key"]
    complete = [
        {"metrics": [["loss", 0.5, 0, 7]]}, {"params": {"lr": "0.1"}}, {"artifact": ["files/grid.png", "pictures"]},
        {"input": {"name": "digits"}}, {"tag": ["method", "cfm"]},
    ]  # fmt: skip
    other = [
        {"metrics": [["loss", 0.25, 1, 7]]}, {"params": {"lr": "0.2"}}, {"artifact": ["files/grid.png", "elsewhere"]},
        {"input": {"name": "noise"}}, {"tag": ["method", "dm"]},
    ]  # fmt: skip
    journal = Journal.begin(tmp_path / "copy", Start(uri, "gaps", "one", {"method": "cfm"}))
    journal.unlock()
    folder = journal.folder.rename(tmp_path / "copy" / key)
    (folder / "files").mkdir()
    (folder / "files/grid.png").write_bytes(b"png")
    first = (folder / "journal.jsonl").read_text()
    moment = Store(uri)._client.get_metric_history(stored.run_id, "loss")[0].timestamp
    for entry in complete:
        text = first + json.dumps(entry).replace("7]", f"{moment}]") + "\n"
        (folder / "journal.jsonl").write_text(text)
        assert missing(folder, uri)[1] == []
    for entry in other:
        (folder / "journal.jsonl").write_text(first + json.dumps(entry) + "\n")
        assert len(missing(folder, uri)[1]) == 1, entry
