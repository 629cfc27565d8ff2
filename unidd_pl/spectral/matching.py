"""The matching loss against one real side, filtered as seldom as its filters allow.

Legend: c channels, k classes; l layers, t terms; Ψ, Φ of the real and Ψ_s, Φ_s of the synthetic data.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from unidd_pl.spectral.filters import largest_eigenvalue
from unidd_pl.spectral.losses import filtered, largest_eigenvalues, least_norms, term_distances
from unidd_pl.spectral.methods import Method
from unidd_pl.spectral.moments import Moments


class MatchingLoss:
    """Σ_l Σ_(f,g) ‖ f(Ψ) g(Φ) − f(Ψ_s) g(Φ_s) ‖_F for a fixed real side and the β in force.

    The real side is filtered in its own precision once for each β, so once a round. A two-sided filter
    depends on the synthetic side as well: there it is filtered anew each time, in the synthetic precision.

    Args:
        method: The method, t terms.
        real: Real moments, one for each of l layers.
        beta: β of all layers until `betas` is set, eigenvalue units.
        relative: Divide each distance by the norm of its real side, but no less than `least_norms`.

    References:
        SPEC.md section 2.
    """

    def __init__(self, method: Method, real: Sequence[Moments], beta: float, *, relative: bool = False) -> None:
        self.method = method
        self.real = tuple(real)
        self.relative = relative
        self._betas = (beta,) * len(self.real)
        self._largest = [largest_eigenvalue(one.ffc) for one in self.real] if method.two_sided else None
        self._targets: list[tuple[Tensor, ...]] | None = None  # filtered with the β in force
        self._least: Tensor | None = None  # (l, t), see `least_norms`; for the β in force

    @property
    def betas(self) -> tuple[float, ...]:
        """β in force, one for each layer. After a change the real side is filtered when it is next needed."""
        return self._betas

    @betas.setter
    def betas(self, values: tuple[float, ...]) -> None:
        if len(values) != len(self.real):
            raise ValueError(f"got {len(values)} values of β, expected one for each of {len(self.real)} layers")
        if values != self._betas:
            self._targets = self._least = None
        self._betas = values

    def distances(self, synthetic: Sequence[Moments], columns: Tensor | None = None) -> Tensor:
        """Return the distance of every term in every layer, (l, t); the gradient flows.

        Args:
            synthetic: Moments of the synthetic images, one a layer.
            columns: (m,) indices of the classes to compare in the FLC; None compares all of them.
        """
        like = synthetic[0].ffc
        largest = None if self._largest is None else largest_eigenvalues(self._largest, synthetic)
        return term_distances(
            self.method,
            self._filtered_once(like) if largest is None else self._filtered_with(largest, like),
            synthetic,
            self._betas,
            largest=largest,
            columns=columns,
            relative=self.relative,
            least=self._least_norms(like) if self.relative else None,
        )

    @torch.no_grad()
    def _filtered_once(self, like: Tensor) -> list[tuple[Tensor, ...]]:
        if self._targets is None:
            wide = [filtered(self.method, *one) for one in zip(self.real, self._betas, strict=True)]
            self._targets = [tuple(value.to(like) for value in values) for values in wide]
        return self._targets

    @torch.no_grad()
    def _filtered_with(self, largest: Sequence[Tensor], like: Tensor) -> list[tuple[Tensor, ...]]:
        if self.real[0].ffc.dtype != like.dtype or self.real[0].ffc.device != like.device:
            self.real = tuple(one.to(dtype=like.dtype, device=like.device) for one in self.real)
        return [filtered(self.method, *one) for one in zip(self.real, self._betas, largest, strict=True)]

    @torch.no_grad()
    def _least_norms(self, like: Tensor) -> Tensor:
        if self._least is None:
            self._least = least_norms(self.method, self.real, self._betas).to(like)
        return self._least
