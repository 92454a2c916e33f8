"""How good is an initialisation? Adapt it to held-out tasks and report mean and 95 % interval over tasks, per step."""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from maml_edu.meta_gradient import adapt
from maml_edu.models import Apply, Model, Statistics
from maml_edu.step_sizes import Alpha, is_per_step
from maml_edu.tasks import Loss, Params, Sampler, TaskBatch, check_batch

# (loss, theta, support x, support y, alpha, steps) -> path θ_0 … θ_K: a way to adapt
Adapt = Callable[[Loss, Params, Tensor, Tensor, Alpha, int], list[Params]]


class StepScore(NamedTuple):
    """The score after `step` inner steps over n tasks. mean ± half_width is a 95 % interval of the mean over tasks.

    mean and half_width are None where any task diverged; median is always given. values [n]: the score of every task.
    """

    step: int
    mean: float | None
    half_width: float | None
    median: float
    diverged: int
    n: int
    values: Tensor


def mean_ci95(values: Tensor | Sequence[float]) -> tuple[float, float]:
    """Mean and half-width of its 95 % interval, 1.96·s/√n, s the sample standard deviation (n − 1).

    values: one number per task. With one value the half-width is infinite.
    """
    values = torch.as_tensor(values, dtype=torch.float64).flatten()
    if values.numel() == 0:
        raise ValueError("mean_ci95 needs at least one value")
    if values.numel() == 1:
        return values.item(), math.inf
    return values.mean().item(), 1.96 * values.std().item() / math.sqrt(values.numel())


def evaluate(
    model: Model,
    loss: Loss,
    sampler: Sampler,
    alpha: Alpha,
    steps: int,
    tasks: int = 600,
    metric: str = "loss",
    statistics: str | Statistics = "transductive",
    generator: torch.Generator | None = None,
    chunk: int = 100,
    adapt: Adapt = adapt,
) -> list[StepScore]:
    """Adapt model.theta to `tasks` fresh tasks and score the query sets after 0 … steps inner steps.

    sampler(tasks, generator=…) -> TaskBatch. metric: "loss", or "accuracy" (fraction right, for integer labels).
    alpha: as in `adapt`; a list shorter than steps repeats its last entry.
    statistics, for models with batch norm and metric "accuracy", says where its statistics come from:
    "transductive" all queries of the task together; "one-query" one query at a time with the support set;
    "support" the support set only; or fixed ones, as `running_statistics` returns them.
    A task counts as diverged where its loss is not finite, or above ten times the worst loss before adaptation.
    chunk: tasks adapted at once, which bounds memory.
    adapt(loss, theta, x, y, alpha, steps) -> path θ_0 … θ_K: another way to adapt than plain gradient steps.
    """
    if metric not in ("loss", "accuracy"):
        raise ValueError(f"unknown metric {metric!r}; choose loss or accuracy")
    if isinstance(statistics, str) and statistics not in ("transductive", "one-query", "support"):
        raise ValueError(f"unknown statistics {statistics!r}; choose transductive, one-query, support, or fixed ones")
    if tasks < 1 or chunk < 1:
        raise ValueError(f"tasks={tasks}, chunk={chunk}: each must be at least 1")
    if is_per_step(alpha) and 0 < len(alpha) < steps:
        alpha = [*alpha, *[alpha[-1]] * (steps - len(alpha))]
    chunks_of_losses, chunks_of_accuracies = [], []
    for start in range(0, tasks, chunk):
        batch = sampler(min(chunk, tasks - start), generator=generator)
        if start == 0:
            check_batch(batch)
        path = adapt(loss, model.theta, batch.support_x, batch.support_y, alpha, steps)
        with torch.no_grad():
            of_loss = [loss(phi, batch.query_x, batch.query_y) for phi in path]
            chunks_of_losses.append(torch.stack(of_loss).double().cpu())
            if metric == "accuracy":
                of_accuracy = [_accuracy(model.apply, phi, batch, statistics) for phi in path]
                chunks_of_accuracies.append(torch.stack(of_accuracy).double().cpu())
    losses = torch.cat(chunks_of_losses, 1)  # [steps + 1, tasks]
    scores = torch.cat(chunks_of_accuracies, 1) if metric == "accuracy" else losses
    limit = torch.nan_to_num(10 * losses[0].max())  # finite, so that an infinite loss is always above it
    return [_score(step, scores[step], ~(losses[step] <= limit)) for step in range(steps + 1)]


def _score(step: int, values: Tensor, diverged: Tensor) -> StepScore:
    n, bad = values.numel(), int(diverged.sum())
    mean, half_width = (None, None) if bad else mean_ci95(values)
    median = torch.where(values.isfinite(), values, math.inf).median().item()
    return StepScore(step, mean, half_width, median, bad, n, values)


def _accuracy(apply: Apply, phi: Params, batch: TaskBatch, statistics: str | Statistics) -> Tensor:
    return (_logits(apply, phi, batch, statistics).argmax(-1) == batch.query_y).double().mean(1)


def _logits(apply: Apply, phi: Params, batch: TaskBatch, statistics: str | Statistics) -> Tensor:
    if isinstance(statistics, dict):
        return apply(phi, batch.query_x, context=statistics)
    if statistics == "support":
        return apply(phi, batch.query_x, context=batch.support_x)
    if statistics == "one-query":
        one = batch.query_x.split(1, dim=1)
        return torch.cat([apply(phi, q, context=torch.cat([batch.support_x, q], 1)) for q in one], 1)
    return apply(phi, batch.query_x)


def running_statistics(
    model: Model,
    loss: Loss,
    sampler: Sampler,
    alpha: Alpha,
    steps: int,
    batches: int = 50,
    tasks: int = 16,
    generator: torch.Generator | None = None,
) -> Statistics:
    """The running averages an nn.BatchNorm would hold after `batches` more meta-batches of training.

    Every forward pass of the inner loop and of the query set moves them a tenth of the way, as PyTorch does. Returns
    layer → (mean, variance), to be given as `statistics` to `evaluate`; empty for a model without batch norm.
    """
    running: Statistics = {}
    if not hasattr(model.apply, "statistics"):
        return running
    for _ in range(batches):
        batch = sampler(tasks, generator=generator)
        path = adapt(loss, model.theta, batch.support_x, batch.support_y, alpha, steps)
        passes = [(params, batch.support_x) for params in path[:-1]] + [(path[-1], batch.query_x)]
        for params, x in passes:
            with torch.no_grad():
                seen = model.apply.statistics(params, x)
            for layer, new in seen.items():
                old = running.get(layer, new)
                mean, variance = (0.9 * o + 0.1 * n for o, n in zip(old, new))
                running[layer] = (mean, variance)
    return running
