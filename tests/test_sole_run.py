"""One run, one folder: the lock, who holds it, and what killed writers leave."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from unidd_pl.files import LOCK_FILE, only_writer, remove_temporary
from unidd_pl.resume import sole_run

HOLD = "import sys, time\nfrom pathlib import Path\nfrom unidd_pl.files import only_writer\n"
HOLD += "with only_writer(Path(sys.argv[1])):\n    print('held', flush=True)\n    time.sleep(600)\n"


@pytest.fixture
def holder(tmp_path: Path) -> subprocess.Popen[str]:
    """Another process that writes to the folder."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def test_a_second_writer_is_refused_and_a_killed_one_blocks_nothing(
    holder: subprocess.Popen[str], tmp_path: Path
) -> None:
    refused = rf"being written to by process {holder.pid} on .*: wait for it, stop it"
    with pytest.raises(ValueError, match=refused), only_writer(tmp_path):
        pytest.fail("two writers in one folder")
    os.kill(holder.pid, signal.SIGKILL)
    holder.communicate()
    assert (tmp_path / LOCK_FILE).exists(), "what a killed run leaves"
    with only_writer(tmp_path):
        assert str(os.getpid()) in (tmp_path / LOCK_FILE).read_text()
    assert list(tmp_path.iterdir()) == []


def test_the_folder_is_free_after_a_failure(tmp_path: Path) -> None:
    with pytest.raises(KeyError), only_writer(tmp_path / "new"):
        raise KeyError
    with only_writer(tmp_path / "new"):
        pass


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="cannot write in the folder"), only_writer(tmp_path / "file"):
        pytest.fail("the block ran")


def test_temporary_files_are_removed_where_no_one_else_writes(tmp_path: Path) -> None:
    output, cache = tmp_path / "output", tmp_path / "cache"
    for folder in (output / "chunks", cache / "teachers"):
        folder.mkdir(parents=True)
        (folder / ".tmp-0").touch()
        (folder / "kept").touch()
    (output / ".tmp-1.ckpt").touch()
    with sole_run(output, cache):
        assert not list(output.rglob(".tmp-*"))
        assert (cache / "teachers/.tmp-0").exists(), "another run may be writing it"
    assert (output / "chunks/kept").exists()
    old = time.time() - 7200
    os.utime(cache / "teachers/.tmp-0", (old, old))
    with sole_run(output, cache):
        pass
    assert [path.name for path in (cache / "teachers").iterdir()] == ["kept"]
    remove_temporary(tmp_path / "missing")
