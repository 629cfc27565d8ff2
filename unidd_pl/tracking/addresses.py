"""What the address of an MLflow store says."""

from __future__ import annotations

import re
from pathlib import Path

_SQLITE = "sqlite:///"


def is_local(uri: str) -> bool:
    """Return whether a store is on this machine's disk: it is there, or the URI is wrong."""
    return not re.match(r"(https?|postgresql|mysql|mssql|databricks)\b", uri)


def sqlite_path(uri: str) -> Path | None:
    """Return the file of a SQLite URI, None for other stores."""
    return Path(uri[len(_SQLITE) :].partition("?")[0]) if uri.startswith(_SQLITE) else None


def without_password(uri: str) -> str:
    """Return the URI without user and password, for messages."""
    return re.sub(r"//[^/@]*@", "//", uri)


def is_server(uri: str) -> bool:
    """Return whether a store is an MLflow server."""
    return uri.startswith(("http://", "https://"))


def is_database(uri: str) -> bool:
    """Return whether a store is a database that MLflow opens by itself."""
    return bool(re.match(r"(sqlite|postgresql|mysql|mssql)\b", uri))
