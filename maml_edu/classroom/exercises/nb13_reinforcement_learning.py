"""Exercises of notebook 13: reinforcement learning."""

import torch
from torch import Tensor

from maml_edu.classroom.exercises import Exercise

# ---------------------------------------------------------------- 13.1


def to_go(rewards: Tensor, discount: float) -> Tensor:
    total = torch.zeros_like(rewards[..., 0])
    returns = []
    for t in reversed(range(rewards.shape[-1])):
        total = rewards[..., t] + discount * total
        returns.append(total)
    return torch.stack(returns[::-1], -1)


def _so_far(rewards: Tensor, discount: float) -> Tensor:
    return to_go(rewards.flip(-1), discount).flip(-1)


def _not_discounted(rewards: Tensor, discount: float) -> Tensor:
    return to_go(rewards, 1.0)


def _so_far_not_discounted(rewards: Tensor, discount: float) -> Tensor:
    return rewards.cumsum(-1)


def _the_whole_return(rewards: Tensor, discount: float) -> Tensor:
    return to_go(rewards, discount)[..., :1].expand_as(rewards)


def _from_the_start(rewards: Tensor, discount: float) -> Tensor:
    powers = discount ** torch.arange(rewards.shape[-1], dtype=rewards.dtype)
    return to_go(rewards * powers, 1.0)


def _without_this_one(rewards: Tensor, discount: float) -> Tensor:
    return to_go(rewards, discount) - rewards


def _rewards() -> list[tuple]:
    generator = torch.Generator().manual_seed(0)
    hand = torch.tensor([[[1.0, 2.0, 4.0]]], dtype=torch.float64)
    return [(hand, 0.5), (-torch.rand(2, 3, 10, generator=generator, dtype=torch.float64), 0.9)]


RETURNS = Exercise(
    number="13.1",
    title="returns-to-go",
    reference=to_go,
    cases=_rewards,
    mistakes={
        "You summed the past. An action can only change the rewards that come after it.": _so_far,
        "This is a running sum: the past, and no discount. Begin at t, and weigh.": _so_far_not_discounted,
        "The discount is missing: the reward k steps ahead counts γ^k.": _not_discounted,
        "This is the return of the whole trajectory at every time. Start the sum at t.": _the_whole_return,
        "You discounted by the time since the start. Count from t: r_t itself has weight 1.": _from_the_start,
        "The reward at t itself belongs to G_t: it comes after the action at t.": _without_this_one,
    },
    hints=(
        "G at the last step is the last reward. What is G one step earlier?",
        "G_t = r_t + γ·G_{t+1}: go backwards through the last axis.",
        "Collect r_t + discount * total for t = H−1 … 0, turn the list round, torch.stack(…, -1).",
    ),
    remark="The package does it with one matrix product, rewards @ (γ^(t' − t) for t' ≥ t).",
)


# ---------------------------------------------------------------- 13.2


def surrogate(log_pi: Tensor, weight: Tensor, alive: Tensor) -> Tensor:
    return -(weight * log_pi * alive).sum((1, 2)) / alive.sum((1, 2))


def _turned_round(log_pi: Tensor, weight: Tensor, alive: Tensor) -> Tensor:
    return -surrogate(log_pi, weight, alive)


def _without_weights(log_pi: Tensor, weight: Tensor, alive: Tensor) -> Tensor:
    return surrogate(log_pi, torch.ones_like(weight), alive)


def _over_tasks(log_pi: Tensor, weight: Tensor, alive: Tensor) -> Tensor:
    return surrogate(log_pi, weight, alive).mean()


def _all_counted(log_pi: Tensor, weight: Tensor, alive: Tensor) -> Tensor:
    return -(weight * log_pi * alive).mean((1, 2))


def _trajectories_first(log_pi: Tensor, weight: Tensor, alive: Tensor) -> Tensor:
    return -((weight * log_pi * alive).sum(2) / alive.sum(2)).mean(1)


def _not_masked(log_pi: Tensor, weight: Tensor, alive: Tensor) -> Tensor:
    return -(weight * log_pi).sum((1, 2)) / alive.sum((1, 2))


def _probabilities(log_pi: Tensor, weight: Tensor, alive: Tensor) -> Tensor:
    return -(weight * log_pi.exp() * alive).sum((1, 2)) / alive.sum((1, 2))


def _log_probabilities() -> list[tuple]:
    generator = torch.Generator().manual_seed(1)
    cases = []
    for shape in ((2, 3, 4), (3, 2, 6)):
        log_pi, weight = torch.randn(2, *shape, generator=generator, dtype=torch.float64)
        alive = (
            torch.arange(shape[2]) < torch.randint(2, shape[2], shape[:2], generator=generator).unsqueeze(2)
        ).double()
        cases.append((log_pi, weight, alive))
    return cases


SURROGATE = Exercise(
    number="13.2",
    title="the surrogate",
    reference=surrogate,
    cases=_log_probabilities,
    mistakes={
        "The sign is turned round: when good actions become likelier, the loss must fall.": _turned_round,
        "The weights are missing: this makes every action likelier, good or bad.": _without_weights,
        "One value per task, please: the heart sums over tasks by itself. Sum over axes 1 and 2 only.": _over_tasks,
        "You divided by all time steps. Divide by those under way, alive.sum((1, 2)).": _all_counted,
        "One mean per trajectory first? Divide once, by all steps of the task that are alive.": _trajectories_first,
        "Steps after the goal was reached are counted: multiply by alive.": _not_masked,
        "Use log π as it is: the derivation asked for the gradient of log π.": _probabilities,
    },
    hints=(
        "Weight times log π, summed over trajectories and time, one number per task.",
        "The sums go over axes 1 and 2; alive is 1 while the trajectory is under way and 0 afterwards.",
        "Return -(weight * log_pi * alive).sum((1, 2)) / alive.sum((1, 2)).",
    ),
)


# ---------------------------------------------------------------- 13.3


def ten_more() -> tuple[float, float]:
    sigma, more = 0.5, 10.0
    return (-more / sigma**2, 0.0)  # naive: E[R ∂² log π], and ∂² log π = −1/σ²; true: a constant has no derivative


def _by_sigma() -> tuple[float, float]:
    return (-20.0, 0.0)


def _other_sign() -> tuple[float, float]:
    return (40.0, 0.0)


def _nothing_moves() -> tuple[float, float]:
    return (0.0, 0.0)


def _both_move() -> tuple[float, float]:
    return (-40.0, -40.0)


TEN_MORE = Exercise(
    number="13.3",
    title="ten more for everyone",
    reference=ten_more,
    mistakes={
        "The second derivative of log π is −1/σ², not −1/σ.": _by_sigma,
        "Mind the sign: log π = −(a − θ)²/2σ² + … is concave in θ.": _other_sign,
        "The expected gradient does not move, but E[R ∂²log π] does: R has grown by 10.": _nothing_moves,
        "J has grown by 10 for every θ. What is the second derivative of a constant?": _both_move,
    },
    hints=(
        "For a Gaussian with fixed σ, ∂²log π/∂θ² is the same number for every action.",
        "It is −1/σ². The naive second derivative is its product with R, averaged.",
    ),
    tolerance=1e-3,
    remark="So the reward's zero point, which means nothing, decides how far the naive pull-back turns the gradient.",
)


EXERCISES = [RETURNS, SURROGATE, TEN_MORE]
