"""Resolvents of Ψ_s = B + UUᵀ by Woodbury's identity, where U has fewer columns than rows.

Legend: c channels, r columns of U, k columns of Φ; l layers of one width. R = (Ψ_s+βI)⁻¹, H = (B+βI)⁻¹ constant:

    P = HU      K = I + UᵀP      Q = PK⁻¹ = RU      R = H − QPᵀ

so a change of U moves R by dR = −R(dU Uᵀ + U dUᵀ)R, and the gradient with respect to U is −R(G+Gᵀ)Q, where G is
that with respect to R. H is a matrix made once a chunk; where B is zero it is the number 1/β.

Against the real side F the difference R − F = −(T + QPᵀ) with T = F − H is never made: with C = PᵀQ

    ‖R − F‖² = ‖T‖² + 2⟨TQ, P⟩ + ⟨C, Cᵀ⟩      (R − F)Q = −(TQ + QC)

so that per layer three products with a (c, c) are left, HU, TQ and H times the gradient, and thin ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from unidd_pl.spectral.closed_form import Targets, scaled_and_units
from unidd_pl.spectral.filters import Resolvent
from unidd_pl.spectral.methods import Method, Term
from unidd_pl.spectral.once import refuse_second_derivative


def takes_low_rank(method: Method) -> bool:
    """Return whether all terms of a method are plain resolvents."""
    return all(type(term.filter) is Resolvent and not term.diagonal for term in method.terms)


@dataclass(frozen=True, eq=False)
class Base:
    """What stays the same during all iterations of a chunk, for l layers of one width.

    Args:
        inverse: H, (l, c, c), or (l, 1, 1) where there is no B.
        beyond: T = F − H, (l, c, c).
        square: (l,) ‖T‖².
    """

    inverse: Tensor
    beyond: Tensor
    square: Tensor

    @classmethod
    def of(cls, base: Tensor | None, betas: Tensor, real: Tensor) -> Base:
        """Make it, in the precision of β, of B (l, c, c) or None, β (l, 1, 1) and F = (Ψ+βI)⁻¹ (l, c, c)."""
        # Once a chunk, and every iteration builds on it: double precision costs nothing here.
        wide = betas.double()
        inverse = 1 / wide if base is None else Resolvent().matrix(base.double(), wide)
        whole = inverse if base is not None else inverse * torch.eye(real.shape[-1]).to(inverse)
        beyond = real.double() - whole
        return cls(inverse.to(betas), beyond.to(betas), beyond.square().sum(dim=(1, 2)).to(betas))


def low_rank_distances(terms: Sequence[Term], targets: Targets, base: Base, factor: Tensor, flc: Tensor) -> Tensor:
    """Return what `closed_form_distances` returns for Ψ_s = B + UUᵀ, without making Ψ_s.

    Args:
        terms: The t terms; `takes_low_rank` holds for their method.
        targets: The real side.
        base: What B and the real side make of each other.
        factor: (l, c, r) U.
        flc: (l, c, k) Φ_s.

    Returns:
        (l, t) distances ≥ 0; the gradient flows, once, to U and Φ_s.
    """
    distances: Tensor = _LowRankDistances.apply(factor, flc, tuple(terms), targets, base)
    return distances


def _times(inverse: Tensor, other: Tensor) -> Tensor:
    """Return H · other, where H may be a number."""
    return _product(inverse, other) if inverse.shape[-1] > 1 else inverse * other


def _product(left: Tensor, right: Tensor) -> Tensor:
    """Return left · right, (l, m, n).

    On a CPU torch gives each thread whole matrices of a batch: of three and two threads, one waits for the third. What
    does not come out even is multiplied one by one, each by all threads.
    """
    even = len(left) - len(left) % torch.get_num_threads()
    if left.device.type != "cpu" or even == len(left):
        return left @ right
    product = left.new_empty(len(left), left.shape[1], right.shape[2])
    if even:
        torch.bmm(left[:even], right[:even], out=product[:even])
    for place in range(even, len(left)):
        torch.mm(left[place], right[place], out=product[place])
    return product


class _LowRankDistances(torch.autograd.Function):
    """See `low_rank_distances`."""

    @staticmethod
    def forward(ctx: Any, factor: Tensor, flc: Tensor, terms: tuple[Term, ...], targets: Targets, base: Base) -> Tensor:
        p = _times(base.inverse, factor)
        q = _product(p, Resolvent().matrix(_product(factor.mT, p), 1.0))
        turned = None  # (F − R)Q
        norms, differences = [], []
        for term, target in zip(terms, targets.values, strict=True):
            if term.operand == "flc":
                differences.append(_times(base.inverse, flc) - q @ (p.mT @ flc) - target)
                norms.append(torch.linalg.vector_norm(differences[-1].flatten(1), dim=1))
                continue
            if turned is None:
                c, tq = _product(p.mT, q), _product(base.beyond, q)
                square = base.square + (2 * (tq * p).sum(dim=(1, 2)) + (c * c.mT).sum(dim=(1, 2)))
                turned = tq.add_(_product(q, c))
            norms.append(square.clamp_min(0).sqrt())
        distances, ctx.units = scaled_and_units(torch.stack(norms, dim=1), targets.scales)
        ctx.terms, ctx.inverse = terms, base.inverse
        ctx.save_for_backward(flc, p, q, turned, *differences)
        return distances

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor | None, None, None, None]:
        refuse_second_derivative()
        flc, p, q, turned, *differences = ctx.saved_tensors
        weights = gradient * ctx.units

        def resolved(other: Tensor) -> Tensor:
            return _times(ctx.inverse, other).sub_(_product(q, _product(p.mT, other)))

        whole = torch.zeros_like(q)  # −(G+Gᵀ)Q
        to_flc: Tensor | None = None
        of_flc = iter(differences)
        for index, term in enumerate(ctx.terms):
            weight = weights[:, index].view(-1, 1, 1)
            if term.operand == "ffc":
                part = turned * (2 * weight)
            else:
                unit = weight * next(of_flc)
                part = torch.cat([unit, flc], dim=2) @ torch.cat([flc.mT @ q, unit.mT @ q], dim=1).neg_()
                carried = resolved(unit)
                to_flc = carried if to_flc is None else to_flc + carried
            whole += part
        return resolved(whole), to_flc, None, None, None
