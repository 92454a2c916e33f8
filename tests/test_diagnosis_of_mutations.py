"""`diagnose` on 200 random mutations of two right implementations."""

import ast
import collections
import itertools
import random

import pytest
import torch

from maml_edu.diagnosis.verdicts import diagnose
from maml_edu.hessian_vector import hvp
from maml_edu.meta_gradient import adapt
from maml_edu.models import mlp, mse
from maml_edu.reference import autograd_maml
from maml_edu.tasks import TaskBatch

pytestmark = pytest.mark.slow

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
        gradient = function(loss, given, TaskBatch(*(field.clone() for field in batch)), alpha, steps)
        return all(gradient[name].shape == p.shape and gradient[name].isfinite().all() for name, p in theta.items())
    except Exception:
        return False


@pytest.fixture(scope="module")
def other_problems():
    """None of those that `diagnose` uses."""
    problems = []
    for seed, (tasks, support, query, steps) in enumerate(((4, 5, 3, 1), (3, 4, 6, 2), (2, 6, 4, 3)), start=50):
        generator = torch.Generator().manual_seed(seed)
        model = mlp((2, 4, 2), "tanh", generator, torch.float64)
        theta = {n: p + 0.3 * torch.randn(p.shape, generator=generator, dtype=p.dtype) for n, p in model.theta.items()}
        sizes = ((support, 2), (support, 2), (query, 2), (query, 2))
        batch = TaskBatch(*(torch.randn(tasks, *s, generator=generator, dtype=torch.float64) for s in sizes))
        loss = mse(model.apply)
        problems.append((loss, theta, batch, 0.35, steps, autograd_maml(loss, theta, batch, 0.35, steps).gradient))
    return problems


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
        diagnosis, right = diagnose(function), is_right(function, other_problems)
        assert (diagnosis.verdict == "exact") == right, diagnosis
        verdicts[diagnosis.verdict] += 1
    assert sum(verdicts.values()) == 200 and verdicts["exact"] < 100 and len(verdicts) > 8
