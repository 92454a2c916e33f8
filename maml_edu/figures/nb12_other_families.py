"""Figures of notebook 12: other families."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle
from torch import Tensor

from maml_edu.figures.style import COLOURS, STYLES, Look

if TYPE_CHECKING:
    from matplotlib.typing import LegendLocType

__all__ = [
    "LEARNER_NAMES",
    "accuracy_against_seconds",
    "bands_of_a_process",
    "features_and_prototypes",
    "learners_over_steps",
    "learners_table",
    "what_is_generated",
]

LEARNER_NAMES = {
    "maml": "MAML",
    "prototypes": "ProtoNet",
    "protomaml": "ProtoMAML",
    "hypernetwork": "hypernetwork",
    "process": "CNP",
    "process with steps": "CNP, then steps",
}

# MAML keeps its colour; the others are clear of every colour with a meaning of its own.
_LOOKS: dict[str, Look] = {
    "maml": STYLES["maml"],
    "prototypes": dict(color="#44AA99", linestyle="--", marker="s"),
    "protomaml": dict(color="#332288", linestyle="-.", marker="^"),
    "hypernetwork": dict(color="#AA4499", linestyle=(0, (5, 1, 1, 1)), marker="D"),
    "process": dict(color="#7A6A00", linestyle=":", marker="v"),
    "process with steps": dict(color="#7A6A00", linestyle="-", marker="P"),
}

# method: which parts of φ_0 come from the support set, and whether gradient steps follow
_GENERATED = {
    "maml": ((False, False, False), "K steps"),
    "prototypes": ((False, False, True), "none"),
    "process": ((False, True, False), "none"),
    "protomaml": ((False, False, True), "K steps"),
    "hypernetwork": ((False, True, True), "K steps"),
}


def what_is_generated(ax: Axes) -> Axes:
    """One row for each learner: which parts of φ_0 come from the support set, which are θ; the steps after it."""
    parts = ("weights", "biases", "head", "then")
    for row, (method, (generated, steps)) in enumerate(_GENERATED.items()):
        ax.text(-0.15, row, LEARNER_NAMES[method], ha="right", va="center")
        for column, from_support in enumerate(generated):
            look: Look = dict(facecolor=COLOURS["support"], hatch="//") if from_support else dict(facecolor="#E4E4E4")
            ax.add_patch(Rectangle((column, row - 0.36), 0.94, 0.72, edgecolor="white", **look))
            label = "support" if from_support else "θ"
            if method == "process" and from_support:  # the bias of the decoder's first layer only
                label = "one bias"
            ax.text(column + 0.47, row, label, ha="center", va="center", fontsize=11, bbox=_on(from_support))
        ax.text(3.1, row, steps, va="center")
    for column, part in enumerate(parts):
        ax.text(column + (0.47 if column < 3 else 0.1), -0.75, part, ha="center" if column < 3 else "left", va="center")
    ax.set_xlim(-1.6, 3.9)
    ax.set_ylim(len(_GENERATED) - 0.5, -1.1)
    ax.axis("off")
    return ax


def _on(from_support: bool) -> Look | None:
    return dict(boxstyle="round,pad=0.15", facecolor="white", edgecolor="none") if from_support else None


def features_and_prototypes(
    ax: Axes, support: Tensor, query: Tensor, support_y: Tensor, query_y: Tensor, source: str = "omniglot"
) -> Axes:
    """One task's features [n, F] in the plane of their two widest directions: prototypes, queries, the nearest one.

    A line joins each query to the prototype that is nearest in all F dimensions; it is dashed where that is the wrong
    class.
    """
    ways = int(support_y.max()) + 1
    prototypes = torch.stack([support[support_y == c].mean(0) for c in range(ways)])
    points = torch.cat([prototypes, query])
    middle = points.mean(0)
    plane = torch.linalg.svd(points - middle, full_matrices=False).Vh[:2].T  # [F, 2]
    at, queries = (prototypes - middle) @ plane, (query - middle) @ plane
    nearest = torch.cdist(query, prototypes).argmin(1)
    for place, own, taken in zip(queries.tolist(), query_y.tolist(), nearest.tolist()):
        x, y = zip(place, at[taken].tolist())
        ax.plot(x, y, color="#888888", linewidth=1, linestyle="-" if own == taken else "--", zorder=1)
    for c, place in enumerate(at.tolist()):
        ax.plot(*place, color=COLOURS["support"], marker="o", markersize=17, linestyle="none")
        ax.text(place[0], place[1], str(c), ha="center", va="center", fontsize=12)
    for place, own in zip(queries.tolist(), query_y.tolist()):
        ax.plot(*place, color=COLOURS["query"], marker="s", markersize=13, linestyle="none")
        ax.text(place[0], place[1], str(own), ha="center", va="center", fontsize=11)
    ax.set_xlabel("widest direction of the features")
    ax.set_ylabel("second widest")
    ax.set_title(f"circles: prototypes, squares: queries ({source})")
    ax.set_aspect("equal", adjustable="datalim")
    ax.margins(0.12)
    return ax


def bands_of_a_process(
    axes: Sequence[Axes], x: Tensor, truth: Tensor, curves: Mapping[int, tuple[Tensor, ...]]
) -> Sequence[Axes]:
    """What a conditional neural process predicts from few points; one panel for each number of points.

    x, truth [m]; curves: points -> (support x, support y, mean [m], standard deviation [m]). The band is mean ± 2σ.
    """
    for ax, (points, (support_x, support_y, mean, sigma)) in zip(axes, curves.items(), strict=True):
        ax.fill_between(x, mean - 2 * sigma, mean + 2 * sigma, color=COLOURS["after"], alpha=0.2, linewidth=0)
        ax.plot(x, truth, color=COLOURS["truth"], linewidth=1.5)
        ax.plot(x, mean, color=COLOURS["after"], linestyle="--")
        ax.plot(support_x, support_y, **STYLES["support"], zorder=3)
        ax.set_title(f"{points} support point{'s' if points > 1 else ''}")
        ax.set_xlabel("x")
    axes[0].set_ylabel("y")
    axes[0].figure.supxlabel("black: truth; dashed: mean; band: ± 2σ; circles: support", fontsize=11)
    low = min(float(ax.get_ylim()[0]) for ax in axes)
    high = max(float(ax.get_ylim()[1]) for ax in axes)
    for ax in axes:
        ax.set_ylim(low, high)
        ax.label_outer()
    return axes


def learners_over_steps(
    ax: Axes,
    scores: Mapping[str, Sequence[float]],
    label: str,
    title: str = "",
    log: bool = False,
    legend: LegendLocType | None = None,
) -> Axes:
    """A score after 0, 1, … inner steps, one line for each learner (keys of LEARNER_NAMES).

    log: logarithmic score axis. legend: where it goes ("upper right"); without, there is none.
    """
    last = max(len(values) for values in scores.values()) - 1
    if log:
        ax.set_yscale("log")
    every = max(1, last // 10)
    for name, values in scores.items():
        ax.plot(range(len(values)), values, **_LOOKS[name], markevery=every, markersize=6, label=LEARNER_NAMES[name])
    ax.set_xlabel("inner steps at test")
    ax.set_ylabel(label)
    ax.set_title(title)
    if legend is not None:
        ax.legend(fontsize=11, loc=legend)
    ax.grid(alpha=0.25)
    return ax


# ---------------------------------------------------------------- the fair table


def learners_table(
    runs: Mapping[str, dict],
    published: Mapping[str, tuple[float, float | None]],
    passes: Mapping[str, tuple[object, object]],
) -> str:
    """One row for each run, as markdown. runs: label → stored result; its "method" names the learner.

    published: method → (accuracy, half width or None) in %; passes: label or method → (forward, backward) passes for
    one new task.
    """
    rows = [
        "| method | tasks seen | accuracy, % | one query at a time | parameters | training, CPU s "
        "| passes per new task | published, % |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for label, r in runs.items():
        p, score = r["protocol"], r["per_step"][r["protocol"]["inner_steps"]]
        one = "{:.1f} ± {:.1f}".format(*(100 * v for v in r["one_query"])) if "one_query" in r else "–"
        parameters = f"{r['parameters']:,}" if "parameters" in r else "–"
        seconds = f"{r['training_cpu_seconds']:.0f}" if "training_cpu_seconds" in r else "–"
        forward, backward = passes.get(label, passes.get(r["method"], ("–", "–")))
        paper, half = published.get(r["method"], (None, None))
        in_print = "–" if paper is None else f"{paper:.1f}" + ("" if half is None else f" ± {half:.1f}")
        rows.append(
            f"| {label} | {p['iterations'] * p['meta_batch']:,} | {100 * score['mean']:.1f} ± "
            f"{100 * score['half_width']:.1f} | {one} | {parameters} | {seconds} | {forward} forward, {backward} "
            f"backward | {in_print} |"
        )
    return "\n".join(rows)


def accuracy_against_seconds(axes: Sequence[Axes], runs: Mapping[str, dict], closer: float = 90.0) -> Sequence[Axes]:
    """Accuracy in % with its 95 % interval against the processor seconds of training; runs: method → stored result.

    Two panels: the first has all runs, the second those whose interval ends above `closer`, on an axis of their own.
    """
    for name, r in runs.items():
        score = r["per_step"][r["protocol"]["inner_steps"]]
        x, y, half = r["training_cpu_seconds"], 100 * score["mean"], 100 * score["half_width"]
        look = {**_LOOKS[name], "linestyle": "none"}
        axes[0].errorbar([x], [y], yerr=[half], capsize=4, markersize=9, label=LEARNER_NAMES[name], **look)
        if y + half > closer:
            axes[1].errorbar([x], [y], yerr=[half], capsize=4, markersize=9, **look)
    for ax, title in zip(axes, ("all", f"those above {closer:.0f} %"), strict=True):
        ax.set_xlabel("training, processor seconds")
        ax.set_xlim(0, 1.1 * max(r["training_cpu_seconds"] for r in runs.values()))
        ax.set_title(title)
        ax.grid(alpha=0.25)
    axes[0].set_ylabel("queries right, %")
    axes[0].legend(fontsize=11, loc="lower right")
    return axes
