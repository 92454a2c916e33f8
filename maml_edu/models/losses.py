"""Losses that give one value per task, from a model's `apply`."""

import torch.nn.functional as F
from torch import Tensor

from maml_edu.models.model import Apply
from maml_edu.tasks import Loss, Params


def mse(apply: Apply) -> Loss:
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


def cross_entropy(apply: Apply) -> Loss:
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
