"""What a notebook says about its own results (`claim`) and about the reader's (`check`, `hint`, `solution`).

Nothing here raises because of what a student wrote: a changed cell or a wrong answer gets a printed line,
and the notebook runs on.
"""

from __future__ import annotations

import inspect
import linecache
import textwrap
import traceback
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

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
    """Say whether `answer`, a function or a predicted value, is right, and if not, where it differs."""
    if (exercise := _find(number)) is None:
        return
    if _unfinished(answer):
        return _not_done(exercise)
    if not exercise.is_prediction and not callable(answer):
        name = type(answer).__name__
        return _say(exercise, f"not yet: pass your function itself, without calling it (this is a {name}).")

    function = answer if callable(answer) else (lambda: answer)
    cases = exercise.cases()
    try:
        yours = _run(function, cases)
    except Exception as error:
        # A stub may raise NotImplementedError; an `...` left in the body ends in a TypeError that names it.
        if isinstance(error, NotImplementedError) or "ellipsis" in str(error):
            return _not_done(exercise)
        return _say(exercise, f"your code raised {_name(error)}{_where(error)}")
    if any(_unfinished(output) for output in yours):
        return _not_done(exercise)

    expected = _run(exercise.reference, exercise.cases())
    difference = _first_difference(yours, expected, exercise.tolerance)
    if difference is None:
        return _say(exercise, "correct." + (f" {exercise.remark}" if exercise.remark else ""))

    lines = _describe(difference, len(expected), spoil=not exercise.is_prediction)
    lines += [message for message, wrong in exercise.mistakes.items() if _same(yours, wrong, exercise)][:1]
    _say(exercise, "not yet.", *lines)


def hint(number: str, n: int = 1) -> None:
    """Print the n-th hint, counted from 1; later ones give more away."""
    if (exercise := _find(number)) is None:
        return
    total = len(exercise.hints)
    if 1 <= n <= total:
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
        print(f"There is no exercise {number}; there are {', '.join(registry()) or 'none'}.")
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
