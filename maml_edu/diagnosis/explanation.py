"""Which of the hypotheses explains the gradients of a function, and the same in words. For `diagnose`."""

import functools
import itertools
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from torch import Tensor

from maml_edu.diagnosis.checked_call import Diagnosis
from maml_edu.diagnosis.known_mistakes import NUMBERS, hypotheses, inverse, nothing_kept, recursion
from maml_edu.diagnosis.problems import Factor, Hypothesis, Problem
from maml_edu.tasks import Params, mean_over_tasks

TOLERANCE = 1e-6  # of the whole gradient's length; leaves room for Hessian-vector products by finite differences

MakeProblems = Callable[[], list[Problem]]
Result = TypeVar("Result")


@functools.cache
def problems_of(make_problems: MakeProblems) -> tuple[Problem, ...]:
    """Made once: `call` hands out copies."""
    return tuple(make_problems())


@functools.cache
def _hypotheses(make_problems: MakeProblems) -> tuple[Hypothesis, ...]:
    return (*hypotheses(), *problems_of(make_problems)[0].suspicions)


@functools.cache
def _columns(make_problems: MakeProblems, i: int, j: int) -> Tensor:
    """The gradients of every task [D, T] under hypothesis i on problem j: the same for whoever is diagnosed."""
    per_task = _hypotheses(make_problems)[i].per_task(problems_of(make_problems)[j])
    return torch.stack([torch.cat([t.reshape(-1) for t in task]) for task in zip(*per_task.values())], 1)


def explain(make_problems: MakeProblems, gradients: Sequence[Tensor]) -> Diagnosis:
    """What a function computes whose gradients [D], one for each problem but the last, are these."""
    problems = problems_of(make_problems)[:-1]
    if not any(flat.any() for flat in gradients):
        return Diagnosis(
            "zero",
            "the gradient is zero everywhere: nothing that was differentiated depends on θ. Is φ detached? Or is a "
            "formula applied to a loss that has no θ in it?",
        )
    for i, hypothesis in enumerate(_hypotheses(make_problems)):
        if fits := _on_every_problem(functools.partial(_weights, make_problems, i), gradients):
            return _worded(hypothesis, problems, fits, gradients)
        if hypothesis.verdict == "first-order" and (cut := _cut_steps(problems, gradients)):
            return cut
    return _unknown(problems, gradients)


def _on_every_problem(
    explain_one: Callable[[int, Tensor], Result | None], gradients: Sequence[Tensor]
) -> list[Result] | None:
    """What `explain_one` makes of the gradient on each problem, or None as soon as it makes nothing of one."""
    results = []
    for j, flat in enumerate(gradients):
        result = explain_one(j, flat)
        if result is None:
            return None
        results.append(result)
    return results


def _weights(make_problems: MakeProblems, i: int, j: int, flat: Tensor) -> Tensor | None:
    """The weights [T] with which the tasks' gradients under hypothesis i add up to `flat`, or None if no weights do."""
    columns = _columns(make_problems, i, j)
    weights = torch.linalg.lstsq(columns, flat[:, None]).solution[:, 0]
    return weights if distance(flat, columns @ weights) < TOLERANCE else None


def distance(a: Tensor, b: Tensor) -> float:
    """Of a from b, over the length of b."""
    return float((a - b).norm() / b.norm().clamp_min(1e-300))


def mean_gradient(per_task: Params) -> Tensor:
    """The mean over tasks of a dict of [T, …], as one vector [D]."""
    return torch.cat([g.reshape(-1) for g in mean_over_tasks(per_task).values()])


def exact_gradient(problem: Problem) -> Tensor:
    """The meta-gradient [D]."""
    return mean_gradient(recursion()(problem))


def _first_order(problem: Problem) -> Tensor:
    return mean_gradient(recursion(keep=nothing_kept)(problem))


def _cut_steps(problems: Sequence[Problem], gradients: Sequence[Tensor]) -> Diagnosis | None:
    """Which inner steps count as the identity, if that explains everything."""

    def cut_of(j: int, flat: Tensor) -> tuple[int, ...] | None:
        p = problems[j]
        for length in range(p.steps + 1):
            for cut in itertools.combinations(range(p.steps), length):
                if distance(flat, mean_gradient(recursion(keep=_all_but(cut))(p))) < TOLERANCE:
                    return cut
        return None

    cuts = _on_every_problem(cut_of, gradients)
    if cuts is None:
        return None
    where = "; ".join(
        f"K = {p.steps}: " + (f"step {' and '.join(str(j + 1) for j in cut)}" if cut else "none")
        for p, cut in zip(problems, cuts, strict=True)
    )
    return Diagnosis(
        "cut",
        f"the graph is cut at some inner steps, whose Jacobians count as the identity ({where}). Look for a "
        "`.detach()`, `.data`, a tensor made anew or a missing create_graph there." + _evidence(problems, gradients),
    )


def _all_but(cut: tuple[int, ...]) -> Callable[[int, int], bool]:
    return lambda j, K: j not in cut


def _worded(
    hypothesis: Hypothesis, problems: Sequence[Problem], fits: Sequence[Tensor], gradients: Sequence[Tensor]
) -> Diagnosis:
    """The verdict, with the weights of the tasks put into words."""
    tasks = [len(weights) for weights in fits]
    if all(distance(w, torch.full_like(w, float(w.mean()))) < 1e-5 for w in fits):
        factors = [float(w.mean()) * T for w, T in zip(fits, tasks, strict=True)]
        name = _factor_name(problems, factors)
        if name == "":
            verdict, words = hypothesis.verdict, hypothesis.words
        elif hypothesis.verdict == "exact":
            verdict = {"the number of tasks": "sum", "−1": "sign"}.get(name, "scale")
            words = f"the direction is that of the exact meta-gradient, but its length is {_times(name)}."
            if verdict == "sum":
                words = "this is the sum over tasks. The meta-gradient is the mean over tasks."
            if verdict == "sign":
                words = "the whole gradient has the wrong sign: an optimiser that subtracts it would go uphill."
        else:
            verdict, words = hypothesis.verdict, f"{hypothesis.words} And its length is {_times(name)}."
            if verdict == "alpha" and f"size is {_times(name)}." in hypothesis.words:
                words += " Both together: it is MAML of another loss, a multiple of the mean squared error."
    else:
        alone = [[t for t, w in enumerate(weights) if abs(w) > 1e-5 * weights.abs().max()] for weights in fits]
        kind = "" if hypothesis.verdict == "exact" else f" Besides: {hypothesis.words}"
        first, last = all(a == [0] for a in alone), all(a == [T - 1] for a, T in zip(alone, tasks, strict=True))
        if first or last:
            which = "first" if first else "last"
            verdict, words = "one-task", f"only the {which} task counts; the others are lost, or overwritten.{kind}"
        else:
            shares = ", ".join(f"{float(w):.2g}" for w in fits[0])
            verdict = "weights"
            words = f"the tasks count differently; at T = {tasks[0]} with weights {shares} (each should be 1/T).{kind}"
    return Diagnosis(verdict, words + ("" if verdict == "exact" else _evidence(problems, gradients)))


def _times(name: str) -> str:
    return name if name.startswith("divided") or name.startswith("off") else f"multiplied by {name}"


def _factor_name(problems: Sequence[Problem], factors: Sequence[float]) -> str:
    """What the lengths are off by, in words; "" for nothing."""
    names: dict[str, Factor] = {"": lambda p: 1.0, "−1": lambda p: -1.0}
    for a, x in NUMBERS.items():
        names[a] = x
        names[f"divided by {a}"] = inverse(x)
        names[f"−1 and {a}"] = _product(x, lambda p: -1.0)
        for b, y in NUMBERS.items():
            if a < b:
                names[f"{a} and {b}"] = _product(x, y)
                names[f"divided by {a} and {b}"] = inverse(_product(x, y))
            if a != b:
                names[f"{a} over {b}"] = _product(x, inverse(y))
    for name, number in names.items():
        if all(abs(f - number(p)) < 1e-5 * abs(f) for p, f in zip(problems, factors, strict=True)):
            return name
    return "off by " + ", ".join(f"{f:.3g} at K = {p.steps}" for p, f in zip(problems, factors, strict=True))


def _product(x: Factor, y: Factor) -> Factor:
    return lambda p: x(p) * y(p)


def _evidence(problems: Sequence[Problem], gradients: Sequence[Tensor]) -> str:
    parts = [
        f"{_percent(distance(f, exact_gradient(p)))} at K = {p.steps}" for p, f in zip(problems, gradients, strict=True)
    ]
    return f" (Relative distance from the exact gradient: {', '.join(parts)}.)"


def _percent(ratio: float) -> str:
    if ratio < TOLERANCE:
        return "0\u00a0%"  # no-break spaces: number and unit stay on one line
    if ratio >= 10:
        return f"{ratio:.2g}\u00a0times"
    return f"{100 * ratio:.2g}\u00a0%" if ratio < 0.1 else f"{100 * ratio:.0f}\u00a0%"


def _unknown(problems: Sequence[Problem], gradients: Sequence[Tensor]) -> Diagnosis:
    right = [p.steps for p, f in zip(problems, gradients, strict=True) if distance(f, exact_gradient(p)) < TOLERANCE]
    fewest = [p.steps for p in problems][: len(right)]
    text = "this is none of the gradients known to `diagnose`."
    if right and right != fewest:
        text += f" It is exact at K = {', '.join(map(str, right))} only: is something fixed to what is given there?"
    elif right:
        text += f" It is exact at K = {', '.join(map(str, right))}, so look at what changes with more steps."
    names = list(problems[0].theta)
    pieces = [(_split(f, p), _split(exact_gradient(p), p)) for p, f in zip(problems, gradients, strict=True)]
    good = [n for n in names if all(distance(ours[n], theirs[n]) < TOLERANCE for ours, theirs in pieces)]
    if good and len(good) < len(names):
        text += f" It is exact for {', '.join(good)} and wrong for {', '.join(n for n in names if n not in good)}."
    nothing = [n for n in names if not any(ours[n].any() for ours, _ in pieces)]
    if nothing:
        text += f" It is zero for {', '.join(nothing)}."
    p, f = problems[0], gradients[0]
    exact, first = (torch.nn.functional.cosine_similarity(f, g, dim=0) for g in (exact_gradient(p), _first_order(p)))
    text += (
        f" At K = {p.steps} its cosine with the exact gradient is {float(exact):.3f}, with the first-order one "
        f"{float(first):.3f}."
    )
    return Diagnosis("unknown", text + _evidence(problems, gradients))


def _split(flat: Tensor, problem: Problem) -> Params:
    sizes = [p.numel() for p in problem.theta.values()]
    return dict(zip(problem.theta, flat.split(sizes), strict=True))
