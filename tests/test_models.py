"""The models as functions of explicit parameters: with and without a task axis, losses, refusals."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from support.networks import convolutions, generator, normal, per_task
from support.problems import flat
from torch import nn

from maml_edu.models import conv4, cross_entropy, from_module, mlp, mse

ACTIVATIONS = {"relu": nn.ReLU, "tanh": nn.Tanh, "softplus": nn.Softplus, "sigmoid": nn.Sigmoid, "gelu": nn.GELU}


class Branch(nn.Module):
    """A small network with two layers that share one weight, a buffer, and a layer norm."""

    def __init__(self):
        super().__init__()
        self.inner, self.again, self.norm = nn.Linear(4, 4), nn.Linear(4, 4), nn.LayerNorm(4)
        self.again.weight = self.inner.weight
        self.register_buffer("shift", torch.tensor([1.0, 2.0, 3.0, 4.0]))

    def forward(self, x):
        return self.again(torch.tanh(self.norm(self.inner(x) + self.shift)))


MODULES = {
    "sequential": (lambda: nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 2)), (4,)),
    "convolutions and batch norm": (convolutions, (1, 8, 8)),
    "shared weights, buffer, layer norm": (Branch, (4,)),
    "evaluation mode": (lambda: nn.Sequential(nn.Linear(4, 6), nn.Dropout(), nn.Linear(6, 2)).eval(), (4,)),
}


@pytest.fixture(params=MODULES)
def module_and_x(request):
    make, shape = MODULES[request.param]
    torch.manual_seed(0)
    return make().double(), normal(3, 5, *shape)


def models():
    yield "mlp", mlp((2, 5, 3), generator=generator(), dtype=torch.float64), normal(3, 4, 2)
    yield "conv4", conv4(3, 2, 8, generator=generator(), dtype=torch.float64), normal(3, 4, 1, 8, 8)
    for name, (make, shape) in MODULES.items():
        torch.manual_seed(0)
        yield name, from_module(make().double()), normal(3, 4, *shape)


@pytest.fixture(params=list(models()), ids=lambda case: case[0])
def model_and_x(request):
    return request.param[1:]


# --------------------------------------------------------------------------------------------------
# The task axis


def test_one_set_of_parameters_is_the_same_set_for_every_task(model_and_x):
    model, x = model_and_x
    everywhere = {n: p.expand(3, *p.shape) for n, p in model.theta.items()}
    assert torch.allclose(model.apply(model.theta, x), model.apply(everywhere, x), rtol=1e-12, atol=1e-12)


def test_every_task_uses_its_own_parameters_and_examples(model_and_x):
    model, x = model_and_x
    params = per_task(model.theta)
    together = model.apply(params, x)
    assert together.shape[:2] == x.shape[:2]
    for t in range(3):
        alone = model.apply({n: p[t] for n, p in params.items()}, x[t : t + 1])[0]
        assert torch.allclose(together[t], alone, rtol=1e-10, atol=1e-12)
    assert not torch.allclose(together, model.apply(model.theta, x))


def test_a_task_depends_on_no_other_task(model_and_x):
    model, x = model_and_x
    params = {n: p.requires_grad_() for n, p in per_task(model.theta).items()}
    gradient = torch.autograd.grad(model.apply(params, x)[1].square().sum(), list(params.values()))
    for g in gradient:
        assert not g[0].any() and not g[2].any()
    assert any(g[1].any() for g in gradient)


# --------------------------------------------------------------------------------------------------
# mlp


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_mlp_equals_a_stack_of_layers(activation):
    model = mlp((3, 6, 5, 2), activation, generator=generator(), dtype=torch.float64)
    layers = [nn.Linear(3, 6), nn.Linear(6, 5), nn.Linear(5, 2)]
    act = ACTIVATIONS[activation]
    stack = nn.Sequential(layers[0], act(), layers[1], act(), layers[2]).double()
    for i, layer in enumerate(layers, start=1):
        layer.weight.data, layer.bias.data = model.theta[f"w{i}"].T, model.theta[f"b{i}"]
    x = normal(2, 7, 3)
    assert torch.allclose(model.apply(model.theta, x), stack(x), rtol=1e-12)


def test_mlp_flattens_what_follows_the_examples():
    model = mlp((12, 5, 2), generator=generator(), dtype=torch.float64)
    x = normal(2, 7, 3, 4)
    assert torch.equal(model.apply(model.theta, x), model.apply(model.theta, x.reshape(2, 7, 12)))
    one = mlp((1, 5, 2), generator=generator(), dtype=torch.float64)
    assert one.apply(one.theta, normal(2, 7)[..., None]).shape == (2, 7, 2)


def test_mlp_initial_values():
    theta = mlp((100, 400, 9), generator=generator()).theta
    assert {n: tuple(p.shape) for n, p in theta.items()} == {"w1": (100, 400), "b1": (400,), "w2": (400, 9), "b2": (9,)}
    for layer, fan_in in ((1, 100), (2, 400)):
        bound = 1 / math.sqrt(fan_in)
        weight, bias = theta[f"w{layer}"], theta[f"b{layer}"]
        assert 0.98 * bound < weight.abs().max() <= bound and bias.abs().max() <= bound
        assert weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.05)
        assert abs(weight.mean()) < 0.05 * bound and bias.any()
    assert theta["w1"].dtype == torch.float32


def test_mlp_initial_values_of_the_paper():
    theta = mlp((100, 400, 9), generator=generator(), init="paper").theta
    for layer in (1, 2):
        weight = theta[f"w{layer}"]
        assert 0.0195 < weight.abs().max() <= 0.02
        assert weight.std().item() == pytest.approx(0.0088, rel=0.05)  # a normal of 0.01 without its tails
        assert not theta[f"b{layer}"].any()


@pytest.mark.parametrize("make", [mlp, lambda **options: mlp(init="paper", **options), lambda **o: conv4(3, 4, **o)])
def test_initial_values_come_from_the_generator(make):
    first, again, other = (make(generator=generator(seed)).theta for seed in (0, 0, 1))
    assert torch.equal(flat(first), flat(again)) and not torch.equal(flat(first), flat(other))
    assert all(p.dtype == torch.float64 for p in make(generator=generator(), dtype=torch.float64).theta.values())


@pytest.mark.parametrize(
    "options, message",
    [
        (dict(activation="swish"), "unknown activation 'swish'; choose one of relu, tanh"),
        (dict(sizes=(3,)), "at least input and output size"),
        (dict(sizes=(1, 0, 1)), "each 1 or more"),
        (dict(init="zeros"), "unknown init 'zeros'; choose fan-in or paper"),
    ],
)
def test_mlp_refuses(options, message):
    with pytest.raises(ValueError, match=message):
        mlp(**options)


def test_mlp_names_the_wrong_input_size():
    model = mlp()
    with pytest.raises(ValueError, match=r"x has 3 inputs per example; this network takes 1 \(sizes="):
        model.apply(model.theta, torch.zeros(2, 5, 3))


# --------------------------------------------------------------------------------------------------
# conv4


def stack_of_convolutions(theta, x):
    """conv4 of one task, layer by layer from torch.nn.functional. x [n, 1, image, image] -> [n, ways]."""
    for layer in range(1, 5):
        x = F.conv2d(x, theta[f"conv{layer}.weight"], stride=2, padding=1)
        x = F.relu(F.batch_norm(x, None, None, None, theta[f"conv{layer}.shift"], training=True))
    return x.mean((2, 3)) @ theta["head.weight"] + theta["head.bias"]


@pytest.mark.parametrize("image", [8, 12, 28])
def test_conv4_equals_a_stack_of_layers(image):
    model = conv4(5, 3, image, generator=generator(), dtype=torch.float64)
    params, x = per_task(model.theta), normal(3, 6, 1, image, image)
    output = model.apply(params, x)
    for t in range(3):
        expected = stack_of_convolutions({n: p[t] for n, p in params.items()}, x[t])
        assert torch.allclose(output[t], expected, rtol=1e-9, atol=1e-12)


def test_conv4_initial_values():
    theta = conv4(5, 64, generator=generator()).theta
    shapes = {n: tuple(p.shape) for n, p in theta.items()}
    expected = {f"conv{i}.weight": (64, 1 if i == 1 else 64, 3, 3) for i in range(1, 5)}
    expected |= {f"conv{i}.shift": (64,) for i in range(1, 5)}
    assert shapes == expected | {"head.weight": (64, 5), "head.bias": (5,)}
    for name, fan_in in (("conv1.weight", 9), ("conv2.weight", 576), ("conv4.weight", 576), ("head.weight", 64)):
        bound = 1 / math.sqrt(fan_in)
        assert 0.95 * bound < theta[name].abs().max() <= bound
        assert theta[name].std().item() == pytest.approx(bound / math.sqrt(3), rel=0.1)
    assert not any(p.any() for n, p in theta.items() if n.endswith(("shift", "bias")))


@pytest.mark.parametrize("options", [dict(ways=0), dict(ways=3, filters=0), dict(ways=3, image=1)])
def test_conv4_refuses(options):
    with pytest.raises(ValueError, match="at least"):
        conv4(**options)


@pytest.mark.parametrize("shape", [(4, 1, 8, 8), (2, 4, 1, 8, 9), (2, 4, 3, 8, 8), (2, 4, 64)])
def test_conv4_names_the_wrong_picture_size(shape):
    model = conv4(3, 2, 8)
    with pytest.raises(ValueError, match=r"conv4 takes \[tasks, examples, 1, 8, 8\]"):
        model.apply(model.theta, torch.zeros(shape))


# --------------------------------------------------------------------------------------------------
# Any module


def test_from_module_computes_what_the_module_computes(module_and_x):
    module, x = module_and_x
    model = from_module(module)
    expected = torch.stack([module(one) for one in x])
    assert torch.allclose(model.apply(model.theta, x), expected, rtol=1e-12)
    params = per_task(model.theta)
    output = model.apply(params, x)
    for t in range(3):
        changed = copy.deepcopy(module)
        with torch.no_grad():
            for name, p in changed.named_parameters():
                p.copy_(params[name][t])
        assert torch.allclose(output[t], changed(x[t]), rtol=1e-9, atol=1e-12)


def test_from_module_leaves_the_module_as_it_was(module_and_x):
    module, x = module_and_x
    before, mode, attributes = copy.deepcopy(module.state_dict()), module.training, set(vars(module))
    model = from_module(module)
    params = {n: p.requires_grad_() for n, p in per_task(model.theta).items()}
    model.apply(params, x).sum().backward()
    model.apply(params, x, context=x)
    model.apply.statistics(params, x)
    for p in model.theta.values():
        p.zero_()  # copies: not the module's own
    assert module.training is mode and set(vars(module)) == attributes
    assert all("forward" not in vars(part) for part in module.modules())
    assert all(p.grad is None for p in module.parameters())
    after = module.state_dict()
    assert list(after) == list(before) and all(torch.equal(after[n], before[n]) for n in before)


def test_a_shared_weight_is_one_parameter():
    model = from_module(Branch())
    assert sorted(model.theta) == ["again.bias", "inner.bias", "inner.weight", "norm.bias", "norm.weight"]


class InPlaceState(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 2)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x):
        self.calls += 1
        return self.layer(x)


class ReplacedState(InPlaceState):
    def forward(self, x):
        self.calls = self.calls + 1
        return self.layer(x)


class ValueBranch(InPlaceState):
    def forward(self, x):
        return self.layer(x) if x.sum() > 0 else -self.layer(x)


class Noise(InPlaceState):
    def forward(self, x):
        return self.layer(x + torch.randn_like(x))


@pytest.mark.parametrize(
    "module, message",
    [
        (nn.Sequential(nn.Linear(4, 2), nn.BatchNorm1d(2)), r"Sequential\.1 \(BatchNorm1d\).*track_running_stats="),
        (nn.InstanceNorm1d(2, affine=True, track_running_stats=True), "InstanceNorm1d.*running statistics"),
        (nn.Sequential(nn.Linear(4, 2), nn.Dropout()), r"Sequential\.1 draws new noise.*\.eval\(\)"),
        (nn.Sequential(nn.Flatten(), nn.ReLU()), "Sequential has no parameters, so there is nothing to meta-learn"),
    ],
)
def test_from_module_refuses(module, message):
    with pytest.raises(ValueError, match=message):
        from_module(module)


@pytest.mark.parametrize(
    "kind, message",
    [
        (InPlaceState, "InPlaceState changes its buffer 'calls' in forward"),
        (ReplacedState, "ReplacedState changes its buffer 'calls' in forward"),
        (ValueBranch, "ValueBranch cannot run over a task axis.*data-dependent.*branch on tensor values"),
        (Noise, "Noise cannot run over a task axis.*random.*must not draw random numbers"),
    ],
)
def test_modules_that_are_no_functions_are_refused_when_called(kind, message):
    model = from_module(kind())
    with pytest.raises(ValueError, match=message):
        model.apply(model.theta, torch.ones(2, 3, 4))


def test_an_error_of_the_module_itself_is_not_disguised():
    model = from_module(nn.Linear(4, 2))
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied|size mismatch|must match"):
        model.apply(model.theta, torch.ones(2, 3, 5))


# --------------------------------------------------------------------------------------------------
# Losses


def test_mse_per_task():
    model = mlp((4, 6, 2), generator=generator(), dtype=torch.float64)
    x, y, params = normal(3, 5, 4), normal(3, 5, 2, seed=1), per_task(model.theta)
    expected = torch.stack([F.mse_loss(p, t) for p, t in zip(model.apply(params, x), y)])
    assert torch.allclose(mse(model.apply)(params, x, y), expected, rtol=1e-12)


def test_cross_entropy_per_task():
    model = mlp((4, 6, 5), generator=generator(), dtype=torch.float64)
    x, y, params = normal(3, 7, 4), torch.randint(5, (3, 7), generator=generator()), per_task(model.theta)
    expected = torch.stack([F.cross_entropy(p, t) for p, t in zip(model.apply(params, x), y)])
    assert torch.allclose(cross_entropy(model.apply)(params, x, y), expected, rtol=1e-12)


def test_mse_does_not_broadcast():
    model = mlp((4, 6, 1))
    for shape in ((3, 5), (3, 1, 1), (3, 5, 2)):
        with pytest.raises(ValueError, match=r"the model predicts shape \[3, 5, 1\] and y has"):
            mse(model.apply)(model.theta, torch.zeros(3, 5, 4), torch.zeros(shape))


@pytest.mark.parametrize("y", [torch.zeros(3, 7), torch.zeros(3, 6).long(), torch.zeros(3, 7, 5).long()])
def test_cross_entropy_wants_one_integer_label_per_example(y):
    model = mlp((4, 6, 5))
    with pytest.raises(ValueError, match=r"integer labels \[tasks, examples\] = \[3, 7\], not torch\."):
        cross_entropy(model.apply)(model.theta, torch.zeros(3, 7, 4), y)


def test_losses_are_means_so_that_repeating_the_examples_changes_nothing():
    model = mlp((4, 6, 2), generator=generator(), dtype=torch.float64)
    x, y = normal(3, 5, 4), torch.randint(2, (3, 5), generator=generator())
    loss = cross_entropy(model.apply)
    assert torch.allclose(loss(model.theta, x, y), loss(model.theta, x.repeat(1, 2, 1), y.repeat(1, 2)), rtol=1e-12)
