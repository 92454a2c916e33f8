"""Trying a meta-gradient function on a problem: what it answers, and what it does besides or instead."""

import textwrap
from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from maml_edu.diagnosis.problems import Problem
from maml_edu.meta_gradient import MetaGradient
from maml_edu.step_sizes import Alpha
from maml_edu.tasks import Params, TaskBatch

# (loss, theta, batch, alpha, steps) -> the meta-gradient, a dict like theta, alone or in a MetaGradient
GradientFunction = Callable[..., Mapping[str, Tensor | None] | MetaGradient]


class Diagnosis(NamedTuple):
    """verdict: one word to compare with; explanation: what is computed, how far off it is, and what to change."""

    verdict: str
    explanation: str

    def __str__(self) -> str:
        return textwrap.fill(f"{self.verdict}: {self.explanation}", 96)


class NoAnswer(Exception):
    """There is no gradient to compare: `diagnosis` says why."""

    def __init__(self, verdict: str, explanation: str) -> None:
        self.diagnosis = Diagnosis(verdict, explanation)


class Answer(NamedTuple):
    """flat [D]: the gradient as one vector. side_effect: what the function changed on the way, if anything."""

    flat: Tensor
    side_effect: Diagnosis | None


def call(function: GradientFunction, problem: Problem, alpha: Alpha | None = None) -> Answer:
    """What the function answers on a problem, with copies of everything, and what else it did. Raises NoAnswer."""
    theta = {name: p.detach().clone().requires_grad_() for name, p in problem.theta.items()}
    batch = TaskBatch(*(t.clone() for t in problem.batch))
    where = f" (T = {len(batch.support_x)}, K = {problem.steps})"
    try:
        with torch.enable_grad():
            returned = function(problem.loss, theta, batch, problem.alpha if alpha is None else alpha, problem.steps)
    except NotImplementedError as error:
        raise NoAnswer("error", "not written yet: it raises NotImplementedError.") from error
    except (Exception, SystemExit) as error:  # whatever a student's function does is to be reported, not to crash us
        message = str(error).strip().splitlines() or [""]
        raise NoAnswer("error", f"it raises {type(error).__name__}: {message[0]}{_why(message[0])}{where}") from error
    changed = [n for n, p in problem.theta.items() if n not in theta or not torch.equal(theta[n].detach(), p)]
    changed += [n for n in theta if n not in problem.theta or not theta[n].requires_grad]
    if changed:
        text = (
            f"the call changes θ itself ({', '.join(changed)}). The inner loop must make new tensors, "
            "θ_{j+1} = θ_j − α∇L, never write into θ (no in-place update, no `.data`, no shared dict or module). The "
            "optimiser's step comes after all tasks."
        )
        try:
            return Answer(_flat(_gradient(returned, problem.theta)), Diagnosis("theta-modified", text))
        except NoAnswer:
            raise NoAnswer("theta-modified", text) from None
    gradient = _gradient(returned, problem.theta)
    if bad := [name for name, g in gradient.items() if not g.isfinite().all()]:
        raise NoAnswer(
            "nan",
            f"NaN or infinity in the gradient of {', '.join(bad)}{where}. Typical causes: a square root or a division "
            "at zero (√v of Adam inside the inner loop: put ε inside the root), or a step size so large that the inner "
            "loop diverges.",
        )
    if not all(torch.equal(a, b) for a, b in zip(batch, problem.batch)):
        return Answer(_flat(gradient), Diagnosis("batch-modified", "the call writes into the batch it was given."))
    return Answer(_flat(gradient), None)


def _why(message: str) -> str:
    for part, reason in (
        ("mutate a captured Tensor", ". Batch norm keeps running statistics: track_running_stats=False"),
        ("positional arguments but 5", ". Four arguments: is it a training step? Wrap it, from_training_step(…)"),
        (
            "'function' object has no attribute",
            ". It was given the loss. Does it expect a module? A training step is wrapped, from_training_step(…)",
        ),
        ("Dimension out of range", ". loss wants x and y with the task axis in front: x[None] for one task"),
        ("in-place operation", ". θ_{j+1} = θ_j − α∇L must be a new tensor: `p = p - alpha * g`, not `p -= alpha * g`"),
        (
            "does not require grad",
            ". The graph to θ is cut on the way: `.detach()`, `.data`, `no_grad()`, or tensors made anew",
        ),
        ("have been used in the graph", ". A parameter is not connected with the loss: was it detached or made anew?"),
        ("a second time", ". The graph of an inner step was freed: torch.autograd.grad(…, create_graph=True) keeps it"),
    ):
        if part in message:
            return reason
    return ""


def _gradient(returned: object, theta: Params) -> Params:
    """What the function returned, in float64, its form checked. Raises NoAnswer."""
    gradient = getattr(returned, "gradient", returned)
    if gradient is None:
        raise NoAnswer("form", "it returns None. Return a dict with one tensor for each parameter of θ.")
    if not isinstance(gradient, dict):
        kind = type(gradient).__name__
        raise NoAnswer("form", f"it returns a {kind}. Return a dict with one tensor for each parameter of θ.")
    none = [name for name in theta if gradient.get(name) is None]
    if none:
        raise NoAnswer(
            "missing",
            f"no gradient for {', '.join(none)}. It was left out, or the graph from the query loss to it is cut, the "
            "gradient arrived in a copy (copy.deepcopy makes parameters of its own), or zero_grad() has wiped it out.",
        )
    for name, p in theta.items():
        shape = list(torch.as_tensor(gradient[name]).shape)
        if shape != list(p.shape):
            extra = " Is the mean over tasks missing?" if shape[1:] == list(p.shape) else ""
            raise NoAnswer("form", f"{name} has shape {shape}; expected {list(p.shape)}, as in θ.{extra}")
    return {name: torch.as_tensor(gradient[name]).detach().to(torch.float64) for name in theta}


def _flat(gradient: Params) -> Tensor:
    return torch.cat([g.reshape(-1) for g in gradient.values()])
