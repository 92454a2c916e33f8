"""The small problems that `diagnose` tries a function on: regression, or classification with the reader's own loss."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from maml_edu.learner import TaskLoss
from maml_edu.models import Apply, mlp, mse
from maml_edu.tasks import Loss, Params, TaskBatch


class Problem(NamedTuple):
    """What a meta-gradient function is called with; besides, the loss of one task, and what may go wrong here only."""

    loss: Loss
    theta: Params
    batch: TaskBatch
    alpha: float
    steps: int
    outputs: int
    task_loss: TaskLoss
    suspicions: tuple[Hypothesis, ...] = ()


PerTask = Callable[[Problem], Params]  # one gradient for each task of a problem, [T, …]
Factor = Callable[[Problem], float]


class Hypothesis(NamedTuple):
    """What a function may compute: its verdict, the same in words, and the gradient of every task."""

    verdict: str
    words: str
    per_task: PerTask


def squared_error(prediction: Tensor, target: Tensor) -> Tensor:
    """The mean squared error of one task."""
    return (prediction - target).square().mean()


def takes_labels(task_loss: TaskLoss) -> bool:
    """Whether a loss compares outputs [n, outputs] with integer labels [n], as cross-entropy does."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about broadcasting, from losses that don't
            value = task_loss(torch.zeros(4, 3, dtype=torch.float64), torch.tensor([0, 1, 2, 0]))
        return isinstance(value, Tensor) and value.numel() == 1
    except Exception:  # whatever a loss says to targets that it doesn't take
        return False


def problems(
    apply: Apply | None = None, task_loss: TaskLoss = squared_error, suspicions: tuple[Hypothesis, ...] = ()
) -> list[Problem]:
    """Tasks, examples, outputs, α and K differ from problem to problem and from each other.

    apply(params, x): another network with the parameters of `mlp((2, 5, outputs), "tanh")`. task_loss(prediction
    [n, outputs], target): the targets are labels [n] if it takes them, and [n, outputs] otherwise. The last problem is
    for functions that pass the others: the sizes of the second, other numbers, and gradients of length 10 and more.
    """
    numbers = ((5, 6, 4, 3, 0.4, 1), (3, 8, 5, 2, 0.3, 2), (2, 4, 7, 4, 0.5, 3))  # T, support, query, outputs, α, K
    ordinary = [_problem(seed, *row, apply, task_loss, suspicions) for seed, row in enumerate(numbers)]
    last = _problem(9, 3, 8, 5, 2, 0.01, 2, apply, task_loss, suspicions)
    if takes_labels(task_loss):  # long gradients by large weights: labels can't be scaled
        return [*ordinary, last._replace(theta={**last.theta, "w2": 40 * last.theta["w2"]})]
    batch = last.batch._replace(support_y=50 * last.batch.support_y, query_y=50 * last.batch.query_y)
    return [*ordinary, last._replace(batch=batch)]


def _problem(
    seed: int,
    tasks: int,
    support: int,
    query: int,
    outputs: int,
    alpha: float,
    steps: int,
    apply: Apply | None,
    task_loss: TaskLoss,
    suspicions: tuple[Hypothesis, ...],
) -> Problem:
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    model = mlp((2, 5, outputs), "tanh", generator, torch.float64)
    theta = {name: p + 0.5 * normal(*p.shape) for name, p in model.theta.items()}  # no entry is zero, biases included
    x = normal(tasks, support + query, 2)
    if takes_labels(task_loss):
        y = torch.randint(outputs, (tasks, support + query), generator=generator)
    else:
        y = normal(tasks, support + query, outputs)
    batch = TaskBatch(x[:, :support], y[:, :support], x[:, support:], y[:, support:])
    loss = _over_tasks(apply or model.apply, task_loss)
    return Problem(loss, theta, batch, alpha, steps, outputs, task_loss, suspicions)


def _over_tasks(apply: Apply, task_loss: TaskLoss) -> Loss:
    """loss(params, x, y) -> [T]."""
    if task_loss is squared_error:
        return mse(apply)

    def loss(params: Params, x: Tensor, y: Tensor) -> Tensor:
        return torch.stack([task_loss(*one) for one in zip(apply(params, x), y, strict=True)])

    return loss
