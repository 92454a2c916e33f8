"""Random numbers and small networks for the tests of the models."""

import torch
from support.problems import random_like
from torch import nn


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def normal(*shape, seed=0):
    return torch.randn(shape, generator=generator(seed), dtype=torch.float64)


def convolutions():
    norms = [nn.BatchNorm2d(3, track_running_stats=False), nn.BatchNorm2d(2, affine=False, track_running_stats=False)]
    layers = nn.Conv2d(1, 3, 3), norms[0], nn.ReLU(), nn.Conv2d(3, 2, 3, stride=2), norms[1], nn.Flatten()
    return nn.Sequential(*layers, nn.Linear(8, 5))


def per_task(theta, tasks=3):
    """Different parameters for every task: θ and a little noise."""
    everywhere = {n: p.expand(tasks, *p.shape) for n, p in theta.items()}
    return {n: p + 0.1 * d for (n, p), d in zip(everywhere.items(), random_like(everywhere).values())}
