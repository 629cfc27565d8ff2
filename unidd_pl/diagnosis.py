"""What to say where the loss of a distillation is not finite: which layer, which term, where, and the cure."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from unidd_pl.spectral import AnyMoments


def not_filterable(
    error: Exception, where: object, betas: Sequence[float], layers: Sequence[str], moments: Sequence[AnyMoments]
) -> str:
    """Return the message for moments that cannot be filtered.

    Args:
        error: What the filter raised.
        where: Round, chunk and iteration.
        betas: β of each layer.
        layers: Names of the layers.
        moments: Moments of the batch, one a layer.
    """
    bad = [layer for layer, one in zip(layers, moments, strict=True) if not torch.isfinite(one.ffc).all()]
    reason = f"features that are not finite in layer {', '.join(bad)}" if bad else str(error)
    return (
        f"the loss is not finite in {where}, β = {_range(betas)}: {reason}; expected finite values. "
        "Lower --model.init_args.lr or raise --model.init_args.beta"
    )


def non_finite(
    where: object,
    betas: Sequence[float],
    layers: Sequence[str],
    terms: Sequence[str],
    distances: Tensor,
    cross_entropy: Tensor,
) -> str:
    """Return the message for a loss that is not finite.

    Args:
        where: Round, chunk and iteration.
        betas: β of each layer.
        layers: Names of the l layers.
        terms: Names of the t terms.
        distances: (l, t) matching distances.
        cross_entropy: () cross-entropy.
    """
    bad = [
        f"layer {layer} ({term})"
        for layer, row in zip(layers, distances, strict=True)
        for term, value in zip(terms, row, strict=True)
        if not torch.isfinite(value)
    ]
    if not torch.isfinite(cross_entropy):
        bad.append("the cross-entropy")
    return (
        f"the loss is not finite in {where}, β = {_range(betas)}: {', '.join(bad)}; expected finite values. "
        "Lower --model.init_args.lr, or raise --model.init_args.beta if only matching terms are named"
    )


def _range(betas: Sequence[float]) -> str:
    low, high = min(betas), max(betas)
    return f"{low:g}" if low == high else f"{low:g} to {high:g}"
