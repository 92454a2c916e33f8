"""Policy gradients as one more loss(params, x, y) -> [T], so that the heart adapts with it and pulls back through it.

A Gaussian policy π(u|x) = N(f(x), σ²); trajectories are sampled, then held fixed. On them, with weights A (advantages),

    L(θ) = −mean_{i,t} A_{i,t} log π_θ(u_{i,t}|x_{i,t}),       ∇L = the REINFORCE estimate of −∇J (Williams 1992).

Forward: K steps θ_{j+1} = θ_j − α∇L_j(θ_j), each on trajectories of its own, sampled with θ_j.
Backward: v ← v − H_j(α∘v), H_j the Hessian of that surrogate on those trajectories.
The gradient of L is right on average, up to the discount and what the weights take from the same trajectories. Its
Hessian is not even then, unless the surrogate is made for it (`dice`).
"""

import math

import torch
from torch import Tensor

from maml_edu.data.navigation import Act, Navigation, Trajectories
from maml_edu.hessian_vector import value_and_gradient
from maml_edu.meta_gradient import MetaGradient, pull_back
from maml_edu.models import Apply, Model, Statistics, mlp
from maml_edu.step_sizes import Alpha, StepSize, alpha_per_step
from maml_edu.tasks import Loss, Params, TaskBatch, expand_over_tasks, mean_over_tasks

# ---------------------------------------------------------------- the policy


def gaussian_policy(
    hidden: tuple[int, ...] = (100, 100),
    activation: str = "relu",
    generator: torch.Generator | None = None,
    dtype: torch.dtype = torch.float32,
    std: float = 1.0,
    mean: Model | None = None,
) -> Model:
    """theta: that of an mlp 2 → hidden → 2, and log_std [2]. apply(params, states [T, n, 2]) -> mean action [T, n, 2].

    The last layer starts at a tenth of its usual size: an untrained policy has almost no preference. mean: another
    model with two inputs and two outputs, to be used as it is.
    """
    if not std > 0:
        raise ValueError(f"std={std}; the standard deviation of the actions must be above 0")
    if mean is None:
        mean = mlp((2, *hidden, 2), activation, generator, dtype)
        last = (f"w{len(hidden) + 1}", f"b{len(hidden) + 1}")
        mean = mean._replace(theta={name: p * 0.1 if name in last else p for name, p in mean.theta.items()})
    of_mean, names = mean.apply, tuple(mean.theta)

    def apply(params: Params, x: Tensor, context: Tensor | Statistics | None = None) -> Tensor:
        return of_mean({name: params[name] for name in names}, x)

    return Model({**mean.theta, "log_std": torch.full((2,), math.log(std), dtype=dtype)}, apply)


def act(apply: Apply) -> Act:
    """act(params, states [T, n, 2], noise [T, n, 2]) -> actions: mean + σ·noise."""

    def action(params: Params, states: Tensor, noise: Tensor) -> Tensor:
        return apply(params, states) + _per_task(params["log_std"]).exp() * noise

    return action


def log_prob(apply: Apply, params: Params, states: Tensor, actions: Tensor) -> Tensor:
    """log π(u|x) [T, n, H] of actions [T, n, H, 2] in states [T, n, H, 2]."""
    mean = apply(params, states.flatten(1, 2)).view(actions.shape)
    log_std = _per_task(params["log_std"]).unsqueeze(-2)
    z = (actions - mean) * (-log_std).exp()
    return (-0.5 * z.square() - log_std - 0.5 * math.log(2 * math.pi)).sum(-1)


def _per_task(log_std: Tensor) -> Tensor:
    """[2] or [T, 2], made to fit [T, n, 2]."""
    return log_std.unsqueeze(1) if log_std.dim() == 2 else log_std


# ---------------------------------------------------------------- from rewards to weights

DISCOUNT = 0.99  # γ


def returns_to_go(rewards: Tensor, discount: float = DISCOUNT) -> Tensor:
    """G_t = r_t + γ r_{t+1} + γ² r_{t+2} + …, along the last axis. rewards: […, H]."""
    if not 0 <= discount <= 1:
        raise ValueError(f"discount={discount}; expected a number from 0 to 1")
    t = torch.arange(rewards.shape[-1], dtype=rewards.dtype, device=rewards.device)
    ahead = t.unsqueeze(1) - t  # row: reward, column: time of G
    return rewards @ torch.where(ahead >= 0, discount ** ahead.clamp(min=0), 0)


def fitted_baseline(returns: Tensor, states: Tensor, alive: Tensor) -> Tensor:
    """What returns-to-go G [T, n, H] a task gives on average at time t in state x: least squares per task -> [T, n, H].

    Linear in 1, x, x² (states [T, n, H, 2]), each times 1 and t, and in t², t³; steps with alive = 0 do not count. It
    does not look at the action, so it changes no expectation of a gradient, up to what it has learned from the very
    trajectories it is used for. Source: the "linear feature baseline" of Duan et al. (2016), with products by t added.
    """
    t = torch.linspace(0, 1, returns.shape[2], dtype=returns.dtype, device=returns.device).expand_as(returns)
    of_state = torch.cat([torch.ones_like(states[..., :1]), states, states.square()], 3)
    features = torch.cat([of_state, of_state * t.unsqueeze(3), torch.stack([t**2, t**3], 3)], 3)
    weighted = (features * alive.unsqueeze(3)).flatten(1, 2)  # [T, n·H, 12]
    features = features.flatten(1, 2)
    left = weighted.mT @ features
    scale = left.diagonal(dim1=1, dim2=2)
    ridge = torch.diag_embed(1e-5 * scale + 1e-12)
    right = weighted.mT @ returns.flatten(1).unsqueeze(2)
    return (features @ torch.linalg.solve(left + ridge, right)).view_as(returns)


def advantages(seen: Trajectories, baseline: bool = True) -> Tensor:
    """The weights A [T, n, H]: returns-to-go, minus the fitted baseline, in units of their spread within the task.

    They are divided by the task's standard deviation, as in the code of Finn et al. (2017). Where all actions paid
    the same, nothing can be learned: 0, not the remainder of the fit blown up. 0 also once the goal is reached.
    """
    to_go = returns_to_go(seen.rewards) * seen.alive
    a = to_go - fitted_baseline(to_go, seen.states, seen.alive) * seen.alive if baseline else to_go
    count = seen.alive.sum((1, 2), keepdim=True)
    mean = a.sum((1, 2), keepdim=True) / count
    variance = ((a - mean).square() * seen.alive).sum((1, 2), keepdim=True) / count
    negligible = 1e-4 * to_go.abs().amax((1, 2), keepdim=True)
    return torch.where(variance.sqrt() > negligible, a / (variance.sqrt() + 1e-8), 0)


def examples(seen: Trajectories, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Trajectories as x [T, n, H, 4] (state, action) and y [T, n, H, 2] (weight, alive), for the surrogates below."""
    return torch.cat([seen.states, seen.actions], 3), torch.stack([weights, seen.alive], 3)


# ---------------------------------------------------------------- the surrogate losses


def reinforce(apply: Apply) -> Loss:
    """loss(params, x, y) -> [T]: −mean A log π over the time steps under way. Source: Williams (1992).

    Its gradient is the policy gradient's estimate. Its Hessian is −mean A ∇²log π alone.
    """

    def loss(params: Params, x: Tensor, y: Tensor) -> Tensor:
        states, actions, weight, alive = _parts(x, y)
        return -(weight * log_prob(apply, params, states, actions)).sum((1, 2)) / alive.sum((1, 2))

    return loss


def dice(apply: Apply) -> Loss:
    """The same value of the gradient as `reinforce`, and a Hessian that is right on average if nothing is discounted.

    Σ_t A_t log π_t becomes Σ_t □_t e_t: e_t = A_t − A_{t+1} is what A loses at step t, and □_t = exp(c_t − ⊥c_t), with
    c_t = Σ_{s≤t} log π_s and ⊥ for "held constant", is 1 with the derivatives of a probability ratio.
    ∇log π_s ∇log π_uᵀ, s < u, gets the weight A_u; differentiating the expected gradient gives γ^(u−s) A_u, equal
    for γ = 1 alone. And the weights must not come from the same trajectories: a fitted baseline and a division by the
    spread add a bias.
    Source: Foerster et al. (2018), eq. 6.
    """

    def loss(params: Params, x: Tensor, y: Tensor) -> Tensor:
        states, actions, weight, alive = _parts(x, y)
        c = (log_prob(apply, params, states, actions) * alive).cumsum(2)
        effect = weight - torch.cat([weight[:, :, 1:], torch.zeros_like(weight[:, :, :1])], 2)
        return -((c - c.detach()).exp() * effect).sum((1, 2)) / alive.sum((1, 2))

    return loss


def ratio(apply: Apply) -> Loss:
    """−mean A π/⊥π: the Hessian of `dice` without the products of different times; less noise, some bias.

    Source: Rothfuss et al. (2019), ProMP, eq. 6 (low variance curvature).
    """

    def loss(params: Params, x: Tensor, y: Tensor) -> Tensor:
        states, actions, weight, alive = _parts(x, y)
        log_pi = log_prob(apply, params, states, actions)
        return -(weight * (log_pi - log_pi.detach()).exp()).sum((1, 2)) / alive.sum((1, 2))

    return loss


SURROGATES = {"reinforce": reinforce, "dice": dice, "ratio": ratio}


def _parts(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """states, actions [T, n, H, 2], weights and alive [T, n, H] of what `examples` made."""
    if x.dim() != 4 or x.shape[3] != 4 or y.shape != (*x.shape[:3], 2):
        raise ValueError(
            f"x has shape {list(x.shape)} and y {list(y.shape)}; expected [T, n, H, 4] (state, action), [T, n, H, 2] "
            "(weight, alive), as `examples` makes them"
        )
    return x[..., :2], x[..., 2:], y[..., 0], y[..., 1]


# ---------------------------------------------------------------- adapt, and pull back


class PolicyGradient:
    """Adapts by policy gradients on trajectories it samples, and pulls back through the surrogate's Hessian.

    A `method` for `train` (call it), with `adapt` and `score` for `evaluate`; the batches are those of
    `Navigation.sampler`. surrogate: "reinforce", "dice" or "ratio", for the inner steps; the outer gradient, which
    nothing differentiates again, is the same with all three. pull: False leaves every Jacobian out (first order).
    Source: Finn et al. (2017), Algorithm 3.
    """

    def __init__(self, navigation: Navigation, apply: Apply, surrogate: str = "reinforce", pull: bool = True) -> None:
        if surrogate not in SURROGATES:
            raise ValueError(f"unknown surrogate {surrogate!r}; choose one of {', '.join(SURROGATES)}")
        self.navigation, self.act, self.pull = navigation, act(apply), pull
        self.loss, self.outer = SURROGATES[surrogate](apply), reinforce(apply)
        self.name = ("" if pull else "first-order ") + f"policy gradient, {surrogate}"

    def sample(self, params: Params, goals: Tensor, noise: Tensor) -> tuple[Trajectories, Tensor, Tensor]:
        """Trajectories of the policy, and the same as x, y for a surrogate."""
        seen = self.navigation.rollout(self.act, params, goals, noise)
        return seen, *examples(seen, advantages(seen))

    def inner_loop(
        self, theta: Params, goals: Tensor, noise: Tensor, alpha: Alpha, steps: int
    ) -> tuple[list[Params], list[tuple[Tensor, Tensor, dict[str, StepSize]]]]:
        """The path θ_0 … θ_K, and for each step its x, y and α. noise: [T, K·n, H, 2], n trajectories for each step."""
        if steps and noise.shape[1] % steps:
            raise ValueError(
                f"noise for {noise.shape[1]} trajectories cannot be shared out among {steps} inner steps; sample with "
                f"sampler(trajectories, steps={steps})"
            )
        start = expand_over_tasks(theta, goals.shape[0])
        path = [{name: p.contiguous() for name, p in start.items()}]  # bmm is slow on views of one matrix
        data = []
        for a, of_step in zip(alpha_per_step(alpha, theta, steps), noise.chunk(max(steps, 1), 1)):
            _, x, y = self.sample(path[-1], goals, of_step)
            g = value_and_gradient(self.loss, path[-1], x, y)[1]
            path.append({name: p - a[name] * g[name] for name, p in path[-1].items()})
            data.append((x, y, a))
        return path, data

    def adapt(self, loss: Loss | None, theta: Params, x: Tensor, y: Tensor, alpha: Alpha, steps: int) -> list[Params]:
        """As `meta_gradient.adapt`, for `evaluate(adapt=…)`; x: noise, y: goals. `loss` is not used."""
        return self.inner_loop(theta, y[:, 0], x, alpha, steps)[0]

    def score(self, params: Params, x: Tensor, y: Tensor) -> Tensor:
        """Minus the mean return of fresh trajectories [T]: L of Finn et al. (2017), eq. 4. x: noise, y: goals."""
        return -self.navigation.rollout(self.act, params, y[:, 0], x).returns().mean(1)

    def __call__(
        self, loss: Loss | None, theta: Params, batch: TaskBatch, alpha: Alpha, steps: int = 1
    ) -> MetaGradient:
        """The meta-gradient: sample, step, …, sample with φ, query gradient, back. query_loss: minus the return [T].

        `loss` is not used: trajectories come from the parameters, see `self.loss`.
        """
        goals = batch.support_y[:, 0]
        path, data = self.inner_loop(theta, goals, batch.support_x, alpha, steps)
        seen, x, y = self.sample(path[-1], goals, batch.query_x)
        v = value_and_gradient(self.outer, path[-1], x, y)[1]
        if self.pull:
            for j in reversed(range(steps)):
                x, y, a = data[j]
                v, _ = pull_back(self.loss, path[j : j + 2], x, y, [a], v)
        return MetaGradient(mean_over_tasks(v), -seen.returns().mean(1), path[-1], None)
