"""The data module that every stage reads from: two splits and their spec."""

from __future__ import annotations

import hashlib
from abc import abstractmethod
from collections.abc import Sequence
from functools import cached_property
from typing import Literal

import lightning as L
import torch

from unidd_pl.data.images import ImageFiles, LabelledImages
from unidd_pl.specs import DatasetSpec

Split = Literal["train", "test"]

GIB = 2**30
_NORMALISATION_SAMPLE = 20_000  # images; more change the means by less than 0.1 %
_NORMALISATION_BATCH = 500


class ImageData(L.LightningDataModule):
    """A labelled image data set with a train and a test split.

    Args:
        name: Short name for messages and tags.
        mean: Mean per channel of the pixels in [0, 1]; computed from the training images where None.
        std: Standard deviation per channel of the pixels in [0, 1]; computed likewise.
        in_memory_gib: A split that decodes to at most this many GiB is held in memory; a larger one is
            decoded from its files each time.
        workers: Processes that decode what is not in memory.

    Raises:
        ValueError: If only one of mean and std is given.
    """

    def __init__(
        self,
        name: str,
        mean: Sequence[float] | None,
        std: Sequence[float] | None,
        in_memory_gib: float,
        workers: int,
    ) -> None:
        super().__init__()
        if (mean is None) != (std is None):
            raise ValueError(f"{name}: got only one of mean and std, expected both or neither")
        self.dataset_name = name
        self.in_memory_gib = in_memory_gib
        self.workers = workers
        self._mean = mean
        self._std = std

    @abstractmethod
    def read_split(self, split: Split) -> LabelledImages:
        """Return one split, reading it if need be."""

    @abstractmethod
    def read_classes(self) -> tuple[str, ...]:
        """Return the class names in the order of the labels."""

    @property
    def has_test(self) -> bool:
        """Whether there is a test split."""
        return True

    def workers_for(self, images: LabelledImages) -> int:
        """Return the worker processes that reading these images is worth: none where they are in memory."""
        return self.workers if isinstance(images, ImageFiles) else 0

    @cached_property
    def train(self) -> LabelledImages:
        """The training split."""
        return self._held(self.read_split("train"))

    @cached_property
    def test(self) -> LabelledImages:
        """The test split. Nothing is ever chosen on it."""
        return self._held(self.read_split("test"))

    @cached_property
    def spec(self) -> DatasetSpec:
        """Classes, image size and normalisation."""
        shape = self.train.read([0]).shape
        mean, std = self._mean, self._std
        if mean is None or std is None:
            mean, std = _channel_statistics(self.train)
        return DatasetSpec(
            name=self.dataset_name,
            classes=self.read_classes(),
            channels=shape[1],
            image_size=shape[2],
            mean=tuple(float(value) for value in mean),
            std=tuple(float(value) for value in std),
        )

    @cached_property
    def fingerprint(self) -> str:
        """Digest of the training images, their labels and the class names in order."""
        content = f"{self.train.fingerprint()} {self.read_classes()}"
        return hashlib.sha256(content.encode()).hexdigest()

    def _held(self, images: LabelledImages) -> LabelledImages:
        if isinstance(images, ImageFiles) and images.nbytes <= self.in_memory_gib * GIB:
            return images.decode_all()
        return images


def _channel_statistics(images: LabelledImages) -> tuple[list[float], list[float]]:
    """Return mean and standard deviation per channel of the pixels in [0, 1]."""
    step = max(1, len(images) // _NORMALISATION_SAMPLE)
    positions = list(range(0, len(images), step))
    count, total, squares = 0, torch.zeros(1), torch.zeros(1)
    for start in range(0, len(positions), _NORMALISATION_BATCH):
        pixels = images.read(positions[start : start + _NORMALISATION_BATCH]).double() / 255
        count += pixels.numel() // pixels.shape[1]
        total = total + pixels.sum(dim=(0, 2, 3))
        squares = squares + pixels.square().sum(dim=(0, 2, 3))
    mean = total / count
    std = (squares / count - mean.square()).clamp_min(0).sqrt()
    # A channel of one constant value has no scale of its own; 1/255 keeps it finite.
    return mean.tolist(), std.clamp_min(1 / 255).tolist()
