"""What is taken of features while they pass into their layers, and the moments that are made of it.

Legend: n images, c channels, h w space, k classes, s = n·h·w rows; l layers of one width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from unidd_pl.spectral.covariance import ANY, Passing, Sums, second_moment, thin_rows
from unidd_pl.spectral.factored import AnyMoments, FactoredMoments, is_thin
from unidd_pl.spectral.moments import Moments
from unidd_pl.spectral.stacked import StackedMoments, alike, stack


@dataclass(frozen=True, eq=False)
class Observed:
    """What is taken of the features of one layer while they pass: moments, but for the labels, which are known later.

    Args:
        sums: M or, factored, the rows themselves, and the sums of the rows.
        rows: s.
        factored: Whether it is the rows.
    """

    sums: Sums
    rows: int
    factored: bool

    def moments(self, labels: Tensor | None) -> AnyMoments:
        """Return the moments of this layer by itself; `labels` as in `Moments.of`."""
        return moments_of([self], labels)[0]


def observe(features: Tensor, *, factored: bool, passing: Passing = ANY) -> tuple[Tensor, Observed]:
    """Return features as they are, for the layer, and what moments are made of.

    Args:
        features: (n, c, h, w) or (n, c).
        factored: Whether a factor is of use where there are few rows; see `MatchingLoss.takes_factors`.
        passing: How they pass.
    """
    c = features.shape[1]
    rows = features.numel() // c
    thin = factored and is_thin(rows, c)
    passed, sums = (thin_rows if thin else second_moment)(features, passing)
    return passed, Observed(sums, rows, thin)


def moments_of(observed: Sequence[Observed], labels: Tensor | None) -> StackedMoments:
    """Return the moments of the layers of a network, stacked.

    Args:
        observed: What was taken of each layer.
        labels: As in `Moments.of`.
    """
    groups = []
    for layers in alike(
        (one.sums.second.shape[-1], one.rows if one.factored else 0, one.sums.centred) for one in observed
    ):
        members = [observed[layer] for layer in layers]
        second, first = stack([one.sums.second for one in members]), stack([one.sums.first for one in members])
        sums = Sums(second, first, members[0].sums.centred)
        count = _counts(tuple(one.rows for one in members), first.dtype, first.device)
        kind = FactoredMoments if members[0].factored else Moments
        groups.append((layers, kind.of_sums(sums, count, labels)))
    return StackedMoments(groups)


def batch_moments(features: Tensor, labels: Tensor | None, *, factored: bool) -> AnyMoments:
    """Return the moments of one batch, as a factor where there are few rows and the caller can use it.

    Args:
        features: (n, c, h, w) or (n, c).
        labels: As in `Moments.of`.
        factored: As in `observe`.
    """
    return observe(features, factored=factored)[1].moments(labels)


@lru_cache(maxsize=64)
def _counts(rows: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return numbers of rows as a tensor, (l,); kept, so that no step copies them to a device."""
    with torch.inference_mode(False):  # a tensor of the inference mode could not be kept for a later gradient
        return torch.tensor(rows, dtype=dtype, device=device)
