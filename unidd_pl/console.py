"""What passes between the commands and the person in front of them: messages, and the wish to stop."""

from __future__ import annotations

import re
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

EXIT_LOST = 1  # exit status of a process that has lost another: neither bad input nor a signal to it


def say(message: str) -> None:
    """Print one message to the standard output, at once also where that is a pipe."""
    sys.stdout.write(message + "\n")
    sys.stdout.flush()


class Stopped(Exception):
    """A command was stopped by a signal.

    Args:
        number: Number of the signal.
        message: What to tell the person who stopped it.
        status: Exit status; None for a shell's convention, 128 + number.
    """

    def __init__(self, number: int, message: str, status: int | None = None) -> None:
        super().__init__(message)
        self.number = number
        self.status = 128 + number if status is None else status


class ProcessLost(Stopped):
    """Another of the processes that do a work together is gone, so this one cannot go on.

    Args:
        what: What has ended.
        error: What told so.
    """

    def __init__(self, what: str, error: BaseException | None = None) -> None:
        told = "" if error is None else f" ({_short(error)})"
        cure = "its own messages say why; the same command with --ckpt_path last goes on from the last checkpoint"
        super().__init__(signal.SIGKILL, f"error: {what}{told}, and this one cannot go on alone: {cure}", EXIT_LOST)


def _short(error: BaseException) -> str:
    """Return what an error says, without gloo's place in its source and its advice."""
    first = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return re.sub(r"^\[\S+:\d+\] ", "", first).partition(". This is typically")[0][:200]


@contextmanager
def stopped_by(stopping: signal.Signals, message: str) -> Iterator[None]:
    """Turn a signal into `Stopped` within the block, so that what is open is closed and what runs is ended.

    Args:
        stopping: The signal.
        message: What to tell the person who stopped it.
    """

    def stop(number: int, _: FrameType | None) -> None:
        raise Stopped(number, message)

    if threading.current_thread() is not threading.main_thread():  # only that one may set handlers
        yield
        return
    previous = signal.signal(stopping, stop)
    try:
        yield
    finally:
        signal.signal(stopping, previous)
