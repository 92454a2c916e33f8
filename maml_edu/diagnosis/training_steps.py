"""`from_training_step`: a training step on an `nn.Module`, as people write it, in the form that `diagnose` takes."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from maml_edu.diagnosis.known_mistakes import Hypothesis, problems
from maml_edu.tasks import TaskBatch

TrainingStep = Callable[[nn.Module, TaskBatch, float, int], None]


def from_training_step(training_step: TrainingStep, batch_norm: bool = False):
    """training_step(net, batch, alpha, steps), which leaves the meta-gradient in `.grad`, as a function for `diagnose`.

    net: Linear(2, 5), Tanh, Linear(5, outputs) in float64, in training mode, with `.grad` None everywhere; batch: a
    `TaskBatch` [T, n, …] of regression tasks, on which the step takes the mean squared error, `mse_loss`.
    The step ends before the optimiser's. With batch_norm there is a BatchNorm1d without weight and bias behind the
    first layer, and the meta-gradient meant is that of batch statistics everywhere.
    """

    def run(loss, theta, batch, alpha, steps, times):
        net = _net(theta, batch_norm)
        for _ in range(times):
            net.zero_grad()
            returned = training_step(net, batch, alpha, steps)
        if returned is not None and all(p.grad is None for p in net.parameters()):
            raise TypeError("the step returns something and leaves no .grad: it should call .backward()")
        linear = [net[0], net[-1]]
        with torch.no_grad():
            for i, layer in enumerate(linear, start=1):  # what the step wrote into the module is a change of θ
                theta[f"w{i}"].copy_(layer.weight.T)
                theta[f"b{i}"].copy_(layer.bias)
        found = {}
        for i, layer in enumerate(linear, start=1):
            found[f"w{i}"] = None if layer.weight.grad is None else layer.weight.grad.T
            found[f"b{i}"] = layer.bias.grad
        return found

    def meta_gradient(loss, theta, batch, alpha, steps):
        return run(loss, theta, batch, alpha, steps, times=1)

    def again(loss, theta, batch, alpha, steps):
        return run(loss, theta, batch, alpha, steps, times=2)

    meta_gradient.again = again
    if batch_norm:
        meta_gradient.problems = _with_batch_norm
    meta_gradient.ordinary_only = True  # its parameters are those of the module, its α a number
    return meta_gradient


def _net(theta, batch_norm):
    (inputs, hidden), outputs = theta["w1"].shape, theta["w2"].shape[1]
    middle = [nn.BatchNorm1d(hidden, affine=False)] if batch_norm else []
    net = nn.Sequential(nn.Linear(inputs, hidden), *middle, nn.Tanh(), nn.Linear(hidden, outputs)).double()
    with torch.no_grad():
        for i, layer in enumerate((net[0], net[-1]), start=1):
            layer.weight.copy_(theta[f"w{i}"].T)
            layer.bias.copy_(theta[f"b{i}"])
    return net


def _with_batch_norm():
    return problems(_normalised, _SUSPICIONS)


# ---------------------------------------------------------------- batch norm, and what goes wrong with it


def _normalised(params, x, statistics=None):
    """The network with batch norm: statistics (mean, variance) [hidden], or those of the examples of x […, n, 2]."""
    h = x @ params["w1"] + params["b1"].unsqueeze(-2)
    mean, variance = statistics or (h.mean(-2, keepdim=True), h.var(-2, unbiased=False, keepdim=True))
    h = (h - mean) / torch.sqrt(variance + 1e-5)
    return torch.tanh(h) @ params["w2"] + params["b2"].unsqueeze(-2)


def _with_running_statistics(everywhere, exact):
    """The query passes (or all) take running statistics, which every pass in training mode moves a tenth of the way."""

    def per_task(p):
        theta = {name: t.detach().clone().requires_grad_() for name, t in p.theta.items()}
        running = (torch.zeros_like(theta["b1"]), torch.ones_like(theta["b1"]))
        found = []
        for x, y, query_x, query_y in zip(*p.batch):
            params = theta
            for _ in range(p.steps):
                loss = (_normalised(params, x, running if everywhere else None) - y).square().mean()
                g = torch.autograd.grad(loss, list(params.values()), create_graph=exact, materialize_grads=True)
                if not everywhere:
                    h = (x @ params["w1"] + params["b1"]).detach()
                    running = tuple(0.9 * r + 0.1 * new for r, new in zip(running, (h.mean(0), h.var(0))))
                params = {n: t - p.alpha * step for (n, t), step in zip(params.items(), g)}
            loss = (_normalised(params, query_x, running) - query_y).square().mean()
            found.append(torch.autograd.grad(loss, list(theta.values()), materialize_grads=True))
        return {name: torch.stack(each) for name, each in zip(theta, zip(*found))}

    return per_task


_SUSPICIONS = tuple(
    Hypothesis(
        "batch-norm",
        f"{where} the running statistics of batch norm (`net.eval()`), but θ is trained with batch statistics. Stay in "
        "training mode, with track_running_stats=False." + ("" if exact else " And the Hessian terms are missing."),
        _with_running_statistics(everywhere, exact),
    )
    for everywhere, where in ((False, "the query set is judged with"), (True, "support and query are seen with"))
    for exact in (True, False)
)
