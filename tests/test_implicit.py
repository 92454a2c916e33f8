"""iMAML against closed forms, unrolled autograd, dense solves and finite differences of the bilevel objective."""

import functools
import warnings
from unittest.mock import Mock

import pytest
import torch
from support.problems import ALPHA, PROBLEMS, flat, random_like, relative, sines, tanh_mlp, varied_alpha
from test_curvature import whole_hessian

from maml_edu.classroom.exercises.nb11_implicit_gradients import strength_gradient
from maml_edu.electives.implicit import (
    conjugate_gradient,
    imaml,
    implicit_pull_back,
    proximal_adapt,
    unrolled_proximal,
)
from maml_edu.engine.methods import name_of
from maml_edu.evaluation import evaluate
from maml_edu.hessian_vector import value_and_gradient
from maml_edu.meta_gradient import adapt, maml
from maml_edu.models import mlp, mse
from maml_edu.tasks import TaskBatch
from maml_edu.training import train

STEPS, STRENGTH, STEP_SIZE = 150, 3.0, 0.2  # enough for tanh_mlp's proximal minimum in float64


def stacked(params):
    """dict [T, …] -> [T, P]"""
    return torch.cat([t.flatten(1) for t in params.values()], 1)


def unstacked(rows, like):
    parts = rows.split([t[0].numel() for t in like.values()], 1)
    return {name: part.reshape(t.shape) for (name, t), part in zip(like.items(), parts)}


def bowl(params, x, y):
    """½(φ − c)ᵀA(φ − c), A as x [T, P, P] and c as y [T, P, 1]."""
    d = stacked(params).unsqueeze(2) - y
    return 0.5 * (d * (x @ d)).sum((1, 2))


@pytest.fixture(scope="module")
def bowls():
    """θ, a batch of 3 tasks with curvatures between 0.5 and 4, and the same as matrices."""
    generator = torch.Generator().manual_seed(5)

    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    def matrices():
        Q = torch.linalg.qr(draw(3, 5, 5))[0]
        return Q @ torch.diag_embed(torch.linspace(0.5, 4.0, 5, dtype=torch.float64).expand(3, 5)) @ Q.mT

    theta = {"w": draw(2, 2), "b": draw(1)}
    return theta, TaskBatch(matrices(), draw(3, 5, 1), matrices(), draw(3, 5, 1))


@pytest.mark.parametrize("strength", [0.3, 2.0])
def test_closed_form_on_quadratics(bowls, strength):
    theta, (A, c, Aq, cq) = bowls
    result = imaml(bowl, theta, bowls[1], 0.35 / (1 + strength / 4), 200, strength, 5)
    solve = torch.linalg.inv(A + strength * torch.eye(5, dtype=torch.float64))
    phi = solve @ (A @ c + strength * flat(theta).view(5, 1))
    expected = (strength * solve @ Aq @ (phi - cq)).mean(0).flatten()
    assert torch.allclose(stacked(result.phi), phi.squeeze(2), rtol=1e-9)
    assert (flat(result.gradient) - expected).norm() < 1e-8 * expected.norm()
    assert {n: t.shape for n, t in result.gradient.items()} == {n: t.shape for n, t in theta.items()}
    assert result.query_loss.shape == (3,) and result.alpha_gradient is None
    assert not any(t.requires_grad for t in [*result.gradient.values(), *result.phi.values(), result.query_loss])


@pytest.mark.parametrize("steps", [0, 1, 3])
@pytest.mark.parametrize("name", list(PROBLEMS))
def test_unrolled_proximal_is_the_gradient_through_the_steps(name, steps):
    loss, theta, batch = PROBLEMS[name]()
    alpha = varied_alpha(theta) if steps == 3 else ALPHA[name]
    leaf = {n: p.clone().requires_grad_() for n, p in theta.items()}
    start = phi = {n: p.expand(batch.support_x.shape[0], *p.shape) for n, p in leaf.items()}
    for _ in range(steps):
        inner = loss(phi, *batch[:2]).sum() + 0.7 * sum((phi[n] - start[n]).square().sum() for n in phi)  # λ/2 = 0.7
        g = torch.autograd.grad(inner, list(phi.values()), create_graph=True)
        phi = {n: p - (alpha[n] if isinstance(alpha, dict) else alpha) * d for (n, p), d in zip(phi.items(), g)}
    expected = torch.autograd.grad(loss(phi, *batch[2:]).mean(), list(leaf.values()), materialize_grads=True)
    result = unrolled_proximal(loss, theta, batch, alpha, steps, 1.4)
    assert relative(result.gradient, dict(zip(theta, expected))) < 1e-9
    assert relative(result.phi, {n: p.detach() for n, p in phi.items()}) < 1e-12


def test_without_the_proximal_term_it_is_maml():
    loss, theta, batch = tanh_mlp()
    assert (
        relative(unrolled_proximal(loss, theta, batch, 0.1, 4, 0.0).gradient, maml(loss, theta, batch, 0.1, 4)[0])
        < 1e-12
    )
    ours, plain = proximal_adapt(loss, theta, *batch[:2], 0.1, 4, 0.0), adapt(loss, theta, *batch[:2], 0.1, 4)
    assert len(ours) == 5 and all(relative(a, b) < 1e-12 for a, b in zip(ours, plain))


@pytest.fixture(scope="module")
def converged():
    loss, theta, batch = tanh_mlp()
    return imaml(loss, theta, batch, STEP_SIZE, STEPS, STRENGTH, 40)


def test_the_inner_problem_is_solved(converged):
    loss, theta, batch = tanh_mlp()
    _, g = value_and_gradient(loss, converged.phi, *batch[:2])
    assert max((g[n] + STRENGTH * (converged.phi[n] - theta[n])).abs().max() for n in theta) < 1e-10
    other = proximal_adapt(loss, theta, *batch[:2], STEP_SIZE / 3, 3 * STEPS, STRENGTH)[-1]
    assert relative(other, converged.phi) < 1e-10  # another path, the same end


def test_finite_differences_of_the_bilevel_objective(converged):
    loss, theta, batch = tanh_mlp()

    def objective(theta):
        return loss(proximal_adapt(loss, theta, *batch[:2], STEP_SIZE, STEPS, STRENGTH)[-1], *batch[2:]).mean()

    for seed in (1, 2):
        u = random_like(theta, seed)
        ends = [objective({n: p + sign * 1e-4 * u[n] for n, p in theta.items()}) for sign in (1, -1)]
        measured = (ends[0] - ends[1]) / 2e-4
        assert torch.isclose(flat(converged.gradient) @ flat(u), measured, rtol=1e-4)


def test_unrolled_tends_to_implicit(converged):
    loss, theta, batch = tanh_mlp()
    errors = [
        relative(unrolled_proximal(loss, theta, batch, STEP_SIZE, K, STRENGTH)[0], converged[0]) for K in (2, 6, 60)
    ]
    assert errors[0] > 1e-2 and errors[1] < errors[0] / 3 and errors[2] < 1e-9


@pytest.mark.parametrize("name, strength", [("mlp", 5.0), ("conv4", 300.0), ("module", 60.0)])
def test_any_phi_any_model_against_a_dense_solve(name, strength):
    """Also short of the minimum: the solve is the same linear algebra."""
    problem = PROBLEMS[name]()
    loss, theta, batch = problem
    result = imaml(loss, theta, batch, 0.02, 2, strength, 60)
    _, v = value_and_gradient(loss, result.phi, *batch[2:])
    H = whole_hessian(problem, result.phi)
    dense = torch.linalg.solve(torch.eye(H.shape[1], dtype=H.dtype) + H / strength, stacked(v).unsqueeze(2))
    expected = unstacked(dense.squeeze(2), v)
    assert relative(v, expected) > 1e-3
    assert relative(result.gradient, {n: t.mean(0) for n, t in expected.items()}) < 1e-8
    solution = implicit_pull_back(loss, result.phi, *batch[:2], v, strength, 60)
    assert relative(solution.x, expected) < 1e-8 and solution.residuals[-1].max() <= 1e-10


# Conjugate gradients


def system(*eigenvalues):
    """b, A·, A and the products made so far, for one row of eigenvalues per task."""
    generator = torch.Generator().manual_seed(7)
    spectrum = torch.tensor(eigenvalues, dtype=torch.float64)
    tasks, size = spectrum.shape
    Q = torch.linalg.qr(torch.randn(tasks, size, size, generator=generator, dtype=torch.float64))[0]
    A = Q @ torch.diag_embed(spectrum) @ Q.mT
    b = {"w": torch.randn(tasks, size // 2, 2, generator=generator, dtype=torch.float64)}
    made = []

    def product(p):
        made.append(p)
        return unstacked((A @ stacked(p).unsqueeze(2)).squeeze(2), p)

    return b, product, A, made


def test_solves_every_task():
    b, product, A, _ = system([1, 2, 3, 4, 5, 6], [1, 10, 100, 1, 10, 100])
    solution = conjugate_gradient(product, b, 6, tolerance=0)
    exact = torch.linalg.solve(A, stacked(b).unsqueeze(2)).squeeze(2)
    assert torch.allclose(stacked(solution.x), exact, rtol=1e-8)
    true_residual = (stacked(b) - stacked(product(solution.x))).norm(dim=1) / stacked(b).norm(dim=1)
    assert solution.residuals.shape == (7, 2) and (solution.residuals[0] == 1).all()
    assert (true_residual < 1e-8).all() and not solution.indefinite.any()
    early = conjugate_gradient(product, b, 3)
    true_residual = (stacked(b) - stacked(product(early.x))).norm(dim=1) / stacked(b).norm(dim=1)
    assert torch.allclose(early.residuals[-1], true_residual)


def test_as_many_steps_as_different_eigenvalues_and_tasks_that_stop_stay():
    b, product, A, made = system([1, 1, 1, 1, 1, 1], [1, 3, 1, 3, 1, 3], [1, 2, 3, 1, 2, 3])
    solution = conjugate_gradient(product, b, 50)
    assert len(made) == 3 and len(solution.residuals) == 4
    assert (solution.residuals[1] < 1e-10).tolist() == [True, False, False]
    assert (solution.residuals[2] < 1e-10).tolist() == [True, True, False]
    one = conjugate_gradient(product, b, 1)
    assert torch.equal(stacked(one.x)[0], stacked(solution.x)[0])


def test_error_is_below_the_bound():
    b, product, A, _ = system([1, 2, 5, 10, 20, 40, 70, 100])
    exact = torch.linalg.solve(A, stacked(b).unsqueeze(2))
    ratio = (100**0.5 - 1) / (100**0.5 + 1)
    for m in range(8):
        e = exact - stacked(conjugate_gradient(product, b, m).x).unsqueeze(2)
        assert (e.mT @ A @ e).item() <= (2 * ratio**m) ** 2 * (exact.mT @ A @ exact).item()


def test_zero_right_hand_side_and_no_steps():
    b, product, _, made = system([1, 2, 3, 4], [1, 2, 3, 4])
    b["w"][0] = 0
    solution = conjugate_gradient(product, b, 9)
    assert (
        (solution.x["w"][0] == 0).all() and (solution.residuals[:, 0] == 0).all() and solution.residuals[-1, 1] < 1e-9
    )
    assert not solution.indefinite.any()
    made.clear()
    nothing = conjugate_gradient(product, {"w": torch.zeros(2, 2, 2)}, 9)
    assert not made and (nothing.x["w"] == 0).all() and nothing.residuals.shape == (1, 2)
    assert (conjugate_gradient(product, b, 0).x["w"] == 0).all() and not made


def test_negative_curvature_is_reported_and_stops_only_its_task():
    b, product, A, _ = system([-2, 1, 1, 3], [1, 2, 3, 4], [0, 0, 0, 0])
    solution = conjugate_gradient(product, b, 20)
    assert solution.indefinite.tolist() == [True, False, True]
    assert torch.allclose(A[1] @ stacked(solution.x)[1], stacked(b)[1])
    assert stacked(solution.x).isfinite().all() and solution.residuals[-1, 0] > 1e-3


def test_what_is_no_number_stays_visible():
    b, product, _, _ = system([1, 2], [1, 2])
    b["w"][0, 0, 0] = torch.nan
    solution = conjugate_gradient(product, b, 5)
    assert solution.x["w"][0].isnan().any() and solution.residuals[-1].isnan().tolist() == [True, False]
    b["w"][1, 0, 0] = torch.inf
    assert conjugate_gradient(product, b, 5).x["w"].isnan().flatten(1).any(1).all()  # also where no step is made


@pytest.mark.parametrize(
    "arguments, message",
    [
        (({"w": torch.ones(2, 3)}, -1), "steps=-1"),
        (({"w": torch.ones(2, 3)}, 2.5), "steps=2.5"),
        (({"w": torch.ones(2, 3)}, 3, -1.0), "tolerance=-1"),
        (({"w": torch.ones(2, 3), "b": torch.ones(3)}, 3), "one task axis"),
        (({}, 3), "one task axis"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        conjugate_gradient(lambda p: p, *arguments)


# In use


def test_bad_strength():
    loss, theta, batch = tanh_mlp()
    for strength in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="strength"):
            imaml(loss, theta, batch, 0.1, 2, strength, 2)
    for function in (unrolled_proximal, lambda *a: proximal_adapt(*a[:2], *batch[:2], *a[3:])):
        with pytest.raises(ValueError, match="0 or more"):
            function(loss, theta, batch, 0.1, 2, -0.1)


def test_a_lambda_below_the_curvature_is_a_warning():
    loss, theta, batch = tanh_mlp()
    with pytest.warns(UserWarning, match="3 of 3 tasks have a curvature at or below −λ = -0.001"):
        imaml(loss, theta, batch, 0.01, 1, 0.001, 30)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        imaml(loss, theta, batch, STEP_SIZE, 40, STRENGTH, 30)


def test_cost_in_loss_calls():
    for tasks in (2, 7):
        loss, theta, batch = tanh_mlp(tasks)
        counted = Mock(side_effect=loss)
        imaml(counted, theta, batch, STEP_SIZE, 8, STRENGTH, 3)
        assert counted.call_count == 8 + 1 + 3


def test_trains_and_is_evaluated():
    model = mlp((1, 8, 1), "tanh", torch.Generator().manual_seed(0))
    loss, method = mse(model.apply), functools.partial(imaml, strength=50.0, cg_steps=3)
    assert name_of(method) == "imaml(strength=50.0, cg_steps=3)"
    trained = train(model, loss, sines, method, iterations=3, tasks=4, alpha=0.02, steps=2, progress=None)
    assert len(trained.history["query_loss"]) == 3 and not torch.equal(trained.theta["w1"], model.theta["w1"])
    model = model._replace(theta=trained.theta)

    def scores(strength):
        near = functools.partial(proximal_adapt, strength=strength)
        generator = torch.Generator().manual_seed(0)
        return evaluate(model, loss, sines, 0.02, 4, tasks=20, generator=generator, adapt=near)

    held, free = scores(5.0), scores(0.0)
    assert [s.step for s in held] == [0, 1, 2, 3, 4] and all(s.mean is not None for s in held)
    assert held[1].mean == free[1].mean and held[4].mean != free[4].mean  # the first step is taken at φ = θ


def test_the_gradient_of_lambda_of_exercise_11_3():
    loss, theta, batch = tanh_mlp()
    ends = []
    for strength in (STRENGTH + 1e-4, STRENGTH - 1e-4):
        phi = proximal_adapt(loss, theta, *batch[:2], STEP_SIZE, STEPS, strength)[-1]
        ends.append(loss(phi, *batch[2:]).mean())
    phi = proximal_adapt(loss, theta, *batch[:2], STEP_SIZE, STEPS, STRENGTH)[-1]
    _, v = value_and_gradient(loss, phi, *batch[2:])
    x = implicit_pull_back(loss, phi, *batch[:2], v, STRENGTH, 40).x
    assert torch.isclose(strength_gradient(theta, phi, x, STRENGTH), (ends[0] - ends[1]) / 2e-4, rtol=1e-5)
