"""From pixels and labels of any origin to one checked `DistilledSet`."""

from __future__ import annotations

from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from unidd_pl.distilled import DistilledSet
from unidd_pl.exchange.classes import some
from unidd_pl.exchange.description import SetFacts
from unidd_pl.image_files import open_image
from unidd_pl.specs import DatasetSpec

GIB = 2**30
MAX_GIB = 64  # a larger claim is a damaged or hostile file: ImageNet-1K at 300 images per class and 224 px is 42 GiB
_LEVEL = 0.5 / 255  # pixels in [0, 1] that far beyond black or white are rounding, not another normalisation
_MODES = {1: "L", 3: "RGB"}


def assemble(
    images: Tensor, labels: Tensor, spec: DatasetSpec, facts: SetFacts, source: dict[str, Any]
) -> DistilledSet:
    """Make the set of a foreign source, complete and checked.

    Args:
        images: (n, c, h, w) uint8 in 0-255 or float32 in [0, 1].
        labels: (n,) int64 in the data's order.
        spec: The data's classes, size and normalisation.
        facts: What is said of the set.
        source: What it was read from, for the manifest.

    Raises:
        ValueError: If a class has no image, or what `DistilledSet` refuses.
    """
    counts = torch.bincount(labels, minlength=spec.num_classes).tolist()
    if empty := [name for name, count in zip(spec.classes, counts, strict=False) if count == 0]:
        raise ValueError(
            f"{source['path']}: got no image of the class {some(empty)}, expected at least one of each of the "
            f"{spec.num_classes} classes of {spec.name}: add them, or evaluate on the data of its classes"
        )
    name = facts.name or Path(source["path"]).stem
    return DistilledSet(images, labels, spec, {"method": name, "source": source})


def check_shape(shape: Sequence[int], spec: DatasetSpec, where: str) -> None:
    """Refuse images of another form than the data's before any memory is taken for them.

    Args:
        shape: (n, c, h, w) or, as an array of pictures, (n, h, w, c).
        spec: The data's channels and size.
        where: The set, for messages.

    Raises:
        ValueError: If channels or size differ, or the images would need an impossible amount of memory.
    """
    c, h, w = spec.image_shape
    if len(shape) != 4 or shape[0] < 1 or tuple(shape[1:]) not in ((c, h, w), (h, w, c)):
        channels = {shape[1], shape[3]} if len(shape) == 4 else set()
        what = f"{c} channel(s)" if channels and c not in channels else f"{h}×{w} pixels"
        raise ValueError(
            f"{where}: got images of shape {tuple(shape)}, expected (n, {c}, {h}, {w}) with {what}, as "
            f"{spec.name} has: "
            "convert or resize them, or give the data they were made from"
        )
    if shape[0] * c * h * w > MAX_GIB * GIB:
        raise ValueError(f"{where}: got {shape[0]} images, expected a set below {MAX_GIB} GiB: check the file")


def channels_first(images: Tensor, spec: DatasetSpec) -> Tensor:
    """Return images (n, c, h, w) of either order of axes."""
    return images if tuple(images.shape[1:]) == spec.image_shape else images.permute(0, 3, 1, 2)


def to_pixels_of(images: Tensor, spec: DatasetSpec, facts: SetFacts, where: str) -> Tensor:
    """Turn a tensor into what a distilled set stores, as its description says.

    Args:
        images: (n, c, h, w), uint8, integers in 0-255 or floating point.
        spec: The data; its normalisation is meant where the description names none.
        facts: What the pixels are.
        where: The set, for messages.

    Returns:
        (n, c, h, w) uint8 in 0-255, or float32 in [0, 1]: floating-point pixels keep their precision.

    Raises:
        ValueError: If values are not finite, or lie beyond black and white for the normalisation given.
    """
    narrow = images.is_floating_point() and images.element_size() < 2  # eight bits: torch computes nothing with them
    if images.dtype == torch.bool or images.is_complex() or narrow:
        raise ValueError(f"{where}: got {images.dtype} images, expected uint8 in 0-255 or floating point: convert them")
    low, high = (float(bound) for bound in images.aminmax())
    if not images.is_floating_point():
        if facts.pixels not in (None, "0-255") or facts.mean is not None or low < 0 or high > 255:
            raise ValueError(
                f"{where}: got {images.dtype} pixels from {low:g} to {high:g}, expected 0 to 255 and no normalisation: "
                "leave --set.pixels, --set.mean and --set.std out, or save the normalised pixels as floats"
            )
        return images.to(torch.uint8)
    if not (low > -torch.inf and high < torch.inf):  # False for NaN too
        raise ValueError(
            f"{where}: got NaN or infinite pixels (from {low} to {high}), expected finite values: the "
            "distillation that "
            "made them diverged, or the file is damaged"
        )
    kind = facts.pixels or ("normalised" if facts.mean is not None else None)
    _check_plausible(kind, low, high, spec, facts, where)
    return _in_range(_unit_pixels(images, kind, spec, facts), facts.clip, kind, where)


def _check_plausible(kind: str | None, low: float, high: float, spec: DatasetSpec, facts: SetFacts, where: str) -> None:
    got = f"{where}: got floating-point pixels from {low:.4g} to {high:.4g}"
    if kind is None:
        raise ValueError(
            f"{got} without their normalisation, expected to know it: say --set.pixels 0-1, --set.pixels 0-255, or "
            "--set.mean and --set.std (--set.pixels normalised for the data's own)"
        )
    looks = low >= 0 and high <= 1 + _LEVEL
    if looks and (kind == "0-255" or (kind == "normalised" and min(facts.mean or spec.mean) > _LEVEL)):
        raise ValueError(f"{got} for --set.pixels {kind}, expected a wider range: these look like pixels in 0-1")


def _unit_pixels(images: Tensor, kind: str | None, spec: DatasetSpec, facts: SetFacts) -> Tensor:
    if kind != "normalised":
        return images.float() / (255 if kind == "0-255" else 1)
    mean, std = facts.mean or spec.mean, facts.std or spec.std
    made_with = DatasetSpec(spec.name, spec.classes, spec.channels, spec.image_size, mean, std)
    return made_with.denormalise(images.float())


def _in_range(unit: Tensor, clip: bool, kind: str | None, where: str) -> Tensor:
    beyond = (unit < -_LEVEL) | (unit > 1 + _LEVEL)
    if not clip and bool(beyond.any()):
        low, high = (float(bound) for bound in unit.aminmax())
        raise ValueError(
            f"{where}: got pixels from {low:.3f} to {high:.3f} once brought to [0, 1] from --set.pixels {kind} "
            f"({100 * float(beyond.float().mean()):.2f} % beyond), expected black to white: give the "
            "normalisation they were "
            "made with (--set.pixels, --set.mean, --set.std), or --set.clip true where the method does not keep to "
            "the range, which changes the set"
        )
    return unit.clamp(0, 1)


def decode(source: Path | bytes, spec: DatasetSpec, where: str) -> Tensor:
    """Decode one picture of exactly the data's size and colour.

    Args:
        source: The file, or its bytes.
        spec: The data's channels and size.
        where: The picture, for messages.

    Returns:
        (c, h, w) uint8.

    Raises:
        ValueError: If it is truncated, no picture, or of another size or colour.
    """
    with _opened(source, where) as picture:
        _check_form(picture, spec, where)  # from the header: nothing is decoded yet
        try:
            pixels = np.array(picture.convert(_MODES[spec.channels]))
        except Exception as error:  # as in _opened
            raise _unreadable(where, error) from error
    return torch.from_numpy(pixels.reshape(*pixels.shape[:2], spec.channels)).permute(2, 0, 1)


def _opened(source: Path | bytes, where: str) -> Image.Image:
    try:
        return open_image(BytesIO(source) if isinstance(source, bytes) else source)
    except Exception as error:  # whatever the bytes of a foreign file make Pillow's many decoders stumble over
        raise _unreadable(where, error) from error


def _unreadable(where: str, error: Exception) -> ValueError:
    return ValueError(
        f"{where}: cannot read the picture ({error}), expected a whole one: it is truncated or damaged; copy it again"
    )


def _check_form(picture: Image.Image, spec: DatasetSpec, where: str) -> None:
    size = (spec.image_size, spec.image_size)
    if picture.size != size:
        raise ValueError(
            f"{where}: got {picture.size[0]}×{picture.size[1]} pixels, expected {size[0]}×{size[1]} as "
            f"{spec.name} has: "
            "resize the set, or give the data at its size"
        )
    # A grey photograph among colour ones is three equal channels; the reverse, or transparency, would lose something.
    fitting = {1: ("L",), 3: ("RGB", "L")}[spec.channels]
    if picture.mode not in fitting:
        raise ValueError(
            f"{where}: got a picture of mode {picture.mode} ({len(picture.getbands())} channels), expected "
            f"{spec.channels} channel(s) ({_MODES[spec.channels]}) as {spec.name} has: convert the set"
        )


def stacked(pictures: Sequence[Tensor], spec: DatasetSpec, where: str) -> Tensor:
    """Return decoded pictures as one tensor (n, c, h, w).

    Raises:
        ValueError: If there are none.
    """
    if not pictures:
        raise ValueError(f"{where}: got no pictures, expected those of a distilled set of {spec.name}: check the path")
    return torch.stack(list(pictures))


def encode(pixels: Tensor) -> bytes:
    """Return pixels (c, h, w), uint8, as the bytes of a PNG file, which keeps them exactly."""
    array = np.ascontiguousarray(pixels.permute(1, 2, 0).numpy())
    buffer = BytesIO()
    Image.fromarray(array.squeeze(2) if array.shape[2] == 1 else array).save(buffer, format="PNG")
    return buffer.getvalue()


def as_levels(distilled: DistilledSet) -> DistilledSet:
    """Return the set as a picture format holds it: the same, or a float32 set rounded to 256 levels."""
    if not distilled.images.is_floating_point():
        return distilled
    levels = (distilled.images * 255).round().to(torch.uint8)
    return DistilledSet(levels, distilled.labels, distilled.spec, distilled.manifest)
