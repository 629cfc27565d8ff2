"""Every file that a stranger may hand over, spoilt in many ways: a clear error or a correct load, and nothing else."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import table
from kinds import KINDS

RUN = Path(__file__).parent / "run.py"
ROOT = RUN.parent.parent.parent
FEW = 60  # files of each kind where no one waits for thousands
HARMS = {
    "raise KeyError('x')": ("unclear", "KeyError"),
    "import os; os.system('true')": ("ran code", "RanCode"),
    "open('code-was-run', 'w').close()": ("ran code", "its marker is there"),
    "bytearray(2**32)": ("grew", "MemoryError"),
    "import time; time.sleep(60)": ("hung", "TookTooLong"),
    "raise ValueError": ("unclear", "a message of 0 characters"),
    "b'\\xff'.decode()": ("unclear", "UnicodeDecodeError"),
}


def python(*arguments: str) -> list[dict[str, Any]]:
    """Run Python in a process of its own, which must not crash; return the lines of JSON that it printed."""
    ended = subprocess.run(
        [sys.executable, *arguments],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr[-3000:]
    return [json.loads(line) for line in ended.stdout.splitlines() if line.startswith("{")]


def check(results: list[dict[str, Any]], count: int) -> None:
    for result in results:
        assert result["failures"] == 0, "\n".join(result["first"])
        assert result["loaded"] + result["refused"] == count
        assert result["refused"] > count / 20, f"{result['kind']}: what was spoilt has to be seen"


def test_spoilt_files_do_no_harm(tmp_path: Path) -> None:
    results = python(str(RUN), str(FEW), str(tmp_path))
    assert [result["kind"] for result in results] == [kind.name for kind in KINDS]
    check(results, FEW)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("kind", [kind.name for kind in KINDS])
def test_many_spoilt_files_do_no_harm(kind: str, tmp_path: Path) -> None:
    check(python(str(RUN), "2000", str(tmp_path), kind), 2000)


def test_the_table_counts_what_goes_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = tmp_path / "run.py"
    script.write_text(
        "import json, os, sys, time\n"
        "if sys.argv[3] == 'a': os.abort()\n"
        "if sys.argv[3] == 'b': time.sleep(60)\n"
        "print(json.dumps({'kind': 'c', 'loaded': 1, 'refused': 2, 'unclear': 3, 'seconds': 0.5, 'first': []}))\n"
    )
    monkeypatch.setattr(table, "RUN", script)
    monkeypatch.setattr(table, "LONGEST", 5.0)
    crashed, hung, others = (table.measured(kind, 6) for kind in "abc")
    assert (crashed["crashed"], hung["hung"]) == (1, 1)
    assert (others["tried"], others["unclear"]) == (6, 3)
    assert "| 3 kinds | 6 | 2 | 1 | 3 | 1 | 1 | 0 | 0 | 0.5 |" in table.markdown([crashed, hung, others])


def test_the_harness_sees_harm(tmp_path: Path) -> None:
    script = f"""
import sys
from pathlib import Path
sys.path.insert(0, {str(RUN.parent)!r})
import run
run.PATIENCE = 2.0
import kinds, world
folder, calls, harms = Path({str(tmp_path)!r}), [], {list(HARMS)!r}
def make(folder):
    calls.clear()
    (folder / "a.bin").write_bytes(bytes(100))
    return folder / "a.bin"
def reader(harm):
    def read(path):
        calls.append(path)
        if len(calls) == 3:
            exec(harm)
    return read
kinds.KINDS[:] = [world.Kind(harm, make, reader(harm), world.m.ANY) for harm in harms]
run.main(4, folder, [])
"""
    results = python("-c", script)
    assert [result["kind"] for result in results] == list(HARMS)
    for result in results:
        outcome, how = HARMS[result["kind"]]
        assert (result["failures"], result[outcome]) == (1, 1)
        assert how in result["first"][0]
