"""Differentiable Siamese Augmentation (DSA), the augmentation of evaluations with hard labels.

Legend: n images, c channels, h w space. Images are (n, c, h, w) floating point on any device, normalised; as in
augmentation.py the randomness comes from a generator and the gradient with respect to the images flows.
Parameters are those of the method's release, drawn anew for each image; the strategy is drawn for the batch.

References:
    Zhao and Bilen, Dataset Condensation with Differentiable Siamese Augmentation, ICML 2021 (arXiv 2102.08259);
    SPEC.md section 4.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from unidd_pl.augmentation import random_flip

Strategy = Literal["color", "crop", "cutout", "flip", "scale", "rotate"]
STRATEGIES: tuple[Strategy, ...] = get_args(Strategy)

BRIGHTNESS = 1.0  # width of the uniform shift, normalised units
SATURATION = 2.0  # largest factor on the distance from grey
CONTRAST = 0.5  # largest change of the factor on the distance from the image's mean
CROP_SHARE = 0.125  # largest shift, as a share of the side
CUTOUT_SHARE = 0.5  # side of the box that is blanked, as a share of the image's
SCALE_RATIO = 1.2  # largest factor on a side, and the inverse of the smallest
ROTATION = 15.0  # degrees, the largest


def siamese_augment(images: Tensor, generator: torch.Generator, strategies: Sequence[Strategy]) -> Tensor:
    """Apply one strategy, drawn for the batch, with parameters drawn for each image.

    Args:
        images: (n, c, h, w), normalised.
        generator: Source of the randomness.
        strategies: What to choose from.

    Returns:
        (n, c, h, w); what comes from outside an image is 0, the mean colour of the data set.

    Raises:
        ValueError: If a strategy is unknown or none is given.
    """
    unknown = [name for name in strategies if name not in STRATEGIES]
    if unknown or not strategies:
        raise ValueError(f"got the strategies {list(strategies)}, expected some of {STRATEGIES}")
    chosen = int(torch.randint(len(strategies), (1,), generator=generator, device=generator.device))
    return _TRANSFORMS[strategies[chosen]](images, generator)


def _color(images: Tensor, generator: torch.Generator) -> Tensor:
    shift, saturation, contrast = (_uniform(images, generator) for _ in range(3))
    images = images + BRIGHTNESS * (shift - 0.5)
    grey = images.mean(dim=1, keepdim=True)
    images = grey + SATURATION * saturation * (images - grey)
    mean = images.mean(dim=(1, 2, 3), keepdim=True)
    return mean + (contrast + CONTRAST) * (images - mean)


def _crop(images: Tensor, generator: torch.Generator) -> Tensor:
    """Shift each image by whole pixels."""
    height, width = images.shape[-2:]
    down, right = (
        ((2 * _uniform(images, generator) - 1) * (CROP_SHARE * side + 0.5)).round().clamp(-most, most)
        for side, most in ((height, round(CROP_SHARE * height)), (width, round(CROP_SHARE * width)))
    )
    return _affine(images, shift=(2 * right / width, 2 * down / height), mode="nearest")


def _cutout(images: Tensor, generator: torch.Generator) -> Tensor:
    height, width = images.shape[-2:]
    keep = torch.zeros_like(images[:, :1], dtype=torch.bool)
    for side, positions in ((height, torch.arange(height)[:, None]), (width, torch.arange(width)[None, :])):
        length = round(CUTOUT_SHARE * side)
        first = (_uniform(images, generator) * (side + 1)).floor() - length // 2
        position = positions.to(images)
        keep = keep | (position < first) | (position >= first + length)
    return images * keep


def _scale(images: Tensor, generator: torch.Generator) -> Tensor:
    low = 1 / SCALE_RATIO
    factors = [low + (SCALE_RATIO - low) * _uniform(images, generator) for _ in range(2)]
    return _affine(images, scale=(factors[0], factors[1]))


def _rotate(images: Tensor, generator: torch.Generator) -> Tensor:
    angle = (2 * _uniform(images, generator) - 1) * math.radians(ROTATION)
    return _affine(images, angle=angle)


_TRANSFORMS: dict[Strategy, Callable[[Tensor, torch.Generator], Tensor]] = {
    "color": _color,
    "crop": _crop,
    "cutout": _cutout,
    "flip": random_flip,
    "scale": _scale,
    "rotate": _rotate,
}


def _uniform(images: Tensor, generator: torch.Generator) -> Tensor:
    """Draw a number in [0, 1) for each image, (n, 1, 1, 1)."""
    drawn = torch.rand(len(images), 1, 1, 1, generator=generator, device=generator.device)
    return drawn.to(images)


def _affine(
    images: Tensor,
    *,
    scale: tuple[Tensor, Tensor] | None = None,
    angle: Tensor | None = None,
    shift: tuple[Tensor, Tensor] | None = None,
    mode: str = "bilinear",
) -> Tensor:
    """Sample each image where an affine map sends its pixels, horizontal before vertical; outside is 0."""
    one = torch.ones(len(images), device=images.device, dtype=images.dtype)
    zero = torch.zeros_like(one)
    across, down = (factor.flatten() for factor in scale) if scale else (one, one)
    turn = zero if angle is None else angle.flatten()
    right, below = (distance.flatten() for distance in shift) if shift else (zero, zero)
    theta = torch.stack([across * turn.cos(), -turn.sin(), right, turn.sin(), down * turn.cos(), below], dim=1)
    grid = F.affine_grid(theta.view(-1, 2, 3), list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, mode=mode, padding_mode="zeros", align_corners=False)
