"""From how many rows on a chunk's covariance is faster than its thin factor with Woodbury's identity.

    python benchmarks/crossover.py [--repeats 9] [--threads 1 2] [--output FILE]

CFM's loss on three layers of one width and its gradient to the features, running moments `mean`: once with the
covariance multiplied out, once as a factor, in turn. `factored.is_thin` draws the line between the two.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from steps import BETA, circumstances, medians, start, times_in_turn, write
from torch import Tensor

from unidd_pl.console import say
from unidd_pl.spectral import CFM, MatchingLoss, Moments, Observed, Passing, RunningMoments, moments_of
from unidd_pl.spectral.covariance import second_moment, thin_rows
from unidd_pl.spectral.factored import is_thin

LAYERS, SIDE = 3, 4  # of one width; pixels, as where CIFAR networks have few rows
SHARES = (1 / 8, 1 / 4, 3 / 8, 1 / 2, 5 / 8, 3 / 4, 1)  # rows of the channels


def make_run(channels: int, rows: int, *, factored: bool) -> Callable[[], None]:
    """Return a function that takes the loss of features of so many rows and its gradient."""
    torch.manual_seed(0)
    real = [Moments.of(torch.randn(4 * channels, channels)) for _ in range(LAYERS)]
    matching, running = MatchingLoss(CFM(), real, BETA), RunningMoments("mean")
    running.update(real)
    shape = (rows // SIDE**2, channels, SIDE, SIDE)
    features = [torch.randn(shape).to(memory_format=torch.channels_last).requires_grad_() for _ in range(LAYERS)]

    def seen(x: Tensor) -> Observed:
        _, sums = (thin_rows if factored else second_moment)(x, Passing(centred=False, by_image=False))
        return Observed(sums, len(x) * SIDE**2, factored)

    def run() -> None:
        loss = matching.distances(running.combine(moments_of([seen(x) for x in features], None))).sum()
        torch.autograd.grad(loss, features)

    return run


def measure(channels: int, rows: int, repeats: int) -> dict[str, Any]:
    """Time both ways; print a line and return the figures."""
    both = {name: make_run(channels, rows, factored=name == "factor") for name in ("covariance", "factor")}
    typical = medians(times_in_turn(both, repeats))
    ratio = typical["covariance"] / typical["factor"]
    say(f"{channels} channels, {rows} rows ({rows / channels:.2f}): covariance {typical['covariance']:.2f} ms, "
        f"factor {typical['factor']:.2f} ms, ratio {ratio:.2f}; taken is the "
        f"{'factor' if is_thin(rows, channels) else 'covariance'}")  # fmt: skip
    return {"channels": channels, "rows": rows, "medians_ms": typical, "covariance / factor": ratio}


def main() -> None:
    """Time several widths and rows, print them and write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--threads", nargs="+", type=int, default=[torch.get_num_threads()])
    parser.add_argument("--note", default="", help="said beside the figures, for example what else was running")
    parser.add_argument("--output", type=Path, default=None, help="JSON file")
    arguments = parser.parse_args()
    start()
    results = []
    for threads in arguments.threads:
        torch.set_num_threads(threads)
        say(f"{threads} threads")
        for channels in (128, 256, 512):
            for share in SHARES:
                rows = int(channels * share) // SIDE**2 * SIDE**2
                results.append({"threads": threads, **measure(channels, rows, arguments.repeats)})
    write(arguments.output, {"circumstances": circumstances(arguments.note), "results": results})


if __name__ == "__main__":
    main()
