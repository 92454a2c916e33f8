"""Exercises of notebook 06: is it really MAML?"""

import functools
import itertools
from collections.abc import Callable, Container

import torch

from maml_edu.classroom.exercises import Exercise
from maml_edu.classroom.exercises.small_problem import small_problem
from maml_edu.hessian_vector import hvp, value_and_gradient
from maml_edu.meta_gradient import adapt
from maml_edu.tasks import Loss, Params, TaskBatch, mean_over_tasks

# ---------------------------------------------------------------- 6.1


def in_some_order(
    honest: Callable, at_theta: Callable, support_as_query: Callable, sum_for_mean: Callable
) -> list[Callable]:
    """The four functions of exercise 6.1 in an order that the reader does not see."""
    by_letter = {"R": honest, "T": at_theta, "S": support_as_query, "U": sum_for_mean}
    return [by_letter[letter] for letter in order_of_the_curves()]


def order_of_the_curves() -> str:
    return "SRUT"  # support as query, right, sum for mean, query loss at θ


def _other_orders(named: Container[str]) -> dict[str, Callable[[], str]]:
    """What is right in every other order of the letters, for those that have no message of their own."""
    wrong: dict[str, Callable[[], str]] = {}
    for letters in map("".join, itertools.permutations("RSTU")):
        at = [str(i) for i, (a, b) in enumerate(zip(letters, order_of_the_curves()), start=1) if a == b]
        right = f"only curve {' and '.join(at)} right" if at else "no curve right"
        if letters not in named and letters != order_of_the_curves():
            wrong[f"{letters} has {right}."] = functools.partial(str, letters)
    return wrong


CURVES = Exercise(
    number="6.1",
    title="name the bug from a learning curve",
    reference=order_of_the_curves,
    mistakes={
        "S and R are exchanged. Support as query rewards a θ that fits its own ten examples; that costs a little on "
        "others.": lambda: "RSUT",
        "U and T are exchanged. T never adapts in training, so it heads for the one curve that is best for all sines "
        "at once; U does adapt, with steps ten times too large.": lambda: "SRTU",
        "R and U are exchanged: the right one ends lowest.": lambda: "SURT",
    }
    | _other_orders(named=("RSUT", "SRTU", "SURT")),
    hints=(
        "T does not adapt while it trains. If a network draws the same curve for all sines, what's the best it can do?",
        "U adapts with steps ten times too large: θ must be a place from which such steps do no harm.",
        "The right one is among those that end lowest. Its twin overfits the support set a little.",
    ),
)


# ---------------------------------------------------------------- 6.2


def who_is_fomaml() -> set[str]:
    return {"A", "B"}


WHAT_THEY_ARE = {
    "A": "A belongs in the set: without graph=True the inner gradients are constants, so dφ/dθ is the identity.",
    "B": "B belongs in the set: its graph is kept, but `.data` hides the step from autograd. What is left of φ(θ) is "
    "the clone, and the derivative of a clone is the identity.",
    "C": "C doesn't belong in the set: `phi = theta` is the same dict, so θ itself moves, and the second task "
    "starts where the first one ended. Only its first task has FOMAML's gradient.",
    "D": "D doesn't belong in the set: it detaches the wrong term. θ is cut and the gradient is kept, so the "
    "Jacobian of a step is −αH instead of I.",
}


def _wrong_sets() -> dict[str, Callable[[], set[str]]]:
    """Every other set of the four letters, and what is wrong with it: a sentence for each letter."""
    chosen = (set(letters) for size in range(5) for letters in itertools.combinations("ABCD", size))
    wrong = [letters for letters in chosen if letters != who_is_fomaml()]
    return {
        " ".join(WHAT_THEY_ARE[letter] for letter in sorted(letters ^ who_is_fomaml())): functools.partial(set, letters)
        for letters in wrong
    }


WHO = Exercise(
    number="6.2",
    title="who is FOMAML?",
    reference=who_is_fomaml,
    mistakes=_wrong_sets(),
    hints=(
        "Ask of every suspect: along which paths does φ depend on θ, as far as autograd can see?",
        "In θ_{j+1} = θ_j − α∇L there are two paths to θ_j: the first term, whose derivative is I, and the second, "
        "whose derivative is −αH. FOMAML keeps the first and cuts the second.",
    ),
)


# ---------------------------------------------------------------- 6.3


def both_bugs_fixed(loss: Loss, theta: Params, batch: TaskBatch, alpha: float, steps: int) -> Params:
    support = batch.support_x, batch.support_y
    path = adapt(loss, theta, *support, alpha, steps)
    leaf = {name: p.detach().requires_grad_() for name, p in path[-1].items()}
    g = torch.autograd.grad(loss(leaf, batch.query_x, batch.query_y).sum(), list(leaf.values()))
    v = dict(zip(leaf, g))  # the query gradient at φ = θ_K
    for theta_j in reversed(path[:-1]):  # θ_{K−1}, …, θ_0: where each step began
        hv = hvp(loss, theta_j, *support, v)
        v = {name: v[name] - alpha * hv[name] for name in v}
    return {name: per_task.mean(0) for name, per_task in v.items()}


def _variant(query_at: int, hessians_at: slice, forwards: bool = False) -> Callable[..., Params]:
    """The same with the query gradient at another point, the Hessians at others, or the steps in forward order."""

    def wrong(loss: Loss, theta: Params, batch: TaskBatch, alpha: float, steps: int) -> Params:
        support = batch.support_x, batch.support_y
        path = adapt(loss, theta, *support, alpha, steps)
        _, v = value_and_gradient(loss, path[query_at], batch.query_x, batch.query_y)
        points = path[hessians_at]
        for theta_j in points if forwards else reversed(points):
            hv = hvp(loss, theta_j, *support, v)
            v = {name: v[name] - alpha * hv[name] for name in v}
        return mean_over_tasks(v)

    return wrong


TWO_BUGS = Exercise(
    number="6.3",
    title="two bugs in one",
    reference=both_bugs_fixed,
    cases=lambda: [(*small_problem(0), 0.1, 2), (*small_problem(1), 0.2, 3)],
    mistakes={
        "Both bugs are still there.": _variant(0, slice(1, None)),
        "The query gradient is at φ now. Still wrong: the Hessian of step j belongs to θ_j, where the step began, not "
        "to θ_{j+1}.": _variant(-1, slice(1, None)),
        "The Hessians are right now. Still wrong: v starts as the query gradient at φ = path[-1].": _variant(
            0, slice(None, -1)
        ),
        "The right points in the wrong order: the last step is pulled back first.": _variant(
            -1, slice(None, -1), forwards=True
        ),
        "There is one Hessian too many: path holds θ_0 … θ_K, and no step begins at θ_K.": _variant(-1, slice(None)),
    },
    hints=(
        "path holds θ_0, …, θ_K: K + 1 dicts for K steps. At which of them is the query loss taken?",
        "Step j begins at θ_j. Which K entries of path are that, and in which order are they needed?",
        "path[-1] for the query gradient, reversed(path[:-1]) for the Hessians.",
    ),
)


# ---------------------------------------------------------------- 6.4


def mixed_derivatives() -> tuple[float, float, float]:
    h, weight = 3.0, 2.0
    without = 0.0  # the derivative of h(φ − c) with respect to θ: θ does not occur
    proximal = -weight  # of h(φ − c) + λ(φ − θ)
    return without, proximal, -proximal / (h + weight)  # −(∂²L/∂φ²)⁻¹ ∂²L/∂φ∂θ = λ/(h + λ)


MIXED = Exercise(
    number="6.4",
    title="the mixed derivative",
    reference=mixed_derivatives,
    mistakes={
        "The second number has the wrong sign: the derivative of λ(φ − θ) with respect to θ is −λ.": lambda: (
            0.0,
            2.0,
            0.4,
        ),
        "The first number is wrong: ½h(φ − c)² has no θ in it, so its mixed derivative is 0. h is ∂²L/∂φ².": lambda: (
            3.0,
            -2.0,
            0.4,
        ),
        "The third number is wrong: at the minimum the curvature is h + λ, which has the proximal term's λ.": lambda: (
            0.0,
            -2.0,
            2.0 / 3.0,
        ),
        "The third number is the share of the way that φ stays behind, h/(h + λ).": lambda: (0.0, -2.0, 0.6),
        "The third number has the wrong sign: two minus signs make a plus.": lambda: (0.0, -2.0, -0.4),
        "The first two numbers are wrong: MAML's loss has no θ, the proximal one only in its last term.": lambda: (
            3.0,
            1.0,
            0.4,
        ),
        "Two signs are wrong: the mixed derivative is −λ, and −(−λ)/(h + λ) is positive.": lambda: (0.0, 2.0, -0.4),
    },
    hints=(
        "Differentiate with respect to φ first, then θ. Where no θ is left, the answer is 0.",
        "For dφ/dθ: minus the mixed derivative, divided by ∂²L/∂φ² = h + λ.",
    ),
    remark="φ follows θ by λ/(h + λ) of the way: the stiffer the proximal term, the more.",
)


EXERCISES = [CURVES, WHO, TWO_BUGS, MIXED]
