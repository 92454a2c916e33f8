"""Exercises of notebook 12: other families."""

from collections.abc import Callable

import torch
from torch import Tensor

from maml_edu.classroom.exercises import Exercise
from maml_edu.electives.prototypes import prototypical
from maml_edu.models import mlp
from maml_edu.tasks import Params

# ---------------------------------------------------------------- 12.1


def prototypes_as_head(prototypes: Tensor) -> tuple[Tensor, Tensor]:
    weight = 2 * prototypes.transpose(1, 2)  # [T, F, ways]
    bias = -prototypes.square().sum(2)  # [T, ways]
    return weight, bias


def _without_the_two(prototypes: Tensor) -> tuple[Tensor, Tensor]:
    return prototypes.transpose(1, 2), -prototypes.square().sum(2)


def _wrong_sign(prototypes: Tensor) -> tuple[Tensor, Tensor]:
    return 2 * prototypes.transpose(1, 2), prototypes.square().sum(2)


def _not_squared(prototypes: Tensor) -> tuple[Tensor, Tensor]:
    return 2 * prototypes.transpose(1, 2), -prototypes.norm(dim=2)


def _not_transposed(prototypes: Tensor) -> tuple[Tensor, Tensor]:
    return 2 * prototypes, -prototypes.square().sum(2)


def _as_distances(prototypes: Tensor) -> tuple[Tensor, Tensor]:
    return -2 * prototypes.transpose(1, 2), prototypes.square().sum(2)


def _some_prototypes() -> list[tuple]:
    generator = torch.Generator().manual_seed(0)
    return [(torch.randn(*shape, generator=generator, dtype=torch.float64),) for shape in ((2, 3, 4), (1, 5, 2))]


HEAD = Exercise(
    number="12.1",
    title="distances as a linear head",
    reference=prototypes_as_head,
    cases=_some_prototypes,
    mistakes={
        "The factor 2 of the mixed term 2p·h is missing: multiply ‖h − p‖² out once more.": _without_the_two,
        "The sign of the bias: the score is minus the squared distance, so ‖p‖² comes in with a minus.": _wrong_sign,
        "The bias is the squared length ‖p‖², not the length.": _not_squared,
        "The weight must be [T, F, ways]: one column for each class. Yours is [T, ways, F].": _not_transposed,
        "These are the squared distances themselves. The nearest class needs the highest score: turn the signs.": (
            _as_distances
        ),
    },
    hints=(
        "−‖h − p‖² = −‖h‖² + 2p·h − ‖p‖², and the first term is the same for every class.",
        "weight: 2 * prototypes.transpose(1, 2). bias: the squared lengths, summed over the last axis, with a minus.",
    ),
    remark="So a prototypical network is a start with K = 0, and gradient steps may follow.",
)

# ---------------------------------------------------------------- 12.2

Start = Callable[[Params, Tensor, Tensor], Params]  # (theta, support_x, support_y) -> φ_0, one for each task


def back_through_the_start(start: Start, theta: Params, x: Tensor, y: Tensor, v: Params) -> Params:
    leaf = {name: p.detach().requires_grad_() for name, p in theta.items()}
    phi_0 = start(leaf, x, y)
    total = torch.autograd.grad(
        [phi_0[name] for name in v], list(leaf.values()), grad_outputs=[v[name] for name in v], materialize_grads=True
    )
    return {name: g / x.shape[0] for name, g in zip(leaf, total)}


def _sum_over_tasks(start: Start, theta: Params, x: Tensor, y: Tensor, v: Params) -> Params:
    return {name: x.shape[0] * g for name, g in back_through_the_start(start, theta, x, y, v).items()}


def _v_forgotten(start: Start, theta: Params, x: Tensor, y: Tensor, v: Params) -> Params:
    return back_through_the_start(start, theta, x, y, {name: torch.ones_like(p) for name, p in v.items()})


def _direct_part_only(start: Start, theta: Params, x: Tensor, y: Tensor, v: Params) -> Params:
    return {name: v[name].mean(0) for name in theta}


def _through_the_head_only(start: Start, theta: Params, x: Tensor, y: Tensor, v: Params) -> Params:
    total, direct = back_through_the_start(start, theta, x, y, v), _direct_part_only(start, theta, x, y, v)
    return {name: total[name] - direct[name] for name in theta}


def _starts() -> list[tuple]:
    generator = torch.Generator().manual_seed(1)
    cases = []
    for seed in (2, 3):
        network = mlp((3, 4, 2), "tanh", torch.Generator().manual_seed(seed), torch.float64)
        learner = prototypical(network, 2, ("w2", "b2"))
        x = torch.randn(3, 4, 3, generator=generator, dtype=torch.float64)
        y = torch.tensor([0, 0, 1, 1]).expand(3, 4)
        like = learner.start(learner.model.theta, x, y)
        v = {name: torch.randn(p.shape, generator=generator, dtype=p.dtype) for name, p in like.items()}
        cases.append((learner.start, learner.model.theta, x, y, v))
    return cases


BACK = Exercise(
    number="12.2",
    title="back through the start",
    reference=back_through_the_start,
    cases=_starts,
    mistakes={
        "This is the sum over tasks. The meta-gradient is the mean: divide by T, the first axis of x.": _sum_over_tasks,
        "You pulled back a vector of ones. The vector to pull back is v: give it as grad_outputs.": _v_forgotten,
        "This is the part of θ that φ_0 contains as it is. The head was made from θ as well.": _direct_part_only,
        "This is the part through the head only. The body of φ_0 is θ itself, and its v counts too.": (
            _through_the_head_only
        ),
    },
    hints=(
        "Make leaves of theta that require grad, and call start on them: φ_0 then hangs on them by its graph.",
        "torch.autograd.grad(outputs, inputs, grad_outputs=…): outputs are the tensors of φ_0, grad_outputs of v.",
        "One call gives the sum over the tasks, since θ is shared by all of them. Divide by x.shape[0].",
    ),
    remark="With the start `everywhere` this is the mean over tasks of v: MAML's last line.",
)

# ---------------------------------------------------------------- 12.3


def passes_per_task() -> tuple[int, int, int, int, int, int]:
    steps = 3
    prototypes = (1, 0)  # the support set once, for the class means
    maml = (steps, steps)  # one forward and one backward in each step
    protomaml = (1 + steps, steps)  # the start, then the steps
    return (*prototypes, *maml, *protomaml)


def _start_forgotten() -> tuple[int, int, int, int, int, int]:
    return (1, 0, 3, 3, 3, 3)


def _starts_are_free() -> tuple[int, int, int, int, int, int]:
    return (0, 0, 3, 3, 3, 3)


def _backward_through_the_start() -> tuple[int, int, int, int, int, int]:
    return (1, 1, 3, 3, 4, 4)


def _query_counted() -> tuple[int, int, int, int, int, int]:
    return (2, 0, 4, 3, 5, 3)


def _training_counted() -> tuple[int, int, int, int, int, int]:
    return (1, 1, 3, 6, 4, 7)


PASSES = Exercise(
    number="12.3",
    title="what a new task costs",
    reference=passes_per_task,
    mistakes={
        "ProtoMAML reads the support set once more than MAML: for its start, before the first step.": _start_forgotten,
        "The class means come from a forward pass over the support set: count it in both places.": _starts_are_free,
        "At test nothing is pulled back through the start: a backward pass belongs to an inner step only.": (
            _backward_through_the_start
        ),
        "The query set is not part of adapting: count passes over the support set only.": _query_counted,
        "You counted the backward pass to θ. That is training; a new task is only adapted to.": _training_counted,
    },
    hints=(
        "A start that reads the support set is one forward pass. An inner step is one forward and one backward pass.",
        "ProtoNet: one forward. MAML: three steps. ProtoMAML: both.",
    ),
    remark="The claim in section 6 counts the same on the real functions.",
)

EXERCISES: list[Exercise] = [HEAD, BACK, PASSES]
