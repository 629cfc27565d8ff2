"""Stored labels in an evaluation: which file belongs to which set, and what stands beside them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from unidd_pl.console import say
from unidd_pl.distilled import DistilledSet
from unidd_pl.evaluation import TrainingSet
from unidd_pl.label_file import labels_beside
from unidd_pl.label_store import LabelStore
from unidd_pl.protocols import Protocol
from unidd_pl.seeding import seed_for
from unidd_pl.tables import size_text
from unidd_pl.teachers import Teacher


def find_stores(sets: Mapping[Path, DistilledSet], given: Sequence[Path], protocol: Protocol) -> list[LabelStore]:
    """Return the labels of each distilled set, whole and fitting, and say what they are; none for other protocols.

    Args:
        sets: The sets by their files.
        given: Files of labels, in any order; none for those that are kept beside the sets.
        protocol: The protocol of the evaluation.

    Raises:
        ValueError: If a set has no labels, labels are damaged or do not fit, or the protocol takes none.
    """
    if protocol.labels != "stored":
        if given:
            raise ValueError(
                f"got --labels {given[0]} and protocol {protocol.name} with labels {protocol.labels}, expected labels "
                "stored: take --protocol configs/protocols/sre2l.yaml or add --protocol.labels stored"
            )
        return []
    files = list(given) or [labels_beside(path) for path in sets if labels_beside(path).is_file()]
    stores = [LabelStore(file) for file in files]
    found = [_store_of(path, one, stores, len(sets), protocol) for path, one in sets.items()]
    for store in found:
        store.verify()
        _describe(store, protocol)
    for what, values in (
        ("epochs", {store.views.epochs for store in found}),
        ("teacher", {store.teacher for store in found}),
    ):
        if len(values) > 1:
            raise ValueError(
                f"the labels of the sets differ in {what} ({', '.join(map(str, values))}), expected one for a table: "
                "evaluate them apart"
            )
    return found


def real_images_alike(real: TrainingSet, store: LabelStore | None, seed: int) -> TrainingSet:
    """Return real images to be seen as those of a store: as many views of each, which the teacher labels online.

    Args:
        real: The images.
        store: The labels of a distilled set; None to leave the images as they are.
        seed: Seed of the student.
    """
    if store is None:
        return real
    return replace(
        real, views=replace(store.views, count=len(real.labels), seed=seed_for(seed, "views", "real images"))
    )


def check_same_teacher(store: LabelStore, teacher: Teacher | None) -> None:
    """Refuse to label real images by another teacher than the one that labelled the set.

    Args:
        store: The labels of the set.
        teacher: The teacher of the evaluation; None where none was given and the cache does not hold that one.

    Raises:
        ValueError: If it is another one.
    """
    if teacher is None or teacher.fingerprint != store.teacher:
        got = "no teacher" if teacher is None else f"{teacher.name} ({teacher.fingerprint[:12]})"
        raise ValueError(
            f"the labels in {store.path} are of {store.facts.teacher.get('network')} ({store.teacher[:12]}); got {got} "
            "for the real images, expected the same: give its file with --teacher.checkpoint, several with --teachers"
        )


def _store_of(
    path: Path, distilled: DistilledSet, stores: Sequence[LabelStore], sets: int, protocol: Protocol
) -> LabelStore:
    of_set = [store for store in stores if store.facts.distilled == distilled.fingerprint()]
    if not of_set and len(stores) == sets == 1:
        of_set = list(stores)  # meant for this set: the check says why it is not
    if len(of_set) != 1:
        among = f" among {', '.join(str(store.path) for store in stores)}" if stores else ""
        raise ValueError(
            f"protocol {protocol.name} trains on stored labels: got {len(of_set) or 'none'} for {path}{among}, "
            f"expected one file: write it with `unidd relabel --config … --protocol … --distilled {path}` and this "
            "evaluation's options of data, teacher and protocol, or name it with --labels FILE"
        )
    of_set[0].check_fits(distilled, protocol.view_recipe)
    return of_set[0]


def _describe(store: LabelStore, protocol: Protocol) -> None:
    codec, epochs = store.facts.codec, store.views.epochs
    kept = codec.dtype if codec.top_k is None else f"{codec.dtype}, top {codec.top_k}"
    say(f"Labels: {kept}, {epochs} views of each image, {size_text(store.facts.file_bytes)}, from {store.path}")
    if protocol.epochs > epochs:
        say(
            f"Note: {protocol.epochs} epochs go over {epochs} stored views of each image again and again, up to "
            f"{-(-protocol.epochs // epochs)} times; to see new ones throughout, write more (unidd relabel --epochs)"
        )
    if codec.top_k is not None and codec.temperature != protocol.temperature:
        say(
            f"Note: the labels of classes beyond the top {codec.top_k} were kept for T = {codec.temperature:g}; at "
            f"T = {protocol.temperature:g} their probability is approximate"
        )
