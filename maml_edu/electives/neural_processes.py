"""Conditional neural processes: the support set becomes one vector r, and a decoder predicts from (x, r).

A first layer that reads (x, r) computes x·W_x + r·W_r + b = x·W_x + (b + r·W_r). So giving r to the decoder is a start
that generates one bias, and nothing else: φ_0 is the decoder with the bias b + r·W_r.
"""

import functools

import torch
import torch.nn.functional as F
from torch import Tensor

from maml_edu.electives.conditioned_starts import ConditionedModel
from maml_edu.electives.heads import HEAD, add_prefix, class_means, take_prefix, without_head
from maml_edu.models import Apply, Model, Statistics, mlp
from maml_edu.tasks import Loss, Params, expand_over_tasks

FEATURES = 40  # the length of r for regression


def neural_process(
    sizes: tuple[int, ...] = (1, 40, 40, 2), generator: torch.Generator | None = None
) -> ConditionedModel:
    """For regression of one number y. r [T, 40] is the mean of an encoder's outputs for all support examples (x, y).

    sizes: of the decoder, from x to its outputs (2 for mean and width, see `gaussian`). The encoder has the decoder's
    hidden layers. θ: "encoder.", "reader" [40, first hidden], and the decoder's own names; φ_0: the decoder, b1
    generated. Source: Garnelo et al. (2018), eq. 1-3.
    """
    encoder, decoder = (mlp(s, generator=generator) for s in ((sizes[0] + 1, *sizes[1:-1], FEATURES), sizes))
    reader = mlp((FEATURES, sizes[1]), generator=generator).theta["w1"]

    def read(theta: Params, x: Tensor, y: Tensor) -> Params:
        if y.shape[2:] != (1,):
            raise ValueError(f"y has shape {list(y.shape)}; this process reads [tasks, examples, 1]")
        phi = expand_over_tasks({name: theta[name] for name in decoder.theta}, len(x))
        r = encoder.apply(take_prefix("encoder.", theta), torch.cat([x, y], 2)).mean(1)  # [T, 40]
        return {**phi, "b1": phi["b1"] + r @ theta["reader"]}

    theta = {**decoder.theta, **add_prefix("encoder.", encoder.theta), "reader": reader}
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
    network = functools.partial(mlp, generator=generator, dtype=like.dtype, device=like.device)
    encoder, decoder = network((width, hidden, features)), network((width, hidden, ways))
    reader = network((ways * features, hidden)).theta["w1"]
    of_phi = {**body.theta, **add_prefix("decoder.", decoder.theta)}

    def apply(params: Params, x: Tensor, context: Tensor | Statistics | None = None) -> Tensor:
        h = body.apply({name: params[name] for name in body.theta}, x, context)
        return decoder.apply(take_prefix("decoder.", params), h)

    def read(theta: Params, x: Tensor, y: Tensor) -> Params:
        phi = expand_over_tasks({name: theta[name] for name in of_phi}, len(x))
        h = body.apply({name: phi[name] for name in body.theta}, x)
        r = class_means(encoder.apply(take_prefix("encoder.", theta), h), y, ways).flatten(1)
        return {**phi, "decoder.b1": phi["decoder.b1"] + r @ theta["reader"]}

    return ConditionedModel(Model({**of_phi, **add_prefix("encoder.", encoder.theta), "reader": reader}, apply), read)


def gaussian(prediction: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation [T, n, 1] from a decoder's two outputs; the deviation is at least 0.1.

    Source: Garnelo et al. (2018), whose code uses 0.1 + 0.9·softplus.
    """
    mean, width = prediction.chunk(2, dim=2)
    return mean, 0.1 + 0.9 * F.softplus(width)


def gaussian_nll(apply: Apply) -> Loss:
    """loss(params, x, y) -> [T]: −log N(y; mean, σ²) in nats, mean over the examples of a task."""

    def loss(params: Params, x: Tensor, y: Tensor) -> Tensor:
        mean, sigma = gaussian(apply(params, x))
        if mean.shape != y.shape:
            raise ValueError(f"the decoder's mean has shape {list(mean.shape)} and y {list(y.shape)}; must be equal")
        nll = 0.5 * ((y - mean) / sigma).square() + sigma.log() + 0.918938533204672741780
        return nll.flatten(1).mean(1)

    return loss


def mean_only(apply: Apply) -> Apply:
    """The decoder's mean as a prediction [T, n, 1], to be scored with `mse`."""
    return lambda params, x, context=None: gaussian(apply(params, x, context))[0]
