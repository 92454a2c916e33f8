"""Which exercises are solved: one small file per working folder, and the table that `progress` prints.

Nothing that can go wrong with the file may disturb or delay a check.
"""

from __future__ import annotations

import contextlib
import json
import os
import stat
import time
from collections.abc import Iterator
from pathlib import Path

from maml_edu.classroom.exercises import registry
from maml_edu.data.atomic_write import write_whole

PROGRESS_FILE = ".maml_edu_progress.json"
CORRECT, NOT_YET = "correct", "not yet"
_LARGEST = 1 << 20  # bytes; a progress file is a few hundred
_LOCK_WAIT, _LOCK_AGE = 0.5, 5.0  # seconds: how long a check waits for another writer; when a lock counts as left over
_unsaved: dict[str, str] = {}  # outcomes that could not be written, until this notebook's kernel ends …
_not_kept = ""  # … and why


def progress() -> None:
    """Print one line per notebook: exercises solved, tried and in all, and which are open.

    `check` keeps outcomes in `.maml_edu_progress.json` in the folder the notebook runs in, or in the folder that
    the environment variable MAML_EDU_PROGRESS names; set to nothing, it switches this off. The file never leaves the
    machine. Delete it to start afresh.
    """
    known, problem, path = {}, "", None
    try:
        path = _progress_path()
        known = _read_progress(path) if path else {}
    except FileNotFoundError:
        problem = "no outcome yet"
    except (OSError, RuntimeError, ValueError) as error:
        problem = _reason(error)
    _print_progress(_merged(known, _unsaved))
    if _unsaved:
        print(f"Your progress cannot be kept{f' in {path}' if path else ''}: {_not_kept}.")
        print("It is remembered until the kernel restarts. To keep it, set the environment variable MAML_EDU_PROGRESS")
        print("to a folder in which you may write, before you start Jupyter.")
    elif path is None:
        print(f"Nothing is kept: {problem or 'the environment variable MAML_EDU_PROGRESS is set to nothing'}.")
    elif problem == "no outcome yet":
        print(f"Nothing is kept yet. Outcomes will go to {path}.")
    elif problem:
        print(f"{path} is not read: {problem}. Delete it to start afresh.")
    else:
        print(f"Kept in {path}. Delete this file to start afresh.")


def _print_progress(outcomes: dict[str, str]) -> None:
    notebooks: dict[str, list[str]] = {}
    for number in sorted(registry(), key=lambda number: [int(part) for part in number.split(".")]):
        notebooks.setdefault(number.split(".")[0], []).append(number)
    print("notebook   solved   tried   in all   open")
    for notebook, numbers in notebooks.items():
        solved = [number for number in numbers if outcomes.get(number) == CORRECT]
        tried = [number for number in numbers if number in outcomes]
        still_open = ", ".join(number for number in numbers if number not in solved) or "none"
        print(f"{notebook.zfill(2):8} {len(solved):8d} {len(tried):7d} {len(numbers):8d}   {still_open}")


def _reason(error: BaseException) -> str:
    return (getattr(error, "strerror", None) or str(error) or type(error).__name__).rstrip(".").lower()


def _progress_path() -> Path | None:
    """The file, or None where MAML_EDU_PROGRESS is empty. It need not exist."""
    folder = os.environ.get("MAML_EDU_PROGRESS")
    if folder is None:
        return Path(PROGRESS_FILE).absolute()
    return Path(folder).expanduser().absolute() / PROGRESS_FILE if folder else None


def record(number: str, outcome: str) -> None:
    """Add one outcome to the file. Whatever prevents that is remembered for `progress`, never raised."""
    global _not_kept
    new = _merged(_unsaved, {number: outcome})
    try:
        path = _progress_path()
        if path is None:
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        with _alone(path.with_name(f"{PROGRESS_FILE}.lock")):
            try:
                known = _read_progress(path)
            except (FileNotFoundError, ValueError):  # none yet, or damaged: written anew
                known = {}
            if (outcomes := _merged(known, new)) != known:
                write_whole(path, json.dumps(outcomes, indent=1, sort_keys=True))
        _unsaved.clear()
    except Exception as error:
        _unsaved.update(new)
        _not_kept = _reason(error)


def _merged(known: dict[str, str], new: dict[str, str]) -> dict[str, str]:
    """Once correct stays correct."""
    return known | {number: outcome for number, outcome in new.items() if known.get(number) != CORRECT}


def _read_progress(path: Path) -> dict[str, str]:
    """OSError if there is no file or it may not be read, ValueError if it holds something else."""
    about = path.stat()
    if not stat.S_ISREG(about.st_mode) or about.st_size > _LARGEST:
        raise ValueError("it is not a progress file")
    try:
        outcomes = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError("it is damaged") from error
    if not isinstance(outcomes, dict) or not set(map(str, outcomes.values())) <= {CORRECT, NOT_YET}:
        raise ValueError("it is not a progress file")
    return outcomes


@contextlib.contextmanager
def _alone(lock: Path) -> Iterator[None]:
    """One writer at a time. A lock that a killed kernel left is removed; after half a second we go on without one."""
    deadline, mine = time.monotonic() + _LOCK_WAIT, False
    while not mine:
        try:
            os.close(os.open(lock, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
            mine = True
        except FileExistsError:
            with contextlib.suppress(FileNotFoundError):
                if time.time() - lock.stat().st_mtime > _LOCK_AGE:
                    lock.unlink()
            if time.monotonic() > deadline:
                break
            time.sleep(0.01)
    try:
        yield
    finally:
        if mine:
            lock.unlink(missing_ok=True)
