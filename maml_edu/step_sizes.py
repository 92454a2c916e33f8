"""The inner step size α in its three forms: a number, a dict with one for each parameter, a list of these per step."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, TypeVar, Union

import torch
from torch import Tensor

from maml_edu.tasks import Params

if TYPE_CHECKING:
    from typing_extensions import TypeIs

StepSize = float | Tensor
Size = TypeVar("Size", bound=StepSize)
NewSize = TypeVar("NewSize", bound=StepSize)
Sizes = Union[Size, Mapping[str, Size], Sequence[Size | Mapping[str, Size]]]  # noqa: UP007 (mypy wants Union here)
Alpha = Sizes[StepSize]


def is_per_step(alpha: Sizes[Size]) -> "TypeIs[Sequence[Size | Mapping[str, Size]]]":
    """Whether alpha is a list (or tuple), with an entry for each inner step."""
    return isinstance(alpha, (list, tuple))


def alpha_per_step(
    alpha: Alpha, theta: Params, steps: int, task_axis: bool = False, detach: bool = True
) -> list[dict[str, StepSize]]:
    """One dict name → step size per inner step, checked against theta (with task_axis: theta [T, …]).

    Raises ValueError for steps that are no whole number, too few entries, unknown parameters or shapes that do not fit.
    """
    if isinstance(steps, bool) or not hasattr(steps, "__index__") or steps < 0:
        raise ValueError(f"steps={steps!r}; expected a whole number of inner steps, 0 or more")
    if is_per_step(alpha):
        if len(alpha) < steps:
            raise ValueError(f"alpha is a list of {len(alpha)} step sizes for {steps} steps; give one per step")
        return [_per_parameter(a, theta, task_axis, detach) for a in alpha[:steps]]
    return [_per_parameter(alpha, theta, task_axis, detach)] * steps


def _per_parameter(
    alpha: StepSize | Mapping[str, StepSize], theta: Params, task_axis: bool, detach: bool
) -> dict[str, StepSize]:
    if not isinstance(alpha, Mapping):
        if isinstance(alpha, Tensor) and alpha.dim() > 0:
            raise ValueError(
                f"alpha is a tensor of shape {list(alpha.shape)}; expected a number, "
                "a dict name → step size, or a list of these, one per step"
            )
        alpha = dict.fromkeys(theta, alpha)
    unknown, missing = set(alpha) - set(theta), set(theta) - set(alpha)
    if unknown or missing:
        raise ValueError(
            f"alpha must name each parameter once; unknown: {sorted(unknown) or 'none'}, "
            f"missing: {sorted(missing) or 'none'} (give 0 to freeze a parameter). Parameters: {list(theta)}"
        )
    sizes: dict[str, StepSize] = {}
    for name, a in alpha.items():
        if isinstance(a, Tensor):
            shape = theta[name].shape[1:] if task_axis else theta[name].shape
            try:
                fits = torch.broadcast_shapes(a.shape, shape) == shape
            except RuntimeError:
                fits = False
            if not fits:
                raise ValueError(
                    f"alpha[{name!r}] has shape {list(a.shape)}, which does not broadcast to the parameter's "
                    f"{list(shape)}"
                )
            sizes[name] = a.detach().to(theta[name]) if detach else a
        else:
            sizes[name] = float(a)
    return sizes


def descend_one_step(params: Params, g: Params, alpha: dict[str, StepSize]) -> Params:
    """θ − α∘g for every parameter, each in one operation."""
    return {
        name: torch.addcmul(p, g[name], a, value=-1)
        if isinstance(a := alpha[name], Tensor)
        else torch.sub(p, g[name], alpha=a)
        for name, p in params.items()
    }


def times(alpha: dict[str, StepSize], v: Params) -> Params:
    """α∘v for every parameter."""
    return {name: t * alpha[name] for name, t in v.items()}


def factored(alpha: Alpha, sizes: dict[str, StepSize], v: Params) -> tuple[Params, float]:
    """(u, c) such that α∘v = c·u: one number stays outside, which saves a product, since H(αv) = αHv.

    sizes: the step sizes of this step, by parameter.
    """
    return (v, float(alpha)) if isinstance(alpha, (int, float)) else (times(sizes, v), 1.0)


def alpha_share(g: Params, v: Params, alpha: dict[str, StepSize]) -> Params:
    """g∘v of one step, summed over tasks and down to the shape of each step size: its share of −T times ∂/∂α."""
    return {
        name: (g[name] * v[name]).sum(0).sum_to_size(a.shape)
        if isinstance(a, Tensor) and a.dim() > 0
        else torch.dot(g[name].flatten(), v[name].flatten())
        for name, a in alpha.items()
    }


def collect_alpha_gradient(alpha: Alpha, shares: Sequence[Params], tasks: int) -> Sizes[Tensor]:
    """∂/∂α in the form of alpha, mean over tasks: −Σ over the steps and parameters that share a step size.

    shares: what `alpha_share` gave for steps 0 … K−1.
    """
    if is_per_step(alpha):
        unused = [_of_one_step(a, [], tasks) for a in alpha[len(shares) :]]
        return [_of_one_step(a, [share], tasks) for a, share in zip(alpha, shares)] + unused
    return _of_one_step(alpha, shares, tasks)


def _of_one_step(
    alpha: StepSize | Mapping[str, StepSize], shares: Sequence[Params], tasks: int
) -> Tensor | dict[str, Tensor]:
    if isinstance(alpha, Mapping):
        if not shares:  # no steps: α has no influence
            return {name: torch.zeros_like(torch.as_tensor(a)) for name, a in alpha.items()}
        return {name: functools.reduce(torch.add, [share[name] for share in shares]) / -tasks for name in alpha}
    if not shares:
        return torch.zeros_like(torch.as_tensor(alpha))
    return torch.stack([one for share in shares for one in share.values()]).sum() / -tasks


def map_alpha(function: Callable[[Size], NewSize], alpha: Sizes[Size]) -> Sizes[NewSize]:
    """`function` of every step size in alpha, in the same form."""

    def of_one(a: Size | Mapping[str, Size]) -> NewSize | dict[str, NewSize]:
        return {name: function(size) for name, size in a.items()} if isinstance(a, Mapping) else function(a)

    return [of_one(a) for a in alpha] if is_per_step(alpha) else of_one(alpha)


def flat_alpha(alpha: Sizes[Size]) -> list[Size]:
    """All step sizes of alpha, in a fixed order."""
    if is_per_step(alpha):
        return [size for a in alpha for size in flat_alpha(a)]
    return list(alpha.values()) if isinstance(alpha, Mapping) else [alpha]
