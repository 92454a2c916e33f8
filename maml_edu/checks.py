"""What a notebook says about its own results (`claim`) and about yours (`check`, `progress`, `hint`, `solution`).

Nothing here raises because of what a student wrote: a changed cell or a wrong answer gets a printed line,
and the notebook runs on.
"""

from __future__ import annotations

import contextlib
import inspect
import json
import linecache
import os
import stat
import tempfile
import textwrap
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from maml_edu.diagnosis import Diagnosis, diagnose  # noqa: F401  they are part of this module's interface
from maml_edu.exercises import Exercise, registry

# ----------------------------------------------------------------------------------------------------
# Claims


def claim(text: str, condition: bool | Tensor | np.bool_ | Callable[[], Any]) -> None:
    """Print `✓ text` where the condition holds and `✗ text (with these settings)` where it does not.

    Pass a callable where working out the condition could itself fail after a change; the error is then named.
    """
    try:
        holds, reason = _truth(condition() if callable(condition) else condition), ""
    except Exception as error:  # a claim never stops a notebook
        holds, reason = False, f" [{_name(error)}]"
    print(f"✓ {text}" if holds else f"✗ {text} (with these settings){reason}")


def _truth(value: Any) -> bool:
    """Only a true truth value counts: bool(nan) is True, and a tensor of many says nothing clear."""
    if isinstance(value, (bool, np.bool_)):
        return bool(value)
    if isinstance(value, (Tensor, np.ndarray)):
        if value.dtype not in (torch.bool, np.dtype(bool)):
            raise TypeError(f"the condition has dtype {value.dtype}, expected bool")
        if value.ndim:
            raise TypeError(f"the condition has shape {list(value.shape)}, expected one value: use .all() or .any()")
        return bool(value)
    raise TypeError(f"the condition is of type {type(value).__name__}, expected bool")


def _name(error: BaseException) -> str:
    """`TypeError: first line of its message`."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


# ----------------------------------------------------------------------------------------------------
# Exercises


def check(number: str, answer: Any) -> None:
    """Say whether `answer`, a function or a predicted value, is right, and if not, where it differs.

    The outcome is kept for `progress`, unless nothing was written yet.
    """
    if (exercise := _find(number)) is None:
        return
    solved = _judge(exercise, answer)
    if solved is not None:
        _record(exercise.number, CORRECT if solved else NOT_YET)


def _judge(exercise: Exercise, answer: Any) -> bool | None:
    """Print the verdict; True for correct, False for not yet, None for not done."""
    if _unfinished(answer):
        return _not_done(exercise)
    if not exercise.is_prediction and not callable(answer):
        name = type(answer).__name__
        _say(exercise, f"not yet: pass your function itself, without calling it (this is a {name}).")
        return False

    function = answer if callable(answer) else (lambda: answer)
    cases = exercise.cases()
    try:
        yours = _run(function, cases)
    except Exception as error:
        # A stub may raise NotImplementedError; an `...` left in the body ends in a TypeError that names it.
        if isinstance(error, NotImplementedError) or "ellipsis" in str(error):
            return _not_done(exercise)
        _say(exercise, f"your code raised {_name(error)}{_where(error)}")
        return False
    if any(_unfinished(output) for output in yours):
        return _not_done(exercise)

    expected = _run(exercise.reference, exercise.cases())
    difference = _first_difference(yours, expected, exercise.tolerance)
    if difference is None:
        _say(exercise, "correct." + (f" {exercise.remark}" if exercise.remark else ""))
        return True

    lines = _describe(difference, len(expected), spoil=not exercise.is_prediction)
    lines += [message for message, wrong in exercise.mistakes.items() if _same(yours, wrong, exercise)][:1]
    _say(exercise, "not yet.", *lines)
    return False


def hint(number: str, n: int = 1) -> None:
    """Print the n-th hint, counted from 1; later ones give more away."""
    if (exercise := _find(number)) is None:
        return
    total = len(exercise.hints)
    if isinstance(n, int) and 1 <= n <= total:
        print(f"Exercise {exercise.number}, hint {n} of {total}: {exercise.hints[n - 1]}")
    else:
        print(f'Exercise {number} has hints 1 to {total}; solution("{number}") shows an answer.')


def solution(number: str) -> None:
    """Print the source of the function that answers are compared with."""
    if (exercise := _find(number)) is not None:
        print(textwrap.dedent(inspect.getsource(exercise.reference)).rstrip())


def _find(number: str) -> Exercise | None:
    exercise = registry().get(str(number))
    if exercise is None:
        print(f"There is no exercise {number}; there are {', '.join(sorted(registry())) or 'none'}.")
    return exercise


def _say(exercise: Exercise, verdict: str, *lines: str) -> None:
    print("\n".join([f"Exercise {exercise.number}: {verdict}", *(f"  {line}" for line in lines)]))


def _not_done(exercise: Exercise) -> None:
    _say(exercise, "not done yet.")


def _unfinished(value: Any) -> bool:
    """None or `...`; also a tuple, list or dict with an `...` left in it, or with nothing but None."""
    if value is None or value is ...:
        return True
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, (tuple, list)) and len(value):
        return any(item is ... for item in value) or all(item is None for item in value)
    return False


def _run(function: Callable, cases: list[tuple]) -> list[Any]:
    """One output per case. Arguments are copied for each call, since students write in place now and then."""
    return [function(*_copy(arguments)) for arguments in cases]


def _copy(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.detach().clone().requires_grad_(value.requires_grad)
    if isinstance(value, np.ndarray):
        return value.copy()
    if isinstance(value, torch.Generator):
        return value.clone_state()
    if isinstance(value, dict):
        return {key: _copy(item) for key, item in value.items()}
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*map(_copy, value))
    if isinstance(value, (tuple, list)):
        return type(value)(map(_copy, value))
    return value


def _where(error: Exception) -> str:
    """` (line 4: ...)`, the last line of the traceback in the file or cell of the student's function."""
    frames = traceback.extract_tb(error.__traceback__)
    theirs = [frame for frame in frames if frame.filename != __file__]
    if not theirs:  # the call itself failed: wrong number of arguments
        return ""
    last = [frame for frame in theirs if frame.filename == theirs[0].filename][-1]
    source = linecache.getline(last.filename, last.lineno or 0).strip()
    return f" (line {last.lineno}{': ' + source if source else ''})"


def _same(yours: list[Any], wrong: Callable, exercise: Exercise) -> bool:
    """Whether the student's outputs are those of a known mistake."""
    return _first_difference(yours, _run(wrong, exercise.cases()), exercise.tolerance) is None


# ----------------------------------------------------------------------------------------------------
# Progress: one small file per working folder. Nothing that can go wrong with it may disturb or delay a check.

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


def _record(number: str, outcome: str) -> None:
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
                _replace(path, json.dumps(outcomes, indent=1, sort_keys=True))
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


def _replace(path: Path, text: str) -> None:
    """Write beside the file, then put it in its place: a reader sees the old text or the new, never half of one."""
    handle, beside = tempfile.mkstemp(prefix=path.name, suffix=".part", dir=path.parent)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        os.replace(beside, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(beside)
        raise


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


# ----------------------------------------------------------------------------------------------------
# Comparing answers: structure and shape before values


class Difference(NamedTuple):
    case: int  # which case, from 0
    place: str  # where in the answer: '["w1"][0, 2]', or "" for the whole
    what: str  # "" for a plain difference of values, otherwise what is wrong
    yours: Any
    expected: Any


def _first_difference(yours: list[Any], expected: list[Any], tolerance: float) -> Difference | None:
    pairs = list(enumerate(zip(yours, expected, strict=True)))
    for compare in (_compare_structure, _compare_values):
        for case, (ours, theirs) in pairs:
            found = compare(ours, theirs, tolerance)
            if found is not None:
                return Difference(case, *found)
    return None


def _describe(difference: Difference, cases: int, spoil: bool) -> list[str]:
    """Lines for the student. A prediction is answered without `expected`: that would end the exercise."""
    where = [f"case {difference.case + 1} of {cases}"] if cases > 1 else []
    where += [f"at {difference.place}"] if difference.place else []
    heading = ", ".join([*where, difference.what] if difference.what else where)
    lines = [f"{heading}:"] if heading else []
    yours, expected = _text(difference.yours), _text(difference.expected)
    if yours == expected:  # too close to tell apart in the usual number of digits
        yours, expected = _text(difference.yours, 17), _text(difference.expected, 17)
    lines.append(f"  yours     {yours}")
    if spoil or difference.what:
        lines.append(f"  expected  {expected}")
    return lines


def _text(value: Any, digits: int = 6) -> str:
    return f"{value:.{digits}g}" if isinstance(value, float) else str(value)


def _kind(value: Any) -> str:
    if isinstance(value, Mapping):
        return "a dict"
    if isinstance(value, (tuple, list)):
        return "a tuple or list"
    if isinstance(value, str):
        return "a string"
    if isinstance(value, (bool, np.bool_)) or (
        isinstance(value, (Tensor, np.ndarray)) and value.ndim == 0 and value.dtype in (torch.bool, np.dtype(bool))
    ):
        return "True or False"
    if isinstance(value, np.ndarray) and value.dtype.kind not in "biuf":
        return f"an array of dtype {value.dtype}"
    if isinstance(value, (Tensor, np.ndarray, np.number, int, float)):
        return "a number, tensor or array"
    return "None" if value is None else f"of type {type(value).__name__}"


def _sequence(yours: Any, expected: Any) -> Any:
    """A tensor or array given for a tuple or list is read entry by entry."""
    if isinstance(expected, (tuple, list)) and isinstance(yours, (Tensor, np.ndarray)) and yours.ndim:
        return list(yours)
    return yours


def _array(value: Any) -> np.ndarray:
    """Values as float64 (exact for every dtype we use), whatever library, device or graph they come from."""
    if isinstance(value, Tensor):
        value = value.detach().to("cpu", torch.float64).numpy()
    return np.asarray(value, dtype=np.float64)


def _is_integer(value: Any) -> bool:
    if isinstance(value, Tensor):
        return not (value.is_floating_point() or value.is_complex())
    return np.asarray(value).dtype.kind in "iub"


def _compare_structure(yours: Any, expected: Any, tolerance: float, place: str = "") -> tuple | None:
    """Kinds, keys, lengths and shapes, all the way down."""
    yours = _sequence(yours, expected)
    if _kind(yours) != _kind(expected):
        return place, "the kind of answer differs", _kind(yours), _kind(expected)
    if isinstance(expected, Mapping):
        if set(yours) != set(expected):
            return place, "the keys differ", sorted(map(str, yours)), sorted(map(str, expected))
        items = [(f'{place}["{key}"]', yours[key], expected[key]) for key in expected]
    elif isinstance(expected, (tuple, list)):
        if len(yours) != len(expected):
            return place, "the lengths differ", len(yours), len(expected)
        items = [(f"{place}[{i}]", a, b) for i, (a, b) in enumerate(zip(yours, expected, strict=True))]
    elif _kind(expected) == "a number, tensor or array":
        a, b = _array(yours), _array(expected)
        return None if a.shape == b.shape else (place, "the shapes differ", list(a.shape), list(b.shape))
    else:
        return None
    for where, a, b in items:
        if (found := _compare_structure(a, b, tolerance, where)) is not None:
            return found
    return None


def _compare_values(yours: Any, expected: Any, tolerance: float, place: str = "", floor: float = 0.0) -> tuple | None:
    """Entries, once structures agree. `floor`: the least scale that counts, set by the dict around."""
    yours = _sequence(yours, expected)
    kind = _kind(expected)
    if isinstance(expected, Mapping):
        # In a dict of parameters a tensor that is zero but for rounding is measured by its neighbours.
        numbers = [_array(v) for v in expected.values() if _kind(v) == "a number, tensor or array"]
        floor = 1e-3 * max((_largest(v) for v in numbers), default=0.0)
        items = [(f'{place}["{key}"]', yours[key], expected[key]) for key in expected]
    elif isinstance(expected, (tuple, list)):
        items = [(f"{place}[{i}]", a, b) for i, (a, b) in enumerate(zip(yours, expected, strict=True))]
    elif kind == "a string":
        same = yours.strip().casefold() == expected.strip().casefold()
        return None if same else (place, "", repr(yours), repr(expected))
    elif kind == "True or False":
        return None if bool(yours) == bool(expected) else (place, "", bool(yours), bool(expected))
    elif kind == "a number, tensor or array":
        return _compare_numbers(yours, expected, tolerance, place, floor)
    else:
        return None if yours is expected or yours == expected else (place, "", yours, expected)
    for where, a, b in items:
        if (found := _compare_values(a, b, tolerance, where, floor)) is not None:
            return found
    return None


def _compare_numbers(yours: Any, expected: Any, tolerance: float, place: str, floor: float) -> tuple | None:
    a, b = _array(yours), _array(expected)
    scale = max(_largest(b), floor) or 1.0
    allowed = 0.0 if _is_integer(expected) and tolerance < 1e-3 else tolerance * scale
    with np.errstate(invalid="ignore"):  # inf − inf
        same = (a == b) | (np.isnan(a) & np.isnan(b)) | (np.abs(a - b) <= allowed)
    if same.all():
        return None
    nan = np.isnan(a) & ~np.isnan(b)
    index = tuple(int(i) for i in np.argwhere(nan if nan.any() else ~same)[0])
    what = "NaN (not a number) in your answer" if nan.any() else ""
    where = place + (f"[{', '.join(map(str, index))}]" if index else "")
    return where, what, float(a[index]), float(b[index])


def _largest(values: np.ndarray) -> float:
    """The largest finite magnitude; 0 for none."""
    finite = np.abs(values[np.isfinite(values)])
    return float(finite.max()) if finite.size else 0.0
