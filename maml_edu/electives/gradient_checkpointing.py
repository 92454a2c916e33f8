"""The exact meta-gradient with √K instead of K stored parameter vectors per task, for taking most steps twice.

`maml` keeps every θ_j of the path, since the pullback of step j needs it. Here only every `every`-th one is kept; the
steps between two of them are taken again, from the earlier one, when the backward pass gets there. All is exact.
Source of the idea: Griewank (1992), Optimization Methods and Software 1; for deep networks Chen et al. (2016), §4.
"""

import math
from typing import cast

from maml_edu.hessian_vector import value_and_gradient
from maml_edu.meta_gradient import MetaGradient, descend, pull_back
from maml_edu.step_sizes import Alpha, alpha_per_step, collect_alpha_gradient
from maml_edu.tasks import Loss, Params, TaskBatch, expand_over_tasks, mean_over_tasks


def maml_checkpointed(
    loss: Loss, theta: Params, batch: TaskBatch, alpha: Alpha, steps: int = 1, every: int | None = None
) -> MetaGradient:
    """As `maml`, with about steps/every + every stored θ_j per task instead of steps.

    every: how many inner steps lie between two stored θ_j; None takes √steps, rounded up, which stores fewest. every =
    steps stores as much as `maml`. Raises ValueError for every < 1, and for what `maml` refuses.
    """
    alphas, every = alpha_per_step(alpha, theta, steps), _spacing(steps, every)
    x, y = batch.support_x, batch.support_y

    # forward: adapt. kept: θ_0, θ_every, θ_2·every, …; of the last segment, which is pulled back first, all.
    kept: list[Params] = [expand_over_tasks(theta, x.shape[0])]
    segment: list[Params] = []
    starts = range(0, steps, every)
    for first in starts:
        segment = []  # freed before the next one is made
        segment = descend(loss, kept[-1], x, y, alphas[first : first + every], len(alphas[first : first + every]))
        kept.append(segment[-1])
    phi = kept[-1]
    query_loss, v = value_and_gradient(loss, phi, batch.query_x, batch.query_y)

    # backward: pull back, one segment after the other
    shares: list[Params] = []
    for first in reversed(starts):
        own = alphas[first : first + every]
        end = kept.pop()
        path = segment or [*descend(loss, kept[-1], x, y, own[:-1], len(own) - 1), end]
        v, of_alpha = pull_back(loss, path, x, y, own, v)
        shares = [*cast(list[Params], of_alpha), *shares]  # a list per step, as `own` is
        segment = path = []
    # the shares are means over tasks with their sign already: "−1 task" leaves a plain sum, in the form of alpha
    return MetaGradient(mean_over_tasks(v), query_loss, phi, collect_alpha_gradient(alpha, shares, -1))


def _spacing(steps: int, every: int | None) -> int:
    if every is None:
        return max(1, math.isqrt(max(steps - 1, 0)) + 1)  # √steps, rounded up
    if isinstance(every, bool) or not isinstance(every, int) or every < 1:
        raise ValueError(f"every={every!r}; expected a whole number of inner steps between two stored θ_j, 1 or more")
    return every


def vectors_stored(steps: int, every: int | None = None) -> int:
    """How many θ_j per task `maml_checkpointed` holds at most at one time (θ_0 costs nothing: it is the same for all).

    The starts of all segments but the first, and one whole segment: for K = 100 and every = 10 that is 9 + 10.
    """
    every = _spacing(steps, every)
    return max((-(-steps // every)) - 1, 0) + min(every, steps)
