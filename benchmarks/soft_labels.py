"""Stored labels against online ones: bytes predicted and written, and the accuracy of students.

    python benchmarks/soft_labels.py --root DATA --teacher FILE --distilled FILE [--epochs 100] [--seeds 3]

Protocol sre2l at the given length and batch size, on images of CIFAR's classes in folders. The teacher labels every
view once, in float32; the other stores keep the same logits in their own ways, so that rows differ by nothing else.
Students of a seed share their initial weights, and all but those of `online` the views and their order. Views are
labelled 256 at a time, and trained on in batches of another size.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import yaml

from unidd_pl.allocator import keep_large_blocks
from unidd_pl.comparison import environment, mean_and_std
from unidd_pl.data import TorchvisionData
from unidd_pl.data.holdout import SomeImages
from unidd_pl.distilled import DistilledSet
from unidd_pl.evaluation import StudentScore, TrainingSet, train_student
from unidd_pl.label_codec import LabelCodec
from unidd_pl.label_file import LabelFacts, write_labels
from unidd_pl.label_store import LabelStore
from unidd_pl.protocols import Protocol
from unidd_pl.tables import markdown_table
from unidd_pl.teachers import Teacher, load_teacher
from unidd_pl.views import Views

NETWORK = "convnet-w128-d3"
LABELLED_AT_ONCE = 256
PROTOCOL = Path(__file__).parent.parent / "configs/protocols/sre2l.yaml"


def write_exact(path: Path, facts: LabelFacts, teacher: Teacher, distilled: DistilledSet) -> LabelStore:
    """Label all views in float32."""

    @torch.inference_mode()
    def logits_of(epoch: int) -> torch.Tensor:
        places = torch.arange(len(distilled)).split(LABELLED_AT_ONCE)
        return torch.cat([teacher.network(facts.views.images(distilled.images, one, epoch)) for one in places])

    write_labels(path, facts, logits_of)
    return LabelStore(path)


def all_stores(folder: Path, teacher: Teacher, distilled: DistilledSet, protocol: Protocol) -> dict[str, LabelStore]:
    """Write the stores that are compared; each is named by what it keeps."""
    views = Views(protocol.view_recipe, teacher.spec, len(distilled), protocol.epochs, 0)
    exact = LabelCodec("float32", teacher.spec.num_classes, None, protocol.temperature)
    described = {"network": teacher.name, "fingerprint": teacher.fingerprint, "accuracy": teacher.accuracy}
    facts = LabelFacts(views, exact, distilled.fingerprint(), described, environment())
    stores = {"float32": write_exact(folder / "float32.safetensors", facts, teacher, distilled)}
    kept: dict[str, dict[str, Any]] = {
        "float16": {"dtype": "float16"},
        "int8": {"dtype": "int8"},
        "float16, top 3": {"dtype": "float16", "top_k": 3},
        "int8, top 3": {"dtype": "int8", "top_k": 3},
        "float16, 5 views": {"dtype": "float16"},
        "int8, 5 views": {"dtype": "int8"},
    }
    for name, changes in kept.items():
        some = replace(views, epochs=5) if "5 views" in name else views
        path = folder / f"{name.replace(', ', '_').replace(' ', '')}.safetensors"
        write_labels(
            path,
            replace(facts, codec=replace(exact, **changes), views=some),
            lambda epoch: stores["float32"].rows(range(len(distilled)), epoch),
        )
        stores[name] = LabelStore(path)
    return stores


def main() -> None:
    """Write the stores, train the students seed by seed, and keep the figures after each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", required=True, help="folder with train/ and test/")
    parser.add_argument("--teacher", type=Path, required=True)
    parser.add_argument("--distilled", type=Path, required=True)
    parser.add_argument("--epochs", type=int, default=100)
    parser.add_argument("--batch", type=int, default=10)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rows", nargs="+", default=["online", "float16", "int8", "float32", "float16, top 3"])
    parser.add_argument("--test_per_class", type=int, default=None, help="test images of each class; default: all")
    parser.add_argument("--folder", type=Path, default=Path("runs/soft_labels"), help="for stores and results")
    arguments = parser.parse_args()
    keep_large_blocks()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    data = TorchvisionData("CIFAR10", arguments.root, mean=(0.4914, 0.4822, 0.4465), std=(0.2023, 0.1994, 0.2010))
    test = data.test
    if arguments.test_per_class:
        chosen = [test.positions_of(label)[: arguments.test_per_class] for label in range(data.spec.num_classes)]
        test = SomeImages(test, torch.cat(chosen))
    teacher = load_teacher(arguments.teacher, NETWORK, data, check=False)
    distilled = DistilledSet.load(arguments.distilled)
    settings = {**yaml.safe_load(PROTOCOL.read_text()), "epochs": arguments.epochs, "batch_size": {1: arguments.batch}}
    protocol = Protocol(**settings, early_scores=0)
    stores = all_stores(arguments.folder, teacher, distilled, protocol)
    sizes = {
        name: {"predicted_bytes": one.facts.file_bytes, "written_bytes": one.path.stat().st_size}
        for name, one in stores.items()
    }
    for name, size in sizes.items():
        print(f"{name}: predicted {size['predicted_bytes']}, written {size['written_bytes']} bytes", flush=True)
    scores: dict[str, list[StudentScore]] = {name: [] for name in arguments.rows}
    for seed in range(arguments.seeds):
        for name, row in scores.items():
            started = time.perf_counter()
            store = stores.get(name)
            training_set = TrainingSet(
                distilled.images, distilled.labels, distilled.ipc, store.views if store else None, store
            )
            online = Protocol(**{**settings, "labels": "online"}, early_scores=0)
            row.append(
                train_student(
                    NETWORK, training_set, teacher, test, protocol if store else online, seed,
                    label=None, accelerator="cpu", precision="bf16-mixed",
                )
            )  # fmt: skip
            seconds = time.perf_counter() - started
            print(f"seed {seed}, {name}: {100 * row[-1].tail_mean:.2f} in {seconds:.0f} s", flush=True)
            save(arguments.folder / "soft_labels.json", protocol, sizes, scores, len(test))
    print(table(sizes, scores))


def table(sizes: dict[str, dict[str, int]], scores: dict[str, list[StudentScore]]) -> str:
    """Return a row for each kind of labels: bytes, and top-1 in %."""
    rows = []
    for name in dict.fromkeys([*scores, *sizes]):
        size, row = sizes.get(name), scores.get(name, [])
        mean, spread = mean_and_std([100 * one.tail_mean for one in row]) if row else (None, None)
        figure = "" if mean is None else f"{mean:.1f}" if spread is None else f"{mean:.1f} ± {spread:.1f}"
        predicted = [str(size["predicted_bytes"]), str(size["written_bytes"])] if size else ["", ""]
        rows.append([name, *predicted, str(len(row) or ""), figure])
    return markdown_table(["labels", "bytes predicted", "written", "n", "tail mean"], rows)


def save(
    path: Path,
    protocol: Protocol,
    sizes: dict[str, dict[str, int]],
    scores: dict[str, list[StudentScore]],
    test_images: int,
) -> None:
    """Write all figures, accuracies in [0, 1]."""
    content = {
        "protocol": vars(protocol),
        "network": NETWORK,
        "precision": "bf16-mixed",
        "test_images": test_images,
        "environment": environment(),
        "stores": sizes,
        "rows": {
            name: [{"seed": one.seed, "tail_mean": one.tail_mean, "accuracy_by_epoch": one.accuracies} for one in row]
            for name, row in scores.items()
        },
    }
    path.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
