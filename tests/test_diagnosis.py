"""`diagnose` names what a function computes, and never calls a wrong one exact."""

import ast
import copy
import functools
import math
import sys
from pathlib import Path

import nbformat
import pytest
import torch

from maml_edu.baselines import joint, reptile
from maml_edu.diagnosis import verdicts
from maml_edu.diagnosis.training_steps import from_training_step
from maml_edu.diagnosis.verdicts import VERDICTS, diagnose
from maml_edu.hessian_vector import hvp, value_and_gradient
from maml_edu.meta_gradient import adapt, fomaml, maml
from maml_edu.reference import autograd_maml
from maml_edu.tasks import TaskBatch, mean_over_tasks

NOTEBOOK = Path(__file__).resolve().parents[1] / "notebooks" / "06_is_it_really_maml.ipynb"

# --------------------------------------------------------------------------------------------------
# The suspects of notebook 06, as they stand there

EXPECTED = {
    "honest": "exact",
    "by_hand": "exact",
    "query_loss_at_theta": "at-theta",
    "support_as_query": "data",
    "sum_for_mean": "alpha",
    "suspect_a": "first-order",
    "suspect_b": "first-order",
    "suspect_c": "theta-modified",
    "suspect_d": "hessian",
    "suspect_g": "hessian",
    "suspect_h": "order",
    "suspect_i": "alpha-outside",
    "suspect_j": "hessian",
    "suspect_k": "sign",
    "suspect_m": "nan",
    "fixed_m": "unknown",
    "suspect_n": "zero",
    "suspect_o": "zero",
    "suspect_p": "compiled",
    "last_three_steps": "exact",  # the one that it misses
}
EXPECTED_STEPS = {"good_step": "exact", "suspect_e": "theta-modified", "suspect_f": "missing"}
EXPECTED_WITH_BATCH_NORM = {"good_step": "exact", "suspect_l": "batch-norm"}


@pytest.fixture(scope="module")
def suspects():
    """Every function that notebook 06 defines, without running what stands between them."""
    names = {"torch": torch, "copy": copy, "adapt": adapt, "hvp": hvp, "value_and_gradient": value_and_gradient}
    names |= {"F": torch.nn.functional, "functional_call": torch.func.functional_call}
    names |= {"mean_over_tasks": mean_over_tasks}
    for cell in nbformat.read(NOTEBOOK, as_version=4).cells:
        if cell.cell_type == "code" and "def " in cell.source:
            for node in ast.parse(cell.source).body:
                made = isinstance(node, ast.Assign) and "adam_inside(" in ast.unparse(node)
                if (isinstance(node, ast.FunctionDef) and node.name not in ("distance", "lineup", "scored")) or made:
                    exec(ast.unparse(node), names)
        elif cell.cell_type == "code" and cell.source.startswith("fixed_m"):
            exec(cell.source.splitlines()[0], names)
    return names


@pytest.mark.parametrize("name", EXPECTED)
def test_suspects_of_the_notebook(name, suspects):
    assert diagnose(suspects[name]).verdict == EXPECTED[name]


def test_only_what_is_compiled_runs_again_whole(monkeypatch, suspects):
    """A function that isn't compiled is tried, and not diagnosed a second time."""
    whole = []
    one_diagnosis = verdicts._diagnose
    monkeypatch.setattr(verdicts, "_diagnose", lambda function: whole.append(function) or one_diagnosis(function))
    for name in ("suspect_a", "suspect_k", "suspect_m", "suspect_o"):
        diagnose(suspects[name])
    assert len(whole) == 4
    diagnose(suspects["suspect_p"])
    assert len(whole) == 6


@pytest.mark.parametrize("name", EXPECTED_STEPS)
def test_training_steps_of_the_notebook(name, suspects):
    assert diagnose(from_training_step(suspects[name])).verdict == EXPECTED_STEPS[name]


@pytest.mark.parametrize("name", EXPECTED_WITH_BATCH_NORM)
def test_batch_norm_of_the_notebook(name, suspects):
    diagnosis = diagnose(from_training_step(suspects[name], batch_norm=True))
    assert diagnosis.verdict == EXPECTED_WITH_BATCH_NORM[name]


# --------------------------------------------------------------------------------------------------
# One thing after the other


def scaled(factor):
    return lambda loss, theta, batch, alpha, steps: {
        name: factor(batch, alpha, steps) * g for name, g in maml(loss, theta, batch, alpha, steps).gradient.items()
    }


def of_task(which):
    return lambda loss, theta, batch, alpha, steps: maml(
        loss, theta, TaskBatch(*(field[which] for field in batch)), alpha, steps
    )


def with_alpha(factor):
    return lambda loss, theta, batch, alpha, steps: maml(loss, theta, batch, alpha * factor(batch, steps), steps)


def noisy(loss, theta, batch, alpha, steps):
    return {name: g + 1e-4 * torch.randn_like(g) for name, g in maml(loss, theta, batch, alpha, steps).gradient.items()}


def writes_into_the_batch(loss, theta, batch, alpha, steps):
    result = maml(loss, theta, batch, alpha, steps)
    batch.support_x.mul_(2)
    return result


def keeps_theta_off_by_a_little(loss, theta, batch, alpha, steps):
    result = maml(loss, theta, batch, alpha, steps)
    with torch.no_grad():
        theta["b1"].add_(1e-12)
    return result


def freezes_theta(loss, theta, batch, alpha, steps):
    result = maml(loss, theta, batch, alpha, steps)
    theta["w1"].requires_grad_(False)
    return result


def half_the_loss(loss, theta, batch, alpha, steps):
    return maml(lambda p, x, y: 0.5 * loss(p, x, y), theta, batch, alpha, steps)


def clips_at_ten(loss, theta, batch, alpha, steps):
    gradient = maml(loss, theta, batch, alpha, steps).gradient
    length = sum(g.square().sum() for g in gradient.values()).sqrt()
    return {name: g * min(1.0, 10 / length) for name, g in gradient.items()}


def clips_inside_at_a_hundred(loss, theta, batch, alpha, steps):
    """Inner gradients longer than 100 are shortened: notebook 06 says that `diagnose` doesn't see it."""
    phi = {name: p.expand(len(batch.support_x), *p.shape) for name, p in theta.items()}
    for _ in range(steps):
        g = torch.autograd.grad(loss(phi, *batch[:2]).sum(), list(phi.values()), create_graph=True)
        length = sum(d.flatten(1).square().sum(1) for d in g).sqrt()
        shorter = (100 / length).clamp(max=1)
        each = alpha if isinstance(alpha, dict) else dict.fromkeys(phi, alpha)
        phi = {n: p - each[n] * d * shorter.view(-1, *[1] * (d.dim() - 1)) for (n, p), d in zip(phi.items(), g)}
    objective = loss(phi, *batch[2:]).mean()
    return dict(zip(theta, torch.autograd.grad(objective, list(theta.values()), materialize_grads=True)))


def weighted(loss, theta, batch, alpha, steps):
    """The last task counts twice."""
    twice = TaskBatch(*(torch.cat([field, field[-1:]]) for field in batch))
    return maml(loss, theta, twice, alpha, steps)


def difference_of_theta_and_phi(loss, theta, batch, alpha, steps):
    phi = adapt(loss, theta, batch.support_x, batch.support_y, alpha, steps)[-1]
    return {name: (theta[name] - phi[name]).mean(0) for name in theta}


def without(name):
    def meta_gradient(loss, theta, batch, alpha, steps):
        return {n: g for n, g in maml(loss, theta, batch, alpha, steps).gradient.items() if n != name}

    return meta_gradient


def cut_at_the_first_step(loss, theta, batch, alpha, steps):
    after_one = adapt(loss, theta, batch.support_x, batch.support_y, alpha, 1)[-1]
    path = [after_one]
    path += adapt_each(loss, after_one, batch, alpha, steps - 1)
    leaf = {name: p.detach().requires_grad_() for name, p in path[-1].items()}
    g = torch.autograd.grad(loss(leaf, batch.query_x, batch.query_y).sum(), list(leaf.values()))
    v = dict(zip(leaf, g))
    for theta_j in reversed(path[:-1]):
        hv = hvp(loss, theta_j, batch.support_x, batch.support_y, v)
        v = {name: v[name] - alpha * hv[name] for name in v}
    return {name: t.mean(0) for name, t in v.items()}


def adapt_each(loss, phi, batch, alpha, steps):
    """Further steps from per-task parameters."""
    path = []
    for _ in range(steps):
        leaf = {name: p.detach().requires_grad_() for name, p in phi.items()}
        g = torch.autograd.grad(loss(leaf, batch.support_x, batch.support_y).sum(), list(leaf.values()))
        phi = {name: (p - alpha * d).detach() for (name, p), d in zip(leaf.items(), g)}
        path.append(phi)
    return path


def nothing_written(loss, theta, batch, alpha, steps):
    raise NotImplementedError


def divides_by_zero(loss, theta, batch, alpha, steps):
    return 1 / 0


CASES = {
    "maml": (maml, "exact", ""),
    "autograd_maml": (autograd_maml, "exact", ""),
    "finite differences": (lambda *a: maml(*a, route="finite-difference"), "exact", ""),
    "fomaml": (fomaml, "first-order", "create_graph"),
    "reptile": (reptile, "reptile", "support and query"),
    "joint": (lambda loss, theta, batch, alpha, steps: joint(loss, theta, batch), "joint", "without adaptation"),
    "θ − φ": (difference_of_theta_and_phi, "reptile", "multiplied by α"),
    "minus": (scaled(lambda *_: -1), "sign", "uphill"),
    "sum over tasks": (scaled(lambda batch, *_: len(batch.support_x)), "sum", "mean over tasks"),
    "mean taken twice": (scaled(lambda batch, *_: 1 / len(batch.support_x)), "scale", "number of tasks"),
    "divided by K": (scaled(lambda batch, alpha, steps: 1 / steps), "scale", "number of inner steps"),
    "times α": (scaled(lambda batch, alpha, steps: alpha), "scale", "multiplied by α"),
    "times αK": (scaled(lambda batch, alpha, steps: alpha * steps), "scale", "number of inner steps and α"),
    "α over T": (
        scaled(lambda batch, alpha, steps: alpha / len(batch.support_x)),
        "scale",
        "α over the number of tasks",
    ),
    "times 3": (scaled(lambda *_: 3.0), "scale", "off by"),
    "α times N·k": (with_alpha(lambda batch, steps: batch.support_x.shape[1]), "alpha", "support examples"),
    "α over N": (with_alpha(lambda batch, steps: 1 / batch.support_y.shape[2]), "alpha", "outputs"),
    "α over K": (with_alpha(lambda batch, steps: 1 / steps), "alpha", "inner steps"),
    "uphill inside": (with_alpha(lambda batch, steps: -1), "alpha", "wrong sign"),
    "last task": (of_task(slice(-1, None)), "one-task", "last"),
    "first task": (of_task(slice(None, 1)), "one-task", "first"),
    "weights": (weighted, "weights", "weights"),
    "noise": (noisy, "non-deterministic", "different results"),
    "batch changed": (writes_into_the_batch, "batch-modified", "batch"),
    "θ changed": (keeps_theta_off_by_a_little, "theta-modified", "also changes θ"),
    "θ frozen": (freezes_theta, "theta-modified", "flags"),
    "K written in": (lambda l, t, b, a, s: maml(l, t, b, a, 3), "steps", "`steps`"),  # noqa: E741
    "α written in": (lambda l, t, b, a, s: maml(l, t, b, 0.1, s), "alpha", "`alpha`"),  # noqa: E741
    "half the loss": (half_the_loss, "alpha", "another loss"),
    "clipped": (clips_at_ten, "unknown", "clipped"),
    "exits": (lambda *_: sys.exit(1), "error", "SystemExit"),
    "one step": (lambda loss, theta, batch, alpha, steps: maml(loss, theta, batch, alpha, 1), "steps", "one inner"),
    "one step more": (lambda l, t, b, a, s: maml(l, t, b, a, s + 1), "steps", "too many"),  # noqa: E741
    "cut": (cut_at_the_first_step, "cut", "K = 3: step 1"),
    "missing": (without("b2"), "missing", "b2"),
    "None": (lambda *_: None, "form", "returns None"),
    "clips the inner gradient at 100": (clips_inside_at_a_hundred, "exact", "exact meta-gradient"),
    "a list": (lambda loss, theta, *_: list(theta.values()), "form", "list"),
    "no mean": (lambda loss, theta, batch, *_: {n: torch.stack([p] * 2) for n, p in theta.items()}, "form", "shape"),
    "not a number": (lambda loss, theta, *_: {n: p * math.nan for n, p in theta.items()}, "nan", "w1"),
    "zero": (lambda loss, theta, *_: {n: 0 * p for n, p in theta.items()}, "zero", "depends on θ"),
    "ones": (lambda loss, theta, *_: {n: torch.ones_like(p) for n, p in theta.items()}, "unknown", "cosine"),
    "stub": (nothing_written, "error", "not written yet"),
    "raises": (divides_by_zero, "error", "ZeroDivisionError"),
}


@pytest.mark.parametrize("case", CASES)
def test_verdict_and_words(case):
    function, verdict, words = CASES[case]
    diagnosis = diagnose(function)
    assert diagnosis.verdict == verdict and words in diagnosis.explanation, diagnosis


def test_every_verdict_is_listed_and_can_be_reached():
    reached = {verdict for _, verdict, _ in CASES.values()}
    reached |= {verdict for _, verdict, _ in STEPS_IN_THE_WILD.values()}
    reached |= {*EXPECTED.values(), *EXPECTED_STEPS.values(), *EXPECTED_WITH_BATCH_NORM.values()}
    assert reached | {"tasks-mixed"} == set(VERDICTS)


@pytest.mark.parametrize("exact", [True, False])
def test_tasks_mixed(exact):
    def chained(loss, theta, batch, alpha, steps):
        phi, total = theta, 0.0
        for fields in zip(*(field.split(1) for field in batch)):
            for _ in range(steps):
                g = torch.autograd.grad(loss(phi, *fields[:2]).sum(), list(phi.values()), create_graph=exact)
                phi = {name: p - alpha * d for (name, p), d in zip(phi.items(), g)}
            total = total + loss(phi, *fields[2:]).sum() / len(batch.support_x)
        return dict(zip(theta, torch.autograd.grad(total, list(theta.values()))))

    assert diagnose(chained).verdict == "tasks-mixed"


def stale_step(net, batch, alpha, steps, graph=True):
    """Calls the network itself in the inner loop, so that every step sees θ."""
    for x_s, y_s, x_q, y_q in zip(*batch):
        fast = dict(net.named_parameters())
        for _ in range(steps):
            support_loss = torch.nn.functional.mse_loss(net(x_s), y_s)
            g = torch.autograd.grad(support_loss, list(net.parameters()), create_graph=graph)
            fast = {name: p - alpha * d for (name, p), d in zip(fast.items(), g)}
        query = torch.func.functional_call(net, fast, x_q)
        (torch.nn.functional.mse_loss(query, y_q) / len(batch.support_x)).backward()


def copied_back(net, batch, alpha, steps, clears=False):
    """Trains a copy and adds its gradients to the network's own."""
    for p in net.parameters():
        p.grad = torch.zeros_like(p)
    for x_s, y_s, x_q, y_q in zip(*batch):
        learner = copy.deepcopy(net)
        inner = torch.optim.SGD(learner.parameters(), lr=alpha)
        for _ in range(steps):
            inner.zero_grad()
            torch.nn.functional.mse_loss(learner(x_s), y_s).backward()
            inner.step()
        if clears:
            inner.zero_grad()
        torch.nn.functional.mse_loss(learner(x_q), y_q).backward()
        for p, q in zip(net.parameters(), learner.parameters()):
            p.grad += q.grad / len(batch.support_x)


STEPS_IN_THE_WILD = {
    "stale": (stale_step, "stale", "gradient at θ_j"),
    "stale, first order": (functools.partial(stale_step, graph=False), "stale", "first order"),
    "copied back": (copied_back, "data", "zero_grad() before"),
    "copied back, cleared": (functools.partial(copied_back, clears=True), "first-order", "FOMAML"),
}


@pytest.mark.parametrize("case", STEPS_IN_THE_WILD)
def test_training_steps_as_people_write_them(case):
    step, verdict, words = STEPS_IN_THE_WILD[case]
    diagnosis = diagnose(from_training_step(step))
    assert diagnosis.verdict == verdict and words in diagnosis.explanation, diagnosis


def test_what_a_step_leaves_behind(suspects):
    def ends_in_eval(net, batch, alpha, steps):
        suspects["good_step"](net, batch, alpha, steps)
        net.eval()

    diagnosis = diagnose(from_training_step(ends_in_eval, batch_norm=True))
    assert diagnosis.verdict == "non-deterministic" and "left behind" in diagnosis.explanation


def test_a_step_that_returns_and_one_that_is_not_wrapped(suspects):
    returns = diagnose(from_training_step(lambda net, batch, alpha, steps: torch.zeros(())))
    assert returns.verdict == "error" and ".backward()" in returns.explanation
    bare = diagnose(suspects["good_step"])
    assert bare.verdict == "error" and "from_training_step" in bare.explanation
