"""Results of runs as JSON with their provenance, and the published numbers they stand beside."""

import json
import math
import os
import platform
import re
import shlex
import sys
from datetime import date
from pathlib import Path

import torch

from maml_edu.data.atomic_write import write_whole
from maml_edu.engine import distributed
from maml_edu.evaluation import StepScore

# Sine, 5-shot MSE after 1, 5, 10 steps. Source: Finn, Abbeel & Levine (2017), Table 2.
PUBLISHED_SINE = {
    "MAML": {1: 0.67, 5: 0.38, 10: 0.35},
    "pre-trained on all tasks": {1: 2.41, 5: 2.23, 10: 2.19},
    "multi-task, 500 networks averaged": {1: 4.19, 5: 3.85, 10: 3.69},
}

# Omniglot, accuracy and half-width in %, columns 5-way 1-shot, 5-way 5-shot, 20-way 1-shot, 20-way 5-shot.
# Sources: Finn et al. (2017), Table 1; Nichol et al. (2018), Table 2; Snell et al. (2017), Table 1;
# Vinyals et al. (2016), Table 1; Li et al. (2017), Table 2; Rajeswaran et al. (2019), Table 2.
PUBLISHED_OMNIGLOT = {
    "MAML": ((98.7, 0.4), (99.9, 0.1), (95.8, 0.3), (98.9, 0.2)),
    "MAML, fully connected": ((89.7, 1.1), (97.5, 0.6), None, None),
    "FOMAML, transductive": ((98.3, 0.5), (99.2, 0.2), (89.4, 0.5), (97.9, 0.1)),
    "Reptile": ((95.39, 0.09), (98.90, 0.10), (88.14, 0.15), (96.65, 0.33)),
    "Reptile, transductive": ((97.68, 0.04), (99.48, 0.06), (89.43, 0.14), (97.12, 0.32)),
    "Matching networks": ((98.1, None), (98.9, None), (93.8, None), (98.5, None)),
    "Prototypical networks": ((98.8, None), (99.7, None), (96.0, None), (98.9, None)),
    "iMAML, gradient descent": ((99.16, 0.35), (99.67, 0.12), (94.46, 0.42), (98.69, 0.1)),
    "iMAML, Hessian-free": ((99.50, 0.26), (99.74, 0.11), (96.18, 0.36), (99.14, 0.1)),
    "Meta-SGD": ((99.53, 0.26), (99.93, 0.09), (95.9, None), (99.0, None)),
}


def provenance(seed: int, seconds: float, device: str = "cpu", command: str | None = None) -> dict:
    """What ran where: hardware, device, versions, seed, command, seconds, date."""
    if command is None:
        start = f"torchrun --nproc-per-node {distributed.size()}" if distributed.size() > 1 else "python"
        program = "-m maml_edu" if Path(sys.argv[0]).parent.name == "maml_edu" else _from_the_root(sys.argv[0])
        command = f"{start} {program} {shlex.join(sys.argv[1:])}".rstrip()
    return {
        "hardware": _hardware(device),
        "device": str(device),
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
        "seed": seed,
        "command": command,
        "seconds": round(seconds, 1),
        "date": date.today().isoformat(),
    }


def _from_the_root(script):
    """A script's path as it is typed in the repository's root, so that no folder of this machine is recorded."""
    script, root = Path(script).resolve(), Path(__file__).resolve().parents[2]
    return script.relative_to(root).as_posix() if script.is_relative_to(root) else script.name


def _hardware(device):
    if str(device).startswith("cuda"):
        return torch.cuda.get_device_name(device)
    name = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        models = [
            line.split(":", 1)[1].strip() for line in cpuinfo.read_text().splitlines() if line.startswith("model name")
        ]
        name = models[0] if models else name
    used = f"{torch.get_num_threads()} thread(s) used"
    if distributed.size() > 1:
        used = f"{distributed.size()} processes, {used} in each"
    return f"{name}, {os.cpu_count()} cores, {used}"


def result(experiment: str, method: str, protocol: dict, scores: list[StepScore], provenance: dict, **more) -> dict:
    """A result in the form that notebooks/results/ holds; scores as `evaluate` returns them."""
    per_step = [{k: _rounded(v) for k, v in s._asdict().items() if k != "values"} for s in scores]
    return {
        "experiment": experiment,
        "method": method,
        "protocol": protocol,
        "per_step": per_step,
        **more,
        "provenance": provenance,
    }


def _rounded(value):
    """Six digits; what is not finite becomes null, as JSON has no word for it."""
    if not isinstance(value, float):
        return value
    return float(f"{value:.6g}") if math.isfinite(value) else None


def write_result(path: str | Path, result: dict) -> None:
    """A result as JSON; no half-written one is ever read."""
    write_whole(path, json.dumps(result, indent=1, ensure_ascii=False) + "\n")


def read_results(folder: str | Path = "results") -> dict[str, dict]:
    """All stored results of a folder, by file name without .json; FileNotFoundError if there is no such folder."""
    if not Path(folder).is_dir():
        raise FileNotFoundError(f"there is no folder {folder!s} in {Path.cwd()}: notebooks are run in their own folder")
    return {p.stem: json.loads(p.read_text(encoding="utf-8")) for p in sorted(Path(folder).glob("*.json"))}


def headline(result: dict) -> dict:
    """The score after the number of inner steps that the protocol fixed in advance."""
    return next(s for s in result["per_step"] if s["step"] == result["protocol"]["inner_steps"])


def omniglot_runs(results: dict[str, dict]) -> dict[tuple, dict[str, dict]]:
    """The runs on Omniglot, by (method, α learned or not, "cpu" or "cuda", ways, test shots): one run per seed in each.

    Files of a study (omniglot_20way_1shot_maml_alpha0.4.json: a note after the method that is no seed) are left out.
    """
    groups: dict[tuple, dict[str, dict]] = {}
    for name, r in results.items():
        if re.fullmatch(r"omniglot_\d+way_\d+shot_[a-z]+(_seed\d+)?", name):
            p = r["protocol"]
            device = r["provenance"]["device"].split(":")[0]
            key = (r["method"], bool(p.get("alpha_learned")), device, p["ways"], p["test_shots"])
            groups.setdefault(key, {})[name] = r
    return groups


def over_seeds(runs: list[dict]) -> tuple[float, float] | None:
    """Mean accuracy over runs, and the half-width of its 95 % interval over all their test tasks together.

    The interval says how well these networks are known from their test tasks, not how other seeds would do. None if a
    task of any run diverged.
    """
    scores = [headline(r) for r in runs]
    if any(score["mean"] is None for score in scores):
        return None
    mean = sum(score["mean"] for score in scores) / len(scores)
    return mean, math.sqrt(sum(score["half_width"] ** 2 for score in scores)) / len(scores)
