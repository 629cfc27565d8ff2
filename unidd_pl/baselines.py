"""Real images to hold a distilled set against: drawn at random, selected in a teacher's feature space, or all."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Literal, get_args

import torch
from safetensors.torch import save_file
from torch import Tensor

from unidd_pl.data.holdout import SomeImages
from unidd_pl.data.images import LabelledImages, TensorImages
from unidd_pl.data.module import ImageData
from unidd_pl.evaluation import TrainingSet
from unidd_pl.files import atomic_write
from unidd_pl.seeding import generator_for
from unidd_pl.selection import herding, k_centre, teacher_features
from unidd_pl.specs import DatasetSpec
from unidd_pl.teachers import Teacher
from unidd_pl.untrusted import read_safetensors

Baseline = Literal["random", "k-centre", "herding", "whole"]
BASELINES: tuple[Baseline, ...] = get_args(Baseline)

ROW_NAMES: Mapping[Baseline, str] = {
    "random": "real images",
    "k-centre": "real images, k-centre",
    "herding": "real images, herding",
    "whole": "whole data set",
}

NEED_FEATURES: frozenset[Baseline] = frozenset({"k-centre", "herding"})  # of the teacher

SELECTION_VERSION = "1"  # raise when a selection comes out otherwise


def real_images(images: LabelledImages, spec: DatasetSpec, ipc: int, seed: int) -> TrainingSet:
    """Draw the same number of real training images of each class, at random.

    Raises:
        ValueError: If a class has too few images.
    """
    chosen: list[int] = []
    for label, name in enumerate(spec.classes):
        positions = images.positions_of(label)
        if len(positions) < ipc:
            raise ValueError(f"class {name!r} has {len(positions)} training images, expected at least {ipc}")
        order = torch.randperm(len(positions), generator=generator_for(seed, "real images", label))
        chosen += positions[order[:ipc]].tolist()
    return TrainingSet(images.read(chosen), images.labels[chosen], ipc)


def whole_set(data: ImageData) -> TrainingSet:
    """Return all training images; they have to be in memory, see `check_in_memory`."""
    images = data.train
    counts = torch.bincount(images.labels, minlength=data.spec.num_classes)
    return TrainingSet(images.read(range(len(images))), images.labels, int(counts.min()))


def check_in_memory(data: ImageData) -> None:
    """Refuse the whole of a training split that is not held in memory.

    Raises:
        ValueError: If it is not.
    """
    images = data.train
    if not isinstance(images.images if isinstance(images, SomeImages) else images, TensorImages):
        raise ValueError(
            f"the whole data set: got {len(images)} images that are not held in memory, expected them to fit into "
            f"in_memory_gib ({data.in_memory_gib:g}): raise --data.init_args.in_memory_gib, or leave 'whole' out of "
            "--baselines"
        )


def selected_images(kind: Baseline, teacher: Teacher, data: ImageData, ipc: int, cache: Path) -> TrainingSet:
    """Return the images of each class that `k_centre` or `herding` chooses, from the cache where they are there.

    Args:
        kind: ``k-centre`` or ``herding``.
        teacher: Gives the features: the input of its last linear layer.
        data: The real data; training images are chosen.
        ipc: Images of each class.
        cache: Folder of the selections.

    Raises:
        ValueError: If a class has too few images or the teacher has no linear layer.
    """
    key = hashlib.sha256(f"{SELECTION_VERSION} {teacher.fingerprint} {data.fingerprint} {kind} {ipc}".encode())
    path = cache / f"{kind}-{ipc}-{key.hexdigest()[:16]}.safetensors"
    chosen = _read_selection(path)
    if chosen is None:
        select = _SELECTIONS[kind]
        parts = []
        for label in range(data.spec.num_classes):
            positions = data.train.positions_of(label)
            parts.append(positions[select(teacher_features(teacher, data.train, positions), ipc)])
        chosen = torch.cat(parts)
        with atomic_write(path) as temporary:
            save_file({"positions": chosen}, temporary)
    return TrainingSet(data.train.read(chosen.tolist()), data.train.labels[chosen], ipc)


_SELECTIONS: Mapping[str, Callable[[Tensor, int], Tensor]] = {"k-centre": k_centre, "herding": herding}


def _read_selection(path: Path) -> Tensor | None:
    """Return the positions of a cached selection; None where there is none, or it is damaged."""
    if not path.is_file():
        return None
    try:
        return read_safetensors(path, ("positions",))[0]["positions"]
    except ValueError:
        return None
