"""The `unidd` command: dispatch, and how errors and signals end."""

from __future__ import annotations

import os
import signal
import sys
from argparse import ArgumentError
from collections.abc import Sequence
from importlib import import_module
from typing import NoReturn

from unidd_pl import __version__
from unidd_pl.allocator import keep_large_blocks
from unidd_pl.command_options import COMMANDS
from unidd_pl.configs import guard_command_line
from unidd_pl.console import Stopped

_MODULES = {
    **dict.fromkeys(("fit", "statistics", "plan", "tune", "spectrum"), "distillation_commands"),
    **dict.fromkeys(("evaluate", "relabel", "export"), "evaluation_commands"),
    **dict.fromkeys(("pretrain", "convert", "methods"), "preparation_commands"),
    **dict.fromkeys(("sync", "compare", "sweep"), "study_commands"),
}
"""The file of each command, which has a function of its name."""

EXIT_BAD_INPUT = 2


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line; bad input ends with a message and exit status 2."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    keep_large_blocks()
    try:
        _dispatch(arguments)
        if "torch.distributed" in sys.modules:  # else there is nothing to leave, and torch takes seconds
            import_module("unidd_pl.ranks").leave_processes()
    except KeyboardInterrupt:
        _end(128 + signal.SIGINT, "stopped")  # a shell's convention
    except Stopped as stop:
        _end(stop.status, str(stop))
    except Exception as error:
        if os.environ.get("UNIDD_DEBUG") == "1":
            raise
        # By name: to import Lightning here would cost seconds where it is not needed.
        misconfigured = type(error).__name__ == "MisconfigurationException"
        if misconfigured or isinstance(error, (ValueError, OSError, ArgumentError)):
            _end(EXIT_BAD_INPUT, f"error: {error}")
        raise


def _end(status: int, message: str) -> NoReturn:
    sys.stderr.write(f"unidd: {message}\n")
    sys.exit(status)


def _dispatch(arguments: list[str]) -> None:
    if not arguments or arguments[0] in ("-h", "--help"):
        sys.stdout.write(_usage())
        return
    if arguments[0] == "--version":
        sys.stdout.write(f"unidd {__version__}\n")
        return
    command, rest = arguments[0], arguments[1:]
    if command not in COMMANDS:
        raise ValueError(f"unknown command {command!r}: expected one of {', '.join(COMMANDS)}; see unidd --help")
    guard_command_line()
    # Imported when it is asked for, and what it needs by the function, so that --help and export stay fast.
    getattr(import_module(f"unidd_pl.{_MODULES[command]}"), command)(rest)


def _usage() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {about}" for name, about in COMMANDS.items()]
    return (
        "usage: unidd COMMAND [options]\n\n"
        + "\n".join(lines)
        + "\n\nunidd COMMAND --help lists the options of a command; UNIDD_DEBUG=1 shows tracebacks.\n"
    )


if __name__ == "__main__":
    main()
