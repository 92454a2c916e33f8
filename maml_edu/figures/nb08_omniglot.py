"""Figures of notebook 08: data and its own runs. Those of stored results are in nb08_omniglot_results.py."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle
from torch import Tensor

from maml_edu.data.character_set import Characters
from maml_edu.evaluation import StepScore
from maml_edu.figures.style import COLOURS, STYLES, Look, line, where_none_diverged
from maml_edu.tasks import TaskBatch
from maml_edu.training import cosine, step_weights

__all__ = [
    "confident_mistakes",
    "gradient_lengths",
    "omniglot_accuracy",
    "omniglot_characters",
    "omniglot_curves",
    "omniglot_episode",
    "outer_switches",
    "selection_gap",
    "step_sizes_by_tensor",
]

_GAP = 0.12  # between pictures, in picture widths


# ---------------------------------------------------------------- pictures


def omniglot_characters(ax: Axes, characters: Characters, which: Sequence[int], drawings: int = 10) -> Axes:
    """One row per character in `which`, its first drawings side by side, its alphabet at the left."""
    for row, index in enumerate(which):
        for column in range(drawings):
            _picture(ax, column, row, characters.images[index, column])
        ax.text(-0.15, row + 0.5, _short_name(characters, index), ha="right", va="center", fontsize=11)
    _canvas(ax, (-0.2, drawings), (0, len(which)))
    return _say_source(ax, characters.source)


def omniglot_episode(
    ax: Axes, batch: TaskBatch, task: int, predicted: Tensor | None = None, source: str = "omniglot"
) -> Axes:
    """One episode, a column per class: support above, queries below; predicted [T, queries] writes the answers under
    the queries, with a thick dashed frame and a cross on each wrong one."""
    ways = int(batch.support_y[task].max()) + 1
    row = 0.0
    for side, x, y in (("support", batch.support_x, batch.support_y), ("query", batch.query_x, batch.query_y)):
        depth = [0] * ways
        for i in range(x.shape[1]):
            label = int(y[task, i])
            place = (label, row + depth[label] * (1.35 if side == "query" and predicted is not None else 1.0))
            depth[label] += 1
            wrong = side == "query" and predicted is not None and int(predicted[task, i]) != label
            _picture(ax, *place, x[task, i, 0], frame=COLOURS["fomaml" if wrong else side], wrong=wrong)
            if side == "query" and predicted is not None:
                _answer(ax, *place, int(predicted[task, i]), wrong, ways)
        height = max(depth) * (1.35 if side == "query" and predicted is not None else 1.0)
        ax.text(-0.1, row + 0.5, side, ha="right", va="center", color=COLOURS["truth"], fontsize=12)
        row += height + 0.15
    for label in range(ways):
        ax.text(
            label + 0.5, -0.08, f"class {label}" if ways <= 8 else str(label), ha="center", va="bottom", fontsize=11
        )
    _canvas(ax, (-0.05, ways), (-0.3, row))
    return _say_source(ax, source)


def confident_mistakes(
    ax: Axes, triples: Sequence[tuple[Tensor, Tensor, Tensor, float]], source: str = "omniglot"
) -> Axes:
    """Columns of three pictures: the query, the support drawing of the class it was taken for, that of its own class.

    Each triple: (query, taken for, is, probability given to the wrong class).
    """
    names = ("query", "taken for", "its class")
    frames = (COLOURS["query"], COLOURS["fomaml"], COLOURS["support"])
    for column, (*pictures, probability) in enumerate(triples):
        for row, (picture, frame) in enumerate(zip(pictures, frames)):
            _picture(ax, column, row, picture, frame=frame, wrong=row == 1)
        ax.text(column + 0.5, 3.05, f"{100 * probability:.0f} % sure", ha="center", va="top", fontsize=11)
    for row, name in enumerate(names):
        ax.text(-0.1, row + 0.5, name, ha="right", va="center", fontsize=12)
    _canvas(ax, (-0.05, max(1, len(triples))), (0, 3.35))
    return _say_source(ax, source)


def _picture(ax: Axes, column: float, row: float, image: Tensor, frame: str | None = None, wrong: bool = False) -> None:
    """A drawing [28, 28], ink = 255 or 1, in the unit square whose upper left corner is (column, row)."""
    pixels = np.asarray(image.cpu(), dtype=float)
    box = (column + _GAP / 2, column + 1 - _GAP / 2, row + 1 - _GAP / 2, row + _GAP / 2)
    ax.imshow(pixels, cmap="gray_r", vmin=0, vmax=255 if pixels.max() > 1 else 1, extent=box, interpolation="nearest")
    edge = Rectangle(
        (box[0], box[3]),
        1 - _GAP,
        1 - _GAP,
        fill=False,
        edgecolor=frame or "#BBBBBB",
        linewidth=3.5 if wrong else (2 if frame else 0.8),
        linestyle="--" if wrong else "-",
    )
    ax.add_patch(edge)


def _answer(ax: Axes, column: float, row: float, predicted: int, wrong: bool, ways: int) -> None:
    """What the network answered, under the picture; a cross beside a wrong answer."""
    answer = f"→ {predicted}" if ways <= 8 else str(predicted)
    ax.text(
        column + 0.5,
        row + 1.0,
        f"{answer}  ×" if wrong else answer,
        ha="center",
        va="top",
        color=COLOURS["fomaml" if wrong else "truth"],
        fontsize=11,
        fontweight="bold" if wrong else "normal",
    )


def _canvas(ax: Axes, x: tuple[float, float], y: tuple[float, float]) -> None:
    ax.set_xlim(*x)
    ax.set_ylim(y[1], y[0])  # rows run downwards
    ax.set_aspect("equal")
    ax.axis("off")


def _short_name(characters: Characters, index: int) -> str:
    alphabet = characters.alphabets[index]
    if not alphabet:
        return characters.names[index]
    alphabet = alphabet.replace("_", " ").split("(")[0].strip()
    return alphabet if len(alphabet) <= 22 else alphabet[:21] + "…"


def _say_source(ax: Axes, source: str) -> Axes:
    """Whatever is not Omniglot says so in its title."""
    if source != "omniglot":
        ax.set_title(f"synthetic {source}, not Omniglot")
    return ax


# ---------------------------------------------------------------- curves


def omniglot_curves(
    ax: Axes, runs: Mapping[str, tuple[Sequence[float], Sequence[float]]], ways: int, source: str = "omniglot"
) -> Axes:
    """Query loss against iteration on a log axis, raw (thin) and smoothed (thick); runs: label → (iterations, losses).

    The dotted line is ln(ways), the loss of a network that gives every class the same probability.
    """
    looks = [line("maml"), dict(color=COLOURS["truth"], linestyle="-.")]
    for (label, (iterations, losses)), look in zip(runs.items(), looks):
        look = line(label) if label in COLOURS else look
        raw = np.asarray(losses, dtype=float)
        ax.plot(iterations, raw, color=look["color"], alpha=0.25, linewidth=1)
        where, smooth = _smoothed(np.asarray(iterations, dtype=float), raw)
        ax.plot(where, smooth, **look, label=label)
    chance = math.log(ways)
    ax.axhline(chance, color=COLOURS["before"], linestyle=":", linewidth=1.5)
    ax.text(
        0.01,
        chance,
        f" guessing: ln {ways} = {chance:.2f}",
        transform=ax.get_yaxis_transform(),
        va="bottom",
        fontsize=11,
    )
    ax.set_xscale("log")
    ax.set_ylim(0, 1.15 * chance)
    ax.set_xlabel("outer iteration (log scale)")
    ax.set_ylabel("query loss, nats")
    if len(runs) > 1:
        ax.legend(loc="lower left")
    return _say_source(ax, source)


def _smoothed(x: np.ndarray, y: np.ndarray) -> tuple[list[float], list[float]]:
    """Means over forty windows that grow with x, as suits a log axis."""
    edges = np.unique(np.geomspace(1, len(y) + 1, 40).astype(int)) - 1
    spans = [slice(a, b) for a, b in zip(edges[:-1], edges[1:])]
    return [x[s].mean() for s in spans], [y[s].mean() for s in spans]


def omniglot_accuracy(
    ax: Axes, scores: Sequence[StepScore], headline: int, ways: int, method: str = "maml", source: str = "omniglot"
) -> Axes:
    """Accuracy in % with 95 % intervals after 0, 1, … inner steps; a ring around the step that was fixed in advance."""
    steps, means, half_widths = where_none_diverged(scores)
    means, half_widths = [100 * mean for mean in means], [100 * half for half in half_widths]
    style = STYLES[method]
    ax.errorbar(steps, means, yerr=half_widths, capsize=4, **style)
    for step, mean, half in zip(steps, means, half_widths):
        if step == headline:
            ax.plot(
                step,
                mean,
                marker="o",
                markersize=17,
                markerfacecolor="none",
                color=COLOURS["truth"],
                markeredgewidth=1.8,
            )
            ax.annotate(
                f"fixed in advance:\n{mean:.1f} ± {half:.1f} %",
                (step, mean),
                xytext=(0, -22),
                textcoords="offset points",
                ha="center",
                va="top",
            )
    ax.axhline(100 / ways, color=COLOURS["before"], linestyle=":", linewidth=1.5)
    ax.text(steps[-1] if steps else 1, 100 / ways, f"guessing: {100 / ways:g} %", ha="right", va="bottom", fontsize=11)
    ax.set_ylim(0, 103)
    ax.set_xticks([s.step for s in scores])
    ax.set_xlabel("inner steps at test")
    ax.set_ylabel("queries right, %")
    ax.grid(alpha=0.25)
    return _say_source(ax, source)


def outer_switches(axes: Sequence[Axes], iterations: int, steps: int, multi_step: int) -> Sequence[Axes]:
    """Two axes: the learning rate under the cosine schedule, and the weights of the multi-step loss, per iteration."""
    at = np.linspace(0, iterations - 1, min(iterations, 200)).astype(int)
    axes[0].plot(at, [cosine(int(i), iterations) for i in at], **line("maml"))
    axes[0].set_ylabel("learning rate, as a share of lr")
    scheduled = [step_weights(multi_step, steps, int(i)) for i in at]
    weights = np.array([[0.0] * (steps - 1) + [1.0] if w is None else w.tolist() for w in scheduled])
    earlier = {2: "$w_1$", 3: "$w_1$ and $w_2$"}.get(steps, f"each of $w_1$ … $w_{{{steps - 1}}}$")
    for column, key, name, above in ((-1, "maml", f"$w_{{{steps}}}$", True), (0, "before", earlier, False)):
        axes[1].plot(at, weights[:, column], **line(key))
        x, y = (at[-1] / 3, weights[len(at) // 3, column] + 0.03) if above else (0.55 * at[-1], 0.04)
        axes[1].text(x, y, name, ha="right" if above else "left", va="bottom", color=COLOURS[key])
    axes[1].set_ylabel("weight of $L_q(\\theta_j)$")
    for ax in axes:
        ax.set_ylim(-0.05, 1.1)
        ax.set_xlabel("outer iteration")
        ax.grid(alpha=0.25)
    return axes


def gradient_lengths(ax: Axes, lengths: Sequence[float], source: str = "omniglot") -> Axes:
    """The norm of the meta-gradient, a bar per meta-batch in order of length; their median dashed."""
    lengths = sorted(lengths)
    middle = float(np.median(lengths))
    ax.bar(range(1, len(lengths) + 1), lengths, color=COLOURS["maml"], width=0.8)
    ax.axhline(middle, color=COLOURS["truth"], linestyle="--", linewidth=1.5)
    ax.text(1, middle, "median", va="bottom", fontsize=11, color=COLOURS["truth"])
    ax.set_xlabel("meta-batch, sorted")
    ax.set_ylabel("length of the meta-gradient")
    return _say_source(ax, source)


def step_sizes_by_tensor(
    ax: Axes, alpha: Sequence[Mapping[str, Tensor]], start: float, source: str = "omniglot"
) -> Axes:
    """Learned step sizes: one row per parameter tensor, one mark per inner step, a dashed line where they began."""
    names = list(alpha[0])
    marks: list[Look] = [
        dict(marker="o", markerfacecolor=COLOURS["maml"], color=COLOURS["maml"]),
        dict(marker="s", markerfacecolor="white", color=COLOURS["fomaml"]),
        dict(marker="^", markerfacecolor="white", color=COLOURS["reptile"]),
        dict(marker="D", markerfacecolor="white", color=COLOURS["joint"]),
        dict(marker="v", markerfacecolor=COLOURS["oracle"], color=COLOURS["oracle"]),
    ]
    for j, sizes in enumerate(alpha):
        look = {**marks[j % len(marks)], "markeredgewidth": 2, "linestyle": "none"}
        apart = min(0.28, 0.8 / len(alpha))  # side by side, so that none hides another
        rows = [i + apart * (j - (len(alpha) - 1) / 2) for i in range(len(names))]
        ax.plot([float(sizes[name].mean()) for name in names], rows, label=f"inner step {j + 1}", **look)
    ax.axvline(start, color=COLOURS["before"], linestyle="--", linewidth=1.5)
    ax.text(start, -0.75, f" start: {start:g}", fontsize=11, va="center")
    ax.axvline(0, color=COLOURS["truth"], linewidth=0.8)
    ax.set_yticks(range(len(names)), names)
    ax.set_ylim(len(names) - 0.5, -1.2)
    ax.set_xlabel("learned step size α (for the mean cross-entropy)")
    ax.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
    ax.grid(axis="x", alpha=0.25)
    return _say_source(ax, source)


def selection_gap(
    ax: Axes, sizes: Sequence[int], best: Sequence[float], fixed: Sequence[float], steps: int, source: str = "omniglot"
) -> Axes:
    """What test sets of a given size report on average, in %: each its own best step, or a step fixed beforehand."""
    ax.plot(sizes, [100 * b for b in best], **STYLES["fomaml"])
    ax.plot(sizes, [100 * f for f in fixed], **STYLES["maml"])
    top, bottom = 100 * max(best), 100 * min(fixed)
    room = max(top - bottom, 0.5)
    ax.text(sizes[0], 100 * best[0] + 0.08 * room, f"the best of {steps} steps", color=COLOURS["fomaml"], va="bottom")
    ax.text(sizes[0], 100 * fixed[0] - 0.1 * room, "the step fixed in advance", color=COLOURS["maml"], va="top")
    ax.set_ylim(bottom - 0.4 * room, top + 0.35 * room)
    ax.set_xscale("log")
    ax.set_xticks(sizes, [str(s) for s in sizes])
    ax.minorticks_off()
    ax.set_xlabel("tasks in the test set (log scale)")
    ax.set_ylabel("reported accuracy, %")
    ax.grid(alpha=0.25)
    return _say_source(ax, source)
