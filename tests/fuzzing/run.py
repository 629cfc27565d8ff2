"""Read many spoilt files of some kinds, in a process of its own: python run.py COUNT FOLDER KIND …, or all kinds.

Prints a line of JSON a kind: how many had which of the `OUTCOMES`, and the first failures. A failure is an exception
that is no clear error, a read of more than `SECONDS`, a process that grows by more than `MEMORY`, or code that ran.
`make fuzz` puts the lines of all kinds into a table (table.py).
"""

from __future__ import annotations

import faulthandler
import json
import os
import random
import resource
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parent.parent)]

SECONDS = 20.0  # of the processor, for one file
PATIENCE = 150.0  # seconds by the clock: a machine that stands still for a while is no fault of the reader
MEMORY = 2**30  # bytes of address space; the files have a few kilobytes, the .beton file 8 MB
SHOWN = 5  # failures
FORBIDDEN = ("os.system", "os.exec", "os.posix_spawn", "os.fork", "subprocess.Popen", "shutil.rmtree", "pty.spawn")
OUTCOMES = ("loaded", "refused", "unclear", "hung", "grew", "ran code")
BARE = (UnicodeError, json.JSONDecodeError)  # errors that name no file, and are ValueErrors all the same
LONGEST = 20_000  # characters of a message

watched: list[bool] = []
"""Not empty once the audit hook is there, which no one can take away."""


class TookTooLong(BaseException):
    """Reading one file took more than `SECONDS`."""


class RanCode(BaseException):
    """Reading a file started something."""


def main(count: int, folder: Path, names: list[str]) -> None:
    """Read `count` spoilt files of each kind."""
    os.chdir(folder)
    from kinds import KINDS

    for kind in [one for one in KINDS if one.name in names or not names]:
        sys.stderr.write(f"\n{kind.name} ")  # the last one printed is the one that brought the process down
        sys.stderr.flush()
        sys.stdout.write("\n" + json.dumps(read_spoilt(kind, count, folder)) + "\n")
        sys.stdout.flush()


def read_spoilt(kind: Any, count: int, folder: Path) -> dict[str, Any]:
    """Make a proper file, read it, then read `count` spoilt ones."""
    from mutations import MARKER
    from world import CLEAR

    proper = kind.make(folder)
    kind.read(proper)
    data, spoilt = proper.read_bytes(), folder / f"spoilt{proper.suffix}"
    watch()
    counts = dict.fromkeys(OUTCOMES, 0)
    failures: list[str] = []
    began = time.monotonic()
    for number in range(count):
        draw = random.Random(f"{kind.name} {number}")
        mutation = draw.choice(kind.mutations)
        spoilt.write_bytes(mutation(data, draw))
        outcome, how = attempt(lambda: kind.read(spoilt), CLEAR)
        if Path(MARKER).exists():
            Path(MARKER).unlink()
            outcome, how = "ran code", "its marker is there"
        counts[outcome] += 1
        if how:
            failures.append(f"{kind.name} {number}, {mutation.__name__}: {how}")
    seconds = round(time.monotonic() - began, 1)
    return {"kind": kind.name, **counts, "seconds": seconds, "failures": len(failures), "first": failures[:SHOWN]}


def attempt(read: Callable[[], object], clear: tuple[type[Exception], ...]) -> tuple[str, str]:
    """Return one of the `OUTCOMES`, and what went wrong where something did."""
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    signal.setitimer(signal.ITIMER_REAL, PATIENCE)
    try:
        read()
        return "loaded", ""
    except clear as error:
        message = str(error)
        if "malloc of size" in message:  # Arrow's word for it
            return "grew", message
        if isinstance(error, BARE) or not 0 < len(message) < LONGEST:
            return "unclear", f"a message of {len(message)} characters: {type(error).__name__} {message[:200]}"
        return "refused", ""
    except BaseException as error:
        kinds = {TookTooLong: "hung", MemoryError: "grew", RanCode: "ran code"}
        return kinds.get(type(error), "unclear"), traceback.format_exc(limit=-6)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.setitimer(signal.ITIMER_PROF, 0)


def watch() -> None:
    """Limit time and memory from here on, and forbid to start anything."""

    def too_long(number: int, frame: FrameType | None) -> None:
        raise TookTooLong

    def forbid(event: str, arguments: tuple[Any, ...]) -> None:
        if watched and event in FORBIDDEN:
            raise RanCode(event, arguments)

    signal.signal(signal.SIGALRM, too_long)
    signal.signal(signal.SIGPROF, too_long)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, resource.RLIM_INFINITY))
    if not watched:
        watched.append(True)
        sys.addaudithook(forbid)


if __name__ == "__main__":
    faulthandler.enable()
    warnings.simplefilter("ignore")  # Pillow warns of every picture that is odd
    main(int(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:])
