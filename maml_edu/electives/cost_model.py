"""What one meta-gradient costs, by counting: arithmetic, memory, and from these time and communication.

Counted are multiply-adds in matrix products and convolutions (one is two floating-point operations, FLOPs). A layer's
forward product is bilinear; its gradient needs two more of the same size (towards the weights, and towards the input,
which the first layer has no use for), and a Hessian-vector product by double backward six more on top of the gradient.
In units of the forward pass: gradient 3, Hessian-vector product 9, so K exact inner steps 12K and K first-order ones
3K + 3. Elementwise work (activations, batch norm, the update of θ) is left out: it costs time, and nearly no FLOPs.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from maml_edu.electives.gradient_checkpointing import vectors_stored

METHODS = ("maml", "fomaml", "unrolled", "checkpointed")


class Held(NamedTuple):
    """How much is alive at the peak, as (sets of parameters of all tasks, sets of activations of all tasks).

    Counted once on small networks, not derived: how long autograd holds what is its own affair. Good to 10 %.
    """

    product: tuple[float, float]  # while one Hessian-vector product is taken
    gradient: tuple[float, float]  # while one gradient is taken
    graph: tuple[float, float]  # what an unrolled graph keeps of every inner step
    unrolled: tuple[float, float]  # on top of that, while it is differentiated


class Network(NamedTuple):
    """products: multiply-adds of each layer for one example. activations: numbers the layers put out per example."""

    parameters: int
    activations: int
    products: tuple[int, ...]
    held: Held


def mlp_network(sizes: Sequence[int] = (1, 40, 40, 1)) -> Network:
    """What `models.mlp(sizes)` computes for one example."""
    if len(sizes) < 2 or min(sizes) < 1:
        raise ValueError(f"sizes={sizes}; expected at least input and output size, each 1 or more")
    products = tuple(a * b for a, b in zip(sizes[:-1], sizes[1:]))
    held = Held(product=(5.3, 3.6), gradient=(1, 1.8), graph=(2, 1.5), unrolled=(3, 2.1))
    return Network(sum(products) + sum(sizes[1:]), sum(sizes[1:]), products, held)


def conv4_network(ways: int, filters: int = 64, image: int = 28) -> Network:
    """What `models.conv4(ways, filters, image)` computes for one example (3×3 convolutions of stride 2)."""
    if min(ways, filters) < 1 or image < 2:
        raise ValueError(f"ways={ways}, filters={filters}, image={image}; expected 1, 1 and 2 or more")
    products, parameters, activations, side = [], 0, 0, image
    for channels in (1, filters, filters, filters):
        side = (side + 1) // 2
        products.append(side * side * filters * channels * 9)
        parameters += filters * channels * 9 + filters
        activations += side * side * filters
    products.append(filters * ways)
    held = Held(product=(6, 8.7), gradient=(1, 3.9), graph=(2, 5.3), unrolled=(3, 3.9))
    return Network(parameters + filters * ways + ways, activations, tuple(products), held)


# ---------------------------------------------------------------- arithmetic


def forward_flops(net: Network, tasks: int, examples: int) -> int:
    """One forward pass: every layer's product once."""
    return 2 * tasks * examples * sum(net.products)


def gradient_flops(net: Network, tasks: int, examples: int) -> int:
    """Forward and backward: three products a layer, two in the first."""
    return 2 * tasks * examples * (3 * sum(net.products) - net.products[0])


def hvp_flops(net: Network, tasks: int, examples: int) -> int:
    """The gradient, and backward through it: nine products a layer, four in the first."""
    return 2 * tasks * examples * (9 * sum(net.products) - 5 * net.products[0])


def meta_gradient_flops(
    net: Network,
    tasks: int,
    steps: int,
    support: int,
    query: int | None = None,
    method: str = "maml",
    every: int | None = None,
) -> int:
    """FLOPs of one meta-gradient. support, query (as support unless given): examples per task.

    method: "maml" (which keeps the last step's graph, so that one gradient is not taken twice), "fomaml", "unrolled"
    (autograd through everything), or "checkpointed" with a stored θ_j every `every` steps.
    """
    _checked(method, tasks=tasks, support=support)
    g, product = gradient_flops(net, tasks, support), hvp_flops(net, tasks, support)
    total = steps * g + gradient_flops(net, tasks, support if query is None else query)  # down, and the query set
    if method == "fomaml" or steps == 0:
        return total
    if method == "unrolled":
        return total + steps * (product - g)
    if method == "maml":
        return total + steps * product - g
    every = every or max(1, math.isqrt(steps - 1) + 1)
    segments = -(-steps // every)
    again = (segments - 1) * (every - 1)  # all segments but the last, each without its last step
    return total + steps * product + again * g


# ---------------------------------------------------------------- memory


def meta_gradient_bytes(
    net: Network,
    tasks: int,
    steps: int,
    examples: int,
    method: str = "maml",
) -> float:
    """The most bytes alive at one time while one meta-gradient is taken, what it is given not counted; good to 10 %.

    examples: of the support set, or of the query set if that is larger. Numbers are float32, 4 bytes each.
    α is one number; with a step size for each parameter, α∘v is one more set of parameters.
    """
    _checked(method, tasks=tasks, support=examples)
    theta, activations = (4 * tasks * n for n in (net.parameters, examples * net.activations))

    def sets(of: tuple[float, float]) -> float:
        return of[0] * theta + of[1] * activations

    if method == "fomaml" or steps == 0:
        return 2 * steps * theta + sets(net.held.gradient)  # θ_j and, for ∂/∂α, ∇L_s(θ_j)
    if method == "unrolled":
        return steps * sets(net.held.graph) + sets(net.held.unrolled)
    stored, in_a_row = steps, steps
    if method == "checkpointed":
        stored, in_a_row = vectors_stored(steps), min(2, steps)
    # `maml` keeps its last gradient to the end; where only one step is pulled back at a time, v has no predecessors yet
    more = -1 if in_a_row == 1 else 1 if method == "maml" else 0
    return (stored + more) * theta + sets(net.held.product)


def most_tasks(net: Network, memory: float, steps: int, examples: int, method: str = "maml") -> int:
    """The largest number of tasks whose meta-gradient fits into `memory` bytes, 0 if not one does."""
    return int(memory // meta_gradient_bytes(net, 1, steps, examples, method))


def refuse_if_too_large(needed: float, memory: float) -> None:
    """Raises MemoryError, before anything is computed, where `needed` bytes are more than `memory`."""
    if needed > memory:
        raise MemoryError(
            f"this needs about {needed / 1e9:.1f} GB and there are {memory / 1e9:.1f} GB; "
            "take fewer tasks at a time, store fewer θ_j (maml_checkpointed), or take fewer inner steps"
        )


def _checked(method: str, **at_least_one: int) -> None:
    if method not in METHODS:
        raise ValueError(f"unknown method {method!r}; choose one of {', '.join(METHODS)}")
    for name, value in at_least_one.items():
        if value < 1:
            raise ValueError(f"{name}={value}: must be at least 1")


# ---------------------------------------------------------------- time


class Machine(NamedTuple):
    """Two numbers that stand for a machine, both measured on the work itself."""

    seconds_per_operation: float  # what an operation costs even if it computes next to nothing
    flops_per_second: float  # reached in this kind of product, overhead taken out

    def seconds(self, operations: float, flops: float) -> float:
        """Overhead and arithmetic one after the other: operations·o + flops/r."""
        return operations * self.seconds_per_operation + flops / self.flops_per_second

    def crossing(self, operations: float, flops_per_task: float) -> float:
        """The number of tasks at which overhead and arithmetic take equally long."""
        return operations * self.seconds_per_operation * self.flops_per_second / flops_per_task


def fit_machine(operations: Sequence[float], flops: Sequence[float], seconds: Sequence[float]) -> Machine:
    """The two numbers from measured times, by least squares of the relative error.

    Raises ValueError where the measurements do not tell the two apart (less than two, or all of one ratio), or give a
    number that is not positive.
    """
    if not len(operations) == len(flops) == len(seconds) or len(seconds) < 2:
        raise ValueError(
            f"{len(operations)} operation counts, {len(flops)} FLOP counts, {len(seconds)} times; expected "
            "the same number of each, two or more"
        )
    t = torch.as_tensor(seconds, dtype=torch.float64)
    a = torch.stack([torch.as_tensor(n, dtype=torch.float64) / t for n in (operations, flops)], 1)
    scale = a.norm(dim=0)
    q = torch.linalg.svdvals(a / scale)
    if not bool(q[-1] > 1e-6 * q[0]):
        raise ValueError("operations and FLOPs grow together in these measurements; vary the number of tasks")
    overhead, per_flop = (
        torch.linalg.lstsq(a / scale, torch.ones(len(t), 1, dtype=t.dtype)).solution[:, 0] / scale
    ).tolist()
    if overhead <= 0 or per_flop <= 0:
        raise ValueError(
            f"the fit gives {overhead:.2g} s per operation and {per_flop:.2g} s per FLOP; expected both "
            "above 0: measure over a wider range of tasks"
        )
    return Machine(overhead, 1 / per_flop)


# ---------------------------------------------------------------- several workers


def ring_allreduce_seconds(size: float, workers: int, latency: float, bandwidth: float) -> float:
    """Seconds until all of N workers hold the sum of their vectors of `size` bytes: 2(N−1) messages of size/N each.

    latency: seconds per message. bandwidth: bytes per second of one link. Source: Patarasuk & Yuan (2009), §3.
    """
    if workers < 1:
        raise ValueError(f"workers={workers}: must be at least 1")
    return 2 * (workers - 1) * (latency + size / workers / bandwidth)


def noise_scale(per_task: Tensor) -> float:
    """tr Σ/|G|²: the number of tasks at which the noise of their mean gradient is as long as the gradient itself.

    per_task [T, P]: meta-gradients of single tasks. |G|² is the mean's, less its own noise; infinite where nothing is
    left. Source: McCandlish, Kaplan, Amodei et al. (2018), eq. 2.9 ("simple noise scale") and appendix A.1.
    """
    tasks = per_task.shape[0]
    if per_task.dim() != 2 or tasks < 2:
        raise ValueError(f"per_task has shape {list(per_task.shape)}; expected [tasks, parameters], two tasks or more")
    trace = per_task.var(0).sum()
    signal = per_task.mean(0).square().sum() - trace / tasks
    return (trace / signal).item() if signal > 0 else math.inf
