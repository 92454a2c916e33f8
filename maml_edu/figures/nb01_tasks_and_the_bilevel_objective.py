"""Figures of notebook 01: tasks and the bilevel objective."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch
from torch import Tensor

from maml_edu.evaluation import StepScore
from maml_edu.figures.style import COLOURS, Look, figure_of, line, points, where_none_diverged
from maml_edu.tasks import TaskBatch

__all__ = [
    "before_and_after",
    "bilevel_diagram",
    "fine_tuning",
    "fits_of_five_points",
    "joint_prediction",
    "support_and_query_losses",
    "support_points",
    "task_gallery",
]

_RANDOM_START: Look = {
    "color": "#999999",
    "linestyle": (0, (1, 1)),
    "marker": "x",
}  # no method of the series: pale grey


Point = tuple[float, float]


def _flat(values: Tensor) -> np.ndarray:
    return values.detach().flatten().cpu().numpy()


def _plot(ax: Axes, x: Tensor, y: Tensor, key: str, **more: Any) -> None:
    ax.plot(_flat(x), _flat(y), **{**line(key), **more})


def _scatter(ax: Axes, x: Tensor, y: Tensor, key: str, **more: Any) -> None:
    look = {**points(key), "markeredgecolor": "black", "markeredgewidth": 0.8, "zorder": 5, **more}
    ax.plot(_flat(x), _flat(y), **look)


def _sides(batch: TaskBatch, t: int) -> dict[str, tuple[Tensor, Tensor]]:
    return {
        "support": (batch.support_x[t, :, 0], batch.support_y[t]),
        "query": (batch.query_x[t, :, 0], batch.query_y[t]),
    }


def _below(figure: Figure, ax: Axes, columns: int) -> None:
    """One legend for the whole figure, under the panels."""
    figure.legend(*ax.get_legend_handles_labels(), loc="outside lower center", ncols=columns, fontsize=11)


def support_points(ax: Axes, batch: TaskBatch) -> Figure:
    """The support set of the first task and nothing else: what the learner is given."""
    _scatter(ax, *_sides(batch, 0)["support"], "support", markersize=9)
    ax.set(xlabel="x", ylabel="y", xlim=(-5.2, 5.2))
    bound = 1.8 * float(batch.support_y[0].abs().max()) + 0.5
    ax.set_ylim(-bound, bound)
    ax.set_title(f"{batch.support_x.shape[1]} points, curve unknown")
    return figure_of(ax)


def fits_of_five_points(
    axes: Sequence[Axes], batch: TaskBatch, x: Tensor, truth: Tensor, network: Tensor, sine: Tensor
) -> Figure:
    """Left: a network fitted to the support points alone. Right: the best sine through the same points.

    x, truth, network, sine: curves with the same number of entries.
    """
    _plot(axes[0], x, truth, "truth", linewidth=1.2, label="true curve")
    _plot(axes[0], x, network, "after", label="fitted curve")
    _plot(axes[1], x, truth, "truth", linewidth=1.2)
    _plot(axes[1], x, sine, "after", linewidth=4, alpha=0.45)
    bound = 1.8 * float(truth.abs().max()) + 0.2  # the same scale in both panels
    for ax, title in zip(axes, ("a network from a random start", "a sine with two unknowns")):
        _scatter(ax, *_sides(batch, 0)["support"], "support", label="support point")
        ax.set(xlabel="x", ylabel="y", title=title, ylim=(-bound, bound))
        ax.label_outer()
    _below(figure_of(axes[0]), axes[0], 3)
    return figure_of(axes[0])


def support_and_query_losses(ax: Axes, support: Sequence[float], query: Sequence[float]) -> Figure:
    """Both losses while a network is fitted to the support set, on a logarithmic axis, labelled at their ends."""
    steps = range(len(support))
    for key, values in (("support", support), ("query", query)):
        dashes = "-" if key == "support" else "--"
        ax.semilogy(steps, values, color=COLOURS[key], linestyle=dashes)
        ax.annotate(f" {key} loss", (len(values) - 1, values[-1]), va="center", fontsize=12, annotation_clip=False)
    ax.set(xlabel="training step on the support set", ylabel="mean squared error")
    ax.set_xlim(0, max(len(support) - 1, 1))
    return figure_of(ax)


def task_gallery(axes: Sequence[Axes], batch: TaskBatch) -> Figure:
    """One panel per task: its curve, its support and its query points.

    batch: sampled with reveal=True, so that x holds (x, A, phase).
    """
    grid = np.linspace(-5, 5, 200)
    for t, ax in enumerate(axes):
        amplitude, phase = (float(value) for value in batch.support_x[t, 0, 1:])
        ax.plot(grid, amplitude * np.sin(grid - phase), **line("truth") | {"linewidth": 1})
        for key, (x, y) in _sides(batch, t).items():
            _scatter(ax, x, y, key, label=f"{key} points")
        ax.set(xlabel="x", ylabel="y", title=f"A = {amplitude:.1f}, phase = {phase:.1f}", ylim=(-5.4, 5.4))
        ax.label_outer()
    _below(figure_of(axes[0]), axes[0], 2)
    return figure_of(axes[0])


def joint_prediction(ax: Axes, x: Tensor, tasks: Tensor, mean: Tensor, network: Tensor) -> Figure:
    """Curves of single tasks (pale), their mean over p(T), and the one curve that joint training learned.

    tasks: [how many, entries of x].
    """
    for curve in tasks:
        _plot(ax, x, curve, "truth", color="#BBBBBB", linewidth=0.7)
    _plot(ax, x, mean, "truth", linewidth=1.4, label="mean over tasks, E[y | x]")
    _plot(ax, x, network, "joint", linewidth=3.5, label="network after joint training")
    ax.set(xlabel="x", ylabel="y", ylim=(-5.4, 5.4))
    figure_of(ax).legend(loc="outside lower center", ncols=2)
    return figure_of(ax)


def bilevel_diagram(ax: Axes) -> Figure:
    """θ → inner loop on the support set → φ → query loss, and the way back to θ."""
    figure_of(ax).set_size_inches(8, 3.9)
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
    return figure_of(ax)


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


def before_and_after(
    axes: Sequence[Axes],
    batch: TaskBatch,
    x: Tensor,
    truth: Tensor,
    starts: Mapping[str, tuple[Tensor, Tensor]],
) -> Figure:
    """One panel per start: its curve before (θ) and after (φ) adapting to the same support points.

    starts: title -> (curve before, curve after).
    """
    bound = 1.4 * float(truth.abs().max()) + 0.2  # the same scale in both panels
    for ax, (title, (before, after)) in zip(axes, starts.items()):
        _plot(ax, x, truth, "truth", linewidth=1.2, label="true curve")
        _plot(ax, x, before, "before", label="before, θ")
        _plot(ax, x, after, "after", linewidth=2.6, label="after, φ")
        _scatter(ax, *_sides(batch, 0)["support"], "support", label="support point")
        ax.set(xlabel="x", ylabel="y", title=title, ylim=(-bound, bound))
        ax.label_outer()
    _below(figure_of(axes[0]), axes[0], 4)
    return figure_of(axes[0])


def fine_tuning(ax: Axes, scores: Mapping[str, list[StepScore]], floor: float) -> Figure:
    """Query loss against inner steps, with 95 % intervals over tasks, for several starts.

    scores: name -> result of `evaluate`; names "maml" and "joint" have their colours, others are pale grey.
    A step at which a task diverged has no mean and is left out. floor: the best loss without adaptation.
    """
    for name, steps in scores.items():
        look = {**line(name), "marker": points(name)["marker"]} if name in COLOURS else _RANDOM_START
        known, means, half_widths = where_none_diverged(steps)
        ax.errorbar(
            known,
            means,
            [half if math.isfinite(half) else 0 for half in half_widths],
            capsize=3,
            label=f"{name} start"
            if name not in COLOURS
            else {"maml": "MAML start", "joint": "joint start"}.get(name, name),
            **look,
        )
    ax.axhline(floor, **line("truth") | {"linewidth": 1})
    ax.annotate(
        "best without adapting", (0.99, floor), xycoords=("axes fraction", "data"), ha="right", va="bottom", fontsize=11
    )
    ax.set(xlabel="inner steps at test", ylabel="query MSE, mean over tasks")
    ax.set_ylim(bottom=0)
    figure_of(ax).legend(loc="outside lower center", ncols=3)
    return figure_of(ax)
