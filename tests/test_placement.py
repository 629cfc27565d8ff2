"""Which processes and devices go together, and what does not."""

from __future__ import annotations

from typing import Any

import pytest

from unidd_pl.placement import Placement


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"workers": 0}, "workers: got 0, expected at least 1"),
        ({"devices": 0}, "devices: got 0, expected at least 1"),
        ({"workers": 2, "devices": 2, "spread": "batches"}, "workers: got 2 with --spread batches"),
        ({"devices": 2, "sync_batchnorm": True}, r"sync_batchnorm: got true with 2 device\(s\) and --spread students"),
        ({"spread": "batches", "sync_batchnorm": True}, r"sync_batchnorm: got true with 1 device\(s\)"),
    ],
)
def test_settings_that_do_not_go_together(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Placement(**settings)


def test_torchrun_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="got 2 processes, as torchrun starts them, expected one"):
        Placement()


def test_compile_needs_a_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", "")
    with pytest.raises(ValueError, match="no C\\+\\+ compiler, expected g"):
        Placement(compiled=True)


def test_one_device_is_not_spread() -> None:
    assert not Placement(spread="batches").over_ranks
    assert Placement(devices=2, spread="batches").over_ranks
