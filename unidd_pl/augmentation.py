"""Random augmentations of a batch of images, as pure functions of the images and a generator.

Legend: n images, c channels, h w space. Images are (n, c, h, w) floating point on any device, in [0, 1] or
normalised (where it matters, the function says so). The gradient with respect to them flows through every
function, and none changes its input. CutMix and shuffled patches are in mixing.py.

All randomness is drawn from `generator` on its own device and then moved, so that a CPU generator gives the
same draw for images on any device. A shared crop or flip and the roll do not depend on n: ranks that hold
different rows and equal generators draw the same.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

CROP_TRIES = 10  # torchvision's RandomResizedCrop gives up after as many boxes that do not fit


def draw_crop_boxes(
    count: int,
    height: int,
    width: int,
    generator: torch.Generator,
    *,
    scale: tuple[float, float] = (0.08, 1.0),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
) -> Tensor:
    """Draw crop boxes with the distribution of torchvision's RandomResizedCrop.

    The area is uniform in `scale` and the aspect ratio log-uniform in `ratio`; the first of 10 tries that
    fits is placed uniformly, and where none fits the box is the largest central one within `ratio`.

    Args:
        count: Number of boxes.
        height: Height of the image in pixels.
        width: Width of the image in pixels.
        generator: Source of the randomness.
        scale: Smallest and largest area of a box, as a fraction of the image.
        ratio: Smallest and largest aspect ratio (width / height) of a box.

    Returns:
        (count, 4) int64 in pixels: top, left, height, width of each box; on the generator's device.

    Raises:
        ValueError: If `scale` or `ratio` is out of range or in the wrong order.
    """
    _check_ranges(scale, ratio)
    # One draw of a fixed size: how far the generator moves does not depend on which tries fit.
    uniform = draw_uniform((2 * CROP_TRIES + 2, count), generator)
    area = height * width * (scale[0] + (scale[1] - scale[0]) * uniform[:CROP_TRIES])
    # A power of a uniform number is log-uniform. Powers and rsqrt stand for exp and sqrt, whose MKL
    # versions start threads even for these few numbers: on two busy cores 0.2 ms become 16 ms.
    aspect = ratio[0] * (ratio[1] / ratio[0]) ** uniform[CROP_TRIES:-2]
    exact_heights = (aspect / area).rsqrt()
    heights, widths = exact_heights.round(), (exact_heights * aspect).round()
    fits = (heights > 0) & (heights <= height) & (widths > 0) & (widths <= width)

    # argmax returns the first maximum, hence the first try that fits (or try 0, replaced just below).
    first = fits.byte().argmax(dim=0, keepdim=True)
    fitted = torch.stack([heights.gather(0, first)[0], widths.gather(0, first)[0]])
    central = fitted.new_tensor(_largest_box(height, width, ratio))[:, None]
    some_fit = fits.any(dim=0)
    size = torch.where(some_fit, fitted, central)
    room = fitted.new_tensor([[height], [width]]) - size
    corner = torch.where(some_fit, uniform[-2:] * (room + 1), room / 2).floor()
    return torch.cat([corner, size]).long().t()


def draw_shared_box(
    height: int,
    width: int,
    generator: torch.Generator,
    *,
    scale: tuple[float, float] = (0.08, 1.0),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
) -> tuple[int, int, int, int]:
    """Draw the one box that ``draw_crop_boxes(1, …)`` draws, in plain numbers.

    Some thirty tensors of one number take ten times as long, in every step of a distillation.

    Returns:
        Top, left, height and width in pixels.

    Raises:
        ValueError: If `scale` or `ratio` is out of range or in the wrong order.
    """
    _check_ranges(scale, ratio)
    uniform = draw_uniform((2 * CROP_TRIES + 2,), generator).tolist()
    size, fits = _largest_box(height, width, ratio), False
    for share, turn in zip(uniform[:CROP_TRIES], uniform[CROP_TRIES:-2], strict=True):
        area = height * width * (scale[0] + (scale[1] - scale[0]) * share)
        aspect = ratio[0] * (ratio[1] / ratio[0]) ** turn
        exact_height = (area / aspect) ** 0.5
        tried = round(exact_height), round(exact_height * aspect)
        fits = 0 < tried[0] <= height and 0 < tried[1] <= width
        if fits:
            size = tried
            break
    room = height - size[0], width - size[1]
    top, left = (int(u * (free + 1)) if fits else free // 2 for u, free in zip(uniform[-2:], room, strict=True))
    return top, left, *size


def random_resized_crop(
    images: Tensor,
    generator: torch.Generator,
    *,
    scale: tuple[float, float] = (0.08, 1.0),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
    shared: bool = False,
) -> Tensor:
    """Crop a random box and resize it back to the input size, bilinearly.

    Args:
        images: (n, c, h, w), floating point.
        generator: Source of the randomness.
        scale: Smallest and largest area of a box, as a fraction of the image.
        ratio: Smallest and largest aspect ratio (width / height) of a box.
        shared: One box for the batch instead of one for each image.

    Returns:
        (n, c, h, w) in the pixel space of `images`; the gradient flows.

    Raises:
        ValueError: If `scale` or `ratio` is out of range or in the wrong order.
    """
    count, _, height, width = images.shape
    if not shared:
        return crop_and_resize(images, draw_crop_boxes(count, height, width, generator, scale=scale, ratio=ratio))
    top, left, box_height, box_width = draw_shared_box(height, width, generator, scale=scale, ratio=ratio)
    crop = images[:, :, top : top + box_height, left : left + box_width]
    # No antialiasing: a crop is never larger than the image, so this only enlarges.
    return F.interpolate(crop, size=(height, width), mode="bilinear", align_corners=False)


def crop_and_resize(images: Tensor, boxes: Tensor) -> Tensor:
    """Cut one box out of each image and enlarge it to the input size, the whole batch at once.

    Equal to cutting each box and calling `F.interpolate(mode="bilinear", align_corners=False)` on it.

    Args:
        images: (n, c, h, w), floating point.
        boxes: (n, 4) integers in pixels: top, left, height, width, inside the image.

    Returns:
        (n, c, h, w) in the pixel space of `images`; the gradient flows to the images.
    """
    count, _, height, width = images.shape
    # Positions in half precision would be off by a visible fraction of a pixel.
    dtype = torch.promote_types(images.dtype, torch.float32)
    top, left, box_height, box_width = boxes.to(images.device, dtype).unbind(dim=1)
    rows = _sample_positions(top, box_height, height)[:, :, None].expand(count, height, width)
    columns = _sample_positions(left, box_width, width)[:, None, :].expand(count, height, width)
    grid = torch.stack([columns, rows], dim=-1)
    # Rounding can put a sample a hair outside the image: "border" keeps it from fading to zero there.
    resized = F.grid_sample(images.to(dtype), grid, mode="bilinear", padding_mode="border", align_corners=True)
    return resized.to(images.dtype)


def random_flip(images: Tensor, generator: torch.Generator, *, shared: bool = False) -> Tensor:
    """Flip left and right with probability one half.

    Args:
        images: (n, c, h, w).
        generator: Source of the randomness.
        shared: One decision for the batch instead of one for each image.

    Returns:
        (n, c, h, w) in the pixel space of `images`; the gradient flows. A shared draw that does not
        flip returns `images` itself.
    """
    flipped = draw_uniform((1 if shared else len(images),), generator) < 0.5
    if shared:
        return images.flip(-1) if flipped.tolist()[0] else images
    return torch.where(flipped.to(images.device)[:, None, None, None], images.flip(-1), images)


def random_roll(images: Tensor, generator: torch.Generator, *, max_shift: int = 4) -> Tensor:
    """Shift the batch down and to the right, wrapping around at the border.

    Args:
        images: (n, c, h, w).
        generator: Source of the randomness.
        max_shift: Largest shift in pixels; both shifts are uniform in 0..max_shift and shared by the batch.

    Returns:
        (n, c, h, w) in the pixel space of `images`; the gradient flows.

    Raises:
        ValueError: If `max_shift` is negative.
    """
    if max_shift < 0:
        raise ValueError(f"got max_shift {max_shift}, expected at least 0")
    shifts = torch.randint(max_shift + 1, (2,), generator=generator, device=generator.device)
    down, right = shifts.tolist()
    return images.roll((down, right), dims=(-2, -1))


def random_shared_view(
    images: Tensor, generator: torch.Generator, *, scale: tuple[float, float], flip: bool, max_shift: int
) -> Tensor:
    """Crop, perhaps flip, and roll the batch, with one draw for all of it: A of a distillation.

    Args:
        images: (n, c, h, w), floating point.
        generator: Source of the randomness; the draw does not depend on n.
        scale: Smallest and largest area of the crop, as a fraction of the image.
        flip: Whether to flip at all.
        max_shift: Largest shift in pixels.

    Returns:
        (n, c, h, w) in the pixel space of `images`; the gradient flows.

    References:
        SPEC.md section 3.
    """
    images = random_resized_crop(images, generator, scale=scale, shared=True)
    if flip:
        images = random_flip(images, generator, shared=True)
    return random_roll(images, generator, max_shift=max_shift)


def random_pad_crop(images: Tensor, generator: torch.Generator, *, padding: int = 4) -> Tensor:
    """Pad each image with zeros and crop it back to its size at a random place, without interpolation.

    Args:
        images: (n, c, h, w). The padding is black for pixels in [0, 1] and the mean colour of the data set
            for normalised ones.
        generator: Source of the randomness.
        padding: Width of the border in pixels; both coordinates of the crop's corner are uniform in
            0..2·padding.

    Returns:
        (n, c, h, w) in the pixel space of `images`; the gradient flows.

    Raises:
        ValueError: If `padding` is negative.
    """
    if padding < 0:
        raise ValueError(f"got padding {padding}, expected at least 0")
    count, channels, height, width = images.shape
    corners = torch.randint(2 * padding + 1, (2, count, 1), generator=generator, device=generator.device)
    top, left = corners.to(images.device)
    rows = top + torch.arange(height, device=images.device)
    columns = left + torch.arange(width, device=images.device)
    padded = F.pad(images, (padding, padding, padding, padding))
    # Flat pixel numbers and one gather: its backward is several times faster than that of indexing.
    pixels = (rows[:, :, None] * padded.shape[-1] + columns[:, None, :]).view(count, 1, height * width)
    return padded.flatten(2).gather(2, pixels.expand(-1, channels, -1)).view(images.shape)


def draw_uniform(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Draw float64 numbers from [0, 1) on the generator's device."""
    return torch.rand(shape, generator=generator, device=generator.device, dtype=torch.float64)


def _check_ranges(scale: tuple[float, float], ratio: tuple[float, float]) -> None:
    if not 0 < scale[0] <= scale[1] <= 1:
        raise ValueError(f"got scale {scale}, expected 0 < smallest <= largest <= 1")
    if not 0 < ratio[0] <= ratio[1] < math.inf:
        raise ValueError(f"got ratio {ratio}, expected 0 < smallest <= largest")


def _largest_box(height: int, width: int, ratio: tuple[float, float]) -> tuple[int, int]:
    """Return height and width of the largest box whose aspect ratio (width / height) is in `ratio`."""
    if width < ratio[0] * height:
        return max(round(width / ratio[0]), 1), width
    if width > ratio[1] * height:
        return height, max(round(height * ratio[1]), 1)
    return height, width


def _sample_positions(start: Tensor, length: Tensor, size: int) -> Tensor:
    """Return where `size` new pixels that cover a box side are sampled.

    Args:
        start: (n,) first pixel of each box.
        length: (n,) number of pixels of each box.
        size: Pixels of the image, before and after.

    Returns:
        (n, size) positions, in units where the centres of the image's border pixels are at ±1.
    """
    centres = (torch.arange(size, device=start.device, dtype=start.dtype) + 0.5) / size
    inside = (length[:, None] * centres - 0.5).clamp(min=0)
    pixels = start[:, None] + torch.minimum(
        inside, length[:, None] - 1
    )  # samples repeat the edge of the box, not of the image
    return pixels * (2 / max(size - 1, 1)) - 1
