"""Moments of a chunk with fewer rows than channels, whose FFC is kept as a constant and a thin factor.

Legend: n images, c channels, h w space, k classes, s = n·h·w rows, r columns of the factor.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from unidd_pl.spectral.moments import Moments, label_moments

_LARGEST_SHARE = 0.5  # of the channels; with more rows than that the thin products no longer save time


@dataclass(frozen=True, eq=False)
class FactoredMoments:
    """Moments with Ψ = B + UUᵀ.

    The batch is in the thin factor alone; the finished chunks are in B, which stays the same object during
    all iterations of a chunk, so that what is made of it can be kept.

    Args:
        count: () number of rows s.
        mean: (c,) channel means.
        factor: (c, r) U; for a batch (X−1μᵀ)ᵀ/√s.
        label_weight: (k,) as in `Moments`.
        label_mean: (c, k) as in `Moments`.
        base: (c, c) B, without a gradient; None for zero.
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
        n, c = features.shape[:2]
        with torch.autocast(features.device.type, enabled=False):
            if features.dtype in (torch.float16, torch.bfloat16):
                features = features.float()
            space = features.reshape(n, c, -1)
            pooled = space.mean(dim=2)
            mean = pooled.mean(dim=0)
            rows = n * space.shape[2]
            factor = (space.transpose(0, 1).reshape(c, -1) - mean[:, None]) * rows**-0.5
            return cls(pooled.new_full((), rows), mean, factor, *label_moments(pooled, labels))

    @property
    def flc(self) -> Tensor:
        """Feature–label correlation Φ, as `Moments.flc`."""
        k = self.label_weight.shape[0]
        return self.label_mean / k if k else self.mean[:, None]

    @property
    def ffc(self) -> Tensor:
        """Feature–feature correlation Ψ, (c, c); the gradient flows to the factor."""
        product = self.factor @ self.factor.T
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
            base: (c, c) `kept_part` of them; the caller makes it once a chunk.
            scatter_between: As in `Moments.merge`.
        """
        narrow = Moments(self.count, self.mean, base, self.label_weight, self.label_mean)
        merged = replace(done, ffc=base).merge(narrow, scatter_between=False)
        share = self.count / merged.count
        factor = self.factor * share.sqrt()
        if scatter_between:
            between = (self.mean - done.mean) * (share * (1 - share)).sqrt()
            factor = torch.cat([factor, between[:, None]], dim=1)
        return FactoredMoments(merged.count, merged.mean, factor, merged.label_weight, merged.label_mean, base)


AnyMoments = Moments | FactoredMoments


def dense(moments: AnyMoments) -> Moments:
    """Return moments with Ψ as a matrix."""
    return moments.dense() if isinstance(moments, FactoredMoments) else moments


def kept_part(done: Moments, count: Tensor) -> Tensor:
    """Return (1−share)·Ψ̄, (c, c): what finished moments weigh beside a batch of `count` rows."""
    return done.ffc * (done.count / (done.count + count))


def batch_moments(features: Tensor, labels: Tensor | None, *, factored: bool) -> AnyMoments:
    """Return the moments of one batch, as a factor where there are few rows and the caller can use it.

    Args:
        features: (n, c, h, w) or (n, c).
        labels: As in `Moments.of`.
        factored: Whether a factor is of use; see `MatchingLoss.takes_factors`.
    """
    n, c = features.shape[:2]
    few = n * features[0, 0].numel() <= _LARGEST_SHARE * c
    return FactoredMoments.of(features, labels) if factored and few else Moments.of(features, labels)
