"""What safetensors files of this project say of themselves: one tagged JSON entry in the header."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from unidd_pl.plain_json import parse_json

# One header entry only: safetensors writes several in random order, and equal contents must give equal bytes.
HEADER_KEY = "unidd_pl"


def to_json(value: Any) -> str:
    """Return a value as JSON, the same text for equal values."""
    return json.dumps(value, sort_keys=True, ensure_ascii=False, allow_nan=False)


def read_header(path: Path, metadata: dict[str, str] | None, tag: str, version: int, what: str) -> dict[str, Any]:
    """Return the header of a file, or say what the file is instead.

    Args:
        path: The file, for messages.
        metadata: Its safetensors metadata.
        tag: Format that the header has to name.
        version: Newest version of the format that can be read.
        what: What was expected and which command writes it.

    Raises:
        ValueError: If the file is of another kind or a newer format.
    """
    try:
        header = parse_json((metadata or {}).get(HEADER_KEY, "null"), path)
    except ValueError:
        header = None
    if not isinstance(header, dict) or header.get("format") != tag:
        raise ValueError(
            f"got {path}, a safetensors file without the tag {tag!r} (perhaps the weights of a network), "
            f"expected {what}"
        )
    got = header.get("version")
    if not isinstance(got, int) or got > version:
        raise ValueError(f"got {path} in format version {got}, expected at most {version}: upgrade unidd-pl")
    return header


def unreadable(path: Path, error: Exception, what: str, cure: str) -> str:
    """Tell a damaged safetensors file from one of another kind: the header, JSON, starts at byte 8.

    Args:
        path: The file that safetensors could not read.
        error: What it said.
        what: What was expected, for example "distilled set".
        cure: What to do about a damaged one.
    """
    with path.open("rb") as file:
        start = file.read(9)
    if start[8:] == b"{":
        return (
            f"got {path}, a safetensors file that is truncated or damaged "
            f"({path.stat().st_size} bytes; {error}), expected a complete {what}: {cure}"
        )
    return f"got {path}, which is not a safetensors file ({error}), expected a {what}: check the path"
