"""Checks before the first training step: set, teacher and data have to mean the same by their labels.

Names prove little where a checkpoint or a set carries none, so the teacher is asked: for the test images, and for the
images of a set that was made elsewhere.

Legend: n images, k classes.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from unidd_pl.console import say
from unidd_pl.data.module import ImageData
from unidd_pl.distilled import DistilledSet
from unidd_pl.exchange.classes import some
from unidd_pl.exchange.reading import is_foreign
from unidd_pl.files import atomic_write
from unidd_pl.plain_json import parse_json
from unidd_pl.specs import DatasetSpec, check_same_classes
from unidd_pl.teachers import Teacher, accuracy_of

TIMES_CHANCE = 5  # a teacher without a claim has to be that much better than the most frequent class
CLAIM_TOLERANCE = 0.05  # accuracy below its claim: other decoders and precisions cost 1 to 2 points
CLAIM_DEVIATIONS = 4  # standard deviations of a share among n test images, where they are few
CURE_OFF = "--teacher.check false goes on regardless"
_ASKED_IMAGES = 20  # of each class of a set
_ASKED_IN_ALL = 5000  # so that ImageNet-1K takes seconds
_FEW = 5  # images of a class below which a vote says nothing
_BATCH = 100


def check_sets(sets: Mapping[str, DistilledSet], spec: DatasetSpec) -> None:
    """Refuse sets whose classes, order or image shape are not the data's, and sets with an empty class.

    Raises:
        ValueError: If a set does not fit.
    """
    for name, one in sets.items():
        check_same_classes(one.spec, spec)
        if one.partial_note:
            say(f"Note: {name} is partial: {one.partial_note}")
        counts = torch.bincount(one.labels, minlength=spec.num_classes)
        if empty := [spec.classes[label] for label in (counts == 0).nonzero().flatten().tolist()]:
            raise ValueError(
                f"the set {name} has no image of {some(empty)}, expected at least one of each of the "
                f"{spec.num_classes} "
                "classes: complete it"
            )
        if int(counts.min()) < int(counts.max()):
            say(
                f"Note: {name} has {int(counts.min())} to {int(counts.max())} images per class; real images "
                "stand beside "
                f"it with {int(counts.min())} of each"
            )


def check_teacher(teacher: Teacher, data: ImageData, cache: Path, device: torch.device) -> Teacher:
    """Measure the teacher on the test images, say it, and refuse one that does not know them.

    The measurement is kept under ``cache/preflight``, keyed by weights, test images, classes and normalisation, so
    that it is made once.

    Args:
        teacher: The teacher; its accuracy is what its file claims, None where it claims nothing.
        data: The real data.
        cache: Folder of what is kept.
        device: Where to measure.

    Returns:
        The teacher with the measured accuracy; as it was where there are no test images.

    Raises:
        ValueError: If the accuracy is far below the claim or, without one, below five times chance.
    """
    if not data.has_test:
        return teacher
    path = cache / "preflight" / f"{_key(teacher, data)}.json"
    accuracy = _kept(path)
    if accuracy is None:
        network = teacher.network.to(device)
        accuracy = accuracy_of(network, teacher.spec, data.test)
        network.cpu()
        remember(teacher, data, cache, accuracy)
    claim = "" if teacher.accuracy is None else f" (its file says {100 * teacher.accuracy:.1f} %)"
    say(f"Preflight: the teacher knows {100 * accuracy:.1f} % of the test images{claim}")
    _refuse_if_low(teacher, accuracy, data)
    return replace(teacher, accuracy=accuracy)


def remember(teacher: Teacher, data: ImageData, cache: Path, accuracy: float) -> None:
    """Keep an accuracy on the test images that was measured just now, so that it is not measured again."""
    with atomic_write(cache / "preflight" / f"{_key(teacher, data)}.json") as temporary:
        temporary.write_text(json.dumps({"accuracy": accuracy, "teacher": teacher.fingerprint}) + "\n")


def least_accuracy(claim: float | None, chance: float, images: int) -> float:
    """Return the accuracy below which a teacher is taken for the wrong one.

    With a claim a: a less 5 points, or less 4 standard deviations of a share among n images where those are more.
    Without: five times chance. For fewer than ten classes that is close to 1 or beyond it, so it is at most half
    of the way from chance to 1 (2 classes: 75 %, 5: 60 %, from 10 on 5 / k).

    Args:
        claim: Accuracy that the teacher's file claims, in [0, 1], or None.
        chance: Share of the most frequent class among the test images.
        images: Number n of test images.
    """
    if claim is None:
        return min(TIMES_CHANCE * chance, (1 + chance) / 2)
    share = (claim * images + 2) / (images + 4)  # Agresti and Coull: a claim of 100 % has a deviation too
    return claim - max(CLAIM_TOLERANCE, CLAIM_DEVIATIONS * math.sqrt(share * (1 - share) / (images + 4)))


def check_labels(sets: Iterable[DistilledSet], teacher: Teacher, device: torch.device) -> None:
    """Ask the teacher for the classes of sets made elsewhere; refuse one whose classes are exchanged.

    Exchanged are classes that the teacher takes for each other in a ring: most images of each for the next one. A set
    that the teacher does not recognise (noise, another style) makes no such ring and passes; so does a class of fewer
    than five images, of which a vote would say nothing.

    Args:
        sets: All sets; those made here carry the classes that they were optimised for and are left out.
        teacher: The teacher, whose class order is known to be the data's.
        device: Where to ask.

    Raises:
        ValueError: If classes are exchanged.
    """
    for one in sets:
        if not is_foreign(one):
            continue
        name = one.manifest["source"]["path"]
        network = teacher.network.to(device)
        positions = _asked(one)
        guesses = torch.cat([_guesses(network, one, part, device) for part in torch.split(positions, _BATCH)])
        network.cpu()
        labels = one.labels[positions]
        agreed = int((guesses == labels).sum())
        say(f"Preflight: the teacher agrees with the labels of {agreed} of {len(labels)} images of {name}")
        if ring := _ring(_votes(labels, guesses, one.spec.num_classes)):
            pairs = ", ".join(f"{one.spec.classes[here]} for {one.spec.classes[there]}" for here, there in ring[:5])
            raise ValueError(
                f"the classes of the set {name} are in another order than the data's: the teacher takes most images of "
                f"{pairs}{', …' if len(ring) > 5 else ''} ({agreed} of {len(labels)} labels agree); say the "
                "set's class "
                f"names in its label order with --set.classes ({CURE_OFF})"
            )


def _refuse_if_low(teacher: Teacher, accuracy: float, data: ImageData) -> None:
    labels = data.test.labels
    chance = float(torch.bincount(labels).max()) / len(labels)
    least = least_accuracy(teacher.accuracy, chance, len(labels))
    if accuracy >= least:
        return
    if teacher.accuracy is None:
        expected = (
            f"at least {100 * least:.1f} % (chance is {100 * chance:.1f} %): its classes are in another order than the "
            "data's, its normalisation differs, or it was trained for other images; give its own mean and std "
            "(--data.init_args.mean, --data.init_args.std) and class order, or another teacher"
        )
    else:
        expected = (
            f"about the {100 * teacher.accuracy:.1f} % that its file claims (at least {100 * least:.1f} %): the test "
            "images are others than it was scored on; give the data that it was trained on, or another teacher"
        )
    raise ValueError(
        f"the teacher {teacher.path} knows {100 * accuracy:.1f} % of the {len(labels)} test images of "
        f"{data.spec.name}, "
        f"expected {expected} ({CURE_OFF})"
    )


def _key(teacher: Teacher, data: ImageData) -> str:
    # Of the listing, not of data.test: that would decode all images only to find the measurement already there.
    test = data.read_split("test").fingerprint()
    about = json.dumps([teacher.fingerprint, test, {**teacher.spec.to_dict(), "name": ""}], sort_keys=True)
    return f"{teacher.fingerprint[:16]}-{hashlib.sha256(about.encode()).hexdigest()[:16]}"


def _kept(path: Path) -> float | None:
    try:
        return float(parse_json(path.read_bytes(), path)["accuracy"])
    except (OSError, ValueError, KeyError, TypeError, OverflowError):
        return None


def _asked(distilled: DistilledSet) -> Tensor:
    """Return the positions of the first images of each class, (m,) int64."""
    classes = distilled.spec.num_classes
    most = min(_ASKED_IMAGES, max(_FEW, _ASKED_IN_ALL // classes))
    return torch.cat([(distilled.labels == label).nonzero().flatten()[:most] for label in range(classes)])


@torch.inference_mode()
def _guesses(network: torch.nn.Module, distilled: DistilledSet, positions: Tensor, device: torch.device) -> Tensor:
    logits: Tensor = network(distilled.spec.normalise(distilled.images[positions].to(device)))
    return logits.argmax(dim=1).cpu()


def _votes(labels: Tensor, guesses: Tensor, classes: int) -> Tensor:
    """Return how many images of each class (row) are taken for each class (column), (k, k)."""
    return torch.bincount(labels * classes + guesses, minlength=classes**2).view(classes, classes)


def _ring(votes: Tensor) -> list[tuple[int, int]]:
    """Return (class, class that most of its images are taken for) of all classes on rings of two or more."""
    counts = votes.sum(dim=1)
    most, winner = votes.max(dim=1)
    sure = (counts >= _FEW) & (2 * most > counts)
    there = {here: int(winner[here]) for here in sure.nonzero().flatten().tolist() if int(winner[here]) != here}
    # A class that none is taken for, or whose images are taken for one that is not exchanged, lies on no ring.
    while loose := [here for here, other in there.items() if other not in there or here not in there.values()]:
        for here in loose:
            del there[here]
    return sorted(there.items())
