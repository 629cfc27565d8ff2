"""What a distillation shows of itself while it runs: speed, memory, and a picture of each round."""

from __future__ import annotations

import resource
import sys
import time
from pathlib import Path

import lightning as L
import torch

from unidd_pl.distillation import DistillationModule
from unidd_pl.pictures import picture
from unidd_pl.synthetic import ChunkStore
from unidd_pl.tracking import StageRun

_GIB = 2**30


class Gauges(L.Callback):
    """Logs, round by round, ``images_per_second`` and ``memory_gib``.

    An image is counted each time that the teacher sees it. Memory is the peak so far: of the GPU's tensors, or of the
    process where there is none.

    Attributes:
        seconds: Time of the iterations so far, from the start or the resumption of the run.
    """

    def __init__(self) -> None:
        self.seconds = 0.0
        self._began = 0.0
        self._step = 0

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start the clock."""
        self._began = time.perf_counter()
        self._step = trainer.global_step

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start the clock anew: what came between two rounds is no time of iterations."""
        self._began = time.perf_counter()

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Log the round's figures."""
        now = time.perf_counter()
        steps, elapsed = trainer.global_step - self._step, now - self._began
        self.seconds += elapsed
        self._began, self._step = now, trainer.global_step
        figures = {"memory_gib": peak_memory(pl_module.device) / _GIB}
        if isinstance(pl_module, DistillationModule) and elapsed > 0:
            # On average over the chunks of a round, the last of which may be smaller.
            chunk = pl_module.spec.num_classes / pl_module.schedule.chunks_per_round
            figures["images_per_second"] = steps * chunk / elapsed
        step = pl_module.step if isinstance(pl_module, DistillationModule) else trainer.global_step
        for logger in trainer.loggers:
            logger.log_metrics(figures, step=step)


def peak_memory(device: torch.device) -> float:
    """Return the peak of a GPU's tensors, or of this process on a CPU, bytes."""
    if device.type == "cuda":
        return float(torch.cuda.max_memory_allocated(device))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return float(peak if sys.platform == "darwin" else peak * 1024)  # macOS counts bytes, Linux KiB


class RoundPictures(L.Callback):
    """Draws the images of each round when it is finished.

    Args:
        store: Where finished chunks go.
        run: Where the pictures are recorded, under ``rounds``.
        folder: Where they lie.
    """

    def __init__(self, store: ChunkStore, run: StageRun, folder: Path) -> None:
        self.store = store
        self.run = run
        self.folder = folder

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Draw the round that has ended."""
        if isinstance(pl_module, DistillationModule):
            self._draw(pl_module.last_position.round_index)

    def draw_missing(self, made: int) -> None:
        """Draw those of the first `made` rounds that have no picture, which other processes have made."""
        for round_index in range(made):
            if not self._path(round_index).is_file():
                self._draw(round_index)

    def _draw(self, round_index: int) -> None:
        path = self._path(round_index)
        picture(self.store.of_round(round_index), path)
        self.run.artifact(path, "rounds")

    def _path(self, round_index: int) -> Path:
        return self.folder / f"round_{round_index:04d}.png"
