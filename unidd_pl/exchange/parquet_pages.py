"""What the pages of a parquet file say that they unpack to, before anything unpacks them.

A reader takes the memory that a page's own head asks for, whatever the file's footer says. Footer and heads are
structures in Thrift's compact protocol (apache/thrift, doc/specs/thrift-compact-protocol.md; apache/parquet-format,
FileMetaData and PageHeader). They are read here and not by pyarrow, whose look at the columns of a footer ends the
process where their size statistics contradict it (pyarrow 25).
"""

from __future__ import annotations

import mmap
from pathlib import Path
from typing import Any

_MAGIC = b"PAR1"
_GROUPS, _CHUNKS, _CHUNK_METADATA = 4, 1, 3  # fields of FileMetaData, RowGroup and ColumnChunk
_CHUNK_PACKED, _PAGES, _DICTIONARY = 7, 9, 11  # fields of ColumnMetaData: bytes in the file, and where they begin
_UNPACKED, _PACKED = 2, 3  # fields of PageHeader: bytes of the page in memory and in the file
_DEEPEST = 12  # levels; a footer has eight
_LONGEST = 64  # bits of a number
_BOOLEANS, _BYTE, _NUMBERS, _DOUBLE, _TEXT, _LISTS, _STRUCT = (1, 2), 3, (4, 5, 6), 7, 8, (9, 10), 12


def unpacked_bytes(file: Path) -> int:
    """Return the bytes that all pages of a file say they unpack to.

    Args:
        file: The file.

    Raises:
        ValueError: If the footer is damaged, a page is not where it says, or the page's head is damaged.
    """
    with file.open("rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as content:
        total = 0
        for group in _structures(_footer(content), _GROUPS):
            for chunk in _structures(group, _CHUNKS):
                about = chunk.get(_CHUNK_METADATA)
                if not isinstance(about, dict):
                    raise ValueError("a column without a description")
                start, packed = _number_of(about, _PAGES), _number_of(about, _CHUNK_PACKED)
                if _DICTIONARY in about:
                    start = min(start, _number_of(about, _DICTIONARY))
                total += _of_chunk(content, start, start + packed)
        return total


def _footer(content: mmap.mmap) -> dict[int, Any]:
    end = len(content) - 2 * len(_MAGIC)  # the footer's length and the magic follow it
    if end < 0 or content[-len(_MAGIC) :] != _MAGIC:
        raise ValueError("no footer at the end of the file")
    return _Thrift(content, end - int.from_bytes(content[end : end + 4], "little")).struct()


def _structures(structure: dict[int, Any], field: int) -> list[dict[int, Any]]:
    found = structure.get(field)
    if not isinstance(found, list) or not all(isinstance(one, dict) for one in found):
        raise ValueError(f"a footer whose field {field} is no list of structures")
    return found


def _number_of(structure: dict[int, Any], field: int) -> int:
    found = structure.get(field)
    if not isinstance(found, int):
        raise ValueError(f"a column whose field {field} is no number")
    return found


def _of_chunk(content: mmap.mmap, start: int, end: int) -> int:
    if not 0 <= start <= end <= len(content):
        raise ValueError(f"pages from byte {start} to {end} in a file of {len(content)}")
    total = 0
    while start < end:
        head = _Thrift(content, start)
        sizes = head.struct()
        packed, unpacked = _number_of(sizes, _PACKED), _number_of(sizes, _UNPACKED)
        if packed < 0 or unpacked < 0 or head.place + packed > end:
            raise ValueError(f"a page of {packed} bytes at byte {start} that unpacks to {unpacked}")
        total += unpacked
        start = head.place + packed
    return total


class _Thrift:
    """Reads structures of numbers, structures and lists of them; of all else it keeps the place only.

    Every element of a list takes a byte at least, so that nothing grows beyond the file.
    """

    def __init__(self, content: mmap.mmap, place: int) -> None:
        if place < 0:
            raise ValueError("a structure before the beginning of the file")
        self.content = content
        self.place = place

    def struct(self, depth: int = 0) -> dict[int, Any]:
        """Return what is in a structure by its field."""
        values: dict[int, Any] = {}
        field = 0
        while head := self._byte():
            field = field + (head >> 4) if head >> 4 else self._number()
            if head & 15 not in _BOOLEANS:  # which are all in the head
                values[field] = self._value(head & 15, depth + 1)
        return values

    def _value(self, kind: int, depth: int) -> Any:
        if depth > _DEEPEST:
            raise ValueError(f"structures deeper than {_DEEPEST}")
        if kind in _NUMBERS:
            return self._number()
        if kind in _LISTS:
            head = self._byte()
            count = self._varint() if head >> 4 == 15 else head >> 4
            return [self._value(head & 15, depth + 1) for _ in range(count)]
        if kind == _STRUCT:
            return self.struct(depth)
        if kind in (_BYTE, *_BOOLEANS):
            self._forward(1)
        elif kind == _DOUBLE:
            self._forward(8)
        elif kind == _TEXT:
            self._forward(self._varint())
        else:
            raise ValueError(f"a field of the unknown type {kind}")
        return None

    def _forward(self, count: int) -> None:
        self.place += count
        if self.place > len(self.content):
            raise ValueError("a structure that goes beyond the file")

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
        raise ValueError(f"a number of more than {_LONGEST} bits")

    def _number(self) -> int:
        value = self._varint()
        return (value >> 1) ^ -(value & 1)  # zigzag
