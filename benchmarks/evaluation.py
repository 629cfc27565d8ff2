"""Seconds an epoch of `unidd evaluate` against a plain DataLoader loop, and against the networks alone.

    python benchmarks/evaluation.py [--ipc 10 50] [--rounds 7] [--output FILE]

Protocol `unidd-release`, 10 classes, 32 px, ConvNet-W128-D3 as teacher and student, scoring left out:

* ours: `EvalModule` in a Lightning Trainer, as `unidd evaluate` runs it, started and stopped at every measurement;
* ours, bf16: the same with `--precision bf16-mixed`;
* plain: what a research repository does: a folder of PNG files, torchvision's ImageFolder, RandomResizedCrop and flip
  on PIL images in worker processes, CutMix with numpy, the same loss and optimizer, torch's own allocator settings;
* plain, tuned: the same loop with workers that persist and large blocks kept, so that what is left is the loop's;
* floor: the teacher's forward and the student's step on ready random tensors, with large blocks kept.

Each case has a process of its own (the allocator's settings are a process's) that waits while another works; they are
timed in turn. Printed are medians and ratios of the wall time and of the CPU time of the process and its finished
workers, which other work on the machine disturbs less (persistent workers have not finished, so `plain, tuned` has its
own part only). The file holds every round and all versions.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import resource
import statistics
import tempfile
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader
from torchvision import transforms
from torchvision.datasets import ImageFolder

from unidd_pl.allocator import keep_large_blocks
from unidd_pl.comparison import environment
from unidd_pl.console import say
from unidd_pl.data.images import TensorImages
from unidd_pl.evaluation import EvalModule, TrainingSet
from unidd_pl.files import atomic_write
from unidd_pl.networks import build_network
from unidd_pl.protocols import Protocol
from unidd_pl.specs import DatasetSpec
from unidd_pl.teachers import freeze
from unidd_pl.training import quiet_lightning

NETWORK = "convnet-w128-d3"
SPEC = DatasetSpec("benchmark", tuple("abcdefghij"), 3, 32, (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010))
PROTOCOL = Protocol()
CASES = ("plain", "plain, tuned", "ours", "ours, bf16", "floor")
Epochs = Callable[[int], None]
"""Trains for a number of epochs."""


def images_of(ipc: int) -> TrainingSet:
    """Return random images with the smoothness of photographs' colours."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(10 * ipc, 3, 8, 8, generator=generator)
    pixels = (F.interpolate(coarse, 32, mode="bilinear") * 255).to(torch.uint8)
    return TrainingSet(pixels, torch.arange(10).repeat_interleave(ipc), ipc)


def networks() -> tuple[nn.Module, nn.Module]:
    """Return teacher and student, made alike for every case."""
    torch.manual_seed(0)
    teacher, student = build_network(NETWORK, SPEC), build_network(NETWORK, SPEC)
    freeze(teacher)
    return teacher, student


def ours(training_set: TrainingSet, precision: str) -> Epochs:
    """Return epochs as `unidd evaluate` trains them."""
    teacher, student = networks()
    student.to(memory_format=torch.channels_last)
    test = TensorImages(training_set.pixels[:10], training_set.labels[:10])
    protocol = PROTOCOL.lasting(1_000_000)  # so that no epoch is scored, and the rate stays at its start

    def epochs(count: int) -> None:
        module = EvalModule(student, teacher, training_set, test, SPEC, protocol, 0)
        with quiet_lightning():
            trainer = L.Trainer(
                max_epochs=count, accelerator="cpu", logger=False, precision=precision, enable_checkpointing=False,
                enable_model_summary=False, enable_progress_bar=False,
            )  # fmt: skip
            trainer.fit(module)

    return epochs


def kl_step(student: nn.Module, optimizer: torch.optim.Optimizer, images: Tensor, teacher: nn.Module) -> None:
    """Do one step of the protocol's loss as a plain loop writes it."""
    with torch.no_grad():
        targets = F.softmax(teacher(images) / PROTOCOL.temperature, dim=1)
    loss = F.kl_div(F.log_softmax(student(images) / PROTOCOL.temperature, dim=1), targets, reduction="batchmean")
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


def numpy_cutmix(images: Tensor) -> Tensor:
    """Paste one box onto the images of a random order, as the CutMix release does it."""
    share = np.random.beta(1.0, 1.0)
    order = torch.randperm(len(images))
    side = int(32 * np.sqrt(1 - share))
    x, y = np.random.randint(32), np.random.randint(32)
    left, right = np.clip([x - side // 2, x + side // 2], 0, 32)
    top, bottom = np.clip([y - side // 2, y + side // 2], 0, 32)
    images[:, :, left:right, top:bottom] = images[order, :, left:right, top:bottom]
    return images


def plain(training_set: TrainingSet, folder: Path, workers: int, *, persistent: bool) -> Epochs:
    """Return epochs of a plain loop over PNG files."""
    for number, (image, label) in enumerate(zip(training_set.pixels, training_set.labels.tolist(), strict=True)):
        path = folder / SPEC.classes[label] / f"{number:05d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(path)
    steps = [
        transforms.RandomResizedCrop(32, scale=(0.08, 1.0)),
        transforms.RandomHorizontalFlip(),
        transforms.ToTensor(),
        transforms.Normalize(SPEC.mean, SPEC.std),
    ]
    loader: DataLoader[Tensor] = DataLoader(
        ImageFolder(str(folder), transforms.Compose(steps)),
        batch_size=PROTOCOL.batch_size_for(training_set.ipc),
        shuffle=True,
        num_workers=workers,
        persistent_workers=persistent and workers > 0,
        # Linux's own, as in a script: this process was spawned, and would spawn its workers, seconds an epoch.
        multiprocessing_context="fork" if workers else None,
    )
    teacher, student = networks()
    student.train()
    optimizer = torch.optim.AdamW(student.parameters(), lr=1e-3, weight_decay=1e-2)

    def epochs(count: int) -> None:
        for _ in range(count):
            for images, _labels in loader:
                kl_step(student, optimizer, numpy_cutmix(images), teacher)

    return epochs


def floor(training_set: TrainingSet) -> Epochs:
    """Return epochs of the networks alone, on batches of the same sizes."""
    teacher, student = networks()
    student.to(memory_format=torch.channels_last).train()
    optimizer = torch.optim.AdamW(student.parameters(), lr=1e-3, weight_decay=1e-2)
    batch_size, count = PROTOCOL.batch_size_for(training_set.ipc), len(training_set.pixels)
    batches = [
        torch.randn(size, *SPEC.image_shape).contiguous(memory_format=torch.channels_last)
        for size in [batch_size] * (count // batch_size) + [count % batch_size] * (count % batch_size > 1)
    ]

    def epochs(count: int) -> None:
        for _ in range(count):
            for images in batches:
                kl_step(student, optimizer, images, teacher)

    return epochs


def serve(connection: Connection, case: str, ipc: int, workers: int, folder: Path) -> None:
    """Train as many epochs as are asked for and answer with the seconds, until 0 epochs are asked for."""
    torch.set_num_threads(workers)
    if case != "plain":
        keep_large_blocks()
    training_set = images_of(ipc)
    if case.startswith("plain"):
        epochs = plain(training_set, folder / case, workers, persistent=case != "plain")
    else:
        precision = "bf16-mixed" if "bf16" in case else "32-true"
        epochs = floor(training_set) if case == "floor" else ours(training_set, precision)
    while count := connection.recv():
        wall, cpu = time.perf_counter(), cpu_seconds()
        epochs(count)
        connection.send({"wall": (time.perf_counter() - wall) / count, "cpu": (cpu_seconds() - cpu) / count})


def cpu_seconds() -> float:
    """Return the CPU time of this process and of its children that have ended."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


def measure(ipc: int, rounds: int, epochs: int, workers: int) -> dict[str, dict[str, list[float]]]:
    """Return seconds an epoch by clock and case, one for each round, timed in turn after one round of each."""
    context = multiprocessing.get_context("spawn")
    measured: dict[str, dict[str, list[float]]] = {clock: {case: [] for case in CASES} for clock in ("wall", "cpu")}
    with tempfile.TemporaryDirectory() as folder:
        connections: dict[str, Connection] = {}
        for case in CASES:
            connections[case], theirs = context.Pipe()
            context.Process(target=serve, args=(theirs, case, ipc, workers, Path(folder))).start()
        for number in range(rounds + 1):
            for case, connection in connections.items():
                connection.send(epochs)
                for clock, seconds in connection.recv().items():
                    if number:
                        measured[clock][case].append(seconds)
        for connection in connections.values():
            connection.send(0)
        for process in multiprocessing.active_children():
            process.join()
    return measured


def summary(measured: dict[str, list[float]]) -> dict[str, dict[str, float]]:
    """Return medians and the ratios that count."""
    medians = {case: statistics.median(values) for case, values in measured.items()}
    ratios = {
        f"{one} / {other}": medians[one] / medians[other]
        for one, other in (("plain", "ours"), ("plain, tuned", "ours"), ("plain", "ours, bf16"), ("ours", "floor"))
    }
    return {"medians": medians, "ratios": ratios}


def main() -> None:
    """Time the cases; print a table and write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ipc", nargs="+", type=int, default=[10, 50])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--epochs", type=int, default=20, help="epochs of each measurement at 10 images per class")
    parser.add_argument("--workers", type=int, default=2, help="threads of torch, and worker processes of the loader")
    parser.add_argument("--note", default="", help="said beside the figures, for example what else was running")
    parser.add_argument("--output", type=Path, default=None, help="JSON file")
    arguments = parser.parse_args()
    say(f"{environment()}, {arguments.workers} threads and loader workers; medians of {arguments.rounds}, s an epoch")
    results: dict[int, Any] = {}
    for ipc in arguments.ipc:
        epochs = max(1, round(arguments.epochs * 10 / ipc))
        measured = measure(ipc, arguments.rounds, epochs, arguments.workers)
        results[ipc] = {clock: {"seconds": one, **summary(one)} for clock, one in measured.items()}
        for clock, one in measured.items():
            say(f"{ipc} images per class, {clock} time:")
            for figures in summary(one).values():
                say("   " + ", ".join(f"{name} {value:.3f}" for name, value in figures.items()))
    if arguments.output:
        result = {"environment": environment(), **{k: v for k, v in vars(arguments).items() if k != "output"}}
        with atomic_write(arguments.output) as temporary:
            temporary.write_text(json.dumps({**result, "results": results}, indent=1))


if __name__ == "__main__":
    main()
