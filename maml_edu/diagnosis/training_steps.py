"""`from_training_step`: a training step on an `nn.Module`, as people write it, in the form that `diagnose` takes."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from maml_edu.diagnosis.problems import Hypothesis, PerTask, Problem, problems, squared_error
from maml_edu.learner import TaskLoss
from maml_edu.tasks import Loss, Params, TaskBatch

TrainingStep = Callable[[nn.Module, TaskBatch, float, int], object]  # what it returns is not used


@dataclass(frozen=True)
class WrappedStep:
    """A training step as a function (loss, theta, batch, alpha, steps) -> what it left in `.grad`, a dict like theta.

    Its parameters are those of the module, and its α is a number.
    """

    training_step: TrainingStep
    batch_norm: bool
    task_loss: TaskLoss

    def __call__(
        self, loss: Loss, theta: Params, batch: TaskBatch, alpha: float, steps: int
    ) -> dict[str, Tensor | None]:
        return self._run(theta, batch, alpha, steps, times=1)

    def second_call(
        self, loss: Loss, theta: Params, batch: TaskBatch, alpha: float, steps: int
    ) -> dict[str, Tensor | None]:
        """The same for a module that has been through the step once already."""
        return self._run(theta, batch, alpha, steps, times=2)

    def _run(self, theta: Params, batch: TaskBatch, alpha: float, steps: int, times: int) -> dict[str, Tensor | None]:
        net = _net(theta, self.batch_norm)
        for _ in range(times):
            net.zero_grad()
            returned = self.training_step(net, batch, alpha, steps)
        if returned is not None and all(p.grad is None for p in net.parameters()):
            raise TypeError("the step returns something and leaves no .grad: it should call .backward()")
        gradient: dict[str, Tensor | None] = {}
        for i, layer in enumerate(_linear_layers(net), start=1):
            with torch.no_grad():  # what the step wrote into the module is a change of θ
                theta[f"w{i}"].copy_(layer.weight.T)
                theta[f"b{i}"].copy_(layer.bias)
            gradient[f"w{i}"] = None if layer.weight.grad is None else layer.weight.grad.T
            gradient[f"b{i}"] = layer.bias.grad
        return gradient

    @property
    def make_problems(self) -> Callable[[], list[Problem]]:
        """What makes the problems for it to be tried on."""
        return _Problems(self.batch_norm, self.task_loss)


def from_training_step(
    training_step: TrainingStep, batch_norm: bool = False, loss: TaskLoss = nn.functional.mse_loss
) -> WrappedStep:
    """training_step(net, batch, alpha, steps), which leaves the meta-gradient in `.grad`, as a function for `diagnose`.

    net: Linear(2, 5), Tanh, Linear(5, outputs) in float64, in training mode, with `.grad` None everywhere; batch: a
    `TaskBatch` [T, n, …]. loss(prediction, target): what the step takes as the mean loss of a task, such as
    `torch.nn.functional.cross_entropy`; the batch has integer labels if the loss takes them, real targets otherwise.
    The step ends before the optimiser's. With batch_norm there is a BatchNorm1d without weight and bias behind the
    first layer, and the meta-gradient meant is that of batch statistics everywhere. Raises TypeError for a loss that
    isn't callable.
    """
    if not callable(loss):
        raise TypeError(
            f"loss is a {type(loss).__name__}; pass the function itself, such as torch.nn.functional.cross_entropy"
        )
    return WrappedStep(training_step, batch_norm, squared_error if loss is nn.functional.mse_loss else loss)


@dataclass(frozen=True)
class _Problems:
    """Makes the problems; equal for equal choices, so that what is known about them is computed once."""

    batch_norm: bool
    task_loss: TaskLoss

    def __call__(self) -> list[Problem]:
        if self.batch_norm:
            return problems(_normalised, self.task_loss, _SUSPICIONS)
        return problems(task_loss=self.task_loss)


def _net(theta: Params, batch_norm: bool) -> nn.Sequential:
    (inputs, hidden), outputs = theta["w1"].shape, theta["w2"].shape[1]
    middle = [nn.BatchNorm1d(hidden, affine=False)] if batch_norm else []
    net = nn.Sequential(nn.Linear(inputs, hidden), *middle, nn.Tanh(), nn.Linear(hidden, outputs)).double()
    with torch.no_grad():
        for i, layer in enumerate(_linear_layers(net), start=1):
            layer.weight.copy_(theta[f"w{i}"].T)
            layer.bias.copy_(theta[f"b{i}"])
    return net


def _linear_layers(net: nn.Sequential) -> list[nn.Linear]:
    return [part for part in net if isinstance(part, nn.Linear)]


# ---------------------------------------------------------------- batch norm, and what goes wrong with it


def _normalised(params: Params, x: Tensor, statistics: tuple[Tensor, Tensor] | None = None) -> Tensor:
    """The network with batch norm: statistics (mean, variance) [hidden], or those of the examples of x […, n, 2]."""
    h = x @ params["w1"] + params["b1"].unsqueeze(-2)
    mean, variance = statistics or (h.mean(-2, keepdim=True), h.var(-2, unbiased=False, keepdim=True))
    h = (h - mean) / torch.sqrt(variance + 1e-5)
    return torch.tanh(h) @ params["w2"] + params["b2"].unsqueeze(-2)


def _with_running_statistics(everywhere: bool, exact: bool) -> PerTask:
    """The query passes (or all) take running statistics, which every pass in training mode moves a tenth of the way."""

    def per_task(p: Problem) -> Params:
        theta = {name: t.detach().clone().requires_grad_() for name, t in p.theta.items()}
        running = (torch.zeros_like(theta["b1"]), torch.ones_like(theta["b1"]))
        gradients = []
        for x, y, query_x, query_y in zip(*p.batch):
            params = theta
            for _ in range(p.steps):
                loss = p.task_loss(_normalised(params, x, running if everywhere else None), y)
                g = torch.autograd.grad(loss, list(params.values()), create_graph=exact, materialize_grads=True)
                if not everywhere:
                    h = (x @ params["w1"] + params["b1"]).detach()
                    running = (0.9 * running[0] + 0.1 * h.mean(0), 0.9 * running[1] + 0.1 * h.var(0))
                params = {n: t - p.alpha * step for (n, t), step in zip(params.items(), g)}
            loss = p.task_loss(_normalised(params, query_x, running), query_y)
            gradients.append(torch.autograd.grad(loss, list(theta.values()), materialize_grads=True))
        return {name: torch.stack(each) for name, each in zip(theta, zip(*gradients))}

    return per_task


_SUSPICIONS = tuple(
    Hypothesis(
        "batch-norm",
        f"{where} the running statistics of batch norm (`net.eval()`), but θ is trained with batch statistics. Stay in "
        "training mode, with track_running_stats=False." + ("" if exact else " And the Hessian terms are missing."),
        _with_running_statistics(everywhere, exact),
    )
    for everywhere, where in ((False, "the query loss is taken with"), (True, "support and query are seen with"))
    for exact in (True, False)
)
