"""MatchingLoss: what it keeps of the real side, and for how long."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from unidd_pl.spectral import HFM, METHODS, MTT, MatchingLoss, Method, Moments, Resolvent, Term, filtered
from unidd_pl.spectral.losses import largest_eigenvalues, least_norms, term_distances

BETAS = (0.3, 0.02)


def draw(seed: int, dtype: torch.dtype = torch.float64) -> list[Moments]:
    rng = np.random.default_rng(seed)
    return [Moments.of(torch.from_numpy(rng.normal(1, 2, size=(9, c, 2, 2))).to(dtype)) for c in (3, 5)]


@pytest.mark.parametrize("relative", [False, True])
@pytest.mark.parametrize("method", [kind() for kind in METHODS], ids=lambda method: method.name)
def test_distances_are_those_of_the_functions(method: Method, relative: bool) -> None:
    real, synthetic = draw(0), draw(1)
    loss = MatchingLoss(method, real, 0.1, relative=relative)
    for betas in ((0.1, 0.1), BETAS):
        loss.betas = betas
        scale = largest_eigenvalues([torch.linalg.eigvalsh(one.ffc)[-1] for one in real], synthetic)
        targets = [filtered(method, *one) for one in zip(real, betas, scale, strict=True)]
        expected = term_distances(
            method,
            targets,
            synthetic,
            betas,
            largest=scale,
            relative=relative,
            least=least_norms(method, real, betas) if relative else None,
        )
        torch.testing.assert_close(loss.distances(synthetic), expected)


class Counting(Resolvent):
    """A resolvent that counts the matrices it filters in float64: the real ones."""

    calls = 0

    def matrix(self, ffc: Tensor, beta: float, largest: Tensor | None = None) -> Tensor:
        self.calls += ffc.dtype == torch.float64
        return super().matrix(ffc, beta, largest)


def test_the_real_side_is_filtered_once_for_each_beta_and_in_its_own_precision() -> None:
    counting = Counting()
    loss = MatchingLoss(Method("counted", "high", [Term(counting, "ffc")]), draw(0), 0.1)
    synthetic = draw(1, torch.float32)
    for _ in range(3):
        assert loss.distances(synthetic).dtype == torch.float32
    assert counting.calls == 2  # layers
    loss.betas = (0.1, 0.1)  # the same again
    loss.distances(synthetic)
    assert counting.calls == 2
    loss.betas = BETAS
    loss.distances(synthetic)
    assert counting.calls == 4


def test_a_two_sided_filter_follows_the_synthetic_side() -> None:
    real, synthetic = draw(0), draw(1)
    loss = MatchingLoss(MTT(), real, 0.1)
    loss.distances(synthetic)
    wider = [Moments.of(10 * torch.randn(9, c, 2, 2, dtype=torch.float64)) for c in (3, 5)]
    fresh = MatchingLoss(MTT(), real, 0.1).distances(wider)
    assert torch.equal(loss.distances(wider), fresh)


def test_one_beta_a_layer() -> None:
    loss = MatchingLoss(HFM(), draw(0), 0.1)
    assert loss.betas == (0.1, 0.1)
    with pytest.raises(ValueError, match="got 3 values of β, expected one for each of 2 layers"):
        loss.betas = (0.1, 0.2, 0.3)
