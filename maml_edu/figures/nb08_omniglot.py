"""Figures of notebook 08: characters, and the notebook's own runs. For stored runs see nb08_omniglot_results.py."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle
from torch import Tensor

from maml_edu.data.character_set import Characters
from maml_edu.evaluation import StepScore
from maml_edu.figures.style import COLOURS, STYLES, Look, Picture, apply_style, line, new_axes, where_none_diverged
from maml_edu.tasks import TaskBatch

__all__ = [
    "accuracy_by_step",
    "best_of_ten",
    "confident_mistakes",
    "episode",
    "handwriting",
    "label_orders",
    "step_sizes",
    "training_curve",
]

_GAP = 0.12  # between pictures, in picture widths
_ACROSS = 10  # classes side by side; more go below


# ---------------------------------------------------------------- pictures


def handwriting(characters: Characters, which: Iterable[int], drawings: int = 10) -> Picture:
    """One row per character in `which`: its first drawings side by side, its alphabet at the left."""
    rows = list(which)
    figure, ax = new_axes(height=0.65 * len(rows))
    for row, index in enumerate(rows):
        for column in range(drawings):
            _drawing(ax, column, row, characters.images[index, column])
        ax.text(-0.15, row + 0.5, _short_name(characters, index), ha="right", va="center", fontsize=11)
    _canvas(ax, (-0.2, drawings), (0, len(rows)), characters.source)
    return Picture(figure, f"{len(rows)} characters, one in a row, each drawn by ten people: the strokes stay the same")


def episode(batch: TaskBatch, task: int, source: str, answers: Tensor | None = None) -> Picture:
    """One episode, a column per class: support above, queries below.

    answers [T, queries] are written under the queries; a wrong one gets a thick dashed frame and a cross.
    """
    x_s, y_s, x_q, y_q = (side[task].cpu() for side in batch)
    ways = int(y_s.max()) + 1
    across = min(ways, _ACROSS)
    pitch = 1.0 if answers is None else 1.35  # room for an answer under a query
    tall = (y_s == 0).sum().item() + pitch * (y_q == 0).sum().item() + 0.9  # of a block of classes
    blocks = -(-ways // across)
    apply_style()
    scale = min(0.95, 7.0 / across, 11.0 / (blocks * tall))
    figure, ax = plt.subplots(figsize=(max(4.0, scale * (across + 1)), scale * blocks * tall), layout="constrained")
    for block in range(blocks):
        top = block * tall
        below = top + (y_s == 0).sum().item() + 0.15
        for label in range(block * across, min(ways, (block + 1) * across)):
            column = label - block * across
            ax.text(column + 0.5, top - 0.06, f"class {label}" if ways <= 6 else str(label), ha="center", fontsize=11)
            for depth, x in enumerate(x_s[y_s == label, 0]):
                _drawing(ax, column, top + depth, x, frame=COLOURS["support"])
            for depth, i in enumerate((y_q == label).nonzero().flatten().tolist()):
                said = None if answers is None else int(answers[task, i])
                wrong = said is not None and said != label
                place = column, below + depth * pitch
                _drawing(ax, *place, x_q[i, 0], frame=COLOURS["fomaml" if wrong else "query"], wrong=wrong)
                if said is not None:
                    _answer(ax, *place, said, wrong)
        for name, row in (("support", top), ("query", below)):
            ax.text(-0.1, row + 0.5, name, ha="right", va="center", fontsize=12)
    _canvas(ax, (-0.05, across), (-0.45, blocks * tall - 0.4), source)
    what = "one query in each" if answers is None else "each query with the network's answer below it"
    what = what if answers is not None or (y_q == 0).sum() == 1 else "queries below"
    return Picture(figure, f"One episode with {ways} classes in columns: support drawings in solid frames, {what}")


def confident_mistakes(batch: TaskBatch, answers: Tensor, sure: Tensor, places: Tensor, source: str) -> Picture:
    """Columns of three drawings: the query, the support drawing of the class it was taken for, that of its own class.

    answers, sure: [T, queries]; places: positions in the flattened [T, queries], of which the wrong ones are shown.
    """
    queries = answers.shape[1]
    pairs = [divmod(place, queries) for place in places.tolist()]
    pairs = [(t, i) for t, i in pairs if answers[t, i] != batch.query_y[t, i]]
    figure, ax = new_axes(height=3.6)
    for column, (t, i) in enumerate(pairs):
        support = {int(y): x[0] for x, y in zip(batch.support_x[t], batch.support_y[t])}
        taken, own = support[int(answers[t, i])], support[int(batch.query_y[t, i])]
        for row, (x, key) in enumerate(((batch.query_x[t, i, 0], "query"), (taken, "fomaml"), (own, "support"))):
            _drawing(ax, column, row, x, frame=COLOURS[key], wrong=row == 1)
        ax.text(column + 0.5, 3.05, f"{100 * sure[t, i]:.0f} % sure", ha="center", va="top", fontsize=9.5)
    for row, name in enumerate(("query", "taken for", "its class")):
        ax.text(-0.1, row + 0.5, name, ha="right", va="center", fontsize=12)
    _canvas(ax, (-0.05, max(1, len(pairs))), (0, 3.35), source)
    return Picture(figure, "Mistakes in columns: the query, the character it was taken for, and the one it is")


def _drawing(ax: Axes, column: float, row: float, image: Tensor, frame: str = "", wrong: bool = False) -> None:
    """A drawing [28, 28], ink = 255 or 1, in the unit square whose upper left corner is (column, row)."""
    pixels = np.asarray(image.cpu(), dtype=float)
    left, top, side = column + _GAP / 2, row + _GAP / 2, 1 - _GAP
    white = 255 if pixels.max() > 1 else 1
    box = (left, left + side, top + side, top)
    ax.imshow(pixels, cmap="gray_r", vmin=0, vmax=white, extent=box, interpolation="nearest")
    look: Look = dict(edgecolor=frame or "#BBBBBB", linewidth=3.5 if wrong else 2 if frame else 0.8)
    ax.add_patch(Rectangle((left, top), side, side, fill=False, linestyle="--" if wrong else "-", **look))


def _answer(ax: Axes, column: float, row: float, said: int, wrong: bool) -> None:
    """What the network answered, under the drawing; a cross beside a wrong answer."""
    look: Look = dict(color=COLOURS["fomaml" if wrong else "truth"], fontweight="bold" if wrong else "normal")
    ax.text(column + 0.5, row + 1.0, f"{said} ×" if wrong else str(said), ha="center", va="top", fontsize=11, **look)


def _canvas(ax: Axes, x: tuple[float, float], y: tuple[float, float], source: str) -> None:
    ax.set_xlim(*x)
    ax.set_ylim(y[1], y[0])  # rows run downwards
    ax.set_aspect("equal")
    ax.axis("off")
    _say_source(ax, source)


def _short_name(characters: Characters, index: int) -> str:
    alphabet = characters.alphabets[index].replace("_", " ").split("(")[0].strip()
    alphabet = alphabet or characters.names[index]
    return alphabet if len(alphabet) <= 22 else alphabet[:21] + "…"


def _say_source(ax: Axes, source: str) -> None:
    """Whatever isn't Omniglot says so in its title."""
    if source != "omniglot":
        ax.set_title(f"synthetic {source}, not Omniglot")


# ---------------------------------------------------------------- curves


def training_curve(losses: Tensor, ways: int, method: str, source: str) -> Picture:
    """Query loss [iterations] on a log axis, raw (thin) and smoothed (thick), with the loss of guessing."""
    figure, ax = new_axes()
    raw, at = losses.double().numpy(), np.arange(1, len(losses) + 1)
    look = line(method if method in COLOURS else "maml")
    ax.plot(at, raw, color=look["color"], alpha=0.25, linewidth=1)
    edges = np.unique(np.geomspace(1, len(raw) + 1, 40).astype(int)) - 1  # windows that grow, as suits a log axis
    spans = [slice(a, b) for a, b in zip(edges[:-1], edges[1:])]
    ax.plot([at[s].mean() for s in spans], [raw[s].mean() for s in spans], **look)
    chance = math.log(ways)
    ax.axhline(chance, color=COLOURS["before"], linestyle=":", linewidth=1.5)
    ax.text(1, chance, f"guessing: ln {ways} = {chance:.2f}", va="bottom", fontsize=11)
    ax.set(xscale="log", xlabel="outer iteration", ylabel="query loss", ylim=(0, 1.2 * chance))
    _say_source(ax, source)
    return Picture(
        figure, f"Query loss against iteration: a jagged line, falling from near ln {ways}, the loss of guessing"
    )


def accuracy_by_step(scores: Sequence[StepScore], headline: int, ways: int, method: str, source: str) -> Picture:
    """Accuracy in % with 95 % intervals after 0, 1, … inner steps; a ring around the step that was fixed in advance."""
    figure, ax = new_axes()
    steps, means, halves = where_none_diverged(scores)
    style = STYLES[method if method in STYLES else "maml"]
    ax.errorbar(steps, [100 * m for m in means], yerr=[100 * h for h in halves], capsize=4, **style)
    for step, mean, half in zip(steps, means, halves):
        if step == headline:
            ax.plot(step, 100 * mean, "o", markersize=17, markerfacecolor="none", color="black", markeredgewidth=1.8)
            text = f"fixed in advance:\n{100 * mean:.1f} ± {100 * half:.1f} %"
            where: Look = dict(xytext=(0, -22), textcoords="offset points", ha="center", va="top")
            ax.annotate(text, (step, 100 * mean), **where)
    ax.axhline(100 / ways, color=COLOURS["before"], linestyle=":", linewidth=1.5)
    ax.text(steps[-1] if steps else 1, 100 / ways, f"guessing: {100 / ways:g} %", ha="right", va="bottom", fontsize=11)
    ax.set(ylim=(0, 104), xlabel="inner steps on a new task", ylabel="queries right, %")
    ax.set_xticks([s.step for s in scores])
    ax.grid(alpha=0.25)
    _say_source(ax, source)
    return Picture(figure, "Accuracy on new characters against inner steps: a steep first step, then a plateau")


def step_sizes(alpha: Sequence[Mapping[str, Tensor]] | Mapping, start: float, source: str = "omniglot") -> Picture:
    """Step sizes: one row per parameter tensor, one mark per inner step, a dashed line where they began."""
    per_step: list[Mapping] = [alpha] if isinstance(alpha, Mapping) else list(alpha)
    names = list(per_step[0])
    figure, ax = new_axes(height=2.0 + 0.22 * len(names) + 0.2 * max(0, len(per_step) - 2))
    marks = zip("os^Dv", (COLOURS[key] for key in ("maml", "fomaml", "reptile", "joint", "oracle")))
    looks: list[Look] = [dict(marker=m, color=c, markeredgewidth=2, linestyle="none") for m, c in marks]
    apart = min(0.28, 0.8 / len(per_step))  # side by side, so that none hides another
    shown: list[float] = []
    for j, sizes in enumerate(per_step):
        rows = [i + apart * (j - (len(per_step) - 1) / 2) for i in range(len(names))]
        filled: Look = {} if j == 0 else {"markerfacecolor": "white"}
        numbers = [float(sum(v.flatten()) / v.numel()) if isinstance(v, Tensor) else v for v in sizes.values()]
        shown += numbers
        ax.plot(numbers, rows, label=f"inner step {j + 1}", **looks[j % len(looks)], **filled)
    ax.axvline(start, color=COLOURS["before"], linestyle="--", linewidth=1.5)
    ax.text(start, -0.85, f" start: {start:g}", fontsize=11, va="center")
    ax.axvline(0, color=COLOURS["truth"], linewidth=0.8)
    ax.set_yticks(range(len(names)), names)
    ax.set_ylim(len(names) - 0.5, -1.3)
    low, high = min(0.0, *shown), max(start, *shown)
    ax.set_xscale("symlog", linthresh=0.1)
    ax.set_xlim(1.6 * low - 0.03, 1.6 * high)  # symlog leaves no margin of its own
    ax.set_xlabel("step size α")
    ax.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
    ax.grid(axis="x", alpha=0.25)
    _say_source(ax, source)
    return Picture(
        figure,
        f"Step sizes: a row for each of {len(names)} tensors, with a mark for each of {len(per_step)} inner steps",
    )


def best_of_ten(sizes: Sequence[int], curves: Mapping[str, Sequence[float]], source: str) -> Picture:
    """What labs report on average, against the size of their test sets; curves: best, honest, fixed, in this order."""
    figure, ax = new_axes(height=3.8)
    looks = (STYLES["fomaml"], STYLES["reptile"], STYLES["maml"])
    for (name, values), look in zip(curves.items(), looks):
        ax.plot(sizes, [100 * v for v in values], label=name, **look)
    ax.set_xscale("log")
    ax.set_xticks(sizes, [str(s) for s in sizes])
    ax.minorticks_off()
    ax.set(xlabel="tasks in the test set", ylabel="accuracy, %")
    ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=1)
    ax.grid(alpha=0.25)
    _say_source(ax, source)
    return Picture(figure, f"Three lines against the size of the test set: {'; '.join(curves)}")


# ---------------------------------------------------------------- the order of the labels


def label_orders(right: Tensor, depends: Tensor, source: str) -> Picture:
    """The probability of the right answer, from its lowest to its highest over label orders; a bar per query.

    right: [orders, queries]. depends: [queries], whether some order changes the answer.
    """
    figure, ax = new_axes()
    order = right.mean(0).argsort()
    low, high, mean = right.amin(0)[order], right.amax(0)[order], right.mean(0)[order]
    for key, chosen in (("before", ~depends[order]), ("fomaml", depends[order])):
        at = chosen.nonzero().flatten()
        name = "some order changes the answer" if key == "fomaml" else "the same answer in every order"
        ax.vlines(at, low[at], high[at], color=COLOURS[key], linewidth=1.6 if len(mean) < 300 else 1, label=name)
    ax.plot(mean, ".", color="black", markersize=3)
    ax.set(xlabel="queries, sorted", ylabel="probability of the\nright character", ylim=(-0.02, 1.02))
    ax.legend(loc="lower right")
    _say_source(ax, source)
    return Picture(
        figure, "A bar per query: the probability of the right character, from its lowest to its highest over orders"
    )
