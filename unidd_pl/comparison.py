"""A distilled set beside the same number of real images, under one protocol and over several seeds."""

from __future__ import annotations

import json
import os
import platform
import statistics as plain_statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import lightning
import torch

from unidd_pl import __version__
from unidd_pl.evaluation import StudentScore
from unidd_pl.files import atomic_write
from unidd_pl.protocols import Protocol
from unidd_pl.tables import text_table

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
        head = ("training set", "student", "n", "tail mean", "last epoch")
        body = [
            (
                row.name,
                row.network,
                str(len(row.scores)),
                plus_minus(row.tail_mean),
                plus_minus(row.last_epoch),
            )
            for row in self.rows
            if row.scores
        ]
        precision = "" if self.precision == "32-true" else f" in {self.precision}"
        title = (
            f"{self.dataset}, {self.ipc} images per class, protocol {self.protocol.label}{precision}: "
            "top-1 on the test images, %"
        )
        return f"{title}\n\n{text_table(head, body)}"

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
                    "students": [
                        {
                            "seed": score.seed,
                            "tail_mean": score.tail_mean,
                            "last_epoch": score.last_epoch,
                            "best_epoch_chosen_on_test": score.best_epoch,
                            "accuracy_by_epoch": score.accuracies,
                        }
                        for score in row.scores
                    ],
                }
                for row in self.rows
                if row.scores
            ],
        }

    def save(self, path: Path) -> None:
        """Write `to_dict` as JSON, atomically."""
        with atomic_write(path) as temporary:
            temporary.write_text(json.dumps(self.to_dict(), indent=1) + "\n")


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
