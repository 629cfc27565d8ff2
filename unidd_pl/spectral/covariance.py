"""What the moments are made of, taken of features while they pass on their way into a layer; gradient in closed form.

Legend: n images, c channels, h w space, s = n·h·w rows; X features (s, c), μ their mean (c,); * nothing, or l for
layers of one width stacked.

Of each layer as little as can be is done on the way: there every small operation starts with cold caches, behind a
convolution. With features laid out channels last, X is the features themselves, and nothing is permuted, copied or
kept::

    M = XᵀX, t = Xᵀ1                                 one product and one pass, by layer
    Ψ = M/s − μμᵀ, μ = t/s                           by all layers of one width together
    dX = X(dM + dMᵀ) + 1 dtᵀ                         one product and one pass, onto the gradient out of the layer

Channels first, the pass that centres also lays the rows out for one product.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from unidd_pl.spectral.once import refuse_second_derivative


@dataclass(frozen=True)
class Passing:
    """How features pass.

    Args:
        centred: Subtract the mean before the product, not after it. It costs a copy; where the mean is large beside
            the deviations, these are lost in the product without it.
        owned: The gradient that comes out of the layer is nobody else's, so that it may be added onto. It is for a
            convolution or a BatchNorm, which make it anew; a layer that hands it through may share it.
        by_image: Add the rows of each image up for itself, as labels need it; one sum of all is cheaper.
    """

    centred: bool = True
    owned: bool = False
    by_image: bool = True


ANY = Passing()
"""What is right for all features and layers."""


@dataclass(frozen=True, eq=False)
class Sums:
    """What is added up of the features of a layer, or of l layers of one width.

    Args:
        second: (*, c, c) M = XᵀX or, centred, (X−1μᵀ)ᵀ(X−1μᵀ); its gradient has to be symmetric, as that of
            `covariance` is. Or, thin, X itself, (*, s, c).
        first: (*, n, c) the rows of each image added up, or (*, 1, c) all of them.
        centred: Whether the mean is taken off M already.
    """

    second: Tensor
    first: Tensor
    centred: bool = False

    @property
    def total(self) -> Tensor:
        """All rows added up, (*, c)."""
        return self.first.sum(dim=-2) if self.first.shape[-2] > 1 else self.first.squeeze(-2)


def second_moment(features: Tensor, passing: Passing = ANY) -> tuple[Tensor, Sums]:
    """Return features as they are, and M of them.

    Args:
        features: (n, c, h, w) or (n, c); half precision is widened to float32 for what is taken of them.
        passing: How they pass.

    Returns:
        The features, for the layer, and their sums. The gradient flows, once: where the layer gets the returned
        features, that of all goes back as one tensor.
    """
    by_rows = _lies_by_rows(features)
    passed, second, first = _taken(_SecondMomentOfRows if by_rows else _SecondMomentOfColumns, features, passing)
    return passed, Sums(second, first, passing.centred or not by_rows)


def thin_rows(features: Tensor, passing: Passing = ANY) -> tuple[Tensor, Sums]:
    """Return what `second_moment` returns, but X itself, (s, c), instead of M."""
    passed, rows, first = _taken(_ThinRows, features, passing)
    return passed, Sums(rows, first)


def covariance(sums: Sums, count: Tensor) -> tuple[Tensor, Tensor]:
    """Return Ψ (*, c, c) and μ (*, c) of M; the gradient flows, once.

    Args:
        sums: M and the sums of the rows.
        count: (*) rows s.
    """
    ffc, mean = _Covariance.apply(sums.second, sums.total, count, sums.centred)
    return ffc, mean


def _taken(function: Any, features: Tensor, passing: Passing) -> tuple[Tensor, Tensor, Tensor]:
    device = features.device.type
    if torch.is_autocast_enabled(device):  # it would do the products in half precision and lose the small eigenvalues
        with torch.autocast(device, enabled=False):
            taken: tuple[Tensor, Tensor, Tensor] = function.apply(features, passing)
    else:
        taken = function.apply(features, passing)
    return taken


class _Covariance(torch.autograd.Function):
    """See `covariance`."""

    @staticmethod
    def forward(ctx: Any, second: Tensor, total: Tensor, count: Tensor, centred: bool) -> tuple[Tensor, Tensor]:
        ctx.set_materialize_grads(False)
        ctx.centred = centred
        mean = total / count[..., None]
        ffc = second / count[..., None, None]
        if not centred:
            ffc.addcmul_(mean[..., :, None], mean[..., None, :], value=-1)
        ctx.save_for_backward(mean, count)
        return ffc, mean

    @staticmethod
    def backward(ctx: Any, ffc: Tensor | None, mean: Tensor | None) -> tuple[Tensor | None, Tensor | None, None, None]:
        refuse_second_derivative()
        values, count = ctx.saved_tensors
        to_second = None
        if ffc is not None:
            to_second = (ffc + ffc.mT).mul_(0.5 / count[..., None, None])
            if not ctx.centred:
                inner = (to_second @ values[..., None]).squeeze(-1) * (-2 * count[..., None])
                mean = inner if mean is None else mean + inner
        return to_second, None if mean is None else mean / count[..., None], None, None


class _SecondMomentOfRows(torch.autograd.Function):
    """`second_moment` of features that are laid out channels last."""

    @staticmethod
    def forward(ctx: Any, features: Tensor, passing: Passing) -> tuple[Tensor, Tensor, Tensor]:
        ctx.set_materialize_grads(False)
        ctx.passing = passing
        rows = _rows(features)
        first = _first(rows, features, passing)
        if not passing.centred:
            ctx.save_for_backward(features)
            return features, rows.t() @ rows, first
        mean = first.sum(dim=0) / len(rows)
        ctx.save_for_backward(features, mean)
        centred = rows - mean
        return features, centred.t() @ centred, first

    @staticmethod
    def backward(ctx: Any, passed: Tensor | None, second: Tensor | None, first: Tensor | None) -> tuple[Tensor, None]:
        refuse_second_derivative()
        features, *mean = ctx.saved_tensors
        gradient = _Gradient(passed, features, owned=ctx.passing.owned)
        if second is not None:
            gradient.add_product(_rows(features), second)
            if mean:
                gradient.add(mean[0] @ second * -2)
        return gradient.finished(first), None


class _ThinRows(torch.autograd.Function):
    """See `thin_rows`."""

    @staticmethod
    def forward(ctx: Any, features: Tensor, passing: Passing) -> tuple[Tensor, Tensor, Tensor]:
        ctx.set_materialize_grads(False)
        ctx.passing = passing
        rows = _rows(features)
        ctx.save_for_backward(features)
        return features, rows, _first(rows, features, passing)

    @staticmethod
    def backward(ctx: Any, passed: Tensor | None, rows: Tensor | None, first: Tensor | None) -> tuple[Tensor, None]:
        refuse_second_derivative()
        (features,) = ctx.saved_tensors
        gradient = _Gradient(passed, features, owned=ctx.passing.owned)
        if rows is not None:
            gradient.add(rows)
        return gradient.finished(first), None


class _SecondMomentOfColumns(torch.autograd.Function):
    """`second_moment` of features in any other layout, such as channels first; always centred."""

    @staticmethod
    def forward(ctx: Any, features: Tensor, passing: Passing) -> tuple[Tensor, Tensor, Tensor]:
        ctx.set_materialize_grads(False)
        ctx.passing, ctx.shape, ctx.dtype = passing, features.shape, features.dtype
        space = _widened(features).reshape(*features.shape[:2], -1)
        n, c, positions = space.shape
        first = space.sum(dim=2)
        # Products image by image are slower than this one pass and one product.
        columns = space.new_empty(c, n, positions)
        torch.sub(space.transpose(0, 1), (first.sum(dim=0) / (n * positions))[:, None, None], out=columns)
        columns = columns.view(c, -1)
        ctx.save_for_backward(columns)
        return features, columns @ columns.t(), first if passing.by_image else first.sum(dim=0, keepdim=True)

    @staticmethod
    def backward(ctx: Any, passed: Tensor | None, second: Tensor | None, first: Tensor | None) -> tuple[Tensor, None]:
        refuse_second_derivative()
        (columns,) = ctx.saved_tensors
        # The mean moves nothing, because the centred rows add up to zero.
        own = torch.zeros_like(columns) if second is None else (2 * second) @ columns
        space = own.view(len(columns), ctx.shape[0], -1).transpose(0, 1)
        if passed is None:
            gradient = space.contiguous()
        else:
            if not (ctx.passing.owned and passed.dtype == own.dtype and passed.is_contiguous()):
                passed = passed.to(own.dtype, memory_format=torch.contiguous_format, copy=True)
            gradient = passed.view(space.shape).add_(space)
        if first is not None:
            gradient.add_(first[:, :, None])
        return gradient.view(ctx.shape).to(ctx.dtype), None


class _Gradient:
    """The gradient of features as rows, added up: onto that out of the layer where it is owned, or onto a copy.

    Args:
        passed: (n, c, h, w) the gradient out of the layer, if there is one.
        features: (n, c, h, w).
        owned: As for `Passing`.
    """

    def __init__(self, passed: Tensor | None, features: Tensor, *, owned: bool) -> None:
        self._features, self._in_place = features, passed
        self._rows: Tensor | None = None
        if passed is None:
            return
        wide = _widened(passed)
        if owned and wide is passed and _lies_by_rows(passed):
            self._rows = _rows(passed)
        else:
            self._in_place = None
            last = wide.movedim(1, -1)
            self._rows = last.to(memory_format=torch.contiguous_format, copy=True).view(-1, last.shape[-1])

    def add(self, rows: Tensor) -> None:
        """Add rows (s, c), or one for all, (c,)."""
        self._rows = rows.clone() if self._rows is None else self._rows.add_(rows)

    def add_product(self, rows: Tensor, second: Tensor) -> None:
        """Add the gradient of XᵀX: 2 X G for a symmetric G."""
        if self._rows is None:
            self._rows = torch.addmm(rows, rows, second, beta=0, alpha=2)
        else:
            self._rows.addmm_(rows, second, alpha=2)

    def finished(self, first: Tensor | None) -> Tensor:
        """Add the gradient (n or 1, c) of the sums of the rows; return the whole as features."""
        n, c, *space = self._features.shape
        if self._rows is None:
            self._rows = torch.zeros_like(_rows(self._features))
        if first is not None:
            by_image = self._rows if len(first) == 1 else self._rows.view(n, -1, c)
            by_image.add_(first if len(first) == 1 else first[:, None])
        if self._in_place is not None:
            return self._in_place
        return self._rows.view(n, *space, c).movedim(-1, 1).to(self._features.dtype)


def _first(rows: Tensor, features: Tensor, passing: Passing) -> Tensor:
    """Return the rows of each image added up, (n, c), or all of them, (1, c)."""
    if not passing.by_image:
        return rows.sum(dim=0, keepdim=True)
    return rows.view(len(features), -1, rows.shape[1]).sum(dim=1)


def _widened(features: Tensor) -> Tensor:
    return features.float() if features.dtype in (torch.float16, torch.bfloat16) else features


def _lies_by_rows(features: Tensor) -> bool:
    if features.ndim == 4:  # the same as below, without a view
        return features.is_contiguous(memory_format=torch.channels_last)
    return features.movedim(1, -1).is_contiguous()


def _rows(features: Tensor) -> Tensor:
    """Return X, (s, c), float32 or better; a view where the layout and the precision allow it."""
    wide, c = _widened(features), features.shape[1]
    if _lies_by_rows(wide):
        return wide.as_strided((wide.numel() // c, c), (c, 1))
    return wide.movedim(1, -1).reshape(-1, c)
