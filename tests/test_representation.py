"""Body and head, features, CKA, NIL, and ANIL's gradient by four routes."""

import pytest
import torch
from support.problems import PROBLEMS, flat, random_like, relative, sines, varied_alpha
from torch import nn

from maml_edu.electives.feature_reuse import anil, freeze, layer_features, linear_cka, nil_accuracy, nil_votes
from maml_edu.electives.heads import body_names, features, head_names
from maml_edu.engine.methods import name_of
from maml_edu.meta_gradient import adapt, fomaml, maml
from maml_edu.models import conv4, cross_entropy, from_module, mlp, mse
from maml_edu.reference import autograd_maml
from maml_edu.tasks import TaskBatch, expand_over_tasks
from maml_edu.training import train


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=generator(seed), dtype=torch.float64)


SETTINGS = {
    "mlp": (lambda: mlp((2, 4, 3), "tanh", generator(1), torch.float64).apply, mse),
    "conv4": (lambda: conv4(3, 2, 8, dtype=torch.float64).apply, cross_entropy),
}
each_model = pytest.mark.parametrize("name", SETTINGS)
each_K = pytest.mark.parametrize("K", [0, 1, 3])


def setting(name):
    make_apply, make_loss = SETTINGS[name]
    problem = PROBLEMS[name]()
    return problem, make_apply(), make_loss


# ---------------------------------------------------------------- body and head


def test_the_head_is_the_last_linear_layer():
    assert head_names(mlp((1, 4, 4, 1)).theta) == ["w3", "b3"]
    assert head_names(conv4(5, 2).theta) == ["head.weight", "head.bias"]
    module = nn.Sequential(nn.Linear(1, 4), nn.Tanh(), nn.Linear(4, 2))
    assert head_names(from_module(module).theta) == ["2.weight", "2.bias"]
    assert body_names(mlp((1, 4, 1)).theta) == ["w1", "b1"]


@pytest.mark.parametrize("theta", [{"w": torch.zeros(3, 1)}, {f"m{k}": torch.zeros(3, 3) for k in range(3)}])
def test_no_head_is_seen_where_there_is_none(theta):
    with pytest.raises(ValueError, match="linear head"):
        head_names(theta)


def test_freeze_keeps_the_form_of_alpha():
    theta = mlp((1, 2, 1)).theta
    assert freeze(0.1, theta, ["w1", "b1"]) == {"w1": 0.0, "b1": 0.0, "w2": 0.1, "b2": 0.1}
    alpha = {"w1": 0.1, "b1": 0.2, "w2": torch.tensor(0.3), "b2": 0.4}
    assert freeze([alpha, 0.5], theta, ["w2"]) == [alpha | {"w2": 0.0}, dict.fromkeys(theta, 0.5) | {"w2": 0.0}]
    assert freeze((0.1, 0.5), theta, ["w2"]) == freeze([0.1, 0.5], theta, ["w2"])
    assert alpha["w2"] == torch.tensor(0.3)  # the argument itself is left alone
    with pytest.raises(ValueError, match="w9"):
        freeze(0.1, theta, ["w9"])


@pytest.mark.parametrize("name", PROBLEMS)
def test_a_frozen_body_does_not_move(name):
    problem = PROBLEMS[name]()
    alpha = freeze(0.3, problem.theta, body_names(problem.theta))
    phi = adapt(problem.loss, problem.theta, problem.batch.support_x, problem.batch.support_y, alpha, 2)[-1]
    moved = {n: not torch.equal(p, problem.theta[n].expand_as(p)) for n, p in phi.items()}
    assert moved == {n: n in head_names(problem.theta) for n in problem.theta}


# ---------------------------------------------------------------- features


def moved(name):
    """A problem's model, parameters that differ from task to task, and query inputs."""
    problem, apply, _ = setting(name)
    x = problem.batch.query_x
    return apply, {n: p + 0.1 * draw(len(x), *p.shape, seed=4) for n, p in problem.theta.items()}, x


def test_layers_of_conv4_end_in_its_output():
    apply, params, x = moved("conv4")
    outputs = layer_features(params, x)
    assert list(outputs) == [*(f"conv {k}" for k in range(1, 5)), "head"]
    assert torch.allclose(outputs["head"], apply(params, x), atol=1e-12)
    before_head = outputs["conv 4"].unflatten(2, (params["head.weight"].shape[1], -1)).mean(3)
    assert torch.allclose(features(apply, params, x), before_head, atol=1e-12)


@each_model
def test_the_head_reads_the_features(name):
    apply, params, x = moved(name)
    weight, bias = head_names(PROBLEMS[name]().theta)
    output = features(apply, params, x) @ params[weight] + params[bias].unsqueeze(1)
    assert torch.allclose(output, apply(params, x), atol=1e-12)


def test_features_of_a_module():
    module = nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 3)).double()
    model, x = from_module(module), draw(2, 5, 2)
    assert torch.allclose(features(model.apply, expand_over_tasks(model.theta, 2), x), module[:2](x))


def test_layers_of_another_model():
    with pytest.raises(ValueError, match="conv4"):
        layer_features({"0.weight": torch.zeros(1, 2, 2)}, torch.zeros(1, 3, 2))


# ---------------------------------------------------------------- CKA


def plain_cka(a, b):
    """As it is defined, for one task, with kernel matrices and the centring matrix."""
    n = len(a)
    C = torch.eye(n, dtype=a.dtype) - 1 / n
    K, L = C @ a @ a.T @ C, C @ b @ b.T @ C
    return torch.trace(K @ L) / (torch.trace(K @ K) * torch.trace(L @ L)).sqrt()


def test_cka_is_its_definition():
    a, b = draw(2, 3, 9, 4) + 1, draw(2, 3, 9, 6, seed=1)
    cka = linear_cka(a, b)
    assert cka.shape == (2, 3)
    for i, j in [(0, 0), (1, 2)]:
        assert cka[i, j].item() == pytest.approx(plain_cka(a[i, j], b[i, j]).item(), rel=1e-12)


def test_cka_sees_neither_rotation_nor_scale_nor_shift():
    a = draw(2, 8, 5)
    rotation = torch.linalg.qr(draw(5, 5, seed=2))[0]
    assert torch.allclose(linear_cka(a, 3 * a @ rotation + 7), torch.ones(2, dtype=a.dtype), atol=1e-12)
    assert (linear_cka(a, a @ draw(5, 5, seed=3)) < 0.999).all()
    assert linear_cka(a, torch.ones(2, 8, 1, dtype=a.dtype)).isnan().all()


@pytest.mark.parametrize("a, b", [((2, 4, 3), (2, 5, 3)), ((2, 2, 3), (2, 2, 3)), ((1, 4, 3), (2, 4, 3))])
def test_cka_wants_the_same_examples(a, b):
    with pytest.raises(ValueError, match="n ≥ 3"):
        linear_cka(draw(*a), draw(*b))


# ---------------------------------------------------------------- NIL


def test_votes_are_sums_of_cosines():
    support, query = draw(2, 6, 4), draw(2, 3, 4, seed=1)
    labels = torch.tensor([[0, 0, 1, 1, 2, 2], [2, 1, 0, 2, 1, 0]])
    votes = nil_votes(support, labels, query, 3)
    assert votes.shape == (2, 3, 3)
    by_hand = sum(
        torch.cosine_similarity(query[1, 2], support[1, i], dim=0) for i in range(6) if labels[1, i].item() == 2
    )
    assert votes[1, 2, 2].item() == pytest.approx(by_hand.item(), rel=1e-12)
    assert torch.allclose(nil_votes(5 * support, labels, query, 3), votes)  # directions only
    with pytest.raises(ValueError, match="expected"):
        nil_votes(support, labels[:, :4], query, 3)


def test_nil_accuracy_knows_what_it_has_seen():
    problem = PROBLEMS["conv4"]()
    theta, apply = conv4(3, 16, 8, generator(1), torch.float64)
    x, y = problem.batch.support_x[:, ::2], problem.batch.support_y[:, ::2]  # one per class
    assert (nil_accuracy(apply, theta, TaskBatch(x, y, x, y), 3) == 1).all()
    wrong = TaskBatch(x, y, x, (y + 1) % 3)
    assert (nil_accuracy(apply, theta, wrong, 3) == 0).all()
    no_head = {n: torch.zeros_like(p) if n in head_names(theta) else p for n, p in theta.items()}
    both = [nil_accuracy(apply, params, problem.batch, 3) for params in (theta, no_head)]
    assert torch.equal(*both)


# ---------------------------------------------------------------- ANIL


@each_model
@each_K
def test_anil_is_maml_with_a_frozen_body(name, K):
    problem, apply, make_loss = setting(name)
    frozen = freeze(0.3, problem.theta, body_names(problem.theta))
    result = anil(apply, make_loss)(None, problem.theta, problem.batch, 0.3, K)
    for reference in (maml, autograd_maml):
        expected = reference(problem.loss, problem.theta, problem.batch, frozen, K)
        assert relative(result.gradient, expected.gradient) < 1e-12
        assert torch.allclose(result.query_loss, expected.query_loss, atol=1e-12)
        assert relative(result.phi, expected.phi) < 1e-12
    assert result.alpha_gradient is None and name_of(anil(apply, make_loss)) == "anil"
    assert not any(p.requires_grad for p in (*result.gradient.values(), *result.phi.values(), result.query_loss))


@each_K
def test_anil_against_finite_differences(K):
    """conv4 has ReLU kinks; the smooth network is the one to difference."""
    problem, apply, make_loss = setting("mlp")
    frozen = freeze(0.3, problem.theta, body_names(problem.theta))
    direction, e = random_like(problem.theta, 5), 1e-5

    def meta_loss(sign):
        theta = {n: p + sign * e * direction[n] for n, p in problem.theta.items()}
        batch = problem.batch
        phi = adapt(problem.loss, theta, batch.support_x, batch.support_y, frozen, K)[-1]
        return problem.loss(phi, batch.query_x, batch.query_y).mean().item()

    result = anil(apply, make_loss)(None, problem.theta, problem.batch, 0.3, K).gradient
    slope = sum((result[n] * direction[n]).sum() for n in result).item()
    assert slope == pytest.approx((meta_loss(1) - meta_loss(-1)) / (2 * e), rel=1e-7)


def test_anils_body_gradient_is_not_first_order():
    problem, apply, make_loss = setting("mlp")
    frozen = freeze(0.3, problem.theta, body_names(problem.theta))
    exact = anil(apply, make_loss)(None, problem.theta, problem.batch, 0.3, 1).gradient
    first = fomaml(problem.loss, problem.theta, problem.batch, frozen, 1).gradient
    assert relative({"w1": first["w1"]}, {"w1": exact["w1"]}) > 1e-3


def test_anil_with_step_sizes_per_step_and_tensor():
    problem, apply, make_loss = setting("mlp")
    theta = problem.theta
    alpha = [varied_alpha(theta, seed) for seed in (0, 1)]
    result = anil(apply, make_loss)(None, theta, problem.batch, alpha, 2)
    expected = maml(problem.loss, theta, problem.batch, freeze(alpha, theta, body_names(theta)), 2)
    assert relative(result.gradient, expected.gradient) < 1e-12


@pytest.mark.parametrize("K", [1, 6])
def test_the_body_runs_twice_whatever_K(K):
    problem, apply, make_loss = setting("conv4")
    runs = []

    def counted(*arguments):
        runs.append(1)
        return apply(*arguments)

    anil(counted, make_loss)(None, problem.theta, problem.batch, 0.1, K)
    assert len(runs) == 2


def test_anil_says_what_it_cannot_do():
    module = from_module(nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 3)).double())
    with pytest.raises(ValueError, match="freeze"):
        anil(module.apply, mse)(None, module.theta, PROBLEMS["mlp"]().batch, 0.1, 1)


def test_anil_trains():
    model = mlp((1, 8, 1), generator=generator())
    method = anil(model.apply, mse)
    trained = train(
        model,
        mse(model.apply),
        sines,
        method,
        iterations=30,
        alpha=0.05,
        lr=1e-2,
        progress=None,
        generator=torch.Generator().manual_seed(0),
    )
    losses = trained.history["query_loss"]
    assert losses[-10:].mean() < losses[:10].mean()
    assert flat(trained.theta).isfinite().all()
