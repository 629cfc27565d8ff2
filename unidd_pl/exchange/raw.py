"""What a reader of pictures returns, before its classes are brought into the data's order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class RawSet:
    """Pictures as they lie in a format, with the class names that the format knows.

    Args:
        images: (n, c, h, w) uint8.
        labels: (n,) int64, positions in ``names``, or in an order that the format does not say where those are None.
        names: Class names: of folders, of a ClassLabel, of the samples.
        format: Name of the format.
        in_folders: Whether ``names`` are folders, which may also be numbers.
    """

    images: Tensor
    labels: Tensor
    names: Sequence[str] | None
    format: str
    in_folders: bool = False
