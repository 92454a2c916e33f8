"""Exercises of notebook 04: first-order approximations."""

from collections.abc import Callable, Iterable

import torch

from maml_edu.classroom.exercises import Exercise
from maml_edu.classroom.exercises.small_problem import small_problem
from maml_edu.hessian_vector import hvp, value_and_gradient
from maml_edu.meta_gradient import adapt
from maml_edu.tasks import Loss, Params, TaskBatch, mean_over_tasks

# ---------------------------------------------------------------- 4.1


def reptile_direction(loss: Loss, theta: Params, batch: TaskBatch, alpha: float, steps: int) -> Params:
    x = torch.cat([batch.support_x, batch.query_x], 1)
    y = torch.cat([batch.support_y, batch.query_y], 1)
    phi = adapt(loss, theta, x, y, alpha, steps)[-1]
    return {name: (theta[name] - phi[name]).mean(0) / alpha for name in theta}


def _not_divided(loss: Loss, theta: Params, batch: TaskBatch, alpha: float, steps: int) -> Params:
    return {name: alpha * g for name, g in reptile_direction(loss, theta, batch, alpha, steps).items()}


def _sign_flipped(loss: Loss, theta: Params, batch: TaskBatch, alpha: float, steps: int) -> Params:
    return {name: -g for name, g in reptile_direction(loss, theta, batch, alpha, steps).items()}


def _summed(loss: Loss, theta: Params, batch: TaskBatch, alpha: float, steps: int) -> Params:
    tasks = len(batch.support_x)
    return {name: tasks * g for name, g in reptile_direction(loss, theta, batch, alpha, steps).items()}


def _support_only(loss: Loss, theta: Params, batch: TaskBatch, alpha: float, steps: int) -> Params:
    phi = adapt(loss, theta, batch.support_x, batch.support_y, alpha, steps)[-1]
    return {name: (theta[name] - phi[name]).mean(0) / alpha for name in theta}


def _fomaml(loss: Loss, theta: Params, batch: TaskBatch, alpha: float, steps: int) -> Params:
    return truncated_maml(loss, theta, batch, alpha, steps, 0)


def _per_step(loss: Loss, theta: Params, batch: TaskBatch, alpha: float, steps: int) -> Params:
    return {name: g / steps for name, g in reptile_direction(loss, theta, batch, alpha, steps).items()}


REPTILE = Exercise(
    number="4.1",
    title="Reptile's direction",
    reference=reptile_direction,
    cases=lambda: [(*small_problem(0), 0.1, 3), (*small_problem(1), 0.02, 5)],
    mistakes={
        "The direction is right, but its length depends on α. Divide θ − φ by α.": _not_divided,
        "The sign is flipped: an optimiser subtracts what you return, so return θ − φ.": _sign_flipped,
        "You summed over the tasks. Take the mean, so that more tasks don't make a longer step.": _summed,
        "You adapted to the support set alone. Reptile uses all the examples of a task.": _support_only,
        "This is FOMAML, the query gradient at φ. Reptile needs no gradient at φ, only the difference θ − φ.": _fomaml,
        "You divided by K as well. The package doesn't: (θ − φ)/α is the sum of the K inner gradients.": _per_step,
    },
    hints=(
        "Join support and query along the example axis: torch.cat([…, …], 1), once for x and once for y.",
        "adapt(loss, theta, x, y, alpha, steps)[-1] is φ, with the task axis in front of every tensor.",
        "Return {name: (theta[name] - phi[name]).mean(0) / alpha for name in theta}.",
    ),
    remark="With K = 1 it's the gradient of joint training.",
)


# ---------------------------------------------------------------- 4.2

_CURVATURES, _CENTRES, _ALPHA = (1.0, 2.0), (0.0, 3.0), 0.25


def _weighted_centre(weights: list[float] | tuple[float, float]) -> float:
    return sum(w * c for w, c in zip(weights, _CENTRES)) / sum(weights)


def fomaml_fixed_point() -> float:
    curvatures, centres, alpha = (1.0, 2.0), (0.0, 3.0), 0.25
    weights = [h * (1 - alpha * h) for h in curvatures]  # 0.75 and 1.0
    return sum(w * c for w, c in zip(weights, centres)) / sum(weights)  # 12/7


def _maml_optimum() -> float:
    return _weighted_centre([h * (1 - _ALPHA * h) ** 2 for h in _CURVATURES])


def _joint_optimum() -> float:
    return _weighted_centre(_CURVATURES)


def _without_curvature() -> float:
    return _weighted_centre([1 - _ALPHA * h for h in _CURVATURES])


FIXED_POINT = Exercise(
    number="4.2",
    title="where FOMAML settles",
    reference=fomaml_fixed_point,
    mistakes={
        "This is MAML's optimum: you used (1 − αh)². FOMAML keeps only one of the two factors.": _maml_optimum,
        "This is where joint training settles. Its weights are h, with no adaptation in them.": _joint_optimum,
        "That's the plain mean of the two minima, but the tasks don't count equally.": lambda: 1.5,
        "You weighted the tasks by 1 − αh. The query gradient has a factor h in front as well.": _without_curvature,
    },
    hints=(
        "FOMAML's gradient of one task is ∇L_q(φ) = h(φ − c), and φ − c = (1 − αh)(θ − c).",
        "Set the sum over tasks of w(θ − c) to zero, with w = h(1 − αh), and solve for θ.",
        "The weights are 1 · 0.75 and 2 · 0.5.",
    ),
    tolerance=5e-3,
    remark="MAML's optimum is at 1.41, and joint training settles at 2.",
)


# ---------------------------------------------------------------- 4.3


def signs_past_one() -> tuple[str, ...]:
    factors = [(1 - 1.5) ** steps for steps in (1, 2, 3)]  # −0.5, 0.25, −0.125
    return tuple("same" if factor > 0 else "opposite" for factor in factors)


def _all_opposite() -> tuple[str, str, str]:
    return ("opposite", "opposite", "opposite")


def _all_same() -> tuple[str, str, str]:
    return ("same", "same", "same")


def _parity_swapped() -> tuple[str, str, str]:
    return ("same", "opposite", "same")


SIGNS = Exercise(
    number="4.3",
    title="which way at αh = 1.5",
    reference=signs_past_one,
    mistakes={
        "You get the factor 1 − αh once per step, so with two steps the minus signs cancel.": _all_opposite,
        "1 − αh is negative here. The inner loop still converges, but every step jumps over the minimum.": _all_same,
        "You have odd and even swapped: K = 1 gives one factor 1 − 1.5, which is negative.": _parity_swapped,
    },
    hints=(
        "FOMAML's weight on the task is h(1 − αh)^K, and MAML's is h(1 − αh)^(2K), which is never negative.",
        "Work out 1 − 1.5, then its square and its cube.",
    ),
    remark="The inner loop converges in all three cases, since |1 − αh| < 1.",
)


# ---------------------------------------------------------------- 4.4


def truncated_maml(loss: Loss, theta: Params, batch: TaskBatch, alpha: float, steps: int, keep: int) -> Params:
    x, y = batch.support_x, batch.support_y
    path = adapt(loss, theta, x, y, alpha, steps)
    phi = {name: p.detach().requires_grad_() for name, p in path[-1].items()}
    query_loss = loss(phi, batch.query_x, batch.query_y).sum()
    v = dict(zip(phi, torch.autograd.grad(query_loss, list(phi.values()))))
    for j in range(steps - 1, steps - 1 - keep, -1):  # K−1, K−2, …: the last steps come first
        hv = hvp(loss, path[j], x, y, v)
        v = {name: v[name] - alpha * hv[name] for name in v}
    return {name: p.mean(0) for name, p in v.items()}


def _divided_twice(loss: Loss, theta: Params, batch: TaskBatch, alpha: float, steps: int, keep: int) -> Params:
    right = truncated_maml(loss, theta, batch, alpha, steps, keep)
    return {name: p / len(batch.support_x) for name, p in right.items()}


def _summed_at_the_end(loss: Loss, theta: Params, batch: TaskBatch, alpha: float, steps: int, keep: int) -> Params:
    right = truncated_maml(loss, theta, batch, alpha, steps, keep)
    return {name: p * len(batch.support_x) for name, p in right.items()}


def _products_at(which: Callable[[int, int], Iterable[int]], side: str = "support") -> Callable[..., Params]:
    """The same with the Hessians, of the loss on `side`, of the steps that `which(steps, keep)` lists."""

    def wrong(loss: Loss, theta: Params, batch: TaskBatch, alpha: float, steps: int, keep: int) -> Params:
        path = adapt(loss, theta, batch.support_x, batch.support_y, alpha, steps)
        v = value_and_gradient(loss, path[-1], batch.query_x, batch.query_y)[1]
        x, y = (batch.support_x, batch.support_y) if side == "support" else (batch.query_x, batch.query_y)
        for j in which(steps, keep):
            hv = hvp(loss, path[j], x, y, v)
            v = {name: v[name] - alpha * hv[name] for name in v}
        return mean_over_tasks(v)

    return wrong


def _added_up(loss: Loss, theta: Params, batch: TaskBatch, alpha: float, steps: int, keep: int) -> Params:
    path = adapt(loss, theta, batch.support_x, batch.support_y, alpha, steps)
    first = value_and_gradient(loss, path[-1], batch.query_x, batch.query_y)[1]
    v = first
    for j in range(steps - 1, steps - 1 - keep, -1):
        hv = hvp(loss, path[j], batch.support_x, batch.support_y, first)
        v = {name: v[name] - alpha * hv[name] for name in v}
    return mean_over_tasks(v)


_STEPS_KEPT = ((2, 3, 1), (3, 4, 2), (4, 3, 0), (4, 3, 3))  # seed, steps, keep

TRUNCATED = Exercise(
    number="4.4",
    title="between FOMAML and MAML",
    reference=truncated_maml,
    cases=lambda: [(*small_problem(seed), 0.1, steps, keep) for seed, steps, keep in _STEPS_KEPT],
    mistakes={
        "You divided by the number of tasks twice: differentiate the sum of the query losses, not their mean. "
        "Every task then has its own gradient, and you take the mean once, at the end.": _divided_twice,
        "You summed over the tasks at the end. Return the mean.": _summed_at_the_end,
        "You pulled v back through the first steps. Start at the end of the path: j = K−1, K−2, …": _products_at(
            lambda steps, keep: range(keep - 1, -1, -1)
        ),
        "This is the exact gradient for every `keep`. Stop after `keep` products.": _products_at(
            lambda steps, keep: range(steps - 1, -1, -1)
        ),
        "This is FOMAML for every `keep`. You never multiply by a Hessian.": _products_at(lambda steps, keep: ()),
        "Your Hessians are one step late. The first product belongs to θ_{K−1}, not to φ.": _products_at(
            lambda steps, keep: range(steps, steps - keep, -1)
        ),
        "Each product needs the v of the product before. You multiplied the query gradient every time.": _added_up,
        "You have the right steps in the wrong order. Go from j = K−1 down to K−keep.": _products_at(
            lambda steps, keep: range(steps - keep, steps)
        ),
        "Two things: go backwards, from K−1 down, and mind keep = 0, where the slice [-0:] is everything.": (
            _products_at(lambda steps, keep: range(steps)[-keep:])
        ),
        "Right except for keep = 0: the slice [-0:] is everything, and you want no product at all.": _products_at(
            lambda steps, keep: range(steps)[-keep:][::-1]
        ),
        "You used the Hessian of the query loss. An inner step follows the support loss, so its Jacobian does too.": (
            _products_at(lambda steps, keep: range(steps - 1, steps - 1 - keep, -1), side="query")
        ),
    },
    hints=(
        "Begin as FOMAML does: path = adapt(…), then v = the query gradient at path[-1].",
        "Then repeat `keep` times: hv = hvp(loss, path[j], support_x, support_y, v) and v ← v − α·hv.",
        "j runs over K−1, K−2, …, K−keep. At the end take the mean over the tasks.",
    ),
    remark="keep = 0 is FOMAML, keep = K is MAML.",
)

EXERCISES: list[Exercise] = [REPTILE, FIXED_POINT, SIGNS, TRUNCATED]
