"""A run's record on the disk against what an MLflow store holds of it: nothing may be missing, nothing different."""

from __future__ import annotations

import json
import math
import tempfile
from pathlib import Path
from typing import Any


def entries_of(journal: Path) -> list[dict[str, Any]]:
    """Return the whole lines of a record."""
    lines = (journal / "journal.jsonl").read_bytes().splitlines(keepends=True)
    return [json.loads(line) for line in lines if line.endswith(b"\n")]


def missing(journal: Path, uri: str) -> tuple[dict[str, int], list[str]]:
    """Compare a record with a server; return how much was compared, and what is missing or different there."""
    from mlflow.tracking import MlflowClient

    client = MlflowClient(tracking_uri=uri)
    entries = entries_of(journal)
    start = entries[0]["start"]
    experiment = client.get_experiment_by_name(start["experiment"])
    runs = client.search_runs([experiment.experiment_id], f"tags.`unidd.key` = '{journal.name}'")
    if len(runs) != 1:
        return {}, [f"{len(runs)} runs of this record"]
    run = runs[0]
    tags = {**start["tags"], **dict(entry["tag"] for entry in entries if "tag" in entry)}
    params = {key: value for entry in entries for key, value in entry.get("params", {}).items()}
    gaps = [f"tag {key}" for key, value in tags.items() if run.data.tags.get(key) != value]
    gaps += [f"param {key}" for key, value in params.items() if run.data.params.get(key) != value]
    points, faults = _metrics(client, run.info.run_id, entries)
    files, lost = _artifacts(client, run.info.run_id, journal, entries)
    inputs = {one.dataset.name for one in run.inputs.dataset_inputs}
    wanted = [entry["input"]["name"] for entry in entries if "input" in entry]
    gaps += [*faults, *lost, *(f"input {name}" for name in wanted if name not in inputs)]
    ended = [entry["end"] for entry in entries if "end" in entry]
    if ended and (run.info.status, run.info.end_time) != tuple(ended[0]):
        gaps.append("its end")
    sizes = {"metric_points": points, "params": len(params), "tags": len(tags), "files": files, "inputs": len(wanted)}
    return sizes, gaps


def _metrics(client: Any, run_id: str, entries: list[dict[str, Any]]) -> tuple[int, list[str]]:
    recorded: dict[str, set[tuple[Any, ...]]] = {}
    for key, value, step, moment in (point for entry in entries for point in entry.get("metrics", ())):
        recorded.setdefault(key, set()).add((_comparable(value), step, moment))
    gaps = []
    for key, points in recorded.items():
        history = client.get_metric_history(run_id, key)
        there = {(_comparable(one.value), one.step, one.timestamp) for one in history}
        if there != points or len(history) != len(there):
            gaps.append(f"metric {key}: {len(points)} recorded, {len(points & there)} of them among {len(history)}")
    return sum(map(len, recorded.values())), gaps


def _comparable(value: float) -> float | str:
    return "nan" if math.isnan(value) else float(value)


def _artifacts(client: Any, run_id: str, journal: Path, entries: list[dict[str, Any]]) -> tuple[int, list[str]]:
    count, gaps = 0, []
    with tempfile.TemporaryDirectory() as folder:
        there = Path(client.download_artifacts(run_id, "", folder))
        latest = {}  # a later file of a name replaces an earlier one
        for path, place in (entry["artifact"] for entry in entries if "artifact" in entry):
            source = journal / path
            for file in [source] if source.is_file() else [one for one in source.rglob("*") if one.is_file()]:
                name = file.name if source.is_file() else str(file.relative_to(source))
                latest[str(Path(place) / name)] = file
        for name, file in latest.items():
            count += 1
            if not (there / name).is_file() or (there / name).read_bytes() != file.read_bytes():
                gaps.append(f"artifact {name}")
    return count, gaps
