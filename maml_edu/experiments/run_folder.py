"""The folder of a run: one run at a time, never overwritten, and resumed only with the settings it began with."""

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path

from maml_edu.engine.checkpoint_files import read_checkpoint
from maml_edu.engine.run_lock import run_lock
from maml_edu.experiments.config import CHECKPOINT, FINAL, OPTIONS, RESULT, flag


def check_free(out: Path, resume: bool, resumable: bool = True) -> None:
    """Raises FileExistsError if writing into `out` would replace a run. resumable: whether the command has --resume."""
    if resume:
        if not (out / CHECKPOINT).exists() and any((out / name).exists() for name in (FINAL, RESULT)):
            raise FileExistsError(f"{out} holds a result and no {CHECKPOINT} to resume; name another --out")
    elif any((out / name).exists() for name in (CHECKPOINT, FINAL, RESULT)):
        way_on = "continue it with --resume, or name another --out" if resumable else "name another --out"
        raise FileExistsError(f"{out} already holds a run: {way_on}")


@contextlib.contextmanager
def run_folder(out: Path, resume: bool, resumable: bool = True) -> Iterator[None]:
    """`out`, made and locked. What goes wrong before anything is written leaves no folder behind.

    Raises FileExistsError as `check_free`, RuntimeError if another run is in it.
    """
    check_free(out, resume, resumable)
    made = [folder for folder in (out, *out.parents) if not folder.exists()]
    out.mkdir(parents=True, exist_ok=True)
    try:
        with run_lock(out):
            check_free(out, resume, resumable)  # once more: another run may have come and gone
            yield
    finally:
        with contextlib.suppress(OSError):  # the first that is not empty
            for folder in made:
                folder.rmdir()


def check_same_settings(out: Path, settings: Mapping[str, object]) -> None:
    """Raises ValueError, naming the first setting that differs, unless the run in `out` began with these."""
    stored = read_checkpoint(out / CHECKPOINT).settings
    for name, value in settings.items():
        if name not in stored or stored[name] != value:
            shown = flag(name) if name in OPTIONS else name.replace("_", " ")
            before = f"was {stored[name]}" if name in stored else "was not recorded"
            raise ValueError(
                f"the run in {out} can't be resumed with other settings: {shown} {before}, and is {value} now; give "
                "the flags it began with, or name another --out"
            )
