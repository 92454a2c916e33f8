"""Where a function that is right on ordinary problems may still fail. For `diagnose`.

Another K or α, other numbers, the next meta-batch, parameters at rest or unused, one α per parameter.
"""

import torch
from torch import Tensor

from maml_edu.diagnosis.checked_call import Diagnosis, GradientFunction, NoAnswer, call
from maml_edu.diagnosis.explanation import TOLERANCE, distance, exact_gradient, mean_gradient
from maml_edu.diagnosis.problems import Problem
from maml_edu.diagnosis.training_steps import WrappedStep
from maml_edu.hessian_vector import hvp, value_and_gradient
from maml_edu.meta_gradient import adapt, maml
from maml_edu.tasks import Params


def ignores_an_argument(function: GradientFunction, problem: Problem) -> Diagnosis | None:
    """Whether the answer stays the same with another K or another α: a number that is written into the function."""
    same = {}
    for name, changed in (
        ("steps", problem._replace(steps=problem.steps + 2)),
        ("alpha", problem._replace(alpha=1.7 * problem.alpha)),
    ):
        try:
            same[name] = distance(call(function, problem).flat, call(function, changed).flat) < 1e-12
        except NoAnswer:
            return None
    if sum(same.values()) != 1:  # one that ignores both is no MAML at all
        return None
    name = "steps" if same["steps"] else "alpha"
    return Diagnosis(name, f"the answer does not depend on `{name}`: is a number written into the function?")


def on_other_numbers(function: GradientFunction, problem: Problem, last: Problem) -> Diagnosis | None:
    """What an exact function does to other numbers of the same sizes, and to the next meta-batch."""
    try:
        if distance(call(function, last).flat, exact_gradient(last)) > TOLERANCE:
            return Diagnosis(
                "unknown",
                "it is exact on three problems and not on a fourth, with the sizes of the second, other numbers and "
                "gradients of length 10 and more. Is a gradient clipped, or a result remembered from an earlier call?",
            )
        if (
            isinstance(function, WrappedStep)
            and distance(call(function.second_call, problem).flat, exact_gradient(problem)) > 1e-9
        ):
            return Diagnosis(
                "non-deterministic",
                "exact for the first meta-batch, but a second step with the same network gives another gradient: "
                "something is left behind (eval mode, running statistics, requires_grad off).",
            )
    except NoAnswer as error:
        return error.diagnosis
    return None


def beyond_the_ordinary(function: GradientFunction, problem: Problem, diagnosis: Diagnosis) -> Diagnosis:
    """Problems on which a right function may still fail: a parameter at rest, one unused, one α per parameter.

    A function that is wrong already is only tried for what becomes of zeros.
    """
    resting = _with_a_resting_parameter(problem)
    try:
        answer = call(function, resting)
    except NoAnswer as error:
        if error.diagnosis.verdict == "nan":
            return error.diagnosis
        return diagnosis
    if diagnosis.verdict == "unknown":
        return diagnosis
    if distance(answer.flat, exact_gradient(resting)) > TOLERANCE:
        return Diagnosis("unknown", "it is exact, but not for a parameter whose inner gradient is zero.")

    extra = torch.tensor([0.7, -0.3], dtype=torch.float64)

    def loss(params: Params, x: Tensor, y: Tensor) -> Tensor:
        return problem.loss({n: params[n] for n in problem.theta}, x, y)

    exact = torch.cat([exact_gradient(problem), torch.zeros_like(extra)])
    remarks = []
    try:
        answer = call(function, problem._replace(loss=loss, theta={**problem.theta, "unused": extra}))
    except NoAnswer as error:
        if error.diagnosis.verdict == "nan":
            return error.diagnosis
        remarks.append("A parameter that the loss does not use makes it fail; its gradient is meant to be zero.")
    else:
        if distance(answer.flat, exact) > TOLERANCE:
            return Diagnosis("unknown", "it is exact, but not when θ has a parameter that the loss does not use.")
    alpha = {name: problem.alpha * (0.4 + 0.3 * i) for i, name in enumerate(problem.theta)}
    try:
        answer = call(function, problem, alpha)
    except NoAnswer:
        pass  # it takes a number for α, which is all that was asked
    else:
        path = adapt(problem.loss, problem.theta, *problem.batch[:2], alpha, problem.steps)
        outside = value_and_gradient(problem.loss, path[-1], *problem.batch[2:])[1]
        for params in reversed(path[:-1]):
            hv = hvp(problem.loss, params, *problem.batch[:2], outside)
            outside = {n: t - alpha[n] * hv[n] for n, t in outside.items()}
        inside = maml(problem.loss, problem.theta, problem.batch, alpha, problem.steps).gradient
        if distance(answer.flat, mean_gradient(outside)) < TOLERANCE:
            return Diagnosis(
                "alpha-outside",
                "exact for one α, but with one α per parameter it takes v − α∘(Hv). The transpose of I − diag(α)H puts "
                "α inside: v − H(α∘v).",
            )
        if distance(answer.flat, torch.cat([t.reshape(-1) for t in inside.values()])) > TOLERANCE:
            return Diagnosis("alpha", "exact for one α, but not with a dict of one α per parameter.")
    return diagnosis._replace(explanation=" ".join([diagnosis.explanation, *remarks]))


def _with_a_resting_parameter(problem: Problem) -> Problem:
    """One more parameter, like the weight of a ReLU unit that is off for all support examples and on for a query."""

    def loss(params: Params, x: Tensor, y: Tensor) -> Tensor:
        others = {name: params[name] for name in problem.theta}
        return problem.loss(others, x, y) + params["resting"][..., 0] ** 2 * torch.relu(x[..., 0] - 10).mean(-1)

    query_x = problem.batch.query_x.clone()
    query_x[:, 0, 0] = 11.0
    theta = {**problem.theta, "resting": torch.tensor([0.7], dtype=torch.float64)}
    return problem._replace(loss=loss, theta=theta, batch=problem.batch._replace(query_x=query_x))
