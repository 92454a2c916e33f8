"""Short trainings of a small network, and how to compare what they return."""

import torch
from support.problems import sines

from maml_edu.engine.checkpoint_files import Trained
from maml_edu.models import mlp, mse
from maml_edu.step_sizes import flat_alpha
from maml_edu.training import train


def small(width=8):
    model = mlp((1, width, 1), generator=torch.Generator().manual_seed(0))
    return model, mse(model.apply)


def run(sampler=sines, seed=1, **options):
    """Thirty iterations of a small network; quiet."""
    options = {"iterations": 30, "tasks": 3, "progress": None, **options}
    return train(*small(), sampler, generator=torch.Generator().manual_seed(seed), **options)


def assert_same(trained: Trained, expected: Trained):
    """Bit by bit."""
    assert all(torch.equal(trained.theta[n], expected.theta[n]) for n in expected.theta)
    assert torch.equal(trained.history["query_loss"], expected.history["query_loss"])
    ours, theirs = flat_alpha(trained.alpha), flat_alpha(expected.alpha)
    assert len(ours) == len(theirs) and all(torch.equal(*map(torch.as_tensor, pair)) for pair in zip(ours, theirs))
