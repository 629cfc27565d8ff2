"""MLflow runs of an evaluation: one a distilled set, under the run that made it, one for each kind of real images.

So an accuracy leads to the images, the config and the teacher behind it by one query, and to no others.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from unidd_pl.comparison import Comparison
from unidd_pl.data.module import ImageData
from unidd_pl.distilled import DistilledSet
from unidd_pl.rows import Row
from unidd_pl.scores import StudentScore, mean_and_std
from unidd_pl.tracking import StageRun, Tracking

_FIGURES = ("tail_mean", "last_epoch")


class EvaluationRecords:
    """The open runs of one evaluation; `recorded` makes them.

    Args:
        runs: Run by fingerprint of a distilled set, or by name of a row of real images.
    """

    def __init__(self, runs: Mapping[str, StageRun]) -> None:
        self.runs = runs

    def student(self, row: Row, score: StudentScore) -> None:
        """Record the curve of a student."""
        run = self.runs[score.distilled or row.name]
        for epoch, accuracy in score.accuracies.items():
            run.metrics({f"accuracy/{row.network}/seed {score.seed}": accuracy}, step=epoch)

    def finish(self, comparison: Comparison, tables: Sequence[Path], pictures: Mapping[str, Path]) -> None:
        """Record the figures, the tables of the whole evaluation, and each set's picture by its fingerprint."""
        for key, run in self.runs.items():
            for row in comparison.rows:
                run.metrics(_figures(row, [one for one in row.scores if (one.distilled or row.name) == key]))
            for path in tables:
                run.artifact(path)
            if key in pictures:
                run.artifact(pictures[key])


@contextmanager
def recorded(
    comparison: Comparison,
    sets: Mapping[str, DistilledSet],
    data: ImageData,
    tracking: Tracking,
    config: str,
    parent: dict[str, str] | None,
) -> Iterator[EvaluationRecords]:
    """Record an evaluation while the block runs.

    Args:
        comparison: Its rows.
        sets: The distilled sets by name.
        data: The real data.
        tracking: Where it is recorded.
        config: Resolved config as YAML.
        parent: Tags of the run to nest all under; None for the distillation of each set.

    Yields:
        The runs.
    """
    names = {one.fingerprint(): name for name, one in sets.items()}
    by_print = {one.fingerprint(): one for one in sets.values()}
    keys = [key for row in comparison.rows for key in row.distilled or (row.name,)]
    with ExitStack() as stack:
        runs = {}
        for key in dict.fromkeys(keys):
            tags = {**_tags(comparison), "data": data.fingerprint, **_origin(key, by_print.get(key))}
            above = parent or ({"stage": "distillation", "distilled_set": key} if key in by_print else None)
            run = tracking.run("evaluation", names.get(key, key), tags, config, parent=above)
            runs[key] = stack.enter_context(run)
            runs[key].input(data.spec.name, data.fingerprint, data.dataset_name, "test")
        yield EvaluationRecords(runs)


def _tags(comparison: Comparison) -> dict[str, str]:
    protocol, precision = comparison.protocol, comparison.precision
    label = protocol.label if precision == "32-true" else f"{protocol.label} in {precision}"
    # All that a student's training depends on: what accuracies must share to stand in one table.
    settings = json.dumps({**vars(protocol), "precision": precision}, sort_keys=True, default=str)
    return {
        "dataset": comparison.dataset,
        "ipc": str(comparison.ipc),
        "protocol": label,
        "protocol_digest": hashlib.sha256(settings.encode()).hexdigest()[:16],
        "networks": ",".join(dict.fromkeys(row.network for row in comparison.rows)),
        "teacher": str(comparison.teacher["fingerprint"]),
    }


def _origin(key: str, one: DistilledSet | None) -> dict[str, str]:
    """Return the tags that say what the students were trained on."""
    if one is None:
        return {"method": key}
    known = {what: str(one.manifest[what]) for what in ("method", "band", "seed", "partial") if what in one.manifest}
    return {"method": "distilled", "distilled_set": key} | known


def _figures(row: Row, scores: Sequence[StudentScore]) -> dict[str, float]:
    figures: dict[str, float] = {}
    for what in _FIGURES if scores else ():
        key = f"{what}/{row.network}"
        figures[key], spread = mean_and_std([getattr(one, what) for one in scores])
        if spread is not None:
            figures[f"{key}/std"] = spread
        figures |= {f"{key}/seed {one.seed}": getattr(one, what) for one in scores}
    return figures
