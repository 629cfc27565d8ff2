"""`--distilled`: a set of this project, an export of one, or a set made elsewhere; always one `DistilledSet`."""

from __future__ import annotations

from pathlib import Path

import torch

from unidd_pl.console import say
from unidd_pl.distilled import DistilledSet
from unidd_pl.exchange.assembling import assemble
from unidd_pl.exchange.card import Card, read_card
from unidd_pl.exchange.classes import map_labels, map_names
from unidd_pl.exchange.description import SetDescription, SetFacts
from unidd_pl.exchange.folders import order_of_export, read_folders
from unidd_pl.exchange.parquet import parquet_files, read_parquet
from unidd_pl.exchange.raw import RawSet
from unidd_pl.exchange.tars import read_tars
from unidd_pl.exchange.tensors import TENSOR_SUFFIXES, holds_images, read_tensors
from unidd_pl.specs import DatasetSpec

SET_NAME = "distilled.safetensors"


def read_set(path: Path, spec: DatasetSpec, description: SetDescription | None = None) -> DistilledSet:
    """Read a set whatever its form.

    A file of `DistilledSet.save` and an export of ``unidd export`` describe themselves. Any other set is taken for one
    of the data given, whose size and colour it has to have, and its class order is found by the rules of
    `unidd_pl.exchange.classes`; what was found is said.

    Args:
        path: A file (.safetensors, .pt, .pth, .npy, .npz, .parquet, .tar) or a folder (of class folders, parquet files
            or tar files, or an export).
        spec: The data that a foreign set is for.
        description: What a foreign set does not say of itself.

    Raises:
        ValueError: If the set is missing, damaged, or does not fit the data; what was got, expected and the cure.
    """
    description = description or SetDescription()
    if path.is_dir():
        card = read_card(path)
        if card is not None:
            return _exported(path, card)
        if (path / SET_NAME).is_file():
            return DistilledSet.load(path / SET_NAME)
    suffix = path.suffix.lower()
    if path.is_file() and (suffix in TENSOR_SUFFIXES or holds_images(path)):
        read = read_tensors(path, spec, description.of(path))
        _tell(path, read)
        return read
    if path.is_dir() or (path.is_file() and suffix in (".parquet", ".tar")):
        facts = description.of(path)
        read = _in_order_of_data(path, _raw(path, spec), spec, facts)
        _tell(path, read)
        return read
    return DistilledSet.load(path)  # which says what is wrong with anything else


def is_foreign(distilled: DistilledSet) -> bool:
    """Return whether a set was made elsewhere, so that its labels are somebody else's word."""
    return "source" in distilled.manifest


def _raw(path: Path, spec: DatasetSpec) -> RawSet:
    if path.suffix.lower() == ".parquet" or (path.is_dir() and parquet_files(path)):
        return read_parquet(path, spec)
    if path.suffix.lower() == ".tar" or any(path.glob("*.tar")):
        return read_tars(path, spec)
    return read_folders(path, spec)


def _in_order_of_data(path: Path, raw: RawSet, spec: DatasetSpec, facts: SetFacts) -> DistilledSet:
    where = str(path)
    if raw.in_folders and raw.names is not None:
        own, rule = map_names(raw.names, spec, facts, where)
        labels = torch.tensor(own)[raw.labels]
    else:
        labels, rule = map_labels(raw.labels, raw.names, spec, facts, where)
    return assemble(raw.images, labels, spec, facts, {"path": where, "format": raw.format, "classes": rule})


def _exported(path: Path, card: Card) -> DistilledSet:
    """Read an export of ours as the very set that was exported, in its order, and check it against its card."""
    if card.layout == "safetensors":
        distilled = DistilledSet.load(path / SET_NAME)
    else:
        root = path / card.images
        if not root.is_dir():
            raise ValueError(f"{path}: its card names the pictures in {card.images[:80]!r}, which is no folder of it")
        raw = _raw(root, card.spec)
        images, labels = raw.images, raw.labels
        if raw.in_folders and raw.names is not None:
            order = order_of_export(root).argsort()
            images, labels = images[order], torch.tensor([int(name) for name in raw.names])[labels][order]
        distilled = DistilledSet(images, labels, card.spec, card.manifest)
    if distilled.fingerprint() != card.fingerprint:
        raise ValueError(
            f"{path}: got other images, labels or classes than its card says ({distilled.fingerprint()[:12]}, expected "
            f"{card.fingerprint[:12]}): files were added, changed or lost; copy or export it again, or remove the card "
            "to read what is there as a set made elsewhere"
        )
    return distilled


def _tell(path: Path, distilled: DistilledSet) -> None:
    source = distilled.manifest["source"]
    say(f"Set {path}: {len(distilled)} images, {source['format']}; classes {source['classes']}")
