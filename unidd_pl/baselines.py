"""Real images to hold a distilled set against: drawn at random, selected in a teacher's feature space, or all.

Legend: n images of a class, d features, m images chosen.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Literal, get_args

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from unidd_pl.data.holdout import SomeImages
from unidd_pl.data.images import LabelledImages, TensorImages
from unidd_pl.data.module import ImageData
from unidd_pl.evaluation import TrainingSet
from unidd_pl.features import FeatureTap
from unidd_pl.files import atomic_write
from unidd_pl.seeding import generator_for
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
_BATCH = 250  # images a forward pass


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


@torch.inference_mode()
def teacher_features(teacher: Teacher, images: LabelledImages, positions: Tensor) -> Tensor:
    """Return what the last linear layer of the teacher is given for these images, (n, d) float64 on the CPU.

    Raises:
        ValueError: If the teacher has no linear layer.
    """
    network = teacher.network
    linear = [name for name, layer in network.named_modules() if isinstance(layer, nn.Linear)]
    if not linear:
        raise ValueError(
            f"teacher {teacher.name}: got a network without a linear layer, expected one whose input is the feature "
            "space for k-centre and herding: leave them out of --baselines"
        )
    device = next(network.parameters()).device
    features = []
    with FeatureTap(network, linear[-1:]) as tap:
        for part in torch.split(positions, _BATCH):
            network(teacher.spec.normalise(images.read(part.tolist()).to(device)))
            features.append(tap.features()[0].flatten(1).double().cpu())
    return torch.cat(features)


def k_centre(features: Tensor, count: int) -> Tensor:
    """Choose images so that every image is near a chosen one: greedy, deterministic.

    The first is the one nearest the mean; each further one is the farthest from all chosen, which is within twice
    the smallest possible radius.

    Args:
        features: (n, d) of one class.
        count: m.

    Returns:
        (m,) int64 positions, in the order of choice; the first of equal ones.

    Raises:
        ValueError: If there are fewer than m images.

    References:
        Sener and Savarese, Active Learning for Convolutional Neural Networks: A Core-Set Approach, ICLR 2018.
    """
    _check_count(features, count)
    chosen = [int((features - features.mean(dim=0)).norm(dim=1).argmin())]
    nearest = torch.full((len(features),), torch.inf, dtype=features.dtype)
    while len(chosen) < count:
        nearest = torch.minimum(nearest, (features - features[chosen[-1]]).norm(dim=1))
        nearest[chosen[-1]] = -1  # below any distance: equal images are not chosen twice
        chosen.append(int(nearest.argmax()))
    return torch.tensor(chosen)


def herding(features: Tensor, count: int) -> Tensor:
    """Choose images whose mean stays as close as possible to the mean of all: greedy, deterministic.

    Args:
        features: (n, d) of one class.
        count: m.

    Returns:
        (m,) int64 positions, in the order of choice; the first of equal ones.

    Raises:
        ValueError: If there are fewer than m images.

    References:
        Welling, Herding Dynamical Weights to Learn, ICML 2009; in this form Rebuffi et al., iCaRL, CVPR 2017.
    """
    _check_count(features, count)
    mean, total = features.mean(dim=0), torch.zeros_like(features[0])
    free = torch.ones(len(features), dtype=torch.bool)
    chosen: list[int] = []
    for number in range(1, count + 1):
        distance = (mean - (total + features) / number).norm(dim=1)
        best = int(distance.where(free, torch.inf).argmin())
        chosen.append(best)
        free[best] = False
        total = total + features[best]
    return torch.tensor(chosen)


_SELECTIONS: Mapping[str, Callable[[Tensor, int], Tensor]] = {"k-centre": k_centre, "herding": herding}


def _check_count(features: Tensor, count: int) -> None:
    if not 0 < count <= len(features):
        raise ValueError(f"got {count} images to choose of {len(features)}, expected 1 to {len(features)}")


def _read_selection(path: Path) -> Tensor | None:
    """Return the positions of a cached selection; None where there is none, or it is damaged."""
    if not path.is_file():
        return None
    try:
        return read_safetensors(path, ("positions",))[0]["positions"]
    except ValueError:
        return None
