"""A teacher for other tools: a state_dict and what it is of, checked against the set."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from unidd_pl.files import atomic_write


@dataclass(frozen=True)
class PlainTeacher:
    """The weights of a teacher.

    Args:
        network: Name of the architecture, as `unidd_pl.networks.build_network` takes it.
        state: Its state_dict, by our names.
    """

    network: str
    state: Mapping[str, Tensor]


def save_state(state: Mapping[str, Tensor], path: Path) -> None:
    """Write a state_dict that ``torch.load(weights_only=True)`` reads."""
    with atomic_write(path) as temporary:
        torch.save({name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}, temporary)
