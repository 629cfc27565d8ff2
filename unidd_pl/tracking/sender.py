"""Journals to a store: beside a run by a thread of its own, and afterwards by `unidd sync`."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterator
from typing import Any

from unidd_pl.console import say
from unidd_pl.tracking.addresses import without_password
from unidd_pl.tracking.journal import DamagedRecordError, Entry, Journal
from unidd_pl.tracking.store import KEY_TAG, Store, is_refusal

INTERVAL = 1.0  # seconds between two looks at the journal
LONGEST_PAUSE = 60.0  # seconds between two tries while the store is away
MAX_POINTS = 1000  # metrics a call; MLflow takes no more
_IN_FLIGHT = 2.0  # seconds that the end of a run waits for a call that has not come back

_told: set[str] = set()  # stores that this process has said to be away


class ParentWaitsError(Exception):
    """A run cannot be nested yet: the one above it is still in the outbox."""


class Sender:
    """Sends one journal.

    Args:
        journal: The journal; its lock is held.
        open_store: Opens the store.
    """

    def __init__(self, journal: Journal, open_store: Callable[[], Store]) -> None:
        self.journal = journal
        self.open_store = open_store
        self.run_id, self._offset = journal.sent
        self.ended = False
        self.refused: list[str] = []
        self._superfluous = False
        self._sending = threading.Lock()

    def send(self) -> bool:
        """Send what is there; return whether anything was.

        Raises:
            Exception: Whatever keeps the store from taking it; what was sent before is noted.
        """
        with self._sending:
            sent = False
            for entries, end in _batches(self.journal.entries(self._offset)):
                self._apply(entries)
                self._offset = end
                self.journal.mark_sent(self.run_id, end)
                sent = True
            return sent

    def _apply(self, entries: list[Entry]) -> None:
        (kind,) = entries[0]
        content = entries[0][kind]
        if kind == "start":
            self._check_parent()
            self.run_id = self.open_store().create(self.journal.start, self.journal.folder.name)
            self._superfluous = self.run_id is None
        elif kind == "reopen" and self.run_id is not None and not self.open_store().reopen(self.run_id):
            self.run_id = self.open_store().create(self.journal.start, self.journal.folder.name)  # it was deleted
        self.ended = kind == "end"  # and not, where the run was reopened
        if kind in ("start", "reopen") or self.run_id is None:
            return
        try:
            self._record(self.open_store(), self.run_id, kind, content, entries)
        except Exception as error:
            if not is_refusal(error):
                raise
            # The same again would be refused again, and all behind it would wait for ever.
            self.refused.append(f"{kind}: {error}")

    def _check_parent(self) -> None:
        """Let a run wait for the one above it where that waits in the same outbox.

        Raises:
            ParentWaitsError: If so.
        """
        start = self.journal.start
        if start.parent is None or self.open_store().find(start.experiment, start.parent) is not None:
            return
        others = (one for one in Journal.waiting(self.journal.folder.parent) if one.folder != self.journal.folder)
        if any(start.parent.items() <= {**_tags(one), KEY_TAG: one.folder.name}.items() for one in others):
            raise ParentWaitsError(f"the run above {start.name} is not sent yet")

    def _record(self, store: Store, run_id: str, kind: str, content: Any, entries: list[Entry]) -> None:
        match kind:
            case "metrics":
                store.log_metrics(run_id, [point for entry in entries for point in entry["metrics"]])
            case "params":
                store.log_params(run_id, content)
            case "tag":
                store.log_tag(run_id, *content)
            case "artifact":
                store.log_artifact(run_id, self.journal.folder / content[0], content[1])
            case "input":
                store.log_input(run_id, **content)
            case "end":
                store.end(run_id, *content)


class BackgroundSender(Sender):
    """Sends beside a run: a store that is away costs the run nothing and is tried again, ever less often."""

    def __init__(self, journal: Journal, open_store: Callable[[], Store]) -> None:
        super().__init__(journal, open_store)
        self.away = False
        self._wake = threading.Event()
        self._closing = False
        self._thread = threading.Thread(target=self._work, name="mlflow sender", daemon=True)

    def start(self) -> None:
        """Begin to send."""
        self._thread.start()

    def close(self) -> None:
        """Send the rest and remove the journal; where the store is away leave it for `unidd sync`."""
        self._closing = True
        self._wake.set()
        while self._thread.is_alive() and not self.away:
            self._thread.join(INTERVAL)
        self._thread.join(_IN_FLIGHT)
        if self.ended:
            self.journal.remove()
        elif not self._thread.is_alive():
            self.journal.unlock()

    def _work(self) -> None:
        pause = INTERVAL
        while True:
            closing = self._closing  # before sending: what is written later is sent in the next turn
            try:
                self.send()
                self.away, pause = False, INTERVAL
            except Exception as error:  # tracking must not end a training, whatever goes wrong in it
                self.away, pause = True, min(2 * pause, LONGEST_PAUSE)
                tell_away(self.journal, error)
            if closing:
                return
            self._wake.wait(pause)


def tell_away(journal: Journal, error: Exception) -> None:
    """Say, once for each store, that it is away and what becomes of the records."""
    uri = journal.start.uri
    if uri not in _told:
        _told.add(uri)
        say(
            f"MLflow at {uri} does not take records now ({_short(error)}): the stage goes on, they wait in "
            f"{journal.folder.parent}, and `unidd sync --outbox {journal.folder.parent}` sends them"
        )


def _batches(entries: Iterator[tuple[Entry, int]]) -> Iterator[tuple[list[Entry], int]]:
    """Yield entries with the place behind them: metrics that follow each other together, others one by one."""
    for is_metrics, group in itertools.groupby(entries, key=lambda one: "metrics" in one[0]):
        batch: list[Entry] = []
        points = 0
        damage: DamagedRecordError | None = None
        try:
            for entry, end in group:
                batch.append(entry)
                points += len(entry["metrics"]) if is_metrics else MAX_POINTS
                if points >= MAX_POINTS:
                    yield batch, end
                    batch, points = [], 0
        except DamagedRecordError as error:  # what stands before it is whole
            damage = error
        if batch:
            yield batch, end
        if damage is not None:
            raise damage


def _tags(journal: Journal) -> dict[str, str]:
    try:
        return journal.tags
    except DamagedRecordError:  # it tells of itself when it is its turn
        return {}


def _short(error: Exception) -> str:
    lines = without_password(str(error)).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:160]}" if lines else type(error).__name__
