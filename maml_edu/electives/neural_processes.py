"""Conditional neural processes: the support set becomes one vector r, and a decoder predicts from (x, r).

A first layer that reads (x, r) computes x·W_x + r·W_r + b = x·W_x + (b + r·W_r). So giving r to the decoder is a start
that generates one bias, and nothing else: φ_0 is the decoder with the bias b + r·W_r.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from maml_edu.electives.conditioned_starts import ConditionedModel, everywhere
from maml_edu.electives.hypernetworks import named, under
from maml_edu.electives.prototypes import HEAD, class_means, without_head
from maml_edu.models import Model, mlp
from maml_edu.tasks import Params

# Garnelo et al. (2018), §4.3: Omniglot, 5-way 1-shot and 5-shot, in %, without an interval
PUBLISHED_5WAY = ((95.3, None), (98.5, None))


def neural_process(
    sizes: tuple[int, ...] = (1, 40, 40, 2),
    outputs: int = 1,
    features: int = 40,
    activation: str = "relu",
    generator: torch.Generator | None = None,
    dtype: torch.dtype = torch.float32,
) -> ConditionedModel:
    """For regression. r [T, features] is the mean over the support examples of an encoder's output for (x, y).

    sizes: of the decoder, from x to its outputs (2 for mean and width, see `gaussian`). outputs: the size of y. The
    encoder has the decoder's hidden layers. θ: "encoder.", "reader" [features, first hidden], and the decoder's own
    names; φ_0: the decoder, b1 generated. Source: Garnelo et al. (2018), eq. 1-3.
    """
    kind = dict(activation=activation, generator=generator, dtype=dtype)
    encoder, decoder = mlp((sizes[0] + outputs, *sizes[1:-1], features), **kind), mlp(sizes, **kind)
    reader = mlp((features, sizes[1]), **kind).theta["w1"]

    def read(theta, x, y):
        if y.shape[2:] != (outputs,):
            raise ValueError(f"y has shape {list(y.shape)}; this process reads [tasks, examples, {outputs}]")
        phi = everywhere({name: theta[name] for name in decoder.theta}, x, y)
        r = encoder.apply(under("encoder.", theta), torch.cat([x, y], 2)).mean(1)  # [T, features]
        return {**phi, "b1": phi["b1"] + r @ theta["reader"]}

    theta = {**decoder.theta, **named("encoder.", encoder.theta), "reader": reader}
    return ConditionedModel(Model(theta, decoder.apply), read)


def neural_process_classifier(
    model: Model,
    ways: int,
    hidden: int = 64,
    features: int = 32,
    generator: torch.Generator | None = None,
    head: tuple[str, str] = HEAD,
) -> ConditionedModel:
    """For classification: one mean per class, joined to r [T, ways·features] in the order of the labels.

    Encoder and decoder read the features of the same network, `model` without its head. The decoder is one hidden layer
    of width `hidden`, "decoder.w1" … "decoder.b2". Source: Garnelo et al. (2018), §4.3.
    """
    body = without_head(model, head)
    width, like = model.theta[head[0]].shape[0], model.theta[head[0]]
    kind = dict(generator=generator, dtype=like.dtype, device=like.device)
    encoder, decoder = mlp((width, hidden, features), **kind), mlp((width, hidden, ways), **kind)
    reader = mlp((ways * features, hidden), **kind).theta["w1"]
    of_phi = {**body.theta, **named("decoder.", decoder.theta)}

    def apply(params, x, context=None):
        h = body.apply({name: params[name] for name in body.theta}, x, context)
        return decoder.apply(under("decoder.", params), h)

    def read(theta, x, y):
        phi = everywhere({name: theta[name] for name in of_phi}, x, y)
        h = body.apply({name: phi[name] for name in body.theta}, x)
        r = class_means(encoder.apply(under("encoder.", theta), h), y, ways).flatten(1)
        return {**phi, "decoder.b1": phi["decoder.b1"] + r @ theta["reader"]}

    return ConditionedModel(Model({**of_phi, **named("encoder.", encoder.theta), "reader": reader}, apply), read)


def gaussian(prediction: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation [T, n, 1] from a decoder's two outputs; the deviation is at least 0.1.

    Source: Garnelo et al. (2018), whose code uses 0.1 + 0.9·softplus.
    """
    mean, width = prediction.chunk(2, dim=2)
    return mean, 0.1 + 0.9 * F.softplus(width)


def gaussian_nll(apply: Callable[..., Tensor]) -> Callable[[Params, Tensor, Tensor], Tensor]:
    """loss(params, x, y) -> [T]: −log N(y; mean, σ²) in nats, mean over the examples of a task."""

    def loss(params: Params, x: Tensor, y: Tensor) -> Tensor:
        mean, sigma = gaussian(apply(params, x))
        if mean.shape != y.shape:
            raise ValueError(f"the decoder's mean has shape {list(mean.shape)} and y {list(y.shape)}; must be equal")
        nll = 0.5 * ((y - mean) / sigma).square() + sigma.log() + 0.918938533204672741780
        return nll.flatten(1).mean(1)

    return loss


def mean_only(apply: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The decoder's mean as a prediction [T, n, 1], to be scored with `mse`."""
    return lambda params, x, context=None: gaussian(apply(params, x, context))[0]
