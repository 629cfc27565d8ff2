"""Writing files so that a crash, a full disk, a second reader or a second writer never meets half of one."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import tempfile
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from uuid import uuid4

LOCK_FILE = ".lock"
_TEMPORARY = ".tmp-"
_NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL)  # of file systems that have none


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; move it over `path` on success, remove it on failure.

    The block only writes: an OSError raised inside it is reported as a failure to write `path`. Any other
    exception passes unchanged. A process killed outright leaves the temporary file `.tmp-*`, never half a
    `path`; `remove_temporary` takes it away.

    Args:
        path: The file to make or replace; its folder is created.

    Yields:
        An existing empty file in the same folder (a rename across file systems is not atomic), with the
        suffix of `path`, because some writers choose a format by it.

    Raises:
        ValueError: If the folder or the file cannot be written; the message names the folder and the cure.
    """
    path = Path(path)
    temporary = path.parent / f"{_TEMPORARY}{uuid4().hex}{path.suffix}"
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


def remove_temporary(folder: Path, *, older_than: float = 0) -> None:
    """Remove what killed writers left in a folder.

    Args:
        folder: The folder; it may be missing.
        older_than: Seconds since it was last written to; 0 only for who is the only writer.
    """
    for path in folder.glob(f"{_TEMPORARY}*"):
        with suppress(OSError):  # gone, or not ours to remove: it harms no one
            if not older_than or time.time() - path.stat().st_mtime > older_than:
                path.unlink()


@contextmanager
def only_writer(folder: Path) -> Iterator[None]:
    """Be the only one that writes to a folder, within the block; also seen from other machines that share it.

    The system gives the lock back when the process ends, however it ends: what a killed run leaves is a file
    that locks nothing. A file system without locks is warned of, and the block runs without one.

    Args:
        folder: The folder; it is created.

    Raises:
        ValueError: If another process writes to it; the message names it.
    """
    try:
        file = _locked(folder / LOCK_FILE)
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise ValueError(
                f"cannot write in the folder {folder} ({error}): give a folder with write permission"
            ) from error
        warnings.warn(f"{folder} lies on a file system without locks: let no other run write to it", stacklevel=3)
        yield
        return
    try:
        yield
    finally:
        with suppress(OSError):  # while the lock is still held: who waits for it sees that its file is gone
            (folder / LOCK_FILE).unlink()
        os.close(file)


def _locked(path: Path) -> int:
    """Return the open and locked file at a path, with the holder's name in it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    while True:
        file = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is_at(file, path):
                os.ftruncate(file, 0)
                os.write(file, f"process {os.getpid()} on {socket.gethostname()}".encode())
                return file
        except BlockingIOError:
            holder = os.read(file, 1000).decode(errors="replace") or "another process"
            os.close(file)
            raise ValueError(
                f"{path.parent} is being written to by {holder}: wait for it, stop it, or choose another --output_dir"
            ) from None
        except BaseException:
            os.close(file)
            raise
        os.close(file)  # its last holder removed it between the opening and the lock


def _is_at(file: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file), path.stat())
    except FileNotFoundError:
        return False


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
