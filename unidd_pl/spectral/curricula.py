"""Curricula: the filter parameter β as a pure function of the round.

Legend: i the round, from 0 to n − 1; l layers.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor

_ZERO_SHARE = 1e-6  # of λ_max; below it an eigenvalue is a dead channel's zero up to rounding


class Curriculum(ABC):
    """Maps a round to its β, one for each layer.

    A round makes one synthetic image of every class; β is held during all its iterations, so the round
    carries the frequency. With one round there is no curriculum.

    References:
        SPEC.md section 3.
    """

    def betas_at(self, beta: float, round_index: int, num_rounds: int, spectra: Sequence[Tensor]) -> tuple[float, ...]:
        """Return β of a round for each layer, eigenvalue units.

        Args:
            beta: β of the config, > 0.
            round_index: i, from 0 to num_rounds − 1.
            num_rounds: Number of rounds, the images per class.
            spectra: Eigenvalues of the real FFC, (c,), for each of l layers.

        Raises:
            ValueError: If the round is outside the run or β is not positive.
        """
        if not beta > 0:
            raise ValueError(f"got β = {beta}, expected > 0")
        if not 0 <= round_index < num_rounds:
            raise ValueError(f"got round {round_index} of {num_rounds}, expected 0 to {num_rounds - 1}")
        return self._betas(beta, round_index, num_rounds, spectra)

    @abstractmethod
    def _betas(
        self, beta: float, round_index: int, num_rounds: int, spectra: Sequence[Tensor]
    ) -> tuple[float, ...]: ...


class FactorCurriculum(Curriculum):
    """β_i = β · factor(i/n), the same in all layers."""

    @abstractmethod
    def factor(self, progress: float) -> float:
        """Return β_i/β > 0 at progress i/n in [0, 1); 1 at the start."""

    def _betas(self, beta: float, round_index: int, num_rounds: int, spectra: Sequence[Tensor]) -> tuple[float, ...]:
        return (beta * self.factor(round_index / num_rounds),) * len(spectra)


class ConstantCurriculum(FactorCurriculum):
    """β_i = β: every round the same band (HFM)."""

    def factor(self, progress: float) -> float:
        """Return 1."""
        return 1.0


class LinearCurriculum(FactorCurriculum):
    """β_i = β (1 − i/n)."""

    def factor(self, progress: float) -> float:
        """Return 1 − progress."""
        return 1.0 - progress


class CosineCurriculum(FactorCurriculum):
    """β_i = β (1 + cos(π i/n)) / 2, the curriculum of CFM."""

    def factor(self, progress: float) -> float:
        """Return (1 + cos(π progress)) / 2."""
        return (1.0 + math.cos(math.pi * progress)) / 2.0


class GeometricCurriculum(FactorCurriculum):
    """β_i = β · final^(i/n): equal ratios from round to round, a straight line in log β.

    Args:
        final: β_n/β that the last round comes near to, 0 < final ≤ 1.

    Raises:
        ValueError: If `final` is out of range.
    """

    def __init__(self, final: float = 1e-3) -> None:
        if not 0 < final <= 1:
            raise ValueError(f"GeometricCurriculum: got final {final}, expected 0 < final ≤ 1")
        self.final = final

    def factor(self, progress: float) -> float:
        """Return final^progress."""
        return float(self.final**progress)


class QuantileCurriculum(Curriculum):
    """β of each layer is a quantile of the layer's real spectrum, from `first` down towards `last`.

    A β that is one number for all layers lies above the whole spectrum of some and leaves their filters flat;
    a quantile reaches the same share of each spectrum. Quantiles are over the eigenvalues that are not zero
    (dead channels) and linear in log λ; q_i = first + (last − first) · i/n. β of the config has no part in it.

    Args:
        first: Quantile of the first round, in [0, 1]; 1 is λ_max.
        last: Quantile that the last round comes near to.

    Raises:
        ValueError: If a quantile is out of range.

    References:
        SPEC.md section 3, spectrum against β.
    """

    def __init__(self, first: float = 0.9, last: float = 0.1) -> None:
        for name, value in (("first", first), ("last", last)):
            if not 0 <= value <= 1:
                raise ValueError(f"QuantileCurriculum: got {name} {value}, expected 0 ≤ {name} ≤ 1")
        self.first = first
        self.last = last

    def _betas(self, beta: float, round_index: int, num_rounds: int, spectra: Sequence[Tensor]) -> tuple[float, ...]:
        quantile = self.first + (self.last - self.first) * round_index / num_rounds
        return tuple(_log_quantile(spectrum.double(), quantile, otherwise=beta) for spectrum in spectra)


class ReversedCurriculum(Curriculum):
    """The rounds of another curriculum backwards: from high to low frequencies (a control).

    Args:
        curriculum: The curriculum to turn round.
    """

    def __init__(self, curriculum: Curriculum) -> None:
        self.curriculum = curriculum

    def _betas(self, beta: float, round_index: int, num_rounds: int, spectra: Sequence[Tensor]) -> tuple[float, ...]:
        return self.curriculum.betas_at(beta, num_rounds - 1 - round_index, num_rounds, spectra)


class ShuffledCurriculum(Curriculum):
    """The rounds of another curriculum in a random order: its β, but no progress (a control).

    Args:
        curriculum: The curriculum to shuffle.
        seed: Seed of the order.
    """

    def __init__(self, curriculum: Curriculum, seed: int = 0) -> None:
        self.curriculum = curriculum
        self.seed = seed

    def _betas(self, beta: float, round_index: int, num_rounds: int, spectra: Sequence[Tensor]) -> tuple[float, ...]:
        order = torch.randperm(num_rounds, generator=torch.Generator().manual_seed(self.seed))
        return self.curriculum.betas_at(beta, int(order[round_index]), num_rounds, spectra)


def _log_quantile(spectrum: Tensor, quantile: float, otherwise: float) -> float:
    """Return a quantile of the eigenvalues that are not zero, linear in log λ; `otherwise` where all are."""
    largest = float(spectrum.max())
    alive = spectrum[spectrum > _ZERO_SHARE * largest] if largest > 0 else spectrum[:0]
    return math.exp(float(torch.quantile(alive.log(), quantile))) if len(alive) else otherwise
