"""`unidd sweep`: points, what is skipped and what goes on, and one MLflow tree with a report."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from unidd_pl import sweep
from unidd_pl.cli import main
from unidd_pl.console import Stopped
from unidd_pl.fit import DistillationRun
from unidd_pl.grid import parse_grid
from unidd_pl.tracking import Store

CONFIGS = Path(__file__).parent.parent / "configs"


def command(folder: Path, *options: str) -> list[str]:
    return [
        "sweep", "--config", str(CONFIGS / "cfm_digits.yaml"), "--config", str(CONFIGS / "dm_digits.yaml"),
        "--set", "model.init_args.eta=0.1,1", "--set", "model.init_args.iterations=2", "model.init_args.ipc=2",
        "teacher.epochs=2", "protocol.epochs=3", f"cache_dir={folder}/cache",
        "--evaluate", str(CONFIGS / "eval_digits.yaml"), "--students", "1", "--experiment", "small",
        "--tracking.uri", f"sqlite:///{folder}/mlflow.db", "--output_dir", str(folder / "out"), *options,
    ]  # fmt: skip


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a finished sweep in ``out``."""
    folder = tmp_path_factory.mktemp("sweep")
    main(command(folder))
    return folder


def stored(folder: Path) -> tuple[Store, list[Any]]:
    store = Store(f"sqlite:///{folder}/mlflow.db")
    return store, list(store.runs(store.experiment_id("small") or ""))


def test_every_combination_is_a_point(swept: Path) -> None:
    names = {path.parent.name for path in (swept / "out").glob("*/distilled.safetensors")}
    assert names == {f"{method}_digits_eta_{eta}_seed_0" for method in ("cfm", "dm") for eta in ("0.1", "1")}


def test_runs_are_nested(swept: Path) -> None:
    _, runs = stored(swept)
    by_id = {run.run_id: run for run in runs}
    stages: dict[str, list[str]] = {}
    for run in runs:
        parent = by_id.get(run.tags.get("mlflow.parentRunId", ""))
        stages.setdefault(f"{run.tags['stage']} {run.tags.get('method', '')}".strip(), []).append(
            "" if parent is None else parent.tags["stage"]
        )
    assert stages.pop("report dm,cfm,real images") == ["sweep"]
    assert stages == {
        "sweep": [""], "teacher": [""], "statistics": ["", ""],
        "distillation cfm": ["sweep"] * 2, "distillation dm": ["sweep"] * 2,
        "evaluation cfm": ["distillation"] * 2, "evaluation dm": ["distillation"] * 2,
        "evaluation real images": ["sweep"],
    }  # fmt: skip


def test_the_report_tells_the_points_apart(swept: Path) -> None:
    table = (swept / "out/report/table.md").read_text()
    for label in ("cfm, eta=0.1", "cfm, eta=1.0", "dm, eta=0.1", "dm, eta=1.0", "real images"):
        assert f"| {label} " in table


def test_finished_points_are_skipped_and_the_rest_is_made(
    swept: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made: list[str] = []
    fit = DistillationRun.fit

    def counted(run: DistillationRun) -> Path:
        made.append(run.output.name)
        return fit(run)

    monkeypatch.setattr(DistillationRun, "fit", counted)
    main(command(swept, "--set", "model.init_args.beta=0.1"))
    assert made == []  # β has that value in the configs: no point changes
    said = capsys.readouterr().out
    assert said.count("Finished before: skipped") == 4
    assert len([run for run in stored(swept)[1] if run.tags["stage"] == "sweep"]) == 1


def test_a_stopped_sweep_goes_on(tmp_path: Path, swept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = command(tmp_path, "--set", f"cache_dir={swept}/cache", "--report", "false")
    options.remove(f"cache_dir={tmp_path}/cache")
    evaluate = sweep.Evaluation.run
    calls: list[str] = []

    def stopping(evaluation: sweep.Evaluation) -> Any:
        calls.append(evaluation.paths[0].parent.name)
        if len(calls) == 2:
            raise Stopped(15, "stopped")
        return evaluate(evaluation)

    monkeypatch.setattr(sweep.Evaluation, "run", stopping)
    with pytest.raises(SystemExit) as ended:
        main(options)
    assert ended.value.code == 128 + 15
    first, second = calls
    before = (tmp_path / f"out/{second}/distilled.safetensors").stat().st_mtime_ns
    main(options)
    assert calls[2] == second  # the first is skipped
    assert (tmp_path / f"out/{second}/distilled.safetensors").stat().st_mtime_ns == before  # distilled already
    assert json.loads((tmp_path / f"out/{first}/point.json").read_text())["done"]


def test_real_images_stand_beside_what_was_made(swept: Path, tmp_path: Path) -> None:
    """A point that its probe ends early has fewer images per class than planned, and so have its real images."""
    config = yaml.safe_load((CONFIGS / "cfm_digits_probe.yaml").read_text())
    config["trainer"]["callbacks"][1]["init_args"].update(every=1, steps=2, target=0.001)
    (tmp_path / "probed.yaml").write_text(yaml.safe_dump(config, allow_unicode=True))
    main(["sweep", "--config", str(tmp_path / "probed.yaml"), str(CONFIGS / "dm_digits.yaml"),
          "--set", "model.init_args.iterations=2", "model.init_args.ipc=2", "teacher.epochs=2", "protocol.epochs=3",
          f"cache_dir={swept}/cache", "--evaluate", str(CONFIGS / "eval_digits.yaml"), "--students", "1",
          "--experiment", "probed", "--tracking.uri", f"sqlite:///{tmp_path}/mlflow.db",
          "--output_dir", str(tmp_path / "out")])  # fmt: skip
    table = [line.split(" | ") for line in (tmp_path / "out/report/table.md").read_text().splitlines()]
    rows = {(row[0].removeprefix("| "), row[2]) for row in table if len(row) > 5}
    real = {("real images", "1"), ("real images", "2")}
    assert rows >= {("cfm, partial, 1 of 2 rounds", "1"), ("dm", "2"), *real}


def refused(capsys: pytest.CaptureFixture[str], arguments: list[str]) -> str:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    return capsys.readouterr().err


def test_a_point_of_other_settings_is_not_replaced_unasked(swept: Path, capsys: pytest.CaptureFixture[str]) -> None:
    message = refused(capsys, command(swept, "--set", "model.init_args.lr=0.3"))
    assert "was made with other settings" in message


@pytest.mark.parametrize("content", ["{", "[1]", '{"done": true}'])
def test_a_damaged_note_of_a_point_is_told(swept: Path, capsys: pytest.CaptureFixture[str], content: str) -> None:
    note = swept / "out/dm_digits_eta_1_seed_0/point.json"
    kept = note.read_text()
    note.write_text(content)
    try:
        message = refused(capsys, command(swept))
    finally:
        note.write_text(kept)
    assert re.search(rf"{note}: got .*expected .*remove it, and give --overwrite true", message)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--set", "model.init_args.etta=1"], "etta"),
        (["--set", "model.init_args.eta=0.2"], "each key and each of its values once"),
        (["--set", "beta"], "expected KEY=VALUE"),
        (["--set", "model.init_args.beta=1,1"], "each of its values once"),
        (["--config", "absent.yaml"], "got absent.yaml, expected config files"),
        (["--config", str(CONFIGS / "dm_digits.yaml")], "points of the same name"),
        (["--seeds", "0"], "seeds: got 0"),
        (["--set", "model.init_args.beta=0,1"], "beta"),
        (["--set", "protocol.length=4"], "length"),
    ],
)
def test_bad_input(tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], expected: str) -> None:
    assert expected in refused(capsys, command(tmp_path, *options))
    assert not (tmp_path / "out").exists()


def test_values_may_hold_commas() -> None:
    assert parse_grid(["a.b={1: 2, 3: 4},x", 'c="d,e",f', "g=[1,2]"]) == {
        "a.b": ["{1: 2, 3: 4}", "x"], "c": ['"d,e"', "f"], "g": ["[1,2]"],
    }  # fmt: skip
