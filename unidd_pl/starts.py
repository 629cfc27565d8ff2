"""What the synthetic images of a chunk start from: real images in order or chosen, collages of crops, or noise.

Legend: n images, c channels, h w space, k classes; f patches a side of a collage.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from unidd_pl.data.crops import RandomCrops
from unidd_pl.data.images import LabelledImages
from unidd_pl.seeding import generator_for, seed_for
from unidd_pl.selection import herding, teacher_features
from unidd_pl.specs import DatasetSpec
from unidd_pl.synthetic import check_enough_images, noise_start, real_start
from unidd_pl.teachers import Teacher

StartName = Literal["auto", "real", "herding", "noise", "collage"]

_SCORED_AT_ONCE = 100  # crops a forward pass of the teacher
_READ_BLOCK = 10  # crops that a thread decodes at a time


class Start(ABC):
    """Start images as a pure function of seed, round and class, so that a resumed run and any chunks give the same."""

    @abstractmethod
    def draw(self, teacher: Teacher, images: LabelledImages, round_index: int, classes: range, seed: int) -> Tensor:
        """Return one image of each class.

        Args:
            teacher: The frozen teacher, on the device of the run.
            images: The real training images.
            round_index: Round, from 0.
            classes: Labels.
            seed: Seed of the run.

        Returns:
            (n, c, h, w) normalised, within the valid pixels.
        """

    def sources(self, positions: Tensor, ipc: int, seed: int, label: int) -> Tensor:
        """Return those of a class's training images that start images may be made from; all, unless it is known better.

        Args:
            positions: (n,) int64, the images of the class, in order.
            ipc: Rounds of the run.
            seed: Seed of the run.
            label: The class.
        """
        return positions

    def settle(self, teacher: Teacher, images: LabelledImages, classes: range, seed: int) -> None:  # noqa: B027
        """Make now what of `sources` depends on the teacher; nothing, for most.

        Args:
            teacher: The frozen teacher.
            images: The real training images.
            classes: Labels.
            seed: Seed of the run.
        """

    def check(self, images: LabelledImages, spec: DatasetSpec, ipc: int) -> None:  # noqa: B027  noise needs no images
        """Refuse, before any work, a class with too few real images for so many rounds.

        Raises:
            ValueError: If there is one.
        """

    @abstractmethod
    def __str__(self) -> str:
        """Return what the images depend on, for the record of a run."""


class RealStart(Start):
    """The i-th training image of each class in round i."""

    def draw(self, teacher: Teacher, images: LabelledImages, round_index: int, classes: range, seed: int) -> Tensor:
        """Return the images of a round."""
        return real_start(images, teacher.spec, round_index, classes)

    def sources(self, positions: Tensor, ipc: int, seed: int, label: int) -> Tensor:
        """Return the first images, one a round."""
        return positions[:ipc]

    def check(self, images: LabelledImages, spec: DatasetSpec, ipc: int) -> None:
        """Refuse a class with fewer images than rounds."""
        check_enough_images(images, spec, ipc)

    def __str__(self) -> str:
        return "real"


class HerdingStart(Start):
    """The i-th image of each class in the order of herding, in round i.

    The images of the first rounds together keep the mean of their class in the teacher's feature space, whatever their
    number. Each process chooses for its own classes, once a run; the teacher sees all candidates for it.

    Args:
        candidates: Training images of each class to choose from, at most, drawn at random.

    Raises:
        ValueError: If the number is out of range.

    References:
        `unidd_pl.selection.herding`.
    """

    def __init__(self, candidates: int = 5000) -> None:
        if candidates < 1:
            raise ValueError(f"model.init_args.start.init_args.candidates: got {candidates}, expected at least 1")
        self.candidates = candidates
        self._rounds = 1
        self._order: dict[int, Tensor] = {}

    def draw(self, teacher: Teacher, images: LabelledImages, round_index: int, classes: range, seed: int) -> Tensor:
        """Return the images of a round."""
        if not classes:  # a process that owns no row of the chunk
            return torch.zeros(0, *teacher.spec.image_shape)
        self._choose(teacher, images, classes, seed, max(self._rounds, round_index + 1))
        return teacher.spec.normalise(images.read([int(self._order[label][round_index]) for label in classes]))

    def settle(self, teacher: Teacher, images: LabelledImages, classes: range, seed: int) -> None:
        """Choose the images of all rounds."""
        self._choose(teacher, images, classes, seed, self._rounds)

    def sources(self, positions: Tensor, ipc: int, seed: int, label: int) -> Tensor:
        """Return the chosen images; before they are chosen as many others, for want of a teacher that says which."""
        return self._order.get(label, positions)[:ipc]

    def check(self, images: LabelledImages, spec: DatasetSpec, ipc: int) -> None:
        """Refuse a class with fewer images than rounds, and fewer candidates."""
        check_enough_images(images, spec, ipc)
        if self.candidates < ipc:
            raise ValueError(
                f"model.init_args.start.init_args.candidates: got {self.candidates}, expected at least one for each "
                f"of {ipc} rounds"
            )
        self._rounds = ipc

    def __str__(self) -> str:
        return f"herding, {self.candidates} candidates"

    def _choose(self, teacher: Teacher, images: LabelledImages, classes: range, seed: int, count: int) -> None:
        new = [label for label in classes if len(self._order.get(label, ())) < count]
        for label in tqdm(new, "Choosing start images", leave=False, unit="class", disable=len(new) < 2):
            positions = self._candidates(images.positions_of(label), seed, label)
            self._order[label] = positions[herding(teacher_features(teacher, images, positions), count)]

    def _candidates(self, positions: Tensor, seed: int, label: int) -> Tensor:
        if len(positions) <= self.candidates:
            return positions
        order = torch.randperm(len(positions), generator=generator_for(seed, "herding candidates", label))
        return positions[order[: self.candidates].sort().values]


class NoiseStart(Start):
    """Standard normal noise in normalised space, clipped to valid pixels."""

    def draw(self, teacher: Teacher, images: LabelledImages, round_index: int, classes: range, seed: int) -> Tensor:
        """Return the noise of a round."""
        return noise_start(teacher.spec, round_index, classes, seed)

    def sources(self, positions: Tensor, ipc: int, seed: int, label: int) -> Tensor:
        """Return none of them."""
        return positions[:0]

    def __str__(self) -> str:
        return "noise"


class Collage(Start):
    """Collages of the crops of real images that the teacher is surest of.

    Of each candidate image some random square crops are drawn, brought to the size of a patch and scored by the
    teacher's cross-entropy with their label, in a frame of zeros of the image size. Each image counts with its best
    crop; the f² best images make the collage of round 0, row by row, the next f² that of round 1. Where images run
    out, second-best crops follow.

    Args:
        factor: Patches a side, f; 1 takes the best crop as it is.
        crops: Random crops of each candidate.
        candidates: Training images of each class that are tried, at most, drawn at random.
        crop_scale: Smallest and largest area of a crop, as shares of the image.

    Raises:
        ValueError: If a number is out of range.

    References:
        Sun et al., "On the diversity and realism of distilled dataset: an efficient dataset distillation paradigm"
        (RDED), CVPR 2024, and its release, ``synthesize/utils.py``. SPEC.md section 3.
    """

    def __init__(
        self,
        factor: int = 2,
        crops: int = 5,
        candidates: int = 300,
        crop_scale: tuple[float, float] = (0.08, 1.0),
    ) -> None:
        for name, value in (("factor", factor), ("crops", crops), ("candidates", candidates)):
            if value < 1:
                raise ValueError(f"model.init_args.start.init_args.{name}: got {value}, expected at least 1")
        RandomCrops(0, crop_scale)  # says what is wrong with the scale
        self.factor = factor
        self.crops = crops
        self.candidates = candidates
        self.crop_scale = crop_scale

    def __str__(self) -> str:
        low, high = self.crop_scale
        return f"collage {self.factor}×{self.factor}, {self.crops} crops of {self.candidates}, scale {low:g}–{high:g}"

    def check(self, images: LabelledImages, spec: DatasetSpec, ipc: int) -> None:
        """Refuse a class with fewer crops than patches."""
        counts = torch.bincount(images.labels, minlength=spec.num_classes).clamp_max(self.candidates)
        scarcest = int(counts.argmin())
        crops, patches = int(counts[scarcest]) * self.crops, self.factor**2 * ipc
        if crops < patches:
            raise ValueError(
                f"class {spec.classes[scarcest]!r} has {crops} crops ({int(counts[scarcest])} candidate images, "
                f"{self.crops} of each), expected at least {patches} for {ipc} collage(s) of {self.factor**2}: lower "
                "--model.init_args.ipc, or raise crops and candidates of --model.init_args.start"
            )
        if self.factor > spec.image_size:
            raise ValueError(f"start: got a factor of {self.factor}, expected at most {spec.image_size} (pixels)")

    def sources(self, positions: Tensor, ipc: int, seed: int, label: int) -> Tensor:
        """Return the candidates; which of them are taken is the teacher's choice."""
        order = torch.randperm(len(positions), generator=generator_for(seed, "collage", label))
        return positions[order[: self.candidates]].sort().values

    def draw(self, teacher: Teacher, images: LabelledImages, round_index: int, classes: range, seed: int) -> Tensor:
        """Return the collages of a round."""
        bar = tqdm(classes, "Choosing crops", leave=False, unit="class", disable=len(classes) < 2)
        return torch.stack([self._collage(teacher, images, round_index, label, seed) for label in bar])

    @torch.no_grad()
    def _collage(self, teacher: Teacher, images: LabelledImages, round_index: int, label: int, seed: int) -> Tensor:
        """Return the collage of one class, (c, h, w)."""
        boxes = RandomCrops(seed_for(seed, "collage"), self.crop_scale, ratio=(1.0, 1.0))
        positions = self.sources(images.positions_of(label), round_index + 1, seed, label)
        losses = torch.cat(
            [self._losses(teacher, batch, label) for batch in self._read(images, positions, boxes)]
        ).reshape(self.crops, len(positions))
        first = round_index * self.factor**2
        chosen = best_crops(losses)[first : first + self.factor**2]
        patches = [images.read_crops([int(positions[image])], boxes, crop) for crop, image in chosen.tolist()]
        return tile(teacher.spec.normalise(torch.cat(patches)), self.factor)

    def _read(self, images: LabelledImages, positions: Tensor, boxes: RandomCrops) -> Iterator[Tensor]:
        """Yield all crops, the first of every image, then the second: (n, c, h, w) uint8, decoded on all cores."""
        wanted = [(crop, int(position)) for crop in range(self.crops) for position in positions]

        def decode(block: list[tuple[int, int]]) -> Tensor:
            return torch.cat([images.read_crops([position], boxes, crop) for crop, position in block])

        with ThreadPoolExecutor(os.cpu_count()) as pool:  # decoding releases the interpreter lock
            for start in range(0, len(wanted), _SCORED_AT_ONCE):
                batch = wanted[start : start + _SCORED_AT_ONCE]
                blocks = [batch[first : first + _READ_BLOCK] for first in range(0, len(batch), _READ_BLOCK)]
                yield torch.cat(list(pool.map(decode, blocks)))

    def _losses(self, teacher: Teacher, crops: Tensor, label: int) -> Tensor:
        """Return the teacher's cross-entropy of each crop (n, c, h, w) as it will be in a collage, (n,)."""
        device = next(teacher.network.parameters()).device
        size = crops.shape[2]
        side = -(-size // self.factor)
        patches = _resized(teacher.spec.normalise(crops.to(device)), side, side)
        before = (size - side) // 2
        framed = F.pad(patches, (before, size - side - before, before, size - side - before))
        labels = torch.full((len(crops),), label, device=device)
        return F.cross_entropy(teacher.network(framed).float(), labels, reduction="none").cpu()


def best_crops(losses: Tensor) -> Tensor:
    """Return crops, the best of every image by its loss, then the second best of every image, and so on.

    Args:
        losses: (crops, n) loss of each crop of each image.

    Returns:
        (crops · n, 2) numbers of crop and image.
    """
    by_image = losses.sort(dim=0, stable=True)
    ranked = by_image.values.sort(dim=1, stable=True)
    images = ranked.indices
    return torch.stack([by_image.indices.gather(1, images), images], dim=2).flatten(0, 1)


def tile(images: Tensor, factor: int) -> Tensor:
    """Return one image (c, h, w) of f² images (f², c, h, w), each shrunk into its place, row by row.

    Where f does not divide the size, the first rows and columns are one pixel larger.
    """
    height, width = images.shape[2:]
    heights, widths = (
        [side // factor + (place < side % factor) for place in range(factor)] for side in (height, width)
    )
    patches = iter(images)
    rows = [torch.cat([_resized(next(patches)[None], tall, wide)[0] for wide in widths], dim=2) for tall in heights]
    return torch.cat(rows, dim=1)


def _resized(images: Tensor, height: int, width: int) -> Tensor:
    if images.shape[2:] == (height, width):
        return images
    return F.interpolate(images, (height, width), mode="bilinear", antialias=True)


def chosen_start(start: StartName | Start, ipc: int) -> Start:
    """Return the start that a name stands for; ``auto`` is a collage for one image a class and real images for more.

    Raises:
        ValueError: If the name is unknown.
    """
    if isinstance(start, Start):
        return start
    starts: dict[str, type[Start]] = {
        "real": RealStart,
        "herding": HerdingStart,
        "noise": NoiseStart,
        "collage": Collage,
    }
    name = ("collage" if ipc == 1 else "real") if start == "auto" else start
    if name not in starts:
        raise ValueError(f"model.init_args.start: got {start!r}, expected auto, {', '.join(starts)} or a Start class")
    return starts[name]()
