"""Exercise of notebook 00: how exercises work."""

import torch
from torch import Tensor

from maml_edu.classroom.exercises import Exercise


def loss_per_task(prediction: Tensor, y: Tensor) -> Tensor:
    return ((prediction - y) ** 2).mean(dim=(1, 2))  # [T, n, 1] -> [T]


def _cases() -> list[tuple]:
    generator = torch.Generator().manual_seed(0)
    shapes = ((3, 4, 1), (2, 5, 1))
    return [tuple(torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(2)) for shape in shapes]


LOSS_PER_TASK = Exercise(
    number="0.1",
    title="one loss per task",
    reference=loss_per_task,
    cases=_cases,
    mistakes={
        "This is the sum over the examples of a task, not their mean: it grows with the number of examples.": (
            lambda prediction, y: ((prediction - y) ** 2).sum(dim=(1, 2))
        ),
        "This is one number for all tasks together. Keep axis 0, the tasks: mean(dim=(1, 2)).": (
            lambda prediction, y: ((prediction - y) ** 2).mean()
        ),
        "This is the mean over the tasks. Average over the examples instead, axes 1 and 2.": (
            lambda prediction, y: ((prediction - y) ** 2).mean(dim=0)
        ),
        "The last axis is still there: average over axis 2 as well.": (
            lambda prediction, y: ((prediction - y) ** 2).mean(dim=1)
        ),
        "This is the mean absolute error: square the differences before you average them.": (
            lambda prediction, y: (prediction - y).abs().mean(dim=(1, 2))
        ),
        "There's a ½ in front: the mean squared error has none.": (
            lambda prediction, y: 0.5 * ((prediction - y) ** 2).mean(dim=(1, 2))
        ),
        "This is the square of the mean difference: square first, then average.": (
            lambda prediction, y: (prediction - y).mean(dim=(1, 2)) ** 2
        ),
    },
    hints=(
        "Both tensors are [T, n, 1]. The answer is [T]: which two axes must go?",
        "Square the differences, then .mean(dim=(1, 2)).",
    ),
    remark="Every loss of the course returns its values in this form.",
)


EXERCISES = [LOSS_PER_TASK]
