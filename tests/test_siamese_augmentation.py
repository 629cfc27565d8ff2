"""DSA: what each strategy does to pixels, and that it is a function of its generator."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from unidd_pl.siamese_augmentation import STRATEGIES, Strategy, siamese_augment

every_strategy = pytest.mark.parametrize("strategy", STRATEGIES)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def draw(n: int = 6, c: int = 3, size: int = 16) -> Tensor:
    return torch.from_numpy(np.random.default_rng(0).normal(size=(n, c, size, size)))


@every_strategy
class TestEveryStrategy:
    def test_same_generator_same_images(self, strategy: Strategy) -> None:
        first, second = (siamese_augment(draw(), generator(3), [strategy]) for _ in range(2))
        assert first.shape == (6, 3, 16, 16)
        assert torch.equal(first, second)
        assert not torch.equal(first, siamese_augment(draw(), generator(4), [strategy]))

    def test_images_are_changed_each_in_its_own_way(self, strategy: Strategy) -> None:
        same = draw(1).expand(20, -1, -1, -1)
        out = siamese_augment(same, generator(), [strategy])
        assert len({tuple(image.flatten().tolist()) for image in out}) >= (2 if strategy == "flip" else 5)

    def test_gradient_flows(self, strategy: Strategy) -> None:
        images = draw(2, 2, 6).requires_grad_()
        assert torch.autograd.gradcheck(lambda x: siamese_augment(x, generator(1), [strategy]), (images,))

    def test_mean_colour_stays_where_nothing_but_colour_changes(self, strategy: Strategy) -> None:
        """0 is the mean colour of the data set and comes in from outside."""
        out = siamese_augment(torch.zeros(4, 3, 8, 8), generator(), [strategy])
        if strategy != "color":
            assert not out.any()


def test_strategy_is_drawn_for_the_batch() -> None:
    """A flip leaves the pixels of each image a permutation of themselves, a cutout does not."""
    kinds = set()
    for seed in range(20):
        out = siamese_augment(draw(), generator(seed), ["flip", "cutout"])
        blank = (out == 0).all(dim=1).flatten(1).any(dim=1)
        assert blank.all() or not blank.any()
        kinds.add(bool(blank.all()))
    assert kinds == {True, False}


def test_cutout_blanks_a_box_of_half_the_side_or_what_of_it_is_inside() -> None:
    areas = []
    for seed in range(40):
        out = siamese_augment(torch.ones(5, 1, 16, 16), generator(seed), ["cutout"])
        for image in out[:, 0]:
            rows, columns = (image == 0).any(dim=1), (image == 0).any(dim=0)
            assert torch.equal(image == 0, rows[:, None] & columns[None, :])
            assert 4 <= rows.sum() <= 8
            areas.append(int(rows.sum() * columns.sum()))
    assert max(areas) == 64


def test_crop_shifts_by_whole_pixels_up_to_an_eighth() -> None:
    images = 1 + torch.arange(256, dtype=torch.float64).view(1, 1, 16, 16).expand(200, -1, -1, -1)
    seen = set()
    for image in siamese_augment(images, generator(), ["crop"])[:, 0]:
        row, column = divmod(int(image[8, 8]) - 1, 16)
        down, right = row - 8, column - 8
        seen.add((down, right))
        expected = torch.zeros(16, 16, dtype=torch.float64)
        for i in range(16):
            for j in range(16):
                if 0 <= i + down < 16 and 0 <= j + right < 16:
                    expected[i, j] = images[0, 0, i + down, j + right]
        assert torch.equal(image, expected)
    assert {one for pair in seen for one in pair} == {-2, -1, 0, 1, 2}


def test_scale_and_rotation_stay_within_their_limits() -> None:
    """A disc's centre stays; a bar's length changes by at most 1.2, its angle by at most 15 degrees."""
    size = 64
    axis = torch.arange(size, dtype=torch.float64) - (size - 1) / 2
    y, x = axis[:, None], axis[None, :]
    bar = ((x.abs() <= 20) & (y.abs() <= 2)).double()[None, None].expand(100, -1, -1, -1)
    for strategy in ("scale", "rotate"):
        lengths, angles = [], []
        for image in siamese_augment(bar, generator(), [strategy])[:, 0]:  # type: ignore[list-item]
            weight = image / image.sum()
            xx, yy, xy = (weight * x * x).sum(), (weight * y * y).sum(), (weight * x * y).sum()
            angles.append(0.5 * math.degrees(math.atan2(2 * xy, xx - yy)))
            lengths.append(float(xx / (bar[0, 0] * x * x / bar[0, 0].sum()).sum()) ** 0.5)
        if strategy == "scale":
            assert 0.80 < min(lengths) < 0.9
            assert 1.1 < max(lengths) < 1.23
            assert max(map(abs, angles)) < 0.5
        else:
            assert 12 < max(map(abs, angles)) < 15.5
            assert min(angles) < 0 < max(angles)


@pytest.mark.parametrize("strategies", [[], ["color", "blur"]])
def test_unknown_strategies_are_rejected(strategies: list[Strategy]) -> None:
    with pytest.raises(ValueError, match="expected some of"):
        siamese_augment(draw(), generator(), strategies)
