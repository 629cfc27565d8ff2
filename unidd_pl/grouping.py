"""Distilled sets as rows of a table: one each, or those of one config that differ in their seed alone as one."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from unidd_pl.configs import load_yaml
from unidd_pl.distilled import DistilledSet

GroupBy = Literal["set", "config"]

_NOT_THE_CONFIG = ("config", "tracking", "cache_dir", "output_dir", "overwrite", "checkpoint_every", "ckpt_path")
"""Keys of a recorded config that do not say what the images are."""


def rows_of_sets(
    paths: Sequence[Path], sets: Sequence[DistilledSet], group_by: GroupBy, taken: Sequence[str] = ()
) -> dict[str, list[DistilledSet]]:
    """Return the sets of each row by its name.

    A row of a single set is named by its method where it is the only row, else by its folder; a row of several by
    their method where that tells the rows apart. A set made elsewhere has the name that its file or description gives.

    Args:
        paths: Files of the sets.
        sets: The sets.
        group_by: ``set``, a row each; or ``config``, a row for all sets whose manifests differ in the seed alone.
        taken: Names of other rows.

    Raises:
        ValueError: If names are not distinct, or a group holds a set or a seed twice.
    """
    groups: dict[str, list[int]] = {}
    for place, one in enumerate(sets):
        key = _config_key(one) if group_by == "config" else None
        groups.setdefault(key or f"set {place}", []).append(place)
    methods = [str(sets[places[0]].manifest.get("method", "distilled")) for places in groups.values()]
    rows: dict[str, list[DistilledSet]] = {}
    names = []
    for places, method in zip(groups.values(), methods, strict=True):
        members = [sets[place] for place in places]
        _check_distinct([paths[place] for place in places], members)
        foreign = "source" in members[0].manifest  # sets made elsewhere lie side by side, and have names of their own
        first = paths[places[0]].absolute()
        folder = method if foreign else first.name if first.is_dir() else first.parent.name  # an export is a folder
        if methods.count(method) == 1 and (len(groups) == 1 or len(places) > 1):
            names.append(method)
        else:
            names.append(folder if len(places) == 1 else f"{folder} and {len(places) - 1} more")
        if "partial" in members[0].manifest:
            names[-1] += f" (partial, {members[0].manifest['partial']})"
        rows[names[-1]] = members
    if len({*names, *taken}) < len(names) + len(taken):
        raise ValueError(
            f"got distilled sets in folders or files named {names}, expected names that differ: rows are named by them"
        )
    return rows


def short_names(paths: Sequence[Path]) -> list[str]:
    """Return the folder of each file, or each folder; the whole path where they have the same name."""
    folders = [(path if path.is_dir() else path.parent).absolute().name for path in paths]
    return folders if len(set(folders)) == len(folders) else [str(path) for path in paths]


def _config_key(one: DistilledSet) -> str | None:
    """Return what the set was made from, without its seed; None where the manifest does not say."""
    try:
        config = load_yaml(str(one.manifest["config"]))
        del config["model"]["init_args"]["seed"]
        made = {name: value for name, value in config.items() if name not in _NOT_THE_CONFIG}
        known = [one.manifest.get(name) for name in ("data", "teacher", "statistics")]
        return json.dumps([made, known, one.ipc], sort_keys=True, default=str)
    except (KeyError, TypeError, ValueError, AttributeError, IndexError):  # a set of a stranger may say anything
        return None


def _check_distinct(paths: Sequence[Path], sets: Sequence[DistilledSet]) -> None:
    seeds = [one.manifest.get("seed") for one in sets]
    if len(sets) > 1 and len(set(seeds)) < len(sets):
        raise ValueError(
            f"got {len(sets)} sets of one config with the distillation seeds {seeds} ({', '.join(map(str, paths))}), "
            "expected each seed once: leave the repetition out, or use --group_by set"
        )
