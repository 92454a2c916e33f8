"""Starts computed from the support set: gradients by independent routes, what each start promises, the command."""

import json

import pytest
import torch
from support.problems import flat, relative, small_conv4, tanh_mlp

from maml_edu.data.omniglot_files import Characters
from maml_edu.data.sine import SineTasks
from maml_edu.electives.conditioned_starts import (
    ConditionedModel,
    adapt_from,
    autograd_maml_from,
    everywhere,
    maml_from,
)
from maml_edu.electives.hypernetworks import hypernetwork
from maml_edu.electives.neural_processes import (
    gaussian,
    gaussian_nll,
    mean_only,
    neural_process,
    neural_process_classifier,
)
from maml_edu.electives.prototypes import class_means, prototype_head, prototypical, without_head
from maml_edu.engine.checkpoint_files import load_checkpoint
from maml_edu.evaluation import evaluate
from maml_edu.experiments import comparison as families
from maml_edu.meta_gradient import maml
from maml_edu.models import conv4, cross_entropy, mlp, mse


def seed(number):
    return torch.Generator().manual_seed(number)


def double(make, *arguments, **more):
    return make(*arguments, generator=seed(2), dtype=torch.float64, **more)


HEAD = ("w2", "b2")
CONV = double(conv4, 3, 2, 8)
NET = double(mlp, (64, 5, 3), activation="tanh")  # reads the pixels of the same pictures
PROCESS = double(neural_process, (1, 5, 4, 2), features=3, activation="tanh")
FAMILIES = {
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
    found = FAMILIES[name]
    if name == "process":
        return found, gaussian_nll(found.model.apply), SINES, 0.05
    return found, cross_entropy(found.model.apply), PICTURES, 0.1


@pytest.mark.parametrize("steps", [0, 1, 3])
@pytest.mark.parametrize("name", FAMILIES)
def test_the_meta_gradient_agrees_with_autograd_and_differences(name, steps):
    found, loss, batch, alpha = setting(name)
    theta = found.model.theta
    got = maml_from(found.start)(loss, theta, batch, alpha, steps)
    judge = autograd_maml_from(found.start)(loss, theta, batch, alpha, steps)
    assert relative(got.gradient, judge.gradient) < 1e-9
    assert torch.allclose(got.query_loss, judge.query_loss) and list(got.phi) == list(judge.phi)
    assert abs(got.alpha_gradient - judge.alpha_gradient) < 1e-9 * (1 + abs(judge.alpha_gradient))
    direction = {n: torch.randn(p.shape, generator=seed(5), dtype=p.dtype) for n, p in theta.items()}

    def query_loss(epsilon):
        moved = {n: p + epsilon * direction[n] for n, p in theta.items()}
        phi = adapt_from(found.start)(loss, moved, *batch[:2], alpha, steps)[-1]
        return loss(phi, *batch[2:]).mean().item()

    slope = (query_loss(1e-6) - query_loss(-1e-6)) / 2e-6
    assert abs(slope - flat(got.gradient) @ flat(direction)) < 2e-6 * max(abs(slope), 0.1)


def test_rates_per_parameter_of_phi_and_their_gradient():
    found, loss, batch, _ = setting("prototypes")
    names = found.start(found.model.theta, *batch[:2])
    assert set(names) - set(found.model.theta) == {"head.weight", "head.bias"}  # θ has no head, φ has
    alpha = [dict.fromkeys(names, rate) for rate in (0.2, 0.4)]
    got, judge = (m(found.start)(loss, found.model.theta, batch, alpha, 2) for m in (maml_from, autograd_maml_from))
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
    found, loss, batch, alpha = setting(name)
    phi = {n: p.detach() for n, p in found.start(found.model.theta, *batch[:2]).items()}
    for expected in adapt_from(found.start)(loss, found.model.theta, *batch[:2], alpha, 2):
        assert relative(expected, phi) < 1e-12
        leaf = {n: p.clone().requires_grad_() for n, p in phi.items()}
        g = torch.autograd.grad(loss(leaf, *batch[:2]).sum(), list(leaf.values()))
        phi = {n: p.detach() - alpha * d for (n, p), d in zip(leaf.items(), g)}


@pytest.mark.parametrize("name", FAMILIES)
def test_cost_no_loop_over_tasks_and_no_graph_kept(name):
    found, loss, batch, alpha = setting(name)
    counts = []
    for tasks in (1, len(batch.support_x)):
        part = type(batch)(*(t[:tasks] for t in batch))
        calls = []

        def start(*arguments, calls=calls):
            calls.append("start")
            return found.start(*arguments)

        def counted(*arguments, calls=calls):
            calls.append("loss")
            return loss(*arguments)

        result = maml_from(start)(counted, found.model.theta, part, alpha, 2)
        counts.append(calls)
    assert counts[0] == counts[1] and counts[0].count("start") == 1
    assert not any(p.requires_grad for p in [*result.phi.values(), *result.gradient.values(), result.query_loss])
    path = adapt_from(found.start)(loss, found.model.theta, *batch[:2], alpha, 2)
    assert len(path) == 3 and not any(p.requires_grad for phi in path for p in phi.values())


# ---------------------------------------------------------------- what each start promises


@pytest.mark.parametrize("name", FAMILIES)
def test_the_order_of_the_support_examples_does_not_matter(name):
    found, _, batch, _ = setting(name)
    order = torch.randperm(batch.support_x.shape[1], generator=seed(4))
    first = found.start(found.model.theta, *batch[:2])
    second = found.start(found.model.theta, batch.support_x[:, order], batch.support_y[:, order])
    assert relative(first, second) < 1e-9


@pytest.mark.parametrize("name", FAMILIES)
def test_a_start_sees_its_own_task_only(name):
    found, _, batch, _ = setting(name)
    together = found.start(found.model.theta, *batch[:2])
    alone = found.start(found.model.theta, batch.support_x[1:2], batch.support_y[1:2])
    assert relative({n: p[1:2] for n, p in together.items()}, alone) < 1e-9


@pytest.mark.parametrize("name", ["prototypes", "hypernetwork", "hypernetwork, mlp"])
def test_other_labels_only_permute_the_head(name):
    found, _, batch, _ = setting(name)
    turned = (batch.support_y + 1) % 3
    first, second = (found.start(found.model.theta, batch.support_x, y) for y in (batch.support_y, turned))
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
    encoder = double(mlp, (2, 5, 4, 3), activation="tanh")
    r = encoder.apply({n: theta[f"encoder.{n}"] for n in encoder.theta}, torch.cat([x, y], 2)).mean(1, keepdim=True)
    both = torch.cat([query, r.expand(-1, query.shape[1], -1)], 2)
    wide = double(mlp, (4, 5, 4, 2), activation="tanh")
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
    found, loss, _, _ = setting("process")
    sample = lambda n, generator: SineTasks().sample(n, 4, 6, generator, torch.float64)  # noqa: E731
    scores = evaluate(found.model, mse(mean_only(found.model.apply)), sample, 0.01, 2, 5, adapt=adapt_from(found.start))
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
    with pytest.raises(ValueError, match="unknown method"):
        families.family("maml++", 5)


# ---------------------------------------------------------------- the command


def noise(classes):
    """Characters without any meaning, made in no time."""
    images = torch.randint(0, 256, (classes, 20, 28, 28), generator=seed(0), dtype=torch.uint8)
    return Characters(images, [f"character{i:03}" for i in range(classes)], [""] * classes, "glyphs")


def test_the_command_writes_a_result(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(families, "characters", lambda source: noise(81))
    monkeypatch.setattr(families, "studies", lambda *a: {"tasks": 0})
    out = tmp_path / "run"
    arguments = [
        "--method",
        "protomaml",
        "--dataset",
        "glyphs",
        "--tasks",
        "16",
        "--test-tasks",
        "4",
        "--out",
        str(out),
    ]
    assert families.main(arguments) == 0
    stored = json.loads((out / "result.json").read_text(encoding="utf-8"))
    assert stored["method"] == "protomaml" and [s["step"] for s in stored["per_step"]] == [0, 1]
    assert stored["protocol"]["iterations"] == 2 and set(stored["protocol"]["alpha"][0]) >= {"head.weight", "head.bias"}
    assert stored["provenance"]["command"].startswith("python -m maml_edu.experiments.comparison --method protomaml")
    before = (out / "result.json").read_bytes()
    assert families.main(arguments) == 0  # finished: nothing is trained again
    again = json.loads((out / "result.json").read_text(encoding="utf-8"))
    assert again["per_step"] == json.loads(before)["per_step"]
    with pytest.raises(SystemExit):
        families.main(["--method", "maml", "--tasks", "3", "--out", str(out)])
    with pytest.raises(SystemExit):
        families.main(["--method", "maml", "--dataset", "sine", "--out", str(out)])


def test_studies_look_at_every_kind_of_task():
    validation = noise(20)
    for method in ("protomaml", "process"):
        theta = families.family(method, 5, 2, seed(0)).model.theta
        found = families.studies(method, theta, 0.0, 5, 1, 2, validation, 1, 0)
        assert set(found["shots"]) == {"1", "5", "10"} and all(len(s) == 11 for s in found["shots"].values())
        assert (found["ways"]["20"] is None) == (method == "process") and found["ways"]["5"] is not None


def test_the_sine_command(tmp_path):
    assert families.main(["--dataset", "sine", "--tasks", "50", "--out", str(tmp_path)]) == 0
    trained, settings = load_checkpoint(tmp_path / "final.pt", neural_process().model)
    assert settings["protocol"]["iterations"] == 2 and "--dataset sine" in settings["provenance"]["command"]
    for name, points in (("sine_process", "1 to 10"), ("sine_process_ten", 10)):
        assert load_checkpoint(name, neural_process().model)[1]["protocol"]["shots"] == points
