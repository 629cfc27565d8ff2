"""Moments of features: the statistics that all methods of the field match.

Legend: n images, c channels, h w space, k classes, s = n·h·w rows; * nothing, or l for layers of one width stacked.
X features (s, c), Ψ feature–feature correlation (c, c), Φ feature–label correlation (c, k).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, Protocol, get_args

import torch
from torch import Tensor

from unidd_pl.spectral.covariance import Sums, covariance, second_moment

Signal = Literal["mean", "class", "soft"]
SIGNALS: tuple[Signal, ...] = get_args(Signal)


class Firsts(Protocol):
    """What moments of any form have beside Ψ; fields as in `Moments`."""

    @property
    def count(self) -> Tensor: ...  # noqa: D102
    @property
    def mean(self) -> Tensor: ...  # noqa: D102
    @property
    def label_weight(self) -> Tensor: ...  # noqa: D102
    @property
    def label_mean(self) -> Tensor: ...  # noqa: D102


@dataclass(frozen=True, eq=False)  # == of tensors is elementwise
class Moments:
    """Count, mean, FFC and FLC of the features of one layer, or of l layers of one width.

    The fields are exactly what is needed to merge two sets of rows as if they had been one.

    Args:
        count: (*) number of rows s.
        mean: (*, c) channel means μ.
        ffc: (*, c, c) feature–feature correlation Ψ = (X−1μᵀ)ᵀ(X−1μᵀ)/s.
        label_weight: (*, k) sum over the images of their weight for each class; k = 0 where label-free.
        label_mean: (*, c, k) weighted mean of the pooled features for each class, zero where the weight
            is zero; k = 0 where label-free.

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
        _, sums = second_moment(features)
        return cls.of_sums(sums, sums.first.new_full((), features.numel() // features.shape[1]), labels)

    @classmethod
    def of_sums(cls, sums: Sums, count: Tensor, labels: Tensor | None) -> Moments:
        """Compute the moments of one batch from what `second_moment` takes of it.

        Args:
            sums: M and the sums of the rows; those of each image where there are labels.
            count: (*) rows s.
            labels: As in `of`.
        """
        ffc, mean = covariance(sums, count)
        return cls(count, mean, ffc, *label_moments(sums.first, count, labels))

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
        """Feature–label correlation Φ, (*, c, k); (*, c, 1) for the label-free signal ``mean``.

        With labels, column k is (1/K) times the mean of the pooled features of class k, so that a
        balanced batch gives (1/N) Σ pool(x_i) y_iᵀ.
        """
        k = self.label_weight.shape[-1]
        return self.label_mean / k if k else self.mean[..., None]

    def merge(self, other: Moments, *, scatter_between: bool = True) -> Moments:
        """Return the moments of the rows of both.

        Args:
            other: Moments of the same layer.
            scatter_between: Include the scatter between the two means, which makes the merge exact;
                False gives the count-weighted mean of the two FFCs.

        Returns:
            Merged moments in the promoted precision of the two; the gradient flows to both.
        """
        merged = self.merge_firsts(other)
        share = (other.count / merged.count)[..., None, None]
        ffc = _between(self.ffc, other.ffc, share)
        if scatter_between:
            delta = other.mean - self.mean
            ffc = ffc + delta[..., :, None] * delta[..., None, :] * (share * (1 - share))
        return replace(merged, ffc=ffc)

    def merge_firsts(self, other: Firsts) -> Moments:
        """Return what `merge` returns, but with this Ψ, untouched.

        Args:
            other: Moments of the same layer, in any form.
        """
        count = self.count + other.count
        mean = _between(self.mean, other.mean, (other.count / count)[..., None])
        label_weight = self.label_weight + other.label_weight
        if not label_weight.shape[-1]:  # label-free: nothing to weigh, at every step
            return Moments(count, mean, self.ffc, label_weight, self.label_mean.to(label_weight.dtype))
        label_share = (other.label_weight / _one_where_zero(label_weight))[..., None, :]
        label_mean = self.label_mean + (other.label_mean - self.label_mean) * label_share
        return Moments(count, mean, self.ffc, label_weight, label_mean)

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


def label_moments(first: Tensor, count: Tensor, labels: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return the weight of each class, (*, k), and the weighted means of the pooled features, (*, c, k); k may be 0.

    Args:
        first: (*, n, c) the rows of each image added up.
        count: (*) rows s.
        labels: (n, k) or None.
    """
    *stacked, n, c = first.shape
    if labels is None:
        return first.new_zeros(*stacked, 0), first.new_zeros(*stacked, c, 0)
    # Autocast would take the product in half precision.
    with torch.autocast(first.device.type, enabled=False):
        labels = labels.to(first.dtype)
        label_weight = labels.sum(dim=0)
        positions = (count / n)[..., None, None]
        return label_weight.expand(*stacked, -1), first.mT @ (labels / _one_where_zero(label_weight)) / positions


def _between(one: Tensor, other: Tensor, share: Tensor) -> Tensor:
    """Return one + share · (other − one), in one pass over it."""
    if not one.dtype == other.dtype == share.dtype:
        dtype = torch.promote_types(one.dtype, other.dtype)
        one, other, share = one.to(dtype), other.to(dtype), share.to(dtype)
    return torch.lerp(one, other, share)


def _one_where_zero(weight: Tensor) -> Tensor:
    return torch.where(weight > 0, weight, torch.ones_like(weight))
