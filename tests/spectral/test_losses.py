from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from unidd_pl.spectral import (
    CFM,
    DC,
    DM,
    HFM,
    LFM,
    METHODS,
    MTT,
    FrePo,
    Identity,
    Linear,
    Method,
    Moments,
    Resolvent,
    RunningMoments,
    SRe2L,
    Term,
    filtered,
    largest_eigenvalues,
    term_distances,
)
from unidd_pl.spectral.filters import largest_eigenvalue

PsdFactory = Callable[..., Tensor]
BETA = 0.05
# f of SPEC.md section 2, written out a second time.
FORMULAS: list[tuple[Method, Callable[[np.ndarray], np.ndarray]]] = [
    (LFM(), lambda eigenvalues: eigenvalues),
    (HFM(), lambda eigenvalues: 1 / (eigenvalues + BETA)),
    (CFM(), lambda eigenvalues: 1 / (eigenvalues + BETA)),
]
every_method = pytest.mark.parametrize(("method", "response"), FORMULAS, ids=[m.name for m, _ in FORMULAS])


def draw_moments(seed: int, signal: str = "mean", c: int = 5, n: int = 12, k: int = 4) -> Moments:
    rng = np.random.default_rng(seed)
    features = torch.from_numpy(rng.normal(size=(n, c, 3, 2)) + rng.normal(size=(c, 1, 1)))
    classes = np.arange(n) % k
    return Moments.of(features, torch.from_numpy(np.eye(k)[classes]) if signal == "class" else None)


def by_eigenvalues(ffc: Tensor, response: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    eigenvalues, vectors = np.linalg.eigh(ffc.detach().numpy())
    return (vectors * response(eigenvalues)) @ vectors.T


def layers(seeds: tuple[int, ...], signal: str) -> list[Moments]:
    return [draw_moments(seed, signal, c=3 + index) for index, seed in enumerate(seeds)]


def distances_of(
    method: Method, real: list[tuple[Tensor, ...]], synthetic: list[Moments], beta: float, **options: Any
) -> Tensor:
    """`term_distances` with one β for all layers."""
    return term_distances(method, real, synthetic, [beta] * len(real), **options)


class TestTermDistances:
    @every_method
    @pytest.mark.parametrize("signal", ["mean", "class"])
    @pytest.mark.parametrize("seed", range(3))
    def test_oracle_by_eigendecomposition(
        self, seed: int, signal: str, method: Method, response: Callable[[np.ndarray], np.ndarray]
    ) -> None:
        real, synthetic = layers((seed, seed + 10), signal), layers((seed + 20, seed + 30), signal)
        actual = distances_of(method, [filtered(method, m, BETA) for m in real], synthetic, BETA)
        expected = np.empty((2, 2))
        for index, (one, other) in enumerate(zip(real, synthetic, strict=True)):
            f, f_s = by_eigenvalues(one.ffc, response), by_eigenvalues(other.ffc, response)
            expected[index, 0] = np.sqrt(((f - f_s) ** 2).sum())
            expected[index, 1] = np.sqrt(((f @ one.flc.numpy() - f_s @ other.flc.numpy()) ** 2).sum())
        np.testing.assert_allclose(actual, expected, rtol=1e-10)

    @every_method
    @pytest.mark.parametrize("signal", ["mean", "class"])
    def test_zero_loss_and_gradient_when_synthetic_is_real(
        self, signal: str, method: Method, response: Callable[[np.ndarray], np.ndarray]
    ) -> None:
        rng = np.random.default_rng(0)
        features = torch.from_numpy(rng.normal(size=(8, 5, 3, 2)))
        labels = torch.eye(4, dtype=torch.float64)[np.arange(8) % 4] if signal == "class" else None
        real = [filtered(method, Moments.of(features, labels), BETA)]
        pixels = features.clone().requires_grad_()
        for relative in (False, True):
            distances = distances_of(method, real, [Moments.of(pixels, labels)], BETA, relative=relative)
            assert distances.shape == (1, 2)
            assert not distances.any()
            (gradient,) = torch.autograd.grad(distances.sum(), pixels)
            assert gradient.isfinite().all()
            assert not gradient.any()

    @pytest.mark.parametrize("method", [LFM(), HFM()], ids=lambda m: m.name)
    @pytest.mark.parametrize("signal", ["mean", "class"])
    def test_gradient_flows_to_the_synthetic_features(self, signal: str, method: Method) -> None:
        real = [filtered(method, draw_moments(0, signal, c=3, n=4, k=2), BETA)]
        features = torch.from_numpy(np.random.default_rng(1).normal(size=(4, 3, 2, 2))).requires_grad_()
        labels = torch.eye(2, dtype=torch.float64)[[0, 1, 0, 1]] if signal == "class" else None
        assert torch.autograd.gradcheck(
            lambda x: distances_of(method, real, [Moments.of(x, labels)], BETA), (features,)
        )

    @every_method
    @pytest.mark.parametrize("chosen", [[0], [1, 3], [3, 1], [0, 1, 2, 3]])
    def test_columns_restrict_the_class_term_only(
        self, chosen: list[int], method: Method, response: Callable[[np.ndarray], np.ndarray]
    ) -> None:
        real, synthetic = draw_moments(0, "class"), draw_moments(1, "class")
        targets = [filtered(method, real, BETA)]
        whole = distances_of(method, targets, [synthetic], BETA)
        actual = distances_of(method, targets, [synthetic], BETA, columns=torch.tensor(chosen))
        f, f_s = by_eigenvalues(real.ffc, response), by_eigenvalues(synthetic.ffc, response)
        difference = f @ real.flc.numpy()[:, chosen] - f_s @ synthetic.flc.numpy()[:, chosen]
        np.testing.assert_allclose(actual[0, 1], np.linalg.norm(difference), rtol=1e-10)
        torch.testing.assert_close(actual[0, 0], whole[0, 0])

    def test_columns_ignore_classes_that_the_chunk_lacks(self) -> None:
        """The real moments hold all classes; a chunk is compared in its own."""
        method = Method("dm", "low", [Term(Identity(), "flc")])
        rng = np.random.default_rng(0)
        pooled = rng.normal(size=(2, 5))
        labels = torch.eye(4, dtype=torch.float64)[[1, 3]]
        real = draw_moments(1, "class")
        chunk = Moments.of(torch.from_numpy(pooled), labels)
        actual = distances_of(method, [filtered(method, real, BETA)], [chunk], BETA, columns=torch.tensor([1, 3]))
        expected = np.linalg.norm(real.flc.numpy()[:, [1, 3]] - pooled.T / 4)
        np.testing.assert_allclose(actual, [[expected]], rtol=1e-12)

    def test_columns_do_not_touch_the_label_free_signal(self) -> None:
        method = HFM()
        targets, synthetic = [filtered(method, draw_moments(0), BETA)], [draw_moments(1)]
        torch.testing.assert_close(
            distances_of(method, targets, synthetic, BETA, columns=torch.tensor([2, 3])),
            distances_of(method, targets, synthetic, BETA),
        )

    @every_method
    @pytest.mark.parametrize("chosen", [None, [0, 2]])
    def test_relative_divides_by_the_real_side(
        self, chosen: list[int] | None, method: Method, response: Callable[[np.ndarray], np.ndarray]
    ) -> None:
        real, synthetic = draw_moments(0, "class"), draw_moments(1, "class")
        columns = None if chosen is None else torch.tensor(chosen)
        targets = [filtered(method, real, BETA)]
        plain = distances_of(method, targets, [synthetic], BETA, columns=columns)
        relative = distances_of(method, targets, [synthetic], BETA, columns=columns, relative=True)
        f = by_eigenvalues(real.ffc, response)
        flc = real.flc.numpy() if chosen is None else real.flc.numpy()[:, chosen]
        norms = [np.linalg.norm(f), np.linalg.norm(f @ flc)]
        np.testing.assert_allclose(relative[0], plain[0] / torch.tensor(norms), rtol=1e-10)

    @pytest.mark.parametrize("method", [LFM(), HFM()], ids=lambda m: m.name)
    def test_relative_does_not_depend_on_the_unit_of_the_features(self, method: Method) -> None:
        def scaled(unit: float) -> Tensor:
            real, synthetic = (
                Moments.of(unit * torch.from_numpy(np.random.default_rng(seed).normal(size=(12, 5, 3, 2))))
                for seed in (0, 1)
            )
            beta = BETA * unit**2  # β is in units of the eigenvalues
            return distances_of(method, [filtered(method, real, beta)], [synthetic], beta, relative=True)

        torch.testing.assert_close(scaled(7.0), scaled(1.0), rtol=1e-9, atol=0)

    def test_dead_channels_in_float32(self) -> None:
        method = HFM()
        features = torch.from_numpy(np.random.default_rng(0).normal(size=(8, 6, 3, 2))).float()
        features[:, 2:5] = 0
        real = [filtered(method, draw_moments(1, c=6).to(dtype=torch.float32), BETA)]
        features.requires_grad_()
        distances_of(method, real, [Moments.of(features)], BETA).sum().backward()
        assert features.grad is not None
        assert features.grad.isfinite().all()

    @pytest.mark.parametrize("method", [LFM(), HFM()], ids=lambda m: m.name)
    def test_autocast_changes_nothing(self, method: Method) -> None:
        """DESIGN.md, mathematics: float32 or better, autocast off around the loss."""
        real, synthetic = (draw_moments(seed, "class").to(dtype=torch.float32) for seed in (0, 1))
        expected = distances_of(method, [filtered(method, real, BETA)], [synthetic], BETA)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            actual = distances_of(method, [filtered(method, real, BETA)], [synthetic], BETA)
        assert actual.dtype == torch.float32
        torch.testing.assert_close(actual, expected, rtol=0, atol=0)

    def test_missing_layer_is_rejected(self) -> None:
        method = HFM()
        moments = draw_moments(0)
        with pytest.raises(ValueError, match=r"shorter|longer"):
            distances_of(method, [filtered(method, moments, BETA)], [moments, moments], BETA)


class TestFiltered:
    @every_method
    @pytest.mark.parametrize(("signal", "width"), [("mean", 1), ("class", 4)])
    def test_shapes(
        self, signal: str, width: int, method: Method, response: Callable[[np.ndarray], np.ndarray]
    ) -> None:
        values = filtered(method, draw_moments(0, signal), BETA)
        assert [tuple(value.shape) for value in values] == [(5, 5), (5, width)]

    @pytest.mark.parametrize("order", [("ffc", "flc"), ("flc", "ffc"), ("flc", "ffc", "flc")])
    @pytest.mark.parametrize("shared", [True, False])
    def test_order_and_sharing_of_filters_do_not_matter(self, shared: bool, order: tuple[str, ...]) -> None:
        one = Resolvent()
        method = Method("mixed", "high", [Term(one if shared else Resolvent(), g) for g in order])  # type: ignore[arg-type]
        moments = draw_moments(0, "class")
        f = by_eigenvalues(moments.ffc, lambda eigenvalues: 1 / (eigenvalues + BETA))
        expected = {"ffc": f, "flc": f @ moments.flc.numpy()}
        for operand, value in zip(order, filtered(method, moments, BETA), strict=True):
            np.testing.assert_allclose(value, expected[operand], rtol=1e-10, atol=1e-12)

    def test_two_filters_of_one_kind_are_not_confused(self) -> None:
        class Scaled(Linear):
            def __init__(self, factor: float) -> None:
                self.factor = factor

            def matrix(self, ffc: Tensor, beta: float, largest: Tensor | None = None) -> Tensor:
                return self.factor * ffc

        method = Method("two", "low", [Term(Scaled(2.0), "ffc"), Term(Scaled(3.0), "ffc")])
        moments = draw_moments(0)
        two, three = filtered(method, moments, BETA)
        torch.testing.assert_close(two, 2 * moments.ffc)
        torch.testing.assert_close(three, 3 * moments.ffc)

    def test_a_shared_filter_is_computed_once(self) -> None:
        class Counting(Resolvent):
            calls = 0

            def matrix(self, ffc: Tensor, beta: float, largest: Tensor | None = None) -> Tensor:
                self.calls += 1
                return super().matrix(ffc, beta, largest)

        counting = Counting()
        filtered(Method("m", "high", [Term(counting, "ffc"), Term(counting, "flc")]), draw_moments(0), BETA)
        assert counting.calls == 1


def uncentred(features: np.ndarray, targets: np.ndarray) -> Moments:
    """Ψ = XᵀX/s and Φ = XᵀY/s of a linear model without intercept."""
    s, k = len(features), targets.shape[1]
    return Moments(
        count=torch.tensor(float(s), dtype=torch.float64),
        mean=torch.from_numpy(features.mean(axis=0)),
        ffc=torch.from_numpy(features.T @ features / s),
        label_weight=torch.ones(k, dtype=torch.float64),
        label_mean=torch.from_numpy(k * features.T @ targets / s),
    )


@pytest.mark.parametrize("seed", range(3))
class TestLinearModel:
    """Rows of the table in SPEC.md section 2, on the model for which they are exact."""

    c, k = 5, 3

    def draw(self, seed: int, n: int) -> tuple[np.ndarray, np.ndarray]:
        """Features (n, c) and balanced one-hot targets (n, k)."""
        rng = np.random.default_rng(seed)
        return rng.normal(size=(n, self.c)), np.eye(self.k)[rng.permutation(np.arange(n) % self.k)]

    def test_dm_is_the_distance_of_the_class_means(self, seed: int) -> None:
        dm = DM()
        (x, y), (x_s, y_s) = self.draw(seed, 30), self.draw(seed + 100, 6)
        real, synthetic = (Moments.of(torch.from_numpy(a), torch.from_numpy(b)) for a, b in ((x, y), (x_s, y_s)))
        term = distances_of(dm, [filtered(dm, real, BETA)], [synthetic], BETA)
        expected = 0.0
        for j in range(self.k):
            mean, mean_s = x[y[:, j] == 1].mean(axis=0), x_s[y_s[:, j] == 1].mean(axis=0)
            expected += (((mean - mean_s) / self.k) ** 2).sum()
        np.testing.assert_allclose(term.square().sum(), expected, rtol=1e-12)

    def test_dc_bounds_the_distance_of_the_gradients(self, seed: int) -> None:
        dc = DC()
        (x, y), (x_s, y_s) = self.draw(seed, 30), self.draw(seed + 100, 6)
        distances = distances_of(dc, [filtered(dc, uncentred(x, y), BETA)], [uncentred(x_s, y_s)], BETA)
        ffc, flc = distances[0].tolist()
        for trial in range(500):
            weights = np.random.default_rng(trial).normal(size=(self.c, self.k))
            gradient = x.T @ (x @ weights - y) / len(x)  # of ‖XW−Y‖²/2s
            gradient_s = x_s.T @ (x_s @ weights - y_s) / len(x_s)
            bound = np.linalg.norm(weights, 2) * ffc + flc
            assert np.linalg.norm(gradient - gradient_s) <= bound * (1 + 1e-12)

    def test_frepo_is_the_distance_of_the_ridge_weights(self, seed: int) -> None:
        frepo = FrePo()
        (x, y), (x_s, y_s) = self.draw(seed, 30), self.draw(seed + 100, 6)

        def ridge(features: np.ndarray, targets: np.ndarray) -> np.ndarray:
            """Minimise ‖XW−Y‖²/s + β‖W‖² as one least-squares problem of stacked rows."""
            s = len(features)
            rows = np.vstack([features / np.sqrt(s), np.sqrt(BETA) * np.eye(self.c)])
            right = np.vstack([targets / np.sqrt(s), np.zeros((self.c, self.k))])
            return np.linalg.lstsq(rows, right, rcond=None)[0]

        (weights,) = filtered(frepo, uncentred(x, y), BETA)
        np.testing.assert_allclose(weights, ridge(x, y), rtol=1e-9, atol=1e-12)
        distances = distances_of(frepo, [(weights,)], [uncentred(x_s, y_s)], BETA)
        expected = np.linalg.norm(ridge(x, y) - ridge(x_s, y_s))
        np.testing.assert_allclose(distances, [[expected]], rtol=1e-9)

    @pytest.mark.parametrize("steps", [1, 5, 40])
    def test_mtt_is_exact_for_the_trained_weights_and_bounds_their_distance(self, steps: int, seed: int) -> None:
        mtt, start = MTT(steps, step_size=0.7), np.random.default_rng(seed).normal(size=(self.c, self.k))
        (x, y), (x_s, y_s) = self.draw(seed, 30), self.draw(seed + 100, 6)
        real, synthetic = uncentred(x, y), uncentred(x_s, y_s)
        largest = largest_eigenvalues([largest_eigenvalue(real.ffc)], [synthetic])
        alpha = 0.7 / max(np.linalg.norm(a, 2) ** 2 / len(a) for a in (x, x_s))

        def trained(features: np.ndarray, targets: np.ndarray) -> np.ndarray:
            weights = start
            for _ in range(steps):
                weights = weights - alpha * features.T @ (features @ weights - targets) / len(features)
            return weights

        targets = filtered(mtt, real, BETA, largest[0])
        for moments, weights in ((real, trained(x, y)), (synthetic, trained(x_s, y_s))):
            kept, learnt = filtered(mtt, moments, BETA, largest[0])
            np.testing.assert_allclose(kept.numpy() @ start + learnt.numpy(), weights, rtol=0, atol=1e-10)
        ffc, flc = distances_of(mtt, [targets], [synthetic], BETA, largest=largest)[0].tolist()
        distance = np.linalg.norm(trained(x, y) - trained(x_s, y_s))
        assert distance <= np.linalg.norm(start, 2) * ffc + flc + 1e-12

    def test_sre2l_is_the_distance_of_batchnorm_statistics(self, seed: int) -> None:
        rng = np.random.default_rng(seed)
        norm = torch.nn.BatchNorm2d(4).double()
        for _ in range(3):
            norm(torch.from_numpy(rng.normal(2, 3, size=(6, 4, 3, 3))))
        assert norm.running_mean is not None
        assert norm.running_var is not None
        none = torch.zeros(0, dtype=torch.float64)
        real = Moments(
            torch.ones(()).double(), norm.running_mean, torch.diag(norm.running_var), none, torch.zeros(4, 0).double()
        )
        x = rng.normal(size=(5, 4, 3, 3))
        actual = distances_of(SRe2L(), [filtered(SRe2L(), real, BETA)], [Moments.of(torch.from_numpy(x))], BETA)
        variance = np.linalg.norm(norm.running_var.numpy() - x.var(axis=(0, 2, 3)))
        mean = np.linalg.norm(norm.running_mean.numpy() - x.mean(axis=(0, 2, 3)))
        np.testing.assert_allclose(actual, [[variance, mean]], rtol=1e-10)


class TestLimitsOfHFM:
    """SPEC.md section 2: flat for β ≫ λ, Ψ⁻¹ for β ≪ λ."""

    def test_large_beta_gives_gradient_and_distribution_matching(self) -> None:
        real, synthetic, beta = draw_moments(0, "class"), draw_moments(1, "class"), 1e5
        hfm = distances_of(HFM(), [filtered(HFM(), real, beta)], [synthetic], beta)[0]
        dc = distances_of(DC(), [filtered(DC(), real, beta)], [synthetic], beta)[0]
        # (Ψ+β)⁻¹ = 1/β − Ψ/β² + …
        np.testing.assert_allclose(hfm * torch.tensor([beta**2, beta]), dc, rtol=1e-3)

    def test_small_beta_gives_least_squares(self) -> None:
        real, synthetic, beta = draw_moments(0, "class", c=3), draw_moments(1, "class", c=3), 1e-9
        actual = distances_of(HFM(), [filtered(HFM(), real, beta)], [synthetic], beta)[0]
        one, other = (np.linalg.inv(moments.ffc.numpy()) for moments in (real, synthetic))
        expected = [
            np.linalg.norm(one - other),
            np.linalg.norm(one @ real.flc.numpy() - other @ synthetic.flc.numpy()),
        ]
        np.testing.assert_allclose(actual, expected, rtol=1e-6)


# The terms of each method, f written out a second time: (f(λ, α), operand, diagonal).
ORACLES: dict[str, list[tuple[Callable[[np.ndarray, float], np.ndarray], str, bool]]] = {
    "dm": [(lambda x, a: np.ones_like(x), "flc", False)],
    "dc": [(lambda x, a: x, "ffc", False), (lambda x, a: np.ones_like(x), "flc", False)],
    "sre2l": [(lambda x, a: x, "ffc", True), (lambda x, a: np.ones_like(x), "flc", False)],
    "lfm": [(lambda x, a: x, "ffc", False), (lambda x, a: x, "flc", False)],
    "mtt": [
        (lambda x, a: (1 - a * x) ** 50, "ffc", False),
        (lambda x, a: (1 - (1 - a * x) ** 50) / x, "flc", False),
    ],
    "frepo": [(lambda x, a: 1 / (x + BETA), "flc", False)],
    "hfm": [(lambda x, a: 1 / (x + BETA), "ffc", False), (lambda x, a: 1 / (x + BETA), "flc", False)],
    "cfm": [(lambda x, a: 1 / (x + BETA), "ffc", False), (lambda x, a: 1 / (x + BETA), "flc", False)],
}
named_methods = pytest.mark.parametrize("method", [kind() for kind in METHODS], ids=lambda method: method.name)


def labels_of(signal: str, n: int, k: int, seed: int) -> Tensor | None:
    """Return (n, k) weights: one-hot, or the rows of a softmax."""
    if signal == "mean":
        return None
    if signal == "class":
        return torch.eye(k, dtype=torch.float64)[torch.arange(n) % k]
    return torch.from_numpy(np.random.default_rng(seed).normal(size=(n, k))).softmax(dim=1)


def draw_side(seed: int, signal: str, scale: float = 1.0, c: int = 5, n: int = 12, k: int = 4) -> Moments:
    features = np.random.default_rng(seed).normal(size=(n, c, 3, 2))
    return Moments.of(scale * torch.from_numpy(features), labels_of(signal, n, k, seed))


def distances_between(method: Method, real: Moments, synthetic: Moments, **options: Any) -> Tensor:
    largest = largest_eigenvalues([largest_eigenvalue(real.ffc)], [synthetic])
    return distances_of(
        method, [filtered(method, real, BETA, largest[0])], [synthetic], BETA, largest=largest, **options
    )


@named_methods
class TestEveryMethod:
    @pytest.mark.parametrize("signal", ["mean", "class", "soft"])
    @pytest.mark.parametrize("scale", [0.3, 1.0, 4.0])  # of the synthetic features
    def test_oracle_by_eigendecomposition(self, scale: float, signal: str, method: Method) -> None:
        real, synthetic = draw_side(0, signal), draw_side(1, signal, scale)
        alpha = 0.5 / max(np.linalg.eigvalsh(one.ffc.numpy())[-1] for one in (real, synthetic))
        expected = []
        for f, operand, diagonal in ORACLES[method.name]:
            one, other = (by_eigenvalues(side.ffc, lambda x, f=f: f(x, alpha)) for side in (real, synthetic))
            if operand == "flc":
                one, other = one @ real.flc.numpy(), other @ synthetic.flc.numpy()
            difference = np.diag(one - other) if diagonal else one - other
            expected.append(np.linalg.norm(difference))
        np.testing.assert_allclose(distances_between(method, real, synthetic)[0], expected, rtol=1e-9)

    @pytest.mark.parametrize("signal", ["mean", "class", "soft"])
    def test_zero_when_synthetic_is_real(self, signal: str, method: Method) -> None:
        real = draw_side(0, signal)
        assert not distances_between(method, real, real).any()

    @pytest.mark.parametrize("signal", ["mean", "class", "soft"])
    def test_running_merge_of_chunks_is_the_unchunked_loss(self, signal: str, method: Method) -> None:
        """SPEC.md section 3: `merge` is exact, so chunks of classes give what all classes together give."""
        rng, k = np.random.default_rng(2), 6
        features, labels = torch.from_numpy(rng.normal(size=(k, 5, 3, 2))), labels_of(signal, k, k, 2)
        running = RunningMoments("merge")
        for rows in (slice(0, 2), slice(2, 4)):
            running.update([Moments.of(features[rows], None if labels is None else labels[rows])])
        last = Moments.of(features[4:], None if labels is None else labels[4:])
        real = draw_side(3, signal, k=k)
        chunked = distances_between(method, real, running.combine([last])[0])
        torch.testing.assert_close(
            chunked, distances_between(method, real, Moments.of(features, labels)), rtol=1e-10, atol=1e-12
        )

    def test_a_much_wider_synthetic_spectrum_stays_finite_in_float32(self, method: Method) -> None:
        real = draw_side(0, "class").to(dtype=torch.float32)
        features = (10**0.5) * torch.from_numpy(np.random.default_rng(1).normal(size=(12, 5, 3, 2))).float()
        features.requires_grad_()
        labels = labels_of("class", 12, 4, 0)
        assert labels is not None
        synthetic = Moments.of(features, labels)
        assert largest_eigenvalue(synthetic.ffc) > 8 * largest_eigenvalue(real.ffc)
        total = distances_between(method, real, synthetic).sum()
        (gradient,) = torch.autograd.grad(total, features)
        assert total.isfinite()
        assert gradient.isfinite().all()

    def test_dead_channels_keep_the_gradient_finite_in_float32(self, method: Method) -> None:
        features = torch.from_numpy(np.random.default_rng(0).normal(size=(8, 6, 3, 2))).float()
        features[:, 2:5] = 0
        features.requires_grad_()
        real = draw_side(1, "mean", c=6).to(dtype=torch.float32)
        (gradient,) = torch.autograd.grad(distances_between(method, real, Moments.of(features)).sum(), features)
        assert gradient.isfinite().all()


def test_chunks_compare_their_own_classes_and_together_all_of_them() -> None:
    """Without running moments the squares of DM's chunks add up to the square of the whole."""
    real, whole = draw_side(0, "class", k=4, n=8), draw_side(1, "class", k=4, n=4)
    pooled, total = 4 * whole.flc.T, 0.0  # one image a class: column k is that image over K
    for classes in ([0, 1], [2, 3]):
        chunk = Moments.of(pooled[classes], torch.eye(4, dtype=torch.float64)[classes])
        total += float(distances_between(DM(), real, chunk, columns=torch.tensor(classes)).square())
    assert total == pytest.approx(float(distances_between(DM(), real, whole).square()), rel=1e-12)


def test_a_two_sided_filter_needs_both_sides() -> None:
    moments = draw_moments(0)
    with pytest.raises(ValueError, match="method mtt needs the largest eigenvalues of both sides, got none"):
        distances_of(MTT(), [filtered(MTT(), moments, BETA)], [moments], BETA)
