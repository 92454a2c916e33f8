"""Several processes, one meta-batch: every rank takes its share of the tasks, and the gradients are averaged.

Every rank draws the same tasks from the same generator and keeps its own slice, so N ranks compute the meta-gradient of
one process, up to the order of a sum. Started by torchrun, which also sets up ranks on several machines.
"""

import os

import torch
import torch.distributed as dist
from torch import Tensor

from maml_edu.meta_gradient import MetaGradient
from maml_edu.tasks import Params, TaskBatch


def join(device: torch.device) -> torch.device:
    """Join the processes that torchrun started (gloo on CPU, NCCL on CUDA), if it did; returns this rank's device."""
    if int(os.environ.get("WORLD_SIZE", 1)) > 1 and not dist.is_initialized():
        if device.type == "cuda" and device.index is None:
            device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
            torch.cuda.set_device(device)
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
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


def mean(result: MetaGradient, rates: list[Tensor], tasks: int) -> tuple[Params, list[Tensor], Tensor]:
    """The gradient, the gradient of every rate, and the query loss of all `tasks`, from every rank's share.

    One all-reduce of a single vector.
    """
    if size() == 1:
        return result.gradient, rates, result.query_loss.mean()
    own = result.query_loss.shape[0] / tasks
    parts = [*result.gradient.values(), *rates, result.query_loss.mean()]
    vector = torch.cat([part.reshape(-1) * own for part in parts])
    dist.all_reduce(vector)
    summed = [v.view(part.shape) for v, part in zip(vector.split([part.numel() for part in parts]), parts)]
    return dict(zip(result.gradient, summed)), summed[len(result.gradient) : -1], summed[-1]


def any_rank(flag: bool, device: torch.device) -> bool:
    """True on every rank if it is true on one."""
    if size() == 1:
        return flag
    told = torch.tensor([float(flag)], device=device)
    dist.all_reduce(told)
    return bool(told.item())


def from_rank_0(value):
    """Rank 0's value (anything that pickles), on every rank."""
    if size() == 1:
        return value
    box = [value]
    dist.broadcast_object_list(box)
    return box[0]
