"""Exercises of notebook 11: implicit gradients."""

from collections.abc import Callable

import torch
from torch import Tensor

from maml_edu.classroom.exercises import Exercise
from maml_edu.classroom.exercises.small_problem import small_problem
from maml_edu.electives.implicit import implicit_pull_back, proximal_adapt
from maml_edu.hessian_vector import hvp, value_and_gradient
from maml_edu.tasks import Loss, Params, TaskBatch

# ---------------------------------------------------------------- 11.1


def one_parameter() -> tuple[float, float, float]:
    h, c, strength, theta = 4.0, 0.0, 2.0, 3.0
    phi = (h * c + strength * theta) / (h + strength)  # 6/6
    jacobian = strength / (h + strength)  # dφ*/dθ = 2/6
    return phi, jacobian, jacobian * (phi + 2)  # ∇L_q(φ*) = φ* − (−2) = 3


def _factor_turned_round() -> tuple[float, float, float]:
    return 1.0, 2 / 3, 2.0  # h/(h + λ)


def _factor_inverted() -> tuple[float, float, float]:
    return 1.0, 3.0, 9.0  # 1 + h/λ


def _not_pulled_back() -> tuple[float, float, float]:
    return 1.0, 1 / 3, 3.0


def _query_gradient_of_another_minimum() -> tuple[float, float, float]:
    return 1.0, 1 / 3, -1 / 3


def _sign_of_the_last() -> tuple[float, float, float]:
    return 1.0, 1 / 3, -1.0


def _query_gradient_at_theta() -> tuple[float, float, float]:
    return 1.0, 1 / 3, 5 / 3


def _lambda_counted_twice() -> tuple[float, float, float]:
    return 12 / 8, 4 / 8, 4 / 8 * 3.5  # from λ(φ − θ)² without the ½


ONE_PARAMETER = Exercise(
    number="11.1",
    title="one parameter by hand",
    reference=one_parameter,
    mistakes={
        "φ* is right. Its derivative is λ/(h + λ): a strong λ holds φ* close to θ, so it must tend to 1.": (
            _factor_turned_round
        ),
        "φ* is right. You multiplied by I + H/λ; the pullback solves with it, it divides.": _factor_inverted,
        "The last entry is ∇L_q(φ*). The meta-gradient is this times dφ*/dθ.": _not_pulled_back,
        "The query loss has its minimum at −2: ∇L_q = φ − (−2) = φ + 2, not φ − 2.": _query_gradient_of_another_minimum,
        "The size of the last entry is right, its sign is not: ∇L_q = φ − (−2) = φ + 2 is positive.": _sign_of_the_last,
        "The query gradient is taken at φ* = 1, not at θ = 3.": _query_gradient_at_theta,
        "The term is (λ/2)(φ − θ)², with the half: its derivative is λ(φ − θ).": _lambda_counted_twice,
    },
    hints=(
        "Set the derivative of 2φ² + (φ − 3)² to zero.",
        "4φ + 2(φ − θ) = 0 gives φ* = 2θ/6: read off dφ*/dθ as well.",
        "The query gradient at φ* = 1 is φ* + 2 = 3. Multiply it by dφ*/dθ.",
    ),
    tolerance=5e-3,
    remark="With λ = 2 and h = 4, a third of every change of θ arrives at φ*.",
)


# ---------------------------------------------------------------- 11.2


def unrolled(loss: Loss, theta: Params, batch: TaskBatch, alpha: float, steps: int, strength: float) -> Params:
    x, y = batch.support_x, batch.support_y
    path = proximal_adapt(loss, theta, x, y, alpha, steps, strength)
    _, v = value_and_gradient(loss, path[-1], batch.query_x, batch.query_y)
    g = {name: torch.zeros_like(p) for name, p in v.items()}
    for phi in reversed(path[:-1]):
        hv = hvp(loss, phi, x, y, v)
        g = {name: g[name] + alpha * strength * v[name] for name in v}  # θ in the proximal term
        v = {name: v[name] - alpha * (hv[name] + strength * v[name]) for name in v}  # φ_j
    return {name: (g[name] + v[name]).mean(0) for name in v}


def _unrolled(share: bool = True, start: bool = True, factor: bool = True, late: bool = False) -> Callable[..., Params]:
    def wrong(loss: Loss, theta: Params, batch: TaskBatch, alpha: float, steps: int, strength: float) -> Params:
        x, y = batch.support_x, batch.support_y
        path = proximal_adapt(loss, theta, x, y, alpha, steps, strength)
        _, v = value_and_gradient(loss, path[-1], batch.query_x, batch.query_y)
        g = {name: torch.zeros_like(p) for name, p in v.items()}
        for phi in reversed(path[:-1]):
            hv = hvp(loss, phi, x, y, v)
            before = v
            v = {name: v[name] - alpha * (hv[name] + factor * strength * v[name]) for name in v}
            gathered = v if late else before
            g = {name: g[name] + share * alpha * strength * gathered[name] for name in v}
        return {name: (g[name] + start * v[name]).mean(0) for name in v}

    return wrong


def _with_the_sign(loss: Loss, theta: Params, batch: TaskBatch, alpha: float, steps: int, strength: float) -> Params:
    right = unrolled(loss, theta, batch, alpha, steps, strength)
    start_only = _unrolled(share=False)(loss, theta, batch, alpha, steps, strength)
    return {name: 2 * start_only[name] - right[name] for name in right}


UNROLLED = Exercise(
    number="11.2",
    title="unroll the proximal steps",
    reference=unrolled,
    cases=lambda: [
        (*small_problem(0), 0.1, 3, 2.0),
        (*small_problem(1), 0.05, 1, 1.0),
        (*small_problem(2), 0.1, 8, 4.0),
    ],
    mistakes={
        "You returned v_0 alone. θ enters every step a second time, by +αλθ: gather αλv at each.": _unrolled(
            share=False
        ),
        "You returned the gathered shares alone. The path also starts at θ: add v_0.": _unrolled(start=False),
        "The factor on v lacks λ: a step is φ − α(∇L_s(φ) + λ(φ − θ)), so v ← v − α(H + λ)v.": _unrolled(factor=False),
        "The share of a step is αλ times the v before it is pulled back through that step (v_{j+1}).": _unrolled(
            late=True
        ),
        "The shares have the wrong sign: the step holds −αλ(φ − θ), which is +αλθ.": _with_the_sign,
    },
    hints=(
        "A step maps (φ_j, θ) to φ_{j+1} = φ_j − α(∇L_s(φ_j) + λφ_j) + αλθ. It has two derivatives.",
        "With respect to φ_j it gives v ← v − α(H_j + λ)v; with respect to θ it gives αλv, to be added up.",
        "The first parameters are θ as well: return the mean over tasks of the sum plus v_0.",
    ),
    remark="Write it once more with K → ∞ in mind: the sum is a geometric series, and its limit is (I + H/λ)⁻¹v.",
)


# ---------------------------------------------------------------- 11.3


def strength_gradient(theta: Params, phi: Params, x: Params, strength: float) -> Tensor:
    along = [(x[name] * (phi[name] - theta[name])).flatten(1).sum(1) for name in theta]  # [T] for each parameter
    return -torch.stack(along).sum(0).mean() / strength  # −x·(φ* − θ)/λ, mean over tasks


def _sign(theta: Params, phi: Params, x: Params, strength: float) -> Tensor:
    return -strength_gradient(theta, phi, x, strength)


def _no_division(theta: Params, phi: Params, x: Params, strength: float) -> Tensor:
    return strength * strength_gradient(theta, phi, x, strength)


def _summed(theta: Params, phi: Params, x: Params, strength: float) -> Tensor:
    return strength_gradient(theta, phi, x, strength) * next(iter(x.values())).shape[0]


def _envelope(theta: Params, phi: Params, x: Params, strength: float) -> Tensor:
    squares = [(phi[name] - theta[name]).square().flatten(1).sum(1) for name in theta]
    return torch.stack(squares).sum(0).mean() / 2


def _strength_cases() -> list[tuple]:
    cases = []
    for seed, strength in ((0, 3.0), (1, 2.0)):
        loss, theta, batch = small_problem(seed)
        phi = proximal_adapt(loss, theta, batch.support_x, batch.support_y, 0.1, 60, strength)[-1]
        _, v = value_and_gradient(loss, phi, batch.query_x, batch.query_y)
        x = implicit_pull_back(loss, phi, batch.support_x, batch.support_y, v, strength, 30).x
        cases.append((theta, phi, x, strength))
    return cases


STRENGTH = Exercise(
    number="11.3",
    title="the gradient of λ",
    reference=strength_gradient,
    cases=_strength_cases,
    mistakes={
        "The size is right, the sign is not: Hφ' + λφ' + (φ* − θ) = 0 for φ' = dφ*/dλ.": _sign,
        "The factor 1/λ is missing: x is λ(H + λ)⁻¹v, and you need (H + λ)⁻¹v.": _no_division,
        "This is the sum over tasks; the outer objective is their mean.": _summed,
        "This is the derivative of the inner objective. Asked is that of the query loss at φ*.": _envelope,
    },
    hints=(
        "Differentiate ∇L_s(φ*) + λ(φ* − θ) = 0 with respect to λ, with θ fixed.",
        "It gives (H + λI) dφ*/dλ = −(φ* − θ). Now take the product with v = ∇L_q(φ*).",
        "−vᵀ(H + λI)⁻¹(φ* − θ) = −x·(φ* − θ)/λ per task, as H is symmetric. No new system is solved.",
    ),
    remark="So λ can be learned with θ at no extra cost.",
)

EXERCISES: list[Exercise] = [ONE_PARAMETER, UNROLLED, STRENGTH]
