"""Momentum and Adam inside: each pullback against unrolled autograd, finite differences and closed forms."""

import functools
import math

import pytest
import torch
from support.problems import ALPHA, PROBLEMS, flat, random_like, relative, tanh_mlp, varied_alpha

from maml_edu.data.sine import SineTasks
from maml_edu.electives.curvature import extreme_curvatures
from maml_edu.electives.inner_optimizers import (
    adam_adapt,
    adam_descend,
    adam_maml,
    adam_pull_back,
    alpha_per_parameter,
    largest_curvatures,
    momentum_adapt,
    momentum_descend,
    momentum_maml,
    momentum_pull_back,
    pulled_back_gradients,
    truncated_maml,
)
from maml_edu.evaluation import evaluate
from maml_edu.hessian_vector import value_and_gradient
from maml_edu.meta_gradient import adapt, fomaml, maml
from maml_edu.models import mlp, mse
from maml_edu.step_sizes import flat_alpha
from maml_edu.training import train

METHODS = {"momentum": momentum_maml, "adam": adam_maml}
ADAPT = {"momentum": momentum_adapt, "adam": adam_adapt}
each_method = pytest.mark.parametrize("method", METHODS)
each_problem = pytest.mark.parametrize("name", ["mlp", "conv4"])
each_steps = pytest.mark.parametrize("steps", [1, 2, 5])


def unrolled(method, problem, alpha, steps):
    """Gradients with respect to θ and α, and φ: torch's own rules, written out with create_graph=True."""
    loss, theta, (x, y, query_x, query_y) = problem
    theta = {n: p.clone().requires_grad_() for n, p in theta.items()}
    alpha = {n: torch.as_tensor(a, dtype=torch.float64).clone().requires_grad_() for n, a in alpha.items()}
    phi = {n: p.expand(x.shape[0], *p.shape) for n, p in theta.items()}
    m = u = dict.fromkeys(theta, 0.0)
    for j in range(1, steps + 1):
        g = dict(zip(phi, torch.autograd.grad(loss(phi, x, y).sum(), list(phi.values()), create_graph=True)))
        if method == "momentum":
            m = {n: 0.9 * m[n] + g[n] for n in g}
            phi = {n: p - alpha[n] * m[n] for n, p in phi.items()}
        else:
            m = {n: 0.9 * m[n] + 0.1 * g[n] for n in g}
            u = {n: 0.999 * u[n] + 0.001 * g[n] ** 2 for n in g}
            mean, square = ({n: t / (1 - b**j) for n, t in s.items()} for s, b in ((m, 0.9), (u, 0.999)))
            phi = {n: p - alpha[n] * mean[n] / torch.sqrt(square[n] + 1e-2) for n, p in phi.items()}
    value = loss(phi, query_x, query_y).mean()
    gradients = torch.autograd.grad(value, [*theta.values(), *alpha.values()])
    return (
        dict(zip(theta, gradients)),
        dict(zip(theta, gradients[len(theta) :])),
        {n: p.detach() for n, p in phi.items()},
    )


@each_method
@each_problem
@each_steps
def test_recursion_equals_automatic_differentiation(method, name, steps):
    problem = PROBLEMS[name]()
    for alpha in (dict.fromkeys(problem.theta, ALPHA[name]), varied_alpha(problem.theta)):
        gradient, of_alpha, phi = unrolled(method, problem, alpha, steps)
        result = METHODS[method](*problem, alpha, steps)
        assert relative(result.phi, phi) < 1e-12
        assert relative(result.gradient, gradient) < 1e-10
        assert relative({n: torch.as_tensor(a) for n, a in result.alpha_gradient.items()}, of_alpha) < 1e-10
        assert torch.allclose(result.query_loss, problem.loss(phi, *problem.batch[2:]))
    number = METHODS[method](*problem, ALPHA[name], steps)
    total = sum(
        a.sum() for a in unrolled(method, problem, dict.fromkeys(problem.theta, ALPHA[name]), steps)[1].values()
    )
    assert torch.allclose(number.alpha_gradient, total, rtol=1e-9)
    assert relative(number.gradient, maml(*problem, ALPHA[name], steps).gradient) > 1e-2 or steps == 1


@each_method
@each_problem
@each_steps
def test_recursion_equals_central_differences(method, name, steps):
    """Of θ along the gradient and random directions, and of α, through the forward pass alone."""
    problem, alpha, eps = PROBLEMS[name](), ALPHA[name], 1e-6
    result = METHODS[method](*problem, alpha, steps)

    def value(direction=None, factor=0.0, size=alpha):
        theta = {n: p if direction is None else p + factor * direction[n] for n, p in problem.theta.items()}
        phi = ADAPT[method](problem.loss, theta, *problem.batch[:2], size, steps)[-1]
        return problem.loss(phi, *problem.batch[2:]).mean().item()

    size = flat(result.gradient).norm()
    for direction in [result.gradient, random_like(result.gradient, 1)]:
        direction = {n: d / flat(direction).norm() for n, d in direction.items()}
        difference = (value(direction, eps) - value(direction, -eps)) / (2 * eps)
        assert abs(difference - flat(result.gradient) @ flat(direction)) < 1e-5 * size
    difference = (value(size=alpha + eps) - value(size=alpha - eps)) / (2 * eps)
    assert difference == pytest.approx(result.alpha_gradient.item(), rel=1e-5, abs=1e-8)


@each_method
def test_a_list_of_step_sizes_has_a_derivative_per_step(method):
    problem = tanh_mlp()
    alpha = [dict.fromkeys(problem.theta, 0.1 * (j + 1)) for j in range(3)]
    result = METHODS[method](*problem, alpha, 3)
    for j in range(3):
        values = []
        for sign in (1, -1):
            moved = [*alpha[:j], {n: a + sign * 1e-6 for n, a in alpha[j].items()}, *alpha[j + 1 :]]
            values.append(METHODS[method](*problem, moved, 3).query_loss.mean().item())
        assert sum(flat_alpha(result.alpha_gradient[j])).item() == pytest.approx(
            (values[0] - values[1]) / 2e-6, rel=1e-5
        )


def test_torch_optimisers_take_the_same_steps():
    """One task at a time; Adam with tiny ε, where inside or outside the root makes no difference."""
    problem = tanh_mlp()
    ours = {
        "momentum": momentum_adapt(problem.loss, problem.theta, *problem.batch[:2], 0.1, 4)[-1],
        "adam": adam_adapt(problem.loss, problem.theta, *problem.batch[:2], 0.1, 4, epsilon=1e-24)[-1],
    }
    for t in range(3):
        for name, make in (("momentum", torch.optim.SGD), ("adam", torch.optim.Adam)):
            leaf = {n: p.clone().requires_grad_() for n, p in problem.theta.items()}
            more = {"momentum": 0.9} if name == "momentum" else {"eps": 1e-12}
            optimiser = make(list(leaf.values()), lr=0.1, **more)
            for _ in range(4):
                optimiser.zero_grad()
                problem.loss(
                    leaf, problem.batch.support_x[t : t + 1], problem.batch.support_y[t : t + 1]
                ).sum().backward()
                optimiser.step()
            assert relative({n: p[t] for n, p in ours[name].items()}, leaf) < 1e-8


def test_without_momentum_it_is_maml():
    problem = tanh_mlp()
    alpha = varied_alpha(problem.theta)
    result, plain = momentum_maml(*problem, alpha, 3, momentum=0.0), maml(*problem, alpha, 3)
    assert relative(result.gradient, plain.gradient) < 1e-13
    assert relative(result.alpha_gradient, plain.alpha_gradient) < 1e-12


def test_heavy_ball_on_a_quadratic():
    """Of ½h(w − c)²: θ_2 − c = (1 − 2a − aμ + a²)(θ − c) with a = αh; the gradient is h times its square, (θ − c)."""

    def loss(params, x, y):
        return 0.5 * x[:, 0, 0] * (params["w"] - y[:, 0, 0]) ** 2

    h = torch.tensor([1.0, 3.0], dtype=torch.float64).view(2, 1, 1)
    c = torch.tensor([-1.0, 2.0], dtype=torch.float64).view(2, 1, 1)
    theta = {"w": torch.tensor(0.7, dtype=torch.float64)}
    result = momentum_maml(loss, theta, type(tanh_mlp().batch)(h, c, h, c), 0.2, 2, momentum=0.5)
    a = 0.2 * h[:, 0, 0]
    factor = 1 - 2 * a - 0.5 * a + a**2
    expected = (h[:, 0, 0] * factor**2 * (0.7 - c[:, 0, 0])).mean()
    assert torch.allclose(result.gradient["w"], expected)


def test_adam_where_a_gradient_is_exactly_zero():
    """Dead ReLUs: finite with ε inside the root; the textbook's √u + ε gives NaN by automatic differentiation."""
    model = mlp((1, 8, 1), "relu", torch.Generator().manual_seed(0), torch.float64)
    theta = {**model.theta, "b1": model.theta["b1"] - 20}  # every hidden unit off
    loss, batch = (
        mse(model.apply),
        SineTasks().sample(3, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64),
    )
    result = adam_maml(loss, theta, batch, 0.1, 3)
    assert all(g.isfinite().all() for g in result.gradient.values())
    assert result.gradient["w1"].abs().max() == 0 and result.gradient["b2"].abs().max() > 0
    u = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.grad(0.0 / (torch.sqrt(u) + 1e-8), u)[0].isnan().all()


@each_method
def test_cost_does_not_grow_with_tasks_and_no_graph_is_kept(method):
    def calls_for(tasks):
        problem, calls = tanh_mlp(tasks), []
        result = METHODS[method](lambda *a: calls.append(1) or problem.loss(*a), *problem[1:], 0.1, 4)
        assert not any(
            p.requires_grad for p in [*result.gradient.values(), *result.phi.values(), result.alpha_gradient]
        )
        return len(calls)

    assert calls_for(2) == calls_for(16) == 9  # K gradients, one query, K products


@each_method
def test_it_trains_and_learns_its_step_sizes(method):
    model = mlp((1, 20, 1), "tanh", torch.Generator().manual_seed(0))
    loss = mse(model.apply)

    def sines(n, generator):
        return SineTasks().sample(n, 10, generator=generator)

    settings = dict(iterations=60, tasks=8, alpha=0.02, steps=2, lr=1e-2, learn_alpha=True, progress=None)
    settings["generator"] = torch.Generator().manual_seed(1)
    trained = train(model, loss, sines, METHODS[method], **settings)
    history = trained.history["query_loss"]
    assert history[-10:].mean() < 0.8 * history[:10].mean()
    assert any(size != 0.02 for size in flat_alpha(trained.alpha))
    after = model._replace(theta=trained.theta)
    fresh = torch.Generator().manual_seed(2)
    scores = evaluate(after, loss, sines, trained.alpha, 2, 50, adapt=ADAPT[method], generator=fresh)
    assert scores[2].median < scores[0].median


# ---------------------------------------------------------------- the plain path, cut short or watched


def test_truncation_goes_from_first_order_to_exact():
    problem = tanh_mlp()
    result = [truncated_maml(*problem, 0.2, 3, keep) for keep in range(4)]
    assert relative(result[0].gradient, fomaml(*problem, 0.2, 3).gradient) < 1e-14
    assert relative(result[3].gradient, maml(*problem, 0.2, 3).gradient) < 1e-14
    far = [relative(one.gradient, result[3].gradient) for one in result]
    assert far[0] > far[1] > far[2] > far[3]
    alpha = [0.1, 0.2, 0.3]
    assert relative(truncated_maml(*problem, alpha, 3, 3).gradient, maml(*problem, alpha, 3).gradient) < 1e-14
    one = truncated_maml(*problem, alpha, 3, 1).gradient
    assert relative(one, truncated_maml(*problem, [0.1, 0.2, 0.0], 3, 1).gradient) > 1e-3


def test_the_backward_pass_begins_at_the_query_gradient_and_ends_at_the_meta_gradient():
    problem = tanh_mlp()
    path = adapt(problem.loss, problem.theta, *problem.batch[:2], 0.2, 3)
    vs = pulled_back_gradients(problem.loss, path, problem.batch, 0.2)
    assert len(vs) == 4
    assert relative(vs[-1], value_and_gradient(problem.loss, path[-1], *problem.batch[2:])[1]) < 1e-14
    assert relative({n: p.mean(0) for n, p in vs[0].items()}, maml(*problem, 0.2, 3).gradient) < 1e-13


def test_largest_curvatures_of_a_path():
    problem = tanh_mlp()
    path = adapt(problem.loss, problem.theta, *problem.batch[:2], 0.2, 2)
    path[2]["w1"][1] *= 1e6  # one task has left
    path[1]["w1"][0, 0, 0] = math.nan
    curvatures = largest_curvatures(problem.loss, path, *problem.batch[:2], iterations=50)
    assert curvatures.shape == (3, 3) and curvatures.isnan().nonzero().tolist() == [[1, 0], [2, 1]]
    assert torch.allclose(curvatures[0], extreme_curvatures(problem.loss, path[0], *problem.batch[:2], 50)[1])


def test_a_step_size_for_every_parameter():
    theta = tanh_mlp().theta
    alpha = alpha_per_parameter(theta, 0.3)
    assert all(alpha[n].shape == p.shape and (alpha[n] == 0.3).all() for n, p in theta.items())


# ---------------------------------------------------------------- bad input


@pytest.mark.parametrize("bad", [-0.1, 1.0, math.nan])
def test_fractions_must_be_below_one(bad):
    problem = tanh_mlp()
    with pytest.raises(ValueError, match="momentum="):
        momentum_maml(*problem, 0.1, 2, momentum=bad)
    with pytest.raises(ValueError, match="beta1="):
        adam_maml(*problem, 0.1, 2, beta1=bad)
    with pytest.raises(ValueError, match="beta2="):
        adam_maml(*problem, 0.1, 2, beta2=bad)


def test_other_bad_input():
    problem = tanh_mlp()
    support = problem.batch[:2]
    with pytest.raises(ValueError, match="epsilon=0"):
        adam_maml(*problem, 0.1, 2, epsilon=0)
    for method in METHODS.values():
        with pytest.raises(ValueError, match="one per step"):
            method(*problem, [0.1], 2)
        with pytest.raises(ValueError, match="steps="):
            method(*problem, 0.1, -1)
    for keep in (-1, 3):
        with pytest.raises(ValueError, match="keep="):
            truncated_maml(*problem, 0.1, 2, keep)
    for descend, back, settings, of_pullback in (
        (momentum_descend, momentum_pull_back, (0.9,), (0.9,)),
        (adam_descend, adam_pull_back, (0.9, 0.999, 0.01), (0.9, 0.999)),
    ):
        path, trace = descend(problem.loss, problem.theta, *support, 0.1, 3, *settings)
        with pytest.raises(ValueError, match="path of 2 steps"):
            back(problem.loss, path[:-1], trace, *support, 0.1, path[-1], *of_pullback)


@each_method
def test_no_steps(method):
    problem = tanh_mlp()
    result = METHODS[method](*problem, 0.1, 0)
    assert relative(result.gradient, maml(*problem, 0.1, 0).gradient) < 1e-14
    assert result.alpha_gradient == 0


def test_evaluate_takes_other_settings_by_partial():
    problem = tanh_mlp()
    path = functools.partial(momentum_adapt, momentum=0.5)(problem.loss, problem.theta, *problem.batch[:2], 0.1, 2)
    assert len(path) == 3
