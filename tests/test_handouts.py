"""Handouts: nothing is given away, or every exercise is solved and its check says so. Slides: they need no network."""

import ast
import re
import stat
import sys
from html.parser import HTMLParser
from pathlib import Path

import nbformat
import pytest

from maml_edu.__main__ import main
from maml_edu.classroom.checks import check
from maml_edu.classroom.exercises import registry
from maml_edu.classroom.handouts import handout, solution_source, solved
from maml_edu.classroom.slides import _markdown, slides, write_slides

NOTEBOOKS = Path(__file__).resolve().parent.parent / "notebooks"
PATHS = sorted(NOTEBOOKS.glob("[0-9][0-9]_*.ipynb"))
each_notebook = pytest.mark.parametrize("path", PATHS, ids=[path.stem[:2] for path in PATHS])


def read(path):
    return nbformat.read(path, as_version=4)


def code_cells(nb):
    return [cell for cell in nb.cells if cell.cell_type == "code"]


# ---- Handouts


@pytest.mark.parametrize("number", registry())
def test_every_solution_runs_by_itself_and_is_correct(number, capsys):
    exercise = registry()[number]
    source = solution_source(exercise.reference, "mine", exercise.is_prediction)
    names = {}
    exec(compile(source, f"<solution {number}>", "exec"), names)
    check(number, names["mine"])
    assert capsys.readouterr().out.startswith(f"Exercise {number}: correct.")


@each_notebook
def test_every_exercise_is_open_in_one_handout_and_solved_in_the_other(path, capsys):
    stored = read(path)
    headed = set(re.findall(r"(?m)^### Exercise (\S+)", "\n".join(c.source for c in stored.cells)))
    open_one, solved_one = handout(stored), handout(stored, solutions=True)
    assert [c.source for c in open_one.cells] == [c.source for c in stored.cells]
    for nb in (open_one, solved_one):
        nbformat.validate(nb)
        assert not any(cell.outputs or cell.execution_count for cell in code_cells(nb))
        assert [c.id for c in nb.cells] == [c.id for c in stored.cells]
    replaced = [c for c in code_cells(solved_one) if "solution" in c.metadata.get("tags", [])]
    statements = [node for c in code_cells(stored) for node in ast.parse(c.source).body]
    imports = [ast.unparse(node) for node in statements if isinstance(node, (ast.Import, ast.ImportFrom))]
    for cell in replaced:
        names = {"check": check}
        exec(compile("\n".join(imports), "<imports>", "exec"), names)
        exec(compile(cell.source, f"<{path.stem}>", "exec"), names)
    out = capsys.readouterr().out
    assert set(re.findall(r"(?m)^Exercise (\S+): correct\.", out)) == headed and "not yet" not in out


@each_notebook
def test_solutions_take_no_name_that_the_notebook_uses(path):
    """Imports may agree; a helper or a reference must not replace something of the notebook's."""
    cells = code_cells(handout(read(path), solutions=True))
    bound, answers = {}, {}
    for cell in cells:
        mine = answers if "solution" in cell.metadata.get("tags", []) else bound
        stub = {call.args[1].id for call in ast.walk(ast.parse(cell.source)) if _is_check(call)}
        for node in ast.parse(cell.source).body:
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
                mine.setdefault(node.name, node)
            elif isinstance(node, (ast.Import, ast.ImportFrom)):
                for alias in node.names:
                    mine.setdefault(alias.asname or alias.name, ast.unparse(alias))
            elif isinstance(node, ast.Assign):
                for part in ast.walk(node):
                    if isinstance(part, ast.Name) and isinstance(part.ctx, ast.Store):
                        mine.setdefault(part.id, node)
        if mine is answers:
            for name in stub:
                answers.pop(name, None)
    clash = {name for name in set(bound) & set(answers) if bound[name] != answers[name]}
    assert not clash


def _is_check(node):
    call = isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "check"
    return call and len(node.args) == 2 and isinstance(node.args[1], ast.Name)


def test_only_the_stub_is_replaced():
    source = 'STEPS = 3  # stays\n\n\ndef mine(loss, params, x, y, v):\n    return None\n\n\ncheck("3.1", mine)'
    new = solved(source, {"import torch"})
    assert new.startswith("STEPS = 3  # stays\n\n\ndef mine(") and new.endswith('\n\n\ncheck("3.1", mine)')
    assert "return None" not in new and "create_graph=True" in new and "import torch" not in new
    assert solved('x = 1\ncheck("99.9", x)') == 'x = 1\ncheck("99.9", x)'  # no such exercise
    with pytest.raises(ValueError, match="does not define"):
        solved('check("3.1", elsewhere)')


def test_a_wrong_answer_on_purpose_stays():
    cells = ['x = None\ncheck("2.1", x)', 'y = 0.1\ncheck("2.1", y)', "%time print(1)"]
    nb = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in cells])
    assert [c.source for c in handout(nb, solutions=True).cells][1:] == cells[1:]


def test_the_command_writes_a_folder_once(tmp_path, capsys):
    out = tmp_path / "week 1" / "course"
    chosen = [str(path) for path in PATHS[:2]]
    assert main(["handout", str(out), *chosen]) == 0
    assert sorted(p.name for p in out.glob("*.ipynb")) == [path.name for path in PATHS[:2]]
    for folder in ("results", "images"):
        assert {p.name for p in (out / folder).iterdir()} == {p.name for p in (NOTEBOOKS / folder).iterdir()}
    assert not list(out.rglob("*.md"))
    assert main(["handout", str(out), *chosen]) == 2  # somebody may have worked in it
    assert "exists and may hold somebody's work" in capsys.readouterr().err
    assert main(["handout", str(tmp_path / "other"), "nowhere.ipynb"]) == 2
    assert not (tmp_path / "other").exists()


def test_a_handout_can_be_written_from_a_read_only_course(tmp_path):
    course, out = tmp_path / "course", tmp_path / "out"
    assert main(["handout", str(course), str(PATHS[0])]) == 0
    for path in course.rglob("*"):
        path.chmod(path.stat().st_mode & ~0o222)
    assert main(["handout", str(out), str(course / PATHS[0].name)]) == 0
    assert (out / PATHS[0].name).stat().st_mode & stat.S_IWUSR
    for path in [*course.rglob("*"), *out.rglob("*")]:
        path.chmod(path.stat().st_mode | 0o200)


# ---- Slides


class Loads(HTMLParser):
    """What a browser would fetch by itself, and how many formulas it would draw."""

    def __init__(self):
        super().__init__()
        self.fetched, self.formulas = [], 0

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.formulas += tag == "math"
        names = ("src", "srcset", "poster", "data") + (("href",) if tag in ("link", "image", "use") else ())
        self.fetched += [attrs[name] for name in names if name in attrs]


@each_notebook
def test_slides_need_no_network_and_no_file_beside_them(path, tmp_path):
    stored, out = read(path), tmp_path / "slides.html"
    if not any(cell.get("outputs") for cell in stored.cells):
        pytest.skip("not run yet")
    number = write_slides(path, out)
    text = out.read_text(encoding="utf-8")
    page = Loads()
    page.feed(text)
    assert all(url.startswith("data:image/png;base64,") for url in page.fetched)
    pictures = [o for c in code_cells(stored) for o in c.outputs if "image/png" in o.get("data", {})]
    assert len(page.fetched) == len(pictures)
    assert not re.search(r"@import|url\(|import\(|fetch\(|XMLHttpRequest", text)
    assert text.count("<section ") == number == text.count("</section>")
    assert page.formulas > 0 and "merror" not in text
    prose = re.sub(r'(?s)<code.*?</code>|<pre.*?</pre>|<style.*?</style>|<script.*?</script>|alt="[^"]*"', "", text)
    assert "$" not in prose and "\\" not in prose  # no formula was left as TeX
    assert [p.name for p in tmp_path.iterdir()] == ["slides.html"]


@each_notebook
def test_every_section_prediction_and_exercise_has_a_slide(path):
    stored = read(path)
    shown = slides(stored)
    headings, text = {slide.heading for slide in shown}, "\n".join(c.source for c in stored.cells if "#" in c.source)
    assert set(re.findall(r"(?m)^### (Exercise .*)$", text)) <= headings
    source = "\n".join(c.source for c in stored.cells if c.cell_type == "markdown")
    assert sum(slide.kind == "question" for slide in shown) == source.count("**Predict.**")
    sections = set(re.findall(r"(?m)^## (\d+ · .*)$", source))
    assert len(sections - headings) <= 1  # a section of prose alone has nothing to show
    assert shown[0].kind == "title" and shown[0].heading.startswith(path.name[:2])


def test_prose_is_in_the_notes_and_claims_are_below_their_figure():
    md, code = nbformat.v4.new_markdown_cell, nbformat.v4.new_code_cell
    figure = nbformat.v4.new_output("display_data", {"image/png": "QUJD"}, metadata={"image/png": {"alt": 'a "b"'}})
    printed = nbformat.v4.new_output(
        "stream", text="training 100%|███|\nα  0.1\n✓ it holds\nExercise 1.1: not done yet.\n"
    )
    cells = [
        md("# 01 · Title\n\nWhat it is about."),
        md("## 1 · First\n*minutes so far: 0*\n\nLong prose.\n\nThe step is\n\n$$\\theta - \\alpha g$$\n\nMore prose."),
        md("**Predict.** Up or down?"),
        code("draw()", outputs=[figure, printed]),
        md("Down. [02](02.ipynb) says [why](https://example.org).\n\nTwo points:\n- one\n- two"),
    ]
    title, step, question, picture, numbers, points = slides(nbformat.v4.new_notebook(cells=cells))
    assert title.heading == "01 · Title" and "What it is about." in title.body[0]
    assert step.heading == question.heading == "1 · First" and "<math" in "".join(step.body)
    assert "The step is" in "".join(step.body) and "prose" not in "".join(step.body)
    assert "Long prose" in "".join(step.notes) and "More prose" in "".join(step.notes)
    assert question.kind == "question" and "Up or down?" in question.body[0]
    assert "a &quot;b&quot;" in picture.body[0] and picture.kind == "figure"
    assert "α  0.1" in numbers.body[0] and "it holds" in numbers.body[1]
    assert "100%" not in str(numbers) and "not done" not in str(numbers)
    assert "Down. 02 says" in numbers.notes[0] and 'href="https://example.org"' in numbers.notes[0]
    assert "Two points:" in points.body[0] and "<li>one</li>" in points.body[1]


def test_a_formula_that_cannot_be_drawn_is_refused():
    for tex, drawn in ((r"\begin{aligned}a &= b \\ c &= d\end{aligned}", True), (r"\nosuchcommand x", False)):
        cells = [nbformat.v4.new_markdown_cell(f"# T\n\n$${tex}$$")]
        if drawn:
            assert "<mtable" in "".join(slides(nbformat.v4.new_notebook(cells=cells))[0].body)
        else:
            with pytest.raises(ValueError, match="nosuchcommand"):
                slides(nbformat.v4.new_notebook(cells=cells))


def test_a_long_table_goes_on_on_the_next_slide():
    table = "| term | meaning |\n|---|---|\n" + "\n".join(f"| word {i} | ... |" for i in range(25))
    made = slides(nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell(f"# T\n\n## 1 · Words\n\n{table}")]))
    assert [slide.heading for slide in made[1:]] == ["1 · Words"] * 3
    assert all("<th>term</th>" in "".join(slide.body) for slide in made[1:]) and "word 24" in made[-1].body[0]


def test_slides_of_a_notebook_without_outputs_are_refused(tmp_path, capsys):
    course = tmp_path / "course"
    assert main(["handout", str(course), str(PATHS[0])]) == 0
    assert main(["slides", str(course / PATHS[0].name), str(tmp_path / "slides.html")]) == 2
    assert "run it first" in capsys.readouterr().err


def test_a_missing_package_is_named(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "latex2mathml", None)
    for name in [name for name in sys.modules if name.startswith("latex2mathml.")]:
        monkeypatch.delitem(sys.modules, name)
    _markdown.cache_clear()
    assert main(["slides", str(PATHS[-1]), str(tmp_path / "slides.html")]) == 2
    assert "pip install latex2mathml" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
