"""Exercises of notebook 01: tasks and the bilevel objective."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from maml_edu.classroom.exercises import Exercise
from maml_edu.data.sine import SineTasks
from maml_edu.models import mlp, mse
from maml_edu.tasks import Loss, Params, TaskBatch

# ---------------------------------------------------------------- 1.1


def mse_of_predicting_zero() -> float:
    low, high = 1.0, 3.0
    mean_square_of_amplitude = (low**2 + low * high + high**2) / 3  # E[A²] of a uniform A
    mean_square_of_sine = 1 / 2  # over half a period or any multiple of it
    return mean_square_of_amplitude * mean_square_of_sine


# ---------------------------------------------------------------- 1.2


def best_without_adapting(x: Tensor, amplitude: tuple[float, float], phase: tuple[float, float]) -> Tensor:
    low, high = phase
    mean_cos = (math.sin(high) - math.sin(low)) / (high - low)
    mean_sin = (math.cos(low) - math.cos(high)) / (high - low)
    mean_amplitude = sum(amplitude) / 2
    return mean_amplitude * (torch.sin(x) * mean_cos - torch.cos(x) * mean_sin)


def _ranges() -> list[tuple]:
    x = torch.linspace(-5, 5, 11, dtype=torch.float64)
    return [
        (x, (0.1, 5.0), (0.0, math.pi)),
        (x, (1.0, 2.0), (-1.0, 0.5)),
        (x, (0.5, 1.0), (0.5, 4.0)),
    ]


def _sine_of_the_mean_task(x: Tensor, amplitude: tuple[float, float], phase: tuple[float, float]) -> Tensor:
    return sum(amplitude) / 2 * torch.sin(x - sum(phase) / 2)


def _plus_cosine(x: Tensor, amplitude: tuple[float, float], phase: tuple[float, float]) -> Tensor:
    return best_without_adapting(-x, amplitude, phase) * -1


def _width_forgotten(x: Tensor, amplitude: tuple[float, float], phase: tuple[float, float]) -> Tensor:
    return best_without_adapting(x, amplitude, phase) * (phase[1] - phase[0])


def _amplitude_forgotten(x: Tensor, amplitude: tuple[float, float], phase: tuple[float, float]) -> Tensor:
    return best_without_adapting(x, amplitude, phase) / (sum(amplitude) / 2)


def _half_the_width_of_amplitudes(x: Tensor, amplitude: tuple[float, float], phase: tuple[float, float]) -> Tensor:
    return _amplitude_forgotten(x, amplitude, phase) * (amplitude[1] - amplitude[0]) / 2


# ---------------------------------------------------------------- 1.3


def curve_for_the_shifted_range() -> tuple[float, float]:
    mean_amplitude = (0.1 + 5.0) / 2
    mean_cos = 2 / math.pi  # E[cos phase] for a phase uniform on (−π/2, π/2)
    mean_sin = 0.0  # E[sin phase]: the two halves cancel
    return mean_amplitude * mean_cos, -mean_amplitude * mean_sin


# ---------------------------------------------------------------- 1.4


def adapted_query_loss(loss: Loss, theta: Params, batch: TaskBatch, alpha: float) -> Tensor:
    tasks = batch.support_x.shape[0]
    theta = {name: p.detach().expand(tasks, *p.shape).requires_grad_() for name, p in theta.items()}
    support_loss = loss(theta, batch.support_x, batch.support_y).sum()  # tasks do not touch each other
    gradients = torch.autograd.grad(support_loss, list(theta.values()))
    phi = {name: p - alpha * g for (name, p), g in zip(theta.items(), gradients)}
    return loss(phi, batch.query_x, batch.query_y)


def _batches() -> list[tuple]:
    tasks = SineTasks()
    cases = []
    for seed, (count, alpha) in enumerate(((3, 0.05), (2, 0.2))):
        generator = torch.Generator().manual_seed(seed)
        model = mlp((1, 8, 1), "tanh", generator=generator, dtype=torch.float64)
        batch = tasks.sample(count, 5, 7, generator=generator, dtype=torch.float64)
        cases.append((mse(model.apply), model.theta, batch, alpha))
    return cases


def _at_theta(loss: Loss, theta: Params, batch: TaskBatch, alpha: float) -> Tensor:
    return loss(theta, batch.query_x, batch.query_y)


def _adapted_on_query(loss: Loss, theta: Params, batch: TaskBatch, alpha: float) -> Tensor:
    return adapted_query_loss(loss, theta, batch._replace(support_x=batch.query_x, support_y=batch.query_y), alpha)


def _support_loss(loss: Loss, theta: Params, batch: TaskBatch, alpha: float) -> Tensor:
    return adapted_query_loss(loss, theta, batch._replace(query_x=batch.support_x, query_y=batch.support_y), alpha)


def _uphill(loss: Loss, theta: Params, batch: TaskBatch, alpha: float) -> Tensor:
    return adapted_query_loss(loss, theta, batch, -alpha)


def _without_alpha(loss: Loss, theta: Params, batch: TaskBatch, alpha: float) -> Tensor:
    return adapted_query_loss(loss, theta, batch, 1.0)


def _mean_over_tasks(loss: Loss, theta: Params, batch: TaskBatch, alpha: float) -> Tensor:
    return adapted_query_loss(loss, theta, batch, alpha / batch.support_x.shape[0])


def _one_phi_for_all(
    loss: Loss, theta: Params, batch: TaskBatch, alpha: float, reduce: Callable[[Tensor], Tensor] = torch.sum
) -> Tensor:
    theta = {name: p.detach().clone().requires_grad_() for name, p in theta.items()}
    support_loss = reduce(loss(theta, batch.support_x, batch.support_y))
    gradients = torch.autograd.grad(support_loss, list(theta.values()))
    phi = {name: p - alpha * g for (name, p), g in zip(theta.items(), gradients)}
    return loss(phi, batch.query_x, batch.query_y)


def _one_phi_from_the_mean(loss: Loss, theta: Params, batch: TaskBatch, alpha: float) -> Tensor:
    return _one_phi_for_all(loss, theta, batch, alpha, reduce=torch.mean)


_ONE_PHI = (
    "this is one φ for all tasks: give θ a task axis first, `p.expand(T, *p.shape)`, so that every task "
    "gets a gradient of its own"
)


EXERCISES: list[Exercise] = [
    Exercise(
        number="1.1",
        title="How bad is predicting zero?",
        reference=mse_of_predicting_zero,
        mistakes={
            "this is E[A]²/2, with the mean squared. Squares are averaged here, so E[A²] counts.": lambda: 2.0**2 / 2,
            "this is E[A²]: the factor E[sin²] = 1/2 is missing.": lambda: 13 / 3,
            "this is the variance of A: predicting zero also pays for the mean of A.": lambda: 2.0**2 / 12,
            "this is the error of the best single curve; the question is about the curve y = 0.": lambda: SineTasks(
                amplitude=(1.0, 3.0)
            ).floor_mse(),
            "this is 3²/2, as if every task had the largest amplitude.": lambda: 4.5,
        },
        hints=(
            "Predicting 0 makes the error of one point A² sin²(x − phase). A is independent of x and phase.",
            "E[sin²(x − phase)] = 1/2 here. For A uniform on [a, b]: E[A²] = (a² + ab + b²)/3.",
        ),
        tolerance=5e-3,
    ),
    Exercise(
        number="1.2",
        title="The best curve for any range",
        reference=best_without_adapting,
        mistakes={
            "this is the sine of the mean task; the mean of the sines is flatter.": _sine_of_the_mean_task,
            "the sign of the cosine term is wrong: sin(x − p) = sin x · cos p − cos x · sin p.": _plus_cosine,
            "the integrals over the phase are not divided by the width of the range.": _width_forgotten,
            "the factor E[A] is missing.": _amplitude_forgotten,
            "E[A] of a uniform A on [a, b] is (a + b)/2, not (b − a)/2.": _half_the_width_of_amplitudes,
        },
        hints=(
            "A and phase are independent, so E[y | x] = E[A] · E[sin(x − phase)].",
            "Expand sin(x − phase). You need E[cos phase] and E[sin phase].",
            "E[cos phase] = (sin high − sin low)/(high − low) and E[sin phase] = (cos low − cos high)/(high − low).",
        ),
        cases=_ranges,
    ),
    Exercise(
        number="1.3",
        title="Another range of phases",
        reference=curve_for_the_shifted_range,
        mistakes={
            "this is the curve of the old range (0, π): change PHASE and run the cells again from there.": lambda: (
                0.0,
                -1.6234,
            ),
            "the two coefficients are swapped: give that of sin x first.": lambda: (0.0, 1.6234),
            "this is the sine of the mean task; where tasks disagree, their mean is flatter.": lambda: (
                2.55,
                0.0,
            ),
            "the curve is zero only if the phases go all the way round the circle.": lambda: (0.0, 0.0),
            "the sign is wrong: with phase 0 in the middle, the mean rises through x = 0 as sin x does.": lambda: (
                -1.6234,
                0.0,
            ),
        },
        hints=(
            "After the change, run the notebook from the cell with PHASE to the cell that prints the two coefficients.",
            "By hand: E[cos phase] and E[sin phase] for a phase uniform on (−π/2, π/2).",
        ),
        tolerance=0.2,  # what training leaves open
        remark="The curve has moved by π/2 like the range of phases, and it is as flat as before.",
    ),
    Exercise(
        number="1.4",
        title="The query loss after one inner step",
        reference=adapted_query_loss,
        mistakes={
            "this is the query loss at θ: the adapted parameters φ are not used.": _at_theta,
            "this step was taken on the query set: adapt on the support set, evaluate on the query.": _adapted_on_query,
            "this is the support loss at φ: evaluate on the query set.": _support_loss,
            "the step goes uphill: φ = θ − α∇L_s(θ), with a minus.": _uphill,
            "the step size α is missing: this is the result for α = 1.": _without_alpha,
            "averaging over tasks divides every gradient by T: sum the losses instead.": _mean_over_tasks,
            _ONE_PHI + ".": _one_phi_for_all,
            _ONE_PHI + ", and sum the losses instead of averaging them.": _one_phi_from_the_mean,
        },
        hints=(
            "Five lines: θ with a task axis, support loss, its gradient, φ, query loss at φ.",
            "`{name: p.detach().expand(T, *p.shape).requires_grad_() for name, p in theta.items()}` "
            "gives every task its own copy of θ.",
            "`torch.autograd.grad(support_loss.sum(), list(theta.values()))` "
            "is the gradient of every task in one call.",
        ),
        cases=_batches,
    ),
]
