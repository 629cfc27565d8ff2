"""Images a second of FFCV's loader against torchvision's, on photographs in class folders.

    python benchmarks/loading.py PATH [--rounds 5] [--workers 2] [--output FILE]

PATH holds train/<class>/<image> (and val/). Both loaders make the same random resized crops of 224 pixels with the
same number of workers (threads of FFCV, processes of torchvision's). After one epoch each, which compiles and fills the
system's cache, epochs are timed in turn in one process; medians and their ratio are printed. The limit beside them
decodes the same JPEG files on as many threads, with no loader, crop or resize: OpenCV's decoder, libjpeg-turbo.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np

from unidd_pl.allocator import keep_large_blocks
from unidd_pl.comparison import environment
from unidd_pl.console import say
from unidd_pl.convert import convert
from unidd_pl.data import ImageFolderData, LabelledImages, RandomCrops
from unidd_pl.files import atomic_write

IMAGE_SIZE, RESIZE = 224, 256  # pixels, as configs/cfm_imagenet.yaml


def epoch_of(images: LabelledImages, batch_size: int, workers: int) -> Callable[[], int]:
    """Return a function that goes through one epoch of random crops and returns its number of images."""
    loader = images.loader(batch_size, workers=workers, crops=RandomCrops(0))
    return lambda: sum(len(labels) for _, labels in loader)


def decode_only(paths: list[Path], workers: int) -> Callable[[], int]:
    """Return a function that reads and decodes every file once."""
    cv2.setNumThreads(0)

    def decode(path: Path) -> bool:
        return cv2.imdecode(np.fromfile(path, np.uint8), cv2.IMREAD_COLOR) is not None

    def all_files() -> int:
        with ThreadPoolExecutor(workers) as pool:
            return sum(pool.map(decode, paths))

    return all_files


def rates(cases: dict[str, Callable[[], int]], rounds: int) -> dict[str, list[float]]:
    """Return images a second of each case in each round, timed in turn after one epoch of each."""
    measured: dict[str, list[float]] = {name: [] for name in cases}
    for number in range(rounds + 1):
        for name, epoch in cases.items():
            started = time.perf_counter()
            count = epoch()
            if number:
                measured[name].append(count / (time.perf_counter() - started))
    return measured


def main() -> None:
    """Time the loaders; print a table and write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", type=str)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--batch_size", type=int, default=100)
    parser.add_argument("--note", default="", help="said beside the figures, for example what else was running")
    parser.add_argument("--output", type=Path, default=None, help="JSON file")
    arguments = parser.parse_args()
    keep_large_blocks()  # as the command does, for all three
    with tempfile.TemporaryDirectory() as betons:
        settings = {"in_memory_gib": 0, "workers": arguments.workers, "betons": betons}
        files, streamed = (
            ImageFolderData(arguments.root, IMAGE_SIZE, RESIZE, loader=loader, **settings)
            for loader in ("torchvision", "ffcv")
        )
        convert(streamed)
        cases = {
            "ffcv": epoch_of(streamed.train, arguments.batch_size, arguments.workers),
            "torchvision": epoch_of(files.train, arguments.batch_size, arguments.workers),
            "decode only": decode_only(files.list_split("train").paths, arguments.workers),
        }
        measured = rates(cases, arguments.rounds)
    medians = {name: statistics.median(values) for name, values in measured.items()}
    ratio = medians["ffcv"] / medians["torchvision"]
    say(f"{environment()}, {arguments.workers} workers, {arguments.rounds} epochs in turn, images/s {arguments.note}")
    for name, values in measured.items():
        say(f"{name:<12} {medians[name]:7.0f}  (from {min(values):.0f} to {max(values):.0f})")
    say(f"ffcv / torchvision {ratio:.2f}, ffcv / decode only {medians['ffcv'] / medians['decode only']:.2f}")
    if arguments.output:
        result = {
            "environment": environment(), "workers": arguments.workers, "note": arguments.note,
            "images_per_second": measured, "medians": medians, "ratio": ratio,
        }  # fmt: skip
        with atomic_write(arguments.output) as temporary:
            temporary.write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
