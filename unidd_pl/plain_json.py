"""Reading JSON that may be damaged, or made to harm: it ends in a message, never in a traceback.

Legend: a *holder* is what a message calls the thing that was read, such as a path.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def parse_json(text: str | bytes, holder: object) -> Any:
    """Return what a JSON text says.

    Raises:
        ValueError: If it is no JSON, nests too deeply, says a key twice, or holds NaN or an infinity.
    """
    try:
        return json.loads(text, object_pairs_hook=_unique, parse_constant=_refuse_constant)
    except RecursionError:
        raise ValueError(f"{holder}: got JSON that nests too deeply, expected a few levels: it is damaged") from None
    except ValueError as error:
        raise ValueError(f"{holder}: got no proper JSON ({error}), expected it whole: it is damaged") from error


def read_json(path: Path, cure: str) -> Any:
    """Return what a JSON file says.

    Args:
        path: The file.
        cure: What its reader can do where it is damaged, for the message.

    Raises:
        ValueError: As `parse_json`, with the cure.
        OSError: If it cannot be read.
    """
    try:
        return parse_json(path.read_bytes(), path)
    except ValueError as error:
        raise ValueError(f"{error}; {cure}") from error


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the key {twice[:80]!r} twice")
    return fields


def _refuse_constant(name: str) -> None:
    raise ValueError(f"the number {name}")
