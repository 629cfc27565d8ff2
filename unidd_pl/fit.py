"""`unidd fit` and `unidd statistics`: one config, staged.

Data set → teacher → statistics → distillation → distilled set. The stages before the distillation run before
its Trainer is built.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI

from unidd_pl.comparison import environment
from unidd_pl.console import quiet_lightning, say
from unidd_pl.curriculum import CurriculumCallback
from unidd_pl.data.module import ImageData
from unidd_pl.distillation import DistillationModule, RealSide
from unidd_pl.distilled import DistilledSet, PixelType
from unidd_pl.exports import picture
from unidd_pl.features import conv_layers
from unidd_pl.files import check_writable
from unidd_pl.pretraining import Teacher, TeacherRecipe
from unidd_pl.progress import RunProgressBar
from unidd_pl.resume import Interrupted, ResumePoint
from unidd_pl.stages import statistics_stage, teacher_stage
from unidd_pl.statistics import Statistics, StatisticsRecipe
from unidd_pl.synthetic import ChunkStore, check_enough_images
from unidd_pl.tracking import StageRun, Tracking

DISTILLED_FILE = "distilled.safetensors"
PICTURE_FILE = "distilled.png"
CHECKPOINT_FILE = "last.ckpt"
CONFIG_FILE = "config.yaml"
CHUNK_FOLDER = "chunks"

_EXIT_BY_SIGNAL = 128  # a shell's convention: 128 + number of the signal


class _Configuration(LightningCLI):
    """Parses the config and builds data and module; the Trainer waits until the stages are done."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_class_arguments(TeacherRecipe, "teacher")
        parser.add_class_arguments(StatisticsRecipe, "statistics")
        parser.add_class_arguments(Tracking, "tracking")
        parser.add_argument("--output_dir", type=str, default=None, help="default: runs/<name of the config>")
        parser.add_argument("--cache_dir", type=str, default="runs/cache", help="teachers and statistics")
        parser.add_argument("--overwrite", type=bool, default=False, help="replace what output_dir holds")
        parser.add_argument("--pixel_type", type=PixelType, default="uint8", help="pixels of the distilled set")
        parser.add_argument("--checkpoint_every", type=int, default=500, help="iterations between checkpoints")
        parser.add_argument("--ckpt_path", type=str, default=None, help="checkpoint to go on from, or 'last'")

    def instantiate_trainer(self, **kwargs: Any) -> L.Trainer | None:  # type: ignore[override]
        return super().instantiate_trainer(**kwargs) if kwargs else None


class DistillationRun:
    """One `unidd fit` or `unidd statistics`.

    Args:
        arguments: The command line after the command's name.

    Raises:
        ValueError: If the config is out of range or does not fit the data.
    """

    def __init__(self, arguments: list[str]) -> None:
        with quiet_lightning():
            self._cli = _Configuration(
                DistillationModule,
                ImageData,
                subclass_mode_model=True,
                subclass_mode_data=True,
                save_config_callback=None,
                seed_everything_default=False,
                trainer_defaults={"enable_checkpointing": False, "enable_model_summary": False},
                run=False,
                args=arguments,
            )
        self.config = self._cli.config
        objects = self._cli.config_init
        self.teacher_recipe: TeacherRecipe = objects.teacher
        self.statistics_recipe: StatisticsRecipe = objects.statistics
        self.module: DistillationModule = self._cli.model
        self.data: ImageData = self._cli.datamodule
        self.tracking: Tracking = objects.tracking
        if self.config.trainer.logger is False:
            self.tracking = Tracking(enabled=False)
        self.cache = Path(self.config.cache_dir)
        self.output = Path(self.config.output_dir or self._default_output())
        self.yaml: str = self._cli.parser.dump(self.config, skip_none=False)

    def statistics(self) -> Statistics:
        """Make sure of the teacher and its statistics."""
        teacher = self._teacher()
        return self._statistics(teacher)

    def fit(self) -> Path:
        """Distil; return the file of the distilled set."""
        checkpoint = self._checkpoint()
        self._check_before_work(checkpoint)
        teacher = self._teacher()
        statistics = self._statistics(teacher)
        store = ChunkStore(self.output / CHUNK_FOLDER, teacher.spec, self.config.pixel_type)
        self.module.prepare(RealSide(teacher, statistics, self.data.train), store)
        (self.output / CONFIG_FILE).write_text(self.yaml)
        tags = self._tags(teacher, statistics)
        with self.tracking.run("distillation", self.output.name, tags, self.yaml) as run:
            try:
                self._distil(run, checkpoint)
            except Interrupted as stop:
                run.interrupted()
                run.close("KILLED")
                self._say_how_to_resume(stop)
                sys.exit(_EXIT_BY_SIGNAL + stop.number)
            distilled = store.assemble(self.module.schedule, self._manifest(teacher, statistics))
            self._write(distilled, run)
        return self.output / DISTILLED_FILE

    def _distil(self, run: StageRun, checkpoint: Path | None) -> None:
        module = self.module
        extra = [
            RunProgressBar("Distilling", "round"),
            ResumePoint(self.output / CHECKPOINT_FILE, self.config.checkpoint_every, lambda: str(module.position)),
        ]
        with quiet_lightning():
            trainer = self._cli.instantiate_trainer(
                max_epochs=module.ipc,
                logger=run.logger if self.config.trainer.logger in (None, True) else self._own_logger(),
                callbacks=[*(self._cli.config_init.trainer.callbacks or []), *extra],
            )
            assert trainer is not None  # noqa: S101 - for the type checker: with arguments it is built
            self._check_curriculum(trainer)
            trainer.fit(module, ckpt_path=checkpoint)

    def _write(self, distilled: DistilledSet, run: StageRun) -> None:
        path = self.output / DISTILLED_FILE
        distilled.save(path, overwrite=True)  # _check_before_work has refused what must not be lost
        picture(distilled, self.output / PICTURE_FILE)
        run.artifact(path)
        run.artifact(self.output / PICTURE_FILE)
        run.tag("distilled_set", distilled.fingerprint())
        say(f"Distilled set: {len(distilled)} images in {path}")
        say(f"Picture: {self.output / PICTURE_FILE}")

    # ---- stages ----

    def _teacher(self) -> Teacher:
        return teacher_stage(
            self.teacher_recipe,
            self.data,
            self.cache,
            self.tracking,
            accelerator=self.config.trainer.accelerator,
            config=self.yaml,
        )

    def _statistics(self, teacher: Teacher) -> Statistics:
        layers = conv_layers(teacher.network)
        return statistics_stage(
            self.statistics_recipe,
            teacher,
            self.data,
            layers,
            self.module.signal,
            self.cache,
            self.tracking,
            accelerator=self.config.trainer.accelerator,
            config=self.yaml,
        )

    # ---- checks ----

    def _check_before_work(self, checkpoint: Path | None) -> None:
        if self.config.trainer.max_epochs not in (None, self.module.ipc):
            raise ValueError(
                f"got trainer.max_epochs {self.config.trainer.max_epochs} and ipc {self.module.ipc}: a round makes "
                "one image of each class, so leave max_epochs out and set --model.init_args.ipc"
            )
        holds = [name for name in (DISTILLED_FILE, CHECKPOINT_FILE) if (self.output / name).exists()]
        if holds and checkpoint is None and not self.config.overwrite:
            raise ValueError(
                f"{self.output} already holds {' and '.join(holds)}: go on with --ckpt_path last, start anew with "
                "--overwrite true, or choose another --output_dir"
            )
        check_writable(self.output)
        if self.module.start == "real":
            check_enough_images(self.data.train, self.data.spec, self.module.ipc)

    def _checkpoint(self) -> Path | None:
        given = self.config.ckpt_path
        if given is None:
            return None
        path = self.output / CHECKPOINT_FILE if given == "last" else Path(given)
        if not path.is_file():
            raise ValueError(f"no checkpoint at {path}: expected one written by `unidd fit`")
        return path

    def _check_curriculum(self, trainer: L.Trainer) -> None:
        scheduled = any(isinstance(callback, CurriculumCallback) for callback in trainer.callbacks)  # type: ignore[attr-defined]
        if self.module.method.scheduled and not scheduled:
            raise ValueError(
                f"method {self.module.method.name} needs a curriculum on β: add a CurriculumCallback to "
                "trainer.callbacks, or use HFM for a fixed β"
            )

    # ---- records ----

    def _default_output(self) -> str:
        configs = self.config.get("config") or []
        return f"runs/{Path(str(configs[0])).stem if configs else 'distillation'}"

    def _own_logger(self) -> Any:
        return self._cli.config_init.trainer.logger

    def _tags(self, teacher: Teacher, statistics: Statistics) -> dict[str, str]:
        return {
            "method": self.module.method.name,
            "band": self.module.method.band,
            "dataset": teacher.spec.name,
            "ipc": str(self.module.ipc),
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
            "config": self.yaml,
        }

    def _say_how_to_resume(self, stop: Interrupted) -> None:
        say(f"\n{str(stop).capitalize()}. Go on with the same command and --ckpt_path {stop.checkpoint}")
