"""Exercises of notebook 03: Hessian-vector products, and the recursion made of them."""

import math
from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from maml_edu.classroom.exercises import Exercise
from maml_edu.data.sine import SineTasks
from maml_edu.hessian_vector import hvp, value_and_gradient
from maml_edu.meta_gradient import adapt
from maml_edu.models import mlp, mse
from maml_edu.tasks import Loss, Params, TaskBatch


def _problem(seed: int) -> tuple[Loss, Params, Params, TaskBatch, Params]:
    generator = torch.Generator().manual_seed(seed)
    model = mlp((1, 6, 6, 1), "tanh", generator, torch.float64)
    batch = SineTasks().sample(3, 5, generator=generator, dtype=torch.float64)
    v = {name: torch.randn(3, *p.shape, generator=generator, dtype=torch.float64) for name, p in model.theta.items()}
    params = {name: p.expand(3, *p.shape) + 0.1 * v[name] for name, p in model.theta.items()}
    return mse(model.apply), model.theta, params, batch, v


# ---- 3.1


def _hvp_cases() -> list[tuple]:
    cases = []
    for seed in (0, 1):
        loss, _, params, batch, v = _problem(seed)
        cases.append((loss, params, batch.support_x, batch.support_y, v))
    return cases


def my_hvp(loss: Loss, params: Params, x: Tensor, y: Tensor, v: Params) -> Params:
    leaf = {name: p.detach().requires_grad_() for name, p in params.items()}
    g = torch.autograd.grad(loss(leaf, x, y).sum(), list(leaf.values()), create_graph=True)
    hv = torch.autograd.grad(g, list(leaf.values()), grad_outputs=list(v.values()))
    return dict(zip(params, hv))


def _gradient(loss: Loss, params: Params, x: Tensor, y: Tensor, v: Params) -> Params:
    return value_and_gradient(loss, params, x, y)[1]


def _elementwise(loss: Loss, params: Params, x: Tensor, y: Tensor, v: Params) -> Params:
    g = _gradient(loss, params, x, y, v)
    return {name: g[name] * v[name] for name in v}


def _row_sums(loss: Loss, params: Params, x: Tensor, y: Tensor, v: Params) -> Params:
    return my_hvp(loss, params, x, y, {name: torch.ones_like(t) for name, t in v.items()})


def _wrong_sign(loss: Loss, params: Params, x: Tensor, y: Tensor, v: Params) -> Params:
    return {name: -t for name, t in my_hvp(loss, params, x, y, v).items()}


def _mean_over_tasks(loss: Loss, params: Params, x: Tensor, y: Tensor, v: Params) -> Params:
    return {name: t / x.shape[0] for name, t in my_hvp(loss, params, x, y, v).items()}


# ---- 3.2


def best_exponent_one_sided() -> float:
    # error ≈ ε·|third derivatives| + rounding/ε: smallest near ε = √(machine epsilon) = √(2e-16) ≈ 1.5e-8
    return 0.5 * math.log10(torch.finfo(torch.float64).eps)


# ---- 3.3


def epsilons_beside_a_kink() -> tuple[int, int]:
    slope = torch.func.grad(lambda w: 0.5 * torch.relu(w) ** 2 + torch.relu(w))
    w = torch.tensor(3e-5, dtype=torch.float64)  # right of the kink: the second derivative is 1
    error = {}
    for exponent in range(-10, 0):
        epsilon = 10.0**exponent
        error[exponent] = abs(float(slope(w + epsilon) - slope(w - epsilon)) / (2 * epsilon) - 1)
    largest_good = max(exponent for exponent in error if error[exponent] < 0.01)
    return largest_good, max(error, key=error.__getitem__)


# ---- 3.4


def hvps_and_order() -> tuple[int, int]:
    steps = 5
    hessian_vector_products = steps  # one per inner step, whatever the number of parameters
    highest_derivative = 2  # every Jacobian I − αH_j holds second derivatives; no step is differentiated twice
    return hessian_vector_products, highest_derivative


# ---- 3.5


def _pull_back_cases() -> list[tuple]:
    cases = []
    for seed, steps in ((2, 3), (3, 2)):
        loss, theta, _, batch, v = _problem(seed)
        generator = torch.Generator().manual_seed(seed)
        alpha = {name: 0.2 * torch.rand(p.shape, generator=generator, dtype=p.dtype) for name, p in theta.items()}
        path = adapt(loss, theta, batch.support_x, batch.support_y, alpha, steps)
        cases.append((loss, path, batch.support_x, batch.support_y, alpha, v))
    return cases


def my_pull_back(loss: Loss, path: list[Params], x: Tensor, y: Tensor, alpha: Params, v: Params) -> Params:
    for theta_j in reversed(path[:-1]):
        hv = hvp(loss, theta_j, x, y, {name: alpha[name] * v[name] for name in v})
        v = {name: v[name] - hv[name] for name in v}
    return v


def _always_the_first_v(loss: Loss, path: list[Params], x: Tensor, y: Tensor, alpha: Params, v: Params) -> Params:
    total = v
    for theta_j in reversed(path[:-1]):
        hv = hvp(loss, theta_j, x, y, {name: alpha[name] * v[name] for name in v})
        total = {name: total[name] - hv[name] for name in v}
    return total


def _three_products(loss: Loss, path: list[Params], x: Tensor, y: Tensor, alpha: Params, v: Params) -> Params:
    for theta_j in [path[min(j, len(path) - 1)] for j in (2, 1, 0)]:
        hv = hvp(loss, theta_j, x, y, {name: alpha[name] * v[name] for name in v})
        v = {name: v[name] - hv[name] for name in v}
    return v


def _along(
    points: Callable[[list[Params]], Iterable[Params]],
    inside: bool = True,
    outside: bool = False,
    sign: float = 1.0,
    with_alpha: bool = True,
) -> Callable[..., Params]:
    """Wrong recursions: at other points, in another order, with α elsewhere, twice or not at all."""

    def pull_back(loss: Loss, path: list[Params], x: Tensor, y: Tensor, alpha: Params, v: Params) -> Params:
        for theta_j in points(path):
            a = alpha if with_alpha else {name: torch.ones_like(t) for name, t in alpha.items()}
            hv = my_hvp(loss, theta_j, x, y, {name: a[name] * v[name] for name in v} if inside else v)
            if outside:
                hv = {name: a[name] * t for name, t in hv.items()}
            v = {name: v[name] - sign * hv[name] for name in v}
        return v

    return pull_back


EXERCISES: list[Exercise] = [
    Exercise(
        number="3.1",
        title="the Hessian-vector product in two lines",
        reference=my_hvp,
        cases=_hvp_cases,
        mistakes={
            "this is the gradient g itself: differentiate it once more, with grad_outputs = v": _gradient,
            "this is g∘v, entry by entry: H v mixes all entries, it is the derivative of the sum of g∘v": _elementwise,
            "these are the row sums of H: v has not been used (grad_outputs of ones)": _row_sums,
            "the sign is wrong: H v itself is asked for, the minus comes later, in v − αHv": _wrong_sign,
            "this is H v divided by the number of tasks: sum the task losses, do not average them": _mean_over_tasks,
        },
        hints=(
            "Make leaves that require gradients, and sum the losses [T] before you differentiate.",
            "g = torch.autograd.grad(loss.sum(), leaves, create_graph=True) keeps the graph of the gradient.",
            "torch.autograd.grad(g, leaves, grad_outputs=…) differentiates Σ g∘v without ever forming it.",
        ),
        remark="No H was built: the cost is a few gradients, at any number of parameters.",
    ),
    Exercise(
        number="3.2",
        title="the best ε of a one-sided difference",
        reference=best_exponent_one_sided,
        cases=lambda: [()],
        mistakes={
            "that is about the best ε of the central difference, whose truncation error is ε², not ε": lambda: -5,
            "that is machine epsilon itself: θ + εv is then hardly different from θ": lambda: -16,
            "there the truncation error still rules: it falls in proportion to ε": lambda: -3,
            "the exponent is asked for, −8, not ε itself": lambda: 1e-8,
            "the exponent is negative": lambda: 8,
            "a little too large: balance ε against 10⁻¹⁶/ε": lambda: -6,
            "too small: rounding, 10⁻¹⁶/ε, rules already": lambda: -10,
        },
        tolerance=0.18,  # −7, −8 and −9 count: the rule of thumb, −7.8, and about one on either side
        hints=(
            "Error ≈ aε + b/ε, where b is about machine epsilon, 2·10⁻¹⁶. Where is the minimum?",
            "Set the derivative to zero: ε = √(b/a).",
        ),
    ),
    Exercise(
        number="3.3",
        title="ε beside a kink",
        reference=epsilons_beside_a_kink,
        cases=lambda: [()],
        mistakes={
            "10⁻⁴ is larger than the distance to the kink: w − ε lies on its other side": lambda: (-4, -4),
            "10⁻⁵ does not reach the kink: there the difference is right": lambda: (-5, -5),
            "the largest ε is not the worst: the jump is divided by 2ε, so a smaller ε that crosses is worse": (
                lambda: (-5, -1)
            ),
            "at 10⁻¹⁰ there is rounding, and its error is small: look at the others again": lambda: (-5, -10),
            "the two are exchanged: first the largest ε that is right, then the worst": lambda: (-4, -5),
            "every smaller ε is right too; the largest is asked for": lambda: (-10, -4),
            "the exponents are asked for, not ε itself": lambda: (1e-5, 1e-4),
            "the exponents are negative": lambda: (5, 4),
            "10⁻⁶ is right, but so is a larger one": lambda: (-6, -4),
        },
        hints=(
            "slope(w + ε) − slope(w − ε) contains the jump exactly where w − ε < 0.",
            "Among the ε that cross the kink, the error is about 1/(2ε). Which of them is the smallest?",
        ),
        remark="No U: the error grows as ε shrinks, and is gone as soon as ε no longer reaches the kink.",
    ),
    Exercise(
        number="3.4",
        title="how many products, and which derivative",
        reference=hvps_and_order,
        cases=lambda: [()],
        mistakes={
            "K steps are not K-th derivatives: each Jacobian I − αH_j differentiates one step once": lambda: (5, 5),
            "one more step does not add one more derivative: the highest is that of a single Jacobian": lambda: (5, 6),
            "not one product for all: each of the five steps has a Hessian of its own": lambda: (1, 2),
            "the products do not multiply: v goes back once along the path": lambda: (25, 2),
            "the step holds a gradient already; differentiating the step makes it a second derivative": lambda: (5, 1),
            "φ = θ_5 needs no product: no step starts there": lambda: (6, 2),
            "the order is 2 for any number of steps": lambda: (5, 3),
        },
        hints=("Count how often H_j appears in the recursion.", "What is the highest derivative inside I − αH_j?"),
    ),
    Exercise(
        number="3.5",
        title="pull back with one α per parameter",
        reference=my_pull_back,
        cases=_pull_back_cases,
        mistakes={
            "the order is reversed: v has to meet the last step first": _along(lambda path: path[:-1]),
            "path[-1] is φ, where no step starts: K steps, K products": _along(lambda path: reversed(path)),
            "θ_0 is missing: the first step starts there": _along(lambda path: path[-2:0:-1]),
            "every H is taken at θ_0: step j needs the Hessian at θ_j": _along(
                lambda path: [path[0]] * (len(path) - 1)
            ),
            "each H is one point too late: θ_{j+1} = θ_j − α∇L_s(θ_j) needs H at θ_j": _along(
                lambda path: reversed(path[1:])
            ),
            "α stands outside the product: the transpose of I − diag(α)H is I − H·diag(α)": _along(
                lambda path: reversed(path[:-1]), inside=False, outside=True
            ),
            "α is there twice, inside the product and outside: inside alone is right": _along(
                lambda path: reversed(path[:-1]), outside=True
            ),
            "the Hessian term is doubled: one step takes away H(α∘v) once": _along(
                lambda path: reversed(path[:-1]), sign=2.0
            ),
            "the sign is wrong: v − H(α∘v)": _along(lambda path: reversed(path[:-1]), sign=-1.0),
            "the second product takes the v that the first one left, not the query gradient again": _always_the_first_v,
            "this is right for K = 3 only, and the second case has K = 2: make a loop of it": _three_products,
            "only the last step is pulled back": _along(lambda path: path[-2:-1]),
            "α is missing": _along(lambda path: reversed(path[:-1]), with_alpha=False),
        },
        hints=(
            "With K = 3 the points are path[2], path[1], path[0], in this order; path[3] is φ, where no step starts.",
            "At each point: u = α∘v, then v ← v − H u.",
        ),
        remark="With one number for α the place of α makes no difference; with one per parameter it does.",
    ),
]
