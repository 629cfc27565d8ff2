"""How the cost of a step grows: with images of a chunk, channels, image size, threads; and with what it should not.

    python benchmarks/scaling.py [--repeats 10] [--output FILE]

Along each axis a ConvNet-D3 step with CFM's loss and its floor (`step.py`) are timed in turn, all values of the axis
in one go. Printed are the medians and, for an axis of sizes, the exponent e of time ~ size^e by least squares: of the
whole step and of what the loss adds. Images per class (finished chunks in the running moments) and images of the data
set should not matter: there the largest over the smallest time is printed.
"""

from __future__ import annotations

import argparse
import math
import os
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from steps import Case, circumstances, make_step, medians, start, times_in_turn, write

from unidd_pl.console import say


@dataclass(frozen=True)
class Axis:
    """What is varied.

    Args:
        name: Its name.
        cases: Value and case.
        grows: Whether the cost is expected to grow with it.
    """

    name: str
    cases: dict[int, Case]
    grows: bool = True


AXES = (
    Axis("images of the chunk", {n: Case(images=n) for n in (10, 20, 40, 80)}),
    Axis("channels", {c: Case(f"convnet-w{c}-d3") for c in (32, 64, 128, 256)}),
    Axis("image side in pixels", {side: Case(image_size=side) for side in (16, 32, 64)}),
    Axis("finished chunks (IPC)", {chunks: Case(chunks=chunks) for chunks in (1, 10, 50)}, grows=False),
    Axis("images of the data set", {n: Case(real_images=n) for n in (50, 200, 800)}, grows=False),
)


def exponent(sizes: Sequence[float], times: Sequence[float]) -> float:
    """Return e of time ~ size^e by least squares on the logarithms; nan where a time is not positive."""
    if min(times) <= 0:
        return math.nan
    line = statistics.linear_regression([math.log(x) for x in sizes], [math.log(t) for t in times])
    return line.slope


def measure(axis: Axis, repeats: int, *, cpu_time: bool) -> dict[str, Any]:
    """Time one axis; print it and return the figures."""
    cases = {value: case.as_run() for value, case in axis.cases.items()}
    steps = {f"ours {value}": make_step(case) for value, case in cases.items()}
    steps |= {f"floor {value}": make_step(case.without_loss()) for value, case in cases.items()}
    typical = medians(times_in_turn(steps, repeats, cpu_time=cpu_time))
    values = list(axis.cases)
    ours = [typical[f"ours {value}"] for value in values]
    added = [time - typical[f"floor {value}"] for value, time in zip(values, ours, strict=True)]
    result: dict[str, Any] = {"axis": axis.name, "values": values, "step_ms": ours, "loss_ms": added}
    if axis.grows:
        result |= {"step_exponent": exponent(values, ours), "loss_exponent": exponent(values, added)}
        verdict = f"exponents: step {result['step_exponent']:.2f}, loss {result['loss_exponent']:.2f}"
    else:
        result["largest_over_smallest"] = max(ours) / min(ours)
        verdict = f"largest / smallest {result['largest_over_smallest']:.2f}"
    row = ", ".join(f"{v}: {t:.1f} (+{a:.1f})" for v, t, a in zip(values, ours, added, strict=True))
    say(f"{axis.name}: {row} ms; {verdict}")
    return result


def measure_threads(repeats: int) -> dict[str, Any]:
    """Time one case with one thread and with one for each core."""
    before, times = torch.get_num_threads(), {}
    for threads in sorted({1, os.cpu_count() or 1}):
        torch.set_num_threads(threads)
        case = Case(images=40).as_run()
        times[threads] = medians(
            times_in_turn({"ours": make_step(case), "floor": make_step(case.without_loss())}, repeats)
        )
    torch.set_num_threads(before)
    row = ", ".join(f"{n}: {t['ours']:.1f} (floor {t['floor']:.1f})" for n, t in times.items())
    say(f"threads: {row} ms for 40 images")
    return {"axis": "threads", "times_ms": times}


def main() -> None:
    """Time all axes; print them and write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--cpu_time", action="store_true", help="time of the processor, for a busy machine: one thread")
    parser.add_argument("--note", default="", help="said beside the figures, for example what else was running")
    parser.add_argument("--output", type=Path, default=None, help="JSON file")
    arguments = parser.parse_args()
    start()
    if arguments.cpu_time:
        torch.set_num_threads(1)
    say(f"{circumstances(arguments.note)}; medians of {arguments.repeats} in turn, step and (what the loss adds)")
    results = [measure(axis, arguments.repeats, cpu_time=arguments.cpu_time) for axis in AXES]
    if not arguments.cpu_time:
        results.append(measure_threads(arguments.repeats))
    write(arguments.output, {"circumstances": circumstances(arguments.note), "results": results})


if __name__ == "__main__":
    main()
