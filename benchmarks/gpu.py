"""`step.py` on a CUDA device, and the ImageNet settings: ResNet-18, 224 pixels, chunks of 100 and 200.

    python benchmarks/gpu.py [--repeats 30] [--output FILE]

Each case is timed in float32 and with the teacher under bfloat16 autocast (--trainer.precision bf16-mixed of
`unidd fit`); moments and filters are float32 in both, and TF32 is off for their products, as torch has it by default.
Floor and ours are also timed with the teacher's passes compiled (`compile_mode` of `unidd fit`), once with CUDA graphs
(mode `reduce-overhead`).
Without a CUDA device it says so and does nothing.
"""

from __future__ import annotations

import argparse
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from step import CASES
from steps import Case, circumstances, make_step, medians, start, times_in_turn, write

from unidd_pl.console import say
from unidd_pl.observing import CompileMode

MODES: tuple[CompileMode, ...] = ("default", "reduce-overhead")
IMAGENET = tuple(Case("resnet18", images, image_size=224, num_classes=1000) for images in (100, 200))


def measure(case: Case, repeats: int) -> dict[str, Any]:
    """Time one case on its device; print a line and return the figures."""
    chosen = {"floor": case.without_loss(), "ours": case, "reference": replace(case, loss="reference")}
    for mode in MODES:
        chosen |= {f"{name}, {mode}": replace(chosen[name], compile_mode=mode) for name in ("floor", "ours")}
    typical = medians(times_in_turn({name: make_step(one) for name, one in chosen.items()}, repeats, case.device))
    rate = 1e3 * case.images / typical["ours"]
    ratio, gain = typical["ours"] / typical["floor"], typical["reference"] / typical["ours"]
    say(f"{case.network}, {case.images} images of {case.image_size} px, {'bf16' if case.bf16 else 'float32'}: "
        + ", ".join(f"{name} {value:.1f}" for name, value in typical.items())
        + f" ms; ours / floor {ratio:.2f}, reference / ours {gain:.2f}, {rate:.0f} images/s")  # fmt: skip
    return {"case": asdict(case), "medians_ms": typical, "ours / floor": ratio, "reference / ours": gain,
            "images_per_second": rate}  # fmt: skip


def main() -> None:
    """Time all cases, or say that there is no device."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=30)
    parser.add_argument("--output", type=Path, default=None, help="JSON file")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        say("No CUDA device: nothing measured on a GPU")
        return
    start()
    say(f"{circumstances()}; medians of {arguments.repeats} in turn")
    cases = [replace(case, device="cuda", bf16=bf16) for case in (*CASES, *IMAGENET) for bf16 in (False, True)]
    results = [measure(case, arguments.repeats) for case in cases]
    write(arguments.output, {"circumstances": circumstances(), "results": results})


if __name__ == "__main__":
    main()
