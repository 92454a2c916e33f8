"""Exercises of notebook 02: differentiating a gradient step."""

import torch

from maml_edu.exercises import Exercise

# ---------------------------------------------------------------- 2.1


def distance_after_the_step():
    slope = 1 - 0.4 * 4  # 1 − αh = −0.6: the step goes past the minimum
    return slope * 0.1


# ---------------------------------------------------------------- 2.2


def flattening_alpha():
    eigenvalues = torch.linalg.eigvalsh(torch.tensor([[2.2, 0.8], [0.8, 1.0]], dtype=torch.float64))
    return 1 / eigenvalues.max()  # 1 − αλ = 0 happens first for the largest λ


# ---------------------------------------------------------------- 2.3


def jacobian_of_a_line(x, alpha):
    """∂θ′/∂θ for θ = (w, b), the line w·x + b and the squared error, mean over the inputs x [n]."""
    hessian = 2 * torch.stack(
        [
            torch.stack([(x * x).mean(), x.mean()]),
            torch.stack([x.mean(), torch.ones_like(x).mean()]),
        ]
    )
    return torch.eye(2, dtype=x.dtype) - alpha * hessian


def _line_hessian(x, total=torch.mean):
    ones = torch.ones_like(x)
    rows = [[total(x * x), total(x)], [total(x), total(ones)]]
    return 2 * torch.stack([torch.stack(row) for row in rows])


def _lines():
    return [
        (torch.tensor([-1.0, 0.5, 2.0], dtype=torch.float64), 0.3),
        (torch.tensor([0.2, 0.4, 0.9, -1.3], dtype=torch.float64), 0.05),
    ]


# ---------------------------------------------------------------- 2.4


def pull_back_one_step(loss_s, theta, alpha, v):
    """(I − αH)v without the matrix: loss_s(theta) is a scalar, theta and v are vectors."""
    theta = theta.detach().requires_grad_()
    (g,) = torch.autograd.grad(loss_s(theta), theta, create_graph=True)
    theta_new = theta - alpha * g
    (pulled,) = torch.autograd.grad(theta_new, theta, grad_outputs=v)
    return pulled


def _hessian_product(loss_s, theta, v):
    theta = theta.detach().requires_grad_()
    (g,) = torch.autograd.grad(loss_s(theta), theta, create_graph=True)
    return torch.autograd.grad(g, theta, grad_outputs=v)[0]


def _at_the_adapted_point(loss_s, theta, alpha, v):
    theta = theta.detach().requires_grad_()
    (g,) = torch.autograd.grad(loss_s(theta), theta)
    return v - alpha * _hessian_product(loss_s, theta - alpha * g, v)


def _squared_gradient(loss_s, theta, alpha, v):
    theta = theta.detach().requires_grad_()
    (g,) = torch.autograd.grad(loss_s(theta), theta)
    return v - alpha * g * (g @ v)


def _pullbacks():
    generator = torch.Generator().manual_seed(0)

    def draw(*shape):
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
            "the size is right, the sign is not: αh is larger than 1, so θ′ moves the other way.": lambda: 0.06,
            "this is the distance that θ moved: the step was left out (the first-order answer).": lambda: 0.1,
            "this is −αh times the distance: the 1 of 1 − αh is missing (θ itself stands in θ′, too).": lambda: -0.16,
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
            "this is 1/λ of the smaller eigenvalue: by then the square has already been flat once.": lambda: 1 / 0.6,
            "this is 1/H₁₁: curvature along θ₁, but the steepest direction lies askew. Take the eigenvalue.": lambda: (
                1 / 2.2
            ),
            "this is 2/λ: there the factor is −1 and the step stops shrinking the loss. Flat means factor 0.": lambda: (
                2 / 2.6
            ),
            "this is λ itself; you want the α for which 1 − αλ = 0.": lambda: 2.6,
        },
        hints=(
            "Use the slider: between which two values does the parallelogram turn over?",
            "A parallelogram is flat when one of its two factors 1 − αλ is 0.",
            "The eigenvalues are printed above the exercise. The larger λ reaches 1 − αλ = 0 first.",
        ),
        tolerance=0.01,
        remark="From there on, starts that differ along the steep direction trade places.",
    ),
    Exercise(
        number="2.3",
        title="The Jacobian of a step for a line",
        reference=jacobian_of_a_line,
        mistakes={
            "the 2 of the square is missing: (wx + b − y)² has second derivatives 2x², 2x and 2.": lambda x, alpha: (
                torch.eye(2, dtype=x.dtype) - alpha * _line_hessian(x) / 2
            ),
            "you summed over the examples; the loss is their mean.": lambda x, alpha: (
                torch.eye(2, dtype=x.dtype) - alpha * _line_hessian(x, torch.sum)
            ),
            "the sign is wrong: a gradient step subtracts, so the Jacobian is I − αH.": lambda x, alpha: (
                torch.eye(2, dtype=x.dtype) + alpha * _line_hessian(x)
            ),
            "this is the Hessian H; the Jacobian of the step is I − αH.": lambda x, alpha: _line_hessian(x),
            "the identity is missing: θ stands in θ′ = θ − α∇L_s(θ) as well.": lambda x, alpha: (
                -alpha * _line_hessian(x)
            ),
            "the entries off the diagonal are missing: moving w also changes the derivative by b.": lambda x, alpha: (
                torch.eye(2, dtype=x.dtype) - alpha * torch.diag(torch.diag(_line_hessian(x)))
            ),
            "w and b are in the other order: the first row and column belong to w.": lambda x, alpha: (
                torch.eye(2, dtype=x.dtype) - alpha * _line_hessian(x).flip(0, 1)
            ),
        },
        hints=(
            "Write L_s = mean (w·x + b − y)² and take ∂/∂w and ∂/∂b first.",
            "∂L_s/∂w = 2·mean(x·(w·x + b − y)). Derive it once more by w, then by b. What became of y?",
            "H = 2·[[mean x², mean x], [mean x, 1]]; the answer is I − αH.",
        ),
        cases=_lines,
        remark="y does not occur: for a model linear in θ, the labels move the minimum and leave the curvature alone.",
    ),
    Exercise(
        number="2.4",
        title="Pull a vector back through one step",
        reference=pull_back_one_step,
        mistakes={
            "this is v unchanged: the Hessian term is missing. Did the gradient of the step get create_graph=True?": lambda loss_s, theta, alpha, v: (
                v
            ),
            "the sign is wrong: this is (I + αH)v. A gradient step subtracts.": lambda loss_s, theta, alpha, v: (
                v + alpha * _hessian_product(loss_s, theta, v)
            ),
            "α is missing: this is (I − H)v.": lambda loss_s, theta, alpha, v: (
                v - _hessian_product(loss_s, theta, v)
            ),
            "this is Hv alone: differentiate all of θ′ = θ − αg, not g.": lambda loss_s, theta, alpha, v: (
                _hessian_product(loss_s, theta, v)
            ),
            "the Hessian is taken at θ′; the step took its gradient at θ.": _at_the_adapted_point,
            "this is (I − αggᵀ)v: a product of first derivatives is not a second derivative.": _squared_gradient,
        },
        hints=(
            "Two calls of torch.autograd.grad: one for the step, one for the pullback.",
            "The first needs create_graph=True, so that θ′ knows how g depends on θ. Start with theta = theta.detach().requires_grad_().",
            "The second is torch.autograd.grad(theta_new, theta, grad_outputs=v): it weighs the rows of ∂θ′/∂θ by v.",
        ),
        cases=_pullbacks,
        remark="No matrix was built, so this works for a network of any size.",
    ),
]
