"""`compiled(maml)`: the same meta-gradient as one fused program, traced once per shape and run by torch.compile.

The whole computation (inner steps, query gradient, Hessian-vector products) is flattened into a single graph of tensor
operations before it is compiled, because torch.compile itself does not differentiate twice. On a CUDA device the
program is replayed as a CUDA graph: one launch for all its kernels.
"""

import functools
import warnings
from collections.abc import Callable

import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils import _pytree as pytree

from .meta_gradient import MetaGradient


def compiled(method: Callable[..., MetaGradient]) -> Callable[..., MetaGradient]:
    """`method` (maml, fomaml, reptile, joint) compiled for the shapes it is called with; same arguments, same result.

    The first call with new shapes, steps or step sizes given as numbers compiles: ten seconds to a minute. Give step
    sizes that change from call to call as tensors. `loss` must be the same object from call to call, and may not
    branch on the values of tensors. Where compilation fails (no C++ compiler, an unknown operation), a warning says
    why and the method runs as it is.
    """
    programs: dict = {}

    @functools.wraps(method)
    def run(loss, *arguments, **options):
        leaves, form = pytree.tree_flatten((arguments, options))
        tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        fixed = tuple(None if isinstance(leaf, Tensor) else leaf for leaf in leaves)
        key = (loss, form, fixed, tuple((t.shape, t.dtype, t.device) for t in tensors))
        program = programs.get(key)
        if program is None:
            program = programs[key] = _program(method, loss, form, fixed, tensors)
        return program(tensors) if program else method(loss, *arguments, **options)

    return run


def _product(a: Tensor, b: Tensor) -> Tensor:
    """a [T, n, k] @ b [T, k, m]; as a sum of products, which is fused with its neighbours, where a side is 1."""
    if 1 not in (a.shape[1], a.shape[2], b.shape[2]):
        return NotImplemented
    return (a.unsqueeze(3) * b.unsqueeze(1)).sum(2)


def _product_plus(c, a, b, *, beta=1, alpha=1):
    return c + torch.ops.aten.bmm(a, b) if beta == alpha == 1 else NotImplemented


# Small networks spend their time in calls to the matrix library; these keep thin products out of it.
_THIN = {torch.ops.aten.bmm.default: _product, torch.ops.aten.baddbmm.default: _product_plus}


def _program(method, loss, form, fixed, tensors):
    """A function from the tensors among the arguments to the result; False if it cannot be compiled."""
    result_form = None

    def flat(*given):
        nonlocal result_form
        given = iter(given)
        leaves = [next(given) if leaf is None else leaf for leaf in fixed]
        arguments, options = pytree.tree_unflatten(leaves, form)
        out, result_form = pytree.tree_flatten(method(loss, *arguments, **options))
        return out

    cuda = tensors[0].is_cuda
    try:
        graph = make_fx(flat, decomposition_table=_THIN)(*tensors)
        with torch.no_grad():
            fast = torch._inductor.compile(graph, tensors, options={"triton.cudagraphs": cuda})
            fast(*tensors)
    except Exception as error:  # whatever a compiler may raise: the uncompiled method gives the same numbers
        reason = str(error).strip().splitlines() or [""]
        warnings.warn(
            f"torch.compile failed ({type(error).__name__}: {reason[0]}); {method.__name__} runs uncompiled, which is "
            "slower and gives the same result",
            stacklevel=4,
        )
        return False

    def run(given):
        with torch.no_grad():
            out = fast(*given)
        # A CUDA graph writes into the same memory at every replay.
        return pytree.tree_unflatten([o.clone() if cuda else o for o in out], result_form)

    return run
