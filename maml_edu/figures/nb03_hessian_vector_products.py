"""Figures of notebook 03: Hessian-vector products and the recursion."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from torch import Tensor

from maml_edu.figures.style import COLOURS, Look

__all__ = ["block_diagonal_hessian", "cost_against_parameters", "difference_error", "memory_against_steps", "recursion"]

# One look for each of the quantities that 03 compares; dash and marker carry it in greyscale.
_ROUTES: dict[str, Look] = {
    "gradient": dict(color=COLOURS["before"], linestyle="--", marker="X"),
    "Hessian-vector product": dict(color=COLOURS["maml"], linestyle="-", marker="o"),
    "dense Hessian": dict(color=COLOURS["fomaml"], linestyle="-.", marker="s"),
    "recursion": dict(color=COLOURS["maml"], linestyle="-", marker="o"),
    "unrolled": dict(color=COLOURS["fomaml"], linestyle="-.", marker="s"),
}


def block_diagonal_hessian(ax: Axes, hessian: Tensor, tasks: int) -> Axes:
    """The Hessian [T·P, T·P] of the summed loss of T tasks, each with its own P parameters; colour = log₁₀|entry|."""
    size = hessian.shape[0]
    magnitude = np.log10(np.maximum(hessian.abs().numpy(), 1e-6))
    image = ax.imshow(magnitude, cmap="Greys", vmin=-4, interpolation="nearest")
    for t in range(1, tasks):
        ax.axhline(t * size / tasks - 0.5, color=COLOURS["maml"], linewidth=1)
        ax.axvline(t * size / tasks - 0.5, color=COLOURS["maml"], linewidth=1)
    ticks = [(t + 0.5) * size / tasks - 0.5 for t in range(tasks)]
    ax.set_xticks(ticks, [f"task {t + 1}" for t in range(tasks)])
    ax.set_yticks(ticks, [f"task {t + 1}" for t in range(tasks)], rotation=90, va="center")
    ax.tick_params(length=0)
    ax.spines[["top", "right"]].set_visible(True)
    ax.figure.colorbar(image, ax=ax, label="log₁₀ |entry|", shrink=0.85)
    return ax


def difference_error(ax: Axes, epsilon: Sequence[float], errors: dict[str, Sequence[float]]) -> Axes:
    """Relative error of central differences against ε, one curve per label, log-log."""
    looks: list[Look] = [
        dict(color=COLOURS["maml"], linestyle="-", marker="o"),
        dict(color=COLOURS["fomaml"], linestyle="--", marker="s"),
        dict(color=COLOURS["reptile"], linestyle="-.", marker="^"),
    ]
    for (label, error), look in zip(errors.items(), looks):
        ax.loglog(epsilon, error, label=label, markersize=5, **look)
    ax.set_xlabel("ε (length of the step along v)")
    ax.set_ylabel("relative error of H v")
    ax.legend(loc="best")
    ax.grid(alpha=0.25)
    return ax


def cost_against_parameters(ax: Axes, parameters: Sequence[int], seconds: dict[str, Sequence[float]]) -> Axes:
    """Milliseconds against the number of parameters, log-log, labelled at the right end of each curve."""
    for label, times in seconds.items():
        ax.loglog(parameters, [1e3 * t for t in times], **_ROUTES[label])
        _label_end(ax, label, parameters[-1], 1e3 * times[-1])
    ax.set_xlabel("parameters")
    ax.set_ylabel("time, ms")
    ax.set_xlim(parameters[0] * 0.8, parameters[-1] * 14)
    ax.grid(alpha=0.25)
    return ax


def memory_against_steps(ax: Axes, steps: Sequence[int], mebibytes: dict[str, Sequence[float]]) -> Axes:
    """Peak of what autograd keeps, plus the stored θ_j, against the number of inner steps."""
    for label, size in mebibytes.items():
        ax.plot(steps, size, **_ROUTES[label])
        _label_end(ax, label, steps[-1], size[-1])
    ax.set_xlabel("inner steps K")
    ax.set_ylabel("memory, MiB")
    ax.set_xlim(0, steps[-1] * 1.35)
    ax.set_ylim(bottom=0)
    ax.grid(alpha=0.25)
    return ax


def _label_end(ax: Axes, label: str, x: float, y: float) -> None:
    """The name of a curve at its right end, in its colour."""
    at: Look = dict(xytext=(8, 0), textcoords="offset points", va="center")
    ax.annotate(label, (x, y), color=_ROUTES[label]["color"], **at)


def recursion(ax: Axes, steps: int) -> Axes:
    """The path θ_0 … θ_K above, and v on its way back below, with the Hessian each step needs between them."""
    shown = list(range(steps + 1)) if steps <= 4 else [0, 1, 2, steps - 1, steps]
    for i, j in enumerate(shown):
        name = f"$\\theta_{{{j}}}=\\varphi$" if j == steps else f"$\\theta_{{{j}}}$"
        ax.text(i, 1, name, ha="center", va="center", fontsize=15, bbox=_box("after" if j == steps else "before"))
        ax.text(i, 0, f"$v_{{{j}}}$", ha="center", va="center", fontsize=15, bbox=_box("maml"))
    for i, (a, b) in enumerate(zip(shown[:-1], shown[1:])):
        middle = i + 0.5
        if b - a > 1:
            ax.text(middle, 1, "…", ha="center", va="center", fontsize=18)
            ax.text(middle, 0, "…", ha="center", va="center", fontsize=18)
            continue
        ax.annotate("", (i + 0.72, 1), (i + 0.24, 1), arrowprops=_arrow("before"))
        ax.text(middle, 1.2, f"$-\\alpha\\nabla L_s(\\theta_{{{a}}})$", ha="center", fontsize=11)
        ax.annotate("", (i + 0.24, 0), (i + 0.76, 0), arrowprops=_arrow("maml"))
        ax.text(middle, -0.28, f"$-H_{{{a}}}(\\alpha v_{{{b}}})$", ha="center", fontsize=11)
        ax.annotate("", (i + 0.5, 0.08), (i + 0.06, 0.76), arrowprops={**_arrow("support"), "linestyle": "--"})
        ax.text(i + 0.38, 0.5, f"$H_{{{a}}}$", color="#8A5F00", fontsize=12)
    end = len(shown) - 1
    ax.annotate("", (end, 0.26), (end, 0.72), arrowprops=_arrow("query"))
    ax.text(end + 0.08, 0.5, "$\\nabla L_q(\\varphi)$", fontsize=12, va="center")
    ax.text(-0.55, 1, "forward", ha="right", va="center")
    ax.text(-0.55, 0, "backward", ha="right", va="center")
    ax.set_xlim(-1.3, end + 0.75)
    ax.set_ylim(-0.5, 1.45)
    ax.axis("off")
    return ax


def _box(key: str) -> Look:
    return dict(boxstyle="round,pad=0.3", facecolor="white", edgecolor=COLOURS[key], linewidth=2)


def _arrow(key: str) -> Look:
    return dict(arrowstyle="->", color=COLOURS[key], linewidth=2)
