"""The fast path of the matching loss against SPEC.md section 3 in plain autograd (benchmarks/reference.py)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import reference
import torch
from torch import Tensor
from torch.nn import functional as F

from unidd_pl.spectral import (
    HFM,
    METHODS,
    FactoredMoments,
    Identity,
    Landweber,
    LandweberResidual,
    Linear,
    MatchingLoss,
    Method,
    Moments,
    Passing,
    Resolvent,
    RunningMode,
    RunningMoments,
    SpectralFilter,
    Term,
    batch_moments,
    filtered,
    observe,
)
from unidd_pl.spectral.closed_form import has_closed_form
from unidd_pl.spectral.filters import largest_eigenvalue
from unidd_pl.spectral.low_rank import takes_low_rank

WIDTHS = (12, 4, 12, 40)  # channels of the layers: two of one width and not in a row, one with more than rows
CLASSES = 5
BETAS = (0.3, 0.05, 0.2, 0.1)
FILTERS: tuple[SpectralFilter, ...] = (Identity(), Linear(), Resolvent(), Landweber(7), LandweberResidual(7))
ONE_FILTER = [
    Method(f"{type(one).__name__}-{'-'.join(operands)}", "low", [Term(one, operand) for operand in operands])  # type: ignore[arg-type]
    for one in FILTERS
    for operands in (("ffc",), ("flc",), ("ffc", "flc"))
]
MIXED = Method(
    "mixed",
    "high",
    [Term(Resolvent(), "flc"), Term(Linear(), "ffc"), Term(Identity(), "flc"), Term(Linear(), "ffc", diagonal=True)],
)
EVERY_METHOD = [*(kind() for kind in METHODS), *ONE_FILTER, MIXED]
every_method = pytest.mark.parametrize("method", EVERY_METHOD, ids=lambda method: method.name)


def draw(seed: int, n: int, dtype: torch.dtype, *, dead: int = 0) -> list[Tensor]:
    """Features of all layers, (n, c, 2, 2), with channels of different scale and offset; some may be dead."""
    generator = torch.Generator().manual_seed(seed)
    layers = []
    for width in WIDTHS:
        mixing = torch.randn(width, width, generator=generator, dtype=torch.float64) / width**0.5
        noise = torch.randn(n, width, 2, 2, generator=generator, dtype=torch.float64)
        features = torch.einsum("cd,ndhw->nchw", mixing, noise) + torch.randn(width, 1, 1, generator=generator)
        if dead:
            features[:, :dead] = 0
        layers.append(features.to(dtype))
    return layers


def labels_of(signal: str, n: int, dtype: torch.dtype) -> Tensor | None:
    if signal == "mean":
        return None
    if signal == "class":
        return torch.eye(CLASSES, dtype=dtype)[torch.arange(n) % CLASSES]
    return torch.randn(n, CLASSES, generator=torch.Generator().manual_seed(9)).softmax(dim=1).to(dtype)


def value_and_gradients(loss: Callable[[list[Tensor]], Tensor], features: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
    leaves = [x.clone().requires_grad_() for x in features]
    value = loss(leaves)
    if not value.requires_grad:  # (1, ffc) is the same for all data
        return value, [torch.zeros_like(x) for x in leaves]
    gradients = torch.autograd.grad(value, leaves, allow_unused=True)
    return value.detach(), [torch.zeros_like(x) if g is None else g for x, g in zip(leaves, gradients, strict=True)]


def after(layers: Sequence[Tensor]) -> Tensor:
    """What a teacher does with the features: convolutions, and a number."""
    each = [F.conv2d(x, torch.ones(2, x.shape[1], 1, 1, dtype=x.dtype)).square().mean() for x in layers]
    return torch.stack(each).sum()


def assert_same(ours: tuple[Tensor, list[Tensor]], plain: tuple[Tensor, list[Tensor]], tolerance: float) -> None:
    """Compare values, and gradients of all layers together, relative to their norms."""
    assert ours[0].dtype == plain[0].dtype
    assert float((ours[0] - plain[0]).abs()) <= tolerance * float(plain[0])
    for one, other in zip(ours[1], plain[1], strict=True):
        assert float((one - other).norm()) <= tolerance * float(other.norm())


def compare(
    method: Method,
    mode: RunningMode | None,
    signal: str,
    dtype: torch.dtype,
    *,
    finished: Sequence[int] = (6, 6),
    dead: int = 0,
    passing: Passing | None = None,
) -> None:
    """Hold value and gradient of one step against the reference, after some finished chunks."""
    n = 5 if mode == "mean" else 4  # the mean of SPEC.md is of chunks that hold all classes
    real = [Moments.of(x, labels_of(signal, 30, torch.float64)) for x in draw(0, 30, torch.float64)]
    chunks = [
        (draw(seed + 1, m, torch.float64), labels_of(signal, m, torch.float64)) for seed, m in enumerate(finished)
    ]
    features, labels = draw(99, n, dtype, dead=dead), labels_of(signal, n, dtype)
    running = RunningMoments(mode) if mode else None
    done: list[reference.Correlations] = []
    for number, (layers, weights) in enumerate(chunks if running else []):
        assert running is not None
        running.update([Moments.of(x, weights) for x in layers])
        batch = [reference.correlations(x, weights) for x in layers]
        done = (
            [reference.running(mode or "", a, number, b) for a, b in zip(done, batch, strict=True)] if done else batch
        )
        if mode == "merge":
            for index, one in enumerate(done):  # the reference keeps rows, mean and weights only where told to
                rows = [x[index].permute(0, 2, 3, 1).flatten(0, 2) for x, _ in chunks[: number + 1]]
                one.mean, one.rows = torch.cat(rows).mean(dim=0), float(sum(map(len, rows)))
                if signal != "mean":
                    one.weight = sum((w.sum(dim=0) for _, w in chunks[: number + 1] if w is not None), torch.zeros(1))
    loss = MatchingLoss(method, real, 0.1)
    loss.betas = BETAS

    def on_the_way(layers: list[Tensor]) -> Tensor:
        """The same with moments taken while the features pass into a layer, channels last."""
        passed, seen = zip(
            *(
                observe(x.contiguous(memory_format=torch.channels_last), factored=loss.takes_factors, passing=passing)  # type: ignore[arg-type]
                for x in layers
            ),
            strict=True,
        )
        batch = [one.moments(labels) for one in seen]
        return loss.distances(running.combine(batch) if running else batch).sum() + after(passed)

    def ours(layers: list[Tensor]) -> Tensor:
        if passing is not None:
            return on_the_way(layers)
        batch = [batch_moments(x, labels, factored=loss.takes_factors) for x in layers]
        return loss.distances(running.combine(batch) if running else batch).sum()

    def plain(layers: list[Tensor]) -> Tensor:
        batch = [reference.correlations(x, labels) for x in layers]
        if done:
            kept = [
                reference.Correlations(*(v.to(dtype) if isinstance(v, Tensor) else v for v in vars(one).values()))
                for one in done
            ]
            batch = [reference.running(mode or "", a, len(chunks), b) for a, b in zip(kept, batch, strict=True)]
        largest = [
            torch.maximum(largest_eigenvalue(one.ffc).to(dtype), largest_eigenvalue(two.psi))
            for one, two in zip(real, batch, strict=True)
        ]
        targets = [
            [value.to(dtype) for value in reference.sides(method, reference.Correlations.of_moments(one), beta, scale)]
            for one, beta, scale in zip(real, BETAS, largest, strict=True)
        ]
        return reference.spectral_loss(method, targets, batch, BETAS, largest) + (after(layers) if passing else 0)

    tolerance = 1e-9 if dtype == torch.float64 else 1e-4
    assert_same(value_and_gradients(ours, features), value_and_gradients(plain, features), tolerance)


@every_method
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
@pytest.mark.parametrize("mode", [None, "mean", "merge"])
@pytest.mark.parametrize("signal", ["mean", "class"])
def test_equals_the_reference(method: Method, mode: RunningMode | None, signal: str, dtype: torch.dtype) -> None:
    compare(method, mode, signal, dtype)


@every_method
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
@pytest.mark.parametrize("mode", [None, "mean"])
@pytest.mark.parametrize("passing", [Passing(centred=False, owned=True), Passing(centred=True, owned=True)], ids=str)
def test_equals_the_reference_on_the_way_into_a_layer(
    method: Method, passing: Passing, mode: RunningMode | None, dtype: torch.dtype
) -> None:
    compare(method, mode, "class", dtype, passing=passing)


@every_method
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
@pytest.mark.parametrize("mode", [None, "mean"])
def test_equals_the_reference_with_dead_channels(method: Method, mode: RunningMode | None, dtype: torch.dtype) -> None:
    compare(method, mode, "mean", dtype, dead=2)


@pytest.mark.parametrize("method", [HFM(), MIXED], ids=lambda method: method.name)
@pytest.mark.parametrize("mode", [None, "merge"])
def test_equals_the_reference_with_soft_labels(method: Method, mode: RunningMode | None) -> None:
    compare(method, mode, "soft", torch.float64)


def test_what_takes_which_path() -> None:
    by_name = {method.name: method for method in EVERY_METHOD}
    assert {name for name, method in by_name.items() if not has_closed_form(method)} == {
        name for name in by_name if name == "mtt" or name.startswith("Landweber")
    }
    assert takes_low_rank(HFM())
    assert not takes_low_rank(MIXED)
    thin, wide = torch.randn(4, 40, 2, 2), torch.randn(4, 12, 2, 2)  # 16 rows each
    assert isinstance(batch_moments(thin, None, factored=True), FactoredMoments)
    assert isinstance(batch_moments(wide, None, factored=True), Moments)
    assert isinstance(batch_moments(thin, None, factored=False), Moments)


@pytest.mark.parametrize("relative", [False, True])
@pytest.mark.parametrize("columns", [None, [0, 3]])
@every_method
def test_equals_the_functional_form(method: Method, columns: list[int] | None, relative: bool) -> None:
    """With scales and chosen columns, which the reference does not have, against `term_distances`."""
    real = [Moments.of(x, labels_of("class", 30, torch.float64)) for x in draw(0, 30, torch.float64)]
    chosen = None if columns is None else torch.tensor(columns)
    fast, plain = (MatchingLoss(method, real, 0.1, relative=relative, closed_form=choice) for choice in (True, False))
    weights = torch.arange(
        1.0, 1 + len(method.terms) * len(WIDTHS), dtype=torch.float64
    )  # tells terms and layers apart

    def total(loss: MatchingLoss, layers: list[Tensor]) -> Tensor:
        labels = labels_of("class", 4, torch.float64)
        batch = [batch_moments(x, labels, factored=loss.takes_factors) for x in layers]
        return loss.distances(batch, chosen).flatten() @ weights

    features = draw(5, 4, torch.float64)
    assert_same(
        value_and_gradients(lambda layers: total(fast, layers), features),
        value_and_gradients(lambda layers: total(plain, layers), features),
        1e-9,
    )


class Doubled(Resolvent):
    """A filter of one's own that replaces the matrix and inherits a gradient that is not its own."""

    def matrix(self, ffc: Tensor, beta: float | Tensor, largest: Tensor | None = None) -> Tensor:
        return 2 * super().matrix(ffc, beta, largest) @ ffc


def test_an_inherited_gradient_is_not_taken_for_ones_own() -> None:
    assert Resolvent().has_pullback
    assert not Doubled().has_pullback
    method = Method("own", "high", [Term(Doubled(), "ffc"), Term(Doubled(), "flc")])
    assert not takes_low_rank(method)
    real = [Moments.of(x) for x in draw(0, 30, torch.float64)]
    loss = MatchingLoss(method, real, 0.1)
    features = [x.requires_grad_() for x in draw(3, 20, torch.float64)]
    assert torch.autograd.gradcheck(lambda x: loss.distances([Moments.of(y) for y in [x, *features[1:]]]), features[0])


def test_a_filter_without_pullback_says_so() -> None:
    with pytest.raises(NotImplementedError, match="Landweber has no closed-form gradient"):
        Landweber().pullback(torch.eye(2), torch.eye(2))


@pytest.mark.parametrize("kind", [Identity, Linear, Resolvent])
def test_pullback_is_the_gradient_of_the_matrix(kind: type[SpectralFilter]) -> None:
    root, cotangent = torch.randn(2, 3, 5, 5, dtype=torch.float64).unbind()
    ffc = (root @ root.mT).requires_grad_()
    betas = torch.tensor([0.1, 1.0, 3.0], dtype=torch.float64).view(-1, 1, 1)
    matrix = kind().matrix(ffc, betas)
    ours = kind().pullback(matrix.detach(), cotangent)
    plain = torch.zeros_like(ffc)
    if matrix.requires_grad:
        (plain,) = torch.autograd.grad(matrix, ffc, cotangent)
    torch.testing.assert_close(ours + ours.mT, plain + plain.mT, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("kind", [Resolvent, Linear, Identity, Landweber, LandweberResidual])
def test_filters_take_layers_together(kind: type[SpectralFilter]) -> None:
    root = torch.randn(3, 5, 9, dtype=torch.float64)
    ffc, betas = root @ root.mT, torch.tensor([0.1, 1.0, 3.0], dtype=torch.float64)
    largest = torch.stack([largest_eigenvalue(one) for one in ffc])
    together = kind().matrix(ffc, betas.view(-1, 1, 1), largest.view(-1, 1, 1))
    for index, one in enumerate(ffc):
        alone = kind().matrix(one, float(betas[index]), largest[index])
        torch.testing.assert_close(together[index], alone, rtol=1e-12, atol=1e-12)


class TestFactoredMoments:
    @pytest.mark.parametrize("signal", ["mean", "class", "soft"])
    @pytest.mark.parametrize("mode", ["mean", "merge"])
    def test_multiply_out_to_moments(self, mode: RunningMode, signal: str) -> None:
        labels = labels_of(signal, 4, torch.float64)
        running = RunningMoments(mode)
        for seed in (1, 2):
            running.update([Moments.of(x, labels_of(signal, 6, torch.float64)) for x in draw(seed, 6, torch.float64)])
        x = draw(3, 4, torch.float64)
        dense = running.combine([Moments.of(y, labels) for y in x])
        thin = running.combine([FactoredMoments.of(y, labels) for y in x])
        for one, other in zip(thin, dense, strict=True):
            assert isinstance(one, FactoredMoments)
            assert isinstance(other, Moments)
            for name, field in one.dense().tensors().items():
                torch.testing.assert_close(field, other.tensors()[name], rtol=1e-12, atol=1e-12)

    def test_update_counts_them_in_as_moments(self) -> None:
        thin, dense = RunningMoments("merge"), RunningMoments("merge")
        for seed in (1, 2):
            x = draw(seed, 4, torch.float64)
            thin.update([FactoredMoments.of(y) for y in x])
            dense.update([Moments.of(y) for y in x])
        for one, other in zip(thin.state_dict(), dense.state_dict(), strict=True):
            for name, field in one.items():
                torch.testing.assert_close(field, other[name], rtol=1e-12, atol=1e-12)

    def test_the_base_is_one_object_for_a_chunk_and_another_for_the_next(self) -> None:
        running = RunningMoments("mean")
        x = draw(1, 4, torch.float32)

        def base() -> Tensor:
            ((_, one),) = [
                group for group in running.combine([FactoredMoments.of(y) for y in x]).groups if 3 in group[0]
            ]
            assert isinstance(one, FactoredMoments)
            assert one.base is not None
            return one.base

        running.update([Moments.of(y) for y in x])
        first = base()
        assert base() is first
        running.update([Moments.of(y) for y in draw(2, 4, torch.float32)])
        assert base() is not first
        running.load_state_dict(running.state_dict())
        assert torch.equal(base(), base())

    def test_the_matching_loss_follows_a_new_base(self) -> None:
        """What it keeps for a chunk must not outlive the chunk."""
        real = [Moments.of(x) for x in draw(0, 30, torch.float64)]
        kept, running = MatchingLoss(HFM(), real, 0.1), RunningMoments("mean")
        x = draw(3, 4, torch.float64)
        for seed in (1, 2, 3):
            used = running.combine([batch_moments(y, None, factored=True) for y in x])
            torch.testing.assert_close(kept.distances(used), MatchingLoss(HFM(), real, 0.1).distances(used))
            running.update([Moments.of(y) for y in draw(seed, 6, torch.float64)])

    def test_half_precision_is_widened(self) -> None:
        x = torch.randn(2, 20, 2, 2)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            one = FactoredMoments.of(x.bfloat16())
            ffc = one.ffc
        assert one.factor.dtype == ffc.dtype == torch.float32
        torch.testing.assert_close(ffc, Moments.of(x.bfloat16()).ffc)


def test_zero_loss_and_gradient_where_synthetic_is_real() -> None:
    features = draw(0, 30, torch.float64)
    method = MIXED
    loss = MatchingLoss(method, [Moments.of(x) for x in features], 0.1)
    value, gradients = value_and_gradients(
        lambda layers: loss.distances([Moments.of(x) for x in layers]).sum(), features
    )
    assert float(value) < 1e-12
    assert all(gradient.isfinite().all() for gradient in gradients)
    exact = MatchingLoss(method, [Moments.of(features[0])], 0.1)
    exact._kept.filtered = [filtered(method, Moments.of(features[0]), 0.1)]
    assert not exact.distances([Moments.of(features[0])]).any()


def test_features_that_are_not_finite_give_a_distance_that_is_not_finite() -> None:
    real = [Moments.of(x) for x in draw(0, 30, torch.float64)]
    features = draw(1, 20, torch.float64)
    features[0][0, 0, 0, 0] = torch.nan
    distances = MatchingLoss(Method("dc", "low", [Term(Linear(), "ffc")]), real, 0.1).distances(
        [Moments.of(x) for x in features]
    )
    assert distances.isfinite().flatten().tolist() == [False, True, True, True]
