"""The .beton file of FFCV, version 2: written and checked here with numpy alone.

::

    header | two field descriptors | one sample record an image | pages of image data | table of allocations

FFCV's own writer starts worker processes and waits for their count; when one of them dies, of a full disk or
an unreadable image, it waits for ever. This one writes in the caller's thread, so an error is an error.

Legend: n images.

References:
    FFCV 1.0.2, ``ffcv/types.py`` and ``ffcv/fields`` for the layout.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

VERSION = 2
JPEG, PIXELS = 0, 1
"""How an image is stored: as a JPEG file's bytes, or as its RGB pixels."""

HEADER = np.dtype(
    [("version", "<u2"), ("num_fields", "<u2"), ("page_size", "<u4"), ("num_samples", "<u8"), ("table", "<u8")],
    align=True,
)
FIELD = np.dtype([("type_id", "<u1"), ("name", "<u1", 16), ("arguments", "<u1", 1024)], align=True)
IMAGE = np.dtype([("mode", "<u1"), ("width", "<u2"), ("height", "<u2"), ("data_ptr", "<u8")])
SAMPLE = np.dtype([("f0", IMAGE), ("f1", "<i8")], align=True)
ALLOCATION = np.dtype([("sample_id", "<u8"), ("ptr", "<u8"), ("size", "<u8")])
FIELDS = (("image", 2), ("label", 1))  # names, and FFCV's numbers for RGBImageField and IntField
PAGE_SIZE = 2**23  # bytes, FFCV's default; an image lies on one page
LARGEST_SIDE = 26_754  # pixels: a square of three channels has to fit a page, whose size is a power of 2 below 2^32

_SAMPLES_START = HEADER.itemsize + len(FIELDS) * FIELD.itemsize


@dataclass(frozen=True)
class StoredImage:
    """An image as it lies in the file.

    Args:
        mode: `JPEG` or `PIXELS`.
        width: Pixels.
        height: Pixels.
        data: The bytes.
    """

    mode: int
    width: int
    height: int
    data: bytes


class BetonWriter:
    """Writes images one after another.

    Args:
        file: The file, open for reading and writing, empty.
        capacity: Images that there may be, at most.
        page_size: Bytes of a page, a power of two; the largest image has to fit.
    """

    def __init__(self, file: BinaryIO, capacity: int, page_size: int = PAGE_SIZE) -> None:
        self._file = file
        self._page_size = page_size
        self._samples = np.zeros(capacity, SAMPLE)
        self._table = np.zeros(capacity, ALLOCATION)
        self._end = self._aligned(_SAMPLES_START + self._samples.nbytes)
        self._content = hashlib.sha256()
        self.count = 0

    def add(self, image: StoredImage, label: int) -> None:
        """Append an image."""
        size = len(image.data)
        if size > self._aligned(self._end) - self._end:
            self._end = self._aligned(self._end)
        self._file.seek(self._end)
        self._file.write(image.data)
        self._samples[self.count] = ((image.mode, image.width, image.height, self._end), label)
        self._table[self.count] = (self.count, self._end, size)
        self._content.update(image.data)
        self._end += size
        self.count += 1

    def finish(self) -> str:
        """Write what describes the images; return a digest of images and labels."""
        end = self._aligned(self._end)
        header = np.array((VERSION, len(FIELDS), self._page_size, self.count, end), HEADER)
        fields = np.zeros(len(FIELDS), FIELD)
        for field, (name, type_id) in zip(fields, FIELDS, strict=True):
            field["type_id"] = type_id
            field["name"][: len(name)] = np.frombuffer(name.encode(), np.uint8)
        self._file.seek(0)
        self._file.write(header.tobytes() + fields.tobytes() + self._samples[: self.count].tobytes())
        self._file.seek(end)
        self._file.write(self._table[: self.count].tobytes())
        self._file.flush()
        self._content.update(self._samples[: self.count].tobytes())
        return self._content.hexdigest()

    def _aligned(self, offset: int) -> int:
        return -(-offset // self._page_size) * self._page_size


@dataclass(frozen=True)
class Beton:
    """What a .beton file says of its images; the images stay in the file.

    Args:
        path: The file.
        samples: (n,) of `SAMPLE`: mode, width, height and place of each image, and its label.
        sizes: (n,) bytes of each image.
    """

    path: Path
    samples: NDArray[np.void]
    sizes: NDArray[np.uint64]

    @property
    def index_digest(self) -> str:
        """Hexadecimal digest of all but the image data."""
        return hashlib.sha256(self.samples.tobytes() + self.sizes.tobytes()).hexdigest()

    def refuse_damaged(self, positions: Sequence[int] | NDArray[np.int64]) -> None:
        """Raise ValueError if there are any positions: of images that a decoder has given up."""
        if len(positions):
            raise ValueError(
                f"{self.path} is damaged: its image {int(positions[0])} of {len(self.samples)} is no whole JPEG; write "
                "it anew with `unidd convert --config … --overwrite true`"
            )


def read_beton(path: Path) -> Beton:
    """Read the description of the images.

    Raises:
        ValueError: If the file is no .beton file of this layout, or ends too early.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            header = np.fromfile(file, HEADER, 1)
            if len(header) != 1 or header[0]["version"] != VERSION or header[0]["num_fields"] != len(FIELDS):
                raise ValueError(
                    f"{path} is no .beton file of images and labels: expected one written by `unidd convert`"
                )
            count, table = int(header[0]["num_samples"]), int(header[0]["table"])
            needed = table + count * ALLOCATION.itemsize
            if size != needed or _SAMPLES_START + count * SAMPLE.itemsize > table:
                raise ValueError(
                    f"{path} is truncated or damaged: got {size} bytes, expected {needed}; write it anew with "
                    "`unidd convert --config … --overwrite true`"
                )
            file.seek(_SAMPLES_START)
            samples = np.fromfile(file, SAMPLE, count)
            file.seek(table)
            allocations = np.fromfile(file, ALLOCATION, count)
    except OSError as error:
        raise ValueError(f"cannot read {path} ({error}): expected a file written by `unidd convert`") from error
    _check_places(path, samples, allocations, table)
    return Beton(path, samples, allocations["size"].copy())


def _check_places(path: Path, samples: NDArray[np.void], allocations: NDArray[np.void], table: int) -> None:
    """Refuse images that lie outside the pages: FFCV's compiled code reads where it is told to."""
    images, sizes = samples["f0"], allocations["size"]
    starts = images["data_ptr"]
    pixels = 3 * images["width"].astype(np.uint64) * images["height"].astype(np.uint64)
    wrong = (
        (allocations["ptr"] != starts)
        | (allocations["sample_id"] != np.arange(len(samples), dtype=np.uint64))
        | (starts < _SAMPLES_START + samples.nbytes)
        | (starts > table)
        | (sizes > table - starts)  # wraps where a start lies behind the table, which is refused already
        | (pixels == 0)
        | ~np.isin(images["mode"], (JPEG, PIXELS))
        | ((images["mode"] == PIXELS) & (sizes != pixels))
        | (samples["f1"] < 0)
    )
    if wrong.any():
        raise ValueError(
            f"{path} is damaged: its image {int(wrong.argmax())} of {len(samples)} lies outside the file or has no "
            "size; write it anew with `unidd convert --config … --overwrite true`"
        )
