"""What every notebook needs once: one thread, sizes by preset, and randomness that is the same in every run."""

import os
import sys
from collections.abc import Iterator
from typing import TypeVar

import torch
from tqdm import tqdm

from maml_edu.engine.progress_line import BAR

Setting = TypeVar("Setting")


def begin() -> None:
    """Set PyTorch to one thread: small networks are fastest so, and a shared server stays responsive."""
    torch.set_num_threads(1)


def by_preset(quick: Setting, smoke: Setting | None = None, full: Setting | None = None) -> Setting:
    """The setting for the preset that the environment variable MAML_EDU_PRESET names; `quick` without one.

    smoke: seconds for the whole notebook. quick: about a minute. full: paper scale. A preset that is not given falls
    back to `quick`. Raises ValueError for another name.
    """
    name = os.environ.get("MAML_EDU_PRESET", "quick")
    if name not in ("smoke", "quick", "full"):
        raise ValueError(f"MAML_EDU_PRESET is {name!r}; expected smoke, quick or full")
    chosen = {"smoke": smoke, "quick": quick, "full": full}[name]
    return quick if chosen is None else chosen


def seeded(number: int) -> torch.Generator:
    """A random generator with this seed."""
    return torch.Generator().manual_seed(number)


def counted(iterations: int, text: str) -> Iterator[int]:
    """0 … iterations − 1 for a training loop of one's own, with a progress bar that says `text`."""
    return iter(tqdm(range(iterations), desc=text, file=sys.stdout, bar_format=BAR))
