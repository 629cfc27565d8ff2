"""Cost of the spectral loss: one distillation step against the same step without it.

    python benchmarks/step.py [--images 10 100] [--repeats 30]

The floor is the whole step less the moments, filters and distances: augmentation, teacher forward, cross-entropy
backward to the images, Adam, clipping. Both are timed in turn in one process; medians and their ratio are printed.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from unidd_pl.allocator import keep_large_blocks
from unidd_pl.augmentation import random_flip, random_resized_crop, random_roll
from unidd_pl.comparison import environment
from unidd_pl.features import FeatureTap, conv_layers
from unidd_pl.networks import build_network
from unidd_pl.seeding import generator_for
from unidd_pl.specs import DatasetSpec
from unidd_pl.spectral import CFM, Moments, RunningMoments, filtered, term_distances
from unidd_pl.synthetic import clip
from unidd_pl.teachers import freeze

SPEC = DatasetSpec("benchmark", tuple(f"{label:02d}" for label in range(100)), 3, 32, (0.5,) * 3, (0.25,) * 3)
BETA, ETA, LR = 0.1, 0.1, 0.25  # as configs/cfm_cifar10.yaml
WARM_UP = 5  # steps


def make_step(network_name: str, count: int, *, spectral: bool) -> Callable[[], None]:
    """Return a function that does one step on `count` images, with or without the spectral loss."""
    torch.manual_seed(0)
    network = build_network(network_name, SPEC)
    freeze(network)
    images = torch.nn.Parameter(clip(torch.randn(count, *SPEC.image_shape), SPEC))
    labels = torch.arange(count) % SPEC.num_classes
    adam = torch.optim.Adam([images], lr=LR, betas=(0.5, 0.9))
    layers = conv_layers(network)
    method, running = CFM(), RunningMoments("mean")
    with torch.no_grad(), FeatureTap(network, layers) as tap:
        network(torch.randn(200, *SPEC.image_shape))
        moments = [Moments.of(features) for features in tap.features()]
    real = [filtered(method, one, BETA) for one in moments]
    running.update(moments)
    iteration = 0

    def matching(features: list[Tensor]) -> Tensor:
        used = running.combine([Moments.of(x) for x in features])
        return term_distances(method, real, used, [BETA] * len(used)).sum()

    def step() -> None:
        nonlocal iteration
        generator = generator_for(0, iteration)
        iteration += 1
        x = random_roll(
            random_flip(random_resized_crop(images, generator, shared=True), generator, shared=True), generator
        )
        with FeatureTap(network, layers if spectral else ()) as tap:
            loss = F.cross_entropy(network(x), labels)
            if spectral:
                loss = loss + ETA * matching(tap.features())
        adam.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        adam.step()
        with torch.no_grad():
            images.copy_(clip(images, SPEC))

    return step


def median_times(steps: dict[str, Callable[[], None]], repeats: int) -> dict[str, float]:
    """Return the median time of each step in ms, timed in turn."""
    times: dict[str, list[float]] = {name: [] for name in steps}
    for repeat in range(WARM_UP + repeats):
        for name, step in steps.items():
            started = time.perf_counter()
            step()
            if repeat >= WARM_UP:
                times[name].append(1e3 * (time.perf_counter() - started))
    return {name: statistics.median(values) for name, values in times.items()}


def main() -> None:
    """Time the cases and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", default=["convnet-w128-d3"])
    parser.add_argument("--images", nargs="+", type=int, default=[10, 100])
    parser.add_argument("--repeats", type=int, default=30)
    arguments = parser.parse_args()
    keep_large_blocks()
    print(f"{environment()}, {torch.get_num_threads()} threads; medians of {arguments.repeats}, ms a step")
    for network in arguments.networks:
        for count in arguments.images:
            steps = {
                "floor": make_step(network, count, spectral=False),
                "ours": make_step(network, count, spectral=True),
            }
            times = median_times(steps, arguments.repeats)
            ratio = times["ours"] / times["floor"]
            print(f"{network}, {count} images: floor {times['floor']:.1f}, ours {times['ours']:.1f}, ratio {ratio:.2f}")


if __name__ == "__main__":
    main()
