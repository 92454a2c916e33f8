"""A network that reads the support set and generates initial parameters of another; the K gradient steps follow.

It generates the head, one class at a time from the mean feature of that class, and the shift of every layer below, from
the mean over all support examples. Means do not depend on the order of the examples, and a class is read by the same
network whatever its label. The weights below the head are θ itself: a dense last layer that generates them would have
`hidden` times as many weights as there are numbers to generate. Ha, Dai & Le (2017) have cheaper ways, not used here.
"""

import functools

import torch
from torch import Tensor

from maml_edu.electives.conditioned_starts import ConditionedModel
from maml_edu.electives.heads import HEAD, add_prefix, class_means, take_prefix, without_head
from maml_edu.models import Model, mlp
from maml_edu.tasks import Params, expand_over_tasks

SHIFTS = ("conv1.shift", "conv2.shift", "conv3.shift", "conv4.shift")  # of conv4


def hypernetwork(
    model: Model,
    ways: int,
    hidden: int = 64,
    generator: torch.Generator | None = None,
    head: tuple[str, str] = HEAD,
    shifts: tuple[str, ...] = SHIFTS,
) -> ConditionedModel:
    """θ: the model without its head, and two small networks "class." and "task." that generate; φ_0: the whole model.

    From the mean feature p_c [F] of a class, "class." makes the head's column and bias of that class [F + 1]. From the
    mean feature of all examples, "task." makes what is added to the parameters named in `shifts` (at first a tenth of
    what a fresh network gives, so that training begins near a common start). hidden: width of both.
    Source: the idea of Ha, Dai & Le (2017), with a support set as its input.
    Raises ValueError if a name in `shifts` or `head` is no parameter of the model.
    """
    body = without_head(model, head)
    missing = [name for name in shifts if name not in body.theta]
    if missing:
        raise ValueError(f"shifts names {missing}, which the model without its head has not; it has {list(body.theta)}")
    features, like = model.theta[head[0]].shape[0], model.theta[head[0]]
    sizes = [body.theta[name].numel() for name in shifts]
    network = functools.partial(mlp, activation="tanh", generator=generator, dtype=like.dtype, device=like.device)
    of_class, of_task = network((features, hidden, features + 1)), network((features, hidden, sum(sizes)))
    for name in ("w2", "b2"):
        of_task.theta[name] *= 0.1

    def generated(theta: Params, x: Tensor, y: Tensor) -> Params:
        phi = expand_over_tasks({name: theta[name] for name in body.theta}, len(x))
        h = body.apply(phi, x)  # [T, n, F]
        columns = of_class.apply(take_prefix("class.", theta), class_means(h, y, ways))  # [T, ways, F + 1]
        added = of_task.apply(take_prefix("task.", theta), h.mean(1, keepdim=True))[:, 0].split(sizes, 1)
        for name, change in zip(shifts, added):
            phi[name] = phi[name] + change.view_as(phi[name])
        return {**phi, head[0]: columns[:, :, :-1].mT, head[1]: columns[:, :, -1]}

    theta = {**body.theta, **add_prefix("class.", of_class.theta), **add_prefix("task.", of_task.theta)}
    return ConditionedModel(Model(theta, model.apply), generated)
