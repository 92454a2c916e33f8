"""What a meta-learner sees: a batch of tasks, each with a support set and a query set; and the types of the package."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

Params = dict[str, Tensor]  # name -> parameter; with a task axis T in front of each after adaptation
Loss = Callable[[Params, Tensor, Tensor], Tensor]  # (params, x [T, n, …], y [T, n, …]) -> one value per task [T]


class TaskBatch(NamedTuple):
    """T tasks at once; the task axis is always the first.

    support_x [T, n, …], support_y [T, n, …]: what a task may adapt to.
    query_x [T, m, …], query_y [T, m, …]: what the adapted parameters are scored on.
    """

    support_x: Tensor
    support_y: Tensor
    query_x: Tensor
    query_y: Tensor

    def to(self, device: torch.device | str) -> "TaskBatch":
        """The same batch on another device."""
        return TaskBatch(*(tensor.to(device) for tensor in self))


Sampler = Callable[..., TaskBatch]  # sampler(tasks, generator=…) -> TaskBatch


def expand_over_tasks(theta: Params, tasks: int) -> Params:
    """θ with a task axis in front [T, …]: T views of the same numbers, on the graph of theta if it has one."""
    return {name: p.expand(tasks, *p.shape) for name, p in theta.items()}


def without_graph(params: Params) -> Params:
    """The same numbers, on no graph."""
    return {name: p.detach() for name, p in params.items()}


def mean_over_tasks(v: Params) -> Params:
    """The last step of every method: v_0 [T, …] of each task to one meta-gradient [ …]."""
    return {name: t.mean(0) for name, t in v.items()}


def plus(v: Params, w: Params | None) -> Params:
    """v + w, or v itself where there is nothing to add."""
    return v if w is None else {name: v[name] + w[name] for name in v}


def all_examples(batch: TaskBatch) -> tuple[Tensor, Tensor]:
    """Inputs and targets of support ∪ query, [T, n + m, …] each."""
    return torch.cat([batch.support_x, batch.query_x], 1), torch.cat([batch.support_y, batch.query_y], 1)


def check_batch(batch: TaskBatch) -> None:
    """Raise ValueError or TypeError with a plain message if a batch cannot be used.

    Checks task axes, matching examples, dtypes, and that every value is finite. It reads the data, so `train` and
    `evaluate` call it once on their first batch and never inside a meta-gradient.
    """
    for name, tensor in zip(TaskBatch._fields, batch):
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{name} is a {type(tensor).__name__}; a TaskBatch holds four tensors [tasks, examples, …]")
        if tensor.dim() < 2:
            raise ValueError(
                f"{name} has shape {list(tensor.shape)}; expected [tasks, examples, …]. "
                f"One task alone still needs its task axis: use {name}.unsqueeze(0)"
            )
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise ValueError(f"{name} contains NaN or infinity; look at what the sampler returns")
    tasks = {name: tensor.shape[0] for name, tensor in zip(TaskBatch._fields, batch)}
    if len(set(tasks.values())) > 1:
        raise ValueError(f"the four tensors disagree on the number of tasks: {tasks}; the first axis must be the task")
    for side in ("support", "query"):
        x, y = getattr(batch, f"{side}_x"), getattr(batch, f"{side}_y")
        if x.shape[1] != y.shape[1]:
            raise ValueError(
                f"{side}_x has {x.shape[1]} examples per task and {side}_y has {y.shape[1]}; they must be equal"
            )
        if not x.is_floating_point():
            raise TypeError(f"{side}_x has dtype {x.dtype}; inputs must be floating point: {side}_x.float()")
        if x.shape[1] == 0:
            raise ValueError(f"{side}_x holds no examples; give at least one per task")
    if batch.support_x.shape[2:] != batch.query_x.shape[2:]:
        raise ValueError(
            f"a support input has shape {list(batch.support_x.shape[2:])} and a query input "
            f"{list(batch.query_x.shape[2:])}; they must be equal"
        )
    if batch.support_x.dtype != batch.query_x.dtype:
        raise TypeError(f"support_x is {batch.support_x.dtype} and query_x is {batch.query_x.dtype}; use one dtype")
    if batch.support_y.dtype != batch.query_y.dtype:
        raise TypeError(f"support_y is {batch.support_y.dtype} and query_y is {batch.query_y.dtype}; use one dtype")
    if not batch.support_y.is_floating_point() and batch.support_y.dim() == 2:
        unseen = [
            t for t, (s, q) in enumerate(zip(batch.support_y.tolist(), batch.query_y.tolist())) if not set(q) <= set(s)
        ]
        if unseen:
            raise ValueError(
                f"task {unseen[0]} asks in its query set for classes that its support set never shows "
                f"({sorted(set(batch.query_y[unseen[0]].tolist()) - set(batch.support_y[unseen[0]].tolist()))}); "
                "sample support and query from the same ways"
            )
