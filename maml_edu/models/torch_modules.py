"""Any `nn.Module` as a model: its forward as a function of its parameters, run over the task axis by `vmap`."""

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from maml_edu.models.model import Model, Statistics
from maml_edu.tasks import Params


def from_module(module: nn.Module) -> Model:
    """Any nn.Module, unchanged, as a Model: `functional_call` under `vmap` over the task axis.

    theta: copies of the module's parameters by name (a shared one once); buffers stay constants. The module's own
    training/eval mode is kept. Raises ValueError for what a meta-gradient cannot go through: batch norm with running
    statistics, active dropout, no parameters; and, when called, modules that change their buffers or draw random
    numbers in forward, or branch on the values of tensors.
    """
    name = type(module).__name__
    parameters = dict(module.named_parameters())
    if not parameters:
        raise ValueError(f"{name} has no parameters, so there is nothing to meta-learn")
    for path, part in module.named_modules():
        where = f"{name}.{path}" if path else name
        if getattr(part, "running_mean", None) is not None:
            raise ValueError(
                f"{where} ({type(part).__name__}) keeps running statistics: state that changes in every inner step and "
                f"has no gradient. Build it with track_running_stats=False, so that it uses the batch it is given"
            )
        if isinstance(part, (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout)):
            if part.training and part.p > 0:
                raise ValueError(
                    f"{where} draws new noise at every call, so the Hessian would belong to another loss than the step "
                    f"it differentiates. Set p=0, or call .eval() on it"
                )
    theta = {name: p.detach().clone() for name, p in parameters.items()}
    return Model(theta, _FunctionalModule(module, {name: p.dim() for name, p in theta.items()}))


class _FunctionalModule:
    """A module's forward as a function of its parameters; its batch norms can take their statistics from elsewhere."""

    def __init__(self, module: nn.Module, dims: dict[str, int]) -> None:
        self.module = module
        self.dims = dims
        self.norms = {path: part for path, part in module.named_modules() if isinstance(part, _BatchNorm)}

    def __call__(self, params: Params, x: Tensor, context: Tensor | Statistics | None = None) -> Tensor:
        if context is None or not self.norms:
            return self._vmap(params, x)
        if isinstance(context, dict):
            normalise = {path: _Normalise(part, fixed=context[path]) for path, part in self.norms.items()}
            return self._patched(normalise, params, x)
        normalise = {path: _Normalise(part, examples=context.shape[1]) for path, part in self.norms.items()}
        return self._patched(normalise, params, torch.cat([context, x], 1))[:, context.shape[1] :]

    def statistics(self, params: Params, x: Tensor) -> Statistics:
        """The (mean, variance) [C] of every batch norm for x, averaged over tasks."""
        seen: Statistics = {}
        for t in range(x.shape[0]):  # a report, outside any gradient: one task at a time keeps it out of vmap
            one = {name: p[t] if p.dim() > self.dims[name] else p for name, p in params.items()}
            normalise = {path: _Normalise(part, examples=x.shape[1]) for path, part in self.norms.items()}
            with torch.no_grad():
                self._patched(normalise, one, x[t], vmap=False)
            for path, norm in normalise.items():
                mean, variance = seen.get(path, (0.0, 0.0))
                seen[path] = (mean + norm.seen[0] / x.shape[0], variance + norm.seen[1] / x.shape[0])
        return seen

    def _patched(self, normalise: dict[str, "_Normalise"], params: Params, x: Tensor, vmap: bool = True) -> Tensor:
        try:
            for path, part in self.norms.items():
                vars(part)["forward"] = normalise[path]  # in front of the method of its class
            return self._vmap(params, x) if vmap else self._call(params, x)
        finally:
            for part in self.norms.values():
                del vars(part)["forward"]

    def _call(self, params: Params, x: Tensor) -> Tensor:
        return torch.func.functional_call(self.module, params, (x,), tie_weights=True)

    def _vmap(self, params: Params, x: Tensor) -> Tensor:
        over_tasks = any(p.dim() > self.dims[name] for name, p in params.items())
        before = {name: (b, b._version) for name, b in self.module.named_buffers()}
        try:
            out = torch.vmap(self._call, in_dims=(0 if over_tasks else None, 0))(params, x)
        except RuntimeError as error:
            if "vmap" not in str(error):
                raise
            raise ValueError(
                f"{type(self.module).__name__} cannot run over a task axis. PyTorch says: {str(error).splitlines()[0]} "
                "A module must not draw random numbers, change its own state, or branch on tensor values in forward"
            ) from error
        after = dict(self.module.named_buffers())
        changed = [name for name, (b, v) in before.items() if after.get(name) is not b or b._version != v]
        if changed:
            raise ValueError(
                f"{type(self.module).__name__} changes its buffer {changed[0]!r} in forward: state that no gradient "
                "sees, and that makes every call another function. Compute it from the input instead"
            )
        return out


class _Normalise:
    """Stands in for a batch norm's forward: statistics of the first `examples` rows, or fixed ones; applied to all."""

    seen: tuple[Tensor, Tensor]  # the (mean, variance) that it computed last

    def __init__(
        self, part: _BatchNorm, examples: int | None = None, fixed: tuple[Tensor, Tensor] | None = None
    ) -> None:
        self.part, self.examples, self.fixed = part, examples, fixed

    def __call__(self, h: Tensor) -> Tensor:
        if self.fixed is None:
            over = [d for d in range(h.dim()) if d != 1]
            variance, mean = torch.var_mean(h[: self.examples], over, correction=0)
            self.seen = (mean, variance)
        else:
            mean, variance = self.fixed
        # written out: torch.nn.functional.batch_norm takes no gradient through statistics it is given
        one_per_channel = (1, -1, *[1] * (h.dim() - 2))
        h = (h - mean.view(one_per_channel)) * torch.rsqrt(variance + self.part.eps).view(one_per_channel)
        if self.part.weight is not None:
            h = h * self.part.weight.view(one_per_channel)
        if self.part.bias is not None:
            h = h + self.part.bias.view(one_per_channel)
        return h
