"""Imports point one way: the heart knows no data set, the core knows no elective, and there is no cycle."""

import ast
import graphlib
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent.parent / "maml_edu"
HEART = {"step_sizes", "tasks", "meta_gradient"}
ELECTIVES = {
    *("representation", "inner_loops", "implicit"),
    *("starts", "prototypes", "hypernetwork", "neural_process", "families"),
    *("navigation", "policy_gradient", "navigation_run"),
    *("cost_model", "checkpointing"),
}


def imported_by(path):
    """The modules maml_edu/*.py that a module there imports, at its top or within a function."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.level == 1 or (node.module or "").split(".")[0] == "maml_edu"):
            module = (node.module or "").removeprefix("maml_edu").lstrip(".").split(".")[0]
            found |= {module} if module else {alias.name for alias in node.names}
    return found & MODULES


MODULES = {path.stem for path in PACKAGE.glob("*.py")} - {"__init__"}
GRAPH = {path.stem: imported_by(path) for path in PACKAGE.glob("*.py") if path.stem in MODULES}


def test_the_heart_imports_the_heart_alone():
    assert all(GRAPH[module] <= HEART for module in HEART)


def test_no_core_module_imports_an_elective():
    assert ELECTIVES <= MODULES
    assert {
        module: found & ELECTIVES for module, found in GRAPH.items() if module not in ELECTIVES and found & ELECTIVES
    } == {}


def test_there_is_no_cycle():
    assert len(list(graphlib.TopologicalSorter(GRAPH).static_order())) == len(MODULES)
