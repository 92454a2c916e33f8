"""What every stored notebook must look like. That it runs and prints what is stored is nbval's part."""

import functools
import importlib
import re
import urllib.parse
from typing import NamedTuple

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_output
from support.names_in_cells import second_meanings

from tools import refresh_notebooks as refresh

MAX_CODE_LINES = 25
MAX_WIDTH = 92
CODE_CELLS_PER_TAG = 7  # at most one code cell in so many may hide its output from the comparison
IGNORE_TAG = "nbval-ignore-output"
PATHS = sorted(refresh.NOTEBOOKS.glob("*.ipynb"))


class Notebook(NamedTuple):
    text: str
    nb: nbformat.NotebookNode

    @property
    def code(self):
        return [cell for cell in self.nb.cells if cell.cell_type == "code"]

    @property
    def markdown(self):
        return [cell for cell in self.nb.cells if cell.cell_type == "markdown"]

    @property
    def outputs(self):
        return [(cell, output) for cell in self.code for output in cell.outputs]


@functools.cache
def load(path):
    return Notebook(path.read_text(encoding="utf-8"), refresh.read(path))


# Each check returns a list of complaints.


def canonical_form(notebook):
    """Canonical, within the size limits, without stored errors and stderr."""
    same = refresh.written(refresh.canonical(notebook.nb)) == notebook.text
    wrong = [] if same else ["not in canonical form: run python tools/refresh_notebooks.py --no-run"]
    return wrong + refresh.complaints(notebook.nb)


def execution_counts(notebook):
    counts = [cell.execution_count for cell in notebook.code]
    return [] if counts == list(range(1, len(counts) + 1)) else [f"execution counts are {counts}, expected 1..n"]


def claims_hold(notebook):
    """No ✗ is stored."""
    wrong = []
    for cell, output in notebook.outputs:
        shown = [
            output.get("text", ""),
            *(v for k, v in output.get("data", {}).items() if k.startswith("text/")),
        ]
        wrong += [f"cell {cell.id}: {line}" for text in shown for line in text.splitlines() if "✗" in line]
    return wrong


def alternative_texts(notebook):
    """Every picture, drawn or linked, has a text for those who do not see it."""
    wrong = []
    for cell, output in notebook.outputs:
        for kind in output.get("data", {}):
            if kind.startswith("image/") and not output.metadata.get(kind, {}).get("alt", "").strip():
                wrong.append(f"cell {cell.id}: {kind} without alt text: end the cell with show(fig, alt)")
    for cell in notebook.markdown:
        wrong += [
            f"cell {cell.id}: ![]({target}) without alt text"
            for target in re.findall(r"!\[\s*\]\((.*?)\)", prose(cell))
        ]
        for tag in re.findall(r"<img\b[^>]*>", prose(cell)):
            if not re.search(r"""\balt=["'][^"']+["']""", tag):
                wrong.append(f"cell {cell.id}: {tag} without alt text")
    return wrong


def cell_lengths(notebook):
    wrong = []
    for cell in notebook.code:
        lines = [line for line in cell.source.splitlines() if line.strip() and not line.strip().startswith("#")]
        if len(lines) > MAX_CODE_LINES:
            wrong.append(f"cell {cell.id}: {len(lines)} lines of code, limit {MAX_CODE_LINES}")
    return wrong


def line_lengths(notebook):
    """On the core path no line of code runs past the box it is shown in."""
    title = notebook.markdown[0].source if notebook.markdown else ""
    if not re.match(r"# 0[0-8] · ", title):
        return []
    lines = [(cell.id, line) for cell in notebook.code for line in cell.source.splitlines()]
    return [
        f"cell {i}: {len(line)} characters, limit {MAX_WIDTH}: {line}" for i, line in lines if len(line) > MAX_WIDTH
    ]


ONE_WORD_FOR_ONE_THING = {
    r"θ'|θ′|\\theta'": "θ_j or φ",
    r"(?<!learning )\brates?\b": "step size",
    r"\bmend(s|ed|ing)?\b": "fix",
    r"\bjudges?\b": "metric",
    r"\bway back\b": "backward pass",
}


def notation(notebook):
    """On the core path each thing has one symbol and one word, those of 00's table and glossary."""
    title = notebook.markdown[0].source if notebook.markdown else ""
    if not re.match(r"# 0[0-8] · ", title):
        return []
    cells = [(cell.id, cell.source) for cell in notebook.nb.cells]
    return [
        f"cell {i}: {hit[0]!r}, say {word!r}"
        for i, source in cells
        for pattern, word in ONE_WORD_FOR_ONE_THING.items()
        for hit in re.finditer(pattern, source, re.IGNORECASE)
    ]


def names_keep_their_meaning(notebook):
    """Whoever runs a cell again, and those below it, finds what the cell found the first time."""
    return list(second_meanings([(cell.id, cell.source) for cell in notebook.code]))


def headings(notebook):
    """One title, and no level skipped on the way down."""
    levels_and_texts = headings_of(notebook)
    titles = [text for level, text in levels_and_texts if level == 1]
    wrong = [] if len(titles) == 1 else [f"{len(titles)} headings of level 1, expected one: {titles}"]
    previous = 0
    for level, text in levels_and_texts:
        if level > previous + 1:
            wrong.append(f"heading {text!r} has level {level} after level {previous}")
        previous = level
    return wrong


def ignored_outputs(notebook):
    """Few outputs go uncompared, and what they show is then claimed."""
    code = notebook.code
    tagged = [i for i, cell in enumerate(code) if is_ignored(cell)]
    wrong = []
    if len(tagged) * CODE_CELLS_PER_TAG > len(code):
        wrong.append(f"{len(tagged)} of {len(code)} code cells hide their output, limit one in {CODE_CELLS_PER_TAG}")
    for i in tagged:
        if not any(re.search(r"\bclaim\(", cell.source) for cell in code[i : i + 2]):
            wrong.append(f"cell {code[i].id}: hides its output, and neither it nor the next code cell has a claim(…)")
    for cell in code:
        if "nbval-skip" in cell.metadata.get("tags", []) or "NBVAL_SKIP" in cell.source:
            wrong.append(f"cell {cell.id}: is skipped by the tests")
    return wrong


def links(notebook):
    """Links to files and to headings lead somewhere. Addresses on the web are not visited."""
    wrong = []
    for cell in notebook.markdown:
        targets = re.findall(r"\]\(\s*<?([^)\s>]+)>?(?:\s+\"[^\"]*\")?\s*\)", prose(cell))
        targets += re.findall(r"""\b(?:href|src)=["']([^"']+)["']""", prose(cell))
        for link in targets:
            if re.match(r"[a-z][a-z0-9+.-]*:", link):
                continue
            name, _, anchor = urllib.parse.unquote(link).partition("#")
            target = (refresh.NOTEBOOKS / name).resolve()
            if name and not target.exists():
                wrong.append(f"cell {cell.id}: {link} leads to a file that is not there")
            elif anchor and (not name or target.suffix == ".ipynb"):
                known = headings_of(load(target) if name else notebook)
                if slug(anchor) not in {slug(text) for _, text in known}:
                    wrong.append(f"cell {cell.id}: {link} leads to a heading that is not there")
    return wrong


def package_names(notebook):
    """`maml_edu.module.name` in the text is a name that can be imported."""
    wrong = []
    for cell in notebook.markdown:
        for span in re.findall(r"`([^`\n]+)`", cell.source):
            for name in re.findall(r"(?<![\w/.])maml_edu(?:\.\w+)+", span):
                if not resolves(name):
                    wrong.append(f"cell {cell.id}: {name} does not exist")
    return wrong


def latex(notebook):
    """What some viewers number, or show in red."""
    pattern = r"\\begin\{(?:align|equation|gather)\}|\\(?:eq)?ref\b|\\label\b"
    return [
        f"cell {c.id}: {hit} (use align*, no references)"
        for c in notebook.markdown
        for hit in re.findall(pattern, c.source)
    ]


CHECKS = (
    canonical_form,
    execution_counts,
    claims_hold,
    alternative_texts,
    cell_lengths,
    line_lengths,
    notation,
    names_keep_their_meaning,
    headings,
    ignored_outputs,
    links,
    package_names,
    latex,
)


def prose(cell):
    """Markdown without code: neither fenced blocks nor spans."""
    fenced_out = re.sub(r"(?ms)^ {0,3}(```+|~~~+).*?^ {0,3}\1[ \t]*$", "", cell.source)
    return re.sub(r"`[^`\n]+`", "", fenced_out)


def headings_of(notebook):
    """(level, text) of every heading, in order. Code spans inside a heading are part of it."""
    levels_and_texts = []
    for cell in notebook.markdown:
        source = re.sub(r"(?ms)^ {0,3}(```+|~~~+).*?^ {0,3}\1[ \t]*$", "", cell.source)
        levels_and_texts += [
            (len(marks), text.strip()) for marks, text in re.findall(r"(?m)^ {0,3}(#{1,6})[ \t]+(.+?)[ \t#]*$", source)
        ]
    return levels_and_texts


def slug(heading):
    """A heading as it appears in an anchor, whoever made the anchor: letters and digits only."""
    return re.sub(r"[\W_]+", "", heading).casefold()


def is_ignored(cell):
    return IGNORE_TAG in cell.metadata.get("tags", []) or "NBVAL_IGNORE_OUTPUT" in cell.source


@functools.cache
def resolves(name):
    parts = name.split(".")
    for cut in range(len(parts), 0, -1):
        try:
            imported = importlib.import_module(".".join(parts[:cut]))
        except ModuleNotFoundError:
            continue
        try:
            functools.reduce(getattr, parts[cut:], imported)
        except AttributeError:
            return False
        return True
    return False


NO_NOTEBOOKS = pytest.param(None, marks=pytest.mark.skip(reason="there are no notebooks yet"), id="none")


@pytest.mark.parametrize("path", [pytest.param(p, id=p.stem) for p in PATHS] or [NO_NOTEBOOKS])
@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_notebook(check, path):
    wrong = check(load(path))
    assert not wrong, "\n" + "\n".join(wrong)


# The checks themselves: a notebook that passes all of them, and for each the faults that it must find.


def notebook_of(*cells):
    nb = refresh.canonical(nbformat.v4.new_notebook(cells=[new_markdown_cell("# Title"), *cells]))
    return Notebook(refresh.written(nb), nb)


def markdown(source):
    return notebook_of(new_markdown_cell(source))


def core_path_notebook(code):
    return nbformat.v4.new_notebook(cells=[new_markdown_cell("# 01 · Title"), new_code_cell(code)])


def stored(output, **cell):
    return notebook_of(new_code_cell("x", execution_count=1, outputs=[output], **cell))


def printed(text, name="stdout"):
    return new_output("stream", name=name, text=text)


PICTURE = new_output("display_data", data={"image/png": "iVBORw0KGgo=", "text/plain": "[Figure: a line]"})
TAGGED = {"metadata": {"tags": [IGNORE_TAG]}}


def good_notebook():
    picture = nbformat.from_dict(PICTURE)
    picture.metadata = {"image/png": {"alt": "a line"}}
    plain = [new_code_cell(f"x = {i}", execution_count=1) for i in range(6)]
    return notebook_of(
        new_markdown_cell("## Part\n\n`maml_edu.claim`, [back](#Part), $\\begin{align*} a \\end{align*}$"),
        new_markdown_cell("### Deeper\n\n```\n# no heading\n[no](link)\n```\n## Next"),
        new_code_cell("show(fig, alt)", execution_count=1, outputs=[picture]),
        new_code_cell("time_it()", execution_count=1, outputs=[printed("3 s")], **TAGGED),
        new_code_cell('claim("fast", t < 9)', execution_count=1, outputs=[printed("✓ fast\n")]),
        *plain,
    )


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_a_good_notebook_passes(check):
    assert check(good_notebook()) == []


@pytest.mark.parametrize(
    "check, notebook",
    [
        (canonical_form, Notebook(good_notebook().text + "\n", good_notebook().nb)),
        (canonical_form, stored(printed("Warning", name="stderr"))),
        (canonical_form, stored(new_output("error", ename="ValueError", evalue="no", traceback=[]))),
        (canonical_form, stored(printed("x" * 300_000))),
        (execution_counts, notebook_of(new_code_cell("never run"))),
        (claims_hold, stored(printed("✗ it is so (with these settings)\n"))),
        (alternative_texts, stored(PICTURE)),
        (alternative_texts, markdown("![](figure.png)")),
        (alternative_texts, markdown('<img src="figure.png">')),
        (cell_lengths, notebook_of(new_code_cell("x = 1\n" * (MAX_CODE_LINES + 1)))),
        (line_lengths, Notebook("", core_path_notebook("x = 1" + " " * MAX_WIDTH + "# far out"))),
        (notation, Notebook("", core_path_notebook("inner_rates = 1  # the rates of θ'"))),
        (names_keep_their_meaning, notebook_of(*map(new_code_cell, ("v = 1", "print(v)", "v = 2")))),
        (names_keep_their_meaning, notebook_of(*map(new_code_cell, ("import f", "def g():\n    f(1)", "f = 2")))),
        (headings, markdown("# A second title")),
        (headings, markdown("### Straight to level 3")),
        (ignored_outputs, notebook_of(new_code_cell("claim(…)", **TAGGED))),
        (ignored_outputs, notebook_of(new_code_cell("x", **TAGGED), *[new_code_cell("x") for _ in range(9)])),
        (ignored_outputs, notebook_of(new_code_cell("# NBVAL_SKIP\nx"))),
        (links, markdown("[next](99_not_there.ipynb)")),
        (links, markdown("[here](#Not-a-heading)")),
        (package_names, markdown("`maml_edu.classroom.checks.clam`")),
        (package_names, markdown("see `maml_edu.no_module.f(x)`")),
        (latex, markdown("$$\\begin{align} a \\end{align}$$")),
        (latex, markdown("see \\ref{a}")),
    ],
)
def test_checks_find_faults(check, notebook):
    assert check(notebook)


def test_canonical_form_is_reached():
    """Bars, split streams, widget views, timings, doubled ids go; tags stay; twice is the same as once."""
    view = new_output("display_data", data={refresh.WIDGET_VIEW: {"model_id": "1"}, "image/png": "", "text/plain": "s"})
    bar = [printed("  0%|\r 50%|"), printed("\r100%|\n")]
    cells = [
        new_code_cell(
            "a", id="same", execution_count=7, outputs=[*bar, view], metadata={"tags": ["t"], "execution": {}}
        ),
        new_code_cell("b", id="same", execution_count=9),
        new_code_cell("c", id="new"),
    ]
    nb = nbformat.v4.new_notebook(metadata={"widgets": {"state": {}}})
    nb.cells = cells  # not through new_notebook, which would give the doubled id a random name
    nb = refresh.canonical(nb)
    assert [cell.execution_count for cell in nb.cells] == [1, 2, None]
    assert [cell.id for cell in nb.cells] == ["same", "same-2", "new"]
    assert nb.cells[0].metadata == {"tags": ["t"]}
    assert [output.get("text") for output in nb.cells[0].outputs] == ["100%|\n", None]
    assert set(nb.cells[0].outputs[1].data) == {"image/png", "text/plain"}
    assert "widgets" not in nb.metadata
    assert refresh.canonical(nb) == nb
