"""Starts computed from the support set: gradients by independent routes, what each start promises."""

import pytest
import torch
from support.problems import flat, relative, small_conv4, tanh_mlp

from maml_edu.data.sine import SineTasks
from maml_edu.electives.conditioned_starts import (
    ConditionedModel,
    adapt_from,
    everywhere,
    maml_from,
)
from maml_edu.electives.heads import class_means, without_head
from maml_edu.electives.hypernetworks import hypernetwork
from maml_edu.electives.neural_processes import (
    gaussian,
    gaussian_nll,
    mean_only,
    neural_process,
    neural_process_classifier,
)
from maml_edu.electives.prototypes import prototype_head, prototypical
from maml_edu.evaluation import evaluate
from maml_edu.meta_gradient import maml
from maml_edu.models import conv4, cross_entropy, mlp, mse
from maml_edu.reference import autograd_maml


def seed(number):
    return torch.Generator().manual_seed(number)


def double(make, *arguments, **more):
    return make(*arguments, generator=seed(2), dtype=torch.float64, **more)


HEAD = ("w2", "b2")
CONV = double(conv4, 3, 2, 8)
NET = double(mlp, (64, 5, 3), activation="tanh")  # reads the pixels of the same pictures
PROCESS = neural_process((1, 5, 4, 2), seed(2))
PROCESS = PROCESS._replace(
    model=PROCESS.model._replace(theta={name: p.double() for name, p in PROCESS.model.theta.items()})
)
STARTS = {
    "maml": ConditionedModel(CONV, everywhere),
    "prototypes": prototypical(CONV, 3),
    "hypernetwork": hypernetwork(CONV, 3, 4, seed(1)),
    "process classifier": neural_process_classifier(CONV, 3, 4, 3, seed(1)),
    "prototypes, mlp": prototypical(NET, 3, HEAD),
    "hypernetwork, mlp": hypernetwork(NET, 3, 4, seed(1), HEAD, ("b1",)),
    "process": PROCESS,
}
PICTURES = small_conv4().batch
SINES = SineTasks().sample(3, 4, 6, seed(3), torch.float64)


def setting(name):
    learner = STARTS[name]
    if name == "process":
        return learner, gaussian_nll(learner.model.apply), SINES, 0.05
    return learner, cross_entropy(learner.model.apply), PICTURES, 0.1


@pytest.mark.parametrize("steps", [0, 1, 3])
@pytest.mark.parametrize("name", STARTS)
def test_the_meta_gradient_agrees_with_autograd_and_differences(name, steps):
    learner, loss, batch, alpha = setting(name)
    theta = learner.model.theta
    got = maml_from(learner.start)(loss, theta, batch, alpha, steps)
    judge = autograd_maml(loss, theta, batch, alpha, steps, start=learner.start)
    assert relative(got.gradient, judge.gradient) < 1e-9
    assert torch.allclose(got.query_loss, judge.query_loss) and list(got.phi) == list(judge.phi)
    assert abs(got.alpha_gradient - judge.alpha_gradient) < 1e-9 * (1 + abs(judge.alpha_gradient))
    direction = {n: torch.randn(p.shape, generator=seed(5), dtype=p.dtype) for n, p in theta.items()}

    def query_loss(epsilon):
        moved = {n: p + epsilon * direction[n] for n, p in theta.items()}
        phi = adapt_from(learner.start)(loss, moved, *batch[:2], alpha, steps)[-1]
        return loss(phi, *batch[2:]).mean().item()

    slope = (query_loss(1e-6) - query_loss(-1e-6)) / 2e-6
    assert abs(slope - flat(got.gradient) @ flat(direction)) < 2e-6 * max(abs(slope), 0.1)


def test_step_sizes_per_parameter_of_phi_and_their_gradient():
    learner, loss, batch, _ = setting("prototypes")
    names = learner.start(learner.model.theta, *batch[:2])
    assert set(names) - set(learner.model.theta) == {"head.weight", "head.bias"}  # θ has no head, φ has
    alpha = [dict.fromkeys(names, size) for size in (0.2, 0.4)]
    got = maml_from(learner.start)(loss, learner.model.theta, batch, alpha, 2)
    judge = autograd_maml(loss, learner.model.theta, batch, alpha, 2, start=learner.start)
    assert relative(got.gradient, judge.gradient) < 1e-9
    for ours, theirs in zip(got.alpha_gradient, judge.alpha_gradient):
        assert all(abs(float(ours[n]) - float(theirs[n])) < 1e-9 for n in names)


def test_the_start_that_ignores_the_support_set_is_maml():
    problem = tanh_mlp()
    for steps in (0, 1, 4):
        got = maml_from(everywhere)(problem.loss, problem.theta, problem.batch, 0.2, steps)
        expected = maml(problem.loss, problem.theta, problem.batch, 0.2, steps)
        assert relative(got.gradient, expected.gradient) < 1e-12 if steps else True
        assert torch.equal(got.query_loss, expected.query_loss)


@pytest.mark.parametrize("name", ["prototypes", "process"])
def test_the_inner_gradient_takes_every_part_of_phi_for_a_variable(name):
    """A head made from the body is not differentiated through in the inner step: plain descent from detached φ_0."""
    learner, loss, batch, alpha = setting(name)
    phi = {n: p.detach() for n, p in learner.start(learner.model.theta, *batch[:2]).items()}
    for expected in adapt_from(learner.start)(loss, learner.model.theta, *batch[:2], alpha, 2):
        assert relative(expected, phi) < 1e-12
        leaf = {n: p.clone().requires_grad_() for n, p in phi.items()}
        g = torch.autograd.grad(loss(leaf, *batch[:2]).sum(), list(leaf.values()))
        phi = {n: p.detach() - alpha * d for (n, p), d in zip(leaf.items(), g)}


@pytest.mark.parametrize("name", STARTS)
def test_cost_no_loop_over_tasks_and_no_graph_kept(name):
    learner, loss, batch, alpha = setting(name)
    counts = []
    for tasks in (1, len(batch.support_x)):
        part = type(batch)(*(t[:tasks] for t in batch))
        calls = []

        def start(*arguments, calls=calls):
            calls.append("start")
            return learner.start(*arguments)

        def counted(*arguments, calls=calls):
            calls.append("loss")
            return loss(*arguments)

        result = maml_from(start)(counted, learner.model.theta, part, alpha, 2)
        counts.append(calls)
    assert counts[0] == counts[1] and counts[0].count("start") == 1
    assert not any(p.requires_grad for p in [*result.phi.values(), *result.gradient.values(), result.query_loss])
    path = adapt_from(learner.start)(loss, learner.model.theta, *batch[:2], alpha, 2)
    assert len(path) == 3 and not any(p.requires_grad for phi in path for p in phi.values())


# ---------------------------------------------------------------- what each start promises


@pytest.mark.parametrize("name", STARTS)
def test_the_order_of_the_support_examples_does_not_matter(name):
    learner, _, batch, _ = setting(name)
    order = torch.randperm(batch.support_x.shape[1], generator=seed(4))
    first = learner.start(learner.model.theta, *batch[:2])
    second = learner.start(learner.model.theta, batch.support_x[:, order], batch.support_y[:, order])
    assert relative(first, second) < 1e-9


@pytest.mark.parametrize("name", STARTS)
def test_a_start_sees_its_own_task_only(name):
    learner, _, batch, _ = setting(name)
    together = learner.start(learner.model.theta, *batch[:2])
    alone = learner.start(learner.model.theta, batch.support_x[1:2], batch.support_y[1:2])
    assert relative({n: p[1:2] for n, p in together.items()}, alone) < 1e-9


@pytest.mark.parametrize("name", ["prototypes", "hypernetwork", "hypernetwork, mlp"])
def test_other_labels_only_permute_the_head(name):
    learner, _, batch, _ = setting(name)
    turned = (batch.support_y + 1) % 3
    first, second = (learner.start(learner.model.theta, batch.support_x, y) for y in (batch.support_y, turned))
    weight, bias = HEAD if "mlp" in name else ("head.weight", "head.bias")
    assert torch.allclose(second[weight], first[weight].roll(1, -1))
    assert torch.allclose(second[bias], first[bias].roll(1, -1))


def test_the_head_compares_squared_distances():
    h, p = (torch.randn(2, n, 4, generator=seed(0), dtype=torch.float64) for n in (6, 3))
    weight, bias = prototype_head(p)
    distances = (h.unsqueeze(2) - p.unsqueeze(1)).square().sum(3)
    assert torch.allclose((h @ weight + bias.unsqueeze(1)).log_softmax(2), (-distances).log_softmax(2))


def test_class_means_of_unequal_classes():
    h, y = torch.tensor([[[1.0], [3.0], [10.0]]]), torch.tensor([[1, 1, 0]])
    assert class_means(h, y, 2).tolist() == [[[10.0], [2.0]]]


def test_the_embedding_is_what_the_head_reads():
    x = PICTURES.support_x
    for params in (CONV.theta, everywhere(CONV.theta, x, None)):
        body = without_head(CONV)
        h = body.apply({n: params[n] for n in body.theta}, x)
        weight, bias = CONV.theta["head.weight"], CONV.theta["head.bias"]
        assert torch.allclose(h @ weight + bias, CONV.apply(CONV.theta, x))


def test_reading_r_beside_x_is_the_generated_bias():
    """The decoder of (x, r), written out, is φ_0."""
    theta, (x, y, query, _) = PROCESS.model.theta, SINES
    encoder = double(mlp, (2, 5, 4, 40))
    r = encoder.apply({n: theta[f"encoder.{n}"] for n in encoder.theta}, torch.cat([x, y], 2)).mean(1, keepdim=True)
    both = torch.cat([query, r.expand(-1, query.shape[1], -1)], 2)
    wide = double(mlp, (41, 5, 4, 2))
    first = {"w1": torch.cat([theta["w1"], theta["reader"]])}
    expected = wide.apply({**{n: theta[n] for n in wide.theta}, **first}, both)
    assert torch.allclose(PROCESS.model.apply(PROCESS.start(theta, x, y), query), expected)


def test_gaussian_loss_is_that_of_torch():
    x, y = SINES.support_x, SINES.support_y
    phi = PROCESS.start(PROCESS.model.theta, x, y)
    mean, sigma = gaussian(PROCESS.model.apply(phi, x))
    expected = -torch.distributions.Normal(mean, sigma).log_prob(y).flatten(1).mean(1)
    assert torch.allclose(gaussian_nll(PROCESS.model.apply)(phi, x, y), expected) and (sigma >= 0.1).all()
    assert torch.equal(mean_only(PROCESS.model.apply)(phi, x), mean)


def test_evaluate_takes_a_start():
    learner, loss, _, _ = setting("process")
    sample = lambda n, generator: SineTasks().sample(n, 4, 6, generator, torch.float64)  # noqa: E731
    scores = evaluate(
        learner.model, mse(mean_only(learner.model.apply)), sample, 0.01, 2, 5, adapt=adapt_from(learner.start)
    )
    assert [s.step for s in scores] == [0, 1, 2]


# ---------------------------------------------------------------- errors


def test_clear_errors():
    x, y = PICTURES.support_x, PICTURES.support_y
    with pytest.raises(ValueError, match="task axis in front"):
        maml_from(lambda theta, x, y: theta)(cross_entropy(CONV.apply), CONV.theta, PICTURES, 0.1, 1)
    with pytest.raises(ValueError, match="expected a dict"):
        adapt_from(lambda theta, x, y: None)(cross_entropy(CONV.apply), CONV.theta, x, y, 0.1, 1)
    with pytest.raises(ValueError, match="no linear head"):
        prototypical(NET, 3)
    with pytest.raises(ValueError, match="no prototype"):
        class_means(torch.ones(1, 2, 4), torch.tensor([[0, 0]]), 2)
    with pytest.raises(ValueError, match="2 ways take 0 to 1"):
        class_means(torch.ones(1, 2, 4), torch.tensor([[0, 2]]), 2)
    with pytest.raises(ValueError, match="conv9.shift"):
        hypernetwork(CONV, 3, shifts=("conv9.shift",))
    with pytest.raises(ValueError, match="this process reads"):
        PROCESS.start(PROCESS.model.theta, SINES.support_x, SINES.support_y.expand(-1, -1, 2))
    with pytest.raises(ValueError, match="must be equal"):
        gaussian_nll(PROCESS.model.apply)(PROCESS.start(PROCESS.model.theta, *SINES[:2]), SINES.query_x, SINES[1])
