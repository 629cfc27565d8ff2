"""The benchmarks compare what they say: the same loss twice, the same step with and without it."""

from __future__ import annotations

import math
import sys
from dataclasses import replace

import arithmetic
import crossover
import gpu
import pytest
import scaling
import step
import torch
from steps import Case, build_teacher, make_forward, make_step, medians, times_in_turn
from torch import Tensor

TINY = Case("convnet-w40-d2", images=2, image_size=8, num_classes=4, real_images=50)  # 32 rows of 40 channels


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # asked by the compiler
@pytest.mark.parametrize("chunks", [0, 1, 3])
def test_ours_and_the_reference_are_one_loss(chunks: int) -> None:
    case = replace(TINY, chunks=chunks)
    images = torch.randn(2, *case.spec.image_shape, generator=torch.Generator().manual_seed(1))

    def value_and_gradient(one: Case) -> tuple[Tensor, Tensor]:
        x = images.clone().requires_grad_()
        network = build_teacher(one)
        torch.manual_seed(1)  # the noise that stands for the real data
        logits, spectral = make_forward(one, network)(x)
        (logits.logsumexp(dim=1).sum() + (0 if spectral is None else spectral)).backward()
        assert x.grad is not None
        return x.new_zeros(()) if spectral is None else spectral.detach(), x.grad

    variants = step.variants(case, compiled=chunks == 1, tricks=True)
    plain, gradient = value_and_gradient(variants.pop("reference"))
    assert plain > 0
    without, floor_gradient = value_and_gradient(variants.pop("floor"))
    assert without == 0
    assert float((floor_gradient - gradient).norm()) > 0.01 * float(gradient.norm())
    assert variants.pop("floor, channels first") == replace(case, loss="none")
    if (compiled := variants.pop("floor, compiled", None)) is not None:
        _, other = value_and_gradient(compiled)
        assert float((other - floor_gradient).norm()) < 1e-4 * float(floor_gradient.norm())
    for one in variants.values():
        value, other = value_and_gradient(one)
        torch.testing.assert_close(value, plain, rtol=1e-4, atol=0)
        assert float((other - gradient).norm()) < 1e-4 * float(gradient.norm())


def test_steps_are_timed_in_turn() -> None:
    calls: list[str] = []
    steps = {name: make_step(one) for name, one in step.variants(TINY, compiled=False, tricks=False).items()}
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


def test_the_least_cost_counts_each_layer_in_one_way() -> None:
    assert arithmetic.shapes(TINY) == [(128, 3), (32, 40)]
    names = list(arithmetic.parts([(10, 40), (100, 40), (80, 40), (100, 8)]))
    assert {name.partition(":")[0] for name in names} == {"2 x 40", "1 x 8", "1 x 40 of 10 rows"}
    found = arithmetic.measure(TINY, repeats=2)
    assert found["least_ratio"] == pytest.approx(1 + sum(found["parts_ms"].values()) / found["floor_ms"])


def test_both_sides_of_the_crossover_are_one_loss() -> None:
    found = crossover.measure(64, 32, repeats=2)
    assert found["covariance / factor"] == pytest.approx(
        found["medians_ms"]["covariance"] / found["medians_ms"]["factor"]
    )
    losses: list[Tensor] = []
    for factored in (False, True):
        taken: list[Tensor] = []
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(torch.autograd, "grad", lambda loss, features, taken=taken: taken.append(loss.detach()))
            crossover.make_run(64, 32, factored=factored)()
        losses += taken
    torch.testing.assert_close(*losses, rtol=1e-5, atol=0)
