"""Exercises of notebook 05: differences on the same tasks, how much of a curve is a sine, and a mean that can fail."""

import math

import torch
from torch import Tensor

from maml_edu.classroom.exercises import Exercise

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


def _low_and_high(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    mean, half = paired_difference(a, b)
    return mean - half, mean + half


# ---- 5.2


def _curve_cases() -> list[tuple]:
    generator = torch.Generator().manual_seed(1)
    grid = torch.linspace(-5, 5, 41, dtype=torch.float64)
    bend = torch.randn(3, 4, generator=generator, dtype=torch.float64)
    shapes = torch.stack([torch.sin(grid), torch.cos(grid), torch.ones_like(grid), grid.abs() / 5])
    return [(grid, bend @ shapes), (grid[20:] + 5, 3 * bend[:2] @ shapes[:, 20:])]


def sine_share(grid: Tensor, curves: Tensor) -> Tensor:
    waves = torch.stack([torch.sin(grid), torch.cos(grid)], dim=1)  # [n, 2]
    a_and_b = torch.linalg.pinv(waves) @ curves.T  # [2, T], by least squares
    best_sines = (waves @ a_and_b).T  # [T, n]
    return best_sines.square().sum(1) / curves.square().sum(1)


def _explained_by(columns: list[Tensor], curves: Tensor) -> Tensor:
    """The least-squares fit of each curve [T, n] with these columns."""
    design = torch.stack(columns, dim=1)
    return (design @ (torch.linalg.pinv(design) @ curves.T)).T


def _sine_only(grid: Tensor, curves: Tensor) -> Tensor:
    return _explained_by([torch.sin(grid)], curves).square().sum(1) / curves.square().sum(1)


def _with_a_constant(grid: Tensor, curves: Tensor) -> Tensor:
    columns = [torch.sin(grid), torch.cos(grid), torch.ones_like(grid)]
    return _explained_by(columns, curves).square().sum(1) / curves.square().sum(1)


def _what_is_left(grid: Tensor, curves: Tensor) -> Tensor:
    return 1 - sine_share(grid, curves)


def _lengths(grid: Tensor, curves: Tensor) -> Tensor:
    return sine_share(grid, curves).sqrt()


def _all_curves_together(grid: Tensor, curves: Tensor) -> Tensor:
    best = _explained_by([torch.sin(grid), torch.cos(grid)], curves)
    return (best.square().sum() / curves.square().sum()).expand(len(curves))


def _around_the_mean(grid: Tensor, curves: Tensor) -> Tensor:
    best = _explained_by([torch.sin(grid), torch.cos(grid)], curves)
    around = curves - curves.mean(1, keepdim=True)
    return 1 - (curves - best).square().sum(1) / around.square().sum(1)


# ---- 5.3


def _summary_cases() -> list[tuple]:
    generator = torch.Generator().manual_seed(2)
    before = 10 * torch.rand(9, generator=generator, dtype=torch.float64)
    after = before / 20
    wild = torch.cat([after[:4], torch.tensor([1e12, math.nan, math.inf, 12.0, 0.9 * 10 * before.max()])])
    return [(before, after), (before, wild), (before, torch.cat([after[:7], torch.tensor([3.0, math.nan])]))]


def summary(before: Tensor, after: Tensor) -> tuple[int, float | None, float]:
    fine = after <= 10 * before.max()  # a NaN compares as False
    diverged = int((~fine).sum())
    mean = after.mean().item() if diverged == 0 else None
    median = torch.where(fine, after, math.inf).median().item()
    return diverged, mean, median


def _not_a_number(before: Tensor, after: Tensor) -> tuple[int, float | None, float]:
    diverged = int((after > 10 * before.max()).sum())
    return diverged, after.mean().item() if diverged == 0 else None, summary(before, after)[2]


def _only_not_finite(before: Tensor, after: Tensor) -> tuple[int, float | None, float]:
    diverged = int((~after.isfinite()).sum())
    return diverged, after.mean().item() if diverged == 0 else None, summary(before, after)[2]


def _mean_of_the_rest(before: Tensor, after: Tensor) -> tuple[int, float, float]:
    diverged, _, median = summary(before, after)
    return diverged, after[after <= 10 * before.max()].mean().item(), median


def _median_of_the_rest(before: Tensor, after: Tensor) -> tuple[int, float | None, float]:
    diverged, mean, _ = summary(before, after)
    return diverged, mean, after[after <= 10 * before.max()].median().item()


def _own_limits(before: Tensor, after: Tensor) -> tuple[int, float | None, float]:
    fine = after <= 10 * before
    diverged = int((~fine).sum())
    return diverged, after.mean().item() if diverged == 0 else None, torch.where(fine, after, math.inf).median().item()


def _median_with_nan(before: Tensor, after: Tensor) -> tuple[int, float | None, float]:
    diverged, mean, _ = summary(before, after)
    return diverged, mean, after.median().item()


EXERCISES: list[Exercise] = [
    Exercise(
        number="5.1",
        title="a paired difference and its interval",
        reference=paired_difference,
        cases=_paired_cases,
        mistakes={
            "that's the interval for two unrelated groups: the tasks are the same, so take differences first": (
                _unpaired
            ),
            "that's the spread of single tasks: the interval of their mean is √n times narrower": _standard_deviation,
            "the factor 1.96 is missing: this interval covers 68 %, not 95 %": _standard_error,
            "the sign is flipped: the exercise asks for a − b": _other_way_round,
            "your standard deviation divides by n: for a sample, divide by n − 1": _population,
            "the factor is 1.96, not 2": _factor_two,
            "these are the two ends of the interval: return its middle and its half-width": _low_and_high,
        },
        hints=(
            "Both methods saw the same tasks, so begin with one number per task.",
            "Mean of a − b, and 1.96 standard deviations of a − b divided by √n.",
        ),
        remark="Hard sines are hard for both methods; the difference removes what they share.",
    ),
    Exercise(
        number="5.2",
        title="how much of a curve is a sine",
        reference=sine_share,
        cases=_curve_cases,
        mistakes={
            "sin x alone can't shift: a sine of any phase is a·sin x + b·cos x": _sine_only,
            "leave the constant out: a sine plus a constant isn't a sine": _with_a_constant,
            "that's the share the sine doesn't explain: you want one minus that": _what_is_left,
            "that's the ratio of the lengths: square both before you divide": _lengths,
            "you've added up all curves: each curve has a share of its own": _all_curves_together,
            "don't subtract the mean of the curve: compare sums of squares as they are": _around_the_mean,
        },
        hints=(
            "Put sin x and cos x into the two columns of a matrix [n, 2]. Least squares gives a and b for every curve.",
            "torch.linalg.pinv(waves) @ curves.T is [2, T]. Multiply by waves, square, sum over x, divide.",
        ),
    ),
    Exercise(
        number="5.3",
        title="a mean that can refuse",
        reference=summary,
        cases=_summary_cases,
        mistakes={
            "you've missed the NaNs: every comparison with a NaN is False, so ask which tasks are fine": _not_a_number,
            "a finite loss can have diverged too: compare it with ten times the worst loss before": _only_not_finite,
            "a mean over the tasks that survived looks better than the method is: return None": _mean_of_the_rest,
            "the median leaves out the diverged tasks: let each of them count as infinite": _median_of_the_rest,
            "one limit for all tasks: ten times the worst loss before adaptation, not each task's own": _own_limits,
            "the median is NaN as soon as one loss is: let diverged tasks count as infinite": _median_with_nan,
        },
        hints=(
            "Which tasks are fine? Those with after <= 10 * before.max(). A NaN never passes that test.",
            "torch.where(fine, after, math.inf).median() gives the median with the diverged tasks at the far end.",
        ),
        remark="`evaluate` does the same.",
    ),
]
