"""The settings of a sweep as they are typed: `KEY=V1,V2,…`."""

from __future__ import annotations

import re
from collections.abc import Sequence


def parse_grid(settings: Sequence[str]) -> dict[str, list[str]]:
    """Return the values by key of settings ``KEY=V1,V2,…``; a comma within brackets or quotes separates nothing.

    Raises:
        ValueError: If one is not of that form, or a key or value stands twice.
    """
    grid: dict[str, list[str]] = {}
    for setting in settings:
        key, sign, values = setting.partition("=")
        parts = _split(values)
        if not sign or not re.fullmatch(r"[A-Za-z_][\w.]*", key) or not all(parts):
            raise ValueError(
                f"got --set {setting!r}, expected KEY=VALUE,VALUE, for example model.init_args.beta=0.01,0.1"
            )
        if key in grid or len(set(parts)) < len(parts):
            raise ValueError(f"got --set {setting!r}, expected each key and each of its values once")
        grid[key] = parts
    return grid


def _split(values: str) -> list[str]:
    parts, depth, quote = [""], 0, ""
    for character in values:
        if quote:
            quote = "" if character == quote else quote
        elif character in "\"'":
            quote = character
        depth += (character in "[{(") - (character in "]})")
        if character == "," and depth == 0 and not quote:
            parts.append("")
        else:
            parts[-1] += character
    return [part.strip() for part in parts]
