"""The benchmarks compare what they say: the same loss twice, the same step with and without it."""

from __future__ import annotations

import math
import sys
from dataclasses import replace

import gpu
import pytest
import scaling
import step
import torch
from steps import Case, build_teacher, make_loss, make_step, medians, real_moments, times_in_turn

from unidd_pl.features import FeatureTap, conv_layers

TINY = Case("convnet-w40-d2", images=2, image_size=8, num_classes=4, real_images=50)  # 32 rows of 40 channels


@pytest.mark.parametrize("chunks", [0, 1, 3])
def test_ours_and_the_reference_are_one_loss(chunks: int) -> None:
    case = replace(TINY, chunks=chunks)
    network = build_teacher(case)
    layers = conv_layers(network)
    torch.manual_seed(1)
    real = real_moments(case, network, layers)
    with FeatureTap(network, layers) as tap:
        network(torch.randn(2, *case.spec.image_shape))
        features = tap.features()
    plain = make_loss(replace(case, loss="reference"), real)(features)
    assert plain > 0
    for name, one in step.variants(case, tricks=True).items():
        if name not in ("floor", "reference"):
            torch.testing.assert_close(make_loss(one, real)(features), plain, rtol=1e-4, atol=0)


def test_steps_are_timed_in_turn() -> None:
    calls: list[str] = []
    steps = {name: make_step(one) for name, one in step.variants(TINY, tricks=False).items()}
    recorded = {name: (lambda name=name, run=run: (calls.append(name), run())) for name, run in steps.items()}
    times = times_in_turn(recorded, 4)  # type: ignore[arg-type]
    assert {name: len(values) for name, values in times.items()} == dict.fromkeys(steps, 4)
    assert all(value > 0 for value in medians(times).values())
    turns = [set(calls[first : first + len(steps)]) for first in range(0, len(calls), len(steps))]
    assert turns == [set(steps)] * len(turns)


def test_exponent_of_a_power_law() -> None:
    assert scaling.exponent([1, 2, 4], [3.0, 12.0, 48.0]) == pytest.approx(2)
    assert math.isnan(scaling.exponent([1, 2], [1.0, -1.0]))


def test_without_a_gpu_the_gpu_benchmark_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", ["gpu.py"])
    gpu.main()
    assert "No CUDA device" in capsys.readouterr().out
