"""What passes between the commands and the person in front of them: messages, and the wish to stop."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


def say(message: str) -> None:
    """Print one message to the standard output, at once also where that is a pipe."""
    sys.stdout.write(message + "\n")
    sys.stdout.flush()


class Stopped(Exception):
    """A command was stopped by a signal.

    Args:
        number: Number of the signal.
        message: What to tell the person who stopped it.
    """

    def __init__(self, number: int, message: str) -> None:
        super().__init__(message)
        self.number = number


@contextmanager
def stopped_by_sigterm(message: str) -> Iterator[None]:
    """Turn SIGTERM into `Stopped` within the block, so that what is open is closed and what runs is ended.

    Args:
        message: What to tell the person who stopped it.
    """

    def stop(number: int, _: FrameType | None) -> None:
        raise Stopped(number, message)

    if threading.current_thread() is not threading.main_thread():  # only that one may set handlers
        yield
        return
    previous = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)
