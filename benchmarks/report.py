"""Time and memory of `unidd compare` over a large study: 200 distillations with 10,000 points of each curve.

    python benchmarks/report.py [--runs 200] [--points 10000] [--json FILE]

The points are written to MLflow's SQLite file directly; to log them would take longer than what is measured.
"""

from __future__ import annotations

import argparse
import json
import resource
import sqlite3
import subprocess
import sys
import tempfile
import time
from pathlib import Path

CURVES = ("beta", "loss/total", "loss/matching", "loss/cross_entropy")


def fill(folder: Path, runs: int, points: int) -> str:
    """Make a study; return its URI."""
    from unidd_pl.tracking import Tracking

    uri = f"sqlite:///{folder}/mlflow.db"
    tracking = Tracking(uri, "large")
    ids = []
    for number in range(runs):
        method, ipc = f"method{number % 8}", str((1, 10, 50)[number // 8 % 3])
        tags = {"method": method, "band": ("low", "high")[number % 2], "ipc": ipc, "distilled_set": f"set{number}"}
        with tracking.run("distillation", f"run {number}", tags) as run:
            run.params({"model.init_args.seed": number})
            run.metrics({**dict.fromkeys(CURVES, 1.0), "seconds": 60.0 + number, "bytes": 3e4, "images_seen": 1e5})
            ids.append(run.run_id)
        about = {**tags, "dataset": "d", "protocol": "p", "protocol_digest": "x", "networks": "n"}
        with tracking.run("evaluation", method, about, parent=run.key_tags) as scored:
            scored.metrics({f"tail_mean/n/seed {seed}": 0.5 + number / 1000 for seed in range(3)})
    with sqlite3.connect(folder / "mlflow.db") as database:
        rows = (
            (key, 1.0 / (step + 1), 1, run_id, step, False)
            for run_id in ids for key in CURVES for step in range(1, points)
        )  # fmt: skip
        database.executemany(
            "insert into metrics (key, value, timestamp, run_uuid, step, is_nan) values (?, ?, ?, ?, ?, ?)", rows
        )
    return uri


def main() -> None:
    """Fill, compare in a process of its own, print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument("--points", type=int, default=10_000)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        uri = fill(Path(name), given.runs, given.points)
        command = [sys.executable, "-m", "unidd_pl.cli", "compare", "--experiment", "large", "--tracking.uri", uri]
        began = time.perf_counter()
        subprocess.run([*command, "--output_dir", f"{name}/report"], check=True, stdout=subprocess.DEVNULL)
        seconds = time.perf_counter() - began
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        result = {
            "runs": given.runs,
            "points_a_curve": given.points,
            "curves": len(CURVES),
            "seconds": round(seconds, 1),
            "cpu_seconds": round(used.ru_utime + used.ru_stime, 1),
            "peak_gib": round(used.ru_maxrss / 2**20, 2),
            "report_mib": round((Path(name) / "report/report.html").stat().st_size / 2**20, 2),
        }
    print(json.dumps(result))
    if given.json:
        given.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
