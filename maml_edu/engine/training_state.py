"""What changes while training: θ, α, Adam and the losses so far; how it goes to a checkpoint and back."""

import time
from pathlib import Path

import torch
from torch import Tensor

from maml_edu.engine.checkpoint_files import Checkpoint, Trained, same_model
from maml_edu.step_sizes import Alpha, flat_alpha, map_alpha
from maml_edu.tasks import Params


class TrainingState:
    """theta, alpha: as they are now. done: iterations. losses [iterations]: the query loss of each, 0 where not done.

    validated: (iteration, score) of every validation. step_sizes: the tensors in alpha that are learned, if any.
    """

    def __init__(
        self,
        theta: Params,
        alpha: Alpha,
        iterations: int,
        *,
        lr: float,
        learn_alpha: bool,
        alpha_lr: float,
        clip: float | None,
    ) -> None:
        self.theta = {name: p.detach().clone() for name, p in theta.items()}
        like = next(iter(self.theta.values()))
        self.alpha: Alpha = map_alpha(lambda a: a.detach() if isinstance(a, Tensor) else float(a), alpha)
        self.step_sizes: list[Tensor] = []
        if learn_alpha:
            learned = map_alpha(lambda a: torch.as_tensor(a, dtype=like.dtype, device=like.device).clone(), self.alpha)
            self.alpha, self.step_sizes = learned, flat_alpha(learned)
        groups = [{"params": list(self.theta.values()), "lr": lr}]
        if self.step_sizes:
            groups.append({"params": self.step_sizes, "lr": alpha_lr})
        self.adam = torch.optim.Adam(groups)
        self._first_lr = [group["lr"] for group in self.adam.param_groups]
        self._clip = clip
        self.losses = torch.zeros(iterations, dtype=torch.float32, device=like.device)
        self.validated: list[tuple[int, float]] = []
        self.done = 0
        self._before, self._started = 0.0, time.monotonic()  # seconds of the runs that this one resumes

    def step(self, gradient: Params, alpha_gradient: list[Tensor], query_loss: Tensor, lr_factor: float) -> None:
        """One step of Adam. alpha_gradient: for each of step_sizes. query_loss: the mean of this meta-batch."""
        for name, p in self.theta.items():
            p.grad = gradient[name]
        for size, g in zip(self.step_sizes, alpha_gradient):
            size.grad = g.to(size)
        if self._clip is not None:
            torch.nn.utils.clip_grad_norm_(list(self.theta.values()), self._clip)
        for group, first in zip(self.adam.param_groups, self._first_lr):
            group["lr"] = first * lr_factor
        self.adam.step()
        self.losses[self.done] = query_loss
        self.done += 1

    def so_far(self) -> Trained:
        """A copy of what has been learned."""
        seconds = self._before + time.monotonic() - self._started
        history = {"query_loss": self.losses[: self.done].cpu(), "seconds": torch.tensor(seconds, dtype=torch.float64)}
        if self.validated:
            history["validation"] = torch.tensor(self.validated, dtype=torch.float64)
        alpha = map_alpha(lambda a: a.detach().clone() if isinstance(a, Tensor) else a, self.alpha)
        return Trained({name: p.detach().clone() for name, p in self.theta.items()}, alpha, history)

    def checkpoint(self, drawn: Tensor, settings: dict[str, object]) -> Checkpoint:
        """All that a run needs to go on. drawn: the state of the generator of the tasks after `done` iterations."""
        return Checkpoint(self.so_far(), settings, self.adam.state_dict(), drawn)

    def restore(
        self, path: Path, checkpoint: Checkpoint, settings: dict[str, object], generator: torch.Generator
    ) -> None:
        """Go on where a run with the same settings was left. Raises ValueError, naming path, where that cannot be."""
        trained, stored, adam, drawn = checkpoint
        if adam is None or drawn is None:
            raise ValueError(f"{path} holds final parameters only, not a run to resume; start without resume")
        same_model(path, trained.theta, self.theta)
        for name, value in settings.items():
            if name not in stored or stored[name] != value:
                raise ValueError(
                    f"{path} is of a run with {name}={stored.get(name)}, and {name}={value} is asked for now; give the "
                    "same settings to resume, or another checkpoint file to start afresh"
                )
        try:
            for name, p in self.theta.items():
                p.copy_(trained.theta[name])
            kept = flat_alpha(trained.alpha) if self.step_sizes else []
            for size, learned in zip(self.step_sizes, kept, strict=True):
                size.copy_(torch.as_tensor(learned))
            self.adam.load_state_dict(adam)
            generator.set_state(drawn)
            self.done = len(trained.history["query_loss"])
            self.losses[: self.done] = trained.history["query_loss"]
            self._before = trained.history["seconds"].item()
            scores = trained.history.get("validation", torch.zeros(0, 2)).tolist()
            self.validated = [(int(iteration), score) for iteration, score in scores]
        except Exception as error:  # what only looks like a state of Adam can raise anything
            raise ValueError(f"{path} doesn't hold a run that can be resumed ({error}); start another one") from error
