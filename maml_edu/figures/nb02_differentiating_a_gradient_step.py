"""Figures of notebook 02, differentiating a gradient step, and its table of three ways to the same number."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from html import escape

import numpy as np
import torch
from IPython.display import display
from matplotlib.axes import Axes
from matplotlib.colors import TwoSlopeNorm
from torch import Tensor

from maml_edu.figures.style import COLOURS, Look

__all__ = [
    "comparison_table",
    "curved_step",
    "jacobian_map",
    "landings",
    "largest_differences",
    "pulled_back",
    "scalar_step",
    "square_on_contours",
]

Number = float | Tensor
Point = Sequence[float] | np.ndarray  # in the plane
_SUBSCRIPTS = str.maketrans("0123456789", "₀₁₂₃₄₅₆₇₈₉")


# ---------------------------------------------------------------- the table


def comparison_table(rows: Mapping[str, tuple[Number, Number, Number]]) -> float:
    """Show quantity | by hand | autograd | finite differences | max difference, one line per entry.

    A value of `rows` is (by hand, autograd, finite differences), each a number or a tensor of the same shape.
    A tensor gets one line per entry, and each `{}` in its name takes an index, counted from 1. Returns the
    largest difference between any two columns, for a claim. The table gives differences as a bound, since
    rounding errors vary between machines.
    """
    head = ["quantity", "by hand", "autograd", "finite differences", "max difference"]
    lines, worst = [], 0.0
    for name, columns in rows.items():
        values = _columns(columns)
        for index in np.ndindex(values.shape[1:]):
            entry = values[(slice(None), *index)]
            spread = float(entry.max() - entry.min())
            worst = max(worst, spread) if np.isfinite(spread) else float("nan")
            subscripts = [str(i + 1).translate(_SUBSCRIPTS) for i in index]
            numbers = [f"{round(float(value), 4) + 0.0:.4f}" for value in entry]
            lines.append([name.format(*subscripts), *numbers, _bound(spread)])
    _show_table(head, lines, numbers=1)
    return worst


def largest_differences(rows: Mapping[str, tuple[Number, Number, Number]]) -> float:
    """The same comparison in short: quantity | entries | largest difference of by hand to each of the others.

    Returns the largest of them all, for a claim.
    """
    head = ["quantity", "entries", "by hand and autograd", "by hand and finite differences"]
    lines, worst = [], 0.0
    for name, columns in rows.items():
        values = _columns(columns)
        spread = [float(np.abs(values[0] - other).max()) for other in values[1:]]
        worst = max([worst, *spread]) if np.isfinite(spread).all() else float("nan")
        lines.append([name, str(values[0].size), *map(_bound, spread)])
    _show_table(head, lines, numbers=1)
    return worst


def _columns(columns: Sequence[Number]) -> np.ndarray:
    return np.stack([np.asarray(torch.as_tensor(c).detach().cpu(), dtype=np.float64) for c in columns])


def _bound(difference: float) -> str:
    """`< 1e-9`, or a wider bound; a difference too large to be a rounding error is given in two digits."""
    for bound in ("1e-9", "1e-7", "1e-5"):
        if difference < float(bound):
            return f"< {bound}"
    return f"{difference:.2g}"


def _show_table(head: Sequence[str], lines: Sequence[Sequence[str]], numbers: int) -> None:
    """As HTML, and as aligned text where there is none. Columns from `numbers` on are right-aligned."""
    widths = [max(len(line[column]) for line in [head, *lines]) for column in range(len(head))]
    text = "\n".join(
        "  ".join(
            cell.ljust(width) if column < numbers else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths))
        ).rstrip()
        for line in [head, *lines]
    )

    def row(tag: str, line: Sequence[str]) -> str:
        cells = (
            f'<{tag} style="text-align:{"left" if column < numbers else "right"}">{escape(cell)}</{tag}>'
            for column, cell in enumerate(line)
        )
        return f"<tr>{''.join(cells)}</tr>"

    body = "".join(row("td", line) for line in lines)
    html = f"<table><thead>{row('th', head)}</thead><tbody>{body}</tbody></table>"
    display({"text/html": html, "text/plain": text}, raw=True)


# ---------------------------------------------------------------- one parameter


def scalar_step(axes: Sequence[Axes], h: float, c: float, alpha: float, starts: Sequence[float]) -> Sequence[Axes]:
    """Left: two starts on ½h(θ − c)² and where one step takes them. Right: θ′ as a function of θ."""
    before = np.asarray(starts, dtype=float)
    slope = 1 - alpha * h
    landed = c + slope * (before - c)
    values = np.concatenate([before, landed, [c]])
    margin = 0.2 * (np.ptp(values) or 1.0)
    grid = np.linspace(values.min() - margin, values.max() + margin, 200)

    left, right = axes
    left.plot(grid, 0.5 * h * (grid - c) ** 2, color=COLOURS["support"])
    for start, end in zip(before, landed):
        heights = 0.5 * h * (start - c) ** 2, 0.5 * h * (end - c) ** 2
        _arrow(left, (start, heights[0]), (end, heights[1]), COLOURS["truth"], width=1.2)
        left.plot(start, heights[0], "X", color=COLOURS["before"], markersize=9)
        left.plot(end, heights[1], "P", color=COLOURS["after"], markersize=9)
    left.set(xlabel="θ", ylabel="support loss $L_s$", title="one step for two starts")
    left.plot([], [], "X", color=COLOURS["before"], label="θ")
    left.plot([], [], "P", color=COLOURS["after"], label="θ′")
    left.legend(loc="upper center")

    right.plot(grid, grid, color=COLOURS["before"], linestyle=":", linewidth=1.5)
    right.plot(grid, c + slope * (grid - c), color=COLOURS["after"])
    right.plot(before, landed, "P", color=COLOURS["after"], markersize=9)
    corner = (before[1], landed[0])
    run, rise = before[1] - before[0], landed[1] - landed[0]
    triangle = [before[0], corner[0], corner[0]], [landed[0], corner[1], landed[1]]
    right.plot(*triangle, color=COLOURS["truth"], linewidth=1.2)
    below = -15 if rise >= 0 else 5
    _name(right, f"{run:g}", (before.mean(), landed[0]), (0, below), COLOURS["truth"], ha="center")
    _name(right, _signed(rise), (corner[0], landed.mean()), (6, -4), COLOURS["truth"])
    _name(right, "no step: θ′ = θ", (grid[60], grid[60]), (10, -10), COLOURS["before"])
    right.set(xlabel="start θ", ylabel="adapted θ′", title=f"θ′ against θ: slope 1 − αh = {_signed(slope)}")
    return axes


def landings(axes: Sequence[Axes], products: Sequence[float], c: float, starts: Sequence[float]) -> Sequence[Axes]:
    """For each value of αh: where one step on ½h(θ − c)² takes a row of starts, θ above and θ′ below."""
    before = np.asarray(starts, dtype=float)
    for ax, product in zip(axes, products):
        landed = c + (1 - product) * (before - c)
        for start, end in zip(before, landed):
            _arrow(ax, (start, 1), (end, 0), COLOURS["before"], width=1.2)
        ax.plot(before, np.ones_like(before), "X", color=COLOURS["before"], markersize=8, clip_on=False)
        ax.plot(landed, np.zeros_like(landed), "P", color=COLOURS["after"], markersize=8, clip_on=False)
        ax.axvline(c, color=COLOURS["support"], linestyle=":", linewidth=1.5, zorder=0)
        title = f"αh = {product:g}:  1 − αh = {1 - product:g}".replace("-", "−")
        ax.set(title=title, xlabel="position", ylim=(-0.18, 1.18))
        ax.set_yticks([0, 1], ["θ′", "θ"], fontsize=14)
        ax.spines["left"].set_visible(False)
        ax.tick_params(axis="y", length=0)
    return axes


def curved_step(
    axes: Sequence[Axes], loss: Callable[[Tensor], Tensor], alpha: float, places: Sequence[float]
) -> Sequence[Axes]:
    """Left: a loss whose curvature changes. Right: θ′ against θ, with its tangent at each place."""
    ends = min([*places, -1.7]), max([*places, 1.7])
    grid = torch.linspace(*ends, 1021, dtype=torch.float64, requires_grad=True)
    (g,) = torch.autograd.grad(loss(grid).sum(), grid, create_graph=True)
    (h,) = torch.autograd.grad(g.sum(), grid)
    x, after, slopes = (t.detach().numpy() for t in (grid, grid - alpha * g, 1 - alpha * h))

    left, right = axes
    left.plot(x, loss(grid).detach().numpy(), color=COLOURS["support"])
    left.set(xlabel="θ", ylabel="support loss $L_s$", title="curvature changes with θ")
    right.plot(x, x, color=COLOURS["before"], linestyle=":", linewidth=1.5)
    right.plot(x, after, color=COLOURS["after"])
    span = 0.28
    offsets = [(10, -20, "left"), (-12, 14, "right"), (0, -30, "center")]
    for k, place in enumerate(sorted(places)):
        i = int(np.abs(x - place).argmin())
        dx, dy, ha = offsets[k % 3]
        left.plot(place, float(loss(grid[i]).detach()), "X", color=COLOURS["before"], markersize=9)
        tangent = np.array([-span, span])
        right.plot(place + tangent, after[i] + slopes[i] * tangent, color=COLOURS["truth"], linewidth=3)
        right.plot(place, after[i], "P", color=COLOURS["after"], markersize=9)
        _name(right, f"slope {_signed(slopes[i])}", (place, after[i]), (dx, dy), COLOURS["truth"], ha=ha)
    right.set(xlabel="start θ", ylabel="adapted θ′", title="the slope of θ′ is 1 − αh(θ)")
    return axes


# ---------------------------------------------------------------- two parameters


def square_on_contours(
    ax: Axes, hessian: Tensor, start: Tensor, alpha: float, side: float = 1.0, label: bool = True
) -> Axes:
    """Contours of ½θᵀHθ; a square around `start` and the parallelogram that one step makes of it."""
    h, centre = _numpy(hessian), _numpy(start)
    jacobian = np.eye(2) - alpha * h
    corners = side / 2 * np.array([[-1, -1], [1, -1], [1, 1], [-1, 1], [-1, -1]])
    before, after = centre + corners, (centre + corners) @ jacobian.T
    reach = 1.12 * max(np.abs(before).max(), min(np.abs(after).max(), 2 * np.abs(before).max()))
    _contours(ax, h, reach, COLOURS["support"])
    eigenvalues, vectors = np.linalg.eigh(h)
    for eigenvalue, vector in zip(eigenvalues, vectors.T):
        vector = vector if vector[0] >= 0 else -vector
        ax.axline((0, 0), tuple(vector), color=COLOURS["truth"], linewidth=0.8, linestyle=(0, (6, 4)))
        if label:
            spot = vector * 0.80 * reach / np.abs(vector).max()
            text = f"× {_signed(1 - alpha * eigenvalue)}"
            box = {"facecolor": "white", "edgecolor": "none", "pad": 1.5}
            ax.annotate(text, spot, ha="center", va="center", fontsize=13, bbox=box)
    ax.fill(*before.T, facecolor="none", edgecolor=COLOURS["before"], linestyle="--", linewidth=2)
    ax.fill(*after.T, color=COLOURS["after"], alpha=0.25, linewidth=0)
    ax.plot(*after.T, color=COLOURS["after"])
    for corner, landed in zip(before[:4], after[:4]):
        _arrow(ax, corner, landed, COLOURS["before"], width=1.0)
    _arrow(ax, centre, centre @ jacobian.T, COLOURS["truth"], width=2.0)
    ax.plot(*centre, "X", color=COLOURS["before"], markersize=9)
    ax.plot(*(centre @ jacobian.T), "P", color=COLOURS["after"], markersize=9)
    if label:
        _name(ax, "θ", centre, (-6, 8), COLOURS["before"])
        _name(ax, "θ′", centre @ jacobian.T, (30, 6), COLOURS["after"])
    ax.set(xlim=(-reach, reach), ylim=(-reach, reach), aspect="equal", xlabel="θ₁", ylabel="θ₂")
    return ax


def pulled_back(axes: Sequence[Axes], hessian: Tensor, start: Tensor, target: Tensor, alpha: float) -> Sequence[Axes]:
    """Left: the descent directions −v at θ′, −v and −(I − αH)v at θ. Right: both along the eigenvectors of H.

    v = ∇L_q(θ′). The support loss is ½θᵀHθ, the query loss ½|θ − target|².
    """
    h, theta, minimum = (_numpy(t) for t in (hessian, start, target))
    jacobian = np.eye(2) - alpha * h
    adapted = jacobian @ theta
    v = adapted - minimum
    pulled = jacobian.T @ v
    left, right = axes
    points = np.stack([theta, adapted, minimum, theta - pulled, theta - v])
    middle, half = (points.max(0) + points.min(0)) / 2, 0.62 * np.ptp(points, axis=0).max()
    _contours(left, h, np.abs(middle).max() + half, COLOURS["support"])
    left.plot(*np.stack([theta, adapted], 1), color=COLOURS["before"], linestyle=":", linewidth=1.5)
    _arrow(left, adapted, adapted - v, COLOURS["query"], width=2.5)
    _arrow(left, theta, theta - v, COLOURS["fomaml"], width=2.5, style="--")
    _arrow(left, theta, theta - pulled, COLOURS["maml"], width=2.5)
    left.plot(*theta, "X", color=COLOURS["before"], markersize=9)
    left.plot(*adapted, "P", color=COLOURS["after"], markersize=9)
    left.plot(*minimum, "*", color=COLOURS["query"], markersize=15, markeredgecolor=COLOURS["truth"])
    _name(left, "θ", theta, (-14, 8), COLOURS["before"])
    _name(left, "θ′", adapted, (-4, 10), COLOURS["after"])
    _name(left, "query\nminimum", minimum, (0, 14), COLOURS["truth"], ha="center")
    _name(left, "−v", theta - v, (2, -18), COLOURS["fomaml"], ha="center")
    _name(left, "−(I − αH)v", theta - pulled, (0, -20), COLOURS["maml"], ha="center")
    left.set(aspect="equal", xlabel="θ₁", ylabel="θ₂")
    left.set(xlim=middle[0] + [-half, half], ylim=middle[1] + [-half, half])

    eigenvalues, vectors = np.linalg.eigh(h)
    vectors = vectors * np.where(vectors.T @ v < 0, -1, 1)  # v then has no negative component
    parts = np.stack([vectors.T @ v, vectors.T @ pulled])[:, ::-1]  # steep direction first
    place = np.arange(2)
    for shift, part, key, hatch, name in (
        (-0.2, parts[0], "fomaml", "//", "v"),
        (0.2, parts[1], "maml", "", "(I − αH)v"),
    ):
        bars = right.bar(place + shift, part, 0.36, color=COLOURS[key], hatch=hatch, edgecolor="white", label=name)
        right.bar_label(bars, labels=[_signed(value) for value in part], padding=3)
    right.axhline(0, color=COLOURS["truth"], linewidth=1)
    right.set_xticks(place, [f"steep\nλ = {eigenvalues[1]:.2g}", f"flat\nλ = {eigenvalues[0]:.2g}"])
    right.set(ylabel="component of the gradient")
    right.margins(y=0.16)
    right.legend(loc="best")
    return axes


# ---------------------------------------------------------------- a network


def jacobian_map(ax: Axes, jacobian: Tensor, blocks: Mapping[str, int]) -> Axes:
    """Every entry of ∂θ′/∂θ as a coloured square, numbered up to 12 × 12. blocks: parameter name -> size."""
    values = _numpy(jacobian)
    size = len(values)
    largest = max(float(np.abs(values).max()), 1.0)
    ax.imshow(values, cmap="PuOr_r", norm=TwoSlopeNorm(0, -largest, largest))
    edges = np.cumsum([0, *blocks.values()])
    for edge in edges[1:-1]:
        ax.axhline(edge - 0.5, color=COLOURS["truth"], linewidth=1.2)
        ax.axvline(edge - 0.5, color=COLOURS["truth"], linewidth=1.2)
    centres = (edges[:-1] + edges[1:] - 1) / 2
    ax.set_xticks(centres, blocks)
    ax.set_yticks(centres, blocks)
    ax.tick_params(length=0)
    ax.set(xlabel="θⱼ: which entry of θ was moved", ylabel="θ′ᵢ: which entry of θ′ moves")
    if size <= 12:
        for i, j in np.ndindex(size, size):
            entry = float(values[i, j])
            colour = "white" if abs(entry) > 0.6 * largest else "black"
            ax.text(j, i, _signed(entry), ha="center", va="center", fontsize=11, color=colour)
    for spine in ax.spines.values():
        spine.set_visible(False)
    return ax


# ---------------------------------------------------------------- pieces


def _numpy(tensor: Tensor) -> np.ndarray:
    return np.asarray(torch.as_tensor(tensor).detach().cpu(), dtype=np.float64)


def _signed(value: float) -> str:
    """Two digits, with a true minus sign and no minus zero."""
    return f"{round(float(value), 2) + 0.0:.2f}".replace("-", "−")


def _arrow(ax: Axes, start: Point, end: Point, colour: str, width: float, style: str = "-") -> None:
    if np.hypot(*np.subtract(end, start)) < 1e-9:
        return
    ax.annotate(
        "",
        tuple(end),
        tuple(start),
        arrowprops={
            "arrowstyle": "-|>",
            "color": colour,
            "linewidth": width,
            "linestyle": style,
            "shrinkA": 0,
            "shrinkB": 3,
            "mutation_scale": 14,
        },
    )


def _name(ax: Axes, text: str, spot: Point, offset: tuple[float, float], colour: str, ha: str = "left") -> None:
    box = {"facecolor": "white", "edgecolor": "none", "alpha": 0.75, "pad": 0.8}
    place: Look = {"xytext": offset, "textcoords": "offset points", "ha": ha}
    ax.annotate(text, tuple(spot), color=colour, fontsize=13, bbox=box, **place)


def _contours(ax: Axes, hessian: np.ndarray, reach: float, colour: str) -> None:
    axis = np.linspace(-reach, reach, 121)
    grid = np.stack(np.meshgrid(axis, axis), -1)
    height = 0.5 * np.einsum("...i,ij,...j", grid, hessian, grid)
    ax.contour(axis, axis, height, levels=9, colors=colour, linewidths=0.9, alpha=0.8)
