"""Figures of notebook 03: Hessian-vector products, the recursion, and a θ that it trained."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter, ScalarFormatter
from torch import Tensor

from maml_edu.figures import plane
from maml_edu.figures.style import COLOURS, Look, Picture, apply_style, line, new_axes, points
from maml_edu.tasks import TaskBatch

__all__ = [
    "block_diagonal_hessian",
    "cost_against_parameters",
    "difference_error",
    "gradient_change",
    "kink",
    "memory_against_steps",
    "new_sines",
    "prices",
    "recursion",
    "sizes",
    "training",
]

# One look for each of the quantities that 03 compares; dash and marker carry it in greyscale.
_LOOKS: dict[str, Look] = {
    "gradient": dict(color=COLOURS["before"], linestyle="--", marker="X"),
    "H·v": dict(color=COLOURS["maml"], linestyle="-", marker="o"),
    "dense H": dict(color=COLOURS["fomaml"], linestyle="-.", marker="s"),
    "recursion": dict(color=COLOURS["maml"], linestyle="-", marker="o"),
    "unrolled": dict(color=COLOURS["fomaml"], linestyle="-.", marker="s"),
    "float64": dict(color=COLOURS["maml"], linestyle="-", marker="o"),
    "float32": dict(color=COLOURS["fomaml"], linestyle="--", marker="s"),
}
_DARK_ORANGE = "#8A5F00"  # the support colour, dark enough for text


def sizes(parameters: Mapping[str, int]) -> Picture:
    """What a gradient and a Hessian of each network take in memory. parameters: name -> P."""
    figure, ax = _axes(8, 2.4)
    rows, said = [], []
    for name, count in parameters.items():
        rows += [(f"{name}: gradient", 4 * count, "maml"), (f"{name}: Hessian", 4 * count**2, "fomaml")]
        said.append(f"{name}, {count:,} parameters: gradient {_bytes(4 * count)}, Hessian {_bytes(4 * count**2)}")
    for row, (_, size, key) in enumerate(rows):
        ax.barh(row, size, color=COLOURS[key])
        ax.text(size * 1.3, row, _bytes(size), va="center")
    ax.set_yticks(range(len(rows)), [label for label, _, _ in rows])
    ax.set(xscale="log", xlim=(1e3, 1e13), xlabel="bytes in float32")
    ax.invert_yaxis()
    return Picture(figure, f"Memory on a logarithmic scale. {'; '.join(said)}.")


def _bytes(size: int) -> str:
    for unit, name in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if size >= unit:
            return f"{size / unit:.3g} {name}"
    return f"{size} B"


def gradient_change(loss: Callable[[Tensor], Tensor], at: Tensor, v: Tensor, here: Tensor, there: Tensor) -> Picture:
    """The gradients at θ and at θ + v, and by how much they differ. at, v: (A, p). loss: [..., 2] -> [...]."""
    figure, ax = _axes(6.6, 4.6)
    phase, amplitude = torch.linspace(-0.3, 4.0, 87), torch.linspace(-0.2, 3.4, 73)
    losses = loss(torch.stack(torch.meshgrid(amplitude, phase, indexing="ij"), dim=-1))
    ax.contour(phase, amplitude, losses, levels=plane.levels_of(losses), colors="#CCCCCC", linewidths=1)
    moved, short = at + v, 0.4  # gradients are drawn at this fraction of their length
    _vector(ax, at, moved, "before", "v", (-14, 2))
    _vector(ax, at, at + short * here, "support", "∇L(θ)", (-34, -20))
    _vector(ax, moved, moved + short * there, "reptile", "∇L(θ + v)", (-34, 12))
    _vector(ax, moved, moved + short * here, "support", "", (0, 0), dashed=True)
    _vector(ax, moved + short * here, moved + short * there, "maml", "≈ H v", (6, -10))
    for place, name, shift in ((at, "θ", (-18, -4)), (moved, "θ + v", (-30, 12))):
        spot = (float(place[1]), float(place[0]))
        ax.plot(*spot, "o", color="black", zorder=7)
        ax.annotate(name, spot, shift, textcoords="offset points")
    plane.phase_axis(ax)
    ax.set(ylabel="amplitude A", aspect="equal")
    return Picture(
        figure,
        "Contours of a loss in the (phase, amplitude) plane, with its gradient at θ and at θ + v. Both gradients are "
        "drawn from θ + v as well; the arrow from the tip of one to the tip of the other is H v, nearly.",
    )


def _vector(
    ax: Axes, start: Tensor, end: Tensor, key: str, label: str, shift: tuple[int, int], dashed: bool = False
) -> None:
    """An arrow between two points (A, p) in the colour of `key`, with a label beside its middle."""
    look = dict(arrowstyle="-|>", color=COLOURS[key], lw=2.4, shrinkA=0, shrinkB=0, ls="--" if dashed else "-")
    tail, tip = (float(start[1]), float(start[0])), (float(end[1]), float(end[0]))
    ax.annotate("", tip, tail, arrowprops=look, zorder=5)
    middle = ((tail[0] + tip[0]) / 2, (tail[1] + tip[1]) / 2)
    ax.annotate(label, middle, shift, textcoords="offset points", color=_readable(key), fontsize=12)


def _axes(width: float, height: float) -> tuple[Figure, Axes]:
    """A styled figure of this size with one pair of axes."""
    apply_style()
    return plt.subplots(figsize=(width, height), layout="constrained")


def _readable(key: str) -> str:
    """The colour, dark enough for text."""
    return _DARK_ORANGE if key == "support" else COLOURS[key]


def block_diagonal_hessian(hessian: Tensor) -> Picture:
    """The Hessian [T, P, T, P] of the summed loss of T tasks, each with its own P parameters; grey is log₁₀|entry|."""
    figure, ax = _axes(5.4, 4.4)
    tasks, count = hessian.shape[:2]
    magnitude = np.log10(np.maximum(hessian.reshape(tasks * count, -1).abs().numpy(), 1e-6))
    image = ax.imshow(magnitude, cmap="Greys", vmin=-4, interpolation="nearest")
    for t in range(1, tasks):
        ax.axhline(t * count - 0.5, color=COLOURS["maml"], linewidth=1)
        ax.axvline(t * count - 0.5, color=COLOURS["maml"], linewidth=1)
    ticks = [(t + 0.5) * count - 0.5 for t in range(tasks)]
    ax.set_xticks(ticks, [f"task {t + 1}" for t in range(tasks)])
    ax.set_yticks(ticks, [f"task {t + 1}" for t in range(tasks)], rotation=90, va="center")
    ax.tick_params(length=0)
    ax.spines[["top", "right"]].set_visible(True)
    figure.colorbar(image, ax=ax, label="log₁₀ |entry|", shrink=0.85)
    size = tasks * count
    return Picture(figure, f"The {size} by {size} Hessian: {tasks} dark blocks on the diagonal, zeros everywhere else.")


def difference_error(epsilon: Sequence[float], errors: Mapping[str, Sequence[float]]) -> Picture:
    """Relative error of central differences against ε, one curve per precision."""
    figure, ax = new_axes(height=3.8)
    said = []
    for label, error in errors.items():
        ax.loglog(epsilon, error, label=label, markersize=5, **_LOOKS[label])
        said.append(f"{label} is lowest near {epsilon[int(np.nanargmin(error))]:.0e}")
    ax.set(xlabel="ε, the length of the step along v", ylabel="relative error of H v")
    ax.legend(loc="best")
    ax.grid(alpha=0.25)
    return Picture(figure, f"The error of finite differences against ε falls, then rises again: {', '.join(said)}.")


def kink(slope: Callable[[Tensor], Tensor], w: float, epsilon: float) -> Picture:
    """A derivative that jumps at 0, and the line that central differences draw through it at w ± ε."""
    figure, ax = new_axes(height=3.2)
    reach = 3 * max(epsilon, abs(w))
    for side in (torch.linspace(-reach, 0, 20), torch.linspace(1e-9 * reach, reach, 20)):
        ax.plot(side, [float(slope(t.double())) for t in side], color=COLOURS["truth"])
    ends = torch.tensor([w - epsilon, w + epsilon], dtype=torch.float64)
    heights = [float(slope(t)) for t in ends]
    ax.plot(ends, heights, color=COLOURS["fomaml"], linestyle="--", marker="s")
    for name, place, height, shift in zip(("w − ε", "w + ε"), ends.tolist(), heights, ((-24, 10), (24, -20))):
        ax.annotate(name, (place, height), shift, textcoords="offset points", ha="center")
    ax.set(xlabel="w", ylabel="L′(w)", ylim=(-0.15, 1.3), yticks=(0, 1))
    ax.ticklabel_format(axis="x", style="sci", scilimits=(0, 0))
    return Picture(figure, "The derivative L′ jumps at w = 0. A dashed line joins its values at w − ε and w + ε.")


def cost_against_parameters(parameters: Sequence[int], operations: Mapping[str, Sequence[int]]) -> Picture:
    """Arithmetic against the number of parameters, log-log, labelled at the right end of each curve."""
    figure, ax = new_axes(height=3.8)
    for label, counts in operations.items():
        ax.loglog(parameters, counts, **_LOOKS[label])
        _label_end(ax, label, parameters[-1], counts[-1])
    ax.set(xlabel="parameters P", ylabel="operations in matrix products")
    ax.set_xlim(parameters[0] * 0.8, parameters[-1] * 5)
    ax.grid(alpha=0.25)
    return Picture(
        figure,
        "Operations against parameters, both logarithmic. The lines of the gradient and of H·v are parallel and close; "
        "the line of the dense Hessian is twice as steep.",
    )


def memory_against_steps(steps: Sequence[int], size: Mapping[str, Sequence[int]]) -> Picture:
    """Peak of the bytes alive at one time against the number of inner steps."""
    figure, ax = new_axes(height=3.4)
    for label, counts in size.items():
        mebibytes = [count / 2**20 for count in counts]
        ax.plot(steps, mebibytes, **_LOOKS[label])
        _label_end(ax, label, steps[-1], mebibytes[-1])
    ax.set(xlabel="inner steps K", ylabel="memory, MiB", xlim=(0, steps[-1] * 1.35))
    ax.set_ylim(bottom=0)
    ax.grid(alpha=0.25)
    return Picture(figure, "Memory against inner steps: two rising lines, the unrolled graph's the steeper by far.")


def _label_end(ax: Axes, label: str, x: float, y: float) -> None:
    """The name of a curve at its right end, in its colour."""
    at: Look = dict(xytext=(8, 0), textcoords="offset points", va="center")
    ax.annotate(label, (x, y), color=_LOOKS[label]["color"], **at)


def prices(off: Mapping[str, float]) -> Picture:
    """How far wrong meta-gradients are from the right one. off: what went wrong -> relative distance."""
    figure, ax = _axes(7, 0.6 + 0.45 * len(off))
    percent = {label: 100 * float(np.nan_to_num(value)) for label, value in off.items()}
    for row, value in enumerate(percent.values()):
        ax.barh(row, value, color=COLOURS["fomaml"], height=0.6)
        ax.annotate(f"{value:.1f} %", (value, row), (6, 0), textcoords="offset points", va="center")
    ax.set_yticks(range(len(percent)), list(percent))
    ax.set(xlim=(0, 1.18 * max(*percent.values(), 1.0)), xticks=[], xlabel="distance from the exact meta-gradient")
    ax.spines["bottom"].set_visible(False)
    ax.tick_params(length=0)
    ax.invert_yaxis()
    said = ", ".join(f"{label} {value:.1f} %" for label, value in percent.items())
    return Picture(figure, f"How far the meta-gradient is off: {said}.")


def recursion(steps: int) -> Picture:
    """The path θ_0 … θ_K above, v on its way back below, and between them the Hessian that each step needs."""
    figure, ax = _axes(8, 3.1)
    steps = max(steps, 1)
    shown = list(range(steps + 1)) if steps <= 4 else [0, 1, 2, steps - 1, steps]
    for i, j in enumerate(shown):
        name = f"$\\theta_{{{j}}}=\\varphi$" if j == steps else f"$\\theta_{{{j}}}$"
        ax.text(i, 1, name, ha="center", va="center", fontsize=15, bbox=_box("after" if j == steps else "before"))
        ax.text(i, 0, f"$v_{{{j}}}$", ha="center", va="center", fontsize=15, bbox=_box("maml"))
    for i, (a, b) in enumerate(zip(shown[:-1], shown[1:])):
        if b - a > 1:
            for height in (0, 1):
                ax.text(i + 0.5, height, "…", ha="center", va="center", fontsize=18)
            continue
        ax.annotate("", (i + 0.72, 1), (i + 0.24, 1), arrowprops=_arrow("before"))
        ax.text(i + 0.5, 1.2, f"$-\\alpha\\circ\\nabla L_s(\\theta_{{{a}}})$", ha="center", fontsize=11)
        ax.annotate("", (i + 0.24, 0), (i + 0.76, 0), arrowprops=_arrow("maml"))
        ax.text(i + 0.5, -0.36, f"$-H_{{{a}}}(\\alpha\\circ v_{{{b}}})$", ha="center", fontsize=11)
        ax.annotate("", (i + 0.5, 0.08), (i + 0.06, 0.76), arrowprops={**_arrow("support"), "linestyle": "--"})
        ax.text(i + 0.38, 0.5, f"$H_{{{a}}}$", color=_DARK_ORANGE, fontsize=12)
    end = len(shown) - 1
    ax.annotate("", (end, 0.26), (end, 0.72), arrowprops=_arrow("query"))
    ax.text(end + 0.08, 0.5, "$\\nabla L_q(\\varphi)$", fontsize=12, va="center")
    ax.text(-0.4, 1, "forward", ha="right", va="center")
    ax.text(-0.4, 0, "backward", ha="right", va="center")
    ax.set(xlim=(-1.15, end + 0.85), ylim=(-0.55, 1.5))
    ax.axis("off")
    return Picture(
        figure,
        "Above, the path from θ_0 to φ, one gradient step per arrow. Below, v runs back from the query gradient at φ "
        "to v_0. The step from v_{j+1} to v_j uses the Hessian at θ_j.",
    )


def _box(key: str) -> Look:
    return dict(boxstyle="round,pad=0.3", facecolor="white", edgecolor=COLOURS[key], linewidth=2)


def _arrow(key: str) -> Look:
    return dict(arrowstyle="->", color=COLOURS[key], linewidth=2)


def training(which: str, losses: Tensor, package: Tensor, window: int = 25) -> Picture:
    """Two training runs on the same tasks: with `which` pull-back, and with the package's `maml`."""
    figure, ax = new_axes(height=3.6)
    window = min(window, len(losses))
    for history, label, look in (
        (package, "the package's maml", dict(color=COLOURS["query"], linewidth=7, alpha=0.6)),
        (losses, which, dict(color=COLOURS["maml"], linewidth=1.6)),
    ):
        mean = history.unfold(0, window, 1).mean(1)
        ax.semilogy(range(window, len(history) + 1), mean, label=label, **look)
    ax.set(xlabel="iteration", ylabel="query loss, after the steps", title=f"trained with {which}")
    ax.yaxis.set_major_formatter(ScalarFormatter())
    ax.yaxis.set_minor_formatter(NullFormatter())
    ax.set_yticks([0.1, 0.2, 0.5, 1, 2, 5])
    ax.set_ylim(0.8 * float(losses.nan_to_num(1.0).min().clamp(min=0.01)), 6)
    ax.legend()
    ax.grid(alpha=0.25, which="both")
    return Picture(figure, f"Query loss against iteration, with {which} and with the package's maml on the same tasks.")


def new_sines(tasks: TaskBatch, x: Tensor, curves: Sequence[Tensor], which: str) -> Picture:
    """Sines that training never saw. x: [T, n, 1]. curves: for j = 0 … K the network at θ_j, [T, n, 1]."""
    apply_style()
    figure, axes = plt.subplots(1, len(x), figsize=(8, 2.9), sharey=True, squeeze=False, layout="constrained")
    for t, ax in enumerate(axes[0]):
        order = tasks.query_x[t, :, 0].argsort()
        ax.plot(tasks.query_x[t, order, 0], tasks.query_y[t, order, 0], color="#BBBBBB", linewidth=6, label="the sine")
        for j, curve in enumerate(curves):
            look = line("before") if j == 0 else line("after") | dict(alpha=j / (len(curves) - 1))
            steps = "at θ" if j == 0 else f"after {j} steps" if j > 1 else "after 1 step"
            ax.plot(x[t, :, 0], curve[t, :, 0], **look, label=steps)
        ax.plot(tasks.support_x[t, :, 0], tasks.support_y[t, :, 0], **points("support"), label="known points", zorder=5)
        ax.set(xlabel="x", ylim=(-5.4, 5.4))
    figure.legend(*axes[0][0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    figure.suptitle(f"θ trained with {which}")
    return Picture(figure, f"{len(x)} new sines. Step by step, the network trained with {which} bends towards them.")
