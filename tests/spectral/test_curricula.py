import itertools
import math

import pytest

from unidd_pl.spectral import ConstantCurriculum, CosineCurriculum, Curriculum, LinearCurriculum

CURRICULA = [ConstantCurriculum(), LinearCurriculum(), CosineCurriculum()]
every_curriculum = pytest.mark.parametrize("curriculum", CURRICULA, ids=lambda c: type(c).__name__)
every_length = pytest.mark.parametrize("num_rounds", [2, 3, 10, 50, 100])
BETA = 0.1


def betas(curriculum: Curriculum, num_rounds: int) -> list[float]:
    return [curriculum.beta_at(BETA, i, num_rounds) for i in range(num_rounds)]


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


@every_curriculum
class TestEveryCurriculum:
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

    def test_one_image_per_class_is_no_curriculum(self, curriculum: Curriculum) -> None:
        assert curriculum.beta_at(BETA, 0, 1) == BETA

    @pytest.mark.parametrize("scale", [1e-4, 1.0, 30.0])
    def test_proportional_to_beta(self, scale: float, curriculum: Curriculum) -> None:
        for i in range(10):
            expected = scale * curriculum.beta_at(1.0, i, 10)
            assert curriculum.beta_at(scale, i, 10) == pytest.approx(expected)

    @pytest.mark.parametrize(("round_index", "num_rounds"), [(-1, 10), (10, 10), (11, 10), (1, 1), (0, 0)])
    def test_round_outside_the_run_is_rejected(self, round_index: int, num_rounds: int, curriculum: Curriculum) -> None:
        with pytest.raises(ValueError, match=rf"got round {round_index} of {num_rounds}, expected 0 to"):
            curriculum.beta_at(BETA, round_index, num_rounds)


@pytest.mark.parametrize(("ipc", "beta"), [(10, 2.4e-3), (50, 1e-4)])
def test_last_round_of_cosine_in_the_spec(ipc: int, beta: float) -> None:
    """SPEC.md section 3, spectrum against β."""
    assert CosineCurriculum().beta_at(0.1, ipc - 1, ipc) == pytest.approx(beta, rel=0.03)


def test_cosine_is_half_way_at_half_time() -> None:
    assert CosineCurriculum().beta_at(BETA, 5, 10) == pytest.approx(BETA / 2)


@pytest.mark.parametrize("curriculum", [LinearCurriculum(), CosineCurriculum()], ids=lambda c: type(c).__name__)
def test_end_tends_to_zero(curriculum: Curriculum) -> None:
    assert curriculum.beta_at(BETA, 9999, 10000) < 2e-4 * BETA
