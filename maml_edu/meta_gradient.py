"""The heart: adapt to every task at once, and pull the query gradient back through the adaptation.

Notation: θ `theta`, φ `phi` (adapted, with a task axis in front), α `alpha`, K `steps`, T tasks, L_s and L_q the losses
on support and query set. Forward, θ_{j+1} = θ_j − α∘∇L_s(θ_j). Backward, starting from v = ∇L_q(φ),

    v ← v − H_j (α∘v),   H_j = ∇²L_s(θ_j),   j = K−1 … 0,

the gradient in the meta-update of Finn, Abbeel & Levine (2017, eq. 1), by the chain rule, one product per step.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from torch import Tensor

from maml_edu.hessian_vector import (
    Product,
    StepWeights,
    check_route,
    gradient_and_product,
    linearize,
    path_gradients,
    value_and_gradient,
)
from maml_edu.step_sizes import Alpha, alpha_per_step, alpha_share, collect_alpha_gradient, descend_one_step, factored
from maml_edu.tasks import Loss, Params, TaskBatch, expand_over_tasks, mean_over_tasks, plus, without_graph


class MetaGradient(NamedTuple):
    """gradient: dict like theta, mean over tasks. query_loss: [T], at phi. phi: dict like theta with T in front.

    alpha_gradient: ∂/∂α of the mean query loss, in the form of alpha; None where the method does not define one.
    """

    gradient: Params
    query_loss: Tensor
    phi: Params
    alpha_gradient: Alpha | None


def adapt(loss: Loss, theta: Params, x: Tensor, y: Tensor, alpha: Alpha, steps: int) -> list[Params]:
    """K inner gradient steps on every task. Returns the path θ_0 … θ_K, K + 1 dicts of tensors [T, …] without graph.

    x, y: [T, n, …]. alpha: a number; or a dict name → number or tensor broadcastable to that parameter (0 freezes it);
    or a list of at least `steps` of these. Source: Finn et al. (2017), Algorithm 1, line 6.
    Raises ValueError if alpha does not fit theta or `loss` does not return one value per task.
    """
    return descend(loss, expand_over_tasks(theta, len(x)), x, y, alpha, steps)


def descend(loss: Loss, start: Params, x: Tensor, y: Tensor, alpha: Alpha, steps: int) -> list[Params]:
    """As `adapt`, but each task has a start of its own: a dict of tensors [T, …]."""
    path, alphas = [without_graph(start)], alpha_per_step(alpha, start, steps, task_axis=True)
    return path + [params for params, _, _ in inner_loop(loss, path[0], x, y, alphas)]


def inner_loop(
    loss: Loss, params: Params, x: Tensor, y: Tensor, alphas: Sequence[dict], remember: int = 0
) -> Iterator[tuple[Params, Params, Product | None]]:
    """For each j yield θ_{j+1}, g_j = ∇L_s(θ_j), and v ↦ H_j·v for the last `remember` steps, None for the others."""
    for j, a in enumerate(alphas):
        if len(alphas) - j <= remember:
            g, product = linearize(loss, params, x, y)
        else:
            g, product = value_and_gradient(loss, params, x, y)[1], None
        params = descend_one_step(params, g, a)  # θ − α∘g
        yield params, g, product


def pull_back(
    loss: Loss,
    path: list[Params],
    x: Tensor,
    y: Tensor,
    alpha: Alpha,
    v: Params,
    route: str = "double-backward",
    query_gradients: Sequence[Params | None] | None = None,
    remembered: Sequence[tuple[Params, Product]] = (),
) -> tuple[Params, Alpha]:
    """Carry v [T, …] from θ_K back to θ_0 along `path`: v ← v − H_j(α∘v), one Hessian-vector product per step.

    x, y: the support set that `path` descended on. Returns v_0 (per task, like v) and the derivative with respect to
    alpha, −Σ_j ∇L_s(θ_j)∘v_{j+1}, in the form of alpha, mean over tasks.
    α stands inside the product: the pullback of θ ↦ θ − α∘∇L(θ) is the transpose (I − diag(α)H)ᵀ = I − H·diag(α).
    query_gradients: for a multi-step loss (Antoniou et al. 2019, MAML++), entry j = 0 … K−1 is w_j∇L_q(θ_j) or None and
    is added after step j has been pulled back; v itself is w_K∇L_q(θ_K).
    remembered: (g_j, v ↦ H_j·v) of the last steps, where the forward pass kept them; each is used once and freed.
    """
    alphas, kept, shares = alpha_per_step(alpha, path[0], len(path) - 1, task_axis=True), list(remembered), []
    if query_gradients is not None and len(query_gradients) < len(alphas):
        raise ValueError(f"query_gradients has {len(query_gradients)} entries for {len(alphas)} steps; give one each")
    for j in reversed(range(len(alphas))):
        u, c = factored(alpha, alphas[j], v)  # α∘v = c·u
        if kept:
            g, product = kept.pop()
            hv = product(u)
        else:
            g, hv = gradient_and_product(loss, path[j], x, y, u, route)
        shares.append(alpha_share(g, v, alphas[j]))
        v = {name: v[name].sub(hv[name], alpha=c) for name in v}  # v − H(α∘v)
        v = v if query_gradients is None else plus(v, query_gradients[j])
        del g, hv  # before the next step asks for its own
    return v, collect_alpha_gradient(alpha, shares[::-1], len(x))


def maml(
    loss: Loss,
    theta: Params,
    batch: TaskBatch,
    alpha: Alpha,
    steps: int = 1,
    route: str = "double-backward",
    step_weights: StepWeights = None,
    remember: int = 1,
) -> MetaGradient:
    """The exact meta-gradient by the explicit recursion. Source: Finn et al. (2017), Algorithm 1.

    step_weights: K numbers (or a tensor [K]) w_1 … w_K for the multi-step objective Σ_j w_j L_q(θ_j) (Antoniou et al.
    2019, eq. 4); without them only L_q(θ_K) counts. query_loss is L_q(θ_K) either way.
    remember: of how many last steps the graph is kept, so that nothing of them is computed twice: 0 takes the least
    memory, K the least time. With the other routes to H·v (see `hvp`) nothing is kept.
    """
    x, y, remember = batch.support_x, batch.support_y, remember if check_route(route) == "double-backward" else 0
    path, remembered = [without_graph(expand_over_tasks(theta, len(x)))], []
    for params, g, product in inner_loop(loss, path[0], x, y, alpha_per_step(alpha, theta, steps), remember):
        path.append(params)
        remembered += [] if product is None else [(g, product)]
    query_loss, earlier, v = path_gradients(loss, path, batch.query_x, batch.query_y, step_weights)
    v, alpha_gradient = pull_back(loss, path, x, y, alpha, v, route, earlier, remembered)
    return MetaGradient(mean_over_tasks(v), query_loss, path[-1], alpha_gradient)


def fomaml(
    loss: Loss, theta: Params, batch: TaskBatch, alpha: Alpha, steps: int = 1, step_weights: StepWeights = None
) -> MetaGradient:
    """First-order MAML: `maml` with every Jacobian taken for the identity. Source: Finn et al. (2017), §5.2.

    alpha_gradient is first-order as well: −Σ_j ∇L_s(θ_j)∘v, where v = ∇L_q(φ) if there are no step_weights.
    """
    x, y, alphas = batch.support_x, batch.support_y, alpha_per_step(alpha, theta, steps)
    path, gradients, shares = [without_graph(expand_over_tasks(theta, len(x)))], [], []
    for params, g, _ in inner_loop(loss, path[0], x, y, alphas):
        path.append(params)
        gradients.append(g)
    query_loss, earlier, v = path_gradients(loss, path, batch.query_x, batch.query_y, step_weights)
    for j in reversed(range(steps)):
        shares.append(alpha_share(gradients[j], v, alphas[j]))
        v = plus(v, earlier[j])
    return MetaGradient(mean_over_tasks(v), query_loss, path[-1], collect_alpha_gradient(alpha, shares[::-1], len(x)))
