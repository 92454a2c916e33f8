"""The same meta-gradient by several tools, each written the way its documentation recommends.

contestant(problem, steps, first_order) -> a function of no arguments that returns {name: gradient}, or raises
NotImplementedError where a tool has no such thing and ImportError where it is not installed.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from maml_edu.data.sine import SineTasks
from maml_edu.engine.compilation import compiled
from maml_edu.meta_gradient import fomaml, maml
from maml_edu.models import Model, conv4, cross_entropy, mlp, mse
from maml_edu.reference import autograd_maml
from maml_edu.tasks import TaskBatch


class Problem(NamedTuple):
    name: str
    model: Model
    loss: object  # of this package: every task at once
    batch: TaskBatch
    alpha: float
    module: type  # the same network as an nn.Module, for the tools that want one
    module_loss: object  # of one task: (prediction, y) -> number


class SineNet(nn.Module):
    """1-40-40-1 with the parameters of `mlp`, whose weights are [in, out]."""

    def __init__(self, theta):
        super().__init__()
        for name, p in theta.items():
            self.register_parameter(name, nn.Parameter(p.clone()))

    def forward(self, x):
        x = F.relu(x @ self.w1 + self.b1)
        x = F.relu(x @ self.w2 + self.b2)
        return x @ self.w3 + self.b3


class ConvNet(nn.Module):
    """The network of `conv4`; parameter names with _ for the dot."""

    def __init__(self, theta):
        super().__init__()
        for name, p in theta.items():
            self.register_parameter(name.replace(".", "_"), nn.Parameter(p.clone()))

    def forward(self, x):
        for layer in range(1, 5):
            weight, shift = getattr(self, f"conv{layer}_weight"), getattr(self, f"conv{layer}_shift")
            x = F.conv2d(x, weight, stride=2, padding=1)
            # a scale of ones: without it PyTorch 2.13 cannot differentiate batch_norm twice
            x = F.relu(F.batch_norm(x, None, None, torch.ones_like(shift), shift, training=True))
        return x.mean((2, 3)) @ self.head_weight + self.head_bias


def sine(tasks=25, shots=10, hidden=40, device="cpu") -> Problem:
    generator = torch.Generator().manual_seed(0)
    model = mlp((1, hidden, hidden, 1), generator=generator, device=device)
    batch = SineTasks().sample(tasks, shots, generator=generator, device=device)
    return Problem("sine", model, mse(model.apply), batch, 0.01, SineNet, F.mse_loss)


def pictures(tasks=32, filters=64, ways=5, device="cpu") -> Problem:
    """5-way 1-shot with conv4; the pictures are noise, which costs what characters cost."""
    generator = torch.Generator().manual_seed(0)
    model = conv4(ways, filters, generator=generator, device=device)
    x = torch.rand(2, tasks, ways, 1, 28, 28, generator=generator).to(device)
    y = torch.arange(ways, device=device).expand(tasks, ways).contiguous()
    batch = TaskBatch(x[0], y, x[1], y)
    return Problem("conv4", model, cross_entropy(model.apply), batch, 0.4, ConvNet, F.cross_entropy)


# ---------------------------------------------------------------- this package


def eager(problem, steps, first_order):
    method = fomaml if first_order else maml
    return lambda: method(problem.loss, problem.model.theta, problem.batch, problem.alpha, steps).gradient


def compiled_(problem, steps, first_order):
    if steps > (10 if problem.name == "sine" else 1):
        raise NotImplementedError("the program grows with the steps, and compiling it takes many minutes")
    method = compiled(fomaml if first_order else maml)
    return lambda: method(problem.loss, problem.model.theta, problem.batch, problem.alpha, steps).gradient


def unrolled(problem, steps, first_order):
    if first_order:
        raise NotImplementedError
    return lambda: autograd_maml(problem.loss, problem.model.theta, problem.batch, problem.alpha, steps).gradient


# ---------------------------------------------------------------- others


def _not_for_minutes(problem, steps):
    if problem.name == "conv4" and steps > 10:
        raise NotImplementedError("minutes per call")


def loop(problem, steps, first_order):
    """torch.autograd.grad with create_graph, one task after the other."""
    module = problem.module(problem.model.theta)
    names = [name.replace("_", ".") if "_" in name else name for name, _ in module.named_parameters()]
    theta = dict(module.named_parameters())

    def run():
        total = None
        for support_x, support_y, query_x, query_y in zip(*problem.batch):
            phi = theta
            for _ in range(steps):
                value = problem.module_loss(torch.func.functional_call(module, phi, (support_x,)), support_y)
                g = torch.autograd.grad(value, list(phi.values()), create_graph=not first_order)
                phi = {name: p - problem.alpha * d for (name, p), d in zip(phi.items(), g)}
            value = problem.module_loss(torch.func.functional_call(module, phi, (query_x,)), query_y)
            g = torch.autograd.grad(value, list((phi if first_order else theta).values()))
            total = g if total is None else [a + b for a, b in zip(total, g)]
        return {name: t / len(problem.batch.support_x) for name, t in zip(names, total)}

    return run


def vmapped(problem, steps, first_order):
    """torch.func: vmap(grad(inner loop))."""
    module = problem.module(problem.model.theta)
    theta = {name: p.detach() for name, p in module.named_parameters()}

    def value(params, x, y):
        return problem.module_loss(torch.func.functional_call(module, params, (x,)), y)

    def query_loss(params, task):
        support_x, support_y, query_x, query_y = task
        phi = params
        for _ in range(steps):
            g = torch.func.grad(value)(phi, support_x, support_y)
            phi = {name: p - problem.alpha * (g[name].detach() if first_order else g[name]) for name, p in phi.items()}
        return value(phi, query_x, query_y)

    per_task = torch.func.vmap(torch.func.grad(query_loss), in_dims=(None, 0))

    def run():
        g = per_task(theta, tuple(problem.batch))
        return {name.replace("_", "."): t.mean(0) for name, t in g.items()}

    return run


def higher_(problem, steps, first_order):
    """facebookresearch/higher: innerloop_ctx, one task after the other."""
    import higher

    _not_for_minutes(problem, steps)
    module = problem.module(problem.model.theta).to(problem.batch.support_x.device)

    def run():
        module.zero_grad()
        optimiser = torch.optim.SGD(module.parameters(), lr=problem.alpha)
        for support_x, support_y, query_x, query_y in zip(*problem.batch):
            with higher.innerloop_ctx(
                module, optimiser, copy_initial_weights=False, track_higher_grads=not first_order
            ) as (fast, inner):
                for _ in range(steps):
                    inner.step(problem.module_loss(fast(support_x), support_y))
                value = problem.module_loss(fast(query_x), query_y)
                if first_order:  # then φ is a leaf of its own
                    for p, g in zip(module.parameters(), torch.autograd.grad(value, list(fast.parameters()))):
                        p.grad = g if p.grad is None else p.grad + g
                else:
                    value.backward()
        n = len(problem.batch.support_x)
        return {name.replace("_", "."): p.grad / n for name, p in module.named_parameters()}

    return run


def torchopt_(problem, steps, first_order):
    """metaopt/TorchOpt: MetaSGD with extract_state_dict and recover_state_dict, one task after the other."""
    import torchopt

    if first_order:
        raise NotImplementedError
    _not_for_minutes(problem, steps)
    module = problem.module(problem.model.theta)
    inner = torchopt.MetaSGD(module, lr=problem.alpha)
    parameters = dict(module.named_parameters())

    def run():
        for p in parameters.values():
            p.grad = None
        net_state = torchopt.extract_state_dict(module, by="reference")
        inner_state = torchopt.extract_state_dict(inner, by="reference")
        for support_x, support_y, query_x, query_y in zip(*problem.batch):
            for _ in range(steps):
                inner.step(problem.module_loss(module(support_x), support_y))
            problem.module_loss(module(query_x), query_y).backward()
            torchopt.recover_state_dict(module, net_state)
            torchopt.recover_state_dict(inner, inner_state)
        n = len(problem.batch.support_x)
        return {name.replace("_", "."): p.grad / n for name, p in parameters.items()}

    return run


def jax_(problem, steps, first_order):
    """JAX: jit(mean over tasks of vmap(grad(inner loop))), the inner loop a lax.scan."""
    import jax
    import jax.numpy as jnp

    _not_for_minutes(problem, steps)

    theta = {name: jnp.asarray(p.cpu().numpy()) for name, p in problem.model.theta.items()}
    batch = tuple(jnp.asarray(t.cpu().numpy()) for t in problem.batch)
    alpha = problem.alpha

    def mlp_value(p, x, y):
        x = jax.nn.relu(x @ p["w1"] + p["b1"])
        x = jax.nn.relu(x @ p["w2"] + p["b2"])
        return jnp.mean((x @ p["w3"] + p["b3"] - y) ** 2)

    def conv_value(p, x, y):
        for layer in range(1, 5):
            w, shift = p[f"conv{layer}.weight"], p[f"conv{layer}.shift"]
            x = jax.lax.conv_general_dilated(x, w, (2, 2), ((1, 1), (1, 1)))
            mean, variance = x.mean((0, 2, 3), keepdims=True), x.var((0, 2, 3), keepdims=True)
            x = jax.nn.relu((x - mean) * jax.lax.rsqrt(variance + 1e-5) + shift[None, :, None, None])
        logits = x.mean((2, 3)) @ p["head.weight"] + p["head.bias"]
        return -jnp.mean(jnp.take_along_axis(jax.nn.log_softmax(logits), y[:, None], 1))

    value = mlp_value if problem.name == "sine" else conv_value

    def query_loss(params, support_x, support_y, query_x, query_y):
        def step(phi, _):
            g = jax.grad(value)(phi, support_x, support_y)
            if first_order:
                g = jax.lax.stop_gradient(g)
            return jax.tree.map(lambda p, d: p - alpha * d, phi, g), None

        phi = step(params, None)[0] if steps == 1 else jax.lax.scan(step, params, None, length=steps)[0]
        return value(phi, query_x, query_y)

    @jax.jit
    def gradient(params, *tasks):
        g = jax.vmap(jax.grad(query_loss), in_axes=(None, 0, 0, 0, 0))(params, *tasks)
        return jax.tree.map(lambda t: t.mean(0), g)

    return lambda: jax.block_until_ready(gradient(theta, *batch))


CONTESTANTS = {
    "maml_edu": eager,
    "maml_edu, compiled": compiled_,
    "maml_edu, unrolled": unrolled,
    "loop over tasks": loop,
    "torch.func.vmap": vmapped,
    "higher": higher_,
    "TorchOpt": torchopt_,
    "JAX jit": jax_,
}
