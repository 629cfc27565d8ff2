"""One of several processes that share a distillation; run by torchrun, alone, or by Lightning (--devices).

torchrun --nproc-per-node 2 tests/sharded_run.py OUTPUT [--cases NAME …] [--stop STEP | --kill RANK STEP] [--resume]
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import LambdaCallback
from torch import Tensor

from unidd_pl.console import Stopped
from unidd_pl.curriculum import CurriculumCallback
from unidd_pl.data.images import TensorImages
from unidd_pl.distillation import DistillationModule
from unidd_pl.distributed import all_rows, merge_over_ranks
from unidd_pl.features import conv_layers
from unidd_pl.moment_pass import gather_moments
from unidd_pl.networks import ConvNet
from unidd_pl.ranks import leave_processes, own_rows, rank, world_size
from unidd_pl.real_side import RealSide
from unidd_pl.resume import ResumePoint, fit_from
from unidd_pl.sharding import sharded_trainer_arguments
from unidd_pl.specs import DatasetSpec
from unidd_pl.spectral import (
    CFM,
    METHODS,
    CosineCurriculum,
    MatchingLoss,
    Method,
    Moments,
    Passing,
    RunningMode,
    RunningMoments,
    Signal,
    moments_of,
    observe,
)
from unidd_pl.statistics import Statistics
from unidd_pl.synthetic import ChunkStore
from unidd_pl.teachers import Teacher, freeze
from unidd_pl.training import quiet_lightning

CLASSES = 5  # neither 2 nor 4 processes divide them; the second chunk of 4 + 1 leaves processes without a row


def real_side(signal: Signal, dtype: torch.dtype, size: int = 8) -> RealSide:
    """Return teacher and statistics that depend on nothing but this function."""
    generator = torch.Generator().manual_seed(0)
    spec = DatasetSpec("sharded", tuple("abcde"), 3, size, (0.5,) * 3, (0.25,) * 3)
    labels = torch.arange(20) % CLASSES
    images = TensorImages(torch.randint(256, (20, 3, size, size), generator=generator).to(torch.uint8), labels)
    network = ConvNet(width=6, depth=3, channels=3, image_size=size, num_classes=CLASSES)
    with torch.no_grad():
        for weight in network.parameters():
            weight.copy_(0.3 * torch.randn(weight.shape, generator=generator))
        network.layers.norm[1].bias.add_(20)  # of two layers of one width one is centred beforehand, and one is not
    freeze(network)
    teacher = Teacher(network.to(dtype), "convnet-w6-d3", spec, None, Path("sharded"))
    layers = conv_layers(network)
    moments = gather_moments(teacher, [(images.images.to(dtype) / 255, labels)], layers, signal, spec)
    return RealSide(teacher, Statistics(layers, moments, signal, {}), images)


class Watch(L.Callback):
    """Keeps each loss, the first gradient of each chunk and the images after each step, of all rows."""

    def __init__(self) -> None:
        self.losses: list[Tensor] = []
        self.gradients: list[Tensor] = []
        self.images: list[Tensor] = []

    def on_before_optimizer_step(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        assert isinstance(pl_module, DistillationModule)
        gradient = pl_module.images.grad
        assert gradient is not None
        position = pl_module.position
        if position.iteration == 0:
            self.gradients.append(all_rows(gradient, len(pl_module.schedule.classes(position.chunk_index))))

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, *_: Any) -> None:
        assert isinstance(pl_module, DistillationModule)
        self.losses.append(outputs["loss"].detach().clone())
        self.images.append(
            all_rows(pl_module.images, len(pl_module.schedule.classes(pl_module.last_position.chunk_index)))
        )


class Send(L.Callback):
    """Sends a signal to its own process while a step is in hand."""

    def __init__(self, step: int, number: signal.Signals, at: int) -> None:
        self.step = step
        self.number = number
        self.at = at

    def on_train_batch_start(self, trainer: L.Trainer, *_: Any) -> None:
        if trainer.global_step == self.step and rank() == self.at:
            os.kill(os.getpid(), self.number)


def run(
    folder: Path, dtype: torch.dtype, signal: Signal, *callbacks: L.Callback,
    resume: bool = False, devices: int | None = None, size: int = 8, **settings: Any,
) -> dict[str, Any]:  # fmt: skip
    """Distil; return what `Watch` has seen."""
    real = real_side(signal, dtype, size)
    module = DistillationModule(
        **{"ipc": 1, "method": CFM(), "iterations": 50, "lr": 0.05, "signal": signal, **settings}  # type: ignore[arg-type]
    )
    module.prepare(real, ChunkStore(folder, real.teacher.spec, "float32"))
    module.to(dtype)
    watch, point = Watch(), ResumePoint(folder / "last.ckpt", 4, lambda: str(module.last_position))
    where = {} if devices is None else {"devices": devices}
    with quiet_lightning():
        trainer = L.Trainer(
            max_epochs=module.ipc, accelerator="cpu", logger=False, enable_checkpointing=False,
            callbacks=[CurriculumCallback(CosineCurriculum()), *callbacks, watch, point], enable_model_summary=False,
            enable_progress_bar=False, **sharded_trainer_arguments(where),
        )  # fmt: skip
        fit_from(trainer, module, folder / "last.ckpt" if resume else None, point)
    return {"losses": watch.losses, "gradients": watch.gradients, "images": watch.images[-1], "own": len(module.images)}


def sent(folder: Path, **settings: Any) -> list[list[int]]:
    """Return the bytes of each sum of each step that does not end a chunk, as they go into the collective."""
    from exchange import counted_exchange  # of the benchmarks

    steps: list[list[int]] = []
    with counted_exchange() as exchanged:
        # `Watch` gathers gradients and images at its own place, after the backward pass.
        look = LambdaCallback(
            on_train_batch_start=lambda *_: exchanged.take(),
            on_before_backward=lambda *_: steps.append(exchanged.take().sizes),
        )
        run(folder, torch.float32, settings.pop("signal"), look, iterations=3, **settings)
    return steps


def features_of(seed: int, n: int, dtype: torch.dtype) -> list[Tensor]:
    """Return features of four layers, two and two of one width, with an offset.

    Of five images some processes have so few that they take the first layer as a factor, and others have not.
    """
    generator = torch.Generator().manual_seed(seed)
    shapes = [(n, 20, 2, 2), (n, 6, 2, 2), (n, 20, 4, 4), (n, 6, 2, 2)]
    return [(torch.randn(shape, generator=generator, dtype=torch.float64) + 0.5).to(dtype) for shape in shapes]


def weights_of(n: int, dtype: torch.dtype) -> Tensor:
    """Return labels of n images as columns."""
    return torch.eye(CLASSES, dtype=dtype)[torch.arange(n) % CLASSES]


def closed_form(method: Method, mode: RunningMode | None, dtype: torch.dtype) -> tuple[Tensor, list[Tensor]]:
    """Return the matching loss of five images and its gradient, of which each process has seen its own rows."""
    own = own_rows(CLASSES)
    real = [Moments.of(x, weights_of(20, torch.float64)) for x in features_of(0, 20, torch.float64)]
    layers = [x[own].contiguous(memory_format=torch.channels_last).requires_grad_() for x in features_of(1, 5, dtype)]
    labels, passing = weights_of(5, dtype)[own], Passing(centred=False, owned=True)
    loss = MatchingLoss(method, real, 0.1)
    seen = [observe(x, factored=loss.takes_factors, passing=passing)[1] for x in layers]
    merged = merge_over_ranks(moments_of(seen, labels))
    if mode is not None:
        running = RunningMoments(mode)
        running.update([Moments.of(x, weights_of(5, torch.float64)) for x in features_of(2, 5, torch.float64)])
        merged = running.combine(merged)
    value = loss.distances(merged).sum()
    gradients = torch.autograd.grad(value, layers) if value.requires_grad else [torch.zeros_like(x) for x in layers]
    return value.detach(), [all_rows(gradient, CLASSES) for gradient in gradients]


LOSSES: dict[str, tuple[Method, RunningMode | None, torch.dtype]] = {
    f"{kind.__name__}, {mode}, {dtype}": (kind(), mode, dtype)
    for kind in METHODS
    for mode in (None, "mean", "merge")
    for dtype in (torch.float64, torch.float32)
}
CASES: dict[str, dict[str, Any]] = {
    "mean": {"dtype": torch.float64, "signal": "mean"},
    "class, chunks": {"dtype": torch.float64, "signal": "class", "chunk_size": 4},
    "soft, parts": {"dtype": torch.float64, "signal": "soft", "micro_batch": 1},
    "float32": {"dtype": torch.float32, "signal": "mean", "iterations": 2},
}
SENT: dict[str, dict[str, Any]] = {
    "mean": {"signal": "mean", "ipc": 1},
    "mean, more and larger images": {"signal": "mean", "ipc": 2, "size": 16, "chunk_size": 3},
    "classes": {"signal": "class", "ipc": 1},
    "classes, more and larger images": {"signal": "class", "ipc": 2, "size": 16, "chunk_size": 3},
}
"""Runs whose bytes are counted, with two processes."""
RESUMED: dict[str, dict[str, Any]] = {
    "one chunk": {"dtype": torch.float64, "signal": "mean", "iterations": 20, "ipc": 2},
    "chunks": {"dtype": torch.float64, "signal": "class", "chunk_size": 4, "iterations": 10, "ipc": 2},
}
"""Runs that are stopped and go on: 40 steps."""


def main() -> None:
    """Run the cases and let the first process write what it has seen."""
    parser = argparse.ArgumentParser()
    parser.add_argument("output", type=Path)
    parser.add_argument("--cases", nargs="+", default=list(CASES))
    parser.add_argument("--stop", type=int, metavar="STEP", help="send SIGUSR1 to the last process")
    parser.add_argument("--kill", type=int, nargs=2, metavar=("RANK", "STEP"), help="send SIGKILL to a process")
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--devices", type=int, help="let Lightning start the processes")
    given = parser.parse_args()
    torch.set_num_threads(1)
    how: dict[str, Any] = {"resume": given.resume, "devices": given.devices}
    seen: dict[str, Any] = {}
    for name in given.cases:
        callbacks = [Send(given.kill[1], signal.SIGKILL, given.kill[0])] if given.kill else []
        if given.stop is not None:
            callbacks.append(Send(given.stop, signal.SIGUSR1, int(os.environ["WORLD_SIZE"]) - 1))
        try:
            settings = dict({**CASES, **RESUMED}[name])
            seen[name] = run(
                given.output / name, settings.pop("dtype"), settings.pop("signal"), *callbacks, **settings, **how
            )
        except Stopped as stop:
            sys.stderr.write(f"{stop}\n")
            if given.stop is None:
                sys.exit(stop.status)
    if given.cases == list(CASES):
        seen |= {name: closed_form(*case) for name, case in LOSSES.items()}
    if given.cases == list(CASES) and world_size() == 2:
        seen["sent"] = {name: sent(given.output / name, **case) for name, case in SENT.items()}
    if rank() == 0:
        torch.save({**seen, "world size": world_size()}, given.output / f"{world_size()}.pt")
    leave_processes()


if __name__ == "__main__":
    main()
