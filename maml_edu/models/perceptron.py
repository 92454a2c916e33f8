"""The multilayer perceptron of the sine experiments."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maml_edu.models.model import Model, Statistics, uniform_fan_in
from maml_edu.tasks import Params

_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "tanh": torch.tanh,
    "softplus": F.softplus,
    "sigmoid": torch.sigmoid,
    "gelu": F.gelu,
}


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
            weight = uniform_fan_in((fan_in, fan_out), fan_in, generator, dtype)
            bias = uniform_fan_in((fan_out,), fan_in, generator, dtype)
        theta[f"w{layer}"], theta[f"b{layer}"] = weight.to(device), bias.to(device)
    act, layers = _ACTIVATIONS[activation], len(sizes) - 1

    def apply(params: Params, x: Tensor, context: Tensor | Statistics | None = None) -> Tensor:
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
