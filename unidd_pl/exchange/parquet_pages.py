"""What the pages of a parquet file say that they unpack to, before anything unpacks them.

A reader takes the memory that a page's own head asks for, whatever the file's footer says. The heads are structures in
Thrift's compact protocol (apache/thrift, doc/specs/thrift-compact-protocol.md; apache/parquet-format, PageHeader).
"""

from __future__ import annotations

import mmap
from pathlib import Path
from typing import Any

_UNPACKED, _PACKED = 2, 3  # fields of a PageHeader: bytes of the page in memory and in the file
_DEEPEST = 8  # levels; a PageHeader has three
_LONGEST = 64  # bits of a number
_BOOLEANS, _BYTE, _NUMBERS, _DOUBLE, _TEXT, _LISTS, _STRUCT = (1, 2), 3, (4, 5, 6), 7, 8, (9, 10), 12


def unpacked_bytes(file: Path, metadata: Any) -> int:
    """Return the bytes that all pages of a file say they unpack to.

    Args:
        file: The file.
        metadata: Its footer, `pyarrow.parquet.FileMetaData`.

    Raises:
        ValueError: If a page is not where the footer says, or its head is damaged.
    """
    total = 0
    with file.open("rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as content:
        for group in range(metadata.num_row_groups):
            for column in range(metadata.row_group(group).num_columns):
                chunk = metadata.row_group(group).column(column)
                start = chunk.data_page_offset
                if chunk.dictionary_page_offset is not None:
                    start = min(start, chunk.dictionary_page_offset)
                total += _of_chunk(content, start, start + chunk.total_compressed_size)
    return total


def _of_chunk(content: mmap.mmap, start: int, end: int) -> int:
    if not 0 <= start <= end <= len(content):
        raise ValueError(f"pages from byte {start} to {end} in a file of {len(content)}")
    total = 0
    while start < end:
        head = _Head(content, start)
        sizes = head.struct()
        packed, unpacked = sizes.get(_PACKED, -1), sizes.get(_UNPACKED, -1)
        if packed < 0 or unpacked < 0 or head.place + packed > end:
            raise ValueError(f"a page of {packed} bytes at byte {start} that unpacks to {unpacked}")
        total += unpacked
        start = head.place + packed
    return total


class _Head:
    """Reads one structure of numbers, and passes over whatever else is in it."""

    def __init__(self, content: mmap.mmap, place: int) -> None:
        self.content = content
        self.place = place

    def struct(self, depth: int = 0) -> dict[int, int]:
        """Return the numbers of the structure by their field."""
        if depth > _DEEPEST:
            raise ValueError(f"a page whose head nests deeper than {_DEEPEST}")
        numbers: dict[int, int] = {}
        field = 0
        while head := self._byte():
            field = field + (head >> 4) if head >> 4 else self._number()
            if head & 15 in _NUMBERS:
                numbers[field] = self._number()
            elif head & 15 not in _BOOLEANS:  # which are all in the head
                self._pass_over(head & 15, depth)
        return numbers

    def _pass_over(self, kind: int, depth: int) -> None:
        if kind in _NUMBERS:
            self._varint()
        elif kind in (_BYTE, *_BOOLEANS):
            self._forward(1)
        elif kind == _DOUBLE:
            self._forward(8)
        elif kind == _TEXT:
            self._forward(self._varint())
        elif kind in _LISTS:
            head = self._byte()
            for _ in range(self._varint() if head >> 4 == 15 else head >> 4):
                self._pass_over(head & 15, depth + 1)
        elif kind == _STRUCT:
            self.struct(depth + 1)
        else:
            raise ValueError(f"a page whose head has a field of the unknown type {kind}")

    def _forward(self, count: int) -> None:
        self.place += count
        if self.place > len(self.content):
            raise ValueError("a page whose head goes beyond the file")

    def _byte(self) -> int:
        self._forward(1)
        return self.content[self.place - 1]

    def _varint(self) -> int:
        value = shift = 0
        while shift < _LONGEST:
            byte = self._byte()
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value
        raise ValueError(f"a page whose head has a number of more than {_LONGEST} bits")

    def _number(self) -> int:
        value = self._varint()
        return (value >> 1) ^ -(value & 1)  # zigzag
