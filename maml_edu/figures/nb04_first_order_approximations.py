"""Figures of notebook 04: first-order approximations."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from torch import Tensor

from maml_edu.figures import plane
from maml_edu.figures.style import COLOURS, STYLES, Look, Picture, explore, line, new_axes

__all__ = [
    "direction_slider",
    "meta_loss_slider",
    "orbit_slider",
    "outer_descent",
    "plane_fields",
    "round_trip_slider",
    "two_fields",
    "work_against_alpha",
    "work_left",
]

NAMES = {"maml": "MAML", "fomaml": "FOMAML", "reptile": "Reptile"}
_LOOP: Look = {"color": "black", "linewidth": 1.6}
_DASHES = ("-", "--", "-.", ":")  # one for each number of inner steps
_MARKERS = "osD^"


# ---------------------------------------------------------------- sections 1 and 2


def direction_slider(
    curvature: Sequence[float],
    centre: Sequence[float],
    query_centre: Sequence[float],
    paths: Mapping[float, Tensor],
    gradients: Mapping[float, Mapping[str, Tensor]],
    degrees: Mapping[float, float],
) -> None:
    """A slider over α: the inner path [K+1, 2] on the support loss, and −gradient of MAML and FOMAML at θ.

    A star marks the minimum of the query loss. Arrows have one length. What is shown of the plane depends on θ and
    the centres only.
    """

    def draw(alpha: float, ax: Axes) -> None:
        points, start = paths[alpha].numpy(), paths[alpha][0].numpy()
        reach = 1.3 * np.abs(start - np.asarray(centre)).max()
        x, y = np.meshgrid(*(np.linspace(-reach, reach, 60) + middle for middle in centre))
        value = 0.5 * (curvature[0] * (x - centre[0]) ** 2 + curvature[1] * (y - centre[1]) ** 2)
        ax.contour(x, y, value, levels=[0.1, 0.5, 1.2, 2.2], colors=COLOURS["support"], linewidths=0.9)
        ax.plot(*query_centre, "*", color=COLOURS["query"], markersize=13, label="minimum of the query loss")
        ax.plot(*points.T, color=COLOURS["after"], marker=".", linewidth=1.3)
        for method in ("fomaml", "maml"):
            gradient = gradients[alpha][method]
            step = -0.5 * reach * gradient.numpy() / max(float(gradient.norm()), 1e-12)
            _arrow(ax, start, start + step, method)
            ax.plot([], [], **line(method), label=NAMES[method])
        ax.annotate("θ", tuple(start), xytext=(-14, -4), textcoords="offset points", fontsize=13)
        if len(points) > 1 and np.abs(points[-1] - start).max() > 0.05 * reach:
            look: Look = {"textcoords": "offset points", "fontsize": 13, "color": COLOURS["after"]}
            ax.annotate("φ", tuple(points[-1]), xytext=(5, -3), **look)
        ax.set(
            xlim=(centre[0] - reach, max(centre[0] + 0.25 * reach, query_centre[0] + 0.1 * reach)),
            ylim=(centre[1] - 0.4 * reach, centre[1] + reach),
            xlabel="θ₁ (flat)",
            ylabel="θ₂ (steep)",
            title=f"α = {alpha:g}: {degrees[alpha]:.0f}°",
        )
        ax.set_aspect("equal")
        ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=3, handlelength=1.6)

    text = "MAML's and FOMAML's directions start as one arrow; as α grows, FOMAML's turns away from MAML's"
    explore(draw, list(paths), "α", text)


def meta_loss_slider(theta: Tensor, losses: Mapping[float, Tensor], fixed: Mapping[float, Mapping[str, float]]) -> None:
    """A slider over α: the meta-loss over θ, and on it the θ where each method's gradient is zero.

    A fixed point outside the range of theta is left out.
    """
    lowest = max(float(curve.min()) for curve in losses.values())
    highest = max(1.2 * min(float(curve.max()) for curve in losses.values()), 1.6 * lowest, 1e-3)

    def draw(alpha: float, ax: Axes) -> None:
        ax.plot(theta, losses[alpha], color=COLOURS["truth"], linewidth=1.5)
        for method, x in fixed[alpha].items():
            look = STYLES[method] | {"linestyle": "none", "markersize": 10, "zorder": 5}
            if method == "fomaml":  # hollow, so that MAML's shows where the two meet
                look |= {"markersize": 14, "markerfacecolor": "none", "markeredgewidth": 2.5}
            ax.plot([], [], **look, label=NAMES[method])
            if float(theta.min()) <= x <= float(theta.max()):
                ax.plot([x], [np.interp(x, theta, losses[alpha])], clip_on=False, **look)
        ax.set(xlabel="θ", ylabel="meta-loss", ylim=(0, highest), title=f"α = {alpha:g}")
        ax.legend(loc="upper right", handlelength=1)

    text = "MAML's fixed point is always at the bottom of the meta-loss; FOMAML's moves away from it as α grows"
    explore(draw, list(losses), "α", text)


def outer_descent(paths: Mapping[int, Sequence[float]], limit: float = 6.0) -> Picture:
    """FOMAML's θ over the outer steps, one curve for each number of inner steps K, cut where |θ| passes `limit`."""
    figure, ax = new_axes(height=3.2)
    for (steps, path), dashes in zip(paths.items(), _DASHES):
        values = np.where(np.abs(path) <= limit, path, np.nan)
        ax.plot(values, color=COLOURS["fomaml"], linestyle=dashes, label=f"K = {steps}")
    ax.set(xlabel="outer step", ylabel="θ", ylim=(-limit, limit))
    ax.legend(loc="upper left")
    return Picture(figure, f"FOMAML's θ over the outer steps, for K = {', '.join(map(str, paths))}.")


# ---------------------------------------------------------------- section 3


def two_fields(points: Tensor, arrows: Mapping[str, Tensor], loop: Tensor) -> Picture:
    """Fields over the (w, b) plane, arrows [N, 2] at points [N, 2], with a closed loop of corners [n, 2]."""
    figure, axes = plt.subplots(1, len(arrows), figsize=(8, 4.1), sharey=True, layout="constrained")
    for ax, (method, field) in zip(axes, arrows.items()):
        _field(ax, points, field, method)
        _loop(ax, loop)
        ax.set(title=NAMES[method], xlabel="w")
        ax.set_aspect("equal")
    axes[0].set_ylabel("b")
    return Picture(
        figure,
        "Two fields of arrows on the (w, b) plane with a square. FOMAML's arrows are all vertical: up above the "
        "diagonal, down below it. MAML's point away from the diagonal, at right angles to it.",
    )


def round_trip_slider(points: Tensor, arrows: Tensor, loop: Tensor, sides: Sequence[float]) -> None:
    """A slider over the sides of a loop in FOMAML's field: the trip so far, and the work so far in the title."""
    corners = np.vstack([loop.numpy(), loop.numpy()[:1]])
    totals = np.concatenate([[0.0], np.cumsum(sides)])

    def draw(done: int, ax: Axes) -> None:
        _field(ax, points, arrows, "fomaml")
        _loop(ax, loop, color="#999999")
        ax.plot(*corners[: done + 1].T, **_LOOP | {"linewidth": 4})
        ax.plot(*corners[done], "o", color="black", markersize=11)
        total = f"{totals[done] + 0.0:.2f}".replace("-", "−")
        ax.set(title=f"work so far {total}", xlabel="w", ylabel="b")
        ax.set_aspect("equal")

    stills = list(range(len(corners)))[1:]
    text = f"round the square in FOMAML's field; back at the start, the work is {totals[-1]:.2f}"
    explore(draw, list(range(len(corners))), "sides", text, stills)


def orbit_slider(paths: Mapping[float, Mapping[str, Tensor]], limit: float = 2.0) -> None:
    """A slider over α: where the (w, b) of each method goes, as paths [n, 2] from a common start."""

    def draw(alpha: float, ax: Axes) -> None:
        for method, path in paths[alpha].items():
            ax.plot(*path.numpy().T, **line(method), label=NAMES[method])
        ax.plot(*next(iter(paths[alpha].values()))[0].numpy(), "o", color="black", markersize=7)
        ax.plot(0, 0, "*", markersize=13, markerfacecolor="white", markeredgecolor="black", zorder=6)
        ax.set(xlim=(-limit, limit), ylim=(-limit, limit), xlabel="w", ylabel="b", title=f"α = {alpha:g}")
        ax.set_aspect("equal")
        ax.legend(loc="lower left", handlelength=1.4, fontsize=9)

    text = "MAML goes to the star at every α; FOMAML spirals in, then circles the star, then leaves on a growing spiral"
    explore(draw, list(paths), "α", text, stills=_stills(list(paths)))


# ---------------------------------------------------------------- sections 4 and 5


def plane_fields(
    phases: Tensor, amplitudes: Tensor, losses: Tensor, points: Tensor, arrows: Mapping[str, Tensor], loop: Tensor
) -> Picture:
    """Fields on the (phase, amplitude) plane, uphill, over the loss after one step, with a loop.

    points, loop: (A, p) in rows; arrows: [N, 2] in the same order.
    """
    figure, axes = plt.subplots(1, len(arrows), figsize=(8, 4.2), sharey=True, layout="constrained")
    for ax, (method, field) in zip(axes, arrows.items()):
        ax.contour(
            phases, amplitudes, losses, levels=plane.levels_of(losses, count=9), colors="#AAAAAA", linewidths=0.9
        )
        _field(ax, points.flip(1), field.flip(1), method)
        _loop(ax, loop.flip(1))
        plane.phase_axis(ax)
        ax.set_title(f"uphill for {NAMES[method]}")
        ax.set_aspect("equal")
    axes[0].set_ylabel("amplitude A")
    return Picture(
        figure,
        "Uphill arrows on the (phase, amplitude) plane, over the contours of the loss after one step. MAML's cross "
        "the contours at right angles; many of FOMAML's don't.",
    )


def work_left(truncated: Mapping[int, Sequence[float]], reptile: Mapping[int, float]) -> Picture:
    """The work round the loop. truncated: K -> work with keep = 0 … K; reptile: K -> work."""
    figure, axes = new_axes(2, height=3.4)
    for (steps, works), dashes, marker in zip(truncated.items(), _DASHES, _MARKERS):
        look: Look = {"color": COLOURS["maml"], "linestyle": dashes, "marker": marker}
        axes[0].plot(range(steps + 1), works, label=f"K = {steps}", **look)
        axes[0].plot(0, works[0], marker, color=COLOURS["fomaml"], markersize=9, zorder=5)
    axes[0].set(xlabel="steps kept in the backward pass", ylabel="work round the loop", title="FOMAML → MAML")
    axes[0].set_xticks(range(max(truncated) + 1))
    axes[0].legend()
    axes[1].plot(list(reptile), list(reptile.values()), **STYLES["reptile"])
    axes[1].set(xlabel="inner steps K", title="Reptile")
    axes[1].set_xticks(list(reptile))
    for ax in axes:
        ax.axhline(0, color="black", linewidth=0.8)
    return Picture(
        figure,
        "Left: the work round the loop falls with every step kept in the backward pass, and is zero when all are "
        "kept. Right: for Reptile the work is zero at K = 1 and grows with K.",
    )


def work_against_alpha(alphas: Sequence[float], works: Mapping[str, Sequence[float]]) -> Picture:
    """|work| of FOMAML's field round loops, over α, both axes logarithmic, with a line of slope 1 or 2 through each."""
    figure, ax = new_axes(height=3.6)
    for (name, values), dashes, marker in zip(works.items(), _DASHES, _MARKERS):
        size = np.abs(values)
        look: Look = {"color": COLOURS["fomaml"], "linestyle": dashes, "marker": marker}
        ax.plot(alphas, size, **look, label=name)
    ax.set(xscale="log", yscale="log", xlabel="α", ylabel="|work| round the loop")
    ax.set_xticks(list(alphas), [f"{alpha:g}" for alpha in alphas])
    ax.minorticks_off()
    ax.grid(alpha=0.25)
    ax.legend()
    return Picture(figure, "FOMAML's work round two loops over α, on logarithmic axes; the sines' curve is steeper.")


# ---------------------------------------------------------------- shared


def _arrow(ax: Axes, start: np.ndarray, end: np.ndarray, method: str) -> None:
    look: Look = dict(arrowstyle="-|>", color=COLOURS[method], linewidth=2.5, linestyle=line(method)["linestyle"])
    ax.annotate("", tuple(end), tuple(start), arrowprops=look | {"shrinkA": 0, "shrinkB": 0, "mutation_scale": 16})


def _field(ax: Axes, points: Tensor, arrows: Tensor, method: str) -> None:
    x, y = points.numpy().T
    u, v = arrows.numpy().T
    ax.quiver(x, y, u, v, color=COLOURS[method], angles="xy", width=0.006, pivot="middle")


def _loop(ax: Axes, loop: Tensor, **look: object) -> None:
    """The closed line through the corners, with an arrowhead half-way along each side."""
    corners = np.vstack([loop.numpy(), loop.numpy()[:1]])
    style = _LOOP | look
    ax.plot(*corners.T, **style)
    for start, end in zip(corners, corners[1:]):
        middle = (start + end) / 2
        head: Look = {"arrowstyle": "-|>", "color": style["color"], "mutation_scale": 18, "shrinkA": 0, "shrinkB": 0}
        ax.annotate("", tuple(middle + 0.08 * (end - start)), tuple(middle), arrowprops=head)


def _stills(values: Sequence[float]) -> list[float]:
    """The first, the last, and two in between that are nearer to the end."""
    n = len(values) - 1
    return [values[i] for i in sorted({0, math.ceil(n / 2), max(n - 1, 0), n})]
