"""`unidd evaluate`: a distilled set beside real images, over seeds, ending with a table."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from torch import nn

from unidd_pl.baselines import ROW_NAMES, Baseline
from unidd_pl.comparison import Comparison
from unidd_pl.console import say
from unidd_pl.data.holdout import HoldOutData
from unidd_pl.data.images import LabelledImages
from unidd_pl.data.module import ImageData
from unidd_pl.ensembles import labelling_teacher
from unidd_pl.evaluation_records import EvaluationRecords, recorded
from unidd_pl.exchange import SetDescription, read_set
from unidd_pl.files import check_writable
from unidd_pl.grouping import GroupBy, rows_of_sets, short_names
from unidd_pl.networks import build_network
from unidd_pl.pictures import picture, picture_beside
from unidd_pl.placement import Placement
from unidd_pl.preflight import check_labels, check_sets
from unidd_pl.pretraining import TeacherRecipe
from unidd_pl.protocols import Protocol
from unidd_pl.rows import Row, seeds_then_rows
from unidd_pl.stages import device_of
from unidd_pl.stored_labels import check_same_teacher, find_stores
from unidd_pl.student_pool import StudentJob, StudentSettings
from unidd_pl.teachers import Teacher, find_teacher
from unidd_pl.tracking import Tracking
from unidd_pl.training_sets import TrainingSets

RowChoice = Literal["both", "distilled", "real"]

_SUFFIXES = (".json", ".csv", ".md", ".tex")  # of the results


class Evaluation:
    """One `unidd evaluate`.

    Args:
        distilled: Distilled sets (files of `unidd fit`, exports, or made elsewhere), each a row of the table or, by
            `group_by`, averaged in one.
        data: The real data: test images, and training images for the row of real ones.
        teacher: The teacher that labels. Without a checkpoint it is the one that the sets were distilled
            with, where the cache holds it.
        protocol: How to train the students.
        networks: Names of the students' architectures; each set and the real images make a row for each.
        seeds: Students per row.
        cache: Folder that holds ``teachers``.
        tracking: Where the evaluation is recorded.
        accelerator: Lightning's accelerator.
        output: JSON file of the results; None for ``evaluation.json`` beside the (first) distilled set.
        overwrite: Replace that file.
        description: What sets made elsewhere do not say of themselves.
        precision: Lightning's precision of the students.
        placement: Processes and devices of the students.
        baselines: Real images to hold the sets against; those drawn at random are always there.
        group_by: ``set``, a row each, or ``config``, one row for sets that differ in the distillation seed alone.
        val_split: Share of each class's training images that is held out, to choose an epoch on; 0 for none.
        best_epoch: Show the best epoch on the test images as a labelled extra column.
        whole_epochs: Epochs on the whole data set, which has many more steps in each; None for the protocol's.
        labels: Files of stored labels, for a protocol that takes them; none for those beside the sets.
        teachers: Files of several teachers whose logits are averaged; see `labelling_teacher`.
        config: Resolved config as YAML, for the record.
        rows: Which rows the table has: ``both``, the ``distilled`` sets, or the ``real`` images of their size.
        parent: Tags of the MLflow run to nest the evaluations under; None for the run that distilled each set.

    Raises:
        ValueError: If a set does not fit the data, or the sets differ in images per class or teacher.
    """

    def __init__(
        self,
        distilled: Sequence[Path],
        data: ImageData,
        teacher: TeacherRecipe,
        protocol: Protocol,
        networks: Sequence[str],
        seeds: int,
        cache: Path,
        tracking: Tracking,
        accelerator: str,
        output: Path | None,
        config: str,
        *,
        precision: str = "32-true",
        placement: Placement | None = None,
        baselines: Sequence[Baseline] = ("random",),
        group_by: GroupBy = "set",
        val_split: float = 0.0,
        best_epoch: bool = False,
        whole_epochs: int | None = None,
        labels: Sequence[Path] = (),
        teachers: Sequence[str] = (),
        overwrite: bool = False,
        description: SetDescription | None = None,
        rows: RowChoice = "both",
        parent: dict[str, str] | None = None,
    ) -> None:
        if seeds < 1:
            raise ValueError(f"seeds: got {seeds}, expected at least 1")
        if len(set(networks)) < max(1, len(networks)):
            raise ValueError(f"networks: got {list(networks)}, expected at least one, each once")
        self.paths = tuple(path if path.name else path.absolute() for path in distilled)  # "." has no name
        loaded = [read_set(path, data.spec, description) for path in self.paths]
        groups = rows_of_sets(self.paths, loaded, group_by, list(ROW_NAMES.values()))
        self.sets = dict(zip(short_names(self.paths), loaded, strict=True))
        self.ipc = _common("images per class", {name: one.ipc for name, one in self.sets.items()})
        self.all_data = data
        self.data = HoldOutData(data, val_split) if val_split else data
        self.stores = find_stores(dict(zip(self.paths, loaded, strict=True)), labels, protocol)
        self.training_sets = TrainingSets(groups, baselines, self.data, protocol, whole_epochs, self.stores)
        self.needs_teacher = protocol.labels != "hard" or self.training_sets.need_features
        self.set_teacher: str | None = None
        if self.stores:
            self.set_teacher = self.stores[0].teacher
        elif self.needs_teacher and teacher.checkpoint is None and not teachers:
            named = {name: own for name, one in self.sets.items() if (own := one.manifest.get("teacher"))}
            self.set_teacher = _common("teacher", named) if named else None  # sets made elsewhere name none
        self.val_split = val_split
        self.best_epoch = best_epoch
        self.teacher_recipe = teacher
        self.teachers = tuple(teachers)
        self.protocol = protocol
        self.networks = tuple(networks)
        self.seeds = seeds
        self.cache = cache
        self.tracking = tracking
        self.accelerator = accelerator
        self.precision = precision
        self.placement = placement or Placement()
        self.output = _json_file(output or self.paths[0].with_name("evaluation.json"))
        self.config = config
        self.rows = rows
        self.parent = parent
        self._check(overwrite=overwrite)

    def _check(self, *, overwrite: bool) -> None:
        """Refuse what would only show after a teacher or a student was trained."""
        check_sets(self.sets, self.data.spec)
        check_writable(self.output.parent)
        if self.output.exists() and not overwrite:
            raise ValueError(
                f"{self.output} already holds results: replace them with --overwrite true, or give "
                "another --output FILE"
            )
        for network in self.networks:
            build_network(network, self.data.spec)
        _ = self.all_data.test
        self.training_sets.check()

    def run(self) -> Comparison:
        """Train all students; print the table, the picture's path and how to open MLflow."""
        teacher = self._teacher()
        if self.needs_teacher and self.teacher_recipe.check:
            check_labels(self.sets.values(), teacher, device_of(self.accelerator))
        self.training_sets.select(teacher, self.cache / "selections")
        comparison = Comparison(
            self.protocol,
            self.data.spec.name,
            self.ipc,
            {
                "network": teacher.name,
                "fingerprint": teacher.fingerprint,
                "accuracy": teacher.accuracy,
                "labels": [store.summary() for store in self.stores],
            },
            self.training_sets.rows(self.networks),
            self.precision,
            self.val_split,
            self.best_epoch,
        )
        comparison.rows = [
            row for row in comparison.rows if self.rows == "both" or bool(row.distilled) != (self.rows == "real")
        ]
        with recorded(comparison, self.sets, self.all_data, self.tracking, self.config, self.parent) as records:
            places = list(seeds_then_rows(comparison.rows, self.seeds))
            settings = self._settings(teacher)
            for position, score in self.placement.train(self._jobs(places), len(places), settings):
                row, distilled, _ = places[position]
                filed = replace(score, distilled=distilled)
                row.file(filed)
                records.student(row, filed)
                comparison.save(self.output)  # after each student, so that a stopped evaluation keeps its part
            self._report(comparison, records)
        return comparison

    def _settings(self, teacher: Teacher) -> StudentSettings:
        holdout: LabelledImages | None = self.data.test if self.val_split else None
        return StudentSettings(teacher, self.all_data.test, self.protocol, self.accelerator, self.precision, holdout)

    def _jobs(self, places: Sequence[tuple[Row, str | None, int]]) -> Iterator[StudentJob]:
        for number, (row, distilled, seed) in enumerate(places, start=1):
            label = f"Student {number}/{len(places)} on {row.name}"
            yield StudentJob(row.network, self.training_sets.of(row, distilled, seed), seed, label, row.epochs)

    def _teacher(self) -> Teacher:
        if not self.needs_teacher:
            return Teacher(nn.Identity(), "none", self.data.spec, None, self.paths[0])  # it labels nothing
        given = bool(self.teachers) or self.teacher_recipe.checkpoint is not None
        if self.stores and not given and find_teacher(str(self.set_teacher), self.cache / "teachers") is None:
            check_same_teacher(self.stores[0], None)  # before one would be trained
        teacher = labelling_teacher(
            self.teacher_recipe,
            self.teachers,
            self.set_teacher,
            self.all_data,
            self.cache,
            self.tracking,
            accelerator=self.accelerator,
            config=self.config,
        )
        if self.stores:
            check_same_teacher(self.stores[0], teacher)
        for name, one in self.sets.items():
            if (own := one.manifest.get("teacher")) not in (None, teacher.fingerprint):
                say(
                    f"Note: {name} was distilled with another teacher ({str(own)[:12]}) than labels it now "
                    f"({teacher.fingerprint[:12]})"
                )
        return teacher

    def _report(self, comparison: Comparison, records: EvaluationRecords) -> None:
        images = {
            one.fingerprint(): picture_beside(path) for path, one in zip(self.paths, self.sets.values(), strict=True)
        }
        for image, one in zip(images.values(), self.sets.values(), strict=True):
            if not image.exists():
                picture(one, image)
        records.finish(comparison, [self.output.with_suffix(suffix) for suffix in _SUFFIXES], images)
        say(f"\n{comparison.table()}\n")
        say(f"Figures: {self.output} (and .csv, .md, .tex)")
        for image in images.values():
            say(f"Picture of the distilled images: {image}")
        if command := self.tracking.ui_command():
            say(f"MLflow: {command}")


def _common(what: str, values: Mapping[str, Any]) -> Any:
    """Return the value that all sets share.

    Raises:
        ValueError: If they differ.
    """
    if len(set(values.values())) > 1:
        shown = ", ".join(f"{name}: {str(value)[:12]}" for name, value in values.items())
        raise ValueError(
            f"the distilled sets differ in {what} ({shown}), expected one for a table: evaluate them apart"
        )
    return next(iter(values.values()))


def _json_file(path: Path) -> Path:
    """Return the name of the results: a suffix of theirs is replaced, any other dot belongs to the name."""
    return path.with_suffix(".json") if path.suffix in _SUFFIXES else path.with_name(f"{path.name}.json")
