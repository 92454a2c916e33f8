"""Files that hold what was learned: written whole or not at all, and never able to run code when they are read."""

import io
import os
import platform
from importlib import resources
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from maml_edu.data.atomic_write import alive, write_whole
from maml_edu.models import Model
from maml_edu.step_sizes import Alpha
from maml_edu.tasks import Params


class Trained(NamedTuple):
    """theta, alpha: what was learned. history["query_loss"]: [iterations], the mean query loss of each meta-batch.

    history["seconds"]: how long the training took, resumed parts included. history["validation"]: [n, 2], iteration and
    score, if `train` was given `validate`.
    """

    theta: Params
    alpha: Alpha
    history: dict[str, Tensor]


def write_state(path: Path, state: dict) -> None:
    """A checkpoint file, written whole or not at all. Raises OSError (a full disk, no permission)."""
    whole = io.BytesIO()
    torch.save(state, whole)
    write_whole(path, whole.getvalue())


def read_state(path: Path) -> dict:
    """A checkpoint file as a dict. Raises FileNotFoundError, or ValueError if it is not a checkpoint."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise
    except Exception as error:
        raise ValueError(
            f"{path} is not a readable checkpoint ({type(error).__name__}); delete it or name another"
        ) from error
    if not isinstance(state, dict) or not {"theta", "alpha"} <= set(state):
        raise ValueError(f"{path} is not a checkpoint of this package: it holds no theta and alpha; name another")
    return state


def same_model(path: Path, stored: Params, theta: Params) -> None:
    """Raises ValueError, naming the first parameter that differs, unless both have the same names and shapes."""
    if {n: p.shape for n, p in stored.items()} != {n: p.shape for n, p in theta.items()}:
        odd = next(
            n for n in {**stored, **theta} if n not in stored or n not in theta or stored[n].shape != theta[n].shape
        )
        found = list(stored[odd].shape) if odd in stored else "missing"
        wanted = list(theta[odd].shape) if odd in theta else "not in the model"
        raise ValueError(f"{path} is a checkpoint of another model: {odd} is {found} there and {wanted} here")


def save_checkpoint(path: str | Path, trained: Trained, **settings) -> None:
    """Store θ and α, with settings (numbers, strings, lists) that say what they belong to."""
    write_state(Path(path), {"theta": trained.theta, "alpha": trained.alpha, "settings": settings})


def load_checkpoint(path: str | Path, model: Model | None = None) -> tuple[Trained, dict]:
    """θ and α from a file, or from the package if `path` is the bare name of a shipped checkpoint; and its settings.

    Loaded with weights_only=True: a checkpoint is data and cannot run code. With a model, shapes are compared and
    ValueError says what differs. Raises FileNotFoundError with the names that are shipped.
    """
    path = Path(path)
    if not path.exists():
        shipped = resources.files("maml_edu") / "checkpoints"
        names = sorted(p.name[: -len(".pt")] for p in shipped.iterdir() if p.name.endswith(".pt"))
        if str(path) not in names:
            raise FileNotFoundError(f"no checkpoint {str(path)!r}; shipped with the package: {', '.join(names)}")
        path = Path(str(shipped / f"{path}.pt"))
    state = read_state(path)
    if model is not None:
        same_model(path, state["theta"], model.theta)
    history = {name: state[name] for name in ("query_loss", "seconds", "validation") if name in state}
    return Trained(state["theta"], state["alpha"], history), state.get("settings", {})


# ---------------------------------------------------------------- one run per folder


class Lock:
    """A file with the process id and host of the run that writes into a folder; a dead run's lock is taken over.

    Raises RuntimeError if another run holds it.
    """

    def __init__(self, path: Path):
        self.path = path

    def __enter__(self):
        mine = self.path.with_name(f"{self.path.name}.{os.getpid()}.part")
        mine.write_text(f"{os.getpid()}\n{platform.node()}")
        try:
            for _ in range(2):
                try:
                    os.link(mine, self.path)  # the lock appears with its content or not at all
                    return
                except FileExistsError:
                    self._refuse_or_remove()
            raise RuntimeError(f"another run has just started in {self.path.parent}; name another --out")
        finally:
            mine.unlink(missing_ok=True)

    def _refuse_or_remove(self):
        try:
            process, _, host = self.path.read_text().partition("\n")
        except FileNotFoundError:
            return
        if host not in ("", platform.node()):
            raise RuntimeError(
                f"a run on {host} (process {process}) writes into {self.path.parent}; wait for it, name another --out, "
                f"or delete {self.path} if that run is gone"
            )
        if process.isdigit() and alive(int(process)):
            raise RuntimeError(
                f"another run (process {process}) writes into {self.path.parent}; wait for it, or name another --out"
            )
        print(f"taking over {self.path.parent}: the run that held it is gone")
        self.path.unlink(missing_ok=True)

    def __exit__(self, *error):
        self.path.unlink(missing_ok=True)
