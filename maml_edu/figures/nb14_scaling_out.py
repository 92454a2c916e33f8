"""Figures of notebook 14: scaling out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes

from maml_edu.figures.style import STYLES

__all__ = ["gradient_noise", "memory_by_method", "predicted_and_measured", "scaling_on_paper", "time_against_tasks"]

# Ways to compute the same exact gradient. The recursion keeps MAML's colour; the others are no methods of their own.
_WAYS = {
    "maml": STYLES["maml"],
    "checkpointed": STYLES["after"] | {"linestyle": "-."},
    "unrolled": {"color": "#000000", "linestyle": ":", "marker": "s"},
    "loop over tasks": {"color": "#666666", "linestyle": "--", "marker": "X"},
    "compiled": {"color": "#000000", "linestyle": "-.", "marker": "D"},
}
_NAMES = {"maml": "recursion (maml)", "checkpointed": "recursion, √K kept", "unrolled": "unrolled graph"}
_GREYS = [("#000000", "o", "-"), ("#666666", "s", "--"), ("#999999", "^", "-.")]


def time_against_tasks(
    ax: Axes,
    measured: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    model: tuple[Sequence[float], Sequence[float]],
    crossing: float,
) -> Axes:
    """Milliseconds over tasks, log-log: points as measured, a line for the two-number model, its crossing marked.

    measured: way → (tasks, milliseconds).
    """
    for way, (tasks, ms) in measured.items():
        look = _WAYS[way]
        ax.loglog(tasks, ms, **look | {"linestyle": "none"})
        ax.annotate(
            way,
            (tasks[-1], ms[-1]),
            xytext=(-8, 2),
            textcoords="offset points",
            ha="right",
            color=look["color"],
            bbox=dict(boxstyle="round,pad=0.1", facecolor="white", edgecolor="none"),
        )
    ax.loglog(*model, color=_WAYS["maml"]["color"])
    ax.axvline(crossing, color="black", linewidth=1, linestyle=":")
    low, high = ax.get_ylim()
    ax.set_ylim(low / 1.6, high * 1.3)
    here = (crossing, low / 1.6)
    ax.annotate("overhead ", here, xytext=(-2, 4), textcoords="offset points", ha="right", fontsize=11)
    ax.annotate(" arithmetic", here, xytext=(2, 4), textcoords="offset points", fontsize=11)
    ax.set(xlabel="tasks T", ylabel="one meta-gradient, ms", title="points measured, line model")
    ax.grid(alpha=0.25)
    return ax


def predicted_and_measured(ax: Axes, groups: Mapping[str, tuple[Sequence[float], Sequence[float]]]) -> Axes:
    """Measured over predicted milliseconds, log-log, one marker per group; the diagonal is a perfect prediction."""
    every = [v for pair in groups.values() for values in pair for v in values]
    ends = [min(every) / 1.5, max(every) * 1.5]
    ax.loglog(ends, ends, color="black", linewidth=1, linestyle=":")
    for (name, (predicted, measured)), (colour, marker, _) in zip(groups.items(), _GREYS):
        ax.loglog(predicted, measured, color=colour, marker=marker, linestyle="none", label=name)
    ax.set(xlabel="predicted, ms", ylabel="measured, ms", xlim=ends, ylim=ends, title="maml, other sizes")
    ax.legend(loc="upper left", fontsize=10)
    ax.grid(alpha=0.25)
    return ax


def memory_by_method(
    axes: Sequence[Axes], panels: Mapping[str, tuple[Sequence[int], Mapping[str, tuple[Sequence, Sequence]]]]
) -> Sequence[Axes]:
    """MiB over K: a line as predicted, markers as counted. panels: title → (K, way → (predicted, counted))."""
    for ax, (title, (steps, ways)) in zip(axes, panels.items()):
        for way, (predicted, counted) in ways.items():
            look = _WAYS[way]
            ax.plot(steps, predicted, color=look["color"], linestyle=look["linestyle"])
            ax.plot(steps, counted, color=look["color"], linestyle="none", marker=look["marker"])
            ax.plot([], [], **look, label=_NAMES[way])
        ax.set(title=title, xlabel="inner steps K", ylabel="peak, MiB", ylim=(0, None))
        ax.grid(alpha=0.25)
    axes[0].legend(loc="upper left", fontsize=10)
    return axes


def gradient_noise(
    ax: Axes, tasks: Sequence[int], curves: Mapping[str, tuple[Sequence[float], float]], batch: int
) -> Axes:
    """|error of the mean over T tasks|/|gradient|, log-log: markers as measured, lines √(noise scale/T).

    curves: name → (measured, noise scale). The noise scale is where a line passes 1. `batch`: a meta-batch to mark.
    """
    ends = np.array([min(tasks), max(tasks)], dtype=float)
    for (name, (measured, scale)), (colour, marker, dashes) in zip(curves.items(), _GREYS):
        ax.loglog(tasks, measured, color=colour, marker=marker, linestyle="none")
        ax.loglog(ends, np.sqrt(scale / ends), color=colour, linestyle=dashes)
        ax.plot([], [], color=colour, marker=marker, linestyle=dashes, label=f"{name}: {scale:.0f} tasks")
    ax.axhline(1, color="black", linewidth=1)
    ax.axvline(batch, color="black", linewidth=1, linestyle=":")
    ax.annotate(f"T = {batch}", (batch, ax.get_ylim()[0]), xytext=(4, 4), textcoords="offset points")
    ax.set(xlabel="tasks T in the meta-batch", ylabel="noise / gradient")
    ax.legend(loc="upper right", fontsize=10, title="noise scale, this draw", title_fontsize=10)
    ax.grid(alpha=0.25)
    return ax


def scaling_on_paper(
    axes: Sequence[Axes], workers: Sequence[int], strong: Mapping[str, Sequence], weak: Mapping[str, Sequence]
) -> Sequence[Axes]:
    """Left: speed-up over workers at a fixed meta-batch, and the ideal. Right: efficiency at fixed tasks per worker."""
    axes[0].loglog(workers, workers, color="black", linewidth=1, linestyle=":")
    axes[0].annotate("ideal", (workers[-1], workers[-1]), xytext=(-6, 0), textcoords="offset points", ha="right")
    for ax, curves in zip(axes, (strong, weak)):
        for (name, values), (colour, marker, dashes) in zip(curves.items(), _GREYS):
            ax.plot(workers, values, color=colour, marker=marker, linestyle=dashes, markersize=5, label=name)
        ax.set_xscale("log")
        ax.set_xlabel("workers N")
        ax.grid(alpha=0.25)
    axes[0].set(title="strong: the batch is fixed", ylabel="speed-up")
    axes[1].set(title="weak: tasks per worker fixed", ylabel="efficiency", ylim=(0, 1.05))
    axes[0].legend(loc="upper left", fontsize=10)
    return axes
