"""Checkpoints: files that hold what was learned, and what a run needs to go on."""

from importlib import resources
from pathlib import Path
from typing import NamedTuple, cast

from torch import Tensor

from maml_edu.data.tensor_files import read_tensors, write_tensors
from maml_edu.models import Model
from maml_edu.step_sizes import Alpha, flat_alpha
from maml_edu.tasks import Params


class Trained(NamedTuple):
    """theta, alpha: what was learned. history["query_loss"]: [iterations], the mean query loss of each meta-batch.

    history["seconds"]: how long the training took, resumed parts included. history["validation"]: [n, 2], iteration and
    score, if `train` was given `validate`. history["diverged"]: the iteration at which the query loss was no longer
    finite, if that ended the training.
    """

    theta: Params
    alpha: Alpha
    history: dict[str, Tensor]


class Checkpoint(NamedTuple):
    """What a file holds. settings: what it says of the run, in numbers, strings, lists and dicts.

    adam, generator: the state of the optimiser and of the generator that draws the tasks; None in a file of final
    parameters, from which no run can be resumed.
    """

    trained: Trained
    settings: dict[str, object]
    adam: dict[str, object] | None = None
    generator: Tensor | None = None


def write_checkpoint(path: str | Path, checkpoint: Checkpoint) -> None:
    """Write a checkpoint, all of it or nothing. Raises OSError (a full disk, no permission)."""
    trained, settings, adam, generator = checkpoint
    content: dict[str, object] = {"theta": trained.theta, "alpha": trained.alpha, **trained.history}
    content["settings"] = settings
    if adam is not None:
        content |= {"adam": adam, "generator": generator}
    write_tensors(path, content)


def read_checkpoint(path: str | Path) -> Checkpoint:
    """Read a checkpoint. Raises OSError if it cannot be read, ValueError if it is damaged or something else."""
    content = read_tensors(path)
    history = {name: content[name] for name in ("query_loss", "seconds", "validation") if name in content}
    settings, adam, generator = content.get("settings", {}), content.get("adam"), content.get("generator")
    try:
        whole = (
            _all_tensors(content["theta"])
            and all(isinstance(a, (float, int, Tensor)) for a in flat_alpha(cast(Alpha, content["alpha"])))
            and _all_tensors(history)
            and isinstance(settings, dict)
            and (adam is None or (isinstance(adam, dict) and isinstance(generator, Tensor) and "query_loss" in history))
        )
    except (KeyError, RecursionError):
        whole = False
    if not whole:
        raise ValueError(f"{path} is not a checkpoint of this package: it holds no theta and alpha; name another file")
    trained = Trained(cast(Params, content["theta"]), cast(Alpha, content["alpha"]), cast(dict[str, Tensor], history))
    return Checkpoint(
        trained,
        cast(dict[str, object], settings),
        cast(dict[str, object] | None, adam),
        cast(Tensor | None, generator),
    )


def _all_tensors(value: object) -> bool:
    return isinstance(value, dict) and all(isinstance(n, str) and isinstance(p, Tensor) for n, p in value.items())


def same_model(path: str | Path, stored: Params, theta: Params) -> None:
    """Raises ValueError, naming the first parameter that differs, unless both have the same names and shapes."""
    for name in {**stored, **theta}:
        there = list(stored[name].shape) if name in stored else "missing"
        here = list(theta[name].shape) if name in theta else "not in the model"
        if there != here:
            raise ValueError(f"{path} is a checkpoint of another model: {name} is {there} there and {here} here")


def save_checkpoint(path: str | Path, trained: Trained, **settings: object) -> None:
    """Store θ and α, with settings (numbers, strings, lists) that say what they belong to."""
    write_checkpoint(path, Checkpoint(trained._replace(history={}), settings))


def load_checkpoint(path: str | Path, model: Model | None = None) -> tuple[Trained, dict[str, object]]:
    """θ and α from a file, or from the package if `path` is the bare name of a shipped checkpoint; and its settings.

    A checkpoint is data and cannot run code. With a model, shapes are compared and ValueError says what differs. Raises
    FileNotFoundError with the names that are shipped, OSError or ValueError if the file cannot be read or is damaged.
    """
    path = Path(path).expanduser()
    if not path.exists():
        shipped = resources.files("maml_edu") / "checkpoints"
        names = sorted(p.name[: -len(".pt")] for p in shipped.iterdir() if p.name.endswith(".pt"))
        if str(path) not in names:
            raise FileNotFoundError(f"no checkpoint {str(path)!r}; shipped with the package: {', '.join(names)}")
        path = Path(str(shipped / f"{path}.pt"))
    checkpoint = read_checkpoint(path)
    if model is not None:
        same_model(path, checkpoint.trained.theta, model.theta)
    return checkpoint.trained, checkpoint.settings
