"""Covariances that are taken on the way into a layer: any layout and precision, and one gradient for all."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from unidd_pl.spectral import ANY, Moments, Passing, observe
from unidd_pl.spectral.covariance import covariance, thin_factor

PASSINGS = [Passing(centred, owned) for centred in (True, False) for owned in (True, False)]
LAYOUTS = [torch.contiguous_format, torch.channels_last]


def draw(n: int, c: int, side: int, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(c)
    return (torch.randn(n, c, side, side, generator=generator, dtype=torch.float64) + 0.5).to(dtype)


def oracle(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return Ψ and pool(x) by torch.cov."""
    return torch.cov(x.movedim(1, 0).flatten(1), correction=0), x.mean(dim=(2, 3))


@pytest.mark.parametrize("passing", PASSINGS, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("shape", [(5, 3, 4), (2, 40, 2), (3, 130, 3), (4, 6, 1)], ids=str)
def test_values_and_the_gradient_of_all_three(
    shape: tuple[int, int, int], layout: torch.memory_format, passing: Passing
) -> None:
    x = draw(*shape).contiguous(memory_format=layout).requires_grad_()
    n, c, _ = shape
    weight, to_pooled = torch.randn(5, c, 1, 1, dtype=torch.float64), torch.randn(n, c, dtype=torch.float64)
    to_ffc = torch.randn(c, c, dtype=torch.float64)  # not symmetric

    def total(passed: Tensor, ffc: Tensor, pooled: Tensor) -> Tensor:
        return F.conv2d(passed, weight).square().sum() + (ffc * to_ffc).sum() + (pooled * to_pooled).sum()

    passed, ffc, pooled = covariance(x, passing)
    assert torch.equal(passed, x)
    for ours, theirs in zip((ffc, pooled), oracle(x.detach()), strict=True):
        torch.testing.assert_close(ours.detach(), theirs, rtol=1e-12, atol=1e-12)
    (expected,) = torch.autograd.grad(total(x, *oracle(x)), x)
    torch.testing.assert_close(torch.autograd.grad(total(passed, ffc, pooled), x)[0], expected, rtol=1e-10, atol=1e-10)

    passed, factor, pooled = thin_factor(x, passing)
    torch.testing.assert_close(factor @ factor.T, oracle(x)[0], rtol=1e-12, atol=1e-12)
    (ours,) = torch.autograd.grad(total(passed, factor @ factor.T, pooled), x)
    torch.testing.assert_close(ours, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("take", [covariance, thin_factor])
@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("used", [(0,), (1,), (2,), (0, 1), (1, 2)], ids=str)
def test_what_is_not_used_has_no_part_in_the_gradient(
    used: tuple[int, ...], layout: torch.memory_format, take: object
) -> None:
    x = draw(4, 5, 2).contiguous(memory_format=layout).requires_grad_()
    outputs = take(x)  # type: ignore[operator]
    ffc, pooled = oracle(x)
    second = ffc if take is covariance else x.movedim(1, -1).flatten(0, 2).sub(x.mean(dim=(0, 2, 3))).T / 16**0.5
    expected = sum(((x, second, pooled)[index].exp().sum() for index in used), torch.zeros(()))
    ours = sum((outputs[index].exp().sum() for index in used), torch.zeros(()))
    for one, other in zip(torch.autograd.grad(ours, x), torch.autograd.grad(expected, x), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_a_gradient_that_is_not_owned_is_left_as_it_is(layout: torch.memory_format) -> None:
    """A layer that hands its gradient through shares the tensor: adding onto it would change the other user's."""
    x, other = draw(4, 5, 2).contiguous(memory_format=layout).requires_grad_(), draw(4, 5, 2).requires_grad_()
    passed, ffc, _ = covariance(x, ANY)
    cotangent = draw(4, 5, 2)
    kept = cotangent.clone()
    torch.autograd.backward([passed + other, ffc], [cotangent, torch.ones(5, 5, dtype=torch.float64)])
    assert other.grad is not None
    torch.testing.assert_close(other.grad, kept, rtol=0, atol=0)
    assert torch.equal(cotangent, kept)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("factored", [False, True])
def test_half_precision_passes_as_it_is_and_is_taken_in_float32(
    dtype: torch.dtype, layout: torch.memory_format, factored: bool
) -> None:
    x = draw(2, 20, 2, dtype).contiguous(memory_format=layout).requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        passed, seen = observe(x, factored=factored, passing=Passing(centred=False, owned=True))
        moments = seen.moments(None)
    assert passed.dtype == dtype
    assert moments.ffc.dtype == moments.mean.dtype == torch.float32
    torch.testing.assert_close(moments.ffc, Moments.of(x.float()).ffc, rtol=1e-4, atol=1e-5)
    (passed.float().sum() + moments.ffc.square().sum()).backward()
    wide = x.detach().float().requires_grad_()
    (wide.sum() + Moments.of(wide).ffc.square().sum()).backward()
    assert x.grad is not None
    assert wide.grad is not None
    torch.testing.assert_close(x.grad.float(), wide.grad, rtol=0.02, atol=0.02)


def test_the_product_is_symmetric_to_the_last_bit() -> None:
    _, ffc, _ = covariance(draw(3, 130, 3, torch.float32).contiguous(memory_format=torch.channels_last))
    assert float((ffc - ffc.T).abs().max()) < 1e-6
    torch.testing.assert_close(ffc, oracle(draw(3, 130, 3))[0].float(), rtol=1e-4, atol=1e-5)


def test_a_large_offset_needs_centring_beforehand() -> None:
    x = draw(8, 6, 4, torch.float32).contiguous(memory_format=torch.channels_last) + 1000
    exact = oracle(x.double())[0]

    def error(passing: Passing) -> float:
        return float((covariance(x, passing)[1] - exact).norm() / exact.norm())

    assert error(Passing(centred=True)) < 1e-4
    assert error(Passing(centred=False)) > 1e-3
