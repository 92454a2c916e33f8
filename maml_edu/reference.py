"""What the heart is held against: the same meta-gradient by unrolling all inner steps with autograd."""

from collections.abc import Callable

import torch
from torch import Tensor

from maml_edu.hessian_vector import StepWeights, check_step_weights, value_per_task
from maml_edu.meta_gradient import MetaGradient
from maml_edu.step_sizes import Alpha, alpha_per_step, flat_alpha, map_alpha
from maml_edu.tasks import Loss, Params, TaskBatch, expand_over_tasks

Start = Callable[[Params, Tensor, Tensor], Params]  # (theta, support x [T, n, …], support y) -> φ_0, tensors [T, …]


def autograd_maml(
    loss: Loss,
    theta: Params,
    batch: TaskBatch,
    alpha: Alpha,
    steps: int = 1,
    step_weights: StepWeights = None,
    start: Start | None = None,
) -> MetaGradient:
    """The same as `maml` by unrolling all K steps with create_graph=True. Its memory grows by a whole graph per step.

    start: where the inner steps start from, if not from θ itself (see `electives/conditioned_starts.py`).
    """
    theta = {name: p.detach().clone().requires_grad_() for name, p in theta.items()}
    like = next(iter(theta.values()))
    alpha = map_alpha(
        lambda a: torch.as_tensor(a, dtype=like.dtype, device=like.device).detach().clone().requires_grad_(), alpha
    )
    x, y = batch.support_x, batch.support_y
    phi = expand_over_tasks(theta, len(x)) if start is None else start(theta, x, y)
    # Nodes of their own: a start may compute one part of φ_0 from another (a head from a body), and the inner gradient
    # is the partial one, with every part of φ a variable.
    phi = {name: p.view_as(p) for name, p in phi.items()}
    alphas = alpha_per_step(alpha, phi, steps, task_axis=True, detach=False)
    weights = [0.0] * (steps - 1) + [1.0] if step_weights is None else check_step_weights(step_weights, steps)
    query_loss, objective = None, torch.zeros((), dtype=like.dtype, device=like.device)
    for j, (a, weight) in enumerate(zip(alphas, weights), start=1):
        values = value_per_task(loss, phi, x, y)
        g = torch.autograd.grad(values.sum(), list(phi.values()), create_graph=True, materialize_grads=True)
        phi = {name: p - a[name] * g_p for (name, p), g_p in zip(phi.items(), g)}
        if j == steps or isinstance(weight, Tensor) or weight:
            query_loss = value_per_task(loss, phi, batch.query_x, batch.query_y)
            objective = objective + weight * query_loss.mean()
    if query_loss is None:  # no steps
        query_loss = value_per_task(loss, phi, batch.query_x, batch.query_y)
        objective = query_loss.mean()
    inputs = [*theta.values(), *flat_alpha(alpha)]
    gradient = torch.autograd.grad(objective, inputs, materialize_grads=True)
    of_alpha = iter(gradient[len(theta) :])
    return MetaGradient(
        dict(zip(theta, gradient)),
        query_loss.detach(),
        {name: p.detach() for name, p in phi.items()},
        map_alpha(lambda a: next(of_alpha), alpha),
    )
