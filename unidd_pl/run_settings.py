"""The settings of a distillation: their ranges, and whether a checkpoint or a chunk is of the same ones."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor

from unidd_pl.spectral import RunningMode

Running = Literal["auto", "off"] | RunningMode
RunningSetting = Running | Literal[False]  # YAML takes a bare `off` for false

SETTINGS = (
    "ipc", "beta", "eta", "iterations", "chunk_size", "lr", "signal", "running", "flip", "max_roll",
    "relative", "seed",
)  # fmt: skip
"""Settings of plain types that the images depend on; `micro_batch` and `compile_mode` change no more than rounding."""


def check_settings(
    positive: Mapping[str, float],
    eta: float,
    betas: tuple[float, float],
    crop_scale: tuple[float, float],
    max_roll: int,
    micro_batch: int | None,
    compile_mode: str | None,
) -> None:
    """Refuse numbers out of range.

    Args:
        positive: Settings that have to be above zero, by name.
        eta: Weight of the matching loss.
        betas: Decay rates of Adam.
        crop_scale: Area of the random resized crop, as shares of the image.
        max_roll: Largest random roll, pixels.
        micro_batch: Images that the teacher sees at a time, or None.
        compile_mode: Mode of `torch.compile`, or None.

    Raises:
        ValueError: If one is; the message names it.
    """
    for name, value in positive.items():
        if not value > 0:
            raise ValueError(f"model.init_args.{name}: got {value}, expected > 0")
    if not 0 < crop_scale[0] <= crop_scale[1] <= 1:
        raise ValueError(f"model.init_args.crop_scale: got {crop_scale}, expected 0 < smallest ≤ largest ≤ 1")
    if max_roll < 0:
        raise ValueError(f"model.init_args.max_roll: got {max_roll}, expected ≥ 0")
    if not all(0 <= rate < 1 for rate in betas):
        raise ValueError(f"model.init_args.betas: got {betas}, expected two rates in [0, 1)")
    if micro_batch is not None and micro_batch < 1:
        raise ValueError(f"model.init_args.micro_batch: got {micro_batch}, expected at least 1 image, or null")
    if compile_mode is not None and micro_batch is not None:
        raise ValueError(
            f"model.init_args.compile_mode: got {compile_mode} with a micro_batch of {micro_batch}, expected one of "
            "the two: torch does not compile within the checkpointing that a chunk in parts is made of"
        )
    if not eta >= 0:
        raise ValueError(f"model.init_args.eta: got {eta}, expected ≥ 0")


def digest_of(made_from: Mapping[str, Any]) -> str:
    """Return a hexadecimal digest of all that the images of a run depend on."""
    return hashlib.sha256(json.dumps(made_from, sort_keys=True).encode()).hexdigest()


def check_step(step: object, first: int, last: int) -> int:
    """Return the step of a checkpoint, the number of those done, of a run from `first` to `last`.

    Raises:
        ValueError: If it has none, or one outside of the run.
    """
    if type(step) is not int or not first < step <= last:
        raise ValueError(f"got a checkpoint of the step {step!r}, expected {first + 1} to {last}: it is damaged")
    return step


def take_adam(checkpoint: dict[str, Any], fresh: torch.optim.Optimizer, images: Tensor) -> None:
    """Leave of a checkpoint's optimiser what it has learnt; its settings are those of the run.

    Args:
        checkpoint: Lightning's, changed in place.
        fresh: Adam as the run makes it.
        images: (n, c, h, w), what it moves.

    Raises:
        ValueError: If the checkpoint holds other than the state of Adam for these images.
    """
    try:
        (state,) = checkpoint["optimizer_states"]
        learnt = state["state"][0] if state["state"] else {}
        shapes = {name: tuple(value.shape) for name, value in learnt.items()}
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"got a checkpoint without the state of Adam ({error!r}): it is damaged") from error
    expected = {"step": (), "exp_avg": tuple(images.shape), "exp_avg_sq": tuple(images.shape)}
    if learnt and shapes != expected:
        raise ValueError(f"got a checkpoint with Adam's {shapes}, expected {expected}: it is damaged")
    settings = fresh.state_dict()["param_groups"]
    checkpoint["optimizer_states"] = [{"state": {0: learnt} if learnt else {}, "param_groups": settings}]


def check_same_run(got: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    """Refuse a checkpoint of another run, with every difference.

    Args:
        got: What the checkpoint was made from.
        expected: What this run is made from.

    Raises:
        ValueError: If they differ.
    """
    differences = [
        f"another {what}: got {got.get(what)}, expected {value}"
        for what, value in expected.items()
        if got.get(what) != value
    ]
    if differences:
        raise ValueError(
            f"the checkpoint was made with {'; '.join(differences)}; resume with the config that it was made with"
        )
