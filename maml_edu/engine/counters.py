"""Counting what a computation does, without a clock: operations, arithmetic, the most bytes alive at one time.

For checking predictions such as those of `cost_model`. Nothing here depends on how fast or how busy the machine is.
"""

import weakref
from collections.abc import Callable, Mapping, Sequence

from torch import Tensor
from torch._ops import OpOverload
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

Kwargs = Mapping[str, object] | None


def count_flops(call: Callable[[], object]) -> int:
    """Floating-point operations in matrix products and convolutions while call() runs (a multiply-add counts two).

    PyTorch's counter, which takes the weight gradient of a grouped convolution for T times what it is (T groups): count
    convolutional networks with one task.
    """
    with FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops()


def count_operations(call: Callable[[], object]) -> int:
    """How many operations make new numbers while call() runs, forward and backward; views are free and not counted.

    On a GPU each would be one launch of a kernel, or a few.
    """
    with _Operations() as counted:
        call()
    return counted.number


def peak_bytes(call: Callable[[], object]) -> int:
    """The most bytes of tensors alive at one time, of those that call() makes. Deterministic.

    Counts memories, not tensors: a view or an expanded tensor adds nothing. What the arguments hold is not included.
    """
    with LiveBytes() as memory:
        call()
    return memory.peak


class LiveBytes(TorchDispatchMode):
    """While active: `live` and `peak`, the bytes of all tensors made, every memory once, until it is freed."""

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = 0
        self.known: set[int] = set()

    def __torch_dispatch__(
        self, func: OpOverload, types: Sequence[type], args: Sequence[object] = (), kwargs: Kwargs = None
    ) -> object:
        out = func(*args, **(kwargs or {}))
        if not (func.is_view or func._schema.is_mutable):
            for t in tree_leaves(out):
                if isinstance(t, Tensor) and id(memory := t.untyped_storage()) not in self.known:
                    self.known.add(id(memory))  # one object for as long as the memory lives
                    self.live += memory.nbytes()
                    weakref.finalize(memory, self._freed, id(memory), memory.nbytes())
            self.peak = max(self.peak, self.live)
        return out

    def _freed(self, key: int, size: int) -> None:
        self.known.discard(key)
        self.live -= size


class _Operations(TorchDispatchMode):
    number = 0

    def __torch_dispatch__(
        self, func: OpOverload, types: Sequence[type], args: Sequence[object] = (), kwargs: Kwargs = None
    ) -> object:
        self.number += func._schema.is_mutable or not func.is_view
        return func(*args, **(kwargs or {}))
