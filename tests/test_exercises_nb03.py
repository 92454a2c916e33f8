"""Exercise 3.1 asks for H·v at the price of a few gradients, and what it accepts carries the rest of notebook 03."""

import pytest
import torch

from maml_edu.classroom.checks import check, yours
from maml_edu.classroom.exercises.nb03_hessian_vector_products import my_hvp, my_pull_back
from maml_edu.data.sine import SineTasks
from maml_edu.hessian_vector import value_and_gradient
from maml_edu.meta_gradient import adapt, maml
from maml_edu.models import mlp, mse
from maml_edu.tasks import mean_over_tasks


def finite_difference(loss, params, x, y, v, epsilon=1e-5):
    """As notebook 03 shows it."""
    slope = torch.func.grad(lambda p: loss(p, x, y).sum())
    plus, minus = (slope({n: params[n] + e * v[n] for n in v}) for e in (epsilon, -epsilon))
    return {n: (plus[n] - minus[n]) / (2 * epsilon) for n in v}


def forward_over_reverse(loss, params, x, y, v):
    slope = torch.func.grad(lambda p: loss(p, x, y).sum())
    return torch.func.jvp(slope, (params,), (v,))[1]


def cloned(loss, params, x, y, v):
    return forward_over_reverse(loss, {name: p.clone() for name, p in params.items()}, x, y, v)


def task_by_task(loss, params, x, y, v):
    def one(d, t):
        return {name: tensor[t : t + 1] for name, tensor in d.items()}

    parts = [my_hvp(loss, one(params, t), x[t : t + 1], y[t : t + 1], one(v, t)) for t in range(len(x))]
    return {name: torch.cat([part[name] for part in parts]) for name in v}


def with_a_hessian(hessian):
    def product(loss, params, x, y, v):
        def summed(w):
            pieces = w.split([p.numel() for p in params.values()])
            return loss({name: w.view(params[name].shape) for name, w in zip(params, pieces)}, x, y).sum()

        flat = [torch.cat([t.flatten() for t in d.values()]) for d in (params, v)]
        pieces = (hessian(summed, flat[0]) @ flat[1]).split([t.numel() for t in v.values()])
        return {name: w.view(v[name].shape) for name, w in zip(v, pieces)}

    return product


@pytest.mark.parametrize(
    "function, said",
    [
        (finite_difference, "away from θ"),
        (task_by_task, "one task at a time"),
        (with_a_hessian(torch.autograd.functional.hessian), "computes a whole Hessian"),
        (with_a_hessian(lambda f, w: torch.func.hessian(f)(w)), "computes a whole Hessian"),
        (forward_over_reverse, "Clone each parameter"),
    ],
)
def test_what_isnt_allowed_is_named(function, said, capsys):
    check("3.1", function)
    out = capsys.readouterr().out
    assert out.startswith("Exercise 3.1: not yet") and said in out


@pytest.mark.parametrize("product", [my_hvp, cloned])
def test_an_accepted_product_makes_the_packages_gradient(product, capsys):
    assert yours("3.1", product) is product

    def pull_back(loss, path, x, y, alpha, v):
        for theta_j in reversed(path[:-1]):
            hv = product(loss, theta_j, x, y, {name: alpha[name] * v[name] for name in v})
            v = {name: v[name] - hv[name] for name in v}
        return v

    assert yours("3.5", pull_back) is pull_back
    assert yours("3.5", lambda *arguments: None) is my_pull_back

    network, generator = mlp((1, 8, 8, 1), generator=torch.Generator().manual_seed(0)), torch.Generator().manual_seed(1)
    loss, batch = mse(network.apply), SineTasks().sample(5, 10, generator=generator)
    alpha = {name: torch.full_like(p, 0.01) for name, p in network.theta.items()}
    path = adapt(loss, network.theta, *batch[:2], alpha, 3)
    mine = mean_over_tasks(pull_back(loss, path, *batch[:2], alpha, value_and_gradient(loss, path[-1], *batch[2:])[1]))
    exact = maml(loss, network.theta, batch, alpha, 3).gradient
    for name, expected in exact.items():
        torch.testing.assert_close(mine[name], expected)
