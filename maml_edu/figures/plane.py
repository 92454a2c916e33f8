"""The plane of two-number models: losses as contours, tasks as stars, inner steps as arrows."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.contour import QuadContourSet
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from torch import Tensor

from maml_edu.figures.style import COLOURS, Look

__all__ = ["arrows", "contours", "legend_of_steps", "levels_of", "missing_part", "phase_axis", "point", "stars"]

PHASE_TICKS = {0.0: "0", math.pi / 2: "π/2", math.pi: "π"}


def levels_of(*maps: Tensor, count: int = 13) -> np.ndarray:
    """Contour levels that several maps share, evenly spaced in the logarithm; what isn't finite is ignored."""
    values = np.concatenate([m.numpy().ravel() for m in maps])
    values = values[np.isfinite(values)]
    low, high = np.quantile(values, [0, 0.97])
    low = max(float(low), 1e-3)
    return np.geomspace(low, max(float(high), 1.01 * low), count)


def contours(ax: Axes, x: Tensor, y: Tensor, losses: Tensor, levels: np.ndarray) -> QuadContourSet:
    """losses: [len(y), len(x)]. Dark is high."""
    filled = ax.contourf(x, y, losses.clamp(max=float(levels[-1]) * 4), levels=levels, cmap="cividis_r", extend="both")
    ax.contour(x, y, losses, levels=levels, colors="white", linewidths=0.5, alpha=0.6)
    ax.set(xlim=(float(x[0]), float(x[-1])), ylim=(float(y[0]), float(y[-1])))
    return filled


def phase_axis(ax: Axes) -> None:
    """The horizontal axis of the (phase, amplitude) plane."""
    ax.set_xticks(list(PHASE_TICKS), list(PHASE_TICKS.values()))
    ax.set_xlabel("phase p")


def stars(ax: Axes, x: Sequence[float], y: Sequence[float]) -> None:
    """Tasks: each is the point whose model solves it."""
    ax.plot(x, y, "*", markersize=13, markerfacecolor="white", markeredgecolor="black", zorder=6, linestyle="none")


def point(ax: Axes, x: float, y: float, key: str, size: float = 11) -> None:
    """A θ, in the colour of its method."""
    edge = size / 6
    ax.plot(
        x,
        y,
        "o",
        markersize=size,
        markerfacecolor=COLOURS[key],
        markeredgecolor="white",
        markeredgewidth=edge,
        zorder=7,
    )


def arrows(ax: Axes, start: tuple[float, float], ends: Sequence[tuple[float, float]], key: str) -> None:
    """From one θ to the φ of every task. start, ends: (x, y)."""
    for end in ends:
        style = {
            "arrowstyle": "-|>,head_length=0.3,head_width=0.15",
            "color": COLOURS[key],
            "lw": 1.6,
            "shrinkA": 0,
            "shrinkB": 0,
        }
        ax.annotate("", end, start, arrowprops=style, zorder=5)


def missing_part(ax: Axes, ends: Sequence[tuple[float, float]], tasks: Sequence[tuple[float, float]]) -> None:
    """Dotted lines from each φ to its task."""
    for end, task in zip(ends, tasks):
        ax.plot(*zip(end, task), ":", color="black", linewidth=0.9, alpha=0.7, zorder=4)


def legend_of_steps(figure: Figure) -> None:
    """What stars, arrows and dotted lines mean, below the panels."""
    star: Look = {"marker": "*", "markersize": 13, "markerfacecolor": "white", "linestyle": "none"}
    handles = [
        Line2D([], [], color="black", label="a task", **star),
        Line2D([], [], color=COLOURS["maml"], label="its step from MAML's θ", marker=">", markevery=[1]),
        Line2D([], [], color=COLOURS["joint"], label="from joint training's θ", marker=">", markevery=[1]),
        Line2D([], [], color="black", linewidth=0.9, linestyle=":", label="what the step leaves"),
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=4, fontsize=10)
