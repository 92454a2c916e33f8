"""What the explicit recursion costs: calls of the loss, memory, time."""

import gc
import statistics
import time
import weakref

import pytest
import torch
import torch.nn.functional as F
from support.problems import PROBLEMS, Problem, relative, tanh_mlp

from maml_edu.baselines import joint, reptile
from maml_edu.data.sine import SineTasks
from maml_edu.engine.counters import LiveBytes
from maml_edu.meta_gradient import fomaml, maml
from maml_edu.models import conv4, cross_entropy, mlp, mse
from maml_edu.reference import autograd_maml
from maml_edu.tasks import TaskBatch

# --------------------------------------------------------------------------------------------------
# Calls of the loss


def loss_calls(method, problem, *arguments, **options):
    calls = []

    def counted(*inputs):
        calls.append(1)
        return problem.loss(*inputs)

    method(counted, problem.theta, problem.batch, *arguments, **options)
    return len(calls)


@pytest.mark.parametrize("name", PROBLEMS)
def test_no_loop_over_tasks(name):
    few, many = PROBLEMS[name](tasks=2), PROBLEMS[name](tasks=64)
    for how in ("double-backward", "forward-over-reverse", "finite-difference"):
        assert loss_calls(maml, few, 0.1, 3, route=how) == loss_calls(maml, many, 0.1, 3, route=how)
    for method in (fomaml, reptile):
        assert loss_calls(method, few, 0.1, 3) == loss_calls(method, many, 0.1, 3)
    assert loss_calls(joint, few) == loss_calls(joint, many)


@pytest.mark.parametrize("steps", [1, 2, 5])
def test_nothing_is_computed_twice_without_need(steps):
    """K steps down, one query, and on the way back every step again but the last, whose graph was kept."""
    assert loss_calls(maml, tanh_mlp(), 0.1, steps) == steps + 1 + (steps - 1)
    assert loss_calls(maml, tanh_mlp(), 0.1, steps, route="forward-over-reverse") == steps + 1 + steps
    assert loss_calls(fomaml, tanh_mlp(), 0.1, steps) == steps + 1


# --------------------------------------------------------------------------------------------------
# Memory


def test_live_bytes_counts_what_is_held():
    with LiveBytes() as memory:
        a = torch.zeros(1000)
        view = a[:10]
        del a
        b = torch.ones(500)
        assert memory.live == 6000
        del view
        assert memory.live == 2000 and b.sum() == 500
    assert memory.peak == 6000


def peak(method, problem, steps, **options):
    gc.collect()
    with LiveBytes() as memory:
        method(*problem, 0.01, steps, **options)
    return memory.peak


def wide_sines():
    """Activations of 2 × 100 × 40 numbers per task against 1,761 parameters."""
    generator = torch.Generator().manual_seed(0)
    model = mlp(generator=generator)
    return Problem(mse(model.apply), model.theta, SineTasks().sample(4, 100, generator=generator))


def pictures():
    """Activations of 20 × 4 × (8² + 4² + …) numbers per task against 517 parameters."""
    generator = torch.Generator().manual_seed(0)
    model = conv4(5, filters=4, image=16, generator=generator)
    x, y = torch.rand(2, 20, 1, 16, 16, generator=generator), torch.arange(5).repeat(2, 4)
    return Problem(cross_entropy(model.apply), model.theta, TaskBatch(x, y, x, y))


def growth(method, problem, **options):
    """How much more memory 50 inner steps take than one, in sets of parameters per task and step."""
    of_theta = sum(p.numel() * p.element_size() for p in problem.theta.values())
    more = peak(method, problem, 50, **options) - peak(method, problem, 1, **options)
    return more / (49 * len(problem.batch.support_x) * of_theta)


@pytest.mark.slow
@pytest.mark.parametrize("make", [wide_sines, pictures])
def test_memory_grows_by_the_stored_parameters_only(make):
    problem = make()
    assert growth(maml, problem) <= 2
    assert growth(autograd_maml, problem) > 4  # so the bound says something


@pytest.mark.parametrize("how", ["forward-over-reverse", "finite-difference"])
def test_memory_of_the_other_routes(how):
    assert growth(maml, wide_sines(), route=how) <= 2


@pytest.mark.parametrize("method", [fomaml, reptile])
def test_first_order_methods_store_parameters_and_gradients(method):
    assert growth(method, wide_sines()) <= 2.01


class Saved:
    """What an operation keeps for the backward pass: alive as long as its graph needs it."""

    def __init__(self, tensor):
        self.tensor = tensor


def graphs_alive_at_each_call(method, steps):
    """How much of older graphs is alive whenever the loss is called, and after the method is done."""
    problem, saved, alive = tanh_mlp(), weakref.WeakSet(), []

    def pack(tensor):
        saved.add(box := Saved(tensor))
        return box

    def loss(*inputs):
        alive.append(len(saved))
        return problem.loss(*inputs)

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda box: box.tensor):
        result = method(loss, problem.theta, problem.batch, 0.1, steps)
    assert relative(result.gradient, method(*problem, 0.1, steps).gradient) == 0
    return [*alive, len(saved)]


def test_no_graph_outlives_its_step():
    """Four steps down, the query, three steps recomputed: only the graph of the last step may wait."""
    *down, query, second, third, fourth, after = graphs_alive_at_each_call(maml, 4)
    assert down == [0, 0, 0, 0] and query > 0 and (second, third, fourth, after) == (0, 0, 0, 0)
    assert graphs_alive_at_each_call(fomaml, 4) == [0] * 6
    unrolled = graphs_alive_at_each_call(autograd_maml, 4)[:5]
    assert unrolled == sorted(set(unrolled))  # grows with every step


# --------------------------------------------------------------------------------------------------
# Time


def loop_over_tasks(theta, batch, alpha):
    """The textbook implementation: one task after the other, create_graph=True, one step."""

    def forward(params, x):
        x = F.relu(x @ params["w1"] + params["b1"])
        x = F.relu(x @ params["w2"] + params["b2"])
        return x @ params["w3"] + params["b3"]

    theta = {n: p.detach().requires_grad_() for n, p in theta.items()}
    total = 0
    for support_x, support_y, query_x, query_y in zip(*batch):
        inner = F.mse_loss(forward(theta, support_x), support_y)
        g = torch.autograd.grad(inner, list(theta.values()), create_graph=True)
        phi = {n: p - alpha * d for (n, p), d in zip(theta.items(), g)}
        total = total + F.mse_loss(forward(phi, query_x), query_y)
    return dict(zip(theta, torch.autograd.grad(total / len(batch.support_x), list(theta.values()))))


def test_at_least_six_times_as_fast_as_a_loop_over_tasks():
    """In seconds of the processor, on one thread: what else the machine is doing counts little."""
    generator = torch.Generator().manual_seed(0)
    model = mlp(generator=generator)
    loss, batch = mse(model.apply), SineTasks().sample(25, 10, generator=generator)
    routes = {
        "loop": lambda: loop_over_tasks(model.theta, batch, 0.01),
        "recursion": lambda: maml(loss, model.theta, batch, 0.01).gradient,
    }
    assert relative(routes["recursion"](), routes["loop"]()) < 1e-4
    seconds = {name: [] for name in routes}
    for name in 15 * ["loop", *5 * ["recursion"]]:
        started = time.process_time()
        routes[name]()
        seconds[name].append(time.process_time() - started)
    loop, recursion = (1000 * statistics.median(seconds[name]) for name in ("loop", "recursion"))
    assert recursion <= loop / 6, f"{recursion:.2f} ms against {loop:.2f} ms"
