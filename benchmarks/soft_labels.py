"""Stored labels against online ones: bytes predicted and written, and the accuracy of students.

    python benchmarks/soft_labels.py                                        # the embedded digits, about 3 minutes
    python benchmarks/soft_labels.py --root DATA --teacher FILE --distilled FILE --batch 10 --precision bf16-mixed

Protocol sre2l at the given length and batch size; with --root on CIFAR-10 in class folders. The teacher labels every
view once, in float32; the other stores keep the same logits in their own ways, so that rows differ by nothing else.
Students of a seed share their initial weights, and all but those of `online` the views and their order. Views are
labelled 256 at a time, and trained on in batches of another size. Started again, it goes on after the last student.
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
from unidd_pl.baselines import real_images
from unidd_pl.comparison import environment
from unidd_pl.data import DigitsData, TorchvisionData
from unidd_pl.data.holdout import SomeImages
from unidd_pl.data.images import LabelledImages
from unidd_pl.data.module import ImageData
from unidd_pl.distilled import DistilledSet
from unidd_pl.evaluation import TrainingSet, train_student
from unidd_pl.label_codec import LabelCodec
from unidd_pl.label_file import LabelFacts, write_labels
from unidd_pl.label_store import LabelStore
from unidd_pl.pretraining import TeacherRecipe, obtain_teacher
from unidd_pl.protocols import Protocol
from unidd_pl.tables import markdown_table
from unidd_pl.teachers import Teacher, load_teacher
from unidd_pl.views import Views

LABELLED_AT_ONCE = 256
PROTOCOL = Path(__file__).parent.parent / "configs/protocols/sre2l.yaml"
KEPT: dict[str, dict[str, Any]] = {
    "float16": {"dtype": "float16"},
    "int8": {"dtype": "int8"},
    "float16, top 3": {"dtype": "float16", "top_k": 3},
    "int8, top 3": {"dtype": "int8", "top_k": 3},
    "float16, 5 views": {"dtype": "float16"},
    "int8, 5 views": {"dtype": "int8"},
}


class Benchmark:
    """Data, teacher, set and protocol of one run."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.folder: Path = arguments.folder
        self.folder.mkdir(parents=True, exist_ok=True)
        settings = {**yaml.safe_load(PROTOCOL.read_text()), "epochs": arguments.epochs, "early_scores": 0}
        settings["batch_size"] = {1: arguments.batch}
        self.data: ImageData
        if arguments.root:
            cifar10 = {"mean": (0.4914, 0.4822, 0.4465), "std": (0.2023, 0.1994, 0.2010)}
            self.data, self.network = TorchvisionData("CIFAR10", arguments.root, **cifar10), "convnet-w128-d3"
            self.teacher = load_teacher(arguments.teacher, self.network, self.data, check=False)
            self.set = DistilledSet.load(arguments.distilled)
        else:
            self.data, self.network = DigitsData(), "convnet-w64-d2"
            settings.update(crop_scale=(0.5, 1.0), flip=False)
            recipe = TeacherRecipe(self.network, epochs=30, batch_size=64, crop_padding=1, flip=False)
            self.teacher = obtain_teacher(recipe, self.data, self.folder / "teachers", accelerator="cpu")
            real = real_images(self.data.train, self.data.spec, 10, seed=0)
            self.set = DistilledSet(real.pixels, real.labels, self.data.spec, {})
        self.stored = Protocol(**settings)
        self.online = Protocol(**{**settings, "labels": "online"})
        self.precision = arguments.precision
        self.test: LabelledImages = self.data.test
        if arguments.test_per_class:
            labels = range(self.data.spec.num_classes)
            chosen = [self.test.positions_of(label)[: arguments.test_per_class] for label in labels]
            self.test = SomeImages(self.test, torch.cat(chosen))

    def stores(self) -> dict[str, LabelStore]:
        """Write the stores that are compared; each is named by what it keeps."""
        views = Views(self.stored.view_recipe, self.data.spec, len(self.set), self.stored.epochs, 0)
        exact = LabelCodec("float32", self.data.spec.num_classes, None, self.stored.temperature)
        facts = LabelFacts(views, exact, self.set.fingerprint(), described(self.teacher), environment())

        @torch.inference_mode()
        def labelled(epoch: int) -> torch.Tensor:
            parts = torch.arange(len(self.set)).split(LABELLED_AT_ONCE)
            return torch.cat([self.teacher.network(views.images(self.set.images, part, epoch)) for part in parts])

        path = self.folder / "float32.safetensors"
        write_labels(path, facts, labelled)
        stores = {"float32": LabelStore(path)}
        for name, changes in KEPT.items():
            some = replace(views, epochs=5) if "5 views" in name else views
            path = self.folder / f"{name.replace(', ', '_').replace(' ', '')}.safetensors"
            one = replace(facts, codec=replace(exact, **changes), views=some)
            write_labels(path, one, lambda epoch: stores["float32"].rows(range(len(self.set)), epoch))
            stores[name] = LabelStore(path)
        return stores

    def train(self, store: LabelStore | None, seed: int) -> dict[str, Any]:
        """Train a student on stored labels, or on online ones; return its figures."""
        started = time.perf_counter()
        images = TrainingSet(self.set.images, self.set.labels, self.set.ipc, store.views if store else None, store)
        score = train_student(
            self.network, images, self.teacher, self.test, self.stored if store else self.online, seed,
            label=None, accelerator="cpu", precision=self.precision,
        )  # fmt: skip
        seconds = time.perf_counter() - started
        return {"seed": seed, "tail_mean": score.tail_mean, "accuracies": score.accuracies, "seconds": seconds}

    def about(self, stores: dict[str, LabelStore]) -> dict[str, Any]:
        """Return what all figures depend on, as JSON types."""
        facts = {
            "protocol": vars(self.stored),
            "network": self.network,
            "teacher": described(self.teacher),
            "distilled_set": self.set.fingerprint(),
            "precision": self.precision,
            "test_images": len(self.test),
            "environment": environment(),
            "stores": {
                name: {"predicted_bytes": one.facts.file_bytes, "written_bytes": one.path.stat().st_size}
                for name, one in stores.items()
            },
        }
        return dict(json.loads(json.dumps(facts)))


def described(teacher: Teacher) -> dict[str, Any]:
    """Return what a store says of its teacher."""
    return {"network": teacher.name, "fingerprint": teacher.fingerprint, "accuracy": teacher.accuracy}


def main() -> None:
    """Write the stores, train the students seed by seed, and keep the figures after each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", help="folder with train/ and test/; default: the embedded digits")
    parser.add_argument("--teacher", type=Path)
    parser.add_argument("--distilled", type=Path)
    parser.add_argument("--epochs", type=int, default=100)
    parser.add_argument("--batch", type=int, default=50)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rows", nargs="+", default=["online", "float16", "int8", "float32", *list(KEPT)[2:]])
    parser.add_argument("--precision", default="32-true")
    parser.add_argument("--test_per_class", type=int, default=None, help="test images of each class; default: all")
    parser.add_argument("--folder", type=Path, default=Path("runs/soft_labels"), help="for stores and results")
    arguments = parser.parse_args()
    keep_large_blocks()
    benchmark = Benchmark(arguments)
    stores = benchmark.stores()
    results = arguments.folder / "soft_labels.json"
    about = benchmark.about(stores)
    rows: dict[str, list[dict[str, Any]]] = {}
    if results.exists() and (before := json.loads(results.read_text())).items() >= about.items():
        rows = before["rows"]
    for seed in range(arguments.seeds):
        for name in arguments.rows:
            row = rows.setdefault(name, [])
            if all(one["seed"] != seed for one in row):
                row.append(benchmark.train(None if name == "online" else stores[name], seed))
                print(
                    f"seed {seed}, {name}: {100 * row[-1]['tail_mean']:.2f} in {row[-1]['seconds']:.0f} s", flush=True
                )
                results.write_text(json.dumps({**about, "rows": rows}, indent=1) + "\n")
    print(table(about["stores"], rows))


def table(sizes: dict[str, dict[str, int]], rows: dict[str, list[dict[str, Any]]]) -> str:
    """Return a row for each kind of labels: bytes, and top-1 in % beside the paired difference to `online`."""
    online = {one["seed"]: one["tail_mean"] for one in rows.get("online", [])}
    lines = []
    for name in dict.fromkeys([*rows, *sizes]):
        size, row = sizes.get(name), rows.get(name, [])
        cells = [str(size["predicted_bytes"]), str(size["written_bytes"])] if size else ["", ""]
        paired = [one["tail_mean"] - online[one["seed"]] for one in row if one["seed"] in online and name != "online"]
        lines.append([name, *cells, str(len(row) or ""), figure([one["tail_mean"] for one in row]), figure(paired)])
    return markdown_table(["labels", "bytes predicted", "written", "n", "tail mean", "less online"], lines)


def figure(values: list[float]) -> str:
    """Return mean ± sample standard deviation in %."""
    if not values:
        return ""
    spread = f" ± {100 * torch.tensor(values).std():.1f}" if len(values) > 1 else ""
    return f"{100 * sum(values) / len(values):.1f}{spread}"


if __name__ == "__main__":
    main()
