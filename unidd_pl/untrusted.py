"""Reading what others have written: within the bounds of the file's own size, and without running any of it.

Legend: a *holder* is what a message calls the thing that was read, such as a path.
"""

from __future__ import annotations

import mmap
import pickletools
import re
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from unidd_pl.plain_json import parse_json

_LENGTH_BYTES = 8  # of a safetensors file: the length of its header, little-endian
_LARGEST_HEADER = 100_000_000  # bytes; safetensors' own limit

_HARMLESS = re.compile(
    r"collections OrderedDict"
    r"|torch\._utils _rebuild_(tensor_v2|parameter|sparse_tensor)|torch\.serialization _get_layout"
    r"|torch \w+Storage"
    r"|torch b?float\w*|torch u?int\w*|torch bool|torch complex\w*|torch bfloat16|torch Size"
    r"|torch\.nn\.parameter Parameter"
)
"""Names that a checkpoint may use. torch's own list also holds constructors that allocate what their argument says."""
_LEGACY_PICKLES = 5  # of a file from before PyTorch 1.6: magic number, protocol, system, content, names of the storages
_LEGACY_CONTENT = 3  # position of the content among them

ZIP_MAGIC = b"PK\x03\x04"


class UnreadableTensorsError(ValueError):
    """A file is no whole safetensors file, or lacks a tensor."""


def read_safetensors(path: Path, names: Iterable[str] | None = None) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read a safetensors file.

    Its header is checked first: the tensors then fill the file exactly, so that none can be larger than it.

    Args:
        path: The file.
        names: Tensors to read; None reads all.

    Returns:
        Tensors by name, and the file's metadata.

    Raises:
        UnreadableTensorsError: If the file is missing, damaged, no safetensors file or without one of the names.
    """
    try:
        _check_header(path)
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in (file.keys() if names is None else names)}
            return tensors, dict(file.metadata() or {})
    except (OSError, ValueError, SafetensorError, RuntimeError, TypeError, AttributeError) as error:
        # The last three: types of numbers that the library knows and torch does not.
        raise UnreadableTensorsError(
            f"{path}: got no whole safetensors file ({error}); copy or make it again"
        ) from error


def read_metadata(path: Path) -> dict[str, str]:
    """Return the metadata of a safetensors file alone; raises as `read_safetensors`."""
    return read_safetensors(path, ())[1]


def read_torch(path: Path) -> Any:
    """Read a file of `torch.save` that holds tensors and plain types, onto the CPU.

    Compressed files are refused: `torch.save` never compresses, and a small one could become any amount of memory.

    Raises:
        ValueError: If it is anything else, or damaged.
    """
    try:
        check_torch_file(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except MemoryError:
        raise
    except Exception as error:  # whatever the bytes of a foreign file make the readers stumble over
        reason = " ".join(str(error).partition("\n")[0].split())
        raise ValueError(
            f"{path}: got a file that cannot be read as a checkpoint ({type(error).__name__}: {reason}), "
            "expected tensors only; save network.state_dict() and check that the file is complete"
        ) from error


def _check_header(path: Path) -> None:
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(_LENGTH_BYTES), "little")
        if not 2 <= length <= min(size - _LENGTH_BYTES, _LARGEST_HEADER):
            raise SafetensorError(f"a header of {length} bytes in a file of {size}")
        header = file.read(length)
    parse_json(header, path)  # the library takes the last of two entries of one name


def check_torch_file(path: Path) -> None:
    """Refuse a file of `torch.save` that holds other than tensors and plain types, or asks for more than its size.

    Raises:
        ValueError: If it does; what the libraries raise where it is no such file passes unchanged.
    """
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        if content[: len(ZIP_MAGIC)] == ZIP_MAGIC:
            _check_archive(path)
        else:
            _check_legacy(content)


def _check_archive(path: Path) -> None:
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
        names = {entry.filename for entry in entries}
        if len(names) < len(entries):
            raise ValueError("two entries of one name")
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
            raise ValueError("a compressed entry")
        if sum(entry.file_size for entry in entries) > path.stat().st_size:
            raise ValueError("entries that are larger than the file")
        damaged = archive.testzip()  # torch leaves the check sums alone
        if damaged is not None:
            raise ValueError(f"a wrong check sum of {damaged}")
        for name in names:
            if name.endswith("data.pkl"):
                _check_names(pickletools.genops(archive.read(name)))


def _check_legacy(content: mmap.mmap) -> None:
    """Check a file from before PyTorch 1.6, which gives the sizes of its storages before their bytes."""
    for number in range(_LEGACY_PICKLES):
        operations = list(pickletools.genops(content))  # type: ignore[arg-type]  # it reads from where it is
        _check_names(operations)
        if number == _LEGACY_CONTENT:
            largest = max((value for _, value, _ in operations if isinstance(value, int)), default=0)
            if largest > len(content):
                raise ValueError(f"a storage of {largest} numbers in a file of {len(content)} bytes")


def _check_names(operations: Iterable[tuple[Any, Any, int | None]]) -> None:
    for operation, value, _ in operations:
        if operation.name == "STACK_GLOBAL" or (operation.name == "GLOBAL" and not _HARMLESS.fullmatch(str(value))):
            raise ValueError(f"the name {value}, which is none of a tensor")
