"""Files that are written whole or not at all."""

import os
import threading
from pathlib import Path


def write_whole(path: str | Path, content: bytes | str) -> None:
    """Write beside the file, then put it in its place: a reader sees the old content or the new, never half of one.

    Text is written as UTF-8. What a killed process left half-written beside the file is removed. Raises OSError (a full
    disk, no permission), and the old file is whole.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    for left in path.parent.glob(f"{path.name}.*.part"):
        owner = left.name.split(".")[-2].partition("-")[0]
        if owner.isdigit() and not alive(int(owner)):
            left.unlink(missing_ok=True)
    temporary = path.with_name(f"{path.name}.{os.getpid()}-{threading.get_ident()}.part")
    try:
        with open(temporary, "wb") as file:
            file.write(content.encode("utf-8") if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def alive(pid: int) -> bool:
    """Whether a process with this id runs on this machine."""
    if os.name == "nt":  # os.kill would end the process there
        import ctypes

        handle = ctypes.windll.kernel32.OpenProcess(0x1000, False, pid)
        return bool(handle) and bool(ctypes.windll.kernel32.CloseHandle(handle))
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
