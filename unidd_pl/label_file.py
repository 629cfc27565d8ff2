"""The file that soft labels are kept in: what it says of itself, its layout and size, and how it is written.

Legend: e epochs, n images of the set, k classes.

It is a safetensors file of arrays (e, n, …), see `LabelCodec`, a digest of each epoch, and a header that says what the
labels are of. Everything but the labels is known before they are, so that they can be written where they belong while
they come, and the size is known to the byte. (safetensors' own writer wants all arrays in memory.)
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from unidd_pl.files import atomic_write
from unidd_pl.headers import HEADER_KEY, to_json
from unidd_pl.label_codec import LabelCodec, Parts
from unidd_pl.specs import DatasetSpec
from unidd_pl.views import ViewRecipe, Views

FORMAT = "unidd_pl.soft_labels"
FORMAT_VERSION = 1  # raise when an older reader would misread a newer file
DIGEST_BYTES = 16  # of each epoch
_TYPE_NAMES = {
    torch.float32: "F32", torch.float16: "F16", torch.uint8: "U8", torch.int16: "I16", torch.int32: "I32"
}  # fmt: skip


@dataclass(frozen=True)
class LabelFacts:
    """What a store says of its labels.

    Args:
        views: What the labels are of.
        codec: How they are kept.
        distilled: Fingerprint of the distilled set.
        teacher: Name, fingerprint and accuracy of the teacher, and those of several under ``members``.
        about: What else made them (protocol, versions, …), as JSON types.
    """

    views: Views
    codec: LabelCodec
    distilled: str
    teacher: Mapping[str, Any]
    about: Mapping[str, Any] = field(default_factory=dict)

    @property
    def shapes(self) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
        """Type and shape of each array of the file, in the order of the file."""
        epochs, count = self.views.epochs, self.views.count
        arrays = {name: (dtype, (epochs, count, *shape)) for name, (dtype, shape) in self.codec.fields.items()}
        return {**arrays, "digests": (torch.uint8, (epochs, DIGEST_BYTES))}

    @property
    def label_bytes(self) -> int:
        """Size of the labels alone."""
        return self.views.epochs * self.views.count * self.codec.bytes_per_image

    @property
    def file_bytes(self) -> int:
        """Size of the file, known before it is written."""
        return len(self.start) + sum(_size(*one) for one in self.shapes.values())

    @functools.cached_property
    def start(self) -> bytes:
        """What stands in the file before the arrays: safetensors' length and JSON."""
        entries: dict[str, Any] = {"__metadata__": {HEADER_KEY: to_json(self._header())}}
        for name, (dtype, shape, begin) in self._places.items():
            offsets = [begin, begin + _size(dtype, shape)]
            entries[name] = {"dtype": _TYPE_NAMES[dtype], "shape": list(shape), "data_offsets": offsets}
        content = json.dumps(entries, ensure_ascii=False).encode()
        content += b" " * (-len(content) % 8)  # so that the arrays are aligned
        return struct.pack("<Q", len(content)) + content

    def place_of(self, name: str, epoch: int) -> int:
        """Return where in the file an epoch of an array begins, in bytes."""
        dtype, shape, begin = self._places[name]
        return len(self.start) + begin + epoch * _size(dtype, shape[1:])

    @functools.cached_property
    def _places(self) -> dict[str, tuple[torch.dtype, tuple[int, ...], int]]:
        places, begin = {}, 0
        for name, (dtype, shape) in self.shapes.items():
            places[name] = (dtype, shape, begin)
            begin += _size(dtype, shape)
        return places

    def _header(self) -> dict[str, Any]:
        views, codec = self.views, self.codec
        return {
            "format": FORMAT,
            "version": FORMAT_VERSION,
            "spec": views.spec.to_dict(),
            "images": views.count,
            "epochs": views.epochs,
            "seed": views.seed,
            "augmentation": views.recipe.to_dict(),
            "draws": views.digest(),
            "labels": {"dtype": codec.dtype, "top_k": codec.top_k, "temperature": float(codec.temperature)},
            "distilled_set": self.distilled,
            "teacher": dict(self.teacher),
            "about": dict(self.about),
        }

    @classmethod
    def from_header(cls, header: dict[str, Any]) -> LabelFacts:
        """Rebuild the facts from the header of a file."""
        spec, labels = DatasetSpec.from_dict(header["spec"]), header["labels"]
        for name in ("teacher", "about"):
            if not isinstance(header[name], dict):
                raise ValueError(f"{name} is {header[name]!r}, expected a mapping")
        recipe = ViewRecipe.from_dict(header["augmentation"])
        return cls(
            Views(recipe, spec, int(header["images"]), int(header["epochs"]), int(header["seed"])),
            LabelCodec(labels["dtype"], spec.num_classes, labels["top_k"], float(labels["temperature"])),
            str(header["distilled_set"]),
            header["teacher"],
            header["about"],
        )


def write_labels(path: Path, facts: LabelFacts, logits_of: Callable[[int], Tensor]) -> None:
    """Write a store, whole or not at all, one epoch after the other.

    Args:
        path: The file; one that is there is replaced.
        facts: What the labels are.
        logits_of: Gives the logits (n, k) of all images of the set in an epoch, in order.

    Raises:
        ValueError: If a logit is not finite, or the file cannot be written.
    """
    with atomic_write(path) as temporary, temporary.open("r+b") as file:
        _reserve(file, facts.file_bytes)
        file.write(facts.start)
        for epoch in range(facts.views.epochs):
            parts = {name: part.cpu() for name, part in facts.codec.encode(logits_of(epoch)).items()}
            for name, part in parts.items():
                _write_at(file, facts.place_of(name, epoch), part)
            digest = torch.frombuffer(bytearray(digest_of(parts)), dtype=torch.uint8)
            _write_at(file, facts.place_of("digests", epoch), digest)


def labels_beside(distilled: Path) -> Path:
    """Return where the labels of a distilled set are kept unless said otherwise."""
    name = distilled.stem if distilled.suffix == ".safetensors" else distilled.name
    return distilled.with_name(f"{name}.labels.safetensors")


def digest_of(parts: Parts) -> bytes:
    """Return the digest of an epoch's labels."""
    digest = hashlib.blake2b(digest_size=DIGEST_BYTES)
    for part in parts.values():
        digest.update(part.contiguous().view(-1).numpy().data)
    return digest.digest()


def _reserve(file: BinaryIO, size: int) -> None:
    """Take the space at once: a disk that others fill meanwhile does not end the writing in its last epoch."""
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(file.fileno(), 0, size)
    else:  # macOS
        file.truncate(size)


def _size(dtype: torch.dtype, shape: tuple[int, ...]) -> int:
    return dtype.itemsize * torch.Size(shape).numel()


def _write_at(file: BinaryIO, place: int, part: Tensor) -> None:
    file.seek(place)
    file.write(part.contiguous().view(-1).numpy().data)
