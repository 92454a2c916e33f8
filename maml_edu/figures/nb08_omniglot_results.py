"""The stored results of notebook 08: a table in which they're next to published ones, and a study of step sizes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from IPython.display import Markdown

from maml_edu.experiments.published import PUBLISHED_OMNIGLOT
from maml_edu.experiments.results import omniglot_runs, over_seeds
from maml_edu.figures.style import COLOURS, STYLES, Picture, new_axes

__all__ = ["step_size_study", "table"]

Cell = tuple[float, float | None] | None  # of a table: accuracy in %, half-width of its interval

SETTINGS = ((5, 1), (5, 5), (20, 1), (20, 5))  # the columns (ways, shots) of PUBLISHED_OMNIGLOT


def table(results: Mapping[str, dict]) -> Markdown:
    """The published accuracies, and under them every stored Omniglot result at the step fixed in its protocol."""
    rows = [("method",) + tuple(f"{n}-way {k}-shot" for n, k in SETTINGS)]
    rows += [
        (name,) + tuple(_percent(cell, _digits(cells)) for cell in cells) for name, cells in PUBLISHED_OMNIGLOT.items()
    ]
    ours: dict[str, dict[tuple[int, int], str]] = {}
    for (method, learned, device, ways, shots), runs in omniglot_runs(results).items():
        score = over_seeds(list(runs.values()))
        text = "diverged" if score is None else _percent((100 * score[0], 100 * score[1]), bold=True)
        several = f" ({len(runs)} seeds)" if len(runs) > 1 else ""
        ours.setdefault(_label(method, learned, device), {})[ways, shots] = text + several
    rows += [(f"**here: {name}**",) + tuple(cells.get(s, "–") for s in SETTINGS) for name, cells in ours.items()]
    lines = [f"| {' | '.join(row)} |" for row in rows]
    return Markdown("\n".join([lines[0], "|" + "---|" * len(rows[0]), *lines[1:]]))


def _label(method: str, learned: bool, device: str) -> str:
    name = {"maml": "MAML", "fomaml": "FOMAML", "reptile": "Reptile"}.get(method, method)
    return name + (", learned α" if learned else "") + (", CPU" if device == "cpu" else ", GPU")


def _digits(cells: Sequence[Cell]) -> int:
    """Decimals enough for every number of a published row."""
    numbers = [number for cell in cells if cell for number in cell if number is not None]
    return 1 if all(round(number, 1) == number for number in numbers) else 2


def _percent(cell: Cell, digits: int = 1, bold: bool = False) -> str:
    if cell is None:
        return "–"
    mean, half = cell
    text = f"{mean:.1f}" if half is None else f"{mean:.{digits}f} ± {half:.{digits}f}"
    return f"**{text}**" if bold else text


def step_size_study(study: Mapping[str, dict]) -> Picture:
    """Accuracy in % against inner steps at test, a line with 95 % intervals for every result; study: label → result.

    The last one is blue; the others are black, told apart by dashes and marks.
    """
    figure, ax = new_axes(height=3.8)
    dashes = [dict(linestyle=d, marker=m) for d, m in ((":", "D"), ("-.", "^"), ("--", "s"))]
    looks = [*({**look, "color": COLOURS["truth"], "linewidth": 1.5} for look in dashes), STYLES["maml"]]
    last, ends = max(len(r["per_step"]) for r in study.values()) - 1, []
    for (label, r), look in zip(study.items(), looks, strict=True):
        means, halves = ([100 * s[key] for s in r["per_step"]] for key in ("mean", "half_width"))
        ax.errorbar([s["step"] for s in r["per_step"]], means, yerr=halves, capsize=3, **look)
        ends.append((means[-1], label, look["color"]))
    height = -float("inf")
    for mean, label, colour in sorted(ends):
        height = max(mean, height + 6)  # labels keep clear of each other
        ax.text(
            last + 0.2,
            height - 3,
            f"{label if label == 'learned' else 'α = ' + label}: {mean:.1f}",
            color=colour,
            va="center",
        )
    ax.set(xlim=(-0.2, last + 0.1), ylim=(0, 100), xlabel="inner steps on a new task", ylabel="queries right, %")
    ax.grid(alpha=0.25)
    found = ", ".join(f"{label} {mean:.1f}" for mean, label, _ in sorted(ends))
    return Picture(figure, f"Accuracy at 20-way 1-shot against inner steps; after {last} steps, in %: {found}")
