"""Which of several processes (ranks) this is, and which rows of a batch or a chunk each of them holds."""

from __future__ import annotations

from torch import distributed as dist


def world_size() -> int:
    """Return the number of processes that work together; 1 without a process group."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Return the number of this process, from 0."""
    return dist.get_rank() if world_size() > 1 else 0


def rows_of_rank(count: int, rank: int, ranks: int) -> slice:
    """Return which of `count` rows a rank holds: blocks in order, no padding, the first ones larger by one at most.

    Where there are more ranks than rows, the last ones hold none.
    """
    size, larger = divmod(count, ranks)
    first = rank * size + min(rank, larger)
    return slice(first, first + size + (rank < larger))


def own_rows(count: int) -> slice:
    """Return which of `count` rows this process holds."""
    return rows_of_rank(count, rank(), world_size())


def leave_processes() -> None:
    """Leave the process group, if there is one: its threads may abort a process that ends with them running."""
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()
