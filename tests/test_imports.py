"""Imports point down the list below, in every file of the package; within a room there is no cycle."""

import ast
import graphlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "maml_edu"

# The order of the house, from the ground up. A module may import from its own line and from the lines above it.
ORDER = (
    "tasks step_sizes",
    "hessian_vector",
    "meta_gradient",
    "reference baselines",
    "models data",
    "evaluation engine",
    "training",
    "learner",
    "electives",
    "experiments",
    "diagnosis",
    "classroom figures",
    "__main__",
)
LEVEL = {place: level for level, line in enumerate(ORDER) for place in line.split()}

FILES = [path for path in sorted(PACKAGE.rglob("*.py")) if path != PACKAGE / "__init__.py"]


def name_of(path):
    """models/losses.py -> "models.losses"; a room's __init__.py -> the room."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


NAMES = {name_of(path) for path in FILES}


def imported_by(path):
    """The modules of the package that a file imports, at its top or within a function."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        assert not (isinstance(node, ast.ImportFrom) and node.level), f"{path} has a relative import"
        modules = []
        if isinstance(node, ast.ImportFrom) and node.module:
            modules = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        elif isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        ours = [m.removeprefix("maml_edu.") for m in modules if m.startswith("maml_edu.")]
        found |= {m for m in ours if m in NAMES}
        if isinstance(node, ast.ImportFrom) and node.module == "maml_edu":
            assert {alias.name for alias in node.names} <= {n.split(".")[0] for n in NAMES}, (
                f"{path} imports from maml_edu itself"
            )
    return found


GRAPH = {name_of(path): imported_by(path) for path in FILES}


def place(module):
    return module.split(".")[0]


@pytest.mark.parametrize("module", GRAPH)
def test_imports_point_down(module):
    up = [m for m in GRAPH[module] if LEVEL[place(m)] > LEVEL[place(module)]]
    assert not up, f"{module} imports {up}, which is above it"
    beside = [m for m in GRAPH[module] if LEVEL[place(m)] == LEVEL[place(module)] and place(m) != place(module)]
    assert not [m for m in beside if place(module) in {place(x) for x in GRAPH[m]}], f"{module} and {beside}: a cycle"


def test_there_is_no_cycle():
    assert len(list(graphlib.TopologicalSorter(GRAPH).static_order())) == len(GRAPH)


def test_only_models_re_exports():
    for room in (path.parent for path in PACKAGE.rglob("*/__init__.py")):
        if room.name not in ("models", "exercises"):
            tree = ast.parse((room / "__init__.py").read_text(encoding="utf-8"))
            assert [type(node).__name__ for node in tree.body] == ["Expr"], f"{room.name}/__init__.py is a docstring"


def test_no_module_has_the_name_of_a_public_function():
    import maml_edu

    modules = {module.split(".")[-1] for module in GRAPH}
    assert not modules & set(maml_edu.__all__)


def test_few_files_at_the_top_and_none_too_long():
    top = [p.name for p in PACKAGE.iterdir() if p.is_file()]
    assert len(top) <= 12, sorted(top)
    assert len((PACKAGE / "meta_gradient.py").read_text("utf-8").splitlines()) <= 150
    long = {str(p.relative_to(PACKAGE)): n for p in FILES if (n := len(p.read_text("utf-8").splitlines())) > 350}
    assert not long


WITHOUT = """
import sys
for name in ("pooch", "PIL", "matplotlib", "IPython", "ipywidgets", "filelock"):
    sys.modules[name] = None
import maml_edu
{line}
"""


@pytest.mark.parametrize(
    "line",
    [
        "assert not {'torch', 'numpy'} & set(sys.modules)",
        "maml_edu.maml, maml_edu.train, maml_edu.from_module, maml_edu.SineTasks, maml_edu.evaluate, maml_edu.diagnose",
        "assert {'maml', 'train', 'claim'} <= set(dir(maml_edu))",
    ],
)
def test_the_core_needs_no_notebook_packages(line):
    run = subprocess.run([sys.executable, "-c", WITHOUT.format(line=line)], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr


def test_every_public_name_is_there():
    import maml_edu

    assert all(getattr(maml_edu, name) is not None for name in maml_edu.__all__)
    with pytest.raises(AttributeError, match="maml_edu has no 'nothing'; it offers"):
        maml_edu.nothing  # noqa: B018


def test_type_checkers_see_the_same_names():
    """`__init__` imports every public name once more for type checkers; both lists agree."""
    import maml_edu

    tree = ast.parse((PACKAGE / "__init__.py").read_text(encoding="utf-8"))
    (block,) = [node for node in tree.body if isinstance(node, ast.If)]
    seen = {alias.name: node.module for node in block.body for alias in node.names}
    assert seen == {name: f"maml_edu.{module}" for name, module in maml_edu._MODULE_OF.items()}


@pytest.mark.slow
def test_mypy_is_clean():
    run = subprocess.run([sys.executable, "-m", "mypy"], capture_output=True, text=True, cwd=PACKAGE.parent)
    assert run.returncode == 0, run.stdout[-4000:]
    ignored = [line for p in FILES for line in p.read_text("utf-8").splitlines() if "type: ignore" in line]
    assert len(ignored) <= 15 and all(re.search(r"# type: ignore\[[\w, -]+\]  # \w", line) for line in ignored), ignored


def test_no_ten_lines_are_written_twice():
    """Indentation and blank lines aside, over the whole package."""
    seen: dict[tuple[str, ...], str] = {}
    twice = []
    for path in FILES:
        lines = [line.strip() for line in path.read_text("utf-8").splitlines() if line.strip()]
        for start in range(len(lines) - 9):
            run, where = tuple(lines[start : start + 10]), f"{name_of(path)}, near {lines[start]!r}"
            twice += [(seen[run], where)] if run in seen else []
            seen.setdefault(run, where)
    assert not twice
