"""What the commands say to the person in front of them."""

from __future__ import annotations

import sys


def say(message: str) -> None:
    """Print one message to the standard output, at once also where that is a pipe."""
    sys.stdout.write(message + "\n")
    sys.stdout.flush()
