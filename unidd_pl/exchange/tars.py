"""A set as WebDataset shards: a tar file with a picture, its class number and its class name for each sample."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from unidd_pl.distilled import DistilledSet
from unidd_pl.exchange.assembling import decode, encode, stacked
from unidd_pl.exchange.raw import RawSet
from unidd_pl.files import atomic_write
from unidd_pl.plain_json import parse_json
from unidd_pl.specs import DatasetSpec

SHARD = 10_000  # samples a tar file
_PICTURES = ("png", "jpg", "jpeg", "webp", "ppm")
_LARGEST = 64 * 2**20  # bytes of a member; a picture of a set is far below
_READ_ALSO = ("cls", "json")


def write_tars(distilled: DistilledSet, folder: Path) -> None:
    """Write ``set-000000.tar``, …: samples of a .png, a .cls and a .json file; equal sets give equal bytes."""
    for shard, start in enumerate(range(0, len(distilled), SHARD)):
        with (
            atomic_write(folder / f"set-{shard:06d}.tar") as temporary,
            tarfile.open(temporary, "w", format=tarfile.USTAR_FORMAT) as tar,
        ):
            for position in range(start, min(start + SHARD, len(distilled))):
                label = int(distilled.labels[position])
                about = {"label": label, "class": distilled.class_names[label]}
                for suffix, content in (
                    ("png", encode(distilled.images[position])),
                    ("cls", str(label).encode()),
                    ("json", json.dumps(about, ensure_ascii=False).encode()),
                ):
                    member = tarfile.TarInfo(f"{position:06d}.{suffix}")
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))


def read_tars(path: Path, spec: DatasetSpec) -> RawSet:
    """Read the samples of one shard, or of those of a folder, in order. Nothing is unpacked.

    Class names are taken from the samples' .json (``class``), where all have them.

    Raises:
        ValueError: If a shard is damaged, a sample is not whole, or two names stand for one number.
    """
    pictures, labels = [], []
    names: dict[int, str] = {}
    for file in sorted(path.glob("*.tar")) if path.is_dir() else [path]:
        for key, sample in _samples(file):
            where = f"{file}, sample {key}"
            picture = next((sample[suffix] for suffix in _PICTURES if suffix in sample), None)
            if picture is None:
                raise ValueError(f"{where}: got no picture, expected one of {', '.join(_PICTURES)}: complete the shard")
            label, name = _class_of(sample, where)
            pictures.append(decode(picture, spec, where))
            labels.append(label)
            if name is not None and names.setdefault(label, name) != name:
                raise ValueError(f"{where}: got {name!r} for the label {label}, expected {names[label]!r} as before")
    known = [names[label] for label in range(len(names))] if sorted(names) == list(range(len(names))) else None
    return RawSet(stacked(pictures, spec, str(path)), torch.tensor(labels), known or None, "webdataset")


def _samples(file: Path) -> Iterator[tuple[str, dict[str, bytes]]]:
    """Yield the members of a tar file by their common name; only regular files of a sensible size are read."""
    key, sample = "", dict[str, bytes]()
    try:
        with tarfile.open(file, "r:") as tar:
            for member in tar:
                stem, _, suffix = member.name.rpartition("/")[2].partition(".")
                if not member.isfile() or suffix.lower() not in (*_PICTURES, *_READ_ALSO) or not stem:
                    continue
                if member.size > _LARGEST:
                    raise ValueError(f"{file}: got {member.size} bytes for {member.name}, expected a picture of a set")
                if stem != key and sample:
                    yield key, sample
                    sample = {}
                key = stem
                content = tar.extractfile(member)
                sample[suffix.lower()] = content.read() if content else b""
    except (tarfile.TarError, OSError, EOFError) as error:
        raise ValueError(f"{file}: cannot read it ({error}), expected a whole tar file: copy it again") from error
    if sample:
        yield key, sample


def _class_of(sample: dict[str, bytes], where: str) -> tuple[int, str | None]:
    """Return label and class name of a sample."""
    try:
        about: Any = parse_json(sample.get("json", b"{}"), where)
        about = about if isinstance(about, dict) else {}
        label = int(sample["cls"] if "cls" in sample else about["label"])
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{where}: got no label ({error}), expected a number in .cls or .json: complete it") from error
    return label, str(about["class"]) if "class" in about else None
