"""Time and memory of `unidd compare` over a large study: 200 distillations with 10,000 points of each curve.

    python benchmarks/report.py [--runs 200] [--points 10000] [--store FOLDER] [--json FILE]

The 200 are 8 methods, 3 numbers of images per class and 3 settings, in 72 rows of a table; each left a picture and a
spectrum. The points are written to MLflow's SQLite file directly; to log them would take longer than what is measured.
"""

from __future__ import annotations

import argparse
import json
import os
import sqlite3
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

EXPERIMENT = "large"
CURVES = ("beta", "loss/total", "loss/matching", "loss/cross_entropy")


def uri_of(folder: Path) -> str:
    """Return the address of the study in a folder."""
    return f"sqlite:///{folder.absolute()}/mlflow.db"


def leave_artifacts(folder: Path) -> list[Path]:
    """Write a picture of 100 images of noise, enlarged, and a spectrum: as large as those of CIFAR-10 at IPC 10."""
    folder.mkdir(parents=True)
    picture, spectrum = folder / "distilled.png", folder / "spectrum.json"
    pixels = np.random.default_rng(0).integers(256, size=(320, 320, 3), dtype=np.uint8)
    Image.fromarray(pixels.repeat(2, axis=0).repeat(2, axis=1)).save(picture)
    eigenvalues = np.logspace(0, -4, 128)
    about = [{"filter": "1/(λ+β)", "methods": ["cfm"], "round": one, "betas": [0.1]} for one in range(10)]
    responses = [list(0.01 / (eigenvalues + 0.01 / (one + 1))) for one in range(10)]
    layer = {"layer": "conv", "eigenvalues": list(eigenvalues), "responses": responses}
    spectrum.write_text(json.dumps({"responses": about, "layers": [layer]}))
    return [picture, spectrum]


def fill(folder: Path, runs: int, points: int) -> None:
    """Make a study in a folder."""
    from unidd_pl.tracking import Tracking

    tracking = Tracking(uri_of(folder), EXPERIMENT)
    artifacts = leave_artifacts(folder / "artifacts")
    ids = []
    for number in range(runs):
        method, ipc = f"method{number % 8}", str((1, 10, 50)[number // 8 % 3])
        tags = {"method": method, "band": ("low", "high")[number % 2], "ipc": ipc, "distilled_set": f"set{number}"}
        with tracking.run("distillation", f"run {number}", tags) as run:
            run.params({"model.init_args.seed": number, "model.init_args.eta": number // 24 % 3})
            run.metrics({**dict.fromkeys(CURVES, 1.0), "seconds": 60.0 + number, "bytes": 3e4, "images_seen": 1e5})
            for path in artifacts:
                run.artifact(path)
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


def measure(uri: str, output: Path) -> dict[str, float]:
    """Compare in a process of its own; return seconds, memory and the size of the page."""
    command = [sys.executable, "-m", "unidd_pl.cli", "compare", "--experiment", EXPERIMENT, "--tracking.uri", uri]
    began = time.perf_counter()
    process = subprocess.Popen(
        [*command, "--output_dir", str(output), "--overwrite", "true"], stdout=subprocess.DEVNULL
    )
    _, status, used = os.wait4(process.pid, 0)  # of this process alone
    seconds = time.perf_counter() - began
    if status:
        raise SystemExit(f"unidd compare failed: {status}")
    return {
        "seconds": round(seconds, 1),
        "cpu_seconds": round(used.ru_utime + used.ru_stime, 1),
        "peak_mib": round(used.ru_maxrss / 2**10),
        "page_mib": round((output / "report.html").stat().st_size / 2**20, 2),
    }


def main() -> None:
    """Fill unless it is filled, compare, print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument("--points", type=int, default=10_000)
    parser.add_argument("--store", type=Path, help="folder of the study: made where it is missing, and kept")
    parser.add_argument("--fill-only", action="store_true", help="make the study, measure nothing")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = given.store or Path(temporary)
        if given.fill_only:
            fill(folder, given.runs, given.points)
            return
        if not (folder / "mlflow.db").exists():
            # Elsewhere: a process that starts another counts its own memory to that.
            options = ["--runs", str(given.runs), "--points", str(given.points), "--store", str(folder)]
            subprocess.run([sys.executable, __file__, "--fill-only", *options], check=True)
        sizes = {"runs": given.runs, "points_a_curve": given.points, "curves": len(CURVES)}
        result = {**sizes, **measure(uri_of(folder), folder / "report")}
    print(json.dumps(result))
    if given.json:
        from steps import circumstances

        given.json.write_text(json.dumps({"circumstances": circumstances(), **result}, indent=1) + "\n")


if __name__ == "__main__":
    main()
