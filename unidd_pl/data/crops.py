"""Where to crop images of any size: boxes in pixels of the source, the same for every loader.

Legend: n images.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from unidd_pl.seeding import seed_for

Integers = NDArray[np.int64]

CUT = ("top", "left", "height", "width", "resized_height", "resized_width", "crop_top", "crop_left")
"""How an image becomes one of the image size, all in pixels: a box of the source, what it is resized to, and where in
that the result begins."""

_TRIES = 10  # boxes drawn before an image is cropped at its centre, as in torchvision's RandomResizedCrop
_DRAWS = 2 * _TRIES + 2  # numbers drawn for an image: area and aspect of each try, then the place
_STEP = np.uint64(0x9E3779B97F4A7C15)  # 2^64 divided by the golden ratio, odd
_MIX = ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB), (31, 1))  # shift and factor of each mixing step


@dataclass(frozen=True)
class RandomCrops:
    """Random boxes that are resized to the image size: another one for each image and epoch.

    A box is a pure function of (seed, epoch, position of the image in its split), so neither the loader nor
    the number of its workers changes it.

    Args:
        seed: Seed of the boxes.
        scale: Smallest and largest area of a box, as shares of the image.
        ratio: Smallest and largest aspect ratio (width / height) of a box.

    Raises:
        ValueError: If scale or ratio is out of range.
    """

    seed: int
    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)

    def __post_init__(self) -> None:
        if not 0 < self.scale[0] <= self.scale[1] <= 1:
            raise ValueError(f"crop scale: got {self.scale}, expected 0 < smallest ≤ largest ≤ 1")
        if not 0 < self.ratio[0] <= self.ratio[1]:
            raise ValueError(f"crop ratio: got {self.ratio}, expected 0 < smallest ≤ largest")

    def boxes(self, positions: Integers, widths: Integers, heights: Integers, epoch: int) -> Integers:
        """Return a box in each image.

        Args:
            positions: (n,) positions of the images in their split.
            widths: (n,) widths of the source images, pixels.
            heights: (n,) heights, pixels.
            epoch: Number of the epoch.

        Returns:
            (n, 4) top, left, height and width, pixels, inside the image.
        """
        key = seed_for(self.seed, "crops", epoch)
        box_widths, box_heights = self._widest(widths, heights)
        found = np.zeros(len(positions), dtype=bool)
        for attempt in range(_TRIES):
            area = widths * heights * _between(self.scale, uniforms(key, positions, 2 * attempt))
            logarithms = (math.log(self.ratio[0]), math.log(self.ratio[1]))
            aspect = np.exp(_between(logarithms, uniforms(key, positions, 2 * attempt + 1)))
            width = np.rint(np.sqrt(area * aspect)).astype(np.int64)
            height = np.rint(np.sqrt(area / aspect)).astype(np.int64)
            fits = ~found & (width >= 1) & (width <= widths) & (height >= 1) & (height <= heights)
            box_widths, box_heights = np.where(fits, width, box_widths), np.where(fits, height, box_heights)
            found |= fits
        tops, lefts = (heights - box_heights) // 2, (widths - box_widths) // 2
        random_tops = uniforms(key, positions, _DRAWS - 2) * (heights - box_heights + 1)
        random_lefts = uniforms(key, positions, _DRAWS - 1) * (widths - box_widths + 1)
        tops = np.where(found, random_tops.astype(np.int64), tops)
        lefts = np.where(found, random_lefts.astype(np.int64), lefts)
        return np.stack([tops, lefts, box_heights, box_widths], axis=1)

    def _widest(self, widths: Integers, heights: Integers) -> tuple[Integers, Integers]:
        """Return width and height of the largest box whose aspect is allowed, for images that no draw fits."""
        box_heights = np.minimum(heights, np.rint(widths / self.ratio[0]).astype(np.int64))
        box_widths = np.minimum(widths, np.rint(heights * self.ratio[1]).astype(np.int64))
        return box_widths, box_heights


def random_cuts(boxes: Integers, image_size: int) -> Integers:
    """Return the cuts that resize boxes to the image size.

    Args:
        boxes: (n, 4) top, left, height and width, pixels of the source.
        image_size: Height and width of the result, pixels.

    Returns:
        (n, 8) cuts, see `CUT`.
    """
    sizes, offsets = np.full((len(boxes), 2), image_size), np.zeros((len(boxes), 2), dtype=np.int64)
    return np.concatenate([boxes, sizes, offsets], axis=1)


def centre_cuts(widths: Integers, heights: Integers, image_size: int, resize: int) -> Integers:
    """Return the cuts that resize the shorter side and crop at the centre, as `ImageFiles` does.

    Args:
        widths: (n,) widths of the source images, pixels.
        heights: (n,) heights, pixels.
        image_size: Height and width of the result, pixels.
        resize: Shorter side before the crop, pixels.

    Returns:
        (n, 8) cuts, see `CUT`.
    """
    sources = np.stack([heights, widths], axis=1)
    scales = resize / sources.min(axis=1, keepdims=True)
    sizes = np.maximum(image_size, np.rint(sources * scales).astype(np.int64))
    return np.concatenate([np.zeros_like(sources), sources, sizes, (sizes - image_size) // 2], axis=1)


def uniforms(key: int, positions: Integers, draw: int) -> NDArray[np.float64]:
    """Return one number in [0, 1) for each position: a hash of (key, position, draw), not a state that moves on.

    References:
        Steele, Lea, Flood, "Fast splittable pseudorandom number generators" (2014): the output function of
        SplitMix64.
    """
    counters = positions.astype(np.uint64) * np.uint64(_DRAWS) + np.uint64(draw + 1)
    bits = counters * _STEP + np.asarray([key], dtype=np.uint64)  # arrays of uint64 wrap around, as intended
    for shift, factor in _MIX:
        bits = (bits ^ (bits >> np.uint64(shift))) * np.uint64(factor)
    return (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _between(bounds: tuple[float, float], share: NDArray[np.float64]) -> NDArray[np.float64]:
    return bounds[0] + (bounds[1] - bounds[0]) * share
