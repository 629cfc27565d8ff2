"""Moments of a chunk with fewer rows than channels, whose FFC is kept as a constant and a thin factor.

Legend: n images, c channels, h w space, k classes, s = n·h·w rows, r columns of the factor; * nothing, or l for layers
of one width stacked.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from unidd_pl.spectral.covariance import Sums, thin_rows
from unidd_pl.spectral.moments import Moments, label_moments

_LARGEST_SHARE = 0.5  # of the channels; with more rows than that the thin products no longer save time


@dataclass(frozen=True, eq=False)
class FactoredMoments:
    """Moments with Ψ = B + UUᵀ.

    The batch is in the thin factor alone; the finished chunks are in B, which stays the same object during
    all iterations of a chunk, so that what is made of it can be kept.

    Args:
        count: (*) number of rows s.
        mean: (*, c) channel means.
        factor: (*, c, r) U; for a batch (X−1μᵀ)ᵀ/√s.
        label_weight: (*, k) as in `Moments`.
        label_mean: (*, c, k) as in `Moments`.
        base: (*, c, c) B, without a gradient; None for zero.
    """

    count: Tensor
    mean: Tensor
    factor: Tensor
    label_weight: Tensor
    label_mean: Tensor
    base: Tensor | None = None

    @classmethod
    def of(cls, features: Tensor, labels: Tensor | None = None) -> FactoredMoments:
        """Compute the moments of one batch, as `Moments.of`; the gradient flows to features and labels."""
        _, sums = thin_rows(features)
        return cls.of_sums(sums, sums.first.new_full((), len(sums.second)), labels)

    @classmethod
    def of_sums(cls, sums: Sums, count: Tensor, labels: Tensor | None) -> FactoredMoments:
        """Compute the moments of one batch from what `thin_rows` takes of it; arguments as in `Moments.of_sums`."""
        mean = sums.total / count[..., None]
        factor = (sums.second - mean[..., None, :]).mT * sums.second.shape[-2] ** -0.5
        return cls(count, mean, factor, *label_moments(sums.first, count, labels))

    @property
    def flc(self) -> Tensor:
        """Feature–label correlation Φ, as `Moments.flc`."""
        k = self.label_weight.shape[-1]
        return self.label_mean / k if k else self.mean[..., None]

    @property
    def ffc(self) -> Tensor:
        """Feature–feature correlation Ψ, (*, c, c); the gradient flows to the factor."""
        # Autocast would multiply in half precision, which loses the small eigenvalues.
        with torch.autocast(self.factor.device.type, enabled=False):
            product = self.factor @ self.factor.mT
        return product if self.base is None else self.base + product

    def dense(self) -> Moments:
        """Return the same moments with Ψ multiplied out."""
        return Moments(self.count, self.mean, self.ffc, self.label_weight, self.label_mean)

    def detach(self) -> FactoredMoments:
        """Return the same values without a graph."""
        return replace(
            self,
            mean=self.mean.detach(),
            factor=self.factor.detach(),
            label_weight=self.label_weight.detach(),
            label_mean=self.label_mean.detach(),
        )

    def onto(self, done: Moments, base: Tensor, *, scatter_between: bool) -> FactoredMoments:
        """Return what ``done.merge(self)`` gives, with the part of `done` in the base.

        Args:
            done: Finished moments, in the precision and on the device of this one.
            base: (*, c, c) `kept_part` of them; the caller makes it once a chunk.
            scatter_between: As in `Moments.merge`.
        """
        merged = done.merge_firsts(self)
        share = self.count / merged.count
        factor = self.factor * share.sqrt()[..., None, None]
        if scatter_between:
            between = (self.mean - done.mean) * (share * (1 - share)).sqrt()[..., None]
            factor = torch.cat([factor, between[..., None]], dim=-1)
        return FactoredMoments(merged.count, merged.mean, factor, merged.label_weight, merged.label_mean, base)


AnyMoments = Moments | FactoredMoments


def dense(moments: AnyMoments) -> Moments:
    """Return moments with Ψ as a matrix."""
    return moments.dense() if isinstance(moments, FactoredMoments) else moments


def kept_part(done: Moments, count: Tensor) -> Tensor:
    """Return (1−share)·Ψ̄, (*, c, c): what finished moments weigh beside a batch of `count` rows."""
    return done.ffc * (done.count / (done.count + count))[..., None, None]


def is_thin(rows: int, channels: int) -> bool:
    """Return whether features have so few rows that their factor is faster than their covariance."""
    return rows <= _LARGEST_SHARE * channels
