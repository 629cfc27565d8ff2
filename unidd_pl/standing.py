"""How a run stands, for the start that goes on with it: which record it has, and whether it is finished."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from unidd_pl.files import atomic_write
from unidd_pl.plain_json import parse_json
from unidd_pl.sharding import is_first
from unidd_pl.tracking import StageRun, Tracking

STANDING_FILE = "standing.json"
_KEY = re.compile(r"\d+-[0-9a-f]+")  # names of journals; nothing that leads out of the outbox


@dataclass(frozen=True)
class Standing:
    """What lies beside a checkpoint.

    Args:
        key: `StageRun.key` of the run's record; None where it has none.
        finished: Whether all that the run makes was written.
    """

    key: str | None = None
    finished: bool = False

    def save(self, folder: Path) -> None:
        """Write it to the run's folder."""
        with atomic_write(folder / STANDING_FILE) as temporary:
            temporary.write_text(json.dumps({"record": self.key, "finished": self.finished}) + "\n")

    @classmethod
    def load(cls, folder: Path) -> Standing:
        """Read it; where it is missing or damaged the run gets a new record, and is taken up from its checkpoint."""
        path = folder / STANDING_FILE
        try:
            content = parse_json(path.read_bytes(), path)
        except (OSError, ValueError):
            return cls()
        if not isinstance(content, dict):
            return cls()
        key = content.get("record")
        return cls(key if isinstance(key, str) and _KEY.fullmatch(key) else None, content.get("finished") is True)


def is_finished(folder: Path, result: str) -> bool:
    """Return whether the run of a folder has written all that it makes, of which `result` is still there."""
    return Standing.load(folder).finished and (folder / result).is_file()


@contextmanager
def recorded(
    tracking: Tracking,
    folder: Path,
    tags: Mapping[str, str],
    config: str,
    parent: Mapping[str, str] | None,
    *,
    going_on: bool,
    complete: Callable[[], bool],
) -> Iterator[StageRun]:
    """Record a distillation, and note how it stands; one that goes on, also after a kill, has the record of before.

    Args:
        tracking: Where it is recorded.
        folder: Folder of the run.
        tags: Tags of the run.
        config: The resolved config as YAML.
        parent: Tags of the run to nest it under.
        going_on: Whether it goes on with what the folder holds.
        complete: Tells at the end whether all was made that the run is to make.
    """
    known = Standing.load(folder).key if going_on else None
    with tracking.run("distillation", folder.name, tags, config, parent=parent, key=known) as run:
        key = run.key or known  # a start without a record does not end the record
        if is_first():
            Standing(key).save(folder)
        yield run
    if is_first():
        Standing(key, finished=complete()).save(folder)
