"""Files that are written as a whole or not at all."""

import contextlib
import glob
import os
import sys
import uuid
from pathlib import Path
from typing import IO


def write_atomically(path: str | Path, content: bytes | str) -> None:
    """Write beside the file, then move it into place: a reader sees the old content or the new, never half of one.

    Text is written as UTF-8, folders are made. What a killed process left beside the file is removed. Raises OSError
    (a full disk, no permission), and the old file is untouched.
    """
    path = Path(path).expanduser()
    path.parent.mkdir(parents=True, exist_ok=True)
    _remove_leftovers(path)
    draft = path.with_name(f"{path.name}.{uuid.uuid4().hex}.part")  # a name that no other writer ever has
    try:
        with open(draft, "wb") as file:
            with contextlib.suppress(OSError):  # a file system without locks
                _lock(file)
            file.write(content.encode("utf-8") if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
            if sys.platform == "win32":
                file.close()  # an open file cannot be moved there
            os.replace(draft, path)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise


def _remove_leftovers(path: Path) -> None:
    """Remove the drafts of writers that are gone. A writer at work holds a lock on its draft before it is filled."""
    for draft in path.parent.glob(f"{glob.escape(path.name)}.*.part"):
        with contextlib.suppress(OSError):  # locked, gone by now, or not ours to remove
            if draft.stat().st_size:
                with open(draft, "r+b") as file:
                    _lock(file)
                draft.unlink()


def _lock(file: IO[bytes]) -> None:
    """Mark a file as being written, until it is closed or its process ends. Raises OSError if it is marked already."""
    if sys.platform != "win32":  # where an open file cannot be removed anyway
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
