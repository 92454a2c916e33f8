"""Four convolutions and a linear head: the Omniglot network of Finn et al. (2017)."""

import torch
import torch.nn.functional as F
from torch import Tensor

from maml_edu.models.fast_layers import EPS, batch_norm_relu, conv
from maml_edu.models.model import Model, Statistics, uniform_fan_in
from maml_edu.tasks import Params


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
        theta[f"conv{layer}.weight"] = uniform_fan_in((filters, channels, 3, 3), 9 * channels, generator, dtype)
        theta[f"conv{layer}.shift"] = torch.zeros(filters, dtype=dtype)
    theta["head.weight"] = uniform_fan_in((filters, ways), filters, generator, dtype)
    theta["head.bias"] = torch.zeros(ways, dtype=dtype)
    return Model({name: p.to(device) for name, p in theta.items()}, _Conv4(image))


class _Conv4:
    """The forward pass of `conv4`; `statistics` reports what its batch norms saw."""

    def __init__(self, image: int) -> None:
        self.image = image

    def __call__(self, params: Params, x: Tensor, context: Tensor | Statistics | None = None) -> Tensor:
        return self._forward(params, x, context)[0]

    def statistics(self, params: Params, x: Tensor) -> Statistics:
        """The (mean, variance) [C] of every batch norm for x, averaged over tasks."""
        return self._forward(params, x, None, keep_statistics=True)[1]

    def _forward(
        self, params: Params, x: Tensor, context: Tensor | Statistics | None, keep_statistics: bool = False
    ) -> tuple[Tensor, Statistics]:
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
                of_batch = [s.detach().view(tasks, -1).mean(0) for s in (mean, variance)]
                seen[f"conv{layer}"] = (of_batch[0], of_batch[1])
            h = F.relu((h - mean) * torch.rsqrt(variance + EPS) + shift.view(1, -1, 1, 1))
        h = h[-queries:].mean((2, 3)).view(queries, tasks, -1).transpose(0, 1)  # [T, n, filters]
        return torch.baddbmm(params["head.bias"].unsqueeze(1), h, params["head.weight"]), seen
