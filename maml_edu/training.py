"""The outer loop: sample tasks, take the meta-gradient, step θ with Adam; with progress, checkpoints and resume."""

import math
import os
import sys
import time
import warnings
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from .evaluation import Sampler
from .meta_gradient import Alpha, Loss, MetaGradient, Params, joint, maml, map_alpha
from .models import Model
from .tasks import check_batch

# Whole lines only, on stdout: looks the same live and stored in a notebook.
BAR = "{desc} {percentage:3.0f}%|{bar:20}| {n_fmt}/{total_fmt}{postfix}"


class Trained(NamedTuple):
    """theta, alpha: what was learned. history["query_loss"]: [iterations], the mean query loss of each meta-batch."""

    theta: Params
    alpha: Alpha
    history: dict[str, Tensor]


def train(
    model: Model,
    loss: Loss,
    sampler: Sampler,
    method: Callable[..., MetaGradient] = maml,
    *,
    iterations: int = 1000,
    tasks: int = 25,
    alpha: Alpha = 0.01,
    steps: int = 1,
    lr: float = 1e-3,
    schedule: str = "constant",
    learn_alpha: bool = False,
    alpha_lr: float = 1e-2,
    generator: torch.Generator | None = None,
    progress: str | None = "training",
    watch: Callable[[int, Trained], None] | None = None,
    watch_every: int = 100,
    checkpoint: str | Path | None = None,
    save_every: float = 60.0,
    resume: bool = False,
) -> Trained:
    """Meta-train model.theta with Adam. Source: Finn et al. (2017), Algorithm 1, lines 2-9.

    sampler(tasks, generator=…) -> TaskBatch. method(loss, theta, batch, alpha, steps) -> MetaGradient.
    schedule: "constant", or "cosine" from lr down to 0. learn_alpha: α is trained too (own Adam, alpha_lr), one rate
    per parameter tensor and inner step unless alpha is already a dict or a list.
    generator: draws the tasks (seed 0 if None). watch(iteration, trained so far) is called before every
    watch_every-th step. checkpoint: a file, written every save_every seconds and at the end; resume, with the same
    settings, continues from it to the result of an uninterrupted run. Ctrl-C returns what has been learned so far.
    A loss that is no longer finite ends the training with a warning; the last finite parameters are returned.
    Raises ValueError for impossible settings or a checkpoint of another model.
    """
    if iterations < 1 or tasks < 1:
        raise ValueError(f"iterations={iterations}, tasks={tasks}: each must be at least 1")
    if schedule not in ("constant", "cosine"):
        raise ValueError(f"unknown schedule {schedule!r}; choose constant or cosine")
    generator = torch.Generator().manual_seed(0) if generator is None else generator
    if learn_alpha and not isinstance(alpha, (dict, list, tuple)):
        alpha = [dict.fromkeys(model.theta, alpha) for _ in range(steps)]
    theta = {name: p.detach().clone() for name, p in model.theta.items()}
    if learn_alpha:
        like = next(iter(theta.values()))
        alpha = map_alpha(lambda rate: torch.as_tensor(rate, dtype=like.dtype, device=like.device).clone(), alpha)
    rates = _flat(alpha) if learn_alpha else []
    groups = [{"params": list(theta.values()), "lr": lr}]
    if rates:
        groups.append({"params": rates, "lr": alpha_lr})
    adam = torch.optim.Adam(groups)
    settings = {"method": getattr(method, "__name__", str(method)), "iterations": iterations, "tasks": tasks}
    settings |= {"steps": steps, "lr": lr, "schedule": schedule, "learn_alpha": learn_alpha}
    first_rates = [group["lr"] for group in adam.param_groups]
    losses = torch.zeros(iterations, dtype=torch.float32, device=next(iter(theta.values())).device)
    start = 0
    path = Path(checkpoint) if checkpoint is not None else None
    if resume:
        if path is None:
            raise ValueError("resume=True needs checkpoint=FILE to resume from")
        if path.exists():
            start = _restore(path, settings, theta, rates, adam, generator, losses)
        else:
            print(f"no checkpoint at {path}: starting afresh")

    def so_far(done):
        return Trained(
            {name: p.detach().clone() for name, p in theta.items()},
            map_alpha(lambda rate: rate.detach().clone() if isinstance(rate, Tensor) else rate, alpha),
            {"query_loss": losses[:done].cpu()},
        )

    def save(done):
        if path is not None:
            _write(
                path,
                {
                    "theta": {name: p.cpu() for name, p in theta.items()},
                    "alpha": map_alpha(lambda rate: rate.cpu() if isinstance(rate, Tensor) else rate, alpha),
                    "adam": adam.state_dict(),
                    "generator": drawn,
                    "query_loss": losses[:done].cpu(),
                    "settings": settings,
                },
            )

    done, good, saved, checked = start, so_far(start), time.monotonic(), start
    drawn = generator.get_state()  # after `done` iterations: an interrupted one is drawn again on resume
    check_every = max(1, min(50, iterations // 20))
    bar = tqdm(
        total=iterations, initial=start, desc=progress, file=sys.stdout, bar_format=BAR, disable=progress is None
    )
    try:
        for i in range(start, iterations):
            batch = sampler(tasks, generator=generator)
            if i == start:
                check_batch(batch)
            if watch is not None and i % watch_every == 0:
                watch(i, so_far(i))
            result = method(loss, theta, batch) if method is joint else method(loss, theta, batch, alpha, steps)
            losses[i] = result.query_loss.mean()
            for name, p in theta.items():
                p.grad = result.gradient[name]
            if rates:
                for rate, gradient in zip(rates, _alpha_gradient(result, method, alpha)):
                    rate.grad = gradient.to(rate)
            if schedule == "cosine":
                for group, first in zip(adam.param_groups, first_rates):
                    group["lr"] = first * 0.5 * (1 + math.cos(math.pi * i / iterations))
            adam.step()
            done, drawn = i + 1, generator.get_state()
            if (
                done % check_every == 0 or done == iterations
            ):  # reading a loss waits for the device: not every iteration
                bar.update(done - bar.n)
                recent = losses[checked:done].mean().item()
                if not math.isfinite(recent):
                    warnings.warn(
                        f"training stopped at iteration {done}: the query loss is not finite (α or lr too large?). "
                        f"Returning the last finite parameters, of iteration {len(good.history['query_loss'])}",
                        stacklevel=2,
                    )
                    return good
                bar.set_postfix_str(f"query loss {recent:.3f}")
                checked, good = done, so_far(done)
                if time.monotonic() - saved > save_every:
                    save(done)
                    saved = time.monotonic()
    except KeyboardInterrupt:
        # The step in progress may be half applied only between two lines above; what is saved is whole iterations.
        save(done)
        kept = f"; resume from {path}" if path is not None else ""
        print(f"\ninterrupted after {done} of {iterations} iterations: returning what was learned so far{kept}")
        return so_far(done)
    finally:
        bar.close()
    save(done)
    return so_far(done)


def _alpha_gradient(result, method, alpha):
    if result.alpha_gradient is None:
        raise ValueError(f"{method.__name__} gives no gradient for α; learn_alpha works with maml and fomaml")
    return _flat(result.alpha_gradient)


def _flat(alpha):
    """All rates of alpha in a fixed order."""
    if isinstance(alpha, (list, tuple)):
        return [rate for a in alpha for rate in _flat(a)]
    return list(alpha.values()) if isinstance(alpha, dict) else [alpha]


# ---------------------------------------------------------------- checkpoints


def _write(path: Path, state: dict) -> None:
    """Write beside the file, then replace it: a crash in the middle leaves the old checkpoint whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        with open(temporary, "wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _restore(path, settings, theta, rates, adam, generator, losses) -> int:
    state = _read(path)
    if "adam" not in state:
        raise ValueError(f"{path} holds final parameters only, not a run to resume; start without resume")
    _same_model(path, state["theta"], theta)
    for name, value in settings.items():
        if state["settings"].get(name) != value:
            raise ValueError(
                f"{path} is of a run with {name}={state['settings'].get(name)}, and {name}={value} is asked for now; "
                "give the same settings to resume, or another checkpoint file to start afresh"
            )
    for name, p in theta.items():
        p.copy_(state["theta"][name])
    for rate, stored in zip(rates, _flat(state["alpha"])):
        rate.copy_(stored)
    adam.load_state_dict(state["adam"])
    generator.set_state(state["generator"])
    done = len(state["query_loss"])
    losses[:done] = state["query_loss"].to(losses.device)
    return done


def _read(path: Path) -> dict:
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


def _same_model(path, stored, theta):
    if {n: p.shape for n, p in stored.items()} != {n: p.shape for n, p in theta.items()}:
        odd = next(
            n for n in {**stored, **theta} if n not in stored or n not in theta or stored[n].shape != theta[n].shape
        )
        found = list(stored[odd].shape) if odd in stored else "missing"
        wanted = list(theta[odd].shape) if odd in theta else "not in the model"
        raise ValueError(f"{path} is a checkpoint of another model: {odd} is {found} there and {wanted} here")


def save_checkpoint(path: str | Path, trained: Trained, **settings) -> None:
    """Store θ and α, with settings (numbers, strings, lists) that say what they belong to."""
    _write(Path(path), {"theta": trained.theta, "alpha": trained.alpha, "settings": settings})


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
    state = _read(path)
    if model is not None:
        _same_model(path, state["theta"], model.theta)
    history = {"query_loss": state["query_loss"]} if "query_loss" in state else {}
    return Trained(state["theta"], state["alpha"], history), state.get("settings", {})
