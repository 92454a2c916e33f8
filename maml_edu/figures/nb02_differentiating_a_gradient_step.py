"""Figures of notebook 02: what one gradient step does to nearby starts, and to a gradient that is carried back."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.colors import TwoSlopeNorm
from torch import Tensor

from maml_edu.figures import plane
from maml_edu.figures.style import COLOURS, Look, Picture, apply_style, explore, line, new_axes, points

__all__ = [
    "circle_of_starts",
    "columns",
    "curved_step",
    "forces_on_amplitude",
    "landings",
    "network_jacobian",
    "pulled_back",
    "square_on_contours",
    "square_slider",
    "two_starts",
]

Loss = Callable[[Tensor], Tensor]  # of one θ, a vector
Point = Sequence[float] | np.ndarray  # in the plane

_BEFORE: Look = {**points("before"), "markersize": 9}
_AFTER: Look = {**points("after"), "markersize": 9}
_GREY_LINE: Look = {"color": COLOURS["before"], "linestyle": ":", "linewidth": 1.5}


# ---------------------------------------------------------------- the plane of notebook 01


def circle_of_starts(loss: Loss, task: Sequence[float], circle: Tensor, landed: Tensor) -> Picture:
    """Starts on a circle of the (p, A) plane, and where one step takes them. circle, landed: [n, 2] of (A, p)."""
    before, after = (_numpy(t)[:, ::-1] for t in (circle, landed))  # (p, A): across, up
    spots = np.concatenate([before, after, [(task[1], task[0])]])
    low, high = spots.min(0) - 0.25, spots.max(0) + 0.25
    p, a = (torch.linspace(low[i], high[i], 60, dtype=torch.float64) for i in (0, 1))
    losses = torch.func.vmap(torch.func.vmap(loss))(torch.stack(torch.meshgrid(a, p, indexing="ij"), dim=-1))

    apply_style()
    figure, ax = plt.subplots(figsize=(6.8, 4.4), layout="constrained")
    plane.contours(ax, p, a, losses, float(losses.max()) * np.linspace(0.02, 1, 12) ** 2)
    _arrow(ax, before[:-1].mean(0), after[:-1].mean(0), "black", width=1.4)
    ax.plot(*before.T, color="black", linestyle="--", label="starts θ")
    ax.plot(*after.T, color=COLOURS["after"], linewidth=3, label="their ends φ")
    plane.stars(ax, [task[1]], [task[0]])
    ax.plot([], [], "*", color="white", markeredgecolor="black", markersize=13, label="the task")
    ax.set(xlabel="phase p", ylabel="amplitude A", aspect="equal")
    figure.legend(*ax.get_legend_handles_labels(), loc="outside upper center", ncols=3)
    return Picture(
        figure,
        "The (phase, amplitude) plane, with the support loss of one task as contours. A circle of starts takes one "
        "step towards the task, and the ends lie on a tilted ellipse.",
    )


def columns(jacobian: Tensor, circle: Tensor, landed: Tensor) -> Picture:
    """Left: a nudge in A and a nudge in p. Right: what they become, the columns of the Jacobian, and the ellipse.

    circle, landed: [n, 2] of (A, p), as multiples of the nudge, seen from θ and from φ.
    """
    figure, axes = new_axes(2, height=4.2)
    both = (np.eye(2), _numpy(jacobian))
    reach = 1.35 * max(1.0, np.abs(both[1]).max(), float(landed.abs().max()))
    for ax, matrix, dots, key, name in zip(axes, both, (circle, landed), ("before", "after"), "θφ"):
        turn = np.linspace(0, 2 * math.pi, 200)
        a, p = matrix @ np.stack([np.cos(turn), np.sin(turn)])
        ax.plot(p, a, color=COLOURS[key], linewidth=1.5, label="by the matrix" if key == "after" else None)
        text = "by the step" if key == "after" else None
        ax.plot(*_numpy(dots)[:, ::-1].T, ".", color=COLOURS[key], markersize=6, label=text)
        for column, nudged, colour in zip(matrix.T, "Ap", (COLOURS["maml"], COLOURS["fomaml"])):
            _arrow(ax, (0, 0), column[::-1], colour, width=2.5)
            ax.plot([], [], color=colour, label=f"nudge {nudged}")
        ax.axhline(0, **_GREY_LINE)
        ax.axvline(0, **_GREY_LINE)
        ax.set(xlim=(-reach, reach), ylim=(-reach, reach), aspect="equal", title=f"seen from {name}")
        ax.set(xlabel="change in p", ylabel="change in A")
        ax.label_outer()
    figure.legend(*axes[1].get_legend_handles_labels(), loc="outside lower center", ncols=4)
    return Picture(
        figure,
        "Left, a circle with a nudge in A, straight up, and a nudge in p, to the right. Right, what one step makes of "
        "them: the circle is an ellipse, the nudge in p has shrunk, and the nudge in A leans over.",
    )


def forces_on_amplitude(amplitudes: Tensor, panels: Sequence[tuple[float, Tensor, Tensor]]) -> Picture:
    """The meta-gradient in A along p = π/2 and its two parts. panels: (α, part through A, part through p) of each."""
    figure, axes = new_axes(2, height=4.0)
    for ax, (alpha, by_a, by_p) in zip(axes, panels):
        ax.axhline(0, color=COLOURS["truth"], linewidth=1)
        ax.plot(amplitudes, by_a, label="through the A of φ", **line("fomaml"))
        ax.plot(amplitudes, by_p, label="through the p of φ", **line("reptile"))
        ax.plot(amplitudes, by_a + by_p, label="their sum", **line("maml"))
        ax.set(xlabel="amplitude A, with p = π/2", title=f"α = {alpha:g}", ylim=(-1.8, 3.5))
    axes[0].set_ylabel("slope in A (below 0: turn A up)")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    return Picture(
        figure,
        "The meta-gradient against A, and its two parts, for a short step and a long one. With the short step, the "
        "part through the p of φ is negative and moves the zero of the sum to a larger A. With the long one it's "
        "positive from a small A on, and moves the zero to a smaller A.",
    )


# ---------------------------------------------------------------- one parameter


def two_starts(h: float, c: float, starts: Tensor, landed: Tensor) -> Picture:
    """Left: two starts on ½h(θ − c)² and their steps. Right: φ as a function of θ."""
    before, after = _numpy(starts), _numpy(landed)
    values = np.concatenate([before, after, [c]])
    margin = 0.15 * np.ptp(values) + 0.1
    grid = np.linspace(values.min() - margin, values.max() + margin, 200)
    slope = (after[1] - after[0]) / (before[1] - before[0])

    apply_style()
    figure, axes = plt.subplot_mosaic("LR;SR", figsize=(8, 3.9), height_ratios=[3, 1.1], layout="constrained")
    top, steps, right = axes["L"], axes["S"], axes["R"]
    for ax in (top, steps):
        ax.set(xlim=(grid[0], grid[-1]))
    top.plot(grid, 0.5 * h * (grid - c) ** 2, color=COLOURS["support"])
    top.plot(before, 0.5 * h * (before - c) ** 2, **_BEFORE, label="start θ")
    top.plot(after, 0.5 * h * (after - c) ** 2, **_AFTER, label="end φ")
    top.set(ylabel="support loss", xticks=[], title="one step for two starts")
    top.legend(loc="best")
    for height, start, end in zip((1, 0), before, after):
        _arrow(steps, (start, height), (end, height), COLOURS["truth"], width=1.2)
        steps.plot(start, height, **_BEFORE)
        steps.plot(end, height, **_AFTER)
    steps.set(xlabel="θ and φ", ylim=(-0.6, 1.6), yticks=[])
    steps.spines["left"].set_visible(False)

    right.plot(grid, grid, **_GREY_LINE, label="no step: φ = θ")
    right.plot(grid, after[0] + slope * (grid - before[0]), color=COLOURS["after"], label=f"slope {_digits(slope)}")
    right.plot(before, after, **_AFTER)
    right.plot([before[0], before[1], before[1]], [after[0], after[0], after[1]], color=COLOURS["truth"], linewidth=1.2)
    right.set(xlabel="start θ", ylabel="end φ", title="φ against θ")
    right.legend(loc="best")
    apart = f"{before[1] - before[0]:.2f} apart end {abs(after[1] - after[0]):.2f} apart"
    return Picture(figure, f"Two starts {apart} after one step on a parabola. φ against θ is a straight line.")


def landings(products: Sequence[float], c: float, starts: Tensor) -> Picture:
    """For each value of αh: where one step on ½h(θ − c)² takes a row of starts, θ above and φ below."""
    figure, axes = plt.subplots(1, len(products), figsize=(8, 3.2), layout="constrained", squeeze=False)
    before = _numpy(starts)
    for ax, product in zip(axes[0], products):
        after = c + (1 - product) * (before - c)
        for start, end in zip(before, after):
            _arrow(ax, (start, 1), (end, 0), COLOURS["before"], width=1.2)
        ax.plot(before, np.ones_like(before), **_BEFORE, clip_on=False)
        ax.plot(after, np.zeros_like(after), **_AFTER, clip_on=False)
        ax.axvline(c, color=COLOURS["support"], linestyle=":", linewidth=1.5, zorder=0)
        ax.set(title=f"αh = {product:g}", xlabel="position", ylim=(-0.18, 1.18))
        ax.set_yticks([0, 1], ["φ", "θ"], fontsize=14)
        ax.spines["left"].set_visible(False)
        ax.tick_params(axis="y", length=0)
    factors = ", ".join(f"{1 - p:g} at αh = {p:g}" for p in products)
    return Picture(figure, f"Nine starts above, their ends below. A step multiplies distances by {factors}.")


def curved_step(loss: Loss, alpha: float, places: Sequence[float]) -> Picture:
    """Left: a loss whose curvature changes. Right: φ against θ, with its tangent at each place."""
    ends = min([*places, -1.5]) - 0.2, max([*places, 1.5]) + 0.2
    grid = torch.linspace(*ends, 1021, dtype=torch.float64, requires_grad=True)
    (g,) = torch.autograd.grad(loss(grid).sum(), grid, create_graph=True)
    (h,) = torch.autograd.grad(g.sum(), grid)
    x, after, slopes = (_numpy(t) for t in (grid, grid - alpha * g, 1 - alpha * h))

    figure, (left, right) = new_axes(2, height=3.8)
    left.plot(x, _numpy(loss(grid)), color=COLOURS["support"])
    left.set(xlabel="θ", ylabel="support loss", title="curvature changes with θ")
    right.plot(x, x, **_GREY_LINE)
    right.plot(x, after, color=COLOURS["after"])
    tangent = np.array([-0.3, 0.3])
    for place, marker in zip(sorted(places), "os^Dv"):
        i = int(np.abs(x - place).argmin())
        dot: Look = {"color": COLOURS["truth"], "marker": marker, "markersize": 8}
        left.plot(place, float(loss(grid[i]).detach()), **dot)
        name = f"slope {_digits(slopes[i])} at θ = {_digits(place)}"
        right.plot(place + tangent, after[i] + slopes[i] * tangent, color=COLOURS["truth"], linewidth=3)
        right.plot(place, after[i], linestyle="none", label=name, **dot)
    right.set(xlabel="start θ", ylabel="end φ", title="φ against θ")
    figure.legend(*right.get_legend_handles_labels(), loc="outside lower center", ncols=3)
    return Picture(
        figure,
        "Left, a loss with two valleys. Right, φ against θ, a curve: its slope is above 1 on the hill between the "
        "valleys, and smaller the farther out the step starts.",
    )


# ---------------------------------------------------------------- two parameters


def square_on_contours(hessian: Tensor, start: Tensor, alpha: float) -> Picture:
    """Contours of ½θᵀHθ, a square of starts, and what one step makes of it."""
    apply_style()
    figure, ax = plt.subplots(figsize=(4.8, 4.9), layout="constrained")
    _square(ax, _numpy(hessian), _numpy(start), alpha)
    ax.plot([], [], color=COLOURS["before"], linestyle="--", label="starts θ")
    ax.plot([], [], color=COLOURS["after"], label="their ends φ")
    figure.legend(*ax.get_legend_handles_labels(), loc="outside upper center", ncols=2)
    flat, steep = (_digits(1 - float(alpha) * e) for e in np.linalg.eigvalsh(_numpy(hessian)))
    return Picture(
        figure,
        "A square of starts on the contours of a bowl becomes a parallelogram. Distances are multiplied by "
        f"{steep} along the steep axis and by {flat} along the flat one.",
    )


def square_slider(hessian: Tensor, start: Tensor, alphas: Sequence[float]) -> None:
    """The square and its parallelogram for several α: a slider, and stills where there is none."""

    def draw(alpha: float, ax: Axes) -> None:
        _square(ax, _numpy(hessian), _numpy(start), alpha)

    explore(draw, alphas, "α", "As α grows, the square is squeezed to a line, and beyond that it is turned over.")


def _square(ax: Axes, h: np.ndarray, centre: np.ndarray, alpha: float) -> None:
    jacobian = np.eye(2) - float(alpha) * h
    corners = np.array([[-0.5, -0.5], [0.5, -0.5], [0.5, 0.5], [-0.5, 0.5], [-0.5, -0.5]])
    before, after = centre + corners, (centre + corners) @ jacobian.T
    reach = 1.12 * max(np.abs(before).max(), min(np.abs(after).max(), 2 * np.abs(before).max()))
    _bowl(ax, h, reach)
    for vector in np.linalg.eigh(h)[1].T:
        ax.axline((0, 0), tuple(vector), color=COLOURS["truth"], linewidth=0.8, linestyle=(0, (6, 4)))
    ax.fill(*before.T, facecolor="none", edgecolor=COLOURS["before"], linestyle="--", linewidth=2)
    ax.fill(*after.T, color=COLOURS["after"], alpha=0.25, linewidth=0)
    ax.plot(*after.T, color=COLOURS["after"])
    for corner, landed in zip(before[:4], after[:4]):
        _arrow(ax, corner, landed, COLOURS["before"], width=1.0)
    ax.set(xlim=(-reach, reach), ylim=(-reach, reach), aspect="equal", xlabel="a", ylabel="b")


def pulled_back(hessian: Tensor, start: Tensor, phi: Tensor, target: Tensor, v: Tensor, pulled: Tensor) -> Picture:
    """Left: −v where it is taken, at φ, and at θ beside −(I − αH)v. Right: both along the eigenvectors of H."""
    h, theta, end, goal, grad_v, back = (_numpy(t) for t in (hessian, start, phi, target, v, pulled))
    figure, (left, right) = new_axes(2, height=4.4)
    spots = np.stack([theta, end, goal, theta - back, theta - grad_v, end - grad_v])
    middle, half = (spots.max(0) + spots.min(0)) / 2, 0.6 * np.ptp(spots, axis=0).max()
    _bowl(left, h, np.abs(middle).max() + half)
    left.plot(*np.stack([theta, end], 1), **_GREY_LINE)
    for foot, vector, key, dashes, name in (
        (end, grad_v, "query", "-", "−v at φ"),
        (theta, grad_v, "fomaml", "--", "−v at θ"),
        (theta, back, "maml", "-", "−(I − αH)v at θ"),
    ):
        _arrow(left, foot, foot - vector, COLOURS[key], width=2.5, style=dashes)
        left.plot([], [], color=COLOURS[key], linestyle=dashes, label=name)
    left.plot(*theta, **_BEFORE, label="θ")
    left.plot(*end, **_AFTER, label="φ")
    left.plot(*goal, "*", color=COLOURS["query"], markersize=15, markeredgecolor="black", label="query minimum")
    left.set(aspect="equal", xlabel="a", ylabel="b", title="down the query loss")
    left.set(xlim=middle[0] + [-half, half], ylim=middle[1] + [-half, half])
    figure.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=3)

    vectors = np.linalg.eigh(h)[1]
    vectors = vectors * np.where(vectors.T @ grad_v < 0, -1, 1)  # v then has no negative component
    places = np.arange(2)
    for shift, vector, key, hatch, name in ((-0.2, grad_v, "fomaml", "//", "v"), (0.2, back, "maml", "", "(I − αH)v")):
        parts = (vectors.T @ vector)[::-1]  # steep direction first
        bars = right.bar(places + shift, parts, 0.36, color=COLOURS[key], hatch=hatch, edgecolor="white", label=name)
        right.bar_label(bars, labels=[_digits(part) for part in parts], padding=3)
    right.axhline(0, color=COLOURS["truth"], linewidth=1)
    right.set_xticks(places, ["steep direction", "flat direction"])
    right.set(ylabel="component", title="along the axes of H")
    right.margins(y=0.35)
    right.legend(loc="upper center", ncols=2)
    return Picture(
        figure,
        "Left, two arrows at θ: −v and −(I − αH)v point in different directions. Right, their components: carrying v "
        "back changes its steep component most.",
    )


# ---------------------------------------------------------------- a network


def network_jacobian(jacobian: Tensor, factors: Tensor, blocks: Mapping[str, int]) -> Picture:
    """Left: every entry of ∂φ/∂θ, numbered up to 12 × 12. Right: its eigenvalues. blocks: parameter name -> size."""
    values = _numpy(jacobian)
    largest = max(float(np.abs(values).max()), 1.0)
    apply_style()
    figure, (ax, right) = plt.subplots(1, 2, figsize=(8, 5.4), width_ratios=[4, 1], layout="constrained")
    ax.imshow(values, cmap="PuOr_r", norm=TwoSlopeNorm(0, -largest, largest))
    edges = np.cumsum([0, *blocks.values()])
    for edge in edges[1:-1]:
        ax.axhline(edge - 0.5, color=COLOURS["truth"], linewidth=1.2)
        ax.axvline(edge - 0.5, color=COLOURS["truth"], linewidth=1.2)
    centres = (edges[:-1] + edges[1:] - 1) / 2
    ax.set_xticks(centres, blocks)
    ax.set_yticks(centres, blocks)
    ax.tick_params(length=0)
    ax.set(xlabel="which entry of θ is nudged", ylabel="which entry of φ moves")
    if len(values) <= 12:
        for i, j in np.ndindex(values.shape):
            colour = "white" if abs(values[i, j]) > 0.6 * largest else "black"
            ax.text(j, i, _digits(float(values[i, j])), ha="center", va="center", fontsize=9, color=colour)
    right.plot(np.zeros(len(values)), _numpy(factors), "o", color=COLOURS["after"], alpha=0.6, clip_on=False)
    for name, height in {"stretch": 1.5, "shrink": 0.5, "flip": -0.5}.items():
        right.text(0.3, height, name, va="center").set_in_layout(False)
    for edge in (0, 1):
        right.axhline(edge, color=COLOURS["truth"], linewidth=1)
    right.set(xlim=(-0.3, 1.4), xticks=[], title="1 − αλ")
    right.set(ylim=(min(-1.0, float(factors.min()) - 0.2), max(2.0, float(factors.max()) + 0.2)))
    return Picture(
        figure,
        f"Left, the {values.size} entries of ∂φ/∂θ as a heat map, far from the identity. Right, its eigenvalues on a "
        "vertical axis: below 0 a step flips, between 0 and 1 it shrinks, above 1 it stretches.",
    )


# ---------------------------------------------------------------- pieces


def _numpy(tensor: Tensor) -> np.ndarray:
    return np.asarray(torch.as_tensor(tensor).detach().cpu(), dtype=np.float64)


def _digits(value: float) -> str:
    """Two digits, with a true minus sign and no minus zero."""
    return f"{round(float(value), 2) + 0.0:.2f}".replace("-", "−")


def _arrow(ax: Axes, start: Point, end: Point, colour: str, width: float, style: str = "-") -> None:
    if np.hypot(*np.subtract(end, start)) < 1e-9:
        return
    look: Look = {"arrowstyle": "-|>", "color": colour, "linewidth": width, "linestyle": style}
    ax.annotate("", tuple(end), tuple(start), arrowprops={**look, "shrinkA": 0, "shrinkB": 2, "mutation_scale": 14})


def _bowl(ax: Axes, hessian: np.ndarray, reach: float) -> None:
    axis = np.linspace(-reach, reach, 121)
    grid = np.stack(np.meshgrid(axis, axis), -1)
    height = 0.5 * np.einsum("...i,ij,...j", grid, hessian, grid)
    ax.contour(axis, axis, height, levels=9, colors=COLOURS["support"], linewidths=0.9, alpha=0.8)
