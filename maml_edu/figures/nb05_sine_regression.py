"""Figures of notebook 05: sine regression."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes
from torch import Tensor

from maml_edu.evaluation import StepScore
from maml_edu.figures.style import COLOURS, STYLES, line, points, where_none_diverged

__all__ = [
    "adaptation",
    "adaptation_step",
    "alpha_sweep",
    "filmstrip",
    "joint_function",
    "learning_curves",
    "mse_per_step",
    "paired_differences",
]

LABELS = {
    "maml": "MAML",
    "fomaml": "FOMAML",
    "reptile": "Reptile",
    "joint": "pre-trained",
    "oracle": "oracle",
}
# A wide pale band, so that a curve on top of it can be seen, in grey too.
_SINE = line("truth") | {"linewidth": 6, "alpha": 0.18, "solid_capstyle": "butt"}

# Several networks of one method: filled and solid, hollow and dashed.
_NETWORKS = [
    STYLES["maml"] | {"linestyle": dashes, "marker": marker, "markerfacecolor": fill}
    for dashes, marker, fill in (("-", "o", COLOURS["maml"]), ("--", "s", "white"))
]


def learning_curves(ax: Axes, curves: dict[str, Tensor], every: int = 50) -> Axes:
    """Query loss of the training batches, averaged over `every` iterations, one curve per method."""
    for method, losses in curves.items():
        every_here = min(every, len(losses))
        mean = losses[: len(losses) // every_here * every_here].view(-1, every_here).mean(1)
        iterations = [(i + 1) * every_here for i in range(len(mean))]
        ax.plot(iterations, mean, label=LABELS[method], **line(method))
    ax.set_xlabel("outer iteration")
    ax.set_ylabel("query loss (MSE)")
    ax.set_ylim(bottom=0)
    ax.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
    return ax


def mse_per_step(ax: Axes, scores: dict[str, list[StepScore]], published: dict[int, float] | None = None) -> Axes:
    """Mean MSE over tasks after each inner step with its 95 % interval.

    Where a task diverged there is no mean: the median stands there as a hollow mark, off the line.
    """
    for method, per_step in scores.items():
        look = {**STYLES[method], "markersize": 5}
        sound, mean, half = where_none_diverged(per_step)
        ax.errorbar(sound, mean, yerr=half, capsize=3, label=LABELS[method], **look)
        rest = [s for s in per_step if s.mean is None]
        hollow = {**look, "linestyle": "none", "markerfacecolor": "white"}
        ax.plot([s.step for s in rest], [s.median for s in rest], **hollow)
    if published:
        ax.plot(list(published), list(published.values()), "k*", markersize=12, label="MAML, published", zorder=5)
    ax.set_yscale("log")
    ax.set_xlabel("inner steps")
    ax.set_ylabel("MSE on query points")
    ax.set_xticks(range(0, max(len(p) for p in scores.values()), 2))
    ax.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
    ax.grid(alpha=0.25, axis="y", which="both")
    return ax


def adaptation(
    ax: Axes, x: Tensor, truth: Tensor, support: tuple[Tensor, Tensor], predictions: dict[int, Tensor], title: str
) -> Axes:
    """One task: the sine, the support points, and the network after so many inner steps (the last one solid)."""
    ax.plot(x, truth, label="the sine", **_SINE)
    last = max(predictions)
    for step, y in predictions.items():
        look = line("before") if step == 0 else line("after")
        if step not in (0, last):
            look |= {"linestyle": (0, (1, 1)), "alpha": 0.7}
        ax.plot(x, y, label=f"{step} steps" if step != 1 else "1 step", **look)
    ax.plot(*support, label="support", **points("support"))
    ax.set_title(title)
    ax.set_xlabel("x")
    spec = ax.get_subplotspec()
    if spec is not None and spec.is_first_col():
        ax.set_ylabel("y")
    return ax


def adaptation_step(
    ax: Axes, x: Tensor, truth: Tensor, support: tuple[Tensor, Tensor], predictions: dict[str, Tensor]
) -> Axes:
    """One frame of a slider over inner steps: the network of each method at one step, on the sine and its support.

    The vertical range comes from the sine alone, so that frames can be compared; a curve that leaves it is cut.
    """
    ax.plot(x, truth, **_SINE)
    for method, y in predictions.items():
        ax.plot(x, y, label=LABELS[method], **line(method))
    ax.plot(*support, **points("support"))
    height = max(float(truth.abs().max()), 0.5)
    ax.set(xlabel="x", ylabel="y", ylim=(-2.2 * height, 1.4 * height))
    ax.legend(loc="lower center", handlelength=1.6)  # narrow enough for a still
    return ax


def filmstrip(
    axes: Sequence[Axes],
    x: Tensor,
    truth: Tensor,
    support: tuple[Tensor, Tensor],
    frames: Sequence[Tensor],
    errors: Sequence[float],
) -> Sequence[Axes]:
    """Adaptation as a row of stills, one per inner step from 0: the network now, and dashed where it was before."""
    height = 1.5 * max(float(truth.abs().max()), 0.5)
    for step, (ax, now, error) in enumerate(zip(axes, frames, errors)):
        ax.plot(x, truth, **_SINE | {"linewidth": 4})
        if step:
            ax.plot(x, frames[step - 1], **line("before") | {"linewidth": 1.2})
        ax.plot(x, now, **line("after"))
        ax.plot(*support, **points("support") | {"markersize": 5})
        ax.set(xlabel="x", ylim=(-height, height), xticks=[-4, 0, 4])
        ax.set_title(f"step {step}\nMSE {error:.2f}", fontsize=12)
        if step:
            ax.tick_params(labelleft=False)
    axes[0].set_ylabel("y")
    return axes


def joint_function(ax: Axes, x: Tensor, learned: Tensor, closed_form: Tensor) -> Axes:
    """What joint training learned, over the mean of all sines."""
    ax.plot(x, closed_form, label="mean of all sines, closed form", **_SINE | {"linewidth": 8})
    ax.plot(x, learned, label="pre-trained network", **line("joint") | {"linewidth": 2.5})
    ax.set_xlabel("x")
    ax.set_ylabel("y")
    ax.legend(loc="upper center", bbox_to_anchor=(0.5, 1.2), ncols=2)
    return ax


def paired_differences(ax: Axes, differences: dict[str, tuple[float, float]]) -> Axes:
    """Mean difference in MSE to MAML on the same tasks, with 95 % intervals; right of zero: worse than MAML."""
    for row, (method, (mean, half)) in enumerate(differences.items()):
        ax.errorbar(mean, row, xerr=half, capsize=4, **{**STYLES[method], "linestyle": "none"})
    ax.axvline(0, color=COLOURS["truth"], linewidth=1)
    ax.set_yticks(range(len(differences)), [LABELS[method] for method in differences])
    ax.set_ylim(len(differences) - 0.5, -0.5)
    ax.set_xlabel("MSE minus MAML's MSE, same tasks")
    return ax


def alpha_sweep(
    ax: Axes, alphas: Sequence[float], medians: dict[str, Sequence[float]], trained: dict[str, float]
) -> Axes:
    """Median MSE after one step against the step size used at test; a triangle marks the one used in training.

    All are trained with MAML, so all are blue, and dashes and markers tell them apart.
    """
    bottom = min(min(values) for values in medians.values()) / 2
    for (label, values), look in zip(medians.items(), _NETWORKS):
        ax.loglog(alphas, values, label=label, markersize=5, **look)
        fill = {"markerfacecolor": look["markerfacecolor"], "markeredgewidth": 2}
        ax.plot(trained[label], bottom, "v", color=look["color"], markersize=11, clip_on=False, zorder=5, **fill)
    ax.set_ylim(bottom, 20)
    ax.set_xlabel("α at test (▼ α in training)")
    ax.set_ylabel("median MSE, 1 step")
    ax.legend(loc="upper left")
    ax.grid(alpha=0.25)
    return ax
