"""Compiled meta-gradients: the same numbers, traced once per shape, and a message where there is no compiler."""

import shutil
import warnings

import pytest
import torch
from support.problems import PROBLEMS, relative, tanh_mlp

import maml_edu.engine.compilation as module
from maml_edu.baselines import joint, reptile
from maml_edu.engine.compilation import compiled
from maml_edu.engine.methods import name_of, takes
from maml_edu.meta_gradient import fomaml, maml
from maml_edu.models import mlp, mse


@pytest.fixture
def traced(monkeypatch):
    """The flat graph is run as it is instead of being compiled; the list counts how often that happened."""
    graphs = []

    def keep(graph, inputs, options=None):
        graphs.append(graph)
        return graph

    monkeypatch.setattr(torch._inductor, "compile", keep)
    return graphs


@pytest.mark.skipif(
    not shutil.which("g++") and not shutil.which("clang++"), reason="torch.compile needs a C++ compiler"
)
def test_a_compiled_meta_gradient_is_the_same():
    model = mlp((2, 3), generator=torch.Generator().manual_seed(0), dtype=torch.float64)  # every kernel takes seconds
    alpha = [{n: torch.tensor(0.05, dtype=torch.float64) for n in model.theta}]
    arguments = mse(model.apply), model.theta, tanh_mlp().batch, alpha, 1
    expected, found = maml(*arguments), compiled(maml)(*arguments)
    assert relative(found.gradient, expected.gradient) < 1e-12 and relative(found.phi, expected.phi) < 1e-12
    assert torch.allclose(found.query_loss, expected.query_loss, rtol=1e-12)
    assert all(relative(a, b) < 1e-12 for a, b in zip(found.alpha_gradient, expected.alpha_gradient))


@pytest.mark.parametrize("name", PROBLEMS)
@pytest.mark.parametrize("method", [maml, fomaml, reptile, joint])
def test_the_flat_graph_gives_the_same_result(method, name, traced):
    problem = PROBLEMS[name]()
    more = () if method is joint else (0.2, 3)
    expected = method(problem.loss, problem.theta, problem.batch, *more)
    found = compiled(method)(problem.loss, problem.theta, problem.batch, *more)
    assert len(traced) == 1 and type(found) is type(expected)
    assert relative(found.gradient, expected.gradient) < 1e-12 and relative(found.phi, expected.phi) < 1e-12
    assert not found.query_loss.requires_grad


def test_one_program_per_shape_and_number(traced):
    fast = compiled(maml)
    few, many = tanh_mlp(tasks=3), tanh_mlp(tasks=4)
    for rate in (torch.tensor(0.1), torch.tensor(0.2)):  # a tensor may change
        for _ in range(2):
            found = fast(few.loss, few.theta, few.batch, rate, 2).gradient
            assert relative(found, maml(few.loss, few.theta, few.batch, rate, 2).gradient) < 1e-12
    assert len(traced) == 1
    fast(few.loss, few.theta, few.batch, torch.tensor(0.1), 1)
    fast(few.loss, few.theta, few.batch, 0.1, 1)
    fast(few.loss, few.theta, few.batch, 0.2, 1)
    fast(few.loss, few.theta, many.batch, torch.tensor(0.1), 2)
    fast(few.loss, few.theta, few.batch, torch.tensor(0.1), 2, step_weights=torch.tensor([0.5, 0.5]))
    assert len(traced) == 6


def test_without_a_compiler_it_runs_uncompiled_and_says_so_once(monkeypatch, recwarn):
    def broken(*_, **__):
        raise RuntimeError("no C++ compiler\nlong story")

    monkeypatch.setattr(torch._inductor, "compile", broken)
    problem, fast = tanh_mlp(), compiled(maml)
    for _ in range(2):
        found = fast(problem.loss, problem.theta, problem.batch, 0.1, 2)
    assert relative(found.gradient, maml(problem.loss, problem.theta, problem.batch, 0.1, 2).gradient) == 0
    said = [str(w.message) for w in recwarn if "torch.compile failed" in str(w.message)]
    assert len(said) == 1 and "RuntimeError: no C++ compiler" in said[0] and "long story" not in said[0]


def test_wrong_arguments_raise_as_without_compiling(traced):
    """A mistake in the call is not a failure of the compiler."""
    problem = tanh_mlp()
    with warnings.catch_warnings(), pytest.raises(ValueError, match="list of 1 step sizes for 2 steps"):
        warnings.simplefilter("error")
        compiled(maml)(problem.loss, problem.theta, problem.batch, [0.1], 2)


@pytest.mark.parametrize("shapes", [((3, 4, 1), (3, 1, 5)), ((3, 1, 4), (3, 4, 5)), ((3, 4, 5), (3, 5, 1))])
def test_thin_products(shapes):
    a, b = (torch.randn(shape, dtype=torch.float64) for shape in shapes)
    assert torch.allclose(module._product(a, b), a @ b)
    assert module._product(torch.randn(3, 2, 2), torch.randn(3, 2, 2)) is NotImplemented


def test_the_name_stays_so_that_a_run_can_be_resumed_either_way():
    assert name_of(compiled(maml)) == name_of(maml) == "maml" and takes(compiled(maml), "step_weights")
