"""What the commands say to the person in front of them."""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import lightning as L


def say(message: str) -> None:
    """Print one message to the standard output, at once also where that is a pipe."""
    sys.stdout.write(message + "\n")
    sys.stdout.flush()


def is_logged_step(trainer: L.Trainer) -> bool:
    """Return whether Lightning's loggers take the figures of the step in hand.

    To log on other steps would cost time, and would show a logger figures of an earlier step as this one's.
    """
    interval = int(getattr(trainer, "log_every_n_steps"))  # noqa: B009 - mypy does not know the attribute
    return interval > 0 and (trainer.global_step + 1) % interval == 0


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
