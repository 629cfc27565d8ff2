"""Real runs of `unidd fit` on the embedded digits: processes forked from one that has everything imported."""

from __future__ import annotations

import os
import random
import signal
import sqlite3
import sys
import time
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path

import unidd_pl.fit  # noqa: F401  which the command line imports late
from unidd_pl import cli
from unidd_pl.distilled import DistilledSet

CONFIG = Path(__file__).parent.parent / "configs/cfm_digits.yaml"
SETTINGS = {
    "teacher.epochs": 1, "model.init_args.iterations": 10, "model.init_args.ipc": 3, "model.init_args.chunk_size": 4,
    "checkpoint_every": 7, "trainer.enable_progress_bar": "false",
}  # fmt: skip
PATIENCE = 600  # seconds for one run, on a busy machine

Prepare = Callable[[], None]


class Bench:
    """Starts runs in one folder and compares what they leave.

    Args:
        work: Folder of everything.
    """

    def __init__(self, work: Path) -> None:
        self.work = work
        self.draw = random.Random(0)
        self.count = 0
        self.fit(work / "reference")
        self.seconds = min(self._timed(work / "again") for _ in range(2))  # the machine may stand still in one of them
        self.expected = contents(work / "reference")
        if contents(work / "again") != self.expected:
            raise SystemExit("two undisturbed runs differ: nothing can be compared")

    def _timed(self, output: Path) -> float:
        """Return the seconds of a run with teacher and statistics in the cache."""
        began = time.monotonic()
        self.fit(output, "--overwrite", "true")
        return time.monotonic() - began

    def arguments(self, output: Path, *more: str) -> list[str]:
        """Return the command line of a run."""
        options = [f"--{name}={value}" for name, value in SETTINGS.items()]
        places = ["--cache_dir", str(self.work / "cache"), "--output_dir", str(output)]
        tracking = ["--tracking.uri", f"sqlite:///{self.work}/mlflow.db"]
        return ["fit", "--config", str(CONFIG), *options, *places, *tracking, *more]

    def start(self, output: Path, *more: str, prepare: Prepare | None = None) -> int:
        """Start a run; return the id of its process."""
        return self._start(output, self.arguments(output, *more), prepare)

    def command(self, output: Path, arguments: list[str]) -> int:
        """Run another command to its end, with the messages of a run; return the exit status, or minus the signal."""
        return wait(self._start(output, arguments))

    def _start(self, output: Path, arguments: list[str], prepare: Prepare | None = None) -> int:
        child = os.fork()
        if child:
            return child
        log = os.open(self.log(output), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(log, 1)
        os.dup2(log, 2)
        if prepare is not None:
            prepare()
        status = 1
        try:
            cli.main(arguments)
            status = 0
        except SystemExit as end:
            status = end.code if isinstance(end.code, int) else 1
        except BaseException:
            sys.excepthook(*sys.exc_info())
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)

    def fit(self, output: Path, *more: str, prepare: Prepare | None = None) -> int:
        """Run to the end; return the exit status, or minus the signal."""
        return wait(self.start(output, *more, prepare=prepare))

    def log(self, output: Path) -> Path:
        """Return where a run's messages go: never onto the disk that is full."""
        return self.work / (str(output.relative_to(self.work)).replace("/", "_") + ".log")

    def last_words(self, output: Path) -> str:
        """Return the last line that a run printed."""
        return self.log(output).read_text().strip().splitlines()[-1]

    def new(self) -> Path:
        """Return a fresh output folder."""
        self.count += 1
        return self.work / f"run{self.count:03d}"

    def recovered(self, output: Path) -> str:
        """Go on; return "" where the result is the undisturbed one and nothing else is left, else what is wrong."""
        before = self.records(output)
        status = self.fit(output, "--ckpt_path", "last")
        return f"ended with {status}: {self.last_words(output)}" if status else self.verdict(output, before=before)

    def verdict(self, output: Path, expected: object = None, before: dict[str, str] | None = None) -> str:
        """Compare a finished run: images and chunks, no temporary file or lock, one MLflow run, that of before."""
        if contents(output) != (expected or self.expected):
            return "other images"
        left = [path.name for path in output.rglob("*") if path.name.startswith((".tmp-", ".lock"))]
        journals = (self.work / "outbox").glob("*/journal.jsonl")
        left += [str(path) for path in journals if f'"name": "{output.name}"' in path.read_text()]
        if left:
            return f"left {left}"
        after = self.records(output)
        continued = list(after.values()) == ["FINISHED"] and (before or {}).keys() <= after.keys()
        return "" if continued else f"MLflow had the runs {before} and has {after}"

    def records(self, output: Path) -> dict[str, str]:
        """Return the status of each MLflow run of an output folder by its id."""
        with closing(sqlite3.connect(self.work / "mlflow.db")) as database:
            return dict(database.execute("SELECT run_uuid, status FROM runs WHERE name = ?", [output.name]))


def ranks_of(output: Path) -> dict[int, int]:
    """Return the processes that share a run, which the command line names, by their number on this machine."""
    found = {}
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it has ended
            command = (process / "cmdline").read_bytes().split(b"\0")
            environment = (process / "environ").read_bytes().split(b"\0")
            ranks = [one.removeprefix(b"LOCAL_RANK=") for one in environment if one.startswith(b"LOCAL_RANK=")]
            if str(output).encode() in command and b"torch.distributed.run" not in command:
                found[int(ranks[0]) if ranks else 0] = int(process.name)
    return found


def wait(child: int) -> int:
    """Return the exit status of a process, or minus the signal that ended it; one that hangs is killed."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.02)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    raise SystemExit(f"a run hung for {PATIENCE} s")


def contents(output: Path) -> object:
    """Return what has to be the same: the images of the set and all chunks, byte for byte."""
    chunks = {path.name: path.read_bytes() for path in sorted((output / "chunks").iterdir())}
    return DistilledSet.load(output / "distilled.safetensors").fingerprint(), chunks
