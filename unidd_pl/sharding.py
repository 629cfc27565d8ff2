"""Processes that share a chunk, under Lightning: a strategy that leaves images alone, and who goes first.

Legend: W processes.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.utilities import rank_zero_only
from torch.distributed.rendezvous import rendezvous

_LONGEST_STAGE = timedelta(days=14)  # the training of a teacher, while the others wait


class ShardedStrategy(DDPStrategy):
    """Processes and their group as for DDP, but the module as it is.

    DDP would send the first rank's images to all, and average their gradients; here every rank has its own images.
    """

    def configure_ddp(self) -> None:
        """Wrap nothing and send nothing."""


def is_first() -> bool:
    """Return whether this is the process that writes and speaks, before there is a process group too."""
    return int(getattr(rank_zero_only, "rank", 0) or 0) == 0


def launched_processes() -> tuple[int, int] | None:
    """Return processes a machine and machines where torchrun has started this one; else None."""
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return None
    here, everywhere = int(os.environ["LOCAL_WORLD_SIZE"]), int(os.environ["WORLD_SIZE"])
    return here, everywhere // here


@contextmanager
def first_alone(stage: str) -> Iterator[None]:
    """Let the first of the processes that torchrun has started do a block before the others, which find it done.

    Processes that Lightning starts itself come later than the block anyway.

    Args:
        stage: Name of the block.
    """
    processes = launched_processes()
    if processes is None or processes[0] * processes[1] == 1:
        yield
        return
    store, _, _ = next(iter(rendezvous("env://", timeout=_LONGEST_STAGE)))
    if not is_first():
        store.wait([stage], _LONGEST_STAGE)
    yield
    if is_first():
        store.set(stage, "done")


def sharded_trainer_arguments(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of the Trainer that say where it runs.

    Args:
        arguments: What the config says.

    Raises:
        ValueError: If it says something else than a number of devices, or another strategy for several.
    """
    devices, nodes = arguments.get("devices", "auto"), int(arguments.get("num_nodes") or 1)
    launched = launched_processes()
    if launched is not None:
        if devices not in ("auto", launched[0], str(launched[0])):
            raise ValueError(
                f"got trainer.devices {devices}, but torchrun has started {launched[0]} processes: leave it out"
            )
        devices, nodes = launched
    try:
        count = 1 if devices == "auto" else int(devices)
    except (TypeError, ValueError):
        count = 0
    if count < 1:
        raise ValueError(f"got trainer.devices {devices}, expected how many processes share a chunk, for example 2")
    if count * nodes == 1:
        return {"devices": 1}
    if arguments.get("strategy") not in (None, "auto"):
        raise ValueError(
            f"got trainer.strategy {arguments['strategy']}: processes that share a chunk bring their own; leave it out"
        )
    return {"devices": count, "num_nodes": nodes, "strategy": ShardedStrategy(), "use_distributed_sampler": False}
