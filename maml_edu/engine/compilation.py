"""`compiled(maml)`: the same meta-gradient as one fused program, traced once per shape and run by torch.compile.

The whole recursion (inner steps, query gradient, Hessian-vector products) is traced into one flat graph of tensor
operations, and only that graph is compiled. A compiled function is never differentiated here: under create_graph=True
PyTorch gives its gradient without a second derivative and without a word, and MAML turns into FOMAML.
`torch.compile(torch.func.grad(outer))` of the unrolled objective is exact as well. But it needs every method written a
second time, refuses layers with hand-written derivatives (those of conv4), and takes 1.2 to 2 times as long for sines.
"""

import functools
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from maml_edu.engine.methods import MetaGradientFunction, Method, name_of
from maml_edu.meta_gradient import MetaGradient
from maml_edu.tasks import Loss

Program = Callable[[list[Tensor]], MetaGradient]


def compiled(method: MetaGradientFunction) -> Method:
    """`method` (maml, fomaml, reptile, joint) compiled for the shapes it is called with; same arguments, same result.

    The first call with new shapes, steps or step sizes given as numbers compiles: ten seconds to a minute. Give step
    sizes that change from call to call as tensors. `loss` must be the same object from call to call, and may not
    branch on the values of tensors. On a CUDA device the program is replayed as a CUDA graph: one launch for all its
    kernels. Where compilation fails (no C++ compiler, an unknown operation), a warning says why and the method runs as
    it is. Raises ValueError where the method does.
    """
    programs: dict[object, Program | None] = {}

    def run(loss: Loss, *arguments: object, **options: object) -> MetaGradient:
        tensors: list[Tensor] = []
        form = _take_out(tensors, (loss, arguments, options))
        key = (form, *[(t.shape, t.dtype, t.device) for t in tensors])
        if key not in programs:
            programs[key] = _program(method, form, tensors)
        program = programs[key]
        return program(tensors) if program else method(loss, *arguments, **options)

    return Method(name_of(method), functools.wraps(method)(run))


def _program(method: MetaGradientFunction, form: object, tensors: list[Tensor]) -> Program | None:
    """A function from the tensors of a call to its result, for calls of this form; None if it cannot be compiled."""
    forms = []

    def flat(*given: Tensor) -> list[Tensor]:
        loss, arguments, options = _put_back(iter(given), form)
        outputs: list[Tensor] = []
        forms.append(_take_out(outputs, method(loss, *arguments, **options)))
        return outputs

    cuda = tensors[0].is_cuda
    try:
        graph = make_fx(flat, decomposition_table=_THIN)(*tensors)
        with torch.no_grad():
            fast = torch._inductor.compile(graph, [*tensors], options={"triton.cudagraphs": cuda})
            fast(*tensors)
    except ValueError:  # the method's own, about its arguments
        raise
    except Exception as error:  # whatever a compiler may raise: the uncompiled method gives the same numbers
        reason = str(error).strip().splitlines() or [""]
        warnings.warn(
            f"torch.compile failed ({type(error).__name__}: {reason[0]}); {name_of(method)} runs uncompiled, which is "
            "slower and gives the same result",
            stacklevel=3,
        )
        return None

    def run(given: list[Tensor]) -> MetaGradient:
        with torch.no_grad():
            outputs = fast(*given)
        if cuda:  # a CUDA graph writes into the same memory at every replay
            outputs = [tensor.clone() for tensor in outputs]
        return _put_back(iter(outputs), forms[0])

    return run


# ---------------------------------------------------------------- arguments and results, and the tensors in them


def _take_out(tensors: list[Tensor], value: Any) -> Any:
    """The form of `value`: what is left of it, hashable, when its tensors have moved to the end of `tensors`."""
    if isinstance(value, Tensor):
        tensors.append(value)
        return Tensor
    if isinstance(value, dict):
        return dict, tuple(value), tuple([_take_out(tensors, part) for part in value.values()])
    if isinstance(value, (list, tuple)):
        return type(value), None, tuple([_take_out(tensors, part) for part in value])
    return value


def _put_back(tensors: Iterator[Tensor], form: Any) -> Any:
    """The value that had this form, with other tensors in it."""
    if form is Tensor:
        return next(tensors)
    if not isinstance(form, tuple):
        return form
    kind, names, parts = form
    values = [_put_back(tensors, part) for part in parts]
    if names is not None:
        return dict(zip(names, values))
    return kind(*values) if hasattr(kind, "_fields") else kind(values)


# ---------------------------------------------------------------- small networks


def _product(a: Tensor, b: Tensor) -> Tensor:
    """a [T, n, k] @ b [T, k, m]; as a sum of products, which is fused with its neighbours, where a side is 1."""
    if 1 not in (a.shape[1], a.shape[2], b.shape[2]):
        return NotImplemented
    return (a.unsqueeze(3) * b.unsqueeze(1)).sum(2)


def _product_plus(c: Tensor, a: Tensor, b: Tensor, *, beta: float = 1, alpha: float = 1) -> Tensor:
    return c + torch.ops.aten.bmm(a, b) if beta == alpha == 1 else NotImplemented


# Small networks spend their time in calls to the matrix library; these keep thin products out of it.
_THIN: dict[Any, Callable[..., Tensor]] = {
    torch.ops.aten.bmm.default: _product,
    torch.ops.aten.baddbmm.default: _product_plus,
}
