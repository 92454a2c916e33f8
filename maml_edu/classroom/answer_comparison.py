"""Comparing a student's answer with the expected one: structure and shape before values."""

from collections.abc import Mapping, Set
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

NAN = "NaN (not a number) in your answer"


class Difference(NamedTuple):
    place: str  # where in the answer: '["w1"][0, 2]', or "" for the whole answer
    what: str  # "" for a plain difference of values, otherwise what is wrong
    yours: object
    expected: object
    case: int = 0  # which case, from 0


def first_difference(yours: list[object], expected: list[object], tolerance: float) -> Difference | None:
    """The first entry in which outputs, one per case, differ by more than `tolerance`; None if there is no such entry.

    The tolerance is relative to the largest entry of each number, tensor or array. Structures and shapes of all cases
    are compared before any value is.
    """
    pairs = list(enumerate(zip(yours, expected, strict=True)))
    for case, (output, wanted) in pairs:
        if (difference := _compare_structure(output, wanted)) is not None:
            return difference._replace(case=case)
    for case, (output, wanted) in pairs:
        if (difference := _compare_values(output, wanted, tolerance)) is not None:
            return difference._replace(case=case)
    return None


def describe(difference: Difference, cases: int, spoil: bool) -> list[str]:
    """Lines for the student; without `spoil` they don't give the expected value away."""
    where = [f"case {difference.case + 1} of {cases}"] if cases > 1 else []
    where += [f"at {difference.place}"] if difference.place else []
    heading = ", ".join([*where, difference.what] if difference.what else where)
    lines = [f"{heading}:"] if heading else []
    yours, expected = _text(difference.yours), _text(difference.expected)
    if yours == expected:  # too close to tell apart in the usual number of digits
        yours, expected = _text(difference.yours, 17), _text(difference.expected, 17)
    lines.append(f"  yours     {yours}")
    if spoil or (difference.what and difference.what != NAN):
        lines.append(f"  expected  {expected}")
    return lines


def _text(value: object, digits: int = 6) -> str:
    return f"{value:.{digits}g}" if isinstance(value, float) else str(value)


def _kind(value: object) -> str:
    if isinstance(value, Mapping):
        return "a dict"
    if isinstance(value, (tuple, list)):
        return "a tuple or list"
    if isinstance(value, (set, frozenset)):
        return "a set"
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


def _as_sequence(yours: Any, expected: Any) -> Any:
    """A tensor or array given for a tuple or list is read entry by entry; letters given for a set of letters too."""
    if isinstance(expected, (set, frozenset)) and isinstance(yours, (str, tuple, list)):
        return {letter for letter in yours if letter not in " ,"} if all(isinstance(t, str) for t in yours) else yours
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


def _entries(yours: Any, expected: Any, place: str) -> list[tuple[Any, Any, str]]:
    """The parts of a dict, tuple or list: (yours, expected, place)."""
    if isinstance(expected, Mapping):
        return [(yours[key], expected[key], f'{place}["{key}"]') for key in expected]
    return [(a, b, f"{place}[{i}]") for i, (a, b) in enumerate(zip(yours, expected, strict=True))]


def _compare_structure(yours: Any, expected: Any, place: str = "") -> Difference | None:
    """Kinds, keys, lengths and shapes, all the way down."""
    yours, kind = _as_sequence(yours, expected), _kind(expected)
    if _kind(yours) != kind:
        return Difference(place, "the kind of answer differs", _kind(yours), kind)
    if kind == "a number, tensor or array":
        a, b = _array(yours), _array(expected)
        return None if a.shape == b.shape else Difference(place, "the shapes differ", list(a.shape), list(b.shape))
    if kind == "a dict" and set(yours) != set(expected):
        return Difference(place, "the keys differ", sorted(map(str, yours)), sorted(map(str, expected)))
    if kind == "a tuple or list" and len(yours) != len(expected):
        return Difference(place, "the lengths differ", len(yours), len(expected))
    if kind in ("a dict", "a tuple or list"):
        differences = (_compare_structure(*entry) for entry in _entries(yours, expected, place))
        return next((difference for difference in differences if difference is not None), None)
    return None


def _compare_values(
    yours: Any, expected: Any, tolerance: float, place: str = "", floor: float = 0.0
) -> Difference | None:
    """Entries, once structures agree. `floor`: the smallest scale that counts, set by the dict around them."""
    yours, kind = _as_sequence(yours, expected), _kind(expected)
    if kind == "a number, tensor or array":
        return _compare_numbers(yours, expected, tolerance, place, floor)
    if kind == "a dict":
        # In a dict of parameters, a tensor that is zero but for rounding is measured by its neighbours.
        numbers = [_array(v) for v in expected.values() if _kind(v) == "a number, tensor or array"]
        floor = 1e-3 * max((_largest(v) for v in numbers), default=0.0)
    if kind in ("a dict", "a tuple or list"):
        entries = _entries(yours, expected, place)
        differences = (_compare_values(a, b, tolerance, where, floor) for a, b, where in entries)
        return next((difference for difference in differences if difference is not None), None)
    if kind == "a string":
        same = yours.strip().casefold() == expected.strip().casefold()
        return None if same else Difference(place, "", repr(yours), repr(expected))
    if kind == "a set":
        same = _in_one_case(yours) == _in_one_case(expected)
        return None if same else Difference(place, "", _listed(yours), _listed(expected))
    if kind == "True or False":
        return None if bool(yours) == bool(expected) else Difference(place, "", bool(yours), bool(expected))
    return None if yours is expected or yours == expected else Difference(place, "", yours, expected)


def _in_one_case(letters: Set[Any]) -> set[Any]:
    return {letter.strip().casefold() if isinstance(letter, str) else letter for letter in letters}


def _listed(letters: Set[Any]) -> str:
    """In a fixed order: the order of a set of strings changes from process to process."""
    return "{" + ", ".join(sorted(map(repr, letters))) + "}"


def _compare_numbers(yours: Any, expected: Any, tolerance: float, place: str, floor: float) -> Difference | None:
    a, b = _array(yours), _array(expected)
    scale = max(_largest(b), floor) or 1.0
    allowed = 0.0 if _is_integer(expected) and tolerance < 1e-3 else tolerance * scale
    with np.errstate(invalid="ignore"):  # inf − inf
        same = (a == b) | (np.isnan(a) & np.isnan(b)) | (np.abs(a - b) <= allowed)
    if same.all():
        return None
    nan = np.isnan(a) & ~np.isnan(b)
    index = tuple(int(i) for i in np.argwhere(nan if nan.any() else ~same)[0])
    what = NAN if nan.any() else ""
    where = place + (f"[{', '.join(map(str, index))}]" if index else "")
    return Difference(where, what, float(a[index]), float(b[index]))


def _largest(values: np.ndarray) -> float:
    """The largest finite magnitude; 0 for none."""
    finite = np.abs(values[np.isfinite(values)])
    return float(finite.max()) if finite.size else 0.0
