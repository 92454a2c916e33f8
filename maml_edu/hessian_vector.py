"""Gradients and Hessian-vector products of every task at once, and three routes to H·v. No Hessian is ever built.

Every task has parameters of its own and a loss that depends on nothing else. The losses of T tasks are summed before
they are differentiated: their joint Hessian is block-diagonal, so one backward call yields the gradient, or the
Hessian-vector product, of every task.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from maml_edu.tasks import Loss, Params

Product = Callable[[Params], Params]  # v ↦ H·v
StepWeights = Sequence[float] | Tensor | None  # w_1 … w_K of a multi-step objective; None: only the last step counts


def value_per_task(loss: Loss, params: Params, x: Tensor, y: Tensor) -> Tensor:
    """loss(params, x, y) [T], with its graph. Raises ValueError if `loss` does not return one value per task."""
    values = loss(params, x, y)
    if values.shape != x.shape[:1]:
        raise ValueError(
            f"loss returned shape {list(values.shape)} for {x.shape[0]} tasks; expected one value per task, "
            f"[{x.shape[0]}]: average over the examples of a task, not over tasks"
        )
    return values


def value_and_gradient(loss: Loss, params: Params, x: Tensor, y: Tensor) -> tuple[Tensor, Params]:
    """Every task's loss [T] and its gradient at params [T, …], both without graph, by one backward call."""
    values, _, g = _differentiate(loss, params, x, y, create_graph=False)
    return values, g


def path_gradients(
    loss: Loss, path: Sequence[Params], x: Tensor, y: Tensor, step_weights: StepWeights = None
) -> tuple[Tensor, list[Params | None], Params]:
    """L(θ_K) [T]; for j = 0 … K−1 the gradient w_j∇L(θ_j), or None where w_j = 0 (θ_0 has no weight); and w_K∇L(θ_K).

    Without step_weights θ_K alone counts, with w_K = 1. Raises ValueError unless there is one weight for each step.
    """
    steps = len(path) - 1
    values, v = value_and_gradient(loss, path[-1], x, y)
    earlier: list[Params | None] = [None] * steps
    if step_weights is None:
        return values, earlier, v
    weights = check_step_weights(step_weights, steps)
    if steps == 0:
        return values, earlier, v
    for j in range(1, steps):
        w = weights[j - 1]
        if isinstance(w, Tensor) or w != 0:
            earlier[j] = {name: w * t for name, t in value_and_gradient(loss, path[j], x, y)[1].items()}
    return values, earlier, {name: weights[steps - 1] * t for name, t in v.items()}


def check_step_weights(step_weights: Sequence[float] | Tensor, steps: int) -> Sequence[float] | Tensor:
    """The weights themselves. Raises ValueError unless there is one for each of θ_1 … θ_K."""
    if len(step_weights) != steps:
        raise ValueError(
            f"step_weights has {len(step_weights)} entries for {steps} steps; give one for each of θ_1 … θ_K"
        )
    return step_weights


def linearize(loss: Loss, params: Params, x: Tensor, y: Tensor) -> tuple[Params, Product]:
    """The gradient g at params [T, …], and the map v ↦ H·v from the same graph; calling the map once uses the graph up.

    The map differentiates g with grad_outputs = v (Pearlmutter 1994), where v is a dict like g. A parameter that the
    gradient does not depend on gets zero.
    """
    _, leaf, g = _differentiate(loss, params, x, y, create_graph=True)
    curved = [name for name in g if g[name].requires_grad]  # a gradient that does not depend on θ has no graph
    graph = [g[name] for name in curved]

    def product(v: Params) -> Params:
        if not curved:
            return {name: torch.zeros_like(p) for name, p in leaf.items()}
        try:
            hv = torch.autograd.grad(graph, list(leaf.values()), [v[name] for name in curved], materialize_grads=True)
        except RuntimeError as error:
            if "is not implemented" not in str(error):
                raise
            raise RuntimeError(
                f"an operation of this model has no second derivative in PyTorch ({error}). "
                "Replace it by one that has (for attention: torch.nn.attention.sdpa_kernel(SDPBackend.MATH)), "
                'or use route="finite-difference"'
            ) from error
        return dict(zip(leaf, hv))

    return {name: p.detach() for name, p in g.items()}, product


def _differentiate(
    loss: Loss, params: Params, x: Tensor, y: Tensor, create_graph: bool
) -> tuple[Tensor, Params, Params]:
    """Loss values [T], the leaves they were computed from, and ∇L of every task."""
    leaf = {name: p.detach().requires_grad_() for name, p in params.items()}
    with torch.enable_grad():
        values = value_per_task(loss, leaf, x, y)
        if not values.requires_grad:  # the loss uses no parameter at all
            return values, leaf, {name: torch.zeros_like(p) for name, p in leaf.items()}
        ones = torch.ones_like(values)  # the gradient of the sum over tasks
        g = torch.autograd.grad(values, list(leaf.values()), ones, create_graph=create_graph, materialize_grads=True)
    return values.detach(), leaf, dict(zip(leaf, g))


# ---------------------------------------------------------------- three routes: (loss, params, x, y, v) -> g, H·v


def hvp(loss: Loss, params: Params, x: Tensor, y: Tensor, v: Params, route: str = "double-backward") -> Params:
    """H·v for every task at once, H the Hessian of `loss` at params. params and v: dicts of [T, …].

    route: "double-backward" differentiates the gradient with grad_outputs = v (Pearlmutter 1994);
    "forward-over-reverse" pushes the tangent v through the gradient; "finite-difference" takes
    [∇L(θ + εv) − ∇L(θ − εv)]/2ε with ε per task (inexact: about 1e-10 relative in float64, 1e-3 in float32, and wrong
    where εv crosses the kink of a ReLU). Raises ValueError for any other route.
    """
    return gradient_and_product(loss, params, x, y, v, route)[1]


def gradient_and_product(
    loss: Loss, params: Params, x: Tensor, y: Tensor, v: Params, route: str = "double-backward"
) -> tuple[Params, Params]:
    """∇L and H·v of every task by one of the routes of `hvp`."""
    return ROUTES[check_route(route)](loss, params, x, y, v)


def check_route(route: str) -> str:
    """`route` itself. Raises ValueError, naming the routes, for an unknown one."""
    if route not in ROUTES:
        raise ValueError(f"unknown Hessian-vector product {route!r}; choose one of {', '.join(ROUTES)}")
    return route


def _double_backward(loss: Loss, params: Params, x: Tensor, y: Tensor, v: Params) -> tuple[Params, Params]:
    g, product = linearize(loss, params, x, y)
    return g, product(v)


def _forward_over_reverse(loss: Loss, params: Params, x: Tensor, y: Tensor, v: Params) -> tuple[Params, Params]:
    def gradient(p: Params) -> Params:
        return torch.func.grad(lambda q: value_per_task(loss, q, x, y).sum())(p)

    primal = {name: p.detach().clone() for name, p in params.items()}  # jvp refuses expanded memory
    both = torch.func.jvp(gradient, (primal,), ({name: t.contiguous() for name, t in v.items()},))
    return both[0], both[1]


def _finite_difference(loss: Loss, params: Params, x: Tensor, y: Tensor, v: Params) -> tuple[Params, Params]:
    tasks = x.shape[0]
    dtype = next(iter(v.values())).dtype
    epsilon = {torch.float64: 1e-5, torch.float32: 5e-3}.get(dtype, 5e-2)
    norm = torch.stack([t.reshape(tasks, -1).square().sum(1) for t in v.values()]).sum(0).sqrt()  # [T]

    def scaled(t: Tensor, per_task: Tensor) -> Tensor:
        return t * per_task.view(-1, *[1] * (t.dim() - 1))

    one_over_norm = torch.where(norm > 0, 1 / norm, 0)
    unit = {name: scaled(t, one_over_norm) for name, t in v.items()}
    plus = value_and_gradient(loss, {name: p + epsilon * unit[name] for name, p in params.items()}, x, y)[1]
    minus = value_and_gradient(loss, {name: p - epsilon * unit[name] for name, p in params.items()}, x, y)[1]
    hv = {name: scaled(plus[name] - minus[name], norm / (2 * epsilon)) for name in v}
    return value_and_gradient(loss, params, x, y)[1], hv


ROUTES: dict[str, Callable[[Loss, Params, Tensor, Tensor, Params], tuple[Params, Params]]] = {
    "double-backward": _double_backward,
    "forward-over-reverse": _forward_over_reverse,
    "finite-difference": _finite_difference,
}
