"""Figures of notebook 09: what MAML learned."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from torch import Tensor

from maml_edu.figures.style import COLOURS, Look, line

__all__ = [
    "accuracy_when_frozen",
    "errors_over_steps",
    "fraction_gone",
    "linear_training",
    "loss_along_the_gradient",
    "movement_by_layer",
    "share_of_gradient",
]

Interval = tuple[float, float]  # mean, half-width

# Starts: MAML and joint pre-training as in the whole series; what has no colour there is grey or black.
_STARTS: dict[str, Look] = {
    "random": dict(color=COLOURS["before"], linestyle="--", marker="X", label="random"),
    "joint": dict(**line("joint") | {"marker": "D"}, label="joint pre-training"),
    "maml": dict(**line("maml") | {"marker": "o"}, label="MAML, α = 0.001"),
    "maml 0.01": dict(**line("maml") | {"marker": "s", "linestyle": "-."}, label="MAML, α = 0.01"),
    "averaged": dict(color="#000000", linestyle="-.", marker="v", label="mean of 60 networks"),
}
_NETWORKS: list[Look] = [
    dict(color=COLOURS["maml"], linestyle="-", marker="o"),
    dict(color=COLOURS["maml"], linestyle="--", marker="o", markerfacecolor="white"),
    dict(color="#000000", linestyle=":", marker="s"),
]
_LAYERS = ["#0072B2", "#9ECAE1", "#D55E00"]  # first, second, head: dark, light, dark with hatching
_BARS = {"one layer": ("#AAAAAA", ""), "two layers": (COLOURS["maml"], "//")}


def _of_data(source: str) -> str:
    return "" if source == "omniglot" else f" ({source}, synthetic)"


def loss_along_the_gradient(
    ax: Axes, distances: Tensor, curves: Mapping[str, Tensor], parabolas: Mapping[str, Tensor]
) -> Axes:
    """Mean loss after walking a distance along −g, one curve per start, each with its second-order expansion."""
    top = 1.6 * max(float(values[0]) for values in curves.values())
    for name, values in curves.items():
        look = _STARTS[name]
        ax.plot(distances, values, **{**look, "marker": ""})
        ax.plot(distances, parabolas[name], color=look["color"], linestyle=":", linewidth=1.3)
        lowest = int(values.argmin())
        ax.plot(distances[lowest], values[lowest], color=look["color"], marker=look["marker"])
    ax.plot([], [], color="#000000", linestyle=":", linewidth=1.3, label="second order at θ")
    ax.set(
        xlabel="distance walked along −g  (length in parameter space)",
        ylabel="support loss (MSE), mean over tasks",
        ylim=(0, top),
    )
    ax.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
    return ax


def movement_by_layer(
    axes: Sequence[Axes],
    change: Mapping[str, Sequence[Interval]],
    cka: Mapping[str, Sequence[Interval]],
    baseline: Mapping[str, Sequence[float]],
    source: str,
) -> Sequence[Axes]:
    """Left: relative change of each layer's weights. Right: CKA of its outputs. One mark per network and layer.

    The short bars on the right are the baseline: CKA with the same layer of other networks.
    """
    layers = [*(f"conv {k}" for k in range(1, 5)), "head"]
    for ax, values in zip(axes, (change, cka)):
        for shift, (name, of_layers), look in zip((-0.2, 0.0, 0.2), values.items(), _NETWORKS):
            mean, half = np.array(of_layers).T
            seen = mean > 0
            where = np.arange(len(layers)) + shift
            ax.errorbar(where[seen], mean[seen], half[seen], **{**look, "linestyle": "none"}, capsize=3, label=name)
        ax.set_xticks(range(len(layers)), layers, rotation=30)
    for shift, of_layer in zip((-0.2, 0.0, 0.2), baseline.values()):
        where = np.arange(len(layers)) + shift
        label = "other networks" if shift == 0.2 else ""
        axes[1].hlines(of_layer, where - 0.09, where + 0.09, color="#666666", linewidth=2, label=label)
    axes[0].set(yscale="log", ylabel="|φ − θ| / |θ| of the weights", title="how far it moves" + _of_data(source))
    axes[1].set(ylim=(0, 1.05), ylabel="linear CKA, θ against φ", title="what it computes")
    axes[1].legend(loc="lower left", fontsize=11)
    return axes


def accuracy_when_frozen(ax: Axes, score: Mapping[str, Mapping[str, Interval]], source: str) -> Axes:
    """Accuracy in percent for each network (rows) and each way to use it (marks), with 95 % intervals over tasks."""
    looks: dict[str, Look] = {
        "as trained": dict(color=COLOURS["after"], marker="P"),
        "head only": dict(color=COLOURS["fomaml"], marker="s"),
        "body only": dict(color=COLOURS["maml"], marker="o"),
        "NIL": dict(color="#000000", marker="v", markerfacecolor="white"),
    }
    for row, ways in enumerate(score.values()):
        for place, (way, (mean, half)) in enumerate(ways.items()):
            y = row + 0.18 * (place - 1.5)
            label = way if row == 0 else None
            ax.errorbar(100 * mean, y, xerr=100 * half, **looks[way], linestyle="none", capsize=3, label=label)
    ax.axvline(20, color=COLOURS["before"], linestyle=":", linewidth=1.3)
    ax.set_yticks(range(len(score)), list(score))
    ax.invert_yaxis()
    ax.set(xlim=(10, 102), xlabel="accuracy, % (dotted: chance)", title="5-way, new characters" + _of_data(source))
    ax.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
    return ax


def share_of_gradient(ax: Axes, shares: Mapping[str, Mapping[str, float]]) -> Axes:
    """One bar per start: how the squared gradient divides over the layers."""
    names = [_STARTS[name]["label"] for name in shares]
    layers, left = list(next(iter(shares.values()))), np.zeros(len(shares))
    for layer, colour, hatch in zip(layers, _LAYERS, ("", "", "//")):
        width = 100 * np.array([of_layer[layer] for of_layer in shares.values()])
        label = layer + (" (head)" if layer == layers[-1] else "")
        ax.barh(names, width, left=left, color=colour, hatch=hatch, edgecolor="white", label=label)
        left += width
    ax.invert_yaxis()
    ax.set(xlim=(0, 100), xlabel="share of |g|², %  (mean over tasks)")
    ax.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3)
    return ax


def linear_training(ax: Axes, losses: Mapping[str, Tensor], floor: float) -> Axes:
    """Query loss after one step against the outer iteration, and the floor of a single layer."""
    for name, values in losses.items():
        every = max(1, len(values) // 60)
        means = values[: len(values) // every * every].view(-1, every).mean(1).clamp_min(1e-6)
        dashes = "--" if name == "one layer" else "-"
        colour = "#666666" if name == "one layer" else COLOURS["maml"]
        ax.plot(every * np.arange(len(means)), means, color=colour, linestyle=dashes, label=name)
    ax.axhline(floor, color="#000000", linestyle=":", linewidth=1.3)
    ax.annotate(
        "floor of one layer", (1, floor), xycoords=("axes fraction", "data"), ha="right", va="bottom", fontsize=11
    )
    ax.set(yscale="log", xlabel="outer iteration", ylabel="query loss (cut at 10⁻⁶)", ylim=(5e-7, None))
    ax.legend(loc="center right")
    return ax


def fraction_gone(ax: Axes, curvature: Tensor, gone: Mapping[str, Tensor]) -> Axes:
    """Bars: which fraction of the way to the task's weights the first step goes, in each input direction."""
    where = np.arange(len(curvature))
    for shift, (name, values) in zip((-0.2, 0.2), gone.items()):
        colour, hatch = _BARS[name]
        ax.bar(where + shift, values, 0.38, color=colour, hatch=hatch, edgecolor="white", label=name)
    ax.axhline(1, color="#000000", linestyle=":", linewidth=1.3)
    ax.set_xticks(where, [f"{value:g}" for value in curvature.tolist()])
    ax.set(xlabel="λ, variance of the input", ylabel="fraction of the way in one step", ylim=(0, 1.6))
    ax.legend(loc="upper right", ncols=2, fontsize=11, columnspacing=1, handlelength=1.4)
    return ax


def errors_over_steps(
    axes: Sequence[Axes], marks: Sequence[int], errors: Mapping[int, Mapping[str, Sequence[Interval]]]
) -> Sequence[Axes]:
    """Query MSE against inner steps with 95 % intervals, one panel for each number of shots."""
    where = np.arange(len(marks))
    for ax, (shots, of_starts) in zip(axes, errors.items()):
        for name, values in of_starts.items():
            mean, half = np.array(values).T
            look = _STARTS[name]
            ax.plot(where, mean, **look)
            ax.fill_between(where, np.maximum(mean - half, 1e-3), mean + half, color=look["color"], alpha=0.15)
        ax.set(yscale="log", xlabel="inner steps", title=f"{shots} shots")
        ax.set_xticks(where, [str(mark) for mark in marks])
    means = [mean for of_starts in errors.values() for values in of_starts.values() for mean, _ in values]
    means = [mean for mean in means if np.isfinite(mean) and 0 < mean < 1e3]
    for ax in axes:
        ax.set_ylim(0.6 * min(means, default=0.1), 1.8 * max(means, default=1.0))
    for ax in axes[1:]:
        ax.tick_params(labelleft=False)
    axes[0].set(ylabel="query MSE, mean over tasks")
    handles, labels = axes[0].get_legend_handles_labels()
    axes[0].figure.legend(handles, labels, loc="outside lower center", ncols=4, fontsize=11)
    return axes
