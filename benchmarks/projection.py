"""What the exchange of a step would take over more processes than there are here: arithmetic, not a measurement.

Legend: W processes, M machines.

The model is that of a ring, as NCCL's tuning has it (src/graph/tuning.cc at commit 01afd20, ring, protocol Simple): a
start, 2(W−1) hops one after the other, 2(M−1) of them between machines, and 2(W−1)/W of the bytes over the slowest
link. Nothing of it overlaps with the computing, as in the program, and all processes take the same time to compute.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Link:
    """A link between two neighbours of the ring.

    Args:
        name: Its name.
        bandwidth: GB/s in one direction.
        hop: Latency of a hop, µs.
    """

    name: str
    bandwidth: float
    hop: float


INSIDE = Link("NVLink 4", 450.0, 3.4)
"""H100 and H200 by NVIDIA's data sheets: 900 GB/s in both directions together. Hop: NCCL's model."""
BETWEEN = (Link("InfiniBand NDR", 50.0, 9.6), Link("25 Gb/s Ethernet", 3.125, 50.0))
"""By their nominal rates, 400 and 25 Gb/s. Hop: NCCL's model of a network; the Ethernet's is assumed."""
START = 8.4
"""µs before the first hop: NCCL's model."""
PER_MACHINE = 8
"""GPUs of a machine, as in NVIDIA's DGX and HGX."""


def ring_ms(sizes: Sequence[int], processes: int, machines: int, inside: Link, between: Link, start: float) -> float:
    """Return the milliseconds that the sums of a step take.

    Args:
        sizes: Bytes of each sum, one after the other.
        processes: W.
        machines: M.
        inside: Link within a machine.
        between: Link between machines.
        start: µs before the first hop of each sum.
    """
    if processes == 1:
        return 0.0
    outer = 2 * (machines - 1)
    latency = start + (2 * (processes - 1) - outer) * inside.hop + outer * between.hop  # µs
    slowest = min(inside.bandwidth, between.bandwidth) if machines > 1 else inside.bandwidth
    transfer = 2 * (processes - 1) / processes * sum(sizes) / slowest / 1e3  # bytes / (GB/s) are ns
    return (len(sizes) * latency + transfer) / 1e3


def efficiency(compute: float, exchange: float) -> float:
    """Return the part of a step that is computing, both in the same unit."""
    return compute / (compute + exchange)


@dataclass(frozen=True)
class Measured:
    """What a projection starts from.

    Args:
        name: Of the step.
        sizes: Bytes of each sum of a step, counted.
        compute: Milliseconds of a step of one process alone, measured.
    """

    name: str
    sizes: tuple[int, ...]
    compute: float


HEADER = (
    "| step | GPUs | link between machines | handed to the sums | exchange | efficiency at {step:g} ms | "
    "at the core's time | computing time for 90 % |\n|---|---|---|---|---|---|---|---|"
)


def table(
    measured: Sequence[Measured], gpus: Sequence[int], per_machine: int, inside: Link, between: Sequence[Link],
    start: float, step: float,
) -> str:  # fmt: skip
    """Return the projection as a Markdown table.

    Args:
        measured: What was measured.
        gpus: Numbers of processes, one a GPU.
        per_machine: GPUs of a machine.
        inside: Link within a machine.
        between: Links between machines, a row each where there are several machines.
        start: µs before the first hop of each sum.
        step: Assumed milliseconds that a GPU computes in a step.
    """
    rows = []
    for one in measured:
        for count in gpus:
            machines = -(-count // per_machine)
            for link in between if machines > 1 else (None,):
                exchange = ring_ms(one.sizes, count, machines, inside, link or inside, start)
                at_step, at_core = efficiency(step, exchange), efficiency(one.compute, exchange)
                sent, name = sum(one.sizes) / 1e6, link.name if link else "–"
                rows.append(
                    f"| {one.name} | {count} | {name} | {sent:.2f} MB | {exchange:.2f} ms | {at_step:.1%} | "
                    f"{at_core:.1%} ({one.compute:.0f} ms) | {9 * exchange:.1f} ms |"
                )
    return "\n".join([HEADER.format(step=step), *rows])
