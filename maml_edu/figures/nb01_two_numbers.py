"""Figures of notebook 01 in which θ is a point of a plane, and the slider over the network's training."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import matplotlib.pyplot as plt
import torch
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from torch import Tensor

from maml_edu.figures import plane
from maml_edu.figures.nb01_tasks_and_the_bilevel_objective import legend_below, plot_curve, plot_points
from maml_edu.figures.style import COLOURS, Picture, explore, line, new_axes
from maml_edu.tasks import Params, TaskBatch

__all__ = ["ObjectiveMap", "best_of", "eight_curves", "objectives", "slices", "training_slider", "walks"]

_KEYS = ("joint", "maml")  # colours of the two objectives


class ObjectiveMap(NamedTuple):
    """An objective on the plane. losses: [len(amplitudes), len(phases)]; best: its lowest point (A, p)."""

    title: str
    losses: Tensor
    best: tuple[float, float]


def best_of(losses: Tensor, amplitudes: Tensor, phases: Tensor) -> tuple[float, float]:
    """The point (A, p) of the grid where the losses [A, p] are lowest; what isn't finite doesn't count."""
    row, column = divmod(int(losses.nan_to_num(float("inf")).argmin()), len(phases))
    return float(amplitudes[row]), float(phases[column])


def objectives(
    amplitudes: Tensor, phases: Tensor, maps: Sequence[ObjectiveMap], tasks: Params, steps: Sequence[Params]
) -> Picture:
    """Two objectives side by side, each with the inner steps of a few tasks from its lowest point.

    tasks: {"A": [T, 1, 1], "p": …}, the stars. steps: for each map, φ of these tasks in the same form.
    """
    figure, axes = plt.subplots(1, 2, figsize=(8, 4.5), sharey=True, layout="constrained")
    levels = plane.levels_of(*(m.losses for m in maps))
    goals = _points(tasks)
    for ax, key, objective, phi in zip(axes, _KEYS, maps, steps):
        filled = plane.contours(ax, phases, amplitudes, objective.losses, levels)
        amplitude, phase = objective.best
        plane.missing_part(ax, _points(phi), goals)
        plane.arrows(ax, (phase, amplitude), _points(phi), key)
        plane.stars(ax, *zip(*goals))
        plane.point(ax, phase, amplitude, key, size=6)  # small, so that short steps show
        plane.phase_axis(ax)
        ax.set_title(objective.title)
    axes[0].set_ylabel("amplitude A")
    plane.legend_of_steps(figure)
    figure.colorbar(filled, ax=axes, label="mean query loss", format="%.1f", shrink=0.9)
    (a_joint, _), (a_maml, _) = (m.best for m in maps)
    where = "higher up" if a_maml > a_joint + 0.3 else "lower down" if a_maml < a_joint - 0.3 else "at the same place"
    return Picture(
        figure,
        f"Two contour maps of the (phase, amplitude) plane. Left, the loss before the step. Right, the loss after it: "
        f"its minimum lies {where}. From each minimum, one arrow a task shows its step towards its star.",
    )


def slices(amplitudes: Tensor, curves: Mapping[str, Tensor]) -> Picture:
    """Objectives along p = π/2, each with its lowest point marked. curves: name -> losses [len(amplitudes)]."""
    figure, ax = new_axes(height=3.8)
    looks = (line("joint"), line("maml"), line("reptile"), line("fomaml"))
    for look, (name, losses) in zip(looks, curves.items()):
        ax.plot(amplitudes, losses, label=name, **look)
        best = int(losses.nan_to_num(float("inf")).argmin())
        ax.plot(amplitudes[best], losses[best], "o", color=look["color"], markersize=9)
    ax.set(xlabel="amplitude A, with p = π/2", ylabel="mean query loss", ylim=(0, 7.5))
    legend_below(ax, 2)
    return Picture(figure, f"Curves against A, each with its minimum marked: {'; '.join(curves)}.")


def eight_curves(x: Tensor, curves: Sequence[tuple[str, Tensor, Tensor]], truth: Tensor) -> Picture:
    """What the steps do to the curves. curves: title, curve at θ [1, n, 1], curves at φ [T, n, 1]. truth: [T, n, 1]."""
    figure, axes = new_axes(2, height=3.3)
    for ax, key, (title, before, after) in zip(axes, _KEYS, curves):
        for one, target in zip(after, truth):
            plot_curve(ax, x, target, "truth", color="#BBBBBB", linewidth=1)
            plot_curve(ax, x, one, key, linewidth=1.4, linestyle="-")
        plot_curve(ax, x, before, "before", linewidth=2.5)
        ax.set(xlabel="x", ylabel="y", title=title, ylim=(-5.4, 5.4))
        ax.label_outer()
    looks = {"at θ": line("before"), "the tasks": {"color": "#BBBBBB"}}
    looks |= {f"at φ, from {title}": {"color": COLOURS[key]} for key, (title, _, _) in zip(_KEYS, curves)}
    handles = [Line2D([], [], label=label, **look) for label, look in looks.items()]
    figure.legend(handles=handles, loc="outside lower center", ncols=4, fontsize=10)
    return Picture(
        figure,
        "One step from θ for eight tasks. From joint training's θ the eight curves stay close "
        "together; from MAML's θ they spread out towards their tasks.",
    )


def walks(amplitudes: Tensor, phases: Tensor, losses: Tensor, paths: Sequence[Sequence[Params]]) -> Picture:
    """Training runs on the map of the objective they minimise. paths: for each run, its θ along the way."""
    figure, ax = plt.subplots(figsize=(6.6, 4.2), layout="constrained")
    filled = plane.contours(ax, phases, amplitudes, losses, plane.levels_of(losses))
    figure.colorbar(filled, ax=ax, label="mean query loss after the step", format="%.1f", shrink=0.9)
    for path in paths:
        way = [(float(theta["p"]), float(theta["A"])) for theta in path]
        ax.plot(*zip(*way), color=COLOURS["maml"], linewidth=1.5)
        ax.plot(*way[0], "o", color="white", markeredgecolor=COLOURS["maml"], markeredgewidth=2, zorder=6)
        plane.point(ax, *way[-1], "maml")
    plane.phase_axis(ax)
    ax.set(ylabel="amplitude A", title="θ moves: white is the start, blue the end")
    return Picture(figure, "From several starts, training moves θ across the map; the runs end near the minimum.")


def training_slider(
    kept: Mapping[int, Params],
    apply: Callable[[Params, Tensor], Tensor],
    adapt: Callable[[Params], Params],
    task: TaskBatch,
    x: Tensor,
    truth: Tensor,
) -> None:
    """A slider over a training run: the curve at θ and, after one step on the same five points, at φ.

    kept: iteration -> θ. adapt: θ -> φ of this task.
    """

    def draw(iteration: int, ax: Axes) -> None:
        theta = kept[iteration]
        plot_curve(ax, x, truth, "truth", linewidth=1.2, label="new sine")
        plot_curve(ax, x, apply(theta, x), "before", label="at θ")
        plot_curve(ax, x, apply(adapt(theta), x), "after", label="at φ, one step later")
        plot_points(ax, task.support_x[0], task.support_y[0], "support", label="known point")
        ax.set(xlabel="x", ylabel="y", ylim=(-5.4, 5.4), title=f"after {iteration} iterations")
        ax.legend(loc="upper center", fontsize=8, ncols=2)

    explore(
        draw,
        list(kept),
        "iteration",
        "At the start of training one step changes the curve a little. The longer "
        "training runs, the closer one step brings the curve to a sine that training never saw.",
    )


def _points(params: Params) -> list[tuple[float, float]]:
    """(p, A) of every task."""
    return list(zip(torch.flatten(params["p"]).tolist(), torch.flatten(params["A"]).tolist()))
