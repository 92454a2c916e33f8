"""One run per folder: a lock that goes with its process, however that ends."""

import contextlib
import os
import platform
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

from filelock import BaseFileLock, FileLock, SoftFileLock, Timeout

LOCK_FILE = "lock"
_held: dict[Path, BaseFileLock] = {}  # kept here, because a lock object that is collected lets go
_one_at_a_time = threading.Lock()


@contextlib.contextmanager
def run_lock(folder: str | Path) -> Iterator[None]:
    """Hold a folder, which must exist, for this run alone.

    The lock is the operating system's and ends with its process. Where the file system has none (some network and cloud
    drives), it is a file that says who holds it, and one that a dead process of this machine left is taken over. Raises
    RuntimeError at once, naming process, host and file, if another run holds the folder; OSError if it can't be
    written.
    """
    path = Path(folder).expanduser().resolve() / LOCK_FILE
    with _one_at_a_time:
        if path in _held:
            raise RuntimeError(
                f"this process has another run in {path.parent}; wait until it ends, or name another folder"
            )
        soft = not _has_file_locks(path.parent)
        _held[path] = _acquired(path, soft)
    try:
        yield
    finally:
        if not soft:
            with contextlib.suppress(OSError):  # Windows: the file goes when it is closed
                path.unlink()  # while it is held, so that it is nobody else's
        _held.pop(path).release()


def _has_file_locks(folder: Path) -> bool:
    if sys.platform == "win32":
        return True
    import fcntl

    with tempfile.TemporaryFile(dir=folder) as probe:
        try:
            fcntl.flock(probe, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return False
    return True


def _acquired(path: Path, soft: bool) -> BaseFileLock:
    for _ in range(3):  # again if the holder let go just now, or is dead
        lock = SoftFileLock(path, timeout=0) if soft else FileLock(path, timeout=0)
        with contextlib.suppress(Timeout):
            lock.acquire()
            if not soft:
                with contextlib.suppress(OSError):  # Windows: nobody may write, or read, what is locked
                    path.write_text(f"{os.getpid()}\n{platform.node()}\n", encoding="ascii", errors="replace")
            return lock
        process, host = _holder(path)
        if soft and host == platform.node() and _is_gone(process):
            path.unlink(missing_ok=True)
        elif os.path.lexists(path):
            who = f"process {process} on {host}" if process else "it doesn't say which"
            or_delete = ", or delete this file if that run is gone" if soft else ""
            raise RuntimeError(
                f"another run ({who}) holds {path}; wait until it ends, or name another folder{or_delete}"
            )
    raise RuntimeError(f"another run has just begun in {path.parent}; name another folder")


def _holder(path: Path) -> tuple[int, str]:
    """Process and host, as the lock file names them; (0, "") if it says nothing readable."""
    try:
        if not path.is_file():
            return 0, ""
        with open(path, encoding="ascii") as file:
            process, host = file.readline(32).strip(), file.readline(256).strip()
        return (int(process), host.partition("?")[0]) if host.isprintable() else (0, "")  # host?process namespace
    except (OSError, ValueError):
        return 0, ""


def _is_gone(process: int) -> bool:
    """Whether a process of this machine has ended. Our own id in a file that we don't hold is from before a restart."""
    if process == os.getpid():
        return True
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return True
    except (PermissionError, OverflowError):
        return False
    return False
