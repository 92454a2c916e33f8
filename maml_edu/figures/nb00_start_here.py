"""Figures of notebook 00: a picture with sliders that is redrawn live, and what the course and the machine offer."""

from __future__ import annotations

import json
import math
import os
import platform
import re
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from IPython.display import Markdown, display
from matplotlib.axes import Axes
from matplotlib.patches import Patch
from torch import Tensor

from maml_edu.data.omniglot_files import DataError, omniglot
from maml_edu.evaluation import StepScore
from maml_edu.figures.live_sliders import playground
from maml_edu.figures.nb05_sine_regression import adaptation
from maml_edu.figures.style import COLOURS, STYLES, Picture, new_axes
from maml_edu.tasks import Params

__all__ = ["Machine", "course_map", "errors", "means", "read_course", "show_course", "two_networks", "your_machine"]

FIRST_ELECTIVE = 9
QUESTIONS = {
    "00": "Does it work, and where is everything?",
    "01": "What is a task, and what does MAML minimise?",
    "02": "What's the derivative of a gradient step?",
    "03": "How do you get the exact meta-gradient without a Hessian matrix?",
    "04": "What happens if you leave the Hessian out?",
    "05": "Which start is best for sines, and do we get the paper's numbers?",
    "06": "Is my code MAML, or just something that trains?",
    "07": "What's a task made of pictures, and whose statistics count?",
    "08": "How good is it on handwriting it has never seen?",
    "09": "What does the start know, and what's left for adaptation?",
    "10": "What if you learn the step sizes, or use momentum or Adam inside?",
    "11": "Can the gradient forget the path and use only its end?",
    "12": "What if a network, or a mean, reads the support set?",
    "13": "What if the examples are an agent's own trajectories?",
    "14": "What does it cost, and what do more machines change?",
}


class Lesson(NamedTuple):
    """What a notebook says about itself in its first cell."""

    file: str
    title: str
    minutes: int
    needs: tuple[str, ...]  # the numbers of the notebooks it builds on


def read_course(folder: str | Path = ".") -> dict[str, Lesson]:
    """The notebooks of a folder by number, "00" first: title, minutes and what each builds on, from its first cell.

    Files whose first cell does not look like those of the series are passed over.
    """
    course = {}
    for path in sorted(Path(folder).glob("[0-9][0-9]_*.ipynb")):
        try:
            first = "".join(json.loads(path.read_text(encoding="utf-8"))["cells"][0]["source"])
        except (ValueError, LookupError, TypeError):  # half-written, empty, or not a notebook
            continue
        title, minutes = re.match(r"# (\d\d) · (.+)", first), re.search(r"(\d+) minutes", first)
        if title and minutes:
            before = first.partition("**Before you start")[2]
            needs = sorted(set(re.findall(r"\((\d\d)_\w+\.ipynb\)", before)) - {title[1]})
            course[title[1]] = Lesson(path.name, title[2].strip(), int(minutes[1]), tuple(needs))
    return course


def course_map(course: Mapping[str, Lesson]) -> Picture:
    """The notebooks one below the other, as long as they take, the core path and the electives in two colours."""
    fig, ax = new_axes(height=0.9 + 0.4 * len(course))
    fig.set_figwidth(8)
    now = 0
    for row, (number, lesson) in enumerate(course.items()):
        colour = COLOURS["query" if int(number) < FIRST_ELECTIVE else "before"]
        ax.barh(row, lesson.minutes, left=now, height=0.6, color=colour, edgecolor=COLOURS["truth"])
        now += lesson.minutes
        ax.annotate(f"{lesson.minutes} min", (now, row), (6, 0), textcoords="offset points", va="center")
    kinds = {"query": "core path, in this order", "before": "electives, in any order"}
    boxes = [Patch(facecolor=COLOURS[key], edgecolor=COLOURS["truth"], label=label) for key, label in kinds.items()]
    ax.legend(handles=boxes, loc="upper right")
    ax.set_ylim(len(course) - 0.4, -0.6)
    ax.set_xlim(0, 1.12 * max(now, 1))
    ax.set_yticks(range(len(course)), [f"{number} · {lesson.title}" for number, lesson in course.items()])
    ax.tick_params(axis="y", length=0)
    ax.spines["left"].set_visible(False)
    hours = range(now // 60 + 1)
    ax.set_xticks([60 * hour for hour in hours], [str(hour) for hour in hours])
    ax.set_xlabel("hours, exercises included")
    alt = f"The {len(course)} notebooks one below the other, as bars on an axis of {now / 60:.1f} hours"
    return Picture(fig, f"{alt}; the core path in one colour, the electives in another.")


def show_course(course: Mapping[str, Lesson]) -> None:
    """The course as a table: each notebook's question, its minutes, and what it builds on."""
    rows = ["| notebook | the question | minutes | builds on |", "|---|---|---|---|"]
    for number, lesson in course.items():
        link, needs = f"[{number} · {lesson.title}]({lesson.file})", ", ".join(lesson.needs)
        rows.append(f"| {link} | {QUESTIONS.get(number, '')} | {lesson.minutes} | {needs} |")
    display(Markdown("\n".join(rows)))


def two_networks(
    apply: Callable[[Params, Tensor], Tensor],
    starts: Mapping[str, object],
    steps_on: Callable[..., list[Params]],
    amplitude: float,
    phase: float,
    shots: int,
    steps: int,
    seed: int,
) -> None:
    """A sine chosen with sliders, and what each start makes of a few of its points.

    starts: name -> start, which `steps_on(start, x, y, steps)` adapts; it returns θ_0 … θ_K.
    """
    grid = torch.linspace(-5, 5, 201).view(1, -1, 1)
    generator = torch.Generator().manual_seed(seed)
    known = 10 * torch.rand(1, max(20, shots), 1, generator=generator) - 5

    def draw(axes: Sequence[Axes], amplitude: float, phase: float, shots: int, steps: int) -> None:
        def sine(x: Tensor) -> Tensor:
            return amplitude * torch.sin(x - phase)

        x, truth = known[:, :shots], sine(grid)
        for ax, (name, start) in zip(axes, starts.items()):
            path = steps_on(start, x, sine(x), steps)
            curves = {step: apply(path[step], grid).detach() for step in sorted({0, steps})}
            errors = [f"{(curve - truth).square().mean():.2f}" for curve in curves.values()]
            flat = {step: curve.flatten() for step, curve in curves.items()}
            title = f"{name}: error {' → '.join(errors)}"
            adaptation(ax, grid.flatten(), truth.flatten(), (x.flatten(), sine(x).flatten()), flat, title)
            ax.set(ylim=(-7, 7), yticks=(-5, 0, 5))

    playground(
        draw,
        sliders={  # lowest, highest, step, start
            "amplitude": (0.0, 6.0, 0.1, amplitude),
            "phase": (0.0, 6.2, 0.1, phase),
            "shots": (1, 20, 1, shots),
            "steps": (0, 10, 1, steps),
        },
        stills={
            "no step yet": {"steps": 0},
            f"{shots} points, K = {steps}": {},
            "another sine": {"amplitude": 5.0, "phase": 2.8},
        },
        alt="MAML's curve is far from the sine before its step and close to it after. "
        "The pre-trained network's curve is as far off, and hardly moves.",
    )


def errors(measured: Mapping[str, Sequence[StepScore]], steps: Sequence[int]) -> Picture:
    """Mean squared error after some numbers of steps, with 95 % intervals over tasks; one line a network."""
    fig, ax = new_axes(height=3.2)
    for (name, scores), key in zip(measured.items(), ("maml", "joint")):
        bars = [score.half_width or 0 for score in scores]
        ax.errorbar(range(len(scores)), means(scores), bars, capsize=4, label=name, **STYLES[key])
    ax.set_xticks(range(len(steps)), [f"{step} step{'s' * (step != 1)}" for step in steps])
    ax.set(ylabel="mean squared error, ± 95 %", xlim=(-0.3, len(steps) - 0.7))
    ax.set_ylim(bottom=0)
    ax.legend()
    alt = "Errors on random sines. Both networks begin at the same height, and MAML's line falls much faster."
    return Picture(fig, alt)


def means(scores: Sequence[StepScore]) -> list[float]:
    """The mean error after each number of steps; infinite where a task diverged."""
    return [math.inf if score.mean is None else score.mean for score in scores]


class Machine(NamedTuple):
    """What `your_machine` found out."""

    new_enough: bool
    omniglot: bool


def your_machine() -> Machine:
    """Print what is here and what it means for the course. Nothing is downloaded."""

    def numbers(version: str) -> tuple[int, ...]:
        return tuple(int(part) for part in version.split(".")[:2])

    python, pytorch = numbers(platform.python_version()) >= (3, 11), numbers(torch.__version__) >= (2, 11)
    say = {True: "new enough", False: "too old: install the versions of requirements.txt"}
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    characters, about_them = _omniglot_here()
    print("Python   ", platform.python_version(), "-", say[python])
    print("PyTorch  ", torch.__version__, "-", say[pytorch])
    print("cores    ", os.cpu_count(), "- one is enough for every notebook")
    print("CUDA GPU ", gpu, "- you don't need one; preset full would use it")
    print("Omniglot ", about_them)
    print("folder   ", _folder_here())
    return Machine(python and pytorch, characters)


def _omniglot_here() -> tuple[bool, str]:
    try:
        names = omniglot(download=False).names
    except DataError as error:
        if os.environ.get("MAML_EDU_DATA"):
            return False, f"MAML_EDU_DATA doesn't name a folder with Omniglot: change or unset it. {error}"
        return False, "not here; 07 and 08 fetch it once (14 MB), or offline draw glyphs and say so"
    return True, f"{len(names):,} characters are here, for notebooks 07 and 08"


def _folder_here() -> str:
    try:
        with tempfile.TemporaryFile(dir="."):
            return "you can write here: your work is kept"
    except OSError:
        return "read-only: everything runs, but save a copy of your own"
