"""Names and settings as MLflow takes them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

MAX_KEY = 250  # characters; mlflow.utils.validation.MAX_ENTITY_KEY_LENGTH
MAX_PARAM = 500  # characters; 6000 in MLflow itself, older servers accept 500
MAX_TAG = 5000  # characters; 8000 in MLflow itself, older servers accept 5000


def flatten(tree: Any, prefix: str = "") -> dict[str, Any]:
    """Return the leaves of nested mappings under dotted names; a list of scalars is one leaf."""
    if isinstance(tree, Mapping) and tree:
        pairs = [(str(key), value) for key, value in tree.items()]
    elif isinstance(tree, list | tuple) and any(isinstance(item, Mapping | list | tuple) for item in tree):
        pairs = [(str(index), value) for index, value in enumerate(tree)]
    else:
        return {prefix: tree} if prefix else {}
    leaves: dict[str, Any] = {}
    for key, value in pairs:
        leaves |= flatten(value, f"{prefix}.{key}" if prefix else key)
    return leaves


def clean(key: str) -> str:
    """Return the key with what MLflow refuses in names replaced by "_", cut to its longest length."""
    parts = re.sub(r"[^\w.\- /]", "_", key).split("/")
    # MLflow refuses names that are not normal relative paths.
    return ("/".join(part for part in parts if part not in ("", ".", "..")) or "_")[:MAX_KEY].rstrip("/")
