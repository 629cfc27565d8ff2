"""Resolvents of Ψ_s = B + UUᵀ by Woodbury's identity, where U has fewer columns than rows.

Legend: c channels, r columns of U, k columns of Φ; l layers of one width. R = (Ψ_s+βI)⁻¹, H = (B+βI)⁻¹ constant:

    P = HU      K = I + UᵀP      Q = PK⁻¹ = RU      R = H − QPᵀ

so a change of U moves R by dR = −R(dU Uᵀ + U dUᵀ)R, and the gradient with respect to U is −R(G+Gᵀ)Q, where G is
that with respect to R. H is a matrix made once a chunk; where B is zero it is the number 1/β.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from unidd_pl.spectral.closed_form import Targets, distances_and_units
from unidd_pl.spectral.filters import Resolvent
from unidd_pl.spectral.methods import Method, Term


def takes_low_rank(method: Method) -> bool:
    """Return whether all terms of a method are plain resolvents."""
    return all(type(term.filter) is Resolvent and not term.diagonal for term in method.terms)


def base_inverse(base: Tensor | None, betas: Tensor) -> Tensor:
    """Return H = (B+βI)⁻¹, (l, c, c) for B (l, c, c), or 1/β, (l, 1, 1), where there is no B."""
    if base is None:
        return 1 / betas
    # Once a chunk, and every iteration builds on it: double precision costs nothing here.
    return Resolvent().matrix(base.double(), betas.double()).to(base)


def beyond_base(terms: Sequence[Term], targets: Targets, inverse: Tensor) -> Targets:
    """Return the targets less H in the ``ffc`` terms: R − F = −QPᵀ − (F − H) without making R."""
    whole = inverse if inverse.shape[-1] > 1 else None

    def less(value: Tensor) -> Tensor:
        return value - (inverse * torch.eye(value.shape[-1]).to(value) if whole is None else whole)

    values = [less(one) if term.operand == "ffc" else one for term, one in zip(terms, targets.values, strict=True)]
    return Targets(tuple(values), targets.betas, targets.scales)


def low_rank_distances(terms: Sequence[Term], targets: Targets, inverse: Tensor, factor: Tensor, flc: Tensor) -> Tensor:
    """Return what `closed_form_distances` returns for Ψ_s = B + UUᵀ, without making Ψ_s.

    Args:
        terms: The t terms; `takes_low_rank` holds for their method.
        targets: The real side `beyond_base`.
        inverse: H of `base_inverse`.
        factor: (l, c, r) U.
        flc: (l, c, k) Φ_s.

    Returns:
        (l, t) distances ≥ 0; the gradient flows, once, to U and Φ_s.
    """
    distances: Tensor = _LowRankDistances.apply(factor, flc, tuple(terms), targets, inverse)
    return distances


def _times(inverse: Tensor, other: Tensor) -> Tensor:
    """Return H · other, where H may be a number."""
    return inverse @ other if inverse.shape[-1] > 1 else inverse * other


class _LowRankDistances(torch.autograd.Function):
    """See `low_rank_distances`."""

    @staticmethod
    def forward(
        ctx: Any, factor: Tensor, flc: Tensor, terms: tuple[Term, ...], targets: Targets, inverse: Tensor
    ) -> Tensor:
        p = _times(inverse, factor)
        q = p @ Resolvent().matrix(factor.mT @ p, 1.0)
        p_t = p.mT
        differences = [
            torch.baddbmm(target, q, p_t, beta=-1, alpha=-1)
            if term.operand == "ffc"
            else _times(inverse, flc) - q @ (p_t @ flc) - target
            for term, target in zip(terms, targets.values, strict=True)
        ]
        distances, ctx.units = distances_and_units(differences, targets.scales)
        ctx.terms = terms
        ctx.save_for_backward(flc, inverse, p, q, *differences)
        return distances

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor | None, None, None, None]:
        flc, inverse, p, q, *differences = ctx.saved_tensors
        weights = gradient * ctx.units

        def resolved(other: Tensor) -> Tensor:
            applied: Tensor = _times(inverse, other) - q @ (p.mT @ other)
            return applied

        turned = torch.zeros_like(q)  # (G+Gᵀ)Q
        to_flc: Tensor | None = None
        for index, (term, difference) in enumerate(zip(ctx.terms, differences, strict=True)):
            weight = weights[:, index].view(-1, 1, 1)
            if term.operand == "ffc":
                turned = turned + 2 * weight * (difference @ q)
            else:
                unit = weight * difference
                turned = turned + unit @ (flc.mT @ q) + flc @ (unit.mT @ q)
                carried = resolved(unit)
                to_flc = carried if to_flc is None else to_flc + carried
        return resolved(turned).neg_(), to_flc, None, None, None
