"""Implicit gradients: adapt to a proximal minimum, and pull back by solving one linear system there.

Forward, φ* = argmin_φ L_s(φ) + (λ/2)‖φ − θ‖². At the minimum ∇L_s(φ*) + λ(φ* − θ) = 0, whatever path led there.
Differentiated with respect to θ, this gives (H + λI) dφ*/dθ = λI, H = ∇²L_s(φ*). Backward, v = ∇L_q(φ*) becomes
the x of

    (I + H/λ) x = v,

which conjugate gradients solve with Hessian-vector products alone. Source: Rajeswaran, Finn, Kakade & Levine (2019),
"Meta-learning with implicit gradients", Lemma 1 and Algorithm 2. All tasks are solved at once, as in `meta_gradient`.
"""

import math
import warnings
from collections import deque
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from maml_edu.hessian_vector import hvp, value_and_gradient
from maml_edu.meta_gradient import MetaGradient
from maml_edu.step_sizes import Alpha, alpha_per_step, times
from maml_edu.tasks import Loss, Params, TaskBatch, expand_over_tasks, mean_over_tasks

# ---------------------------------------------------------------- forward: adapt to a proximal minimum


def proximal_adapt(
    loss: Loss, theta: Params, x: Tensor, y: Tensor, alpha: Alpha, steps: int, strength: float
) -> list[Params]:
    """K gradient steps on L_s(φ) + (λ/2)‖φ − θ‖² from φ = θ. Returns the path, K + 1 dicts [T, …] without graph.

    x, y: [T, n, …]. alpha: as in `meta_gradient.adapt`. strength: λ ≥ 0; 0 gives `adapt`. The steps converge for
    α(h + λ) < 2, h the largest curvature of L_s. For `evaluate`: adapt=functools.partial(proximal_adapt, strength=λ).
    Raises ValueError for a strength below 0 or an alpha that does not fit theta.
    """
    return list(_descent(loss, theta, x, y, alpha, steps, _checked(strength)))


def _descent(
    loss: Loss, theta: Params, x: Tensor, y: Tensor, alpha: Alpha, steps: int, strength: float
) -> Iterator[Params]:
    """θ_0 … θ_K one after the other: who needs only the last keeps only that."""
    start = phi = expand_over_tasks(theta, x.shape[0])
    alphas = alpha_per_step(alpha, theta, steps)
    yield phi
    for a in alphas:
        _, g = value_and_gradient(loss, phi, x, y)
        phi = {name: p - a[name] * (g[name] + strength * (p - start[name])) for name, p in phi.items()}
        yield phi


# ---------------------------------------------------------------- backward: solve (I + H/λ) x = v


class Solution(NamedTuple):
    """x: dict [T, …]. residuals [m + 1, T]: ‖b − Ax‖/‖b‖ before the first and after each of the m products made.

    indefinite [T]: a direction p with pᵀAp ≤ 0 was met, so A is not positive definite; x is what was reached before.
    """

    x: Params
    residuals: Tensor
    indefinite: Tensor


def conjugate_gradient(
    product: Callable[[Params], Params], b: Params, steps: int, tolerance: float = 1e-10
) -> Solution:
    """Solve A x = b for every task at once, A symmetric and positive definite, known only by product(p) = A p.

    b: dict of tensors [T, …]; product maps such a dict to another. A task stops where ‖b − Ax‖ ≤ tolerance·‖b‖, at once
    for b = 0 (then x = 0), or where it meets a direction without positive curvature, which is reported in `indefinite`.
    One product per step, none once all tasks have stopped. Exact after as many steps as A has different eigenvalues.
    Source: Hestenes & Stiefel (1952). Raises ValueError for steps or tolerance below 0, or b without a task axis.
    """
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 0:
        raise ValueError(f"steps={steps!r}; expected a whole number of products, 0 or more")
    if not tolerance >= 0:
        raise ValueError(f"tolerance={tolerance}; expected the relative residual to stop at, 0 or more")
    if not b or len({t.shape[:1] for t in b.values()}) > 1 or any(t.dim() == 0 for t in b.values()):
        raise ValueError(
            f"b has shapes {[list(t.shape) for t in b.values()]}; expected one task axis T in front of all"
        )
    b = {name: t.detach() for name, t in b.items()}
    x, r, p = {name: 0 * t for name, t in b.items()}, b, b  # 0·t keeps what is not a number visible
    rr = first = _dot(b, b)
    active = rr > 0
    indefinite = torch.zeros_like(active)
    residuals = [torch.where(active, 1, rr)]  # 0 for b = 0
    for _ in range(steps):
        if not active.any():
            break
        Ap = product(p)
        curvature = _dot(p, Ap)
        indefinite = indefinite | (active & ~(curvature > 0))
        active = active & (curvature > 0)
        length = torch.where(active, rr / curvature, 0)  # to the minimum of ½xᵀAx − bᵀx along p
        x = _plus(x, length, p)
        r = _plus(r, -length, Ap)
        now = _dot(r, r)
        residuals.append(torch.where(first > 0, (now / first).sqrt(), first))
        active = active & (now > tolerance**2 * first)
        p = _plus(r, torch.where(active, now / rr, 0), p)  # conjugate to all directions before
        rr = now
    return Solution(x, torch.stack(residuals), indefinite)


def implicit_pull_back(
    loss: Loss,
    phi: Params,
    x: Tensor,
    y: Tensor,
    v: Params,
    strength: float,
    steps: int,
) -> Solution:
    """(I + H/λ)⁻¹ v at φ [T, …] by conjugate gradients, H the Hessian of the support loss (x, y) at φ.

    The pullback of θ ↦ φ*(θ), so only as good as φ is near φ*, and only for λ > −λ_min(H): see `Solution.indefinite`.
    """
    strength = _checked(strength, positive=True)

    def product(p: Params) -> Params:
        hp = hvp(loss, phi, x, y, p)
        return {name: p[name] + hp[name] / strength for name in p}

    return conjugate_gradient(product, v, steps)


# ---------------------------------------------------------------- the methods


def imaml(
    loss: Loss,
    theta: Params,
    batch: TaskBatch,
    alpha: Alpha,
    steps: int = 16,
    strength: float = 2.0,
    cg_steps: int = 5,
) -> MetaGradient:
    """Implicit MAML: K proximal steps, no path kept, then at most cg_steps products for (I + H/λ) x = ∇L_q(φ).

    The gradient of θ ↦ L_q(φ*(θ)) as far as both are solved: K steps for φ*, cg_steps for x. Keeps one parameter vector
    per task for any K. alpha_gradient is None: φ* does not depend on α.
    Source: Rajeswaran et al. (2019), Algorithms 1 and 2. Raises ValueError unless strength (λ) > 0; warns where a task
    has a direction with curvature ≤ −λ, since φ is no minimum there.
    """
    strength = _checked(strength, positive=True)
    (phi,) = deque(_descent(loss, theta, batch.support_x, batch.support_y, alpha, steps, strength), maxlen=1)
    query_loss, v = value_and_gradient(loss, phi, batch.query_x, batch.query_y)
    solution = implicit_pull_back(loss, phi, batch.support_x, batch.support_y, v, strength, cg_steps)
    if solution.indefinite.any():
        warnings.warn(
            f"{int(solution.indefinite.sum())} of {len(query_loss)} tasks have a curvature at or below −λ = "
            f"{-strength}: φ is no proximal minimum there, and conjugate gradients stopped early. "
            "Raise strength, or take more steps",
            stacklevel=2,
        )
    return MetaGradient(mean_over_tasks(solution.x), query_loss, phi, None)


def unrolled_proximal(
    loss: Loss,
    theta: Params,
    batch: TaskBatch,
    alpha: Alpha,
    steps: int,
    strength: float,
) -> MetaGradient:
    """The exact gradient through K proximal steps: what `imaml` replaces, and what it is compared with.

    θ enters every step a second time, by the term αλθ. So v ← v − (H_j + λ)(α∘v) leaves a share λ α∘v_{j+1} behind at
    every step, and the meta-gradient is the sum of the shares and of v_0. strength = 0 gives `maml`. Keeps the path of
    K + 1 parameter vectors per task; alpha_gradient is not computed (None).
    """
    strength, alphas = _checked(strength), alpha_per_step(alpha, theta, steps)
    x, y = batch.support_x, batch.support_y
    path = proximal_adapt(loss, theta, x, y, alpha, steps, strength)
    query_loss, v = value_and_gradient(loss, path[-1], batch.query_x, batch.query_y)
    gathered = {name: torch.zeros_like(t) for name, t in v.items()}
    for phi, a in zip(reversed(path[:-1]), reversed(alphas)):
        u = times(a, v)  # α∘v
        hu = hvp(loss, phi, x, y, u)
        gathered = {name: gathered[name] + strength * u[name] for name in u}
        v = {name: v[name] - hu[name] - strength * u[name] for name in u}
    g = {name: gathered[name] + v[name] for name in v}
    return MetaGradient(mean_over_tasks(g), query_loss, path[-1], None)


# ---------------------------------------------------------------- pieces


def _dot(a: Params, b: Params) -> Tensor:
    """One number per task [T]."""
    return torch.stack([(a[name] * b[name]).flatten(1).sum(1) for name in a]).sum(0)


def _plus(a: Params, scale: Tensor, b: Params) -> Params:
    """a + scale·b, one scale per task [T]."""
    return {name: t + scale.view(-1, *[1] * (t.dim() - 1)) * b[name] for name, t in a.items()}


def _checked(strength: float, positive: bool = False) -> float:
    strength = float(strength)
    if not (strength > 0 if positive else strength >= 0) or math.isinf(strength):
        why = "above 0: without the proximal term θ drops out of the inner problem" if positive else "0 or more"
        raise ValueError(f"strength={strength}; expected a finite λ {why}")
    return strength
