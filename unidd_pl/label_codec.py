"""How the logits of soft labels are kept: all or the largest few, as 32, 16 or 8-bit numbers.

Legend: n images, k classes.

A constant added to the logits of an image changes no softmax, at no temperature. So each row is kept less its maximum:
its largest logit is 0, the others are negative, and the precision goes where the probability is.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

LabelType = Literal["float32", "float16", "int8"]

_INT8_STEPS = 255
_FLOAT16_MAX = 65504.0
_UINT8_CLASSES = 256
_INT16_CLASSES = 1 << 15

Parts = dict[str, Tensor]
"""What is kept of n images: ``values`` (n, m); with ``int8`` also ``scale`` (n,), with top-k also ``indices``."""


@dataclass(frozen=True)
class LabelCodec:
    """A way to keep logits.

    ``float16`` keeps 11 bits of each number. ``int8`` keeps 255 equal steps from a row's largest logit to its smallest,
    with the step as float16. With ``top_k`` only the largest logits are kept, and one number for all others: equal
    logits that have together the probability of the others at `temperature`. At another temperature that holds
    approximately; without ``top_k`` any temperature can be applied.

    Args:
        dtype: The numbers.
        classes: Number of classes, k.
        top_k: How many of the largest logits are kept; None for all.
        temperature: Temperature at which ``top_k`` keeps the probability of the others.

    Raises:
        ValueError: If a setting is out of range.
    """

    dtype: LabelType
    classes: int
    top_k: int | None = None
    temperature: float = 1.0

    def __post_init__(self) -> None:
        if self.dtype not in get_args(LabelType):
            raise ValueError(f"label_type: got {self.dtype!r}, expected one of {', '.join(get_args(LabelType))}")
        if self.top_k is not None and not 1 <= self.top_k < self.classes:
            raise ValueError(
                f"top_k: got {self.top_k}, expected 1 to {self.classes - 1} of the {self.classes} classes: leave it "
                "out to keep all"
            )
        if not self.temperature > 0:
            raise ValueError(f"temperature: got {self.temperature}, expected > 0")

    @property
    def fields(self) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
        """Type and shape for one image of each part, those of the widest numbers first."""
        kept = self.classes if self.top_k is None else self.top_k + 1
        values = {"float32": torch.float32, "float16": torch.float16, "int8": torch.uint8}[self.dtype]
        fields: dict[str, tuple[torch.dtype, tuple[int, ...]]] = {"values": (values, (kept,))}
        if self.dtype == "int8":
            fields["scale"] = (torch.float16, ())
        if self.top_k is not None:
            fields["indices"] = (self._index_type, (self.top_k,))
        return dict(sorted(fields.items(), key=lambda field: -field[1][0].itemsize))

    @property
    def bytes_per_image(self) -> int:
        """Size of one label."""
        return sum(dtype.itemsize * shape[0] if shape else dtype.itemsize for dtype, shape in self.fields.values())

    def encode(self, logits: Tensor) -> Parts:
        """Return what is kept of logits (n, k); they have to be finite.

        Raises:
            ValueError: If they are not, or their shape is another.
        """
        if logits.ndim != 2 or logits.shape[1] != self.classes:
            raise ValueError(f"labels: got logits of shape {tuple(logits.shape)}, expected (n, {self.classes})")
        if not bool(torch.isfinite(logits).all()):
            raise ValueError(
                "labels: got NaN or infinite logits, expected finite ones: the teacher diverged or is damaged, or the "
                "images are not normalised as it expects"
            )
        shifted = (logits.float() - logits.float().amax(dim=1, keepdim=True)).clamp(min=-_FLOAT16_MAX)
        parts: Parts = {}
        if self.top_k is not None:
            shifted, parts["indices"] = self._largest(shifted, self.top_k)
        if self.dtype == "int8":
            # Rounded up by as much as float16 may round down, so that the smallest logit stays within 255 steps.
            step = (-shifted.amin(dim=1) / _INT8_STEPS * (1 + 2**-10)).half()
            steps = shifted / step.float().clamp(min=torch.finfo(torch.float32).tiny)[:, None]
            parts["scale"] = step
            parts["values"] = (-steps).round().clamp(0, _INT8_STEPS).to(torch.uint8)
        else:
            parts["values"] = shifted.to(self.fields["values"][0])
        return {name: parts[name].contiguous() for name in self.fields}

    def decode(self, parts: Parts) -> Tensor:
        """Return the logits (n, k), float32, each row with the maximum 0, of what `encode` has kept."""
        values = parts["values"].float()
        if self.dtype == "int8":
            values = -values * parts["scale"].float()[:, None]
        if self.top_k is None:
            return values
        rest = values[:, -1:].expand(-1, self.classes)
        return rest.scatter(1, parts["indices"].long(), values[:, :-1])

    def check(self, parts: Parts) -> None:
        """Refuse parts that no `encode` gives.

        Raises:
            ValueError: If a number is not finite or a class is not there.
        """
        for name in ("values", "scale"):
            if name in parts and not bool(torch.isfinite(parts[name]).all()):
                raise ValueError("labels that are NaN or infinite, expected finite numbers")
        if "indices" in parts:
            low, high = int(parts["indices"].min()), int(parts["indices"].max())
            if low < 0 or high >= self.classes:
                raise ValueError(f"labels of the classes {low} to {high}, expected 0 to {self.classes - 1}")

    def _largest(self, shifted: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """Return the largest logits, behind them the one that stands for all others, and the classes of the former."""
        values, order = shifted.sort(dim=1, descending=True, stable=True)
        others = values[:, count:]
        mass = (others / self.temperature).logsumexp(dim=1, keepdim=True)
        level = self.temperature * (mass - torch.tensor(float(others.shape[1])).log())
        return torch.cat([values[:, :count], level], dim=1), order[:, :count].to(self._index_type)

    @property
    def _index_type(self) -> torch.dtype:
        if self.classes <= _UINT8_CLASSES:
            return torch.uint8
        return torch.int16 if self.classes <= _INT16_CLASSES else torch.int32
