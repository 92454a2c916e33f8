"""The outer loop: sample tasks, take the meta-gradient, step θ with Adam; with progress, checkpoints and resume."""

import contextlib
import math
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from maml_edu.engine import distributed
from maml_edu.engine.checkpoint_files import (
    Trained,
    load_checkpoint,
    read_state,
    same_model,
    save_checkpoint,
    write_state,
)
from maml_edu.engine.methods import MetaGradientFunction, name_of, takes
from maml_edu.meta_gradient import maml
from maml_edu.models import Model
from maml_edu.step_sizes import Alpha, flat_alpha, map_alpha
from maml_edu.tasks import Loss, Sampler, check_batch

__all__ = ["Trained", "load_checkpoint", "save_checkpoint", "train"]

# Whole lines only, on stdout: looks the same live and stored in a notebook.
BAR = "{desc} {percentage:3.0f}%|{bar:20}| {n_fmt}/{total_fmt}{postfix}"


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
    about: dict | None = None,
) -> Trained:
    """Meta-train model.theta with Adam. Source: Finn et al. (2017), Algorithm 1, lines 2-9.

    sampler(tasks, generator=…) -> TaskBatch. method(loss, theta, batch, alpha, steps) -> MetaGradient.
    schedule: "constant", or "cosine" from lr down to 0. learn_alpha: α is trained too (own Adam, alpha_lr), one rate
    per parameter tensor and inner step unless alpha is already a dict or a list.
    multi_step: for that many iterations the query loss counts after every inner step, with weights that start equal and
    move linearly to the last step (Antoniou et al. 2019, §4; maml and fomaml only). clip: the largest norm the
    meta-gradient of θ may have; a longer one is scaled down to it.
    generator: draws the tasks (seed 0 if None). watch(iteration, trained so far) is called before every
    watch_every-th step. validate(trained so far) -> score is called after every validate_every iterations and at the
    end, and kept in history["validation"]; it must not draw from `generator`.
    checkpoint: a file, written every save_every seconds and at the end; resume, with the same settings, continues from
    it to the result of an uninterrupted run. about: what else a run to be resumed must share (kept in the checkpoint).
    Ctrl-C ends the training after the iteration in progress and returns what has been learned so far; so does SIGTERM.
    A loss that is no longer finite ends it with a warning; the last finite parameters are returned. A checkpoint that
    cannot be written (a full disk) is a warning as well, and is tried again.
    In a process group (`distributed.join`) every rank takes its share of each meta-batch; rank 0 prints and writes.
    Raises ValueError for impossible settings or a checkpoint of another model or run.
    """
    if iterations < 1 or tasks < 1:
        raise ValueError(f"iterations={iterations}, tasks={tasks}: each must be at least 1")
    if schedule not in ("constant", "cosine"):
        raise ValueError(f"unknown schedule {schedule!r}; choose constant or cosine")
    if clip is not None and not clip > 0:
        raise ValueError(f"clip={clip}; expected the largest norm of the meta-gradient, above 0, or None")
    if multi_step and not takes(method, "step_weights"):
        raise ValueError(f"{name_of(method)} has no loss after every inner step; multi_step works with maml and fomaml")
    generator = torch.Generator().manual_seed(0) if generator is None else generator
    if learn_alpha and not isinstance(alpha, (dict, list, tuple)):
        alpha = [dict.fromkeys(model.theta, alpha) for _ in range(steps)]
    run = _Run(model, alpha, lr, schedule, learn_alpha, alpha_lr, clip, iterations)
    settings = {"method": name_of(method), "iterations": iterations, "tasks": tasks, "steps": steps, "lr": lr}
    settings |= {"schedule": schedule, "learn_alpha": learn_alpha, "alpha_lr": alpha_lr, "multi_step": multi_step}
    settings |= {"clip": clip, **(about or {})}
    path = Path(checkpoint) if checkpoint is not None else None
    if resume:
        if path is None:
            raise ValueError("resume=True needs checkpoint=FILE to resume from")
        state = distributed.from_rank_0(read_state(path) if distributed.rank() == 0 and path.exists() else None)
        if state is not None:
            run.restore(path, state, settings, generator)
        elif distributed.rank() == 0:
            print(f"no checkpoint at {path}: starting afresh")

    writes = path is not None and distributed.rank() == 0
    drawn = generator.get_state()  # after `run.done` iterations: an interrupted one is drawn again on resume

    def save():
        if writes:
            try:
                write_state(path, run.state(drawn, settings))
            except OSError as error:
                warnings.warn(f"could not write {path} ({error}); the last whole checkpoint is kept", stacklevel=3)

    first, good, checked = run.done, run.so_far(), run.done
    saved = since = time.monotonic()
    check_every = max(1, min(50, iterations // 20))
    quiet = progress is None or distributed.rank() > 0
    bar = tqdm(total=iterations, initial=first, desc=progress, file=sys.stdout, bar_format=BAR, disable=quiet)
    stop = _Interrupt()
    try:
        with stop:
            for i in range(first, iterations):
                batch = sampler(tasks, generator=generator)
                if i == first:
                    check_batch(batch)
                if watch is not None and i % watch_every == 0:
                    watch(i, run.so_far())
                own = distributed.share(batch)
                result = _meta_gradient(method, loss, run, own, steps, step_weights(multi_step, steps, i))
                with stop.held():
                    run.step(i, result, method, tasks)
                    drawn = generator.get_state()
                if run.done % check_every and run.done < iterations and not (stop.asked and distributed.size() == 1):
                    continue  # reading a loss waits for the device: not every iteration
                bar.update(run.done - bar.n)
                recent = run.losses[checked : run.done].mean().item()
                if not math.isfinite(recent):
                    if not quiet:
                        bar.close()
                    warnings.warn(
                        f"training stopped at iteration {run.done}: the query loss is not finite (α or lr too large?). "
                        f"Returning the last finite parameters, of iteration {len(good.history['query_loss'])}",
                        stacklevel=2,
                    )
                    return good
                if validate is not None and _due(run.done, check_every, validate_every, iterations):
                    run.validated.append((run.done, float(validate(run.so_far()))))
                now = time.monotonic()
                bar.set_postfix_str(_postfix(recent, run, tasks * (run.done - checked) / (now - since)))
                checked, good, since = run.done, run.so_far(), now
                if distributed.any_rank(stop.asked is not None, run.losses.device):
                    raise KeyboardInterrupt
                if time.monotonic() - saved > save_every:
                    save()
                    saved = time.monotonic()
    except KeyboardInterrupt:
        save()
        if distributed.rank() == 0:
            kept = f"; resume from {path}" if path is not None else ""
            done = f"interrupted after {run.done} of {iterations} iterations"
            print(f"\n{done}: returning what was learned so far{kept}")
        return run.so_far()
    finally:
        bar.close()
    save()
    return run.so_far()


def _meta_gradient(method, loss, run, batch, steps, weights):
    more = {} if weights is None else {"step_weights": weights.to(batch.support_x)}
    return method(loss, run.theta, batch, run.alpha, steps, **more)


def step_weights(multi_step: int, steps: int, i: int) -> Tensor | None:
    """w_1 … w_K [K] at iteration i: 1/K each at first, then linearly to (0, …, 0, 1); None from multi_step on."""
    if i >= multi_step or steps < 2:
        return None
    earlier = (1 - i / multi_step) / steps
    return torch.tensor([earlier] * (steps - 1) + [1 - (steps - 1) * earlier])  # a tensor: compiled once


def cosine(i: int, iterations: int) -> float:
    """By what the learning rate is multiplied at iteration i of the cosine schedule: from 1 down towards 0."""
    return 0.5 * (1 + math.cos(math.pi * i / iterations))


def _due(now, check_every, every, iterations):
    """Whether a multiple of `every` lies since the look before this one; never between two regular looks."""
    if now == iterations:
        return True
    return now % check_every == 0 and now // every > (now - check_every) // every


def _postfix(recent, run, rate):
    text = f"query loss {recent:.3f}"
    if run.validated:
        text += f", validation {run.validated[-1][1]:.3f}"
    if run.done < run.iterations:  # the last state stays on the page: nothing in it that differs from run to run
        seconds = int((run.iterations - run.done) * run.tasks / rate)
        text += f", {rate:.0f} tasks/s, {seconds // 60}:{seconds % 60:02d} left"
    return text


class _Run:
    """What changes while training: θ, α, Adam, the losses so far."""

    def __init__(self, model, alpha, lr, schedule, learn_alpha, alpha_lr, clip, iterations):
        self.theta = {name: p.detach().clone() for name, p in model.theta.items()}
        like = next(iter(self.theta.values()))
        if learn_alpha:
            alpha = map_alpha(lambda rate: torch.as_tensor(rate, dtype=like.dtype, device=like.device).clone(), alpha)
        self.alpha = alpha
        self.rates = flat_alpha(alpha) if learn_alpha else []
        groups = [{"params": list(self.theta.values()), "lr": lr}]
        if self.rates:
            groups.append({"params": self.rates, "lr": alpha_lr})
        self.adam = torch.optim.Adam(groups)
        self.first_rates = [group["lr"] for group in self.adam.param_groups]
        self.schedule, self.clip, self.iterations = schedule, clip, iterations
        self.losses = torch.zeros(iterations, dtype=torch.float32, device=like.device)
        self.validated: list[tuple[int, float]] = []
        self.done, self.tasks = 0, 0
        self.before, self.started = 0.0, time.monotonic()  # seconds of the runs that this one resumes

    def step(self, i, result, method, tasks):
        """One step of Adam along the mean meta-gradient of all `tasks` (over all ranks)."""
        self.tasks = tasks
        of_rates = [g.to(rate) for rate, g in zip(self.rates, _alpha_gradient(result, method))] if self.rates else []
        gradient, of_rates, self.losses[i] = distributed.mean(result, of_rates, tasks)
        for name, p in self.theta.items():
            p.grad = gradient[name]
        for rate, g in zip(self.rates, of_rates):
            rate.grad = g
        if self.clip is not None:
            torch.nn.utils.clip_grad_norm_(list(self.theta.values()), self.clip)
        if self.schedule == "cosine":
            for group, first in zip(self.adam.param_groups, self.first_rates):
                group["lr"] = first * cosine(i, self.iterations)
        self.adam.step()
        self.done = i + 1

    def so_far(self) -> Trained:
        seconds = self.before + time.monotonic() - self.started
        history = {"query_loss": self.losses[: self.done].cpu(), "seconds": torch.tensor(seconds, dtype=torch.float64)}
        if self.validated:
            history["validation"] = torch.tensor(self.validated, dtype=torch.float64)
        alpha = map_alpha(lambda rate: rate.detach().clone() if isinstance(rate, Tensor) else rate, self.alpha)
        return Trained({name: p.detach().clone() for name, p in self.theta.items()}, alpha, history)

    def state(self, drawn, settings) -> dict:
        """All that a checkpoint holds."""
        return {
            "theta": {name: p.cpu() for name, p in self.theta.items()},
            "alpha": map_alpha(lambda rate: rate.cpu() if isinstance(rate, Tensor) else rate, self.alpha),
            "adam": self.adam.state_dict(),
            "generator": drawn,
            **self.so_far().history,
            "settings": settings,
        }

    def restore(self, path, state, settings, generator):
        if "adam" not in state:
            raise ValueError(f"{path} holds final parameters only, not a run to resume; start without resume")
        same_model(path, state["theta"], self.theta)
        for name, value in settings.items():
            if state["settings"].get(name) != value:
                raise ValueError(
                    f"{path} is of a run with {name}={state['settings'].get(name)}, and {name}={value} is asked for "
                    "now; give the same settings to resume, or another checkpoint file to start afresh"
                )
        for name, p in self.theta.items():
            p.copy_(state["theta"][name])
        for rate, stored in zip(self.rates, flat_alpha(state["alpha"])):
            rate.copy_(stored)
        self.adam.load_state_dict(state["adam"])
        generator.set_state(state["generator"])
        self.done = len(state["query_loss"])
        self.losses[: self.done] = state["query_loss"].to(self.losses.device)
        self.before = state["seconds"].item()
        self.validated = [(int(i), score) for i, score in state.get("validation", torch.zeros(0, 2)).tolist()]


class _Interrupt:
    """Ctrl-C and SIGTERM wait until the iteration is whole; a second Ctrl-C waits for nothing but the step of Adam.

    (One Ctrl-C reaches a rank twice: from the terminal, and as SIGTERM from torchrun.)
    """

    def __init__(self):
        self.asked, self.again, self.holding = None, False, False

    def __enter__(self):
        self.previous = {}
        if threading.current_thread() is threading.main_thread():  # elsewhere Python allows no handlers
            self.previous = {which: signal.signal(which, self._ask) for which in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *error):
        for which, handler in self.previous.items():
            signal.signal(which, handler)

    def _ask(self, which, frame):
        self.again = self.again or which == self.asked
        self.asked = which
        if self.again and not self.holding:
            raise KeyboardInterrupt

    @contextlib.contextmanager
    def held(self):
        """Within, θ, Adam and the generator change together, and no interruption comes."""
        self.holding = True
        try:
            yield
        finally:
            self.holding = False
        if self.again:
            raise KeyboardInterrupt


def _alpha_gradient(result, method):
    if result.alpha_gradient is None:
        raise ValueError(f"{name_of(method)} gives no gradient for α; learn_alpha works with maml and fomaml")
    return flat_alpha(result.alpha_gradient)
