"""What the products and inverses of the spectral loss take by themselves: the least that the loss can add to a step.

    python benchmarks/arithmetic.py [--repeats 30] [--threads 2] [--output FILE]

Each product is timed alone, with its operands in the caches, in turn with the step without the loss; no pass over
memory, no small operation, no Python in between. A step adds at least their sum, so that (floor + sum) / floor is what
ours / floor of `step.py` could come down to on this machine with these libraries. Counted are, by width of the layers,

    few channels or many rows    XᵀX, (X−1μᵀ)(G+Gᵀ), (Ψ_s+βI)⁻¹, R G R
    few rows, by Woodbury        HU, TQ, H(…) and six thin products, K⁻¹; see unidd_pl/spectral/low_rank.py
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from step import CASES
from steps import BETA, Case, build_teacher, circumstances, make_step, medians, start, times_in_turn, write
from torch import Tensor

from unidd_pl.console import say
from unidd_pl.features import FeatureTap, conv_layers
from unidd_pl.spectral import Resolvent
from unidd_pl.spectral.factored import is_thin

Run = Callable[[], None]


def shapes(case: Case) -> list[tuple[int, int]]:
    """Return rows and channels of the matched layers' inputs."""
    network = build_teacher(case)
    with torch.no_grad(), FeatureTap(network, conv_layers(network)) as tap:
        network(torch.randn(case.images, *case.spec.image_shape))
        return [(x.numel() // x.shape[1], x.shape[1]) for x in tap.features()]


def parts(layers: list[tuple[int, int]]) -> dict[str, Run]:
    """Return what is timed, by name."""
    wide: dict[int, list[int]] = {}
    thin: dict[tuple[int, int], int] = {}
    for rows, channels in layers:
        if is_thin(rows, channels):
            thin[rows, channels] = thin.get((rows, channels), 0) + 1
        else:
            wide.setdefault(channels, []).append(rows)
    done: dict[str, Run] = {}
    for channels, several in wide.items():
        done |= _of_matrices(channels, several)
    for (rows, channels), count in thin.items():
        done |= _of_factors(rows, channels, count)
    return done


def _of_matrices(channels: int, several: list[int]) -> dict[str, Run]:
    features = [torch.randn(rows, channels) for rows in several]
    gradients = [torch.zeros(rows, channels) for rows in several]
    psi, cotangent = _positive(len(several), channels), torch.randn(len(several), channels, channels)
    inverse = Resolvent().matrix(psi, BETA)
    name = f"{len(several)} x {channels}"
    return {
        f"{name}: covariance": lambda: [x.T @ x for x in features],
        f"{name}: its gradient": lambda: [g.addmm_(x, psi[0]) for x, g in zip(features, gradients, strict=True)],
        f"{name}: inverse": lambda: Resolvent().matrix(psi, BETA),
        f"{name}: its gradient, R G R": lambda: inverse @ cotangent @ inverse,
    }


def _of_factors(rows: int, channels: int, count: int) -> dict[str, Run]:
    square, factor = _positive(count, channels), torch.randn(count, channels, rows)
    small = _positive(count, rows)
    name = f"{count} x {channels} of {rows} rows"
    return {
        f"{name}: three products with a whole matrix": lambda: [square @ factor for _ in range(3)],
        f"{name}: thin products, to small": lambda: [factor.mT @ factor for _ in range(3)],
        f"{name}: thin products, by small": lambda: [factor @ small for _ in range(3)],
        f"{name}: inverse": lambda: Resolvent().matrix(small, 1.0),
    }


def _positive(count: int, channels: int) -> Tensor:
    rows = torch.randn(count, 2 * channels, channels)
    return rows.mT @ rows / (2 * channels)


def measure(case: Case, repeats: int) -> dict[str, Any]:
    """Time one case; print a line and return the figures."""
    runs = parts(shapes(case))
    for run in runs.values():
        run()
    floor = make_step(case.as_run().without_loss())
    times: dict[str, list[float]] = {name: [] for name in ("floor", *runs)}
    for _ in range(repeats):
        for name, run in {"floor": floor, **runs}.items():
            times[name] += times_in_turn({name: run}, 1)[
                name
            ]  # which warms up first, so that operands are in the caches
    typical = medians(times)
    least = typical.pop("floor")
    total = sum(typical.values())
    say(f"{case.network}, {case.images} images: floor {least:.1f} ms, products {total:.2f} ms, "
        f"ours / floor no less than {1 + total / least:.2f}")  # fmt: skip
    for name, value in typical.items():
        say(f"    {name}: {value:.2f} ms")
    return {"case": asdict(case), "floor_ms": least, "parts_ms": typical, "least_ratio": 1 + total / least}


def main() -> None:
    """Time the cases of `step.py`, print them and write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=30)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--note", default="", help="said beside the figures, for example what else was running")
    parser.add_argument("--output", type=Path, default=None, help="JSON file")
    arguments = parser.parse_args()
    start()
    torch.set_num_threads(arguments.threads)
    say(f"{circumstances(arguments.note)}; {arguments.threads} threads, medians of {arguments.repeats} in turn")
    results = [measure(case, arguments.repeats) for case in CASES]
    found = {"circumstances": circumstances(arguments.note), "threads": arguments.threads, "results": results}
    write(arguments.output, found)


if __name__ == "__main__":
    main()
