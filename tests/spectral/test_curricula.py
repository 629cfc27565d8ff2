import itertools
import math

import numpy as np
import pytest
import torch
from torch import Tensor

from unidd_pl.spectral import (
    ConstantCurriculum,
    CosineCurriculum,
    Curriculum,
    FactorCurriculum,
    GeometricCurriculum,
    LinearCurriculum,
    QuantileCurriculum,
    ReversedCurriculum,
    ShuffledCurriculum,
)

FACTORS = [ConstantCurriculum(), LinearCurriculum(), CosineCurriculum(), GeometricCurriculum()]
CURRICULA: list[Curriculum] = [
    *FACTORS,
    QuantileCurriculum(),
    ReversedCurriculum(CosineCurriculum()),
    ShuffledCurriculum(CosineCurriculum()),
]


def name_of(curriculum: Curriculum) -> str:
    return type(curriculum).__name__


every_factor = pytest.mark.parametrize("curriculum", FACTORS, ids=name_of)
every_curriculum = pytest.mark.parametrize("curriculum", CURRICULA, ids=name_of)
every_length = pytest.mark.parametrize("num_rounds", [2, 3, 10, 50, 100])
BETA = 0.1
SPECTRA = [torch.logspace(-4, 0, 9, dtype=torch.float64), torch.logspace(-2, 1, 5, dtype=torch.float64)]


def betas(curriculum: Curriculum, num_rounds: int, layer: int = 0) -> list[float]:
    return [curriculum.betas_at(BETA, i, num_rounds, SPECTRA)[layer] for i in range(num_rounds)]


@every_length
class TestFormulas:
    def test_cosine(self, num_rounds: int) -> None:
        expected = [BETA * (1 + math.cos(math.pi * i / num_rounds)) / 2 for i in range(num_rounds)]
        assert betas(CosineCurriculum(), num_rounds) == pytest.approx(expected, rel=1e-12)

    def test_linear(self, num_rounds: int) -> None:
        expected = [BETA * (num_rounds - i) / num_rounds for i in range(num_rounds)]
        assert betas(LinearCurriculum(), num_rounds) == pytest.approx(expected, rel=1e-12)

    def test_constant(self, num_rounds: int) -> None:
        assert betas(ConstantCurriculum(), num_rounds) == [BETA] * num_rounds

    def test_geometric(self, num_rounds: int) -> None:
        values = [*betas(GeometricCurriculum(final=0.01), num_rounds), 0.01 * BETA]
        ratios = [after / before for before, after in itertools.pairwise(values)]
        assert ratios == pytest.approx([0.01 ** (1 / num_rounds)] * num_rounds, rel=1e-12)

    def test_quantile(self, num_rounds: int) -> None:
        """Of a spectrum that is a straight line in log λ, a quantile is on that line."""
        values = betas(QuantileCurriculum(first=1.0, last=0.0), num_rounds)
        expected = [10 ** (-4 * i / num_rounds) for i in range(num_rounds)]
        assert values == pytest.approx(expected, rel=1e-12)
        values = betas(QuantileCurriculum(first=0.5, last=0.5), num_rounds, layer=1)
        assert values == pytest.approx([10**-0.5] * num_rounds, rel=1e-12)

    def test_reversed(self, num_rounds: int) -> None:
        forwards = betas(CosineCurriculum(), num_rounds)
        assert betas(ReversedCurriculum(CosineCurriculum()), num_rounds) == forwards[::-1]

    def test_shuffled_holds_every_beta_once_in_an_order_of_its_seed(self, num_rounds: int) -> None:
        forwards = betas(CosineCurriculum(), num_rounds)
        shuffled = betas(ShuffledCurriculum(CosineCurriculum(), seed=3), num_rounds)
        assert sorted(shuffled, reverse=True) == forwards
        assert shuffled == betas(ShuffledCurriculum(CosineCurriculum(), seed=3), num_rounds)
        if num_rounds >= 10:
            assert shuffled != forwards
            assert shuffled != betas(ShuffledCurriculum(CosineCurriculum(), seed=4), num_rounds)


@every_factor
class TestEveryFactor:
    @every_length
    def test_starts_at_beta_and_falls_but_stays_positive(self, num_rounds: int, curriculum: Curriculum) -> None:
        values = betas(curriculum, num_rounds)
        assert values[0] == BETA
        assert values[-1] > 0
        steps = [after - before for before, after in itertools.pairwise(values)]
        if isinstance(curriculum, ConstantCurriculum):
            assert not any(steps)
        else:
            assert max(steps) < 0

    @pytest.mark.parametrize("scale", [1e-4, 1.0, 30.0])
    def test_proportional_to_beta(self, scale: float, curriculum: Curriculum) -> None:
        for i in range(10):
            expected = [scale * beta for beta in curriculum.betas_at(1.0, i, 10, SPECTRA)]
            assert curriculum.betas_at(scale, i, 10, SPECTRA) == pytest.approx(expected)

    def test_all_layers_share_one_beta(self, curriculum: Curriculum) -> None:
        first, second = curriculum.betas_at(BETA, 3, 10, SPECTRA)
        assert first == second


@every_curriculum
class TestEveryCurriculum:
    def test_one_image_per_class_is_no_curriculum(self, curriculum: Curriculum) -> None:
        first = curriculum.betas_at(BETA, 0, 1, SPECTRA)
        if isinstance(curriculum, QuantileCurriculum):
            assert first == curriculum.betas_at(BETA, 0, 10, SPECTRA)
        else:
            assert first == (BETA, BETA)

    @pytest.mark.parametrize(("round_index", "num_rounds"), [(-1, 10), (10, 10), (11, 10), (1, 1), (0, 0)])
    def test_round_outside_the_run_is_rejected(self, round_index: int, num_rounds: int, curriculum: Curriculum) -> None:
        with pytest.raises(ValueError, match=rf"got round {round_index} of {num_rounds}, expected 0 to"):
            curriculum.betas_at(BETA, round_index, num_rounds, SPECTRA)

    def test_beta_that_is_not_positive_is_rejected(self, curriculum: Curriculum) -> None:
        with pytest.raises(ValueError, match=r"got β = 0.0, expected > 0"):
            curriculum.betas_at(0.0, 0, 10, SPECTRA)


class TestQuantile:
    def test_dead_channels_do_not_count(self) -> None:
        alive = torch.logspace(-3, 0, 7, dtype=torch.float64)
        dead = torch.cat([torch.zeros(20, dtype=torch.float64), torch.full((10,), 1e-12), alive])
        curriculum = QuantileCurriculum(first=0.6, last=0.0)
        for i in range(5):
            with_dead, without = curriculum.betas_at(BETA, i, 5, [dead, alive])
            assert with_dead == pytest.approx(without, rel=1e-12)
            assert with_dead >= 1e-6 * float(alive.max())

    @pytest.mark.parametrize("spectrum", [[0.02, 0.3, 4.0], [0.0, 0.0, 4.0], [1.0, 1.0, 1.0]])
    def test_three_channels_of_the_pixels(self, spectrum: list[float]) -> None:
        """The input layer has three eigenvalues, so quantiles fall between them."""
        values = [
            QuantileCurriculum(0.9, 0.1).betas_at(BETA, i, 10, [torch.tensor(spectrum, dtype=torch.float64)])[0]
            for i in range(10)
        ]
        positive = [value for value in spectrum if value > 0]
        assert all(min(positive) * 0.999 <= value <= max(positive) * 1.001 for value in values)
        assert values == sorted(values, reverse=True)

    def test_layer_that_is_dead_as_a_whole_keeps_the_beta_of_the_config(self) -> None:
        assert QuantileCurriculum().betas_at(BETA, 0, 2, [torch.zeros(4)]) == (BETA,)

    def test_numpy_agrees(self) -> None:
        spectrum: Tensor = torch.from_numpy(np.random.default_rng(0).gamma(0.5, size=40))
        (beta,) = QuantileCurriculum(0.37, 0.37).betas_at(BETA, 0, 2, [spectrum])
        kept = spectrum.numpy()[spectrum.numpy() > 1e-6 * spectrum.max().item()]
        assert beta == pytest.approx(np.exp(np.quantile(np.log(kept), 0.37)), rel=1e-12)

    @pytest.mark.parametrize(("first", "last", "named"), [(1.1, 0.1, "first 1.1"), (0.9, -0.1, "last -0.1")])
    def test_quantiles_outside_the_spectrum_are_rejected(self, first: float, last: float, named: str) -> None:
        with pytest.raises(ValueError, match=f"QuantileCurriculum: got {named}"):
            QuantileCurriculum(first, last)


@pytest.mark.parametrize("final", [0.0, -0.1, 1.5])
def test_geometric_end_out_of_range_is_rejected(final: float) -> None:
    with pytest.raises(ValueError, match=rf"got final {final}, expected 0 < final ≤ 1"):
        GeometricCurriculum(final)


@pytest.mark.parametrize(("ipc", "beta"), [(10, 2.4e-3), (50, 1e-4)])
def test_last_round_of_cosine_in_the_spec(ipc: int, beta: float) -> None:
    """SPEC.md section 3, spectrum against β."""
    assert betas(CosineCurriculum(), ipc)[-1] == pytest.approx(beta, rel=0.03)


def test_cosine_is_half_way_at_half_time() -> None:
    assert betas(CosineCurriculum(), 10)[5] == pytest.approx(BETA / 2)


@pytest.mark.parametrize("curriculum", [LinearCurriculum(), CosineCurriculum()], ids=name_of)
def test_end_tends_to_zero(curriculum: FactorCurriculum) -> None:
    assert curriculum.betas_at(BETA, 9999, 10000, SPECTRA)[0] < 2e-4 * BETA
