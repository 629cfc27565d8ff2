"""SPEC.md sections 2 and 3 in plain autograd, as one would write them down: the fast path has to equal and to beat it.

Nothing here is shared with `unidd_pl.spectral` but the names of the filters. The real side is filtered once, as
`spectral_loss` takes it filtered; a row is a position of a permuted copy, a resolvent is `torch.linalg.inv`.

Legend: n images, c channels, h w space, k classes; Ψ (c, c), Φ (c, k) or (c, 1).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from unidd_pl.spectral import (
    Identity,
    Landweber,
    LandweberResidual,
    Linear,
    Method,
    Moments,
    Resolvent,
    SpectralFilter,
)


@dataclass
class Correlations:
    """What the loss compares and what running moments need to add up.

    Args:
        psi: (c, c) Ψ.
        phi: (c, k) Φ, or (c, 1) where label-free.
        mean: (c,) channel means.
        rows: Rows the moments were taken over.
        weight: (k,) weight of each class; empty where label-free.
    """

    psi: Tensor
    phi: Tensor
    mean: Tensor
    rows: float
    weight: Tensor

    @classmethod
    def of_moments(cls, moments: Moments) -> Correlations:
        """Take over what the package has gathered of the real data."""
        return cls(moments.ffc, moments.flc, moments.mean, float(moments.count), moments.label_weight)


def correlations(features: Tensor, labels: Tensor | None = None) -> Correlations:
    """Return Ψ and Φ of features (n, c, h, w) and labels (n, k)."""
    x = features.permute(0, 2, 3, 1).reshape(-1, features.shape[1])
    centred = x - x.mean(dim=0)
    psi = centred.T @ centred / len(x)
    if labels is None:
        return Correlations(psi, x.mean(dim=0)[:, None], x.mean(dim=0), len(x), psi.new_zeros(0))
    weight = labels.sum(dim=0)
    pooled = features.mean(dim=(2, 3))
    phi = pooled.T @ labels / weight.clamp_min(1e-30) / labels.shape[1]
    return Correlations(psi, phi, x.mean(dim=0), len(x), weight)


def running(mode: str, done: Correlations, chunks: int, batch: Correlations) -> Correlations:
    """Return the moments of `chunks` finished chunks and one batch; SPEC.md section 3."""
    if mode == "mean":
        share = 1 / (chunks + 1)
        psi = (1 - share) * done.psi + share * batch.psi
        phi = (1 - share) * done.phi + share * batch.phi
    else:
        share = batch.rows / (done.rows + batch.rows)
        delta = batch.mean - done.mean
        psi = (1 - share) * done.psi + share * batch.psi + share * (1 - share) * torch.outer(delta, delta)
        by_class = batch.weight / (done.weight + batch.weight).clamp_min(1e-30) if len(batch.weight) else share
        phi = (1 - by_class) * done.phi + by_class * batch.phi
    return Correlations(psi, phi, done.mean, batch.rows, batch.weight)


def matrix_of(spectral_filter: SpectralFilter, psi: Tensor, beta: float, largest: Tensor | None = None) -> Tensor:
    """Return f(Ψ) by the formula of SPEC.md section 2."""
    identity = torch.eye(len(psi), dtype=psi.dtype, device=psi.device)
    if isinstance(spectral_filter, Identity):
        return identity
    if isinstance(spectral_filter, Linear):
        return psi
    if isinstance(spectral_filter, Resolvent):
        inverse: Tensor = torch.linalg.inv(psi + beta * identity)
        return inverse
    if not isinstance(spectral_filter, (Landweber, LandweberResidual)) or largest is None:
        raise ValueError(f"got the filter {spectral_filter.formula}, expected one of SPEC.md section 2")
    alpha = spectral_filter.step_size / largest
    power, total = identity, torch.zeros_like(psi)
    for _ in range(spectral_filter.steps):
        total, power = total + alpha * power, power - alpha * psi @ power
    return total if isinstance(spectral_filter, Landweber) else power


def sides(method: Method, one: Correlations, beta: float, largest: Tensor | None = None) -> list[Tensor]:
    """Return f(Ψ) g(Φ) of every term."""
    results: list[Tensor] = []
    matrices: dict[int, Tensor] = {}
    for term in method.terms:
        if id(term.filter) not in matrices:
            matrices[id(term.filter)] = matrix_of(term.filter, one.psi, beta, largest)
        matrix = matrices[id(term.filter)]
        if term.operand == "flc":
            results.append(matrix @ one.phi)
        else:
            results.append(matrix.diagonal() if term.diagonal else matrix)
    return results


def spectral_loss(
    method: Method,
    real: Sequence[Sequence[Tensor]],
    synthetic: Sequence[Correlations],
    betas: Sequence[float],
    largest: Sequence[Tensor] | None = None,
) -> Tensor:
    """Return Σ_l Σ_(f,g) ‖f(Ψ)g(Φ) − f(Ψ_s)g(Φ_s)‖_F for a real side that `sides` has filtered."""
    total = torch.zeros((), dtype=synthetic[0].psi.dtype, device=synthetic[0].psi.device)
    for index, (targets, one) in enumerate(zip(real, synthetic, strict=True)):
        values = sides(method, one, betas[index], None if largest is None else largest[index])
        for target, value in zip(targets, values, strict=True):
            total = total + torch.linalg.vector_norm(target - value)
    return total
