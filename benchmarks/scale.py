"""Weak scaling of a distillation that processes share: two with one thread each against one.

    python benchmarks/scale.py [--repeats 15] [--output FILE]
    python benchmarks/scale.py --project FILE … [--gpus 8 64] [--step_ms 10] [--between NAME GB/S MICROSECONDS]

Every process keeps its number of images: the two share a chunk twice as large. They run the module under Lightning's
Trainer with gloo, as `unidd fit` does, and are called for some steps at a time, in turn: one process alone; two
processes with a chunk each, that know nothing of each other; two that share a chunk. The second is what the machine
gives: two cores share power, cache and memory. The slower of two processes counts. Bytes and time of the exchange are
counted where the collective is called; of the time of each sum the shorter of both is taken, for the other waited.

With --project nothing is measured: the exchange over more GPUs is calculated (`projection.py`) from bytes and times
of files that were.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import socket
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from paced import Share, of_share, work
from projection import BETWEEN, INSIDE, PER_MACHINE, START, Link, Measured, table
from steps import Case, circumstances, write

from unidd_pl.console import say
from unidd_pl.spectral import Signal

RANKS = 2
WARM_UP = 2  # bursts


@dataclass(frozen=True)
class Scaled:
    """A step to scale.

    Args:
        case: The step, with the images of the joint chunk.
        signal: Signal of the FLC.
        burst: Steps that are called for at a time.
    """

    case: Case
    signal: Signal = "mean"
    burst: int = 1

    @property
    def name(self) -> str:
        """Network, signal and images of a process."""
        signal = self.signal if self.signal == "mean" else f"{self.signal}, {self.case.num_classes} classes"
        return f"{self.case.network}, {signal}, {self.case.images // RANKS} images a process"


CASES = (
    Scaled(Case("convnet-w128-d3", 20), burst=5),
    Scaled(Case("convnet-w128-d3", 100), burst=2),
    Scaled(Case("resnet18", 20)),
    Scaled(Case("resnet18", 20, num_classes=1000), "class"),
)


class Crew:
    """Processes that do the same number of steps when they are called for.

    Args:
        shares: What each does.
    """

    def __init__(self, shares: Sequence[Share]) -> None:
        context = multiprocessing.get_context("spawn")
        self.lines: list[Connection] = []
        self.processes = []
        for share in shares:
            ours, theirs = context.Pipe()
            process = context.Process(target=work, args=(share, theirs), daemon=True)
            process.start()
            theirs.close()  # so that the end of the process ends the line
            self.lines.append(ours)
            self.processes.append(process)

    def end(self) -> None:
        """Wait for the processes."""
        for process in self.processes:
            process.join()


def called(lines: Sequence[Connection]) -> list[dict[str, Any]]:
    """Call some processes for a burst; return what each says of it."""
    for line in lines:
        line.send("go")
    try:
        return [line.recv() for line in lines]
    except EOFError as error:
        raise RuntimeError("a process of the benchmark has ended: its message stands above") from error


def free_port() -> int:
    """Return a port that no one listens on."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def in_turn(scaled: Scaled, repeats: int) -> dict[str, list[list[dict[str, Any]]]]:
    """Return what each process said of each burst, of one way after the other; the order turns with the repeats."""
    own, turns, port = of_share(scaled.case, RANKS), WARM_UP + repeats, free_port()
    # One burst more than is measured: the last stores the chunk.
    apart = Crew([Share(own, scaled.signal, scaled.burst, times * turns + 1) for times in (2, 1)])
    shared = Crew(
        [Share(scaled.case, scaled.signal, scaled.burst, turns + 1, rank, RANKS, port) for rank in range(RANKS)]
    )
    ways = {"alone": apart.lines[:1], "apart": apart.lines, "shared": shared.lines}
    names = list(ways)
    said: dict[str, list[list[dict[str, Any]]]] = {name: [] for name in names}
    for turn in range(turns):
        first = turn % len(names)
        for name in names[first:] + names[:first]:
            said[name].append(called(ways[name]))
    called([*apart.lines, *shared.lines])
    for crew in (apart, shared):
        crew.end()
    return {name: bursts[WARM_UP:] for name, bursts in said.items()}


def measure(scaled: Scaled, repeats: int) -> dict[str, Any]:
    """Time one step in the three ways; print a line and return the figures."""
    said = in_turn(scaled, repeats)
    each = {
        name: [1e3 * max(one["seconds"] for one in burst) / scaled.burst for burst in bursts]
        for name, bursts in said.items()
    }
    typical = {name: statistics.median(values) for name, values in each.items()}
    exchange = [1e3 * exchange_seconds(burst) / scaled.burst for burst in said["shared"]]
    ratios = {
        "efficiency": typical["alone"] / typical["shared"],
        "of the machine": typical["alone"] / typical["apart"],
        "of the sharing": typical["apart"] / typical["shared"],
    }
    sizes = sizes_of_a_step(said["shared"], scaled.burst)
    say(f"{scaled.name}: " + ", ".join(f"{name} {value:.1f}" for name, value in typical.items())
        + f" ms, of it {statistics.median(exchange):.1f} ms exchange; "
        + ", ".join(f"{name} {value:.2f}" for name, value in ratios.items())
        + f"; {sum(sizes) / 1e6:.3f} MB in {len(sizes)} sums from each process")  # fmt: skip
    return {
        "case": asdict(scaled.case), "signal": scaled.signal, "name": scaled.name, "burst": scaled.burst,
        "medians_ms": typical, "each_ms": each, "exchange_ms": statistics.median(exchange), "ratios": ratios,
        "bytes_of_each_sum": sizes, "bytes_a_step": sum(sizes),
    }  # fmt: skip


def exchange_seconds(burst: Sequence[dict[str, Any]]) -> float:
    """Return the time of the sums of a burst: of each the shorter of both, for whoever comes first waits in it."""
    return sum(map(min, *(one["sum_seconds"] for one in burst)))


def sizes_of_a_step(bursts: Sequence[Sequence[dict[str, Any]]], burst: int) -> list[int]:
    """Return the bytes of each sum of a step, which have to be those of every step of every process."""
    all_sizes = [one["sizes"] for said in bursts for one in said]
    per_step = len(all_sizes[0]) // burst
    step: list[int] = all_sizes[0][:per_step]
    if any(sizes != step * burst for sizes in all_sizes):
        raise RuntimeError(f"steps send different bytes: {all_sizes}")
    return step


def project(given: argparse.Namespace) -> None:
    """Print the table of what was measured."""
    results = [result for path in given.project for result in json.loads(path.read_text())["results"]]
    measured = [Measured(r["name"], tuple(r["bytes_of_each_sum"]), r["medians_ms"]["alone"]) for r in results]
    inside = Link("inside", *given.inside)
    between = [Link(name, float(rate), float(hop)) for name, rate, hop in given.between or ()] or list(BETWEEN)
    say(table(measured, given.gpus, given.per_machine, inside, between, given.start, given.step_ms))


def main() -> None:
    """Measure and write JSON, or project."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", default=None, help="only these of the cases")
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--note", default="", help="said beside the figures, for example what else was running")
    parser.add_argument("--output", type=Path, default=None, help="JSON file")
    parser.add_argument("--project", type=Path, nargs="+", metavar="FILE", help="calculate from figures of these files")
    parser.add_argument("--gpus", type=int, nargs="+", default=[8, 64])
    parser.add_argument("--per_machine", type=int, default=PER_MACHINE, help="GPUs of a machine")
    parser.add_argument("--inside", type=float, nargs=2, default=[INSIDE.bandwidth, INSIDE.hop],
                        metavar=("GB/S", "MICROSECONDS"), help="link within a machine")  # fmt: skip
    parser.add_argument("--between", nargs=3, action="append", metavar=("NAME", "GB/S", "MICROSECONDS"),
                        help="link between machines; may be given more than once")  # fmt: skip
    parser.add_argument("--start", type=float, default=START, help="µs before the first hop of a sum")
    parser.add_argument("--step_ms", type=float, default=10.0, help="assumed computing time of a GPU in a step")
    given = parser.parse_args()
    if given.project is not None:
        project(given)
        return
    say(f"{circumstances(given.note)}; medians of {given.repeats} in turn")
    results = [
        measure(one, given.repeats) for one in CASES if given.networks is None or one.case.network in given.networks
    ]
    write(given.output, {"circumstances": circumstances(given.note), "repeats": given.repeats, "results": results})


if __name__ == "__main__":
    main()
