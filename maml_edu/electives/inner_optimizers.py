"""Other inner loops than plain gradient steps: momentum, Adam, and a backward pass that is cut short.

Each way to adapt stands beside its pullback. The state of an optimiser (m, u) is carried forward next to θ, and its
cotangents (q, r) are carried back next to p, the cotangent of θ. A step sees the loss through one gradient g_j only:
whatever the state, one Hessian-vector product per step is all that is needed, H_j times the cotangent of g_j.
Learned step sizes need nothing new: `meta_gradient.maml` returns ∂/∂α in every form of α.
"""

from collections.abc import Sized
from typing import NamedTuple

import torch
from torch import Tensor

from maml_edu.electives.curvature import extreme_curvatures
from maml_edu.hessian_vector import hvp, value_and_gradient
from maml_edu.meta_gradient import MetaGradient, adapt, pull_back
from maml_edu.step_sizes import Alpha, alpha_per_step, alpha_share, collect_alpha_gradient, is_per_step
from maml_edu.tasks import Loss, Params, TaskBatch, expand_over_tasks, mean_over_tasks

# ---------------------------------------------------------------- momentum: m ← μm + g,  θ ← θ − α∘m


def momentum_adapt(
    loss: Loss, theta: Params, x: Tensor, y: Tensor, alpha: Alpha, steps: int, momentum: float = 0.9
) -> list[Params]:
    """K inner steps with momentum on every task: the path θ_0 … θ_K, dicts of tensors [T, …] without graph.

    x, y: [T, n, …]; alpha: as in `meta_gradient.adapt`. m starts at 0 in every task (Polyak 1964).
    A function for `evaluate(adapt=…)`. Raises ValueError if alpha does not fit theta or momentum is not in [0, 1).
    """
    return momentum_descend(loss, theta, x, y, alpha, steps, momentum)[0]


def momentum_descend(
    loss: Loss, theta: Params, x: Tensor, y: Tensor, alpha: Alpha, steps: int, momentum: float
) -> tuple[list[Params], list[Params]]:
    """The path θ_0 … θ_K of `momentum_adapt`, and the velocities m_1 … m_K that made it, all [T, …]."""
    _fraction("momentum", momentum)
    path: list[Params] = [expand_over_tasks(theta, x.shape[0])]
    velocities: list[Params] = []
    m = _zeros(path[0])
    for a in alpha_per_step(alpha, theta, steps):
        _, g = value_and_gradient(loss, path[-1], x, y)
        m = {name: momentum * m[name] + g[name] for name in g}
        path.append({name: p - a[name] * m[name] for name, p in path[-1].items()})
        velocities.append(m)
    return path, velocities


def momentum_pull_back(
    loss: Loss,
    path: list[Params],
    velocities: list[Params],
    x: Tensor,
    y: Tensor,
    alpha: Alpha,
    v: Params,
    momentum: float,
) -> tuple[Params, Alpha]:
    """Carry v [T, …] from θ_K back to θ_0 through momentum steps: v_0 per task, and ∂/∂α, mean over tasks.

    With p and q the cotangents of θ and m, step j is  q̃ = q − α∘p,  p ← p + H_j q̃,  q ← μq̃,  from p = v and q = 0;
    ∂/∂α = −Σ_j m_{j+1}∘p_{j+1}. With momentum = 0 this is `pull_back`. Raises ValueError if the lists do not fit.
    """
    _fraction("momentum", momentum)
    _same_length(path, velocities, "velocities")
    alphas = alpha_per_step(alpha, path[0], len(velocities), task_axis=True)
    p, q = v, _zeros(v)
    shares: list[Params] = []
    for j in reversed(range(len(alphas))):
        a = alphas[j]
        shares.append(alpha_share(velocities[j], p, a))
        q = {name: q[name] - a[name] * p[name] for name in q}  # of m_{j+1}, and so of g_j
        hq = hvp(loss, path[j], x, y, q)
        p = {name: p[name] + hq[name] for name in p}
        q = {name: momentum * t for name, t in q.items()}
    return p, collect_alpha_gradient(alpha, shares[::-1], x.shape[0])


def momentum_maml(
    loss: Loss, theta: Params, batch: TaskBatch, alpha: Alpha, steps: int = 1, momentum: float = 0.9
) -> MetaGradient:
    """The exact meta-gradient through K inner steps with momentum. momentum = 0 is `maml`.

    Keeps θ_j and m_j of every step, no graph. Raises ValueError as `momentum_adapt` does.
    """
    x, y = batch.support_x, batch.support_y
    path, velocities = momentum_descend(loss, theta, x, y, alpha, steps, momentum)
    query_loss, v = value_and_gradient(loss, path[-1], batch.query_x, batch.query_y)
    v, alpha_gradient = momentum_pull_back(loss, path, velocities, x, y, alpha, v, momentum)
    return MetaGradient(mean_over_tasks(v), query_loss, path[-1], alpha_gradient)


# ---------------------------------------------------------------- Adam, with ε inside the square root


class AdamStep(NamedTuple):
    """What the pullback of step j needs: g = ∇L_s(θ_j), and the bias-corrected m̂ and s = √(û + ε), all [T, …]."""

    g: Params
    m_hat: Params
    s: Params


def adam_adapt(
    loss: Loss,
    theta: Params,
    x: Tensor,
    y: Tensor,
    alpha: Alpha,
    steps: int,
    beta1: float = 0.9,
    beta2: float = 0.999,
    epsilon: float = 1e-2,
) -> list[Params]:
    """K inner steps of Adam (Kingma & Ba 2015, Algorithm 1) on every task: the path θ_0 … θ_K, [T, …], without graph.

        m ← β₁m + (1−β₁)g,  u ← β₂u + (1−β₂)g²,  θ ← θ − α∘m̂/√(û + ε),  m̂ = m/(1−β₁^{j+1}),  û = u/(1−β₂^{j+1})

    ε stands inside the root, where Kingma and Ba have √û + ε: the derivative of √u at u = 0 is infinite, and an entry
    of g that is exactly 0 (a dead ReLU) would make its pullback 0·∞ = NaN. ε is large for the same reason: near g = 0
    the first step has slope α/√ε. m and u start at 0 in every task.
    Raises ValueError if alpha does not fit theta, a β is not in [0, 1), or epsilon is not above 0.
    """
    return adam_descend(loss, theta, x, y, alpha, steps, beta1, beta2, epsilon)[0]


def adam_descend(
    loss: Loss,
    theta: Params,
    x: Tensor,
    y: Tensor,
    alpha: Alpha,
    steps: int,
    beta1: float,
    beta2: float,
    epsilon: float,
) -> tuple[list[Params], list[AdamStep]]:
    """The path of `adam_adapt`, and what its pullback needs of each of the K steps."""
    _check_adam(beta1, beta2, epsilon)
    path: list[Params] = [expand_over_tasks(theta, x.shape[0])]
    trace: list[AdamStep] = []
    m, u = _zeros(path[0]), _zeros(path[0])
    for j, a in enumerate(alpha_per_step(alpha, theta, steps)):
        _, g = value_and_gradient(loss, path[-1], x, y)
        m = {name: beta1 * m[name] + (1 - beta1) * g[name] for name in g}
        u = {name: beta2 * u[name] + (1 - beta2) * g[name].square() for name in g}
        m_hat = {name: t / (1 - beta1 ** (j + 1)) for name, t in m.items()}
        s = {name: (t / (1 - beta2 ** (j + 1)) + epsilon).sqrt() for name, t in u.items()}
        path.append({name: p - a[name] * m_hat[name] / s[name] for name, p in path[-1].items()})
        trace.append(AdamStep(g, m_hat, s))
    return path, trace


def adam_pull_back(
    loss: Loss,
    path: list[Params],
    trace: list[AdamStep],
    x: Tensor,
    y: Tensor,
    alpha: Alpha,
    v: Params,
    beta1: float,
    beta2: float,
) -> tuple[Params, Alpha]:
    """Carry v [T, …] from θ_K back to θ_0 through steps of Adam: v_0 per task, and ∂/∂α, mean over tasks.

    With p, q, r the cotangents of θ, m, u, step j is

        q̃ = q − α∘p / ((1−β₁^{j+1}) s),    r̃ = r + α∘p∘m̂ / (2 (1−β₂^{j+1}) s³),
        p ← p + H_j ((1−β₁)q̃ + 2(1−β₂) g∘r̃),    q ← β₁q̃,    r ← β₂r̃,

    from p = v, q = r = 0: m and u both depend on g_j, so their cotangents meet in one Hessian-vector product.
    ∂/∂α = −Σ_j (m̂/s)∘p_{j+1}. Raises ValueError if the lists do not fit.
    """
    _check_adam(beta1, beta2, 1.0)
    _same_length(path, trace, "trace")
    alphas = alpha_per_step(alpha, path[0], len(trace), task_axis=True)
    p, q, r = v, _zeros(v), _zeros(v)
    shares: list[Params] = []
    for j in reversed(range(len(alphas))):
        a, (g, m_hat, s) = alphas[j], trace[j]
        c1, c2 = 1 - beta1 ** (j + 1), 1 - beta2 ** (j + 1)
        shares.append(alpha_share({name: m_hat[name] / s[name] for name in p}, p, a))
        step = {name: a[name] * p[name] / s[name] for name in p}
        q = {name: q[name] - step[name] / c1 for name in q}
        r = {name: r[name] + step[name] * m_hat[name] / (2 * c2 * s[name].square()) for name in r}
        of_g = {name: (1 - beta1) * q[name] + 2 * (1 - beta2) * g[name] * r[name] for name in g}
        h = hvp(loss, path[j], x, y, of_g)
        p = {name: p[name] + h[name] for name in p}
        q = {name: beta1 * t for name, t in q.items()}
        r = {name: beta2 * t for name, t in r.items()}
    return p, collect_alpha_gradient(alpha, shares[::-1], x.shape[0])


def adam_maml(
    loss: Loss,
    theta: Params,
    batch: TaskBatch,
    alpha: Alpha,
    steps: int = 1,
    beta1: float = 0.9,
    beta2: float = 0.999,
    epsilon: float = 1e-2,
) -> MetaGradient:
    """The exact meta-gradient through K inner steps of Adam. Keeps θ_j, g_j, m̂ and s of every step, no graph.

    Raises ValueError as `adam_adapt` does.
    """
    x, y = batch.support_x, batch.support_y
    path, trace = adam_descend(loss, theta, x, y, alpha, steps, beta1, beta2, epsilon)
    query_loss, v = value_and_gradient(loss, path[-1], batch.query_x, batch.query_y)
    v, alpha_gradient = adam_pull_back(loss, path, trace, x, y, alpha, v, beta1, beta2)
    return MetaGradient(mean_over_tasks(v), query_loss, path[-1], alpha_gradient)


# ---------------------------------------------------------------- the plain path, cut short or watched


def truncated_maml(
    loss: Loss, theta: Params, batch: TaskBatch, alpha: Alpha, steps: int = 1, keep: int = 1
) -> MetaGradient:
    """K plain steps, of which only the last `keep` are pulled back: keep = 0 is FOMAML, keep = steps is MAML.

    Truncated backpropagation through the inner loop (Shaban et al. 2019). There is no derivative with respect to alpha.
    Raises ValueError unless 0 ≤ keep ≤ steps.
    """
    if not 0 <= keep <= steps:
        raise ValueError(f"keep={keep} of steps={steps}: expected a whole number from 0 (FOMAML) to {steps} (MAML)")
    x, y = batch.support_x, batch.support_y
    path = adapt(loss, theta, x, y, alpha, steps)
    query_loss, v = value_and_gradient(loss, path[-1], batch.query_x, batch.query_y)
    last = alpha[steps - keep : steps] if is_per_step(alpha) else alpha
    v, _ = pull_back(loss, path[steps - keep :], x, y, last, v)
    return MetaGradient(mean_over_tasks(v), query_loss, path[-1], None)


def pulled_back_gradients(loss: Loss, path: list[Params], batch: TaskBatch, alpha: float) -> list[Params]:
    """v_0 … v_K [T, …]: the query gradient v_K = ∇L_q(θ_K), and what is left of it at each θ_j of `path`, θ_0 … θ_K."""
    vs = [value_and_gradient(loss, path[-1], batch.query_x, batch.query_y)[1]]
    for j in reversed(range(len(path) - 1)):
        vs.insert(0, pull_back(loss, path[j : j + 2], batch.support_x, batch.support_y, alpha, vs[0])[0])
    return vs


def largest_curvatures(loss: Loss, path: list[Params], x: Tensor, y: Tensor, iterations: int = 12) -> Tensor:
    """The largest eigenvalue of H_j [len(path), T] for every task and θ_j of `path`, by Lanczos's method.

    NaN where a task has left: θ_j is not finite, or more than ten times as long as θ_0.
    """
    first, rows = path[0], list[Tensor]()
    limit = 10 * _length(first)  # [T]
    for params in path:
        gone = ~(_length(params) <= limit)
        kept = {n: torch.where(gone.view(-1, *[1] * (p.dim() - 1)), first[n], p) for n, p in params.items()}
        rows.append(extreme_curvatures(loss, kept, x, y, iterations)[1].masked_fill(gone, torch.nan))
    return torch.stack(rows)


def alpha_per_parameter(theta: Params, alpha: float) -> Params:
    """The start of Meta-SGD (Li et al. 2017, eq. 3): a step size for every single parameter, all equal to alpha."""
    return {name: torch.full_like(p, alpha) for name, p in theta.items()}


# ---------------------------------------------------------------- pieces


def _zeros(params: Params) -> Params:
    return {name: torch.zeros_like(p) for name, p in params.items()}


def _length(params: Params) -> Tensor:
    """‖θ‖ of every task [T]."""
    return torch.stack([p.flatten(1).square().sum(1) for p in params.values()]).sum(0).sqrt()


def _fraction(name: str, value: float) -> None:
    if not 0 <= value < 1:
        raise ValueError(f"{name}={value}; expected a number from 0 up to, not including, 1")


def _check_adam(beta1: float, beta2: float, epsilon: float) -> None:
    _fraction("beta1", beta1)
    _fraction("beta2", beta2)
    if not epsilon > 0:
        raise ValueError(f"epsilon={epsilon}; expected a number above 0: √u has no finite derivative at u = 0")


def _same_length(path: Sized, steps: Sized, name: str) -> None:
    if len(steps) != len(path) - 1:
        raise ValueError(f"{name} has {len(steps)} entries for a path of {len(path) - 1} steps; take both of one call")
