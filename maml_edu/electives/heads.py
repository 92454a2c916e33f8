"""The linear head of a model, and the body before it: their names, the features between them, class means of these.

Also two helpers for models put together from several networks, whose parameters a prefix keeps apart.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from maml_edu.models import Apply, Model, Statistics
from maml_edu.tasks import Params

HEAD = ("head.weight", "head.bias")  # of conv4


def head_names(theta: Params) -> list[str]:
    """The weight and bias of the last linear layer: the last two tensors of θ, as in `mlp`, `conv4` and most modules.

    Raises ValueError if these are not a matrix and a vector that fit each other, or if nothing is left for the body.
    """
    names = list(theta)[-2:]
    shapes = [list(theta[name].shape) for name in names]
    if len(theta) < 3 or [len(s) for s in shapes] != [2, 1] or shapes[1][0] not in shapes[0]:
        last = ", ".join(f"{name} {shape}" for name, shape in zip(names, shapes)) or "nothing"
        raise ValueError(f"expected a body and, last in theta, weight and bias of a linear head; the last are {last}")
    return names


def body_names(theta: Params) -> list[str]:
    """All parameters before the head."""
    head = head_names(theta)
    return [name for name in theta if name not in head]


def features(apply: Apply, params: Params, x: Tensor) -> Tensor:
    """What the head is given, [T, n, F]: the model with the identity matrix for a head and no bias.

    params: dict [T, …]; x [T, n, …]. Works for every model whose last two tensors are its linear head.
    """
    weight, bias = list(params)[-2:]
    (rows, columns), outputs = params[weight].shape[-2:], params[bias].shape[-1]
    width = columns if rows == outputs and columns != outputs else rows  # [in, out] here, [out, in] in nn.Linear
    return apply({**params, **_identity_head((weight, bias), width, params[weight], (x.shape[0],))}, x)


def without_head(model: Model, head: tuple[str, str] = HEAD) -> Model:
    """The body of a model: apply(params, x, context=None) -> the features [T, n, F] that its linear head reads.

    head: the names of its last weight [F, outputs] and bias; the other parameters are the θ of the body.
    Raises ValueError if the model has no such parameters.
    """
    if not set(head) <= set(model.theta) or model.theta[head[0]].dim() != 2:
        raise ValueError(f"this model has no linear head {head}; its parameters are {list(model.theta)}")
    width = model.theta[head[0]].shape[0]
    theta = {name: p for name, p in model.theta.items() if name not in head}

    def apply(params: Params, x: Tensor, context: Tensor | Statistics | None = None) -> Tensor:
        name, p = next(iter(params.items()))
        tasks = (x.shape[0],) if p.dim() > theta[name].dim() else ()
        return model.apply({**params, **_identity_head(head, width, p, tasks)}, x, context)

    return Model(theta, apply)


def _identity_head(names: tuple[str, str], width: int, like: Tensor, tasks: tuple[int, ...]) -> Params:
    """A head that passes the features on: weight [*tasks, F, F] and bias [*tasks, F], F `width`."""
    identity = torch.eye(width, dtype=like.dtype, device=like.device).expand(*tasks, width, width)
    return {names[0]: identity, names[1]: like.new_zeros(*tasks, width)}


def class_means(h: Tensor, y: Tensor, ways: int) -> Tensor:
    """The mean [T, ways, F] of the features h [T, n, F] of each class; y [T, n] in 0 … ways−1.

    Raises ValueError if a class has no example, or a label no class.
    """
    if y.min() < 0 or y.max() >= ways:
        raise ValueError(f"labels from {int(y.min())} to {int(y.max())}; {ways} ways take 0 to {ways - 1}")
    members = F.one_hot(y, ways).to(h)  # [T, n, ways]
    count = members.sum(1)
    if not count.all():
        raise ValueError("a class without support example has no prototype; sample every class of the task")
    return members.mT @ h / count.unsqueeze(2)


def add_prefix(prefix: str, params: Params) -> Params:
    """The same parameters with a prefix before each name."""
    return {prefix + name: p for name, p in params.items()}


def take_prefix(prefix: str, params: Params) -> Params:
    """Those parameters whose name begins with the prefix, without it."""
    return {name.removeprefix(prefix): p for name, p in params.items() if name.startswith(prefix)}
