"""Statistics over students and over several distilled sets, against the formulas written out."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from unidd_pl.rows import Row, architecture_cells, figure_cells
from unidd_pl.scores import (
    StudentScore,
    across_networks,
    deviation_between_sets,
    deviation_within_sets,
    paired_difference,
)

REAL = np.array([0.50, 0.53, 0.51])
SETS = np.array([[0.60, 0.62, 0.61], [0.66, 0.69, 0.65]])  # two sets × three seeds


def student(seed: int, value: float, distilled: str | None = None, **fields: object) -> StudentScore:
    return StudentScore(seed, {1: value}, (1,), distilled=distilled, **fields)  # type: ignore[arg-type]


def real() -> list[StudentScore]:
    return [student(seed, value) for seed, value in enumerate(REAL)]


def several() -> list[StudentScore]:
    return [student(seed, SETS[place, seed], f"set {place}") for place in (1, 0) for seed in (2, 0, 1)]


def test_deviations_between_and_within_sets() -> None:
    assert deviation_between_sets(several()) == pytest.approx(SETS.mean(axis=1).std(ddof=1))
    assert deviation_within_sets(several()) == pytest.approx(SETS.var(axis=1, ddof=1).mean() ** 0.5)
    assert deviation_between_sets(real()) is None
    assert deviation_within_sets(real()) == pytest.approx(REAL.std(ddof=1))
    assert deviation_within_sets(real()[:1]) is None


def test_the_interval_of_several_sets_covers_sets_and_students() -> None:
    result = paired_difference(several(), real())
    differences = SETS.mean(axis=0) - REAL
    seeds, sets = differences.var(ddof=1) / 3, SETS.mean(axis=1).var(ddof=1) / 2
    freedom = (seeds + sets) ** 2 / (seeds**2 / 2 + sets**2 / 1)
    half = stats.t.ppf(0.975, freedom) * (seeds + sets) ** 0.5
    assert result.n == 3, "pairs are seeds, not students"
    assert (result.mean, result.low, result.high) == pytest.approx(
        (differences.mean(), differences.mean() - half, differences.mean() + half)
    )
    assert result.p_value == pytest.approx(2 * stats.t.sf(differences.mean() / (seeds + sets) ** 0.5, freedom))
    mirrored = paired_difference(real(), several())
    assert (mirrored.mean, mirrored.low) == pytest.approx((-result.mean, -result.high))


def test_one_set_is_the_paired_t_test() -> None:
    ours = [student(seed, value, "set") for seed, value in enumerate(SETS[0])]
    result = paired_difference(ours, real())
    expected = stats.ttest_rel(SETS[0], REAL)
    assert result.p_value == pytest.approx(expected.pvalue)
    assert result.low == pytest.approx(expected.confidence_interval(0.95).low)


def test_the_false_positive_rate_of_several_sets_is_below_five_percent() -> None:
    random = np.random.default_rng(0)
    found = 0
    for _ in range(400):  # no true difference; sets and students vary alike
        sets = random.normal(0, 1, (3, 1)) + random.normal(0, 1, (3, 3))
        ours = [student(seed, sets[place, seed], str(place)) for place in range(3) for seed in range(3)]
        result = paired_difference(ours, [student(seed, value) for seed, value in enumerate(random.normal(0, 1, 3))])
        found += result.p_value < 0.05
    assert 0 < found <= 24  # 5 % of 400 and one standard error


def test_mean_and_drop_across_architectures() -> None:
    values = {"a": [0.6, 0.7], "b": [0.5, 0.5], "c": [0.4, 0.46]}
    scores = {name: [student(seed, value) for seed, value in enumerate(row)] for name, row in values.items()}
    result = across_networks(scores)
    assert result is not None
    (mean, mean_std), (drop, drop_std) = result
    assert mean == pytest.approx(np.mean([0.5, 1.66 / 3]))
    assert drop == pytest.approx(np.mean([0.15, 0.22]))
    assert mean_std == pytest.approx(np.std([0.5, 1.66 / 3], ddof=1))
    assert drop_std == pytest.approx(np.std([0.15, 0.22], ddof=1))
    assert across_networks({"a": scores["a"]}) is None
    assert across_networks({"a": scores["a"], "b": [student(7, 0.1)]}) is None
    rows = [Row("set", name, one) for name, one in scores.items()]
    head, body = architecture_cells(rows)
    assert head[2] == "drop from a to the others"
    assert body == [["set", "52.7 ± 3.8", "18.5 ± 4.9"]]
    assert not architecture_cells([*rows, Row("set", "not begun")])[1], "a mean over fewer networks is another figure"


def test_the_epoch_is_chosen_on_the_hold_out_and_reported_on_the_test_images() -> None:
    one = StudentScore(0, {1: 0.3, 2: 0.5, 3: 0.4}, (3,), holdout={1: 0.6, 2: 0.1, 3: 0.6})
    assert one.selected_epoch == 3, "the latest of equal ones"
    assert one.selected == 0.4
    assert student(0, 0.5).selected is None


def test_columns_appear_where_they_have_something_to_say() -> None:
    plain = Row("real images", "a", real())
    head, _ = figure_cells([plain])
    assert head == ["training set", "student", "n", "tail mean", "last epoch"]
    grouped = Row("cfm", "a", distilled=("set 0", "set 1"))
    for score in several():
        grouped.file(score)
    assert [(one.distilled, one.seed) for one in grouped.scores] == [(f"set {i}", k) for i in (0, 1) for k in range(3)]
    head, body = figure_cells([grouped, plain], best_epoch=True)
    assert head[5:] == ["std between sets", "std within sets", "best epoch (chosen on test)"]
    assert body[0][2] == "2 × 3"
    assert body[0][5:] == ["4.0", "1.6", "63.8 ± 3.4"]
    assert body[1][5:7] == ["", "1.5"]
    held = Row("held", "a", [student(0, 0.5, holdout={1: 0.6})])
    head, body = figure_cells([held, plain])
    assert (head[5], body[0][5], body[1][5]) == ("epoch chosen on hold-out", "50.0", "")
