"""A start computed from the support set, then K gradient steps: what prototypes, hypernetworks and MAML share.

    forward     φ_0 = s(θ; support),  θ_{j+1} = θ_j − α∘∇L_s(θ_j) from θ_0 = φ_0,  φ = θ_K
    backward    v = ∇L_q(φ),  v ← v − H_j(α∘v),  j = K−1 … 0,  and at last  v ← (∂s/∂θ)ᵀ v

MAML's start ignores the support set (`everywhere`). With K = 0 the start does all the work: prototypical networks
(`prototypes`), conditional neural processes (`neural_process`). With both there are ProtoMAML and a network that
generates the initial parameters (`hypernetwork`).
"""

from typing import NamedTuple

import torch
from torch import Tensor

from maml_edu.engine.methods import Method, name_of
from maml_edu.evaluation import Adapt
from maml_edu.hessian_vector import value_and_gradient
from maml_edu.meta_gradient import MetaGradient, descend, pull_back
from maml_edu.models import Model
from maml_edu.reference import Start
from maml_edu.step_sizes import Alpha
from maml_edu.tasks import Loss, Params, TaskBatch, expand_over_tasks


class ConditionedModel(NamedTuple):
    """model: θ, what is meta-learned, and `apply` of the adapted parameters φ. start(theta, x, y) -> φ_0.

    The names of φ_0 may differ from those of θ: a start may add a head, and keep to itself what only it uses.
    """

    model: Model
    start: Start


def everywhere(theta: Params, x: Tensor, y: Tensor) -> Params:
    """MAML's start: θ for every task, whatever its support set. A dict of [T, …], with graph."""
    return expand_over_tasks(theta, len(x))


# ---------------------------------------------------------------- forward


def adapt_from(start: Start) -> Adapt:
    """adapt(loss, theta, x, y, alpha, steps) -> path φ_0 … φ_K without graph: to be given to `evaluate(adapt=…)`."""

    def adapt(loss: Loss, theta: Params, x: Tensor, y: Tensor, alpha: Alpha, steps: int) -> list[Params]:
        with torch.no_grad():
            phi_0 = _checked(start(theta, x, y), x)
        return descend(loss, phi_0, x, y, alpha, steps)

    return adapt


# ---------------------------------------------------------------- backward


def pull_back_start(phi_0: Params, theta: Params, v: Params) -> Params:
    """(∂φ_0/∂θ)ᵀ v by one backward call, mean over tasks: a dict like theta. Uses up the graph between the two.

    phi_0: what the start returned for theta (which requires grad). v: dict like phi_0.
    """
    linked = [name for name, p in phi_0.items() if p.requires_grad]  # the others do not depend on θ
    if not linked:
        return {name: torch.zeros_like(p) for name, p in theta.items()}
    total = torch.autograd.grad(
        [phi_0[name] for name in linked], list(theta.values()), [v[name] for name in linked], materialize_grads=True
    )
    tasks = next(iter(v.values())).shape[0]
    return {name: g / tasks for name, g in zip(theta, total)}


def maml_from(start: Start) -> Method:
    """The exact meta-gradient with φ_0 = start(theta, support) in place of θ, as a method for `train`.

    method(loss, theta, batch, alpha, steps) -> MetaGradient; alpha names the parameters of φ_0. The graph of the start
    waits until the K steps are pulled back; between the inner steps no graph is kept. steps = 0 trains the start alone.
    Source: Triantafillou et al. (2020) for a start from prototypes (they report a first-order version; this one is
    exact); the recursion is that of `maml`.
    Raises ValueError if the start gives something else than a dict of tensors [T, …].
    """

    def method(loss: Loss, theta: Params, batch: TaskBatch, alpha: Alpha, steps: int = 1) -> MetaGradient:
        x, y = batch.support_x, batch.support_y
        leaf = {name: p.detach().requires_grad_() for name, p in theta.items()}
        with torch.enable_grad():
            phi_0 = _checked(start(leaf, x, y), x)
        path = descend(loss, phi_0, x, y, alpha, steps)
        query_loss, v = value_and_gradient(loss, path[-1], batch.query_x, batch.query_y)
        v, alpha_gradient = pull_back(loss, path, x, y, alpha, v)
        return MetaGradient(pull_back_start(phi_0, leaf, v), query_loss, path[-1], alpha_gradient)

    return Method(f"maml from {name_of(start)}", method)


def _checked(phi_0: Params, x: Tensor) -> Params:
    if not isinstance(phi_0, dict) or not phi_0:
        raise ValueError(f"the start returned {type(phi_0).__name__}; expected a dict name → tensor [tasks, …]")
    for name, p in phi_0.items():
        if p.dim() < 1 or p.shape[0] != x.shape[0]:
            raise ValueError(
                f"the start gave {name!r} the shape {list(p.shape)} for {x.shape[0]} tasks; expected the task axis in "
                f"front: [{x.shape[0]}, …]. A parameter shared by all tasks is expanded (see `everywhere`)"
            )
    return phi_0
