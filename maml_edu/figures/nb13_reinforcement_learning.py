"""Figures of notebook 13: reinforcement learning."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from torch import Tensor

from maml_edu.figures.style import COLOURS, STYLES, Look, line

__all__ = [
    "bandit_meta_gradient",
    "estimates_of_gradient",
    "meta_training",
    "returns_after_steps",
    "trajectories_and_goals",
    "trajectories_before_and_after",
]

_STAR: Look = dict(marker="*", markersize=15, linestyle="none", color="#000000", markeredgecolor="white")


def trajectories_and_goals(ax: Axes, states: Tensor, goals: Tensor, half_width: float) -> Axes:
    """Paths [n, H, 2] from the origin, goals [T, 2], and the square the goals come from."""
    for path in states.numpy():
        ax.plot(*path.T, color=COLOURS["before"], linewidth=0.9, alpha=0.8)
    ax.plot([], [], color=COLOURS["before"], label="walks of the untrained policy")
    ax.plot(*goals.numpy().T, **_STAR | {"markersize": 10}, label=f"goals of {len(goals)} tasks")
    side = half_width * np.array([-1, 1, 1, -1, -1])
    ax.plot(side, np.roll(side, 1), color="black", linewidth=1, linestyle=":", label="where goals come from")
    ax.plot(0, 0, "o", color="black", markersize=6)
    ax.set(xlabel="x₁", ylabel="x₂")
    ax.set_aspect("equal")
    ax.legend(loc="center left", bbox_to_anchor=(1.02, 0.5))
    return ax


def trajectories_before_and_after(
    axes: Sequence[Axes], goals: Tensor, before: Tensor, after: Tensor, half_width: float = 0.5
) -> Sequence[Axes]:
    """One panel per goal [2]: paths [T, n, H, 2] before adaptation (dashed) and after it."""
    for ax, goal, first, last in zip(axes, goals.numpy(), before.numpy(), after.numpy()):
        for key, paths in (("before", first), ("after", last)):
            for path in paths:
                ax.plot(*path.T, **line(key) | {"linewidth": 1.2}, alpha=0.75)
        ax.plot(*goal, **_STAR)
        edge = half_width * 1.3
        ax.set(xlim=(-edge, edge), ylim=(-edge, edge), xticks=(-half_width, 0, half_width), xlabel="x₁")
        ax.set_yticks((-half_width, 0, half_width))
        ax.set_aspect("equal")
        ax.label_outer()
    axes[0].set_ylabel("x₂")
    names = {"before": "before: sampled with θ", "after": "after: sampled with φ"}
    handles = [axes[0].plot([], [], **line(key), label=name)[0] for key, name in names.items()]
    handles += axes[0].plot([], [], **_STAR, label="goal")
    axes[0].figure.legend(handles=handles, loc="outside lower center", ncols=3)
    return axes


def meta_training(ax: Axes, curves: Mapping[str, Sequence[float]], level: float | None = None) -> Axes:
    """Return after adaptation over meta-training, one curve per label; `level` draws a dotted reference."""
    looks = [("#000000", "-"), ("#666666", "--"), ("#999999", "-."), ("#BBBBBB", ":")]
    for (label, values), (colour, dashes) in zip(curves.items(), looks * 3):
        ax.plot(values, color=colour, linestyle=dashes, label=label, linewidth=1.5)
    if level is not None:
        ax.axhline(level, **line("oracle"), linewidth=1.3)
        ax.annotate("oracle", (0, level), xytext=(4, -14), textcoords="offset points", color=COLOURS["oracle"])
    ax.set(xlabel="meta-training iteration", ylabel="return after one step", ylim=(None, 2))
    ax.legend(loc="lower right")
    ax.grid(alpha=0.25)
    return ax


def returns_after_steps(
    ax: Axes,
    curves: Mapping[str, Sequence[tuple[float, float | None]]],
    keys: Mapping[str, str],
    level: float,
    names: Mapping[str, str] | None = None,
) -> Axes:
    """Return over inner steps: label → (mean, half-width or None) per step; keys: label → colour key. level: oracle.

    names: what the legend calls a label, if not by itself; curves of the same name share one entry.
    Curves without half-widths (published numbers) are drawn hollow and thin.
    """
    names, shown = names or {}, set()
    for label, values in curves.items():
        steps = [i for i, (mean, _) in enumerate(values) if mean is not None]
        mean, half = [values[i][0] for i in steps], [h for i in steps if (h := values[i][1]) is not None]
        name = names.get(label, label)
        look = STYLES[keys[label]] | {"label": name if name not in shown else None}
        shown.add(name)
        if len(half) < len(steps):
            ax.plot(steps, mean, **look | {"markerfacecolor": "white", "linewidth": 1, "alpha": 0.8})
        else:
            ax.errorbar(steps, mean, yerr=half, capsize=3, **look | {"markersize": 6})
    ax.axhline(level, **line("oracle"), linewidth=1.3, label="told the goal (computed)")
    ax.set(xlabel="inner steps at test time", ylabel="return", xticks=range(max(map(len, curves.values()))))
    ax.legend(loc="center left", bbox_to_anchor=(1.01, 0.5))
    ax.grid(alpha=0.25)
    return ax


def bandit_meta_gradient(
    ax: Axes,
    theta: Tensor,
    exact: Tensor,
    points: Mapping[str, tuple[Sequence[float], Sequence[float], Sequence[float]]],
    looks: Mapping[str, str],
) -> Axes:
    """The expected meta-gradient over θ (line), and estimators: label → (θ, mean, 95 % half-width)."""
    ax.axhline(0, color="black", linewidth=0.8)
    ax.plot(theta, exact, **line("truth"), label="expected (closed form)")
    for label, (x, mean, half) in points.items():
        look = STYLES[looks[label]] | {"linestyle": "none", "markersize": 7}
        if look["marker"] == "s":  # hollow and larger: another marker may lie on the same point
            look |= {"markersize": 12, "markerfacecolor": "none", "markeredgewidth": 1.8}
        ax.errorbar(x, mean, yerr=half, capsize=2, label=label, **look)
    ax.set(xlabel="θ − goal", ylabel="meta-gradient")
    ax.legend(loc="center left", bbox_to_anchor=(1.01, 0.5))
    ax.grid(alpha=0.25)
    return ax


def estimates_of_gradient(ax: Axes, estimates: Mapping[str, Tensor], exact: float, looks: Mapping[str, str]) -> Axes:
    """Histograms of gradient estimates, label → many values, and the exact gradient as a vertical line."""
    values = np.concatenate([e.numpy() for e in estimates.values()])
    low, high = np.quantile(values, (0.002, 0.998))
    bins = np.linspace(low, high, 60).tolist()
    for label, e in estimates.items():
        ax.hist(e.numpy(), bins, density=True, histtype="step", label=label, linewidth=2, **_of_hist(looks[label]))
    ax.axvline(exact, color="black", linewidth=1.3, linestyle=":")
    ax.margins(y=0.15)  # room for the word above the highest bar
    ax.annotate("exact", (exact, 0.97), xycoords=("data", "axes fraction"), xytext=(5, -10), textcoords="offset points")
    ax.set(xlabel="estimate of ∂J/∂θ", ylabel="density")
    ax.legend(loc="center left", bbox_to_anchor=(1.01, 0.5))
    return ax


def _of_hist(key: str) -> Look:
    return {"color": COLOURS[key], "linestyle": line(key)["linestyle"]}
