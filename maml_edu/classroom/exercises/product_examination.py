"""Exercise 3.1 asks for H·v without H: what a function computes on the way is counted, and its detours are refused."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from maml_edu.classroom.exercises import NotAllowed
from maml_edu.hessian_vector import value_and_gradient
from maml_edu.tasks import Loss, Params

HvpFunction = Callable[[Loss, Params, Tensor, Tensor, Params], Params]
MOST_GRADIENTS = 12  # what a product may cost; by two backward passes it costs three


def priced(function: HvpFunction) -> HvpFunction:
    """The same function; refuses a loop over tasks, a finite difference, and the price of a Hessian."""

    def examined(loss: Loss, params: Params, x: Tensor, y: Tensor, v: Params) -> Params:
        def watched(p: Params, x_now: Tensor, y_now: Tensor) -> Tensor:
            if len(x_now) != len(x):
                raise NotAllowed(_NO_LOOP)
            if _elsewhere(p, params):
                raise NotAllowed(_NO_DIFFERENCE)
            return loss(p, x_now, y_now)

        if all(torch.equal(p, p[:1].expand_as(p)) for p in params.values()):  # θ_0: one memory, as `adapt` makes it
            params = {name: p[:1].expand_as(p) for name, p in params.items()}
        try:
            with FlopCounterMode(display=False) as price:
                hv = function(watched, params, x, y, v)
        except RuntimeError as error:
            if "written-to tensor" in str(error):
                raise NotAllowed(_NO_SHARING) from error
            raise
        with FlopCounterMode(display=False) as gradient:
            value_and_gradient(loss, params, x, y)
        gradients = price.get_total_flops() / gradient.get_total_flops()
        if gradients > MOST_GRADIENTS:
            raise NotAllowed(_NO_MATRIX.format(gradients))
        return hv

    return examined


def _elsewhere(p: Params, params: Params) -> bool:
    """Whether a loss was asked for at another point; False where that can't be seen (inside `vmap`)."""
    try:
        return any(not torch.equal(p[name], params[name]) for name in params)
    except (RuntimeError, KeyError, TypeError):
        return False


_NO_LOOP = (
    "your function hands the loss one task at a time. Every tensor has a task axis, so call the loss once, for all "
    "tasks, and sum the values it returns"
)
_NO_DIFFERENCE = (
    "your function takes gradients away from θ. That's a finite difference, and it's only nearly right; here, "
    "differentiate the sum of g∘v instead"
)
_NO_SHARING = (
    "`adapt` makes θ_0 with memory that all tasks share, and torch.func.jvp can't use that. Clone each parameter first"
)
_NO_MATRIX = (
    "this product costs as much as {:.0f} gradients, so it computes a whole Hessian. Differentiate the single "
    "number g·v once: three gradients' worth of work"
)
