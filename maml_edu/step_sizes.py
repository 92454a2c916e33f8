"""Step sizes α in their three forms: a number, a dict name → rate per parameter, a list of these per step."""

from collections.abc import Callable

import torch
from torch import Tensor

Rate = float | Tensor
Alpha = Rate | dict[str, Rate] | list[Rate | dict[str, Rate]]


def rates_per_step(alpha: Alpha, theta: dict[str, Tensor], steps: int, task_axis=False, detach=True) -> list[dict]:
    """One dict name → rate per inner step, checked against theta (with task_axis: theta [T, …]).

    Raises ValueError for steps that are no whole number, too few rates, unknown parameters or shapes that do not fit.
    """
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 0:
        raise ValueError(f"steps={steps!r}; expected a whole number of inner steps, 0 or more")
    if isinstance(alpha, (list, tuple)):
        if len(alpha) < steps:
            raise ValueError(f"alpha is a list of {len(alpha)} rates for {steps} steps; give one per step")
        return [_rate(a, theta, task_axis, detach) for a in alpha[:steps]]
    return [_rate(alpha, theta, task_axis, detach)] * steps


def _rate(alpha, theta, task_axis, detach):
    if not isinstance(alpha, dict):
        if isinstance(alpha, Tensor) and alpha.dim() > 0:
            raise ValueError(
                f"alpha is a tensor of shape {list(alpha.shape)}; expected a number, "
                "a dict name → rate, or a list of these, one per step"
            )
        alpha = dict.fromkeys(theta, alpha)
    unknown, missing = set(alpha) - set(theta), set(theta) - set(alpha)
    if unknown or missing:
        raise ValueError(
            f"alpha must name each parameter once; unknown: {sorted(unknown) or 'none'}, "
            f"missing: {sorted(missing) or 'none'} (give 0 to freeze a parameter). Parameters: {list(theta)}"
        )
    rates = {}
    for name, rate in alpha.items():
        if isinstance(rate, Tensor):
            shape = theta[name].shape[1:] if task_axis else theta[name].shape
            try:
                fits = torch.broadcast_shapes(rate.shape, shape) == shape
            except RuntimeError:
                fits = False
            if not fits:
                raise ValueError(
                    f"alpha[{name!r}] has shape {list(rate.shape)}, which does not broadcast to the parameter's "
                    f"{list(shape)}"
                )
            rates[name] = rate.detach().to(theta[name]) if detach else rate
        else:
            rates[name] = float(rate)
    return rates


def alpha_share(g: Tensor, v: Tensor, rate: Rate) -> Tensor:
    """g∘v, summed over tasks and down to the shape of the rate: one step's share of −T times ∂/∂α."""
    if isinstance(rate, Tensor) and rate.dim() > 0:
        return (g * v).sum(0).sum_to_size(rate.shape)
    return torch.dot(g.flatten(), v.flatten())


def alpha_gradient(alpha: Alpha, products: list[dict[str, Tensor]], tasks: int) -> Alpha:
    """−Σ over what shares a rate (steps, parameters), in the form of alpha, mean over tasks."""
    if isinstance(alpha, (list, tuple)):
        unused = [map_alpha(lambda rate: torch.zeros_like(torch.as_tensor(rate)), a) for a in alpha[len(products) :]]
        return [alpha_gradient(a, [product], tasks) for a, product in zip(alpha, products)] + unused
    if not products:  # no steps: α has no influence
        return map_alpha(lambda rate: torch.zeros_like(torch.as_tensor(rate)), alpha)
    if isinstance(alpha, dict):
        return {name: sum(product[name] for product in products) / -tasks for name in alpha}
    return torch.stack([share for product in products for share in product.values()]).sum() / -tasks


def map_alpha(function: Callable, alpha: Alpha) -> Alpha:
    """`function` of every rate in alpha, in the same form."""
    if isinstance(alpha, (list, tuple)):
        return [map_alpha(function, a) for a in alpha]
    if isinstance(alpha, dict):
        return {name: function(rate) for name, rate in alpha.items()}
    return function(alpha)


def flat_rates(alpha: Alpha) -> list[Rate]:
    """All rates of alpha, in a fixed order."""
    rates: list[Rate] = []
    map_alpha(rates.append, alpha)
    return rates
