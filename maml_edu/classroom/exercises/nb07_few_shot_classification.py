"""Exercises of notebook 07: few-shot classification."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from maml_edu.classroom.exercises import Exercise, NotAllowed
from maml_edu.meta_gradient import adapt
from maml_edu.models import conv4, cross_entropy
from maml_edu.models.model import Apply
from maml_edu.tasks import Params

# ---------------------------------------------------------------- 7.1

Episode = tuple[Tensor, Tensor, Tensor, Tensor]  # support_x, support_y, query_x, query_y


def build_episode(images: Tensor, classes: Tensor, drawings: Tensor, shots: int) -> Episode:
    ways, drawn = drawings.shape
    chosen = images[classes[:, None], drawings]  # [ways, shots + queries, 28, 28]
    support_x = chosen[:, :shots].flatten(0, 1)
    query_x = chosen[:, shots:].flatten(0, 1)
    label = torch.arange(ways)
    return support_x, label.repeat_interleave(shots), query_x, label.repeat_interleave(drawn - shots)


def _drawings_of_the_first_class(images: Tensor, classes: Tensor, drawings: Tensor, shots: int) -> Episode:
    return build_episode(images, classes, drawings[:1].expand_as(drawings), shots)


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


def convolve_per_task(x: Tensor, weight: Tensor) -> Tensor:
    tasks = len(x)
    side_by_side = x.transpose(0, 1).flatten(1, 2)  # [n, T·C, H, W]
    h = F.conv2d(side_by_side, weight.flatten(0, 1), stride=2, padding=1, groups=tasks)
    return h.unflatten(1, (tasks, -1)).transpose(0, 1)  # from [n, T·filters, H', W']


Convolution = Callable[[Tensor, Tensor], Tensor]


class _OneConvolution(TorchFunctionMode):
    """Refuses a second convolution."""

    calls = 0

    def __torch_function__(
        self, func: Callable, types: object, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> object:
        self.calls += getattr(func, "__name__", "") == "conv2d"
        if self.calls > 1:
            raise NotAllowed(_NO_LOOP)
        return func(*args, **(kwargs or {}))


def _in_one_call(function: Convolution) -> Convolution:
    def examined(x: Tensor, weight: Tensor) -> Tensor:
        with _OneConvolution():
            return function(x, weight)

    return examined


_NO_LOOP = (
    "your function calls a convolution more than once. One call with `groups` does it for all tasks, however many "
    "there are"
)


def _pictures_and_filters() -> list[tuple]:
    g = torch.Generator().manual_seed(72)

    def case(tasks: int, examples: int, channels: int, filters: int) -> tuple[Tensor, Tensor]:
        x = torch.randn(tasks, examples, channels, 6, 6, generator=g, dtype=torch.float64)
        return x, torch.randn(tasks, filters, channels, 3, 3, generator=g, dtype=torch.float64)

    return [case(2, 5, 1, 4), case(3, 4, 2, 6)]


def _loop_over_tasks(x: Tensor, weight: Tensor) -> Tensor:
    return torch.stack([F.conv2d(one, w, stride=2, padding=1) for one, w in zip(x, weight)])


def _filters_of_the_first_task(x: Tensor, weight: Tensor) -> Tensor:
    return convolve_per_task(x, weight[:1].expand_as(weight))


def _task_axis_second(x: Tensor, weight: Tensor) -> Tensor:
    return convolve_per_task(x, weight).transpose(0, 1)


def _channels_of_all_tasks_mixed(x: Tensor, weight: Tensor) -> Tensor:
    h = convolve_per_task(x, weight).transpose(0, 1).flatten(1, 2)
    return h.unflatten(1, (-1, len(x))).movedim(2, 0)


def _tasks_inside_each_channel(x: Tensor, weight: Tensor) -> Tensor:
    side_by_side = x.movedim(0, 2).flatten(1, 2)  # [n, C·T, H, W]
    h = F.conv2d(side_by_side, weight.flatten(0, 1), stride=2, padding=1, groups=len(x))
    return h.unflatten(1, (len(x), -1)).transpose(0, 1)


def _reshaped_without_a_swap(x: Tensor, weight: Tensor) -> Tensor:
    side_by_side = x.reshape(x.shape[1], -1, *x.shape[3:])
    h = F.conv2d(side_by_side, weight.flatten(0, 1), stride=2, padding=1, groups=len(x))
    return h.unflatten(1, (len(x), -1)).transpose(0, 1)


def _stride_forgotten(x: Tensor, weight: Tensor) -> Tensor:
    side_by_side = x.transpose(0, 1).flatten(1, 2)
    h = F.conv2d(side_by_side, weight.flatten(0, 1), padding=1, groups=len(x))
    return h.unflatten(1, (len(x), -1)).transpose(0, 1)


def _padding_forgotten(x: Tensor, weight: Tensor) -> Tensor:
    side_by_side = x.transpose(0, 1).flatten(1, 2)
    h = F.conv2d(side_by_side, weight.flatten(0, 1), stride=2, groups=len(x))
    return h.unflatten(1, (len(x), -1)).transpose(0, 1)


# ---------------------------------------------------------------- 7.3


def alpha_for_the_mean(alpha: float, ways: int, shots: int, divided_by: int) -> float:
    # their loss is c times the mean loss, and so is its gradient: take c times the step
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


def one_query_at_a_time(apply: Apply, phi: Params, support_x: Tensor, query_x: Tensor) -> Tensor:
    one_by_one = query_x.split(1, dim=1)  # each [T, 1, 1, 28, 28]
    logits = [apply(phi, q, context=torch.cat([support_x, q], 1)) for q in one_by_one]
    return torch.cat(logits, 1)


def _adapted_networks() -> list[tuple]:
    """(apply, φ, support_x, query_x) of small networks after some inner steps, on noisy pictures of 8 × 8."""
    cases = []
    for seed, ways, shots in ((75, 4, 1), (76, 3, 2)):
        g = torch.Generator().manual_seed(seed)
        model = conv4(ways, filters=4, image=8, generator=g, dtype=torch.float64)
        pattern = torch.rand(3, ways, 1, 8, 8, generator=g, dtype=torch.float64)
        support_x, query_x = (
            pattern.repeat_interleave(each, 1)
            + 0.4 * torch.randn(3, ways * each, 1, 8, 8, generator=g, dtype=torch.float64)
            for each in (shots, 6)
        )
        support_y = torch.arange(ways).repeat_interleave(shots).repeat(3, 1)
        phi = adapt(cross_entropy(model.apply), model.theta, support_x, support_y, 0.5, 3)[-1]
        cases.append((model.apply, phi, support_x, query_x))
    return cases


def _all_together(apply: Apply, phi: Params, support_x: Tensor, query_x: Tensor) -> Tensor:
    return apply(phi, query_x)


def _support_only(apply: Apply, phi: Params, support_x: Tensor, query_x: Tensor) -> Tensor:
    return apply(phi, query_x, context=support_x)


def _support_and_all_queries(apply: Apply, phi: Params, support_x: Tensor, query_x: Tensor) -> Tensor:
    return apply(phi, query_x, context=torch.cat([support_x, query_x], 1))


def _alone_without_support(apply: Apply, phi: Params, support_x: Tensor, query_x: Tensor) -> Tensor:
    return torch.cat([apply(phi, q) for q in query_x.split(1, dim=1)], 1)


def _logits_of_the_support_too(apply: Apply, phi: Params, support_x: Tensor, query_x: Tensor) -> Tensor:
    return torch.cat([apply(phi, torch.cat([support_x, q], 1)) for q in query_x.split(1, dim=1)], 1)


EXERCISES: list[Exercise] = [
    Exercise(
        number="7.1",
        title="build an episode",
        reference=build_episode,
        cases=_deals,
        mistakes={
            "These labels are the numbers of the characters, so a network could learn them by heart. A label is the "
            "place of a class within its own episode, 0 … n−1.": _labels_are_character_numbers,
            "The drawings come class by class (0, 0, 1, 1, …), but your labels run 0, 1, 0, 1, …. With more than one "
            "drawing a class, most labels are wrong. Try repeat_interleave.": _labels_repeated_the_other_way,
            "Your query set contains the support drawings. The queries are the drawings after the first "
            "`shots`.": _support_among_the_queries,
            "Your queries start at the first drawing, so they overlap with the support set. Take the drawings after "
            "the first `shots`.": _queries_from_the_front,
            "You always take the first characters of the data set. Index `images` with "
            "`classes`.": _positions_for_characters,
            "You used the drawing numbers of the first class for all classes. Each class has a row of "
            "`drawings`.": _drawings_of_the_first_class,
        },
        hints=(
            "A picture needs two indices, one for the character and one for the drawing. "
            "images[classes[:, None], drawings] takes both at once: [ways, shots + queries, 28, 28].",
            "Cut along the second axis at `shots`, then flatten the first two axes. That's class by class.",
            "torch.arange(ways).repeat_interleave(2) is 0, 0, 1, 1, 2, 2, …",
        ),
    ),
    Exercise(
        number="7.2",
        title="one convolution for all tasks",
        reference=convolve_per_task,
        cases=_pictures_and_filters,
        examine=_in_one_call,
        mistakes={
            _NO_LOOP: _loop_over_tasks,
            "You used the filters of the first task for all of them.": _filters_of_the_first_task,
            "Your result is [n, T, …]. The task axis comes first, so swap the first two axes back.": _task_axis_second,
            "After the convolution, the channels come task by task: all filters of task 0, then all of task 1. "
            "Unflatten them into (T, filters), not (filters, T).": _channels_of_all_tasks_mixed,
            "You put the tasks side by side within each channel, [n, C·T, H, W]. Group t then mixes pictures of "
            "different tasks. Make it [n, T·C, H, W].": _tasks_inside_each_channel,
            "`reshape` alone doesn't move the task axis: it cuts the numbers anew, and tasks mix. Swap the first two "
            "axes before you flatten.": _reshaped_without_a_swap,
            "Your maps are too large: the stride is 2.": _stride_forgotten,
            "Your maps lack a border: the padding is 1.": _padding_forgotten,
        },
        hints=(
            "F.conv2d knows one batch axis and one channel axis. Where could the task axis hide so that tasks don't "
            "mix? Look at the argument `groups`.",
            "Swap the first two axes of x and flatten the next two, [n, T·C, H, W]. Flatten the first two axes of "
            "weight, [T·filters, C, 3, 3]. Then groups=T.",
            "The result is [n, T·filters, H', W']. unflatten(1, (T, -1)), then transpose(0, 1).",
        ),
        remark="It costs the same arithmetic as the loop, in one call instead of T.",
    ),
    Exercise(
        number="7.3",
        title="the same step for another average",
        reference=alpha_for_the_mean,
        cases=_step_sizes_to_convert,
        mistakes={
            "You kept α as it is. Their loss is a multiple of the mean, and so is its gradient.": _as_it_is,
            "Your factor is upside down. The sum has the longer gradient, so the mean needs the larger "
            "α.": _upside_down,
            "You forgot the division: this converts from the plain sum over the examples.": _from_the_plain_sum,
            "The factor n is right only where the sum is divided by the number of shots.": _times_ways,
        },
        hints=(
            "Both losses add up the same n·k terms. What does each divide by?",
            "loss = c · mean loss means ∇loss = c · ∇mean loss. The step α∇loss must stay the same.",
            "c = n·k / divided_by.",
        ),
        remark="An α means nothing until you know its loss: the mean, the sum, or the sum divided by k.",
    ),
    Exercise(
        number="7.4",
        title="one query at a time",
        reference=one_query_at_a_time,
        cases=_adapted_networks,
        mistakes={
            "These logits come from all queries together, so the queries see each other. Split them "
            "first.": _all_together,
            "The statistics come from the support set only. That's row (e). In row (d) the query itself belongs to "
            "the context too.": _support_only,
            "Your context holds all queries, so they still see each other. Split them first.": _support_and_all_queries,
            "Each query is normalised by itself alone. That's row (c). In row (d) the support set belongs to the "
            "context too.": _alone_without_support,
            "You returned the logits of the support drawings as well. Give the query as x and the rest as "
            "`context`.": _logits_of_the_support_too,
        },
        hints=(
            "apply(phi, x) takes mean and variance from x itself. apply(phi, x, context=c) takes them from c.",
            "query_x.split(1, dim=1) gives the queries one at a time, each [T, 1, 1, 28, 28].",
            "The context of one query q is torch.cat([support_x, q], 1).",
        ),
        remark="No query can help another one now.",
    ),
]
