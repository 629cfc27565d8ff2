"""Take the MLflow server away in the middle of a fit: does the fit go on as fast, and is nothing missing afterwards?

    python benchmarks/server_kill.py [--how KILL|STOP] [--iterations 60] [--json FILE]

A real `mlflow server` process on loopback records a distillation of the digits. Once it has taken records it is killed
(KILL), or stopped so that it takes connections and never answers (STOP). The fit's own record says when each iteration
was; a copy of that record is compared with what a server started anew holds after `unidd sync`.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, Protocol

from records import entries_of, missing

ROOT = Path(__file__).parent.parent
ITERATIONS = 240  # of a round: an idle core does the half of ten rounds in some eight seconds, long after the warm-up
WARM_UP = 3.0  # seconds of a fit that are not counted: the first iterations compile and allocate
_START = 120  # seconds that a server has to answer
_CONFIG = ("--config", str(ROOT / "configs/cfm_digits.yaml"), "--teacher.epochs", "5")
_CLOCK = "loss/total"  # recorded at every iteration, with the time


class AnyServer(Protocol):
    """A tracking server that can be taken away."""

    uri: str
    account: Mapping[str, str]

    def start(self) -> None:
        """Start it and wait until it answers."""

    def signal(self, number: int) -> None:
        """Send a signal to all its processes."""

    def kill(self) -> None:
        """End it."""


def free_port() -> int:
    """Return a port of the loopback interface that nothing listens on."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return int(server.getsockname()[1])


@dataclass
class Process:
    """A server as a process group of its own.

    Args:
        folder: Folder of its files and its log.
        command: How it is started.
        environment: Its environment.
        port: Port on loopback.
        account: Environment of its clients.
    """

    folder: Path
    command: list[str]
    environment: Mapping[str, str]
    port: int
    account: Mapping[str, str] = field(default_factory=dict)
    process: subprocess.Popen[bytes] | None = None

    @property
    def uri(self) -> str:
        """Address of the server."""
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Start it and wait until it answers."""
        log = self.folder / "server.log"
        with log.open("ab") as file:
            self.process = subprocess.Popen(
                self.command, env=self.environment, stdout=file, stderr=file, start_new_session=True
            )
        deadline = time.monotonic() + _START
        while time.monotonic() < deadline and self.process.poll() is None:
            try:
                urllib.request.urlopen(f"{self.uri}/health", timeout=5)
                return
            except OSError:
                time.sleep(0.5)
        raise RuntimeError(f"the server does not answer: {log.read_text()[-3000:]}")

    def signal(self, number: int) -> None:
        """Send a signal to all its processes."""
        if self.process is not None:
            os.killpg(self.process.pid, number)

    def kill(self) -> None:
        """End it."""
        if self.process is not None:
            self.signal(signal.SIGKILL)
            self.process.wait()
            self.process = None


def plain_server(folder: Path) -> Process:
    """Return a server on a SQLite file."""
    port = free_port()
    command = [
        str(Path(sys.executable).with_name("mlflow")), "server", "--backend-store-uri", f"sqlite:///{folder}/server.db",
        "--artifacts-destination", str(folder / "artifacts"), "--host", "127.0.0.1", "--port", str(port),
        "--workers", "1",
    ]  # fmt: skip
    return Process(folder, command, dict(os.environ), port)


def unidd(folder: Path, server: AnyServer, *arguments: str) -> subprocess.Popen[str]:
    """Start `unidd` in a folder, recording to a server."""
    environment = {**os.environ, **server.account, "MLFLOW_TRACKING_URI": server.uri, "PYTHONUNBUFFERED": "1"}
    return subprocess.Popen(
        [sys.executable, "-m", "unidd_pl.cli", *arguments], cwd=folder, env=environment, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip


def fit_arguments(iterations: int, *more: str) -> list[str]:
    """Return a distillation that records every iteration."""
    return [
        "fit", *_CONFIG, "--model.init_args.iterations", str(iterations), "--trainer.log_every_n_steps", "1",
        "--trainer.enable_progress_bar", "false", *more,
    ]  # fmt: skip


def clock(entries: list[dict[str, Any]]) -> list[tuple[int, float]]:
    """Return (iteration, seconds since 1970) of what was recorded at every iteration."""
    points = [point for entry in entries for point in entry.get("metrics", ())]
    return [(step, moment / 1000) for key, _, step, moment in points if key == _CLOCK]


def taken_by_the_server(journal: Path) -> bool:
    """Return whether metrics of a run have arrived."""
    try:
        offset = json.loads((journal / "sent.json").read_text())["offset"]
    except (OSError, ValueError):
        return False
    content = (journal / "journal.jsonl").read_bytes()[:offset]
    return b'"metrics"' in content


def distillation_record(outbox: Path) -> Path | None:
    """Return the folder of the record of the distillation that runs."""
    for journal in sorted(outbox.glob("*/journal.jsonl")):
        first = journal.read_bytes().partition(b"\n")[0]
        if b'"stage": "distillation"' in first:
            return journal.parent
    return None


def fit_without(server: AnyServer, folder: Path, iterations: int, how: int) -> tuple[float, str, Path]:
    """Fit, and take the server away in the middle.

    Returns:
        When it was taken away, what the fit printed, and the folder of its record.
    """
    subprocess.run(  # teacher and statistics, and nothing recorded: only the fit itself is looked at
        [sys.executable, "-m", "unidd_pl.cli", "statistics", *_CONFIG, "--tracking.enabled", "false"],
        cwd=folder, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    fit = unidd(folder, server, *fit_arguments(iterations))
    try:
        record = _half_way(fit, folder / "runs/outbox", iterations)
        server.signal(how)
        moment = time.time()
        said = fit.communicate()[0]
    finally:
        fit.kill()
    if fit.returncode:
        raise RuntimeError(f"the fit failed: {said[-3000:]}")
    return moment, said, record


def _half_way(fit: subprocess.Popen[str], outbox: Path, iterations: int) -> Path:
    """Wait until half of the iterations are done and the server has taken some; return the folder of the record."""
    half = 10 * iterations // 2  # a round for each of ten images per class
    while fit.poll() is None:
        record = distillation_record(outbox)
        if record is not None and taken_by_the_server(record):
            times = clock(entries_of(record))
            if times and times[-1][0] >= half:
                return record
        time.sleep(0.2)
    raise RuntimeError(f"the fit ended too early: {fit.communicate()[0][-3000:]}")


def speeds(times: list[tuple[int, float]], moment: float) -> dict[str, float]:
    """Return iterations a second before and after a moment, and the longest pause of each part."""
    first = times[0][1] + WARM_UP
    before = [one for one in times if first <= one[1] <= moment]
    parts = {"before": before, "after": [before[-1], *(one for one in times if one[1] > moment)]}
    found = {}
    for name, part in parts.items():
        (step, began), (last, ended) = part[0], part[-1]
        found[f"iterations_per_second_{name}"] = round((last - step) / (ended - began), 2)
        pauses = [later[1] - earlier[1] for earlier, later in pairwise(part)]
        found[f"longest_pause_{name}_s"] = round(max(pauses), 2)
    return found


def measure(server: AnyServer, folder: Path, how: int, iterations: int = ITERATIONS) -> dict[str, Any]:
    """Do all of it; the server runs in the end, and the caller ends it.

    Returns:
        Speeds before and after, how often the fit said that the server is away, what was compared and what is missing.
    """
    server.start()
    moment, said, record = fit_without(server, folder, iterations, how)
    kept = folder / "kept" / record.name
    shutil.copytree(record, kept)
    server.kill()
    server.start()
    sync = unidd(folder, server, "sync")
    answer = sync.communicate()[0]
    if sync.returncode:
        raise RuntimeError(f"unidd sync failed: {answer}")
    os.environ.update(server.account)
    sizes, gaps = missing(kept, server.uri)
    return {
        "how": signal.Signals(how).name, **speeds(clock(entries_of(kept)), moment),
        "said_so": said.count("does not take records now"), "compared": sizes, "missing": gaps,
        "left_in_the_outbox": len(list((folder / "runs").glob("outbox/*"))),
    }  # fmt: skip


def main() -> None:
    """Measure on a SQLite server and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--how", choices=["KILL", "STOP"], default="KILL")
    parser.add_argument("--iterations", type=int, default=ITERATIONS, help="of a round; there are ten")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        server = plain_server(Path(name))
        try:
            result = measure(server, Path(name), signal.Signals[f"SIG{given.how}"], given.iterations)
        finally:
            server.kill()
    print(json.dumps(result, indent=1))
    if given.json:
        from steps import circumstances

        given.json.write_text(json.dumps({"circumstances": circumstances(), **result}, indent=1) + "\n")


if __name__ == "__main__":
    main()
