"""2-D navigation: a point must reach a goal it is never told. A task in the form (L, q(x₁), q(x_{t+1}|x_t, a_t), H).

Source: Finn, Abbeel & Levine (2017), §2.1 (the form of a task) and §5.3 (this distribution of tasks).

    L            minus the sum of rewards, r_t = −‖x_{t+1} − goal‖
    q(x₁)        the origin, always
    q(x'|x, a)   x + a, with each component of a clipped to ±0.1: no noise
    H            100 steps, fewer if the goal is reached within 0.01

Tasks differ in L alone: each has its own goal, uniform in a square. A policy's output u is a move in units of 0.1.
All tasks and all trajectories move at once; the only loop is the one over time.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from maml_edu.tasks import Params, Sampler, TaskBatch

Act = Callable[[Params, Tensor, Tensor], Tensor]  # (params, states [T, n, 2], noise [T, n, 2]) -> actions [T, n, 2]


class Trajectories(NamedTuple):
    """states, actions [T, n, H, 2]; rewards, alive [T, n, H]. alive is 1 until the goal is reached, then 0, as is r."""

    states: Tensor
    actions: Tensor
    rewards: Tensor
    alive: Tensor

    def returns(self) -> Tensor:
        """The sum of rewards of every trajectory [T, n], not discounted."""
        return self.rewards.sum(2)


class Navigation(NamedTuple):
    """The tasks. half_width: of the square the goals come from. clip=None: moves go as far as the policy says."""

    horizon: int = 100
    half_width: float = 0.5
    reach: float = 0.01
    unit: float = 0.1
    clip: float | None = 0.1

    def goals(self, tasks: int, generator: torch.Generator | None = None, dtype: torch.dtype = torch.float32) -> Tensor:
        """[T, 2], one goal per task."""
        if tasks < 1:
            raise ValueError(f"tasks={tasks}; expected at least 1")
        return self.half_width * (2 * torch.rand(tasks, 2, generator=generator, dtype=dtype) - 1)

    def rollout(self, act: Act, params: Params, goals: Tensor, noise: Tensor) -> Trajectories:
        """n trajectories in each of T tasks, without graph. goals: [T, 2]. noise: [T, n, H, 2], the chance in `act`.

        The same noise gives the same trajectories: all chance is drawn outside.
        Raises ValueError if the shapes do not fit.
        """
        if goals.dim() != 2 or goals.shape[1] != 2:
            raise ValueError(f"goals has shape {list(goals.shape)}; expected [tasks, 2]")
        if noise.dim() != 4 or noise.shape[0] != goals.shape[0] or noise.shape[2:] != (self.horizon, 2):
            raise ValueError(
                f"noise has shape {list(noise.shape)}; expected [{goals.shape[0]}, trajectories, {self.horizon}, 2]"
            )
        x, goal = torch.zeros_like(noise[:, :, 0]), goals.unsqueeze(1)
        alive = torch.ones_like(x[..., 0])
        steps: list[tuple[Tensor, ...]] = []
        with torch.no_grad():
            for t in range(self.horizon):
                u = act(params, x, noise[:, :, t])
                move = self.unit * u
                if self.clip is not None:
                    move = move.clamp(-self.clip, self.clip)
                after = x + alive.unsqueeze(2) * move
                distance = (after - goal).norm(dim=2)
                steps.append((x, u, -distance * alive, alive))
                x, alive = after, alive * (distance >= self.reach)
        return Trajectories(*(torch.stack(one, 2) for one in zip(*steps)))

    def sampler(self, trajectories: int = 20, steps: int = 1) -> Sampler:
        """sampler(tasks, generator=…) for `train` and `evaluate`: goals, and the noise that trajectories are made from.

        A batch cannot hold the trajectories themselves: which ones are seen depends on the parameters.
        support_x: noise [T, K·n, H, 2], n fresh ones for each inner step; query_x: noise [T, n, H, 2]; y: the goals,
        once per trajectory.
        """
        if trajectories < 1 or steps < 0:
            raise ValueError(f"trajectories={trajectories}, steps={steps}; expected at least 1 trajectory and 0 steps")

        def sample(tasks: int, generator: torch.Generator | None = None) -> TaskBatch:
            goals, support = self.goals(tasks, generator).unsqueeze(1), max(steps, 1) * trajectories
            noise = torch.randn(tasks, support + trajectories, self.horizon, 2, generator=generator)
            each = goals.expand(-1, support + trajectories, -1)
            return TaskBatch(noise[:, :support], each[:, :support], noise[:, support:], each[:, support:])

        return sample


def oracle_returns(navigation: Navigation, goals: Tensor) -> Tensor:
    """The return [T] of one who is told the goal and moves towards it as far as the clip allows."""

    def straight(params: Params, states: Tensor, noise: Tensor) -> Tensor:
        return (goals.unsqueeze(1) - states) / navigation.unit

    noise = torch.zeros(goals.shape[0], 1, navigation.horizon, 2, dtype=goals.dtype)
    return navigation.rollout(straight, {}, goals, noise).returns()[:, 0]
