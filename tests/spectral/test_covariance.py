"""Moments that are taken on the way into a layer: any layout and precision, and one gradient for all."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from unidd_pl.spectral import ANY, FactoredMoments, Moments, Passing, moments_of, observe
from unidd_pl.spectral.covariance import Sums, second_moment, thin_rows

PASSINGS = [Passing(centred, owned) for centred in (True, False) for owned in (True, False)]
LAYOUTS = [torch.contiguous_format, torch.channels_last]
SHAPES = [(5, 3, 4), (2, 40, 2), (3, 130, 3), (4, 6, 1)]

Take = Callable[..., tuple[Tensor, Sums]]


def draw(n: int, c: int, side: int, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(c)
    return (torch.randn(n, c, side, side, generator=generator, dtype=torch.float64) + 0.5).to(dtype)


def oracle(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return Ψ and pool(x) by torch.cov."""
    return torch.cov(x.movedim(1, 0).flatten(1), correction=0), x.mean(dim=(2, 3))


@pytest.mark.parametrize("passing", PASSINGS, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("take", [second_moment, thin_rows])
def test_values_and_the_gradient_of_all_together(
    shape: tuple[int, int, int], layout: torch.memory_format, passing: Passing, take: Take
) -> None:
    """One graph from the features: into the layer, into Ψ (with a gradient that is not symmetric), into Φ."""
    x = draw(*shape).contiguous(memory_format=layout).requires_grad_()
    n, c, _ = shape
    weight, to_pooled = torch.randn(5, c, 1, 1, dtype=torch.float64), torch.randn(n, c, dtype=torch.float64)
    to_ffc = torch.randn(c, c, dtype=torch.float64)

    def total(passed: Tensor, ffc: Tensor, pooled: Tensor) -> Tensor:
        return F.conv2d(passed, weight).square().sum() + (ffc * to_ffc).sum() + (pooled * to_pooled).sum()

    passed, sums = take(x, passing)
    kind = FactoredMoments if take is thin_rows else Moments
    rows = x.numel() // c
    moments = kind.of_sums(sums, torch.tensor(rows, dtype=torch.float64), torch.eye(n, dtype=torch.float64))
    ffc, pooled = moments.ffc, moments.label_mean.T  # with a class for each image the label means are the pooled rows
    assert torch.equal(passed, x)
    for ours, theirs in zip((ffc, pooled), oracle(x.detach()), strict=True):
        torch.testing.assert_close(ours.detach(), theirs, rtol=1e-12, atol=1e-12)
    (expected,) = torch.autograd.grad(total(x, *oracle(x)), x)
    torch.testing.assert_close(torch.autograd.grad(total(passed, ffc, pooled), x)[0], expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("take", [second_moment, thin_rows])
@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("passing", [*PASSINGS, Passing(centred=False, by_image=False)], ids=str)
@pytest.mark.parametrize("used", [(0,), (1,), (2,), (0, 1), (1, 2)], ids=str)
def test_what_is_not_used_has_no_part_in_the_gradient(
    used: tuple[int, ...], passing: Passing, layout: torch.memory_format, take: Take
) -> None:
    x = draw(4, 5, 2).contiguous(memory_format=layout).requires_grad_()
    passed, sums = take(x, passing)
    centred = x - x.mean(dim=(0, 2, 3), keepdim=True) if sums.centred else x
    rows = centred.movedim(1, -1).flatten(0, 2)
    first = x.sum(dim=(2, 3)) if passing.by_image else x.sum(dim=(0, 2, 3))[None]
    plain = x, rows if take is thin_rows else rows.T @ rows, first

    def loss(parts: tuple[Tensor, ...]) -> Tensor:
        return sum(((parts[index] / 20).exp().sum() for index in used), torch.zeros(()))

    for ours, theirs in zip((passed, sums.second, sums.first), plain, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
    (one,) = torch.autograd.grad(loss((passed, sums.second, sums.first)), x)
    (other,) = torch.autograd.grad(loss(plain), x)
    torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_a_gradient_that_is_not_owned_is_left_as_it_is(layout: torch.memory_format) -> None:
    """A layer that hands its gradient through shares the tensor: adding onto it would change the other user's."""
    x, other = draw(4, 5, 2).contiguous(memory_format=layout).requires_grad_(), draw(4, 5, 2).requires_grad_()
    passed, sums = second_moment(x, ANY)
    cotangent = draw(4, 5, 2)
    kept = cotangent.clone()
    torch.autograd.backward([passed + other, sums.second], [cotangent, torch.ones(5, 5, dtype=torch.float64)])
    assert other.grad is not None
    torch.testing.assert_close(other.grad, kept, rtol=0, atol=0)
    assert torch.equal(cotangent, kept)


@pytest.mark.parametrize("take", [second_moment, thin_rows])
@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_a_second_derivative_is_refused_instead_of_wrong(layout: torch.memory_format, take: Take) -> None:
    x = draw(4, 5, 2).contiguous(memory_format=layout).requires_grad_()
    with pytest.raises(RuntimeError, match="expected a backward without create_graph"):
        torch.autograd.grad(take(x)[1].second.square().sum(), x, create_graph=True)


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


def test_a_large_offset_needs_centring_beforehand() -> None:
    x = draw(8, 6, 4, torch.float32).contiguous(memory_format=torch.channels_last) + 1000
    exact = oracle(x.double())[0]

    def error(passing: Passing) -> float:
        ours = observe(x, factored=False, passing=passing)[1].moments(None).ffc
        return float((ours - exact).norm() / exact.norm())

    assert error(Passing(centred=True)) < 1e-4
    assert error(Passing(centred=False)) > 1e-3


@pytest.mark.parametrize("labels", [None, torch.eye(3, dtype=torch.float64)[[0, 1, 2, 0]]], ids=["mean", "class"])
@pytest.mark.parametrize("factored", [False, True])
def test_layers_together_are_what_they_are_one_by_one(labels: Tensor | None, factored: bool) -> None:
    """Of one width or not, of as many rows or not, centred or not: in the order of the layers."""
    shapes = [(4, 20, 1), (4, 3, 4), (4, 20, 4), (4, 20, 1), (4, 3, 4)]
    layers = [(draw(*shape) + index).contiguous(memory_format=LAYOUTS[index % 2]) for index, shape in enumerate(shapes)]
    layers = [x.requires_grad_() for x in layers]
    seen = [observe(x, factored=factored, passing=Passing(centred=i == 4))[1] for i, x in enumerate(layers)]
    weights = torch.arange(1.0, 6.0, dtype=torch.float64)

    def value(moments: Moments | FactoredMoments) -> Tensor:
        return moments.ffc.square().sum() + moments.flc.sum() + moments.label_weight.sum() + moments.count

    together, alone = moments_of(seen, labels), [Moments.of(x, labels) for x in layers]
    assert len(together) == len(layers)
    thin = {0, 3} if factored else set()  # 4 rows of 20 channels
    assert {index for index, one in enumerate(together) if isinstance(one, FactoredMoments)} == thin
    for one, other in zip(together, alone, strict=True):
        torch.testing.assert_close(value(one), value(other), rtol=1e-12, atol=1e-12)
    ours = torch.autograd.grad(torch.stack([value(one) for one in together]) @ weights, layers)
    theirs = torch.autograd.grad(torch.stack([value(one) for one in alone]) @ weights, layers)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)
