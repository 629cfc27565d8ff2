"""Configs that a stranger may hand over: bounded before they are built, and plain data.

A YAML file can grow to any size by naming its parts again and again, contain itself, or name Python objects. What is
built from it is another matter: the classes that `class_path` names are imported from what is installed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import yaml

LARGEST_CONFIG = 2**20  # bytes; the longest shipped one has 3,000
_DEEPEST = 40  # levels; jsonargparse takes a few frames for each
_MOST_NODES = 50_000  # with every alias written out

_Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


@dataclass
class _Collection:
    """A mapping or sequence that is being read."""

    anchor: str | None
    is_mapping: bool
    size: int = 1
    keys: set[str] = field(default_factory=set)
    children: int = 0


def check_yaml(text: str) -> None:
    """Refuse a YAML text that is not what a config is, without building anything of it.

    Raises:
        ValueError: If it is too large, nests too deeply, contains itself, grows beyond measure by its aliases, or says
            a key twice.
    """
    if len(text) > LARGEST_CONFIG:
        raise ValueError(f"got a YAML text of {len(text)} characters, expected a config of at most {LARGEST_CONFIG}")
    try:
        _check_events(yaml.parse(text, Loader=_Loader))
    except yaml.YAMLError as error:
        raise ValueError(f"got no proper YAML ({' '.join(str(error).split())})") from error


def load_yaml(text: str) -> Any:
    """Return what a YAML text says, as plain types; raises as `check_yaml`."""
    check_yaml(text)
    try:
        return yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError, TypeError, OverflowError) as error:
        raise ValueError(f"got YAML that is no plain data ({' '.join(str(error).split())})") from error


def guard_command_line() -> None:
    """Have jsonargparse check every config before it builds it."""
    from jsonargparse import get_loader, set_loader  # noqa: PLC0415  a quarter of a second

    load = get_loader("yaml")
    if not getattr(load, "guarded", False):
        set_loader("yaml", _guarded(load), exceptions=(yaml.YAMLError, ValueError))


def _guarded(load: Callable[[str], Any]) -> Callable[[str], Any]:
    def load_checked(stream: str) -> Any:
        check_yaml(stream)
        try:
            return load(stream)
        except (RecursionError, TypeError, OverflowError) as error:
            raise ValueError(f"got YAML that is no plain data ({error})") from error

    load_checked.guarded = True  # type: ignore[attr-defined]
    return load_checked


def _check_events(events: Iterator[Any]) -> None:
    anchors: dict[str, int] = {}
    path = [_Collection(None, is_mapping=False)]
    for event in events:
        parent = path[-1]
        if isinstance(event, (yaml.MappingStartEvent, yaml.SequenceStartEvent)):
            parent.children += 1
            path.append(_Collection(event.anchor, isinstance(event, yaml.MappingStartEvent)))
            if len(path) > _DEEPEST:
                raise ValueError(f"got YAML of more than {_DEEPEST} levels, expected a config of a few")
            continue
        if isinstance(event, (yaml.MappingEndEvent, yaml.SequenceEndEvent)):
            path.pop()
            size, anchor, parent = parent.size, parent.anchor, path[-1]
        elif isinstance(event, yaml.AliasEvent):
            if event.anchor not in anchors:
                raise ValueError(f"got the YAML alias *{event.anchor} of what is not complete: it would hold itself")
            parent.children += 1
            size, anchor = anchors[event.anchor], None
        elif isinstance(event, yaml.ScalarEvent):
            _check_key(parent, event.value)
            parent.children += 1
            size, anchor = 1, event.anchor
        else:
            continue
        parent.size += size
        if anchor is not None:
            anchors[anchor] = size
        if parent.size > _MOST_NODES:
            raise ValueError(f"got YAML of more than {_MOST_NODES} values, its aliases written out: expected a config")


def _check_key(parent: _Collection, value: str) -> None:
    if not parent.is_mapping or parent.children % 2:
        return
    if value in parent.keys:
        raise ValueError(f"got the YAML key {value[:80]!r} twice in one mapping, expected it once")
    parent.keys.add(value)
