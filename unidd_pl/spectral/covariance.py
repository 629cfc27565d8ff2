"""The covariance of features, taken while they pass on their way into a layer, with its gradient in closed form.

Legend: n images, c channels, h w space, p = h·w positions, s = n·p rows; X features (s, c), μ their mean (c,).

With features laid out channels last, X is the features themselves, so that nothing is permuted, copied or kept::

    Ψ = XᵀX/s − μμᵀ                                  one product
    dX = (X − 1μᵀ)(G + Gᵀ)/s                         one product, added onto the gradient that comes out of the layer

Channels first, the pass that centres also lays the rows out for one product.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

_HALVED_FROM = 64  # channels; a narrower product gains nothing from its symmetry


@dataclass(frozen=True)
class Passing:
    """How features pass.

    Args:
        centred: Subtract the mean before the product, not after it. It costs a copy; where the mean is large beside
            the deviations, these are lost in the product without it.
        owned: The gradient that comes out of the layer is nobody else's, so that it may be added onto. It is for a
            convolution or a BatchNorm, which make it anew; a layer that hands it through may share it.
    """

    centred: bool = True
    owned: bool = False


ANY = Passing()
"""What is right for all features and layers."""


def covariance(features: Tensor, passing: Passing = ANY) -> tuple[Tensor, Tensor, Tensor]:
    """Return features as they are, their covariance over all rows, and themselves pooled.

    Args:
        features: (n, c, h, w) or (n, c); half precision is widened to float32 for what is taken of them.
        passing: How they pass.

    Returns:
        The features, for the layer; Ψ (c, c); pool(x) (n, c). The gradient flows, once: where the layer gets the
        returned features, that of all three goes back as one tensor.
    """
    by_rows = features.movedim(1, -1).is_contiguous()
    function = _CovarianceOfRows if by_rows else _CovarianceOfColumns
    return _taken(function, features, passing)


def thin_factor(features: Tensor, passing: Passing = ANY) -> tuple[Tensor, Tensor, Tensor]:
    """Return what `covariance` returns, but instead of Ψ its factor U = (X − 1μᵀ)ᵀ/√s, (c, s), with Ψ = UUᵀ."""
    return _taken(_ThinFactor, features, passing)


def _taken(function: Any, features: Tensor, passing: Passing) -> tuple[Tensor, Tensor, Tensor]:
    # Autocast would do the products in half precision, which loses the small eigenvalues.
    with torch.autocast(features.device.type, enabled=False):
        passed, second, pooled = function.apply(features, passing)
    return passed, second, pooled


class _CovarianceOfRows(torch.autograd.Function):
    """`covariance` of features that are laid out channels last."""

    @staticmethod
    def forward(ctx: Any, features: Tensor, passing: Passing) -> tuple[Tensor, Tensor, Tensor]:
        rows, pooled = _entered(ctx, features, passing)
        mean = pooled.mean(dim=0)
        centred = rows - mean if passing.centred else rows
        ffc = gram(centred).div_(len(rows))
        ctx.save_for_backward(features, mean)
        return features, ffc if passing.centred else ffc.addr_(mean, mean, alpha=-1), pooled

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, passed: Tensor | None, ffc: Tensor | None, pooled: Tensor | None) -> tuple[Tensor, None]:
        features, mean = ctx.saved_tensors
        rows = _rows(features)
        gradient = _begun(passed, rows, owned=ctx.passing.owned)
        shift = None
        if ffc is not None:
            both = (ffc + ffc.mT).div_(len(rows))
            gradient.addmm_(rows, both)
            shift = -(mean @ both)
        return _finished(gradient, shift, pooled, features), None


class _ThinFactor(torch.autograd.Function):
    """See `thin_factor`."""

    @staticmethod
    def forward(ctx: Any, features: Tensor, passing: Passing) -> tuple[Tensor, Tensor, Tensor]:
        rows, pooled = _entered(ctx, features, passing)
        ctx.save_for_backward(features)
        return features, (rows - pooled.mean(dim=0)).mul_(len(rows) ** -0.5).T, pooled

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, passed: Tensor | None, factor: Tensor | None, pooled: Tensor | None) -> tuple[Tensor, None]:
        (features,) = ctx.saved_tensors
        rows = _rows(features)
        gradient = _begun(passed, rows, owned=ctx.passing.owned)
        shift = None
        if factor is not None:
            scale = len(rows) ** -0.5
            gradient.add_(factor.mT, alpha=scale)
            shift = factor.mean(dim=1).mul_(-scale)
        return _finished(gradient, shift, pooled, features), None


class _CovarianceOfColumns(torch.autograd.Function):
    """`covariance` of features in any other layout, such as channels first."""

    @staticmethod
    def forward(ctx: Any, features: Tensor, passing: Passing) -> tuple[Tensor, Tensor, Tensor]:
        ctx.set_materialize_grads(False)
        ctx.passing, ctx.shape = passing, features.shape
        space = _widened(features).reshape(*features.shape[:2], -1)
        n, c, positions = space.shape
        pooled = space.mean(dim=2)
        # Products image by image are slower than this one pass and one product.
        columns = space.new_empty(c, n, positions)
        torch.sub(space.transpose(0, 1), pooled.mean(dim=0)[:, None, None], out=columns)
        columns = columns.view(c, -1)
        ctx.save_for_backward(columns)
        return features, gram(columns.T).div_(n * positions), pooled

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, passed: Tensor | None, ffc: Tensor | None, pooled: Tensor | None) -> tuple[Tensor, None]:
        (columns,) = ctx.saved_tensors
        c, rows = columns.shape
        n = ctx.shape[0]
        # The mean moves nothing, because the centred rows add up to zero.
        own = torch.zeros_like(columns) if ffc is None else (ffc + ffc.mT).div_(rows) @ columns
        space = own.view(c, n, -1).transpose(0, 1)
        if pooled is not None:
            space.add_(pooled[:, :, None], alpha=n / rows)
        gradient = space.reshape(ctx.shape)
        if passed is None:
            return gradient, None
        in_place = ctx.passing.owned and passed.dtype == gradient.dtype
        return passed.add_(gradient) if in_place else (passed + gradient).to(passed.dtype), None


def _entered(ctx: Any, features: Tensor, passing: Passing) -> tuple[Tensor, Tensor]:
    """Return X and the features pooled, and note for the way back how the features pass."""
    ctx.set_materialize_grads(False)
    ctx.passing = passing
    rows = _rows(features)
    return rows, _pooled(rows, len(features))


def _widened(features: Tensor) -> Tensor:
    return features.float() if features.dtype in (torch.float16, torch.bfloat16) else features


def _rows(features: Tensor) -> Tensor:
    """Return X, (s, c), float32 or better; a view where the layout and the precision allow it."""
    return _widened(features).movedim(1, -1).reshape(-1, features.shape[1])


def gram(rows: Tensor) -> Tensor:
    """Return XᵀX, (c, c); on a CPU a quarter of it is copied from the other side of the diagonal."""
    c = rows.shape[1]
    if c < _HALVED_FROM or rows.device.type != "cpu":
        return rows.T @ rows
    product, half = rows.new_empty(c, c), c // 2
    torch.mm(rows.T, rows[:, :half], out=product[:, :half])
    torch.mm(rows[:, half:].T, rows[:, half:], out=product[half:, half:])
    product[:half, half:] = product[half:, :half].T
    return product


def _pooled(rows: Tensor, n: int) -> Tensor:
    return rows.view(n, -1, rows.shape[1]).mean(dim=1)


def _begun(passed: Tensor | None, rows: Tensor, *, owned: bool) -> Tensor:
    """Return the gradient that comes out of the layer as rows to be added onto: itself if it is owned, or a copy."""
    if passed is None:
        return torch.zeros_like(rows)
    last = passed.movedim(1, -1)
    wide = last.to(rows.dtype, memory_format=torch.contiguous_format)
    return (wide if owned or wide is not last else wide.clone()).reshape(rows.shape)


def _finished(gradient: Tensor, shift: Tensor | None, pooled: Tensor | None, features: Tensor) -> Tensor:
    """Add to the rows of each image what is the same for all its positions; return the gradient as features."""
    n, c = features.shape[:2]
    by_image = gradient.view(n, -1, c)
    if pooled is not None:
        each = pooled / by_image.shape[1]
        shift = each if shift is None else each + shift
    if shift is not None:
        by_image.add_(shift.view(-1, 1, c))
    return gradient.view(n, *features.shape[2:], c).movedim(-1, 1).to(features.dtype)
