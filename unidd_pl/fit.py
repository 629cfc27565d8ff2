"""`unidd fit` and `unidd statistics`: one config, staged.

Data set → teacher → statistics → distillation → distilled set. The stages before the distillation run before
its Trainer is built.
"""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import LambdaCallback

from unidd_pl.comparison import environment
from unidd_pl.console import say
from unidd_pl.coverage import FIGURE_FILE as COVERAGE_FIGURE
from unidd_pl.coverage import RESULTS_FILE as COVERAGE_FILE
from unidd_pl.coverage import write_coverage
from unidd_pl.data.module import ImageData
from unidd_pl.distillation import DistillationModule
from unidd_pl.distilled import DistilledSet, PixelType
from unidd_pl.files import atomic_write, check_writable
from unidd_pl.gauges import Gauges, RoundPictures
from unidd_pl.partial import CHUNK_FOLDER, DISTILLED_FILE, RunRecord
from unidd_pl.pictures import card, picture
from unidd_pl.planning import check_fits
from unidd_pl.pretraining import TeacherRecipe
from unidd_pl.real_side import RealSide
from unidd_pl.resume import requeued, sole_run
from unidd_pl.rounds import Rounds, Spread
from unidd_pl.run_checks import (
    callbacks_of,
    check_curriculum,
    check_probes,
    curriculum_of,
    probes_of,
)
from unidd_pl.run_folder import CONFIG_FILE, LAST, PICTURE_FILE, ROUNDS_FOLDER
from unidd_pl.sharding import is_first
from unidd_pl.stages import device_of, statistics_stage, teacher_stage
from unidd_pl.standing import is_finished, recorded
from unidd_pl.statistics import Statistics
from unidd_pl.statistics_cache import StatisticsRecipe
from unidd_pl.synthetic import ChunkStore
from unidd_pl.teachers import Teacher
from unidd_pl.team import launched_team
from unidd_pl.tracking import StageRun, Tracking

CARD_FILE = "card.md"


class DistillationRun:
    """One `unidd fit` or `unidd statistics`.

    Args:
        module: The distillation, not prepared yet.
        data: The real data.
        teacher: Which teacher.
        statistics: How to get its real moments.
        tracking: Where the stages are recorded.
        trainer: Arguments of Lightning's Trainer. ``logger`` may be None (MLflow), False (no tracking of any
            stage) or a logger for the distillation.
        output: Folder of the results.
        cache: Folder of teachers and statistics.
        checkpoint: Checkpoint to go on from; ``last`` for the one in ``output``; None to start anew.
        checkpoint_every: Iterations between two checkpoints.
        spread: What the processes that a launcher has started share: each chunk, or the rounds.
        overwrite: Replace what ``output`` holds.
        pixel_type: Pixels of the distilled set.
        config: Resolved config as YAML, for the record.
        teacher_data: What the teacher is trained on where it is not ``data``, of which that may be a part.
        parent: Tags of the MLflow run to nest the distillation under.
    """

    def __init__(
        self,
        module: DistillationModule,
        data: ImageData,
        teacher: TeacherRecipe,
        statistics: StatisticsRecipe,
        tracking: Tracking,
        trainer: dict[str, Any],
        output: Path,
        cache: Path,
        *,
        checkpoint: str | None = None,
        checkpoint_every: int = 500,
        spread: Spread = "chunks",
        overwrite: bool = False,
        pixel_type: PixelType = "uint8",
        config: str = "",
        teacher_data: ImageData | None = None,
        parent: dict[str, str] | None = None,
    ) -> None:
        self.module = module
        self.data = data
        self.teacher_recipe = teacher
        self.statistics_recipe = statistics
        self.trainer_arguments = dict(trainer)
        self.tracking = Tracking(enabled=False) if trainer.get("logger") is False or not is_first() else tracking
        self.output = output
        self.rounds = Rounds(module, output, self.trainer_arguments, checkpoint_every, spread)
        self.folder = self.rounds.folder
        self.cache = cache
        self.checkpoint = checkpoint
        self.overwrite = overwrite
        self.pixel_type: PixelType = pixel_type
        self.config = config
        self.teacher_data = teacher_data or data
        self.parent = parent

    def statistics(self) -> Statistics:
        """Make sure of the teacher and its statistics."""
        return self._real_side()[1]

    def check(self) -> None:
        """Check all that can be checked before any work of a run that starts anew.

        Raises:
            ValueError: If something is not as it has to be.
        """
        self._check_before_work(None)

    def fit(self) -> Path:
        """Distil; return the file of the distilled set."""
        checkpoint = self.folder.going_on_from(self.checkpoint)
        self._check_before_work(checkpoint)
        with requeued(lambda: self.folder.checkpoints), sole_run(self.output, self.cache):
            self._check_replaceable(checkpoint)  # again: another run may have ended in between
            with launched_team().first_ends_last("results"):
                return self._fit(checkpoint)

    def _fit(self, checkpoint: Path | None) -> Path:
        teacher, statistics = self._real_side()
        store = ChunkStore(self.output / CHUNK_FOLDER, teacher.spec, self.pixel_type)
        self.module.prepare(RealSide(teacher, statistics, self.data.train), store)
        if self.checkpoint == LAST and is_finished(self.output, DISTILLED_FILE):
            self.rounds.make(StageRun().logger, checkpoint, [])  # which has nothing to do, and refuses another config
            say(f"{self.folder.distilled} is finished: nothing is left to do")
            return self.folder.distilled
        with launched_team().first_alone("cleared folder"):  # before another process puts a round there
            if is_first() and checkpoint is None:
                self.folder.clear(anew=self.checkpoint is None)
        tags = self._tags(teacher, statistics)
        with recorded(
            self.tracking, self.output, tags, self.config, self.parent, going_on=self.checkpoint is not None,
            from_checkpoint=checkpoint is not None,
            complete=lambda: self.rounds.made == self.module.ipc,
        ) as run:  # fmt: skip
            run.input(teacher.spec.name, self.data.fingerprint, self.data.dataset_name, "training")
            gauges = Gauges()
            pictures = RoundPictures(store, run, self.output / ROUNDS_FOLDER)
            # Once a checkpoint is taken up: one that is refused must not change what is said of the run.
            notes = LambdaCallback(on_train_start=lambda *_: self._take_notes(teacher, statistics))
            self.rounds.make(run.logger, checkpoint, [notes, gauges, pictures] if is_first() else [])
            if not is_first():  # of the processes that share the chunks one puts them together
                return self.folder.distilled
            made = self.rounds.made
            pictures.draw_missing(made)
            distilled = self._record(teacher, statistics).rounds(store, made, self._why_stopped)
            self._write(distilled, run)
            self._show_coverage(distilled, teacher, statistics, run)
            run.metrics(self._cost(made, gauges, checkpoint), self.module.step)
        return self.folder.distilled

    def _write(self, distilled: DistilledSet, run: StageRun) -> None:
        path = self.folder.distilled
        distilled.save(path, overwrite=True)  # _check_before_work has refused what must not be lost
        picture(distilled, self.output / PICTURE_FILE)
        run.artifact(path)
        run.artifact(self.output / PICTURE_FILE)
        run.text(card(distilled), CARD_FILE)
        run.tag("distilled_set", distilled.fingerprint())
        say(f"Distilled set: {len(distilled)} images in {path}")
        if note := distilled.partial_note:
            say(f"Partial: {note}; go on with --ckpt_path last, other settings of what stopped it")
            run.tag("partial", distilled.manifest["partial"])
            run.tag("ipc", str(distilled.ipc))
        say(f"Picture: {self.output / PICTURE_FILE}")

    def _show_coverage(self, distilled: DistilledSet, teacher: Teacher, statistics: Statistics, run: StageRun) -> None:
        """Measure which part of the real spectrum the set holds, where that is recorded."""
        if not self.tracking.enabled:
            return
        figures = write_coverage(
            distilled, self.module.method, self.module.beta, curriculum_of(self._own_callbacks), teacher, statistics,
            self.output, batch_size=self.statistics_recipe.batch_size, device=device_of(self._accelerator),
        )  # fmt: skip
        run.metrics(figures, self.module.step)
        for name in (COVERAGE_FIGURE, COVERAGE_FILE):
            run.artifact(self.output / name)

    def _cost(self, made: int, gauges: Gauges, checkpoint: Path | None) -> dict[str, float]:
        """Return what the rounds cost: bytes, images that the teacher saw, and seconds unless the run was resumed."""
        cost = {
            "bytes": float((self.folder.distilled).stat().st_size),
            "images_seen": float(made * self.module.iterations * self.module.spec.num_classes),
        }
        return cost if checkpoint is not None else {**cost, "seconds": gauges.seconds}

    @property
    def _own_callbacks(self) -> list[L.Callback]:
        return callbacks_of(self.trainer_arguments)

    # ---- stages ----

    @property
    def _accelerator(self) -> str:
        return str(self.trainer_arguments.get("accelerator", "auto"))

    @cached_property
    def teacher(self) -> Teacher:
        """The teacher, trained when it is first asked for and missing."""
        return teacher_stage(
            self.teacher_recipe, self.teacher_data, self.cache, self.tracking,
            accelerator=self._accelerator, config=self.config,
        )  # fmt: skip

    def _real_side(self) -> tuple[Teacher, Statistics]:
        with launched_team().first_alone("teacher"):
            teacher = self.teacher
        statistics = statistics_stage(
            self.statistics_recipe, teacher, self.data, self.module.method, self.module.signal, self.cache,
            self.tracking, accelerator=self._accelerator, config=self.config,
        )  # fmt: skip
        return teacher, statistics

    # ---- checks ----

    def _check_before_work(self, checkpoint: Path | None) -> None:
        self.rounds.check(self.checkpoint)
        check_curriculum(self.module.method, curriculum_of(self._own_callbacks))
        self._check_replaceable(checkpoint)
        check_writable(self.output)
        self.module.start.check(self.data.train, self.data.spec, self.module.ipc)
        check_probes(self._own_callbacks, self.module, self.data, self.teacher_recipe.network)
        check_fits(self.module, self.teacher_recipe.network, self.data.spec, device_of(self._accelerator))

    def _check_replaceable(self, checkpoint: Path | None) -> None:
        if checkpoint is None and not self.overwrite and is_first():  # which may be ahead of the others by a round
            self.folder.check_replaceable()

    # ---- records ----

    def _take_notes(self, teacher: Teacher, statistics: Statistics) -> None:
        """Write what the run is, for whoever meets its folder before it is finished."""
        with atomic_write(self.output / CONFIG_FILE) as temporary:
            temporary.write_text(self.config)
        self._record(teacher, statistics).save(self.output)

    def _record(self, teacher: Teacher, statistics: Statistics) -> RunRecord:
        module = self.module
        manifest = self._manifest(teacher, statistics)
        return RunRecord(module.run_digest, teacher.spec, self.pixel_type, module.schedule, manifest)

    @property
    def _why_stopped(self) -> str:
        return next((one.reason for one in probes_of(self._own_callbacks) if one.reason), "a callback ended the run")

    def _tags(self, teacher: Teacher, statistics: Statistics) -> dict[str, str]:
        return {
            "method": self.module.method.name,
            "band": self.module.method.band,
            "dataset": teacher.spec.name,
            "ipc": str(self.module.ipc),
            "seed": str(self.module.seed),
            "teacher": teacher.fingerprint,
            "statistics": statistics.fingerprint,
            "data": self.data.fingerprint,
        }

    def _manifest(self, teacher: Teacher, statistics: Statistics) -> dict[str, Any]:
        return {
            **self._tags(teacher, statistics),
            "ipc": self.module.ipc,
            "seed": self.module.seed,
            "teacher_network": teacher.name,
            "teacher_accuracy": teacher.accuracy,
            "environment": environment(),
            "config": self.config,
        }
