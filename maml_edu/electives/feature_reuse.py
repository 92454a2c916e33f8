"""What adaptation changes in a network: its features, how similar they stay; adapting the head alone or nothing.

The *head* is the last linear layer, the *body* everything before it. ANIL (Raghu et al. 2020, "almost no inner loop")
is MAML with α = 0 on the body, so `maml` with a `freeze`d α already is ANIL. `anil` gives the same gradient for less:
a body that does not move is run once, and its features take its place in the recursion, with α = 0.
"""

from collections.abc import Callable, Collection, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from maml_edu.electives.heads import body_names, features, head_names
from maml_edu.engine.methods import Method
from maml_edu.hessian_vector import value_and_gradient
from maml_edu.meta_gradient import MetaGradient, descend, pull_back
from maml_edu.models import Apply
from maml_edu.models.fast_layers import batch_norm_relu, conv
from maml_edu.step_sizes import Alpha, StepSize, alpha_per_step, is_per_step
from maml_edu.tasks import Loss, Params, TaskBatch, expand_over_tasks, mean_over_tasks, without_graph

# ---------------------------------------------------------------- what adapts, and what it computes


def freeze(alpha: Alpha, theta: Params, names: Collection[str]) -> Alpha:
    """alpha with 0 for the parameters in `names`: a dict name → step size, or a list of these if alpha is a list.

    freeze(α, θ, body_names(θ)) is the α of ANIL. Raises ValueError for a name that θ does not have.
    """
    if unknown := set(names) - set(theta):
        raise ValueError(f"cannot freeze {sorted(unknown)}: the parameters are {list(theta)}")

    def frozen(a: StepSize | Mapping[str, StepSize]) -> dict[str, StepSize]:
        sizes = a if isinstance(a, Mapping) else dict.fromkeys(theta, a)
        return {name: 0.0 if name in names else size for name, size in sizes.items()}

    return [frozen(a) for a in alpha] if is_per_step(alpha) else frozen(alpha)


def layer_features(params: Params, x: Tensor) -> dict[str, Tensor]:
    """Every layer's output [T, n, d] of a `conv4` (maps flattened), by layer, the head's last; no graph.

    params: dict [T, …]; x [T, n, 1, image, image]. Raises ValueError for another model's params.
    """
    if "conv1.weight" not in params:
        raise ValueError(f"expected the parameters of conv4 (conv1.weight, …), got {list(params)}")
    tasks, outputs = x.shape[0], {}
    h = x.transpose(0, 1).flatten(1, 2).contiguous(memory_format=torch.channels_last)  # [n, T·C, H, W]
    with torch.no_grad():
        for layer in range(1, 5):
            weight = params[f"conv{layer}.weight"].flatten(0, 1).contiguous(memory_format=torch.channels_last)
            h = batch_norm_relu(conv(h, weight, tasks), params[f"conv{layer}.shift"].reshape(-1))
            maps = h.unflatten(1, (tasks, -1)).transpose(0, 1)  # [T, n, filters, H, W]
            outputs[f"conv {layer}"] = maps.flatten(2)
        outputs["head"] = torch.baddbmm(params["head.bias"].unsqueeze(1), maps.mean((3, 4)), params["head.weight"])
    return outputs


# ---------------------------------------------------------------- ANIL for less: the body runs once


FEATURES = "features"  # their name among the parameters of ANIL's recursion


def anil(apply: Apply, make_loss: Callable[[Apply], Loss]) -> Method:
    """ANIL as a method for `train`: (loss, theta, batch, alpha, steps) -> MetaGradient, for an `mlp` or a `conv4`.

    The gradient of `maml` with α = 0 on the body, whatever α says there. Source: Raghu et al. (2020), §4.
    make_loss: `mse` or `cross_entropy`, put on top of the head; the method's own `loss` is not called.
    θ_body acts through the features of support and query alone. So the features are parameters of the recursion, with
    α = 0, and what arrives at them goes back through the body once, for any K. alpha_gradient is None.
    """

    def head_loss(params: Params, x: Tensor, y: Tensor) -> Tensor:  # the features are among params; x is not read
        return make_loss(_linear)(params, params[FEATURES], y)

    def meta_gradient(loss: Loss | None, theta: Params, batch: TaskBatch, alpha: Alpha, steps: int) -> MetaGradient:
        head, tasks = head_names(theta), batch.support_x.shape[0]
        if head[0] != "head.weight" and head[0] != f"w{len(theta) // 2}":
            raise ValueError(
                f"anil knows the heads of mlp and conv4, not {head[0]!r}; use maml with a frozen α: freeze(…)"
            )
        alphas = [{**{name: a[name] for name in head}, FEATURES: 0.0} for a in alpha_per_step(alpha, theta, steps)]
        leaf = {name: theta[name].detach().requires_grad_() for name in body_names(theta)}
        start = expand_over_tasks({name: theta[name] for name in head}, tasks)
        with torch.enable_grad():
            params = expand_over_tasks(leaf, tasks) | start
            support, query = (features(apply, params, x) for x in (batch.support_x, batch.query_x))
        path = descend(head_loss, {**start, FEATURES: support}, batch.support_x, batch.support_y, alphas, steps)
        phi = {**path[-1], FEATURES: query}
        query_loss, v = value_and_gradient(head_loss, phi, batch.query_x, batch.query_y)
        to_query, v[FEATURES] = v[FEATURES], torch.zeros_like(support)
        v, _ = pull_back(head_loss, path, batch.support_x, batch.support_y, alphas, v)
        to_body = torch.autograd.grad([support, query], list(leaf.values()), [v[FEATURES] / tasks, to_query / tasks])
        of_head = mean_over_tasks({name: v[name] for name in head})
        phi = without_graph(params) | {name: path[-1][name] for name in head}
        return MetaGradient({**dict(zip(leaf, to_body)), **of_head}, query_loss, phi, None)

    return Method("anil", meta_gradient)


def _linear(params: Params, h: Tensor) -> Tensor:
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
