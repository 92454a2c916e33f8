"""What a notebook says about its own results (`claim`) and about yours (`check`, `progress`, `hint`, `solution`).

Nothing here raises because of what a student wrote: a changed cell or a wrong answer gets a printed line,
and the notebook runs on.
"""

from __future__ import annotations

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
from maml_edu.classroom.progress_record import CORRECT, NOT_YET, progress, record  # noqa: F401  progress as well

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
        record(exercise.number, CORRECT if solved else NOT_YET)


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
    difference = first_difference(yours, expected, exercise.tolerance)
    if difference is None:
        _say(exercise, "correct." + (f" {exercise.remark}" if exercise.remark else ""))
        return True

    lines = describe(difference, len(expected), spoil=not exercise.is_prediction)
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
    return first_difference(yours, _run(wrong, exercise.cases()), exercise.tolerance) is None
