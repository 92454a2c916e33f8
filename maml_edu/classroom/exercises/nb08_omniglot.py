"""Exercises of notebook 08: Omniglot."""

import math
from collections.abc import Callable

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


def _low_and_high(values: Tensor) -> tuple[Tensor, Tensor]:
    mean, half_width = my_interval(values)
    return mean - half_width, mean + half_width


# ---- 8.3


def _precisions() -> list[tuple]:
    """Standard deviation over tasks and the half-width that is wanted; all need thousands of tasks."""
    return [(0.12, 0.002), (0.25, 0.01), (0.3, 0.004)]


def tasks_needed(s: float, half_width: float) -> float:
    return (1.96 * s / half_width) ** 2


def _whole_tasks(function: Callable) -> Callable:
    """What the function returns, rounded up: 13,829.8 tasks are 13,830, and 13,829 are too few."""

    def examined(s: float, half_width: float) -> object:
        tasks = function(s, half_width)
        number = isinstance(tasks, (int, float)) or (isinstance(tasks, Tensor) and tasks.numel() == 1)
        return math.ceil(float(tasks) - 1e-6) if number and math.isfinite(tasks) else tasks

    return examined


def _rounded_down(s: float, half_width: float) -> float:
    return math.floor(tasks_needed(s, half_width))


def _without_square(s: float, half_width: float) -> float:
    return 1.96 * s / half_width


def _without_196(s: float, half_width: float) -> float:
    return (s / half_width) ** 2


def _two(s: float, half_width: float) -> float:
    return (2 * s / half_width) ** 2


def _twice_as_wide(s: float, half_width: float) -> float:
    return tasks_needed(s, 2 * half_width)  # 3457 for s = 12 % and ± 0.2 %


def _half_as_wide(s: float, half_width: float) -> float:
    return tasks_needed(s, half_width / 2)


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
            "You turn the other way. torch.rot90 turns anticlockwise in (-2, -1), and so does the package.": _clockwise,
            "You turned all classes of a task by one angle, but turns has an entry for each class.": _one_per_task,
            "You used the turns of the first task for every task.": _one_per_label,
            "You turned the drawings of one class by different angles, so support and query no longer match.": (
                _one_per_drawing
            ),
        },
        hints=(
            "Make all four versions of x first: x.rot90(turn, (-2, -1)) for turn in 0 … 3.",
            "torch.where(turns == turn, …) needs turns with as many axes as x: turns[:, :, None, None, None].",
        ),
        remark="Support and query share the angle, so a turned character is simply another character.",
    ),
    Exercise(
        number="8.2",
        title="the interval of a mean accuracy",
        reference=my_interval,
        cases=_accuracies,
        mistakes={
            "Your second number is the standard deviation: how far one task is from the mean. You want to know how far "
            "off the mean itself may be.": _spread,
            "You took 1.96 standard deviations. That's where 95 % of the tasks would be; the interval of their mean is "
            "√m times narrower.": _spread_196,
            "Your second number is one standard error, which makes a 68 % interval. Multiply it by 1.96.": (
                _standard_error
            ),
            "You divided the squared deviations by n. The mean comes from the same values, so divide by n − 1.": (
                _biased
            ),
            "You divided by m, but the error of a mean shrinks with √m.": _no_root,
            "That's the full width of the interval; ± takes half of it.": _full_width,
            "You returned the two ends of the interval. Return the mean and the half-width.": _low_and_high,
        },
        hints=(
            "Two numbers: the mean over tasks, and how far that mean would move if you drew other tasks.",
            "The variance of a mean of n independent values is s²/n, with s² = Σ(value − mean)²/(n − 1).",
            "half_width = 1.96 · s / √m.",
        ),
        remark="The package calls it mean_ci95, and every ± in this course comes from it.",
    ),
    Exercise(
        number="8.3",
        title="how many tasks for ± 0.2 %?",
        reference=tasks_needed,
        cases=_precisions,
        examine=_whole_tasks,
        mistakes={
            "You rounded down, and the interval comes out a little too wide. Round up.": _rounded_down,
            "You forgot to square. The half-width shrinks with √m.": _without_square,
            "The factor 1.96 is missing, so that's the m for a standard error of this size.": _without_196,
            "You took 2 for 1.96. That's fine on a napkin; the rest of the notebook uses 1.96.": _two,
            "Your interval is twice as wide as it should be. half_width is already half of it.": _twice_as_wide,
            "Your interval is half as wide as it should be. ± half_width reaches to both sides.": _half_as_wide,
        },
        hints=(
            "Start from half_width = 1.96·s/√m.",
            "Solve for m: m = (1.96·s/half_width)². Half the width costs four times the tasks.",
        ),
        remark="With the usual 600 tasks, differences of a few tenths of a percent are noise.",
    ),
    Exercise(
        number="8.4",
        title="choose on one half, report on the other",
        reference=choose_and_report,
        cases=_halves,
        mistakes={
            "You chose the step with all tasks, so the half you report on had a say in the choice.": _choose_on_all,
            "You chose again on the second half. Both numbers are maxima now, and both are too good.": _choose_twice,
            "You swapped the halves. The tasks where `chooser` is True choose the step.": _swapped,
            "You looked for the largest single task. Choose the step with the best mean over tasks.": _best_task,
            "That's the last step. Take the step whose mean over the choosing half is largest.": _last_step,
        },
        remark="If step i is best on A and step j on B, both gaps add up to (A_i − A_j) + (B_j − B_i), and neither "
        "bracket is negative.",
        hints=(
            "First the means per step over the choosing half, values[:, chooser].mean(1). Where's the largest?",
            "Then two means of that one row: over the tasks in chooser, and over the tasks in ~chooser.",
        ),
    ),
]
