"""Exercises of notebook 02: differentiating a gradient step."""

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from maml_edu.classroom.exercises import Exercise, NotAllowed
from maml_edu.engine.counters import count_flops

# ---------------------------------------------------------------- 2.1


def distance_after_the_step() -> float:
    slope = 1 - 0.4 * 4  # 1 − αh = −0.6: the step goes past the minimum
    return slope * 0.1


# ---------------------------------------------------------------- 2.2


def flattening_alpha() -> float:
    eigenvalues = torch.linalg.eigvalsh(torch.tensor([[2.2, 0.8], [0.8, 1.0]], dtype=torch.float64))
    return 1 / eigenvalues.max().item()  # 1 − αλ = 0 happens first for the largest λ


# ---------------------------------------------------------------- 2.3


def jacobian_of_a_sine(theta: Tensor, x: Tensor, y: Tensor, alpha: float) -> Tensor:
    """∂φ/∂θ for θ = (A, p), the model A·sin(x − p) and the mean squared error on the points x, y."""
    A, p = theta
    s, c = torch.sin(x - p), torch.cos(x - p)
    r = A * s - y
    H_AA = 2 * (s * s).mean()  # ∂f/∂A = s, and s doesn't contain A
    H_Ap = 2 * (s * (-A * c) + r * (-c)).mean()  # ∂f/∂p = −A·c, ∂²f/∂A∂p = −c
    H_pp = 2 * ((-A * c) ** 2 + r * (-A * s)).mean()  # ∂²f/∂p² = −A·s
    H = torch.stack([H_AA, H_Ap, H_Ap, H_pp]).view(2, 2)
    return torch.eye(2, dtype=x.dtype) - alpha * H


NO_AUTOGRAD = "you called autograd. Write the four entries by hand: that's what this exercise is for."


class _Probe(torch.autograd.Function):
    """The identity, which `torch.func`'s transforms refuse for want of a setup_context."""

    @staticmethod
    def forward(context: object, x: Tensor) -> Tensor:
        return x.clone()


class _WithoutTransforms(TorchFunctionMode):
    """Raises RuntimeError as soon as anything is computed inside torch.func.grad, jacrev, jvp, …"""

    def __torch_function__(
        self, func: Callable, types: object, args: tuple = (), kwargs: dict[str, object] | None = None
    ) -> object:
        _Probe.apply(torch.zeros(()))
        return func(*args, **(kwargs or {}))


def _without_autograd(function: Callable) -> Callable:
    """The same function where nothing can be differentiated."""

    def examined(*arguments: object) -> object:
        try:
            with torch.inference_mode(), _WithoutTransforms():
                return function(*(t.clone() if isinstance(t, Tensor) else t for t in arguments))
        except RuntimeError as error:
            if any(word in str(error).lower() for word in ("grad", "inference", "setup_context")):
                raise NotAllowed(NO_AUTOGRAD) from error
            raise

    return examined


def _by_autograd(theta: Tensor, x: Tensor, y: Tensor, alpha: float) -> Tensor:
    def loss(t: Tensor) -> Tensor:
        return ((t[0] * torch.sin(x - t[1]) - y) ** 2).mean()

    return torch.eye(2, dtype=x.dtype) - alpha * torch.autograd.functional.hessian(loss, theta)


def _sine_hessian(theta: Tensor, x: Tensor, y: Tensor) -> Tensor:
    return torch.eye(2, dtype=x.dtype) - jacobian_of_a_sine(theta, x, y, 1.0)


def _with_hessian(change: Callable[[Tensor], Tensor]) -> Callable[[Tensor, Tensor, Tensor, float], Tensor]:
    """I − α·change(H)."""

    def wrong(theta: Tensor, x: Tensor, y: Tensor, alpha: float) -> Tensor:
        return torch.eye(2, dtype=x.dtype) - alpha * change(_sine_hessian(theta, x, y))

    return wrong


def _residual_turned_over(theta: Tensor, x: Tensor, y: Tensor, alpha: float) -> Tensor:
    A, p = theta
    mixed = 4 * ((A * torch.sin(x - p) - y) * torch.cos(x - p)).mean()  # from −r·c to +r·c, with the 2 of the square
    zero = torch.zeros_like(mixed)
    change = torch.stack([zero, mixed, mixed, zero]).view(2, 2)
    return jacobian_of_a_sine(theta, x, y, alpha) - alpha * change


def _sum_over_points(theta: Tensor, x: Tensor, y: Tensor, alpha: float) -> Tensor:
    return jacobian_of_a_sine(theta, x, y, alpha * len(x))


def _hessian_alone(theta: Tensor, x: Tensor, y: Tensor, alpha: float) -> Tensor:
    return _sine_hessian(theta, x, y)


def _without_identity(theta: Tensor, x: Tensor, y: Tensor, alpha: float) -> Tensor:
    return -alpha * _sine_hessian(theta, x, y)


def _without_residuals(theta: Tensor, x: Tensor, y: Tensor, alpha: float) -> Tensor:
    return jacobian_of_a_sine(theta, x, theta[0] * torch.sin(x - theta[1]), alpha)


def _sines() -> list[tuple]:
    def case(theta: tuple, x: list, y: list, alpha: float) -> tuple:
        numbers = [torch.tensor(values, dtype=torch.float64) for values in (theta, x, y)]
        return *numbers, alpha

    return [
        case((2.7, math.pi / 2), [-1.0, 0.5, 2.0], [1.5, -2.0, 0.3], 0.1),
        case((1.2, 0.4), [0.2, 1.4, 2.9, -1.3], [0.1, 2.0, -1.0, 0.7], 0.05),
    ]


# ---------------------------------------------------------------- 2.4

Loss = Callable[[Tensor], Tensor]


def pull_back_one_step(loss_s: Loss, theta: Tensor, alpha: float, v: Tensor) -> Tensor:
    """(I − αH)v without the matrix: loss_s(theta) is a number, theta and v are vectors."""
    theta = theta.detach().requires_grad_()
    (g,) = torch.autograd.grad(loss_s(theta), theta, create_graph=True)
    phi = theta - alpha * g
    (pulled,) = torch.autograd.grad(phi, theta, grad_outputs=v)
    return pulled


def _without_the_matrix(function: Callable) -> Callable:
    """Refuses what works as hard as the rows of H, one by one or all at once, whatever becomes of them."""

    def examined(loss_s: Loss, theta: Tensor, alpha: float, v: Tensor) -> Tensor:
        outputs: list[Tensor] = []
        spent = count_flops(lambda: outputs.append(function(loss_s, theta, alpha, v)))
        gradient = count_flops(lambda: _gradient(loss_s, theta))
        if gradient and spent > MOST_GRADIENTS * gradient:
            raise NotAllowed(NO_MATRIX)
        return outputs[0]

    return examined


NO_MATRIX = (
    "this does as much work as a gradient for each parameter, so it computes the rows of H. "
    "Two calls of torch.autograd.grad are enough, however many parameters there are."
)
MOST_GRADIENTS = 8  # (I − αH)v costs two; differences of gradients cost two or three; H costs as many as θ has entries


def _gradient(loss_s: Loss, theta: Tensor) -> Tensor:
    theta = theta.detach().requires_grad_()
    return torch.autograd.grad(loss_s(theta), theta)[0]


def _hessian_product(loss_s: Loss, theta: Tensor, alpha: float, v: Tensor) -> Tensor:
    return v - pull_back_one_step(loss_s, theta, 1.0, v)


def _taken_off(loss_s: Loss, theta: Tensor, alpha: float, v: Tensor) -> Tensor:
    return v - pull_back_one_step(loss_s, theta, alpha, v)


def _v_unchanged(loss_s: Loss, theta: Tensor, alpha: float, v: Tensor) -> Tensor:
    return v


def _plus(loss_s: Loss, theta: Tensor, alpha: float, v: Tensor) -> Tensor:
    return pull_back_one_step(loss_s, theta, -alpha, v)


def _without_alpha(loss_s: Loss, theta: Tensor, alpha: float, v: Tensor) -> Tensor:
    return pull_back_one_step(loss_s, theta, 1.0, v)


def _at_phi(loss_s: Loss, theta: Tensor, alpha: float, v: Tensor) -> Tensor:
    return pull_back_one_step(loss_s, theta - alpha * _gradient(loss_s, theta), alpha, v)


def _squared_gradient(loss_s: Loss, theta: Tensor, alpha: float, v: Tensor) -> Tensor:
    g = _gradient(loss_s, theta)
    return v - alpha * g * (g @ v)


def _whole_hessian(loss_s: Loss, theta: Tensor, alpha: float, v: Tensor) -> Tensor:
    return v - alpha * torch.autograd.functional.hessian(loss_s, theta) @ v


def _phi(loss_s: Loss, theta: Tensor, alpha: float, v: Tensor) -> Tensor:
    return theta - alpha * _gradient(loss_s, theta)


def _pullbacks() -> list[tuple]:
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    x, y = draw(6, 30), draw(6, 1)
    return [
        (lambda theta: (torch.tanh(x @ theta[:, None]) - y).square().mean(), draw(30) / 5, 0.3, draw(30)),
        (lambda theta: (theta**4).sum() / 4 + theta[0] * theta[1], draw(4), 0.1, draw(4)),
    ]


EXERCISES: list[Exercise] = [
    Exercise(
        number="2.1",
        title="how far does the adapted point move?",
        reference=distance_after_the_step,
        mistakes={
            "the size is right, but the sign isn't: with αh above 1, φ moves in the opposite direction to θ.": lambda: (
                0.06
            ),
            "this is how far θ moved. You left out the step, and got the first-order answer.": lambda: 0.1,
            "this is −αh times the distance: the 1 of 1 − αh is missing.": lambda: -0.16,
            "this is αh times the distance. Subtract it from the distance itself.": lambda: 0.16,
            "this is 1 + αh times the distance, but a gradient step subtracts.": lambda: 0.26,
            "this is the slope 1 − αh. Multiply it by the distance that θ moved.": lambda: -0.6,
        },
        hints=(
            "φ against θ is a straight line. What's its slope?",
            "The slope is 1 − αh. Work out αh first: is it larger than 1?",
            "The slope is 1 − 1.6. Multiply it by the 0.1 that θ moved.",
        ),
        remark="Start further right and you land further left: the step goes past the minimum.",
    ),
    Exercise(
        number="2.2",
        title="the α that flattens the square",
        reference=flattening_alpha,
        mistakes={
            "this is 1/λ for the smaller eigenvalue. The square has already gone flat at a smaller α.": lambda: 1 / 0.6,
            "this is 1/H₁₁, the curvature along a, but the steepest direction isn't the a axis.": lambda: 1 / 2.2,
            "this is 2/λ, where the factor is −1 and not 0.": lambda: 2 / 2.6,
            "that's close, read off the picture. The exact α comes from the larger eigenvalue.": lambda: 0.4,
            "this is λ itself. You want the α for which 1 − αλ = 0.": lambda: 2.6,
        },
        hints=(
            "Use the slider: between which two values does the parallelogram turn over?",
            "A parallelogram is flat when one of its two factors 1 − αλ is 0.",
            "The eigenvalues are printed above the slider. The larger λ reaches 1 − αλ = 0 first.",
        ),
        tolerance=0.015,
        remark="It's 1/λ for the largest λ. Beyond it, starts trade places along that direction.",
    ),
    Exercise(
        number="2.3",
        title="the Jacobian of the plane's step",
        reference=jacobian_of_a_sine,
        mistakes={
            "the 2 is missing: the square in the loss gives it when you differentiate.": _with_hessian(lambda H: H / 2),
            "you summed over the points, but the loss is their mean.": _sum_over_points,
            "the sign is wrong: a gradient step subtracts, so the Jacobian is I − αH.": _with_hessian(lambda H: -H),
            "this is the Hessian H. The Jacobian of the step is I − αH.": _hessian_alone,
            "the identity is missing: φ = θ − α∇L_s(θ) also contains θ itself.": _without_identity,
            "the entries off the diagonal are missing: nudge A, and ∂L_s/∂p changes too.": _with_hessian(
                lambda H: torch.diag(H.diagonal())
            ),
            "the term with the residual r is missing: f bends too, ∂²f/∂p² = −A·sin(x − p).": _without_residuals,
            "∂f/∂p has the wrong sign: p comes with a minus in sin(x − p).": _with_hessian(
                lambda H: H * torch.tensor([[1.0, -1.0], [-1.0, 1.0]], dtype=H.dtype)
            ),
            "the mixed entry has a wrong sign: ∂²f/∂A∂p = −c, so r enters it as −r·c.": _residual_turned_over,
            NO_AUTOGRAD: _by_autograd,
            "A and p are in the wrong order: the first row and column belong to A.": _with_hessian(
                lambda H: H.flip(0, 1)
            ),
        },
        examine=_without_autograd,
        hints=(
            "Write s = sin(x − p), c = cos(x − p), r = A·s − y. Then ∂f/∂A = s and ∂f/∂p = −A·c.",
            "Differentiate once more: ∂²f/∂A² = 0, ∂²f/∂A∂p = −c, ∂²f/∂p² = −A·s. Now use the formula above.",
            "H_AA = 2·mean(s²), H_Ap = 2·mean(−A·s·c − r·c), H_pp = 2·mean(A²c² − r·A·s). The answer is I − αH.",
        ),
        cases=_sines,
        remark="Each of the four numbers says how far one entry of φ follows one entry of θ.",
    ),
    Exercise(
        number="2.4",
        title="pull a vector back through one step",
        reference=pull_back_one_step,
        mistakes={
            "this is v unchanged: the Hessian term is missing. Is create_graph=True set?": _v_unchanged,
            "the sign is wrong: this is (I + αH)v, but a gradient step subtracts.": _plus,
            "α is missing: this is (I − H)v.": _without_alpha,
            "this is αHv, what the step takes off. Return v minus that.": _taken_off,
            "this is Hv alone. Differentiate all of φ = θ − αg, not only g.": _hessian_product,
            "this takes the Hessian at φ, but the step took its gradient at θ.": _at_phi,
            "this is (I − αggᵀ)v, but a product of first derivatives isn't a second derivative.": _squared_gradient,
            "this is φ itself. Pull v back through the step that made φ.": _phi,
            NO_MATRIX: _whole_hessian,
        },
        hints=(
            "Two calls of torch.autograd.grad: one for the step, one for the pullback.",
            "The first call needs create_graph=True, so that φ knows how g depends on θ.",
            "The second call is torch.autograd.grad(phi, theta, grad_outputs=v).",
        ),
        cases=_pullbacks,
        examine=_without_the_matrix,
        remark="You built no matrix, so this works for a network of any size.",
    ),
]
