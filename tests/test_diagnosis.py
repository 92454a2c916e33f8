"""`diagnose` names what a function computes, and never calls a wrong one exact."""

import ast
import collections
import copy
import itertools
import math
import random
import sys
from pathlib import Path

import nbformat
import numpy as np
import pytest
import torch

from maml_edu.diagnosis import VERDICTS, diagnose
from maml_edu.meta_gradient import adapt, autograd_maml, fomaml, hvp, joint, maml, reptile
from maml_edu.models import mlp, mse
from maml_edu.tasks import TaskBatch
from maml_edu.training_step import from_training_step

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
    "mended_m": "unknown",
    "suspect_n": "zero",
    "suspect_o": "zero",
}
EXPECTED_STEPS = {"good_step": "exact", "suspect_e": "theta-modified", "suspect_f": "missing"}
EXPECTED_WITH_BATCH_NORM = {"good_step": "exact", "suspect_l": "batch-norm"}


@pytest.fixture(scope="module")
def suspects():
    """Every function that notebook 06 defines, without running what stands between them."""
    names = {"torch": torch, "nn": torch.nn, "copy": copy, "math": math, "adapt": adapt, "hvp": hvp}
    for cell in nbformat.read(NOTEBOOK, as_version=4).cells:
        if cell.cell_type == "code" and "def " in cell.source:
            for node in ast.parse(cell.source).body:
                made = isinstance(node, ast.Assign) and "adam_inside(" in ast.unparse(node)
                if (isinstance(node, ast.FunctionDef) and node.name not in ("distance", "lineup")) or made:
                    exec(ast.unparse(node), names)
        elif cell.cell_type == "code" and cell.source.startswith("mended_m"):
            exec(cell.source.splitlines()[0], names)
    return names


@pytest.mark.parametrize("name", EXPECTED)
def test_suspects_of_the_notebook(name, suspects):
    assert diagnose(suspects[name]).verdict == EXPECTED[name]


@pytest.mark.parametrize("name", EXPECTED_STEPS)
def test_training_steps_of_the_notebook(name, suspects):
    assert diagnose(from_training_step(suspects[name])).verdict == EXPECTED_STEPS[name]


@pytest.mark.parametrize("name", EXPECTED_WITH_BATCH_NORM)
def test_batch_norm_of_the_notebook(name, suspects):
    found = diagnose(from_training_step(suspects[name], batch_norm=True))
    assert found.verdict == EXPECTED_WITH_BATCH_NORM[name]


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
    found = maml(loss, theta, batch, alpha, steps)
    batch.support_x.mul_(2)
    return found


def keeps_theta_off_by_a_little(loss, theta, batch, alpha, steps):
    found = maml(loss, theta, batch, alpha, steps)
    with torch.no_grad():
        theta["b1"].add_(1e-12)
    return found


def freezes_theta(loss, theta, batch, alpha, steps):
    found = maml(loss, theta, batch, alpha, steps)
    theta["w1"].requires_grad_(False)
    return found


def half_the_loss(loss, theta, batch, alpha, steps):
    return maml(lambda p, x, y: 0.5 * loss(p, x, y), theta, batch, alpha, steps)


def clips_at_ten(loss, theta, batch, alpha, steps):
    found = maml(loss, theta, batch, alpha, steps).gradient
    length = sum(g.square().sum() for g in found.values()).sqrt()
    return {name: g * min(1.0, 10 / length) for name, g in found.items()}


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
    "finite differences": (lambda *a: maml(*a, hvp="finite-difference"), "exact", ""),
    "fomaml": (fomaml, "first-order", "create_graph"),
    "reptile": (reptile, "reptile", "support and query"),
    "joint": (lambda loss, theta, batch, alpha, steps: joint(loss, theta, batch), "joint", "without adaptation"),
    "θ − φ": (difference_of_theta_and_phi, "reptile", "multiplied by α"),
    "minus": (scaled(lambda *_: -1), "sign", "uphill"),
    "sum over tasks": (scaled(lambda batch, *_: len(batch.support_x)), "sum", "mean over tasks"),
    "mean taken twice": (scaled(lambda batch, *_: 1 / len(batch.support_x)), "scale", "number of tasks"),
    "divided by K": (scaled(lambda batch, alpha, steps: 1 / steps), "scale", "number of inner steps"),
    "times α": (scaled(lambda batch, alpha, steps: alpha), "scale", "multiplied by α"),
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
    found = diagnose(function)
    assert found.verdict == verdict and words in found.explanation, found


def test_every_verdict_is_listed_and_can_be_reached():
    reached = {verdict for _, verdict, _ in CASES.values()}
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


def test_what_a_step_leaves_behind(suspects):
    def ends_in_eval(net, batch, alpha, steps):
        suspects["good_step"](net, batch, alpha, steps)
        net.eval()

    found = diagnose(from_training_step(ends_in_eval, batch_norm=True))
    assert found.verdict == "non-deterministic" and "left behind" in found.explanation


def test_a_step_that_returns_and_one_that_is_not_wrapped(suspects):
    returns = diagnose(from_training_step(lambda net, batch, alpha, steps: torch.zeros(())))
    assert returns.verdict == "error" and ".backward()" in returns.explanation
    bare = diagnose(suspects["good_step"])
    assert bare.verdict == "error" and "from_training_step" in bare.explanation


# --------------------------------------------------------------------------------------------------
# Right ones, by other means


def by_numpy(loss, theta, batch, alpha, steps):
    """MAML of the one-hidden-layer tanh network, forward, backward and both derivatives of the step by hand."""
    names = ("w1", "b1", "w2", "b2")
    start = {name: theta[name].detach().numpy() for name in names}
    total = {name: np.zeros_like(start[name]) for name in names}
    for x_s, y_s, x_q, y_q in zip(*(field.numpy() for field in batch)):
        path = [start]
        for _ in range(steps):
            g = numpy_gradient(path[-1], x_s, y_s)
            path.append({name: path[-1][name] - alpha * g[name] for name in names})
        v = numpy_gradient(path[-1], x_q, y_q)
        for params in reversed(path[:-1]):
            hv = numpy_product(params, x_s, y_s, v)
            v = {name: v[name] - alpha * hv[name] for name in names}
        total = {name: total[name] + v[name] / len(batch.support_x) for name in names}
    return {name: torch.from_numpy(t) for name, t in total.items()}


def numpy_gradient(p, x, y):
    h = np.tanh(x @ p["w1"] + p["b1"])
    e = 2 * (h @ p["w2"] + p["b2"] - y) / y.size
    d = (e @ p["w2"].T) * (1 - h**2)
    return {"w1": x.T @ d, "b1": d.sum(0), "w2": h.T @ e, "b2": e.sum(0)}


def numpy_product(p, x, y, v):
    """H·v: every line of the gradient, differentiated in the direction v (Pearlmutter 1994)."""
    h = np.tanh(x @ p["w1"] + p["b1"])
    e = 2 * (h @ p["w2"] + p["b2"] - y) / y.size
    rh = (1 - h**2) * (x @ v["w1"] + v["b1"])
    re = 2 * (rh @ p["w2"] + h @ v["w2"] + v["b2"]) / y.size
    rd = (re @ p["w2"].T + e @ v["w2"].T) * (1 - h**2) - 2 * (e @ p["w2"].T) * h * rh
    return {"w1": x.T @ rd, "b1": rd.sum(0), "w2": rh.T @ e + h.T @ re, "b2": re.sum(0)}


def by_torch_func(loss, theta, batch, alpha, steps):
    def one_task(theta, *fields):
        x_s, y_s, x_q, y_q = (field.unsqueeze(0) for field in fields)
        phi = theta
        for _ in range(steps):
            g = torch.func.grad(lambda p: loss(p, x_s, y_s)[0])(phi)
            phi = {name: phi[name] - alpha * g[name] for name in phi}
        return loss(phi, x_q, y_q)[0]

    def objective(theta):
        return torch.func.vmap(one_task, in_dims=(None, 0, 0, 0, 0))(theta, *batch).mean()

    return torch.func.grad(objective)({name: p.detach() for name, p in theta.items()})


def by_higher(net, batch, alpha, steps):
    higher = pytest.importorskip("higher")
    for x_s, y_s, x_q, y_q in zip(*batch):
        with higher.innerloop_ctx(net, torch.optim.SGD(net.parameters(), lr=alpha), copy_initial_weights=False) as (
            fast,
            inner,
        ):
            for _ in range(steps):
                inner.step(torch.nn.functional.mse_loss(fast(x_s), y_s))
            (torch.nn.functional.mse_loss(fast(x_q), y_q) / len(batch.support_x)).backward()


@pytest.mark.parametrize("function", [by_numpy, by_torch_func, from_training_step(by_higher)])
def test_right_ones_by_other_means_are_exact(function):
    assert diagnose(function).verdict == "exact"


# --------------------------------------------------------------------------------------------------
# 200 random mutations of two right ones

RIGHT = {
    "unrolled": """
def unrolled(loss, theta, batch, alpha, steps):
    tasks = len(batch.support_x)
    total = 0.0
    for t in range(tasks):
        support = batch.support_x[t : t + 1], batch.support_y[t : t + 1]
        query = batch.query_x[t : t + 1], batch.query_y[t : t + 1]
        phi = {name: 1.0 * p for name, p in theta.items()}
        for step in range(steps):
            value = loss(phi, support[0], support[1]).sum()
            g = torch.autograd.grad(value, list(phi.values()), create_graph=True)
            phi = {name: p - alpha * d for (name, p), d in zip(phi.items(), g)}
        total = total + loss(phi, query[0], query[1]).sum()
    g = torch.autograd.grad(total / tasks, list(theta.values()))
    return dict(zip(theta, g))
""",
    "recursion": """
def recursion(loss, theta, batch, alpha, steps):
    x, y = batch.support_x, batch.support_y
    path = adapt(loss, theta, x, y, alpha, steps)
    leaf = {name: p.detach().requires_grad_() for name, p in path[-1].items()}
    value = loss(leaf, batch.query_x, batch.query_y).sum()
    v = dict(zip(leaf, torch.autograd.grad(value, list(leaf.values()))))
    for theta_j in reversed(path[:-1]):
        hv = hvp(loss, theta_j, x, y, {name: alpha * p for name, p in v.items()})
        v = {name: v[name] - hv[name] for name in v}
    return {name: p.mean(0) for name, p in v.items()}
""",
}
OTHER_NAMES = {
    "support": "query", "query": "support", "support_x": "query_x", "support_y": "query_y", "query_x": "support_x",
    "query_y": "support_y", "phi": "theta", "theta_j": "theta", "alpha": "steps", "steps": "tasks", "tasks": "steps",
    "sum": "mean", "mean": "sum", "hv": "v", "leaf": "theta", "p": "d", "x": "y",
}  # fmt: skip


class Mutation(ast.NodeTransformer):
    """Changes the node that stands at `place` among those it knows how to change."""

    def __init__(self, place, rng):
        self.place, self.rng, self.seen, self.done = place, rng, 0, False

    def here(self):
        self.seen += 1
        self.done |= self.seen - 1 == self.place
        return self.seen - 1 == self.place

    def visit_BinOp(self, node):
        self.generic_visit(node)
        if not self.here():
            return node
        swaps = {ast.Sub: ast.Add, ast.Add: ast.Sub, ast.Mult: ast.Div, ast.Div: ast.Mult}
        kind = self.rng.choice(["swap", "left", "right", "scale"])
        if kind == "swap":
            return ast.BinOp(node.left, swaps[type(node.op)](), node.right)
        if kind == "scale":
            return ast.BinOp(node, ast.Mult(), ast.Constant(self.rng.choice([0.5, 0.9, 2.0, -1.0])))
        return node.left if kind == "left" else node.right

    def visit_Name(self, node):
        if not isinstance(node.ctx, ast.Load) or not self.here():
            return node
        if self.rng.random() < 0.4:
            return ast.Call(ast.Attribute(node, "detach", ast.Load()), [], [])
        return ast.Name(OTHER_NAMES.get(node.id, node.id), ast.Load())

    def visit_Attribute(self, node):
        self.generic_visit(node)
        return ast.Attribute(node.value, OTHER_NAMES.get(node.attr, node.attr), node.ctx) if self.here() else node

    def visit_Constant(self, node):
        if not self.here():
            return node
        if isinstance(node.value, bool):
            return ast.Constant(not node.value)
        return ast.Constant(node.value + self.rng.choice([-1, 1])) if isinstance(node.value, (int, float)) else node

    def visit_Call(self, node):
        self.generic_visit(node)
        named = isinstance(node.func, ast.Name) and node.func.id == "reversed"
        return node.args[0] if named and self.here() else node

    def visit_For(self, node):
        self.generic_visit(node)
        if self.here() and len(node.body) > 1:
            del node.body[self.rng.randrange(len(node.body))]
        return node


def mutant(seed):
    """A random mutation, as a function; None where the seed changes nothing."""
    rng = random.Random(seed)
    name = rng.choice(sorted(RIGHT))
    tree = ast.parse(RIGHT[name])
    mutation = Mutation(rng.randrange(40), rng)
    tree = ast.fix_missing_locations(mutation.visit(tree))
    if not mutation.done or ast.unparse(tree) == ast.unparse(ast.parse(RIGHT[name])):
        return None
    names = {"torch": torch, "adapt": adapt, "hvp": hvp}
    exec(compile(tree, f"mutant {seed}", "exec"), names)
    return names[name]


def runs(function, problem):
    """Whether the mutant returns a finite gradient at all; the others are told from an exact one without `diagnose`."""
    loss, theta, batch, alpha, steps, _ = problem
    try:
        given = {name: p.clone().requires_grad_() for name, p in theta.items()}
        found = function(loss, given, TaskBatch(*(field.clone() for field in batch)), alpha, steps)
        return all(found[name].shape == p.shape and found[name].isfinite().all() for name, p in theta.items())
    except Exception:
        return False


@pytest.fixture(scope="module")
def other_problems():
    """None of those that `diagnose` uses."""
    found = []
    for seed, (tasks, support, query, steps) in enumerate(((4, 5, 3, 1), (3, 4, 6, 2), (2, 6, 4, 3)), start=50):
        generator = torch.Generator().manual_seed(seed)
        model = mlp((2, 4, 2), "tanh", generator, torch.float64)
        theta = {n: p + 0.3 * torch.randn(p.shape, generator=generator, dtype=p.dtype) for n, p in model.theta.items()}
        sizes = ((support, 2), (support, 2), (query, 2), (query, 2))
        batch = TaskBatch(*(torch.randn(tasks, *s, generator=generator, dtype=torch.float64) for s in sizes))
        loss = mse(model.apply)
        found.append((loss, theta, batch, 0.35, steps, autograd_maml(loss, theta, batch, 0.35, steps).gradient))
    return found


def is_right(function, problems):
    """Numerically equal to the exact gradient on problems of the test's own."""
    for loss, theta, batch, alpha, steps, exact in problems:
        given = {name: p.clone().requires_grad_() for name, p in theta.items()}
        try:
            ours = function(loss, given, TaskBatch(*(field.clone() for field in batch)), alpha, steps)
            off = sum((ours[n].detach() - exact[n]).square().sum() for n in exact)
            if not (off / sum(exact[n].square().sum() for n in exact)).sqrt() < 1e-7:
                return False
        except Exception:
            return False
    return True


def test_of_200_mutations_that_run_none_is_called_exact_unless_it_is(other_problems):
    candidates = filter(None, map(mutant, itertools.count()))
    mutants = itertools.islice((f for f in candidates if runs(f, other_problems[-1])), 200)
    verdicts = collections.Counter()
    for function in mutants:
        found, right = diagnose(function), is_right(function, other_problems)
        assert (found.verdict == "exact") == right, found
        verdicts[found.verdict] += 1
    assert sum(verdicts.values()) == 200 and verdicts["exact"] < 100 and len(verdicts) > 8
