"""2-D navigation and policy gradients: the world, the weights, the surrogates, and the pullback."""

import math

import pytest
import torch
from support.problems import flat, relative

from maml_edu.data.navigation import Navigation, oracle_returns
from maml_edu.electives.policy_gradient import (
    SURROGATES,
    PolicyGradient,
    act,
    advantages,
    examples,
    fitted_baseline,
    gaussian_policy,
    log_prob,
    reinforce,
    returns_to_go,
)
from maml_edu.hessian_vector import hvp, value_and_gradient
from maml_edu.meta_gradient import descend, fomaml, maml
from maml_edu.reference import autograd_maml
from maml_edu.tasks import TaskBatch

F64 = torch.float64


def small(surrogate="reinforce", pull=True, horizon=5):
    """A tanh policy in float64, three tasks, four trajectories."""
    generator = torch.Generator().manual_seed(0)
    policy = gaussian_policy((6,), "tanh", generator, F64, std=0.7)
    theta = {name: p + 0.3 * torch.randn(p.shape, generator=generator, dtype=F64) for name, p in policy.theta.items()}
    return PolicyGradient(Navigation(horizon=horizon), policy.apply, surrogate, pull), theta


def batch_of(meta, steps=1, tasks=3, trajectories=4):
    drawn = meta.navigation.sampler(trajectories, steps)(tasks, torch.Generator().manual_seed(1))
    return TaskBatch(*(t.to(F64) for t in drawn))


# ---------------------------------------------------------------- the world


def push(params, states, noise):
    return params["u"].expand_as(states)


def test_a_straight_trajectory_by_hand():
    """Goal at (0.25, 0), a push of 0.1 per step: distances 0.15, 0.05, 0.05, and so on; the third step overshoots."""
    navigation = Navigation(horizon=4)
    u = {"u": torch.tensor([1.0, 0.0], dtype=F64)}
    seen = navigation.rollout(push, u, torch.tensor([[0.25, 0.0]], dtype=F64), torch.zeros(1, 1, 4, 2, dtype=F64))
    assert torch.allclose(seen.rewards[0, 0], torch.tensor([-0.15, -0.05, -0.05, -0.15], dtype=F64))
    assert torch.allclose(seen.states[0, 0, :, 0], torch.tensor([0.0, 0.1, 0.2, 0.3], dtype=F64))
    assert seen.alive.all() and seen.returns().item() == pytest.approx(-0.4)


def test_the_trajectory_ends_at_the_goal():
    navigation = Navigation(horizon=5)
    u = {"u": torch.tensor([1.0, 0.0], dtype=F64)}
    seen = navigation.rollout(push, u, torch.tensor([[0.2, 0.005]], dtype=F64), torch.zeros(1, 1, 5, 2, dtype=F64))
    assert seen.alive[0, 0].tolist() == [1, 1, 0, 0, 0] and (seen.rewards[0, 0, 2:] == 0).all()
    assert torch.equal(seen.states[0, 0, 2], seen.states[0, 0, 4])  # and the point rests there


def test_moves_are_clipped_unless_told_otherwise():
    u, goal = {"u": torch.tensor([5.0, -5.0])}, torch.tensor([[0.4, 0.4]])
    for clip, expected in ((0.1, [0.1, -0.1]), (None, [0.5, -0.5])):
        seen = Navigation(horizon=2, clip=clip).rollout(push, u, goal, torch.zeros(1, 1, 2, 2))
        assert torch.allclose(seen.states[0, 0, 1], torch.tensor(expected))


def test_the_oracle_moves_straight():
    """To (0.3, 0) in steps of 0.1: distances 0.2, 0.1, 0."""
    assert oracle_returns(Navigation(), torch.tensor([[0.3, 0.0]], dtype=F64)).item() == pytest.approx(-0.3)


def test_goals_and_noise_have_their_shapes_and_range():
    navigation = Navigation(horizon=7)
    batch = navigation.sampler(4, steps=2)(500, generator=torch.Generator().manual_seed(0))
    assert batch.support_x.shape == (500, 8, 7, 2) and batch.query_x.shape == (500, 4, 7, 2)
    assert torch.equal(batch.support_y[:, 0], batch.query_y[:, 3])
    assert 0.45 < batch.query_y.abs().max() <= 0.5 and batch.query_y.mean().abs() < 0.03


# ---------------------------------------------------------------- from rewards to weights


def test_returns_to_go_by_hand():
    assert returns_to_go(torch.tensor([1.0, 2.0, 4.0], dtype=F64), 0.5).tolist() == [3.0, 4.0, 4.0]


def test_the_baseline_is_exact_where_its_features_suffice():
    generator = torch.Generator().manual_seed(9)
    states = torch.randn(2, 6, 12, 2, generator=generator, dtype=F64)
    t = torch.linspace(0, 1, 12, dtype=F64)
    returns = 1 - 2 * t + 3 * t**3 + states[..., 0] * (1 - t) - states[..., 1].square()
    alive = torch.ones_like(returns)
    alive[0, 1, 5:] = 0
    seen = torch.where(alive > 0, returns, 99.0)  # after the goal: must not count
    assert (fitted_baseline(seen, states, alive) - returns).abs().max() < 2e-2


def test_advantages_have_unit_spread_and_vanish_after_the_goal():
    meta, theta = small(horizon=30)
    navigation = meta.navigation._replace(reach=0.15)
    goals = torch.tensor([[0.2, 0.1], [0.1, 0.0]], dtype=F64)
    noise = torch.randn(2, 8, 30, 2, generator=torch.Generator().manual_seed(2), dtype=F64)
    seen = navigation.rollout(meta.act, {n: p.expand(2, *p.shape) for n, p in theta.items()}, goals, noise)
    a = advantages(seen)
    assert (seen.alive == 0).any() and (a[seen.alive == 0] == 0).all()
    for one, alive in zip(a, seen.alive):
        assert one[alive > 0].std(correction=0).item() == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_where_all_trajectories_paid_the_same_there_is_nothing_to_learn(dtype):
    """One clipped step takes all to a goal near (0.1, 0.1): the advantages are what the ridge left over."""
    meta = PolicyGradient(Navigation(), gaussian_policy((6,), "tanh", dtype=dtype).apply)
    theta = {name: p.to(dtype) for name, p in gaussian_policy((6,), "tanh", std=0.5).theta.items()}
    theta["b2"] = torch.tensor([5.0, 5.0], dtype=dtype)
    generator = torch.Generator().manual_seed(0)
    goals = (0.1 + 0.006 * (2 * torch.rand(40, 2, generator=generator) - 1)).to(dtype)
    seen, _, y = meta.sample(theta, goals, torch.randn(40, 20, 100, 2, generator=generator).to(dtype))
    assert seen.alive.sum() == 40 * 20 and (y[..., 0] == 0).all()


# ---------------------------------------------------------------- the surrogates


def test_log_prob_is_that_of_torch():
    meta, theta = small()
    generator = torch.Generator().manual_seed(3)
    states, actions = torch.randn(2, 3, 4, 5, 2, generator=generator, dtype=F64)
    policy = gaussian_policy((6,), "tanh", dtype=F64)
    mean = policy.apply(theta, states.flatten(1, 2)).view_as(actions)
    expected = torch.distributions.Normal(mean, theta["log_std"].exp()).log_prob(actions).sum(-1)
    assert torch.allclose(log_prob(policy.apply, theta, states, actions), expected)
    tasks = {name: p.expand(3, *p.shape) for name, p in theta.items()}
    assert torch.allclose(log_prob(policy.apply, tasks, states, actions), expected)


def constant_policy(params, x, context=None):
    """mean = θ, whatever the state: the bandit's policy."""
    return params["mean"].unsqueeze(-2).expand(*x.shape[:-1], 2)


BANDIT = {"mean": torch.tensor([0.4, -0.2], dtype=F64), "log_std": torch.tensor([-0.3, 0.1], dtype=F64)}


def bandit(samples):
    """One time step; reward −½|u − g|² − 1, so J = −½(|θ − g|² + Σσ²) − 1. x, y for the surrogates, and g."""
    g = torch.tensor([1.0, 0.5], dtype=F64)
    noise = torch.randn(1, samples, 1, 2, generator=torch.Generator().manual_seed(4), dtype=F64)
    u = BANDIT["mean"] + BANDIT["log_std"].exp() * noise
    weight = -0.5 * (u - g).square().sum(-1) - 1
    x = torch.cat([torch.zeros_like(u), u], 3)
    return x, torch.stack([weight, torch.ones_like(weight)], 3), g


@pytest.mark.parametrize("name", SURROGATES)
def test_every_surrogate_has_the_gradient_of_the_expected_reward(name):
    x, y, g = bandit(100_000)
    params = {n: p.unsqueeze(0) for n, p in BANDIT.items()}
    grad = value_and_gradient(SURROGATES[name](constant_policy), params, x, y)[1]
    assert torch.allclose(grad["mean"][0], BANDIT["mean"] - g, atol=0.03)  # −∇J
    assert torch.allclose(grad["log_std"][0], (2 * BANDIT["log_std"]).exp(), atol=0.03)


@pytest.mark.parametrize("name, right", [("reinforce", False), ("dice", True), ("ratio", True)])
def test_only_the_ratios_have_its_hessian(name, right):
    """−∇²J is the identity for the mean. The log surrogate has −E[r]/σ² of the opposite cause instead."""
    x, y, g = bandit(100_000)
    params = {n: p.unsqueeze(0) for n, p in BANDIT.items()}
    v = {"mean": torch.tensor([[1.0, 0.0]], dtype=F64), "log_std": torch.zeros(1, 2, dtype=F64)}
    hv = hvp(SURROGATES[name](constant_policy), params, x, y, v)["mean"][0]
    if right:
        assert torch.allclose(hv, torch.tensor([1.0, 0.0], dtype=F64), atol=0.08)
    else:
        variance = (2 * BANDIT["log_std"]).exp()
        mean_reward = -0.5 * ((BANDIT["mean"] - g).square().sum() + variance.sum()) - 1
        assert hv[0].item() == pytest.approx((mean_reward / variance[0]).item(), abs=0.05)


def test_dice_over_time_has_the_hessian_of_the_expected_return():
    """Two steps, u ~ N(θ, 1), return −½u₁² − u₁u₂: J = −½(θ² + 1) − θ², so −∇²J = 3."""
    generator = torch.Generator().manual_seed(5)
    u = 0.5 + torch.randn(1, 200_000, 2, 1, generator=generator, dtype=F64).expand(-1, -1, -1, 2).clone()
    u[..., 1] = 0.0
    first, second = u[:, :, 0, 0], u[:, :, 1, 0]
    r = torch.stack([-0.5 * first.square(), -first * second], 2)
    weight = returns_to_go(r, 1.0)
    x, y = torch.cat([torch.zeros_like(u), u], 3), torch.stack([weight, torch.ones_like(weight)], 3)
    params = {"mean": torch.tensor([[0.5, 0.0]], dtype=F64), "log_std": torch.zeros(1, 2, dtype=F64)}
    v = {"mean": torch.tensor([[1.0, 0.0]], dtype=F64), "log_std": torch.zeros(1, 2, dtype=F64)}
    curvature = {n: 2 * hvp(s(constant_policy), params, x, y, v)["mean"][0, 0].item() for n, s in SURROGATES.items()}
    assert curvature["dice"] == pytest.approx(3, abs=0.1)  # twice: the loss is a mean over two time steps
    assert abs(curvature["ratio"] - 3) > 0.5  # the product of the two times is missing: 1
    assert abs(curvature["reinforce"] - 3) > 0.5


def test_the_surrogates_share_their_gradient():
    meta, theta = small()
    batch = batch_of(meta)
    path, [(x, y, _)] = meta.inner_loop(theta, batch.support_y[:, 0], batch.support_x, 0.1, 1)
    of = {name: value_and_gradient(s(_apply()), path[0], x, y)[1] for name, s in SURROGATES.items()}
    assert relative(of["dice"], of["reinforce"]) < 1e-12 and relative(of["ratio"], of["reinforce"]) < 1e-12


def _apply():
    return gaussian_policy((6,), "tanh", dtype=F64).apply


# ---------------------------------------------------------------- the pullback


def unrolled(loss, outer, theta, data, query, alpha):
    """φ by create_graph through every step, each on its own fixed trajectories; the mean query loss."""
    phi = {name: p.expand(query[0].shape[0], *p.shape) for name, p in theta.items()}
    for x, y, _ in data:
        g = torch.autograd.grad(loss(phi, x, y).sum(), list(phi.values()), create_graph=True)
        phi = {name: p - alpha * d for (name, p), d in zip(phi.items(), g)}
    return outer(phi, *query).mean()


@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("name", SURROGATES)
def test_the_pullback_is_unrolled_autograd_and_finite_differences(name, steps):
    meta, theta = small(name)
    batch = batch_of(meta, steps)
    result = meta(None, theta, batch, 0.2, steps)
    goals = batch.support_y[:, 0]
    path, data = meta.inner_loop(theta, goals, batch.support_x, 0.2, steps)
    _, *query = meta.sample(path[-1], goals, batch.query_x)
    leaf = {n: p.clone().requires_grad_() for n, p in theta.items()}
    objective = unrolled(meta.loss, meta.outer, leaf, data, query, 0.2)
    expected = dict(zip(leaf, torch.autograd.grad(objective, list(leaf.values()))))
    assert relative(result.gradient, expected) < 1e-9
    assert relative(result.phi, path[-1]) == 0

    def value(shift):
        moved = {n: p + shift * e[n] for n, p in theta.items()}
        return unrolled(meta.loss, meta.outer, {n: p.requires_grad_() for n, p in moved.items()}, data, query, 0.2)

    if name == "reinforce":  # the others hold a constant, ⊥, that must not move with θ
        generator = torch.Generator().manual_seed(6)
        e = {n: torch.randn(p.shape, generator=generator, dtype=F64) for n, p in theta.items()}
        slope = (value(1e-5) - value(-1e-5)).item() / 2e-5
        assert torch.dot(flat(expected), flat(e)).item() == pytest.approx(slope, rel=1e-6)


def test_with_one_step_it_is_the_packages_maml_on_fixed_trajectories():
    meta, theta = small()
    batch = batch_of(meta)
    goals = batch.support_y[:, 0]
    path, [(x, y, _)] = meta.inner_loop(theta, goals, batch.support_x, 0.2, 1)
    _, *query = meta.sample(path[-1], goals, batch.query_x)
    fixed = TaskBatch(x, y, *query)
    assert relative(meta(None, theta, batch, 0.2, 1).gradient, maml(meta.loss, theta, fixed, 0.2, 1).gradient) < 1e-12
    assert (
        relative(
            maml(meta.loss, theta, fixed, 0.2, 2).gradient, autograd_maml(meta.loss, theta, fixed, 0.2, 2).gradient
        )
        < 1e-9
    )
    first = small(pull=False)[0](None, theta, batch, 0.2, 1).gradient
    assert relative(first, fomaml(meta.loss, theta, fixed, 0.2, 1).gradient) < 1e-12
    assert relative(path[1], descend(meta.loss, path[0], x, y, 0.2, 1)[1]) < 1e-12


def test_no_graph_is_left_and_no_loop_over_tasks():
    meta, theta = small()
    result = meta(None, theta, batch_of(meta, 2), 0.2, 2)
    assert not any(p.requires_grad for p in (*result.gradient.values(), *result.phi.values(), result.query_loss))
    calls = []
    apply = meta.loss

    def counting(*arguments):
        calls.append(1)
        return apply(*arguments)

    meta.loss = counting
    for tasks in (2, 16):
        meta(None, theta, batch_of(meta, 1, tasks), 0.2, 1)
    assert len(calls) == 4  # two for each: forward and backward


# ---------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    "message, attempt",
    [
        ("at least 1", lambda: Navigation().goals(0)),
        (
            "expected \\[tasks, 2\\]",
            lambda: Navigation().rollout(push, {}, torch.zeros(2, 3), torch.zeros(2, 1, 100, 2)),
        ),
        ("noise has shape", lambda: Navigation().rollout(push, {}, torch.zeros(2, 2), torch.zeros(2, 1, 99, 2))),
        ("trajectories=0", lambda: Navigation().sampler(0)),
        ("discount=1.5", lambda: returns_to_go(torch.zeros(3), 1.5)),
        ("std=0", lambda: gaussian_policy(std=0.0)),
        ("unknown surrogate", lambda: small("log")),
        ("as `examples` makes them", lambda: reinforce(_apply())({}, torch.zeros(1, 2, 3), torch.zeros(1, 2, 3))),
        ("shared out", lambda: small()[0](None, small()[1], batch_of(small()[0], 3, trajectories=1), 0.1, 2)),
    ],
)
def test_bad_input_is_named(message, attempt):
    with pytest.raises(ValueError, match=message):
        attempt()


def test_actions_are_mean_plus_noise():
    policy = gaussian_policy((4,), dtype=F64, std=2.0)
    x, noise = torch.zeros(1, 3, 2, dtype=F64), torch.ones(1, 3, 2, dtype=F64)
    moved = act(policy.apply)(policy.theta, x, noise) - policy.apply(policy.theta, x)
    assert torch.allclose(moved, torch.full_like(moved, 2.0)) and math.isclose(policy.theta["log_std"][0], math.log(2))


def test_examples_line_up():
    meta, theta = small()
    batch = batch_of(meta)
    params = {n: p.expand(3, *p.shape) for n, p in theta.items()}
    seen, x, y = meta.sample(params, batch.query_y[:, 0], batch.query_x)
    again = examples(seen, advantages(seen))
    assert torch.equal(x, again[0]) and torch.equal(y, again[1])
    assert torch.equal(x[..., 2:], seen.actions) and torch.equal(y[..., 1], seen.alive)
