"""The exercises of the series: one module per notebook, each with a list `EXERCISES`.

Nothing is imported until `registry()` is called, so a module of exercises may import any part of the package.
"""

import functools
import importlib
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass

MODULES = (
    "nb00_start_here",
    "nb01_tasks_and_the_bilevel_objective",
    "nb02_differentiating_a_gradient_step",
    "nb03_hessian_vector_products",
    "nb04_first_order_approximations",
    "nb05_sine_regression",
    "nb06_is_it_really_maml",
    "nb07_few_shot_classification",
    "nb08_omniglot",
    "nb09_what_did_it_learn",
    "nb10_better_inner_loops",
    "nb11_implicit_gradients",
    "nb12_other_families",
    "nb13_reinforcement_learning",
    "nb14_scaling_out",
)


def no_arguments() -> list[tuple]:
    """The cases of an exercise that asks for a prediction: one call without arguments."""
    return [()]


def as_it_is(function: Callable) -> Callable:
    """No examination beyond what the function returns."""
    return function


class NotAllowed(Exception):
    """Raised while a function is examined, if it does what the exercise forbids; `check` prints the message."""


@dataclass(frozen=True)
class Exercise:
    """What `maml_edu.classroom.checks.check` needs to know about one exercise.

    A *function* exercise compares the student's function with `reference` on each tuple in `cases()`.
    A *prediction* has a `reference` without arguments and the default `cases`; the student passes a value.
    Answers may be numbers, strings, booleans, tensors, arrays, and tuples, lists or dicts of these.
    """

    number: str  # "3.2": notebook 03, second exercise
    title: str  # word for word as in the heading "### Exercise 3.2 · title"
    reference: Callable[..., object]  # a `def`, since `solution` prints its source
    mistakes: Mapping[
        str, Callable[..., object]
    ]  # what to tell the student -> a wrong function, called as reference is
    hints: tuple[str, ...]  # from gentle to telling
    cases: Callable[[], list[tuple]] = no_arguments  # makes the arguments afresh, from seeded generators
    examine: Callable[[Callable], Callable] = as_it_is  # wraps every function before it is called on a case
    tolerance: float = 1e-6  # relative to the largest entry of each number, tensor or array
    remark: str = ""  # printed after "correct."

    @property
    def is_prediction(self) -> bool:
        return not inspect.signature(self.reference).parameters


@functools.cache
def registry() -> dict[str, Exercise]:
    """Every exercise by its number, in the order of the series."""
    exercises: dict[str, Exercise] = {}
    for name in MODULES:
        for exercise in importlib.import_module(f"{__name__}.{name}").EXERCISES:
            if exercise.number in exercises:
                raise ValueError(f"exercise {exercise.number} is defined twice; the second is in exercises/{name}.py")
            exercises[exercise.number] = exercise
    return exercises
