"""Figures and tables of notebook 05: sine regression."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from IPython.display import Markdown, display
from matplotlib.axes import Axes
from torch import Tensor

from maml_edu.evaluation import StepScore
from maml_edu.experiments.published import PUBLISHED_SINE
from maml_edu.figures.style import COLOURS, STYLES, Look, Picture, explore, line, new_axes, points

__all__ = [
    "adaptation",
    "adaptation_slider",
    "alpha_sweep",
    "histogram",
    "learning_curves",
    "paired_differences",
    "scores",
    "share_chart",
    "show_results",
    "show_summaries",
    "steps_on_a_line",
]

LABELS = {
    "maml": "MAML",
    "fomaml": "FOMAML",
    "reptile": "Reptile",
    "joint": "pre-trained",
    "oracle": "oracle",
    "random": "random parameters",
}
# A wide pale band, so that a curve on top of it can be seen, in grey too.
_SINE = line("truth") | {"linewidth": 6, "alpha": 0.18, "solid_capstyle": "butt"}
_LARGEST = 3.4e38  # about the largest number that a float32 can hold


def learning_curves(runs: Mapping[tuple[str, int], Tensor], which: str) -> Picture:
    """Query loss of the training batches, smoothed over a twentieth of the run: a line for each training run.

    runs: (method, seed) -> query loss of every iteration. which: what computed MAML's meta-gradients.
    """
    figure, ax = new_axes(height=3.6)
    labelled: set[str] = set()
    for (method, _), losses in runs.items():
        every = max(1, len(losses) // 20)
        smooth = losses[: len(losses) // every * every].view(-1, every).mean(1)
        iterations = [(i + 1) * every for i in range(len(smooth))]
        label = None if method in labelled else LABELS[method]
        ax.plot(iterations, smooth, label=label, **line(method) | {"linewidth": 1.5})
        labelled.add(method)
    ax.set(xlabel="outer iteration", ylabel="query loss (MSE)", ylim=(0, None), title=f"MAML trained with {which}")
    ax.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
    return Picture(
        figure,
        "Query loss against outer iteration, a line for each run. Reptile and the oracle fall fastest, MAML and FOMAML "
        "more slowly, and pre-training stays on its floor.",
    )


def scores(results: Mapping[tuple[str, int, int], StepScore]) -> Picture:
    """MSE of every training run after some numbers of inner steps; the line joins the medians of the runs.

    results: (method, seed, steps) -> score. Where a task diverged there is no mean, and the hollow mark is the median
    over tasks.
    """
    figure, ax = new_axes(height=3.8)
    steps = sorted({key[2] for key in results})
    methods = list(dict.fromkeys(key[0] for key in results))
    for i, method in enumerate(methods):
        places = [n + 0.11 * (i - (len(methods) - 1) / 2) for n in range(len(steps))]
        middle = []
        for place, step in zip(places, steps):
            group = [score for (name, _, k), score in results.items() if (name, k) == (method, step)]
            heights = [score.median if score.mean is None else score.mean for score in group]
            middle.append(float(torch.tensor(heights).median()))
            for height, score in zip(heights, group):
                fill = {} if score.mean is not None else {"markerfacecolor": "white"}
                ax.plot(place, height, **STYLES[method] | {"linestyle": "none", "markersize": 6} | fill)
        ax.plot(places, middle, label=LABELS[method], **line(method) | {"linewidth": 1.2})
        ax.plot([], [], **STYLES[method])
    ax.set(yscale="log", ylabel="MSE on query points", xlim=(-0.5, len(steps) - 0.5))
    ax.set_xticks(range(len(steps)), ["before" if k == 0 else "1 step" if k == 1 else f"{k} steps" for k in steps])
    ax.legend(handles=_handles(methods), loc="center left", bbox_to_anchor=(1.0, 0.5))
    ax.grid(alpha=0.25, axis="y", which="both")
    return Picture(
        figure,
        "MSE before adaptation, after one and after ten steps, a mark for each run. Before, all but the oracle are "
        "alike. The first step takes MAML furthest, FOMAML and Reptile less far; the pre-trained networks gain least.",
    )


def _handles(methods: Sequence[str]) -> list:
    """Legend entries with colour, dashes and marker."""
    from matplotlib.lines import Line2D

    return [Line2D([], [], label=LABELS[method], **STYLES[method] | {"markersize": 6}) for method in methods]


def paired_differences(differences: Mapping[str, Sequence[tuple[float, float]]]) -> Picture:
    """Difference in MSE to MAML on the same tasks, with 95 % intervals, one for each training run.

    differences: method -> (mean, half-width) of every run. Right of zero is worse than MAML.
    """
    figure, ax = new_axes(height=2.8)
    for row, (method, runs) in enumerate(differences.items()):
        for i, (mean, half) in enumerate(runs):
            if math.isfinite(mean) and math.isfinite(half):
                height = row + 0.2 * (i - (len(runs) - 1) / 2)
                look = STYLES[method] | {"linestyle": "none", "markersize": 6}
                ax.errorbar(float(mean), height, xerr=float(half), capsize=3, **look)
    ax.axvline(0, color=COLOURS["truth"], linewidth=1)
    ax.set_yticks(range(len(differences)), [LABELS[method] for method in differences])
    ax.set(ylim=(len(differences) - 0.5, -0.5), xlabel="MSE minus MAML's MSE, one step, same sines")
    return Picture(
        figure,
        "Intervals of the difference to MAML after one step, three for each method. FOMAML and Reptile lie to the "
        "right of zero, pre-training further to the right, and the oracle to the left.",
    )


def adaptation(
    ax: Axes, x: Tensor, truth: Tensor, support: tuple[Tensor, Tensor], predictions: dict[int, Tensor], title: str
) -> Axes:
    """One task: the true curve, the support points, and the network after so many steps (the last one solid)."""
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


def adaptation_slider(
    x: Tensor, truth: Tensor, support: tuple[Tensor, Tensor], curves: Mapping[str, Mapping[int, Tensor]]
) -> None:
    """A slider over inner steps: each network's curve on one sine and its support points.

    curves: method -> step -> values at x. All frames share one vertical range, set by the sine.
    """
    steps = list(next(iter(curves.values())))
    height = max(float(truth.abs().max()), 0.5)

    def draw(step: int, ax: Axes) -> None:
        ax.plot(x, truth, **_SINE)
        for method, path in curves.items():
            ax.plot(x, path[step], label=LABELS[method], **line(method))
        ax.plot(*support, **points("support"))
        ax.set(xlabel="x", ylabel="y", ylim=(-2.2 * height, 1.4 * height))
        ax.legend(loc="lower center", handlelength=1.6)  # narrow enough for a still

    alt = (
        "one sine with five points on its left half. At step 0 both networks draw nearly the same curve; after one "
        "step MAML's follows the sine on both halves, and the pre-trained one hardly moves at any step."
    )
    stills = sorted({0, min(1, len(steps) - 1), len(steps) // 2, len(steps) - 1})
    explore(draw, steps, "inner step", alt, stills=[steps[i] for i in stills])


def steps_on_a_line(
    x: Tensor, truth: Tensor, support: tuple[Tensor, Tensor], curves: Mapping[str, Mapping[int, Tensor]]
) -> Picture:
    """What two networks make of points that lie on a straight line. curves: method -> step -> values at x."""
    figure, axes = new_axes(columns=len(curves), height=3.6)
    for ax, (method, predictions) in zip(axes, curves.items()):
        adaptation(ax, x, truth, support, dict(predictions), LABELS[method])
        ax.sharey(axes[0])
        ax.label_outer()
    handles, labels = axes[0].get_legend_handles_labels()
    labels[0] = "the line"
    figure.legend(handles, labels, loc="outside lower center", ncols=5)
    return Picture(
        figure,
        "Five points on a straight line. Left, MAML's first step draws a wave through them. Right, the first step of "
        "the pre-trained network tilts its curve.",
    )


def share_chart(shares: Mapping[tuple[str, str, int], float]) -> Picture:
    """How much of what the steps added is a sine. shares: (kind of points, method, steps) -> share from 0 to 1.

    Filled marks: the smallest number of steps of a method in a row; hollow ones: more steps.
    """
    kinds = list(dict.fromkeys(kind for kind, _, _ in shares))
    figure, ax = new_axes(height=1.6 + 0.5 * len(kinds))
    looks: dict[str, Look] = {name: STYLES[name] for name in ("maml", "joint")} | {"random": STYLES["before"]}
    fewest = {method: min(k for _, name, k in shares if name == method) for _, method, _ in shares}
    labelled: set[tuple[str, int]] = set()
    apart = {"maml": -0.12, "joint": 0.12, "random": 0.0}  # none hides another
    for (kind, method, steps), share in shares.items():
        look = looks[method] | {"linestyle": "none", "markersize": 8}
        if steps > fewest[method]:
            look |= {"markerfacecolor": "white", "markeredgewidth": 2}
        text = f"{LABELS[method]}, {steps} step{'s' if steps > 1 else ''}"
        label = None if (method, steps) in labelled else text
        ax.plot(share, kinds.index(kind) + apart[method], label=label, **look)
        labelled.add((method, steps))
    ax.set_yticks(range(len(kinds)), kinds)
    ax.set(ylim=(len(kinds) - 0.5, -0.5), xlim=(0, 1), xlabel="share of the change that is a sine")
    figure.legend(loc="outside lower center", ncols=2)
    ax.grid(alpha=0.25, axis="both")
    return Picture(
        figure,
        "Share of the change that is a sine, for four kinds of support points. MAML is far to the right in the first "
        "three rows and falls back with ten steps where no sine is missing; the pre-trained network is below "
        "one half everywhere. On x from 5 to 10, MAML has no lead after one step.",
    )


def show_results(stored: Mapping[str, dict]) -> None:
    """The published sine results and the stored runs as one table: MSE after 1, 5 and 10 inner steps."""
    rows = ["| 5-shot MSE | α | 1 step | 5 steps | 10 steps |", "|---|---|---|---|---|"]
    for label, at in PUBLISHED_SINE.items():
        rows.append(f"| **published**: {label} | | {at[1]} | {at[5]} | {at[10]} |")
    for name, run in stored.items():
        method, _, note = name.removeprefix("sine_5shot_").partition("_")
        label = LABELS[method] + (", fan-in initialisation" if note == "fan-in" else "")
        if len(run["per_step"]) == 1:  # the oracle: no step, no α
            rows.append(f"| ours: {label} | | {run['per_step'][0]['mean']:.3f} before any step | | |")
            continue
        cells = [_plus_minus(run["per_step"][step]) for step in (1, 5, 10)]
        rows.append(f"| ours: {label} | {run['protocol']['alpha']:g} | {' | '.join(cells)} |")
    display(Markdown("\n".join(rows)))


def _plus_minus(score: Mapping[str, float | None]) -> str:
    return "diverged" if score["mean"] is None else f"{score['mean']:.2f} ± {score['half_width']:.2f}"


def show_summaries(rows: Mapping[tuple[int, int], tuple[int, float | None, float]]) -> None:
    """A table of summaries. rows: (number of tasks, steps) -> (diverged, mean or None, median)."""
    lines = ["| tasks | steps | diverged | mean MSE | median MSE |", "|---|---|---|---|---|"]
    for (tasks, steps), (diverged, mean, median) in rows.items():
        shown = "none" if mean is None else f"{float(mean):.2f}"
        lines.append(f"| {tasks:,} | {steps} | {int(diverged)} | {shown} | {float(median):.2f} |")
    display(Markdown("\n".join(lines)))


def histogram(values: Tensor, limit: float) -> Picture:
    """MSE of every task on a logarithmic axis that reaches the largest float; right of `limit` a task has diverged."""
    figure, ax = new_axes(height=2.8)
    shown = values.double().nan_to_num(_LARGEST, _LARGEST).clamp(1e-3, _LARGEST)
    edges = torch.logspace(-3, math.log10(2 * _LARGEST), 120, dtype=torch.float64)
    ax.hist(shown.numpy(), bins=edges.tolist(), color=COLOURS["maml"])
    ax.axvline(limit, color=COLOURS["truth"], linewidth=1, linestyle="--")
    ax.text(limit * 3, 0.93, "diverged →", transform=ax.get_xaxis_transform(), va="top")
    ax.set(xscale="log", yscale="log", xlabel="MSE of a task after ten steps", ylabel="tasks", ylim=(0.7, None))
    return Picture(
        figure,
        "Histogram of the MSE of single tasks, both axes logarithmic. Nearly all tasks are below 10. A handful lie far "
        "to the right, some at the largest number that a float can hold.",
    )


def alpha_sweep(
    alphas: Sequence[float], medians: Mapping[str, Sequence[float]], trained: Mapping[str, float]
) -> Picture:
    """Median MSE after one step against the step size used at test; a triangle marks the one used in training.

    All are trained with MAML, so all are blue, and dashes and markers tell them apart.
    """
    figure, ax = new_axes(height=3.6)
    bottom = min(min(values) for values in medians.values()) / 2
    networks = (("-", "o", COLOURS["maml"]), ("--", "s", "white"))
    for (label, values), (dashes, marker, fill) in zip(medians.items(), networks):
        look = STYLES["maml"] | {"linestyle": dashes, "marker": marker, "markerfacecolor": fill}
        ax.loglog(alphas, values, label=label, markersize=5, **look)
        below = STYLES["maml"] | {"marker": "v", "markersize": 11, "markerfacecolor": fill, "markeredgewidth": 2}
        ax.plot(trained[label], bottom, clip_on=False, zorder=5, **below)
    ax.set(ylim=(bottom, 20), xlabel="α at test (▼ α in training)", ylabel="median MSE, 1 step")
    ax.legend(loc="upper left")
    ax.grid(alpha=0.25)
    return Picture(
        figure, "Median MSE after one step against α at test: each network has a narrow valley at its α of training."
    )
