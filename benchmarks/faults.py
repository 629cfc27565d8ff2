"""Disturb real runs of `unidd fit` on the embedded digits, go on, and compare with an undisturbed one, bit for bit.

    python benchmarks/faults.py --work FOLDER [--scale 1] [--output docs/results/faults]

Writes a table (JSON, Markdown). Each run is a process of its own, forked from this one, which has imported everything.
Disk full and read-only need root (a tmpfs); the clock needs `faketime` (Debian). What cannot be tried is said.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from disturbed_runs import PATIENCE, Bench, contents, ranks_of, wait

from unidd_pl import files
from unidd_pl.distillation import DistillationModule

BAD_INPUT = 2  # exit status of the command line
KILLED = -signal.SIGKILL
MINUTE = 60.0  # seconds for a process to end after the one that it shares a run with
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")

Row = dict[str, object]


# ---- faults: each returns "" or what is wrong ----


def killed_at_random(bench: Bench) -> str:
    """Kill a run from outside."""
    while True:
        output = bench.new()
        child = bench.start(output)
        time.sleep(bench.draw.uniform(0.1, 0.95) * bench.seconds)
        os.kill(child, signal.SIGKILL)
        if wait(child) == KILLED:  # else it had ended before
            return bench.recovered(output)


def marked_and_continued(bench: Bench) -> str:
    """Kill a run when MLflow has it; `unidd sync` has to end its record as KILLED, going on has to reopen it."""
    output = bench.new()
    child = bench.start(output)
    while not bench.records(output) or not (output / "last.ckpt").exists():
        if os.waitpid(child, os.WNOHANG)[0]:
            return f"it ended before it could be killed: {bench.last_words(output)}"
        time.sleep(0.05)
    os.kill(child, signal.SIGKILL)
    wait(child)
    status = bench.command(output, ["sync", "--outbox", str(bench.work / "outbox")])
    if status or list(bench.records(output).values()) != ["KILLED"]:
        return f"unidd sync ended with {status}, and MLflow has {bench.records(output)}"
    return bench.recovered(output)


def killed_in_a_write(suffix: str, folder: str) -> Callable[[Bench], str]:
    """Die with the temporary file written and not yet in its place."""

    def fault(bench: Bench) -> str:
        output, left = bench.new(), [bench.draw.randrange(4) if folder != "." else 0]
        flush = files._flush

        def die(path: Path) -> None:
            flush(path)
            if path.suffix == suffix and path.parent == (output / folder).absolute():
                if left[0] == 0:
                    os.kill(os.getpid(), signal.SIGKILL)
                left[0] -= 1

        def prepare() -> None:
            files._flush = die

        status = bench.fit(output, prepare=prepare)
        return bench.recovered(output) if status == KILLED else f"ended with {status}, not killed"

    return fault


def killed_at_a_round(bench: Bench) -> str:
    """Die before the first step of a round."""
    output, at = bench.new(), bench.draw.randrange(3)
    begin = DistillationModule._begin_chunk

    def die(module: DistillationModule, position: object) -> None:
        if module.position.round_index == at and module.position.chunk_index == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        begin(module, position)  # type: ignore[arg-type]

    def prepare() -> None:
        DistillationModule._begin_chunk = die  # type: ignore[method-assign, assignment]

    status = bench.fit(output, prepare=prepare)
    return bench.recovered(output) if status == KILLED else f"ended with {status}, not killed"


def stopped_by_sigterm(bench: Bench) -> str:
    """Stop a run as a cluster does."""
    output = bench.new()
    child = bench.start(output)
    time.sleep(bench.draw.uniform(0.3, 0.9) * bench.seconds)
    os.kill(child, signal.SIGTERM)
    wait(child)
    return bench.recovered(output)


@contextmanager
def small_disk(path: Path, size: str) -> Iterator[None]:
    """Mount a file system in memory at a new folder, for root."""
    path.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(path)], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(path)], check=True)


def disk_full(bench: Bench) -> str:
    """Let the disk fill up in the middle of a run, make room, go on."""
    disk = bench.new()
    with small_disk(disk, "4m"):
        filler = disk / "filler"
        filler.write_bytes(bytes(4 * 2**20 - bench.draw.randrange(4, 30) * 4096))
        output = disk / disk.name  # MLflow's name of the run, which no other has
        status = bench.fit(output)
        if status != BAD_INPUT or "space" not in bench.last_words(output):
            return f"ended with {status}: {bench.last_words(output) if status else 'the disk was not full'}"
        filler.unlink()
        return bench.recovered(output)


def read_only(bench: Bench) -> str:
    """Start on a disk that cannot be written, which has to be refused, then make it writable."""
    disk = bench.new()
    with small_disk(disk, "4m"):
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        output = disk / disk.name
        status = bench.fit(output)
        if status != BAD_INPUT or "write" not in bench.last_words(output):
            return f"ended with {status}: {bench.last_words(output)}"
        subprocess.run(["mount", "-o", "remount,rw", str(disk)], check=True)
        return bench.recovered(output)


def clock_set_back(bench: Bench) -> str:
    """Go on a day before the run began."""
    output = bench.new()
    child = bench.start(output)
    time.sleep(bench.draw.uniform(0.3, 0.9) * bench.seconds)
    os.kill(child, signal.SIGKILL)
    wait(child)
    yesterday = ["faketime", "-f", "-1d", sys.executable, "-m", "unidd_pl.cli"]
    ended = subprocess.run(
        [*yesterday, *bench.arguments(output, "--ckpt_path", "last")], capture_output=True, text=True, check=False
    )
    if ended.returncode:
        return f"ended with {ended.returncode}: {ended.stderr[-300:]}"
    return bench.verdict(output)


def two_in_one_folder(bench: Bench) -> str:
    """Start a second run while the first works, which has to be refused."""
    output = bench.new()
    first = bench.start(output)
    deadline = time.monotonic() + PATIENCE
    while not (output / ".lock").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    status = bench.fit(output, bench.draw.choice(("--overwrite=true", "--ckpt_path=last")))
    refused = "is being written to by process" in bench.log(output).read_text()
    if wait(first) or status != BAD_INPUT or not refused:
        return f"the second ended with {status}, refused: {refused}"
    return bench.verdict(output)


def killed_process_of_two(*launcher: str) -> Callable[[Bench], str]:
    """Kill one of two processes that share a run; the other has to end within a minute, with a message."""
    more = ("--trainer.accelerator=cpu", *(() if launcher else ("--trainer.devices=2",)))

    def start(bench: Bench, output: Path, *options: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, *launcher, "-m", "unidd_pl.cli", *bench.arguments(output, *more, *options)]
        with bench.log(output).open("ab") as log:
            return subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)

    def fault(bench: Bench) -> str:
        undisturbed, output = bench.work / f"two{len(launcher)}", bench.new()
        if not undisturbed.exists() and start(bench, undisturbed).wait(PATIENCE):
            return f"the undisturbed run failed: {bench.last_words(undisturbed)}"
        first, ranks = start(bench, output), dict[int, int]()
        while first.poll() is None and not (len(ranks) == 2 and (output / "last.ckpt").exists()):
            ranks = ranks_of(output)
        if first.poll() is not None:
            return f"it ended before it could be killed: {bench.last_words(output)}"
        os.kill(ranks[bench.draw.randrange(2)], signal.SIGKILL)
        deadline = time.monotonic() + MINUTE
        while (ranks_of(output) or first.poll() is None) and time.monotonic() < deadline:
            time.sleep(0.1)
        if ranks_of(output) or first.poll() is None:
            return "the other process goes on"
        said = bench.log(output).read_text()
        if not any(one in said for one in ("another of the processes that share the run has ended", "(SIGKILL)")):
            return f"no message: {said[-300:]}"
        if start(bench, output, "--ckpt_path", "last").wait(PATIENCE):
            return f"it does not go on: {bench.last_words(output)}"
        return bench.verdict(output, contents(undisturbed))

    return fault


FAULTS: list[tuple[str, int, Callable[[Bench], str], str]] = [
    ("kill −9 at a random moment", 10, killed_at_random, ""),
    ("kill −9 at the start of a round", 2, killed_at_a_round, ""),
    ("kill −9 in the write of a checkpoint", 3, killed_in_a_write(".ckpt", "."), ""),
    ("kill −9 in the write of a chunk", 2, killed_in_a_write(".safetensors", "chunks"), ""),
    ("kill −9 in the export of the set", 2, killed_in_a_write(".safetensors", "."), ""),
    ("kill −9 in the write of its picture", 1, killed_in_a_write(".png", "."), ""),
    ("kill −9 of one of two processes (--trainer.devices 2)", 4, killed_process_of_two(), ""),
    ("kill −9 of one of two processes (torchrun)", 4, killed_process_of_two(*TORCHRUN), ""),
    ("kill −9, then `unidd sync`, then go on: one MLflow run, KILLED, then FINISHED", 3, marked_and_continued, ""),
    ("SIGTERM at a random moment", 3, stopped_by_sigterm, ""),
    ("disk full", 4, disk_full, "root"),
    ("read-only output", 1, read_only, "root"),
    ("clock set back by a day, after kill −9", 2, clock_set_back, "faketime"),
    ("two runs in one output folder", 3, two_in_one_folder, ""),
]
"""What is done, how often, and what it needs."""


def missing(need: str) -> bool:
    """Return whether what a fault needs is not there."""
    return (need == "root" and os.geteuid() != 0) or (need == "faketime" and shutil.which("faketime") is None)


def markdown(rows: list[Row]) -> str:
    """Return the table."""
    lines = ["| fault | tried | recovered | lost |", "|---|---|---|---|"]
    lines += [f"| {row['fault']} | {row['tried']} | {row['recovered']} | {row['lost']} |" for row in rows]
    return "\n".join(lines) + "\n"


def in_place(rows: list[Row], known: list[Row]) -> list[Row]:
    """Return a table with some of its rows measured again."""
    again = {row["fault"]: row for row in rows}
    kept = [again.pop(row["fault"], row) for row in known]
    return [*kept, *again.values()]


def main() -> None:
    """Try every fault; end with status 1 where a run was lost."""
    parser = argparse.ArgumentParser(description="Disturb runs, go on, compare.")
    parser.add_argument("--work", type=Path, required=True, help="folder for the runs; must not exist")
    parser.add_argument("--scale", type=float, default=1, help="factor on the number of tries")
    parser.add_argument("--only", default="", help="faults whose name has this in it; the others' rows stay")
    parser.add_argument("--output", type=Path, help="table, without its suffix")
    given = parser.parse_args()
    given.work.mkdir(parents=True)
    bench = Bench(given.work.absolute())
    print(f"an undisturbed run: {bench.seconds:.1f} s", flush=True)
    rows: list[Row] = []
    for name, times, fault, need in [one for one in FAULTS if given.only in one[0]]:
        if missing(need):
            rows.append({"fault": name, "tried": f"0, needs {need}", "recovered": 0, "lost": 0, "how": []})
            continue
        outcomes = [fault(bench) for _ in range(max(1, round(times * given.scale)))]
        lost = [outcome for outcome in outcomes if outcome]
        rows.append({
            "fault": name, "tried": len(outcomes), "recovered": len(outcomes) - len(lost), "lost": len(lost),
            "how": lost,
        })  # fmt: skip
        print(rows[-1], flush=True)
    ended = any(row["lost"] for row in rows)
    if given.output and given.only and given.output.with_suffix(".json").exists():
        rows = in_place(rows, json.loads(given.output.with_suffix(".json").read_text()))
    print(markdown(rows))
    if given.output:
        given.output.with_suffix(".md").write_text(markdown(rows))
        given.output.with_suffix(".json").write_text(json.dumps(rows, indent=1, ensure_ascii=False) + "\n")
    sys.exit(ended)


if __name__ == "__main__":
    main()
