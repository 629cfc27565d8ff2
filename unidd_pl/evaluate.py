"""`unidd evaluate`: a distilled set beside real images, over seeds, ending with a table."""

from __future__ import annotations

from pathlib import Path

from unidd_pl.comparison import Comparison, Row, seeds_then_rows
from unidd_pl.console import say
from unidd_pl.data.module import ImageData
from unidd_pl.distilled import DistilledSet
from unidd_pl.evaluation import TrainingSet, real_images, train_student
from unidd_pl.exports import picture
from unidd_pl.files import check_writable
from unidd_pl.networks import build_network
from unidd_pl.pretraining import TeacherRecipe
from unidd_pl.protocols import Protocol
from unidd_pl.specs import DatasetSpec
from unidd_pl.stages import teacher_stage
from unidd_pl.synthetic import check_enough_images
from unidd_pl.teachers import Teacher, find_teacher, load_teacher
from unidd_pl.tracking import StageRun, Tracking

REAL_ROW = "real images"


class Evaluation:
    """One `unidd evaluate`.

    Args:
        distilled: File of the distilled set.
        data: The real data: test images, and training images for the row of real ones.
        teacher: The teacher that labels. Without a checkpoint it is the one that the set was distilled
            with, where the cache holds it.
        protocol: How to train the students.
        network: Name of the students' architecture.
        seeds: Students per row.
        cache: Folder that holds ``teachers``.
        tracking: Where the evaluation is recorded.
        accelerator: Lightning's accelerator.
        output: JSON file of the results; None for ``evaluation.json`` beside the distilled set.
        overwrite: Replace that file.
        config: Resolved config as YAML, for the record.

    Raises:
        ValueError: If the set does not fit the data.
    """

    def __init__(
        self,
        distilled: Path,
        data: ImageData,
        teacher: TeacherRecipe,
        protocol: Protocol,
        network: str,
        seeds: int,
        cache: Path,
        tracking: Tracking,
        accelerator: str,
        output: Path | None,
        config: str,
        *,
        overwrite: bool = False,
    ) -> None:
        if seeds < 1:
            raise ValueError(f"seeds: got {seeds}, expected at least 1")
        self.path = distilled
        self.distilled = DistilledSet.load(distilled)
        self.data = data
        self.teacher_recipe = teacher
        self.protocol = protocol
        self.network = network
        self.seeds = seeds
        self.cache = cache
        self.tracking = tracking
        self.accelerator = accelerator
        self.output = output or distilled.with_name("evaluation.json")
        self.config = config
        check_same_classes(self.distilled.spec, data.spec)
        check_writable(self.output.parent)
        if self.output.exists() and not overwrite:
            raise ValueError(
                f"{self.output} already holds results: replace them with --overwrite true, or give "
                "another --output FILE"
            )
        # What would only show after a teacher or a student was trained:
        build_network(network, data.spec)
        _ = data.test
        check_enough_images(data.train, data.spec, self.distilled.ipc)

    def run(self) -> Comparison:
        """Train all students; print the table, the picture's path and how to open MLflow."""
        teacher = self._teacher()
        method = str(self.distilled.manifest.get("method", "distilled"))
        comparison = Comparison(
            self.protocol,
            self.data.spec.name,
            self.distilled.ipc,
            {"network": teacher.name, "fingerprint": teacher.fingerprint, "accuracy": teacher.accuracy},
            self.distilled.fingerprint(),
            [Row(method, self.network), Row(REAL_ROW, self.network)],
        )
        tags = {
            "method": method,
            "band": str(self.distilled.manifest.get("band", "")),
            "dataset": self.data.spec.name,
            "ipc": str(self.distilled.ipc),
            "protocol": self.protocol.name,
            "teacher": teacher.fingerprint,
            "distilled_set": comparison.distilled,
        }
        with self.tracking.run("evaluation", self.path.parent.name, tags, self.config) as run:
            for number, (row, seed) in enumerate(seeds_then_rows(comparison.rows, self.seeds), start=1):
                label = f"Student {number}/{len(comparison.rows) * self.seeds} on {row.name}"
                self._score(row, seed, teacher, label, run)
                comparison.save(self.output)  # after each student, so that a stopped evaluation keeps its part
            run.metrics(comparison.metrics())
            run.artifact(self.output)
            self._report(comparison, run)
        return comparison

    def _score(self, row: Row, seed: int, teacher: Teacher, label: str, run: StageRun) -> None:
        score = train_student(
            row.network,
            self._training_set(row, seed),
            teacher,
            self.data.test,
            self.protocol,
            seed,
            label=label,
            accelerator=self.accelerator,
        )
        row.scores.append(score)
        for epoch, accuracy in score.accuracies.items():
            run.metrics({f"accuracy/{row.network}/{row.name}/seed {seed}": accuracy}, step=epoch)

    def _training_set(self, row: Row, seed: int) -> TrainingSet:
        if row.name == REAL_ROW:
            return real_images(self.data.train, self.data.spec, self.distilled.ipc, seed)
        return TrainingSet(self.distilled.images, self.distilled.labels, self.distilled.ipc)

    def _teacher(self) -> Teacher:
        expected = self.distilled.manifest.get("teacher")
        cached = find_teacher(str(expected), self.cache / "teachers") if expected else None
        if self.teacher_recipe.checkpoint is None and cached is not None:
            say(f"Teacher: the one that the set was distilled with, from {cached}")
            return load_teacher(cached, None, self.data)
        teacher = teacher_stage(
            self.teacher_recipe,
            self.data,
            self.cache,
            self.tracking,
            accelerator=self.accelerator,
            config=self.config,
        )
        if expected not in (None, teacher.fingerprint):
            say(
                f"Note: the set was distilled with another teacher ({str(expected)[:12]}) than labels it now "
                f"({teacher.fingerprint[:12]})"
            )
        return teacher

    def _report(self, comparison: Comparison, run: StageRun) -> None:
        image = self.path.with_suffix(".png")
        if not image.exists():
            picture(self.distilled, image)
        run.artifact(image)
        say(f"\n{comparison.table()}\n")
        say(f"Figures: {self.output}")
        say(f"Picture of the distilled images: {image}")
        if command := self.tracking.ui_command():
            say(f"MLflow: {command}")


def check_same_classes(distilled: DatasetSpec, data: DatasetSpec) -> None:
    """Refuse a distilled set of other classes or another image shape than the data's.

    Raises:
        ValueError: If they differ.
    """
    for what, got, expected in (
        ("classes, in order,", distilled.classes, data.classes),
        ("image shape", distilled.image_shape, data.image_shape),
    ):
        if got != expected:
            raise ValueError(
                f"the distilled set does not fit the data {data.name}; {what} got {got}, expected {expected}: "
                "evaluate it on the data set that it was distilled from"
            )
