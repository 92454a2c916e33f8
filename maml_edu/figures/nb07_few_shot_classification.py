"""Figures of notebook 07: few-shot classification."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle
from matplotlib.ticker import FormatStrFormatter, LogLocator
from torch import Tensor

from maml_edu.evaluation import StepScore
from maml_edu.figures.style import COLOURS, STYLES, line
from maml_edu.tasks import TaskBatch

__all__ = [
    "accuracy_by_statistics",
    "accuracy_by_step",
    "dealt_episode",
    "leaking_scores",
    "loop_against_task_axis",
]

_GAP = 0.14  # between pictures, in picture widths


def dealt_episode(ax: Axes, batch: TaskBatch, task: int, source: str, title: str = "") -> Axes:
    """One episode of a batch, a column per label: support in solid frames above, queries in dashed frames below."""
    ways = int(batch.support_y[task].max()) + 1
    top = 0.0
    for side, x, y in (
        ("support", batch.support_x[task], batch.support_y[task]),
        ("query", batch.query_x[task], batch.query_y[task]),
    ):
        depth = [0] * ways
        for picture, label in zip(x, y.tolist()):
            _framed(ax, label, top + depth[label], picture[0], side)
            depth[label] += 1
        ax.text(-0.1, top + max(depth) / 2, side, ha="right", va="center", rotation=90)
        top += max(depth) + 0.25
    for label in range(ways):
        ax.text(label + 0.5, -0.08, str(label), ha="center", va="bottom", fontsize=13)
    ax.text(-0.1, -0.08, "label", ha="right", va="bottom")
    ax.set(xlim=(-0.5, ways), ylim=(top, -0.6), aspect="equal")
    ax.axis("off")
    ax.set_title(title + _which_data(source))
    return ax


def loop_against_task_axis(
    ax: Axes, tasks: Sequence[int], loop: Sequence[float], task_axis: Sequence[float], unit: str = "ms"
) -> Axes:
    """Time of one meta-gradient against the number of tasks, for a Python loop over tasks and for one call."""
    for key, name, times in (("before", "loop over tasks", loop), ("maml", "task axis", task_axis)):
        ax.plot(tasks, times, **STYLES[key])
        # Beside the middle of the line, on the side where the other line is not.
        middle, above = len(tasks) // 2, key == "before"
        ax.annotate(
            name,
            (tasks[middle], times[middle]),
            xytext=(-10, 8) if above else (12, -8),
            textcoords="offset points",
            ha="right" if above else "left",
            va="bottom" if above else "top",
            color=COLOURS[key],
        )
    ax.set(xscale="log", yscale="log", xlabel="tasks in the meta-batch T", ylabel=f"CPU time [{unit}]")
    ax.set_title("One meta-gradient")
    ax.set_xticks(tasks, [str(t) for t in tasks])
    ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    ax.yaxis.set_major_formatter(FormatStrFormatter("%g"))
    ax.minorticks_off()
    return ax


def accuracy_by_step(
    ax: Axes,
    untrained: Sequence[StepScore],
    trained: Sequence[StepScore],
    pixels: tuple[float, float],
    chance: float,
    source: str,
) -> Axes:
    """Test accuracy after 0, 1, 2 … inner steps, from an untrained and from a meta-learned θ, with 95 % intervals.

    pixels: mean and half-width of the nearest-pixel baseline.
    """
    steps = [score.step for score in trained]
    for key, name, scores, offset in (
        ("maml", "from the meta-learned θ", trained, -14),
        ("before", "from the untrained θ", untrained, 12),
    ):
        means = [100 * score.values.mean().item() for score in scores]
        half_widths = [100 * score.half_width if score.half_width is not None else 0.0 for score in scores]
        ax.errorbar(steps, means, yerr=half_widths, capsize=4, **STYLES[key])
        ax.annotate(
            name,
            (steps[-1], means[-1]),
            xytext=(0, offset),
            textcoords="offset points",
            ha="right",
            va="bottom" if offset > 0 else "top",
            color=COLOURS[key],
        )
    ax.axhline(100 * pixels[0], color=COLOURS["truth"], linestyle=":")
    ax.axhspan(100 * (pixels[0] - pixels[1]), 100 * (pixels[0] + pixels[1]), color="0.85", zorder=0)
    ax.text(0.02, 100 * pixels[0] + 1.5, "nearest pixels", ha="left", va="bottom")
    ax.axhline(100 * chance, **line("before"), alpha=0.5)
    ax.text(steps[-1], 100 * chance - 1.5, "chance", ha="right", va="top")
    ax.set(xlabel="inner steps", ylabel="accuracy on test classes [%]", ylim=(0, 102))
    ax.set_xticks(steps)
    ax.set_title("Before and after meta-training" + _which_data(source))
    return ax


def accuracy_by_statistics(ax: Axes, scores: Mapping[str, tuple[float, float]], chance: float, source: str) -> Axes:
    """One row per source of the batch-norm statistics: mean accuracy with its 95 % interval, and the number beside it.

    scores: name -> (mean, half-width), fractions.
    """
    for row, (name, (mean, half_width)) in enumerate(scores.items()):
        fixed = "running" in name
        ax.errorbar(
            100 * mean,
            row,
            xerr=100 * half_width,
            capsize=5,
            marker="X" if fixed else "o",
            markersize=9,
            color=COLOURS["before"] if fixed else COLOURS["maml"],
        )
        ax.text(101, row, f"{100 * mean:.1f} ± {100 * half_width:.1f}", va="center", ha="left")
    ax.axvline(100 * chance, **line("before"), alpha=0.5)
    ax.text(100 * chance + 1, -0.6, "chance", va="center", ha="left")
    ax.set_yticks(range(len(scores)), list(scores))
    ax.set(xlim=(0, 100), ylim=(len(scores) - 0.5, -0.9), xlabel="accuracy on test classes [%], mean and 95 % interval")
    ax.tick_params(axis="y", length=0)
    ax.grid(axis="x", alpha=0.3)
    ax.set_title("Where batch norm takes its statistics from" + _which_data(source))
    return ax


def leaking_scores(
    ax: Axes,
    clean: Mapping[str, tuple[float, float]],
    leaking: Mapping[str, tuple[float, float]],
    chance: float,
    source: str,
) -> Axes:
    """For each classifier its accuracy on new drawings, and where the queries are the support drawings themselves."""
    for row, name in enumerate(clean):
        (honest, honest_width), (leak, leak_width) = clean[name], leaking[name]
        ax.annotate("", (100 * leak - 2, row), (100 * honest + 2, row), arrowprops=dict(arrowstyle="->", color="0.5"))
        for mean, width, key in ((honest, honest_width, "maml"), (leak, leak_width, "fomaml")):
            ax.errorbar(
                100 * mean, row, xerr=100 * width, capsize=5, markersize=9, **(STYLES[key] | {"linestyle": "none"})
            )
            ax.text(100 * mean, row - 0.14, f"{100 * mean:.0f}", ha="center", va="bottom", color=COLOURS[key])
    first = next(iter(clean))
    ax.text(100 * clean[first][0], 0.14, "new drawings", ha="center", va="top", color=COLOURS["maml"])
    ax.text(100 * leaking[first][0], 0.14, "support drawings", ha="center", va="top", color=COLOURS["fomaml"])
    ax.axvline(100 * chance, **line("before"), alpha=0.5)
    ax.text(100 * chance + 1, -0.6, "chance", va="center", ha="left")
    ax.set_yticks(range(len(clean)), list(clean))
    ax.set(xlim=(0, 106), ylim=(len(clean) - 0.4, -0.8), xlabel="accuracy [%], mean and 95 % interval")
    ax.tick_params(axis="y", length=0)
    ax.set_title("What is asked in the query set" + _which_data(source))
    return ax


def _framed(ax: Axes, column: float, row: float, picture: Tensor, side: str) -> None:
    """A drawing [28, 28], ink = 1, in the unit square whose upper left corner is (column, row)."""
    left, upper, width = column + _GAP / 2, row + _GAP / 2, 1 - _GAP
    pixels = np.asarray(picture.cpu(), dtype=float)
    ax.imshow(
        pixels,
        cmap="gray_r",
        vmin=0,
        vmax=1,
        extent=(left, left + width, upper + width, upper),
        interpolation="nearest",
    )
    ax.add_patch(
        Rectangle(
            (left, upper),
            width,
            width,
            fill=False,
            edgecolor=COLOURS[side],
            linewidth=3,
            linestyle="-" if side == "support" else (0, (3, 1.5)),
        )
    )


def _which_data(source: str) -> str:
    """Nobody shall take synthetic characters for Omniglot."""
    return "" if source == "omniglot" else f" ({source}, not Omniglot)"
