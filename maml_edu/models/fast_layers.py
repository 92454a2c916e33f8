"""Two layers whose second derivatives are written by hand, because PyTorch's own are slow: convolution, batch norm.

A convolution is bilinear, and so are the two maps its backward consists of: of y = x∗w, gx = ∂⟨y, gy⟩/∂x and
gw = ∂⟨y, gy⟩/∂w. Differentiating any one of the three gives the other two, so three functions that name each other are
differentiable as often as anyone wants, and every derivative is one of three fast kernels. (PyTorch's own double
backward of a grouped convolution loops over the groups, which are the tasks here.)

Batch norm followed by ReLU is written out to the second derivative; a third raises RuntimeError.
"""

from collections.abc import Sequence
from typing import Any, NoReturn

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function

EPS = 1e-5  # as in torch.nn.BatchNorm2d


def conv(x: Tensor, weight: Tensor, tasks: int) -> Tensor:
    """3×3 convolution, stride 2, padding 1, one weight per task: x [n, T·C, H, W], weight [T·F, C, 3, 3], T `tasks`.

    Returns [n, T·F, ⌈H/2⌉, ⌈W/2⌉]. Fastest with both in torch.channels_last.
    """
    return _Output.apply(x, weight, tasks)


def batch_norm_relu(h: Tensor, shift: Tensor) -> Tensor:
    """relu(x̂ + shift), x̂ = (h − mean)/√(variance + 1e-5) over n, H, W, variance over N (biased); h [n, C, H, W].

    Source: Ioffe & Szegedy (2015), Algorithm 1, with a shift [C] and no scale.
    """
    return _Normalise.apply(h, shift)[0]


# ---------------------------------------------------------------- the three bilinear maps of a convolution


def _backward(gy: Tensor, x: Tensor, weight: Tensor, tasks: int, which: str) -> list[Tensor]:
    mask = [which == "x", which == "weight", False]
    return torch.ops.aten.convolution_backward(gy, x, weight, None, [2, 2], [1, 1], [1, 1], False, [0, 0], tasks, mask)


class _Bilinear(Function):
    """Keeps its two tensor arguments, forward and backward; `shape` is the shape of what it returns."""

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        a, b, *rest = inputs
        ctx.save_for_backward(a, b)
        ctx.save_for_forward(a, b)
        ctx.tasks, ctx.shape = rest[0], output.shape


class _Output(_Bilinear):
    """(x, w) → x∗w."""

    @staticmethod
    def forward(x: Tensor, weight: Tensor, tasks: int) -> Tensor:
        return F.conv2d(x, weight, stride=2, padding=1, groups=tasks)

    @staticmethod
    def backward(ctx: Any, gy: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        to_x, to_weight = ctx.needs_input_grad[:2]
        gx = _ToInput.apply(gy, weight, ctx.tasks, x.shape) if to_x else None
        return gx, _ToWeight.apply(gy, x, ctx.tasks, weight.shape) if to_weight else None, None

    @staticmethod
    def jvp(ctx: Any, tx: Tensor | None, tw: Tensor | None, *_: None) -> Tensor:
        return _tangent(_Output, ctx, tx, tw)


class _ToInput(_Bilinear):
    """(gy, w) → gx."""

    @staticmethod
    def forward(gy: Tensor, weight: Tensor, tasks: int, shape: torch.Size) -> Tensor:
        x = torch.empty(shape, dtype=gy.dtype, device=gy.device, memory_format=torch.channels_last)
        return _backward(gy, x, weight, tasks, "x")[0]

    @staticmethod
    def backward(ctx: Any, u: Tensor) -> tuple[Tensor | None, ...]:
        gy, weight = ctx.saved_tensors
        to_gy, to_weight = ctx.needs_input_grad[:2]
        ggy = conv(u, weight, ctx.tasks) if to_gy else None
        return ggy, _ToWeight.apply(gy, u, ctx.tasks, weight.shape) if to_weight else None, None, None

    @staticmethod
    def jvp(ctx: Any, tgy: Tensor | None, tw: Tensor | None, *_: None) -> Tensor:
        return _tangent(_ToInput, ctx, tgy, tw, ctx.shape)


class _ToWeight(_Bilinear):
    """(gy, x) → gw."""

    @staticmethod
    def forward(gy: Tensor, x: Tensor, tasks: int, shape: torch.Size) -> Tensor:
        weight = torch.empty(shape, dtype=gy.dtype, device=gy.device, memory_format=torch.channels_last)
        return _backward(gy, x, weight, tasks, "weight")[1]

    @staticmethod
    def backward(ctx: Any, u: Tensor) -> tuple[Tensor | None, ...]:
        gy, x = ctx.saved_tensors
        to_gy, to_x = ctx.needs_input_grad[:2]
        ggy = conv(x, u, ctx.tasks) if to_gy else None
        return ggy, _ToInput.apply(gy, u, ctx.tasks, x.shape) if to_x else None, None, None

    @staticmethod
    def jvp(ctx: Any, tgy: Tensor | None, tx: Tensor | None, *_: None) -> Tensor:
        return _tangent(_ToWeight, ctx, tgy, tx, ctx.shape)


def _tangent(bilinear: type[_Bilinear], ctx: Any, ta: Tensor | None, tb: Tensor | None, *shape: torch.Size) -> Tensor:
    """f(ta, b) + f(a, tb) for a bilinear f; a missing tangent is zero."""
    a, b = ctx.saved_tensors
    parts = [] if ta is None else [bilinear.apply(ta, b, ctx.tasks, *shape)]
    parts += [] if tb is None else [bilinear.apply(a, tb, ctx.tasks, *shape)]
    return sum(parts[1:], parts[0])


# ---------------------------------------------------------------- batch norm and ReLU


def _through(u: Tensor, h: Tensor, mean: Tensor, s: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """s·P u with P = I − 11ᵀ/N − x̂x̂ᵀ/N, per channel: the (symmetric) derivative of x̂ by h; and Σ u·x̂, Σ u."""
    ones = torch.ones_like(mean)
    return torch.ops.aten.native_batch_norm_backward(u, h, ones, None, None, mean, s, True, EPS, [True, True, True])


def _curvature(
    u: Tensor, gm: Tensor, h: Tensor, mean: Tensor, s: Tensor, from_u: Sequence[Tensor], from_gm: Sequence[Tensor]
) -> Tensor:
    """∂⟨u, s·P gm⟩/∂h, with what `_through` gave for u and for gm. In words: x̂ depends on h inside P, and so does s.

    ⟨u, s·P gm⟩ = s·A, A = Σu·gm − Σu Σgm/N − Σu·x̂ Σgm·x̂/N. With ∂s/∂h = −s²x̂/N and ∂x̂/∂h = s·P this is
    −s²·A·x̂/N − s·(Σgm·x̂/N)·(s·P u) − s·(Σu·x̂/N)·(s·P gm).
    """
    (pu, u_x, u_1), (pg, g_x, g_1) = from_u, from_gm
    n = h.numel() // s.numel()
    a = (u * gm).sum((0, 2, 3)) - (u_1 * g_1 + u_x * g_x) / n
    slope = s.pow(3) * a / n  # times (h − mean), which is x̂/s
    out = torch.addcmul(_channels(slope * mean), h, _channels(-slope))
    return out.addcmul_(pu, _channels(-s * g_x / n)).addcmul_(pg, _channels(-s * u_x / n))


def _channels(c: Tensor) -> Tensor:
    return c.view(1, -1, 1, 1)


def _mask(g: Tensor, y: Tensor) -> Tensor:
    """g where the ReLU let its input through, 0 elsewhere."""
    return torch.ops.aten.threshold_backward(g, y, 0.0)


class _Normalise(Function):
    """(h, shift) → relu(x̂ + shift), mean, s = 1/√(variance + ε)."""

    @staticmethod
    def forward(h: Tensor, shift: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        y, mean, s = torch.native_batch_norm(h, None, shift, None, None, True, 0.0, EPS)
        return y.relu_(), mean, s

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.mark_non_differentiable(*output[1:])
        ctx.save_for_backward(inputs[0], *output)
        ctx.save_for_forward(inputs[0], *output)

    @staticmethod
    def backward(ctx: Any, gy: Tensor, *_: Tensor) -> tuple[Tensor, ...]:
        return _NormaliseBackward.apply(gy, *ctx.saved_tensors)[:2]

    @staticmethod
    def jvp(ctx: Any, th: Tensor | None, tshift: Tensor | None) -> tuple[Tensor | None, ...]:
        h, y, mean, s = ctx.saved_tensors
        t = torch.zeros_like(h) if th is None else _through(th, h, mean, s)[0]
        return _mask(t if tshift is None else t + _channels(tshift), y), None, None


class _NormaliseBackward(Function):
    """(gy, h) → s·P gm, Σgm, and gm = gy through the ReLU, Σgm·x̂, which are kept for the second derivative."""

    @staticmethod
    def forward(gy: Tensor, h: Tensor, y: Tensor, mean: Tensor, s: Tensor) -> tuple[Tensor, ...]:
        gm = _mask(gy, y)
        gh, g_x, g_1 = _through(gm, h, mean, s)
        return gh, g_1, gm, g_x

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.mark_non_differentiable(*output[2:])
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*inputs, *output)
        ctx.save_for_forward(*inputs, *output)

    @staticmethod
    def backward(ctx: Any, u: Tensor | None, w: Tensor | None, *_: Tensor | None) -> tuple[Tensor | None, ...]:
        gy, h, y, mean, s, *of_gm = ctx.saved_tensors
        if u is None:
            return None if w is None else _mask(_channels(w).expand_as(y), y), None, None, None, None
        return *_NormaliseTwice.apply(u, w, gy, h, y, mean, s, *of_gm), None, None, None

    @staticmethod
    def jvp(ctx: Any, tgy: Tensor | None, th: Tensor | None, *_: Tensor | None) -> tuple[Tensor | None, ...]:
        _, h, y, mean, s, gh, g_1, gm, g_x = ctx.saved_tensors
        tgm = torch.zeros_like(y) if tgy is None else _mask(tgy, y)
        t, t_1 = _through(tgm, h, mean, s)[::2]
        if th is not None:  # s·P gm is a gradient, its derivative by h a Hessian: symmetric, so the same formula
            t = t + _curvature(th, gm, h, mean, s, _through(th, h, mean, s), (gh, g_x, g_1))
        return t, t_1, None, None


class _NormaliseTwice(Function):
    """What `_NormaliseBackward` passes on to gy and h, given the cotangents u of s·P gm and w of Σgm."""

    @staticmethod
    def forward(u: Tensor, w: Tensor | None, gy: Tensor, h: Tensor, y: Tensor, *of_h: Tensor) -> tuple[Tensor, Tensor]:
        mean, s, gh, g_1, gm, g_x = of_h
        from_u = _through(u, h, mean, s)
        to_h = _curvature(u, gm, h, mean, s, from_u, (gh, g_x, g_1))
        return _mask(from_u[0] if w is None else from_u[0] + _channels(w), y), to_h

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, *_: Tensor) -> NoReturn:
        raise RuntimeError("batch_norm_relu has a first and a second derivative, and a third one was asked for")
