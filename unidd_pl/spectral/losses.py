"""The matching loss: L_match = Σ_l Σ_(f,g) ‖ f(Ψ) g(Φ) − f(Ψ_s) g(Φ_s) ‖_F.

Legend: c channels, k classes; Ψ, Φ of the real and Ψ_s, Φ_s of the synthetic data; l layers.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from unidd_pl.spectral.filters import largest_eigenvalue
from unidd_pl.spectral.methods import Method, Term
from unidd_pl.spectral.moments import Moments

_LEAST_SHARE = 0.01  # of the norm for a Φ of one standard deviation; below it a norm is no scale


def filtered(method: Method, moments: Moments, beta: float, largest: Tensor | None = None) -> tuple[Tensor, ...]:
    """Return f(Ψ) g(Φ) for every term of a method.

    Args:
        method: The method, t terms.
        moments: Moments of one layer.
        beta: Filter parameter β, eigenvalue units.
        largest: () the largest eigenvalue of both sides, for two-sided filters; see `largest_eigenvalues`.

    Returns:
        t tensors: (c, c) for the operand ``ffc``, or (c,) where only its diagonal is compared, and (c, k) or
        (c, 1) for ``flc``; the gradient flows.
    """
    # Autocast would take the products in half precision.
    with torch.autocast(moments.ffc.device.type, enabled=False):
        return _filtered(method, moments, beta, largest)


def _filtered(method: Method, moments: Moments, beta: float, largest: Tensor | None) -> tuple[Tensor, ...]:
    ffc, flc = moments.ffc, moments.flc
    matrices: dict[int, Tensor] = {}  # the terms of a method often share one filter

    def matrix_of(term: Term) -> Tensor:
        key = id(term.filter)
        if key not in matrices:
            matrices[key] = term.filter.matrix(ffc, beta, largest)
        return matrices[key]

    results: list[Tensor] = []
    for term in method.terms:
        if term.operand == "ffc":
            results.append(matrix_of(term).diagonal() if term.diagonal else matrix_of(term))
        elif id(term.filter) in matrices:
            results.append(matrix_of(term) @ flc)
        else:
            results.append(term.filter.apply(ffc, flc, beta, largest))
    return tuple(results)


def largest_eigenvalues(real: Sequence[Tensor], synthetic: Sequence[Moments]) -> list[Tensor]:
    """Return the larger λ_max of the two sides for each layer, (), without a gradient.

    Args:
        real: λ_max of the real FFC, (), for each of l layers.
        synthetic: Moments of the synthetic images, one a layer.

    References:
        SPEC.md section 2, the rule for α.
    """
    return [
        torch.maximum(one.to(other.ffc), largest_eigenvalue(other.ffc))
        for one, other in zip(real, synthetic, strict=True)
    ]


def term_distances(
    method: Method,
    real: Sequence[tuple[Tensor, ...]],
    synthetic: Sequence[Moments],
    betas: Sequence[float],
    *,
    largest: Sequence[Tensor] | None = None,
    columns: Tensor | None = None,
    relative: bool = False,
    least: Tensor | None = None,
) -> Tensor:
    """Return the distance of every term in every layer; their sum is L_match.

    Args:
        method: The method, t terms.
        real: For each of l layers the result of `filtered` on the real moments. Unless a filter is two-sided it
            depends on β only, and it is given, not computed, so that a caller can keep it for a whole round.
        synthetic: Moments of the synthetic images, one a layer.
        betas: Filter parameter β of each layer, eigenvalue units; what `real` was filtered with.
        largest: () for each layer, what `real` was filtered with; two-sided filters need it.
        columns: (m,) indices of the classes to compare in the FLC; None compares all of them.
        relative: Divide each distance by the norm of its real side.
        least: (l, t) the least to divide by, see `least_norms`; None for no limit.

    Returns:
        (l, t) distances ≥ 0; the gradient flows to the synthetic moments.

    Raises:
        ValueError: If the two sides do not have the same shapes, as with different signals, or a two-sided
            filter is not given what both sides have in common.

    References:
        SPEC.md section 2; norms unsquared as in the release.
    """
    if method.two_sided and largest is None:
        raise ValueError(f"method {method.name} needs the largest eigenvalues of both sides, got none")
    rows: list[Tensor] = []
    scales = largest if largest is not None else [None] * len(betas)
    for targets, moments, beta, scale in zip(real, synthetic, betas, scales, strict=True):
        values = filtered(method, moments, beta, scale)
        distances: list[Tensor] = []
        for term, target, value in zip(method.terms, targets, values, strict=True):
            if target.shape != value.shape:
                raise ValueError(
                    f"{term.name}: got a real side {tuple(target.shape)} and a synthetic side {tuple(value.shape)}, "
                    "expected the same shape: both sides need the same layers and the same signal"
                )
            has_class_columns = term.operand == "flc" and moments.label_weight.numel() > 0
            if columns is not None and has_class_columns:
                target, value = target[:, columns], value[:, columns]  # noqa: PLW2901
            distance = torch.linalg.vector_norm(target - value)
            if relative:
                norm = torch.linalg.vector_norm(target)
                distance = distance / relative_scale(norm, None if least is None else least[len(rows), len(distances)])
            distances.append(distance)
        rows.append(torch.stack(distances))
    return torch.stack(rows)


def relative_scale(norm: Tensor, least: Tensor | None) -> Tensor:
    """Return what to divide distances by: the real side's norms, but no less than `least`; 1 for a dead layer."""
    norm = norm if least is None else torch.maximum(norm, least)
    return torch.where(norm > 0, norm, 1)


def least_norms(method: Method, moments: Sequence[Moments], betas: Sequence[float]) -> Tensor:
    """Return what the real side's norm has to reach to be a scale for relative distances, (l, t).

    The mean of normalised pixels, Φ of the first layer, is zero up to rounding: to divide by its norm would
    drown every other term. For an ``flc`` term this is a hundredth of the norm that a Φ of one standard deviation
    would give; for an ``ffc`` term it is zero.

    Args:
        method: The method, t terms.
        moments: The real moments, one for each of l layers.
        betas: Filter parameter β of each layer, eigenvalue units.
    """
    rows: list[Tensor] = []
    for one, beta in zip(moments, betas, strict=True):
        deviation = one.ffc.diagonal().clamp_min(0).mean().sqrt()
        unit = torch.ones_like(one.flc) * deviation / max(1, len(one.label_weight))  # columns of Φ are means over K
        norms = [
            _LEAST_SHARE * torch.linalg.vector_norm(term.filter.apply(one.ffc, unit, beta))
            if term.operand == "flc"
            else torch.zeros_like(deviation)
            for term in method.terms
        ]
        rows.append(torch.stack(norms))
    return torch.stack(rows)
