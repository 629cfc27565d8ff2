"""The teacher: a frozen network with what it was trained for, its file, and the checks of both.

Legend: n images, c channels, h w space, k classes.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torchmetrics.functional.classification import multiclass_accuracy

from unidd_pl.console import say
from unidd_pl.data.class_lists import imagenet_names, imagenet_outputs
from unidd_pl.data.images import LabelledImages
from unidd_pl.data.module import ImageData
from unidd_pl.files import atomic_write
from unidd_pl.networks import build_network, load_weights
from unidd_pl.networks.checkpoints import count_outputs, take_outputs
from unidd_pl.plain_json import parse_json
from unidd_pl.specs import DatasetSpec
from unidd_pl.untrusted import read_metadata

TEACHER_FORMAT = "unidd-teacher-1"
_SAME_NORMALISATION = 1e-4  # pixels in [0, 1]; means are often given with four digits
_TEST_BATCH = 100  # images: their features stay in the cache of a CPU, a quarter faster in bf16 than 500
_CHECKED_CLASSES = 100  # at most; enough to see that an order differs
_CHECKED_IMAGES = 20  # training images of each
_MIXED_UP_SHARE = 0.5  # of a class's images predicted as one other class: names or order differ


@dataclass(frozen=True)
class Teacher:
    """A frozen network with what it was trained for.

    Args:
        network: The network in eval mode, without gradients for its weights.
        name: Name of the architecture.
        spec: The data set whose classes, in order, it predicts.
        accuracy: Top-1 on the test split, in [0, 1]: what its file claims, or what was measured; None where neither is.
        path: File of the weights.
    """

    network: nn.Module
    name: str
    spec: DatasetSpec
    accuracy: float | None
    path: Path

    @cached_property
    def fingerprint(self) -> str:
        """Hexadecimal digest of architecture and weights."""
        return fingerprint_of(self.name, self.network)


def save_teacher(path: Path, teacher: Teacher) -> None:
    """Write weights and what they were trained for into one file, atomically."""
    about = {
        "format": TEACHER_FORMAT,
        "network": teacher.name,
        "spec": teacher.spec.to_dict(),
        "accuracy": teacher.accuracy,
    }
    weights = {key: value.contiguous() for key, value in teacher.network.state_dict().items()}
    with atomic_write(path) as temporary:
        save_file(weights, temporary, metadata={"unidd": json.dumps(about, sort_keys=True)})


def load_teacher(
    path: Path, name: str | None, data: ImageData, *, check: bool = True, cache: Path | None = None
) -> Teacher:
    """Load a checkpoint and check it against the data.

    A file written by `save_teacher` names its classes, which must be the data's, in order. A plain
    state_dict names nothing, so it is tried on training images: a class whose images are mostly taken
    for one other class means that the order differs.

    A teacher of more classes gives a teacher of the data's: their outputs, and no others, found by name in what its
    file says, or by WNID where a plain state_dict of 1,000 classes meets data of ImageNet's.

    Args:
        path: The checkpoint.
        name: Name of the architecture; None takes the one that the file names.
        data: The real data.
        check: Try a plain state_dict on training images.
        cache: Folder where a plain state_dict that was tried before is known.

    Raises:
        ValueError: If architecture, class count, classes, their order or the normalisation differ.
    """
    about = read_about(path)
    spec = data.spec
    if about is not None:
        name = name or str(about["network"])
        _check_same_data(path, about, name, spec)
    if name is None:
        if not path.is_file():
            raise ValueError(f"teacher {path}: got no such file, expected a checkpoint")
        raise ValueError(f"teacher {path} does not name its architecture: give it with --teacher.network")
    network = build_network(name, spec)
    more = _more_classes(path, network, about, spec)
    if more is None:
        load_weights(network, path, expected_classes=spec.num_classes)
    else:
        _load_outputs(network, name, path, spec, more)
    freeze(network)
    if about is not None and more is None:
        return Teacher(network, name, spec, about["accuracy"], path)
    known = find_teacher(fingerprint_of(name, network), cache) if cache else None
    known_about = read_about(known) if known else None
    if known_about is not None and known_about["spec"] == data.spec.to_dict():
        return Teacher(network, name, spec, known_about["accuracy"], path)
    if check and about is None:
        _check_class_order(path, network, spec, data.train)
    return Teacher(network, name, spec, None, path)


def read_about(path: Path) -> dict[str, Any] | None:
    """Return what a teacher file says of itself, or None for a plain state_dict."""
    if path.suffix != ".safetensors" or not path.is_file():
        return None
    try:
        about = parse_json(read_metadata(path).get("unidd", "{}"), path)
    except ValueError as error:
        raise ValueError(f"cannot read the teacher {path} ({error}): expected a whole safetensors file") from error
    if not isinstance(about, dict) or about.get("format") != TEACHER_FORMAT:
        return None
    try:
        _check_about(about)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"got contradictory contents in the teacher {path} ({error!r}), expected a file as `unidd pretrain` "
            "writes it: copy it again or train it anew"
        ) from error
    return about


def _check_about(about: dict[str, Any]) -> None:
    if not isinstance(about["network"], str):
        raise ValueError(f"network {about['network']!r}, expected a name")
    DatasetSpec.from_dict(about["spec"])
    accuracy = about["accuracy"]
    if accuracy is not None and not (isinstance(accuracy, (int, float)) and 0 <= accuracy <= 1):
        raise ValueError(f"accuracy {accuracy!r}, expected none or a share")


def find_teacher(fingerprint: str, cache: Path) -> Path | None:
    """Return the file of a cached teacher with this fingerprint, or None."""
    return next(iter(sorted(cache.glob(file_name("*", fingerprint)))), None)


def fingerprint_of(name: str, network: nn.Module) -> str:
    """Return a hexadecimal digest of architecture name and weights."""
    digest = hashlib.sha256(name.encode())
    for key, value in sorted(network.state_dict().items()):
        digest.update(key.encode())
        digest.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def freeze(network: nn.Module) -> None:
    """Put a network into eval mode and take its weights out of every gradient."""
    network.eval()
    network.requires_grad_(False)


@torch.inference_mode()
def predictions(network: nn.Module, spec: DatasetSpec, images: LabelledImages) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield logits (n, k) and labels (n,) of all images in order, on the network's device."""
    device = next(network.parameters()).device
    for batch, labels in images.loader(_TEST_BATCH):
        yield network(spec.normalise(batch.to(device))), labels.to(device)


def accuracies_of(
    network: nn.Module, spec: DatasetSpec, images: LabelledImages, top: Sequence[int] = (1,)
) -> tuple[float, ...]:
    """Return the top-k accuracy in [0, 1] for each k of `top`; the mode of the network is left as it is."""
    logits, labels = (torch.cat(parts) for parts in zip(*predictions(network, spec, images), strict=True))
    return tuple(
        float(multiclass_accuracy(logits.float(), labels, spec.num_classes, average="micro", top_k=k)) for k in top
    )


def accuracy_of(network: nn.Module, spec: DatasetSpec, images: LabelledImages) -> float:
    """Return the top-1 accuracy in [0, 1]; the mode of the network is left as it is."""
    return accuracies_of(network, spec, images)[0]


def file_name(origin: str, fingerprint: str) -> str:
    """Return the name of a cached teacher: where it comes from, and what it is."""
    return f"{origin}-{fingerprint[:16]}.safetensors"


def _more_classes(
    path: Path, network: nn.Module, about: dict[str, Any] | None, spec: DatasetSpec
) -> tuple[str, ...] | None:
    """Return the classes of a checkpoint, in the order of its outputs, where the data's are some of them; else None."""
    if about is not None:
        trained = tuple(about["spec"]["classes"])
        return trained if len(trained) > spec.num_classes else None
    if imagenet_outputs(spec.classes) is None or spec.num_classes == len(imagenet_names()):
        return None
    return tuple(imagenet_names()) if count_outputs(network, path) == len(imagenet_names()) else None


def _load_outputs(network: nn.Module, name: str, path: Path, spec: DatasetSpec, trained: tuple[str, ...]) -> None:
    """Load what a checkpoint of more classes has for the data's: it is chosen by name."""
    with torch.random.fork_rng(devices=[]):
        whole = build_network(name, replace(spec, classes=trained))
    load_weights(whole, path, expected_classes=len(trained))
    take_outputs(network, whole, [trained.index(one) for one in spec.classes])
    say(f"Teacher: of the {len(trained)} outputs of {path}, those of the data's {spec.num_classes} classes are used")


def _check_same_data(path: Path, about: dict[str, Any], network: str, spec: DatasetSpec) -> None:
    trained = DatasetSpec.from_dict(about["spec"])
    if about["network"] != network:
        raise ValueError(
            f"teacher {path} is a {about['network']}, expected {network}: set --teacher.network {about['network']}"
        )
    part = set(spec.classes) < set(trained.classes)  # the others' outputs are left out
    for what, got, expected in (
        ("number of classes", spec.num_classes if part else trained.num_classes, spec.num_classes),
        ("classes, in order", spec.classes if part else trained.classes, spec.classes),
        ("image shape", trained.image_shape, spec.image_shape),
    ):
        if got != expected:
            raise ValueError(
                f"teacher {path} was trained for another data set; {what}: got {_short(got)}, expected "
                f"{_short(expected)}: use the data it was trained on, or another teacher"
            )
    for what, theirs, ours in (("mean", trained.mean, spec.mean), ("std", trained.std, spec.std)):
        if max(abs(their - our) for their, our in zip(theirs, ours, strict=True)) > _SAME_NORMALISATION:
            raise ValueError(
                f"teacher {path} was trained with the {what} {theirs}, the data has {ours}: set "
                f"--data.init_args.mean and --data.init_args.std to the teacher's"
            )


def _short(value: Any) -> str:
    if isinstance(value, tuple) and len(value) > 6:
        return f"({', '.join(map(str, value[:6]))}, … {len(value)} in all)"
    return str(value)


def _check_class_order(path: Path, network: nn.Module, spec: DatasetSpec, images: LabelledImages) -> None:
    for label in range(0, spec.num_classes, max(1, spec.num_classes // _CHECKED_CLASSES)):
        positions = images.positions_of(label)[:_CHECKED_IMAGES].tolist()
        with torch.inference_mode():
            guesses = network(spec.normalise(images.read(positions))).argmax(dim=1)
        votes = torch.bincount(guesses, minlength=spec.num_classes)
        winner = int(votes.argmax())
        if winner != label and votes[winner] > _MIXED_UP_SHARE * len(positions):
            raise ValueError(
                f"teacher {path} takes {int(votes[winner])} of {len(positions)} training images of the class "
                f"{spec.classes[label]!r} (label {label}) for {spec.classes[winner]!r} (label {winner}): its classes "
                "are in another order than the data's, or its normalisation differs; use the order and the mean "
                "and std that it was trained with (--teacher.check false to go on regardless)"
            )
