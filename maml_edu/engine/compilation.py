"""`compiled(maml)`: the same meta-gradient as one fused program, traced once per shape and run by torch.compile.

The whole computation (inner steps, query gradient, Hessian-vector products) is flattened into a single graph of tensor
operations before it is compiled, because torch.compile itself does not differentiate twice. On a CUDA device the
program is replayed as a CUDA graph: one launch for all its kernels.
"""

import functools
import warnings

import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils import _pytree as pytree

from maml_edu.engine.methods import MetaGradientFunction, Method, name_of
from maml_edu.meta_gradient import MetaGradient


def compiled(method: MetaGradientFunction) -> Method:
    """`method` (maml, fomaml, reptile, joint) compiled for the shapes it is called with; same arguments, same result.

    The first call with new shapes, steps or step sizes given as numbers compiles: ten seconds to a minute. Give step
    sizes that change from call to call as tensors. `loss` must be the same object from call to call, and may not
    branch on the values of tensors. Where compilation fails (no C++ compiler, an unknown operation), a warning says
    why and the method runs as it is.
    """
    programs: dict = {}

    def run(loss, *arguments, **options):
        tensors, form = [], []
        _flatten(arguments, tensors, form)
        _flatten(options, tensors, form)
        key = (loss, *form, *[(t.shape, t.dtype, t.device) for t in tensors])
        program = programs.get(key)
        if program is None:
            program = programs[key] = _program(method, loss, arguments, options, tensors)
        return program(tensors) if program else method(loss, *arguments, **options)

    return Method(name_of(method), functools.wraps(method)(run))


def _flatten(value, tensors, form):
    """Tensors to `tensors`, all else to `form`; in the order of torch's pytree, and five times as fast."""
    if isinstance(value, Tensor):
        tensors.append(value)
        form.append(Tensor)
    elif isinstance(value, dict):
        form.append(tuple(value))
        for part in value.values():
            _flatten(part, tensors, form)
    elif isinstance(value, (list, tuple)):
        form.append(len(value))
        for part in value:
            _flatten(part, tensors, form)
    else:
        form.append(value)


def _product(a: Tensor, b: Tensor) -> Tensor:
    """a [T, n, k] @ b [T, k, m]; as a sum of products, which is fused with its neighbours, where a side is 1."""
    if 1 not in (a.shape[1], a.shape[2], b.shape[2]):
        return NotImplemented
    return (a.unsqueeze(3) * b.unsqueeze(1)).sum(2)


def _product_plus(c, a, b, *, beta=1, alpha=1):
    return c + torch.ops.aten.bmm(a, b) if beta == alpha == 1 else NotImplemented


# Small networks spend their time in calls to the matrix library; these keep thin products out of it.
_THIN = {torch.ops.aten.bmm.default: _product, torch.ops.aten.baddbmm.default: _product_plus}


def _program(method, loss, arguments, options, tensors):
    """A function from the tensors among the arguments to the result; False if it cannot be compiled."""
    leaves, form = pytree.tree_flatten((arguments, options))
    kinds = []  # of the four parts of a MetaGradient

    def flat(*given):
        given = iter(given)
        filled = [next(given) if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        arguments, options = pytree.tree_unflatten(filled, form)
        parts = [pytree.tree_flatten(part) for part in method(loss, *arguments, **options)]
        kinds[:] = [kind for _, kind in parts]
        return [tensor for found, _ in parts for tensor in found]

    cuda = tensors[0].is_cuda
    try:
        graph = make_fx(flat, decomposition_table=_THIN)(*tensors)
        with torch.no_grad():
            fast = torch._inductor.compile(graph, tensors, options={"triton.cudagraphs": cuda})
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
        return False
    names, of_alpha = list(arguments[0]), kinds[3]
    n = len(names)

    def run(given):
        with torch.no_grad():
            out = fast(*given)
        if cuda:  # a CUDA graph writes into the same memory at every replay
            out = [o.clone() for o in out]
        alpha_gradient = pytree.tree_unflatten(out[2 * n + 1 :], of_alpha)
        return MetaGradient(dict(zip(names, out)), out[n], dict(zip(names, out[n + 1 :])), alpha_gradient)

    return run
