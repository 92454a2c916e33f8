"""Which exercises are solved: one empty file per outcome, and the table that `progress` prints.

`3.2.tried` says that exercise 3.2 has been tried, `3.2.correct` that it's solved. A file is there or it isn't, so
notebooks that run at the same time lose nothing, and once correct stays correct. No trouble with these files disturbs a
check.
"""

import os
from pathlib import Path

from maml_edu.classroom.exercises import registry

PROGRESS_FOLDER = ".maml_edu_progress"
CORRECT, TRIED = "correct", "tried"
_unsaved: set[str] = set()  # files that couldn't be written, until this notebook's kernel ends …
_why_unsaved = ""  # … and the reason


def record(number: str, outcome: str) -> None:
    """Keep an outcome, CORRECT or TRIED. Whatever prevents that is told by `progress`, and never raised."""
    global _why_unsaved
    _unsaved.add(f"{number}.{outcome}")
    try:
        if folder := _progress_folder():
            folder.mkdir(parents=True, exist_ok=True)
            for name in _unsaved - set(os.listdir(folder)):
                (folder / name).touch()
        _unsaved.clear()
    except (OSError, RuntimeError) as error:
        _why_unsaved = _reason(error)


def progress() -> None:
    """Print one line per notebook: how many exercises are solved, tried and there in all, and which are open.

    `check` keeps outcomes in `.maml_edu_progress/` in the folder the notebook runs in, or in the folder that the
    environment variable MAML_EDU_PROGRESS names; set to nothing, it switches this off. No outcome leaves your machine.
    Delete the folder to start afresh.
    """
    outcomes: set[str] = set()
    try:
        folder = _progress_folder()
        if folder is None:
            note = "Nothing is saved, because MAML_EDU_PROGRESS is empty."
        elif not folder.exists():
            note = f"Nothing is kept yet. Outcomes will go to {folder}."
        else:
            outcomes |= set(os.listdir(folder))
            note = f"Kept in {folder}. Delete this folder to start afresh."
    except (OSError, RuntimeError) as error:
        note = f"Your progress can't be read: {_reason(error)}."
    _print_table(outcomes | _unsaved)
    if _unsaved:
        note = (
            f"Your progress can't be kept: {_why_unsaved}.\nIt's remembered until the kernel restarts. To keep it, set "
            "the environment variable MAML_EDU_PROGRESS\nto a folder that you may write to, before you start Jupyter."
        )
    print(note)


def _print_table(outcomes: set[str]) -> None:
    notebooks: dict[str, list[str]] = {}
    for number in sorted(registry(), key=lambda number: [int(part) for part in number.split(".")]):
        notebooks.setdefault(number.split(".")[0], []).append(number)
    print("notebook   solved   tried    total   open")
    for notebook, numbers in notebooks.items():
        solved = [number for number in numbers if f"{number}.{CORRECT}" in outcomes]
        tried = [number for number in numbers if number in solved or f"{number}.{TRIED}" in outcomes]
        still_open = ", ".join(number for number in numbers if number not in solved) or "none"
        print(f"{notebook.zfill(2):8} {len(solved):8d} {len(tried):7d} {len(numbers):8d}   {still_open}")


def _progress_folder() -> Path | None:
    """The folder, which need not exist, or None where MAML_EDU_PROGRESS is empty."""
    chosen = os.environ.get("MAML_EDU_PROGRESS")
    if chosen is None:
        return Path(PROGRESS_FOLDER).absolute()
    return Path(chosen).expanduser().absolute() / PROGRESS_FOLDER if chosen else None


def _reason(error: BaseException) -> str:
    """What an operating system says of a file, with the file's name where it gives one."""
    reason = (getattr(error, "strerror", None) or str(error) or type(error).__name__).rstrip(".").lower()
    name = getattr(error, "filename", None)
    return f"{name}: {reason}" if name else reason
