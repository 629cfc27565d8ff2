"""Generators of random cases: numpy draws them, so that the oracles share nothing with the code."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

PsdFactory = Callable[..., Tensor]


def draw_psd(seed: int, c: int, rank: int | None = None, scale: float = 1.0) -> Tensor:
    """A symmetric positive semi-definite (c, c) in float64, of the given rank (default full)."""
    root = np.random.default_rng(seed).normal(size=(c, rank or 2 * c))
    return torch.from_numpy(scale * root @ root.T / root.shape[1])


@pytest.fixture
def psd() -> PsdFactory:
    return draw_psd
