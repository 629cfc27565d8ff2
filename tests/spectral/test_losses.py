from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from unidd_pl.spectral import (
    CFM,
    HFM,
    LFM,
    Identity,
    Linear,
    Method,
    Moments,
    Resolvent,
    Term,
    filtered,
    term_distances,
)

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
        dm = Method("dm", "low", [Term(Identity(), "flc")])
        (x, y), (x_s, y_s) = self.draw(seed, 30), self.draw(seed + 100, 6)
        real, synthetic = (Moments.of(torch.from_numpy(a), torch.from_numpy(b)) for a, b in ((x, y), (x_s, y_s)))
        term = distances_of(dm, [filtered(dm, real, BETA)], [synthetic], BETA)
        expected = 0.0
        for j in range(self.k):
            mean, mean_s = x[y[:, j] == 1].mean(axis=0), x_s[y_s[:, j] == 1].mean(axis=0)
            expected += (((mean - mean_s) / self.k) ** 2).sum()
        np.testing.assert_allclose(term.square().sum(), expected, rtol=1e-12)

    def test_dc_bounds_the_distance_of_the_gradients(self, seed: int) -> None:
        dc = Method("dc", "low", [Term(Linear(), "ffc"), Term(Identity(), "flc")])
        (x, y), (x_s, y_s) = self.draw(seed, 30), self.draw(seed + 100, 6)
        distances = distances_of(dc, [filtered(dc, uncentred(x, y), BETA)], [uncentred(x_s, y_s)], BETA)
        ffc, flc = distances[0].tolist()
        for trial in range(10):
            weights = np.random.default_rng(trial).normal(size=(self.c, self.k))
            gradient = x.T @ (x @ weights - y) / len(x)  # of ‖XW−Y‖²/2s
            gradient_s = x_s.T @ (x_s @ weights - y_s) / len(x_s)
            bound = np.linalg.norm(weights, 2) * ffc + flc
            assert np.linalg.norm(gradient - gradient_s) <= bound * (1 + 1e-12)

    def test_frepo_is_the_distance_of_the_ridge_weights(self, seed: int) -> None:
        frepo = Method("frepo", "high", [Term(Resolvent(), "flc")])
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
