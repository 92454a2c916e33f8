"""What a notebook says about its own results (`claim`) and about your answers (`check`, `hint`, `solution`, `yours`).

A wrong answer or a changed cell gets a printed line, and the notebook runs on.
"""

import contextlib
import inspect
import linecache
import textwrap
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from maml_edu.classroom.answer_comparison import describe, first_difference
from maml_edu.classroom.exercises import Exercise, NotAllowed, registry
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
YOURS_IS = {None: "isn't written yet", False: "doesn't pass its check yet"}


def check(number: str, answer: object) -> None:
    """Say whether your answer, a function or a predicted value, is correct, and if it isn't, where it goes wrong.

    `progress` remembers the outcome, unless you haven't written anything yet.
    """
    if (exercise := _exercise(number)) is None:
        return
    correct, lines = _verdict(exercise, answer)
    print("\n  ".join([f"Exercise {exercise.number}: {lines[0]}", *lines[1:]]))
    if correct is not None:
        record(exercise.number, CORRECT if correct else TRIED)


def yours(number: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """Your function if `check` accepts it, otherwise the reference, and a line that says which: the story goes on.

    Raises ValueError for an exercise that doesn't exist or doesn't ask for a function.
    """
    exercise = registry().get(str(number))
    if exercise is None or exercise.is_prediction:
        raise ValueError(f"there is no exercise {number} that asks for a function")
    correct, _ = _verdict(exercise, function)
    if correct:
        print(f"From here on, your {number} runs.")
        return function
    print(f"From here on, the notebook runs our {number}, because yours {YOURS_IS[correct]}.")
    return exercise.reference


def _verdict(exercise: Exercise, answer: object) -> tuple[bool | None, list[str]]:
    """True for a correct answer, False for a wrong one, None for one that isn't written yet; and what to say."""
    if _unwritten(answer):
        return None, [NOT_DONE]
    if not exercise.is_prediction and not callable(answer):
        kind = type(answer).__name__
        return False, [f"not yet: pass your function itself, without calling it (this is a {kind})."]

    cases = exercise.cases()
    try:
        outputs = _outputs(exercise.examine(answer) if callable(answer) else lambda: answer, cases)
    except NotAllowed as error:
        return False, ["not yet.", str(error)]
    except Exception as error:
        # A stub may raise NotImplementedError; an `...` left in the body ends in a TypeError that names it.
        if isinstance(error, NotImplementedError) or "ellipsis" in str(error):
            return None, [NOT_DONE]
        lost = [
            "The graph is lost on the way. Is create_graph=True set, is nothing detached, and do the parameters "
            "require gradients (p.detach().requires_grad_())?"
        ]
        reason = lost if "does not require grad" in str(error) else []
        return False, [f"your code raised {_first_line(error)}{_line_of(error)}", *reason]
    if any(_unwritten(output) for output in outputs):
        return None, [NOT_DONE]

    difference = first_difference(outputs, _outputs(exercise.examine(exercise.reference), cases), exercise.tolerance)
    if difference is None:
        return True, ["correct." + (f" {exercise.remark}" if exercise.remark else "")]
    lines = describe(difference, len(cases), spoil=not exercise.is_prediction)
    for message, wrong in exercise.mistakes.items():
        with contextlib.suppress(NotAllowed):  # what the exercise forbids has been named above
            if first_difference(outputs, _outputs(exercise.examine(wrong), cases), exercise.tolerance) is None:
                lines.append(message)
                break
    return False, ["not yet.", *lines]


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
    ours = (__file__, str(Path(__file__).parent / "exercises"))
    theirs = [frame for frame in frames if not frame.filename.startswith(ours)]
    if not theirs:  # the call itself failed: wrong number of arguments
        return ""
    last = [frame for frame in theirs if frame.filename == theirs[0].filename][-1]
    source = linecache.getline(last.filename, last.lineno or 0).strip()
    return f" (line {last.lineno}{': ' + source if source else ''})"
