"""How a run stands, for the start that goes on with it: which record it has, and whether it is finished."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from unidd_pl.configs import load_yaml
from unidd_pl.files import atomic_write
from unidd_pl.plain_json import parse_json
from unidd_pl.sharding import is_first
from unidd_pl.tracking import StageRun, Tracking

STANDING_FILE = "standing.json"
_OF_THE_START = ("ckpt_path", "overwrite")  # settings that do not say what the run is
_KEY = re.compile(r"\d+-[0-9a-f]+")  # names of journals; nothing that leads out of the outbox


@dataclass(frozen=True)
class Standing:
    """What lies beside a checkpoint.

    Args:
        key: `StageRun.key` of the run's record; None where it has none.
        finished: Whether all that the run makes was written.
        config: Digest of the run's config; None where it is not known.
    """

    key: str | None = None
    finished: bool = False
    config: str | None = None

    def save(self, folder: Path) -> None:
        """Write it to the run's folder."""
        with atomic_write(folder / STANDING_FILE) as temporary:
            content = {"record": self.key, "finished": self.finished, "config": self.config}
            temporary.write_text(json.dumps(content) + "\n")

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
        key, config = content.get("record"), content.get("config")
        known = key if isinstance(key, str) and _KEY.fullmatch(key) else None
        return cls(known, content.get("finished") is True, config if isinstance(config, str) else None)


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
    from_checkpoint: bool = True,
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
        from_checkpoint: Whether there is a checkpoint, which belongs to the config. A run that was killed before its
            first one begins anew, and then has the record of before only where the config is that of before.
        complete: Tells at the end whether all was made that the run is to make.
    """
    settings = _digest(config)
    before = Standing.load(folder) if going_on else Standing()
    known = before.key if from_checkpoint or before.config == settings else None
    with tracking.run("distillation", folder.name, tags, config, parent=parent, key=known) as run:
        key = run.key or known  # a start without a record does not end the record
        if is_first():
            Standing(key, config=settings).save(folder)
        yield run
    if is_first():
        Standing(key, complete(), settings).save(folder)


def _digest(config: str) -> str:
    settings = load_yaml(config)
    said = {name: value for name, value in settings.items() if name not in _OF_THE_START}
    return hashlib.sha256(json.dumps(said, sort_keys=True, default=str).encode()).hexdigest()
