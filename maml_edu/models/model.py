"""A model is a function of explicit parameters: `apply(params, x)` with one set of them, or with one per task.

A task axis T in front of every parameter turns a layer into a batched matmul or a grouped convolution: T adapted
networks run in one call.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from maml_edu.tasks import Params

Apply = Callable[..., Tensor]  # apply(params, x, context=None)
Statistics = dict[str, tuple[Tensor, Tensor]]  # layer -> (mean [C], variance [C])


class Model(NamedTuple):
    """theta: dict name → tensor. apply(params, x, context=None): x [T, n, …] -> [T, n, outputs].

    params: like theta, or like theta with T in front of every tensor. context [T, m, …]: batch-norm statistics are
    taken from these examples instead of from x; a dict layer → (mean, variance) fixes them.
    """

    theta: Params
    apply: Apply


def uniform_fan_in(
    shape: tuple[int, ...], fan_in: int, generator: torch.Generator | None, dtype: torch.dtype
) -> Tensor:
    """Initial weights from U(−1/√fan_in, 1/√fan_in), as PyTorch's own layers have them."""
    bound = 1 / math.sqrt(fan_in)
    return (2 * torch.rand(shape, generator=generator, dtype=dtype) - 1) * bound
