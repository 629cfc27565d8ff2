"""What the fixture `refused` gives."""

from collections.abc import Callable

Refused = Callable[..., str]
"""Runs a command that has to be refused; returns the message."""
