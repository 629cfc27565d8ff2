"""Images mixed with each other (CutMix) or within themselves (shuffled patches).

Legend: n images, c channels, h w space. As in augmentation.py, images are (n, c, h, w) floating point on any device,
the randomness is drawn from `generator` on its own device, the gradient flows to the images, and no function changes
its input. What is drawn and what is done with it are apart, so that the same draw can be made again later.
"""

from __future__ import annotations

import itertools
import math

import torch
from torch import Tensor

from unidd_pl.augmentation import draw_uniform


def cutmix(images: Tensor, generator: torch.Generator, *, alpha: float = 1.0) -> Tensor:
    """Paste one box of every image onto another image of the batch.

    The box and the permutation are shared by the batch: ranks with equal generators draw the same box. There are
    no mixed labels: the teacher labels the mixed image.

    Args:
        images: (n, c, h, w).
        generator: Source of the randomness.
        alpha: Parameter of the Beta distribution, see `draw_cutmix_boxes`.

    Returns:
        (n, c, h, w) mixed images in the pixel space of `images`; the gradient flows to both images of a pair.

    Raises:
        ValueError: If `alpha` is not positive and finite.

    References:
        Yun et al., CutMix, ICCV 2019; SPEC.md section 4.
    """
    boxes = draw_cutmix_boxes(1, images.shape[-2], images.shape[-1], generator, alpha=alpha)
    top, left, bottom, right = boxes[0].tolist()
    order = torch.randperm(len(images), generator=generator, device=generator.device).to(images.device)
    mixed = images.clone()
    mixed[:, :, top:bottom, left:right] = images[:, :, top:bottom, left:right][order]
    return mixed


def draw_cutmix_boxes(count: int, height: int, width: int, generator: torch.Generator, *, alpha: float = 1.0) -> Tensor:
    """Draw the boxes that CutMix replaces.

    With λ ~ Beta(alpha, alpha), the sides of a box are √(1−λ) of the image's, its centre is uniform over the
    image, and what lies outside is cut off.

    Args:
        count: Number of boxes.
        height: Height of the image in pixels.
        width: Width of the image in pixels.
        generator: Source of the randomness.
        alpha: Parameter of the Beta distribution; 1 is uniform.

    Returns:
        (count, 4) int64 in pixels: top, left, bottom, right, the last two exclusive; on the generator's device.

    Raises:
        ValueError: If `alpha` is not positive and finite.
    """
    if not 0 < alpha < math.inf:
        raise ValueError(f"got alpha {alpha}, expected a positive number")
    # Dirichlet(α, α) is (λ, 1−λ) with λ ~ Beta(α, α). The private name is the one torch.distributions calls;
    # no public function draws a Beta variable from a generator.
    concentration = torch.full((count, 2), alpha, dtype=torch.float64, device=generator.device)
    # rsqrt for the reason given in `draw_crop_boxes`.
    shares = torch._sample_dirichlet(concentration, generator=generator)[:, 1:].rsqrt().reciprocal()
    sides = shares.new_tensor([[height, width]])
    middles = (draw_uniform((2, count), generator).t() * sides).floor()
    halves = ((sides * shares).floor() / 2).floor()
    return torch.cat([(middles - halves).clamp(min=0), torch.minimum(middles + halves, sides)], dim=1).long()


def paste_boxes(images: Tensor, others: Tensor, boxes: Tensor) -> Tensor:
    """Replace a box of each image by that of another.

    Args:
        images: (n, c, h, w).
        others: (n, c, h, w), what is pasted.
        boxes: (n, 4) integers as `draw_cutmix_boxes` draws them.

    Returns:
        (n, c, h, w); the gradient flows to both.
    """
    top, left, bottom, right = boxes.to(images.device)[:, :, None].unbind(dim=1)
    rows, columns = (torch.arange(side, device=images.device) for side in images.shape[-2:])
    in_rows, in_columns = (rows >= top) & (rows < bottom), (columns >= left) & (columns < right)
    return torch.where((in_rows[:, :, None] & in_columns[:, None, :])[:, None], others, images)


def shuffle_patches(images: Tensor, generator: torch.Generator, *, grid: int = 2) -> Tensor:
    """Cut each image into `grid` rows and columns of patches and put both in a random order.

    Args:
        images: (n, c, h, w) with sides of at least `grid` pixels.
        generator: Source of the randomness.
        grid: Patches along a side; a side that does not divide leaves its last patch larger.

    Returns:
        (n, c, h, w) in the pixel space of `images`; the gradient flows.

    References:
        Sun et al., RDED, CVPR 2024 (arXiv 2312.03526); SPEC.md section 4.
    """
    return reorder_patches(images, draw_patch_orders(len(images), generator, grid=grid))


def draw_patch_orders(count: int, generator: torch.Generator, *, grid: int = 2) -> Tensor:
    """Draw the orders of the columns and of the rows of patches: (count, 2, grid) int64, on the generator's device."""
    draws = [torch.rand(count, grid, generator=generator, device=generator.device) for _ in range(2)]
    return torch.stack(draws, dim=1).argsort(dim=2)


def reorder_patches(images: Tensor, orders: Tensor) -> Tensor:
    """Put columns and rows of patches in given orders.

    Args:
        images: (n, c, h, w) with sides of at least as many pixels as patches.
        orders: (n, 2, grid) int64 as `draw_patch_orders` draws them.

    Returns:
        (n, c, h, w); the gradient flows.
    """
    grid = orders.shape[2]
    for axis, dim in enumerate((-1, -2)):
        side = images.shape[dim]
        bounds = [*range(0, grid * (side // grid), side // grid), side]
        strips = [list(range(first, after)) for first, after in itertools.pairwise(bounds)]
        order = torch.tensor([[pixel for strip in one for pixel in strips[strip]] for one in orders[:, axis].tolist()])
        shape = [len(images), 1, 1, side] if dim == -1 else [len(images), 1, side, 1]
        images = images.gather(dim, order.view(shape).to(images.device).expand_as(images))
    return images
