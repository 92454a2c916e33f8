"""The explicit recursion against automatic differentiation, finite differences and closed forms."""

import pytest
import torch
from support.problems import (
    ALPHA,
    PROBLEMS,
    ROUTES,
    Problem,
    flat,
    one_task_at_a_time,
    query_loss,
    random_like,
    rate,
    relative,
    tanh_mlp,
    varied_alpha,
)

from maml_edu.baselines import joint, reptile
from maml_edu.hessian_vector import hvp
from maml_edu.meta_gradient import adapt, fomaml, maml, pull_back
from maml_edu.reference import autograd_maml
from maml_edu.tasks import TaskBatch, all_examples


@pytest.fixture(params=PROBLEMS)
def name(request):
    return request.param


@pytest.fixture
def problem(name):
    return PROBLEMS[name]()


# --------------------------------------------------------------------------------------------------
# The exact meta-gradient


@pytest.mark.parametrize("how", ROUTES)
@pytest.mark.parametrize("steps", [1, 2, 3, 4, 5])
def test_recursion_equals_automatic_differentiation(name, problem, steps, how):
    found = maml(*problem, ALPHA[name], steps, route=how)
    expected = autograd_maml(*problem, ALPHA[name], steps)
    assert relative(found.gradient, expected.gradient) < ROUTES[how]
    assert torch.allclose(found.query_loss, expected.query_loss, rtol=1e-12)
    assert relative(found.phi, expected.phi) < 1e-12
    assert found.query_loss.shape == problem.batch.support_x.shape[:1]


@pytest.mark.parametrize("remember", [0, 2, 3, 4, 9])
def test_remembered_graphs_change_nothing(name, problem, remember):
    """Fewer than K, all of them, and more than there are; with different step sizes, so that an order would show."""
    alpha = [ALPHA[name] * (1 + j / 4) for j in range(4)]
    found, expected = maml(*problem, alpha, 4, remember=remember), autograd_maml(*problem, alpha, 4)
    assert relative(found.gradient, expected.gradient) < 1e-9
    assert torch.allclose(torch.stack(found.alpha_gradient), torch.stack(expected.alpha_gradient), rtol=1e-9)


@pytest.mark.parametrize("steps", [1, 2, 3, 4, 5])
def test_recursion_equals_central_differences(name, problem, steps):
    """Along the gradient itself and random directions, through an inner loop written out task by task."""
    gradient = maml(*problem, ALPHA[name], steps).gradient
    size, eps = flat(gradient).norm(), 1e-6

    def value(direction, factor):
        moved = {n: p + factor * direction[n] for n, p in problem.theta.items()}
        return query_loss(problem, one_task_at_a_time(problem, moved, ALPHA[name], steps)).item()

    for direction in [gradient, *(random_like(gradient, seed) for seed in range(3))]:
        direction = {n: d / flat(direction).norm() for n, d in direction.items()}
        difference = (value(direction, eps) - value(direction, -eps)) / (2 * eps)
        assert abs(difference - flat(gradient) @ flat(direction)) < 1e-6 * size


def test_every_coordinate_equals_its_central_difference():
    problem, eps = tanh_mlp(), 1e-5
    gradient = maml(*problem, 0.2, 3).gradient
    found = {}
    for n, p in problem.theta.items():
        found[n] = torch.zeros_like(p)
        for i in range(p.numel()):
            values = []
            for sign in (1, -1):
                moved = {**problem.theta, n: p.clone()}
                moved[n].view(-1)[i] += sign * eps
                values.append(query_loss(problem, one_task_at_a_time(problem, moved, 0.2, 3)).item())
            found[n].view(-1)[i] = (values[0] - values[1]) / (2 * eps)
    assert relative(found, gradient) < 1e-6


def test_adapt_is_gradient_descent_on_every_task(name, problem):
    path = adapt(problem.loss, problem.theta, *problem.batch[:2], ALPHA[name], 4)
    expected = one_task_at_a_time(problem, problem.theta, ALPHA[name], 4)
    assert len(path) == 5
    for j, params in enumerate(path):
        assert not any(p.requires_grad or p.grad_fn for p in params.values())
        for t, of_task in enumerate(expected):
            assert relative({n: p[t] for n, p in params.items()}, of_task[j]) < 1e-12


def test_gradient_is_the_mean_over_tasks():
    problem = tanh_mlp(tasks=3)
    together = maml(*problem, 0.2, 2)
    alone = [
        maml(problem.loss, problem.theta, TaskBatch(*(part[t : t + 1] for part in problem.batch)), 0.2, 2)
        for t in range(3)
    ]
    mean = {n: sum(one.gradient[n] for one in alone) / 3 for n in problem.theta}
    assert relative(together.gradient, mean) < 1e-12
    assert torch.allclose(together.query_loss, torch.cat([one.query_loss for one in alone]))


def test_no_steps_is_the_query_gradient_at_theta():
    problem = tanh_mlp()
    theta = {n: p.clone().requires_grad_() for n, p in problem.theta.items()}
    value = query_loss(problem, [[theta]] * 3)
    expected = dict(zip(theta, torch.autograd.grad(value, list(theta.values()))))
    for method in (maml, fomaml, autograd_maml):
        found = method(*problem, 0.2, 0)
        assert relative(found.gradient, expected) < 1e-12
        assert found.alpha_gradient == 0
    path = adapt(problem.loss, problem.theta, *problem.batch[:2], 0.2, 0)
    assert len(path) == 1


def test_query_set_may_be_smaller_or_larger_than_the_support_set():
    for query in (1, 9):
        problem = tanh_mlp(support=4, query=query)
        assert relative(maml(*problem, 0.2, 2).gradient, autograd_maml(*problem, 0.2, 2).gradient) < 1e-9


def test_single_precision_is_close_too():
    problem = tanh_mlp()
    theta = {n: p.float() for n, p in problem.theta.items()}
    batch = TaskBatch(*(part.float() for part in problem.batch))
    found = maml(problem.loss, theta, batch, 0.2, 3).gradient
    assert all(g.dtype == torch.float32 for g in found.values())
    assert relative({n: g.double() for n, g in found.items()}, maml(*problem, 0.2, 3).gradient) < 1e-5


# --------------------------------------------------------------------------------------------------
# What is not the exact meta-gradient must be seen to differ


def test_first_order_differs(name, problem):
    for steps in (1, 3, 5):
        first_order, exact = (method(*problem, ALPHA[name], steps).gradient for method in (fomaml, maml))
        assert relative(first_order, exact) > 1e-3


def test_first_order_is_the_query_gradient_at_phi(name, problem):
    found = fomaml(*problem, ALPHA[name], 3)
    ends = [path[-1:] for path in one_task_at_a_time(problem, problem.theta, ALPHA[name], 3)]
    leaves = [p for (phi,) in ends for p in phi.values()]
    g = torch.autograd.grad(query_loss(problem, ends), leaves)
    per_parameter = len(problem.theta)
    expected = {n: sum(g[i::per_parameter]) for i, n in enumerate(problem.theta)}
    assert relative(found.gradient, expected) < 1e-12


def recursion(problem, alpha, steps, wrong=None):
    """The recursion spelled out, with one thing wrong if asked."""
    loss, theta, batch = problem
    support, query = batch[:2], batch[2:]
    path = adapt(loss, theta, *support, alpha, steps)
    phi = {n: p.clone().requires_grad_() for n, p in path[-1].items()}
    v = dict(zip(phi, torch.autograd.grad(loss(phi, *query).sum(), list(phi.values()))))
    order = range(steps) if wrong == "order reversed" else reversed(range(steps))
    for j in order:
        at = path[0] if wrong == "every H at theta_0" else path[j]
        data = query if wrong == "Hessian of the query loss" else support
        if wrong == "alpha outside the product":
            v = {n: v[n] - rate(alpha, j, n) * h for n, h in hvp(loss, at, *data, v).items()}
        else:
            h = hvp(loss, at, *data, {n: rate(alpha, j, n) * p for n, p in v.items()})
            v = {n: v[n] - h[n] for n in v}
    return {n: p.mean(0) for n, p in v.items()}


WRONG = ["every H at theta_0", "order reversed", "alpha outside the product", "Hessian of the query loss"]


@pytest.mark.parametrize("wrong", WRONG)
def test_wrong_recursions_differ(name, problem, wrong):
    alpha = varied_alpha(problem.theta)
    exact = autograd_maml(*problem, alpha, 3).gradient
    assert relative(recursion(problem, alpha, 3), exact) < 1e-9
    assert relative(recursion(problem, alpha, 3, wrong), exact) > 1e-3


# --------------------------------------------------------------------------------------------------
# Closed forms: tasks ½h(w − c)², with (h, c) given as the only example of support and query


def quadratics(theta, *tasks):
    def loss(params, x, y):
        h, c = x[:, 0, 0], x[:, 0, 1]
        return 0.5 * h * (params["w"] - c) ** 2

    x = torch.tensor(tasks, dtype=torch.float64).unsqueeze(1)
    return Problem(loss, {"w": torch.tensor(theta, dtype=torch.float64)}, TaskBatch(x, x, x, x))


OPPOSED = ((1.0, -1.0), (3.0, 1.0))  # (h, c)


@pytest.mark.parametrize(
    "alpha, best, loss, first_order, its_loss",
    [(0.3, -0.885, 0.028, -0.4, 0.059), (0.1, 0.289, None, 0.4, None), (0.5, 0.5, 0.1875, 2.0, None)],
)
def test_where_first_order_settles(alpha, best, loss, first_order, its_loss):
    exact = [h * (1 - alpha * h) ** 2 for h, c in OPPOSED]
    optimum = sum(w * c for w, (_, c) in zip(exact, OPPOSED)) / sum(exact)
    assert round(optimum, 3) == best
    at_optimum, at_first_order = quadratics(optimum, *OPPOSED), quadratics(first_order, *OPPOSED)
    assert abs(maml(*at_optimum, alpha).gradient["w"]) < 1e-12
    assert abs(fomaml(*at_first_order, alpha).gradient["w"]) < 1e-12
    assert abs(fomaml(*at_optimum, alpha).gradient["w"]) > 1e-2
    if loss is not None:
        assert maml(*at_optimum, alpha).query_loss.mean().item() == pytest.approx(loss, abs=5e-4)
    if its_loss is not None:
        assert maml(*at_first_order, alpha).query_loss.mean().item() == pytest.approx(its_loss, abs=5e-4)
    beyond = fomaml(*quadratics(first_order + 0.1, *OPPOSED), alpha).gradient["w"]
    assert (beyond < 0) == (alpha == 0.5)  # there the fixed point repels


def test_opposite_signs_between_the_two_fixed_points():
    problem = quadratics(0.3, *OPPOSED)
    assert maml(*problem, 0.1).gradient["w"].item() == pytest.approx(0.012, abs=1e-12)
    assert fomaml(*problem, 0.1).gradient["w"].item() == pytest.approx(-0.15, abs=1e-12)


@pytest.mark.parametrize("alpha_h", [0.3, 1.5])
@pytest.mark.parametrize("steps", [1, 2, 3, 4, 5])
def test_ratio_of_first_order_to_exact(alpha_h, steps):
    problem = quadratics(2.0, (3.0, 0.5))
    first_order, exact = (method(*problem, alpha_h / 3, steps).gradient["w"] for method in (fomaml, maml))
    ratio = first_order / exact
    assert ratio.item() == pytest.approx((1 - alpha_h) ** -steps)
    assert (ratio < 0) == (alpha_h > 1 and steps % 2 == 1)


def test_reptile_is_the_mean_move_over_alpha(name, problem):
    """On the union of support and query."""
    x, y = all_examples(problem.batch)
    union = problem._replace(batch=TaskBatch(x, y, x, y))
    ends = [path[-1] for path in one_task_at_a_time(union, problem.theta, 0.1, 5)]
    expected = {n: sum(p - end[n] for end in ends) / len(ends) / 0.1 for n, p in problem.theta.items()}
    found = reptile(*problem, 0.1)
    assert relative(found.gradient, expected) < 1e-9
    assert found.alpha_gradient is None


def test_reptile_is_scored_on_queries_it_has_not_seen(name, problem):
    """phi is adapted to the support set alone, whatever the query set is."""
    found = reptile(*problem, 0.1, 3)
    support_x, support_y, query_x, query_y = problem.batch
    phi = adapt(problem.loss, problem.theta, support_x, support_y, 0.1, 3)[-1]
    assert relative(found.phi, phi) == 0
    assert torch.equal(found.query_loss, problem.loss(phi, query_x, query_y))
    seen = adapt(problem.loss, problem.theta, *all_examples(problem.batch), 0.1, 3)[-1]
    assert not torch.allclose(found.query_loss, problem.loss(seen, query_x, query_y))
    other = reptile(problem.loss, problem.theta, TaskBatch(support_x, support_y, query_x, query_y.flip(1)), 0.1, 3)
    assert relative(other.phi, found.phi) == 0


def test_reptile_with_one_step_is_joint_training(name, problem):
    found, expected = reptile(*problem, ALPHA[name], steps=1), joint(*problem)
    assert relative(found.gradient, expected.gradient) < 1e-12
    theta = {n: p.clone().requires_grad_() for n, p in problem.theta.items()}
    x = torch.cat([problem.batch.support_x, problem.batch.query_x], 1)
    y = torch.cat([problem.batch.support_y, problem.batch.query_y], 1)
    value = torch.cat([problem.loss(theta, *task) for task in zip(x.split(1), y.split(1))]).mean()
    by_hand = dict(zip(theta, torch.autograd.grad(value, list(theta.values()))))
    assert relative(expected.gradient, by_hand) < 1e-12
    assert relative({n: p[1] for n, p in expected.phi.items()}, problem.theta) == 0


def test_reptile_with_a_step_size_per_parameter():
    problem = tanh_mlp()
    alpha = varied_alpha(problem.theta)
    alpha["b1"] = torch.zeros(())
    found = reptile(*problem, alpha, 3)
    end = adapt(problem.loss, problem.theta, *all_examples(problem.batch), alpha, 3)[-1]
    moved = {n: (p - end[n].mean(0)) / alpha[n] for n, p in problem.theta.items() if n != "b1"}
    assert relative({n: found.gradient[n] for n in moved}, moved) < 1e-9
    assert torch.equal(found.gradient["b1"], torch.zeros(4, dtype=torch.float64))


@pytest.mark.parametrize("how", ROUTES)
def test_multi_step_loss(name, problem, how):
    """Σ_j w_j L_q(θ_j): query gradients join on the way back. One step carries no weight."""
    weights, steps, alpha = [0.3, 0.0, 0.2, 0.5], 3, ALPHA[name]
    loss, theta, batch = problem
    path = adapt(loss, theta, *batch[:2], alpha, steps)

    def query_gradient(j):
        leaf = {n: p.clone().requires_grad_() for n, p in path[j].items()}
        g = torch.autograd.grad(weights[j] * loss(leaf, *batch[2:]).sum(), list(leaf.values()))
        return dict(zip(leaf, g))

    on_the_way = [query_gradient(j) if weights[j] else None for j in range(steps)]
    v, alpha_gradient = pull_back(loss, path, *batch[:2], alpha, query_gradient(steps), how, on_the_way)

    leaf = {n: p.clone().requires_grad_() for n, p in theta.items()}
    rate_leaf = torch.tensor(alpha, dtype=torch.float64, requires_grad=True)
    paths = one_task_at_a_time(problem, leaf, rate_leaf, steps, create_graph=True)
    value = sum(w * query_loss(problem, paths, j) for j, w in enumerate(weights))
    *expected, of_rate = torch.autograd.grad(value, [*leaf.values(), rate_leaf])
    assert relative({n: p.mean(0) for n, p in v.items()}, dict(zip(theta, expected))) < ROUTES[how]
    assert abs(alpha_gradient / of_rate - 1) < ROUTES[how]


# --------------------------------------------------------------------------------------------------
# Nothing given is changed, and what cannot be is refused


@pytest.mark.parametrize("method", [maml, fomaml, reptile, autograd_maml, joint])
@pytest.mark.parametrize("tracked", [True, False])
def test_inputs_are_not_modified(method, tracked):
    problem = tanh_mlp()
    theta = {n: p.clone().requires_grad_(tracked) for n, p in problem.theta.items()}
    alpha = varied_alpha(theta)
    given = [*theta.values(), *alpha.values(), *problem.batch]
    before = [(t.detach().clone(), t._version) for t in given]
    more = () if method is joint else (alpha, 3)
    result = method(problem.loss, theta, problem.batch, *more)
    for t, (value, version) in zip(given, before):
        assert torch.equal(t, value) and t._version == version and t.grad is None
    assert all(p.requires_grad == tracked for p in theta.values())
    outputs = [*result.gradient.values(), *result.phi.values(), result.query_loss]
    assert not any(t.requires_grad for t in outputs)
    fresh = method(*problem, *more)
    assert relative(result.gradient, fresh.gradient) == 0


def test_works_where_gradients_are_switched_off():
    problem = tanh_mlp()
    with torch.no_grad():
        found = maml(*problem, 0.2, 2).gradient
    assert relative(found, maml(*problem, 0.2, 2).gradient) == 0


SOME = {"b1": 0.1, "w2": 0.1, "b2": 0.1}


@pytest.mark.parametrize("method", [maml, fomaml, reptile, autograd_maml])
@pytest.mark.parametrize(
    "alpha, steps, message",
    [
        (SOME, 1, r"missing: \['w1'\] \(give 0 to freeze"),
        ({"w1": 0.1, **SOME, "w3": 0.1}, 1, r"unknown: \['w3'\].*Parameters: \['w1'"),
        ({"w1": torch.ones(5), **SOME}, 1, r"alpha\['w1'\] has shape \[5\].* \[2, 4\]"),
        ({"w1": torch.ones(3, 2, 4), **SOME}, 1, r"shape \[3, 2, 4\], which does not"),
        (torch.ones(2), 1, r"tensor of shape \[2\]; expected a number"),
        (0.1, -1, r"steps=-1; expected a whole number"),
        (0.1, 1.5, r"steps=1.5; expected"),
        (0.1, True, r"steps=True; expected"),
    ],
)
def test_impossible_step_sizes_are_refused(method, alpha, steps, message):
    with pytest.raises(ValueError, match=message):
        method(*tanh_mlp(), alpha, steps)


def test_lists_must_reach_to_the_last_step():
    problem = tanh_mlp()
    for method in (maml, fomaml, autograd_maml):
        with pytest.raises(ValueError, match="list of 2 step sizes for 3 steps; give one per step"):
            method(*problem, [0.1, 0.1], 3)
    with pytest.raises(ValueError, match="not a list per step"):
        reptile(*problem, [0.1] * 5)
    path = adapt(problem.loss, problem.theta, *problem.batch[:2], 0.1, 3)
    with pytest.raises(ValueError, match="query_gradients has 1 entries for 3 steps"):
        pull_back(problem.loss, path, *problem.batch[:2], 0.1, path[-1], query_gradients=[None])
    with pytest.raises(ValueError, match=r"shape \[3, 2, 4\], which does not broadcast to the parameter's \[2, 4\]"):
        pull_back(problem.loss, path, *problem.batch[:2], {**SOME, "w1": torch.ones(3, 2, 4)}, path[-1])


@pytest.mark.parametrize("method", [maml, fomaml, reptile, autograd_maml])
def test_a_loss_must_return_one_value_per_task(method):
    problem = tanh_mlp()
    wrong = {r"\[\]": lambda *a: problem.loss(*a).mean(), r"\[3, 1\]": lambda *a: problem.loss(*a)[:, None]}
    for shape, loss in wrong.items():
        with pytest.raises(ValueError, match=rf"loss returned shape {shape} for 3 tasks; expected .*\[3\]"):
            method(loss, problem.theta, problem.batch, 0.1, 1)


def test_unknown_route_is_refused_before_any_work():
    def loss(*_):
        raise AssertionError("the loss was called")

    problem = tanh_mlp()._replace(loss=loss)
    with pytest.raises(ValueError, match="unknown Hessian-vector product 'reverse'; choose one of double-"):
        maml(*problem, 0.1, route="reverse")
    with pytest.raises(ValueError, match="unknown Hessian-vector product"):
        hvp(loss, problem.theta, *problem.batch[:2], problem.theta, route="reverse")
