"""Figures of notebook 04: first-order approximations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from torch import Tensor

from maml_edu.evaluation import StepScore
from maml_edu.figures.style import COLOURS, STYLES, Look, line, where_none_diverged

__all__ = [
    "angle_against_alpha",
    "during_training",
    "fixed_points_on_meta_loss",
    "gradients_against_theta",
    "meta_descent",
    "pull_back_factor",
    "scores_with_intervals",
    "taylor_coefficients",
    "three_directions",
    "two_directions",
]

NAMES = {"maml": "MAML", "fomaml": "FOMAML", "reptile": "Reptile", "joint": "joint training"}

# One dash, marker and grey for each number of inner steps, in the order given.
_BY_STEPS: list[Look] = [
    dict(color="#000000", linestyle="-", marker="o"),
    dict(color="#555555", linestyle="--", marker="s"),
    dict(color="#888888", linestyle="-.", marker="^"),
    dict(color="#AAAAAA", linestyle=":", marker="D"),
]

_ON_WHITE: Look = dict(boxstyle="round,pad=0.1", facecolor="white", edgecolor="none", alpha=0.8)  # a label over lines


def three_directions(
    ax: Axes,
    curvature: Sequence[float],
    centres: dict[str, Sequence[float]],
    path: Tensor,
    gradients: dict[str, Tensor],
) -> Axes:
    """Contours of ½Σ h(θ − c)² for support and query, the inner path [K+1, 2], and −gradient of each method at θ.

    Arrows have one common length: only their direction counts.
    """
    points = path.numpy()
    steps = {m: -1.1 * g.numpy() / max(float(g.norm()), 1e-12) for m, g in gradients.items()}
    corners = np.vstack([points, *centres.values(), *(points[0] + step for step in steps.values())])
    low, high = corners.min(0) - 0.5, corners.max(0) + np.array([1.5, 0.4])
    x, y = np.meshgrid(np.linspace(low[0], high[0], 200), np.linspace(low[1], high[1], 200))
    for side, centre in centres.items():
        value = 0.5 * (curvature[0] * (x - centre[0]) ** 2 + curvature[1] * (y - centre[1]) ** 2)
        dashes = "solid" if side == "support" else "dashed"
        ax.contour(x, y, value, levels=[0.1, 0.5, 1.2], colors=COLOURS[side], linewidths=1.3, linestyles=dashes)
        ax.plot(*centre, color=COLOURS[side], marker="+", markersize=11, markeredgewidth=2.5)
        ax.annotate(
            f"{side} minimum",
            (centre[0], centre[1]),
            xytext=(0, -8),
            textcoords="offset points",
            ha="center",
            va="top",
            fontsize=11,
            bbox=_ON_WHITE,
        )
    ax.plot(*points.T, color=COLOURS["after"], marker=".", linewidth=1.5)
    ax.annotate(
        "φ", tuple(points[-1]), xytext=(-4, -16), textcoords="offset points", color=COLOURS["after"], fontsize=14
    )
    ax.annotate("θ", tuple(points[0]), xytext=(-18, -4), textcoords="offset points", fontsize=14)
    for method, step in steps.items():
        tip = points[0] + step
        arrow = dict(arrowstyle="-|>", color=COLOURS[method], linewidth=2.5, linestyle=line(method)["linestyle"])
        ax.annotate(
            "", tuple(tip), tuple(points[0]), arrowprops=arrow | {"shrinkA": 0, "shrinkB": 0, "mutation_scale": 18}
        )
        ax.annotate(
            NAMES[method],
            tuple(tip + 0.07 * step),
            color=COLOURS[method],
            va="center",
            ha="left" if step[0] > 0.3 else "center",
            fontweight="bold",
            bbox=_ON_WHITE,
        )
    ax.set(
        xlim=(low[0], high[0]),
        ylim=(low[1], high[1]),
        xlabel="θ₁  (flat direction)",
        ylabel="θ₂  (steep direction)",
    )
    ax.set_aspect("equal")
    return ax


def two_directions(
    ax: Axes,
    curvature: Sequence[float],
    centre: Sequence[float],
    path: Tensor,
    gradients: Mapping[str, Tensor],
    degrees: float,
    alpha: float,
) -> Axes:
    """The inner path [K+1, 2] on the support loss, −gradient of MAML and FOMAML at θ, and the angle between them.

    One frame of a slider over α: what is shown of the plane depends on θ and the centre only. Arrows have one length.
    """
    points, start = path.numpy(), path[0].numpy()
    reach = 1.3 * np.abs(start - np.asarray(centre)).max()
    x, y = np.meshgrid(*(np.linspace(-reach, reach, 60) + middle for middle in centre))
    value = 0.5 * (curvature[0] * (x - centre[0]) ** 2 + curvature[1] * (y - centre[1]) ** 2)
    ax.contour(x, y, value, levels=[0.1, 0.5, 1.2, 2.2], colors=COLOURS["support"], linewidths=0.9)
    ax.plot(*points.T, color=COLOURS["after"], marker=".", linewidth=1.3)
    for method in ("fomaml", "maml"):
        step = -0.5 * reach * gradients[method].numpy() / max(float(gradients[method].norm()), 1e-12)
        arrow = dict(arrowstyle="-|>", color=COLOURS[method], linewidth=2.5, linestyle=line(method)["linestyle"])
        ax.annotate(
            "", tuple(start + step), tuple(start), arrowprops=arrow | {"shrinkA": 0, "shrinkB": 0, "mutation_scale": 16}
        )
        ax.plot([], [], **line(method), label=NAMES[method])
    ax.annotate("θ", tuple(start), xytext=(-14, -4), textcoords="offset points", fontsize=13)
    if len(points) > 1 and np.abs(points[-1] - start).max() > 0.05 * reach:
        ax.annotate(
            "φ", tuple(points[-1]), xytext=(5, -3), textcoords="offset points", fontsize=13, color=COLOURS["after"]
        )
    ax.set(
        xlim=(centre[0] - reach, centre[0] + 0.25 * reach),
        ylim=(centre[1] - 0.4 * reach, centre[1] + reach),
        xlabel="θ₁ (flat)",
        ylabel="θ₂ (steep)",
        title=f"α = {alpha:g}: {degrees:.0f}°",
    )
    ax.set_aspect("equal")
    ax.legend(loc="upper right", handlelength=1.6)
    return ax


def fixed_points_on_meta_loss(
    ax: Axes, theta: Tensor, meta_loss: Tensor, points: Mapping[str, tuple[float, float]]
) -> Axes:
    """The meta-loss over θ, and for each method the point (θ, meta-loss) where its gradient is zero.

    A point outside the range of theta is left out.
    """
    ax.plot(theta, meta_loss, color=COLOURS["truth"])
    for method, (x, y) in points.items():
        if theta.min() <= x <= theta.max():
            look = STYLES[method] | {"linestyle": "none", "markersize": 11}
            ax.plot([x], [y], **look, label=f"{NAMES[method]}, θ = {x:.3f}".replace("-", "−"))
            ax.vlines(x, 0, y, color=COLOURS[method], linestyle=line(method)["linestyle"], linewidth=1.3)
    ax.legend(loc="upper left")
    ax.set(xlabel="θ", ylabel="meta-loss", ylim=(0, None))
    return ax


def meta_descent(
    ax: Axes, paths: Mapping[str, Sequence[float]], targets: Mapping[str, float], limit: float = 6.0
) -> Axes:
    """θ over the outer steps of each method; a dotted line at each target. Curves are cut where |θ| passes `limit`."""
    for method, path in paths.items():
        values = np.where(np.abs(path) <= limit, path, np.nan)
        ax.plot(values, **line(method))
        inside = np.flatnonzero(np.isfinite(values))
        if not len(inside):
            continue
        last = inside[-1]
        leaves = last < len(values) - 1
        ax.annotate(
            f"{NAMES[method]}{' leaves' if leaves else ''}",
            (last, values[last]),
            xytext=(6, 0),
            textcoords="offset points",
            va="center",
            color=COLOURS[method],
            fontweight="bold",
            annotation_clip=False,
        )
    for method, target in targets.items():
        if abs(target) <= limit:
            ends = (0, len(paths[method]) - 1)
            ax.hlines(target, *ends, color=COLOURS[method], linestyle=":", linewidth=1.3)
    ax.set(xlabel="outer step", ylabel="θ", xlim=(0, max(map(len, paths.values())) * 1.3))
    return ax


def gradients_against_theta(
    ax: Axes, theta: Tensor, gradients: Mapping[str, Tensor], mark: float | None = None
) -> Axes:
    """Each method's meta-gradient over θ; grey where MAML's and FOMAML's differ in sign; `mark`: a θ to point at."""
    ax.axhline(0, color="black", linewidth=1)
    wrong = (gradients["maml"] * gradients["fomaml"] < 0).numpy()
    low = float(min(g.min() for g in gradients.values()))
    high = float(max(g.max() for g in gradients.values()))
    ax.fill_between(theta, low, high, where=wrong, color="#CCCCCC", alpha=0.7, linewidth=0)
    if wrong.any():
        ax.plot([], [], color="#CCCCCC", linewidth=8, label="signs differ")
    for method, gradient in gradients.items():
        ax.plot(theta, gradient, label=NAMES[method], **line(method))
    if mark is not None:
        ax.axvline(mark, color="black", linewidth=1, linestyle=":")
    ax.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3, columnspacing=1.0, handlelength=1.5)
    ax.set(xlabel="θ", ylabel="meta-gradient")
    if high > low:
        ax.set_ylim(low, high)
    return ax


def pull_back_factor(ax: Axes, alpha_h: Tensor, factors: Mapping[int, Tensor]) -> Axes:
    """What the recursion multiplies v by, against αh, one curve for each number of inner steps."""
    ax.axvspan(1, 2, color="#EEEEEE", linewidth=0)
    ax.axhline(0, color="black", linewidth=1)
    ax.axhline(1, **line("fomaml"), label="FOMAML")
    for (steps, factor), look in zip(factors.items(), _BY_STEPS * 3):
        every = max(1, len(alpha_h) // 10)
        look = look | {
            "color": COLOURS["maml"],
            "markersize": 5,
            "markevery": every,
            "label": f"MAML, K = {steps}",
        }
        ax.plot(alpha_h, factor, **look)
    ax.legend(loc="lower left")
    ax.set(xlabel="αh  (step size × curvature)", ylabel="factor on v", xlim=(0, 2), ylim=(-1.15, 1.15))
    return ax


def taylor_coefficients(
    axes: Sequence[Axes],
    steps: Sequence[int],
    measured: Mapping[str, Tensor],
    theory: Mapping[str, Sequence[Sequence[float]]],
    products: Sequence[str],
) -> Sequence[Axes]:
    """One panel per product: its coefficient over K, lines from theory, markers as measured (arrays [K, product]).

    products: names in mathtext without the dollars, such as "H_s g_q".
    """
    # where markers coincide, all can be seen
    looks: dict[str, Look] = {method: {"markersize": size} for method, size in zip(measured, (8, 13, 5))}
    hollow = {"markerfacecolor": "none", "markeredgewidth": 2}
    looks = {method: look | (hollow if method == "fomaml" else {}) for method, look in looks.items()}
    for i, (ax, product) in enumerate(zip(axes, products)):
        for method in measured:
            expected = [row[i] for row in theory[method]]
            ax.plot(steps, expected, **line(method), linewidth=1.3, label=NAMES[method])
            ax.plot(
                steps,
                measured[method][:, i],
                **STYLES[method] | {"linestyle": "none"} | looks[method],
            )
        ax.set(title=f"${product}$", xlabel="inner steps K")
        ax.set_xticks(list(steps))
        ax.axhline(0, color="black", linewidth=0.6, zorder=0)
    axes[0].set_ylabel("coefficient of α")
    handles = [
        ax_line
        for method in measured
        for ax_line in axes[0].plot([], [], **STYLES[method] | looks[method], label=f"{NAMES[method]} (line: theory)")
    ]
    axes[0].figure.legend(handles=handles, loc="outside lower center", ncols=3)
    return axes


def angle_against_alpha(
    axes: Sequence[Axes], alpha: Sequence[float], panels: Mapping[str, Mapping[int, Sequence[float]]]
) -> Sequence[Axes]:
    """Degrees between the first-order and the exact meta-gradient over α, one curve per number of steps.

    panels: title → {K: degrees}; both axes are logarithmic, and all panels share one vertical scale.
    """
    for ax, (title, angles) in zip(axes, panels.items()):
        for (steps, degrees), look in zip(angles.items(), _BY_STEPS * 3):
            ax.plot(alpha, degrees, **look, markersize=5, label=f"K = {steps}")
        ax.set_xscale("log")
        ax.set(title=title, xlabel="inner step size α")
        ax.grid(alpha=0.25)
    every = np.array([d for angles in panels.values() for degrees in angles.values() for d in degrees])
    drawn = every[np.isfinite(every) & (every > 0)]
    for ax in axes:
        ax.set_yscale("log")
        if len(drawn):
            ax.set_ylim(drawn.min() / 2, drawn.max() * 2)
    axes[0].set_ylabel("angle, degrees")
    axes[0].legend(loc="upper left")
    return axes


def during_training(
    ax: Axes,
    iterations: Sequence[int],
    curves: Mapping[str, Sequence[float]],
    ylabel: str,
    level: float | None = None,
) -> Axes:
    """Curves over meta-training, told apart by dash and marker; `level` draws a thin reference line."""
    for (label, values), look in zip(curves.items(), _BY_STEPS * 3):
        ax.plot(iterations, values, **look, markersize=5, label=label)
    if level is not None:
        ax.axhline(level, color="black", linewidth=1, linestyle=":")
    if len(curves) > 1:
        ax.legend(loc="best")
    ax.set(xlabel="meta-training iteration", ylabel=ylabel, ylim=(0, None))
    ax.grid(alpha=0.25)
    return ax


def scores_with_intervals(ax: Axes, scores: Mapping[str, Sequence[StepScore]]) -> Axes:
    """Query loss over inner steps for each method, with 95 % intervals over tasks; scores as `evaluate` returns them.

    Steps at which a task diverged have no mean and are left out.
    """
    for method, of_steps in scores.items():
        x, mean, half = where_none_diverged(of_steps)
        ax.errorbar(x, mean, yerr=half, capsize=3, label=NAMES[method], **STYLES[method] | {"markersize": 5})
    ax.set(xlabel="inner steps at test time", ylabel="mean squared error", ylim=(0, None))
    ax.legend(loc="best")
    ax.grid(alpha=0.25)
    return ax
