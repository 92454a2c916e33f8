"""Short trainings of a small network, and how to compare what they return."""

import torch
from support.problems import sines

from maml_edu.engine.checkpoint_files import Trained
from maml_edu.models import mlp, mse
from maml_edu.training import train


def small(width=8):
    model = mlp((1, width, 1), generator=torch.Generator().manual_seed(0))
    return model, mse(model.apply)


def run(sampler=sines, seed=1, **options):
    """Thirty iterations of a small network; quiet."""
    options = {"iterations": 30, "tasks": 3, "progress": None, **options}
    return train(*small(), sampler, generator=torch.Generator().manual_seed(seed), **options)


def rates_of(alpha):
    if isinstance(alpha, list):
        return [rate for a in alpha for rate in rates_of(a)]
    return list(alpha.values()) if isinstance(alpha, dict) else [alpha]


def assert_same(found: Trained, expected: Trained):
    """Bit by bit."""
    assert all(torch.equal(found.theta[n], expected.theta[n]) for n in expected.theta)
    assert torch.equal(found.history["query_loss"], expected.history["query_loss"])
    ours, theirs = rates_of(found.alpha), rates_of(expected.alpha)
    assert len(ours) == len(theirs) and all(torch.equal(*map(torch.as_tensor, pair)) for pair in zip(ours, theirs))
