"""Moments of features: the statistics that all methods of the field match.

Legend: n images, c channels, h w space, k classes, s = n·h·w rows.
X features (s, c), Ψ feature–feature correlation (c, c), Φ feature–label correlation (c, k).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from unidd_pl.spectral.covariance import covariance

Signal = Literal["mean", "class", "soft"]
SIGNALS: tuple[Signal, ...] = get_args(Signal)


@dataclass(frozen=True, eq=False)  # == of tensors is elementwise
class Moments:
    """Count, mean, FFC and FLC of the features of one layer.

    The fields are exactly what is needed to merge two sets of rows as if they had been one.

    Args:
        count: () number of rows s.
        mean: (c,) channel means μ.
        ffc: (c, c) feature–feature correlation Ψ = (X−1μᵀ)ᵀ(X−1μᵀ)/s.
        label_weight: (k,) sum over the images of their weight for each class; (0,) where label-free.
        label_mean: (c, k) weighted mean of the pooled features for each class, zero where the weight
            is zero; (c, 0) where label-free.

    References:
        SPEC.md section 1.
    """

    count: Tensor
    mean: Tensor
    ffc: Tensor
    label_weight: Tensor
    label_mean: Tensor

    @classmethod
    def of(cls, features: Tensor, labels: Tensor | None = None) -> Moments:
        """Compute the moments of one batch.

        Args:
            features: (n, c, h, w) or (n, c); half precision is widened to float32.
            labels: (n, k) weight of each image for each class: one-hot for the signal ``class``, the
                teacher's softmax for ``soft``; None for ``mean``.

        Returns:
            Moments in the precision of the features; the gradient flows to features and labels.
        """
        _, ffc, pooled = covariance(features)
        return cls.of_pooled(ffc, pooled, features[0, 0].numel(), labels)

    @classmethod
    def of_pooled(cls, ffc: Tensor, pooled: Tensor, positions: int, labels: Tensor | None) -> Moments:
        """Compute the moments of one batch from what `covariance` takes of it.

        Args:
            ffc: (c, c) Ψ.
            pooled: (n, c) the features pooled.
            positions: h·w that each image has.
            labels: As in `of`.
        """
        count = pooled.new_full((), len(pooled) * positions)
        return cls(count, pooled.mean(dim=0), ffc, *label_moments(pooled, labels))

    def check(self) -> None:
        """Refuse what no features have: shapes that disagree, other than floating point, numbers that are not finite.

        Raises:
            ValueError: If a field is so; for moments that come from a file.
        """
        for name, tensor in self.tensors().items():
            if not isinstance(tensor, Tensor) or not tensor.is_floating_point():
                raise ValueError(f"{name} is no tensor of floating-point numbers")
        c, k = self.mean.numel(), self.label_weight.numel()
        shapes = {"count": (), "mean": (c,), "ffc": (c, c), "label_weight": (k,), "label_mean": (c, k)}
        for name, tensor in self.tensors().items():
            if tuple(tensor.shape) != shapes[name]:
                raise ValueError(f"{name} has the shape {tuple(tensor.shape)}, expected {shapes[name]}")
            if not bool(torch.isfinite(tensor).all()):
                raise ValueError(f"{name} is not finite")

    @property
    def flc(self) -> Tensor:
        """Feature–label correlation Φ, (c, k); (c, 1) for the label-free signal ``mean``.

        With labels, column k is (1/K) times the mean of the pooled features of class k, so that a
        balanced batch gives (1/N) Σ pool(x_i) y_iᵀ.
        """
        k = self.label_weight.shape[0]
        return self.label_mean / k if k else self.mean[:, None]

    def merge(self, other: Moments, *, scatter_between: bool = True) -> Moments:
        """Return the moments of the rows of both.

        Args:
            other: Moments of the same layer.
            scatter_between: Include the scatter between the two means, which makes the merge exact;
                False gives the count-weighted mean of the two FFCs.

        Returns:
            Merged moments in the promoted precision of the two; the gradient flows to both.
        """
        count = self.count + other.count
        share = other.count / count
        ffc = _between(self.ffc, other.ffc, share)
        if scatter_between:
            delta = other.mean - self.mean
            ffc = ffc + torch.outer(delta, delta) * (share * (1 - share))
        return Moments(count, _between(self.mean, other.mean, share), ffc, *self._merged_labels(other))

    def _merged_labels(self, other: Moments) -> tuple[Tensor, Tensor]:
        label_weight = self.label_weight + other.label_weight
        if not len(label_weight):  # label-free: nothing to weigh, at every step
            return label_weight, self.label_mean.to(label_weight.dtype)
        label_share = other.label_weight / _one_where_zero(label_weight)
        return label_weight, self.label_mean + (other.label_mean - self.label_mean) * label_share

    def to(self, *, dtype: torch.dtype | None = None, device: torch.device | str | None = None) -> Moments:
        """Return a copy in another precision or on another device."""
        return Moments(*(field.to(dtype=dtype, device=device) for field in self.tensors().values()))

    def zeros(self) -> Moments:
        """Return the moments of no rows, of the same shapes: merging them changes nothing."""
        return Moments(*(torch.zeros_like(field) for field in self.tensors().values()))

    def detach(self) -> Moments:
        """Return the same values without a graph."""
        return Moments(*(field.detach() for field in self.tensors().values()))

    def tensors(self) -> dict[str, Tensor]:
        """Return the fields by name, in the order of the constructor."""
        return {
            "count": self.count,
            "mean": self.mean,
            "ffc": self.ffc,
            "label_weight": self.label_weight,
            "label_mean": self.label_mean,
        }


def label_moments(pooled: Tensor, labels: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return the weight of each class, (k,), and the weighted means of the pooled features, (c, k); k may be 0."""
    if labels is None:
        return pooled.new_zeros(0), pooled.new_zeros(pooled.shape[1], 0)
    # Autocast would take the product in half precision.
    with torch.autocast(pooled.device.type, enabled=False):
        labels = labels.to(pooled.dtype)
        label_weight = labels.sum(dim=0)
        return label_weight, pooled.T @ labels / _one_where_zero(label_weight)


def _between(one: Tensor, other: Tensor, share: Tensor) -> Tensor:
    """Return one + share · (other − one), in one pass over it."""
    dtype = torch.promote_types(one.dtype, other.dtype)
    return torch.lerp(one.to(dtype), other.to(dtype), share.to(dtype))


def _one_where_zero(weight: Tensor) -> Tensor:
    return torch.where(weight > 0, weight, torch.ones_like(weight))
