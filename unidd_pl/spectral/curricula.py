"""Curricula: the filter parameter β as a pure function of the round."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod


class Curriculum(ABC):
    """Maps a round to its β.

    A round makes one synthetic image of every class; β is held during all its iterations, so the round
    carries the frequency. With one round there is no curriculum.

    References:
        SPEC.md section 3.
    """

    def beta_at(self, beta: float, round_index: int, num_rounds: int) -> float:
        """Return β of a round, eigenvalue units.

        Args:
            beta: β of the first round, > 0.
            round_index: i, from 0 to num_rounds − 1.
            num_rounds: Number of rounds, the images per class.

        Raises:
            ValueError: If the round is outside the run or β is not positive.
        """
        if not beta > 0:
            raise ValueError(f"got β = {beta}, expected > 0")
        if not 0 <= round_index < num_rounds:
            raise ValueError(f"got round {round_index} of {num_rounds}, expected 0 to {num_rounds - 1}")
        return beta * self.factor(round_index / num_rounds)

    @abstractmethod
    def factor(self, progress: float) -> float:
        """Return β/β_0 > 0 at progress i/num_rounds in [0, 1); 1 at the start."""


class ConstantCurriculum(Curriculum):
    """β_i = β: every round the same band (HFM)."""

    def factor(self, progress: float) -> float:
        """Return 1."""
        return 1.0


class LinearCurriculum(Curriculum):
    """β_i = β (1 − i/IPC)."""

    def factor(self, progress: float) -> float:
        """Return 1 − progress."""
        return 1.0 - progress


class CosineCurriculum(Curriculum):
    """β_i = β (1 + cos(π i/IPC)) / 2, the curriculum of CFM."""

    def factor(self, progress: float) -> float:
        """Return (1 + cos(π progress)) / 2."""
        return (1.0 + math.cos(math.pi * progress)) / 2.0
