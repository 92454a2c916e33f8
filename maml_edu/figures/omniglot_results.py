"""Tables and a figure of the stored results that notebook 08 puts beside the published ones."""

from __future__ import annotations

from collections.abc import Mapping

from matplotlib.axes import Axes

from ..results import PUBLISHED_OMNIGLOT, headline, over_seeds
from ..results import omniglot_runs as _runs
from .style import COLOURS, points

__all__ = ["omniglot_runs", "omniglot_table", "step_size_study"]

SETTINGS = ((5, 1), (5, 5), (20, 1), (20, 5))  # the columns (ways, shots) of PUBLISHED_OMNIGLOT


def omniglot_table(results: Mapping[str, dict]) -> str:
    """The published accuracies, and under them every stored Omniglot result at the step fixed in its protocol."""
    rows = [("method",) + tuple(f"{n}-way {k}-shot" for n, k in SETTINGS)]
    rows += [
        (name,) + tuple(_percent(cell, _digits(cells)) for cell in cells) for name, cells in PUBLISHED_OMNIGLOT.items()
    ]
    ours: dict[str, dict[tuple[int, int], str]] = {}
    for (method, learned, device, ways, shots), runs in _runs(results).items():
        found = over_seeds(list(runs.values()))
        text = "diverged" if found is None else _percent(tuple(100 * x for x in found), bold=True)
        several = f" ({len(runs)} seeds)" if len(runs) > 1 else ""
        ours.setdefault(_label(method, learned, device), {})[ways, shots] = text + several
    if not any(name.endswith("GPU") for name in ours):
        ours[_label("maml", False, "cuda")] = {}  # nobody has run it here yet
    rows += [(f"**here: {name}**",) + tuple(cells.get(s, "–") for s in SETTINGS) for name, cells in ours.items()]
    return _markdown(rows)


def omniglot_runs(results: Mapping[str, dict]) -> str:
    """Protocol and provenance of every stored Omniglot result."""
    rows = [("result", "accuracy, %", "split, network", "training", "inner steps, α", "where, how long")]
    for name, r in (one for group in _runs(results).values() for one in group.items()):
        p, where = r["protocol"], r["provenance"]
        score = headline(r)
        diverged = score["mean"] is None
        accuracy = "diverged" if diverged else _percent((100 * score["mean"], 100 * score["half_width"]))
        rate = "learned per tensor and step" if p.get("alpha_learned") else f"α = {p['alpha']}"
        rows.append(
            (
                f"`{name}`",
                f"{accuracy} ({p['tasks']} tasks, {p['statistics']})",
                f"{p['split']}, {p['filters']} filters",
                f"{p['iterations']:,} × {p['meta_batch']} tasks, {p['outer']}",
                f"{p['inner_steps_train']} → {p['inner_steps']}, {rate}",
                f"{where['hardware']}, {where['seconds'] / 60:.0f} min",
            )
        )
    return _markdown(rows)


def _label(method, learned, device):
    name = {"maml": "MAML", "fomaml": "FOMAML", "reptile": "Reptile"}.get(method, method)
    return name + (", learned α" if learned else "") + (", CPU" if device == "cpu" else ", GPU")


def _digits(cells):
    """Decimals enough for every number of a published row."""
    numbers = [number for cell in cells if cell for number in cell if number is not None]
    return 1 if all(round(number, 1) == number for number in numbers) else 2


def _percent(cell, digits=1, bold=False):
    if cell is None:
        return "–"
    mean, half = cell
    text = f"{mean:.1f}" if half is None else f"{mean:.{digits}f} ± {half:.{digits}f}"
    return f"**{text}**" if bold else text


def _markdown(rows):
    lines = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([lines[0], "|" + "---|" * len(rows[0]), *lines[1:]])


# ---------------------------------------------------------------- the step size at 20 ways


def step_size_study(ax: Axes, results: Mapping[str, dict]) -> Axes:
    """Accuracy in % of the runs `…_alpha<α>_seed<s>`: a mark with its interval per seed, a bar at the mean per α."""
    groups: dict[str, list[dict]] = {}
    for name, r in sorted(results.items()):
        if "_maml_alpha" in name and name.startswith("omniglot_20way_1shot"):
            learned = r["protocol"].get("alpha_learned")
            groups.setdefault("learned" if learned else f"{r['protocol']['alpha']:g}", []).append(r)
    shown = sorted(groups, key=lambda label: (label == "learned", label))
    for place, label in enumerate(shown):
        runs = groups[label]
        mean, _ = over_seeds(runs)
        ax.plot([place - 0.25, place + 0.25], [100 * mean] * 2, color=COLOURS["truth"], linewidth=1.5)
        for i, score in enumerate(map(headline, runs)):
            at = place + 0.14 * (2 * i - len(runs) + 1)
            ax.errorbar(at, 100 * score["mean"], yerr=100 * score["half_width"], capsize=4, **points("maml"))
    ax.set_xticks(range(len(shown)), [label if label == "learned" else f"α = {label}" for label in shown])
    ax.set_xlim(-0.5, len(shown) - 0.5)
    ax.set_ylabel("queries right, %")
    ax.grid(axis="y", alpha=0.25)
    return ax
