"""What passes between the commands and the person in front of them: messages, and the wish to stop."""

from __future__ import annotations

import sys


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
