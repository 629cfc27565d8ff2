"""The rows of a comparison and the cells of its tables: figures, differences, architectures."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from unidd_pl.scores import (
    Difference,
    Figure,
    StudentScore,
    across_networks,
    by_set,
    deviation_between_sets,
    deviation_within_sets,
    mean_and_std,
    paired_difference,
)

PERCENT = 100
LEAST_P = 0.001  # smaller p-values are shown as that: nothing is certain
REAL_ROW = "real images"  # drawn at random; what every other row is held against

Cells = tuple[list[str], list[list[str]]]
"""Head and body of a table."""


@dataclass
class Row:
    """The scores of one training set, or of several of one config, with one network.

    Args:
        name: Name of the training set.
        network: Name of the students' architecture.
        scores: Their scores.
        distilled: Fingerprints of the distilled sets that are averaged; none for real images.
        epochs: Epochs of the training where they are not the protocol's.
        baseline: Which real images they are; empty for distilled sets.
    """

    name: str
    network: str
    scores: list[StudentScore] = field(default_factory=list)
    distilled: tuple[str, ...] = ()
    epochs: int | None = None
    baseline: str = ""

    @property
    def tail_mean(self) -> Figure:
        """Mean and standard deviation over students of the tail mean."""
        return mean_and_std([score.tail_mean for score in self.scores])

    @property
    def last_epoch(self) -> Figure:
        """Mean and standard deviation over students of the last epoch."""
        return mean_and_std([score.last_epoch for score in self.scores])

    @property
    def best_epoch(self) -> Figure:
        """Mean and standard deviation over students of the best epoch on the test images: a labelled extra."""
        return mean_and_std([score.best_epoch for score in self.scores])

    @property
    def selected(self) -> Figure | None:
        """Mean and standard deviation at the epoch chosen on the hold-out; None without a hold-out."""
        return _figure([score.selected for score in self.scores])

    @property
    def top5_tail_mean(self) -> Figure | None:
        """Mean and standard deviation of the top-5 tail mean; None where there are no more than five classes."""
        return _figure([score.top5_tail_mean for score in self.scores])

    @property
    def count(self) -> str:
        """Number of students, as sets × students where several sets are averaged evenly."""
        sizes = {len(values) for values in by_set(self.scores).values()}
        sets = len(by_set(self.scores))
        return f"{sets} × {sizes.pop()}" if sets > 1 and len(sizes) == 1 else str(len(self.scores))

    def file(self, score: StudentScore) -> None:
        """Add the score of a student, in the order of sets and seeds."""
        order = {one: place for place, one in enumerate(self.distilled)}
        self.scores = sorted([*self.scores, score], key=lambda one: (order.get(one.distilled or "", 0), one.seed))


def seeds_then_rows(rows: Sequence[Row], seeds: int) -> Iterator[tuple[Row, str | None, int]]:
    """Yield (row, distilled set, seed) with all rows of a seed together, so that a part of the work compares too."""
    for seed in range(seeds):
        for row in rows:
            for one in row.distilled or (None,):
                yield row, one, seed


def differences_to(rows: Sequence[Row], reference: str) -> dict[tuple[str, str], Difference]:
    """Return by (training set, network) the difference of the tail mean to a row, over paired seeds.

    Args:
        rows: All rows.
        reference: Name of the training set that is subtracted.
    """
    others = {row.network: row.scores for row in rows if row.name == reference and row.scores}
    return {
        (row.name, row.network): paired_difference(row.scores, others[row.network])
        for row in rows
        if row.name != reference and row.scores and row.network in others
    }


def figure_cells(rows: Sequence[Row], *, best_epoch: bool = False) -> Cells:
    """Return top-1 in %, mean ± standard deviation over n students.

    Args:
        rows: All rows; those without students are left out.
        best_epoch: Add the best epoch, labelled as what it is.
    """
    rows = [row for row in rows if row.scores]
    columns: list[tuple[str, Callable[[Row], str]]] = [
        ("training set", lambda row: row.name),
        ("student", lambda row: row.network),
        ("n", lambda row: row.count),
        ("tail mean", lambda row: plus_minus(row.tail_mean)),
        ("last epoch", lambda row: plus_minus(row.last_epoch)),
    ]
    if any(row.selected for row in rows):
        columns.append(("epoch chosen on hold-out", lambda row: _optional(row.selected)))
    if any(row.top5_tail_mean for row in rows):
        columns.append(("top-5 tail mean", lambda row: _optional(row.top5_tail_mean)))
    if any(len(by_set(row.scores)) > 1 for row in rows):
        columns.append(("std between sets", lambda row: _deviation(deviation_between_sets(row.scores))))
        columns.append(("std within sets", lambda row: _deviation(deviation_within_sets(row.scores))))
    if best_epoch:
        columns.append(("best epoch (chosen on test)", lambda row: plus_minus(row.best_epoch)))
    return [head for head, _ in columns], [[cell(row) for _, cell in columns] for row in rows]


def difference_cells(rows: Sequence[Row], reference: str) -> Cells:
    """Return the differences to a row in points, with interval and p-value; those of one pair are left out."""
    body = [
        [
            name,
            network,
            str(one.n),
            f"{PERCENT * one.mean:+.1f}",
            f"{PERCENT * one.low:+.1f} to {PERCENT * one.high:+.1f}",
            "<0.001" if one.p_value < LEAST_P else f"{one.p_value:.3f}",
        ]
        for (name, network), one in differences_to(rows, reference).items()
        if one.n > 1
    ]
    return ["training set", "student", "n", "difference", "95 % interval", "p"], body


def architectures_of(rows: Sequence[Row]) -> dict[str, tuple[Figure, Figure]]:
    """Return by training set the mean over the networks, and the drop from the first to the mean of the others."""
    names = dict.fromkeys(row.name for row in rows)
    networks = dict.fromkeys(row.network for row in rows)
    figures = {}
    for name in names:
        scores = {row.network: row.scores for row in rows if row.name == name and row.scores}
        if len(scores) == len(networks) and (result := across_networks(scores)) is not None:
            figures[name] = result
    return figures


def architecture_cells(rows: Sequence[Row]) -> Cells:
    """Return mean and drop across architectures, in % and points; no body for fewer than two networks."""
    first = next((row.network for row in rows), "")
    head = ["training set", "mean over networks", f"drop from {first} to the others"]
    figures = architectures_of(rows)
    return head, [[name, plus_minus(mean), plus_minus(drop)] for name, (mean, drop) in figures.items()]


def plus_minus(figure: Figure) -> str:
    """Return mean ± standard deviation in %."""
    mean, spread = figure
    return f"{PERCENT * mean:.1f}" if spread is None else f"{PERCENT * mean:.1f} ± {PERCENT * spread:.1f}"


def _figure(values: Sequence[float | None]) -> Figure | None:
    present = [value for value in values if value is not None]
    return mean_and_std(present) if present else None


def _optional(figure: Figure | None) -> str:
    return "" if figure is None else plus_minus(figure)


def _deviation(value: float | None) -> str:
    return "" if value is None else f"{PERCENT * value:.1f}"
