"""A real distillation whose steps are called for, a few at a time: one process of `scale.py`."""

from __future__ import annotations

import os
import tempfile
import time
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import lightning as L
import torch
from exchange import Exchanged, counted_exchange
from steps import BETA, ETA, LR, Case, build_teacher, start

from unidd_pl.data.images import TensorImages
from unidd_pl.distillation import DistillationModule
from unidd_pl.features import conv_layers
from unidd_pl.moment_pass import gather_moments
from unidd_pl.ranks import leave_processes
from unidd_pl.real_side import RealSide
from unidd_pl.resume import ResumePoint, fit_from
from unidd_pl.sharding import sharded_trainer_arguments
from unidd_pl.spectral import CFM, Signal
from unidd_pl.statistics import Statistics
from unidd_pl.synthetic import ChunkStore
from unidd_pl.teachers import Teacher
from unidd_pl.training import quiet_lightning


@dataclass(frozen=True)
class Share:
    """What one process of a measurement does.

    Args:
        case: The step, with the images of the joint chunk.
        signal: Signal of the FLC.
        burst: Steps between two calls.
        bursts: How often it is called.
        rank: Which of the processes that share the chunk this is.
        ranks: How many share it.
        port: Where they meet on this machine.
    """

    case: Case
    signal: Signal
    burst: int
    bursts: int
    rank: int = 0
    ranks: int = 1
    port: int = 0


class Pace(L.Callback):
    """Waits before each burst until it is called for, and says after it what it took."""

    def __init__(self, share: Share, line: Connection, exchanged: Exchanged) -> None:
        self.share = share
        self.line = line
        self.exchanged = exchanged
        self._started = 0.0

    def on_train_batch_start(self, trainer: L.Trainer, *_: Any) -> None:
        """Wait at the start of a burst."""
        if trainer.global_step % self.share.burst == 0:
            self.line.recv()
            self.exchanged.take()
            self._started = time.perf_counter()

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        """Tell at the end of a burst; it stands after `ResumePoint` in the list, which sends too."""
        if trainer.global_step % self.share.burst == 0:
            seconds, sent = time.perf_counter() - self._started, self.exchanged.take()
            self.line.send({"seconds": seconds, "sizes": sent.sizes, "sum_seconds": sent.seconds})


def real_side(case: Case, signal: Signal) -> RealSide:
    """Return a teacher of random weights and its moments of noise, as `unidd statistics` gathers them."""
    network = build_teacher(case)
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (case.real_images, *case.spec.image_shape), generator=generator).to(torch.uint8)
    images = TensorImages(pixels, torch.arange(case.real_images) % case.num_classes)
    teacher = Teacher(network, case.network, case.spec, None, Path("benchmark"))
    layers = conv_layers(network)
    batches = zip(torch.split(pixels, 50), torch.split(images.labels, 50), strict=True)
    moments = gather_moments(teacher, batches, layers, signal, case.spec)
    return RealSide(teacher, Statistics(layers, moments, signal, {}), images)


def distil(share: Share, line: Connection) -> None:
    """Run the module under Lightning's Trainer as `unidd fit` does, burst by burst."""
    case = share.case
    real = real_side(case, share.signal)
    module = DistillationModule(
        ipc=1, method=CFM(), beta=BETA, eta=ETA, lr=LR, signal=share.signal, running="mean", start="noise",
        chunk_size=case.images, iterations=share.burst * share.bursts,
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder, counted_exchange() as exchanged, quiet_lightning():
        module.prepare(real, ChunkStore(Path(folder), case.spec))
        if (running := module.running_moments) is not None:
            running.update(real.statistics.moments)  # as if a round were done
        point = ResumePoint(Path(folder) / "last.ckpt", 10**9, lambda: str(module.last_position))
        trainer = L.Trainer(
            max_epochs=1, limit_train_batches=share.burst * share.bursts, accelerator="cpu", logger=False,
            enable_checkpointing=False, enable_model_summary=False, enable_progress_bar=False,
            callbacks=[point, Pace(share, line, exchanged)], **sharded_trainer_arguments({}),
        )  # fmt: skip
        fit_from(trainer, module, None, point)


def work(share: Share, line: Connection) -> None:
    """Be one process of a measurement, with one thread."""
    if share.ranks > 1:
        os.environ |= {
            "TORCHELASTIC_RUN_ID": "scale", "RANK": str(share.rank), "LOCAL_RANK": str(share.rank),
            "WORLD_SIZE": str(share.ranks), "LOCAL_WORLD_SIZE": str(share.ranks),
            "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(share.port),
        }  # fmt: skip
    start()
    torch.set_num_threads(1)
    distil(share, line)
    leave_processes()


def of_share(case: Case, ranks: int) -> Case:
    """Return the case of a process that has its share of the chunk for itself."""
    return replace(case, images=case.images // ranks)
