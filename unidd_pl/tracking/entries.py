"""What the lines of a journal may say: a record that was handed on must not upload other files, nor stop a sender."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any


def is_entry(entry: Any) -> bool:
    """Return whether a line is an object of one key with the content that belongs to it; other keys pass."""
    if not isinstance(entry, dict) or len(entry) != 1:
        return False
    ((kind, content),) = entry.items()
    check = _CONTENTS.get(kind)
    return check is None or check(content)


def _is_start(content: Any) -> bool:
    if not isinstance(content, dict) or not _KEYS <= content.keys() <= {*_KEYS, *_OPTIONAL}:
        return False
    texts = all(isinstance(content[name], str) for name in ("uri", "experiment", "name"))
    tags = all(content.get(name) is None or _is_texts(content[name]) for name in _OPTIONAL)
    return texts and tags and _is_texts(content["tags"]) and _is_whole(content["time"])


def _is_texts(content: Any) -> bool:
    return isinstance(content, Mapping) and all(isinstance(one, str) for pair in content.items() for one in pair)


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) < _LARGEST


def _is_list(content: Any, *checks: Callable[[Any], bool]) -> bool:
    if not isinstance(content, Sequence) or isinstance(content, str) or len(content) != len(checks):
        return False
    return all(check(one) for check, one in zip(checks, content, strict=True))


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_number(value: Any) -> bool:
    return isinstance(value, float) or _is_whole(value)


def _is_kept(path: Any) -> bool:
    """Return whether a path is that of a file which the journal keeps: in its folder, not above or beside it."""
    if not isinstance(path, str) or "\0" in path:
        return False
    parts = PurePosixPath(path).parts
    return len(parts) > 1 and parts[0] == FILES and ".." not in parts


def _are_points(content: Any) -> bool:
    return isinstance(content, list) and all(
        _is_list(one, _is_text, _is_number, _is_whole, _is_whole) for one in content
    )


FILES = "files"
"""Folder of a journal with the artifacts."""

_LARGEST = 2**63
_KEYS = frozenset({"uri", "experiment", "name", "tags", "time"})
_OPTIONAL = ("parent", "unless")
_CONTENTS: dict[str, Callable[[Any], bool]] = {
    "start": _is_start,
    "metrics": _are_points,
    "params": _is_texts,
    "tag": lambda content: _is_list(content, _is_text, _is_text),
    "artifact": lambda content: _is_list(content, _is_kept, _is_text),
    "input": lambda content: _is_texts(content) and content.keys() == {"name", "digest", "source", "context"},
    "end": lambda content: _is_list(content, _is_text, _is_whole),
    "reopen": _is_whole,
}
