"""Exercises of notebook 10: better inner loops."""

from collections.abc import Callable

import torch
from torch import Tensor

from maml_edu.classroom.exercises import Exercise
from maml_edu.classroom.exercises.small_problem import small_problem
from maml_edu.electives.inner_optimizers import momentum_descend
from maml_edu.hessian_vector import hvp, value_and_gradient
from maml_edu.meta_gradient import adapt
from maml_edu.tasks import Loss, Params, mean_over_tasks

Points = list[Params]  # one dict for each of θ_0 … θ_K

# ---------------------------------------------------------------- 10.1


def _weighted_path(seed: int, weights: tuple[float, ...]) -> tuple:
    loss, theta, (x, y, *query) = small_problem(seed)
    path = adapt(loss, theta, x, y, 0.1, len(weights) - 1)
    gradients = [value_and_gradient(loss, params, *query)[1] for params in path]
    return loss, path, x, y, 0.1, [{n: w * g for n, g in at.items()} for w, at in zip(weights, gradients)]


def multi_step_gradient(loss: Loss, path: Points, x: Tensor, y: Tensor, alpha: float, weighted: Points) -> Params:
    v = weighted[-1]
    for j in reversed(range(len(path) - 1)):
        hv = hvp(loss, path[j], x, y, v)
        v = {name: v[name] - alpha * hv[name] + weighted[j][name] for name in v}
    return {name: p.mean(0) for name, p in v.items()}


def _added_before(loss: Loss, path: Points, x: Tensor, y: Tensor, alpha: float, weighted: Points) -> Params:
    v = weighted[-1]
    for j in reversed(range(len(path) - 1)):
        v = {name: v[name] + weighted[j][name] for name in v}
        hv = hvp(loss, path[j], x, y, v)
        v = {name: v[name] - alpha * hv[name] for name in v}
    return mean_over_tasks(v)


def _last_only(loss: Loss, path: Points, x: Tensor, y: Tensor, alpha: float, weighted: Points) -> Params:
    zero = {name: torch.zeros_like(p) for name, p in weighted[-1].items()}
    return multi_step_gradient(loss, path, x, y, alpha, [zero] * (len(path) - 1) + weighted[-1:])


def _sum_only(loss: Loss, path: Points, x: Tensor, y: Tensor, alpha: float, weighted: Points) -> Params:
    return mean_over_tasks({name: torch.stack([at[name] for at in weighted]).sum(0) for name in weighted[-1]})


def _one_late(loss: Loss, path: Points, x: Tensor, y: Tensor, alpha: float, weighted: Points) -> Params:
    return multi_step_gradient(loss, path, x, y, alpha, weighted[1:] + weighted[-1:])


def _hessians_at_theta(loss: Loss, path: Points, x: Tensor, y: Tensor, alpha: float, weighted: Points) -> Params:
    return multi_step_gradient(loss, [path[0]] * len(path), x, y, alpha, weighted)


def _hessians_one_late(loss: Loss, path: Points, x: Tensor, y: Tensor, alpha: float, weighted: Points) -> Params:
    return multi_step_gradient(loss, path[1:] + path[-1:], x, y, alpha, weighted)


def _without_the_first(loss: Loss, path: Points, x: Tensor, y: Tensor, alpha: float, weighted: Points) -> Params:
    zero = {name: torch.zeros_like(p) for name, p in weighted[0].items()}
    return multi_step_gradient(loss, path, x, y, alpha, [zero, *weighted[1:]])


def _per_task(loss: Loss, path: Points, x: Tensor, y: Tensor, alpha: float, weighted: Points) -> Params:
    v = weighted[-1]
    for j in reversed(range(len(path) - 1)):
        hv = hvp(loss, path[j], x, y, v)
        v = {name: v[name] - alpha * hv[name] + weighted[j][name] for name in v}
    return v


MULTI_STEP = Exercise(
    number="10.1",
    title="a loss after every step",
    reference=multi_step_gradient,
    cases=lambda: [_weighted_path(0, (0.0, 0.2, 0.3, 0.5)), _weighted_path(1, (0.4, 0.0, 0.6))],
    mistakes={
        "You add weighted[j] before step j is pulled back, so it goes through the step that made θ_j's successor. "
        "It belongs to θ_j: add it after.": _added_before,
        "This is plain MAML: only the last entry of `weighted` enters.": _last_only,
        "This is the first-order sum: no Hessian-vector product is taken.": _sum_only,
        "Your weights are one step late: weighted[j] belongs to path[j], and weighted[0] enters at the end.": _one_late,
        "Every Hessian is taken at θ_0. Step j started at path[j].": _hessians_at_theta,
        "Your Hessian is one step late: step j has that of path[j], where it began, not of path[j + 1].": (
            _hessians_one_late
        ),
        "weighted[0] is missing: θ_0 has a term of its own, added last.": _without_the_first,
        "Right for each task. The meta-gradient is the mean over the task axis, p.mean(0).": _per_task,
    },
    hints=(
        "Start with v = weighted[-1], and go through j = K−1 … 0 with K = len(path) − 1.",
        "One round: hv = hvp(loss, path[j], x, y, v); v ← v − α·hv; then v ← v + weighted[j].",
        "Return the mean over tasks: {name: p.mean(0) for name, p in v.items()}.",
    ),
    remark="With all weight on the last entry it is MAML.",
)


# ---------------------------------------------------------------- 10.2


def _momentum_case(seed: int, steps: int, momentum: float) -> tuple:
    loss, theta, (x, y, *query) = small_problem(seed)
    path, velocities = momentum_descend(loss, theta, x, y, 0.05, steps, momentum)
    return loss, path, velocities, x, y, 0.05, value_and_gradient(loss, path[-1], *query)[1], momentum


def momentum_gradient(
    loss: Loss, path: Points, velocities: Points, x: Tensor, y: Tensor, alpha: float, v: Params, momentum: float
) -> Tensor:
    p, q = v, {name: torch.zeros_like(t) for name, t in v.items()}
    total = torch.zeros((), dtype=x.dtype)
    for j in reversed(range(len(velocities))):
        q = {name: q[name] - alpha * p[name] for name in q}  # the cotangent of m_{j+1} = μ m_j + g_j
        if j > 0:  # m_0 = 0
            total = total + sum((q[name] * velocities[j - 1][name]).sum() for name in q)
        hq = hvp(loss, path[j], x, y, q)
        p = {name: p[name] + hq[name] for name in p}
        q = {name: momentum * t for name, t in q.items()}
    return total / x.shape[0]


def _mu(
    which: str = "before", cotangent: str = "q", keep: bool = True, mean: bool = True, sign: int = 1
) -> Callable[..., Tensor]:
    """The same with one thing wrong."""

    def wrong(
        loss: Loss, path: Points, velocities: Points, x: Tensor, y: Tensor, alpha: float, v: Params, momentum: float
    ) -> Tensor:
        p, q = v, {name: torch.zeros_like(t) for name, t in v.items()}
        total = torch.zeros((), dtype=torch.float64)
        for j in reversed(range(len(velocities))):
            old, q = q, {name: q[name] - alpha * p[name] for name in q}
            side = {"p": p, "q": q, "old q": old}[cotangent]
            if which != "before" or j > 0:
                m = velocities[j if which == "after" else j - 1]
                total = total + sum((side[name] * m[name]).sum() for name in q)
            hq = hvp(loss, path[j], x, y, q)
            p = {name: p[name] + hq[name] for name in p}
            q = {name: (momentum if keep else 0) * t for name, t in q.items()}
        return sign * total / (x.shape[0] if mean else 1)

    return wrong


MOMENTUM = Exercise(
    number="10.2",
    title="the derivative with respect to μ",
    reference=momentum_gradient,
    cases=lambda: [_momentum_case(0, 2, 0.9), _momentum_case(1, 4, 0.5)],
    mistakes={
        "m_{j+1} = μ m_j + g_j: its derivative with respect to μ is m_j, the velocity before the step.": _mu("after"),
        "You multiplied by p, the cotangent of θ. μ acts on m_{j+1}, whose cotangent is q̃ = q − αp.": _mu(
            cotangent="p"
        ),
        "velocities[j − 1] with j = 0 is velocities[−1], the last velocity. m_0 = 0 has no entry: skip it.": _mu(
            "wrapped"
        ),
        "You used q before −αp was added to it. μ acts on m_{j+1}, whose cotangent is q̃ = q − αp.": _mu(
            cotangent="old q"
        ),
        "q is forgotten between the steps: after the product it goes back through m_j as μq̃.": _mu(keep=False),
        "Right for the sum over tasks. The meta-gradient is the mean: divide by the number of tasks.": _mu(mean=False),
        "The sign is turned round: the minus of α is already inside q̃.": _mu(sign=-1),
    },
    hints=(
        "Go through momentum's backward pass as in section 4. Before the product, q̃ is the cotangent of m_{j+1}.",
        "μ enters step j through μ m_j alone, so step j contributes the sum of q̃∘m_j. m_0 is zero.",
        "m_j is velocities[j − 1]. Add up over steps and parameters, divide by the number of tasks x.shape[0].",
    ),
    remark="So μ can be learned like α, at no extra cost.",
)


# ---------------------------------------------------------------- 10.3


def adam_slopes() -> tuple[float, float]:
    alpha, h, epsilon = 0.1, 1.0, 1e-4
    # φ = θ − α g/√(g² + ε) with g = hθ, so dφ/dθ = 1 − α h ε/(g² + ε)^{3/2}
    return tuple(1 - alpha * h * epsilon / ((h * theta) ** 2 + epsilon) ** 1.5 for theta in (1.0, 0.0))  # 1 and −9


def _plain_step() -> tuple[float, float]:
    return (0.9, 0.9)


def _sign_step() -> tuple[float, float]:
    return (1.0, 1.0)


def _outside() -> tuple[float, float]:
    return (1.0, -999.0)


def _wrong_sign() -> tuple[float, float]:
    return (1.0, 11.0)


def _slope_of_the_step() -> tuple[float, float]:
    return (1e-4 / 1.0001**1.5, 100.0)


def _slope_of_the_step_rounded() -> tuple[float, float]:
    return (0.0, 100.0)


SLOPES = Exercise(
    number="10.3",
    title="the slope of Adam's first step",
    reference=adam_slopes,
    mistakes={
        "This is the plain step, 1 − αh. Adam divides by √(g² + ε), which depends on θ as well.": _plain_step,
        "Right far from the minimum, where the step is α·sign(g). At g = 0 the sign jumps; ε makes a slope of it.": (
            _sign_step
        ),
        "At θ = 0 you divided by ε. It stands inside the root: divide by √ε.": _outside,
        "The size of the slope at θ = 0 is right but for its sign: the step is subtracted.": _wrong_sign,
        "This is the slope of g/√(g² + ε). φ = θ − α·that, so its slope is 1 − αh·yours.": _slope_of_the_step,
        "This is the slope of g/√(g² + ε), rounded. φ = θ − α·that, so its slope is 1 − αh·yours.": (
            _slope_of_the_step_rounded
        ),
    },
    hints=(
        "At the first step the bias corrections give m̂ = g and û = g².",
        "Differentiate g/√(g² + ε) with respect to g: ε/(g² + ε)^{3/2}.",
        "At θ = 0 that is 1/√ε = 100; times αh = 0.1.",
    ),
    tolerance=5e-3,
    remark="Nearly 1 is first order; −9 is an amplification. One step of Adam does both, entry by entry.",
)

EXERCISES: list[Exercise] = [MULTI_STEP, MOMENTUM, SLOPES]
