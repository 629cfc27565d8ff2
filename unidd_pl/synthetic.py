"""What is optimised and where it goes: the schedule of chunks, their start images and the store.

Legend: n images, c channels, h w space.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from unidd_pl.data.images import LabelledImages
from unidd_pl.distilled import DistilledSet, PixelType
from unidd_pl.seeding import generator_for
from unidd_pl.specs import DatasetSpec


@dataclass(frozen=True)
class Position:
    """Where a run is: round i, chunk within the round, iteration within the chunk, all from 0."""

    round_index: int
    chunk_index: int
    iteration: int

    def __str__(self) -> str:
        return f"round {self.round_index + 1}, chunk {self.chunk_index + 1}, iteration {self.iteration + 1}"


@dataclass(frozen=True)
class Schedule:
    """The order of a run: rounds of chunks of iterations, as a pure function of the step.

    Args:
        num_classes: Number of classes.
        chunk_size: Classes optimised together, at most.
        num_rounds: Rounds, the images per class.
        iterations: Iterations per chunk.
    """

    num_classes: int
    chunk_size: int
    num_rounds: int
    iterations: int

    @property
    def chunks_per_round(self) -> int:
        """Number of chunks that cover all classes."""
        return -(-self.num_classes // self.chunk_size)

    @property
    def steps_per_round(self) -> int:
        """Iterations of a round."""
        return self.chunks_per_round * self.iterations

    def at(self, step: int) -> Position:
        """Return the position of a step, counted from 0 over the whole run."""
        round_index, in_round = divmod(step, self.steps_per_round)
        return Position(round_index, *divmod(in_round, self.iterations))

    def classes(self, chunk_index: int) -> range:
        """Return the labels of the classes of a chunk."""
        start = chunk_index * self.chunk_size
        return range(start, min(start + self.chunk_size, self.num_classes))

    def compared_classes(self, position: Position, *, accumulated: bool) -> range | None:
        """Return the labels of the classes of which there are synthetic images to compare; None for all.

        Args:
            position: Where the run is.
            accumulated: Whether the finished chunks count, as with running moments, or the chunk alone.
        """
        if self.chunks_per_round == 1 or (accumulated and position.round_index > 0):
            return None
        chunk = self.classes(position.chunk_index)
        return range(0 if accumulated else chunk.start, chunk.stop)


def real_start(images: LabelledImages, spec: DatasetSpec, round_index: int, classes: range) -> Tensor:
    """Return the i-th real training image of each class, normalised, (n, c, h, w).

    Raises:
        ValueError: If a class has too few images.
    """
    if not classes:  # a process that owns no row of the chunk
        return torch.zeros(0, *spec.image_shape)
    chosen = []
    for label in classes:
        positions = images.positions_of(label)
        if len(positions) <= round_index:
            raise ValueError(_too_few(spec.classes[label], len(positions), round_index + 1))
        chosen.append(int(positions[round_index]))
    return spec.normalise(images.read(chosen))


def noise_start(spec: DatasetSpec, round_index: int, classes: range, seed: int) -> Tensor:
    """Return standard normal noise in normalised space, clipped to valid pixels, (n, c, h, w)."""
    images = [
        torch.randn(spec.image_shape, generator=generator_for(seed, "start", round_index, label)) for label in classes
    ]
    return clip(torch.stack(images), spec) if images else torch.zeros(0, *spec.image_shape)


def check_enough_images(images: LabelledImages, spec: DatasetSpec, ipc: int) -> None:
    """Refuse, before any work, a class with fewer real images than images per class."""
    counts = torch.bincount(images.labels, minlength=spec.num_classes)
    scarcest = int(counts.argmin())
    if counts[scarcest] < ipc:
        raise ValueError(_too_few(spec.classes[scarcest], int(counts[scarcest]), ipc))


def clip(images: Tensor, spec: DatasetSpec) -> Tensor:
    """Return normalised images (n, c, h, w) with every pixel between black and white."""
    return images.clamp(*_bounds(spec, images.dtype, images.device))


@torch.no_grad()
def clip_(images: Tensor, spec: DatasetSpec) -> None:
    """Clip normalised images (n, c, h, w) in place, as `clip`."""
    images.clamp_(*_bounds(spec, images.dtype, images.device))


@functools.lru_cache(maxsize=8)
def _bounds(spec: DatasetSpec, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return black and white, (1, c, 1, 1): every step asks for them."""
    with torch.inference_mode(False):
        return spec.pixel_bounds(torch.empty(0, dtype=dtype, device=device))


class ChunkStore:
    """Finished chunks, each in a file of its own, so that a run holds only the current one in memory.

    Args:
        folder: Folder of the files.
        spec: The data set.
        dtype: Pixel type of the product; chunks are quantised once, here.
    """

    def __init__(self, folder: Path, spec: DatasetSpec, dtype: PixelType = "uint8") -> None:
        self.folder = folder
        self.spec = spec
        self.dtype = dtype

    def add(self, position: Position, images: Tensor, classes: range, run: str) -> None:
        """Write a finished chunk.

        Args:
            position: Its last iteration.
            images: (n, c, h, w), normalised, one of each class.
            classes: Their labels.
            run: Digest of the run that made it, so that no other run takes it for its own.
        """
        chunk = DistilledSet.from_normalised(
            images.detach().cpu(), torch.tensor(list(classes)), self.spec, {"run": run}, dtype=self.dtype
        )
        # A chunk that was cut off before its checkpoint is made again, the same.
        chunk.save(self._path(position.round_index, position.chunk_index), overwrite=True)

    def assemble(self, schedule: Schedule, manifest: Mapping[str, Any], run: str) -> DistilledSet:
        """Return the distilled set of all rounds.

        Raises:
            ValueError: If a chunk is missing or was made by another run.
        """
        # Filled chunk by chunk: beside the set itself only one chunk is in memory.
        count = schedule.num_rounds * schedule.num_classes
        images: Tensor | None = None
        labels: list[Tensor] = []
        done = 0
        for chunk in self.finished(schedule, range(schedule.num_rounds * schedule.steps_per_round), run):
            if images is None:
                images = chunk.images.new_empty(count, *chunk.images.shape[1:])
            images[done : done + len(chunk)] = chunk.images
            labels.append(chunk.labels)
            done += len(chunk)
        return DistilledSet(cast("Tensor", images), torch.cat(labels), self.spec, dict(manifest))

    def count_rounds(self, schedule: Schedule) -> int:
        """Return how many rounds, from the first on, have all their chunks."""
        for round_index in range(schedule.num_rounds):
            if not all(self._path(round_index, chunk).is_file() for chunk in range(schedule.chunks_per_round)):
                return round_index
        return schedule.num_rounds

    def of_round(self, round_index: int) -> DistilledSet:
        """Return the finished images of one round, in the order of the classes."""
        paths = sorted(
            self.folder.glob(f"{self._path(round_index, 0).name.partition('_chunk_')[0]}_chunk_*.safetensors")
        )
        chunks = [DistilledSet.load(path) for path in paths]
        images, labels = (torch.cat(parts) for parts in ([c.images for c in chunks], [c.labels for c in chunks]))
        return DistilledSet(images, labels, self.spec, {})

    def check(self, schedule: Schedule, steps: range, run: str) -> None:
        """Read the chunks that are finished after these steps, one at a time.

        Raises:
            ValueError: If one is missing or was made by another run.
        """
        for _ in self.finished(schedule, steps, run):
            pass

    def finished(self, schedule: Schedule, steps: range, run: str) -> Iterator[DistilledSet]:
        """Yield the chunks that are finished after these steps, in order.

        Args:
            schedule: Rounds and chunks.
            steps: Steps that were made, from the beginning of a round on.
            run: Digest of the run.

        Raises:
            ValueError: If one is missing or was made by another run.
        """
        for number in range(steps.start // schedule.iterations, steps.stop // schedule.iterations):
            round_index, chunk_index = divmod(number, schedule.chunks_per_round)
            path = self._path(round_index, chunk_index)
            chunk = DistilledSet.load(path)
            if chunk.manifest.get("run") != run:
                raise ValueError(
                    f"the chunk {path} was made by another run: expected the chunks of this one; go on in the folder "
                    "of the run that the checkpoint is from, or start anew with --overwrite true"
                )
            fits = chunk.spec == self.spec and str(chunk.images.dtype) == f"torch.{self.dtype}"
            if not fits or chunk.labels.tolist() != list(schedule.classes(chunk_index)):
                raise ValueError(
                    f"the chunk {path} holds other classes or pixels than the run makes: it is damaged; start anew "
                    "with --overwrite true"
                )
            yield chunk

    def _path(self, round_index: int, chunk_index: int) -> Path:
        return self.folder / f"round_{round_index:04d}_chunk_{chunk_index:03d}.safetensors"


def _too_few(name: str, got: int, expected: int) -> str:
    return (
        f"class {name!r} has {got} training images, expected at least {expected} (one a round): "
        "lower --model.init_args.ipc or start from noise (--model.init_args.start noise)"
    )
