"""Exercises of notebook 03: Hessian-vector products, and the recursion made of them."""

import math
from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from maml_edu.classroom.exercises import Exercise
from maml_edu.classroom.exercises.product_examination import priced
from maml_edu.data.sine import SineTasks
from maml_edu.hessian_vector import value_and_gradient
from maml_edu.meta_gradient import adapt
from maml_edu.models import mlp, mse
from maml_edu.tasks import Loss, Params, TaskBatch, expand_over_tasks


def _problem(seed: int) -> tuple[Loss, Params, Params, TaskBatch, Params]:
    generator = torch.Generator().manual_seed(seed)
    model = mlp((1, 6, 6, 1), "tanh", generator, torch.float64)
    batch = SineTasks().sample(3, 5, generator=generator, dtype=torch.float64)
    v = {name: torch.randn(3, *p.shape, generator=generator, dtype=torch.float64) for name, p in model.theta.items()}
    params = {name: p.expand(3, *p.shape) + 0.1 * v[name] for name, p in model.theta.items()}
    return mse(model.apply), model.theta, params, batch, v


# ---------------------------------------------------------------- 3.1


def my_hvp(loss: Loss, params: Params, x: Tensor, y: Tensor, v: Params) -> Params:
    leaf = {name: p.detach().requires_grad_() for name, p in params.items()}
    g = torch.autograd.grad(loss(leaf, x, y).sum(), list(leaf.values()), create_graph=True)
    hv = torch.autograd.grad(g, list(leaf.values()), grad_outputs=[v[name] for name in leaf])
    return dict(zip(leaf, hv))


def _hvp_cases() -> list[tuple]:
    cases = []
    for seed in (0, 1):
        loss, theta, params, batch, v = _problem(seed)
        cases.append((loss, params if seed else expand_over_tasks(theta, 3), batch.support_x, batch.support_y, v))
    return cases


def _gradient(loss: Loss, params: Params, x: Tensor, y: Tensor, v: Params) -> Params:
    return value_and_gradient(loss, params, x, y)[1]


def _elementwise(loss: Loss, params: Params, x: Tensor, y: Tensor, v: Params) -> Params:
    g = _gradient(loss, params, x, y, v)
    return {name: g[name] * v[name] for name in v}


def _of_the_squared_gradient(loss: Loss, params: Params, x: Tensor, y: Tensor, v: Params) -> Params:
    g = _gradient(loss, params, x, y, v)
    return my_hvp(loss, params, x, y, {name: 2 * t for name, t in g.items()})


def _row_sums(loss: Loss, params: Params, x: Tensor, y: Tensor, v: Params) -> Params:
    return my_hvp(loss, params, x, y, {name: torch.ones_like(t) for name, t in v.items()})


def _wrong_sign(loss: Loss, params: Params, x: Tensor, y: Tensor, v: Params) -> Params:
    return {name: -t for name, t in my_hvp(loss, params, x, y, v).items()}


def _mean_over_tasks(loss: Loss, params: Params, x: Tensor, y: Tensor, v: Params) -> Params:
    return {name: t / x.shape[0] for name, t in my_hvp(loss, params, x, y, v).items()}


def _each_tensor_alone(loss: Loss, params: Params, x: Tensor, y: Tensor, v: Params) -> Params:
    leaf = {name: p.detach().requires_grad_() for name, p in params.items()}
    g = torch.autograd.grad(loss(leaf, x, y).sum(), list(leaf.values()), create_graph=True)
    return {
        name: torch.autograd.grad(g_p, leaf[name], grad_outputs=v[name], retain_graph=True, materialize_grads=True)[0]
        for name, g_p in zip(leaf, g)
    }


# ---------------------------------------------------------------- 3.2


def best_exponent_one_sided() -> float:
    # error ≈ ε·|third derivatives| + rounding/ε, smallest near ε = √(machine epsilon) = √(2e-16) ≈ 1.5e-8
    return 0.5 * math.log10(torch.finfo(torch.float64).eps)


# ---------------------------------------------------------------- 3.3


def epsilons_beside_a_kink() -> tuple[int, int]:
    slope = torch.func.grad(lambda w: 0.5 * torch.relu(w) ** 2 + torch.relu(w))
    w = torch.tensor(3e-5, dtype=torch.float64)  # right of the kink: the second derivative is 1
    error = {}
    for exponent in range(-10, 0):
        epsilon = 10.0**exponent
        error[exponent] = abs(float(slope(w + epsilon) - slope(w - epsilon)) / (2 * epsilon) - 1)
    largest_good = max(exponent for exponent in error if error[exponent] < 0.01)
    return largest_good, max(error, key=error.__getitem__)


# ---------------------------------------------------------------- 3.4


def hvps_and_order() -> tuple[int, int]:
    steps = 5
    hessian_vector_products = steps  # one per inner step, whatever the number of parameters
    highest_derivative = 2  # every Jacobian I − αH_j holds second derivatives; no step is differentiated twice
    return hessian_vector_products, highest_derivative


# ---------------------------------------------------------------- 3.5


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
        hv = my_hvp(loss, theta_j, x, y, {name: alpha[name] * v[name] for name in v})
        v = {name: v[name] - hv[name] for name in v}
    return v


def _untouched(loss: Loss, path: list[Params], x: Tensor, y: Tensor, alpha: Params, v: Params) -> Params:
    return v


def _averaged(loss: Loss, path: list[Params], x: Tensor, y: Tensor, alpha: Params, v: Params) -> Params:
    return {name: t.mean(0) for name, t in my_pull_back(loss, path, x, y, alpha, v).items()}


def _always_the_first_v(loss: Loss, path: list[Params], x: Tensor, y: Tensor, alpha: Params, v: Params) -> Params:
    total = v
    for theta_j in reversed(path[:-1]):
        hv = my_hvp(loss, theta_j, x, y, {name: alpha[name] * v[name] for name in v})
        total = {name: total[name] - hv[name] for name in v}
    return total


def _three_products(loss: Loss, path: list[Params], x: Tensor, y: Tensor, alpha: Params, v: Params) -> Params:
    for theta_j in [path[min(j, len(path) - 1)] for j in (2, 1, 0)]:
        hv = my_hvp(loss, theta_j, x, y, {name: alpha[name] * v[name] for name in v})
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
        examine=priced,
        mistakes={
            "this is the gradient g itself; differentiate it once more, with grad_outputs = v": _gradient,
            "this is g∘v, entry by entry; H v is the gradient of the sum of those entries": _elementwise,
            "this is the gradient of g·g, 2Hg; differentiate g·v, with v held fixed": _of_the_squared_gradient,
            "these are the row sums of H, as if every entry of v were 1": _row_sums,
            "the sign is wrong; you need H v itself, and the minus comes later, in v − αHv": _wrong_sign,
            "this is H v divided by the number of tasks; add the losses of the tasks, don't average": _mean_over_tasks,
            "each tensor was differentiated with respect to itself only; g of w1 depends on w2 as well, so hand all "
            "gradients and all parameters to one call of grad": _each_tensor_alone,
        },
        hints=(
            "Make leaves that require gradients, and sum the losses [T] before you differentiate.",
            "g = torch.autograd.grad(loss.sum(), leaves, create_graph=True) keeps the graph of the gradient.",
            "torch.autograd.grad(g, leaves, grad_outputs=…) differentiates the sum of g∘v without forming it.",
        ),
        remark="No H was built. It costs three gradients, for any number of parameters.",
    ),
    Exercise(
        number="3.2",
        title="the best ε of a one-sided difference",
        reference=best_exponent_one_sided,
        cases=lambda: [()],
        mistakes={
            "that's near the best ε of the central difference, whose truncation error is ε², not ε": lambda: -5,
            "that's machine epsilon itself; θ + εv hardly differs from θ": lambda: -16,
            "that's too large; most of the error there is truncation, which falls with ε": lambda: -3,
            "give the exponent, such as −3, not ε itself": lambda: 1e-8,
            "the exponent is negative": lambda: 8,
            "that's a little too large; balance ε against 10⁻¹⁶/ε": lambda: -6,
            "that's too small; most of the error there is rounding, 10⁻¹⁶/ε": lambda: -10,
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
            "10⁻⁴ is larger than the distance to the kink, so w − ε lies beyond it": lambda: (-4, -4),
            "with ε = 10⁻⁵ the difference doesn't reach the kink, so it's correct": lambda: (-5, -5),
            "the largest ε isn't the worst; the jump is divided by 2ε, so a smaller ε that crosses does worse": (
                lambda: (-5, -1)
            ),
            "at 10⁻¹⁰ there's some rounding, but its error is small; look at the larger ε again": lambda: (-5, -10),
            "you've swapped the two; the largest ε below one percent comes first, then the worst": lambda: (-4, -5),
            "every smaller ε is right too; give the largest that is right": lambda: (-10, -4),
            "give the exponents, such as −2, not ε itself": lambda: (1e-5, 1e-4),
            "the exponents are negative": lambda: (5, 4),
            "10⁻⁶ is right, but a larger ε is right as well": lambda: (-6, -4),
        },
        hints=(
            "slope(w + ε) − slope(w − ε) contains the jump exactly where w − ε < 0.",
            "Among the ε that cross the kink, the error is about 1/(2ε). Which of them is the smallest?",
        ),
        remark="There's no U here. The error grows as ε shrinks, and it's gone once ε no longer reaches the kink.",
    ),
    Exercise(
        number="3.4",
        title="how many products, and which derivative",
        reference=hvps_and_order,
        cases=lambda: [()],
        mistakes={
            "K steps don't need K-th derivatives; each I − αH_j comes from differentiating one step once": lambda: (
                5,
                5,
            ),
            "one more step doesn't add one more derivative; look at a single factor I − αH_j": lambda: (5, 6),
            "one product isn't enough; each of the five steps has a Hessian of its own": lambda: (1, 2),
            "the products don't multiply; v passes each step once": lambda: (25, 2),
            "the step contains a gradient already; differentiate it and you have second derivatives": lambda: (5, 1),
            "no step starts at φ = θ_5, so φ needs no product": lambda: (6, 2),
            "the order is the same for any number of steps": lambda: (5, 3),
        },
        hints=("Count how often an H_j appears in the recursion.", "Which derivative of L_s is inside I − αH_j?"),
    ),
    Exercise(
        number="3.5",
        title="pull back with one α per parameter",
        reference=my_pull_back,
        cases=_pull_back_cases,
        mistakes={
            "the order is reversed; v has to meet the last step first": _along(lambda path: path[:-1]),
            "path[-1] is φ, and no step starts there; K steps need K products": _along(lambda path: reversed(path)),
            "θ_0 is missing, and the first step starts there": _along(lambda path: path[-2:0:-1]),
            "every H is taken at θ_0; step j needs H at θ_j": _along(lambda path: [path[0]] * (len(path) - 1)),
            "each H is one point too late; the step from θ_j needs H at θ_j": _along(lambda path: reversed(path[1:])),
            "α is outside the product; the transpose of I − diag(α)H is I − H·diag(α)": _along(
                lambda path: reversed(path[:-1]), inside=False, outside=True
            ),
            "α is there twice, inside the product and outside; it belongs inside alone": _along(
                lambda path: reversed(path[:-1]), outside=True
            ),
            "the Hessian term is doubled; subtract H(α∘v) once": _along(lambda path: reversed(path[:-1]), sign=2.0),
            "the sign is wrong; each step makes v − H(α∘v)": _along(lambda path: reversed(path[:-1]), sign=-1.0),
            "every product starts from the query gradient again; it should take the v that the last one left": (
                _always_the_first_v
            ),
            "this is right for K = 3 only, and the second case has K = 2; make it a loop": _three_products,
            "only the last step is pulled back": _along(lambda path: path[-2:-1]),
            "α is missing": _along(lambda path: reversed(path[:-1]), with_alpha=False),
            "v comes back unchanged; that's first-order MAML, with no Hessian at all": _untouched,
            "keep the task axis; the mean over tasks comes after the pull-back": _averaged,
        },
        hints=(
            "With K = 3 the points are path[2], path[1], path[0], in this order. No step starts at φ = path[3].",
            "At each point form u = α∘v. Then v ← v − H u.",
        ),
        remark="With a single number for α you couldn't tell inside from outside. With one per parameter you can.",
    ),
]
