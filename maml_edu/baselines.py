"""Two methods that need no Hessian at all: Reptile, and joint training without any adaptation."""

import torch

from maml_edu.hessian_vector import value_and_gradient, value_per_task
from maml_edu.meta_gradient import MetaGradient, adapt, inner_loop
from maml_edu.step_sizes import Alpha, alpha_per_step
from maml_edu.tasks import (
    Loss,
    Params,
    TaskBatch,
    all_examples,
    expand_over_tasks,
    mean_over_tasks,
    plus,
    without_graph,
)


def reptile(loss: Loss, theta: Params, batch: TaskBatch, alpha: Alpha, steps: int = 5) -> MetaGradient:
    """Reptile: mean(θ − φ̃)/α, φ̃ after K steps on support ∪ query. Source: Nichol et al. (2018), Algorithm 2.

    (θ − φ̃)/α is the sum of the K inner gradients, and is computed as that sum; a parameter frozen by α = 0 gets zero.
    steps = 1 is joint training. phi and query_loss leave the queries out: phi is θ after K steps on the support set
    alone, so that the query loss is one of examples not seen before. It costs K more gradients, of the support set.
    Raises ValueError for a list of step sizes: which of them should it divide by?
    """
    if isinstance(alpha, (list, tuple)):
        raise ValueError("reptile divides by one α; give a number or a dict, not a list per step")
    start = without_graph(expand_over_tasks(theta, len(batch.support_x)))
    total = {name: torch.zeros_like(p) for name, p in start.items()}
    for _, g, _ in inner_loop(loss, start, *all_examples(batch), alpha_per_step(alpha, theta, steps)):
        total = plus(total, g)
    if isinstance(alpha, dict):
        total = {name: torch.where(torch.as_tensor(alpha[name]) == 0, 0, t) for name, t in total.items()}
    phi = adapt(loss, theta, batch.support_x, batch.support_y, alpha, steps)[-1]
    with torch.no_grad():
        query_loss = value_per_task(loss, phi, batch.query_x, batch.query_y)
    return MetaGradient(mean_over_tasks(total), query_loss, phi, None)


def joint(loss: Loss, theta: Params, batch: TaskBatch, alpha: Alpha = 0.0, steps: int = 0) -> MetaGradient:
    """No adaptation: the gradient at θ on support ∪ query, mean over tasks: pre-training, and the oracle.

    alpha and steps are there because every method has them; they do nothing here.
    """
    x, y = all_examples(batch)
    everywhere = without_graph(expand_over_tasks(theta, len(x)))
    _, g = value_and_gradient(loss, everywhere, x, y)
    with torch.no_grad():
        query_loss = value_per_task(loss, everywhere, batch.query_x, batch.query_y)
    return MetaGradient(mean_over_tasks(g), query_loss, everywhere, None)
