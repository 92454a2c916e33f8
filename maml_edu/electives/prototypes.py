"""Prototypical networks: a start that puts the class means into the head. With K > 0 steps after it, ProtoMAML.

The score of class c is −‖h − p_c‖² = 2p_c·h − ‖p_c‖² − ‖h‖², and ‖h‖² is the same for all classes. So comparing with
prototypes is a linear head, w_c = 2p_c and b_c = −‖p_c‖².
"""

from torch import Tensor

from maml_edu.electives.conditioned_starts import ConditionedModel
from maml_edu.electives.heads import HEAD, class_means, without_head
from maml_edu.models import Model
from maml_edu.tasks import Params, expand_over_tasks


def prototype_head(prototypes: Tensor) -> tuple[Tensor, Tensor]:
    """w_c = 2p_c and b_c = −‖p_c‖² from prototypes [T, ways, F]: weight [T, F, ways], bias [T, ways].

    Source: Snell et al. (2017), §2.4.
    """
    return 2 * prototypes.mT, -prototypes.square().sum(2)


def prototypical(model: Model, ways: int, head: tuple[str, str] = HEAD) -> ConditionedModel:
    """A prototypical network (K = 0) or ProtoMAML (K > 0): θ is the model without its head, φ_0 the whole model.

    A prototype is the mean of a class's features. Source: Snell et al. (2017), eq. 1 and Algorithm 1 (squared Euclidean
    distance); Triantafillou et al. (2020).
    """
    embedding = without_head(model, head)

    def prototypes(theta: Params, x: Tensor, y: Tensor) -> Params:
        phi = expand_over_tasks(theta, len(x))
        weight, bias = prototype_head(class_means(embedding.apply(phi, x), y, ways))
        return {**phi, head[0]: weight, head[1]: bias}

    return ConditionedModel(Model(embedding.theta, model.apply), prototypes)
