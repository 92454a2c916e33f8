"""Figures of notebook 06: learning curves of suspects, and how far their gradients are off."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes

from maml_edu.figures.style import COLOURS, Picture, line, new_axes

__all__ = ["distances", "suspect_curves", "unnamed_curves"]

_DASHES = ("--", ":", "-.", (0, (5, 1, 1, 1, 1, 1)))


def unnamed_curves(curves: Sequence[Sequence[float]], every: int) -> Picture:
    """One panel per curve, numbered and not named, on common axes; a point every `every` iterations."""
    figure, axes = new_axes(columns=len(curves), height=2.6)
    losses = [loss for curve in curves for loss in curve]
    for number, (ax, curve) in enumerate(zip(axes, curves, strict=True), start=1):
        _curve(ax, curve, every, line("truth"))
        ax.set(title=f"curve {number}", ylim=(0, 1.05 * max(losses)))
    for ax in axes[1:]:
        ax.tick_params(labelleft=False)
    axes[0].set_ylabel("query loss")
    ends = ", ".join(f"{curve[-1]:.2f}" for curve in curves)
    return Picture(figure, f"Four learning curves without names. They end at a query loss of {ends}.")


def suspect_curves(curves: Mapping[str, Sequence[float]], every: int) -> Picture:
    """The honest curve in MAML's colour, the suspects in black, each with dashes of its own and its name at the end."""
    figure, ax = new_axes(height=3.6)
    dashes = iter(_DASHES)
    ends: dict[float, list] = {}  # curves that end at the same height are one curve
    for name, curve in curves.items():
        look = line("maml") if name == "honest" else dict(color=COLOURS["truth"], linestyle=next(dashes), linewidth=1.6)
        _curve(ax, curve, every, look)
        ends.setdefault(round(curve[-1], 6), []).append((name, look["color"]))
    low, high = ax.get_ylim()
    last, height = every * (max(len(curve) for curve in curves.values()) - 1), -float("inf")
    for end, names in sorted(ends.items()):
        height = max(end, height + 0.06 * (high - low))  # names keep clear of each other
        ax.text(last, height, "  " + " and ".join(name for name, _ in names), color=names[0][1], va="center")
    ax.set_ylabel("query loss on held-out sines")
    reached = ", ".join(f"{name} {curve[-1]:.2f}" for name, curve in curves.items())
    return Picture(figure, f"Query loss of the suspects against iteration. At the end: {reached}.")


def distances(shares: Mapping[str, float], none: str) -> Picture:
    """How far each suspect's gradient is from the exact one, over the exact one's length.

    The bar called `none` is the one with no Hessian at all; a line at its height runs through the others.
    """
    figure, ax = new_axes(height=0.4 * len(shares) + 1.1)
    names = list(shares)
    colours = [COLOURS["fomaml"] if name == none else COLOURS["truth"] for name in names]
    ax.barh(names, list(shares.values()), color=colours, height=0.6, alpha=0.75)
    ax.axvline(shares[none], color=COLOURS["fomaml"], linestyle="--", linewidth=1.2)
    for row, share in enumerate(shares.values()):
        ax.text(
            share + 0.01 * max(shares.values()),
            row,
            f"{share:.0%}",
            va="center",
            bbox=dict(fc="white", ec="none", pad=1),
        )
    ax.invert_yaxis()
    ax.set(xlabel="relative distance from the exact gradient", xlim=(0, 1.15 * max(shares.values())))
    ax.xaxis.set_major_formatter(lambda share, _: f"{share:.0%}")
    listed = ", ".join(f"{name} {share:.0%}" for name, share in shares.items())
    return Picture(figure, f"Distance from the exact gradient, a bar for each suspect: {listed}.")


def _curve(ax: Axes, curve: Sequence[float], every: int, look: Mapping) -> None:
    ax.plot([every * i for i in range(len(curve))], curve, **look)
    ax.set_xlabel("iteration")
    ax.grid(alpha=0.25)
