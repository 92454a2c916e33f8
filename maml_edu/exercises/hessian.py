"""Exercises of notebook 03: Hessian-vector products, and the recursion made of them."""

import math

import torch

from ..meta_gradient import adapt
from ..models import mlp, mse
from ..sine import SineTasks
from . import Exercise


def _problem(seed):
    generator = torch.Generator().manual_seed(seed)
    model = mlp((1, 6, 6, 1), "tanh", generator, torch.float64)
    batch = SineTasks().sample(3, 5, generator=generator, dtype=torch.float64)
    v = {name: torch.randn(3, *p.shape, generator=generator, dtype=torch.float64) for name, p in model.theta.items()}
    params = {name: p.expand(3, *p.shape) + 0.1 * v[name] for name, p in model.theta.items()}
    return mse(model.apply), model.theta, params, batch, v


# ---- 3.1


def _hvp_cases():
    cases = []
    for seed in (0, 1):
        loss, _, params, batch, v = _problem(seed)
        cases.append((loss, params, batch.support_x, batch.support_y, v))
    return cases


def my_hvp(loss, params, x, y, v):
    leaf = {name: p.detach().requires_grad_() for name, p in params.items()}
    g = torch.autograd.grad(loss(leaf, x, y).sum(), list(leaf.values()), create_graph=True)
    hv = torch.autograd.grad(g, list(leaf.values()), grad_outputs=list(v.values()))
    return dict(zip(params, hv))


def _gradient(loss, params, x, y, v=None):
    leaf = {name: p.detach().requires_grad_() for name, p in params.items()}
    return dict(zip(leaf, torch.autograd.grad(loss(leaf, x, y).sum(), list(leaf.values()))))


def _elementwise(loss, params, x, y, v):
    g = _gradient(loss, params, x, y)
    return {name: g[name] * v[name] for name in v}


def _row_sums(loss, params, x, y, v):
    return my_hvp(loss, params, x, y, {name: torch.ones_like(t) for name, t in v.items()})


def _wrong_sign(loss, params, x, y, v):
    return {name: -t for name, t in my_hvp(loss, params, x, y, v).items()}


def _mean_over_tasks(loss, params, x, y, v):
    return {name: t / x.shape[0] for name, t in my_hvp(loss, params, x, y, v).items()}


# ---- 3.3


def hvps_and_order():
    steps = 5
    hessian_vector_products = steps  # one per inner step, whatever the number of parameters
    highest_derivative = 2  # every Jacobian I − αH_j holds second derivatives; no step is differentiated twice
    return hessian_vector_products, highest_derivative


# ---- 3.4


def _pull_back_cases():
    cases = []
    for seed, steps in ((2, 3), (3, 2)):
        loss, theta, _, batch, v = _problem(seed)
        generator = torch.Generator().manual_seed(seed)
        alpha = {name: 0.2 * torch.rand(p.shape, generator=generator, dtype=p.dtype) for name, p in theta.items()}
        path = adapt(loss, theta, batch.support_x, batch.support_y, alpha, steps)
        cases.append((loss, path, batch.support_x, batch.support_y, alpha, v))
    return cases


def my_pull_back(loss, path, x, y, alpha, v):
    for theta_j in reversed(path[:-1]):
        hv = my_hvp(loss, theta_j, x, y, {name: alpha[name] * v[name] for name in v})
        v = {name: v[name] - hv[name] for name in v}
    return v


def _along(points, inside=True, sign=1.0, rate=True):
    """Wrong recursions: at other points, in another order, with α elsewhere."""

    def pull_back(loss, path, x, y, alpha, v):
        for theta_j in points(path):
            a = alpha if rate else {name: torch.ones_like(t) for name, t in alpha.items()}
            if inside:
                hv = my_hvp(loss, theta_j, x, y, {name: a[name] * v[name] for name in v})
            else:
                hv = {name: a[name] * t for name, t in my_hvp(loss, theta_j, x, y, v).items()}
            v = {name: v[name] - sign * hv[name] for name in v}
        return v

    return pull_back


# ---- 3.2


def best_exponent_one_sided():
    # error ≈ ε·|third derivatives| + rounding/ε: smallest near ε = √(machine epsilon) = √(2e-16) ≈ 1.5e-8
    return 0.5 * math.log10(torch.finfo(torch.float64).eps)


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
        number="3.3",
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
        number="3.4",
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
                lambda path: reversed(path[:-1]), inside=False
            ),
            "the sign is wrong: v − H(α∘v)": _along(lambda path: reversed(path[:-1]), sign=-1.0),
            "α is missing": _along(lambda path: reversed(path[:-1]), rate=False),
        },
        hints=(
            "Walk through path[:-1] from its end to its start; path[-1] is φ, which no step starts from.",
            "At each point: u = α∘v, then v ← v − H u.",
        ),
        remark="With one number for α the place of α makes no difference; with one per parameter it does.",
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
        },
        tolerance=0.12,  # −7 and −8 count, each within one of the rule of thumb
        hints=(
            "Error ≈ aε + b/ε, where b is about machine epsilon, 2·10⁻¹⁶. Where is the minimum?",
            "Set the derivative to zero: ε = √(b/a).",
        ),
    ),
]
