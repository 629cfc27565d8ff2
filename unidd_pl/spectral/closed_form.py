"""The matching distances of several layers at once, with their gradient in closed form.

Legend: c channels, k columns of Φ; l layers of one width; Ψ, Φ of the real and Ψ_s, Φ_s of the synthetic data.

With Δ = f(Ψ_s) g(Φ_s) − f(Ψ) g(Φ) and d = ‖Δ‖_F the gradient of d with respect to f(Ψ_s) g(Φ_s) is Δ/d. From there it
goes to f(Ψ_s) and Φ_s by the product rule, and from f(Ψ_s) to Ψ_s by the filter's `pullback`. Nothing is
recorded inside the solve, and the layers of one width share each call.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from unidd_pl.spectral.filters import Identity
from unidd_pl.spectral.methods import Method, Term
from unidd_pl.spectral.once import refuse_second_derivative


@dataclass(frozen=True, eq=False)
class Targets:
    """The real side of l layers of one width.

    Args:
        values: f(Ψ) g(Φ) for each of t terms, (l, c, c), its diagonal (l, c), or (l, c, k).
        betas: (l, 1, 1) filter parameter β, eigenvalue units.
        scales: (l, t) what the distances are divided by, or None.
    """

    values: tuple[Tensor, ...]
    betas: Tensor
    scales: Tensor | None = None


def has_closed_form(method: Method) -> bool:
    """Return whether all filters of a method bring the gradient that the fast path needs."""
    return all(term.filter.has_pullback and not term.filter.two_sided for term in method.terms)


def closed_form_distances(terms: Sequence[Term], targets: Targets, ffc: Tensor, flc: Tensor) -> Tensor:
    """Return ‖f(Ψ)g(Φ) − f(Ψ_s)g(Φ_s)‖_F of every term in every layer.

    Equal to `term_distances`, in value and gradient.

    Args:
        terms: The t terms; `has_closed_form` holds for their method.
        targets: The real side.
        ffc: (l, c, c) Ψ_s.
        flc: (l, c, k) Φ_s.

    Returns:
        (l, t) distances ≥ 0; the gradient flows, once, to Ψ_s and Φ_s.
    """
    distances: Tensor = _Distances.apply(ffc, flc, tuple(terms), targets)
    return distances


def scaled_and_units(norms: Tensor, scales: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return d = ‖Δ‖_F over its scale, (l, t), and 1/(‖Δ‖_F · scale), zero where Δ is, of the norms ‖Δ‖_F."""
    inverses = torch.where(norms == 0, torch.inf, norms).reciprocal()
    if scales is not None:
        norms, inverses = norms / scales, inverses / scales
    return norms, inverses


class _Distances(torch.autograd.Function):
    """See `closed_form_distances`."""

    @staticmethod
    def forward(ctx: Any, ffc: Tensor, flc: Tensor, terms: tuple[Term, ...], targets: Targets) -> Tensor:
        matrices: dict[int, Tensor] = {}  # f(Ψ_s); the terms of a method often share one filter
        for term in terms:
            if id(term.filter) not in matrices and not isinstance(term.filter, Identity):
                matrices[id(term.filter)] = term.filter.matrix(ffc, targets.betas)
        differences = [
            _value(term, matrices.get(id(term.filter)), ffc, flc).sub(target)
            for term, target in zip(terms, targets.values, strict=True)
        ]
        norms = torch.stack([torch.linalg.vector_norm(one.flatten(1), dim=1) for one in differences], dim=1)
        distances, ctx.units = scaled_and_units(norms, targets.scales)
        ctx.terms, ctx.keys = terms, tuple(matrices)
        ctx.save_for_backward(flc, *matrices.values(), *differences)
        return distances

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        refuse_second_derivative()
        flc, *saved = ctx.saved_tensors
        matrices = dict(zip(ctx.keys, saved, strict=False))
        weights = gradient * ctx.units
        to_matrix: dict[int, Tensor] = {}
        to_flc: Tensor | None = None
        for index, (term, difference) in enumerate(zip(ctx.terms, saved[len(matrices) :], strict=True)):
            unit = difference * weights[:, index].view(-1, *[1] * (difference.ndim - 1))
            key = id(term.filter)
            known = to_matrix.get(key)
            if term.operand == "flc":
                carried = matrices[key].mT @ unit if key in matrices else unit
                to_flc = carried if to_flc is None else to_flc.add_(carried)
                if key in matrices:
                    to_matrix[key] = unit @ flc.mT if known is None else known.baddbmm_(unit, flc.mT)
            elif key in matrices:
                unit = torch.diag_embed(unit) if term.diagonal else unit
                to_matrix[key] = unit if known is None else known.add_(unit)
        filters = {id(term.filter): term.filter for term in ctx.terms}
        to_ffc: Tensor | None = None
        for key, cotangent in to_matrix.items():
            part = filters[key].pullback(matrices[key], cotangent)
            to_ffc = part if to_ffc is None else to_ffc + part
        return to_ffc, to_flc, None, None


def _value(term: Term, matrix: Tensor | None, ffc: Tensor, flc: Tensor) -> Tensor:
    """Return f(Ψ_s) g(Φ_s); no matrix stands for the identity."""
    if term.operand == "flc":
        return flc if matrix is None else matrix @ flc
    matrix = term.filter.matrix(ffc, 0.0) if matrix is None else matrix
    return matrix.diagonal(dim1=-2, dim2=-1) if term.diagonal else matrix
