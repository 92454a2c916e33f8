"""Handouts: copies of the notebooks for students, without outputs, with the exercises open or solved.

A solved exercise is the reference that answers are compared with, under the name that the stub has. Its source comes
with the imports and helper functions it needs, so that the cell runs, and its `check` prints "correct".
"""

from __future__ import annotations

import ast
import inspect
import re
import shutil
import textwrap
import types
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

import nbformat

from maml_edu.classroom.exercises import registry

NOTEBOOKS = Path(__file__).resolve().parents[2] / "notebooks"


def write_handout(out: str | Path, notebooks: Sequence[str | Path] = (), solutions: bool = False) -> list[Path]:
    """Write the notebooks (default: all of the series) to a new folder; returns the paths of the copies.

    Whatever the notebooks read beside them (results/, images/) is copied too. A folder that exists is left alone,
    since a student may have worked in it: FileExistsError.
    """
    sources = _notebooks(notebooks)
    out = Path(out)
    if out.exists():
        raise FileExistsError(f"{out} exists and may hold somebody's work: name a new folder, or move that one away")
    copies = {path: handout(nbformat.read(path, as_version=4), solutions) for path in sources}
    out.mkdir(parents=True)
    for path, nb in copies.items():
        (out / path.name).write_text(nbformat.writes(nb).rstrip("\n") + "\n", encoding="utf-8")
    for folder in {folder for path in sources for folder in path.parent.iterdir() if folder.is_dir()}:
        if not folder.name.startswith((".", "_")):
            shutil.copytree(folder, out / folder.name, dirs_exist_ok=True)
    return [out / path.name for path in copies]


def _notebooks(paths):
    paths = [Path(path) for path in paths] or sorted(NOTEBOOKS.glob("[0-9][0-9]_*.ipynb"))
    if not paths:
        raise FileNotFoundError(f"no notebooks in {NOTEBOOKS}: the installed package has none, so name them")
    if missing := [str(path) for path in paths if not path.is_file()]:
        raise FileNotFoundError(f"there is no {', '.join(missing)}; give paths to notebooks, or none for all")
    return paths


def handout(nb: nbformat.NotebookNode, solutions: bool = False) -> nbformat.NotebookNode:
    """A copy without outputs and counts; with `solutions`, every stub is replaced by the reference.

    The first cell that checks an exercise is its stub; a later one may show off a wrong answer, and stays.
    """
    from nbconvert.preprocessors import ClearOutputPreprocessor

    nb, _ = ClearOutputPreprocessor().preprocess(nbformat.from_dict(nb), {})  # from_dict copies
    imported: set[str] = set()  # what earlier cells import need not be imported again
    done: set[str] = set()
    for cell in nb.cells:
        if not solutions or cell.cell_type != "code":
            continue
        if checked := {number for _, number in _checks(cell.source)} - done:
            cell.source = solved(cell.source, imported)
            cell.metadata["tags"] = [*cell.metadata.get("tags", []), "solution"]
            done |= checked
        elif "import" in cell.source:
            imported |= _imports(cell.source)
    return nb


def _tree(source):
    """The cell as a syntax tree; nothing for a cell of IPython's own commands."""
    try:
        return ast.parse(source)
    except SyntaxError:
        return ast.Module([], [])


def _imports(source):
    """Every import of a cell as a line of its own."""
    lines = set()
    for node in _tree(source).body:
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            start = f"from {node.module} " if isinstance(node, ast.ImportFrom) else ""
            lines |= {f"{start}import {ast.unparse(alias)}" for alias in node.names}
    return lines


def _checks(source):
    """The calls `check("3.1", …)` in a cell: (call, number)."""
    if "check(" not in source:
        return []
    calls = [node for node in ast.walk(_tree(source)) if isinstance(node, ast.Call)]
    named = [call for call in calls if isinstance(call.func, ast.Name) and call.func.id == "check" and call.args]
    return [
        (c, c.args[0].value) for c in named if isinstance(c.args[0], ast.Constant) and c.args[0].value in registry()
    ]


def solved(source: str, imported: Collection[str] = ()) -> str:
    """The source of a stub cell with the reference in place of the stub; every other line stays."""
    lines, tree = source.splitlines(), _tree(source)
    replace: list[tuple[int, int, str]] = []  # lines first … last, counted from 1, and what comes instead
    for call, number in _checks(source):
        exercise, given = registry()[number], call.args[1]
        name = given.id if isinstance(given, ast.Name) else None
        stub = next((node for node in tree.body if name in _bound(node)), None)
        if stub is None:
            raise ValueError(f'check("{number}", …) stands in a cell that does not define what it checks')
        first = min([stub.lineno, *(d.lineno for d in getattr(stub, "decorator_list", []))])
        text = solution_source(exercise.reference, name, exercise.is_prediction, imported)
        replace.append((first, stub.end_lineno, text))
    for first, last, text in sorted(replace, reverse=True):
        lines[first - 1 : last] = text.splitlines()
    return "\n".join(lines)


def _bound(node):
    """The names that a statement of a cell defines."""
    if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
        return {node.name}
    if isinstance(node, (ast.Import, ast.ImportFrom)):
        return {alias.asname or alias.name for alias in node.names}
    targets = node.targets if isinstance(node, ast.Assign) else []
    return {part.id for target in targets for part in ast.walk(target) if isinstance(part, ast.Name)}


def solution_source(reference: Callable, name: str, is_prediction: bool = False, imported: Collection[str] = ()) -> str:
    """Imports, helpers and the reference under the student's `name`; for a prediction, `name` is its value.

    Imports that `imported` holds, one line each, are left out.
    """
    imports: set[str] = set()
    helpers: dict[str, str] = {}
    _collect(reference, imports, helpers)
    own = helpers.pop(reference.__name__)
    if is_prediction:
        own += f"\n\n\n{name} = {reference.__name__}()"
    else:
        own = re.sub(rf"\b{reference.__name__}\b", name, own)
    lines = sorted(imports - set(imported), key=lambda line: (line.startswith("from"), line))
    return "\n\n\n".join(part for part in ("\n".join(lines), *helpers.values(), own) if part)


def _collect(function, imports, helpers):
    """What the source of `function` refers to: helpers of its own module by their source, the rest by import."""
    source = textwrap.dedent(inspect.getsource(function)).rstrip()
    helpers[function.__name__] = source
    used = {node.id for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Name)}
    for name in sorted(used & set(function.__globals__)):
        value = function.__globals__[name]
        if isinstance(value, types.ModuleType):
            imports.add(f"import {value.__name__}" + (f" as {name}" if value.__name__ != name else ""))
        elif not callable(value):
            helpers.setdefault(name, f"{name} = {value!r}")
        elif value.__module__ != function.__module__:
            imports.add(f"from {value.__module__} import {name}")
        elif name not in helpers:
            _collect(value, imports, helpers)
