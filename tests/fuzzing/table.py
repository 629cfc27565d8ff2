"""Read COUNT spoilt files of every kind and write the table: python table.py COUNT OUTPUT (a path without its suffix).

Each kind is read in a process of its own (run.py), one after the other; one that dies or goes on for ever is counted as
well. Ends with status 1 where a file did harm or was refused without a clear message.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parent.parent)]

RUN = Path(__file__).parent / "run.py"
ROOT = RUN.parent.parent.parent
LONGEST = 3600.0  # seconds for all files of a kind
COLUMNS = ("tried", "refused", "loaded", "unclear", "crashed", "hung", "grew", "ran code", "seconds")
HARMS = ("unclear", "crashed", "hung", "grew", "ran code")


def measured(kind: str, count: int) -> dict[str, Any]:
    """Read spoilt files of one kind; a process that dies has one crashed file, and none after it."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    row: dict[str, Any] = {"kind": kind, **dict.fromkeys(COLUMNS, 0), "first": []}
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, str(RUN), str(count), folder, kind]
        try:
            ended = subprocess.run(
                command, env=environment, capture_output=True, text=True, check=False, timeout=LONGEST
            )
        except subprocess.TimeoutExpired:
            return {**row, "hung": 1, "first": [f"more than {LONGEST:.0f} s"]}
    lines = [json.loads(line) for line in ended.stdout.splitlines() if line.startswith("{")]
    if ended.returncode or not lines:
        return {**row, "crashed": 1, "first": [ended.stderr[-3000:]]}
    row.update({name: lines[0].get(name, 0) for name in (*COLUMNS, "first")})
    row["tried"] = sum(row[name] for name in COLUMNS[1:-1])
    return row


def markdown(rows: list[dict[str, Any]]) -> str:
    """Return the table, with its sums."""
    sums = {name: round(sum(row[name] for row in rows), 1) for name in COLUMNS}
    lines = [f"| kind | {' | '.join(COLUMNS)} |", f"|---|{'---|' * len(COLUMNS)}"]
    for row in [*rows, {"kind": f"{len(rows)} kinds", **sums}]:
        lines.append(f"| {row['kind']} | {' | '.join(str(row[name]) for name in COLUMNS)} |")
    return "\n".join(lines) + "\n"


def main(count: int, output: Path) -> None:
    """Read all kinds, print each when it is done, write the table."""
    from kinds import KINDS

    rows = []
    for kind in KINDS:
        rows.append(measured(kind.name, count))
        sys.stdout.write(json.dumps(rows[-1]) + "\n")
        sys.stdout.flush()
        output.with_suffix(".json").write_text(json.dumps(rows, indent=1, ensure_ascii=False) + "\n")
        output.with_suffix(".md").write_text(markdown(rows))
    sys.exit(any(row[harm] for row in rows for harm in HARMS))


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
