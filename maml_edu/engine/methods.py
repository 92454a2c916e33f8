"""A method and its name: what checkpoints and results file a meta-gradient function under, and which options it takes.

Every method is called as method(loss, theta, batch, alpha, steps) and returns a MetaGradient. `maml`, `fomaml`,
`reptile`, `joint` and `functools.partial`s of them are methods as they are; a function made at run time gets its name
from `Method`.
"""

import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass

from maml_edu.meta_gradient import MetaGradient

MetaGradientFunction = Callable[..., MetaGradient]


@dataclass(frozen=True)
class Method:
    """A meta-gradient function under a name of its own."""

    name: str
    function: MetaGradientFunction

    def __call__(self, *arguments: object, **options: object) -> MetaGradient:
        return self.function(*arguments, **options)


def name_of(method: Callable) -> str:
    """The same text in every process: "maml", or "maml(route=finite-difference)" for a partial of it."""
    if isinstance(method, functools.partial):
        options = [*map(_plain, method.args), *(f"{key}={_plain(value)}" for key, value in method.keywords.items())]
        return f"{name_of(method.func)}({', '.join(options)})"
    return getattr(method, "name", None) or getattr(method, "__qualname__", None) or type(method).__name__


def _plain(value: object) -> str:
    return name_of(value) if callable(value) else str(value)


def takes(method: Callable, option: str) -> bool:
    """Whether a method has this keyword argument."""
    while True:
        inner = getattr(method, "function", None) or getattr(method, "__wrapped__", None)
        if inner is None:
            return option in inspect.signature(method).parameters
        method = inner
