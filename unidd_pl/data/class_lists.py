"""Lists of classes: the well-known ones of ImageNet, which are shipped, or a file; and how to choose by one."""

from __future__ import annotations

from collections.abc import Sequence
from difflib import get_close_matches
from functools import cache
from importlib.resources import files
from pathlib import Path

CLASS_LISTS = ("imagenet", "imagenet100", "imagenette", "imagewoof")
"""Names of the lists that are shipped, in ``unidd_pl/data/classes``; their first lines say where they are from."""

_SHOWN = 5  # names in a message
_LONGEST = 80  # characters of a name in a message
_MISSPELT = 0.6  # similarity from which a name is taken for a shipped one misspelt


def list_name(classes: str) -> str:
    """Return the short name of a list: a shipped one's, or a file's without its ending."""
    return classes if classes in CLASS_LISTS else Path(classes).stem


@cache
def imagenet_names() -> dict[str, str]:
    """Return the English name of each class of ImageNet-1K by its WNID, in the order of published networks' outputs."""
    return dict(line.split("\t", 1) for line in _lines("imagenet"))


def imagenet_outputs(classes: Sequence[str]) -> list[int] | None:
    """Return which outputs of a network of ImageNet-1K the classes are; None unless all are WNIDs of ImageNet-1K."""
    places = {wnid: index for index, wnid in enumerate(imagenet_names())}
    return [places[name] for name in classes] if all(name in places for name in classes) else None


def choose_classes(classes: str, there: Sequence[str], place: object) -> tuple[str, ...]:
    """Return the classes of a list in alphabetical order, whatever the order of the list.

    That is the order of every folder of classes, so it is the labels' in the whole set and in each part of it.

    Args:
        classes: Name of a shipped list, or a text file: a line is the name of a class folder, alone or followed by
            white space and a description; lines that begin with ``#`` and empty ones are left out.
        there: The classes to choose from.
        place: Where those are, for messages.

    Raises:
        ValueError: If there is no such list, it holds fewer than two classes or one twice, or some are not there.
    """
    known = set(there)
    chosen = [line if line in known else line.split(None, 1)[0] for line in _lines(classes)]
    twice = sorted({name for name in chosen if chosen.count(name) > 1})
    if twice or len(chosen) < 2:
        raise ValueError(
            f"data.init_args.classes: got {classes} with {len(chosen)} class(es)"
            f"{f', {_some(twice)} more than once' if twice else ''}; expected at least two different ones"
        )
    missing = sorted(set(chosen) - known)
    if missing:
        raise ValueError(
            f"data.init_args.classes: {classes} names {len(missing)} of {len(chosen)} classes that {place} has no "
            f"folder of: {_some(missing)}; expected folders such as {_some(sorted(known))}; give the folder that holds "
            "them with --data.init_args.root, or correct the list"
        )
    return tuple(sorted(chosen))


def check_class_list(classes: str) -> None:
    """Refuse what is neither a shipped list nor a file.

    Raises:
        ValueError: If so.
    """
    _lines(classes)


def count_classes(classes: str) -> int:
    """Return the number of classes that a list names, whether they are there or not."""
    return len(_lines(classes))


def _lines(classes: str) -> list[str]:
    if classes in CLASS_LISTS:
        text = (files("unidd_pl.data") / "classes" / f"{classes}.txt").read_text(encoding="utf-8")
    else:
        try:
            text = Path(classes).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            close = get_close_matches(classes.lower().replace("-", ""), CLASS_LISTS, n=1, cutoff=_MISSPELT)
            meant = f"did you mean {close[0]}?" if close else "one class folder a line"
            raise ValueError(
                f"data.init_args.classes: got {classes!r} ({error}), expected one of {', '.join(CLASS_LISTS)} or a "
                f"text file; {meant}"
            ) from error
    lines = (line.strip() for line in text.splitlines())
    return [line for line in lines if line and not line.startswith("#")]


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(name[:_LONGEST] for name in names[:_SHOWN]) + more
