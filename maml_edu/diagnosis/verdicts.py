"""`diagnose`: what a meta-gradient function computes, said in words.

The function is tried on three small problems whose tasks, examples, inner steps and step sizes all differ in number, so
that no two mistakes give the same answer on all three. What comes back is compared with the exact meta-gradient and
with about a hundred wrong ones: another order, another place of the Hessian, other data, another α, tasks mixed, …
"""

import torch
from torch import Tensor

from maml_edu.diagnosis.checked_call import Diagnosis, GradientFunction, NoAnswer, call
from maml_edu.diagnosis.edge_cases import beyond_the_ordinary, ignores_an_argument, on_other_numbers
from maml_edu.diagnosis.explanation import distance, explain, problems_of
from maml_edu.diagnosis.problems import Problem
from maml_edu.diagnosis.problems import problems as default_problems
from maml_edu.diagnosis.training_steps import WrappedStep

VERDICTS = {
    "exact": "the exact meta-gradient",
    "first-order": "the Hessian terms are missing",
    "cut": "the graph is cut at some inner steps",
    "compiled": "torch.compile takes the graph away from a gradient",
    "at-theta": "the query gradient is taken at θ, not at φ",
    "joint": "no adaptation: the gradient at θ on support and query together",
    "reptile": "the difference θ − φ",
    "sign": "the whole gradient, or its Hessian terms, with the wrong sign",
    "alpha": "another step size than the one given",
    "steps": "another number of inner steps than the one given",
    "stale": "every inner step uses the gradient at θ",
    "data": "support and query are mixed up",
    "hessian": "the Hessian of another loss, at another place, or in part",
    "order": "the inner steps are pulled back in the wrong order",
    "alpha-outside": "per-parameter step sizes multiply H·v instead of v",
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


def diagnose(meta_gradient_function: GradientFunction) -> Diagnosis:
    """Say what `meta_gradient_function(loss, theta, batch, alpha, steps)` computes.

    It is called with float64 tensors: theta a dict of `mlp((2, 5, outputs), "tanh")` (the tensors require gradients),
    batch a `TaskBatch` [T, n, 2] with T ≥ 2, a number alpha, steps ≥ 1, and `loss(params, x, y)` -> [T], the mean
    squared error of each task; x and y with the task axis in front, params with or without it. It returns a dict like
    theta (or a `MetaGradient`), the mean over tasks. A training step on an `nn.Module` is wrapped in
    `from_training_step`.

    The verdict is "exact" only if the result is the exact meta-gradient to 1e-6 on every problem. Otherwise it is one
    of `VERDICTS`; "unknown" says how far off it is. Never raises because of what the function does.
    """
    diagnosis = _diagnose(meta_gradient_function)
    if diagnosis.verdict == "exact" or not _changed_by_compilation(meta_gradient_function):
        return diagnosis
    with torch.compiler.set_stance("force_eager"):
        uncompiled = _diagnose(meta_gradient_function)
    return Diagnosis(
        "compiled",
        "torch.compile changes the answer. A compiled loss gives a gradient that has lost its own graph, so "
        "create_graph=True has nothing to keep. Compile the whole meta-gradient instead: "
        f"torch.compile(torch.func.grad(outer)). Without torch.compile: {uncompiled.explanation} With it: "
        f"{diagnosis.explanation}",
    )


def _changed_by_compilation(meta_gradient_function: GradientFunction) -> bool:
    """Does the function answer otherwise where compiled code runs as it is written, on any problem?

    A function that answers differently from call to call doesn't count: it must come back to its first answer.
    """
    wrapped = meta_gradient_function if isinstance(meta_gradient_function, WrappedStep) else None
    for problem in problems_of(wrapped.make_problems if wrapped else default_problems)[:-1]:
        compiled = _answer(meta_gradient_function, problem)
        with torch.compiler.set_stance("force_eager"):
            as_written = _answer(meta_gradient_function, problem)
        if not _same(compiled, as_written):
            return _same(compiled, _answer(meta_gradient_function, problem))
    return False


def _answer(meta_gradient_function: GradientFunction, problem: Problem) -> Tensor | str:
    """The gradient [D], or the verdict if there is none."""
    try:
        return call(meta_gradient_function, problem).flat
    except NoAnswer as error:
        return error.diagnosis.verdict


def _same(one: Tensor | str, two: Tensor | str) -> bool:
    if isinstance(one, str) or isinstance(two, str):
        return isinstance(one, str) and isinstance(two, str) and one == two
    return distance(one, two) <= 1e-9


def _diagnose(meta_gradient_function: GradientFunction) -> Diagnosis:
    wrapped = meta_gradient_function if isinstance(meta_gradient_function, WrappedStep) else None
    make_problems = wrapped.make_problems if wrapped else default_problems
    *problems, last = problems_of(make_problems)
    gradients, side_effect = [], None
    for problem in problems:
        try:
            first = call(meta_gradient_function, problem)
            second = call(meta_gradient_function, problem)
        except NoAnswer as error:
            return error.diagnosis
        side_effect = side_effect or first.side_effect
        if side_effect is None and distance(first.flat, second.flat) > 1e-9:
            return Diagnosis(
                "non-deterministic",
                "two calls with the same arguments gave different results. Something is drawn at random (dropout, a "
                "generator without a seed) or remembered from one call to the next.",
            )
        gradients.append(first.flat)
    diagnosis = explain(make_problems, gradients)
    if side_effect is not None and (side_effect.verdict, diagnosis.verdict) == ("theta-modified", "exact"):
        return side_effect._replace(
            explanation="what it returns is the exact meta-gradient, but the call also changes θ. Stop before the "
            "optimiser's step, and leave θ and its flags as they are."
        )
    if side_effect is not None:
        return side_effect._replace(explanation=f"{side_effect.explanation} What it returns: {diagnosis.explanation}")
    if diagnosis.verdict == "unknown":
        diagnosis = ignores_an_argument(meta_gradient_function, problems[1]) or diagnosis
    if diagnosis.verdict == "exact" and (flaw := on_other_numbers(meta_gradient_function, problems[1], last)):
        return flaw
    if diagnosis.verdict in ("exact", "unknown") and not wrapped:  # a step has its module's parameters, and one α
        return beyond_the_ordinary(meta_gradient_function, problems[1], diagnosis)
    return diagnosis
