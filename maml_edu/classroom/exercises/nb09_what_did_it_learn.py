"""Exercises of notebook 09: what MAML learned."""

from collections.abc import Callable

import torch
from torch import Tensor

from maml_edu.classroom.exercises import Exercise
from maml_edu.data.sine import SineTasks
from maml_edu.electives.heads import head_names
from maml_edu.hessian_vector import Product, hvp, value_and_gradient
from maml_edu.meta_gradient import adapt, fomaml, maml
from maml_edu.models import mlp, mse
from maml_edu.tasks import Loss, Params, TaskBatch

# ---------------------------------------------------------------- 9.1


def linear_cka(a: Tensor, b: Tensor) -> Tensor:
    a = a - a.mean(1, keepdim=True)
    b = b - b.mean(1, keepdim=True)
    cross = (a.mT @ b).square().sum((1, 2))
    return cross / ((a.mT @ a).norm(dim=(1, 2)) * (b.mT @ b).norm(dim=(1, 2)))


def _kernel(a: Tensor, b: Tensor, centre: Callable[[Tensor], Tensor]) -> Tensor:
    a, b = centre(a), centre(b)
    return (a.mT @ b).square().sum((1, 2)) / ((a.mT @ a).norm(dim=(1, 2)) * (b.mT @ b).norm(dim=(1, 2)))


def _not_centred(a: Tensor, b: Tensor) -> Tensor:
    return _kernel(a, b, lambda t: t)


def _centred_over_features(a: Tensor, b: Tensor) -> Tensor:
    return _kernel(a, b, lambda t: t - t.mean(2, keepdim=True))


def _centred_over_tasks(a: Tensor, b: Tensor) -> Tensor:
    return _kernel(a, b, lambda t: t - t.mean(0, keepdim=True))


def _one_mean_for_all(a: Tensor, b: Tensor) -> Tensor:
    return _kernel(a, b, lambda t: t - t.mean((0, 1)))


def _not_squared(a: Tensor, b: Tensor) -> Tensor:
    a, b = a - a.mean(1, keepdim=True), b - b.mean(1, keepdim=True)
    return (a.mT @ b).norm(dim=(1, 2)) / ((a.mT @ a).norm(dim=(1, 2)) * (b.mT @ b).norm(dim=(1, 2)))


def _norms_of_features(a: Tensor, b: Tensor) -> Tensor:
    a, b = a - a.mean(1, keepdim=True), b - b.mean(1, keepdim=True)
    return (a.mT @ b).square().sum((1, 2)) / (a.square().sum((1, 2)) * b.square().sum((1, 2)))


def _all_tasks_together(a: Tensor, b: Tensor) -> Tensor:
    return linear_cka(a.flatten(0, 1)[None], b.flatten(0, 1)[None]).expand(a.shape[0])


def _feature_pairs() -> list[tuple]:
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    a = draw(3, 10, 4) + torch.tensor([2.0, -1.0, 0.5, 0.0], dtype=torch.float64)
    return [(a, a @ draw(4, 6) + draw(3, 10, 6) + 1.0), (draw(2, 5, 8), 3.0 * draw(2, 5, 3) + 2.0)]


CKA = Exercise(
    number="9.1",
    title="linear CKA",
    reference=linear_cka,
    cases=_feature_pairs,
    mistakes={
        "You did not centre the features: subtract the mean over the examples, dimension 1.": _not_centred,
        "You centred over the features. The mean must run over the examples, dimension 1.": _centred_over_features,
        "You centred over the tasks. Each task has its own mean, over its examples: dimension 1.": _centred_over_tasks,
        "You took one mean over tasks and examples. Each task has its own mean, over its examples: dimension 1.": (
            _one_mean_for_all
        ),
        "The norm of AᵀB in the numerator is not squared.": _not_squared,
        "The denominator holds the norms of AᵀA and BᵀB, not the squared norms of A and B.": _norms_of_features,
        "You threw all tasks together: the answer has one value per task, each from its own examples.": (
            _all_tasks_together
        ),
    },
    hints=(
        "a − a.mean(1, keepdim=True) centres every feature over the examples of its task.",
        "a.mT @ b is AᵀB for every task at once, [T, d, e]; .norm(dim=(1, 2)) is the Frobenius norm of each.",
        "Numerator: (a.mT @ b).square().sum((1, 2)).",
    ),
    remark="For d > n the same numbers come cheaper from AAᵀ and BBᵀ.",
)


# ---------------------------------------------------------------- 9.2


def anil_one_step(loss: Loss, theta: Params, batch: TaskBatch, alpha: float, head: list[str]) -> Params:
    alphas = {name: alpha if name in head else 0.0 for name in theta}
    start, phi = adapt(loss, theta, batch.support_x, batch.support_y, alphas, 1)
    _, v = value_and_gradient(loss, phi, batch.query_x, batch.query_y)
    u = {name: alphas[name] * v[name] for name in v}  # α∘v: zero on the body
    hv = hvp(loss, start, batch.support_x, batch.support_y, u)
    return {name: (v[name] - hv[name]).mean(0) for name in v}  # H mixes: the body gets a share as well


def _with(
    combine: Callable[[dict[str, float], Params, Product], Params], frozen: bool = True, hessian: str = "support"
) -> Callable[..., Params]:
    """The same with another last line: combine(alphas, v, product) with product(u) = H·u."""

    def wrong(loss: Loss, theta: Params, batch: TaskBatch, alpha: float, head: list[str]) -> Params:
        alphas = {name: alpha if name in head or not frozen else 0.0 for name in theta}
        start, phi = adapt(loss, theta, batch.support_x, batch.support_y, alphas, 1)
        _, v = value_and_gradient(loss, phi, batch.query_x, batch.query_y)
        at = start if hessian == "support" else phi
        return combine(alphas, v, lambda u: hvp(loss, at, batch.support_x, batch.support_y, u))

    return wrong


def _scaled(alphas: dict[str, float], u: Params) -> Params:
    return {name: alphas[name] * u[name] for name in u}


def _mean_difference(v: Params, hv: Params) -> Params:
    return {name: (v[name] - hv[name]).mean(0) for name in v}


def _first_order(alphas: dict[str, float], v: Params, product: Product) -> Params:
    return {name: t.mean(0) for name, t in v.items()}


def _alpha_outside(alphas: dict[str, float], v: Params, product: Product) -> Params:
    return _mean_difference(v, _scaled(alphas, product(v)))


def _exact_at_the_same_phi(alphas: dict[str, float], v: Params, product: Product) -> Params:
    alpha = max(alphas.values())
    return _mean_difference(v, product({name: alpha * t for name, t in v.items()}))


def _inside(alphas: dict[str, float], v: Params, product: Product) -> Params:
    return _mean_difference(v, product(_scaled(alphas, v)))


def _body_untouched(alphas: dict[str, float], v: Params, product: Product) -> Params:
    exact = _inside(alphas, v, product)
    return {name: g if alphas[name] else torch.zeros_like(g) for name, g in exact.items()}


def _body_first_order(alphas: dict[str, float], v: Params, product: Product) -> Params:
    exact = _inside(alphas, v, product)
    return {name: g if alphas[name] else v[name].mean(0) for name, g in exact.items()}


def _mamls_with_a_first_order_body(
    loss: Loss, theta: Params, batch: TaskBatch, alpha: float, head: list[str]
) -> Params:
    exact, first = maml(loss, theta, batch, alpha, 1).gradient, fomaml(loss, theta, batch, alpha, 1).gradient
    return {name: (exact if name in head else first)[name] for name in theta}


def _full_maml(loss: Loss, theta: Params, batch: TaskBatch, alpha: float, head: list[str]) -> Params:
    return maml(loss, theta, batch, alpha, 1).gradient


def _anil_case(seed: int, sizes: tuple[int, ...], alpha: float) -> tuple:
    generator = torch.Generator().manual_seed(seed)
    model = mlp(sizes, "tanh", generator, torch.float64)
    batch = SineTasks(amplitude=(1.0, 3.0)).sample(3, 4, 6, generator, torch.float64)
    return mse(model.apply), model.theta, batch, alpha, head_names(model.theta)


ANIL = Exercise(
    number="9.2",
    title="what the body is told",
    reference=anil_one_step,
    cases=lambda: [_anil_case(0, (1, 6, 1), 0.1), _anil_case(1, (1, 4, 5, 1), 0.3)],
    mistakes={
        "This is the first-order gradient: the Hessian term is missing.": _with(_first_order),
        "You multiplied by α after the product: that takes the second-order term from the body. α belongs inside, "
        "H(α∘v).": _with(_alpha_outside),
        "You multiplied all of v by α. Only the head's part is scaled by α; the body's by 0.": _with(
            _exact_at_the_same_phi
        ),
        "You gave the body no gradient. It does not move in the inner loop, but it is meta-learned.": _with(
            _body_untouched
        ),
        "The body's entries are first-order. v of the body loses H(α∘v) as well: H mixes body and head.": (
            _with(_body_first_order)
        ),
        "This is MAML's gradient with the body's entries as in FOMAML. ANIL's φ has another body, and H mixes.": (
            _mamls_with_a_first_order_body
        ),
        "The Hessian is that of the support loss at θ, before the step, not at φ.": _with(_inside, hessian="after"),
        "This is full MAML: the body adapted too.": _full_maml,
    },
    hints=(
        "Make a dict of step sizes: alpha for the names in head, 0.0 for the others. adapt takes such a dict.",
        "v is the query gradient at φ. Before the product, multiply it by the step sizes, name by name.",
        "hvp of that at θ (the first entry of the path) is subtracted from v, for all names; then the mean over tasks.",
    ),
    remark="It equals maml with freeze(alpha, theta, body_names(theta)).",
)


# ---------------------------------------------------------------- 9.3


def best_single_layer(lam: Tensor) -> tuple[Tensor, Tensor]:
    alpha = lam.square().sum() / (2 * lam.pow(3).sum())
    floor = (lam * (1 - 2 * alpha * lam).square()).sum()
    return alpha, floor


def _at(rule: Callable[[Tensor], Tensor]) -> Callable[..., tuple]:
    def wrong(lam: Tensor) -> tuple[Tensor, Tensor]:
        alpha = rule(lam)
        return alpha, (lam * (1 - 2 * alpha * lam).square()).sum()

    return wrong


def _steepest_only(lam: Tensor) -> Tensor:
    return 1 / (2 * lam.max())


def _without_two(lam: Tensor) -> Tensor:
    return lam.square().sum() / lam.pow(3).sum()


def _unweighted(lam: Tensor) -> Tensor:
    return lam.sum() / (2 * lam.square().sum())


def _floor_not_weighted(lam: Tensor) -> tuple[Tensor, Tensor]:
    alpha = best_single_layer(lam)[0]
    return alpha, (1 - 2 * alpha * lam).square().sum()


SINGLE_LAYER = Exercise(
    number="9.3",
    title="the best step of a single layer",
    reference=best_single_layer,
    cases=lambda: [
        (torch.tensor([1.0, 0.5, 0.25, 0.125], dtype=torch.float64),),
        (torch.tensor([2.0, 0.1], dtype=torch.float64),),
    ],
    mistakes={
        "This α suits the steepest direction alone. Minimise the sum over all directions.": _at(_steepest_only),
        "A factor 2 is missing: the mean squared error has the gradient 2λ(w − w_t).": _at(_without_two),
        "You minimised the sum of (1 − 2αλ)². Each direction counts with its λ in front.": _at(_unweighted),
        "α is right. In the floor, each (1 − 2αλ)² has its λ in front.": _floor_not_weighted,
    },
    hints=(
        "Expand the square: Σλ − 4αΣλ² + 4α²Σλ³, a parabola in α.",
        "Its derivative is zero at 8αΣλ³ = 4Σλ².",
        "Put that α back into the sum.",
    ),
    remark="With all λ equal the floor is 0: one step then reaches every task.",
)

EXERCISES: list[Exercise] = [CKA, ANIL, SINGLE_LAYER]
