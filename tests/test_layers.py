"""The hand-written second derivatives against finite differences and against PyTorch's own."""

import collections

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from maml_edu.meta_gradient import maml
from maml_edu.models import conv4, cross_entropy
from maml_edu.models.fast_layers import batch_norm_relu, conv
from maml_edu.tasks import TaskBatch


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def arguments(size=7):
    """Three tasks, two channels to five, four examples."""
    return normal(4, 3 * 2, size, size), normal(3 * 5, 2, 3, 3, seed=1), 0.3 * normal(3 * 5, seed=2)


def ours(x, weight, shift):
    return batch_norm_relu(conv(x, weight, 3), shift)


def plain(x, weight, shift):
    h = F.conv2d(x, weight, stride=2, padding=1, groups=3)
    variance, mean = torch.var_mean(h, (0, 2, 3), correction=0, keepdim=True)
    return F.relu((h - mean) / torch.sqrt(variance + 1e-5) + shift.view(1, -1, 1, 1))


def first_and_second(layer, inputs, which, memory_format=torch.contiguous_format):
    """The gradient of a nonlinear function of the layer's output by `which` inputs, and a Hessian-vector product."""
    inputs = [t.clone(memory_format=memory_format) if t.dim() == 4 else t.clone() for t in inputs]
    leaves = [inputs[i].requires_grad_() for i in which]
    out = layer(*inputs)
    g = torch.autograd.grad((torch.tanh(out) * normal(*out.shape, seed=5)).sum(), leaves, create_graph=True)
    return [*g, *torch.autograd.grad(g, leaves, grad_outputs=[normal(*leaf.shape, seed=6) for leaf in leaves])]


def assert_close(actual, expected, tolerance=1e-11):
    assert len(actual) == len(expected)
    for a, b in zip(actual, expected):
        assert (a - b).norm() <= tolerance * (1 + b.norm())


@pytest.mark.parametrize("size", [1, 4, 7])
@pytest.mark.parametrize("which", [(0,), (1,), (2,), (1, 2), (0, 1, 2)], ids=str)
def test_gradient_and_hessian_vector_product_equal_pytorchs(which, size):
    """PyTorch's autograd of the same formula, for every choice of what is differentiated."""
    expected = first_and_second(plain, arguments(size), which)
    for memory_format in (torch.contiguous_format, torch.channels_last):
        assert_close(first_and_second(ours, arguments(size), which, memory_format), expected)


def test_against_finite_differences():
    x, weight, shift = (t.requires_grad_() for t in arguments(4))
    assert torch.autograd.gradcheck(lambda x, w: conv(x, w, 3), (x, weight))
    assert torch.autograd.gradgradcheck(lambda x, w: conv(x, w, 3), (x, weight))
    h = normal(3, 4, 2, 2, seed=3).requires_grad_()
    shift = normal(4, seed=4).requires_grad_()
    assert (plain_norm(h, shift) > 1e-4).sum() + (plain_norm(h, shift) == 0).sum() == h.numel()  # away from the kink
    assert torch.autograd.gradcheck(batch_norm_relu, (h, shift))
    assert torch.autograd.gradgradcheck(batch_norm_relu, (h, shift))


def plain_norm(h, shift):
    return F.relu(F.batch_norm(h, None, None, torch.ones_like(shift), shift, training=True))


def test_a_convolution_can_be_differentiated_a_third_time():
    def third(layer):
        x, weight = (t.clone().requires_grad_() for t in arguments(4)[:2])
        value = (layer(x, weight) ** 3).sum()
        for seed in (7, 8, 9):
            (g,) = torch.autograd.grad(value, x, create_graph=True)
            value = (g * normal(*x.shape, seed=seed)).sum()
        return torch.autograd.grad(value, weight)

    assert_close(third(lambda x, w: conv(x, w, 3)), third(lambda x, w: F.conv2d(x, w, stride=2, padding=1, groups=3)))


def test_a_third_derivative_of_batch_norm_says_that_it_is_missing():
    h = normal(3, 4, 2, 2).requires_grad_()
    (g,) = torch.autograd.grad(batch_norm_relu(h, normal(4, seed=1)).square().sum(), h, create_graph=True)
    (second,) = torch.autograd.grad(g.square().sum(), h, create_graph=True)
    with pytest.raises(RuntimeError, match="a third one was asked for"):
        torch.autograd.grad(second.sum(), h)


@pytest.mark.parametrize("moved", [(0,), (1,), (2,), (0, 1, 2)], ids=str)
def test_forward_over_reverse_equals_reverse_over_reverse(moved):
    inputs = arguments()
    cotangent = normal(4, 15, 4, 4, seed=5)

    def value(*moving):
        given = list(inputs)
        for i, t in zip(moved, moving):
            given[i] = t
        return (torch.tanh(ours(*given)) * cotangent).sum()

    primal = tuple(inputs[i] for i in moved)
    tangent = tuple(normal(*p.shape, seed=6) for p in primal)
    gradient, product = torch.func.jvp(torch.func.grad(value, argnums=tuple(range(len(moved)))), primal, tangent)
    assert_close([*gradient, *product], first_and_second(ours, inputs, moved))


class Operations(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.counts = collections.Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.counts[func.overloadpacket.__name__] += 1
        return func(*args, **(kwargs or {}))


def test_the_number_of_operations_does_not_grow_with_the_tasks():
    """No loop over tasks below Python either, as there is in PyTorch's double backward of a grouped convolution."""

    def counts(tasks):
        model = conv4(3, filters=2, image=8, generator=torch.Generator().manual_seed(0))
        x, y = torch.rand(tasks, 3, 1, 8, 8), torch.arange(3).expand(tasks, 3)
        with Operations() as operations:
            maml(cross_entropy(model.apply), model.theta, TaskBatch(x, y, x.flip(1), y), 0.4, 2)
        return operations.counts

    few, many = counts(2), counts(16)
    assert few == many
    # Two steps, a query, one step again: 4 forward and 4 backward passes; two Hessian-vector products.
    assert many["convolution"] + many["convolution_backward"] < 100
