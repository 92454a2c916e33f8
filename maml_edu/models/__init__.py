"""Models as functions of explicit parameters, and the losses on top of them."""

from maml_edu.models.convolutional import conv4
from maml_edu.models.losses import cross_entropy, mse
from maml_edu.models.model import Apply, Model, Statistics
from maml_edu.models.perceptron import mlp
from maml_edu.models.torch_modules import from_module

__all__ = ["Apply", "Model", "Statistics", "conv4", "cross_entropy", "from_module", "mlp", "mse"]
