"""A hold-out of the training images, for choices that must not be made on the test images.

Legend: n images, c channels, h w space.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor

from unidd_pl.data.crops import RandomCrops
from unidd_pl.data.images import LabelledImages
from unidd_pl.data.module import ImageData, Split
from unidd_pl.specs import DatasetSpec


class SomeImages(LabelledImages):
    """Some images of a split, in a given order.

    Args:
        images: The split.
        positions: (n,) int64, the positions of the images within it.
    """

    def __init__(self, images: LabelledImages, positions: Tensor) -> None:
        super().__init__(images.labels[positions])
        self.images = images
        self.positions = positions

    def read(self, indices: Sequence[int]) -> Tensor:
        """Return the images at these positions of the selection, (n, c, h, w) uint8."""
        return self.images.read(self.positions[torch.as_tensor(indices)].tolist())

    def read_crops(self, indices: Sequence[int], crops: RandomCrops, epoch: int) -> Tensor:
        """Return random crops of the images at these positions of the selection, (n, c, h, w) uint8."""
        return self.images.read_crops(self.positions[torch.as_tensor(indices)].tolist(), crops, epoch)

    def fingerprint(self) -> str:
        """Return a digest of the split and the selection."""
        digest = hashlib.sha256(self.images.fingerprint().encode())
        digest.update(self.positions.numpy().data)
        return digest.hexdigest()


class HoldOutData(ImageData):
    """A data set whose test split is a part of its training images, taken out of the training split.

    The real test images are not touched. Classes and normalisation stay those of the whole data set, so that
    its teacher fits.

    Args:
        data: The data set.
        share: Share of each class's training images to hold out, the last ones; at least one image.

    Raises:
        ValueError: If the share is out of range or a class would have no image left.
    """

    def __init__(self, data: ImageData, share: float) -> None:
        if not 0 < share < 1:
            raise ValueError(f"holdout: got {share}, expected a share between 0 and 1, for example 0.1")
        spec = data.spec
        super().__init__(
            f"{data.dataset_name}, {share:g} held out", spec.mean, spec.std, data.in_memory_gib, data.workers
        )
        self._data = data
        self._positions: dict[Split, Tensor] = {}
        kept, held = [], []
        for label, name in enumerate(spec.classes):
            positions = data.train.positions_of(label)
            count = max(1, round(share * len(positions)))
            if count >= len(positions):
                raise ValueError(
                    f"class {name!r} has {len(positions)} training images, expected enough to hold out {count} and "
                    "keep some: lower --holdout"
                )
            kept.append(positions[:-count])
            held.append(positions[-count:])
        # Sorted, so that the training images keep the order that "the i-th image of a class" goes by.
        self._positions = {"train": torch.cat(kept).sort().values, "test": torch.cat(held).sort().values}

    @property
    def spec(self) -> DatasetSpec:  # the whole set's, not one computed from a part
        """Classes, image size and normalisation of the whole data set."""
        return self._data.spec

    def read_split(self, split: Split) -> LabelledImages:
        """Return what is left of the training images, or what is held out of them."""
        return SomeImages(self._data.train, self._positions[split])

    def read_classes(self) -> tuple[str, ...]:
        """Return the class names in the order of the labels."""
        return self._data.spec.classes

    def workers_for(self, images: LabelledImages) -> int:
        """Return the worker processes that reading these images is worth."""
        return self._data.workers_for(images.images if isinstance(images, SomeImages) else images)
