"""What a meta-gradient function might compute on the problems of `diagnose`: MAML with one thing changed.

Every hypothesis gives one gradient per task, so that the comparison can also find out how the tasks were weighed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor

from maml_edu.diagnosis.problems import Factor, Hypothesis, PerTask, Problem
from maml_edu.hessian_vector import hvp, value_and_gradient
from maml_edu.meta_gradient import adapt
from maml_edu.tasks import Loss, Params, TaskBatch, all_examples, expand_over_tasks, plus

# ---------------------------------------------------------------- MAML with one thing changed


def all_kept(j: int, K: int) -> bool:
    """Every inner step is pulled back: MAML."""
    return True


def nothing_kept(j: int, K: int) -> bool:
    """Every inner step counts as the identity: first order."""
    return False


def one(p: Problem) -> float:
    """The factor of a step size that is as it should be."""
    return 1.0


def recursion(
    inner: str = "support",  # which examples adapt
    outer: str = "query",  # which examples the loss at φ is taken on
    curved: str | None = None,  # whose Hessian; by default that of the inner loss
    forward: Factor = one,  # the α that adapts, over the α given
    backward: Factor | None = None,  # the α that pulls back, over the α given; by default the same
    steps: Callable[[int], int] = lambda K: K,
    place: Callable[[int, int], int] = lambda j, K: j,  # the Hessian of step j is taken at θ_place
    query_at: int = -1,  # the query gradient is taken at θ_query_at
    order: Callable[[range], Iterable[int]] = reversed,
    keep: Callable[[int, int], bool] = all_kept,  # the steps that are pulled back; the others count as the identity
    identity: float = 1.0,
    block: bool = False,  # the Hessian within each parameter tensor only
) -> PerTask:
    """The recursion with one thing or another changed; without arguments it is MAML."""

    def per_task(p: Problem) -> Params:
        examples, K = _examples(p.batch), steps(p.steps)
        path = adapt(p.loss, p.theta, *examples[inner], forward(p) * p.alpha, K)
        v = value_and_gradient(p.loss, path[query_at], *examples[outer])[1]
        alpha = (backward or forward)(p) * p.alpha
        for j in order(range(K)):
            if keep(j, K):
                product = _block_product if block else hvp
                hv = product(p.loss, path[place(j, K)], *examples[curved or inner], v)
                v = {name: identity * v[name] - alpha * hv[name] for name in v}
        return v

    return per_task


def _examples(batch: TaskBatch) -> dict[str, tuple[Tensor, Tensor]]:
    return {"support": batch[:2], "query": batch[2:], "both": all_examples(batch)}


def _block_product(loss: Loss, params: Params, x: Tensor, y: Tensor, v: Params) -> Params:
    blocks = {}
    for name in v:  # v of one parameter only, and of H·v that parameter only
        alone = {other: t if other == name else torch.zeros_like(t) for other, t in v.items()}
        blocks[name] = hvp(loss, params, x, y, alone)[name]
    return blocks


def _difference(inner: str) -> PerTask:
    """(θ − φ)/α per task."""

    def per_task(p: Problem) -> Params:
        phi = adapt(p.loss, p.theta, *_examples(p.batch)[inner], p.alpha, p.steps)[-1]
        return {name: (p.theta[name] - phi[name]) / p.alpha for name in phi}

    return per_task


def _with_the_last_support_gradient() -> PerTask:
    """∇L_q(φ) + ∇L_s(θ_{K−1}), per task."""

    def per_task(p: Problem) -> Params:
        path = adapt(p.loss, p.theta, *p.batch[:2], p.alpha, p.steps)
        v = value_and_gradient(p.loss, path[-1], *p.batch[2:])[1]
        return plus(v, value_and_gradient(p.loss, path[-2], *p.batch[:2])[1])

    return per_task


def _one_phi(exact: bool, scale: Factor = one) -> PerTask:
    """All tasks descend together, on the mean of their gradients."""

    def per_task(p: Problem) -> Params:
        tasks = len(p.batch.support_x)
        path = [expand_over_tasks(p.theta, tasks)]
        for _ in range(p.steps):
            g = value_and_gradient(p.loss, path[-1], *p.batch[:2])[1]
            path.append({n: t - scale(p) * p.alpha * g[n].mean(0) for n, t in path[-1].items()})
        v = value_and_gradient(p.loss, path[-1], *p.batch[2:])[1]
        if exact:
            for j in reversed(range(p.steps)):
                of_each = []
                for t in range(tasks):  # every task's v meets the mean of all tasks' Hessians
                    same = {name: w[t : t + 1].expand_as(w).clone() for name, w in v.items()}
                    of_each.append({n: h.mean(0) for n, h in hvp(p.loss, path[j], *p.batch[:2], same).items()})
                v = {n: w - scale(p) * p.alpha * torch.stack([h[n] for h in of_each]) for n, w in v.items()}
        return v

    return per_task


def _chained(exact: bool, through_all: bool) -> PerTask:
    """Every task starts where the task before it ended; with through_all its gradient goes back through these, too."""

    def per_task(p: Problem) -> Params:
        start = {name: t.detach()[None] for name, t in p.theta.items()}
        gradients: list[Params] = []
        before: list[tuple[Params, TaskBatch]] = []  # the steps of the tasks so far
        for t in range(len(p.batch.support_x)):
            task = TaskBatch(*(field[t : t + 1] for field in p.batch))
            path = adapt(p.loss, {name: w[0] for name, w in start.items()}, *task[:2], p.alpha, p.steps)
            v = value_and_gradient(p.loss, path[-1], *task[2:])[1]
            own = [(params, task) for params in path[:-1]]
            for params, whose in reversed(before + own if through_all else own) if exact else ():
                hv = hvp(p.loss, params, *whose[:2], v)
                v = {name: w - p.alpha * hv[name] for name, w in v.items()}
            gradients.append(v)
            before, start = before + own, path[-1]
        return {name: torch.cat([v[name] for v in gradients]) for name in p.theta}

    return per_task


NUMBERS: dict[str, Factor] = {  # what a step size or a length may be off by
    "the number of tasks": lambda p: len(p.batch.support_x),
    "the number of inner steps": lambda p: p.steps,
    "the number of support examples": lambda p: p.batch.support_x.shape[1],
    "the number of query examples": lambda p: p.batch.query_x.shape[1],
    "the number of outputs (classes)": lambda p: p.outputs,
    "the number of examples per output (shots)": lambda p: p.batch.support_x.shape[1] / p.outputs,
    "2": lambda p: 2.0,
    "α": lambda p: p.alpha,
}


def inverse(number: Factor) -> Factor:
    """1 over a factor."""
    return lambda p: 1 / number(p)


def _off_by() -> Iterator[tuple[str, Factor]]:
    """(words, factor of a problem): times and divided by every number that a step size may be off by."""
    yield "has the wrong sign", lambda p: -1.0
    for name, number in NUMBERS.items():
        yield f"is multiplied by {name}", number
        yield f"is divided by {name}", inverse(number)
    yield "is ten times too large", lambda p: 10.0
    yield "is ten times too small", lambda p: 0.1


def hypotheses() -> Iterator[Hypothesis]:
    """The exact meta-gradient first, then what it is taken for, the frequent before the far-fetched."""
    yield Hypothesis("exact", "this is the exact meta-gradient.", recursion())
    yield Hypothesis(
        "first-order",
        "this is the first-order gradient (FOMAML), ∇L_q(φ) without the Hessian terms. Keep the graph of every inner "
        "step (create_graph=True), or pull back: v ← v − H(αv).",
        recursion(keep=nothing_kept),
    )
    yield Hypothesis(
        "at-theta",
        "the query gradient is taken at θ. Adaptation does not enter: evaluate the query loss at φ.",
        recursion(keep=nothing_kept, query_at=0),
    )
    yield Hypothesis(
        "at-theta",
        "this is the support gradient at θ: neither adaptation nor the query set enters.",
        recursion(outer="support", keep=nothing_kept, query_at=0),
    )
    yield Hypothesis(
        "joint",
        "this is joint training, the gradient at θ on support and query together, without adaptation.",
        recursion(outer="both", keep=nothing_kept, query_at=0),
    )
    yield Hypothesis("reptile", "this is Reptile's θ − φ after adapting to the support set.", _difference("support"))
    yield Hypothesis("reptile", "this is Reptile's θ − φ after adapting to support and query.", _difference("both"))
    yield Hypothesis("reptile", "this is θ − φ after adapting to the query set.", _difference("query"))

    # The backward pass
    yield Hypothesis(
        "sign",
        "the Hessian terms have the wrong sign: this is (I + αH)∇L_q(φ). The derivative of θ − α∇L is I − αH.",
        recursion(backward=lambda p: -1.0),
    )
    yield Hypothesis(
        "order",
        "the inner steps are pulled back in the order they were taken. The last step comes first: j = K−1, …, 0.",
        recursion(order=iter),
    )
    for words, place in (
        ("θ_0, for every step", lambda j, K: 0),
        ("φ = θ_K, for every step", lambda j, K: K),
        ("θ_{j+1}, behind the step instead of in front of it", lambda j, K: j + 1),
        ("θ_{K−1}, for every step", lambda j, K: K - 1),
    ):
        yield Hypothesis(
            "hessian", f"the Hessian of step j is taken at {words}. It belongs to θ_j, where the step began.",
            recursion(place=place),
        )  # fmt: skip
    for curved, words in (("query", "the query loss"), ("both", "the loss on support and query together")):
        for place, at in ((lambda j, K: j, "θ_j"), (lambda j, K: K, "φ"), (lambda j, K: 0, "θ_0")):
            yield Hypothesis(
                "hessian",
                f"this is the Hessian of {words} at {at}. The step descended on the support loss: H = ∇²L_s(θ_j).",
                recursion(curved=curved, place=place),
            )  # fmt: skip
    yield Hypothesis(
        "hessian",
        "only the blocks of H within each parameter tensor are used. The gradient of one parameter depends on all of "
        "them: one torch.autograd.grad call for all, with grad_outputs for all.",
        recursion(block=True),
    )
    yield Hypothesis("hessian", "the identity is missing: v ← −αHv instead of v ← v − αHv.", recursion(identity=0.0))
    yield Hypothesis(
        "at-theta",
        "the query gradient is taken at θ and then pulled back. It belongs to φ.",
        recursion(query_at=0),
    )
    for words, factor in _off_by():
        yield Hypothesis(
            "alpha", f"adaptation is right, but on the way back α {words}. The pull-back v ← v − αHv has the same α.",
            recursion(backward=factor),
        )  # fmt: skip

    # Adaptation
    for keep, kind in ((all_kept, ""), (nothing_kept, " And the Hessian terms are missing (first order).")):
        for words, inner, outer in (
            ("the loss at φ is that of the support set, which φ has already seen: take the loss on the query set.",
             "support", "support"),
            ("support and query are exchanged.", "query", "support"),
            ("φ is adapted to the query set: adapt to the support set; query is for the loss.", "query", "query"),
            ("φ is adapted to support and query together: the query set must stay unseen.", "both", "query"),
            ("φ is adapted to support and query together, and so is the loss taken.", "both", "both"),
            ("the loss at φ is taken on support and query together.", "support", "both"),
        ):  # fmt: skip
            yield Hypothesis("data", words + kind, recursion(inner, outer, keep=keep))
        for words, steps in (
            ("one inner step too few is taken.", lambda K: K - 1),
            ("one inner step too many is taken.", lambda K: K + 1),
            ("one inner step is taken, whatever `steps` says.", lambda K: 1),
        ):
            yield Hypothesis("steps", words + kind, recursion(keep=keep, steps=steps))
        yield Hypothesis(
            "stale",
            "every inner step uses the gradient at θ. Step j needs the gradient at θ_j: call the network with the "
            f"parameters that step j − 1 has made (functional_call), not with its own.{kind}",
            recursion(keep=keep, steps=lambda K: 1, forward=lambda p: p.steps),
        )
        for words, factor in _off_by():
            yield Hypothesis(
                "alpha", f"the inner step size {words}. A sum for a mean, or the reverse, is the usual cause.{kind}",
                recursion(keep=keep, forward=factor),
            )  # fmt: skip
        if keep is nothing_kept:
            yield Hypothesis(
                "data",
                "the support gradient of the last inner step is added to the query gradient: call zero_grad() before "
                f"the query loss's backward().{kind}",
                _with_the_last_support_gradient(),
            )
        exact = keep is all_kept
        yield Hypothesis(
            "tasks-mixed",
            "all tasks take the same inner steps, on the mean of their support gradients: there is one φ instead of "
            f"one for each task.{kind}",
            _one_phi(exact),
        )
        yield Hypothesis(
            "tasks-mixed",
            "all tasks take the same inner steps, on the sum of their support gradients: there is one φ instead of "
            f"one for each task.{kind}",
            _one_phi(exact, lambda p: len(p.batch.support_x)),
        )
        for through_all in (True, False) if exact else (False,):
            yield Hypothesis(
                "tasks-mixed",
                f"every task starts from the φ of the task before it. Each must start from θ.{kind}",
                _chained(exact, through_all),
            )
