"""Prototypical networks: a start that puts the class means into the head. With K > 0 steps after it, ProtoMAML.

The score of class c is −‖h − p_c‖² = 2p_c·h − ‖p_c‖² − ‖h‖², and ‖h‖² is the same for all classes. So comparing with
prototypes is a linear head, w_c = 2p_c and b_c = −‖p_c‖².
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from maml_edu.electives.conditioned_starts import ConditionedModel, everywhere
from maml_edu.models import Model

HEAD = ("head.weight", "head.bias")  # of conv4


def without_head(model: Model, head: tuple[str, str] = HEAD) -> Model:
    """The embedding of a model: apply(params, x, context=None) -> the features [T, n, F] that its linear head reads.

    head: the names of its last weight [F, outputs] and bias; the other parameters are the θ of the embedding. The
    identity takes the place of the weight, so any model with a linear last layer will do.
    Raises ValueError if the model has no such parameters.
    """
    weight, bias = head
    if weight not in model.theta or bias not in model.theta or model.theta[weight].dim() != 2:
        raise ValueError(f"this model has no linear head {head}; its parameters are {list(model.theta)}")
    features = model.theta[weight].shape[0]

    def apply(params, x, context=None):
        one = next(iter(params.values()))
        shape = (x.shape[0],) if one.dim() > theta[next(iter(params))].dim() else ()
        identity = torch.eye(features, dtype=one.dtype, device=one.device).expand(*shape, features, features)
        return model.apply({**params, weight: identity, bias: one.new_zeros(*shape, features)}, x, context)

    theta = {name: p for name, p in model.theta.items() if name not in head}
    return Model(theta, apply)


def class_means(h: Tensor, y: Tensor, ways: int) -> Tensor:
    """The prototypes [T, ways, F]: the mean of the features h [T, n, F] of each class; y [T, n] in 0 … ways−1.

    Source: Snell, Swersky & Zemel (2017), eq. 1. Raises ValueError if a class has no example.
    """
    if y.min() < 0 or y.max() >= ways:
        raise ValueError(f"labels from {int(y.min())} to {int(y.max())}; {ways} ways take 0 to {ways - 1}")
    members = F.one_hot(y, ways).to(h)  # [T, n, ways]
    count = members.sum(1)
    if not count.all():
        raise ValueError("a class without support example has no prototype; sample every class of the task")
    return members.mT @ h / count.unsqueeze(2)


def prototype_head(prototypes: Tensor) -> tuple[Tensor, Tensor]:
    """w_c = 2p_c and b_c = −‖p_c‖² from prototypes [T, ways, F]: weight [T, F, ways], bias [T, ways].

    Source: Snell et al. (2017), §2.4.
    """
    return 2 * prototypes.mT, -prototypes.square().sum(2)


def prototypical(model: Model, ways: int, head: tuple[str, str] = HEAD) -> ConditionedModel:
    """A prototypical network (K = 0) or ProtoMAML (K > 0): θ is the model without its head, φ_0 the whole model.

    Source: Snell et al. (2017), Algorithm 1 (squared Euclidean distance); Triantafillou et al. (2020).
    """
    embedding = without_head(model, head)

    def prototypes(theta, x, y):
        phi = everywhere(theta, x, y)
        weight, bias = prototype_head(class_means(embedding.apply(phi, x), y, ways))
        return {**phi, head[0]: weight, head[1]: bias}

    return ConditionedModel(Model(embedding.theta, model.apply), prototypes)
