"""The record of one run on the disk, written first and sent afterwards.

One folder a run: ``journal.jsonl`` with an entry a line, ``files/`` with the artifacts, ``sent.json`` with what the
store already has, ``lock``, held by the process that sends. Entries are dictionaries of one key:

    {"start": {uri, experiment, name, tags, parent, unless, time}}    the first one
    {"metrics": [[key, value, step, time], …]}    {"params": {key: value}}    {"tag": [key, value]}
    {"artifact": [path in the folder, folder in the store]}    {"input": {name, digest, source, context}}
    {"end": [status, time]}    the last one, unless the run goes on:
    {"reopen": time}           it is running again

Times are milliseconds since 1970. What is sent twice, after a crash between sending and noting it, is the same in
the store: MLflow keeps equal metrics and params once.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import uuid4

from unidd_pl.plain_json import parse_json
from unidd_pl.tracking.entries import FILES, is_entry

Entry = Mapping[str, Any]


class DamagedRecordError(ValueError):
    """A record on the disk is not what a run wrote."""


_JOURNAL, _SENT, _LOCK = "journal.jsonl", "sent.json", "lock"


def now() -> int:
    """Return the time in milliseconds since 1970, as MLflow counts it."""
    return int(time.time() * 1000)


@dataclass(frozen=True)
class Start:
    """What a run is created with.

    Args:
        uri: Store that the run is for, without a password.
        experiment: Name of its experiment.
        name: Name of the run.
        tags: Its tags.
        parent: Tags by which the store finds the run above it, the latest; None for none.
        unless: Tags of a run that makes this one superfluous where the experiment has it; None for none.
        time: When it began.
    """

    uri: str
    experiment: str
    name: str
    tags: dict[str, str]
    parent: dict[str, str] | None = None
    unless: dict[str, str] | None = None
    time: int = field(default_factory=now)


class Journal:
    """The record of one run.

    Args:
        folder: Its folder.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._writing = threading.Lock()
        self._locked: int | None = None

    @classmethod
    def begin(cls, outbox: Path, start: Start, key: str | None = None) -> Journal:
        """Create the journal of a run in an outbox, or go on with one; this process holds its lock from the beginning.

        Args:
            outbox: The outbox.
            start: What the run is created with, where it is not there any more.
            key: Name of the journal to go on with; None for a new run. One that was sent and removed is begun anew
                under its name, by which the store finds the run.
        """
        if key is not None and (journal := cls._reopened(outbox / key, start)):
            return journal
        journal = cls(outbox / f"{start.time}-{uuid4().hex[:12]}")
        journal.folder.mkdir(parents=True)
        journal.lock()
        journal.append({"start": vars(start)})
        return journal

    @classmethod
    def _reopened(cls, folder: Path, start: Start) -> Journal | None:
        """Return the journal of a run that goes on; None where another process holds it, or it is for another store."""
        journal = cls(folder)
        folder.mkdir(parents=True, exist_ok=True)
        if not journal.lock():
            return None
        if not (folder / _JOURNAL).exists():
            journal.append({"start": vars(start)})
        elif (journal.start.uri, journal.start.experiment) != (start.uri, start.experiment):
            journal.unlock()
            return None
        journal.append({"reopen": now()})
        return journal

    @classmethod
    def waiting(cls, outbox: Path) -> list[Journal]:
        """Return the journals of an outbox, the oldest first, so that a parent comes before its children."""
        return [cls(file.parent) for file in sorted(outbox.glob(f"*/{_JOURNAL}"))]

    @property
    def start(self) -> Start:
        """What the run is created with.

        Raises:
            DamagedRecordError: If the file does not begin with it.
        """
        try:
            with (self.folder / _JOURNAL).open("rb") as file:
                entry = parse_json(file.readline(), _JOURNAL)
            if not is_entry(entry):
                raise ValueError("another entry")
            return Start(**entry["start"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DamagedRecordError(
                f"cannot read the record {self.folder} ({type(error).__name__}): expected one that a run wrote; "
                "remove the folder if its process was killed before it wrote anything"
            ) from error

    @property
    def tags(self) -> dict[str, str]:
        """Tags that the run has by now."""
        tags = dict(self.start.tags)
        tags.update(entry["tag"] for entry, _ in self.entries(0) if "tag" in entry)
        return tags

    def append(self, entry: Entry) -> None:
        """Write an entry; it outlives the process from here on."""
        line = json.dumps(entry, ensure_ascii=False).encode() + b"\n"
        with self._writing, (self.folder / _JOURNAL).open("ab") as file:
            file.write(line)

    def keep_file(self, path: Path, folder: str) -> None:
        """Keep a file, or a folder with what is in it, as it is now, and write its entry.

        Files here are linked where the disk allows it: this project replaces its files and does not write into them.
        """
        target = self.folder / FILES / uuid4().hex[:12] / path.name
        target.parent.mkdir(parents=True)
        if path.is_dir():
            shutil.copytree(path, target, copy_function=_link)
        else:
            _link(path, target)
        self.append({"artifact": [str(target.relative_to(self.folder)), folder]})

    def keep_text(self, content: str, name: str) -> None:
        """Keep a text as an artifact of this name, and write its entry."""
        target = self.folder / FILES / uuid4().hex[:12] / Path(name).name
        target.parent.mkdir(parents=True)
        target.write_text(content)
        folder = str(Path(name).parent)
        self.append({"artifact": [str(target.relative_to(self.folder)), "" if folder == "." else folder]})

    def entries(self, offset: int) -> Iterator[tuple[Entry, int]]:
        """Yield the entries from a place in the file on, each with the place behind it; half a line is left.

        Raises:
            DamagedRecordError: If a whole line is no entry; those before it have been yielded.
        """
        with (self.folder / _JOURNAL).open("rb") as file:
            file.seek(offset)
            for line in file:
                if not line.endswith(b"\n"):
                    return
                entry = self._parse(line, offset)
                offset += len(line)
                yield entry, offset

    def _parse(self, line: bytes, offset: int) -> Entry:
        try:
            entry: Any = json.loads(line)  # which takes the NaN of a loss
            if is_entry(entry):
                return dict(entry)
            reason = "it is no object of one key with what belongs to it"
        except (ValueError, RecursionError) as error:
            reason = str(error)
        raise DamagedRecordError(
            f"{self.folder / _JOURNAL}: got a damaged line at byte {offset} ({reason}), expected an entry that a run "
            "wrote; what stands before it is sent: delete the line and run `unidd sync` again"
        )

    @property
    def sent(self) -> tuple[str | None, int]:
        """Id of the run in the store, and the place in the file up to which it is sent."""
        try:
            state = parse_json((self.folder / _SENT).read_bytes(), _SENT)
            run_id, offset = state["run_id"], state["offset"]
            size = (self.folder / _JOURNAL).stat().st_size
        except (OSError, ValueError, KeyError, TypeError):
            return None, 0  # sent again: that leaves the same in the store
        proper = isinstance(run_id, str | None) and isinstance(offset, int) and 0 <= offset <= size
        return (run_id, offset) if proper else (None, 0)

    def mark_sent(self, run_id: str | None, offset: int) -> None:
        """Note what the store has."""
        temporary = self.folder / f"{_SENT}.tmp"
        temporary.write_text(json.dumps({"run_id": run_id, "offset": offset}))
        os.replace(temporary, self.folder / _SENT)

    @property
    def changed(self) -> int:
        """When the last entry was written, milliseconds since 1970."""
        return int((self.folder / _JOURNAL).stat().st_mtime * 1000)

    def lock(self) -> bool:
        """Take the lock; False where another process holds it."""
        descriptor = os.open(self.folder / _LOCK, os.O_CREAT | os.O_RDWR)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(descriptor)
            return False
        self._locked = descriptor
        return True

    def unlock(self) -> None:
        """Give the lock back."""
        if self._locked is not None:
            os.close(self._locked)
            self._locked = None

    def remove(self) -> None:
        """Delete a journal that is sent as a whole, and the outbox where it was the last."""
        shutil.rmtree(self.folder, ignore_errors=True)
        self.unlock()
        with suppress(OSError):
            self.folder.parent.rmdir()


def _link(source: str | Path, target: str | Path) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
