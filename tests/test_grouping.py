"""Sets that differ in their seed alone make one row."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from unidd_pl.distilled import DistilledSet
from unidd_pl.grouping import rows_of_sets
from unidd_pl.specs import DatasetSpec

SPEC = DatasetSpec("toy", ("a", "b"), 1, 2, (0.5,), (0.5,))


def made(seed: int, *, eta: float = 1.0, method: str = "cfm", output_dir: str = "x", data: str = "d") -> DistilledSet:
    """Return a set as `unidd fit` leaves it, as far as grouping looks."""
    config = {
        "model": {"init_args": {"seed": seed, "eta": eta}},
        "output_dir": output_dir,
        "tracking": {"enabled": bool(seed)},
        "config": [f"{seed}.yaml"],
    }
    manifest = {"config": yaml.safe_dump(config), "seed": seed, "method": method, "data": data}
    return DistilledSet(torch.zeros(2, 1, 2, 2, dtype=torch.uint8), torch.tensor([0, 1]), SPEC, manifest)


def names(sets: dict[str, DistilledSet], **options: Any) -> dict[str, int]:
    paths = [Path("runs") / folder / "distilled.safetensors" for folder in sets]
    return {name: len(one) for name, one in rows_of_sets(paths, list(sets.values()), **options).items()}


def test_sets_of_one_config_are_one_row_named_by_the_method() -> None:
    sets = {f"s{seed}": made(seed, output_dir=f"o{seed}") for seed in range(3)}
    assert names(sets, group_by="config") == {"cfm": 3}
    assert names(sets, group_by="set") == {"s0": 1, "s1": 1, "s2": 1}


def test_another_config_or_other_data_is_another_row() -> None:
    sets = {"a0": made(0), "b0": made(0, eta=2.0), "a1": made(1), "c1": made(1, data="e")}
    assert names(sets, group_by="config") == {"a0 and 1 more": 2, "b0": 1, "c1": 1}
    sets = {"a0": made(0), "d0": made(0, method="dm", eta=3.0), "a1": made(1), "d1": made(1, method="dm", eta=3.0)}
    assert names(sets, group_by="config") == {"cfm": 2, "dm": 2}


def test_one_set_is_named_by_its_method() -> None:
    assert names({"s0": made(0)}, group_by="set") == {"cfm": 1}


def test_a_set_without_a_config_stays_alone() -> None:
    foreign = DistilledSet(torch.zeros(2, 1, 2, 2, dtype=torch.uint8), torch.tensor([0, 1]), SPEC, {})
    assert names({"f": foreign, "g": foreign}, group_by="config") == {"f": 1, "g": 1}


def test_a_seed_twice_is_refused() -> None:
    with pytest.raises(ValueError, match=r"2 sets of one config with the distillation seeds \[0, 0\]"):
        names({"a": made(0), "b": made(0)}, group_by="config")


def test_names_that_collide_are_refused() -> None:
    paths = [Path("a/run/x.safetensors"), Path("b/run/x.safetensors")]
    with pytest.raises(ValueError, match="expected names that differ"):
        rows_of_sets(paths, [made(0), made(1)], "set")
    with pytest.raises(ValueError, match="expected names that differ"):
        names({"real images": made(0), "b": made(1)}, group_by="set", taken=["real images"])
