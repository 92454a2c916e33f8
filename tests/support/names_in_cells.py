"""Which names the cells of a notebook set and read: a cell that is run again must find what it found the first time."""

import ast
import builtins
import re
from collections.abc import Iterator


def second_meanings(cells: list[tuple[str, str]]) -> Iterator[str]:
    """Names that a cell sets, a later cell reads, and a cell after both sets anew. cells: (id, source) in order.

    Run the reading cell again after the last one, and it finds what was not meant for it.
    """
    sets_and_reads = [(name, *_set_and_read(source)) for name, source in cells]
    for name in sorted(set().union(*(made for _, made, _ in sets_and_reads))):
        where = [i for i, (_, made, _) in enumerate(sets_and_reads) if name in made]
        for first, second in zip(where, where[1:]):
            readers = [cell for cell, _, read in sets_and_reads[first + 1 : second] if name in read]
            if readers:
                yield (
                    f"{name} of cell {sets_and_reads[first][0]}, read in {', '.join(readers)}, is set anew in cell "
                    + (f"{sets_and_reads[second][0]}: give it another name")
                )


def _set_and_read(source: str) -> tuple[set[str], set[str]]:
    """The global names that a cell sets, and those that it reads before it sets them, functions included."""
    code = re.sub(r"(?m)^[%!].*$", "", source)
    made: set[str] = set()
    read: set[str] = set()
    for statement in ast.parse(code).body:
        inside = {name for node in ast.walk(statement) for name in _bound_in(node)}
        nodes = [node for node in ast.walk(statement) if isinstance(node, ast.Name)]
        read |= {node.id for node in nodes if isinstance(node.ctx, ast.Load)} - inside - made
        if isinstance(statement, (ast.FunctionDef, ast.ClassDef)):
            made.add(statement.name)
        elif isinstance(statement, (ast.Import, ast.ImportFrom)):
            made |= {(alias.asname or alias.name).split(".")[0] for alias in statement.names}
        else:
            made |= {node.id for node in nodes if isinstance(node.ctx, ast.Store)} - inside
    return made, read - set(vars(builtins))


def _bound_in(node: ast.AST) -> set[str]:
    """Names of its own that a function, a lambda or a comprehension has."""
    if isinstance(node, ast.comprehension):
        return {inner.id for inner in ast.walk(node.target) if isinstance(inner, ast.Name)}
    if not isinstance(node, (ast.FunctionDef, ast.Lambda)):
        return set()
    arguments = node.args
    given = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs, arguments.vararg, arguments.kwarg]
    names = {argument.arg for argument in given if argument is not None}
    if isinstance(node, ast.FunctionDef):
        inner = (part for statement in node.body for part in ast.walk(statement))
        names |= {part.id for part in inner if isinstance(part, ast.Name) and isinstance(part.ctx, ast.Store)}
    return names
