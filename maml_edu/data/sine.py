"""Sine regression: the tasks of Finn, Abbeel & Levine (2017, §5.1), and what can be known about them exactly."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from maml_edu.tasks import TaskBatch


@dataclass(frozen=True)
class SineTasks:
    """y = A·sin(x − phase); A, phase and x are uniform in the given ranges. No noise."""

    amplitude: tuple[float, float] = (0.1, 5.0)
    phase: tuple[float, float] = (0.0, math.pi)
    x: tuple[float, float] = (-5.0, 5.0)

    def __post_init__(self) -> None:
        for name in ("amplitude", "phase", "x"):
            low, high = getattr(self, name)
            if not low <= high:
                raise ValueError(f"{name}=({low}, {high}) is not a range: give (low, high) with low ≤ high")

    def sample(
        self,
        tasks: int,
        shots: int,
        queries: int | None = None,
        generator: torch.Generator | None = None,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        reveal: bool = False,
    ) -> TaskBatch:
        """Draw tasks: support x, y [T, shots, 1] and query x, y [T, queries, 1] (queries = shots unless given).

        With reveal=True, x is [T, n, 3] and holds (x, A, phase): the input of the oracle, which is told the task.
        Numbers are drawn on the generator's device, so a seed gives the same tasks whatever `device` is.
        """
        queries = shots if queries is None else queries
        if min(tasks, shots, queries) < 1:
            raise ValueError(f"tasks={tasks}, shots={shots}, queries={queries}: each must be at least 1")
        source = generator.device if generator is not None else "cpu"

        def uniform(low_high: tuple[float, float], *shape: int) -> Tensor:
            low, high = low_high
            return low + (high - low) * torch.rand(*shape, generator=generator, dtype=dtype, device=source)

        amplitude = uniform(self.amplitude, tasks, 1, 1)
        phase = uniform(self.phase, tasks, 1, 1)
        x = uniform(self.x, tasks, shots + queries, 1)  # [T, n + m, 1]
        y = amplitude * torch.sin(x - phase)
        if reveal:
            x = torch.cat([x, amplitude.expand_as(x), phase.expand_as(x)], dim=2)
        batch = TaskBatch(x[:, :shots], y[:, :shots], x[:, shots:], y[:, shots:])
        return TaskBatch(*(part.contiguous() for part in batch)).to(device)

    def mean_function(self, x: Tensor) -> Tensor:
        """E[y | x] over tasks, at each x: the best prediction of anyone who may not adapt.

        E[A]·(sin x·E[cos phase] − cos x·E[sin phase]); for the paper's ranges −(2/π)·2.55·cos x ≈ −1.623·cos x.
        """
        mean_amplitude = sum(self.amplitude) / 2
        return mean_amplitude * (
            torch.sin(x) * _mean(math.cos, math.sin, self.phase)
            - torch.cos(x) * _mean(math.sin, lambda p: -math.cos(p), self.phase)
        )

    def zero_mse(self) -> float:
        """MSE of predicting 0 everywhere: E[A²]·E[sin²(x − phase)], 4.252 for the paper's ranges."""
        low, high = self.amplitude
        mean_square = (low * low + low * high + high * high) / 3
        cos_2x, sin_2x = _double_angle(self.x)
        cos_2p, sin_2p = _double_angle(self.phase)
        return mean_square * (1 - (cos_2x * cos_2p + sin_2x * sin_2p)) / 2

    def floor_mse(self) -> float:
        """MSE of `mean_function`, the floor for joint training: zero_mse − E_x[mean_function(x)²]. Paper: 3.006."""
        mean_amplitude = sum(self.amplitude) / 2
        c = _mean(math.cos, math.sin, self.phase)
        s = _mean(math.sin, lambda p: -math.cos(p), self.phase)
        cos_2x, sin_2x = _double_angle(self.x)
        # (c·sin x − s·cos x)² = c²(1 − cos 2x)/2 + s²(1 + cos 2x)/2 − c·s·sin 2x
        explained = c * c * (1 - cos_2x) / 2 + s * s * (1 + cos_2x) / 2 - c * s * sin_2x
        return self.zero_mse() - mean_amplitude**2 * explained


def _mean(
    function: Callable[[float], float], antiderivative: Callable[[float], float], low_high: tuple[float, float]
) -> float:
    """The mean of a function over an interval, by its antiderivative; its value if the interval is a point."""
    low, high = low_high
    return function(low) if high == low else (antiderivative(high) - antiderivative(low)) / (high - low)


def _double_angle(low_high: tuple[float, float]) -> tuple[float, float]:
    """E[cos 2u], E[sin 2u] for u uniform on an interval."""
    return (
        _mean(lambda u: math.cos(2 * u), lambda u: math.sin(2 * u) / 2, low_high),
        _mean(lambda u: math.sin(2 * u), lambda u: -math.cos(2 * u) / 2, low_high),
    )
