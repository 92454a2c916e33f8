"""From what was asked for to a checked Config: defaults filled in, and every bad value refused in one line."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from maml_edu.experiments.config import (
    COMMAND_DEFAULTS,
    DEFAULTS,
    OPTIONS,
    PRESETS,
    Config,
    check_value,
    flag,
    kind_of,
)
from maml_edu.experiments.method_registry import COMPARED, METHODS, methods_of

THREADS_PER_CORE = 4  # more than this is a mistake; far more ends the process without a word


def configure(
    command: str,
    given: Mapping[str, object],
    known: Mapping[str, object] | None = None,
    arguments: Sequence[str] = (),
) -> Config:
    """A checked Config. given: what was asked for by name; known: what a checkpoint says; arguments: as typed.

    What is in neither comes from the method, the command, the preset, or the field itself, in this order.
    Raises ValueError, in one line, for a value that makes no sense or would change nothing.
    """
    asked: dict[str, Any] = {**(known or {}), **given}
    asked = {name: tuple(value) if isinstance(value, list) else value for name, value in asked.items()}
    for name, value in asked.items():
        check_value(name, value)
    if command not in ("train", "evaluate", "compare", "navigate"):
        return Config(command=command, given=tuple(given), arguments=tuple(arguments), **asked)
    preset = asked.get("preset") or (os.environ.get("MAML_EDU_PRESET") if command == "train" else None) or "quick"
    if preset not in PRESETS:  # of the environment: argparse has checked the flag
        raise ValueError(f"MAML_EDU_PRESET={preset!r} is no preset; choose smoke, quick or full")
    values: dict[str, Any] = {
        **defaults(command, asked.get("dataset", ""), preset, asked.get("method", "maml")),
        **asked,
    }
    if command == "evaluate" and "dataset" not in asked:
        if known is not None:
            raise ValueError("the checkpoint doesn't say what its tasks were; give --dataset")
        values["dataset"] = ""  # it is not read yet
    for name, as_many_as in (("queries", "shots"), ("test_shots", "shots"), ("test_queries", "test_shots")):
        values[name] = values[name] or values[as_many_as]
    if command == "compare":
        values["methods"] = tuple(dict.fromkeys(asked.get("methods") or COMPARED))
    config = Config(command=command, given=tuple(given), arguments=tuple(arguments), **{**values, "preset": preset})
    _check(config)
    return config


def defaults(command: str, dataset: str = "", preset: str = "quick", method: str = "maml") -> dict[str, object]:
    """What the settings of a run are where nothing is asked for."""
    of_command = COMMAND_DEFAULTS.get(command, {})
    dataset = dataset or str(of_command.get("dataset", OPTIONS["dataset"].default))
    kind = kind_of(dataset)
    of_method = METHODS[method].defaults.get(kind, {}) if method in METHODS else {}
    general = {name: OPTIONS[name].default for name in ("shots", "queries", "test_shots", "test_queries")}
    return {**general, "dataset": dataset, **DEFAULTS.get((kind, preset), {}), **of_command, **of_method}


def _check(config: Config) -> None:
    _check_threads(config.threads)
    _check_environment(config.command, os.environ)
    if "out" in config.given:
        _check_out(config.out)
    if config.command == "evaluate" and not config.dataset:
        return  # the rest is known once the checkpoint has been read
    for method in config.methods or (config.method,):
        _check_method(config, method)
    kind = kind_of(config.dataset)
    for name in config.given:
        kinds = OPTIONS[name].metadata.get("kinds", (kind,))
        if kind not in kinds:
            raise ValueError(f"{flag(name)} means nothing for --dataset {config.dataset}; leave it out")
    if "alpha_lr" in config.given and not config.learn_alpha:
        raise ValueError("--alpha-lr is the learning rate of learned step sizes; add --learn-alpha, or leave it out")
    if config.multi_step and config.steps < 2:
        raise ValueError(f"--multi-step weighs the losses of several inner steps, and --steps is {config.steps}")
    if config.method == "truncated" and config.keep > config.steps:
        raise ValueError(f"--keep {config.keep}: there are only {config.steps} inner steps to pull back")


def _check_method(config: Config, method: str) -> None:
    if method not in METHODS:
        raise ValueError(f"unknown method {method!r}; choose one of {', '.join(methods_of(config.command))}")
    entry, kind = METHODS[method], kind_of(config.dataset)
    if kind not in entry.build:
        exists = {"sine": "--dataset sine", "characters": "--dataset omniglot or glyphs", "navigation": "navigate"}
        raise ValueError(f"--method {method} exists for {' and '.join(exists[k] for k in entry.build)} only")
    for name in config.given:
        methods = OPTIONS[name].metadata.get("methods", (method,))
        if method not in methods or name in entry.ignores and config.command != "evaluate":
            raise ValueError(f"{flag(name)} changes nothing with --method {method}; leave it out")
    for name, works in (("learn_alpha", entry.learns_alpha), ("multi_step", entry.multi_step)):
        if getattr(config, name) and not works and config.command == "train":
            able = [m for m, e in METHODS.items() if getattr(e, "learns_alpha" if name == "learn_alpha" else name)]
            raise ValueError(f"{flag(name)} doesn't work with --method {method}; it does with {', '.join(able)}")
    if config.compile and not entry.compiles:
        able = [name for name, e in METHODS.items() if e.compiles]
        raise ValueError(f"--compile doesn't work with --method {method}; it does with {', '.join(able)}")


def _check_threads(threads: int) -> None:
    most = THREADS_PER_CORE * (os.cpu_count() or 1)
    if threads > most:
        raise ValueError(f"--threads {threads}: this machine has {os.cpu_count()} cores; expected at most {most}")


def _check_environment(command: str, environ: Mapping[str, str]) -> None:
    """A cluster may leave WORLD_SIZE behind; without the rest that torchrun sets there is nobody to wait for."""
    size = environ.get("WORLD_SIZE", "1")
    if not size.isdecimal() or int(size) < 1:
        raise ValueError(f"the environment variable WORLD_SIZE is {size!r}, expected a number of processes; unset it")
    missing = [name for name in ("RANK", "MASTER_ADDR", "MASTER_PORT") if name not in environ]
    if int(size) > 1 and missing:
        raise ValueError(
            f"the environment variable WORLD_SIZE is {size}, without {', '.join(missing)}: unset it for one process, "
            "or start several with torchrun"
        )
    if int(size) > 1 and command == "compare":
        raise ValueError("compare runs in one process; start it without torchrun, or train its methods one by one")


def _check_out(out: Path) -> None:
    if out.exists() and not out.is_dir():
        raise ValueError(f"--out {out} is a file; name a folder")
    if out.resolve() in (Path.home(), Path(out.anchor or "/").resolve()):
        raise ValueError(f"--out {out} is no place for a run; name a new folder, such as {out / 'runs' / 'first'}")
