"""Random draws as a pure function of where they happen.

A generator is made anew for each draw from the seed and the place (stage, round, chunk, iteration), so
that a resumed or a sharded run draws the same numbers without any generator state being stored.
"""

from __future__ import annotations

import hashlib

import torch


def seed_for(seed: int, *place: str | int) -> int:
    """Return a 63-bit seed that depends on every part of the place."""
    digest = hashlib.blake2b(repr((seed, place)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def generator_for(seed: int, *place: str | int) -> torch.Generator:
    """Return a CPU generator seeded by `seed_for`."""
    return torch.Generator().manual_seed(seed_for(seed, *place))
