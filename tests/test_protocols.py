"""The named protocol: its rate, its batch sizes and the epochs at which it scores."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any

import pytest
import yaml

from unidd_pl.protocols import Protocol
from unidd_pl.siamese_augmentation import STRATEGIES

PROTOCOLS = Path(__file__).parent.parent / "configs/protocols"


def test_the_rate_starts_whole_and_ends_at_half() -> None:
    protocol = Protocol(epochs=300)
    assert protocol.lr_factor(0) == 1.0
    assert protocol.lr_factor(300) == pytest.approx(0.5)
    assert protocol.lr_factor(150) == pytest.approx((1 + math.sqrt(0.5)) / 2)  # ½(1 + cos(π/4))
    factors = [protocol.lr_factor(epoch) for epoch in range(301)]
    assert all(later < earlier for earlier, later in itertools.pairwise(factors))


def test_a_whole_half_wave_ends_at_zero() -> None:
    protocol = Protocol(epochs=10, half_period=2.0)
    assert protocol.lr_factor(0) == 1.0
    assert protocol.lr_factor(5) == pytest.approx(0.5)
    assert protocol.lr_factor(10) == pytest.approx(0.0)


@pytest.mark.parametrize(
    ("ipc", "expected"), [(1, 10), (5, 10), (9, 10), (10, 50), (49, 50), (50, 100), (200, 100), (0, 10)]
)
def test_batch_size_is_that_of_the_largest_key_not_above(ipc: int, expected: int) -> None:
    assert Protocol().batch_size_for(ipc) == expected


def test_batch_sizes_of_another_data_set() -> None:
    protocol = Protocol(batch_size={1: 20, 10: 100, 50: 200})
    assert [protocol.batch_size_for(ipc) for ipc in (1, 10, 50)] == [20, 100, 200]


@pytest.mark.parametrize(
    ("epochs", "early", "tail"),
    [
        (1000, (200, 400, 600), tuple(range(820, 1001, 20))),
        (300, (60, 120, 180), tuple(range(246, 301, 6))),
        (200, (40, 80, 120), tuple(range(164, 201, 4))),
        (50, (10, 20, 30), tuple(range(41, 51))),
        (30, (6, 12, 18), tuple(range(21, 31))),  # a fifth would be six: the last ten
        (11, (), tuple(range(2, 12))),
        (5, (), (1, 2, 3, 4, 5)),
        (1, (), (1,)),
    ],
)
def test_scored_epochs(epochs: int, early: tuple[int, ...], tail: tuple[int, ...]) -> None:
    protocol = Protocol(epochs=epochs)
    assert protocol.tail_epochs() == tail
    # Early scores are for the curve, and none may fall into the tail or before the first epoch.
    expected_early = tuple(epoch for epoch in early or _fifths(epochs) if 0 < epoch < tail[0])
    assert protocol.evaluated_epochs() == (*expected_early, *tail)


def test_the_tail_has_ten_scores_in_the_last_fifth_for_every_length() -> None:
    for epochs in range(1, 1201):
        tail = Protocol(epochs=epochs).tail_epochs()
        assert len(set(tail)) == len(tail) == min(10, epochs)
        assert tail == tuple(sorted(tail))
        assert tail[-1] == epochs
        assert tail[0] > epochs - max(10, epochs / 5)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"epochs": 0}, r"protocol\.epochs: got 0, expected > 0"),
        ({"epochs": -3}, r"protocol\.epochs: got -3, expected > 0"),
        ({"temperature": 0.0}, r"protocol\.temperature: got 0\.0, expected > 0"),
        ({"lr": -1e-3}, r"protocol\.lr: got -0\.001, expected > 0"),
        ({"batch_size": {10: 50}}, r"protocol\.batch_size: got \{10: 50\}, expected images per class .* from 1 on"),
        ({"batch_size": {1: 0}}, r"protocol\.batch_size: got \{1: 0\}, expected"),
    ],
)
def test_what_is_out_of_range_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Protocol(**settings)


def test_the_label_tells_name_and_length() -> None:
    assert Protocol(name="unidd-release", epochs=300).label == "unidd-release, 300 epochs"


def test_the_given_batch_sizes_are_copied() -> None:
    sizes = {1: 10}
    protocol = Protocol(batch_size=sizes)
    sizes[1] = 99
    assert protocol.batch_size_for(1) == 10


def _fifths(epochs: int) -> tuple[int, ...]:
    return epochs // 5, 2 * epochs // 5, 3 * epochs // 5


def test_scores_before_the_tail_can_be_left_out() -> None:
    assert Protocol(epochs=100, early_scores=0).evaluated_epochs() == Protocol(epochs=100).tail_epochs()
    assert Protocol(epochs=100, early_scores=1).evaluated_epochs()[0] == 33


def test_step_falls_to_a_tenth_at_half_time() -> None:
    protocol = Protocol(epochs=5, schedule="step")
    assert [protocol.lr_factor(epoch) for epoch in range(5)] == [1, 1, 1, 0.1, 0.1]


def test_mixed_images_have_no_hard_label() -> None:
    with pytest.raises(ValueError, match=r"got hard with cutmix_alpha 1.0, expected labels online for mixed images"):
        Protocol(labels="hard")


def test_what_is_drawn_for_a_batch_has_no_stored_label() -> None:
    with pytest.raises(
        ValueError, match=r"got stored with dsa, .* expected what is drawn for each image: set dsa: \[\]"
    ):
        Protocol(labels="stored", dsa=["flip"])


@pytest.mark.parametrize(
    ("file", "name"), [("unidd_release", "unidd-release"), ("hard", "hard"), ("rded", "rded"), ("sre2l", "sre2l")]
)
def test_shipped_protocols(file: str, name: str) -> None:
    """SPEC.md section 4."""
    shipped = Protocol(**yaml.safe_load((PROTOCOLS / f"{file}.yaml").read_text()))
    assert shipped.name == name
    if name == "unidd-release":
        assert vars(shipped) == {**vars(Protocol()), "betas": [0.9, 0.999], "crop_scale": [0.08, 1.0]}
    if name == "hard":
        assert (shipped.optimizer, shipped.lr, shipped.momentum, shipped.weight_decay) == ("sgd", 0.01, 0.9, 5e-4)
        assert (shipped.epochs, shipped.batch_size_for(10), shipped.dsa) == (1000, 256, list(STRATEGIES))
    if name == "rded":
        assert (shipped.patch_shuffle, shipped.crop_scale, shipped.epochs) == (2, [0.5, 1.0], 300)
