"""Exercises of notebook 01: tasks and the bilevel objective."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from maml_edu.classroom.exercises import Exercise, NotAllowed
from maml_edu.data.sine import SineTasks
from maml_edu.models import mlp, mse
from maml_edu.tasks import Loss, Params, TaskBatch

# ---------------------------------------------------------------- 1.1

Range = tuple[float, float]


def best_without_adapting(x: Tensor, amplitude: Range, phase: Range) -> Tensor:
    low, high = phase
    if low == high:  # one phase only
        mean_cos, mean_sin = math.cos(low), math.sin(low)
    else:
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


def _sine_of_the_mean_task(x: Tensor, amplitude: Range, phase: Range) -> Tensor:
    return sum(amplitude) / 2 * torch.sin(x - sum(phase) / 2)


def _plus_cosine(x: Tensor, amplitude: Range, phase: Range) -> Tensor:
    return -best_without_adapting(-x, amplitude, phase)


def _of_one_range(x: Tensor, amplitude: Range, phase: Range) -> Tensor:
    return -sum(amplitude) / 2 * (2 / math.pi) * torch.cos(x)


def _upside_down(x: Tensor, amplitude: Range, phase: Range) -> Tensor:
    return -best_without_adapting(x, amplitude, phase)


def _of_section_three(x: Tensor, amplitude: Range, phase: Range) -> Tensor:
    return -1.62 * torch.cos(x)


def _cosines_alone(x: Tensor, amplitude: Range, phase: Range) -> Tensor:
    return best_without_adapting(x, amplitude, phase) - _sines_alone(x, amplitude, phase)


def _sines_alone(x: Tensor, amplitude: Range, phase: Range) -> Tensor:
    return torch.sin(x) * best_without_adapting(torch.tensor([math.pi / 2], dtype=x.dtype), amplitude, phase)


def _sum_of_the_ends(x: Tensor, amplitude: Range, phase: Range) -> Tensor:
    return 2 * best_without_adapting(x, amplitude, phase)


def _swapped(x: Tensor, amplitude: Range, phase: Range) -> Tensor:
    return best_without_adapting(x + math.pi / 2, amplitude, phase)  # sin → cos, cos → −sin


def _swapped_with_minus(x: Tensor, amplitude: Range, phase: Range) -> Tensor:
    return best_without_adapting(math.pi / 2 - x, amplitude, phase)  # sin ↔ cos


def _width_forgotten(x: Tensor, amplitude: Range, phase: Range) -> Tensor:
    return best_without_adapting(x, amplitude, phase) * (phase[1] - phase[0])


def _divided_by_pi(x: Tensor, amplitude: Range, phase: Range) -> Tensor:
    return _width_forgotten(x, amplitude, phase) / math.pi


def _amplitude_forgotten(x: Tensor, amplitude: Range, phase: Range) -> Tensor:
    return best_without_adapting(x, amplitude, phase) / (sum(amplitude) / 2)


def _half_the_width_of_amplitudes(x: Tensor, amplitude: Range, phase: Range) -> Tensor:
    return _amplitude_forgotten(x, amplitude, phase) * (amplitude[1] - amplitude[0]) / 2


# ---------------------------------------------------------------- 1.2


def query_losses(loss: Loss, theta: Params, batch: TaskBatch, alpha: float, steps: int) -> Tensor:
    tasks = batch.support_x.shape[0]
    phi = {name: p.expand(tasks, *p.shape) for name, p in theta.items()}  # a copy per task
    for _ in range(steps):
        support_loss = loss(phi, batch.support_x, batch.support_y).sum()  # tasks don't touch each other
        g = torch.autograd.grad(support_loss, list(phi.values()), create_graph=True)
        phi = {name: p - alpha * d for (name, p), d in zip(phi.items(), g)}
    return loss(phi, batch.query_x, batch.query_y)


Losses = Callable[[Loss, Params, TaskBatch, float, int], Tensor]


def _with_meta_gradient(function: Losses) -> Callable:
    """Losses and the gradient of their mean; refuses a loop over tasks and a result that has lost its graph."""

    def examined(loss: Loss, theta: Params, batch: TaskBatch, alpha: float, steps: int) -> object:
        tasks = len(batch.support_x)

        def watched(params: Params, x: Tensor, y: Tensor) -> Tensor:
            if len(x) != tasks:
                raise NotAllowed(_NO_LOOP)
            return loss(params, x, y)

        values = function(watched, theta, batch, alpha, steps)
        if isinstance(values, Tensor) and values.dim() == 0:
            raise NotAllowed(_NO_MEAN)
        if not isinstance(values, Tensor) or values.shape != (tasks,):
            return values  # the comparison says what is wrong with it
        if not values.requires_grad:
            raise NotAllowed(_NO_GRAPH)
        gradient = torch.autograd.grad(values.mean(), list(theta.values()), allow_unused=True, materialize_grads=True)
        return values.detach(), dict(zip(theta, gradient))

    return examined


_NO_LOOP = (
    "your function hands the loss one task at a time. Give θ a task axis, `p.expand(T, *p.shape)`, and call the loss "
    "for all tasks at once"
)
_NO_MEAN = "your function returns one number. Return one query loss per task, shape [T]; the outer loop takes the mean"
_NO_GRAPH = (
    "the losses have no graph, so `backward` can't reach θ. Don't use `adapt` or `detach` here; take the inner "
    "gradient with `create_graph=True`"
)


def _batches() -> list[tuple]:
    tasks = SineTasks()
    cases = []
    for seed, (count, alpha, steps) in enumerate(((3, 0.05, 1), (2, 0.1, 3))):
        generator = torch.Generator().manual_seed(seed)
        model = mlp((1, 8, 1), "tanh", generator=generator, dtype=torch.float64)
        batch = tasks.sample(count, 5, 7, generator=generator, dtype=torch.float64)
        theta = {name: p.requires_grad_() for name, p in model.theta.items()}
        cases.append((mse(model.apply), theta, batch, alpha, steps))
    return cases


def _at_theta(loss: Loss, theta: Params, batch: TaskBatch, alpha: float, steps: int) -> Tensor:
    return query_losses(loss, theta, batch, 0.0, steps)


def _adapted_on_query(loss: Loss, theta: Params, batch: TaskBatch, alpha: float, steps: int) -> Tensor:
    batch = batch._replace(support_x=batch.query_x, support_y=batch.query_y)
    return query_losses(loss, theta, batch, alpha, steps)


def _support_loss(loss: Loss, theta: Params, batch: TaskBatch, alpha: float, steps: int) -> Tensor:
    batch = batch._replace(query_x=batch.support_x, query_y=batch.support_y)
    return query_losses(loss, theta, batch, alpha, steps)


def _uphill(loss: Loss, theta: Params, batch: TaskBatch, alpha: float, steps: int) -> Tensor:
    return query_losses(loss, theta, batch, -alpha, steps)


def _without_alpha(loss: Loss, theta: Params, batch: TaskBatch, alpha: float, steps: int) -> Tensor:
    return query_losses(loss, theta, batch, 1.0, steps)


def _mean_over_tasks(loss: Loss, theta: Params, batch: TaskBatch, alpha: float, steps: int) -> Tensor:
    return query_losses(loss, theta, batch, alpha / batch.support_x.shape[0], steps)


def _one_step(loss: Loss, theta: Params, batch: TaskBatch, alpha: float, steps: int) -> Tensor:
    return query_losses(loss, theta, batch, alpha, 1)


def _first_order(loss: Loss, theta: Params, batch: TaskBatch, alpha: float, steps: int) -> Tensor:
    phi = {name: p.expand(batch.support_x.shape[0], *p.shape) for name, p in theta.items()}
    for _ in range(steps):
        g = torch.autograd.grad(loss(phi, batch.support_x, batch.support_y).sum(), list(phi.values()))
        phi = {name: p - alpha * d for (name, p), d in zip(phi.items(), g)}
    return loss(phi, batch.query_x, batch.query_y)


def _one_step_less(loss: Loss, theta: Params, batch: TaskBatch, alpha: float, steps: int) -> Tensor:
    return query_losses(loss, theta, batch, alpha, steps - 1)


def _mean_of_losses(loss: Loss, theta: Params, batch: TaskBatch, alpha: float, steps: int) -> Tensor:
    return query_losses(loss, theta, batch, alpha, steps).mean()


def _gradient_at_theta(loss: Loss, theta: Params, batch: TaskBatch, alpha: float, steps: int) -> Tensor:
    return query_losses(loss, theta, batch, alpha * steps, 1)  # K times the gradient at θ


def _one_phi_for_all(loss: Loss, theta: Params, batch: TaskBatch, alpha: float, steps: int) -> Tensor:
    phi = dict(theta)
    for _ in range(steps):
        support_loss = loss(phi, batch.support_x, batch.support_y).sum()
        g = torch.autograd.grad(support_loss, list(phi.values()), create_graph=True)
        phi = {name: p - alpha * d for (name, p), d in zip(phi.items(), g)}
    return loss(phi, batch.query_x, batch.query_y)


def _loop_over_tasks(loss: Loss, theta: Params, batch: TaskBatch, alpha: float, steps: int) -> Tensor:
    one_by_one = [TaskBatch(*(part[t : t + 1] for part in batch)) for t in range(len(batch.support_x))]
    return torch.cat([query_losses(loss, theta, one, alpha, steps) for one in one_by_one])


def _detached(loss: Loss, theta: Params, batch: TaskBatch, alpha: float, steps: int) -> Tensor:
    return query_losses(loss, theta, batch, alpha, steps).detach()


EXERCISES: list[Exercise] = [
    Exercise(
        number="1.1",
        title="the best curve for any range",
        reference=best_without_adapting,
        mistakes={
            "that's the sine of the average task. The average of the sines is flatter.": _sine_of_the_mean_task,
            "the sign of the cosine term is wrong: sin(x − p) = sin x · cos p − cos x · sin p.": _plus_cosine,
            "that's the answer for p in (0, π), for every range. Compute E[cos p] and E[sin p] from `phase`.": (
                _of_one_range
            ),
            "your curve is upside down: both signs are flipped.": _upside_down,
            "the coefficients are swapped: E[cos p] belongs to sin x, and −E[sin p] to cos x.": _swapped_with_minus,
            "your curve is shifted by a quarter period: E[cos p] belongs to sin x.": _swapped,
            "you didn't divide the integrals over p by the width of its range.": _width_forgotten,
            "you divided by π. Divide by high − low; that's π only for the range (0, π).": _divided_by_pi,
            "−1.62·cos x is the answer for section 3's ranges. Use the ranges you're given.": _of_section_three,
            "the sine term is missing: E[cos p] is 0 only for ranges that are symmetric about π/2.": _cosines_alone,
            "E[A] of a uniform A on [a, b] is (a + b)/2; the half is missing.": _sum_of_the_ends,
            "the factor E[A] is missing.": _amplitude_forgotten,
            "E[A] of a uniform A on [a, b] is (a + b)/2, not (b − a)/2.": _half_the_width_of_amplitudes,
        },
        hints=(
            "A and p are independent, so E[y | x] = E[A] · E[sin(x − p)].",
            "Expand sin(x − p). You need E[cos p] and E[sin p].",
            "E[cos p] = (sin high − sin low)/(high − low) and E[sin p] = (cos low − cos high)/(high − low).",
        ),
        cases=_ranges,
    ),
    Exercise(
        number="1.2",
        title="K steps inside the loop",
        reference=query_losses,
        examine=_with_meta_gradient,
        mistakes={
            "the gradient is first order: the losses are right, but the inner gradient counts as a constant. Take it "
            "with `create_graph=True`.": _first_order,
            "that's the query loss at θ: you don't use the adapted parameters φ.": _at_theta,
            "you adapted on the query set. Adapt on the support set, and score on the query set.": _adapted_on_query,
            "that's the support loss at φ. Score on the query set.": _support_loss,
            "your steps go uphill: θ_{j+1} = θ_j − α∇L_s(θ_j), with a minus.": _uphill,
            "the step size α is missing: that's the result for α = 1.": _without_alpha,
            "averaging over tasks divides each task's gradient by T. Sum the losses instead.": _mean_over_tasks,
            "you take one step fewer than `steps` says.": _one_step_less,
            "you take one step, whatever `steps` says.": _one_step,
            "each step uses the gradient at θ. Take it at θ_j, where the step begins.": _gradient_at_theta,
            "there's one φ for all tasks. Give θ a task axis first, `p.expand(T, *p.shape)`, so that each task gets "
            "its own gradient.": _one_phi_for_all,
            _NO_MEAN: _mean_of_losses,
            _NO_LOOP: _loop_over_tasks,
            _NO_GRAPH: _detached,
        },
        hints=(
            "Take the four lines of `meta_train` from `start` to `query_loss`, and put a loop over steps around two "
            "of them.",
            "`phi = {name: p.expand(T, *p.shape) for name, p in theta.items()}` gives each task its own copy. "
            "T is `len(batch.support_x)`.",
            "In each step: the support loss at φ, its gradient with respect to φ with create_graph=True, then a "
            "new φ. After the loop, return the query loss at φ.",
        ),
        cases=_batches,
    ),
]
