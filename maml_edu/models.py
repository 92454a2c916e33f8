"""Models as functions of explicit parameters: `apply(params, x)` with one set of parameters, or with one per task.

A task axis T in front of every parameter turns a layer into a batched matmul or a grouped convolution: T adapted
networks run in one call.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .layers import EPS, batch_norm_relu, conv

Params = dict[str, Tensor]
Statistics = dict[str, tuple[Tensor, Tensor]]  # layer -> (mean [C], variance [C])


class Model(NamedTuple):
    """theta: dict name → tensor. apply(params, x, context=None): x [T, n, …] -> [T, n, outputs].

    params: like theta, or like theta with T in front of every tensor. context [T, m, …]: batch-norm statistics are
    taken from these examples instead of from x; a dict layer → (mean, variance) fixes them.
    """

    theta: Params
    apply: Callable[..., Tensor]


# ---------------------------------------------------------------- multilayer perceptron

_ACTIVATIONS = {"relu": F.relu, "tanh": torch.tanh, "softplus": F.softplus, "sigmoid": torch.sigmoid, "gelu": F.gelu}


def mlp(
    sizes: tuple[int, ...] = (1, 40, 40, 1),
    activation: str = "relu",
    generator: torch.Generator | None = None,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    init: str = "fan-in",
) -> Model:
    """A fully connected network with parameters w1 [in, out], b1 [out], w2, …; x [T, n, …] is flattened to [T, n, in].

    init: "fan-in" draws weights and biases from U(−1/√in, 1/√in); "paper" draws weights from a normal of standard
    deviation 0.01 truncated at two deviations, with zero biases (the code of Finn et al. 2017).
    """
    if activation not in _ACTIVATIONS:
        raise ValueError(f"unknown activation {activation!r}; choose one of {', '.join(_ACTIVATIONS)}")
    if len(sizes) < 2 or min(sizes) < 1:
        raise ValueError(f"sizes={sizes}; expected at least input and output size, each 1 or more")
    if init not in ("fan-in", "paper"):
        raise ValueError(f"unknown init {init!r}; choose fan-in or paper")
    theta: Params = {}
    for layer, (fan_in, fan_out) in enumerate(zip(sizes[:-1], sizes[1:]), start=1):
        if init == "paper":
            weight, bias = torch.empty(fan_in, fan_out, dtype=dtype), torch.zeros(fan_out, dtype=dtype)
            nn.init.trunc_normal_(weight, std=0.01, a=-0.02, b=0.02, generator=generator)
        else:
            weight = _uniform((fan_in, fan_out), fan_in, generator, dtype)
            bias = _uniform((fan_out,), fan_in, generator, dtype)
        theta[f"w{layer}"], theta[f"b{layer}"] = weight.to(device), bias.to(device)
    act, layers = _ACTIVATIONS[activation], len(sizes) - 1

    def apply(params: Params, x: Tensor, context=None) -> Tensor:
        if x.dim() != 3:
            x = x.flatten(2)
        if x.shape[2] != sizes[0]:
            raise ValueError(f"x has {x.shape[2]} inputs per example; this network takes {sizes[0]} (sizes={sizes})")
        for layer in range(1, layers + 1):
            w, b = params[f"w{layer}"], params[f"b{layer}"]
            if w.dim() == 3:
                x = torch.baddbmm(b.unsqueeze(1), x, w)  # [T, 1, out] + [T, n, in] @ [T, in, out]
            else:
                x = x @ w + b
            if layer < layers:
                x = act(x)
        return x

    return Model(theta, apply)


def _uniform(shape, fan_in, generator, dtype):
    bound = 1 / math.sqrt(fan_in)
    return (2 * torch.rand(shape, generator=generator, dtype=dtype) - 1) * bound


# ---------------------------------------------------------------- four convolutions


def conv4(
    ways: int,
    filters: int = 64,
    image: int = 28,
    generator: torch.Generator | None = None,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> Model:
    """The Omniglot network of Finn et al. (2017, §5.2): 4 × [3×3 conv, stride 2, batch norm, ReLU], mean, linear head.

    x [T, n, 1, image, image] -> logits [T, n, ways]. Batch norm always uses the statistics of the batch it is given
    (per task), and has a shift but no scale, as in the paper's code. Parameters: conv1.weight [filters, 1, 3, 3],
    conv1.shift [filters], …, head.weight [filters, ways], head.bias [ways].
    """
    if ways < 1 or filters < 1:
        raise ValueError(f"ways={ways}, filters={filters}: each must be at least 1")
    if image < 2:
        raise ValueError(f"image={image}: the picture's side in pixels, at least 2")
    theta: Params = {}
    for layer in range(1, 5):
        channels = 1 if layer == 1 else filters
        theta[f"conv{layer}.weight"] = _uniform((filters, channels, 3, 3), 9 * channels, generator, dtype)
        theta[f"conv{layer}.shift"] = torch.zeros(filters, dtype=dtype)
    theta["head.weight"] = _uniform((filters, ways), filters, generator, dtype)
    theta["head.bias"] = torch.zeros(ways, dtype=dtype)
    return Model({name: p.to(device) for name, p in theta.items()}, _Conv4(image))


class _Conv4:
    """The forward pass of `conv4`; `statistics` reports what its batch norms saw."""

    def __init__(self, image: int):
        self.image = image

    def __call__(self, params: Params, x: Tensor, context: Tensor | Statistics | None = None) -> Tensor:
        return self._forward(params, x, context)[0]

    def statistics(self, params: Params, x: Tensor) -> Statistics:
        """The (mean, variance) [C] of every batch norm for x, averaged over tasks."""
        return self._forward(params, x, None, keep_statistics=True)[1]

    def _forward(self, params, x, context, keep_statistics=False):
        if x.dim() != 5 or x.shape[2:] != (1, self.image, self.image):
            raise ValueError(
                f"x has shape {list(x.shape)}; conv4 takes [tasks, examples, 1, {self.image}, {self.image}]"
            )
        tasks, queries = x.shape[:2]
        if params["head.weight"].dim() == 2:
            params = {name: p.expand(tasks, *p.shape) for name, p in params.items()}
        fixed = context if isinstance(context, dict) else {}
        seen: Statistics = {}
        examples = slice(None)
        if isinstance(context, Tensor):
            x, examples = torch.cat([context, x], 1), slice(0, context.shape[1])
        h = x.transpose(0, 1).flatten(1, 2)  # [n, T·C, H, W]: tasks become groups of channels
        h = h.contiguous(memory_format=torch.channels_last)
        for layer in range(1, 5):
            weight, shift = params[f"conv{layer}.weight"].flatten(0, 1), params[f"conv{layer}.shift"].reshape(-1)
            h = conv(h, weight.contiguous(memory_format=torch.channels_last), tasks)
            if context is None and not keep_statistics:
                h = batch_norm_relu(h, shift)
                continue
            if f"conv{layer}" in fixed:
                mean, variance = (s.repeat(tasks).view(1, -1, 1, 1) for s in fixed[f"conv{layer}"])
            else:
                variance, mean = torch.var_mean(h[examples], (0, 2, 3), correction=0, keepdim=True)  # [1, T·C, 1, 1]
                seen[f"conv{layer}"] = tuple(s.detach().view(tasks, -1).mean(0) for s in (mean, variance))
            h = F.relu((h - mean) * torch.rsqrt(variance + EPS) + shift.view(1, -1, 1, 1))
        h = h[-queries:].mean((2, 3)).view(queries, tasks, -1).transpose(0, 1)  # [T, n, filters]
        return torch.baddbmm(params["head.bias"].unsqueeze(1), h, params["head.weight"]), seen


# ---------------------------------------------------------------- any module


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

    def __init__(self, module: nn.Module, dims: dict[str, int]):
        self.module = module
        self.dims = dims
        self.norms = {
            path: part for path, part in module.named_modules() if isinstance(part, nn.modules.batchnorm._BatchNorm)
        }

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

    def _patched(self, normalise, params, x, vmap=True):
        try:
            for path, part in self.norms.items():
                part.forward = normalise[path]
            return self._vmap(params, x) if vmap else self._call(params, x)
        finally:
            for part in self.norms.values():
                del part.forward

    def _call(self, params, x):
        return torch.func.functional_call(self.module, params, (x,), tie_weights=True)

    def _vmap(self, params, x):
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

    def __init__(self, part, examples=None, fixed=None):
        self.part, self.examples, self.fixed, self.seen = part, examples, fixed, None

    def __call__(self, h):
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


# ---------------------------------------------------------------- losses


def mse(apply: Callable[..., Tensor]) -> Callable[[Params, Tensor, Tensor], Tensor]:
    """loss(params, x, y) -> [T]: squared error, mean over the examples and outputs of each task."""

    def loss(params: Params, x: Tensor, y: Tensor) -> Tensor:
        prediction = apply(params, x)
        if prediction.shape != y.shape:
            raise ValueError(
                f"the model predicts shape {list(prediction.shape)} and y has {list(y.shape)}; they must be equal "
                "(broadcasting one against the other would average the wrong pairs)"
            )
        # written out: torch.nn.functional.mse_loss has no forward-over-reverse derivative
        return (prediction - y).square().flatten(1).mean(1)

    return loss


def cross_entropy(apply: Callable[..., Tensor]) -> Callable[[Params, Tensor, Tensor], Tensor]:
    """loss(params, x, y) -> [T]: cross-entropy of logits [T, n, ways] against labels y [T, n], mean over examples."""

    def loss(params: Params, x: Tensor, y: Tensor) -> Tensor:
        logits = apply(params, x)
        if y.is_floating_point() or logits.shape[:2] != y.shape:
            raise ValueError(
                f"the model gives logits {list(logits.shape)}; y must be integer labels [tasks, examples] = "
                f"{list(logits.shape[:2])}, not {y.dtype} {list(y.shape)}"
            )
        return F.cross_entropy(logits.flatten(0, 1), y.flatten(), reduction="none").view(y.shape).mean(1)

    return loss
