"""Renew every table that is drawn from stored numbers, and README's picture: `python tools/stored_tables.py`."""

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path

import torch

from maml_edu.engine.checkpoint_files import load_checkpoint
from maml_edu.experiments.published import PUBLISHED_NAVIGATION, PUBLISHED_OMNIGLOT, PUBLISHED_SINE
from maml_edu.experiments.results import headline, omniglot_runs, over_seeds, read_results
from maml_edu.figures.nb05_sine_regression import adaptation
from maml_edu.figures.style import new_axes
from maml_edu.meta_gradient import adapt
from maml_edu.models import mlp, mse

ROOT = Path(__file__).resolve().parent.parent
README = ROOT / "README.md"
BENCHMARKS = ROOT / "benchmarks"
RESULTS = ROOT / "notebooks" / "results"
SETTINGS = ((5, 1), (5, 5), (20, 1), (20, 5))  # the columns (ways, shots) of PUBLISHED_OMNIGLOT


def sine_table() -> str:
    """Sine regression beside the paper's numbers."""
    stored = read_results(RESULTS)
    lines = ["| sine regression, 5-shot MSE | 1 step | 5 steps | 10 steps |", "|---|---|---|---|"]
    for label, row in PUBLISHED_SINE.items():
        lines.append(f"| published: {label} | " + " | ".join(f"{row[s]:.2f}" for s in (1, 5, 10)) + " |")
    for method, label in (
        ("maml", "MAML"),
        ("fomaml", "FOMAML"),
        ("reptile", "Reptile"),
        ("joint", "pre-trained on all tasks"),
    ):
        one = stored[f"sine_5shot_{method}"]
        at = {s["step"]: s for s in one["per_step"]}
        cells = [f"{at[s]['mean']:.2f} ± {at[s]['half_width']:.2f}" for s in (1, 5, 10)]
        lines.append(f"| ours: {label}, α = {one['protocol']['alpha']:g} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def omniglot_table() -> str:
    """Omniglot beside the published numbers, a row for each method."""
    heads = " | ".join(f"{ways}-way {shots}-shot" for ways, shots in SETTINGS)
    lines = [f"| Omniglot, accuracy in % | {heads} |", "|---|---|---|---|---|"]
    ours: dict[str, dict[tuple[int, int], str]] = {}
    for (method, _, _, ways, shots), runs in omniglot_runs(read_results(RESULTS)).items():
        mean, half = over_seeds(list(runs.values())) or (float("nan"), float("nan"))
        seeds = f"{len(runs)} seeds" if len(runs) > 1 else "one run"
        ours.setdefault(method, {})[ways, shots] = f"{100 * mean:.1f} ± {100 * half:.1f} ({seeds})"
    for method, label, source in (("maml", "MAML", "MAML"), ("fomaml", "FOMAML", "FOMAML, transductive")):
        published = dict(zip(SETTINGS, (f"{mean} ± {half}" for mean, half in PUBLISHED_OMNIGLOT[source])))
        for whose, row in (("published", published), ("ours", ours.get(method, {}))):
            lines.append(f"| {whose}: {label} | {' | '.join(row.get(setting, '–') for setting in SETTINGS)} |")
    return "\n".join(lines) + "\n"


def omniglot_protocols() -> str:
    """How each stored Omniglot result was made."""
    lines = ["| Omniglot | protocol | accuracy in % |", "|---|---|---|"]
    for (method, learned, _, ways, shots), runs in omniglot_runs(read_results(RESULTS)).items():
        one = next(iter(runs.values()))
        p, where = one["protocol"], one["provenance"]
        minutes = sorted(round(r["provenance"]["seconds"] / 60) for r in runs.values())
        took = f"{minutes[0]}–{minutes[-1]} min each" if minutes[0] < minutes[-1] else f"{minutes[0]} min"
        protocol = (
            f"{ways}-way {shots}-shot, {p['filters']} filters, {p['iterations']:,} iterations, "
            f"{'learned α, ' if learned else ''}{p['split']} split, {p['tasks']} test tasks, "
            f"{f'mean of {len(runs)} seeds, ' if len(runs) > 1 else ''}{took} on {where['hardware']}"
        )
        mean, half = over_seeds(list(runs.values())) or (float("nan"), float("nan"))
        lines.append(f"| {method.upper()} | {protocol} | {100 * mean:.1f} ± {100 * half:.1f} |")
    return "\n".join(lines) + "\n"


STARTS = {
    "maml": "MAML",
    "prototypes": "prototypical network",
    "protomaml": "ProtoMAML",
    "hypernetwork": "hypernetwork and inner loop",
    "process": "conditional neural process",
}


def starts_table() -> str:
    """Notebook 12: the same episodes, network and number of training tasks for every method."""
    lines = ["| 5-way 1-shot, same episodes for all | training tasks | inner steps | accuracy |", "|---|---|---|---|"]
    for name, stored in read_results(RESULTS).items():
        method, _, note = name.removeprefix("omniglot_5way_1shot_").partition("_")
        if method in STARTS and note in ("families", "longer"):
            p, score = stored["protocol"], headline(stored)
            tasks = f"{p['meta_batch'] * p['iterations']:,}"
            accuracy = f"{100 * score['mean']:.1f} ± {100 * score['half_width']:.1f}"
            lines.append(f"| {STARTS[method]} | {tasks} | {p['inner_steps']} | {accuracy} |")
    return "\n".join(lines) + "\n"


def navigation_table() -> str:
    """Notebook 13: return on new goals, mean of the runs with different seeds, beside the published one."""
    lines = ["| 2-D navigation, mean return | 0 steps | 1 step | 2 steps | 3 steps |", "|---|---|---|---|---|"]
    for name in ("MAML", "pre-trained"):
        cells = [f"{value:.1f}" for value in PUBLISHED_NAVIGATION[name][:4]]
        lines.append(f"| published: {name} | {' | '.join(cells)} |")
    for method, label in (("maml", "MAML"), ("joint", "pre-trained")):
        stored = read_results(RESULTS).items()
        runs = [r for name, r in stored if re.fullmatch(rf"navigation_{method}_seed\d", name)]
        cells = [f"{sum(r['per_step'][step]['mean'] for r in runs) / len(runs):.1f}" for step in range(4)]
        seeds = f"{len(runs)} seeds" if len(runs) > 1 else "one seed"
        seconds = max(r["training"]["cpu_seconds"] for r in runs)
        lines.append(f"| ours: {label}, {seeds}, at most {seconds:.0f} s of CPU time each | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def benchmark_table() -> str:
    """One meta-gradient by several tools: the stored milliseconds, and how many times ours that is."""
    lines, where = [], []
    for order in ("exact", "first order"):
        cells, columns = {}, []
        for problem, shown in (("sine", "sine"), ("conv4", "conv4")):
            stored = json.loads((BENCHMARKS / f"{problem}.json").read_text(encoding="utf-8"))
            rows = [r for r in stored["rows"] if r["first_order"] == (order == "first order") and r["K"] in (1, 5)]
            for steps in sorted({r["K"] for r in rows}):
                columns.append(f"{shown}, K = {steps}")
                ours = next(r["ms"] for r in rows if r["K"] == steps and r["contestant"] == "maml_edu")
                for r in rows:
                    if r["K"] == steps:
                        cell = f"{_three_digits(r['ms'])} ms ({r['ms'] / ours:.2g} ×)" if "ms" in r else "–"
                        cells.setdefault(r["contestant"], {})[columns[-1]] = cell
            where.append(f"{shown}: {stored['provenance']['hardware']}, {stored['provenance']['date']}")
        lines += [f"| {order} | {' | '.join(columns)} |", "|---|" + "---|" * len(columns)]
        for name, row in cells.items():
            if any(cell != "–" for cell in row.values()):
                lines.append(f"| {name} | {' | '.join(row.get(c, '–') for c in columns)} |")
        lines.append("")
    memory = json.loads((BENCHMARKS / "conv4_memory.json").read_text(encoding="utf-8"))
    weighed = {}
    for row in memory["rows"]:
        if not row["first_order"]:
            weighed.setdefault(row["contestant"], {})[row["K"]] = row["MiB"]
    steps = sorted({row["K"] for row in memory["rows"]})
    lines += [f"| memory, conv4, exact | {' | '.join(f'K = {K}' for K in steps)} |", "|---|" + "---|" * len(steps)]
    lines += [f"| {name} | {' | '.join(f'{row[K]:,.0f} MiB' for K in steps)} |" for name, row in weighed.items()]
    lines.append("")
    versions = stored["provenance"]["versions"]
    used = ", ".join(
        f"{name} {versions[name]}" for name in ("torch", "higher", "torchopt", "jax") if versions.get(name)
    )
    return "\n".join([*lines, f"{'; '.join(dict.fromkeys(where))}; {used}."]) + "\n"


def _three_digits(number):
    return f"{float(f'{number:.3g}'):,g}"


# page -> name of the markers around a table -> what draws it
PAGES: Mapping[Path, Mapping[str, Callable[[], str]]] = {
    README: {"sine": sine_table, "omniglot": omniglot_table},
    RESULTS / "README.md": {"omniglot": omniglot_protocols, "starts": starts_table, "navigation": navigation_table},
    BENCHMARKS / "README.md": {"benchmark": benchmark_table},
}


def between(text: str, name: str) -> tuple[int, int]:
    """Where a generated table stands in a page: its start and end."""
    start = text.index(f"<!-- {name} -->\n") + len(f"<!-- {name} -->\n")
    return start, text.index(f"<!-- /{name} -->")


def draw_picture(path: Path) -> None:
    """One unknown sine, five points, one gradient step, from two shipped initialisations."""
    net, grid = mlp(), torch.linspace(-5, 5, 300)
    x = torch.tensor([-4.2, -3.2, -2.0, 0.6, 1.6]).view(1, -1, 1)
    y, truth = 3.0 * torch.sin(x - 0.6), 3.0 * torch.sin(grid - 0.6)
    fig, axes = new_axes(columns=2, height=3.4)
    axes[1].sharey(axes[0])
    for ax, (name, title) in zip(axes, (("sine_maml", "MAML"), ("sine_joint", "pre-trained on all sines"))):
        trained, settings = load_checkpoint(name)
        path_of = adapt(mse(net.apply), trained.theta, x, y, settings["protocol"]["alpha"], 1)
        with torch.no_grad():
            shown = {step: net.apply(path_of[step], grid.view(1, -1, 1)).flatten() for step in (0, 1)}
        adaptation(ax, grid, truth, (x.flatten(), y.flatten()), shown, title)
    fig.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
    path.parent.mkdir(exist_ok=True)
    fig.savefig(path, dpi=110, bbox_inches="tight", metadata={"Software": None})


def write() -> None:
    """Put every table and the picture in its place."""
    for page, tables in PAGES.items():
        for name, table in tables.items():
            text = page.read_text(encoding="utf-8")
            start, end = between(text, name)
            page.write_text(text[:start] + table() + text[end:], encoding="utf-8")
    draw_picture(ROOT / "notebooks" / "images" / "adaptation.png")


if __name__ == "__main__":
    write()
