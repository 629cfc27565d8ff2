"""The table of a comparison, its JSON and the order of its work."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

from unidd_pl.comparison import Comparison, environment
from unidd_pl.protocols import Protocol
from unidd_pl.rows import Row, seeds_then_rows
from unidd_pl.scores import StudentScore, mean_and_std, paired_difference
from unidd_pl.tables import latex_table

NOISE = ((0, 0.0), (1, 1e-4), (2, -1e-4))  # of the students, by seed


def score(seed: int, *accuracies: float) -> StudentScore:
    """Return a score at epochs 1, 2, …, the last two of them the tail."""
    count = len(accuracies)
    return StudentScore(seed, dict(enumerate(accuracies, start=1)), (count - 1, count))


@pytest.fixture
def comparison() -> Comparison:
    rows = [
        Row("distilled", "convnet-w8-d2", [score(0, 0.9, 0.60, 0.64), score(1, 0.1, 0.68, 0.70)], ("abc123",)),
        Row("real", "convnet-w8-d2", [score(0, 0.2, 0.50, 0.60)]),
        Row("not begun", "resnet18"),
    ]
    return Comparison(Protocol(epochs=3), "toy", 10, {"name": "convnet", "accuracy": 0.8}, rows)


def test_a_score_has_last_epoch_tail_and_labelled_best() -> None:
    one = score(0, 0.9, 0.60, 0.64)
    assert one.last_epoch == 0.64
    assert one.tail_mean == pytest.approx(0.62)
    assert one.best_epoch == 0.9


def test_the_last_epoch_does_not_depend_on_the_order_of_the_scores() -> None:
    assert StudentScore(0, {20: 0.7, 10: 0.5}, (20,)).last_epoch == 0.7


def test_mean_and_sample_deviation() -> None:
    assert mean_and_std([0.5]) == (0.5, None)
    mean, std = mean_and_std([1.0, 2.0, 4.0])
    assert mean == pytest.approx(7 / 3)
    assert std == pytest.approx((((4 / 3) ** 2 + (1 / 3) ** 2 + (5 / 3) ** 2) / 2) ** 0.5)  # n − 1 = 2


def test_the_table(comparison: Comparison) -> None:
    # tail means 62 and 69: 65.5 ± 7/√2; last epochs 64 and 70: 67 ± 6/√2; one student has no deviation.
    assert [line.rstrip() for line in comparison.table().splitlines()] == [
        "toy, 10 images per class, protocol unidd-release, 3 epochs: top-1 on the test images, %",
        "",
        "training set  student        n  tail mean   last epoch",
        "────────────  ─────────────  ─  ──────────  ──────────",
        "distilled     convnet-w8-d2  2  65.5 ± 4.9  67.0 ± 4.2",
        "real          convnet-w8-d2  1  55.0        60.0",
    ]


def test_a_table_before_the_first_student_has_a_head_only(comparison: Comparison) -> None:
    comparison.rows = [Row("distilled", "convnet")]
    assert len(comparison.table().splitlines()) == 4
    assert comparison.to_dict()["rows"] == []


def test_the_dictionary_is_plain_json(comparison: Comparison) -> None:
    read = json.loads(json.dumps(comparison.to_dict(), allow_nan=False))
    assert read["dataset"] == "toy"
    assert read["ipc"] == 10
    assert [row["distilled_set"] for row in read["rows"]] == ["abc123", None]
    assert read["precision"] == "32-true"
    assert read["teacher"] == {"name": "convnet", "accuracy": 0.8}
    assert read["protocol"]["name"] == "unidd-release"
    assert read["protocol"]["epochs"] == 3
    assert read["protocol"]["temperature"] == 20.0
    assert read["environment"] == environment()
    assert all(read["environment"].values())
    distilled, real = read["rows"]  # the row that has not begun is left out
    assert (distilled["training_set"], distilled["network"], distilled["n"]) == ("distilled", "convnet-w8-d2", 2)
    assert distilled["tail_mean"] == {"mean": pytest.approx(0.655), "std": pytest.approx(0.07 / 2**0.5)}
    assert real["last_epoch"] == {"mean": 0.6, "std": None}
    assert [student["seed"] for student in distilled["students"]] == [0, 1]
    assert distilled["students"][0]["best_epoch_chosen_on_test"] == 0.9
    assert distilled["students"][0]["accuracy_by_epoch"] == {"1": 0.9, "2": 0.6, "3": 0.64}


def test_save_writes_the_dictionary(comparison: Comparison, tmp_path: Path) -> None:
    path = tmp_path / "new" / "comparison.json"
    comparison.save(path)
    assert json.loads(path.read_text()) == json.loads(json.dumps(comparison.to_dict()))
    comparison.rows = comparison.rows[:1]
    comparison.save(path)  # a later state replaces the earlier one
    assert len(json.loads(path.read_text())["rows"]) == 1
    assert {file.name for file in path.parent.iterdir()} == {
        f"comparison.{kind}" for kind in ("json", "csv", "md", "tex")
    }


def test_save_names_the_folder_that_it_cannot_write_to(comparison: Comparison, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"could not write comparison\.json in folder .*file"):
        comparison.save(tmp_path / "file" / "comparison.json")


def test_all_rows_of_a_seed_come_before_the_next_seed() -> None:
    rows = [Row("a", "x"), Row("b", "x")]
    assert [(row.name, seed) for row, _, seed in seeds_then_rows(rows, 3)] == [
        ("a", 0), ("b", 0), ("a", 1), ("b", 1), ("a", 2), ("b", 2)
    ]  # fmt: skip


def test_top5_stands_beside_top1_where_there_are_more_than_five_classes(comparison: Comparison) -> None:
    assert "top-5" not in comparison.table()
    for row in comparison.rows:
        row.scores = [
            StudentScore(one.seed, one.accuracies, one.tail_epochs, dict.fromkeys(one.accuracies, 0.9))
            for one in row.scores
        ]
    lines = comparison.table().splitlines()
    assert lines[2].rstrip().endswith("top-5 tail mean")
    assert lines[4].rstrip().endswith("90.0 ± 0.0")


class TestPairedDifference:
    ours = (0.66, 0.64, 0.67, 0.65)
    theirs = (0.62, 0.63, 0.64, 0.60)

    def scores(self, values: tuple[float, ...], first: int = 0) -> list[StudentScore]:
        return [score(seed, value, value) for seed, value in enumerate(values, start=first)]

    def test_agrees_with_the_formulas_written_out(self) -> None:
        result = paired_difference(self.scores(self.ours), self.scores(self.theirs))
        differences = np.subtract(self.ours, self.theirs)
        error = differences.std(ddof=1) / 2
        quantile = 3.1824463052842638  # of Student's t with 3 degrees of freedom, 97.5 %
        assert result.n == 4
        assert result.mean == pytest.approx(differences.mean())
        assert (result.low, result.high) == pytest.approx(
            (differences.mean() - quantile * error, differences.mean() + quantile * error)
        )
        # The p-value is the share of the density beyond t, by the trapezium rule.
        t = np.linspace(differences.mean() / error, 2000, 2_000_001)
        density = 6 * np.sqrt(3) / (np.pi * (3 + t**2) ** 2)
        assert result.p_value == pytest.approx(2 * np.trapezoid(density, t), rel=1e-3)

    def test_pairs_by_seed_and_not_by_place(self) -> None:
        shuffled = [*reversed(self.scores(self.theirs))]
        expected = paired_difference(self.scores(self.ours), self.scores(self.theirs))
        assert paired_difference(self.scores(self.ours), shuffled) == expected

    def test_seeds_that_are_missing_on_one_side_do_not_count(self) -> None:
        assert paired_difference(self.scores(self.ours), self.scores(self.theirs, first=2)).n == 2

    def test_one_pair_has_no_interval(self) -> None:
        result = paired_difference(self.scores((0.6,)), self.scores((0.5,)))
        assert result.mean == pytest.approx(0.1)
        assert math.isnan(result.low)
        assert math.isnan(result.p_value)

    def test_equal_differences_leave_nothing_to_test(self) -> None:
        assert paired_difference(self.scores((0.5, 0.5)), self.scores((0.5, 0.5))).p_value == 1.0

    def test_the_table_ends_with_the_differences(self, comparison: Comparison) -> None:
        real = Row("real images", "convnet-w8-d2", [score(0, 0.2, 0.50, 0.60), score(1, 0.2, 0.55, 0.55)])
        comparison.rows = [comparison.rows[0], real]
        last = comparison.table().splitlines()[-1].split()
        # tail means 62, 69 against 55, 55
        assert last[:4] == ["distilled", "convnet-w8-d2", "2", "+10.5"]
        assert comparison.to_dict()["rows"][0]["difference_to_real"]["mean"] == pytest.approx(0.105)

    def test_no_p_value_is_shown_as_zero(self, comparison: Comparison) -> None:
        ours = Row("distilled", "convnet-w8-d2", [score(seed, 0.2, 0.6 + noise, 0.6 + noise) for seed, noise in NOISE])
        real = Row("real images", "convnet-w8-d2", [score(seed, 0.2, 0.5, 0.5) for seed, _ in NOISE])
        comparison.rows = [ours, real]
        assert comparison.table().splitlines()[-1].split()[-1] == "<0.001"


def test_latex_escapes_what_latex_would_read() -> None:
    table = latex_table(["a_b", "100 %"], [["x & y", "1.0 ± 0.1"]])
    assert r"a\_b & 100 \% \\" in table
    assert r"x \& y & 1.0 $\pm$ 0.1 \\" in table
