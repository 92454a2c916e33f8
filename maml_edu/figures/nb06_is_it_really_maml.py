"""Figures of notebook 06: learning curves of suspects."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes

from maml_edu.figures.style import COLOURS, line

__all__ = ["suspect_curves", "unnamed_curves"]

_DASHES = ("--", ":", "-.", (0, (5, 1, 1, 1, 1, 1)))


def unnamed_curves(axes: Sequence[Axes], curves: Sequence[Sequence[float]], every: int) -> Sequence[Axes]:
    """One panel per curve, numbered and not named, on common axes; a point every `every` iterations."""
    lowest, highest = (worst(min(c) if worst is min else max(c) for c in curves) for worst in (min, max))
    for number, (ax, curve) in enumerate(zip(axes, curves, strict=True), start=1):
        ax.plot([every * i for i in range(len(curve))], curve, **line("truth"))
        ax.set_title(f"curve {number}")
        ax.set_ylim(0.9 * min(0.0, lowest), 1.05 * highest)
        ax.set_xlabel("iteration")
        ax.grid(alpha=0.25)
    for ax in axes[1:]:
        ax.tick_params(labelleft=False)
    axes[0].set_ylabel("query loss")
    return axes


def suspect_curves(ax: Axes, curves: Mapping[str, Sequence[float]], every: int) -> Axes:
    """The honest curve in MAML's colour, the suspects in black, each with dashes of its own and its name at the end."""
    dashes = iter(_DASHES)
    ends: dict[float, list] = {}  # curves that end at the same height are one curve
    for name, curve in curves.items():
        look = line("maml") if name == "honest" else dict(color=COLOURS["truth"], linestyle=next(dashes), linewidth=1.6)
        ax.plot([every * i for i in range(len(curve))], curve, **look)
        ends.setdefault(round(curve[-1], 6), []).append((name, look["color"]))
    low, high = ax.get_ylim()
    last, height = every * (max(len(curve) for curve in curves.values()) - 1), -float("inf")
    for end, names in sorted(ends.items()):
        height = max(end, height + 0.06 * (high - low))  # names keep clear of each other
        ax.text(last, height, "  " + " and ".join(name for name, _ in names), color=names[0][1], va="center")
    ax.set_xlabel("iteration")
    ax.set_ylabel("query loss on held-out sines")
    ax.grid(alpha=0.25)
    return ax
