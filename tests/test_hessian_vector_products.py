"""The three routes to H·v against dense Hessians, and what they do where there is no curvature."""

import math

import pytest
import torch
from support.problems import (
    PROBLEMS,
    ROUTES,
    Problem,
    flat,
    random_like,
    relative,
    tanh_mlp,
)
from torch.nn.attention import SDPBackend, sdpa_kernel

from maml_edu.baselines import joint
from maml_edu.hessian_vector import hvp
from maml_edu.meta_gradient import adapt, fomaml, maml
from maml_edu.models import from_module, mlp, mse
from maml_edu.reference import autograd_maml
from maml_edu.tasks import TaskBatch


@pytest.mark.parametrize("how", ROUTES)
def test_hvp_equals_the_dense_hessian_of_every_task(how):
    problem = tanh_mlp()
    x, y = problem.batch[:2]
    params = adapt(problem.loss, problem.theta, x, y, 0.3, 2)[-1]  # every task at its own point
    v = random_like(params)
    found = hvp(problem.loss, params, x, y, v, how)
    shapes = [p.shape for p in problem.theta.values()]
    for t in range(3):

        def of_flat(vector, t=t):
            parts = vector.split([math.prod(s) for s in shapes])
            theta = {n: part.view(s) for n, part, s in zip(params, parts, shapes)}
            return problem.loss(theta, x[t : t + 1], y[t : t + 1]).squeeze()

        hessian = torch.autograd.functional.hessian(of_flat, flat({n: p[t] for n, p in params.items()}))
        expected = hessian @ flat({n: p[t] for n, p in v.items()})
        here = flat({n: p[t] for n, p in found.items()})
        assert (here - expected).norm() < ROUTES[how] * expected.norm()


@pytest.mark.parametrize("how", ROUTES)
@pytest.mark.parametrize("name", PROBLEMS)
def test_hvp_on_an_expanded_theta(name, how):
    problem = PROBLEMS[name]()
    """θ_0 is one memory seen by every task: no route may write to it, or need its own copy."""
    params = {n: p.expand(len(problem.batch.support_x), *p.shape) for n, p in problem.theta.items()}
    v = random_like(params)
    found = hvp(problem.loss, params, *problem.batch[:2], v, how)
    copied = hvp(problem.loss, {n: p.clone() for n, p in params.items()}, *problem.batch[:2], v)
    assert relative(found, copied) < ROUTES[how]


@pytest.mark.parametrize("how", ROUTES)
def test_hvp_scales_with_v_task_by_task(how):
    """Finite differences choose their ε per task: a tiny v beside a huge one, and v = 0, are no problem."""
    problem = tanh_mlp()
    x, y = problem.batch[:2]
    params = adapt(problem.loss, problem.theta, x, y, 0.3, 1)[-1]
    v = random_like(params)
    scale = torch.tensor([1e-6, 0.0, 1e6], dtype=torch.float64)
    scaled = {n: p * scale.view(-1, *[1] * (p.dim() - 1)) for n, p in v.items()}
    expected, found = hvp(problem.loss, params, x, y, v), hvp(problem.loss, params, x, y, scaled, how)
    for n in v:
        assert torch.equal(found[n][1], torch.zeros_like(found[n][1]))
    for t in (0, 2):
        of_task = {n: scale[t] * h[t] for n, h in expected.items()}
        assert relative({n: h[t] for n, h in found.items()}, of_task) < ROUTES[how]


@pytest.mark.parametrize("how", ROUTES)
def test_unused_and_linear_parameters_have_zero_products(how):
    """u enters nowhere, b only linearly, and w curves: no error, zeros where zeros belong."""
    x = torch.ones(2, 3, 1, dtype=torch.float64)

    def loss(params, x, y):
        return params["w"][..., 0] ** 2 + params["b"].sum(-1) + 0 * x[:, 0, 0]

    theta = {n: torch.tensor([2.0, 1.0], dtype=torch.float64) for n in ("u", "b", "w")}
    params = {n: p.expand(2, 2) for n, p in theta.items()}
    found = hvp(loss, params, x, x, {n: torch.ones(2, 2, dtype=torch.float64) for n in theta}, how)
    for n, expected in {"u": [0.0, 0.0], "b": [0.0, 0.0], "w": [2.0, 0.0]}.items():
        assert torch.allclose(found[n], torch.tensor(expected, dtype=torch.float64).expand(2, 2))
    found = maml(loss, theta, TaskBatch(x, x, x, x), 0.1, 2, route=how).gradient
    for n, expected in {"u": [0.0, 0.0], "b": [1.0, 1.0], "w": [4 * 0.8**4, 0.0]}.items():
        assert torch.allclose(found[n], torch.tensor(expected, dtype=torch.float64))


@pytest.mark.parametrize("how", ROUTES)
@pytest.mark.parametrize("used", [True, False])
def test_loss_without_curvature(how, used):
    """A loss linear in θ passes v through unchanged; one that uses no parameter has gradient zero."""
    x = torch.rand(2, 3, 1, dtype=torch.float64)

    def loss(params, x, y):
        return (params["w"] * x[:, 0]).sum(-1) if used else x.mean((1, 2))

    theta = {"w": torch.ones(1, dtype=torch.float64)}
    batch = TaskBatch(x, x, x, x)
    found = maml(loss, theta, batch, 0.1, 2, route=how)
    expected = x[:, 0].mean(0) if used else torch.zeros(1, dtype=torch.float64)
    assert torch.allclose(found.gradient["w"], expected)
    assert torch.allclose(fomaml(loss, theta, batch, 0.1, 2).gradient["w"], expected)


def test_operation_without_second_derivative_is_named():
    def loss(params, x, y):
        return torch.cdist(params["w"], x).square().mean((1, 2))

    x = torch.randn(2, 3, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    theta = {"w": torch.eye(2, dtype=torch.float64)}
    with pytest.raises(RuntimeError, match=r'no second derivative in PyTorch .*cdist.*"finite-difference"'):
        maml(loss, theta, TaskBatch(x, x, x, x), 0.1)
    # cdist² is a quadratic of curvature 2·3/6 in every row
    found = maml(loss, theta, TaskBatch(x, x, x, x), 0.1, route="finite-difference").gradient["w"]
    assert torch.allclose(found, 0.9**2 * joint(loss, theta, TaskBatch(x, x, x, x)).gradient["w"], rtol=1e-6)


@pytest.mark.filterwarnings("ignore:There is a performance drop")  # vmap of the fused attention
def test_attention_needs_its_plain_implementation():
    """The fused one has no second derivative: said so; the plain one has."""
    torch.manual_seed(0)
    model = from_module(torch.nn.TransformerEncoderLayer(4, 2, 8, dropout=0.0).double())
    x = torch.randn(2, 5, 4, dtype=torch.float64)  # attention over the examples of a task
    problem = Problem(mse(model.apply), model.theta, TaskBatch(x, x.sin(), x, x.cos()))
    with pytest.raises(RuntimeError, match="for attention: torch.nn.attention.sdpa_kernel"):
        maml(*problem, 0.1)
    with sdpa_kernel(SDPBackend.MATH):
        exact = maml(*problem, 0.1).gradient
    assert relative(maml(*problem, 0.1, route="finite-difference").gradient, exact) < 1e-6


def test_the_kink_of_a_relu_is_no_obstacle_to_double_backward():
    """ReLU networks are curved too: the Gauss-Newton term, and products of layers."""
    model = mlp((1, 20, 20, 1), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x = torch.linspace(-3, 3, 10, dtype=torch.float64).view(1, 10, 1)
    problem = Problem(mse(model.apply), model.theta, TaskBatch(x, x.sin(), x, x.sin()))
    exact = maml(*problem, 0.1, 2).gradient
    assert relative(exact, autograd_maml(*problem, 0.1, 2).gradient) < 1e-9
    assert relative(fomaml(*problem, 0.1, 2).gradient, exact) > 0.01
