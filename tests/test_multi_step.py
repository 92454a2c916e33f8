"""The multi-step objective Σ_j w_j L_q(θ_j) and its meta-gradient."""

import pytest
import torch
from support.problems import ALPHA, PROBLEMS, flat, relative

from maml_edu.meta_gradient import adapt, fomaml, maml
from maml_edu.reference import autograd_maml

each_problem = pytest.mark.parametrize("name", PROBLEMS)


@each_problem
@pytest.mark.parametrize("weights", [[0.2, 0.3, 0.5], torch.tensor([0.2, 0.3, 0.5]).double(), [0.5, 0, 1.0]])
def test_the_multi_step_objective(name, weights):
    """Its gradient, with rates of every step, against autograd; its value against the inner loop written out."""
    problem = PROBLEMS[name]()
    alpha = [dict.fromkeys(problem.theta, ALPHA[name] * (j + 1) / 2) for j in range(3)]
    found = maml(*problem, alpha, 3, step_weights=weights)
    expected = autograd_maml(*problem, alpha, 3, step_weights=weights)
    assert relative(found.gradient, expected.gradient) < 1e-12
    assert all(relative(a, b) < 1e-11 for a, b in zip(found.alpha_gradient, expected.alpha_gradient))
    assert torch.allclose(found.query_loss, expected.query_loss)
    assert relative(found.gradient, maml(*problem, alpha, 3).gradient) > 1e-2

    def value(factor):
        moved = {n: p + factor * found.gradient[n] for n, p in problem.theta.items()}
        path = adapt(problem.loss, moved, *problem.batch[:2], alpha, 3)
        return sum(float(w) * problem.loss(q, *problem.batch[2:]).mean() for w, q in zip(weights, path[1:])).item()

    difference, size = (value(1e-7) - value(-1e-7)) / 2e-7, flat(found.gradient).norm() ** 2
    assert abs(difference - size) < 1e-6 * size


@each_problem
def test_all_weight_on_the_last_step_is_maml(name):
    problem = PROBLEMS[name]()
    for method in (maml, fomaml):
        only_last = method(*problem, 0.1, 3, step_weights=[0, 0, 1.0])
        assert relative(only_last.gradient, method(*problem, 0.1, 3).gradient) < 1e-14


@each_problem
def test_first_order_multi_step_is_the_weighted_sum_of_query_gradients(name):
    problem = PROBLEMS[name]()
    weights, alpha = [0.2, 0.3, 0.5], [dict.fromkeys(problem.theta, 0.1 * (j + 1)) for j in range(3)]
    path = adapt(problem.loss, problem.theta, *problem.batch[:2], alpha, 3)
    at = [fomaml(problem.loss, problem.theta, problem.batch, alpha, j + 1) for j in range(3)]
    expected = {n: sum(w * one.gradient[n] for w, one in zip(weights, at)) for n in problem.theta}
    found = fomaml(*problem, alpha, 3, step_weights=weights)
    assert relative(found.gradient, expected) < 1e-13 and relative(found.phi, path[-1]) < 1e-14
    # Of α_j: every later query gradient counts with its weight, as in the exact recursion without H.
    for j in range(3):
        shares = [w * flat(one.alpha_gradient[j]) for w, one in list(zip(weights, at))[j:]]
        assert torch.allclose(flat(found.alpha_gradient[j]), sum(shares), rtol=1e-10)


@each_problem
def test_weights_must_fit_the_steps(name):
    problem = PROBLEMS[name]()
    for method in (maml, fomaml, autograd_maml):
        with pytest.raises(ValueError, match="step_weights has 2 entries for 3 steps"):
            method(*problem, 0.1, 3, step_weights=[0.5, 0.5])
