"""Batch norm with statistics from elsewhere: other examples, or fixed numbers."""

import pytest
import torch
import torch.nn.functional as F
from support.networks import convolutions, generator, normal, per_task
from support.problems import flat, random_like
from torch import nn

from maml_edu.models import conv4, from_module, mlp


def with_batch_norm():
    torch.manual_seed(0)
    dense = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6, track_running_stats=False), nn.Linear(6, 2))
    return {
        "conv4": (conv4(3, 2, 8, generator=generator(), dtype=torch.float64), (1, 8, 8)),
        "convolutions": (from_module(convolutions().double()), (1, 8, 8)),
        "dense": (from_module(dense.double()), (4,)),
    }


@pytest.fixture(params=with_batch_norm())
def normalised(request):
    """Model, parameters per task, x, and other examples to take the statistics from."""
    model, shape = with_batch_norm()[request.param]
    return model, per_task(model.theta), normal(3, 5, *shape), 1 + 2 * normal(3, 7, *shape, seed=1)


def test_own_examples_as_context_change_nothing(normalised):
    model, params, x, _ = normalised
    assert torch.allclose(model.apply(params, x), model.apply(params, x, context=x), rtol=1e-9, atol=1e-12)
    assert torch.allclose(model.apply(params, x), model.apply(params, x, context=x.repeat(1, 3, *[1] * (x.dim() - 2))))


def test_with_a_context_examples_no_longer_see_each_other(normalised):
    model, params, x, context = normalised
    together = model.apply(params, x, context=context)
    one_by_one = torch.cat([model.apply(params, one, context=context) for one in x.split(1, dim=1)], 1)
    assert together.shape == model.apply(params, x).shape
    assert torch.allclose(together, one_by_one, rtol=1e-9, atol=1e-12)
    assert not torch.allclose(together, model.apply(params, x))


def test_fixed_statistics(normalised):
    """What `statistics` reports for one task, given back, is the transductive answer; and x may then be one example."""
    model, params, x, _ = normalised
    params, x = {n: p[:1] for n, p in params.items()}, x[:1]
    fixed = model.apply.statistics(params, x)
    assert torch.allclose(model.apply(params, x, context=fixed), model.apply(params, x), rtol=1e-9, atol=1e-12)
    alone = model.apply(params, x[:, :1], context=fixed)
    assert torch.allclose(alone, model.apply(params, x)[:, :1], rtol=1e-9, atol=1e-12)
    moved = {layer: (mean + 1, variance) for layer, (mean, variance) in fixed.items()}
    assert not torch.allclose(model.apply(params, x, context=moved), model.apply(params, x))


def test_statistics_are_the_mean_over_tasks(normalised):
    model, params, x, _ = normalised
    together = model.apply.statistics(params, x)
    alone = [model.apply.statistics({n: p[t : t + 1] for n, p in params.items()}, x[t : t + 1]) for t in range(3)]
    for layer, seen in together.items():
        for i in (0, 1):  # mean, variance
            assert torch.allclose(seen[i], sum(one[layer][i] for one in alone) / 3, rtol=1e-9)
    assert not any(s.requires_grad for seen in together.values() for s in seen)


def test_statistics_of_the_first_layer_are_those_of_its_input():
    model = conv4(3, 2, 8, generator=generator(), dtype=torch.float64)
    x = normal(1, 6, 1, 8, 8)
    mean, variance = model.apply.statistics(model.theta, x)["conv1"]
    h = F.conv2d(x[0], model.theta["conv1.weight"], stride=2, padding=1).transpose(0, 1).flatten(1)
    assert torch.allclose(mean, h.mean(1)) and torch.allclose(variance, h.var(1, correction=0))


def test_gradients_flow_through_the_statistics_of_a_context(normalised):
    """Along a random direction against a central difference."""
    model, params, x, context = normalised
    leaf = {n: p.clone().requires_grad_() for n, p in params.items()}
    value = model.apply(leaf, x, context=context).square().sum()
    gradient = torch.cat([g.flatten() for g in torch.autograd.grad(value, list(leaf.values()))])
    direction, eps = random_like(params, 1), 1e-6
    ends = [
        model.apply({n: p + s * eps * direction[n] for n, p in params.items()}, x, context=context).square().sum()
        for s in (1, -1)
    ]
    assert ((ends[0] - ends[1]) / (2 * eps)).item() == pytest.approx((gradient @ flat(direction)).item(), rel=1e-6)


def test_context_of_a_module_by_hand():
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6, track_running_stats=False), nn.Linear(6, 2)).double()
    nn.init.normal_(module[1].weight)
    model = from_module(module)
    x, context = normal(1, 5, 4), normal(1, 7, 4, seed=1)
    h = module[0](context[0])
    h = (module[0](x[0]) - h.mean(0)) / (h.var(0, correction=0) + module[1].eps).sqrt()
    expected = module[2](h * module[1].weight + module[1].bias)
    assert torch.allclose(model.apply(model.theta, x, context=context)[0], expected, rtol=1e-9)


def test_a_model_without_batch_norm_ignores_the_context():
    x, context = normal(2, 5, 4), normal(2, 3, 4, seed=1)
    torch.manual_seed(0)
    for model in (mlp((4, 6, 2), dtype=torch.float64), from_module(nn.Linear(4, 2).double())):
        assert torch.equal(model.apply(model.theta, x, context=context), model.apply(model.theta, x))
