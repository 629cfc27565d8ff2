"""In which order the images of a split are read: the same with either loader, and a share of it for each process.

Legend: n images, w processes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch.utils.data import RandomSampler, Sampler

from unidd_pl.data.crops import Integers


@dataclass(frozen=True)
class Shard:
    """One process's share of an order that all processes draw alike: every w-th image, from its rank on.

    Args:
        rank: Which process, from 0.
        processes: How many there are, w.
        pad: Bring all shares to one length with the first images of the order once more, as training with a step for
            each process needs; without it shares differ by up to one image, and each image is in exactly one: for
            statistics and scores.

    Raises:
        ValueError: If the rank is none of the processes'.
    """

    rank: int
    processes: int
    pad: bool = True

    def __post_init__(self) -> None:
        if not 0 <= self.rank < self.processes:
            raise ValueError(f"shard: got rank {self.rank} of {self.processes}, expected 0 to {self.processes - 1}")

    @classmethod
    def of_this_process(cls, *, pad: bool = True) -> Shard:
        """Return the share of this process within torch's default process group; all of it where there is none."""
        if not torch.distributed.is_available() or not torch.distributed.is_initialized():
            return cls(0, 1, pad)
        return cls(torch.distributed.get_rank(), torch.distributed.get_world_size(), pad)

    def count(self, images: int) -> int:
        """Return the number of images of the share, of so many in all."""
        return -(-images // self.processes) if self.pad else len(range(self.rank, images, self.processes))

    def of(self, order: Integers) -> Integers:
        """Return the share of an order, (n,) to (about n / w,)."""
        if self.pad:
            order = np.resize(order, self.count(len(order)) * self.processes)  # repeats from the first on
        return order[self.rank :: self.processes]


WHOLE = Shard(0, 1)
"""The share of the only process."""


class Order(Sampler[int]):
    """The positions of a split as one process reads them in an epoch.

    Args:
        images: Images of the split.
        generator: Draws a new order each epoch, from the same state on every process; None keeps the split's.
        shard: Share of this process.
        first: Images of the share that are left out at the start of every epoch, to go on within a pass.

    Raises:
        ValueError: If the first image is none of the share's.
    """

    def __init__(
        self, images: int, generator: torch.Generator | None = None, shard: Shard = WHOLE, first: int = 0
    ) -> None:
        if not 0 <= first <= shard.count(images):
            raise ValueError(f"order: got first {first}, expected 0 to {shard.count(images)}, the images of the share")
        self.images = images
        self.generator = generator
        self.shard = shard
        self.first = first

    def draw(self) -> Integers:
        """Return the positions of the next epoch."""
        if self.generator is None:
            return self.share_of(np.arange(self.images))
        # torch's own sampler, so that every loader leaves the generator in the same state.
        return self.share_of(np.array(list(RandomSampler(range(self.images), generator=self.generator)), np.int64))

    def share_of(self, order: Integers) -> Integers:
        """Return what this process reads of an order of all images."""
        return self.shard.of(order)[self.first :]

    def __iter__(self) -> Iterator[int]:
        return iter(self.draw().tolist())

    def __len__(self) -> int:
        return self.shard.count(self.images) - self.first
