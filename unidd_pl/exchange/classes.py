"""The classes of a set made elsewhere in the order of the data: the mix-up that costs most and shows least.

A name is a word, a WordNet id, a number with a word (``00003_cat``) or a zero-padded index. One rule has to hold for
all names of a set; which one it was is returned, so that it can be said.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from unidd_pl.exchange.description import AS_DATA, SetFacts
from unidd_pl.specs import DatasetSpec

_SHOWN = 6  # names in a message
_NUMBERED = re.compile(r"(\d+)[_ -](.+)")


def map_names(names: Sequence[str], spec: DatasetSpec, facts: SetFacts, where: str) -> tuple[list[int], str]:
    """Find each class name of a set among the data's.

    Args:
        names: The set's class names, each once.
        spec: The data's classes in order.
        facts: What is said of the set.
        where: The set, for messages.

    Returns:
        The data's label of each name, and the rule by which they were found.

    Raises:
        ValueError: If a name is unknown, two names mean one class, or a class of the data has none.
    """
    meant = _as_given(names, spec, facts, where)
    found = next(((labels, rule) for rule, find in _RULES if (labels := find(meant, spec)) is not None), None)
    if found is None:
        known = {_key(name) for name in spec.classes}
        strange = [name for name in meant if _key(name) not in known]
        raise ValueError(
            f"{where}: got the class names {some(strange)}, expected those of {spec.name} ({some(spec.classes)}), "
            "or zero-padded indices: rename them, or say what each means with --set.classes, for example "
            f"\"{{'{strange[0]}': '{spec.classes[0]}', …}}\""
        )
    labels, rule = found
    _check_one_to_one(names, labels, spec, where)
    return labels, rule if meant == list(names) else f"as --set.classes says, {rule}"


def map_labels(
    labels: Tensor, names: Sequence[str] | None, spec: DatasetSpec, facts: SetFacts, where: str
) -> tuple[Tensor, str]:
    """Turn a set's integer labels into the data's.

    Args:
        labels: (n,) int64, positions in the set's own class list.
        names: That list where the file holds it.
        spec: The data's classes in order.
        facts: What is said of the set; its list goes before the file's.
        where: The set, for messages.

    Returns:
        (n,) int64, the data's labels, and the rule by which they were found.

    Raises:
        ValueError: If the class order is not known, or a label is out of range.
    """
    own = facts.classes if isinstance(facts.classes, list) else names
    if facts.classes == AS_DATA or (own is None and facts.classes is not None):
        own = None
    elif own is None:
        raise ValueError(
            f"{where}: got labels from {int(labels.min())} to {int(labels.max())} and no class names, expected to know "
            "which class each is: give the names in label order with --set.classes \"['…', '…']\", or --set.classes "
            f"{AS_DATA} where they follow {spec.name}'s order ({some(spec.classes)})"
        )
    count = spec.num_classes if own is None else len(own)
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= count:
        raise ValueError(
            f"{where}: got labels from {low} to {high}, expected 0 to {count - 1} for {count} classes: "
            "labels count from 0; check that the set belongs to this data"
        )
    if own is None:
        return labels, "in the data's order, as --set.classes says"
    mapped, rule = map_names(own, spec, _without_list(facts), where)
    return torch.tensor(mapped)[labels], rule


def some(names: Sequence[str]) -> str:
    """Return the first few names and how many there are."""
    shown = ", ".join(names[:_SHOWN])
    return shown if len(names) <= _SHOWN else f"{shown}, … {len(names)} in all"


def _without_list(facts: SetFacts) -> SetFacts:
    return SetFacts(classes=facts.classes) if isinstance(facts.classes, dict) else SetFacts()


def _as_given(names: Sequence[str], spec: DatasetSpec, facts: SetFacts, where: str) -> list[str]:
    """Return the names with what --set.classes says of them put in."""
    given = facts.classes
    if isinstance(given, dict):
        if strange := sorted(set(given) - set(names)):
            raise ValueError(
                f"{where}: --set.classes names {some(strange)}, which the set does not have; expected names of the "
                f"set, {some(list(names))}: correct the mapping"
            )
        return [given.get(name, name) for name in names]
    if isinstance(given, list):
        if not all(name.isdecimal() and int(name) < len(given) for name in names):
            raise ValueError(
                f"{where}: got a list in --set.classes and the folders {some(list(names))}, expected folders "
                f"numbered 0 to {len(given) - 1}: give a mapping of their names to the names of {spec.name}"
            )
        return [given[int(name)] for name in names]
    return list(names)


def _by_name(names: Sequence[str], spec: DatasetSpec) -> list[int] | None:
    exact = {name: label for label, name in enumerate(spec.classes)}
    if all(name in exact for name in names):
        return [exact[name] for name in names]
    loose = {_key(name): label for label, name in enumerate(spec.classes)}
    if len(loose) < spec.num_classes or not all(_key(name) in loose for name in names):
        return None
    return [loose[_key(name)] for name in names]


def _by_number_and_name(names: Sequence[str], spec: DatasetSpec) -> list[int] | None:
    """Take 00003_cat where the third class, counted from 0, is cat: both have to agree."""
    matches = [_NUMBERED.fullmatch(name) for name in names]
    if not all(matches):
        return None
    labels = _by_name([match[2] for match in matches if match], spec)
    numbers = [int(match[1]) for match in matches if match]
    return labels if labels == numbers else None


def _by_index(names: Sequence[str], spec: DatasetSpec) -> list[int] | None:
    if not all(name.isdecimal() and int(name) < spec.num_classes for name in names):
        return None
    return [int(name) for name in names]


_RULES: tuple[tuple[str, Callable[[Sequence[str], DatasetSpec], list[int] | None]], ...] = (
    ("by name", _by_name),
    ("by number and name", _by_number_and_name),
    ("by index in the data's order", _by_index),
)


def _key(name: str) -> str:
    """Reduce a name to what differs between spellings: case, spaces, underscores and accents of folders do not."""
    return "".join(character for character in name.casefold() if character.isalnum())


def _check_one_to_one(names: Sequence[str], labels: Sequence[int], spec: DatasetSpec, where: str) -> None:
    seen: dict[int, str] = {}
    for name, label in zip(names, labels, strict=True):
        if label in seen:
            raise ValueError(
                f"{where}: got the classes {seen[label]!r} and {name!r} for {spec.classes[label]!r}, expected one: "
                "rename or merge them"
            )
        seen[label] = name
    if missing := [name for label, name in enumerate(spec.classes) if label not in seen]:
        raise ValueError(
            f"{where}: got {len(seen)} classes, expected the {spec.num_classes} of {spec.name}: {some(missing)} "
            "missing; evaluate it on the data that it was made from"
        )
