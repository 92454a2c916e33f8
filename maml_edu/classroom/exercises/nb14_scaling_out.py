"""Exercises of notebook 14: scaling out."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from maml_edu.classroom.exercises import Exercise

# ---------------------------------------------------------------- 14.1


def passes(steps: int, exact: bool) -> int:
    """In units of the forward pass; K ≥ 1 inner steps, as many queries as support examples."""
    down, query = 3 * steps, 3
    if not exact:
        return down + query
    back = 9 * steps - 3  # the graph of the last step has been kept: its gradient is not taken again
    return down + query + back


PASSES = Exercise(
    number="14.1",
    title="count the passes",
    reference=passes,
    cases=lambda: [(1, True), (5, True), (1, False), (5, False)],
    mistakes={
        "Nearly: `maml` keeps the graph of the last inner step, so one gradient (3) is not taken again.": (
            lambda steps, exact: 12 * steps + 3 if exact else 3 * steps + 3
        ),
        "The query set is missing: its gradient starts the backward pass, and costs 3.": (
            lambda steps, exact: 12 * steps - 3 if exact else 3 * steps
        ),
        "You took the Hessian-vector product for 6. That is the second backward pass alone; the gradient of which it "
        "is taken has to be recomputed (3), except for the last step.": (
            lambda steps, exact: 9 * steps + 3 if exact else 3 * steps + 3
        ),
        "First order takes no Hessian-vector product at all: K gradients, and one of the query loss.": (
            lambda steps, exact: 12 * steps
        ),
        "The Hessian-vector product is 9: the second backward pass (6) and the gradient of which it is taken (3). You "
        "counted 6 for each, and then left out a gradient that is not in there.": (
            lambda steps, exact: 9 * steps if exact else 3 * steps + 3
        ),
        "Exact is right. First order has a query set as well: its gradient costs 3.": (
            lambda steps, exact: 12 * steps if exact else 3 * steps
        ),
        "A gradient is a forward and a backward pass: 3, not 1.": (
            lambda steps, exact: 10 * steps if exact else steps + 1
        ),
    },
    hints=(
        "Down: K gradients. At the end one gradient of the query loss. That is all of first order.",
        "Back: K Hessian-vector products of 9 each, of which 3 is the gradient inside.",
        "maml keeps the graph of the last step: one gradient less. 3K + 3 + 9K − 3 for exact.",
    ),
    remark="12K against 3K + 3: twice the arithmetic at K = 1, and never more than four times.",
)

# ---------------------------------------------------------------- 14.2


def vectors_and_best(steps: int) -> tuple[list[int], int]:
    """(θ_j held at most for every = 1 … K as a list, the smallest `every` that needs fewest)."""
    held = []
    for every in range(1, steps + 1):
        segments = math.ceil(steps / every)
        held.append((segments - 1) + every)  # a start for each segment but the first, which is θ_0; and one segment
    return held, held.index(min(held)) + 1


def _held(count: Callable[[int, int], int]) -> Callable[..., tuple]:
    def answer(steps: int) -> tuple[list[int], int]:
        held = [count(steps, every) for every in range(1, steps + 1)]
        return held, held.index(min(held)) + 1

    return answer


SPACING = Exercise(
    number="14.2",
    title="how far apart to keep θ_j",
    reference=vectors_and_best,
    cases=lambda: [(10,), (16,), (23,)],
    mistakes={
        "You counted θ_0 as well. It is the same for all tasks: a view, no memory.": _held(
            lambda steps, every: math.ceil(steps / every) + every
        ),
        "Where `every` does not divide K the last segment is shorter, but it is there: round K/every up.": _held(
            lambda steps, every: steps // every - 1 + every
        ),
        "These are the starts alone. While a segment is pulled back all of its θ_j are there as well.": _held(
            lambda steps, every: math.ceil(steps / every) - 1
        ),
        "The counts are right. The second part is the number of steps `every`, from 1, not an index of the list.": (
            lambda steps: (vectors_and_best(steps)[0], vectors_and_best(steps)[1] - 1)
        ),
    },
    hints=(
        "Two things are held: the start of every segment, and all θ_j of the one segment that is being pulled back.",
        "There are ceil(K/every) segments. The start of the first is θ_0, which costs nothing.",
        "held = ceil(K/every) − 1 + every; then the smallest `every` with the smallest value.",
    ),
    remark="The best `every` lies near √K, and the memory is about 2√K vectors. Several values tie; "
    "the package takes √K, rounded up.",
)

# ---------------------------------------------------------------- 14.3


def averaged(gradients: list[Tensor], tasks: list[int]) -> Tensor:
    """gradients: one tensor per rank, each the mean over that rank's tasks; tasks: how many these were."""
    return torch.stack([g * n for g, n in zip(gradients, tasks)]).sum(0) / sum(tasks)


SHARES = Exercise(
    number="14.3",
    title="the mean of unequal shares",
    reference=averaged,
    cases=lambda: [
        (list(torch.randn(len(n), 4, generator=torch.Generator().manual_seed(len(n)), dtype=torch.float64)), n)
        for n in ([2, 3], [9, 8, 8])
    ],
    mistakes={
        "This is the mean of the means: a task on a rank with fewer tasks would count more.": (
            lambda gradients, tasks: sum(gradients) / len(gradients)
        ),
        "This is the sum of the means: the gradient would grow with the number of ranks.": (
            lambda gradients, tasks: sum(gradients)
        ),
        "Each mean is weighted by its tasks, but then divide by the number of tasks, not of ranks.": (
            lambda gradients, tasks: sum(g * n for g, n in zip(gradients, tasks)) / len(gradients)
        ),
        "Weighted, and not divided: this is the sum over all tasks, not the mean.": (
            lambda gradients, tasks: sum(g * n for g, n in zip(gradients, tasks))
        ),
        "You divided each mean by its number of tasks once more; it has been divided by it already.": (
            lambda gradients, tasks: sum(g / n for g, n in zip(gradients, tasks)) / len(gradients)
        ),
    },
    hints=(
        "What should come out is the sum over all tasks of their gradients, divided by the number of all tasks.",
        "A rank's sum is its mean times its number of tasks. With torch.stack(gradients), n needs shape [ranks, 1].",
        "Σ n·g / Σ n. In `distributed.mean` every rank does its own n/Σn first, so that all-reduce only has to add.",
    ),
)

EXERCISES: list[Exercise] = [PASSES, SPACING, SHARES]
