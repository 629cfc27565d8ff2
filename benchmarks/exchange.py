"""What a process hands to the collective: calls, bytes and time, counted where they go in."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import distributed as dist


@dataclass
class Exchanged:
    """What went into `torch.distributed.all_reduce`, the one collective of a step, since the last `take`.

    Args:
        sizes: Bytes of each call, in order.
        seconds: Time within each call, with the wait for the other processes.
    """

    sizes: list[int] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)

    def take(self) -> Exchanged:
        """Return what there is, and begin anew."""
        taken = Exchanged(self.sizes, self.seconds)
        self.sizes, self.seconds = [], []
        return taken


@contextmanager
def counted_exchange() -> Iterator[Exchanged]:
    """Count what the code in the block sends, whoever calls the collective: this project or Lightning."""
    seen = Exchanged()
    send: Callable[..., Any] = dist.all_reduce

    def counted(tensor: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        started = time.perf_counter()
        result = send(tensor, *args, **kwargs)
        seen.seconds.append(time.perf_counter() - started)
        seen.sizes.append(tensor.numel() * tensor.element_size())
        return result

    dist.all_reduce = counted
    try:
        yield seen
    finally:
        dist.all_reduce = send
