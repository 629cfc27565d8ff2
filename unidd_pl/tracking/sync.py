"""`unidd sync`: what waits in an outbox goes to its MLflow servers."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path

from unidd_pl.console import say
from unidd_pl.tracking.addresses import sqlite_path, without_password
from unidd_pl.tracking.journal import DamagedRecordError, Journal
from unidd_pl.tracking.runs import DEFAULT_OUTBOX, DEFAULT_URI
from unidd_pl.tracking.sender import ParentWaitsError, Sender
from unidd_pl.tracking.store import Store


def sync(outbox: Path, uri: str | None = None) -> int:
    """Send all records of an outbox that no running command is sending; return how many runs were completed.

    A run whose process was killed has no end in its record; it is sent and ended as KILLED.

    Args:
        outbox: The outbox.
        uri: Store to send to; None for the one that each run was recorded for, with user and password of
            MLFLOW_TRACKING_URI, or MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, where it needs them.

    Raises:
        ValueError: If a store does not take the records, or records are damaged: they stay.
    """
    if not outbox.is_dir():
        say(f"Nothing to send: there is no {outbox}")
        return 0
    open_store = cache(Store)
    done, busy = 0, 0
    damaged: list[str] = []
    for journal in Journal.waiting(outbox):
        if not journal.lock():
            busy += 1
            continue
        try:
            _send(journal, partial(open_store, uri or _address(journal.start.uri)))
            done += 1
        except ParentWaitsError:
            busy += 1  # with its parent
        except DamagedRecordError as error:
            damaged.append(str(error))  # the others are sent all the same
        finally:
            journal.unlock()
    say(f"Sent: {done} run(s) from {outbox}" + (f"; {busy} are being sent by commands that run" if busy else ""))
    if damaged:
        raise ValueError("; ".join(damaged))
    return done


def outbox_of(outbox: str | None, uri: str | None) -> Path:
    """Return the outbox that is meant: the given one, or where `Tracking` keeps it."""
    file = sqlite_path(uri or os.environ.get("MLFLOW_TRACKING_URI") or DEFAULT_URI)
    beside = file.parent / "outbox" if file else Path(DEFAULT_OUTBOX)
    return Path(outbox) if outbox else beside


def _send(journal: Journal, open_store: Callable[[], Store]) -> None:
    sender = Sender(journal, open_store)
    start = journal.start
    try:
        sender.send()
        if not sender.ended and sender.run_id is not None:
            open_store().end(sender.run_id, "KILLED", journal.changed)
    except (ParentWaitsError, DamagedRecordError):
        raise
    except Exception as error:  # whatever the store, the network or a driver raises, the cure is the same
        raise ValueError(
            f"could not send the run {start.name} to {start.uri}: {without_password(str(error))}; nothing is lost: try "
            "again when the server answers, or give another address with --tracking.uri"
        ) from error
    for what in sender.refused:
        say(f"Note: {start.uri} refuses a part of {start.name}: {what}")
    journal.remove()


def _address(recorded: str) -> str:
    """Return the address of a store with the password that the environment has for it."""
    given = os.environ.get("MLFLOW_TRACKING_URI", "")
    return given if without_password(given) == recorded else recorded
