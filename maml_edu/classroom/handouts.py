"""Handouts: copies of the notebooks for students, without outputs, with the exercises open or solved.

A solved exercise is the reference that answers are compared with, under the name that the stub has. Its source comes
with the imports and helper functions it needs, so that the cell runs, and its `check` prints "correct".
"""

import ast
import inspect
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

import nbformat
from nbconvert.preprocessors import ClearOutputPreprocessor
from nbformat import NotebookNode

from maml_edu.classroom.exercises import registry

NOTEBOOKS = Path(__file__).resolve().parents[2] / "notebooks"
DATA_FOLDERS = ("results", "images")  # what notebooks read beside them


def write_handout(out: str | Path, notebooks: Sequence[str | Path] = (), solutions: bool = False) -> list[Path]:
    """Write the notebooks (default: the whole series) to a new folder; returns the paths of the copies.

    The files in results/ and images/ beside the notebooks are copied too, and nothing else is: no hidden files, and no
    notebooks that lie in there. The folder appears complete or not at all, so a failed call can simply be repeated.
    Raises FileExistsError for a folder that exists, since somebody may have worked in it; FileNotFoundError or
    ValueError for notebooks that aren't there, aren't notebooks, or share a name, as do files that they read.
    """
    out = Path(out).expanduser()
    if out.exists() or out.is_symlink():
        raise FileExistsError(f"{out} exists and may hold somebody's work: name a new folder, or move that one away")
    copies: dict[str, NotebookNode] = {}
    data: dict[str, Path] = {}  # the path of each copy below `out`, and its source
    for source in _notebook_paths(notebooks):
        if source.name in copies:
            raise ValueError(f"two of the notebooks are called {source.name}: hand them out in separate folders")
        copies[source.name] = handout(read_notebook(source), solutions)
        for name, path in _data_files(source.parent).items():
            if data.setdefault(name, path) != path:
                raise ValueError(f"two folders have a {name}: hand their notebooks out in separate folders")
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent) as draft:
        folder = Path(draft) / out.name
        folder.mkdir()
        for name, nb in copies.items():
            (folder / name).write_text(nbformat.writes(nb).rstrip("\n") + "\n", encoding="utf-8")
        for name, path in data.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, folder / name)  # the content alone: a copy can be written where its source can't
        folder.rename(out)
    return [out / name for name in copies]


def read_notebook(path: str | Path) -> NotebookNode:
    """The notebook in a file. Raises FileNotFoundError where there is none, ValueError for any other kind of file."""
    if not Path(path).is_file():
        raise FileNotFoundError(f"there is no notebook {path}: give the path of an .ipynb file")
    content = Path(path).read_bytes()
    try:
        nb = nbformat.convert(nbformat.reader.reads(content.decode("utf-8")), 4)
        nbformat.validate(nb)
    except Exception as error:  # nbformat raises a dozen kinds for what isn't a notebook
        raise ValueError(f"{path} isn't a notebook that can be read: give the path of an .ipynb file") from error
    return nb


def _notebook_paths(paths: Sequence[str | Path]) -> list[Path]:
    if paths:
        return [Path(path).expanduser() for path in paths]
    if series := sorted(NOTEBOOKS.glob("[0-9][0-9]_*.ipynb")):
        return series
    raise FileNotFoundError(f"no notebooks in {NOTEBOOKS}: the installed package has none, so name them")


def _data_files(folder: Path) -> dict[str, Path]:
    """The files in results/ and images/ of a folder, by their path below it."""
    files = [path for name in DATA_FOLDERS for path in (folder / name).rglob("*") if path.is_file()]
    below = {path.relative_to(folder): path for path in files if path.suffix != ".ipynb"}
    return {str(name): path for name, path in below.items() if not any(part.startswith(".") for part in name.parts)}


def handout(nb: NotebookNode, solutions: bool = False) -> NotebookNode:
    """A copy without outputs and counts; with `solutions`, every stub is replaced by the reference.

    The first cell that checks an exercise is its stub; a later one may show off a wrong answer, and stays.
    """
    nb, _ = ClearOutputPreprocessor().preprocess(nbformat.from_dict(nb), {})  # from_dict copies
    imported: set[str] = set()  # what earlier cells import need not be imported again
    solved_before: set[str] = set()
    for cell in nb.cells:
        if not solutions or cell.cell_type != "code":
            continue
        if checked := {number for _, number in _checks(cell.source)} - solved_before:
            cell.source = solved(cell.source, imported)
            cell.metadata["tags"] = [*cell.metadata.get("tags", []), "solution"]
            solved_before |= checked
        elif "import" in cell.source:
            imported |= set(_imports(cell.source).values())
    return nb


def solved(source: str, imported: Collection[str] = ()) -> str:
    """The source of a stub cell with the reference in place of the stub; every other line stays.

    Raises ValueError if the cell checks a name that it doesn't define.
    """
    lines, tree = source.splitlines(), _tree(source)
    replacements: list[tuple[int, int, str]] = []  # first and last line, counted from 1, and what comes instead
    for call, number in _checks(source):
        exercise, answer = registry()[number], call.args[1]
        stub = next((node for node in tree.body if isinstance(answer, ast.Name) and answer.id in _bound(node)), None)
        if stub is None or not isinstance(answer, ast.Name):
            raise ValueError(f'check("{number}", …) stands in a cell that does not define what it checks')
        first = min([stub.lineno, *(decorator.lineno for decorator in getattr(stub, "decorator_list", []))])
        solution = solution_source(exercise.reference, answer.id, exercise.is_prediction, imported)
        replacements.append((first, stub.end_lineno or first, solution))
    for first, last, solution in sorted(replacements, reverse=True):
        lines[first - 1 : last] = solution.splitlines()
    return "\n".join(lines)


def solution_source(
    reference: Callable[..., object], name: str, is_prediction: bool = False, imported: Collection[str] = ()
) -> str:
    """Imports, helpers and the reference under the student's `name`; for a prediction, `name` is its value.

    Imports that `imported` holds, one line each, are left out.
    """
    module = inspect.getsource(sys.modules[reference.__module__])
    imports: set[str] = set()
    definitions: dict[str, str] = {}
    _collect(reference.__name__, module, imports, definitions)
    own = definitions.pop(reference.__name__)
    if is_prediction:
        own += f"\n\n\n{name} = {reference.__name__}()"
    else:
        own = re.sub(rf"\b{reference.__name__}\b", name, own)
    return "\n\n\n".join(part for part in (_import_block(imports - set(imported)), *definitions.values(), own) if part)


def _import_block(imports: Collection[str]) -> str:
    """One line for `import …` and for each module behind `from`."""
    names: dict[str, list[str]] = {}
    for line in sorted(imports, key=lambda line: (line.startswith("from"), line)):
        start, _, name = line.rpartition("import ")
        names.setdefault(start if start else line, []).append(name)
    return "\n".join(
        f"{start}import {', '.join(group)}" if start.startswith("from") else start for start, group in names.items()
    )


def _collect(name: str, module: str, imports: set[str], definitions: dict[str, str]) -> None:
    """Add what `name` needs in the source of a module: imports, then definitions, each after those that it uses."""
    if name in (imported := _imports(module)):
        imports.add(imported[name])
        return
    statements = {bound: node for node in _tree(module).body for bound in _bound(node)}
    node = statements[name]
    used = {part.id for part in ast.walk(node) if isinstance(part, ast.Name)} & set(statements)
    for other in sorted(used - {name} - set(definitions)):
        _collect(other, module, imports, definitions)
    definitions[name] = "\n".join(module.splitlines()[node.lineno - 1 : node.end_lineno])


def _tree(source: str) -> ast.Module:
    """The cell as a syntax tree; nothing for a cell of IPython's own commands."""
    try:
        return ast.parse(source)
    except SyntaxError:
        return ast.Module([], [])


def _imports(source: str) -> dict[str, str]:
    """The names that a source imports, each with an import of its own."""
    lines: dict[str, str] = {}
    for node in _tree(source).body:
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            start = f"from {node.module} " if isinstance(node, ast.ImportFrom) else ""
            lines |= {alias.asname or alias.name: f"{start}import {ast.unparse(alias)}" for alias in node.names}
    return lines


def _checks(source: str) -> list[tuple[ast.Call, str]]:
    """The calls `check("3.1", …)` in a cell, each with its number."""
    if "check(" not in source:
        return []
    calls = [node for node in ast.walk(_tree(source)) if isinstance(node, ast.Call)]
    named = [call for call in calls if isinstance(call.func, ast.Name) and call.func.id == "check" and call.args]
    return [
        (c, c.args[0].value) for c in named if isinstance(c.args[0], ast.Constant) and c.args[0].value in registry()
    ]


def _bound(node: ast.stmt) -> set[str]:
    """The names that a statement of a cell defines."""
    if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
        return {node.name}
    if isinstance(node, (ast.Import, ast.ImportFrom)):
        return {alias.asname or alias.name for alias in node.names}
    targets = node.targets if isinstance(node, ast.Assign) else []
    return {part.id for target in targets for part in ast.walk(target) if isinstance(part, ast.Name)}
