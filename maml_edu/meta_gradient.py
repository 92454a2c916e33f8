"""The heart: adapt to every task at once, and pull the query gradient back through the adaptation.

Notation: θ `theta`, φ `phi` (adapted, with a task axis in front), α `alpha`, K `steps`, T tasks, L_s and L_q the losses
on support and query set. Forward, θ_{j+1} = θ_j − α∘∇L_s(θ_j). Backward, starting from v = ∇L_q(φ),

    v ← v − H_j (α∘v),   H_j = ∇²L_s(θ_j),   j = K−1 … 0,

the chain rule of Finn, Abbeel & Levine (2017, eq. 1) written as a recursion of Hessian-vector products. The losses of T
tasks are summed before they are differentiated: their joint Hessian is block-diagonal, so one backward call yields the
gradient, or the Hessian-vector product, of every task.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from maml_edu.step_sizes import Alpha, alpha_share, flat_rates, map_alpha, rates_per_step
from maml_edu.step_sizes import alpha_gradient as gradient_of_alpha
from maml_edu.tasks import Loss, Params, TaskBatch

Weights = list[float] | Tensor | None


class MetaGradient(NamedTuple):
    """gradient: dict like theta, mean over tasks. query_loss: [T], at phi. phi: dict like theta with T in front.

    alpha_gradient: the derivative of the mean query loss with respect to alpha, in the form of alpha; None where the
    method does not define one.
    """

    gradient: Params
    query_loss: Tensor
    phi: Params
    alpha_gradient: Alpha | None


# ---------------------------------------------------------------- forward: adapt


def adapt(loss: Loss, theta: Params, x: Tensor, y: Tensor, alpha: Alpha, steps: int) -> list[Params]:
    """K inner gradient steps on every task. Returns the path θ_0 … θ_K, K + 1 dicts of tensors [T, …] without graph.

    x, y: [T, n, …]. alpha: a number; or a dict name → number or tensor broadcastable to that parameter (0 freezes it);
    or a list of at least `steps` of these. Source: Finn et al. (2017), Algorithm 1, line 6.
    Raises ValueError if alpha does not fit theta or `loss` does not return one value per task.
    """
    return _descend(loss, at_every_task(theta, x.shape[0]), x, y, rates_per_step(alpha, theta, steps))[0]


def descend(loss: Loss, start: Params, x: Tensor, y: Tensor, alpha: Alpha, steps: int) -> list[Params]:
    """As `adapt`, but each task has a start of its own: start is a dict of tensors [T, …]."""
    return _descend(loss, start, x, y, rates_per_step(alpha, start, steps, task_axis=True))[0]


def at_every_task(theta: Params, tasks: int) -> Params:
    """θ with a task axis in front [T, …]: T views of the same numbers, without graph."""
    return {name: p.detach().expand(tasks, *p.shape) for name, p in theta.items()}


def _descend(loss, start, x, y, rates, keep=None):
    """The path, and what the caller asks to keep of its steps.

    keep="gradients": the list of ∇L_s(θ_j). keep="last graph": (leaf parameters, gradient) of the last step, with the
    graph between them, for a pullback that follows at once.
    """
    path = [{name: p.detach() for name, p in start.items()}]
    gradients, last_graph = [], None
    for j, rate in enumerate(rates):
        last = keep == "last graph" and j == len(rates) - 1
        _, leaf, g = _gradient(loss, path[-1], x, y, create_graph=last)
        with torch.no_grad():
            path.append({name: _update(p, g[name], rate[name]) for name, p in path[-1].items()})
        if keep == "gradients":
            gradients.append(g)
        if last:
            last_graph = (leaf, g)
    return path, last_graph if keep == "last graph" else gradients


# ---------------------------------------------------------------- backward: pull back


def pull_back(
    loss: Loss,
    path: list[Params],
    x: Tensor,
    y: Tensor,
    alpha: Alpha,
    v: Params,
    hvp: str = "double-backward",
    query_gradients: list[Params | None] | None = None,
    *,
    last_graph: tuple[Params, Params] | None = None,
) -> tuple[Params, Alpha]:
    """Carry v [T, …] from θ_K back to θ_0 along `path`: v ← v − H_j(α∘v), one Hessian-vector product per step.

    x, y: the support set that `path` descended on. Returns v_0 (per task, like v) and the derivative with respect to
    alpha, −Σ_j ∇L_s(θ_j)∘v_{j+1}, in the form of alpha, mean over tasks.
    α stands inside the product: the pullback of θ ↦ θ − α∘∇L(θ) is the transpose (I − diag(α)H)ᵀ = I − H·diag(α).
    query_gradients: for a multi-step loss (Antoniou et al. 2019, MAML++), entry j = 0 … K−1 is w_j∇L_q(θ_j) or None and
    is added after step j has been pulled back; v itself is w_K∇L_q(θ_K).
    last_graph: (θ_{K−1}, ∇L_s(θ_{K−1})) with the graph between them, if the caller kept it; not recomputed then.
    """
    rates = rates_per_step(alpha, path[0], len(path) - 1, task_axis=True)
    if query_gradients is not None and len(query_gradients) < len(rates):
        raise ValueError(
            f"query_gradients has {len(query_gradients)} entries for {len(rates)} steps; give one per step"
        )
    _route(hvp)
    alpha_products = [None] * len(rates)
    for j in reversed(range(len(rates))):
        rate = rates[j]
        one = next(iter(rate.values()))
        same = isinstance(one, float) and all(r is one for r in rate.values())  # H(αv) = αHv for a number α
        u = v if same else {name: v[name] * rate[name] for name in v}
        if last_graph is not None:
            (leaf, g), last_graph = last_graph, None  # used once, then freed
            hv = _grad_of_gradient(leaf, g, u)
        else:
            g, hv = _route(hvp)(loss, path[j], x, y, u)
        with torch.no_grad():
            alpha_products[j] = {name: alpha_share(g[name], v[name], rate[name]) for name in v}
        leaf = g = None
        v = {name: torch.sub(v[name], hv[name], alpha=one if same else 1) for name in v}
        v = _plus(v, query_gradients[j] if query_gradients is not None else None)
    return v, gradient_of_alpha(alpha, alpha_products, x.shape[0])


def hvp(loss: Loss, params: Params, x: Tensor, y: Tensor, v: Params, how: str = "double-backward") -> Params:
    """H·v for every task at once, H the Hessian of `loss` at params; no H is ever built. params and v: dicts [T, …].

    how: "double-backward" differentiates the gradient with grad_outputs = v (Pearlmutter 1994); "forward-over-reverse"
    pushes the tangent v through the gradient; "finite-difference" takes [∇L(θ + εv) − ∇L(θ − εv)]/2ε with ε per task
    (inexact: about 1e-10 relative in float64, 1e-3 in float32, and wrong where εv crosses the kink of a ReLU).
    A parameter that the loss does not use, or uses linearly, gets zero.
    """
    return _route(how)(loss, params, x, y, v)[1]


def _double_backward(loss, params, x, y, v):
    _, leaf, g = _gradient(loss, params, x, y, create_graph=True)
    return {name: p.detach() for name, p in g.items()}, _grad_of_gradient(leaf, g, v)


def _grad_of_gradient(leaf, g, v):
    """∇(g·v) = H·v from a gradient that still has its graph."""
    curved = [name for name in g if g[name].requires_grad]  # a gradient that does not depend on θ has no graph
    if not curved:
        return {name: torch.zeros_like(p) for name, p in leaf.items()}
    try:
        hv = torch.autograd.grad(
            [g[name] for name in curved],
            list(leaf.values()),
            grad_outputs=[v[name] for name in curved],
            materialize_grads=True,
        )
    except RuntimeError as error:
        if "is not implemented" not in str(error):
            raise
        raise RuntimeError(
            f"an operation of this model has no second derivative in PyTorch ({error}). "
            "Replace it by one that has (for attention: torch.nn.attention.sdpa_kernel(SDPBackend.MATH)), "
            'or use hvp="finite-difference"'
        ) from error
    return dict(zip(leaf, hv))


def _forward_over_reverse(loss, params, x, y, v):
    def gradient(p):
        return torch.func.grad(lambda q: _per_task(loss, q, x, y).sum())(p)

    primal = {name: p.detach().clone() for name, p in params.items()}  # jvp refuses expanded memory
    return torch.func.jvp(gradient, (primal,), ({name: t.contiguous() for name, t in v.items()},))


def _finite_difference(loss, params, x, y, v):
    tasks = x.shape[0]
    dtype = next(iter(v.values())).dtype
    epsilon = {torch.float64: 1e-5, torch.float32: 5e-3}.get(dtype, 5e-2)
    norm = torch.stack([t.reshape(tasks, -1).square().sum(1) for t in v.values()]).sum(0).sqrt()  # [T]

    def per_task(t, scale):
        return t * scale.view(-1, *[1] * (t.dim() - 1))

    one_over_norm = torch.where(norm > 0, 1 / norm, 0)
    unit = {name: per_task(t, one_over_norm) for name, t in v.items()}
    plus = _gradient(loss, {name: p + epsilon * unit[name] for name, p in params.items()}, x, y)[2]
    minus = _gradient(loss, {name: p - epsilon * unit[name] for name, p in params.items()}, x, y)[2]
    hv = {name: per_task(plus[name] - minus[name], norm / (2 * epsilon)) for name in v}
    return _gradient(loss, params, x, y)[2], hv


_ROUTES = {
    "double-backward": _double_backward,
    "forward-over-reverse": _forward_over_reverse,
    "finite-difference": _finite_difference,
}


def _route(how):
    if how not in _ROUTES:
        raise ValueError(f"unknown Hessian-vector product {how!r}; choose one of {', '.join(_ROUTES)}")
    return _ROUTES[how]


# ---------------------------------------------------------------- the methods: how to adapt, how to pull back


def maml(
    loss: Loss,
    theta: Params,
    batch: TaskBatch,
    alpha: Alpha,
    steps: int = 1,
    hvp: str = "double-backward",
    step_weights: Weights = None,
) -> MetaGradient:
    """The exact meta-gradient by the explicit recursion. Source: Finn et al. (2017), Algorithm 1.

    step_weights: K numbers (or a tensor [K]) w_1 … w_K for the multi-step objective Σ_j w_j L_q(θ_j) (Antoniou et al.
    2019, eq. 4); without them only L_q(θ_K) counts. query_loss is L_q(θ_K) either way.
    Keeps K + 1 parameter vectors per task and one step's graph at a time; with steps = 1 nothing is computed twice.
    """
    _route(hvp)
    rates = rates_per_step(alpha, theta, steps)
    x, y = batch.support_x, batch.support_y
    path, last_graph = _descend(
        loss, at_every_task(theta, x.shape[0]), x, y, rates, keep="last graph" if hvp == "double-backward" else None
    )
    query_loss, v, earlier = _query(loss, path, batch, step_weights)
    v, alpha_gradient = pull_back(loss, path, x, y, alpha, v, hvp, earlier, last_graph=last_graph or None)
    return MetaGradient(mean_over_tasks(v), query_loss, path[-1], alpha_gradient)


def fomaml(
    loss: Loss, theta: Params, batch: TaskBatch, alpha: Alpha, steps: int = 1, step_weights: Weights = None
) -> MetaGradient:
    """First-order MAML: v = ∇L_q(φ) as it is, every Jacobian taken for the identity. Source: Finn et al. (2017), §5.2.

    alpha_gradient is first-order as well: −Σ_j ∇L_s(θ_j)∘v with the same v at every step. step_weights: as in `maml`.
    """
    rates, x, y = rates_per_step(alpha, theta, steps), batch.support_x, batch.support_y
    path, gradients = _descend(loss, at_every_task(theta, x.shape[0]), x, y, rates, keep="gradients")
    query_loss, v, earlier = _query(loss, path, batch, step_weights)
    products = []
    for g, rate, query_gradient in zip(reversed(gradients), reversed(rates), reversed(earlier or [None] * steps)):
        products.insert(0, {name: alpha_share(g[name], v[name], rate[name]) for name in v})
        v = _plus(v, query_gradient)
    return MetaGradient(
        mean_over_tasks(v), query_loss, path[-1], gradient_of_alpha(alpha, products, batch.support_x.shape[0])
    )


def reptile(loss: Loss, theta: Params, batch: TaskBatch, alpha: Alpha, steps: int = 5) -> MetaGradient:
    """Reptile: mean(θ − φ)/α after K steps on support ∪ query. Source: Nichol, Achiam & Schulman (2018), Algorithm 2.

    (θ − φ)/α is the sum of the K inner gradients, and is computed as that sum; a parameter frozen by α = 0 gets zero.
    steps = 1 is joint training. query_loss is measured at φ on the query set, which φ has already seen.
    """
    if isinstance(alpha, (list, tuple)):
        raise ValueError("reptile divides by one α; give a number or a dict, not a list per step")
    rates = rates_per_step(alpha, theta, steps)
    x, y = _all_examples(batch)
    path, gradients = _descend(loss, at_every_task(theta, x.shape[0]), x, y, rates, keep="gradients")
    total = {name: sum((g[name] for g in gradients), torch.zeros_like(path[0][name])) for name in theta}
    if isinstance(alpha, dict):
        total = {name: torch.where(torch.as_tensor(alpha[name]) == 0, 0, t) for name, t in total.items()}
    query_loss = _value(loss, path[-1], batch.query_x, batch.query_y)
    return MetaGradient(mean_over_tasks(total), query_loss, path[-1], None)


def joint(loss: Loss, theta: Params, batch: TaskBatch) -> MetaGradient:
    """No adaptation: the gradient at θ on support ∪ query, mean over tasks: pre-training, and the oracle."""
    x, y = _all_examples(batch)
    theta_everywhere = at_every_task(theta, x.shape[0])
    g = _gradient(loss, theta_everywhere, x, y)[2]
    query_loss = _value(loss, theta_everywhere, batch.query_x, batch.query_y)
    return MetaGradient(mean_over_tasks(g), query_loss, theta_everywhere, None)


def autograd_maml(
    loss: Loss, theta: Params, batch: TaskBatch, alpha: Alpha, steps: int = 1, step_weights: Weights = None
) -> MetaGradient:
    """The same as `maml` by unrolling all K steps with create_graph=True: the reference to check against.

    Its memory grows by a whole graph per step.
    """
    theta = {name: p.detach().clone().requires_grad_() for name, p in theta.items()}
    like = next(iter(theta.values()))
    alpha = map_alpha(
        lambda r: torch.as_tensor(r, dtype=like.dtype, device=like.device).detach().clone().requires_grad_(), alpha
    )
    rates = rates_per_step(alpha, theta, steps, detach=False)
    phi = {name: p.expand(batch.support_x.shape[0], *p.shape) for name, p in theta.items()}
    weights = [None] * (steps - 1) + [1.0] if step_weights is None else _checked(step_weights, steps)
    objective = 0.0
    for weight, rate in zip(weights, rates):
        values = _per_task(loss, phi, batch.support_x, batch.support_y)
        g = torch.autograd.grad(values.sum(), list(phi.values()), create_graph=True, materialize_grads=True)
        phi = {name: p - rate[name] * gradient for (name, p), gradient in zip(phi.items(), g)}
        if weight is not None:
            query_loss = _per_task(loss, phi, batch.query_x, batch.query_y)
            objective = objective + weight * query_loss.mean()
    if steps == 0:
        query_loss = _per_task(loss, phi, batch.query_x, batch.query_y)
        objective = query_loss.mean()
    inputs = [*theta.values(), *flat_rates(alpha)]
    gradient = torch.autograd.grad(objective, inputs, materialize_grads=True)
    of_alpha = iter(gradient[len(theta) :])
    return MetaGradient(
        dict(zip(theta, gradient)),
        query_loss.detach(),
        {name: p.detach() for name, p in phi.items()},
        map_alpha(lambda rate: next(of_alpha), alpha),
    )


# ---------------------------------------------------------------- pieces


def _per_task(loss, params, x, y):
    values = loss(params, x, y)
    if values.shape != x.shape[:1]:
        raise ValueError(
            f"loss returned shape {list(values.shape)} for {x.shape[0]} tasks; expected one value per task, "
            f"[{x.shape[0]}]: average over the examples of a task, not over tasks"
        )
    return values


def value_and_gradient(loss: Loss, params: Params, x: Tensor, y: Tensor) -> tuple[Tensor, Params]:
    """Every task's loss [T] and its gradient at params [T, …], both without graph, by one backward call."""
    values, _, g = _gradient(loss, params, x, y)
    return values, g


def _value(loss, params, x, y):
    with torch.no_grad():
        return _per_task(loss, params, x, y)


def _gradient(loss, params, x, y, create_graph=False):
    """Per-task loss values [T], the leaves they were computed from, and ∇L of every task (one backward call)."""
    leaf = {name: p.detach().requires_grad_() for name, p in params.items()}
    with torch.enable_grad():
        values = _per_task(loss, leaf, x, y)
        if not values.requires_grad:  # the loss uses no parameter at all
            return values, leaf, {name: torch.zeros_like(p) for name, p in leaf.items()}
        ones = torch.ones_like(values)  # the gradient of the sum over tasks
        g = torch.autograd.grad(values, list(leaf.values()), ones, create_graph=create_graph, materialize_grads=True)
    return values.detach(), leaf, dict(zip(leaf, g))


def _query(loss, path, batch, weights):
    """L_q(φ) [T]; v = w_K∇L_q(φ); and for the steps before, j = 0 … K−1, w_j∇L_q(θ_j) or None (θ_0 has no weight)."""
    query_loss, _, v = _gradient(loss, path[-1], batch.query_x, batch.query_y)
    if weights is None or len(path) == 1:
        return query_loss, v, None
    weights = _checked(weights, len(path) - 1)
    earlier = [None]
    for weight, params in zip(weights[:-1], path[1:-1]):
        skip = not isinstance(weight, Tensor) and weight == 0
        earlier.append(None if skip else _times(weight, _gradient(loss, params, batch.query_x, batch.query_y)[2]))
    return query_loss, _times(weights[-1], v), earlier


def _checked(weights, steps):
    if len(weights) != steps:
        raise ValueError(f"step_weights has {len(weights)} entries for {steps} steps; give one for each of θ_1 … θ_K")
    return weights


def _times(weight, v):
    return {name: weight * t for name, t in v.items()}


def _plus(v, more):
    return v if more is None else {name: v[name] + more[name] for name in v}


def _update(p, g, rate):
    """p − rate∘g in one operation."""
    return torch.addcmul(p, g, rate, value=-1) if isinstance(rate, Tensor) else torch.sub(p, g, alpha=rate)


def mean_over_tasks(v: Params) -> Params:
    """The last step of every method: v_0 [T, …] of each task to one meta-gradient [ …]."""
    return {name: t.mean(0) for name, t in v.items()}


def _all_examples(batch):
    return torch.cat([batch.support_x, batch.query_x], 1), torch.cat([batch.support_y, batch.query_y], 1)
