"""Small problems in float64, the plainest inner loop to check against, and ways to compare gradients."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from maml_edu.data.sine import SineTasks
from maml_edu.models import conv4, cross_entropy, from_module, mlp, mse
from maml_edu.tasks import Loss, Params, TaskBatch


class Problem(NamedTuple):
    loss: Loss
    theta: Params
    batch: TaskBatch


def regression(tasks: int, support: int, query: int, generator: torch.Generator) -> TaskBatch:
    def draw(examples, features):
        return torch.randn(tasks, examples, features, generator=generator, dtype=torch.float64)

    return TaskBatch(draw(support, 2), draw(support, 3), draw(query, 2), draw(query, 3))


def tanh_mlp(tasks: int = 3, support: int = 4, query: int = 6) -> Problem:
    generator = torch.Generator().manual_seed(1)
    model = mlp((2, 4, 3), activation="tanh", generator=generator, dtype=torch.float64)
    return Problem(mse(model.apply), model.theta, regression(tasks, support, query, generator))


def small_conv4(tasks: int = 2, ways: int = 3, filters: int = 2, image: int = 8) -> Problem:
    generator = torch.Generator().manual_seed(2)
    model = conv4(ways, filters, image, generator=generator, dtype=torch.float64)

    def pictures(per_class):
        x = torch.randn(tasks, ways * per_class, 1, image, image, generator=generator, dtype=torch.float64)
        return x, torch.arange(ways).repeat_interleave(per_class).repeat(tasks, 1)

    return Problem(cross_entropy(model.apply), model.theta, TaskBatch(*pictures(2), *pictures(3)))


def module_with_batch_norm(tasks: int = 3) -> Problem:
    generator = torch.Generator().manual_seed(3)
    norm = nn.BatchNorm1d(4, track_running_stats=False)
    module = nn.Sequential(nn.Linear(2, 4), norm, nn.Tanh(), nn.Linear(4, 3)).double()
    with torch.no_grad():
        for p in module.parameters():
            p.copy_(torch.randn(p.shape, generator=generator, dtype=p.dtype))
    model = from_module(module)
    return Problem(mse(model.apply), model.theta, regression(tasks, 4, 6, generator))


PROBLEMS: dict[str, Callable[[], Problem]] = {
    "mlp": tanh_mlp,
    "conv4": small_conv4,
    "module": module_with_batch_norm,
}
ALPHA = {"mlp": 0.2, "conv4": 0.3, "module": 0.1}


def rate(alpha, step: int, name: str):
    """The step size of one parameter at one inner step, whatever form alpha has."""
    alpha = alpha[step] if isinstance(alpha, list) else alpha
    return alpha[name] if isinstance(alpha, dict) else alpha


def one_task_at_a_time(problem: Problem, theta: Params, alpha, steps: int, create_graph=False):
    """For each task, the list θ_0 … θ_K: textbook gradient descent on parameters without a task axis."""
    paths = []
    for x, y in zip(problem.batch.support_x.split(1), problem.batch.support_y.split(1)):
        path = [theta if create_graph else {name: p.detach().requires_grad_() for name, p in theta.items()}]
        for j in range(steps):
            (value,) = problem.loss(path[-1], x, y)
            g = torch.autograd.grad(value, list(path[-1].values()), create_graph=create_graph)
            step = {name: p - rate(alpha, j, name) * d for (name, p), d in zip(path[-1].items(), g)}
            path.append(step if create_graph else {n: p.detach().requires_grad_() for n, p in step.items()})
        paths.append(path)
    return paths


def query_loss(problem: Problem, paths: list[list[Params]], step: int = -1) -> Tensor:
    """The mean over tasks of the query loss at θ_step; a number to differentiate."""
    queries = zip(paths, problem.batch.query_x.split(1), problem.batch.query_y.split(1))
    return torch.cat([problem.loss(path[step], x, y) for path, x, y in queries]).mean()


def flat(params: Params) -> Tensor:
    return torch.cat([p.detach().flatten() for p in params.values()])


def relative(found: Params, expected: Params) -> float:
    """‖found − expected‖/‖expected‖ over the whole gradient: single entries may be zero."""
    assert list(found) == list(expected)
    assert {n: p.shape for n, p in found.items()} == {n: p.shape for n, p in expected.items()}
    return ((flat(found) - flat(expected)).norm() / flat(expected).norm()).item()


def random_like(params: Params, seed: int = 0) -> Params:
    generator = torch.Generator().manual_seed(seed)
    return {n: torch.randn(p.shape, generator=generator, dtype=p.dtype) for n, p in params.items()}


def sines(tasks: int, generator: torch.Generator) -> TaskBatch:
    """A sampler of the sine family, ten examples on either side."""
    return SineTasks().sample(tasks, 10, generator=generator)


def varied_alpha(theta, seed=0):
    """A different rate for every single number in θ, between 0.05 and 0.35."""
    generator = torch.Generator().manual_seed(seed)
    return {n: 0.05 + 0.3 * torch.rand(p.shape, generator=generator, dtype=p.dtype) for n, p in theta.items()}


# Routes to H·v, and how close to automatic differentiation each must come.
ROUTES = {"double-backward": 1e-9, "forward-over-reverse": 1e-9, "finite-difference": 1e-6}
