"""Figures of notebook 11: implicit gradients."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from torch import Tensor

from maml_edu.evaluation import StepScore
from maml_edu.figures.style import COLOURS, STYLES, Look, figure_of, where_none_diverged

__all__ = [
    "error_against_delta",
    "error_of_both_solves",
    "implicit_and_plain_scores",
    "proximal_minima",
    "solver_error",
    "unrolled_against_implicit",
]

_IMPLICIT: Look = {
    "color": "#332288",
    "linestyle": (0, (3, 1, 1, 1)),
    "marker": "*",
}  # indigo: iMAML, in this module only
_NAMES = {"maml": "MAML", "proximal": "unrolled proximal", "implicit": "iMAML"}
_LOOKS: dict[str, Look] = {
    "maml": STYLES["maml"],
    "proximal": {**STYLES["maml"], "color": "#000000", "linestyle": "--", "marker": "s"},
}
_LOOKS["implicit"] = _IMPLICIT

# One dash, marker and colour for each curve of a picture, in the order given; none of them means a method.
_CURVES: list[Look] = [
    dict(color="#000000", linestyle="-", marker="o"),
    dict(color="#882255", linestyle="--", marker="s"),
    dict(color="#44AA99", linestyle="-.", marker="^"),
    dict(color="#999933", linestyle=":", marker="D"),
]


def proximal_minima(
    ax: Axes,
    curvature: Sequence[float],
    centre: Sequence[float],
    paths: Sequence[tuple[str, Tensor]],
    moved: Tensor,
) -> Axes:
    """Contours of ½Σ h(φ − c)², several named paths [K + 1, 2] that share start and end, and one from a moved θ.

    Two arrows show how far θ was moved, and how far φ* followed.
    """
    every = np.vstack([*(path.numpy() for _, path in paths), moved.numpy(), [centre]])
    low, high = every.min(0) - np.array([0.5, 0.4]), every.max(0) + np.array([0.8, 0.45])
    x, y = np.meshgrid(np.linspace(low[0], high[0], 150), np.linspace(low[1], high[1], 150))
    value = 0.5 * (curvature[0] * (x - centre[0]) ** 2 + curvature[1] * (y - centre[1]) ** 2)
    ax.contour(x, y, value, levels=[0.05, 0.25, 0.7, 1.4, 2.4], colors=COLOURS["support"], linewidths=0.9)
    ax.plot(*centre, color=COLOURS["support"], marker="+", markersize=11, markeredgewidth=2.5, linestyle="none")
    plain = dict(facecolor="white", edgecolor="none", pad=1)
    place: Look = dict(xytext=(0, -18), textcoords="offset points", ha="center", fontsize=11, bbox=plain)
    ax.annotate("support minimum", (centre[0], centre[1]), **place)
    for (label, path), dashes in zip(paths, ("-", "--", ":")):
        ax.plot(*path.numpy().T, color=COLOURS["after"], marker=".", linewidth=1.4, linestyle=dashes, label=label)
    ax.plot(*moved.numpy().T, color=COLOURS["before"], marker=".", linewidth=1.2, linestyle=":", label="from θ moved")
    start, end = paths[0][1][0].numpy(), paths[0][1][-1].numpy()
    for tail, tip, name, offset in (
        (start, moved[0].numpy(), "θ", (-16, -4)),
        (end, moved[-1].numpy(), "φ*", (12, -16)),
    ):
        arrow = dict(arrowstyle="-|>", color="black", linewidth=2.2, shrinkA=0, shrinkB=0, mutation_scale=16)
        ax.annotate("", tuple(tip), tuple(tail), arrowprops=arrow, zorder=5)
        ax.annotate(name, tuple(tail), xytext=offset, textcoords="offset points", fontsize=14)
    ax.set(xlim=(low[0], high[0]), ylim=(low[1], high[1]), xlabel="φ₁  (flat direction)", ylabel="φ₂  (steep)")
    ax.set_aspect("equal")
    ax.legend(loc="upper right", frameon=True, framealpha=1, edgecolor="none")
    return ax


def solver_error(ax: Axes, errors: Mapping[str, Sequence[float]], bounds: Mapping[str, Sequence[float]]) -> Axes:
    """The error of conjugate gradients over the products made, one curve per system, its bound as a thin line."""
    for (label, values), look in zip(errors.items(), _CURVES):
        kept = np.array(values, dtype=float)
        ax.plot(np.where(kept > 0, kept, np.nan), **look, markersize=5, label=label)
        ax.plot(bounds[label], color=look["color"], linestyle=look["linestyle"], linewidth=0.9)
    ax.set_yscale("log")
    ax.set(xlabel="products A·p made", ylabel="error / first error", ylim=(1e-16, 4))
    ax.legend(title="eigenvalues\n(thin: the bound)", loc="center left", bbox_to_anchor=(1.0, 0.5))
    ax.grid(alpha=0.25)
    return ax


def unrolled_against_implicit(
    axes: Sequence[Axes],
    steps: Sequence[int],
    factors: Mapping[str, Sequence[float]],
    norms: Mapping[str, Sequence[float]],
    angles: Mapping[str, Sequence[float]],
) -> Sequence[Axes]:
    """Over K: the factor on v for one curvature; norm and angle of a network's meta-gradients, relative to iMAML's."""
    panels = (
        (factors, "one curvature", "factor on v"),
        (norms, "network: norm", "norm / iMAML's"),
        (angles, "network: angle", "degrees to iMAML"),
    )
    for ax, (curves, title, label) in zip(axes, panels):
        for name, values in curves.items():
            ax.plot(steps, values, **_LOOKS[name], markersize=5)
        ax.set_xscale("log")
        ax.set(xlabel="inner steps K", ylabel=label, title=title, ylim=(0, None))
        ax.grid(alpha=0.25)
    figure_of(axes[0]).set_layout_engine("constrained", w_pad=0.1)
    handles = [axes[0].plot([], [], **_LOOKS[name], label=_NAMES[name])[0] for name in _LOOKS]
    figure_of(axes[0]).legend(handles=handles, loc="outside lower center", ncols=3)
    return axes


def error_of_both_solves(ax: Axes, products: Sequence[int], errors: Mapping[int, Sequence[float]]) -> Axes:
    """Relative error of the meta-gradient over the products of the solver, one curve per number of inner steps."""
    for (steps, values), look in zip(errors.items(), _CURVES):
        ax.plot(products, values, **look, markersize=5)
        ax.annotate(f"K = {steps}", (products[-1], values[-1]), xytext=(8, 0), textcoords="offset points", va="center")
    ax.set_yscale("log")
    ax.set(xlabel="products of the linear solve", ylabel="relative error", xlim=(0, 1.2 * max(products)))
    ax.grid(alpha=0.25)
    return ax


def implicit_and_plain_scores(ax: Axes, scores: Mapping[str, Sequence[StepScore]]) -> Axes:
    """Query loss over inner steps with 95 % intervals over tasks, "maml" and "implicit"; as `evaluate` returns them.

    Steps at which a task diverged have no mean and are left out.
    """
    for method, of_steps in scores.items():
        x, mean, half = where_none_diverged(of_steps)
        ax.errorbar(x, mean, yerr=half, capsize=3, label=_NAMES[method], **_LOOKS[method] | {"markersize": 6})
    ax.set(xlabel="inner steps at test time, each in its own way", ylabel="mean squared error", ylim=(0, None))
    ax.legend(loc="best")
    ax.grid(alpha=0.25)
    return ax


def error_against_delta(ax: Axes, deltas: Sequence[float], errors: Mapping[str, Sequence[float]]) -> Axes:
    """Relative error of a meta-gradient from central differences over δ, one curve per number format, both log."""
    for (label, values), look in zip(errors.items(), _CURVES):
        ax.plot(deltas, values, **look, markersize=5, label=label)
    ax.set_xscale("log")
    ax.set_yscale("log")
    ax.axhline(1, color="black", linewidth=1, linestyle=":")
    ax.set(xlabel="δ, the length of the step to either side", ylabel="relative error")
    ax.legend(loc="best")
    ax.grid(alpha=0.25)
    return ax
