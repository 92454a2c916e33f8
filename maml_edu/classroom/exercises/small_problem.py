"""A problem small enough for an exercise to be checked on it in milliseconds."""

import torch

from maml_edu.data.sine import SineTasks
from maml_edu.models import mlp, mse
from maml_edu.tasks import Loss, Params, TaskBatch


def small_problem(seed: int) -> tuple[Loss, Params, TaskBatch]:
    """The loss and θ of a tanh network, and three sine tasks with 4 support and 6 query points; all in float64."""
    generator = torch.Generator().manual_seed(seed)
    model = mlp((1, 6, 1), "tanh", generator, torch.float64)
    batch = SineTasks(amplitude=(1.0, 3.0)).sample(3, 4, 6, generator, torch.float64)
    return mse(model.apply), model.theta, batch
