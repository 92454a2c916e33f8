"""Figures of notebook 10: better inner loops."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter
from torch import Tensor

from maml_edu.figures.style import COLOURS, STYLES, Look, line

__all__ = [
    "adam_slope",
    "backward_norms",
    "curvature_on_the_path",
    "curves_while_training",
    "one_inner_step",
    "scores_side_by_side",
    "step_sizes_by_inner_step",
    "step_sizes_by_parameter",
]

# Plain MAML and FOMAML keep their colours; everything else is told apart by grey, dash and marker.
_OTHERS: list[Look] = [
    dict(color="#000000", linestyle="-.", marker="^"),
    dict(color="#777777", linestyle="-", marker="D"),
    dict(color="#000000", linestyle=":", marker="s"),
    dict(color="#999999", linestyle="--", marker="v"),
    dict(color="#444444", linestyle=(0, (5, 1, 1, 1, 1, 1)), marker="P"),
]
_ON_WHITE: Look = dict(boxstyle="round,pad=0.1", facecolor="white", edgecolor="none", alpha=0.85)


def _looks(labels: Iterable[str]) -> dict[str, Look]:
    """A look for each label: plain MAML ("MAML, …") and FOMAML by meaning, the others in order."""
    others = iter(_OTHERS * 4)
    known = {"MAML": STYLES["maml"], "FOMAML": STYLES["fomaml"]}
    return {label: known.get(label.split(",")[0]) or next(others) for label in labels}


def _plain_powers(ax: Axes) -> None:
    """A logarithmic axis with few labels, written as plain numbers."""
    ax.set_yscale("log")
    ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if _decades(ax) < 2.5 else (1,)))
    ax.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:g}"))
    ax.yaxis.set_minor_formatter(NullFormatter())


def _decades(ax: Axes) -> float:
    low, high = ax.get_ylim()
    return np.log10(high / low) if low > 0 else np.inf


def one_inner_step(axes: Sequence[Axes]) -> Sequence[Axes]:
    """What an inner step carries from left to right: θ alone; θ and m; θ, m and u. All meet the loss in g only."""
    panels = {"plain": (), "momentum": ("m",), "Adam": ("m", "u")}
    for ax, (title, state) in zip(axes, panels.items()):
        rows = {"θ": 0.85} | {name: 0.85 - 0.35 * (i + 1) for i, name in enumerate(state)}
        for name, y in rows.items():
            for x, text in ((0.0, name), (1.0, f"{name}′")):
                ax.text(x, y, text, fontsize=15, ha="center", va="center", bbox=_ON_WHITE)
            _arrow(ax, (0.0, y), (1.0, y))
        ax.text(0.42, 0.5 if not state else 0.68, "g", fontsize=15, ha="center", va="center", bbox=_ON_WHITE)
        g = (0.42, 0.5 if not state else 0.68)
        _arrow(ax, (0.0, 0.85), g, COLOURS["support"])
        for name in state or ("θ",):
            _arrow(ax, g, (1.0, rows[name]), COLOURS["support"])
        if state:
            _arrow(ax, (1.0, rows[state[0]]), (1.0, 0.85), COLOURS["after"])
        if len(state) > 1:
            ax.annotate(
                "",
                (1.06, 0.82),
                (1.06, rows["u"] + 0.03),
                arrowprops=dict(
                    arrowstyle="-|>", color=COLOURS["after"], linewidth=1.8, connectionstyle="arc3,rad=0.35"
                ),
            )
        ax.set(title=title, xlim=(-0.15, 1.3), ylim=(0.0, 1.02))
        ax.axis("off")
    return axes


def _arrow(ax: Axes, start: tuple[float, float], end: tuple[float, float], colour: str = "#666666") -> None:
    arrow = dict(arrowstyle="-|>", color=colour, linewidth=1.8, shrinkA=13, shrinkB=13)
    ax.annotate("", end, start, arrowprops=arrow)


def step_sizes_by_parameter(ax: Axes, alpha: Mapping[str, Tensor], start: float) -> Axes:
    """One row per parameter tensor, one tick per single learned step size; a line where they all started."""
    names = list(alpha)
    for row, name in enumerate(names):
        values = alpha[name].detach().flatten().numpy()
        offset = np.linspace(-0.28, 0.28, len(values)) if len(values) > 1 else np.zeros(1)
        below = values < 0
        for chosen, key in ((~below, "maml"), (below, "fomaml")):
            look = dict(color=COLOURS[key], marker=STYLES[key]["marker"], markersize=3, linestyle="none", alpha=0.6)
            ax.plot(values[chosen], row + offset[chosen], **look)
    ax.axvline(start, **line("truth"), linewidth=1.3)
    ax.annotate("start", (start, -0.75), ha="center", va="bottom", fontsize=11, bbox=_ON_WHITE)
    ax.axvline(0, color="#AAAAAA", linewidth=1, linestyle=":")
    ax.set_yticks(range(len(names)), names)
    ax.set(xlabel="learned rate (squares: below 0)", ylim=(len(names) - 0.5, -0.8))
    return ax


def step_sizes_by_inner_step(ax: Axes, alpha: Sequence[Mapping[str, float]], start: float) -> Axes:
    """The learned step size of every tensor over the inner steps 1 … K."""
    steps = range(1, len(alpha) + 1)
    looks = [STYLES["maml"], STYLES["fomaml"], *_OTHERS]
    for name, look in zip(alpha[0], looks * 2):
        ax.plot(steps, [at[name] for at in alpha], **look, markersize=5, label=name)
    ax.axhline(start, **line("truth"), linewidth=1)
    ax.axhline(0, color="#AAAAAA", linewidth=1, linestyle=":")
    ax.set_xticks(list(steps))
    ax.set(xlabel="inner step", ylabel="learned rate")
    ax.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
    return ax


def curves_while_training(
    ax: Axes, curves: Mapping[str, tuple[Sequence[float], Sequence[float]]], top: float | None = None
) -> Axes:
    """label → (iterations, query loss); values above `top` lie outside the picture."""
    for (label, (x, y)), look in zip(curves.items(), _looks(curves).values()):
        ax.plot(x, y, **look, markersize=5, markevery=max(1, len(x) // 8), label=label)
    ax.set(xlabel="meta-training iteration", ylabel="query loss", ylim=(0, top))
    ax.grid(alpha=0.25)
    ax.legend(loc="upper right")
    return ax


def scores_side_by_side(ax: Axes, scores: Mapping[str, Mapping]) -> Axes:
    """One row per label: mean and 95 % interval; where a task diverged, the median as an open marker.

    scores: label → a step of a stored result (mean, half_width, median, diverged, n), all lower-is-better losses.
    """
    looks = _looks(scores)
    highest = 0.0
    for row, (label, one) in enumerate(scores.items()):
        look = looks[label] | {"linestyle": "none", "markersize": 8}
        if one["mean"] is not None:
            ax.errorbar(one["mean"], row, xerr=one["half_width"], capsize=4, **look)
            right, text = one["mean"] + one["half_width"], f"{one['mean']:.2f}"
        else:
            right = one["median"] if one["median"] is not None else highest
            ax.plot(right, row, **look, markerfacecolor="white")
            text = f"median {right:.2f}, {one['diverged']} of {one['n']} diverged"
        highest = max(highest, right)
        ax.annotate(text, (right, row), xytext=(7, 0), textcoords="offset points", va="center", fontsize=11)
    ax.set_yticks(range(len(scores)), list(scores))
    ax.set(xlim=(0, 1.25 * highest), ylim=(len(scores) - 0.5, -0.5), xlabel="mean squared error on held-out tasks")
    ax.grid(axis="x", alpha=0.25)
    return ax


def adam_slope(ax: Axes, g: Tensor, slopes: Mapping[float, Tensor]) -> Axes:
    """∂(m̂/s)/∂g of Adam's first step over g, one curve for each ε; logarithmic upwards."""
    for (epsilon, slope), look in zip(slopes.items(), _OTHERS):
        ax.plot(g, slope, color=look["color"], linestyle=look["linestyle"], label=f"ε = {epsilon:g}")
    ax.axhline(1, **line("maml"), linewidth=1.5)
    ax.annotate("plain step", (float(g[0]), 1), xytext=(0, 4), textcoords="offset points", color=COLOURS["maml"])
    ax.set_yscale("log")
    ax.set(xlabel="gradient g", ylabel="slope of the step")
    ax.legend(loc="upper right")
    return ax


def backward_norms(ax: Axes, norms: Mapping[str, Tensor]) -> Axes:
    """‖v_j‖/‖v_K‖, median over tasks, against j = K … 0 from left to right; one curve per label, [K + 1] each."""
    for (label, values), look in zip(norms.items(), _OTHERS * 2):
        steps = np.arange(len(values))[::-1]
        ax.plot(steps, values.flip(0), **look, markersize=5, markevery=max(1, len(values) // 6), label=label)
    ax.axhline(1, color="#AAAAAA", linewidth=1)
    ax.invert_xaxis()
    _plain_powers(ax)
    ax.set(xlabel="step j, on the way back", ylabel="length of v, against v at φ")
    ax.legend(loc="best")
    return ax


def curvature_on_the_path(ax: Axes, at: Sequence[int], curvature: Mapping[str, Tensor]) -> Axes:
    """α·λ_max along the inner path, median over tasks, at the steps `at`; above 2 a plain step overshoots and grows."""
    for (label, values), look in zip(curvature.items(), _OTHERS * 2):
        ax.plot(at, values, **look, markersize=5, label=label)
    ax.axhline(2, **line("fomaml"), linewidth=1.5)
    edge: Look = dict(xytext=(0, 3), textcoords="offset points", ha="right", va="bottom")
    ax.annotate("edge", (at[-1], 2), color=COLOURS["fomaml"], **edge)
    ax.set_xscale("symlog", linthresh=1, linscale=0.4)
    ax.set_xlim(-0.2, 1.2 * at[-1])
    ax.set_xticks(list(at), [str(j) for j in at])
    ax.minorticks_off()
    _plain_powers(ax)
    ax.set(xlabel="step j, on the way forward", ylabel="α · largest curvature")
    return ax
