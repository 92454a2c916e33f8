"""Figures of notebook 07: few-shot classification."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle
from matplotlib.transforms import blended_transform_factory
from torch import Tensor

from maml_edu.evaluation import StepScore
from maml_edu.figures.style import COLOURS, STYLES, Picture, apply_style, line, new_axes
from maml_edu.tasks import TaskBatch

__all__ = ["accuracies_of_starts", "deals", "leaking_scores", "quiz", "transduction_table"]

_GAP = 0.14  # between pictures, in picture widths
_SIDE_BY_SIDE = 8  # more classes than these get a row of their own

Episode = tuple[Tensor, Tensor, Tensor, Tensor]  # support pictures [n, 28, 28] and labels [n], the same of the queries
Interval = tuple[float, float]  # mean and half-width, both as fractions


# ---------------------------------------------------------------- pictures


def quiz(batch: TaskBatch, task: int, queries: Sequence[int], source: str) -> Picture:
    """The support set of one task with its labels, and below it some of its queries, without theirs."""
    ways = int(batch.support_y[task].max()) + 1
    figure, ax = _canvas(max(ways, len(queries)), 2.7)
    for x, label in zip(batch.support_x[task], batch.support_y[task].tolist()):
        _framed(ax, label, 0, x[0], "support")  # of several drawings of a class, the last one stays on top
    for column, index in enumerate(queries):
        _framed(ax, column, 1.5, batch.query_x[task, index, 0], "query")
        ax.text(column + 0.5, 2.52, "?", ha="center", va="top", fontsize=13)
    _label_columns(ax, ways)
    _name_row(ax, 0.5, "support")
    _name_row(ax, 2.0, "queries")
    ax.set_title("Which is which?" + _which_data(source))
    text = "A row of characters with labels 0, 1, 2 and so on; below it other drawings of the same, in another order."
    return Picture(figure, text)


def deals(episodes: Mapping[str, Episode], source: str) -> Picture:
    """Episodes by title, a column per label: support in solid frames above, queries in dashed frames below."""
    apply_style()
    ways, rows = _ways_and_rows(next(iter(episodes.values())))
    across = 1 if ways > _SIDE_BY_SIDE else len(episodes)
    down = -(-len(episodes) // across)
    height = 8 / across * (rows + 1.3) / (ways + 0.6)
    figure, axes = plt.subplots(
        down, across, figsize=(8, min(height, 8) * down + 0.4), squeeze=False, layout="constrained"
    )
    for ax, (title, episode) in zip(axes.flat, episodes.items()):
        _deal(ax, episode)
        ax.set_title(title + _which_data(source))
    text = "the same drawings in columns, support above, queries below; each deal gives the columns other labels."
    return Picture(figure, f"{len(episodes)} episodes: {text}")


def _ways_and_rows(episode: Episode) -> tuple[int, int]:
    """How many classes, and how many drawings of each."""
    ways = int(episode[1].max()) + 1
    return ways, (len(episode[0]) + len(episode[2])) // ways


def _deal(ax: Axes, episode: Episode) -> None:
    ways, rows = _ways_and_rows(episode)
    _limits(ax, ways, rows + 0.5)
    top = 0.0
    for side, pictures, labels in (("support", *episode[:2]), ("query", *episode[2:])):
        depth = [0] * ways
        for picture, label in zip(pictures, labels.tolist()):
            _framed(ax, label, top + depth[label], picture, side)
            depth[label] += 1
        _name_row(ax, top + max(depth) / 2, side)
        top += max(depth) + 0.25
    _label_columns(ax, ways)


def _canvas(columns: int, height: float) -> tuple[plt.Figure, Axes]:
    """An empty sheet, in picture widths."""
    apply_style()
    width = min(8.0, 1.1 * columns + 0.6)
    figure, ax = plt.subplots(figsize=(width, width * (height + 0.7) / (columns + 0.5) + 0.4), layout="constrained")
    _limits(ax, columns, height)
    return figure, ax


def _limits(ax: Axes, columns: int, height: float) -> None:
    ax.set(xlim=(-0.5, columns), ylim=(height, -0.6), aspect="equal")
    ax.axis("off")


def _label_columns(ax: Axes, ways: int) -> None:
    for label in range(ways):
        ax.text(label + 0.5, -0.08, str(label), ha="center", va="bottom", fontsize=13 if ways < 13 else 10)


def _name_row(ax: Axes, middle: float, name: str) -> None:
    size = 12 if ax.get_xlim()[1] < 13 else 9
    ax.text(-0.1, middle, name, ha="right", va="center", rotation=90, fontsize=size)


def _framed(ax: Axes, column: float, row: float, picture: Tensor, side: str) -> None:
    """A drawing [28, 28], ink = 1, in the unit square whose upper left corner is (column, row)."""
    left, upper, width = column + _GAP / 2, row + _GAP / 2, 1 - _GAP
    ax.imshow(
        np.asarray(picture.cpu(), dtype=float),
        cmap="gray_r",
        vmin=0,
        vmax=1,
        extent=(left, left + width, upper + width, upper),
        interpolation="nearest",
    )
    frame = Rectangle((left, upper), width, width, fill=False, edgecolor=COLOURS[side], linewidth=3)
    frame.set_linestyle("-" if side == "support" else (0, (3, 1.5)))
    ax.add_patch(frame)


# ---------------------------------------------------------------- scores


def accuracies_of_starts(
    scores: Mapping[str, Sequence[StepScore]], pixels: Interval, chance: float, source: str
) -> Picture:
    """Test accuracy after 0, 1, 2 … inner steps with 95 % intervals, by where the inner loop starts.

    scores: "untrained θ" and "meta-learned θ". pixels: the nearest-pixel baseline.
    """
    figure, ax = new_axes(height=4.0)
    ends, steps = {}, [0]
    for (name, of_start), key in zip(scores.items(), ("before", "maml")):
        steps = [score.step for score in of_start]
        means = [100 * score.values.mean().item() for score in of_start]
        ax.errorbar(steps, means, yerr=[100 * (s.half_width or 0.0) for s in of_start], capsize=4, **STYLES[key])
        ends[name] = (means[-1], COLOURS[key])
    middle, half = 100 * pixels[0], 100 * pixels[1]
    ax.axhline(middle, color=COLOURS["truth"], linestyle=":")
    ax.axhspan(middle - half, middle + half, color="0.88", zorder=0)
    ax.axhline(100 * chance, **line("before"), alpha=0.5)
    ends |= {"nearest pixels": (middle, COLOURS["truth"]), "chance": (100 * chance, COLOURS["before"])}
    _at_the_right(ax, ends)
    ax.set(xlabel="inner steps", ylabel="accuracy on test classes [%]", ylim=(0, 102))
    ax.set_xlim(-0.15, steps[-1] + 0.15)
    ax.set_xticks(steps)
    ax.set_title("Before and after meta-training" + _which_data(source))
    trained = list(scores.values())[-1]
    percent = ", ".join(f"{100 * score.values.mean():.0f} %" for score in trained)
    return Picture(figure, f"Accuracy from the meta-learned θ after 0, 1, … inner steps: {percent} ({source}).")


def _at_the_right(ax: Axes, ends: Mapping[str, tuple[float, str]], apart: float = 6.5) -> None:
    """Names right of the axes at the heights where their lines end, moved until none touches another."""
    lowest = -apart
    for name, (y, colour) in sorted(ends.items(), key=lambda item: item[1][0]):
        lowest = max(y, lowest + apart)
        ax.annotate(name, (1.02, lowest), xycoords=("axes fraction", "data"), va="center", color=colour)


def transduction_table(
    names: Mapping[str, str], columns: Mapping[str, Mapping[str, Interval | float]], chance: float, source: str
) -> Picture:
    """One row per source of the batch-norm statistics: a mark for the first column, and the numbers of all columns.

    names: letter -> what the row is. columns: title -> letter -> (mean, half-width), or a percentage alone, in percent.
    """
    apply_style()
    figure, ax = plt.subplots(figsize=(8.0, 0.42 * len(names) + 1.5))
    figure.subplots_adjust(left=0.26, right=0.44, top=0.8, bottom=0.16)
    beside = blended_transform_factory(figure.transFigure, ax.transData)
    first, *_ = columns.values()
    rows = {letter: row for row, letter in enumerate(names)}
    for letter, row in rows.items():
        mean, half = _both(first[letter])
        ax.errorbar(mean, row, xerr=half, capsize=5, markersize=9, marker="o", color=COLOURS["maml"])
    for place, (title, cells) in enumerate(columns.items()):
        across = 0.52 + 0.14 * place
        ax.text(across, -0.75, title, transform=beside, ha="center", va="bottom", fontsize=11)
        for letter, row in rows.items():
            number = _percent(cells[letter]) if letter in cells else "–"
            ax.text(across, row, number, transform=beside, ha="center", va="center", fontsize=11)
    ax.axvline(100 * chance, **line("before"), alpha=0.5)
    _chance_above(ax, chance)
    ax.set_yticks(range(len(names)), [f"({letter}) {name}" for letter, name in names.items()])
    ax.set(xlim=(0, 100), ylim=(len(names) - 0.5, -0.6), xlabel="here [%]")
    if source != "omniglot":
        figure.suptitle("here:" + _which_data(source))
    ax.tick_params(axis="y", length=0)
    ax.grid(axis="x", alpha=0.3)
    told = (f"{title.replace(chr(10), ' ')}: {_listed(cells)}" for title, cells in columns.items())
    return Picture(figure, f"Accuracy in percent by source of the statistics ({source}). {'; '.join(told)}.")


def _chance_above(ax: Axes, chance: float) -> None:
    ax.annotate("chance", (100 * chance, 1.0), xycoords=("data", "axes fraction"), ha="center", va="bottom")


def _both(cell: Interval | float) -> Interval:
    return cell if isinstance(cell, tuple) else (cell, 0.0)


def _percent(cell: Interval | float) -> str:
    if not isinstance(cell, tuple):
        return f"{cell:.1f}"
    mean, half = cell
    return f"{mean:.2f} ± {half:.2f}" if half < 0.095 else f"{mean:.1f} ± {half:.1f}"


def _listed(cells: Mapping[str, Interval | float]) -> str:
    return ", ".join(f"({letter}) {_percent(cell)}" for letter, cell in cells.items())


def leaking_scores(
    honest: Mapping[str, Interval], leaking: Mapping[str, Interval], chance: float, source: str
) -> Picture:
    """For each classifier its accuracy on new drawings, and where the queries are the support drawings themselves."""
    figure, ax = new_axes()
    for row, name in enumerate(honest):
        before, after = (100 * scores[name][0] for scores in (honest, leaking))
        ax.annotate("", (after - 2, row), (before + 2, row), arrowprops={"arrowstyle": "->", "color": "0.5"})
    for scores, key, label in ((honest, "maml", "new drawings"), (leaking, "fomaml", "the support drawings")):
        means, halves = _columns(scores.values())
        look = STYLES[key] | {"linestyle": "none", "markersize": 9}
        ax.errorbar(means, range(len(means)), xerr=halves, capsize=5, label=label, **look)
        for row, mean in enumerate(means):
            ax.text(mean, row - 0.16, f"{mean:.0f}", ha="center", va="bottom", color=COLOURS[key])
    ax.axvline(100 * chance, **line("before"), alpha=0.5)
    _chance_above(ax, chance)
    ax.set_yticks(range(len(honest)), list(honest))
    ax.set(xlim=(0, 106), ylim=(len(honest) - 0.5, -0.6), xlabel="accuracy [%]")
    ax.tick_params(axis="y", length=0)
    figure.legend(*ax.get_legend_handles_labels(), loc="outside lower center", ncols=2, title="queries are")
    ax.set_title("With and without the leak" + _which_data(source), pad=22)
    moves = ", ".join(f"{n} {100 * honest[n][0]:.0f} to {100 * leaking[n][0]:.0f}" for n in honest)
    return Picture(figure, f"Accuracy in percent on new drawings, then on the support drawings ({source}): {moves}.")


def _columns(scores: Iterable[Interval]) -> tuple[list[float], list[float]]:
    means, halves = zip(*scores)
    return [100 * m for m in means], [100 * h for h in halves]


def _which_data(source: str) -> str:
    """Nobody shall take synthetic characters for Omniglot."""
    return "" if source == "omniglot" else f" ({source}, not Omniglot)"
