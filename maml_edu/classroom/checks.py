"""What a notebook says about its own results (`claim`) and about your answers (`check`, `hint`, `solution`).

A wrong answer or a changed cell gets a printed line, and the notebook runs on.
"""

import inspect
import linecache
import textwrap
import traceback
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from maml_edu.classroom.answer_comparison import describe, first_difference
from maml_edu.classroom.exercises import Exercise, registry
from maml_edu.classroom.progress_record import CORRECT, TRIED, record

# ---------------------------------------------------------------- claims


def claim(text: str, condition: bool | Tensor | np.bool_ | Callable[[], object]) -> None:
    """Print `✓ text` if the condition holds and `✗ text (with these settings)` if it doesn't.

    Pass a function where a changed cell could make the condition itself fail; the error is then named.
    """
    try:
        holds, reason = _truth(condition() if callable(condition) else condition), ""
    except Exception as error:  # a claim never stops a notebook
        holds, reason = False, f" [{_first_line(error)}]"
    print(f"✓ {text}" if holds else f"✗ {text} (with these settings){reason}")


def _truth(value: object) -> bool:
    """Only a truth value counts: bool(nan) is True, and a tensor of many says nothing clear."""
    if isinstance(value, (bool, np.bool_)):
        return bool(value)
    if isinstance(value, (Tensor, np.ndarray)):
        if value.dtype not in (torch.bool, np.dtype(bool)):
            raise TypeError(f"the condition has dtype {value.dtype}, expected bool")
        if value.ndim:
            raise TypeError(f"the condition has shape {list(value.shape)}, expected one value: use .all() or .any()")
        return bool(value)
    raise TypeError(f"the condition is of type {type(value).__name__}, expected bool")


def _first_line(error: BaseException) -> str:
    """`TypeError: first line of its message`."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


# ---------------------------------------------------------------- exercises

NOT_DONE = "not done yet."


def check(number: str, answer: object) -> None:
    """Say whether your answer, a function or a predicted value, is correct, and if it isn't, where it goes wrong.

    `progress` remembers the outcome, unless you haven't written anything yet.
    """
    if (exercise := _exercise(number)) is None:
        return
    correct = _print_verdict(exercise, answer)
    if correct is not None:
        record(exercise.number, CORRECT if correct else TRIED)


def _print_verdict(exercise: Exercise, answer: object) -> bool | None:
    """True for a correct answer, False for a wrong one, None for one that isn't written yet."""
    if _unwritten(answer):
        _print(exercise, NOT_DONE)
        return None
    if not exercise.is_prediction and not callable(answer):
        kind = type(answer).__name__
        _print(exercise, f"not yet: pass your function itself, without calling it (this is a {kind}).")
        return False

    cases = exercise.cases()
    try:
        yours = _outputs(answer if callable(answer) else lambda: answer, cases)
    except Exception as error:
        # A stub may raise NotImplementedError; an `...` left in the body ends in a TypeError that names it.
        if isinstance(error, NotImplementedError) or "ellipsis" in str(error):
            _print(exercise, NOT_DONE)
            return None
        _print(exercise, f"your code raised {_first_line(error)}{_line_of(error)}")
        return False
    if any(_unwritten(output) for output in yours):
        _print(exercise, NOT_DONE)
        return None

    difference = first_difference(yours, _outputs(exercise.reference, cases), exercise.tolerance)
    if difference is None:
        _print(exercise, "correct." + (f" {exercise.remark}" if exercise.remark else ""))
        return True
    lines = describe(difference, len(cases), spoil=not exercise.is_prediction)
    for message, wrong in exercise.mistakes.items():
        if first_difference(yours, _outputs(wrong, cases), exercise.tolerance) is None:
            lines.append(message)
            break
    _print(exercise, "not yet.", *lines)
    return False


def hint(number: str, n: int = 1) -> None:
    """Print the n-th hint, counted from 1. Each gives away more than the one before."""
    if (exercise := _exercise(number)) is None:
        return
    total = len(exercise.hints)
    if isinstance(n, int) and 1 <= n <= total:
        print(f"Exercise {exercise.number}, hint {n} of {total}: {exercise.hints[n - 1]}")
    else:
        print(f'Exercise {number} has hints 1 to {total}; solution("{number}") shows an answer.')


def solution(number: str) -> None:
    """Print the code of the answer that yours is compared with."""
    if (exercise := _exercise(number)) is not None:
        print(textwrap.dedent(inspect.getsource(exercise.reference)).rstrip())


def _exercise(number: str) -> Exercise | None:
    exercise = registry().get(str(number))
    if exercise is None:
        print(f"There is no exercise {number}; there are {', '.join(sorted(registry())) or 'none'}.")
    return exercise


def _print(exercise: Exercise, verdict: str, *lines: str) -> None:
    print("\n".join([f"Exercise {exercise.number}: {verdict}", *(f"  {line}" for line in lines)]))


def _unwritten(value: object) -> bool:
    """None or `...`; also a tuple, list or dict with an `...` left in it, or with nothing but None."""
    if value is None or value is ...:
        return True
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, (tuple, list)) and len(value):
        return any(item is ... for item in value) or all(item is None for item in value)
    return False


def _outputs(function: Callable[..., object], cases: list[tuple]) -> list[object]:
    """One output per case. Every call gets a copy of its arguments, since students write in place now and then."""
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


def _line_of(error: Exception) -> str:
    """` (line 4: ...)`, the last line of the traceback in the file or cell of the student's function."""
    frames = traceback.extract_tb(error.__traceback__)
    theirs = [frame for frame in frames if frame.filename != __file__]
    if not theirs:  # the call itself failed: wrong number of arguments
        return ""
    last = [frame for frame in theirs if frame.filename == theirs[0].filename][-1]
    source = linecache.getline(last.filename, last.lineno or 0).strip()
    return f" (line {last.lineno}{': ' + source if source else ''})"
