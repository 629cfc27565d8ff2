"""A distilled set beside the same number of real images, under one protocol and over several seeds."""

from __future__ import annotations

import csv
import io
import json
import os
import platform
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import lightning
import torch

from unidd_pl import __version__
from unidd_pl.files import atomic_write
from unidd_pl.protocols import Protocol
from unidd_pl.rows import (
    REAL_ROW,
    Cells,
    Row,
    architecture_cells,
    architectures_of,
    difference_cells,
    differences_to,
    figure_cells,
)
from unidd_pl.scores import Difference, Figure, StudentScore, deviation_between_sets, deviation_within_sets
from unidd_pl.tables import latex_table, markdown_table, text_table


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
        val_split: Share of the training images that was held out, to choose an epoch on; 0 for none.
        best_epoch: Show the best epoch on the test images as a labelled extra column.
        settings: What else the figures depend on, for the record.
    """

    protocol: Protocol
    dataset: str
    ipc: int
    teacher: dict[str, Any]
    rows: list[Row] = field(default_factory=list)
    precision: str = "32-true"
    val_split: float = 0.0
    best_epoch: bool = False
    settings: Mapping[str, Any] = field(default_factory=dict)

    def table(self) -> str:
        """Return the rows as text: top-1 in %, mean ± standard deviation over n students; then differences."""
        figures = text_table(*figure_cells(self.rows, best_epoch=self.best_epoch))
        further = [part for about, cells in self._further() for part in (about, text_table(*cells))]
        return "\n\n".join([self.title, figures, *further])

    @property
    def title(self) -> str:
        """What all rows share."""
        precision = "" if self.precision == "32-true" else f" in {self.precision}"
        held = f"; {self.val_split:g} of the training images held out" if self.val_split else ""
        return (
            f"{self.dataset}, {self.ipc} images per class, protocol {self.protocol.label}{precision}: "
            f"top-1 on the test images, %{held}"
        )

    def markdown(self) -> str:
        """Return the tables in Markdown, each under its title."""
        figures = markdown_table(*figure_cells(self.rows, best_epoch=self.best_epoch))
        further = [part for about, cells in self._further() for part in (about, markdown_table(*cells))]
        return "\n\n".join([self.title, figures, *further]) + "\n"

    def latex(self) -> str:
        """Return the rows as a LaTeX tabular, its title as a comment."""
        return f"% {self.title}\n{latex_table(*figure_cells(self.rows, best_epoch=self.best_epoch))}\n"

    @property
    def references(self) -> list[str]:
        """Names of what the rows are held against: real images, and the first of several distilled sets."""
        distilled = list(dict.fromkeys(row.name for row in self.rows if row.distilled))
        return [REAL_ROW, *(distilled[:1] if len(distilled) > 1 else [])]

    def _further(self) -> list[tuple[str, Cells]]:
        """Return the tables after the figures, with what each is about; only those that have rows."""
        about = "Difference of paired students (same seed) to {}, points of the tail mean"
        tables = [(about.format(name), difference_cells(self.rows, name)) for name in self.references]
        tables.append(("Across architectures, tail mean", architecture_cells(self.rows)))
        return [(title, cells) for title, cells in tables if cells[1]]

    def csv(self) -> str:
        """Return a line for each student: accuracies in [0, 1] and all that they depend on."""
        lines = io.StringIO()
        head = ("training_set", "distilled_set", "network", "seed", "tail_mean", "last_epoch", "top5_tail_mean")
        extra = ("epoch_chosen_on_holdout", "at_that_epoch", "best_epoch_chosen_on_test")
        writer = csv.writer(lines, lineterminator="\n")
        writer.writerow([*head, *extra, "dataset", "ipc", "protocol", "epochs", "precision"])
        for row in self.rows:
            shared = [self.dataset, self.ipc, self.protocol.name, row.epochs or self.protocol.epochs, self.precision]
            for one in row.scores:
                figures = [one.tail_mean, one.last_epoch, one.top5_tail_mean]
                extras = [one.selected_epoch, one.selected, one.best_epoch]
                writer.writerow([row.name, one.distilled, row.network, one.seed, *figures, *extras, *shared])
        return lines.getvalue()

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain JSON types, accuracies in [0, 1]."""
        differences = {name: differences_to(self.rows, name) for name in self.references}
        return {
            "dataset": self.dataset,
            "ipc": self.ipc,
            "protocol": vars(self.protocol),
            "teacher": self.teacher,
            "precision": self.precision,
            "val_split": self.val_split,
            **self.settings,
            "environment": environment(),
            "rows": [self._row(row, differences) for row in self.rows if row.scores],
            "across_networks": {
                name: {"mean": _figure(mean), "drop": _figure(drop)}
                for name, (mean, drop) in architectures_of(self.rows).items()
            },
        }

    def _row(self, row: Row, differences: Mapping[str, Mapping[tuple[str, str], Difference]]) -> dict[str, Any]:
        by_reference = {name: _difference(found.get((row.name, row.network))) for name, found in differences.items()}
        return {
            "training_set": row.name,
            "distilled_set": row.distilled[0] if len(row.distilled) == 1 else list(row.distilled) or None,
            "network": row.network,
            "epochs": row.epochs or self.protocol.epochs,
            "n": len(row.scores),
            "tail_mean": _figure(row.tail_mean),
            "last_epoch": _figure(row.last_epoch),
            "top5_tail_mean": _figure(row.top5_tail_mean),
            "epoch_chosen_on_holdout": _figure(row.selected),
            "std_between_sets": deviation_between_sets(row.scores),
            "std_within_sets": deviation_within_sets(row.scores),
            "difference_to_real": by_reference.pop(REAL_ROW),
            "differences": by_reference,
            "students": [_student(score) for score in row.scores],
        }

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


def _student(score: StudentScore) -> dict[str, Any]:
    return {
        "seed": score.seed,
        "distilled_set": score.distilled,
        "tail_mean": score.tail_mean,
        "last_epoch": score.last_epoch,
        "best_epoch_chosen_on_test": score.best_epoch,
        "accuracy_by_epoch": score.accuracies,
        "top5_by_epoch": score.top5,
        **({"holdout_accuracy_by_epoch": score.holdout} if score.holdout else {}),
    }


def _figure(figure: Figure | None) -> dict[str, float | None] | None:
    return None if figure is None else {"mean": figure[0], "std": figure[1]}


def _difference(one: Difference | None) -> dict[str, float | int] | None:
    return asdict(one) if one is not None and one.n > 1 else None
