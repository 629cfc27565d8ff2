"""Counting the memory of tensors, and what is free."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from unidd_pl import memory
from unidd_pl.memory import LinearBytes, PeakBytes, available_bytes, resident_bytes

KIB = 1024


def test_the_peak_is_that_of_tensors_alive_together() -> None:
    with PeakBytes() as tracker:
        kept = torch.zeros(KIB)  # 4 KiB
        for _ in range(3):
            torch.zeros(2 * KIB)  # 8 KiB, let go at once
        assert tracker.now == 4 * KIB
    assert tracker.peak == 12 * KIB
    assert kept[::2].sum() == 0


def test_a_view_and_what_is_changed_in_place_cost_nothing() -> None:
    with PeakBytes() as tracker:
        whole = torch.zeros(KIB)
        whole.view(2, -1)[0].add_(1)
        assert tracker.peak == 4 * KIB


def test_what_autograd_keeps_counts_until_the_backward_pass() -> None:
    x = torch.ones(KIB, requires_grad=True)
    with PeakBytes() as tracker:
        y = x.exp().exp().sum()  # the two results are kept
        assert tracker.now == 8 * KIB + 4
        y.backward()  # type: ignore[no-untyped-call]
        assert tracker.now == 4 * KIB + 4  # the gradient, and y


def test_the_line_goes_through_the_peaks() -> None:
    line = LinearBytes.measured(lambda count: torch.zeros(100 + 10 * count, dtype=torch.uint8))
    assert (line.fixed, line.per_image) == (100, 10)
    assert line.at(7) == 170


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_free_and_held_memory_are_those_of_this_machine() -> None:
    free, held = available_bytes(torch.device("cpu")), resident_bytes()
    assert free is not None
    assert held is not None
    assert 50 * 2**20 < held < 2**40
    assert 0 < free < 2**45


def test_the_limit_of_a_container_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "max").write_text("300000000\n")
    (tmp_path / "current").write_text("100000000\n")
    monkeypatch.setattr(memory, "_CGROUPS", ((str(tmp_path / "max"), str(tmp_path / "current")),))
    assert available_bytes(torch.device("cpu")) == 200_000_000
    (tmp_path / "max").write_text("max\n")
    assert available_bytes(torch.device("cpu")) != 200_000_000


@pytest.mark.slow
def test_the_peak_of_a_distillation_does_not_grow_with_the_images_per_class(tmp_path: Path) -> None:
    script = Path(__file__).parent.parent / "benchmarks" / "memory.py"
    command = [sys.executable, str(script), "--network", "convnet-w16-d2", "--cases", "none", "--iterations", "2"]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "peak at IPC 50 over IPC 1" in done.stdout
