"""How far the statistics of a ResNet-18 gathered through FFCV are from those gathered through torchvision's loader.

    python benchmarks/loaders_agree.py PATH [--teacher FILE] [--cache FOLDER] [--betons FOLDER] [--output FILE]

PATH holds train/<class>/<image>, as ImageNet does. The data are those of configs/cfm_imagenet.yaml; without a file the
teacher has random weights of seed 0. Both loaders have to name the same classes in the same order. For each layer the
relative difference of FFC and channel means in the Frobenius norm is printed: the difference of two JPEG decoders and
two interpolations, nothing else, because order, batches and crops are the same.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from datetime import date
from pathlib import Path

import torch

from unidd_pl.comparison import environment
from unidd_pl.console import say
from unidd_pl.convert import convert
from unidd_pl.data import ImageFolderData
from unidd_pl.features import conv_layers
from unidd_pl.files import atomic_write
from unidd_pl.networks import build_network
from unidd_pl.networks.checkpoints import load_weights
from unidd_pl.specs import DatasetSpec
from unidd_pl.spectral import Moments
from unidd_pl.statistics import Statistics
from unidd_pl.statistics_cache import StatisticsRecipe, obtain_statistics
from unidd_pl.teachers import Teacher, freeze

NETWORK = "resnet18"
DATA = {
    "image_size": 224, "resize": 256, "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225], "in_memory_gib": 0,
    "name": "imagenet",
}  # fmt: skip
"""As configs/cfm_imagenet.yaml, and never held in memory."""
LOADERS = ("ffcv", "torchvision")


def teacher_of(spec: DatasetSpec, file: Path | None) -> Teacher:
    """Return the teacher of a file, or one of random weights."""
    torch.manual_seed(0)
    network = build_network(NETWORK, spec)
    if file:
        load_weights(network, file, expected_classes=spec.num_classes)
    freeze(network)
    return Teacher(network, NETWORK, spec, None, file or Path("random weights"))


def difference(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """Return the Frobenius norm of the difference over that of the second."""
    return float(torch.linalg.norm(ours - theirs) / torch.linalg.norm(theirs))


def compared(layer: str, ours: Moments, theirs: Moments) -> dict[str, float | str]:
    """Return the differences of one layer."""
    return {
        "layer": layer,
        "ffc": difference(ours.ffc, theirs.ffc),
        "mean": difference(ours.mean, theirs.mean),
        "trace_ratio": float(ours.ffc.trace() / theirs.ffc.trace()),
    }


def statistics_of(arguments: argparse.Namespace, betons: str) -> tuple[Statistics, Statistics, DatasetSpec]:
    """Return the statistics through FFCV, those through torchvision, and the classes that both name."""
    found, specs = [], []
    for loader in LOADERS:
        data = ImageFolderData(arguments.root, loader=loader, betons=betons, workers=arguments.workers, **DATA)
        if loader == "ffcv":
            convert(data)
        teacher = teacher_of(data.spec, arguments.teacher)
        recipe, cache = StatisticsRecipe(batch_size=arguments.batch_size), Path(arguments.cache or betons)
        found.append(obtain_statistics(recipe, teacher, data, conv_layers(teacher.network), "mean", cache)[0])
        specs.append(data.spec)
    if specs[0].classes != specs[1].classes:
        raise SystemExit("the loaders name other classes, or in another order")
    return found[0], found[1], specs[0]


def main() -> None:
    """Gather both; print a table and write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", type=str)
    parser.add_argument("--teacher", type=Path, default=None, help="state_dict of a ResNet-18 of these classes")
    parser.add_argument("--cache", type=str, default=None, help="folder where statistics are kept between two calls")
    parser.add_argument("--betons", type=str, default=None, help="folder of the .beton files; default: a temporary one")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--batch_size", type=int, default=250)
    parser.add_argument("--output", type=Path, default=None, help="JSON file")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        ffcv, torchvision, spec = statistics_of(arguments, arguments.betons or folder)
    pairs = zip(ffcv.layers, ffcv.moments, torchvision.moments, strict=True)
    layers = [compared(*pair) for pair in pairs]
    say(f"{environment()}: FFCV against torchvision, {spec.num_classes} classes in the same order")
    for row in layers:
        ffc, mean = 100 * float(row["ffc"]), 100 * float(row["mean"])
        say(f"{row['layer']:<22} FFC {ffc:5.2f} %  mean {mean:5.2f} %  trace × {row['trace_ratio']:.3f}")
    if arguments.output:
        result = {
            "environment": environment(), "date": date.today().isoformat(), "network": NETWORK,
            "teacher": str(arguments.teacher or "random weights, seed 0").rpartition("/")[2],
            "classes": spec.num_classes, "same_classes_in_order": True, "batch_size": arguments.batch_size,
            "layers": layers,
        }  # fmt: skip
        with atomic_write(arguments.output) as temporary:
            temporary.write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
