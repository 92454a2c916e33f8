"""`MAML` on an `nn.Module`: the exact meta-gradient in `.grad`, any optimiser, any batch of four tensors."""

import copy

import pytest
import torch
import torch.nn.functional as F
from support.problems import regression, relative
from torch import nn
from torch.utils.data import DataLoader, Dataset

import maml_edu
from maml_edu.data.drawn_glyphs import glyphs
from maml_edu.data.episodes import Episodes, split
from maml_edu.data.sine import SineTasks
from maml_edu.learner import MAML
from maml_edu.models import from_module, mse
from maml_edu.reference import autograd_maml


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def small_net(dtype=torch.float64):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 3)).to(dtype)


def gradients(module):
    return {name: p.grad for name, p in module.named_parameters()}


ALPHAS = {
    "number": 0.2,
    "per parameter": {"0.weight": 0.1, "0.bias": 0.3, "2.weight": 0.2, "2.bias": 0.0},
    "per step": [0.1, 0.2, 0.3],
}


@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("alpha", ALPHAS)
def test_the_gradient_is_that_of_autograd(alpha, steps):
    net, batch = small_net(), regression(3, 4, 6, generator())
    model = from_module(net)
    exact = autograd_maml(mse(model.apply), model.theta, batch, ALPHAS[alpha], steps)
    query_loss = MAML(net, F.mse_loss, ALPHAS[alpha], steps).backward(batch)
    assert relative(gradients(net), exact.gradient) < 1e-10
    assert query_loss.item() == pytest.approx(exact.query_loss.mean().item(), rel=1e-12)
    assert not query_loss.requires_grad


def test_first_order_is_first_order():
    net, batch = small_net(), regression(3, 4, 6, generator())
    model = from_module(net)
    MAML(net, F.mse_loss, 0.2, 3, first_order=True).backward(batch)
    expected = maml_edu.fomaml(mse(model.apply), model.theta, batch, 0.2, 3).gradient
    assert relative(gradients(net), expected) < 1e-10
    assert relative(gradients(net), autograd_maml(mse(model.apply), model.theta, batch, 0.2, 3).gradient) > 1e-3


def test_learned_step_sizes_have_their_gradient_and_are_trained():
    net, batch = small_net(), regression(3, 4, 6, generator())
    meta = MAML(net, F.mse_loss, 0.2, 2, learn_alpha=True)
    assert len(meta.step_sizes) == 2 * 4 and len(list(meta.parameters())) == 4 + 8
    meta.backward(batch)
    model = from_module(net)
    alpha = [dict.fromkeys(model.theta, 0.2)] * 2
    exact = autograd_maml(mse(model.apply), model.theta, batch, alpha, 2).alpha_gradient
    expected = torch.stack([g for of_step in exact for g in of_step.values()])
    assert torch.allclose(torch.stack([a.grad for a in meta.step_sizes]), expected, rtol=1e-10, atol=1e-14)
    torch.optim.AdamW(meta.parameters(), lr=1e-2).step()
    assert all(a.item() != 0.2 for a in meta.step_sizes)
    assert meta.alpha[1]["2.bias"] is meta.step_sizes[7]
    restored = MAML(small_net(), F.mse_loss, 0.2, 2, learn_alpha=True)
    restored.load_state_dict(meta.state_dict())
    assert torch.equal(restored.step_sizes[7], meta.step_sizes[7])


def test_a_step_size_of_zero_freezes_even_where_step_sizes_are_learned():
    alpha = {"0.weight": 0.1, "0.bias": 0.1, "2.weight": 0.1, "2.bias": 0.0}
    meta = MAML(small_net(), F.mse_loss, alpha, learn_alpha=True)
    optimizer = torch.optim.AdamW(meta.parameters(), lr=1e-2)
    meta.backward(regression(3, 4, 6, generator()))
    optimizer.step()
    assert meta.alpha["2.bias"].item() == 0 and meta.alpha["0.bias"].item() != 0.1


def test_a_net_with_nothing_to_train_is_refused():
    with pytest.raises(ValueError, match="no parameter of Sequential has requires_grad=True"):
        MAML(small_net().requires_grad_(False), F.mse_loss)


def test_gradients_add_up_as_in_pytorch():
    net, meta_of = small_net(), lambda net: MAML(net, F.mse_loss, 0.2)
    one, two = regression(3, 4, 6, generator()), regression(3, 4, 6, generator(1))
    meta_of(net).backward(one)
    first = {name: g.clone() for name, g in gradients(net).items()}
    meta_of(net).backward(two)
    other = small_net()
    meta_of(other).backward(two)
    sums = {name: g + gradients(other)[name] for name, g in first.items()}
    assert relative(gradients(net), sums) < 1e-14


def test_frozen_parameters_are_constants():
    net, batch = small_net(), regression(3, 4, 6, generator())
    net[0].requires_grad_(False)
    meta = MAML(net, F.mse_loss, 0.2, 2)
    meta.backward(batch)
    frozen = from_module(net)
    head = {name: p for name, p in frozen.theta.items() if name.startswith("2")}
    body = {name: p for name, p in frozen.theta.items() if name.startswith("0")}
    loss = lambda params, x, y: mse(frozen.apply)(  # noqa: E731
        {**{n: p.expand(len(x), *p.shape) for n, p in body.items()}, **params}, x, y
    )
    exact = autograd_maml(loss, head, batch, 0.2, 2).gradient
    assert net[0].weight.grad is None
    assert relative({name: g for name, g in gradients(net).items() if g is not None}, exact) < 1e-10
    adapted = meta.adapt(batch.support_x[0], batch.support_y[0])
    assert torch.equal(adapted[0].weight, net[0].weight) and not torch.equal(adapted[2].weight, net[2].weight)


def test_adapt_returns_a_module_with_weights_of_its_own():
    net, batch = small_net(), regression(2, 4, 6, generator())
    before = copy.deepcopy(net.state_dict())
    meta = MAML(net, F.mse_loss, 0.2, 2)
    adapted = meta.adapt(batch.support_x[1], batch.support_y[1])
    path = maml_edu.adapt(mse(from_module(net).apply), dict(net.named_parameters()), *batch[:2], 0.2, 2)
    assert all(torch.allclose(p, path[-1][name][1]) for name, p in adapted.named_parameters())
    assert all(p.requires_grad and p.is_leaf for p in adapted.parameters())
    adapted(batch.query_x[1]).sum().backward()  # it can be trained on
    assert all(torch.equal(p, before[name]) for name, p in net.state_dict().items())
    assert all(p.grad is None for p in net.parameters())


def test_a_bad_batch_is_refused():
    meta, batch = MAML(small_net(), F.mse_loss, 0.2), regression(3, 4, 6, generator())
    with pytest.raises(ValueError, match="must be the task"):
        meta.backward([*batch[:3], batch[3][:2]])
    with pytest.raises(TypeError, match="missing 1 required"):
        meta.backward(batch[:3])


class Tasks(Dataset):
    """Tasks one by one, as a DataLoader wants them: four tensors each."""

    def __init__(self, batch):
        self.batch = batch

    def __len__(self):
        return len(self.batch[0])

    def __getitem__(self, i):
        return tuple(tensor[i] for tensor in self.batch)


@pytest.mark.slow
def test_sines_from_a_data_loader_with_adamw():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(1, 40), nn.ReLU(), nn.Linear(40, 40), nn.ReLU(), nn.Linear(40, 1))
    meta = MAML(net, F.mse_loss, alpha=0.01, learn_alpha=True)
    optimizer = torch.optim.AdamW(meta.parameters(), lr=5e-3)
    loader = DataLoader(Tasks(SineTasks().sample(25 * 200, 10, generator=generator())), batch_size=25)
    losses = []
    for batch in loader:
        optimizer.zero_grad()
        losses.append(meta.backward(batch).item())
        optimizer.step()
    assert sum(losses[-20:]) / 20 < 0.8 * SineTasks().floor_mse()  # nobody gets there without adapting
    new = SineTasks().sample(50, 10, generator=generator(1))
    before = F.mse_loss(net(new.query_x), new.query_y).item()
    after = sum(F.mse_loss(meta.adapt(*t[:2])(t[2]), t[3]).item() for t in zip(*new)) / 50
    assert after < 0.7 * before


@pytest.mark.slow
def test_five_way_glyphs():
    torch.manual_seed(0)
    layers = [nn.Flatten(), nn.Linear(784, 64), nn.BatchNorm1d(64, track_running_stats=False), nn.ReLU()]
    net = nn.Sequential(*layers, nn.Linear(64, 5))
    training, _, test = (Episodes(part, 5, 1, 1) for part in split(glyphs()))
    meta = MAML(net, F.cross_entropy, alpha=0.4, learn_alpha=True)
    optimizer = torch.optim.AdamW(meta.parameters(), lr=3e-3)
    for i in range(150):
        optimizer.zero_grad()
        meta.backward(training.sample(8, generator(i)))
        optimizer.step()
    right = [
        (meta.adapt(x, y)(query_x).argmax(1) == query_y).float().mean().item()
        for x, y, query_x, query_y in zip(*test.sample(60, generator()))
    ]
    assert sum(right) / len(right) > 0.5  # guessing: 0.2
