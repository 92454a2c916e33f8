"""Exercises of notebook 05: comparing methods on the same tasks, and reading the sine experiment."""

import math

import torch
from torch import Tensor

from maml_edu.classroom.exercises import Exercise
from maml_edu.data.sine import SineTasks
from maml_edu.meta_gradient import adapt
from maml_edu.models import mlp, mse
from maml_edu.models.model import Model

# ---- 5.1


def _paired_cases() -> list[tuple]:
    generator = torch.Generator().manual_seed(0)
    difficulty = torch.rand(600, generator=generator, dtype=torch.float64).square() * 4
    noise = torch.randn(2, 600, generator=generator, dtype=torch.float64) * 0.1
    return [
        (difficulty + noise[0], difficulty + noise[1] + 0.05),
        (difficulty[:50] * 2 + noise[0, :50], difficulty[:50]),
    ]


def paired_difference(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    d = a - b
    return d.mean(), 1.96 * d.std() / math.sqrt(len(d))


def _unpaired(a: Tensor, b: Tensor) -> tuple[Tensor, float]:
    return (a - b).mean(), 1.96 * math.sqrt((a.var() + b.var()) / len(a))


def _standard_deviation(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    return (a - b).mean(), 1.96 * (a - b).std()


def _standard_error(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    return (a - b).mean(), (a - b).std() / math.sqrt(len(a))


def _population(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    return (a - b).mean(), 1.96 * (a - b).std(correction=0) / math.sqrt(len(a))


def _factor_two(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    return (a - b).mean(), 2 * (a - b).std() / math.sqrt(len(a))


def _other_way_round(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    return (b - a).mean(), paired_difference(a, b)[1]


# ---- 5.3


def step_size_is_learned() -> str:
    return "c"


# ---- 5.2


def _curve_cases() -> list[tuple]:
    generator = torch.Generator().manual_seed(1)
    model = mlp((1, 8, 8, 1), "tanh", generator, torch.float64)
    batch = SineTasks().sample(1, 5, generator=generator, dtype=torch.float64)
    grid = torch.linspace(-5, 5, 7, dtype=torch.float64)
    return [(model, batch.support_x[0], batch.support_y[0], 0.02, 3, grid)]


def adapted_curve(model: Model, support_x: Tensor, support_y: Tensor, alpha: float, steps: int, grid: Tensor) -> Tensor:
    x, y = support_x.unsqueeze(0), support_y.unsqueeze(0)  # [1, shots, 1]: one task is still a batch of tasks
    phi = adapt(mse(model.apply), model.theta, x, y, alpha, steps)[-1]
    with torch.no_grad():
        return model.apply(phi, grid.view(1, -1, 1)).flatten()


def _not_adapted(model: Model, support_x: Tensor, support_y: Tensor, alpha: float, steps: int, grid: Tensor) -> Tensor:
    return adapted_curve(model, support_x, support_y, alpha, 0, grid)


def _one_step(model: Model, support_x: Tensor, support_y: Tensor, alpha: float, steps: int, grid: Tensor) -> Tensor:
    return adapted_curve(model, support_x, support_y, alpha, 1, grid)


def _uphill(model: Model, support_x: Tensor, support_y: Tensor, alpha: float, steps: int, grid: Tensor) -> Tensor:
    return adapted_curve(model, support_x, support_y, -alpha, steps, grid)


def _point_by_point(
    model: Model, support_x: Tensor, support_y: Tensor, alpha: float, steps: int, grid: Tensor
) -> Tensor:
    x, y = support_x.unsqueeze(1), support_y.unsqueeze(1)  # [shots, 1, 1]: every point a task of its own
    phi = adapt(mse(model.apply), model.theta, x, y, alpha, steps)[-1]
    with torch.no_grad():
        return model.apply(phi, grid.view(1, -1, 1).expand(len(x), -1, -1)).mean(0).flatten()


EXERCISES: list[Exercise] = [
    Exercise(
        number="5.1",
        title="a paired difference and its interval",
        reference=paired_difference,
        cases=_paired_cases,
        mistakes={
            "this is the interval for two unrelated groups: on the same tasks, take differences first": _unpaired,
            "this is the spread of single tasks: the interval of the mean is narrower by √n": _standard_deviation,
            "the factor 1.96 is missing: this covers 68 %, not 95 %": _standard_error,
            "the sign is turned: a − b is asked for": _other_way_round,
            "the standard deviation divides by n; for a sample divide by n − 1": _population,
            "the factor is 1.96, not 2": _factor_two,
        },
        hints=(
            "Both methods saw the same tasks: make one number per task first.",
            "Mean of a − b, and 1.96 standard deviations of a − b divided by √n.",
        ),
        remark="The hard tasks are hard for both methods; taking differences removes what they share.",
    ),
    Exercise(
        number="5.3",
        title="the step size at test",
        reference=step_size_is_learned,
        mistakes={
            "a longer step would help if θ did not know α; in the sweep the best α at test is the one of training": (
                lambda: "a"
            ),
            "the loss depends on α very much: θ has been placed so that one step of exactly this length arrives": (
                lambda: "b"
            ),
            "more steps do not repair a step that overshoots: with αh > 2 each one makes it worse": lambda: "d",
        },
        hints=(
            "The outer loop has seen only one step length. What does it optimise θ for?",
            "Look at the sweep of α at test, or evaluate the checkpoint with alpha=0.01.",
        ),
        remark="Count them: evaluate(maml_net, paper_loss, test, 0.01, 10, 600)[10].diverged",
    ),
    Exercise(
        number="5.2",
        title="the adapted curve of one task",
        reference=adapted_curve,
        cases=_curve_cases,
        mistakes={
            "this is the network before adaptation: predict with φ, not with θ": _not_adapted,
            "this is one step only: path[-1] is the last point of the path, path[1] the first after θ": _one_step,
            "this goes uphill: θ − α∇L, with a minus": _uphill,
            "every support point became a task of its own: the task axis comes first, [1, shots, 1]": _point_by_point,
        },
        hints=(
            "`adapt` wants a task axis: support_x.unsqueeze(0) is [1, shots, 1].",
            "adapt(...)[-1] is φ; model.apply(φ, grid.view(1, -1, 1)) is [1, points, 1].",
        ),
    ),
]
