"""Statistics from the cache; gathered where they are missing, by all processes together.

Legend: W processes.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from unidd_pl.data.module import ImageData
from unidd_pl.data.order import Shard
from unidd_pl.specs import DatasetSpec
from unidd_pl.spectral import Moments, Signal
from unidd_pl.statistics import (
    Statistics,
    conditions,
    digest,
    gather_statistics,
    load_statistics,
    partial_pass,
    save_statistics,
)
from unidd_pl.teachers import Teacher
from unidd_pl.team import ALONE, Team


class StatisticsRecipe:
    """How to get the real moments.

    Args:
        file: Statistics written by ``unidd statistics``; None takes them from the cache or gathers them.
        batch_size: Images a forward pass; it changes memory and speed, not the result.
        save_every: Seconds of a pass after which what is done is saved, so that the same command goes on from there
            when it was stopped; 0 saves after every batch.

    Raises:
        ValueError: If a number is out of range.
    """

    def __init__(self, file: str | None = None, batch_size: int = 250, save_every: float = 60.0) -> None:
        if batch_size < 1:
            raise ValueError(f"statistics.batch_size: got {batch_size}, expected at least 1")
        if not save_every >= 0:
            raise ValueError(f"statistics.save_every: got {save_every}, expected at least 0 seconds")
        self.save_every = save_every
        self.file = file
        self.batch_size = batch_size


def obtain_statistics(
    recipe: StatisticsRecipe,
    teacher: Teacher,
    data: ImageData,
    layers: Sequence[str],
    signal: Signal,
    cache: Path,
    *,
    device: torch.device | str = "cpu",
    team: Team = ALONE,
) -> tuple[Statistics, Path, bool]:
    """Return statistics, their file, and whether they were gathered just now.

    Args:
        recipe: How to get them.
        teacher: The frozen teacher.
        data: The real data.
        layers: Names of the layers whose inputs are described.
        signal: Signal of the FLC.
        cache: Folder of statistics; that of one disk for all processes.
        device: Where to run.
        team: The processes that gather together, each its share of the images. Sums of float64 in another order are
            the only difference that their number makes.

    Raises:
        ValueError: If a given file was made from something else than is asked for, or the processes do not see each
            other's files.
        ProcessLost: If another process has ended.
    """
    wanted = conditions(teacher, data, layers, signal)
    path = Path(recipe.file) if recipe.file else cache / f"{digest(wanted)[:16]}.safetensors"
    if recipe.file or team.decided_by_first(path.exists(), "statistics are there"):
        statistics = load_statistics(path)
        _check_made_from(path, statistics.made_from, wanted)
        return statistics, path, False
    own = gather_statistics(
        teacher, data, layers, signal, batch_size=recipe.batch_size, device=device,
        part=_part(path, team.rank, team.size), save_every=recipe.save_every,
        shard=Shard(team.rank, team.size, pad=False),
    )  # fmt: skip
    team.gathered_by_first("statistics of each share")
    with team.first_alone("statistics of all shares"):
        if team.is_first:
            images = len(data.train)
            moments = own.moments if team.size == 1 else _of_all(path, wanted, recipe.batch_size, images, team.size)
            save_statistics(path, Statistics(own.layers, moments, signal, wanted))
            for left in path.parent.glob(f"{path.stem}.part*"):
                left.unlink(missing_ok=True)
    return load_statistics(path), path, True


def _part(path: Path, rank: int, size: int) -> Path:
    """Return the file of what one of W processes has done of its share."""
    return path.with_suffix(f".part-{rank}-of-{size}.safetensors" if size > 1 else ".part.safetensors")


def _of_all(path: Path, wanted: dict[str, Any], batch_size: int, images: int, size: int) -> tuple[Moments, ...]:
    """Merge the moments of all shares, exactly and in the order of the processes.

    Raises:
        ValueError: If a share is not there.
    """
    total: list[Moments] = []
    for rank in range(size):
        shard, part = Shard(rank, size, pad=False), _part(path, rank, size)
        if shard.count(images) == 0:
            continue
        _, moments = partial_pass(part, wanted, batch_size, shard).resume()
        if not moments:
            raise ValueError(
                f"no statistics of process {rank} at {part}: expected a cache_dir on a disk that all machines share; "
                "give one with --cache_dir"
            )
        total = [a.merge(b) for a, b in zip(total, moments, strict=True)] if total else [*moments]
    return tuple(total)


def _check_made_from(path: Path, got: dict[str, Any], wanted: dict[str, Any]) -> None:
    for what in ("teacher", "layers", "signal", "transform"):
        if got[what] != wanted[what]:
            raise ValueError(
                f"statistics {path} were made with another {what}: got {got[what]!r}, expected {wanted[what]!r}; "
                "leave --statistics.file out to gather them anew"
            )
    got_spec, wanted_spec = (DatasetSpec.from_dict(one["spec"]) for one in (got, wanted))
    if got["data"] != wanted["data"] or got_spec != wanted_spec:
        raise ValueError(
            f"statistics {path} were gathered on other data ({got_spec.num_classes} classes, "
            f"normalised with mean {got_spec.mean}) than is given ({wanted_spec.num_classes} "
            f"classes, mean {wanted_spec.mean}); leave --statistics.file out to gather them anew"
        )
