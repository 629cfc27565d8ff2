"""The 1,797 scanned digits that scikit-learn ships: real data that needs no download."""

from __future__ import annotations

from functools import cached_property

import torch
from torch import Tensor

from unidd_pl.data.images import TensorImages
from unidd_pl.data.module import ImageData, Split

_LEVELS = 16  # the scans have 17 grey levels, 0 to 16
_TEST_EVERY = 5  # every fifth image of a class is a test image


class DigitsData(ImageData):
    """Handwritten digits, 8×8 pixels, grayscale, ten classes, about 144 training images each.

    References:
        UCI "Optical Recognition of Handwritten Digits", test part, as in ``sklearn.datasets.load_digits``.
    """

    def __init__(self) -> None:
        super().__init__("digits", None, None, in_memory_gib=1.0, workers=0)

    def read_classes(self) -> tuple[str, ...]:
        """Return the names 0 to 9."""
        return tuple(str(digit) for digit in range(10))

    def read_split(self, split: Split) -> TensorImages:
        """Return one split; the same for every run."""
        images, labels = self._scans
        in_test = torch.zeros(len(labels), dtype=torch.bool)
        for digit in range(10):
            in_test[(labels == digit).nonzero().flatten()[_TEST_EVERY - 1 :: _TEST_EVERY]] = True
        chosen = in_test if split == "test" else ~in_test
        return TensorImages(images[chosen], labels[chosen])

    @cached_property
    def _scans(self) -> tuple[Tensor, Tensor]:
        from sklearn.datasets import load_digits  # noqa: PLC0415 - only this data set needs it

        scans = load_digits()
        grey = torch.from_numpy(scans.images) * (255 / _LEVELS)
        return grey.round().to(torch.uint8)[:, None], torch.from_numpy(scans.target).long()
