"""Times and weighs the meta-gradient of this package against what else is installed. Run by hand; no part of the tests.

    python benchmarks/compare.py --problem sine --threads 1
    python benchmarks/compare.py --problem conv4 --threads 2
    python benchmarks/compare.py --growth

Contestants take turns of 0.2 s within one process, so that a busy machine slows all of them; the median call counts.
Before it is timed each must give the gradient of `autograd_maml`. Memory is the peak of a process of its own. What is
not installed is left out and named. Results and figure go to benchmarks/; README quotes them.
"""

import argparse
import json
import os
import subprocess
import sys
import time
import warnings
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np
import torch
from contestants import CONTESTANTS, pictures, sine

from maml_edu.experiments.results import provenance

HERE, STARTED = Path(__file__).parent, time.perf_counter()
PROBLEMS = {"sine": sine, "conv4": pictures}
STEPS = (1, 5, 10, 50)
TURN = 0.2  # seconds that a contestant runs before the next one does


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--problem", choices=tuple(PROBLEMS), default="sine")
    parser.add_argument("--steps", type=int, nargs="*", default=STEPS)
    parser.add_argument("--only", nargs="*", default=tuple(CONTESTANTS), help="contestants, by name")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=3.0, help="time for each contestant at each K")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--memory", action="store_true", help="peak memory instead of time")
    parser.add_argument("--growth", action="store_true", help="how cost grows with tasks, parameters and inner steps")
    parser.add_argument("--draw", action="store_true", help="only draw the figure from what is stored")
    parser.add_argument("--peak", nargs=3, metavar=("NAME", "K", "FIRST_ORDER"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if hasattr(os, "sched_setaffinity"):  # for libraries with threads of their own
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[-args.threads :])
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    if args.peak:
        name, steps, first_order = args.peak
        print(_peak(PROBLEMS[args.problem](device=args.device), name, int(steps), first_order == "True"))
    elif args.draw:
        draw()
    elif args.growth:
        _store("growth", {"rows": growth(), "provenance": _where(args)})
    elif args.memory:
        _store(f"{args.problem}_memory", {"rows": memory(args), "provenance": _where(args)})
    else:
        rows = [row for first_order in (False, True) for k in args.steps for row in compare(args, k, first_order)]
        _store(args.problem, {"rows": rows, "provenance": _where(args)})
        print(table(rows))


def _where(args):
    where = provenance(0, time.perf_counter() - STARTED, args.device)
    for name in ("higher", "torchopt", "jax"):
        try:
            where["versions"][name] = version(name)
        except PackageNotFoundError:
            where["versions"][name] = None
    return where


def _store(name, found):
    (HERE / f"{name}.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print(f"wrote {HERE / name}.json")


# ---------------------------------------------------------------- time


def compare(args, steps, first_order):
    """A row per contestant: milliseconds (median), how many calls, the relative difference of its gradient."""
    problem = PROBLEMS[args.problem](device=args.device)
    rows, running = [], {}
    reference = None if first_order else CONTESTANTS["maml_edu, unrolled"](problem, steps, False)()
    for name in args.only:
        row = {"problem": args.problem, "K": steps, "first_order": first_order, "contestant": name}
        rows.append(row)
        try:
            running[name] = CONTESTANTS[name](problem, steps, first_order)
            g = running[name]()
        except (ImportError, NotImplementedError) as why:
            row["skipped"] = "not installed" if isinstance(why, ImportError) else str(why) or "not offered"
            running.pop(name, None)
            continue
        reference = g if reference is None else reference  # first order has no second route of ours: the first counts
        row["error"] = _difference(g, reference)
        if row["error"] > 1e-2:
            raise SystemExit(f"{name} computes another gradient, K = {steps}: off by {row['error']:.1e}")
    print(f"{args.problem}, K = {steps}, {'first order' if first_order else 'exact'}", file=sys.stderr)
    times = {name: [] for name in running}
    while waiting := [n for n, t in times.items() if not _enough(t, args.seconds)]:
        for name in waiting:
            if not times[name] or times[name][-1] < 1:
                running[name]()  # what the others left in the caches is not this one's fault
            turn = []
            while sum(turn) < TURN:
                started = time.perf_counter()
                running[name]()
                _wait(args.device)
                turn.append(time.perf_counter() - started)
            times[name] += turn
    for row in rows:
        if row["contestant"] in times:
            row["ms"] = float(np.median(times[row["contestant"]])) * 1e3
            row["runs"] = len(times[row["contestant"]])
    return rows


def _enough(times, seconds):
    return sum(times) >= seconds and (len(times) >= 3 or times[-1] > 3)


def _wait(device):
    if str(device).startswith("cuda"):
        torch.cuda.synchronize()


def _difference(a, b):
    """‖a − b‖ / ‖b‖ over all parameters."""
    a, b = (
        {name: np.asarray(t.detach().cpu() if hasattr(t, "detach") else t) for name, t in g.items()} for g in (a, b)
    )
    square = sum(float(((a[name] - b[name]) ** 2).sum()) for name in b)
    return (square / sum(float((b[name] ** 2).sum()) for name in b)) ** 0.5


def table(rows):
    """Ratios to this package's eager step, exact and first order."""
    lines = []
    for first_order in (False, True):
        some = [row for row in rows if row["first_order"] == first_order]
        steps = sorted({row["K"] for row in some})
        base = {row["K"]: row["ms"] for row in some if row["contestant"] == "maml_edu"}
        lines.append("first order" if first_order else "exact")
        for name in dict.fromkeys(row["contestant"] for row in some):
            cells = []
            for k in steps:
                row = next(r for r in some if r["K"] == k and r["contestant"] == name)
                cells.append(f"{row['ms']:9.2f} ms {row['ms'] / base[k]:6.2f}×" if "ms" in row else f"{'–':>19}")
            lines.append(f"  {name:20s}" + "".join(cells))
    return "\n".join(lines)


# ---------------------------------------------------------------- memory


def memory(args):
    rows = []
    for name in args.only:
        for steps in args.steps:
            print(f"{args.problem}, K = {steps}, {name}", file=sys.stderr)
            row = {"contestant": name, "K": steps, "first_order": False}
            rows.append(row | {"MiB": _peak_elsewhere(args, name, steps, False)})
    return rows


def _peak_elsewhere(args, name, steps, first_order):
    command = [sys.executable, __file__, "--problem", args.problem, "--device", args.device]
    command += ["--threads", str(args.threads), "--peak", name, str(steps), str(first_order)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(done.stdout.split()[-1])


def _peak(problem, name, steps, first_order):
    """What the first call adds to the memory of a fresh process, MiB (Linux: resident memory; CUDA: allocated).

    Compilation counts where there is any.
    """
    call = CONTESTANTS[name](problem, steps, first_order)
    if problem.batch.support_x.is_cuda:
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    CONTESTANTS["maml_edu"](sine(tasks=2), 1, False)()  # libraries that load on first use
    before = _status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")
    call()
    return (_status("VmHWM") - before) / 1024


def _status(key):
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(key)).split()[1])


# ---------------------------------------------------------------- growth


def growth():
    """Milliseconds of one exact meta-gradient while tasks, parameters or inner steps grow, eager; the sine network."""
    rows = []
    for what, values, make in (
        ("tasks", (1, 4, 16, 64, 256, 1024), lambda v: (sine(tasks=v), 1)),
        ("hidden units", (10, 20, 40, 80, 160, 320), lambda v: (sine(hidden=v), 1)),
        ("inner steps", (1, 2, 5, 10, 20, 50), lambda v: (sine(), v)),
    ):
        for value in values:
            problem, steps = make(value)
            row = {"what": what, "value": value, "parameters": sum(p.numel() for p in problem.model.theta.values())}
            for name in ("maml_edu", "loop over tasks"):
                call, taken = CONTESTANTS[name](problem, steps, False), []
                call()
                for _ in range(11):
                    started = time.perf_counter()
                    call()
                    taken.append(time.perf_counter() - started)
                row[name] = float(np.median(taken)) * 1e3
            rows.append(row)
    return rows


# ---------------------------------------------------------------- figure


def draw():
    """benchmark.png: memory against inner steps beside the unrolled loop's; time against tasks, parameters, steps."""
    import matplotlib.pyplot as plt

    from maml_edu.figures.style import STYLES, apply_style

    apply_style()
    memory, rows = _stored("conv4_memory"), _stored("growth")
    fig, axes = plt.subplots(2, 2, figsize=(8, 6.4), layout="constrained")
    ax = axes[0, 0]
    for name, look in (("maml_edu", "maml"), ("maml_edu, unrolled", "fomaml"), ("torch.func.vmap", "reptile")):
        some = [row for row in memory if row["contestant"] == name]
        ax.loglog([r["K"] for r in some], [r["MiB"] for r in some], **STYLES[look] | {"label": name})
    ax.set_title("conv4, 32 tasks, 64 filters", fontsize=12)
    ax.set_xlabel("inner steps K")
    ax.set_ylabel("peak memory, MiB")
    ax.legend(fontsize=10)
    for ax, what in zip((axes[0, 1], axes[1, 0], axes[1, 1]), ("inner steps", "tasks", "hidden units")):
        some = [row for row in rows if row["what"] == what]
        x = [row["parameters" if what == "hidden units" else "value"] for row in some]
        for name, look in (("maml_edu", "maml"), ("loop over tasks", "joint")):
            ax.loglog(x, [row[name] for row in some], **STYLES[look] | {"label": name})
        ax.set_title("sine network, 40 hidden units" if what != "hidden units" else "sine network", fontsize=12)
        ax.set_xlabel({"hidden units": "parameters", "inner steps": "inner steps K"}.get(what, what))
        ax.set_ylabel("one meta-gradient, ms")
        ax.legend(fontsize=10)
    for ax in axes.flat:
        ax.grid(alpha=0.25)
    fig.savefig(HERE / "benchmark.png", dpi=110, bbox_inches="tight", metadata={"Software": None})


def _stored(name):
    return json.loads((HERE / f"{name}.json").read_text(encoding="utf-8"))["rows"]


if __name__ == "__main__":
    main()
