"""What a run will hold and cost, before any work; and the refusal of what cannot fit."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from unidd_pl.console import say
from unidd_pl.data import ImageData
from unidd_pl.data.class_lists import count_classes, list_name
from unidd_pl.data.module import GIB
from unidd_pl.distillation import DistillationModule
from unidd_pl.files import atomic_write
from unidd_pl.memory import MIB, available_bytes, resident_bytes
from unidd_pl.specs import DatasetSpec
from unidd_pl.workload import StepTime, Workload

_CAUTION = 0.85  # of the free memory for a suggested part: the estimate may be off by as much
_ANYWHERE = ((0.5,), (0.25,))  # mean and std: costs do not depend on them


@dataclass(frozen=True)
class DataFacts:
    """What the costs of a run depend on in its data.

    Args:
        name: Name of the data set.
        num_classes: Number of classes.
        channels: 1 or 3.
        image_size: Height and width, pixels.
        train_images: Training images; None where that is not known.
        source: Where the facts are from.
    """

    name: str
    num_classes: int
    channels: int
    image_size: int
    train_images: int | None
    source: str

    @property
    def spec(self) -> DatasetSpec:
        """A spec of this shape, with names and normalisation made up."""
        mean, std = (one * self.channels for one in _ANYWHERE)
        names = tuple(f"{label:06d}" for label in range(self.num_classes))
        return DatasetSpec(self.name, names, self.channels, self.image_size, mean, std)

    @property
    def train_bytes(self) -> int:
        """Memory of the decoded training images, bytes."""
        return (self.train_images or 0) * self.channels * self.image_size**2


KNOWN_SETS = {
    "cifar10": DataFacts("cifar10", 10, 3, 32, 50_000, "as published"),
    "cifar100": DataFacts("cifar100", 100, 3, 32, 50_000, "as published"),
    "mnist": DataFacts("mnist", 10, 1, 28, 60_000, "as published"),
    "fashionmnist": DataFacts("fashionmnist", 10, 1, 28, 60_000, "as published"),
    "kmnist": DataFacts("kmnist", 10, 1, 28, 60_000, "as published"),
    "tiny-imagenet": DataFacts("tiny-imagenet", 200, 3, 64, 100_000, "as published"),
    "imagenet": DataFacts("imagenet", 1000, 3, 224, 1_281_167, "as published"),
}
"""Sizes of the sets of the shipped configs, for a plan without the data; a run reads its own from the data."""


def facts_of(data: ImageData | None, settings: Mapping[str, Any], given: Mapping[str, int | None]) -> DataFacts:
    """Return the facts of a data set: as given, else from the data, else as published.

    Args:
        data: The data where they are there; nothing is decoded but one image.
        settings: Settings of the config's data.
        given: ``num_classes``, ``image_size``, ``channels`` and ``train_images``, or None for each.

    Raises:
        ValueError: If the data are not there and nothing tells their size.
    """
    name = str(settings.get("dataset") or settings.get("name") or "")
    known = KNOWN_SETS.get(name.lower().replace("_", "-"))
    if data is not None:
        facts = _facts_in(data)
    elif known is not None:
        facts = replace(known, image_size=settings.get("image_size") or known.image_size)
        if settings.get("classes"):
            facts = _some_classes(facts, str(settings["classes"]))
    elif given.get("num_classes") and (given.get("image_size") or settings.get("image_size")):
        facts = DataFacts(name or "data", 2, 3, settings.get("image_size") or 1, None, "as given")
    else:
        raise ValueError(
            f"the data of the config are not at {settings.get('root')}, and nothing tells their size: give "
            "--num_classes and --image_size (and --train_images), or the folder with --data.init_args.root"
        )
    fields: dict[str, Any] = {key: value for key, value in given.items() if value is not None}
    return replace(facts, **fields)


def _some_classes(facts: DataFacts, classes: str) -> DataFacts:
    """Return the facts of some classes of a set, all taken to be equally large."""
    count = count_classes(classes)
    images = round((facts.train_images or 0) * count / facts.num_classes)
    return replace(facts, name=f"{facts.name}-{list_name(classes)}", num_classes=count, train_images=images)


def _facts_in(data: ImageData) -> DataFacts:
    images = data.read_split("train")
    _, channels, size, _ = images.read([0]).shape
    return DataFacts(data.dataset_name, len(data.read_classes()), channels, size, len(images), "read from the data")


@dataclass(frozen=True)
class Plan:
    """What a run will hold and cost. Sizes are bytes, times seconds; None where it is not known."""

    data: DataFacts
    network: str
    method: str
    device: str
    images: int
    rounds: int
    chunks_per_round: int
    chunk_size: int
    micro_batch: int | None
    compile_mode: str | None
    iterations: int
    teacher_parameters: int
    optimised_values: int
    statistics_bytes: int
    data_bytes: int
    process_bytes: int | None
    step_bytes: int
    free_bytes: int | None
    fitting_micro_batch: int | None
    step: StepTime | None
    machine: str

    @property
    def peak_bytes(self) -> int:
        """Estimated peak of the process, or on a GPU of the device."""
        held = 0 if self.device != "cpu" else (self.process_bytes or 0) + self.data_bytes
        return held + self.step_bytes

    @property
    def fits(self) -> bool:
        """Whether the estimate is within the free memory."""
        held = self.data_bytes if self.device == "cpu" else 0
        return self.free_bytes is None or self.step_bytes + held <= self.free_bytes

    @property
    def total_seconds(self) -> float | None:
        """Time of all iterations; teacher, statistics and evaluation come beside it."""
        return None if self.step is None else self.step.seconds * self.iterations

    def lines(self) -> list[str]:
        """Return the plan for the terminal."""
        data, chunk = self.data, min(self.chunk_size, self.data.num_classes)
        known = "?" if data.train_images is None else f"{data.train_images:,}"
        shape = f"{data.channels}×{data.image_size}×{data.image_size}"
        parts = "" if self.micro_batch is None else f", seen in parts of {min(self.micro_batch, chunk)}"
        rows = [
            ("Data", f"{data.name}: {known} training images, {data.num_classes} classes, {shape} ({data.source})"),
            ("Teacher", f"{self.network}, {self.teacher_parameters:,} parameters"),
            ("Distilled set", f"{self.images:,} images, {self.rounds} of each class, by {self.method}"),
            ("Chunks", f"{self.chunks_per_round} a round, {chunk} images at a time{parts}"),
            ("Optimised at a time", f"{self.optimised_values:,} values"),
            ("Iterations", f"{self.iterations:,}"),
            ("Statistics", _size(self.statistics_bytes)),
            ("Peak memory", f"{_size(self.peak_bytes)} (estimate), {self._free}"),
        ]
        if self.step is not None and self.total_seconds is not None:
            timed = " and ".join(map(str, self.step.timed))
            rows += [
                ("An iteration", f"{_time(self.step.seconds)} on {self.machine} (timed with {timed} images)"),
                ("All iterations", f"{_time(self.total_seconds)}, beside teacher, statistics and evaluation"),
            ]
        width = max(len(name) for name, _ in rows)
        return [f"{name:<{width}}  {value}" for name, value in rows] + ([] if self.fits else [self.cure])

    @property
    def _free(self) -> str:
        if self.free_bytes is None:
            return "free memory unknown"
        return f"{_size(self.free_bytes)} free on the {self.device}"

    @property
    def cure(self) -> str:
        """What to do where it does not fit."""
        smaller = "fewer classes a chunk (--model.init_args.chunk_size) or smaller images (--data.init_args.image_size)"
        if self.fitting_micro_batch is None:
            return f"This does not fit, not even one image at a time: take {smaller}, or a device with more memory"
        plain = "" if self.compile_mode is None else " without compile_mode"
        return (
            f"This does not fit: set --model.init_args.micro_batch {self.fitting_micro_batch}{plain}, which changes "
            f"time but not the result; or take {smaller}"
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the plan as plain JSON types."""
        return {
            **asdict(self), "peak_bytes": self.peak_bytes, "fits": self.fits, "total_seconds": self.total_seconds,
        }  # fmt: skip


def make_plan(
    module: DistillationModule,
    network: str,
    data: DataFacts,
    device: torch.device,
    *,
    in_memory_gib: float = 0.0,
    timed: bool = True,
) -> Plan:
    """Return the plan of a distillation.

    Args:
        module: The distillation.
        network: Name of the teacher's architecture.
        data: Facts of the data.
        device: Where it will run.
        in_memory_gib: A training split of at most this size will be held in memory.
        timed: Whether to time steps, some seconds.
    """
    held, free = resident_bytes(), available_bytes(device)
    work = Workload(module, network, data.spec, device)
    data_bytes = data.train_bytes if data.train_bytes <= in_memory_gib * GIB else 0
    need = work.need()
    room = None if free is None else free - (data_bytes if device.type == "cpu" else 0)
    return Plan(
        data=data,
        network=network,
        method=module.method.name,
        device=device.type,
        images=data.num_classes * module.ipc,
        rounds=module.ipc,
        chunks_per_round=work.schedule.chunks_per_round,
        chunk_size=module.chunk_size,
        micro_batch=module.micro_batch,
        compile_mode=module.compile_mode,
        iterations=module.ipc * work.schedule.steps_per_round,
        teacher_parameters=work.parameters,
        optimised_values=work.chunk * data.channels * data.image_size**2,
        statistics_bytes=work.statistics_bytes,
        data_bytes=data_bytes,
        process_bytes=held,
        step_bytes=round(need.total),
        free_bytes=free,
        fitting_micro_batch=None if room is None else work.largest_part(_CAUTION * room),
        step=work.step_time() if timed else None,
        machine=_machine(device),
    )


def check_fits(module: DistillationModule, network: str, spec: DatasetSpec, device: torch.device) -> None:
    """Refuse, before any work, a distillation that the device cannot hold.

    Args:
        module: The distillation.
        network: Name of the teacher's architecture.
        spec: The data, which are in memory by now where they will be.
        device: Where it will run.

    Raises:
        ValueError: If the estimate is above the free memory.
    """
    facts = DataFacts(spec.name, spec.num_classes, spec.channels, spec.image_size, None, "read from the data")
    plan = make_plan(module, network, facts, device, timed=False)
    if not plan.fits:
        raise ValueError(
            f"a chunk of {min(module.chunk_size, spec.num_classes)} images of {spec.image_size} pixels needs about "
            f"{_size(plan.step_bytes)}, got {plan._free}. {plan.cure}"
        )


def report(plan: Plan, output: Path | None) -> None:
    """Print a plan, and write it as JSON where a file is given."""
    say("\n".join(plan.lines()))
    if output is not None:
        with atomic_write(output) as temporary:
            temporary.write_text(json.dumps(plan.to_dict(), indent=2) + "\n")
        say(f"Plan: {output}")


def _machine(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    threads = torch.get_num_threads()
    return f"{platform.machine()}, {threads} thread{'s' if threads > 1 else ''}"


def _size(count: float) -> str:
    return f"{count / GIB:.1f} GiB" if count >= GIB else f"{count / MIB:.1f} MiB"


def _time(seconds: float) -> str:
    for unit, length in (("days", 86_400.0), ("h", 3600.0), ("min", 60.0)):
        if seconds >= 2 * length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds:.1f} s" if seconds >= 1 else f"{1000 * seconds:.0f} ms"
