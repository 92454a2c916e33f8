"""Models of two numbers that are a sine already: small enough to draw every θ as a point of a plane."""

import math

import torch
from torch import Tensor

from maml_edu.models.model import Model
from maml_edu.tasks import Params


def amplitude_phase(amplitude: float = 1.0, phase: float = math.pi / 2, dtype: torch.dtype = torch.float32) -> Model:
    """f(x) = A·sin(x − p) with theta = {"A": [1, 1], "p": [1, 1]}: every sine task is a point of the (A, p) plane."""
    return Model({"A": torch.full((1, 1), amplitude, dtype=dtype), "p": torch.full((1, 1), phase, dtype=dtype)}, _sine)


def sine_cosine(a: float = 1.0, b: float = 0.0, dtype: torch.dtype = torch.float32) -> Model:
    """f(x) = a·sin x + b·cos x, theta = {"a": [1, 1], "b": [1, 1]}: the same curves, a = A·cos p and b = −A·sin p."""
    return Model({"a": torch.full((1, 1), a, dtype=dtype), "b": torch.full((1, 1), b, dtype=dtype)}, _sum_of_both)


def _sine(theta: Params, x: Tensor, context: Tensor | None = None) -> Tensor:
    return theta["A"] * torch.sin(x - theta["p"])


def _sum_of_both(theta: Params, x: Tensor, context: Tensor | None = None) -> Tensor:
    return theta["a"] * torch.sin(x) + theta["b"] * torch.cos(x)
