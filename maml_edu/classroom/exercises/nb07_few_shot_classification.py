"""Exercises of notebook 07: few-shot classification."""

import math

import torch
from torch import Tensor

from maml_edu.classroom.exercises import Exercise
from maml_edu.meta_gradient import adapt
from maml_edu.models import conv4, cross_entropy
from maml_edu.models.model import Apply
from maml_edu.tasks import Params, TaskBatch

# ---------------------------------------------------------------- 7.1

Episode = tuple[Tensor, Tensor, Tensor, Tensor]  # support_x, support_y, query_x, query_y


def build_episode(images: Tensor, classes: Tensor, drawings: Tensor, shots: int) -> Episode:
    ways, drawn = drawings.shape
    chosen = images[classes[:, None], drawings]  # [ways, shots + queries, 28, 28]
    support_x = chosen[:, :shots].flatten(0, 1)
    query_x = chosen[:, shots:].flatten(0, 1)
    label = torch.arange(ways)
    return support_x, label.repeat_interleave(shots), query_x, label.repeat_interleave(drawn - shots)


def _deals() -> list[tuple]:
    g = torch.Generator().manual_seed(71)
    images = torch.randint(0, 256, (12, 6, 2, 2), generator=g).double() / 255

    def deal(ways: int, drawn: int) -> tuple[Tensor, Tensor]:
        classes = torch.randperm(12, generator=g)[:ways]
        return classes, torch.stack([torch.randperm(6, generator=g)[:drawn] for _ in range(ways)])

    return [(images, *deal(3, 4), 1), (images, *deal(4, 6), 2)]


def _labels_are_character_numbers(images: Tensor, classes: Tensor, drawings: Tensor, shots: int) -> Episode:
    support_x, support_y, query_x, query_y = build_episode(images, classes, drawings, shots)
    return support_x, classes[support_y], query_x, classes[query_y]


def _labels_repeated_the_other_way(images: Tensor, classes: Tensor, drawings: Tensor, shots: int) -> Episode:
    support_x, _, query_x, _ = build_episode(images, classes, drawings, shots)
    ways, drawn = drawings.shape
    return support_x, torch.arange(ways).repeat(shots), query_x, torch.arange(ways).repeat(drawn - shots)


def _support_among_the_queries(images: Tensor, classes: Tensor, drawings: Tensor, shots: int) -> Episode:
    support_x, support_y, _, _ = build_episode(images, classes, drawings, shots)
    query_x = images[classes[:, None], drawings].flatten(0, 1)
    return support_x, support_y, query_x, torch.arange(len(classes)).repeat_interleave(drawings.shape[1])


def _queries_from_the_front(images: Tensor, classes: Tensor, drawings: Tensor, shots: int) -> Episode:
    support_x, support_y, _, query_y = build_episode(images, classes, drawings, shots)
    query_x = images[classes[:, None], drawings][:, : drawings.shape[1] - shots].flatten(0, 1)
    return support_x, support_y, query_x, query_y


def _positions_for_characters(images: Tensor, classes: Tensor, drawings: Tensor, shots: int) -> Episode:
    return build_episode(images, torch.arange(len(classes)), drawings, shots)


# ---------------------------------------------------------------- 7.2


def loss_of_knowing_nothing() -> float:
    ways = 20
    probability_of_the_right_class = 1 / ways
    return -math.log(probability_of_the_right_class)


def _sign_forgotten() -> float:
    return math.log(1 / 20)


def _in_bits() -> float:
    return math.log2(20)


def _in_decimal_digits() -> float:
    return math.log10(20)


def _probability_of_a_wrong_answer() -> float:
    return 1 - 1 / 20


def _for_five_ways() -> float:
    return math.log(5)


# ---------------------------------------------------------------- 7.3


def alpha_for_the_mean(alpha: float, ways: int, shots: int, divided_by: int) -> float:
    # the other loss is c times the mean loss, so its gradient is c times as long: take c times the step
    examples = ways * shots
    return alpha * examples / divided_by


def _step_sizes_to_convert() -> list[tuple]:
    return [(0.4, 5, 1, 1), (0.1, 20, 5, 5), (0.3, 5, 4, 1), (0.4, 5, 2, 10)]


def _as_it_is(alpha: float, ways: int, shots: int, divided_by: int) -> float:
    return alpha


def _upside_down(alpha: float, ways: int, shots: int, divided_by: int) -> float:
    return alpha * divided_by / (ways * shots)


def _from_the_plain_sum(alpha: float, ways: int, shots: int, divided_by: int) -> float:
    return alpha * ways * shots


def _times_ways(alpha: float, ways: int, shots: int, divided_by: int) -> float:
    return alpha * ways


# ---------------------------------------------------------------- 7.4


def which_are_transductive() -> dict[str, bool]:
    # would another set of fellow queries change the answer to this query?
    return {"transductive": True, "one-query": False, "support": False, "running": False}


def _single_query_counted() -> dict[str, bool]:
    return which_are_transductive() | {"one-query": True}


def _support_counted() -> dict[str, bool]:
    return _single_query_counted() | {"support": True}


def _running_counted() -> dict[str, bool]:
    return which_are_transductive() | {"running": True}


def _only_labels_counted() -> dict[str, bool]:
    return which_are_transductive() | {"transductive": False}


# ---------------------------------------------------------------- 7.5


def two_accuracies(apply: Apply, phi: Params, batch: TaskBatch) -> tuple[Tensor, ...]:
    together = apply(phi, batch.query_x)
    alone = [apply(phi, q, context=torch.cat([batch.support_x, q], 1)) for q in batch.query_x.split(1, dim=1)]
    right = [logits.argmax(-1) == batch.query_y for logits in (together, torch.cat(alone, 1))]
    return tuple(r.double().mean(1) for r in right)


def _adapted_network(seed: int, ways: int, shots: int) -> tuple[Apply, Params, TaskBatch]:
    """A small network after some inner steps, on noisy pictures of 8 × 8: (apply, φ, batch)."""
    g = torch.Generator().manual_seed(seed)
    model = conv4(ways, filters=4, image=8, generator=g, dtype=torch.float64)
    label = torch.arange(ways).repeat(3, 1)  # [T, ways]
    pattern = torch.rand(3, ways, 1, 8, 8, generator=g, dtype=torch.float64)

    def draw(each: int) -> tuple[Tensor, Tensor]:
        x = pattern.repeat_interleave(each, 1)
        return x + 0.4 * torch.randn(x.shape, generator=g, dtype=x.dtype), label.repeat_interleave(each, 1)

    batch = TaskBatch(*draw(shots), *draw(6))
    phi = adapt(cross_entropy(model.apply), model.theta, batch.support_x, batch.support_y, 0.5, 3)[-1]
    return model.apply, phi, batch


def _accuracies(apply: Apply, phi: Params, batch: TaskBatch, *contexts: Tensor | None) -> tuple[Tensor, ...]:
    """One accuracy per context, for all queries in one call."""
    right = [apply(phi, batch.query_x, context=c).argmax(-1) == batch.query_y for c in contexts]
    return tuple(r.double().mean(1) for r in right)


def _both_together(apply: Apply, phi: Params, batch: TaskBatch) -> tuple[Tensor, ...]:
    return _accuracies(apply, phi, batch, None, None)


def _support_only(apply: Apply, phi: Params, batch: TaskBatch) -> tuple[Tensor, ...]:
    return _accuracies(apply, phi, batch, None, batch.support_x)


def _support_and_all_queries(apply: Apply, phi: Params, batch: TaskBatch) -> tuple[Tensor, ...]:
    return _accuracies(apply, phi, batch, None, torch.cat([batch.support_x, batch.query_x], 1))


def _alone_without_support(apply: Apply, phi: Params, batch: TaskBatch) -> tuple[Tensor, ...]:
    alone = torch.cat([apply(phi, q) for q in batch.query_x.split(1, dim=1)], 1)
    return two_accuracies(apply, phi, batch)[0], (alone.argmax(-1) == batch.query_y).double().mean(1)


def _exchanged(apply: Apply, phi: Params, batch: TaskBatch) -> tuple[Tensor, ...]:
    return two_accuracies(apply, phi, batch)[::-1]


def _one_number_for_all_tasks(apply: Apply, phi: Params, batch: TaskBatch) -> tuple[Tensor, ...]:
    return tuple(accuracy.mean() for accuracy in two_accuracies(apply, phi, batch))


EXERCISES: list[Exercise] = [
    Exercise(
        number="7.1",
        title="Build an episode",
        reference=build_episode,
        cases=_deals,
        mistakes={
            "These labels are the numbers of the characters. A label is the place of a class within its own "
            "episode, 0 … n−1: otherwise it can be learned by heart.": _labels_are_character_numbers,
            "The drawings stand class by class (0, 0, 1, 1, …) but the labels run 0, 1, 0, 1, …: with more "
            "than one drawing per class most labels are wrong. Try repeat_interleave.": _labels_repeated_the_other_way,
            "The support drawings are in the query set too: support and query overlap. The queries are the "
            "drawings after the first `shots`.": _support_among_the_queries,
            "These queries start at the first drawing, so they overlap with the support set. Take the drawings "
            "after the first `shots`.": _queries_from_the_front,
            "The characters are always the first ones of the data set: index `images` with "
            "`classes`.": _positions_for_characters,
        },
        hints=(
            "Two things are needed for the pictures: one index for the character, one for the drawing. "
            "images[classes[:, None], drawings] takes both at once: [ways, shots + queries, 28, 28].",
            "Cut along the second axis at `shots`, then flatten the first two axes: class by class.",
            "torch.arange(ways).repeat_interleave(2) is 0, 0, 1, 1, 2, 2, …",
        ),
    ),
    Exercise(
        number="7.2",
        title="The loss of knowing nothing",
        reference=loss_of_knowing_nothing,
        mistakes={
            "That is the logarithm of the probability. The loss is its negative, and positive.": _sign_forgotten,
            "That is a logarithm to base 2, a number of bits. PyTorch's cross-entropy uses the natural "
            "logarithm.": _in_bits,
            "That is a logarithm to base 10. PyTorch's cross-entropy uses the natural logarithm.": _in_decimal_digits,
            "That is the probability of a wrong answer. Cross-entropy is −ln of the probability given to the "
            "right class.": _probability_of_a_wrong_answer,
            "That is the value for 5 ways.": _for_five_ways,
        },
        hints=(
            "With n ways a uniform prediction gives the right class the probability 1/n, whatever the picture.",
            "−ln(1/n) = ln n.",
        ),
        tolerance=2e-3,
        remark="A training loss that stays at this value means: nothing is being learned.",
    ),
    Exercise(
        number="7.3",
        title="The same step for another average",
        reference=alpha_for_the_mean,
        cases=_step_sizes_to_convert,
        mistakes={
            "This takes over α as it is. The other loss is a multiple of the mean, and so is its gradient.": _as_it_is,
            "The factor is upside down: the sum has the longer gradient, so the mean needs the larger α.": _upside_down,
            "This forgets the division: it converts from the plain sum over examples.": _from_the_plain_sum,
            "The factor n is right only where the sum is divided by the number of shots.": _times_ways,
        },
        hints=(
            "Both losses add the same n·k terms. By what is the one divided, and by what the mean?",
            "loss = c · mean loss means ∇loss = c · ∇mean loss. The step α∇loss must stay the same.",
            "c = n·k / divided_by.",
        ),
        remark="An α is only a number once the loss is known: mean, sum, or sum over k.",
    ),
    Exercise(
        number="7.4",
        title="Which answers depend on the other queries?",
        reference=which_are_transductive,
        mistakes={
            "The single query does enter its own statistics. But the other queries do not, and they are what "
            "transduction is about.": _single_query_counted,
            "The support set is given in every case; using it is what few-shot learning is. Ask only about "
            "the other queries.": _support_counted,
            "Running statistics were gathered on training tasks. No test query has any part in them.": _running_counted,
            "A leak needs no labels: pictures are enough. With all queries in one batch, mean and variance "
            "depend on every one of them.": _only_labels_counted,
        },
        hints=(
            "Take one query and exchange all the others. Does any number that enters its answer change?",
            "Mean and variance of a batch depend on every picture in the batch. Which pictures are in it?",
        ),
    ),
    Exercise(
        number="7.5",
        title="The same network, with and without transduction",
        reference=two_accuracies,
        cases=lambda: [_adapted_network(75, 4, 1), _adapted_network(76, 3, 2)],
        mistakes={
            "Both numbers use all queries together. For the second, only the support set and the query itself may "
            "enter the statistics.": _both_together,
            "In the second the statistics come from the support set only. That is not transductive either, but it is "
            "another row of the table: the query itself is missing.": _support_only,
            "In the second the context holds all queries: they still see each other. Split them "
            "first.": _support_and_all_queries,
            "In the second a query is normalised by itself alone: the support set is missing from the "
            "context.": _alone_without_support,
            "The two are exchanged: first with all queries together.": _exchanged,
            "One number per task is asked for, not the mean over tasks: average over axis 1 "
            "only.": _one_number_for_all_tasks,
        },
        hints=(
            "apply(phi, x) takes mean and variance from x itself; apply(phi, x, context=c) takes them from c.",
            "batch.query_x.split(1, dim=1) gives the queries one at a time, each [T, 1, 1, 28, 28].",
            "The context of one query q is torch.cat([batch.support_x, q], 1).",
        ),
        remark="Same weights, same pictures: whatever differs between the two is transduction.",
    ),
]
