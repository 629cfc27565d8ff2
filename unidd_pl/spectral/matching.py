"""The matching loss against one real side, filtered as seldom as its filters allow.

Legend: c channels, k classes; l layers, t terms; Ψ, Φ of the real and Ψ_s, Φ_s of the synthetic data.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from unidd_pl.spectral.closed_form import Targets, closed_form_distances, has_closed_form
from unidd_pl.spectral.factored import AnyMoments, FactoredMoments, dense
from unidd_pl.spectral.filters import Resolvent, largest_eigenvalue
from unidd_pl.spectral.losses import filtered, largest_eigenvalues, least_norms, relative_scale, term_distances
from unidd_pl.spectral.low_rank import Base, low_rank_distances, takes_low_rank
from unidd_pl.spectral.methods import Method
from unidd_pl.spectral.moments import Moments
from unidd_pl.spectral.stacked import StackedMoments


@dataclass
class _Kept:
    """What the matching loss keeps until β changes."""

    filtered: list[tuple[Tensor, ...]] | None = None  # f(Ψ) g(Φ) for each layer and term
    least: Tensor | None = None  # (l, t), see `least_norms`
    targets: dict[tuple[int, ...], Targets] = field(default_factory=dict)  # for the layers of one width
    bases: dict[tuple[int, ...], tuple[Tensor | None, Base]] = field(default_factory=dict)  # and of which B
    orders: dict[tuple[int, ...], Tensor] = field(default_factory=dict)  # that bring groups of layers into order


class MatchingLoss:
    """Σ_l Σ_(f,g) ‖ f(Ψ) g(Φ) − f(Ψ_s) g(Φ_s) ‖_F for a fixed real side and the β in force.

    The real side is filtered in its own precision once for each β, so once a round. A two-sided filter
    depends on the synthetic side as well: there it is filtered anew each time, in the synthetic precision.

    Where all filters of the method have a closed-form gradient, layers of one width are taken together and
    nothing is recorded for autograd; otherwise this is `term_distances`. Both give the same.

    Args:
        method: The method, t terms.
        real: Real moments, one for each of l layers.
        beta: β of all layers until `betas` is set, eigenvalue units.
        relative: Divide each distance by the norm of its real side, but no less than `least_norms`.
        closed_form: Whether to take the fast path where there is one.

    References:
        SPEC.md section 2.
    """

    def __init__(
        self,
        method: Method,
        real: Sequence[Moments],
        beta: float,
        *,
        relative: bool = False,
        closed_form: bool = True,
    ) -> None:
        self.method = method
        self.real = tuple(real)
        self.relative = relative
        self._closed_form = closed_form and has_closed_form(method)
        self._betas = (beta,) * len(self.real)
        self._largest = [largest_eigenvalue(one.ffc) for one in self.real] if method.two_sided else None
        self._kept = _Kept()

    @property
    def takes_factors(self) -> bool:
        """Whether `FactoredMoments` make `distances` faster, as with resolvents alone."""
        return self._closed_form and takes_low_rank(self.method)

    @property
    def betas(self) -> tuple[float, ...]:
        """β in force, one for each layer. After a change the real side is filtered when it is next needed."""
        return self._betas

    @betas.setter
    def betas(self, values: tuple[float, ...]) -> None:
        if len(values) != len(self.real):
            raise ValueError(f"got {len(values)} values of β, expected one for each of {len(self.real)} layers")
        if values != self._betas:
            self._kept = _Kept()
        self._betas = values

    def distances(self, synthetic: Sequence[AnyMoments], columns: Tensor | None = None) -> Tensor:
        """Return the distance of every term in every layer, (l, t); the gradient flows.

        Args:
            synthetic: Moments of the synthetic images, one a layer.
            columns: (m,) indices of the classes to compare in the FLC; None compares all of them.
        """
        if self._closed_form and len(synthetic) == len(self.real):
            return self._by_width(StackedMoments.of(synthetic), columns)
        moments = [dense(one) for one in synthetic]
        like = moments[0].ffc
        largest = None if self._largest is None else largest_eigenvalues(self._largest, moments)
        return term_distances(
            self.method,
            self._filtered_once(like) if largest is None else self._filtered_with(largest, like),
            moments,
            self._betas,
            largest=largest,
            columns=columns,
            relative=self.relative,
            least=self._least_norms(like) if self.relative else None,
        )

    # ---- layers of one width together ----

    def _by_width(self, synthetic: StackedMoments, columns: Tensor | None) -> Tensor:
        distances = torch.cat([self._of_group(*group, columns) for group in synthetic.groups])
        taken = tuple(layer for layers, _ in synthetic.groups for layer in layers)
        if taken == tuple(range(len(taken))):
            return distances
        if taken not in self._kept.orders:
            self._kept.orders[taken] = torch.tensor(taken, device=distances.device).argsort()
        return distances[self._kept.orders[taken]]

    def _of_group(self, layers: tuple[int, ...], moments: AnyMoments, columns: Tensor | None) -> Tensor:
        """Return the distances of some layers of one width, (l, t)."""
        flc = _chosen(moments.flc, moments, columns)
        targets = self._targets(layers, moments, columns, flc)
        if isinstance(moments, FactoredMoments) and self.takes_factors:
            base = self._base(layers, moments, targets)
            return low_rank_distances(self.method.terms, targets, base, moments.factor, flc)
        return closed_form_distances(self.method.terms, targets, moments.ffc, flc)

    def _base(self, layers: tuple[int, ...], moments: FactoredMoments, targets: Targets) -> Base:
        """Return what B and the real side make of each other, kept while B is the same object."""
        kept = self._kept.bases.get(layers)
        if kept is None or kept[0] is not moments.base:
            real = self._resolvents(layers, moments.factor)
            kept = moments.base, Base.of(moments.base, targets.betas, real)
            self._kept.bases[layers] = kept
        return kept[1]

    @torch.no_grad()
    def _resolvents(self, layers: tuple[int, ...], like: Tensor) -> Tensor:
        """Return (Ψ+βI)⁻¹ of the real side of some layers, (l, c, c), in its own precision."""
        wide = [Resolvent().matrix(self.real[index].ffc, self._betas[index]) for index in layers]
        return torch.stack(wide).to(like.device)

    @torch.no_grad()
    def _targets(self, layers: tuple[int, ...], one: AnyMoments, columns: Tensor | None, like: Tensor) -> Targets:
        """Return the real side of some layers, kept for the β in force where all columns are compared."""
        whole = self._kept.targets.get(layers)
        if whole is None:
            filtered_once = self._filtered_once(like)
            values = tuple(torch.stack(terms) for terms in zip(*(filtered_once[i] for i in layers), strict=True))
            betas = like.new_tensor([self._betas[i] for i in layers]).view(-1, 1, 1)
            whole = Targets(values, betas, self._scales(layers, values, like) if self.relative else None)
            self._kept.targets[layers] = whole
        if columns is None or not one.label_weight.shape[-1]:
            return whole
        values = tuple(
            value[..., columns] if term.operand == "flc" else value
            for term, value in zip(self.method.terms, whole.values, strict=True)
        )
        return Targets(values, whole.betas, self._scales(layers, values, like) if self.relative else None)

    def _scales(self, layers: tuple[int, ...], values: Sequence[Tensor], like: Tensor) -> Tensor:
        norms = torch.stack([torch.linalg.vector_norm(value.flatten(1), dim=1) for value in values], dim=1)
        return relative_scale(norms, self._least_norms(like)[list(layers)])

    # ---- the real side ----

    @torch.no_grad()
    def _filtered_once(self, like: Tensor) -> list[tuple[Tensor, ...]]:
        if self._kept.filtered is None:
            wide = [filtered(self.method, *one) for one in zip(self.real, self._betas, strict=True)]
            self._kept.filtered = [tuple(value.to(like) for value in values) for values in wide]
        return self._kept.filtered

    @torch.no_grad()
    def _filtered_with(self, largest: Sequence[Tensor], like: Tensor) -> list[tuple[Tensor, ...]]:
        if self.real[0].ffc.dtype != like.dtype or self.real[0].ffc.device != like.device:
            self.real = tuple(one.to(dtype=like.dtype, device=like.device) for one in self.real)
        return [filtered(self.method, *one) for one in zip(self.real, self._betas, largest, strict=True)]

    @torch.no_grad()
    def _least_norms(self, like: Tensor) -> Tensor:
        if self._kept.least is None:
            self._kept.least = least_norms(self.method, self.real, self._betas).to(like)
        return self._kept.least


def _chosen(flc: Tensor, one: AnyMoments, columns: Tensor | None) -> Tensor:
    """Return the compared columns of Φ_s; the label-free signal has no classes to choose from."""
    return flc if columns is None or not one.label_weight.shape[-1] else flc[..., columns]
