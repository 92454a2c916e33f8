"""Step sizes in every form α may take, and the gradient with respect to them."""

import pytest
import torch
from support.problems import (
    ROUTES,
    one_task_at_a_time,
    query_loss,
    relative,
    tanh_mlp,
    varied_alpha,
)

from maml_edu.meta_gradient import adapt, fomaml, maml
from maml_edu.reference import autograd_maml


def alphas(theta):
    some = varied_alpha(theta)
    first = next(iter(theta))
    tensors = {n: torch.tensor(0.05 * i) for i, n in enumerate(theta, start=1)}  # 0-dim, float32
    return {
        "float": 0.2,
        "0-dim tensor": torch.tensor(0.2, dtype=torch.float64),
        "dict of floats": {n: 0.05 * i for i, n in enumerate(theta, start=1)},
        "dict of 0-dim tensors": tensors,
        "dict of full tensors": some,
        "dict of broadcast tensors": {n: a[..., :1] if a.dim() > 1 else a[:1] for n, a in some.items()},
        "dict of last axes": {n: a[0] if a.dim() > 1 else a for n, a in some.items()},
        "one parameter frozen": {**dict.fromkeys(theta, 0.2), first: 0.0},
        "one parameter frozen by a tensor": {**some, first: torch.zeros(())},
        "list of floats": [0.1, 0.2, 0.3],
        "list of dicts": [varied_alpha(theta, seed) for seed in range(3)],
        "mixed list": [0.1, some, tensors],
    }


def tensors_of(alpha):
    if isinstance(alpha, list):
        return [t for a in alpha for t in tensors_of(a)]
    return list(alpha.values()) if isinstance(alpha, dict) else [alpha]


@pytest.mark.parametrize("form", alphas({"a": torch.zeros(1)}))
@pytest.mark.parametrize("how", ["double-backward", "finite-difference"])
def test_alpha_in_every_form(form, how):
    problem = tanh_mlp()
    alpha = alphas(problem.theta)[form]
    found, expected = maml(*problem, alpha, 3, route=how), autograd_maml(*problem, alpha, 3)
    assert relative(found.gradient, expected.gradient) < ROUTES[how]
    assert type(found.alpha_gradient) is type(expected.alpha_gradient)
    ours, theirs = tensors_of(found.alpha_gradient), tensors_of(expected.alpha_gradient)
    assert [a.shape for a in ours] == [torch.as_tensor(a).shape for a in tensors_of(alpha)]
    assert relative(dict(enumerate(ours)), dict(enumerate(theirs))) < ROUTES[how]


@pytest.mark.parametrize("form", ["float", "dict of floats", "dict of full tensors", "mixed list"])
def test_alpha_gradient_equals_central_differences(form):
    problem, eps = tanh_mlp(), 1e-6
    alpha = alphas(problem.theta)[form]
    found = tensors_of(maml(*problem, alpha, 3).alpha_gradient)
    rates = tensors_of(alpha)

    def value(k, index, move):
        changed = [torch.as_tensor(r, dtype=torch.float64).clone() for r in rates]
        changed[k].view(-1)[index] += move
        left = iter(changed)

        def rebuild(a):
            if isinstance(a, list):
                return [rebuild(b) for b in a]
            return {n: next(left) for n in a} if isinstance(a, dict) else next(left)

        return query_loss(problem, one_task_at_a_time(problem, problem.theta, rebuild(alpha), 3)).item()

    size = torch.cat([a.flatten() for a in found]).norm()
    for k, of_rate in enumerate(found):
        for index in {0, of_rate.numel() - 1}:
            difference = (value(k, index, eps) - value(k, index, -eps)) / (2 * eps)
            assert abs(difference - of_rate.view(-1)[index]) < 1e-6 * size


def test_alpha_gradient_of_first_order():
    """−Σ_j mean over tasks of ∇L_s(θ_j)·∇L_q(φ): equal to the exact one for one step, not for three."""
    problem = tanh_mlp()
    one_step, exact = (method(*problem, 0.2, 1).alpha_gradient for method in (fomaml, maml))
    assert torch.allclose(one_step, exact, rtol=1e-12)
    path = adapt(problem.loss, problem.theta, *problem.batch[:2], 0.2, 3)
    phi = {n: p.clone().requires_grad_() for n, p in path[-1].items()}
    v = torch.autograd.grad(problem.loss(phi, *problem.batch[2:]).sum(), list(phi.values()))
    moved = [(path[0][n] - phi[n]) / 0.2 for n in phi]  # Σ_j ∇L_s(θ_j)
    expected = -sum((m * d).sum() for m, d in zip(moved, v)).detach() / 3
    found = fomaml(*problem, 0.2, 3).alpha_gradient
    assert torch.allclose(found, expected, rtol=1e-9)
    assert abs(found / maml(*problem, 0.2, 3).alpha_gradient - 1) > 1e-3


def test_frozen_parameters_stay_and_still_have_a_gradient():
    problem = tanh_mlp()
    alpha = {n: 0.0 if n.endswith("1") else 0.2 for n in problem.theta}
    found = maml(*problem, alpha, 3)
    for n, p in problem.theta.items():
        assert torch.equal(found.phi[n], p.expand_as(found.phi[n])) == n.endswith("1")
        assert found.gradient[n].abs().max() > 0
    assert relative(found.gradient, maml(*problem, 0.2, 3).gradient) > 1e-3


def test_rates_beyond_the_last_step_have_no_influence():
    problem = tanh_mlp()
    long = [0.1, varied_alpha(problem.theta), 0.3, varied_alpha(problem.theta, 1)]
    for method in (maml, fomaml):
        found, short = method(*problem, long, 2), method(*problem, long[:2], 2)
        assert relative(found.gradient, short.gradient) == 0
        assert len(found.alpha_gradient) == 4
        assert found.alpha_gradient[2] == 0
        assert all(torch.equal(g, torch.zeros_like(g)) for g in found.alpha_gradient[3].values())
        assert relative(found.alpha_gradient[1], short.alpha_gradient[1]) == 0
