"""Results of runs as JSON, with their provenance."""

import json
import math
import os
import platform
import re
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from datetime import date
from pathlib import Path

import torch

from maml_edu.data.atomic_write import write_atomically
from maml_edu.engine import distributed
from maml_edu.evaluation import StepScore


def provenance(seed: int, seconds: float, device: str = "cpu", command: str | None = None) -> dict:
    """What ran where: hardware, device, versions, seed, command, seconds, date, and the commit if the code is in git.

    command: as one types it in the repository's root; None for the script that is running.
    """
    made = {
        "hardware": _hardware(device),
        "device": str(device),
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
        "seed": seed,
        "command": command or f"python {_from_the_root(sys.argv[0])} {shlex.join(sys.argv[1:])}".rstrip(),
        "seconds": round(seconds, 1),
        "date": date.today().isoformat(),
    }
    return made | ({"commit": commit} if (commit := _commit()) else {})


def typed(arguments: Sequence[str]) -> str:
    """A command line of this package, with torchrun where it started several processes."""
    start = f"torchrun --nproc-per-node {distributed.size()}" if distributed.size() > 1 else "python"
    return f"{start} -m maml_edu {shlex.join(arguments)}".rstrip()


def _commit() -> str | None:
    """The commit that is checked out, with "-dirty" where files differ from it; None outside of git."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():  # installed somewhere else: not our commit, whatever repository is around it
        return None
    describe = [
        "git",
        "--no-optional-locks",
        "-C",
        str(root),
        "describe",
        "--always",
        "--dirty",
        "--abbrev=40",
        "--exclude=*",
    ]
    try:
        return subprocess.run(describe, capture_output=True, text=True, timeout=10, check=True).stdout.strip() or None
    except (OSError, subprocess.SubprocessError):
        return None


def _from_the_root(script: str) -> str:
    """A script's path as it is typed in the repository's root, so that no folder of this machine is recorded."""
    path, root = Path(script).resolve(), Path(__file__).resolve().parents[2]
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else path.name


def _hardware(device: str) -> str:
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


def result(
    experiment: str,
    method: str,
    protocol: dict,
    scores: list[StepScore],
    provenance: dict,
    **more: object,
) -> dict:
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


def _rounded(value: object) -> object:
    """Six digits; what is not finite becomes null, as JSON has no word for it."""
    if not isinstance(value, float):
        return value
    return float(f"{value:.6g}") if math.isfinite(value) else None


def write_result(path: str | Path, result: dict) -> None:
    """A result as JSON; no half-written one is ever read."""
    write_atomically(path, json.dumps(result, indent=1, ensure_ascii=False) + "\n")


def read_result(path: str | Path) -> dict:
    """One stored result. Raises ValueError, naming the file, if it is damaged or no result."""
    try:
        stored = json.loads(Path(path).read_text(encoding="utf-8"))
        _check_form(stored)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(
            f"{path} is not a result, or is damaged ({type(error).__name__}: {error}); restore it, or take it away"
        ) from error
    return stored


def _check_form(stored: dict) -> None:
    for name in ("experiment", "method"):
        if not isinstance(stored[name], str):
            raise ValueError(f"{name} is no text")
    for step, score in enumerate(stored["per_step"]):
        numbers = [score[name] for name in ("mean", "half_width", "median")]
        if score["step"] != step or not all(value is None or isinstance(value, (int, float)) for value in numbers):
            raise ValueError(f"the score after step {step} is not one")
    if stored["protocol"]["inner_steps"] not in range(len(stored["per_step"])):
        raise ValueError("there is no score after inner_steps")
    stored["provenance"]["device"].split(":")


def read_results(folder: str | Path = "results") -> dict[str, dict]:
    """All stored results of a folder, by file name without .json.

    Raises FileNotFoundError if there is no such folder, ValueError if one of the files is damaged.
    """
    if not Path(folder).is_dir():
        raise FileNotFoundError(f"there is no folder {folder!s} in {Path.cwd()}: notebooks are run in their own folder")
    return {p.stem: read_result(p) for p in sorted(Path(folder).glob("*.json"))}


def headline(result: dict) -> dict:
    """The score after the number of inner steps that the protocol fixed in advance."""
    return next(s for s in result["per_step"] if s["step"] == result["protocol"]["inner_steps"])


def omniglot_runs(results: Mapping[str, dict]) -> dict[tuple, dict[str, dict]]:
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


def over_seeds(runs: Sequence[dict]) -> tuple[float, float] | None:
    """Mean accuracy over runs, and the half-width of its 95 % interval over all their test tasks together.

    The interval says how well these networks are known from their test tasks, not how other seeds would do. None if a
    task of any run diverged.
    """
    scores = [headline(r) for r in runs]
    if any(score["mean"] is None for score in scores):
        return None
    mean = sum(score["mean"] for score in scores) / len(scores)
    return mean, math.sqrt(sum(score["half_width"] ** 2 for score in scores)) / len(scores)
