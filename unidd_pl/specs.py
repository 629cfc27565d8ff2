"""What has to be known of a data set: its classes in order, its image size and its normalisation."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class DatasetSpec:
    """The facts of a data set that every stage needs, kept in one place.

    Args:
        name: Short name, used in messages and run tags.
        classes: Class names; the position of a name is its label.
        channels: 1 (grayscale) or 3 (RGB).
        image_size: Height and width in pixels.
        mean: Mean per channel of the pixels in [0, 1].
        std: Standard deviation per channel of the pixels in [0, 1].

    Raises:
        ValueError: If a field is out of range or the lengths disagree.
    """

    name: str
    classes: tuple[str, ...]
    channels: int
    image_size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __post_init__(self) -> None:
        if len(self.classes) < 2:
            raise ValueError(f"{self.name}: got {len(self.classes)} class(es), expected at least 2")
        if len(set(self.classes)) != len(self.classes):
            raise ValueError(f"{self.name}: class names are not unique")
        if self.channels not in (1, 3):
            raise ValueError(f"{self.name}: got {self.channels} channels, expected 1 or 3")
        if self.image_size < 1:
            raise ValueError(f"{self.name}: got image_size {self.image_size}, expected at least 1")
        if not len(self.mean) == len(self.std) == self.channels:
            raise ValueError(
                f"{self.name}: got {len(self.mean)} means and {len(self.std)} standard deviations, "
                f"expected {self.channels} of each (one a channel)"
            )
        if not all(0 <= mean <= 1 for mean in self.mean) or not all(0 < std <= 1 for std in self.std):
            raise ValueError(
                f"{self.name}: got mean {self.mean} and std {self.std}, expected means in [0, 1] and standard "
                "deviations in (0, 1], of pixels in [0, 1]"
            )

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.classes)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Shape (c, h, w) of one image."""
        return (self.channels, self.image_size, self.image_size)

    def normalise(self, images: Tensor) -> Tensor:
        """Map pixels to the normalised space in which networks see them.

        Args:
            images: (n, c, h, w), uint8 in 0-255 or floating point in [0, 1].

        Returns:
            (n, c, h, w) floating point, normalised; the gradient flows for floating-point input.
        """
        if not images.is_floating_point():
            images = images.float() / 255
        return (images - self._channel(self.mean, images)) / self._channel(self.std, images)

    def denormalise(self, images: Tensor) -> Tensor:
        """Map normalised pixels (n, c, h, w) back to [0, 1]; the inverse of `normalise`."""
        return images * self._channel(self.std, images) + self._channel(self.mean, images)

    def pixel_bounds(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """Return the normalised values of black and white, each (1, c, 1, 1), on the device of `like`."""
        zeros = torch.zeros(1, self.channels, 1, 1, device=like.device, dtype=like.dtype)
        return self.normalise(zeros), self.normalise(zeros + 1)

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as plain JSON types."""
        return {
            "name": self.name,
            "classes": list(self.classes),
            "channels": self.channels,
            "image_size": self.image_size,
            "mean": list(self.mean),
            "std": list(self.std),
        }

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> DatasetSpec:
        """Rebuild a spec from `to_dict`.

        Raises:
            ValueError: If a field is missing, of another type or out of range.
        """
        kinds = {"name": str, "classes": list, "channels": int, "image_size": int, "mean": list, "std": list}
        for name, kind in kinds.items():
            if not isinstance(fields, dict) or type(fields.get(name)) is not kind:
                raise ValueError(f"got no {kind.__name__} as the {name} of a data set: the file is damaged")
        if not all(isinstance(name, str) for name in fields["classes"]):
            raise ValueError(f"{fields['name']}: got class names that are no text: the file is damaged")
        if not all(type(value) in (int, float) for value in fields["mean"] + fields["std"]):
            raise ValueError(f"{fields['name']}: got a normalisation that is no numbers: the file is damaged")
        values = {name: tuple(fields[name]) if kinds[name] is list else fields[name] for name in kinds}
        return cls(**values)  # type: ignore[arg-type]  # checked above

    @staticmethod
    def _channel(values: Iterable[float], like: Tensor) -> Tensor:
        return torch.tensor(tuple(values), device=like.device, dtype=like.dtype).view(1, -1, 1, 1)


def check_same_classes(distilled: DatasetSpec, data: DatasetSpec) -> None:
    """Refuse a distilled set of other classes, in another order or of another image shape than the data's.

    Raises:
        ValueError: If they differ.
    """
    if distilled.classes != data.classes:
        raise ValueError(
            f"the distilled set does not fit the data {data.name}; {_difference(distilled.classes, data.classes)}: "
            "use the data set that it was distilled from"
        )
    if distilled.image_shape != data.image_shape:
        raise ValueError(
            f"the distilled set does not fit the data {data.name}; image shape got {distilled.image_shape}, expected "
            f"{data.image_shape}: use the data at the size that it was distilled from (--data.init_args.image_size)"
        )


def _difference(got: tuple[str, ...], expected: tuple[str, ...]) -> str:
    """Say in what two lists of classes differ, without the hundreds in which they do not."""
    if set(got) == set(expected):
        place = next(i for i, (one, other) in enumerate(zip(got, expected, strict=True)) if one != other)
        return (
            f"the same {len(got)} classes in another order: label {place} got {got[place]!r}, expected "
            f"{expected[place]!r}"
        )
    strange = [name for name in got if name not in set(expected)][:3]
    missing = [name for name in expected if name not in set(got)][:3]
    return f"got {len(got)} classes, {strange} not among the {len(expected)} expected, which have {missing}"
