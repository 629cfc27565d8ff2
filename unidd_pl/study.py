"""A study read back from MLflow: which accuracy belongs to which distillation, and which stand in one table."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from unidd_pl.scores import Figure, mean_and_std
from unidd_pl.tracking import Store, StoredRun

PARENT_TAG = "mlflow.parentRunId"
REAL = "real images"
"""Tag `method` of the evaluations of real images."""

_ABOUT_A_SETTING = re.compile(r"model\.init_args\.|trainer\.callbacks|teacher\.(network|checkpoint)")
_NO_SETTING = re.compile(r"model\.init_args\.(seed|ipc)$|model\.class_path$")
_MAX_LABEL = 70  # characters


@dataclass(frozen=True)
class Scored:
    """One evaluation with one architecture.

    Args:
        evaluation: Its run.
        network: Architecture of the students.
        distillation: The run that made the set; None for real images and where it is not in the store.
        students: Tail mean of each student by its seed, in [0, 1].
    """

    evaluation: StoredRun
    network: str
    distillation: StoredRun | None
    students: dict[int, float]

    @property
    def method(self) -> str:
        """Name of the method."""
        return self.evaluation.tags.get("method", "distilled")

    @property
    def band(self) -> str:
        """Band that the method matches."""
        return self.evaluation.tags.get("band", "–")

    @property
    def ipc(self) -> int:
        """Images per class."""
        return int(self.evaluation.tags.get("ipc", 0))

    @property
    def facet(self) -> tuple[str, str, str]:
        """Data set, protocol and its digest: what the rows of a table share."""
        tags = self.evaluation.tags
        return tags.get("dataset", "?"), tags.get("protocol", "?"), tags.get("protocol_digest", "")


@dataclass
class StudyRow:
    """Evaluations that differ in seeds only.

    Args:
        label: Method, and the settings in which runs of the study differ.
        entries: The evaluations.
    """

    label: str
    entries: list[Scored] = field(default_factory=list)

    @property
    def first(self) -> Scored:
        """The evaluation that stands for the row where one has to."""
        return self.entries[0]

    @property
    def is_real(self) -> bool:
        """Whether this is the row of real images."""
        return self.first.method == REAL

    @property
    def values(self) -> list[float]:
        """Tail mean of every student of every set."""
        return [value for one in self.entries for value in one.students.values()]

    @property
    def accuracy(self) -> Figure:
        """Mean and sample standard deviation over them."""
        return mean_and_std(self.values)

    def mean_of(self, metric: str) -> float | None:
        """Return the mean of a metric of the distillations, None where none has it."""
        found = [one.distillation.metrics[metric] for one in self.entries
                 if one.distillation is not None and metric in one.distillation.metrics]  # fmt: skip
        return sum(found) / len(found) if found else None


@dataclass
class Facet:
    """Rows that may be compared.

    Args:
        dataset: Their data set.
        protocol: Their protocol.
        rows: The rows, by images per class, band and accuracy.
    """

    dataset: str
    protocol: str
    rows: list[StudyRow]

    @property
    def title(self) -> str:
        """What all rows share."""
        return f"{self.dataset}, protocol {self.protocol}"


@dataclass
class Study:
    """What a comparison is made from.

    Args:
        facets: Tables.
        unscored: Runs asked for that have no accuracy.
    """

    facets: list[Facet]
    unscored: list[StoredRun]


def read_study(store: Store, experiment: str, filter_string: str = "", run_ids: Sequence[str] = ()) -> Study:
    """Read the evaluations that are asked for, with what they are evaluations of.

    Args:
        store: The store.
        experiment: Name of the experiment.
        filter_string: MLflow's filter; a run below one that it lets through counts as let through.
        run_ids: The same by ids; empty for all.

    Raises:
        ValueError: If there is no such experiment or run, or none with an accuracy.
    """
    identity = store.experiment_id(experiment)
    if identity is None:
        known = ", ".join(sorted(store.experiments())) or "none"
        raise ValueError(f"got the experiment {experiment!r}, expected one of {known}: correct --experiment")
    runs = {run.run_id: run for run in store.runs(identity)}
    if unknown := [one for one in run_ids if one not in runs]:
        raise ValueError(f"got runs {', '.join(unknown)}, expected ids of runs of {experiment!r}: correct --runs")
    wanted = set(run_ids) or set(runs)
    if filter_string:
        wanted &= {run.run_id for run in store.runs(identity, filter_string)}
    chosen = [run for run in runs.values() if wanted & set(_lineage(run, runs))]
    scored = [one for run in chosen for one in _scores(run, runs)]
    if not scored:
        raise ValueError(
            f"{len(chosen)} run(s) of {experiment!r} match, none with an accuracy: expected evaluations; run "
            "`unidd evaluate`, or correct --runs and --filter"
        )
    scored += [one for one in _real_beside(scored, runs) if one.evaluation not in chosen]
    return Study(_facets(scored), _unscored(chosen, scored))


def _lineage(run: StoredRun, runs: dict[str, StoredRun]) -> list[str]:
    """Return the ids of a run and of all above it."""
    ids = [run.run_id]
    while (parent := runs[ids[-1]].tags.get(PARENT_TAG)) in runs and parent not in ids:
        ids.append(str(parent))
    return ids


def _scores(run: StoredRun, runs: dict[str, StoredRun]) -> list[Scored]:
    if run.tags.get("stage") != "evaluation":
        return []
    networks = [name for name in run.tags.get("networks", "").split(",") if name]
    found = []
    for network in networks:
        prefix = f"tail_mean/{network}/seed "
        students = {int(key[len(prefix) :]): value for key, value in run.metrics.items() if key.startswith(prefix)}
        if students:
            found.append(Scored(run, network, _made_by(run, runs), students))
    return found


def _made_by(run: StoredRun, runs: dict[str, StoredRun]) -> StoredRun | None:
    """Return the distillation of an evaluation: the run above it, else the latest that made its set."""
    parent = runs.get(run.tags.get(PARENT_TAG, ""))
    if parent is not None and parent.tags.get("stage") == "distillation":
        return parent
    made = run.tags.get("distilled_set")
    return next(
        (one for one in runs.values()
         if made and one.tags.get("stage") == "distillation" and one.tags.get("distilled_set") == made),
        None,
    )  # fmt: skip


def _real_beside(scored: Sequence[Scored], runs: dict[str, StoredRun]) -> list[Scored]:
    """Return the real images under the same protocol and in the same number: the bar for those asked for."""
    kinds = {(one.facet, one.ipc) for one in scored}
    real = [one for run in runs.values() if run.tags.get("method") == REAL for one in _scores(run, runs)]
    return [one for one in real if (one.facet, one.ipc) in kinds]


def _unscored(chosen: Sequence[StoredRun], scored: Sequence[Scored]) -> list[StoredRun]:
    """Return the distillations and evaluations that were asked for and have no accuracy."""
    known = {one.evaluation.run_id for one in scored}
    known |= {one.distillation.run_id for one in scored if one.distillation is not None}
    return [
        run for run in chosen if run.tags.get("stage") in ("distillation", "evaluation") and run.run_id not in known
    ]


def _facets(scored: Sequence[Scored]) -> list[Facet]:
    labels = _labels(scored)
    facets: dict[tuple[str, str, str], dict[tuple[str, int, str], StudyRow]] = {}
    for one, label in zip(scored, labels, strict=True):
        rows = facets.setdefault(one.facet, {})
        rows.setdefault((label, one.ipc, one.network), StudyRow(label)).entries.append(one)
    order = {"low": 0, "high": 1, "low-to-high": 2}
    return [
        Facet(dataset, protocol, sorted(
            rows.values(),
            key=lambda row: (row.first.ipc, row.first.network, row.is_real, order.get(row.first.band, 3), row.label),
        ))
        for (dataset, protocol, _), rows in sorted(facets.items())
    ]  # fmt: skip


def _labels(scored: Sequence[Scored]) -> list[str]:
    """Return a label for each: the method, and the settings in which the runs of that method differ."""
    settings = [_settings(one) for one in scored]
    labels = []
    for one, mine in zip(scored, settings, strict=True):
        others = [theirs for other, theirs in zip(scored, settings, strict=True) if other.method == one.method]
        names = sorted({name for theirs in others for name in theirs})
        differing = [name for name in names if len({theirs.get(name) for theirs in others}) > 1]
        shown = [f"{name.rsplit('.', 1)[-1]}={_short(mine[name])}" for name in differing if name in mine]
        if partial := one.evaluation.tags.get("partial"):
            shown.append(f"partial, {partial}")
        label = ", ".join([one.method, *dict.fromkeys(shown)])
        labels.append(label if len(label) <= _MAX_LABEL else _with_name(one, label))
    return labels


def _settings(one: Scored) -> dict[str, str]:
    params: Iterable[tuple[str, str]] = () if one.distillation is None else one.distillation.params.items()
    return {key: value for key, value in params if _ABOUT_A_SETTING.match(key) and not _NO_SETTING.search(key)}


def _short(value: str) -> str:
    return value.rsplit(".", 1)[-1] if re.fullmatch(r"[A-Za-z_][\w.]*", value) else value


def _with_name(one: Scored, label: str) -> str:
    """Return a label that would be too long with the run's name, without its seed, in the settings' place."""
    name = one.distillation.name if one.distillation is not None else label
    return f"{one.method}: {re.sub(r',?seed=[0-9]+', '', name)}"[:_MAX_LABEL]
