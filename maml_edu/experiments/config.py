"""Every setting of every command, once: what it means, its bounds, its default, and which commands take it.

`arguments` makes the command line of it, `settings.configure` a checked Config. Nothing here needs torch, so that
`--help` is quick.
"""

import math
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TypeVar, get_type_hints

T = TypeVar("T")
TRAINING = "train compare navigate"
SCORING = "train evaluate compare navigate"
PRESETS = ("smoke", "quick", "full")
CHECKPOINT, FINAL, RESULT = "checkpoint.pt", "final.pt", "result.json"  # what a run leaves in --out
LARGEST = 10**9  # of a count: more is a slip of the finger
LARGEST_SEED = 2**63 - 1


def option(default: T, help: str, commands: str, **more: object) -> T:
    """A setting. commands: those that take it. more:

    choices: what it may be (a dict where that depends on the command); least, most, above, below: its bounds;
    default_text: what `--help` says in place of the default; kinds: the kinds of tasks it means something for;
    methods: the methods it belongs to; positional: the commands that take it without a flag.
    """
    return field(default=default, metadata={"help": help, "commands": tuple(commands.split()), **more})


@dataclass(frozen=True, kw_only=True)
class Config:
    """What one command was asked to do. The defaults are those of the smallest experiment: sines, preset quick."""

    command: str = "train"
    given: tuple[str, ...] = ()  # the settings that were asked for by name
    arguments: tuple[str, ...] = ()  # as typed: kept in the result

    # ------------------------------------------------ the tasks
    dataset: str = option(
        "omniglot",
        "where tasks come from; glyphs are drawn by the package and need no download",
        "train evaluate compare",
        choices={
            "train": ("omniglot", "glyphs", "sine"),
            "evaluate": ("omniglot", "glyphs", "sine"),
            "compare": ("omniglot", "glyphs"),
        },
    )
    split: str = option(
        "finn",
        "which characters are held out: finn shuffles all of them, lake holds out whole alphabets",
        "train evaluate",
        choices=("finn", "lake"),
        kinds=("characters",),
    )
    ways: int = option(5, "characters in a task", "train evaluate", least=2, kinds=("characters",))
    shots: int = option(10, "support examples per class, or per sine", "train", least=1)
    queries: int = option(
        0, "query examples per class, or per sine", "train", least=1, default_text="as many as --shots"
    )
    test_shots: int = option(
        5, "support examples at test", "train evaluate", least=1, default_text="sine: 5; characters: as many as --shots"
    )
    test_queries: int = option(
        100,
        "query examples at test",
        "train evaluate",
        least=1,
        default_text="sine: 100; characters: as many as --test-shots",
    )
    trajectories: int = option(20, "trajectories per task and step", "navigate", least=2)

    # ------------------------------------------------ the method
    method: str = option("maml", "how to adapt and how to pull back, see below", "train navigate", choices="method")
    methods: tuple[str, ...] = option(
        (), "the methods of the table, trained one after the other", "compare", choices="method", default_text="all"
    )
    steps: int = option(1, "inner steps in training", "train", least=0)
    test_steps: int = option(
        10, "inner steps at test; the headline score is the one after these", "train evaluate", least=0
    )
    alpha: float = option(0.001, "inner step size", "train", least=0)
    learn_alpha: bool = option(False, "learn one step size per parameter tensor and inner step", "train")
    alpha_lr: float = option(1e-2, "learning rate (Adam) of learned step sizes", "train", above=0)
    multi_step: int = option(0, "iterations in which the loss after every inner step counts", "train", least=0)
    momentum: float = option(0.9, "inner momentum", "train", least=0, below=1, methods=("momentum",))
    epsilon: float = option(1.0, "ε of the inner Adam, inside the root", "train", above=0, methods=("adam",))
    keep: int = option(1, "how many last inner steps are pulled back", "train", least=0, methods=("truncated",))
    strength: float = option(2.0, "λ of the proximal term", "train", above=0, methods=("imaml",))
    cg_steps: int = option(5, "steps of conjugate gradients", "train", least=1, methods=("imaml",))

    # ------------------------------------------------ the network and the outer loop
    init: str = option(
        "paper",
        "initial weights: paper is the normal of the paper's code, fan-in is PyTorch's",
        "train",
        choices=("fan-in", "paper"),
        kinds=("sine",),
    )
    filters: int = option(32, "filters per convolution", "train compare", least=1, kinds=("characters",))
    preset: str = option(
        "quick",
        "how long: seconds, minutes, or as in the paper",
        "train",
        choices=PRESETS,
        default_text="MAML_EDU_PRESET, or quick",
    )
    tasks: int = option(25, "tasks per meta-batch", TRAINING, least=1)
    iterations: int = option(5000, "outer steps", TRAINING, least=1)
    lr: float = option(1e-3, "outer learning rate (Adam)", TRAINING, above=0)
    schedule: str = option("constant", "of the outer learning rate", "train", choices=("constant", "cosine"))
    clip: float | None = option(None, "largest norm of the meta-gradient", "train navigate", above=0)

    # ------------------------------------------------ the test, and where it all runs
    checkpoint: str = option("", "a file, or the name of a shipped checkpoint", "evaluate", default_text="")
    test_tasks: int = option(600, "test tasks, touched once", SCORING, least=2)
    seed: int = option(0, "decides weights, training tasks and test tasks", SCORING, least=0, most=LARGEST_SEED)
    precision: str = option(
        "float32",
        "numbers of the training; tf32 multiplies with 10 bits of mantissa, on CUDA devices that have it",
        "train",
        choices=("float32", "float64", "tf32"),
    )
    device: str = option(
        "auto", "auto, cpu, cuda, cuda:1, …; auto is cuda where there is one", "train evaluate compare"
    )
    threads: int = option(1, "CPU threads; small networks are fastest with 1", SCORING, least=1)
    compile: bool = option(False, "compile the meta-gradient: up to a minute once, then faster", "train")
    notebook: Path = option(Path(), "", "slides", positional={"slides": "a notebook with stored outputs"})
    out: Path = option(
        Path(),
        "a folder for what is written; a run in it is never overwritten",
        f"{SCORING} handout slides",
        default_text="",
        positional={"handout": "a new folder", "slides": "an HTML file"},
    )
    resume: bool = option(False, "continue the run in --out, with the same settings", TRAINING)

    # ------------------------------------------------ for teachers, and the data
    notebooks: tuple[Path, ...] = option((), "", "handout", positional={"handout": "default: all of the series"})
    solutions: bool = option(False, "with the reference in place of every stub", "handout")
    root: Path | None = option(
        None, "the folder of the archives", "data", default_text="MAML_EDU_DATA, or a download into the cache folder"
    )


OPTIONS = {f.name: f for f in fields(Config) if "help" in f.metadata}
TYPES = get_type_hints(Config)

_SINE = dict(shots=10, test_shots=5, test_steps=10, alpha=0.001, tasks=25, lr=1e-3)
_CHARACTERS = dict(shots=1, test_shots=0, test_queries=0, steps=1, test_steps=3, alpha=0.4)
_LIKE_QUICK = dict(tasks=8, lr=5e-3, filters=32)
# What a setting is where no flag says it, by kind of tasks and preset; 0 for "as many as …".
DEFAULTS: dict[tuple[str, str], dict[str, object]] = {
    ("sine", "smoke"): {**_SINE, "iterations": 20},
    ("sine", "quick"): {**_SINE, "iterations": 5000},
    ("sine", "full"): {**_SINE, "iterations": 70_000},
    ("characters", "smoke"): {**_CHARACTERS, **_LIKE_QUICK, "iterations": 20},
    ("characters", "quick"): {**_CHARACTERS, **_LIKE_QUICK, "iterations": 600},
    ("characters", "full"): {**_CHARACTERS, "tasks": 32, "lr": 1e-3, "filters": 64, "iterations": 60_000},
}
# compare: the same for every method, so that the rows of the table can be compared. navigate: chosen on other goals.
COMMAND_DEFAULTS: dict[str, dict[str, object]] = {
    "compare": dict(iterations=4000, test_steps=1, schedule="cosine", learn_alpha=True),
    "navigate": dict(
        dataset="navigation",
        **dict(steps=1, alpha=0.4, tasks=20, iterations=200, lr=3e-3, schedule="cosine", clip=1.0, test_tasks=200),
    ),
}


def flag(name: str) -> str:
    """test_tasks -> --test-tasks."""
    return "--" + name.replace("_", "-")


def kind_of(dataset: str) -> str:
    """ "sine", "characters" or "navigation": what the same defaults and networks are for."""
    return dataset if dataset in ("sine", "navigation") else "characters"


def check_value(name: str, value: object) -> None:
    """Raises ValueError, naming the flag and what was expected, for a value of another type or beyond its bounds."""
    meta, kind = OPTIONS[name].metadata, TYPES[name]
    if kind not in (int, float, float | None) or value is None and kind == float | None:
        return
    whole = kind is int
    bounds = {k: meta[k] for k in ("least", "above", "most", "below") if k in meta}
    number = type(value) is int or type(value) is float and not whole and math.isfinite(value)
    if whole and "most" not in bounds and isinstance(value, int) and value > LARGEST:
        bounds["most"] = LARGEST
    if number and _within(value, **bounds):  # type: ignore[arg-type]  # a number, as just asked
        return
    words = {"least": "at least", "above": "above", "most": "at most", "below": "below"}
    limits = ", ".join(f"{words[k]} {bound:,}" for k, bound in bounds.items())
    raise ValueError(f"{flag(name)} {value}: expected a {'whole' if whole else 'finite'} number, {limits}")


def _within(
    value: float, least: float = -math.inf, above: float = -math.inf, most: float = math.inf, below: float = math.inf
) -> bool:
    return least <= value <= most and above < value < below
