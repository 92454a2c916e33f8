"""Exercises of notebook 08: Omniglot."""

import math

import torch
from torch import Tensor

from maml_edu.classroom.exercises import Exercise

# ---- 8.1


def _drawings() -> list[tuple]:
    generator = torch.Generator().manual_seed(4)
    x = torch.rand(2, 3, 2, 4, 4, generator=generator, dtype=torch.float64)
    return [(x, torch.tensor([[0, 1, 2], [3, 2, 1]])), (x[:1], torch.tensor([[1, 3, 0]]))]


def rotate_classes(x: Tensor, turns: Tensor) -> Tensor:
    rotated = torch.stack([x.rot90(turn, (-2, -1)) for turn in range(4)])  # [4, T, n, k, 28, 28]
    task, label = torch.meshgrid(torch.arange(x.shape[0]), torch.arange(x.shape[1]), indexing="ij")
    return rotated[turns, task, label]


def _clockwise(x: Tensor, turns: Tensor) -> Tensor:
    return rotate_classes(x, (4 - turns) % 4)


def _one_per_task(x: Tensor, turns: Tensor) -> Tensor:
    return rotate_classes(x, turns[:, :1].expand_as(turns))


def _one_per_label(x: Tensor, turns: Tensor) -> Tensor:
    return rotate_classes(x, turns[:1].expand_as(turns))


def _one_per_drawing(x: Tensor, turns: Tensor) -> Tensor:
    first, rest = rotate_classes(x[:, :, :1], turns), rotate_classes(x[:, :, 1:], (turns + 1) % 4)
    return torch.cat([first, rest], 2)


# ---- 8.2


def _accuracies() -> list[tuple]:
    """Per-task accuracies as a test gives them: 5 queries a task."""
    generator = torch.Generator().manual_seed(0)
    few = torch.tensor([0.6, 1.0, 0.8, 1.0, 0.4], dtype=torch.float64)
    many = (torch.rand(40, 5, generator=generator) < 0.9).double().mean(1)
    return [(few,), (many,)]


def my_interval(values: Tensor) -> tuple[Tensor, Tensor]:
    n = len(values)
    mean = values.sum() / n
    variance = ((values - mean) ** 2).sum() / (n - 1)
    return mean, 1.96 * torch.sqrt(variance / n)


def _spread(values: Tensor) -> tuple[Tensor, Tensor]:
    return values.mean(), values.std()


def _spread_196(values: Tensor) -> tuple[Tensor, Tensor]:
    return values.mean(), 1.96 * values.std()


def _standard_error(values: Tensor) -> tuple[Tensor, Tensor]:
    return values.mean(), values.std() / math.sqrt(len(values))


def _biased(values: Tensor) -> tuple[Tensor, Tensor]:
    return values.mean(), 1.96 * values.std(correction=0) / math.sqrt(len(values))


def _no_root(values: Tensor) -> tuple[Tensor, Tensor]:
    return values.mean(), 1.96 * values.std() / len(values)


def _full_width(values: Tensor) -> tuple[Tensor, Tensor]:
    return values.mean(), 2 * my_interval(values)[1]


# ---- 8.3


def tasks_needed() -> float:
    s, half_width = 0.12, 0.002
    return (1.96 * s / half_width) ** 2


def _without_square() -> float:
    return 1.96 * 0.12 / 0.002


def _without_196() -> float:
    return (0.12 / 0.002) ** 2


def _from_full_width() -> float:
    return (1.96 * 0.12 / 0.001) ** 2


def _percent_mixed_up() -> float:
    return (1.96 * 0.12 / 0.2) ** 2


# ---- 8.4


def _halves() -> list[tuple]:
    """Accuracies [steps, tasks] and a mask [tasks] of the half that chooses."""
    cases = []
    for seed in (4, 6):
        generator = torch.Generator().manual_seed(seed)
        values = torch.rand(6, 14, generator=generator, dtype=torch.float64)
        cases.append((values, torch.arange(14) % 2 == 0))
    return cases


def choose_and_report(values: Tensor, chooser: Tensor) -> tuple[Tensor, Tensor]:
    best = values[:, chooser].mean(1).argmax()
    return values[best, chooser].mean(), values[best, ~chooser].mean()


def _choose_on_all(values: Tensor, chooser: Tensor) -> tuple[Tensor, Tensor]:
    best = values.mean(1).argmax()
    return values[best, chooser].mean(), values[best, ~chooser].mean()


def _choose_twice(values: Tensor, chooser: Tensor) -> tuple[Tensor, Tensor]:
    return values[:, chooser].mean(1).max(), values[:, ~chooser].mean(1).max()


def _swapped(values: Tensor, chooser: Tensor) -> tuple[Tensor, Tensor]:
    return choose_and_report(values, ~chooser)


def _best_task(values: Tensor, chooser: Tensor) -> tuple[Tensor, Tensor]:
    one = values[:, chooser].max(1).values.argmax()
    return values[one, chooser].mean(), values[one, ~chooser].mean()


def _last_step(values: Tensor, chooser: Tensor) -> tuple[Tensor, Tensor]:
    return values[-1, chooser].mean(), values[-1, ~chooser].mean()


EXERCISES: list[Exercise] = [
    Exercise(
        number="8.1",
        title="one rotation per class",
        reference=rotate_classes,
        cases=_drawings,
        mistakes={
            "You turn the other way: torch.rot90 turns anticlockwise in (-2, -1), and so does the package.": _clockwise,
            "You turned all classes of a task by one angle: turns has an entry per task and class.": _one_per_task,
            "You used the turns of the first task for every task.": _one_per_label,
            "You turned drawings of one class differently: support then shows another character.": _one_per_drawing,
        },
        hints=(
            "Make all four versions of x first: x.rot90(turn, (-2, -1)) for turn in 0 … 3.",
            "torch.where(turns == turn, …) needs turns with as many axes as x: turns[:, :, None, None, None].",
        ),
        remark="Support and query of a class share the angle, so a turned character is simply another character. With "
        "one angle per drawing, the two would no longer match.",
    ),
    Exercise(
        number="8.2",
        title="the interval of a mean accuracy",
        reference=my_interval,
        cases=_accuracies,
        mistakes={
            "Your second number is the standard deviation of the tasks: how far one task lies from the mean. Asked is "
            "how far the mean itself may be off.": _spread,
            "You took 1.96 standard deviations: where 95 % of the tasks lie (if normal). The interval of the mean is "
            "√n times narrower.": _spread_196,
            "Your second number is one standard error: a 68 % interval. 95 % needs a factor in front.": _standard_error,
            "You divided the squared deviations by n. The mean comes from the same values: divide by n − 1.": _biased,
            "You divided by n; the spread of a mean shrinks with √n.": _no_root,
            "That is the full width of the interval; ± takes half of it.": _full_width,
        },
        hints=(
            "Two numbers: the mean over tasks, and how far that mean would move if you drew other tasks.",
            "The variance of a mean of n independent values is s²/n, with s² = Σ(value − mean)²/(n − 1).",
            "half_width = 1.96 · s / √n.",
        ),
        remark="This is mean_ci95 of the package, and every ± of this series.",
    ),
    Exercise(
        number="8.3",
        title="how many tasks for ± 0.2 %?",
        reference=tasks_needed,
        tolerance=0.05,
        mistakes={
            "You forgot to square: half_width = 1.96·s/√n solved for n.": _without_square,
            "The factor 1.96 is missing: that is the n for a standard error of 0.2 %.": _without_196,
            "That is the n for an interval 0.2 % wide in all; ± 0.2 % is twice as wide.": _from_full_width,
            "Units: 12 % is 0.12 and 0.2 % is 0.002.": _percent_mixed_up,
        },
        hints=(
            "Start from half_width = 1.96·s/√n.",
            "Solve for n: n = (1.96·s/half_width)². Halving an interval costs four times the tasks.",
        ),
        remark="Over twenty times the usual 600: with 600 tasks, differences of a few tenths of a percent are noise.",
    ),
    Exercise(
        number="8.4",
        title="choose on one half, report on the other",
        reference=choose_and_report,
        cases=_halves,
        mistakes={
            "You chose the step with all tasks, so the half you report on took part in the choice.": _choose_on_all,
            "You chose again on the second half: both numbers are maxima, and both are too good.": _choose_twice,
            "The halves are swapped: the tasks where `chooser` is True choose the step.": _swapped,
            "You looked for the largest single task; a step is chosen by its mean over tasks.": _best_task,
            "That is the last step: take the one whose mean over the choosing half is largest.": _last_step,
        },
        remark="With step i best on A and step j best on B, the sum of both gaps is (A_i − A_j) + (B_j − B_i): "
        "neither bracket is negative.",
        hints=(
            "First the means per step over the choosing half, values[:, chooser].mean(1); where is the largest?",
            "Then two means of that one row: over the tasks in chooser, and over the tasks in ~chooser.",
        ),
    ),
]
