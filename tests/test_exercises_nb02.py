"""Exercise 2.4 asks for (I − αH)v without H: what computes H is refused, whatever it's called, and nothing else is."""

import pytest
import torch
from torch.autograd import functional, grad

from maml_edu.classroom.checks import check, yours
from maml_edu.classroom.exercises.nb02_differentiating_a_gradient_step import NO_MATRIX


def row_by_row(loss, theta, alpha, v):
    theta = theta.detach().requires_grad_()
    (g,) = grad(loss(theta), theta, create_graph=True)
    return v - alpha * torch.stack([grad(entry, theta, retain_graph=True)[0] @ v for entry in g])


def rows_added_up(loss, theta, alpha, v):
    theta = theta.detach().requires_grad_()
    (g,) = grad(loss(theta), theta, create_graph=True)
    phi = theta - alpha * g
    return sum(weight * grad(entry, theta, retain_graph=True)[0] for weight, entry in zip(v, phi))


def step_of(loss, alpha):
    return lambda theta: theta - alpha * torch.func.grad(loss)(theta)


WITH_THE_MATRIX = {
    "functional.hessian": lambda loss, theta, alpha, v: v - alpha * functional.hessian(loss, theta) @ v,
    "vectorized": lambda loss, theta, alpha, v: v - alpha * functional.hessian(loss, theta, vectorize=True) @ v,
    "functional.jacobian": lambda loss, theta, alpha, v: functional.jacobian(step_of(loss, alpha), theta).T @ v,
    "func.hessian": lambda loss, theta, alpha, v: v - alpha * torch.func.hessian(loss)(theta) @ v,
    "func.jacrev": lambda loss, theta, alpha, v: torch.func.jacrev(step_of(loss, alpha))(theta).T @ v,
    "row by row": row_by_row,
    "rows added up": rows_added_up,
}


def by_differences(loss, theta, alpha, v):
    gradient = torch.func.grad(loss)
    return v - alpha * (gradient(theta + 1e-5 * v) - gradient(theta - 1e-5 * v)) / 2e-5


WITHOUT_IT = {
    "differences": by_differences,
    "jvp": lambda loss, theta, alpha, v: v - alpha * torch.func.jvp(torch.func.grad(loss), (theta,), (v,))[1],
    "hvp": lambda loss, theta, alpha, v: v - alpha * functional.hvp(loss, theta, v)[1],
    "vhp": lambda loss, theta, alpha, v: v - alpha * functional.vhp(loss, theta, v)[1],
}


@pytest.mark.parametrize("function", WITH_THE_MATRIX.values(), ids=WITH_THE_MATRIX)
def test_the_matrix_is_seen(function, capsys):
    check("2.4", function)
    assert NO_MATRIX in capsys.readouterr().out
    assert yours("2.4", function) is not function


@pytest.mark.parametrize("function", WITHOUT_IT.values(), ids=WITHOUT_IT)
def test_other_ways_without_it_are_accepted(function, capsys):
    check("2.4", function)
    assert capsys.readouterr().out.startswith("Exercise 2.4: correct.")
    assert yours("2.4", function) is function


def loss_at(x, y):
    return lambda t: ((t[0] * torch.sin(x - t[1]) - y) ** 2).mean()


BY_AUTOGRAD = {
    "functional.hessian": lambda loss, theta: functional.hessian(loss, theta),
    "func.hessian": lambda loss, theta: torch.func.hessian(loss)(theta),
    "jacrev": lambda loss, theta: torch.func.jacrev(torch.func.grad(loss))(theta),
    "jacfwd": lambda loss, theta: torch.func.jacfwd(torch.func.jacfwd(loss))(theta),
    "grad twice": lambda loss, theta: torch.stack(
        [
            grad(entry, theta, retain_graph=True)[0]
            for entry in grad(loss(theta.requires_grad_()), theta, create_graph=True)[0]
        ]
    ),
    "with gradients switched on": lambda loss, theta: torch.enable_grad()(functional.hessian)(loss, theta),
}


@pytest.mark.parametrize("hessian", BY_AUTOGRAD.values(), ids=BY_AUTOGRAD)
def test_autograd_is_seen_where_it_is_forbidden(hessian, capsys):
    check("2.3", lambda theta, x, y, alpha: torch.eye(2, dtype=x.dtype) - alpha * hessian(loss_at(x, y), theta.clone()))
    assert "by hand" in (out := capsys.readouterr().out) and "correct" not in out
