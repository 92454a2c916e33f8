"""Figures of notebook 01: tasks and the bilevel objective."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch
from torch import Tensor

from maml_edu.evaluation import StepScore
from maml_edu.figures.style import COLOURS, Look, Picture, line, new_axes, points, where_none_diverged
from maml_edu.tasks import TaskBatch

__all__ = [
    "bilevel_diagram",
    "fine_tuning",
    "fits_of_five_points",
    "mean_curve",
    "support_and_query_losses",
    "support_points",
    "task_gallery",
]

_RANDOM_START: Look = {"color": "#999999", "linestyle": (0, (1, 1)), "marker": "x"}  # no method of the series: grey


Point = tuple[float, float]


def _flat(values: Tensor) -> np.ndarray:
    return values.detach().flatten().cpu().numpy()


def plot_curve(ax: Axes, x: Tensor, y: Tensor, key: str, **more: Any) -> None:
    """A curve of many points, in the colour of its meaning."""
    ax.plot(_flat(x), _flat(y), **{**line(key), **more})


def plot_points(ax: Axes, x: Tensor, y: Tensor, key: str, **more: Any) -> None:
    """Examples, in the colour and with the marker of their set."""
    look = {**points(key), "markeredgecolor": "black", "markeredgewidth": 0.8, "zorder": 5, **more}
    ax.plot(_flat(x), _flat(y), **look)


def legend_below(ax: Axes, columns: int) -> None:
    """One legend for the whole figure, under the panels."""
    figure = ax.figure
    figure.legend(*ax.get_legend_handles_labels(), loc="outside lower center", ncols=columns, fontsize=11)


def support_points(task: TaskBatch) -> Picture:
    """The support set of the first task and nothing else: what the learner is given."""
    figure, ax = new_axes()
    plot_points(ax, task.support_x[0], task.support_y[0], "support", markersize=9)
    bound = 1.8 * float(task.support_y[0].abs().max()) + 0.5
    shots = task.support_x.shape[1]
    ax.set(xlabel="x", ylabel="y", xlim=(-5.2, 5.2), ylim=(-bound, bound), title="Can you draw the rest?")
    return Picture(figure, f"{shots} points in the plane, with x between −5 and 5, and no curve.")


def fits_of_five_points(task: TaskBatch, x: Tensor, truth: Tensor, network: Tensor, sine: Tensor) -> Picture:
    """Left: a network fitted to the support points alone. Right: the best sine through the same points."""
    figure, axes = new_axes(2, height=3.6)
    for ax, curve, title in zip(axes, (network, sine), ("a network, fitted", "a sine, fitted")):
        plot_curve(ax, x, truth, "truth", linewidth=1.2, label="hidden curve")
        more = {"linewidth": 4, "alpha": 0.45} if curve is sine else {}
        plot_curve(ax, x, curve, "after", label="fit", **more)
        plot_points(ax, task.support_x[0], task.support_y[0], "support", label="known point")
        bound = 1.1 * max(float(y.detach().abs().max()) for y in (1.6 * truth, network, sine))
        ax.set(xlabel="x", ylabel="y", title=title, ylim=(-bound, bound))
        ax.label_outer()
    legend_below(axes[0], 3)
    return Picture(
        figure,
        "Two panels with the same known points. A fitted network passes through the points and misses the "
        "hidden curve elsewhere. A fitted sine covers the hidden curve.",
    )


def support_and_query_losses(losses: Sequence[Point]) -> Picture:
    """(support loss, query loss) while a network is fitted to the support set, on a logarithmic axis."""
    figure, ax = new_axes()
    for key, values in zip(("support", "query"), zip(*losses)):
        ax.semilogy(values, color=COLOURS[key], linestyle="-" if key == "support" else "--")
        ax.annotate(f" {key} loss", (len(values) - 1, values[-1]), va="center", fontsize=12, annotation_clip=False)
    ax.set(xlabel="training step on the support set", ylabel="mean squared error", xlim=(0, max(len(losses) - 1, 1)))
    return Picture(
        figure, "While the network is fitted, the support loss falls by orders of magnitude; the query loss doesn't."
    )


def task_gallery(batch: TaskBatch) -> Picture:
    """One panel per task: its curve, its query points, and on top of them its support points.

    batch: sampled with reveal=True, so that x holds (x, A, phase).
    """
    figure, axes = new_axes(3, height=3.2)
    grid = np.linspace(-5, 5, 200)
    for t, ax in enumerate(axes):
        amplitude, phase = (float(value) for value in batch.support_x[t, 0, 1:])
        ax.plot(grid, amplitude * np.sin(grid - phase), **line("truth") | {"linewidth": 1}, label="the task's curve")
        plot_points(ax, batch.query_x[t, :, 0], batch.query_y[t], "query", label="query points", markersize=5)
        plot_points(ax, batch.support_x[t, :, 0], batch.support_y[t], "support", label="support points", zorder=7)
        ax.set(xlabel="x", ylabel="y", title=f"A = {amplitude:.1f}, p = {phase:.1f}", ylim=(-5.4, 5.4))
        ax.label_outer()
    legend_below(axes[0], 3)
    return Picture(figure, "Three sines of different amplitude and phase, each with its support and query points.")


def mean_curve(x: Tensor, tasks: Tensor, mean: Tensor, network: Tensor, name: str) -> Picture:
    """Curves of single tasks (pale), their mean over p(T), and the curve of a network trained on all of them.

    tasks: [how many, entries of x, 1]. name: what to call the network; "jointly" gives it joint training's colour.
    """
    figure, ax = new_axes(height=3.8)
    for i, curve in enumerate(tasks):
        label = f"{len(tasks)} of the sines" if i == 0 else None
        plot_curve(ax, x, curve, "truth", color="#BBBBBB", linewidth=0.7, label=label)
    plot_curve(ax, x, mean, "truth", linewidth=1.4, label="mean of all sines")
    plot_curve(ax, x, network, "joint" if "joint" in name else "maml", linewidth=3, label=name)
    ax.set(xlabel="x", ylabel="y", ylim=(-5.4, 5.4))
    legend_below(ax, 3)
    return Picture(
        figure, f"Many pale sines, and their mean, which is much flatter. The curve of the {name} is close to the mean."
    )


def bilevel_diagram() -> Picture:
    """θ → inner loop on the support set → φ → query loss, and the outer loop back to θ."""
    figure, ax = plt.subplots(figsize=(8, 3.9), layout="constrained")
    ax.set(xlim=(0, 16), ylim=(0, 7.8))
    ax.axis("off")
    ax.add_patch(  # what happens once per task
        FancyBboxPatch(
            (3.0, 1.75), 12.7, 5.8, boxstyle="round,pad=0,rounding_size=0.3", fc="#F5F5F5", ec="#999999", ls="--"
        )
    )
    ax.text(15.4, 7.15, "once per task", ha="right", va="center", fontsize=11, style="italic", color="#444444")
    task = _box(ax, (6.2, 6.5), 3.2, r"task $\mathcal{T} \sim p(\mathcal{T})$", "#999999")
    support = _box(ax, (6.2, 4.75), 3.0, "support set", COLOURS["support"])
    query = _box(ax, (13.6, 4.75), 3.0, "query set", COLOURS["query"])
    theta = _box(ax, (1.3, 2.9), 1.6, r"$\theta$", COLOURS["before"], size=17)
    inner = _box(
        ax,
        (6.2, 2.9),
        5.0,
        "inner loop, $K$ steps\n" + r"$\theta_{j+1} = \theta_j - \alpha\nabla L_s(\theta_j)$",
        "#999999",
    )
    phi = _box(ax, (10.5, 2.9), 1.6, r"$\varphi$", COLOURS["after"], size=17)
    loss = _box(ax, (13.6, 2.9), 2.6, r"$L_q(\varphi)$", COLOURS["query"], size=15)
    _arrow(ax, task, support, "bottom", "top")
    _arrow(ax, task, query, "right", "top", bend="angle,angleA=0,angleB=90,rad=8")
    _arrow(ax, support, inner, "bottom", "top")
    _arrow(ax, query, loss, "bottom", "top")
    for start, end in ((theta, inner), (inner, phi), (phi, loss)):
        _arrow(ax, start, end, "right", "left")
    _arrow(ax, loss, theta, "bottom", "bottom", COLOURS["maml"], "bar,angle=180,fraction=-0.13", 2.5)
    text = r"outer loop: move $\theta$ so that the mean of $L_q(\varphi)$ over tasks falls"
    ax.text(7.45, 0.42, text, ha="center", va="center", fontsize=12, color=COLOURS["maml"])
    return Picture(
        figure,
        "A task gives a support and a query set. θ and the support set enter the inner loop, which returns φ. "
        "φ and the query set give the query loss. An arrow leads from the query loss back to θ: the outer loop.",
    )


def _box(
    ax: Axes, centre: Point, width: float, text: str, colour: str, size: int = 12, height: float = 1.15
) -> dict[str, Point]:
    """A rounded box; returns its sides, from which arrows start."""
    x, y = centre
    ax.add_patch(
        FancyBboxPatch(
            (x - width / 2, y - height / 2),
            width,
            height,
            boxstyle="round,pad=0,rounding_size=0.25",
            fc="white",
            ec=colour,
            lw=2.2,
        )
    )
    ax.text(x, y, text, ha="center", va="center", fontsize=size)
    return {
        "left": (x - width / 2, y),
        "right": (x + width / 2, y),
        "top": (x, y + height / 2),
        "bottom": (x, y - height / 2),
    }


def _arrow(
    ax: Axes,
    start: dict[str, Point],
    end: dict[str, Point],
    leave: str,
    enter: str,
    colour: str = "black",
    bend: str = "arc3",
    width: float = 1.6,
) -> None:
    ax.add_patch(
        FancyArrowPatch(
            start[leave],
            end[enter],
            arrowstyle="-|>",
            mutation_scale=15,
            connectionstyle=bend,
            color=colour,
            lw=width,
            shrinkA=1,
            shrinkB=1,
        )
    )


def fine_tuning(scores: Mapping[str, list[StepScore]], floor: float) -> Picture:
    """Query loss against inner steps, with 95 % intervals over tasks, for several starts.

    scores: name -> result of `evaluate`; "maml" and "joint" have their colours, others are grey. A step at which a
    task diverged has no mean and is left out. floor: the best loss without adaptation.
    """
    figure, ax = new_axes(height=4.0)
    for name, steps in scores.items():
        look = {**line(name), "marker": points(name)["marker"]} if name in COLOURS else _RANDOM_START
        known, means, half_widths = where_none_diverged(steps)
        bars = [half if math.isfinite(half) else 0 for half in half_widths]
        label = {"maml": "your trained θ", "joint": "jointly trained θ"}.get(name, f"{name} θ")
        ax.errorbar(known, means, bars, capsize=3, label=label, **look)
    ax.axhline(floor, **line("truth") | {"linewidth": 1})
    ax.annotate(
        "best single curve, over all sines",
        (0.99, floor),
        xycoords=("axes fraction", "data"),
        ha="right",
        va="bottom",
        fontsize=11,
    )
    ax.set(xlabel="inner steps on a new task", ylabel="query loss, mean ± 95 %")
    ax.set_ylim(bottom=0)
    legend_below(ax, 3)
    return Picture(
        figure,
        "Query loss on new tasks against inner steps. A random start hardly improves and the jointly trained θ a "
        "little. The meta-trained θ begins beside the jointly trained one and is far lower after one step.",
    )
