"""Cost of the spectral loss: one distillation step against the same step without it.

    python benchmarks/step.py [--repeats 30] [--threads 1 2] [--compiled] [--tricks] [--output FILE]

The floor is the whole step less the moments, filters and distances: augmentation, teacher forward, cross-entropy
backward to the images, Adam, clipping. The reference is the same step with the loss of SPEC.md written down in plain
autograd (`reference.py`), both sides filtered in each step as in the authors' release, and features laid out channels
first as torch has them by default; "cached" is the same with the real side filtered once. Floor and ours are laid out
as a run lays them out: channels last on a CPU. All are timed in turn in one process; medians and their ratios are
printed. With --compiled, floor and ours are also timed with the teacher's passes compiled (`compile_mode: default`);
with --tricks, the floor channels first, and ours with one part at a time taken back. The loss is CFM's: two resolvent
terms a layer.
"""

from __future__ import annotations

import argparse
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from steps import Case, circumstances, make_step, medians, start, times_in_turn, write

from unidd_pl.console import say

CASES = (Case("convnet-w128-d3", 10), Case("convnet-w128-d3", 100), Case("resnet18", 10))
TRICKS = {
    "moments apart": {"separate": True},
    "permuted covariance": {"permuted": True},
    "no low rank": {"factored": False},
    "no closed form": {"closed_form": False},
}


def variants(case: Case, *, compiled: bool, tricks: bool) -> dict[str, Case]:
    """Return the steps that are timed against each other: floor and ours in the layout of a run on this device."""
    cached = replace(case, loss="reference")
    ours = case.as_run()
    chosen = {"floor": ours.without_loss(), "ours": ours, "reference": replace(cached, cached=False), "cached": cached}
    if compiled:
        both = {"floor, compiled": ours.without_loss(), "ours, compiled": ours}
        chosen |= {name: replace(one, compile_mode="default") for name, one in both.items()}
    if tricks:
        chosen |= {"floor, channels first": case.without_loss()}
        chosen |= {name: replace(ours, **change) for name, change in TRICKS.items()}
    return chosen


def measure(case: Case, threads: int, repeats: int, *, compiled: bool, tricks: bool, cpu_time: bool) -> dict[str, Any]:
    """Time one case; print a line and return the figures."""
    torch.set_num_threads(threads)
    chosen = variants(case, compiled=compiled, tricks=tricks)
    times = times_in_turn({name: make_step(one) for name, one in chosen.items()}, repeats, cpu_time=cpu_time)
    typical = medians(times)
    ratios = {
        "ours / floor": typical["ours"] / typical["floor"],
        "reference / ours": typical["reference"] / typical["ours"],
        "cached / ours": typical["cached"] / typical["ours"],
    }
    if compiled:
        ratios |= {
            "ours / floor, both compiled": typical["ours, compiled"] / typical["floor, compiled"],
            "reference / ours compiled": typical["reference"] / typical["ours, compiled"],
        }
    figures = ", ".join(f"{name} {value:.1f}" for name, value in typical.items())
    say(f"{case.network}, {case.images} images, {threads} threads: {figures} ms; "
        + ", ".join(f"{name} {value:.2f}" for name, value in ratios.items()))  # fmt: skip
    fastest = {name: min(values) for name, values in times.items()}
    return {
        "case": asdict(case),
        "threads": threads,
        "clock": "processor" if cpu_time else "wall",
        "medians_ms": typical,
        "minima_ms": fastest,
        "ratios": ratios,
    }


def main() -> None:
    """Time the cases, print a table and write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", default=None, help="only these of the cases")
    parser.add_argument("--images", nargs="+", type=int, default=None, help="only these chunk sizes")
    parser.add_argument("--repeats", type=int, default=30)
    parser.add_argument("--threads", nargs="+", type=int, default=None, help="default: 1 and all cores")
    parser.add_argument("--compiled", action="store_true", help="also with the teacher's passes compiled")
    parser.add_argument("--tricks", action="store_true", help="take back one part of ours at a time")
    parser.add_argument("--cpu_time", action="store_true", help="time of the processor, for a busy machine: one thread")
    parser.add_argument("--note", default="", help="said beside the figures, for example what else was running")
    parser.add_argument("--output", type=Path, default=None, help="JSON file")
    arguments = parser.parse_args()
    start()
    say(f"{circumstances(arguments.note)}; medians of {arguments.repeats} in turn")
    threads_tried = [1] if arguments.cpu_time else arguments.threads or sorted({1, torch.get_num_threads()})
    results = [
        measure(
            case,
            threads,
            arguments.repeats,
            compiled=arguments.compiled,
            tricks=arguments.tricks,
            cpu_time=arguments.cpu_time,
        )
        for threads in threads_tried
        for case in CASES
        if arguments.networks is None or case.network in arguments.networks
        if arguments.images is None or case.images in arguments.images
    ]
    write(arguments.output, {"circumstances": circumstances(arguments.note), "results": results})


if __name__ == "__main__":
    main()
