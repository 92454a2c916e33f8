"""Exercises of notebook 02: differentiating a gradient step."""

from collections.abc import Callable

import torch
from torch import Tensor

from maml_edu.classroom.exercises import Exercise

# ---------------------------------------------------------------- 2.1


def distance_after_the_step() -> float:
    slope = 1 - 0.4 * 4  # 1 − αh = −0.6: the step goes past the minimum
    return slope * 0.1


# ---------------------------------------------------------------- 2.2


def flattening_alpha() -> Tensor:
    eigenvalues = torch.linalg.eigvalsh(torch.tensor([[2.2, 0.8], [0.8, 1.0]], dtype=torch.float64))
    return 1 / eigenvalues.max()  # 1 − αλ = 0 happens first for the largest λ


# ---------------------------------------------------------------- 2.3


def jacobian_of_a_line(x: Tensor, alpha: float) -> Tensor:
    """∂θ′/∂θ for θ = (w, b), the line w·x + b and the squared error, mean over the inputs x [n]."""
    second_derivatives = [
        [2 * (x * x).mean(), 2 * x.mean()],  # ∂²/∂w²,  ∂²/∂w∂b
        [2 * x.mean(), torch.full_like(x, 2).mean()],  # ∂²/∂b∂w, ∂²/∂b²
    ]
    hessian = torch.stack([torch.stack(row) for row in second_derivatives])
    return torch.eye(2, dtype=x.dtype) - alpha * hessian


def _line_hessian(x: Tensor) -> Tensor:
    return (torch.eye(2, dtype=x.dtype) - jacobian_of_a_line(x, 1.0)).clone()


def _without_the_two(x: Tensor, alpha: float) -> Tensor:
    return torch.eye(2, dtype=x.dtype) - alpha * _line_hessian(x) / 2


def _sum_over_examples(x: Tensor, alpha: float) -> Tensor:
    return torch.eye(2, dtype=x.dtype) - alpha * len(x) * _line_hessian(x)


def _step_uphill(x: Tensor, alpha: float) -> Tensor:
    return torch.eye(2, dtype=x.dtype) + alpha * _line_hessian(x)


def _hessian_alone(x: Tensor, alpha: float) -> Tensor:
    return _line_hessian(x)


def _without_identity(x: Tensor, alpha: float) -> Tensor:
    return -alpha * _line_hessian(x)


def _diagonal_only(x: Tensor, alpha: float) -> Tensor:
    return torch.eye(2, dtype=x.dtype) - alpha * torch.diag(_line_hessian(x).diagonal())


def _b_before_w(x: Tensor, alpha: float) -> Tensor:
    return jacobian_of_a_line(x, alpha).flip(0, 1)


def _lines() -> list[tuple]:
    return [
        (torch.tensor([-1.0, 0.5, 2.0], dtype=torch.float64), 0.3),
        (torch.tensor([0.2, 0.4, 0.9, -1.3], dtype=torch.float64), 0.05),
    ]


# ---------------------------------------------------------------- 2.4


def pull_back_one_step(loss_s: Callable[[Tensor], Tensor], theta: Tensor, alpha: float, v: Tensor) -> Tensor:
    """(I − αH)v without the matrix: loss_s(theta) is a scalar, theta and v are vectors."""
    theta = theta.detach().requires_grad_()
    (g,) = torch.autograd.grad(loss_s(theta), theta, create_graph=True)
    theta_new = theta - alpha * g
    (pulled,) = torch.autograd.grad(theta_new, theta, grad_outputs=v)
    return pulled


def _gradient(loss_s: Callable[[Tensor], Tensor], theta: Tensor) -> Tensor:
    theta = theta.detach().requires_grad_()
    return torch.autograd.grad(loss_s(theta), theta)[0]


def _hessian_product(loss_s: Callable[[Tensor], Tensor], theta: Tensor, alpha: float, v: Tensor) -> Tensor:
    return v - pull_back_one_step(loss_s, theta, 1.0, v)


def _v_unchanged(loss_s: Callable[[Tensor], Tensor], theta: Tensor, alpha: float, v: Tensor) -> Tensor:
    return v


def _plus(loss_s: Callable[[Tensor], Tensor], theta: Tensor, alpha: float, v: Tensor) -> Tensor:
    return pull_back_one_step(loss_s, theta, -alpha, v)


def _without_alpha(loss_s: Callable[[Tensor], Tensor], theta: Tensor, alpha: float, v: Tensor) -> Tensor:
    return pull_back_one_step(loss_s, theta, 1.0, v)


def _at_the_adapted_point(loss_s: Callable[[Tensor], Tensor], theta: Tensor, alpha: float, v: Tensor) -> Tensor:
    return pull_back_one_step(loss_s, theta - alpha * _gradient(loss_s, theta), alpha, v)


def _squared_gradient(loss_s: Callable[[Tensor], Tensor], theta: Tensor, alpha: float, v: Tensor) -> Tensor:
    g = _gradient(loss_s, theta)
    return v - alpha * g * (g @ v)


def _adapted(loss_s: Callable[[Tensor], Tensor], theta: Tensor, alpha: float, v: Tensor) -> Tensor:
    return theta - alpha * _gradient(loss_s, theta)


def _pullbacks() -> list[tuple]:
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    x, y = draw(6, 3), draw(6)
    return [
        (lambda theta: (torch.tanh(x @ theta) - y).square().mean(), draw(3), 0.3, draw(3)),
        (lambda theta: (theta**4).sum() / 4 + theta[0] * theta[1], draw(4), 0.1, draw(4)),
    ]


EXERCISES: list[Exercise] = [
    Exercise(
        number="2.1",
        title="How far does the adapted point move?",
        reference=distance_after_the_step,
        mistakes={
            "the size is right, the sign is not: with αh above 1 the other way is the right one.": lambda: 0.06,
            "this is how far θ moved; the step was left out (the first-order answer).": lambda: 0.1,
            "this is −αh times the distance: the 1 of 1 − αh is missing.": lambda: -0.16,
            "this is 1 + αh times the distance: a gradient step subtracts.": lambda: 0.26,
            "this is the slope 1 − αh; multiply it by the distance that θ moved.": lambda: -0.6,
        },
        hints=(
            "θ′ depends on θ along a straight line. What is its slope?",
            "The slope is 1 − αh. Work out αh first: is it larger than 1?",
            "The slope is 1 − 1.6. Multiply it by the 0.1 that θ moved.",
        ),
        remark="A start further right lands further left: the step goes past the minimum.",
    ),
    Exercise(
        number="2.2",
        title="The α that flattens the square",
        reference=flattening_alpha,
        mistakes={
            "this is 1/λ of the smaller eigenvalue: the square has been flat once before.": lambda: 1 / 0.6,
            "this is 1/H₁₁, the curvature along θ₁; the steepest direction lies askew.": lambda: 1 / 2.2,
            "this is 2/λ: there the factor is −1, not 0.": lambda: 2 / 2.6,
            "this is λ itself; you want the α for which 1 − αλ = 0.": lambda: 2.6,
        },
        hints=(
            "Use the slider: between which two values does the parallelogram turn over?",
            "A parallelogram is flat when one of its two factors 1 − αλ is 0.",
            "The eigenvalues are printed above the slider. The larger λ reaches 1 − αλ = 0 first.",
        ),
        tolerance=0.015,
        remark="It is 1/λ for the largest λ; beyond it, starts trade places along that direction.",
    ),
    Exercise(
        number="2.3",
        title="The Jacobian of a step for a line",
        reference=jacobian_of_a_line,
        mistakes={
            "the 2 is missing: (wx + b − y)² has the second derivatives 2x², 2x and 2.": _without_the_two,
            "you summed over the examples; the loss is their mean.": _sum_over_examples,
            "the sign is wrong: a gradient step subtracts, so the Jacobian is I − αH.": _step_uphill,
            "this is the Hessian H; the Jacobian of the step is I − αH.": _hessian_alone,
            "the identity is missing: θ′ = θ − α∇L_s(θ) also contains θ itself.": _without_identity,
            "the entries off the diagonal are missing: moving w changes ∂L_s/∂b, too.": _diagonal_only,
            "w and b are in the other order: the first row and column belong to w.": _b_before_w,
        },
        hints=(
            "Write L_s = mean (w·x + b − y)² and take ∂/∂w and ∂/∂b first.",
            "∂L_s/∂w = 2·mean(x·(w·x + b − y)). Differentiate it again, with respect to w and b. What became of y?",
            "H = 2·[[mean x², mean x], [mean x, 1]]; the answer is I − αH.",
        ),
        cases=_lines,
        remark="y does not occur: with a model linear in θ, labels move the minimum, not the curvature.",
    ),
    Exercise(
        number="2.4",
        title="Pull a vector back through one step",
        reference=pull_back_one_step,
        mistakes={
            "this is v unchanged: the Hessian term is missing. Is create_graph=True set?": _v_unchanged,
            "the sign is wrong: this is (I + αH)v. A gradient step subtracts.": _plus,
            "α is missing: this is (I − H)v.": _without_alpha,
            "this is Hv alone: differentiate all of θ′ = θ − αg, not only g.": _hessian_product,
            "the Hessian is taken at θ′; the step took its gradient at θ.": _at_the_adapted_point,
            "this is (I − αggᵀ)v: a product of first derivatives is not a second one.": _squared_gradient,
            "this is θ′ itself; v has to be pulled back through the step that made it.": _adapted,
        },
        hints=(
            "Two calls of torch.autograd.grad: one for the step, one for the pullback.",
            "The first needs create_graph=True, so that θ′ knows how g depends on θ.",
            "The second is torch.autograd.grad(theta_new, theta, grad_outputs=v): v weighs its rows.",
        ),
        cases=_pullbacks,
        remark="No matrix was built, so this works for a network of any size.",
    ),
]
