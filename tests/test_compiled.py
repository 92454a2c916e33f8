"""Compiled meta-gradients: the same numbers, traced once per shape, and a message where there is no compiler."""

import ast
import shutil
import warnings
from pathlib import Path

import pytest
import torch
from support.problems import PROBLEMS, relative, tanh_mlp, varied_alpha

import maml_edu.engine.compilation as module
from maml_edu.baselines import joint, reptile
from maml_edu.engine.compilation import compiled
from maml_edu.engine.methods import name_of, takes
from maml_edu.meta_gradient import fomaml, maml
from maml_edu.models import mlp, mse
from maml_edu.reference import autograd_maml
from maml_edu.step_sizes import flat_alpha


@pytest.fixture
def traced(monkeypatch):
    """The flat graph is run as it is instead of being compiled; the list counts how often that happened."""
    graphs = []

    def keep(graph, inputs, options=None):
        graphs.append(graph)
        return graph

    monkeypatch.setattr(torch._inductor, "compile", keep)
    return graphs


@pytest.mark.slow
@pytest.mark.skipif(
    not shutil.which("g++") and not shutil.which("clang++"), reason="torch.compile needs a C++ compiler"
)
def test_a_compiled_meta_gradient_is_exact():
    """Every kernel takes a second: so few of them, and without the fifteen seconds that vector units are tried out."""
    model = mlp((2, 3), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    arguments = mse(model.apply), model.theta, tanh_mlp().batch, [varied_alpha(model.theta)], 1
    exact, first_order = autograd_maml(*arguments), fomaml(*arguments)
    with torch._inductor.config.patch({"compile_threads": 1, "cpp.vec_isa_ok": False}), warnings.catch_warnings():
        warnings.filterwarnings("error", message="torch.compile failed")
        result = compiled(maml)(*arguments)
    assert relative(result.gradient, exact.gradient) < 1e-12 < 1e-3 < relative(first_order.gradient, exact.gradient)
    assert relative(result.phi, exact.phi) < 1e-12
    assert torch.allclose(result.query_loss, exact.query_loss, rtol=1e-12)
    assert all(relative(a, b) < 1e-12 for a, b in zip(result.alpha_gradient, exact.alpha_gradient))


@pytest.mark.parametrize("name", PROBLEMS)
@pytest.mark.parametrize("method", [maml, fomaml, reptile, joint])
def test_the_flat_graph_gives_the_same_result(method, name, traced):
    problem = PROBLEMS[name]()
    more = () if method is joint else (0.2, 2)
    expected = method(problem.loss, problem.theta, problem.batch, *more)
    result = compiled(method)(problem.loss, problem.theta, problem.batch, *more)
    assert len(traced) == 1 and type(result) is type(expected)
    assert relative(result.gradient, expected.gradient) < 1e-12 and relative(result.phi, expected.phi) < 1e-12
    assert torch.allclose(result.query_loss, expected.query_loss, rtol=1e-12)


@pytest.mark.parametrize("form", ["number", "tensor", "dict", "list", "list of dicts"])
def test_alpha_and_its_gradient_keep_their_form(form, traced):
    problem = tanh_mlp()
    each = varied_alpha(problem.theta)
    forms = {"number": 0.1, "tensor": torch.tensor(0.1), "dict": each, "list": [0.1, 0.2], "list of dicts": [each] * 2}
    arguments = problem.loss, problem.theta, problem.batch, forms[form], 2
    expected, result = maml(*arguments).alpha_gradient, compiled(maml)(*arguments).alpha_gradient
    assert torch.utils._pytree.tree_structure(result) == torch.utils._pytree.tree_structure(expected)
    assert all(torch.allclose(a, b, rtol=1e-12) for a, b in zip(flat_alpha(result), flat_alpha(expected)))


# PyTorch makes a compiled function first order, without a word, where it is differentiated with create_graph=True.


def test_a_compiled_meta_gradient_cannot_be_differentiated(traced):
    problem = tanh_mlp()
    theta = {name: p.clone().requires_grad_() for name, p in problem.theta.items()}
    alpha = torch.tensor(0.1, requires_grad=True)
    result = compiled(maml)(problem.loss, theta, problem.batch, alpha, 2)
    tensors = [*result.gradient.values(), result.query_loss, *result.phi.values(), result.alpha_gradient]
    assert not any(t.requires_grad for t in tensors)


def test_one_module_compiles_and_it_differentiates_nothing():
    here = Path(module.__file__)
    calls = {path: calls_of(path) for path in here.parents[1].rglob("*.py")}
    compiling = {path for path, names in calls.items() if any(name.endswith(".compile") for name in names)}
    assert compiling == {here}
    assert not {name.split(".")[-1] for name in calls[here]} & {"grad", "backward", "vjp", "jvp", "enable_grad"}


def calls_of(path):
    """What a module calls, decorates with or imports by name; `re.compile` left out."""
    nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
    called = [node.func for node in nodes if isinstance(node, ast.Call)]
    called += [decorator for node in nodes for decorator in getattr(node, "decorator_list", [])]
    imported = [f"{n.module}.{a.name}" for n in nodes if isinstance(n, ast.ImportFrom) for a in n.names]
    return {*map(ast.unparse, called), *imported} - {"re.compile"}


def test_one_program_per_shape_and_number(traced):
    fast = compiled(maml)
    few, many = tanh_mlp(tasks=3), tanh_mlp(tasks=4)
    for alpha in (torch.tensor(0.1), torch.tensor(0.2)):  # a tensor may change
        for _ in range(2):
            result = fast(few.loss, few.theta, few.batch, alpha, 2).gradient
            assert relative(result, maml(few.loss, few.theta, few.batch, alpha, 2).gradient) < 1e-12
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
        result = fast(problem.loss, problem.theta, problem.batch, 0.1, 2)
    assert relative(result.gradient, maml(problem.loss, problem.theta, problem.batch, 0.1, 2).gradient) == 0
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
