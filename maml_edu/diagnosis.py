"""`diagnose`: what a meta-gradient function computes, said in words.

The function is tried on three small problems whose tasks, examples, inner steps and step sizes all differ in number, so
that no two mistakes give the same answer on all three. What comes back is compared with the exact meta-gradient and
with about a hundred wrong ones: another order, another place of the Hessian, other data, another α, tasks mixed, …
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable

import torch

from .hypotheses import NUMBERS, gradient, hypotheses, nothing_kept, recursion
from .hypotheses import problems as default_problems
from .meta_gradient import Loss, Params, adapt, hvp, maml
from .tasks import TaskBatch
from .trial import Complaint, Diagnosis, call

MetaGradientFunction = Callable[[Loss, Params, TaskBatch, float, int], Params]

TOLERANCE = 1e-6  # of the whole gradient's length; leaves room for Hessian-vector products by finite differences

VERDICTS = {
    "exact": "the exact meta-gradient",
    "first-order": "the Hessian terms are missing",
    "cut": "the graph is cut at some inner steps",
    "at-theta": "the query gradient is taken at θ, not at φ",
    "joint": "no adaptation: the gradient at θ on support and query together",
    "reptile": "the difference θ − φ",
    "sign": "the whole gradient, or its Hessian terms, with the wrong sign",
    "alpha": "another step size than the one given",
    "steps": "another number of inner steps than the one given",
    "data": "support and query are mixed up",
    "hessian": "the Hessian of another loss, at another place, or in part",
    "order": "the inner steps are pulled back in the wrong order",
    "alpha-outside": "per-parameter rates multiply H·v instead of v",
    "sum": "summed over tasks where the mean is meant",
    "scale": "the right direction with the wrong length",
    "one-task": "one task counts, the others are lost",
    "weights": "the tasks count differently",
    "batch-norm": "running statistics where the batch's own are meant",
    "tasks-mixed": "one task's adaptation depends on another task",
    "theta-modified": "θ is changed by the call",
    "batch-modified": "the batch is changed by the call",
    "non-deterministic": "two equal calls differ",
    "nan": "not a number",
    "zero": "nothing depends on θ",
    "missing": "some parameters have no gradient",
    "form": "not a dict of tensors like θ",
    "error": "it raises",
    "unknown": "none of these",
}


def diagnose(meta_gradient_function: MetaGradientFunction) -> Diagnosis:
    """Say what `meta_gradient_function(loss, theta, batch, alpha, steps)` computes.

    It is called with float64 tensors: theta a dict of `mlp((2, 5, outputs), "tanh")` (the tensors require gradients),
    batch a `TaskBatch` [T, n, 2] with T ≥ 2, a number alpha, steps ≥ 1, and `loss(params, x, y)` -> [T], the mean
    squared error of each task; x and y with the task axis in front, params with or without it. It returns a dict like
    theta (or a `MetaGradient`), the mean over tasks. A training step on an `nn.Module` is wrapped in
    `from_training_step`.

    The verdict is "exact" only if the result is the exact meta-gradient to 1e-6 on every problem. Otherwise it is one
    of `VERDICTS`; "unknown" says how far off it is. Never raises because of what the function does.
    """
    kind = getattr(meta_gradient_function, "problems", default_problems)
    *problems, last = _problems(kind)
    found, complaint = [], None
    for problem in problems:
        try:
            first = call(meta_gradient_function, problem)
            second = call(meta_gradient_function, problem)
        except Complaint as error:
            return error.diagnosis
        complaint = complaint or first.complaint
        if complaint is None and _distance(first.flat, second.flat) > 1e-9:
            return Diagnosis(
                "non-deterministic",
                "two calls with the same arguments gave different results. Something is drawn at random (dropout, a "
                "generator without a seed) or remembered from one call to the next.",
            )
        found.append(first.flat)
    diagnosis = _explain(kind, found)
    if complaint is not None and (complaint.verdict, diagnosis.verdict) == ("theta-modified", "exact"):
        return complaint._replace(
            explanation="what it returns is the exact meta-gradient, but the call also changes θ. Stop before the "
            "optimiser's step, and leave θ and its flags as they are."
        )
    if complaint is not None:
        return complaint._replace(explanation=f"{complaint.explanation} What it returns: {diagnosis.explanation}")
    if diagnosis.verdict == "unknown":
        diagnosis = _deaf(meta_gradient_function, problems[1]) or diagnosis
    if diagnosis.verdict == "exact" and (spoilt := _later(meta_gradient_function, problems[1], last)):
        return spoilt
    if diagnosis.verdict in ("exact", "unknown") and not getattr(meta_gradient_function, "ordinary_only", False):
        return _beyond_the_ordinary(meta_gradient_function, problems[1], diagnosis)
    return diagnosis


# ---------------------------------------------------------------- comparing


@functools.cache
def _problems(kind):
    """Made once: `_call` hands out copies."""
    return tuple(kind())


@functools.cache
def _hypotheses(kind):
    return (*hypotheses(), *_problems(kind)[0].suspicions)


@functools.cache
def _columns(kind, i, j):
    """The gradients of every task [D, T] under hypothesis i on problem j: the same for whoever is diagnosed."""
    per_task = _hypotheses(kind)[i].per_task(_problems(kind)[j])
    return torch.stack([torch.cat([t.reshape(-1) for t in task]) for task in zip(*per_task.values())], 1)


def _explain(kind, found) -> Diagnosis:
    problems = _problems(kind)[:-1]
    if not any(flat.any() for flat in found):
        return Diagnosis(
            "zero",
            "the gradient is zero everywhere: nothing that was differentiated depends on θ. Is φ detached? Or is a "
            "formula applied to a loss that has no θ in it?",
        )
    for i, hypothesis in enumerate(_hypotheses(kind)):
        fits = _on_every_problem(lambda j, flat, i=i: _fit(_columns(kind, i, j), flat), found)
        if fits:
            return _worded(hypothesis, problems, fits, found)
        if hypothesis.verdict == "first-order" and (cut := _cut(problems, found)):
            return cut
    return _unknown(problems, found)


def _on_every_problem(try_it, found):
    """What `try_it` finds on each problem, or None as soon as it finds nothing."""
    results = []
    for j, flat in enumerate(found):
        results.append(try_it(j, flat))
        if results[-1] is None:
            return None
    return results


def _fit(columns, flat):
    """The weights [T] with which the tasks' gradients [D, T] add up to `flat`, or None if no weights do."""
    weights = torch.linalg.lstsq(columns, flat[:, None]).solution[:, 0]
    return weights if _distance(flat, columns @ weights) < TOLERANCE else None


def _distance(a, b):
    """Of a from b, over the length of b."""
    return float((a - b).norm() / b.norm().clamp_min(1e-300))


def _mean(per_task):
    """The mean over tasks of a dict of [T, …], as one vector [D]."""
    return torch.cat([v.mean(0).reshape(-1) for v in per_task.values()])


def _exact(problem):
    return _mean(recursion()(problem))


def _first_order(problem):
    return _mean(recursion(keep=nothing_kept)(problem))


def _cut(problems, found):
    """Which inner steps count as the identity, if that explains everything."""

    def try_it(j, flat):
        p = problems[j]
        for length in range(p.steps + 1):
            for cut in itertools.combinations(range(p.steps), length):
                per_task = recursion(keep=lambda step, K, cut=cut: step not in cut)(p)
                if _distance(flat, _mean(per_task)) < TOLERANCE:
                    return cut
        return None

    cuts = _on_every_problem(try_it, found)
    if cuts is None:
        return None
    where = "; ".join(
        f"K = {p.steps}: " + (f"step {' and '.join(str(j + 1) for j in cut)}" if cut else "none")
        for p, cut in zip(problems, cuts, strict=True)
    )
    return Diagnosis(
        "cut",
        f"the graph is cut at some inner steps, whose Jacobians count as the identity ({where}). Look for a "
        "`.detach()`, `.data`, a tensor made anew or a missing create_graph there." + _evidence(problems, found),
    )


def _worded(hypothesis, problems, fits, found):
    """The verdict, with the weights of the tasks put into words."""
    tasks = [len(weights) for weights in fits]
    if all(_distance(w, torch.full_like(w, float(w.mean()))) < 1e-5 for w in fits):
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
    return Diagnosis(verdict, words + ("" if verdict == "exact" else _evidence(problems, found)))


def _times(name):
    return name if name.startswith("divided") or name.startswith("off") else f"multiplied by {name}"


def _factor_name(problems, factors):
    """What the lengths are off by, in words; "" for nothing."""
    names = {"": lambda p: 1.0, "−1": lambda p: -1.0}
    for a, x in NUMBERS.items():
        names[a] = x
        names[f"divided by {a}"] = lambda p, x=x: 1 / x(p)
        names[f"−1 and {a}"] = lambda p, x=x: -x(p)
        for b, y in NUMBERS.items():
            if a < b:
                names[f"{a} and {b}"] = lambda p, x=x, y=y: x(p) * y(p)
                names[f"divided by {a} and {b}"] = lambda p, x=x, y=y: 1 / (x(p) * y(p))
            if a != b:
                names[f"{a} over {b}"] = lambda p, x=x, y=y: x(p) / y(p)
    for name, number in names.items():
        if all(abs(f - number(p)) < 1e-5 * abs(f) for p, f in zip(problems, factors, strict=True)):
            return name
    return "off by " + ", ".join(f"{f:.3g} at K = {p.steps}" for p, f in zip(problems, factors, strict=True))


def _evidence(problems, found):
    parts = [f"{_percent(_distance(f, _exact(p)))} at K = {p.steps}" for p, f in zip(problems, found, strict=True)]
    return f" (Distance from the exact gradient, over its length: {', '.join(parts)}.)"


def _percent(ratio):
    if ratio < TOLERANCE:
        return "0\u00a0%"  # no-break spaces: number and unit stay on one line
    if ratio >= 10:
        return f"{ratio:.2g}\u00a0times"
    return f"{100 * ratio:.2g}\u00a0%" if ratio < 0.1 else f"{100 * ratio:.0f}\u00a0%"


def _unknown(problems, found):
    right = [p.steps for p, f in zip(problems, found, strict=True) if _distance(f, _exact(p)) < TOLERANCE]
    fewest = [p.steps for p in problems][: len(right)]
    text = "this is none of the gradients known to `diagnose`."
    if right and right != fewest:
        text += f" It is exact at K = {', '.join(map(str, right))} only: is something fixed to what is given there?"
    elif right:
        text += f" It is exact at K = {', '.join(map(str, right))}, so look at what changes with more steps."
    names = list(problems[0].theta)
    pieces = [(_split(f, p), _split(_exact(p), p)) for p, f in zip(problems, found, strict=True)]
    good = [n for n in names if all(_distance(ours[n], theirs[n]) < TOLERANCE for ours, theirs in pieces)]
    if good and len(good) < len(names):
        text += f" It is exact for {', '.join(good)} and wrong for {', '.join(n for n in names if n not in good)}."
    nothing = [n for n in names if not any(ours[n].any() for ours, _ in pieces)]
    if nothing:
        text += f" It is zero for {', '.join(nothing)}."
    p, f = problems[0], found[0]
    cosine = torch.nn.functional.cosine_similarity
    text += (
        f" At K = {p.steps} its cosine with the exact gradient is {float(cosine(f, _exact(p), dim=0)):.3f}, with the "
        f"first-order one {float(cosine(f, _first_order(p), dim=0)):.3f}."
    )
    return Diagnosis("unknown", text + _evidence(problems, found))


def _split(flat, problem):
    sizes = [p.numel() for p in problem.theta.values()]
    return dict(zip(problem.theta, flat.split(sizes), strict=True))


# ---------------------------------------------------------------- where a right one may still fail


def _deaf(function, problem):
    """Whether the answer stays the same with another K or another α: a number that is written into the function."""
    same = {}
    for name, changed in (
        ("steps", problem._replace(steps=problem.steps + 2)),
        ("alpha", problem._replace(alpha=1.7 * problem.alpha)),
    ):
        try:
            same[name] = _distance(call(function, problem).flat, call(function, changed).flat) < 1e-12
        except Complaint:
            return None
    if sum(same.values()) != 1:  # deaf to both is no MAML at all
        return None
    name = "steps" if same["steps"] else "alpha"
    return Diagnosis(name, f"the answer does not depend on `{name}`: is a number written into the function?")


def _later(function, problem, last):
    """What an exact function does to other numbers of the same sizes, and to the next meta-batch."""
    try:
        if _distance(call(function, last).flat, _exact(last)) > TOLERANCE:
            return Diagnosis(
                "unknown",
                "it is exact on three problems and not on a fourth, with the sizes of the second, other numbers and "
                "gradients of length 10 and more. Is a gradient clipped, or a result remembered from an earlier call?",
            )
        if (again := getattr(function, "again", None)) and _distance(call(again, problem).flat, _exact(problem)) > 1e-9:
            return Diagnosis(
                "non-deterministic",
                "exact for the first meta-batch, but a second step with the same network gives another gradient: "
                "something is left behind (eval mode, running statistics, requires_grad off).",
            )
    except Complaint as error:
        return error.diagnosis
    return None


def _beyond_the_ordinary(function, problem, diagnosis):
    """Problems on which a right function may still fail: a parameter at rest, one unused, one α per parameter.

    A function that is wrong already is only tried for what becomes of zeros.
    """
    resting = _with_a_resting_parameter(problem)
    try:
        answer = call(function, resting)
    except Complaint as error:
        if error.diagnosis.verdict == "nan":
            return error.diagnosis
        return diagnosis
    if diagnosis.verdict == "unknown":
        return diagnosis
    if _distance(answer.flat, _exact(resting)) > TOLERANCE:
        return Diagnosis("unknown", "it is exact, but not for a parameter whose inner gradient is zero.")

    extra = torch.tensor([0.7, -0.3], dtype=torch.float64)
    loss = lambda params, x, y: problem.loss({n: params[n] for n in problem.theta}, x, y)  # noqa: E731
    exact = torch.cat([_exact(problem), torch.zeros_like(extra)])
    remarks = []
    try:
        answer = call(function, problem._replace(loss=loss, theta={**problem.theta, "unused": extra}))
    except Complaint as error:
        if error.diagnosis.verdict == "nan":
            return error.diagnosis
        remarks.append("A parameter that the loss does not use makes it fail; its gradient is meant to be zero.")
    else:
        if _distance(answer.flat, exact) > TOLERANCE:
            return Diagnosis("unknown", "it is exact, but not when θ has a parameter that the loss does not use.")
    rates = {name: problem.alpha * (0.4 + 0.3 * i) for i, name in enumerate(problem.theta)}
    try:
        answer = call(function, problem, rates)
    except Complaint:
        pass  # it takes a number for α, which is all that was asked
    else:
        path = adapt(problem.loss, problem.theta, *problem.batch[:2], rates, problem.steps)
        outside = gradient(problem.loss, path[-1], *problem.batch[2:])
        for params in reversed(path[:-1]):
            hv = hvp(problem.loss, params, *problem.batch[:2], outside)
            outside = {n: t - rates[n] * hv[n] for n, t in outside.items()}
        inside = maml(problem.loss, problem.theta, problem.batch, rates, problem.steps).gradient
        if _distance(answer.flat, _mean(outside)) < TOLERANCE:
            return Diagnosis(
                "alpha-outside",
                "exact for one α, but with one α per parameter it takes v − α∘(Hv). The transpose of I − diag(α)H puts "
                "α inside: v − H(α∘v).",
            )
        if _distance(answer.flat, torch.cat([t.reshape(-1) for t in inside.values()])) > TOLERANCE:
            return Diagnosis("alpha", "exact for one α, but not with a dict of one α per parameter.")
    return diagnosis._replace(explanation=" ".join([diagnosis.explanation, *remarks]))


def _with_a_resting_parameter(problem):
    """One more parameter, like the weight of a ReLU unit that is off for all support examples and on for a query."""

    def loss(params, x, y):
        others = {name: params[name] for name in problem.theta}
        return problem.loss(others, x, y) + params["resting"][..., 0] ** 2 * torch.relu(x[..., 0] - 10).mean(-1)

    query_x = problem.batch.query_x.clone()
    query_x[:, 0, 0] = 11.0
    theta = {**problem.theta, "resting": torch.tensor([0.7], dtype=torch.float64)}
    return problem._replace(loss=loss, theta=theta, batch=problem.batch._replace(query_x=query_x))
