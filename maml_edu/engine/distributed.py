"""Several processes, one meta-batch: every rank takes its share of the tasks, and the gradients are averaged.

Every rank draws the same tasks from the same generator and keeps its own slice, so N ranks compute the meta-gradient of
one process, up to the order of a sum. Started by torchrun, which also sets up ranks on several machines.
"""

import contextlib
import os
from collections.abc import Iterator
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from maml_edu.meta_gradient import MetaGradient
from maml_edu.tasks import Params, TaskBatch

T = TypeVar("T")


class PeerLost(RuntimeError):
    """Another process of the group has ended, or doesn't answer."""


def join(device: torch.device) -> torch.device:
    """Join the processes that torchrun started (gloo on CPU, NCCL on CUDA), if it did; returns this rank's device.

    Raises ValueError if only some of the variables that torchrun sets are there, RuntimeError if nobody answers.
    """
    processes = os.environ.get("WORLD_SIZE", "1")
    alone = "start the processes with torchrun, or unset WORLD_SIZE to run alone"
    if not processes.isdigit():
        raise ValueError(
            f"the environment variable WORLD_SIZE is {processes!r}; expected a number of processes: {alone}"
        )
    if int(processes) > 1 and not dist.is_initialized():
        missing = [name for name in ("RANK", "MASTER_ADDR", "MASTER_PORT") if not os.environ.get(name)]
        if missing:
            raise ValueError(
                f"the environment variable WORLD_SIZE={processes} asks for several processes, and {', '.join(missing)} "
                f"isn't set: {alone}"
            )
        if device.type == "cuda" and device.index is None:
            device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
            torch.cuda.set_device(device)
        try:
            dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
        except (RuntimeError, ValueError) as error:
            where = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
            raise RuntimeError(
                f"could not meet the {processes} processes of WORLD_SIZE at MASTER_ADDR:MASTER_PORT ({where}): {alone}"
            ) from error
    return device


def leave() -> None:
    """Undo `join`."""
    if dist.is_initialized():
        dist.destroy_process_group()


def rank() -> int:
    """Which process this is; 0 if it is the only one. Rank 0 prints and writes."""
    return dist.get_rank() if dist.is_initialized() else 0


def size() -> int:
    """How many processes share the meta-batch."""
    return dist.get_world_size() if dist.is_initialized() else 1


def share(batch: TaskBatch) -> TaskBatch:
    """This rank's slice of the tasks; the slices differ by at most one task."""
    if size() == 1:
        return batch
    tasks = batch.support_x.shape[0]
    if tasks < size():
        raise ValueError(f"{tasks} tasks cannot be split over {size()} processes; give at least one task to each")
    bounds = [tasks * r // size() for r in range(size() + 1)]
    return TaskBatch(*(t[bounds[rank()] : bounds[rank() + 1]] for t in batch))


def mean(result: MetaGradient, alpha_gradient: list[Tensor], tasks: int) -> tuple[Params, list[Tensor], Tensor]:
    """The gradient, the gradient of every step size, and the query loss of all `tasks`, from every rank's share.

    One all-reduce of a single vector. Raises PeerLost.
    """
    if size() == 1:
        return result.gradient, alpha_gradient, result.query_loss.mean()
    own = result.query_loss.shape[0] / tasks
    parts = [*result.gradient.values(), *alpha_gradient, result.query_loss.mean()]
    vector = torch.cat([part.reshape(-1) * own for part in parts])
    with _all_there():
        dist.all_reduce(vector)
    summed = [v.view(part.shape) for v, part in zip(vector.split([part.numel() for part in parts]), parts)]
    return dict(zip(result.gradient, summed)), summed[len(result.gradient) : -1], summed[-1]


def any_rank(flag: bool, device: torch.device) -> bool:
    """True on every rank if it is true on one. Raises PeerLost."""
    if size() == 1:
        return flag
    told = torch.tensor([float(flag)], device=device)
    with _all_there():
        dist.all_reduce(told)
    return bool(told.item())


def from_rank_0(value: T) -> T:
    """Rank 0's value (anything that pickles), on every rank. Raises PeerLost."""
    if size() == 1:
        return value
    box = [value]
    with _all_there():
        dist.broadcast_object_list(box)
    return box[0]


@contextlib.contextmanager
def _all_there() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:  # in torch's words, with addresses and lines of its source
        raise PeerLost("another process of this run has ended or doesn't answer") from error
