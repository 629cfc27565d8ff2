"""A distilled set beside the same number of real images, under one protocol and over several seeds."""

from __future__ import annotations

import csv
import io
import json
import math
import os
import platform
import statistics as plain_statistics
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import lightning
import torch

from unidd_pl import __version__
from unidd_pl.evaluation import StudentScore
from unidd_pl.files import atomic_write
from unidd_pl.protocols import Protocol
from unidd_pl.tables import latex_table, markdown_table, text_table

PERCENT = 100


Figure = tuple[float, float | None]
"""Mean and sample standard deviation (n − 1) over students; no deviation for one student."""


def mean_and_std(values: Sequence[float]) -> Figure:
    """Return mean and sample standard deviation (n − 1); None for the latter where there is one value."""
    return plain_statistics.fmean(values), plain_statistics.stdev(values) if len(values) > 1 else None


@dataclass
class Row:
    """The scores of one training set with one network, one a seed.

    Args:
        name: Name of the training set.
        network: Name of the students' architecture.
        scores: Their scores.
        distilled: Fingerprint of the distilled set; None for real images.
    """

    name: str
    network: str
    scores: list[StudentScore] = field(default_factory=list)
    distilled: str | None = None

    @property
    def tail_mean(self) -> Figure:
        """Mean and standard deviation over seeds of the tail mean."""
        return mean_and_std([score.tail_mean for score in self.scores])

    @property
    def last_epoch(self) -> Figure:
        """Mean and standard deviation over seeds of the last epoch."""
        return mean_and_std([score.last_epoch for score in self.scores])

    @property
    def top5_tail_mean(self) -> Figure | None:
        """Mean and standard deviation of the top-5 tail mean; None where there are no more than five classes."""
        values = [score.top5_tail_mean for score in self.scores if score.top5_tail_mean is not None]
        return mean_and_std(values) if values else None


@dataclass(frozen=True)
class Difference:
    """The mean difference of paired students, with a t interval and the p-value of a paired t-test.

    Args:
        n: Number of pairs.
        mean: Mean difference, in [−1, 1].
        low: Lower end of the 95 % interval.
        high: Upper end.
        p_value: Two-sided; not a number for one pair.
    """

    n: int
    mean: float
    low: float
    high: float
    p_value: float


def paired_difference(scores: Sequence[StudentScore], others: Sequence[StudentScore]) -> Difference:
    """Compare the tail means of students that share a seed; for one pair the interval is not a number."""
    by_seed = {score.seed: score.tail_mean for score in others}
    pairs = [(score.tail_mean, by_seed[score.seed]) for score in scores if score.seed in by_seed]
    mean = plain_statistics.fmean(one - other for one, other in pairs) if pairs else math.nan
    if len(pairs) < 2:
        return Difference(len(pairs), mean, math.nan, math.nan, math.nan)
    differences = [one - other for one, other in pairs]
    if len(set(differences)) == 1:  # no spread to test against
        return Difference(len(pairs), mean, mean, mean, 1.0 if mean == 0 else 0.0)
    from scipy import stats  # noqa: PLC0415  half a second that only the end of an evaluation needs

    result = stats.ttest_1samp(differences, 0.0)
    interval = result.confidence_interval(0.95)
    return Difference(len(pairs), mean, float(interval.low), float(interval.high), float(result.pvalue))


@dataclass
class Comparison:
    """Rows under one protocol, with what has to be known to read them.

    Args:
        protocol: The protocol of all rows.
        dataset: Name of the data set.
        ipc: Images per class.
        teacher: Name, fingerprint and accuracy of the teacher that labelled.
        rows: The rows.
        precision: Lightning's precision of the students.
    """

    protocol: Protocol
    dataset: str
    ipc: int
    teacher: dict[str, Any]
    rows: list[Row] = field(default_factory=list)
    precision: str = "32-true"

    def table(self) -> str:
        """Return the rows as text: top-1 in %, mean ± standard deviation over n students."""
        parts = [self.title, text_table(*self._cells())]
        if differences := self._difference_cells():
            parts += ["Difference of paired students (same seed) to real images, points of the tail mean", differences]
        return "\n\n".join(parts)

    @property
    def title(self) -> str:
        """What all rows share."""
        precision = "" if self.precision == "32-true" else f" in {self.precision}"
        return (
            f"{self.dataset}, {self.ipc} images per class, protocol {self.protocol.label}{precision}: "
            "top-1 on the test images, %"
        )

    def markdown(self) -> str:
        """Return the rows as a Markdown table under their title."""
        return f"{self.title}\n\n{markdown_table(*self._cells())}\n"

    def latex(self) -> str:
        """Return the rows as a LaTeX tabular, its title as a comment."""
        return f"% {self.title}\n{latex_table(*self._cells())}\n"

    def csv(self) -> str:
        """Return a line for each student: accuracies in [0, 1] and all that they depend on."""
        lines = io.StringIO()
        head = ("training_set", "network", "seed", "tail_mean", "last_epoch", "top5_tail_mean")
        writer = csv.writer(lines, lineterminator="\n")
        writer.writerow([*head, "dataset", "ipc", "protocol", "epochs", "precision"])
        shared = [self.dataset, self.ipc, self.protocol.name, self.protocol.epochs, self.precision]
        for row in self.rows:
            for score in row.scores:
                figures = [score.tail_mean, score.last_epoch, score.top5_tail_mean]
                writer.writerow([row.name, row.network, score.seed, *figures, *shared])
        return lines.getvalue()

    def differences(self) -> dict[tuple[str, str], Difference]:
        """Return by (training set, network) the difference of the tail mean to real images, over paired seeds."""
        real = {row.network: row for row in self.rows if row.distilled is None}
        return {
            (row.name, row.network): paired_difference(row.scores, real[row.network].scores)
            for row in self.rows
            if row.distilled is not None and row.network in real and min(len(row.scores), len(real[row.network].scores))
        }

    def _cells(self) -> tuple[list[str], list[list[str]]]:
        has_top5 = any(row.top5_tail_mean for row in self.rows)
        head = ["training set", "student", "n", "tail mean", "last epoch", *(["top-5 tail mean"] if has_top5 else [])]
        body = [
            [
                row.name,
                row.network,
                str(len(row.scores)),
                *map(plus_minus, (row.tail_mean, row.last_epoch)),
                *([plus_minus(row.top5_tail_mean)] if row.top5_tail_mean else []),
            ]
            for row in self.rows
            if row.scores
        ]
        return head, body

    def _difference_cells(self) -> str:
        rows = [
            [
                name,
                network,
                str(one.n),
                f"{PERCENT * one.mean:+.1f}",
                f"{PERCENT * one.low:+.1f} to {PERCENT * one.high:+.1f}",
                f"{one.p_value:.3f}",
            ]
            for (name, network), one in self.differences().items()
            if one.n > 1
        ]
        return text_table(["training set", "student", "n", "difference", "95 % interval", "p"], rows) if rows else ""

    def metrics(self) -> dict[str, float]:
        """Return the means and deviations by row, for tracking."""
        figures: dict[str, float] = {}
        for row in (row for row in self.rows if row.scores):
            for what, (mean, spread) in (("tail_mean", row.tail_mean), ("last_epoch", row.last_epoch)):
                key = f"{what}/{row.network}/{row.name}"
                figures[key] = mean
                if spread is not None:
                    figures[f"{key}/std"] = spread
        return figures

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain JSON types, accuracies in [0, 1]."""
        return {
            "dataset": self.dataset,
            "ipc": self.ipc,
            "protocol": vars(self.protocol),
            "teacher": self.teacher,
            "precision": self.precision,
            "environment": environment(),
            "rows": [
                {
                    "training_set": row.name,
                    "distilled_set": row.distilled,
                    "network": row.network,
                    "n": len(row.scores),
                    "tail_mean": _figure(row.tail_mean),
                    "last_epoch": _figure(row.last_epoch),
                    "top5_tail_mean": _figure(row.top5_tail_mean) if row.top5_tail_mean else None,
                    "difference_to_real": self._difference_of(row),
                    "students": [
                        {
                            "seed": score.seed,
                            "tail_mean": score.tail_mean,
                            "last_epoch": score.last_epoch,
                            "best_epoch_chosen_on_test": score.best_epoch,
                            "accuracy_by_epoch": score.accuracies,
                            "top5_by_epoch": score.top5,
                        }
                        for score in row.scores
                    ],
                }
                for row in self.rows
                if row.scores
            ],
        }

    def _difference_of(self, row: Row) -> dict[str, float | int] | None:
        one = self.differences().get((row.name, row.network))
        return asdict(one) if one is not None and one.n > 1 else None

    def save(self, path: Path) -> None:
        """Write `to_dict` as JSON, atomically, and beside it the table as .csv, .md and .tex."""
        contents = {
            path: json.dumps(self.to_dict(), indent=1) + "\n",
            path.with_suffix(".csv"): self.csv(),
            path.with_suffix(".md"): self.markdown(),
            path.with_suffix(".tex"): self.latex(),
        }
        for file, content in contents.items():
            with atomic_write(file) as temporary:
                temporary.write_text(content)


def environment() -> dict[str, str]:
    """Return versions and hardware, as they belong beside every number."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"{os.cpu_count()} CPU cores"
    return {
        "unidd_pl": __version__,
        "torch": torch.__version__,
        "lightning": lightning.__version__,
        "python": platform.python_version(),
        "hardware": f"{device}, {platform.machine()}",
    }


def seeds_then_rows(rows: Sequence[Row], seeds: int) -> Iterator[tuple[Row, int]]:
    """Yield (row, seed) with all rows of a seed together, so that a part of the work compares too."""
    for seed in range(seeds):
        for row in rows:
            yield row, seed


def plus_minus(figure: Figure) -> str:
    """Return mean ± standard deviation in %."""
    mean, spread = figure
    return f"{PERCENT * mean:.1f}" if spread is None else f"{PERCENT * mean:.1f} ± {PERCENT * spread:.1f}"


def _figure(figure: Figure) -> dict[str, float | None]:
    mean, spread = figure
    return {"mean": mean, "std": spread}
