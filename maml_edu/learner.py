"""`MAML(net, loss)`: the exact meta-gradient for your own `nn.Module`, loss, optimiser and training loop.

meta = MAML(net, F.mse_loss, alpha=0.01, steps=5)
optimizer = torch.optim.AdamW(meta.parameters(), lr=1e-3)
for batch in batches:  # support x, support y, query x, query y, each [tasks, examples, …]
    optimizer.zero_grad()
    query_loss = meta.backward(batch)
    optimizer.step()
adapted = meta.adapt(x, y)  # a module for a new task, from its few examples
"""

import copy
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from maml_edu.meta_gradient import adapt, fomaml, maml
from maml_edu.models import from_module
from maml_edu.step_sizes import Alpha, flat_alpha, map_alpha
from maml_edu.tasks import Params, TaskBatch, check_batch

TaskLoss = Callable[[Tensor, Tensor], Tensor]  # (prediction, target) of one task -> their mean loss


class MAML(nn.Module):
    """net, which is trained, and how it adapts: `steps` inner gradient steps of size alpha on a task's support set.

    loss(prediction, target): the mean loss of one task, such as torch.nn.functional.cross_entropy. alpha: a number, a
    dict with one for each parameter of net (0 freezes it), or a list of these per step; with learn_alpha the step
    sizes are parameters of this module, one per tensor of net and step if alpha is a number. first_order: FOMAML.
    Parameters of net with requires_grad=False stay constants. Source: Finn, Abbeel & Levine (2017), Algorithm 1.
    Raises ValueError for a net with nothing to train, or one that a meta-gradient can't go through (`from_module`).
    """

    def __init__(
        self,
        net: nn.Module,
        loss: TaskLoss,
        alpha: Alpha = 0.01,
        steps: int = 1,
        first_order: bool = False,
        learn_alpha: bool = False,
    ) -> None:
        super().__init__()
        self.net, self.loss, self.steps, self.method = net, loss, steps, fomaml if first_order else maml
        self._apply_net, self._checked = from_module(net).apply, False
        if not self.theta:
            raise ValueError(
                f"no parameter of {type(net).__name__} has requires_grad=True, so there is nothing to train"
            )
        if learn_alpha and isinstance(alpha, (int, float, Tensor)):
            alpha = [dict.fromkeys(self.theta, alpha) for _ in range(steps)]
        self._alpha = alpha
        like = next(net.parameters())
        sizes = [torch.as_tensor(a, dtype=like.dtype, device=like.device) for a in flat_alpha(alpha)]
        learned = [nn.Parameter(a.detach().clone(), requires_grad=bool((a != 0).any())) for a in sizes]
        self.step_sizes = nn.ParameterList(learned if learn_alpha else [])

    @property
    def theta(self) -> Params:
        """The parameters of net that adapt, by name."""
        return {name: p for name, p in self.net.named_parameters() if p.requires_grad}

    @property
    def alpha(self) -> Alpha:
        """The step sizes in the form they were given in; learned ones as they are now."""
        if not len(self.step_sizes):
            return self._alpha
        sizes = iter(self.step_sizes)
        return map_alpha(lambda _: next(sizes), self._alpha)

    def task_losses(self, params: Params, x: Tensor, y: Tensor) -> Tensor:
        """The loss of every task [T], for parameters, inputs and targets with the task axis T in front."""
        return torch.vmap(self.loss)(self._apply_net(params, x), y)

    def backward(self, batch: Sequence[Tensor]) -> Tensor:
        """Add the meta-gradient of a batch to `.grad` of all parameters; returns the mean query loss, without graph.

        batch: a TaskBatch, or any four tensors support x, support y, query x, query y, each [T, n, …]. The first one is
        looked at closely (see `check_batch`).
        """
        tasks = TaskBatch(*batch)
        if not self._checked:
            check_batch(tasks)
            self._checked = True
        result = self.method(self.task_losses, self.theta, tasks, self.alpha, self.steps)
        of_alpha = (
            flat_alpha(result.alpha_gradient) if len(self.step_sizes) and result.alpha_gradient is not None else []
        )
        gradients = [*result.gradient.values(), *of_alpha]
        for p, g in zip([*self.theta.values(), *self.step_sizes], gradients):
            if p.requires_grad:  # a step size of 0 stays 0
                g = torch.as_tensor(g).to(p)
                p.grad = g if p.grad is None else p.grad + g
        return result.query_loss.mean()

    def adapt(self, x: Tensor, y: Tensor) -> nn.Module:
        """A copy of net, adapted to one task: x [n, …], y [n, …]. Its weights are its own, and can be trained on."""
        phi = adapt(self.task_losses, self.theta, x[None], y[None], self.alpha, self.steps)[-1]
        adapted = copy.deepcopy(self.net)
        with torch.no_grad():
            for name, p in adapted.named_parameters():
                if name in phi:
                    p.copy_(phi[name][0])
        return adapted
