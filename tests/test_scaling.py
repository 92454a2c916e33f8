"""The cost model against counters, the checkpointed path against `maml`, both at several sizes."""

import math

import pytest
import torch
from support.problems import ALPHA, PROBLEMS, relative, tanh_mlp, varied_alpha

from maml_edu.electives import cost_model as cost
from maml_edu.electives.gradient_checkpointing import maml_checkpointed, vectors_stored
from maml_edu.engine.counters import count_flops, count_operations, peak_bytes
from maml_edu.hessian_vector import hvp, value_and_gradient
from maml_edu.meta_gradient import fomaml, maml
from maml_edu.models import conv4, cross_entropy, mlp, mse
from maml_edu.reference import autograd_maml
from maml_edu.tasks import TaskBatch, expand_over_tasks

METHODS = {"maml": maml, "fomaml": fomaml, "unrolled": autograd_maml, "checkpointed": maml_checkpointed}


def dense(tasks, examples, sizes=(1, 40, 40, 1)):
    generator = torch.Generator().manual_seed(0)
    model = mlp(sizes, generator=generator)
    x, y = (torch.randn(2, tasks, examples, s, generator=generator) for s in (sizes[0], sizes[-1]))
    return cost.mlp_network(sizes), mse(model.apply), model.theta, TaskBatch(x[0], y[0], x[1], y[1])


def pictures(tasks, examples, filters=8, image=28):
    generator = torch.Generator().manual_seed(0)
    model = conv4(5, filters, image, generator=generator)
    x = torch.rand(2, tasks, examples, 1, image, image, generator=generator)
    y = torch.arange(examples).remainder(5).expand(tasks, examples).contiguous()
    return cost.conv4_network(5, filters, image), cross_entropy(model.apply), model.theta, TaskBatch(x[0], y, x[1], y)


# ---------------------------------------------------------------- checkpointing


@pytest.mark.parametrize("name", PROBLEMS)
@pytest.mark.parametrize("steps, every", [(0, None), (1, None), (2, 1), (5, 2), (5, None), (7, 3), (4, 9)])
def test_checkpointed_is_exact(name, steps, every):
    p = PROBLEMS[name]()
    expected, result = (
        method(p.loss, p.theta, p.batch, ALPHA[name], steps, *more)
        for method, more in ((maml, ()), (maml_checkpointed, (every,)))
    )
    assert relative(result.gradient, expected.gradient) < 1e-12 and relative(result.phi, expected.phi) < 1e-12
    assert torch.allclose(result.query_loss, expected.query_loss, rtol=1e-12)
    assert torch.allclose(result.alpha_gradient, expected.alpha_gradient, rtol=1e-10, atol=1e-14)


def test_checkpointed_gives_every_form_of_alpha_gradient():
    p = tanh_mlp()
    per_step = [varied_alpha(p.theta, seed) for seed in range(5)]
    for alpha in (varied_alpha(p.theta), per_step, [0.1, 0.2, 0.1, 0.3, 0.2], [*per_step, 0.1]):
        expected, result = (m(p.loss, p.theta, p.batch, alpha, 5).alpha_gradient for m in (maml, maml_checkpointed))
        pairs = zip(result, expected) if isinstance(alpha, list) else [(result, expected)]
        for a, b in pairs:
            assert relative(a, b) < 1e-12 if isinstance(b, dict) else abs(float(a - b)) < 1e-12
    assert relative(
        maml_checkpointed(*p, per_step, 5).gradient, autograd_maml(*p, per_step, 5).gradient
    ) < 1e-12  # fmt: skip


def test_checkpointed_agrees_with_differences_of_the_query_loss():
    p, epsilon = tanh_mlp(), 1e-5
    g = maml_checkpointed(*p, 0.2, 4, 2).gradient
    v = {n: t / 2 for n, t in g.items()}

    def mean_loss(sign):
        theta = {n: t + sign * epsilon * v[n] for n, t in p.theta.items()}
        return maml(p.loss, theta, p.batch, 0.2, 4).query_loss.mean()

    slope = (mean_loss(1) - mean_loss(-1)) / (2 * epsilon)
    assert torch.allclose(slope, sum((g[n] * v[n]).sum() for n in g), rtol=1e-7)


def test_checkpointed_stores_what_it_says():
    _, loss, theta, batch = dense(25, 10)
    one = sum(p.numel() for p in theta.values()) * 25 * 4

    def peak(*key):
        return peak_bytes(lambda: maml_checkpointed(loss, theta, batch, 0.01, *key))

    peaks = {key: peak(*key) for key in ((16, 4), (16, 16), (9, 2))}
    for key, peak in peaks.items():
        more = vectors_stored(*key) - vectors_stored(16, 4)
        assert abs((peak - peaks[16, 4]) / one - more) < 0.1, key
    assert [vectors_stored(k) for k in (0, 1, 2, 9, 16, 100)] == [0, 1, 2, 5, 7, 19]


@pytest.mark.parametrize("every", [0, -1, 2.0, True])
def test_bad_spacing_is_refused(every):
    with pytest.raises(ValueError, match="whole number of inner steps between"):
        maml_checkpointed(*tanh_mlp(), 0.1, 4, every)


# ---------------------------------------------------------------- arithmetic


@pytest.mark.parametrize("make", [dense, pictures])
def test_flops_of_the_parts_are_exact(make):
    """One task: PyTorch's counter takes grouped weight gradients for T times what they are."""
    net, loss, theta, batch = make(1, 5)
    everywhere, x, y = expand_over_tasks(theta, 1), batch.support_x, batch.support_y
    assert cost.forward_flops(net, 1, 5) == count_flops(lambda: loss(everywhere, x, y))
    assert cost.gradient_flops(net, 1, 5) == count_flops(lambda: value_and_gradient(loss, everywhere, x, y))
    assert cost.hvp_flops(net, 1, 5) == count_flops(lambda: hvp(loss, everywhere, x, y, everywhere))
    assert net.parameters == sum(p.numel() for p in theta.values())


@pytest.mark.parametrize("make", [dense, pictures])
@pytest.mark.parametrize("method", METHODS)
def test_flops_of_the_whole_are_exact(make, method):
    net, *problem = make(1, 5)

    def counted(steps):
        return count_flops(lambda: METHODS[method](*problem, 0.01, steps))

    for steps in (0, 1, 3):
        assert cost.meta_gradient_flops(net, 1, steps, 5, method=method) == counted(steps), steps


def test_flops_for_many_tasks_unequal_sets_and_other_sizes():
    net, loss, theta, batch = dense(6, 10, (3, 8, 5, 4, 2))
    batch = batch._replace(query_x=batch.query_x[:, :4], query_y=batch.query_y[:, :4])
    for steps in (6, 7):  # every = 3 divides one of them

        def call(k=steps):
            maml_checkpointed(loss, theta, batch, 0.01, k, 3)

        assert cost.meta_gradient_flops(net, 6, steps, 10, 4, "checkpointed", 3) == count_flops(call)
    assert count_flops(lambda: maml(loss, theta, batch, 0.01, 3)) == cost.meta_gradient_flops(net, 6, 3, 10, 4)


def test_in_units_of_the_forward_pass_when_the_first_layer_is_small():
    net, forward = cost.mlp_network((1, 500, 500, 500, 1)), 2 * 10
    unit = forward * sum(cost.mlp_network((1, 500, 500, 500, 1)).products)
    for k in (1, 5, 10):
        assert cost.meta_gradient_flops(net, 1, k, 10) / unit == pytest.approx(12 * k, rel=2e-3)
        assert cost.meta_gradient_flops(net, 1, k, 10, method="fomaml") / unit == pytest.approx(3 * k + 3, rel=2e-3)


def test_grouped_weight_gradients_are_overcounted_by_torch():
    """If this fails, PyTorch has mended its counter: drop the advice to count with one task."""
    net, loss, theta, batch = pictures(3, 5)
    assert count_flops(
        lambda: value_and_gradient(loss, expand_over_tasks(theta, 3), *batch[:2])
    ) > 1.5 * cost.gradient_flops(net, 3, 5)


# ---------------------------------------------------------------- memory and operations


@pytest.mark.parametrize("make, sizes", [(dense, (25, 10)), (dense, (4, 200)), (pictures, (4, 5))])
@pytest.mark.parametrize("method", METHODS)
def test_memory_within_ten_percent(make, sizes, method):
    net, *problem = make(*sizes)

    def counted(steps):
        return peak_bytes(lambda: METHODS[method](*problem, 0.01, steps))

    for steps in (1, 2, 6) if make is dense else (1, 3):
        predicted = cost.meta_gradient_bytes(net, sizes[0], steps, sizes[1], method)
        assert predicted == pytest.approx(counted(steps), rel=0.1), (steps, predicted / counted(steps))


def test_most_tasks_is_the_largest_that_fits():
    net = cost.conv4_network(5, 16)
    most = cost.most_tasks(net, 2**30, 5, 5)
    assert cost.meta_gradient_bytes(net, most, 5, 5) <= 2**30 < cost.meta_gradient_bytes(net, most + 1, 5, 5)
    assert cost.most_tasks(net, 1000, 5, 5) == 0
    cost.refuse_if_too_large(2**30, 2**30)
    with pytest.raises(MemoryError, match="2.1 GB and there are 1.1 GB"):
        cost.refuse_if_too_large(2**31, 2**30)


def test_operations_do_not_depend_on_the_number_of_tasks():
    def counted(tasks, steps=2):
        _, loss, theta, batch = dense(tasks, 5)
        return count_operations(lambda: maml(loss, theta, batch, 0.01, steps))

    assert counted(2) == counted(30) and counted(2, 4) > 1.7 * counted(2)


def test_counters_count():
    a = torch.zeros(1000)
    assert count_operations(lambda: a.view(10, 100).t()) == 0 and count_operations(lambda: (a + 1).mul_(2)) == 2
    assert peak_bytes(lambda: a.view(10, 100).add_(1)) == 0 and peak_bytes(lambda: (a + 1) + (a + 2)) == 12000
    assert count_flops(lambda: torch.ones(2, 3) @ torch.ones(3, 4)) == 48


# ---------------------------------------------------------------- time, workers, noise


def test_the_fit_finds_the_two_numbers_that_made_the_times():
    true = cost.Machine(5e-6, 2e9)
    operations, flops = [100] * 5, [1e4 * t for t in (1, 10, 100, 1000, 10000)]
    machine = cost.fit_machine(operations, flops, [true.seconds(n, f) for n, f in zip(operations, flops)])
    assert machine == pytest.approx(true)
    assert true.seconds(100, true.crossing(100, 7.0) * 7.0) == pytest.approx(2 * 100 * 5e-6)


@pytest.mark.parametrize(
    "given, message",
    [
        (([1, 1], [1, 2], [1]), "the same number of each"),
        (([100, 200], [100, 200], [1, 2]), "grow together"),
        (([100, 100], [1, 2], [2, 1]), "expected both"),
    ],
)
def test_measurements_that_fit_no_machine(given, message):
    with pytest.raises(ValueError, match=message):
        cost.fit_machine(*given)


def test_allreduce():
    assert cost.ring_allreduce_seconds(1e6, 1, 1e-3, 1e9) == 0
    assert cost.ring_allreduce_seconds(8e6, 4, 1e-3, 1e9) == pytest.approx(6 * (1e-3 + 2e-3))
    with pytest.raises(ValueError, match="workers=0"):
        cost.ring_allreduce_seconds(1, 0, 1, 1)


def test_noise_scale_of_known_noise():
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(20000, 50, generator=generator) * 2 + 0.5  # tr Σ = 200, |G|² = 12.5
    assert cost.noise_scale(rows) == pytest.approx(16, rel=0.05)
    assert cost.noise_scale(torch.tensor([[3.0], [1.0]])) == pytest.approx(2 / 3)  # tr Σ = 2, |G|² = 4 − 2/2
    assert cost.noise_scale(torch.tensor([[1.0], [-1.0]])) == math.inf
    with pytest.raises(ValueError, match=r"expected \[tasks, parameters\]"):
        cost.noise_scale(rows[0])


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: cost.mlp_network((3,)), "sizes"),
        (lambda: cost.conv4_network(0), "ways=0"),
        (lambda: cost.meta_gradient_flops(cost.mlp_network(), 1, 1, 1, method="adam"), "unknown method 'adam'"),
        (lambda: cost.meta_gradient_bytes(cost.mlp_network(), 0, 1, 1), "tasks=0"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()
