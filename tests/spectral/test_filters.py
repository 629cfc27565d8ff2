import inspect
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from unidd_pl.spectral import METHODS, Landweber, LandweberResidual, Linear, Moments, Resolvent, SpectralFilter
from unidd_pl.spectral.filters import largest_eigenvalue

PsdFactory = Callable[..., Tensor]

# Arguments of the filters that need some; a new filter without a default belongs here.
ARGUMENTS: dict[str, dict[str, Any]] = {"Landweber": {"steps": 7}, "LandweberResidual": {"steps": 6, "step_size": 0.9}}


def kinds(base: type[SpectralFilter]) -> list[type[SpectralFilter]]:
    return [one for kind in base.__subclasses__() for one in (kind, *kinds(kind))]


SPECTRAL_FILTERS = [
    kind(**ARGUMENTS.get(kind.__name__, {}))
    for kind in kinds(SpectralFilter)
    if kind.__module__.startswith("unidd_pl.") and not inspect.isabstract(kind)  # not the ones that tests make up
]
LARGEST = torch.tensor(6.0, dtype=torch.float64)  # of both sides; no Ψ here has a larger eigenvalue
every_filter = pytest.mark.parametrize("spectral_filter", SPECTRAL_FILTERS, ids=lambda f: type(f).__name__)
every_rank = pytest.mark.parametrize("rank", [6, 3, 1])  # of 6 channels
every_beta = pytest.mark.parametrize("beta", [1e-3, 0.1, 10.0])


def rotation(seed: int, c: int) -> Tensor:
    q, _ = np.linalg.qr(np.random.default_rng(seed).normal(size=(c, c)))
    return torch.from_numpy(q)


def assert_close(actual: Tensor, expected: Tensor | np.ndarray, tolerance: float = 1e-10) -> None:
    """Compare relative to the largest entry: 1/(λ+β) has entries of very different size."""
    expected = torch.as_tensor(expected)
    torch.testing.assert_close(actual, expected, rtol=0, atol=tolerance * expected.abs().max().item())


@every_filter
@every_beta
@every_rank
class TestEveryFilter:
    def test_spectral_law(self, spectral_filter: SpectralFilter, rank: int, beta: float, psd: PsdFactory) -> None:
        """f(Ψ) has the eigenvalues response(eig Ψ), and Ψ's eigenvectors."""
        ffc = psd(0, 6, rank)
        eigenvalues, vectors = np.linalg.eigh(ffc.numpy())
        response = spectral_filter.response(torch.from_numpy(eigenvalues).clamp(min=0), beta, LARGEST).numpy()
        matrix = spectral_filter.matrix(ffc, beta, LARGEST)
        assert_close(torch.linalg.eigvalsh(matrix), np.sort(response))
        assert_close(matrix, vectors @ np.diag(response) @ vectors.T)
        assert_close(matrix, matrix.T)

    def test_apply_is_matrix_times_operand(
        self, spectral_filter: SpectralFilter, rank: int, beta: float, psd: PsdFactory
    ) -> None:
        ffc = psd(1, 6, rank)
        for m in (1, 4, 9):
            operand = torch.from_numpy(np.random.default_rng(m).normal(size=(6, m)))
            expected = spectral_filter.matrix(ffc, beta, LARGEST).numpy() @ operand.numpy()
            assert_close(spectral_filter.apply(ffc, operand, beta, LARGEST), expected)

    def test_rotation_equivariance(
        self, spectral_filter: SpectralFilter, rank: int, beta: float, psd: PsdFactory
    ) -> None:
        """f(QΨQᵀ) = Q f(Ψ) Qᵀ."""
        ffc, q = psd(2, 6, rank), rotation(2, 6)
        rotated = spectral_filter.matrix(q @ ffc @ q.T, beta, LARGEST)
        assert_close(rotated, q @ spectral_filter.matrix(ffc, beta, LARGEST) @ q.T)


@every_filter
@pytest.mark.parametrize("rank", [4, 2, 1])  # of 4 channels
def test_gradcheck(spectral_filter: SpectralFilter, rank: int) -> None:
    # Ψ = RRᵀ, so that every perturbed Ψ is symmetric, as covariances are.
    rng, beta = np.random.default_rng(3), 0.1
    root = torch.from_numpy(0.5 * rng.normal(size=(4, rank))).requires_grad_()
    operand = torch.from_numpy(rng.normal(size=(4, 2))).requires_grad_()

    def both_forms(r: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
        ffc = r @ r.T
        return spectral_filter.apply(ffc, g, beta, LARGEST), spectral_filter.matrix(ffc, beta, LARGEST) @ g

    assert torch.autograd.gradcheck(both_forms, (root, operand))


@every_filter
class TestDegenerateSpectra:
    @every_beta
    @pytest.mark.parametrize("dead", [[0], [2, 3, 5], [0, 1, 2, 3, 4, 5]])
    def test_dead_channels_keep_the_gradient_finite_in_float32(
        self, spectral_filter: SpectralFilter, dead: list[int], beta: float
    ) -> None:
        features = torch.from_numpy(np.random.default_rng(0).normal(size=(8, 6, 2, 2))).float()
        features[:, dead] = 0
        features.requires_grad_()
        moments = Moments.of(features)
        assert not moments.ffc[dead].any()
        assert not moments.ffc[:, dead].any()
        value = spectral_filter.apply(moments.ffc, moments.flc, beta, LARGEST)
        loss = value.square().sum() + spectral_filter.matrix(moments.ffc, beta, LARGEST).square().sum()
        (gradient,) = torch.autograd.grad(loss, features)
        assert value.dtype == torch.float32
        assert value.isfinite().all()
        assert gradient.isfinite().all()

    def test_repeated_eigenvalues_keep_the_gradient_exact(self, spectral_filter: SpectralFilter) -> None:
        """At Ψ = cI the derivative of tr f(Ψ) in Ψ is f'(c) I."""
        scale, step, beta = 0.3, 1e-6, 0.1
        ffc = (scale * torch.eye(5, dtype=torch.float64)).requires_grad_()
        trace = spectral_filter.matrix(ffc, beta, LARGEST).diagonal().sum() + 0 * ffc.sum()
        (gradient,) = torch.autograd.grad(trace, ffc)
        around = spectral_filter.response(
            torch.tensor([scale - step, scale + step], dtype=torch.float64), beta, LARGEST
        )
        slope = (around[1] - around[0]) / (2 * step)
        torch.testing.assert_close(gradient, slope * torch.eye(5, dtype=torch.float64), rtol=1e-6, atol=1e-8)

    def test_one_channel(self, spectral_filter: SpectralFilter) -> None:
        ffc = torch.tensor([[0.25]], dtype=torch.float64)
        torch.testing.assert_close(
            spectral_filter.matrix(ffc, 0.5, LARGEST), spectral_filter.response(ffc, 0.5, LARGEST)
        )


class TestResponses:
    eigenvalues = torch.tensor([0.0, 0.5, 2.0], dtype=torch.float64)

    def test_every_filter_is_tested(self) -> None:
        named = {type(term.filter).__name__ for method in METHODS for term in method().terms}
        assert {type(f).__name__ for f in SPECTRAL_FILTERS} >= named

    def test_formulas_of_the_spec(self) -> None:
        alpha, slow = 0.5 / 6, 0.9 / 6
        expected = {
            "Identity": [1, 1, 1],
            "Linear": [0, 0.5, 2],
            "Resolvent": [2, 1, 0.4],
            "Landweber": [7 * alpha, (1 - (1 - 0.5 * alpha) ** 7) / 0.5, (1 - (1 - 2 * alpha) ** 7) / 2],
            "LandweberResidual": [1, (1 - 0.5 * slow) ** 6, (1 - 2 * slow) ** 6],
        }
        assert expected.keys() == {type(one).__name__ for one in SPECTRAL_FILTERS}
        for spectral_filter in SPECTRAL_FILTERS:
            response = spectral_filter.response(self.eigenvalues, 0.5, LARGEST)
            np.testing.assert_allclose(response, expected[type(spectral_filter).__name__], rtol=1e-14)

    def test_linear_is_low_pass_and_the_others_high_pass(self) -> None:
        assert (Linear().response(self.eigenvalues, 0.5).diff() > 0).all()
        for high_pass in (Resolvent(), Landweber(), LandweberResidual()):
            assert (high_pass.response(self.eigenvalues, 0.5, LARGEST).diff() < 0).all()


class TestResolventLimits:
    @pytest.mark.parametrize("beta", [1e2, 1e4, 1e6])
    def test_flat_for_beta_above_the_spectrum(self, beta: float, psd: PsdFactory) -> None:
        ffc = psd(4, 6)
        largest = np.linalg.eigvalsh(ffc.numpy()).max()
        error = beta * Resolvent().matrix(ffc, beta) - torch.eye(6, dtype=torch.float64)
        # ‖β(Ψ+βI)⁻¹ − I‖₂ = λ_max/(λ_max+β)
        norm = torch.linalg.matrix_norm(error, 2).item()
        assert norm == pytest.approx(largest / (largest + beta), rel=1e-6)

    @pytest.mark.parametrize("beta", [1e-3, 1e-5, 1e-7])
    def test_inverse_for_beta_below_the_spectrum(self, beta: float, psd: PsdFactory) -> None:
        ffc = psd(4, 6)
        smallest = np.linalg.eigvalsh(ffc.numpy()).min()
        assert smallest > 10 * beta
        error = Resolvent().matrix(ffc, beta).numpy() - np.linalg.inv(ffc.numpy())
        # ‖(Ψ+βI)⁻¹ − Ψ⁻¹‖₂ = β/(λ_min(λ_min+β))
        expected = beta / (smallest * (smallest + beta))
        assert np.linalg.norm(error, 2) == pytest.approx(expected, rel=1e-4)

    def test_dead_channel_gives_one_over_beta(self, psd: PsdFactory) -> None:
        ffc = torch.zeros(4, 4, dtype=torch.float64)
        ffc[:3, :3] = psd(5, 3)
        matrix = Resolvent().matrix(ffc, 0.01)
        np.testing.assert_allclose(matrix[3], [0, 0, 0, 100], atol=1e-12)

    def test_indefinite_matrix_is_rejected(self) -> None:
        ffc = torch.diag(torch.tensor([1.0, -0.5], dtype=torch.float64))
        with pytest.raises(torch.linalg.LinAlgError, match="positive-definite"):
            Resolvent().matrix(ffc, 0.1)


@pytest.mark.parametrize("steps", [1, 2, 3, 7, 50, 64])
class TestGradientDescentFilters:
    def test_weights_of_gradient_descent_by_hand(self, steps: int, psd: PsdFactory) -> None:
        """W ← W − α(ΨW − Φ), p times: W_p = (I−αΨ)^p W_0 + h_p(Ψ)Φ."""
        ffc, rng = psd(7, 5, 3), np.random.default_rng(7)
        start, flc = rng.normal(size=(5, 2)), rng.normal(size=(5, 2))
        weights, alpha = start, 0.8 / LARGEST.item()
        for _ in range(steps):
            weights = weights - alpha * (ffc.numpy() @ weights - flc)
        kept = LandweberResidual(steps, 0.8).apply(ffc, torch.from_numpy(start), 0.1, LARGEST)
        learnt = Landweber(steps, 0.8).apply(ffc, torch.from_numpy(flc), 0.1, LARGEST)
        assert_close(kept + learnt, weights)

    def test_what_is_not_kept_is_learnt(self, steps: int, psd: PsdFactory) -> None:
        """(1−αλ)^p = 1 − λ h_p(λ)."""
        ffc = psd(8, 6, 4)
        kept, learnt = (kind(steps).matrix(ffc, 0.1, LARGEST) for kind in (LandweberResidual, Landweber))
        assert_close(kept, torch.eye(6, dtype=torch.float64) - ffc @ learnt)

    def test_response_keeps_its_digits_for_small_eigenvalues(self, steps: int) -> None:
        eigenvalues = torch.tensor([0.0, 1e-14, 1e-9, 5.9], dtype=torch.float64)
        response = Landweber(steps, 0.9).response(eigenvalues, 0.1, LARGEST)
        rate = 0.9 / 6
        exact = [sum(rate * (1 - rate * value) ** k for k in range(steps)) for value in eigenvalues.tolist()]
        np.testing.assert_allclose(response, exact, rtol=1e-12)

    def test_own_largest_eigenvalue_without_a_common_one(self, steps: int, psd: PsdFactory) -> None:
        ffc = psd(9, 4)
        largest = torch.linalg.eigvalsh(ffc)[-1]
        assert_close(Landweber(steps).matrix(ffc, 0.1), Landweber(steps).matrix(ffc, 0.1, largest))
        eigenvalues = torch.linalg.eigvalsh(ffc)
        assert_close(Landweber(steps).response(eigenvalues, 0.1), Landweber(steps).response(eigenvalues, 0.1, largest))

    def test_dead_layer(self, steps: int) -> None:
        ffc = torch.zeros(3, 3)
        assert_close(LandweberResidual(steps).matrix(ffc, 0.1), torch.eye(3))
        assert_close(Landweber(steps, 0.5).matrix(ffc, 0.1), 0.5 * steps * torch.eye(3), 1e-5)

    def test_out_of_range_is_rejected(self, steps: int) -> None:
        for kind in (Landweber, LandweberResidual):
            with pytest.raises(ValueError, match=f"{kind.__name__}: got steps {-steps}, expected at least 1"):
                kind(-steps)
            for step_size in (0.0, 1.0, 1.0 + steps):
                with pytest.raises(ValueError, match=f"got step_size {step_size}, expected 0 < step_size < 1"):
                    kind(steps, step_size)


def test_the_step_of_both_sides_is_stable_and_gradient_free(psd: PsdFactory) -> None:
    """SPEC.md section 2: a synthetic spectrum ten times wider than the real one stays finite."""
    real = psd(10, 6).float()
    root = torch.from_numpy(np.random.default_rng(1).normal(size=(6, 12))).float().requires_grad_()
    synthetic = root @ root.T
    synthetic = synthetic * (10 * largest_eigenvalue(real) / largest_eigenvalue(synthetic))
    largest = torch.maximum(largest_eigenvalue(real), largest_eigenvalue(synthetic))
    assert not largest.requires_grad
    for kind in (Landweber, LandweberResidual):
        value = kind(50, 0.99).matrix(synthetic, 0.1, largest)
        (gradient,) = torch.autograd.grad(value.square().sum(), root, retain_graph=True)
        assert value.isfinite().all()
        assert gradient.isfinite().all()
        assert torch.linalg.matrix_norm(value, 2) <= (50 / largest if kind is Landweber else 1.0) * 1.001


def test_only_the_resolvent_depends_on_beta() -> None:
    assert [type(one).__name__ for one in SPECTRAL_FILTERS if one.uses_beta] == ["Resolvent"]
