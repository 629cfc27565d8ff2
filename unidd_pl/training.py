"""Running a Lightning Trainer as one stage among several: quiet, with one progress bar, and stoppable."""

from __future__ import annotations

import logging
import signal
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import lightning as L
from lightning.pytorch.loggers import Logger

from unidd_pl.cluster import slurm_plugins
from unidd_pl.console import Stopped
from unidd_pl.progress import RunProgressBar


@contextmanager
def quiet_lightning() -> Iterator[None]:
    """Hide Lightning's start-up notes and its advice on what a stage has chosen on purpose."""
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.WARNING)
    try:
        with warnings.catch_warnings():
            # Images in memory need no worker processes.
            warnings.filterwarnings("ignore", message=".*does not have many workers.*")
            # The log interval is set for long runs; short ones simply log less.
            warnings.filterwarnings("ignore", message=".*smaller than the logging interval.*")
            # A GPU left idle on purpose (--trainer.accelerator cpu) is no mistake.
            warnings.filterwarnings("ignore", message=".*available but not used.*")
            # Lightning 2.6 asks torch 2.15 for a name that torch has renamed.
            warnings.filterwarnings("ignore", message=".*isinstance\\(treespec, LeafSpec\\).*")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def is_logged_step(trainer: L.Trainer) -> bool:
    """Return whether Lightning's loggers take the figures of the step in hand.

    To log on other steps would cost time, and would show a logger figures of an earlier step as this one's.
    """
    interval = int(getattr(trainer, "log_every_n_steps"))  # noqa: B009 - mypy does not know the attribute
    return interval > 0 and (trainer.global_step + 1) % interval == 0


def train(
    module: L.LightningModule,
    *,
    label: str | None,
    epochs: int,
    accelerator: str = "auto",
    precision: str = "32-true",
    logger: Logger | bool = False,
    devices: int | list[int] = 1,
) -> L.Trainer:
    """Train a module, with a progress bar and without checkpoints.

    Args:
        module: The module; it has its own training loader.
        label: What the progress bar says; None for no bar.
        epochs: Epochs of training.
        accelerator: Lightning's accelerator.
        precision: Lightning's precision.
        logger: Lightning logger.
        devices: 1; the index of the device to use; or the number of processes that train together, this being one.

    Raises:
        Stopped: After Ctrl-C or SIGTERM, which Lightning would turn into exit statuses 1 and 0.
    """
    with quiet_lightning():
        trainer = L.Trainer(
            max_epochs=epochs,
            accelerator=accelerator,
            devices=devices,
            strategy="ddp" if isinstance(devices, int) and devices > 1 else "auto",
            use_distributed_sampler=False,  # the modules shard by themselves
            precision=precision,  # type: ignore[arg-type]  # Lightning checks the name
            logger=logger,
            callbacks=[] if label is None else [RunProgressBar(label)],
            enable_progress_bar=label is not None,
            enable_checkpointing=False,
            enable_model_summary=False,
            plugins=[*slurm_plugins()],
        )
        try:
            trainer.fit(module)
        except SystemExit as error:
            number = signal.SIGTERM if trainer.received_sigterm else signal.SIGINT
            epoch = min(trainer.current_epoch + 1, epochs)  # after the last epoch Lightning has counted on
            raise Stopped(number, f"{label or 'Training'}: stopped in epoch {epoch} of {epochs}") from error
    return trainer


class Iterations:
    """The numbers 0 to n−1 as a loader that Lightning can resume within.

    The module knows its own place and does not look at the numbers, so there is no state to store.
    """

    def __init__(self, count: int) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[int]:
        return iter(range(self.count))

    def state_dict(self) -> dict[str, Any]:
        """Return nothing: the module holds the place."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take nothing up: the module holds the place."""
