"""Writing files so that a crash, a full disk or a second reader never meets half of one."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from uuid import uuid4


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; move it over `path` on success, remove it on failure.

    The block only writes: an OSError raised inside it is reported as a failure to write `path`. Any other
    exception passes unchanged. A process killed outright leaves the temporary file `.tmp-*`, never half a
    `path`.

    Args:
        path: The file to make or replace; its folder is created.

    Yields:
        An existing empty file in the same folder (a rename across file systems is not atomic), with the
        suffix of `path`, because some writers choose a format by it.

    Raises:
        ValueError: If the folder or the file cannot be written; the message names the folder and the cure.
    """
    path = Path(path)
    temporary = path.parent / f".tmp-{uuid4().hex}{path.suffix}"
    try:
        if path.is_dir():
            raise IsADirectoryError(f"{path} is a folder")
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.touch(exist_ok=False)  # an unwritable folder shows before the caller's work, not after it
        mode = temporary.stat().st_mode
        yield temporary
        temporary.chmod(mode)  # safetensors puts a file of its own here, readable by its owner only
        _flush(temporary)
        os.replace(temporary, path)
        with suppress(OSError):  # the rename is an entry of the folder; some network file systems cannot flush one
            _flush(path.parent)
    except OSError as error:
        raise ValueError(
            f"could not write {path.name} in folder {path.parent.absolute()}: got {error}; expected a folder "
            "with write permission and free space: make room, fix its permissions or choose another path"
        ) from error
    finally:
        with suppress(OSError):  # the message above matters more than what is left to clean
            temporary.unlink(missing_ok=True)


def _flush(path: Path) -> None:
    """Wait until the file or folder is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def check_writable(folder: Path) -> None:
    """Create a folder where it is missing and make sure, before any work, that files can be written there.

    Raises:
        ValueError: If not; the message names the folder and the cure.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ValueError(
            f"cannot write in the folder {folder} ({error}): give a folder with write permission"
        ) from error
