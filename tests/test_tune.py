"""`unidd tune`: candidates, the hold-out they are scored on, and the choice."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from unidd_pl.cli import main
from unidd_pl.data import DigitsData
from unidd_pl.data.holdout import HoldOutData
from unidd_pl.distilled import DistilledSet
from unidd_pl.protocols import Protocol
from unidd_pl.rows import Row
from unidd_pl.scores import StudentScore, mean_and_std
from unidd_pl.statistics import load_statistics
from unidd_pl.tracking import Tracking
from unidd_pl.tune import Trial, Tuning

CONFIGS = Path(__file__).parent.parent / "configs"
TUNE = [
    "tune", "--config", str(CONFIGS / "cfm_digits.yaml"), "--config", str(CONFIGS / "eval_digits.yaml"),
    "--teacher.epochs", "3", "--tracking.enabled", "false",
    "--model.init_args.iterations", "3", "--model.init_args.ipc", "2", "--protocol.epochs", "3", "--seeds", "2",
]  # fmt: skip


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one finished tuning of η and β in ``out``; not to be changed."""
    folder = tmp_path_factory.mktemp("tuning")
    monkeypatch = pytest.MonkeyPatch()
    with monkeypatch.context() as patch:
        patch.chdir(folder)
        main([*TUNE, "--eta", "0.1", "10", "--beta", "0.1", "0.5", "--output_dir", "out"])
    return folder


@pytest.fixture
def results(tuned: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((tuned / "out/tuning.json").read_text())
    return content


def test_all_combinations_are_tried(results: dict[str, Any]) -> None:
    assert [(one["eta"], one["beta"]) for one in results["trials"]] == [(0.1, 0.1), (0.1, 0.5), (10, 0.1), (10, 0.5)]
    assert all(len(one["tail_mean"]) == len(one["last_epoch"]) == 2 for one in results["trials"])


def test_each_candidate_is_distilled_with_its_settings(tuned: Path) -> None:
    sets = {name: DistilledSet.load(tuned / f"out/{name}/distilled.safetensors") for name in
            ("eta=0.1,beta=0.1", "eta=10.0,beta=0.5")}  # fmt: skip
    configs = {name: one.manifest["config"] for name, one in sets.items()}
    assert "eta: 10.0" in configs["eta=10.0,beta=0.5"]
    assert "beta: 0.5" in configs["eta=10.0,beta=0.5"]
    assert "eta: 0.1" in configs["eta=0.1,beta=0.1"]
    first, last = sets.values()
    assert not torch.equal(first.images, last.images)


def test_the_hold_out_is_left_out_of_the_distillation(tuned: Path, results: dict[str, Any]) -> None:
    data = HoldOutData(DigitsData(), 0.1)
    assert results["held_out_images"] == len(data.test)
    distilled = DistilledSet.load(tuned / "out/eta=0.1,beta=0.1/distilled.safetensors")
    assert distilled.manifest["data"] == data.fingerprint
    whole = {load_statistics(file).made_from["data"] for file in (tuned / "runs/cache/statistics").iterdir()}
    assert whole == {data.fingerprint}, "real moments of the kept images alone"


def test_the_best_has_the_highest_tail_mean(results: dict[str, Any]) -> None:
    best = max(results["trials"], key=lambda one: mean_and_std(one["tail_mean"])[0])
    assert results["best"] == {"eta": best["eta"], "beta": best["beta"]}


def test_equal_trials_keep_the_first() -> None:
    tuning = object.__new__(Tuning)
    score = StudentScore(0, {1: 0.5}, (1,))
    tuning.trials = [Trial({"eta": eta}, Row("", "", [score])) for eta in (0.1, 1.0)]
    assert tuning.best.candidate == {"eta": 0.1}


def test_prints_a_table_and_what_to_type(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    main([*TUNE, "--relative", "false", "true", "--seeds", "1"])
    printed = capsys.readouterr().out
    assert "digits, 0.1 held out, protocol unidd-release, 3 epochs: top-1 on the hold-out, %" in printed
    assert "Best on the hold-out: --model.init_args.relative " in printed
    assert (tmp_path / "runs/cfm_digits_tuning/tuning.json").exists()


class TestBadInput:
    def refuse(self, capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
        with pytest.raises(SystemExit) as ended:
            main([*TUNE, *arguments])
        assert ended.value.code == 2
        return capsys.readouterr().err

    def test_one_candidate_is_no_choice(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.chdir(tmp_path)
        for given in ([], ["--eta", "0.1"]):
            assert "expected at least two values to choose from" in self.refuse(capsys, *given)

    def test_value_out_of_range_shows_before_the_work(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.chdir(tmp_path)
        assert "model.init_args.beta: got -1.0, expected > 0" in self.refuse(capsys, "--beta", "0.1", "-1")
        assert not list(tmp_path.glob("runs/*tuning/*"))

    def test_the_same_value_twice(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.chdir(tmp_path)
        assert "expected each once" in self.refuse(capsys, "--eta", "1", "1.0")

    def test_no_resume(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.chdir(tmp_path)
        assert "a tuning does not resume" in self.refuse(capsys, "--eta", "1", "2", "--ckpt_path", "last")

    def test_a_filled_folder_of_a_later_candidate_shows_before_the_first(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.chdir(tmp_path)
        (tmp_path / "out/eta=2.0").mkdir(parents=True)
        (tmp_path / "out/eta=2.0/distilled.safetensors").write_bytes(b"")
        message = self.refuse(capsys, "--eta", "1", "2", "--output_dir", "out")
        assert "eta=2.0 already holds distilled.safetensors" in message
        assert not (tmp_path / "out/eta=1.0/distilled.safetensors").exists()

    def test_results_are_not_overwritten(
        self, tuned: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.chdir(tuned)
        assert "already holds results" in self.refuse(capsys, "--eta", "1", "2", "--output_dir", "out")

    def test_no_students(self, tmp_path: Path) -> None:
        make: Callable[..., Any] = lambda *_: None  # noqa: E731
        with pytest.raises(ValueError, match="seeds: got 0, expected at least 1"):
            Tuning(make, DigitsData(), {"eta": [1, 2]}, Protocol(), "convnet-w64-d2", 0, 0.1,
                   Tracking(enabled=False), "cpu", tmp_path)  # fmt: skip
