"""The outer loop: sample tasks, take the meta-gradient, step θ with Adam; with progress, checkpoints and resume."""

import contextlib
import math
import operator
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from maml_edu.data.tensor_files import plain
from maml_edu.engine import distributed
from maml_edu.engine.checkpoint_files import Trained, read_checkpoint, write_checkpoint
from maml_edu.engine.interruption import Interruption
from maml_edu.engine.methods import MetaGradientFunction, name_of, takes
from maml_edu.engine.progress_line import ProgressLine, say, warn
from maml_edu.engine.training_state import TrainingState
from maml_edu.meta_gradient import MetaGradient, maml
from maml_edu.models import Model
from maml_edu.step_sizes import Alpha, flat_alpha, is_per_step
from maml_edu.tasks import Loss, Sampler, check_batch


def train(
    model: Model,
    loss: Loss,
    sampler: Sampler,
    method: MetaGradientFunction = maml,
    *,
    iterations: int = 1000,
    tasks: int = 25,
    alpha: Alpha = 0.01,
    steps: int = 1,
    lr: float = 1e-3,
    schedule: str = "constant",
    learn_alpha: bool = False,
    alpha_lr: float = 1e-2,
    multi_step: int = 0,
    clip: float | None = None,
    generator: torch.Generator | None = None,
    progress: str | None = "training",
    watch: Callable[[int, Trained], None] | None = None,
    watch_every: int = 100,
    validate: Callable[[Trained], float] | None = None,
    validate_every: int = 1000,
    checkpoint: str | Path | None = None,
    save_every: float = 60.0,
    resume: bool = False,
    about: Mapping[str, object] | None = None,
) -> Trained:
    """Meta-train model.theta with Adam. Source: Finn et al. (2017), Algorithm 1, lines 2-9.

    sampler(tasks, generator=…) -> TaskBatch. method(loss, theta, batch, alpha, steps) -> MetaGradient.
    schedule: "constant", or "cosine" from lr down to 0. learn_alpha: α is trained too (own Adam, alpha_lr), one step
    size per parameter tensor and inner step unless alpha is already a dict or a list.
    multi_step: for that many iterations the query loss counts after every inner step, with weights that start equal and
    move linearly to the last step (Antoniou et al. 2019, §4; maml and fomaml only). clip: the largest norm the
    meta-gradient of θ may have; a longer one is scaled down to it.
    generator: draws the tasks (seed 0 if None). watch(iteration, trained so far) is called before every
    watch_every-th step. validate(trained so far) -> score is called after every validate_every iterations and at the
    end, and kept in history["validation"]; it must not draw from `generator`.
    checkpoint: a file, written every save_every seconds and at the end; resume, with the same settings, continues from
    it to the result of an uninterrupted run. about: what else a run to be resumed must share (kept in the checkpoint).
    Ctrl-C ends the training after the iteration in progress, a second one at once; what has been learned so far is
    saved and returned. So does SIGTERM. A loss that is no longer finite ends it with a warning; the last finite
    parameters are returned. A checkpoint that cannot be written (a full disk) is a warning as well, and is tried again.
    In a process group (`distributed.join`) every rank takes its share of each meta-batch; rank 0 prints and writes. If
    one of them dies, the run so far is saved, and PeerLost (a RuntimeError) is raised.
    Raises ValueError for impossible settings or a checkpoint of another model or run.
    """
    iterations, tasks = _whole("iterations", iterations, 1), _whole("tasks", tasks, 1)
    steps, multi_step = _whole("steps", steps, 0), _whole("multi_step", multi_step, 0)
    if schedule not in ("constant", "cosine"):
        raise ValueError(f"unknown schedule {schedule!r}; choose constant or cosine")
    if clip is not None and not clip > 0:
        raise ValueError(f"clip={clip}; expected the largest norm of the meta-gradient, above 0, or None")
    if multi_step and not takes(method, "step_weights"):
        raise ValueError(f"{name_of(method)} has no loss after every inner step; multi_step works with maml and fomaml")
    generator = torch.Generator().manual_seed(0) if generator is None else generator
    if learn_alpha and not is_per_step(alpha) and not isinstance(alpha, Mapping):
        alpha = [dict.fromkeys(model.theta, alpha) for _ in range(steps)]
    state = TrainingState(model.theta, alpha, iterations, lr=lr, learn_alpha=learn_alpha, alpha_lr=alpha_lr, clip=clip)
    settings = {"method": name_of(method), "iterations": iterations, "tasks": tasks, "steps": steps, "lr": lr}
    settings |= {"schedule": schedule, "learn_alpha": learn_alpha, "alpha_lr": alpha_lr, "multi_step": multi_step}
    settings = {name: plain(value) for name, value in {**settings, "clip": clip, **(about or {})}.items()}
    path = None if checkpoint is None else Path(checkpoint).expanduser()
    if resume:
        _restore(state, path, settings, generator)
    drawn = generator.get_state()  # after `state.done` iterations: an interrupted one is drawn again on resume

    def save() -> None:
        if path is not None and distributed.rank() == 0:
            try:
                write_checkpoint(path, state.checkpoint(drawn, settings))
            except OSError as error:
                warn(f"could not write {path} ({error}); the last whole checkpoint is kept")

    first, checked, finite, saved = state.done, state.done, state.so_far(), time.monotonic()
    check_every = max(1, min(50, iterations // 20))
    line = ProgressLine(None if distributed.rank() else progress, first, iterations, tasks)
    interruption = Interruption(quiet=distributed.rank() > 0, echoed=distributed.size() > 1)
    with contextlib.closing(line), interruption:
        try:
            for i in range(first, iterations):
                batch = sampler(tasks, generator=generator)
                if i == first:
                    check_batch(batch)
                if watch is not None and i % watch_every == 0:
                    watch(i, state.so_far())
                own, weights = distributed.share(batch), step_weights(multi_step, steps, i)
                more = {} if weights is None else {"step_weights": weights.to(own.support_x)}
                result = method(loss, state.theta, own, state.alpha, steps, **more)
                mean = distributed.mean(result, _alpha_gradient(result, state, method), tasks)
                with interruption.held():
                    state.step(*mean, cosine(i, iterations) if schedule == "cosine" else 1.0)
                    drawn = generator.get_state()
                at_once = interruption.asked and distributed.size() == 1
                if state.done % check_every and state.done < iterations and not at_once:
                    continue  # reading a loss waits for the device: not every iteration
                recent = state.losses[checked : state.done].mean().item()
                if not math.isfinite(recent):
                    line.close()
                    return _diverged(state, finite)
                if validate is not None and _due(state.done, check_every, validate_every, iterations):
                    state.validated.append((state.done, float(validate(state.so_far()))))
                line.update(state.done, recent, state.validated[-1][1] if state.validated else None)
                checked, finite = state.done, state.so_far()
                if distributed.any_rank(interruption.asked is not None, state.losses.device):
                    break
                if time.monotonic() - saved > save_every:
                    save()
                    saved = time.monotonic()
        except KeyboardInterrupt:
            pass
        except distributed.PeerLost as error:
            interruption.hold()
            save()
            raise distributed.PeerLost(f"{error}: {_stopped_after(state, iterations, path)}") from None
        interruption.hold()
        save()
    if state.done < iterations and distributed.rank() == 0:
        say(f"\n{_stopped_after(state, iterations, path)}")
    return state.so_far()


def _whole(name: str, value: int, least: int) -> int:
    """value as a plain int, from anything that counts as a whole number (NumPy's, a 0-d integer tensor)."""
    try:
        number = least - 1 if isinstance(value, bool) else operator.index(value)
    except TypeError:
        number = least - 1
    if number < least:
        raise ValueError(f"{name}={value!r}; expected a whole number, {least} or more")
    return number


def _restore(state: TrainingState, path: Path | None, settings: dict[str, object], generator: torch.Generator) -> None:
    if path is None:
        raise ValueError("resume=True needs checkpoint=FILE to resume from")
    stored = read_checkpoint(path) if distributed.rank() == 0 and path.exists() else None
    stored = distributed.from_rank_0(stored)
    if stored is not None:
        state.restore(path, stored, settings, generator)
    elif distributed.rank() == 0:
        say(f"no checkpoint at {path}: starting afresh")


def _alpha_gradient(result: MetaGradient, state: TrainingState, method: MetaGradientFunction) -> list[Tensor]:
    if not state.step_sizes:
        return []
    if result.alpha_gradient is None:
        raise ValueError(f"{name_of(method)} gives no gradient for α; learn_alpha works with maml and fomaml")
    return [torch.as_tensor(g).to(size) for size, g in zip(state.step_sizes, flat_alpha(result.alpha_gradient))]


def _diverged(state: TrainingState, finite: Trained) -> Trained:
    if distributed.rank() == 0:
        warn(
            f"training stopped at iteration {state.done}: the query loss is not finite (α or lr too large?). Returning "
            f"the last finite parameters, of iteration {len(finite.history['query_loss'])}"
        )
    return finite._replace(history={**finite.history, "diverged": torch.tensor(state.done)})


def _stopped_after(state: TrainingState, iterations: int, path: Path | None) -> str:
    kept = "returning what was learned so far" if path is None else f"resume from {path}"
    return f"interrupted after {state.done} of {iterations} iterations; {kept}"


def step_weights(multi_step: int, steps: int, i: int) -> Tensor | None:
    """w_1 … w_K [K] at iteration i: 1/K each at first, then linearly to (0, …, 0, 1); None from multi_step on."""
    if i >= multi_step or steps < 2:
        return None
    earlier = (1 - i / multi_step) / steps
    return torch.tensor([earlier] * (steps - 1) + [1 - (steps - 1) * earlier])  # a tensor: compiled once


def cosine(i: int, iterations: int) -> float:
    """By what the learning rate is multiplied at iteration i of the cosine schedule: from 1 down towards 0."""
    return 0.5 * (1 + math.cos(math.pi * i / iterations))


def _due(now: int, check_every: int, every: int, iterations: int) -> bool:
    """Whether a multiple of `every` lies since the look before this one; never between two regular looks."""
    if now == iterations:
        return True
    return now % check_every == 0 and now // every > (now - check_every) // every
