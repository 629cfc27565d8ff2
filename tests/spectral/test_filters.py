from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from unidd_pl.spectral import Linear, Moments, Resolvent, SpectralFilter

PsdFactory = Callable[..., Tensor]

# Arguments of the filters that need some; a new filter without a default belongs here.
ARGUMENTS: dict[str, dict[str, Any]] = {}
SPECTRAL_FILTERS = [
    kind(**ARGUMENTS.get(kind.__name__, {}))
    for kind in SpectralFilter.__subclasses__()
    if kind.__module__.startswith("unidd_pl.")  # not the ones that tests make up
]
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
        response = spectral_filter.response(torch.from_numpy(eigenvalues).clamp(min=0), beta).numpy()
        matrix = spectral_filter.matrix(ffc, beta)
        assert_close(torch.linalg.eigvalsh(matrix), np.sort(response))
        assert_close(matrix, vectors @ np.diag(response) @ vectors.T)
        assert_close(matrix, matrix.T)

    def test_apply_is_matrix_times_operand(
        self, spectral_filter: SpectralFilter, rank: int, beta: float, psd: PsdFactory
    ) -> None:
        ffc = psd(1, 6, rank)
        for m in (1, 4, 9):
            operand = torch.from_numpy(np.random.default_rng(m).normal(size=(6, m)))
            expected = spectral_filter.matrix(ffc, beta).numpy() @ operand.numpy()
            assert_close(spectral_filter.apply(ffc, operand, beta), expected)

    def test_rotation_equivariance(
        self, spectral_filter: SpectralFilter, rank: int, beta: float, psd: PsdFactory
    ) -> None:
        """f(QΨQᵀ) = Q f(Ψ) Qᵀ."""
        ffc, q = psd(2, 6, rank), rotation(2, 6)
        rotated = spectral_filter.matrix(q @ ffc @ q.T, beta)
        assert_close(rotated, q @ spectral_filter.matrix(ffc, beta) @ q.T)


@every_filter
@pytest.mark.parametrize("rank", [4, 2, 1])  # of 4 channels
def test_gradcheck(spectral_filter: SpectralFilter, rank: int) -> None:
    # Ψ = RRᵀ, so that every perturbed Ψ is symmetric, as covariances are.
    rng, beta = np.random.default_rng(3), 0.1
    root = torch.from_numpy(0.5 * rng.normal(size=(4, rank))).requires_grad_()
    operand = torch.from_numpy(rng.normal(size=(4, 2))).requires_grad_()

    def both_forms(r: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
        ffc = r @ r.T
        return spectral_filter.apply(ffc, g, beta), spectral_filter.matrix(ffc, beta) @ g

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
        value = spectral_filter.apply(moments.ffc, moments.flc, beta)
        loss = value.square().sum() + spectral_filter.matrix(moments.ffc, beta).square().sum()
        (gradient,) = torch.autograd.grad(loss, features)
        assert value.dtype == torch.float32
        assert value.isfinite().all()
        assert gradient.isfinite().all()

    def test_repeated_eigenvalues_keep_the_gradient_exact(self, spectral_filter: SpectralFilter) -> None:
        """At Ψ = cI the derivative of tr f(Ψ) in Ψ is f'(c) I."""
        scale, step, beta = 0.3, 1e-6, 0.1
        ffc = (scale * torch.eye(5, dtype=torch.float64)).requires_grad_()
        trace = spectral_filter.matrix(ffc, beta).diagonal().sum() + 0 * ffc.sum()
        (gradient,) = torch.autograd.grad(trace, ffc)
        around = spectral_filter.response(torch.tensor([scale - step, scale + step], dtype=torch.float64), beta)
        slope = (around[1] - around[0]) / (2 * step)
        torch.testing.assert_close(gradient, slope * torch.eye(5, dtype=torch.float64), rtol=1e-6, atol=1e-8)

    def test_one_channel(self, spectral_filter: SpectralFilter) -> None:
        ffc = torch.tensor([[0.25]], dtype=torch.float64)
        torch.testing.assert_close(spectral_filter.matrix(ffc, 0.5), spectral_filter.response(ffc, 0.5))


class TestResponses:
    eigenvalues = torch.tensor([0.0, 0.5, 2.0], dtype=torch.float64)

    def test_every_filter_is_tested(self) -> None:
        assert {type(f).__name__ for f in SPECTRAL_FILTERS} >= {"Identity", "Linear", "Resolvent"}

    def test_formulas_of_the_spec(self) -> None:
        expected = {"Identity": [1, 1, 1], "Linear": [0, 0.5, 2], "Resolvent": [2, 1, 0.4]}
        for spectral_filter in SPECTRAL_FILTERS:
            if type(spectral_filter).__name__ in expected:
                response = spectral_filter.response(self.eigenvalues, 0.5)
                np.testing.assert_allclose(response, expected[type(spectral_filter).__name__], rtol=1e-15)

    def test_linear_is_low_pass_and_resolvent_high_pass(self) -> None:
        assert (Linear().response(self.eigenvalues, 0.5).diff() > 0).all()
        assert (Resolvent().response(self.eigenvalues, 0.5).diff() < 0).all()


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
