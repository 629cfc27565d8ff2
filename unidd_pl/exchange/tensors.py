"""A set as tensors: .pt and .pth (weights only), .npy, .npz, and plain safetensors. Nothing in them is executed.

Shapes are read before any memory is taken: from the header of an array, from the index of a torch archive, whose
storages stay on the disk until they are used.
"""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from unidd_pl.distilled import DistilledSet
from unidd_pl.exchange.assembling import GIB, MAX_GIB, assemble, channels_first, check_shape, to_pixels_of
from unidd_pl.exchange.classes import map_labels
from unidd_pl.exchange.description import SetFacts
from unidd_pl.headers import HEADER_KEY
from unidd_pl.specs import DatasetSpec
from unidd_pl.untrusted import check_torch_file, read_safetensors

TENSOR_SUFFIXES = (".pt", ".pth", ".npy", ".npz")
IMAGE_KEYS = ("images", "image", "data", "x", "images_syn", "image_syn", "syn_images")
LABEL_KEYS = ("labels", "label", "targets", "target", "y", "labels_syn", "label_syn", "syn_labels")
CLASS_KEYS = ("classes", "class_names")
_CURE = "save {'images': (n, c, h, w), 'labels': (n,)} with torch.save or numpy.savez"


def read_tensors(path: Path, spec: DatasetSpec, facts: SetFacts) -> DistilledSet:
    """Read a set of images and labels as tensors.

    Args:
        path: The file. A dictionary or archive with images and labels (any of the usual names), a pair of both, or
            the images alone with the labels in another file.
        spec: The data.
        facts: What the file does not say.

    Raises:
        ValueError: If the file is damaged, holds something else, or does not fit the data or its description.
    """
    where = str(path)
    images, labels, names = _parts(_content(path), path)
    if facts.labels is not None:
        labels, _, _ = _parts(_content(Path(facts.labels)), Path(facts.labels))
    if labels is None:
        raise ValueError(f"{where}: got images without labels, expected both: {_CURE}, or give --set.labels FILE")
    if images.ndim == 3 and spec.channels == 1:
        images = images.unsqueeze(1)
    check_shape(tuple(images.shape), spec, where)
    labels = _checked_labels(labels, len(images), where)
    mapped, rule = map_labels(labels, names, spec, facts, where)
    pixels = to_pixels_of(channels_first(images.detach(), spec), spec, facts, where)
    return assemble(pixels, mapped, spec, facts, {"path": where, "format": path.suffix[1:], "classes": rule})


def holds_images(path: Path) -> bool:
    """Return whether a file is a safetensors file that another tool wrote, with tensors named as images and labels."""
    if path.suffix.lower() != ".safetensors":
        return False
    try:
        with safe_open(path, framework="pt") as file:
            keys, own = set(file.keys()), HEADER_KEY in (file.metadata() or {})
    except (OSError, SafetensorError):
        return False
    return not own and bool(keys & set(IMAGE_KEYS)) and bool(keys & set(LABEL_KEYS))


def _content(path: Path) -> Any:
    if not path.is_file():
        raise ValueError(f"{path}: got no such file, expected a file of tensors: check the path")
    readers: dict[str, Callable[[Path], Any]] = {
        ".npy": _read_npy,
        ".npz": _read_npz,
        ".safetensors": _read_safetensors,
    }
    try:
        return readers.get(path.suffix.lower(), _read_torch)(path)
    except Exception as error:  # whatever the bytes of a foreign file make the readers stumble over
        reason = " ".join(str(error).partition("\n")[0].split())
        raise ValueError(
            f"{path}: cannot read it as tensors ({type(error).__name__}: {reason}), expected a whole file of tensors "
            f"alone: copy it again, or {_CURE}"
        ) from error


def _read_torch(path: Path) -> Any:
    check_torch_file(path)
    # Mapped, a storage takes no memory before it is used; the old format before torch 1.6 cannot be mapped.
    return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path) or None)


def _read_npy(path: Path) -> np.ndarray:
    array: np.ndarray = np.load(path, mmap_mode="c", allow_pickle=False)
    return array


def _read_npz(path: Path) -> dict[str, np.ndarray]:
    with zipfile.ZipFile(path) as archive:
        for member in archive.infolist():
            with archive.open(member) as file:
                shape, dtype = _array_header(file)
            size = int(np.prod(shape, dtype=object)) * dtype.itemsize
            if size > min(member.file_size, MAX_GIB * GIB):
                raise ValueError(
                    f"got the array {member.filename} of {size} bytes in an entry of "
                    f"{member.file_size}, expected "
                    f"a whole one below {MAX_GIB} GiB"
                )
    with np.load(path, allow_pickle=False) as arrays:
        return {name: arrays[name] for name in arrays.files}


def _array_header(file: IO[bytes]) -> tuple[tuple[int, ...], np.dtype[Any]]:
    version: tuple[int, int] = np.lib.format.read_magic(file)
    read: Any = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = read(file)
    return shape, dtype


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    return read_safetensors(path)[0]


def _parts(content: Any, path: Path) -> tuple[Tensor, Tensor | None, list[str] | None]:
    """Return images, labels and class names of what a file held."""
    if isinstance(content, Mapping):
        images = _first(content, IMAGE_KEYS) if _first(content, IMAGE_KEYS) is not None else _first(content, LABEL_KEYS)
        if isinstance(images, (list, tuple)):  # DC and DM save {'data': [[images, labels] of each experiment]}
            return _parts(images, path)
        names = _first(content, CLASS_KEYS)
        labels = _first(content, LABEL_KEYS)
        known = [str(name) for name in names] if isinstance(names, Iterable) else None
        return _tensor(images, path), None if labels is None else _tensor(labels, path), known
    if isinstance(content, (list, tuple)) and len(content) == 1:
        return _parts(content[0], path)
    if isinstance(content, (list, tuple)) and len(content) == 2:
        return _tensor(content[0], path), _tensor(content[1], path), None
    if isinstance(content, (list, tuple)):
        raise ValueError(f"{path}: got {len(content)} sets or tensors in a list, expected one set: {_CURE}")
    return _tensor(content, path), None, None


def _first(content: Mapping[Any, Any], keys: tuple[str, ...]) -> Any:
    by_name = {str(key).lower(): value for key, value in content.items()}
    return next((by_name[key] for key in keys if key in by_name), None)


def _tensor(value: Any, path: Path) -> Tensor:
    if isinstance(value, np.ndarray) and value.dtype.kind in "biuf":
        return torch.from_numpy(value if value.dtype.isnative else value.astype(value.dtype.newbyteorder("=")))
    if isinstance(value, Tensor) and value.layout == torch.strided:
        return value
    raise ValueError(f"{path}: got {type(value).__name__} where images or labels were expected: {_CURE}")


def _checked_labels(labels: Tensor, count: int, where: str) -> Tensor:
    if labels.ndim == 2 and labels.shape[1] > 1:
        raise ValueError(
            f"{where}: got labels of shape {tuple(labels.shape)}, soft ones, expected ({count},): a protocol "
            "makes its own "
            "soft labels; give the class of each image, labels.argmax(1)"
        )
    if labels.numel() != count:
        raise ValueError(f"{where}: got {labels.numel()} labels, expected {count}: one for every image")
    whole = labels.flatten().long()
    if labels.dtype == torch.bool or not torch.equal(whole.to(labels.dtype), labels.flatten()):
        raise ValueError(f"{where}: got {labels.dtype} labels that are no whole numbers, expected class positions")
    return whole
