"""What adaptation changes in a network: its features, how similar they stay; adapting the head alone or nothing.

The *head* is the last linear layer, the *body* everything before it. ANIL (Raghu et al. 2020, "almost no inner loop")
is MAML with α = 0 on the body, so `maml` with `freeze`d rates already is ANIL. `anil` gives the same gradient for less:
a body that does not move is run once, and its features take its place in the recursion, with α = 0.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from maml_edu.hessian_vector import value_and_gradient
from maml_edu.meta_gradient import MetaGradient, descend, pull_back
from maml_edu.models.fast_layers import batch_norm_relu, conv
from maml_edu.step_sizes import Alpha, alpha_per_step
from maml_edu.tasks import Loss, Params, TaskBatch, expand_over_tasks, mean_over_tasks

Apply = Callable[[Params, Tensor], Tensor]

# ---------------------------------------------------------------- body and head


def head_names(theta: Params) -> list[str]:
    """The weight and bias of the last linear layer: the last two tensors of θ, as in `mlp`, `conv4` and most modules.

    Raises ValueError if these are not a matrix and a vector that fit each other, or if nothing is left for the body.
    """
    names = list(theta)[-2:]
    shapes = [list(theta[name].shape) for name in names]
    if len(theta) < 3 or [len(s) for s in shapes] != [2, 1] or shapes[1][0] not in shapes[0]:
        found = ", ".join(f"{name} {shape}" for name, shape in zip(names, shapes)) or "nothing"
        raise ValueError(f"expected a body and, last in theta, weight and bias of a linear head; the last are {found}")
    return names


def body_names(theta: Params) -> list[str]:
    """All parameters before the head."""
    head = head_names(theta)
    return [name for name in theta if name not in head]


def freeze(alpha: Alpha, theta: Params, names: list[str]) -> Alpha:
    """alpha with 0 for the parameters in `names`: a dict name → rate, or a list of these if alpha is a list.

    freeze(α, θ, body_names(θ)) are the rates of ANIL. Raises ValueError for a name that θ does not have.
    """
    if unknown := set(names) - set(theta):
        raise ValueError(f"cannot freeze {sorted(unknown)}: the parameters are {list(theta)}")
    if isinstance(alpha, (list, tuple)):
        return [freeze(a, theta, names) for a in alpha]
    rates = dict(alpha) if isinstance(alpha, dict) else dict.fromkeys(theta, alpha)
    return {name: 0.0 if name in names else rate for name, rate in rates.items()}


def features(apply: Apply, params: Params, x: Tensor) -> Tensor:
    """What the head is given, [T, n, d]: the model with the identity matrix for a head and no bias.

    params: dict [T, …]; x [T, n, …]. Works for every model whose last two tensors are its linear head.
    """
    weight, bias = list(params)[-2:]
    tasks, (rows, columns), outputs = x.shape[0], params[weight].shape[-2:], params[bias].shape[-1]
    width = columns if rows == outputs and columns != outputs else rows  # [in, out] here, [out, in] in nn.Linear
    like = params[weight]
    identity = torch.eye(width, dtype=like.dtype, device=like.device).expand(tasks, -1, -1)
    return apply({**params, weight: identity, bias: like.new_zeros(tasks, width)}, x)


def layer_features(params: Params, x: Tensor, activation: Callable[[Tensor], Tensor] = F.relu) -> dict[str, Tensor]:
    """Every layer's output [T, n, d] of an `mlp` or a `conv4` (maps flattened), by layer, the head's last; no graph.

    params: dict [T, …]; x as the model takes it. activation: of the mlp. Raises ValueError for another model's params.
    """
    if "conv1.weight" in params:
        return _conv4_layers(params, x)
    if "w1" not in params:
        raise ValueError(f"expected the parameters of mlp (w1, …) or conv4 (conv1.weight, …), got {list(params)}")
    found, layers, h = {}, len(params) // 2, x.flatten(2)
    with torch.no_grad():
        for layer in range(1, layers + 1):
            h = torch.baddbmm(params[f"b{layer}"].unsqueeze(1), h, params[f"w{layer}"])
            h = found[f"layer {layer}" if layer < layers else "head"] = activation(h) if layer < layers else h
    return found


def _conv4_layers(params, x):
    tasks, found = x.shape[0], {}
    h = x.transpose(0, 1).flatten(1, 2).contiguous(memory_format=torch.channels_last)  # [n, T·C, H, W]
    with torch.no_grad():
        for layer in range(1, 5):
            weight = params[f"conv{layer}.weight"].flatten(0, 1).contiguous(memory_format=torch.channels_last)
            h = batch_norm_relu(conv(h, weight, tasks), params[f"conv{layer}.shift"].reshape(-1))
            maps = h.unflatten(1, (tasks, -1)).transpose(0, 1)  # [T, n, filters, H, W]
            found[f"conv {layer}"] = maps.flatten(2)
        found["head"] = torch.baddbmm(params["head.bias"].unsqueeze(1), maps.mean((3, 4)), params["head.weight"])
    return found


# ---------------------------------------------------------------- ANIL for less: the body runs once


def anil(apply: Apply, make_loss: Callable[[Apply], Loss]) -> Callable[..., MetaGradient]:
    """ANIL as a method for `train`: (loss, theta, batch, alpha, steps) -> MetaGradient, for an `mlp` or a `conv4`.

    The gradient of `maml` with α = 0 on the body, whatever rates alpha has there. Source: Raghu et al. (2020), §4.
    make_loss: `mse` or `cross_entropy`, put on top of the head; the method's own `loss` is not called.
    θ_body acts through the features of support and query alone. So the features are parameters of the recursion, with
    rate 0, and what arrives at them goes back through the body once, for any K. alpha_gradient is None.
    """

    def head_loss(params, x, y):  # x is not read: the features are among the parameters
        return make_loss(_linear)(params, params[FEATURES], y)

    def anil(loss, theta: Params, batch: TaskBatch, alpha: Alpha, steps: int) -> MetaGradient:
        head, tasks = head_names(theta), batch.support_x.shape[0]
        if head[0] != "head.weight" and head[0] != f"w{len(theta) // 2}":
            raise ValueError(f"anil knows the heads of mlp and conv4, not {head[0]!r}; use maml with freeze(…) rates")
        rates = [{**{name: r[name] for name in head}, FEATURES: 0.0} for r in alpha_per_step(alpha, theta, steps)]
        leaf = {name: theta[name].detach().requires_grad_() for name in body_names(theta)}
        start = expand_over_tasks({name: theta[name] for name in head}, tasks)
        with torch.enable_grad():
            params = {name: p.expand(tasks, *p.shape) for name, p in leaf.items()} | start
            support, query = (features(apply, params, x) for x in (batch.support_x, batch.query_x))
        path = descend(head_loss, {**start, FEATURES: support}, batch.support_x, batch.support_y, rates, steps)
        phi = {**path[-1], FEATURES: query}
        query_loss, v = value_and_gradient(head_loss, phi, batch.query_x, batch.query_y)
        to_query, v[FEATURES] = v[FEATURES], torch.zeros_like(support)
        v, _ = pull_back(head_loss, path, batch.support_x, batch.support_y, rates, v)
        to_body = torch.autograd.grad([support, query], list(leaf.values()), [v[FEATURES] / tasks, to_query / tasks])
        of_head = mean_over_tasks({name: v[name] for name in head})
        phi = {name: p.detach() for name, p in params.items()} | {name: path[-1][name] for name in head}
        return MetaGradient({**dict(zip(leaf, to_body)), **of_head}, query_loss, phi, None)

    return anil


FEATURES = "features"


def _linear(params, h):
    weight, bias = (name for name in params if name != FEATURES)
    return torch.baddbmm(params[bias].unsqueeze(1), h, params[weight])


# ---------------------------------------------------------------- how similar are two sets of features?


def linear_cka(a: Tensor, b: Tensor) -> Tensor:
    """Linear centred kernel alignment of features a [..., n, d] and b [..., n, e] of the same n examples, in [0, 1].

    ‖AᵀB‖² / (‖AᵀA‖·‖BᵀB‖), Frobenius norms, columns centred; 1 means equal up to rotation and scale. Source:
    Kornblith et al. (2019), §3. nan where one of them is the same for all examples: there is nothing to compare.
    Raises ValueError if the numbers of examples differ, or n < 3 (two centred examples are always similar).
    """
    if a.shape[:-1] != b.shape[:-1] or a.shape[-2] < 3:
        raise ValueError(
            f"a {list(a.shape)} and b {list(b.shape)}: expected [..., n, d] and [..., n, e] of the same n ≥ 3 examples"
        )
    a, b = (t - t.mean(-2, keepdim=True) for t in (a, b))
    gram_a, gram_b = a @ a.mT, b @ b.mT  # [..., n, n]: ‖AᵀB‖² = ⟨AAᵀ, BBᵀ⟩, cheaper where d > n
    return (gram_a * gram_b).sum((-2, -1)) / (gram_a.norm(dim=(-2, -1)) * gram_b.norm(dim=(-2, -1)))


# ---------------------------------------------------------------- no inner loop, no head (NIL)


def nil_votes(support: Tensor, labels: Tensor, query: Tensor, ways: int) -> Tensor:
    """Votes [T, m, ways]: every support example votes for its class with its cosine similarity to the query example.

    support [T, n, d] and query [T, m, d]: features of the body; labels [T, n], integers. Nothing is adapted and
    there is no head. Source: Raghu et al. (2020), §5.
    """
    if support.shape[:2] != labels.shape or support.shape[::2] != query.shape[::2]:
        shapes = f"support {list(support.shape)}, labels {list(labels.shape)}, query {list(query.shape)}"
        raise ValueError(f"{shapes}: expected [T, n, d], [T, n] and [T, m, d]")
    similarity = F.normalize(query, dim=2) @ F.normalize(support, dim=2).mT  # [T, m, n]
    return similarity @ F.one_hot(labels, ways).to(similarity)


def nil_accuracy(apply: Apply, theta: Params, batch: TaskBatch, ways: int) -> Tensor:
    """The fraction of queries [T] that `nil_votes` on the features at θ gets right: no head, no adaptation."""
    params = expand_over_tasks(theta, batch.support_x.shape[0])
    with torch.no_grad():
        support, query = (features(apply, params, x) for x in (batch.support_x, batch.query_x))
        votes = nil_votes(support, batch.support_y, query, ways)
    return (votes.argmax(2) == batch.query_y).double().mean(1)
