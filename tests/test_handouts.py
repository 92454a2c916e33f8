"""Handouts: nothing is given away, or every exercise is solved and its check says so; nothing else is copied."""

import ast
import re
import stat
from pathlib import Path

import nbformat
import pytest
from support.run_notebook import report, run_apart

from maml_edu.classroom.checks import check
from maml_edu.classroom.exercises import registry
from maml_edu.classroom.handouts import handout, read_notebook, solution_source, solved, write_handout

NOTEBOOKS = Path(__file__).resolve().parent.parent / "notebooks"
PATHS = sorted(NOTEBOOKS.glob("[0-9][0-9]_*.ipynb"))
each_notebook = pytest.mark.parametrize("path", PATHS, ids=[path.stem[:2] for path in PATHS])


def read(path):
    return nbformat.read(path, as_version=4)


def code_cells(nb):
    return [cell for cell in nb.cells if cell.cell_type == "code"]


# ---------------------------------------------------------------- solutions


@pytest.mark.parametrize("number", registry())
def test_every_solution_runs_by_itself(number):
    """With its own imports and helpers alone. That it is correct, the notebooks below show."""
    exercise = registry()[number]
    source = solution_source(exercise.reference, "mine", exercise.is_prediction)
    names = {}
    exec(compile(source, f"<solution {number}>", "exec"), names)
    assert names["mine"] is not None if exercise.is_prediction else names["mine"](*exercise.cases()[0]) is not None


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


@pytest.mark.slow
@pytest.mark.parametrize("path", PATHS[1:9], ids=[path.stem[:2] for path in PATHS[1:9]])
def test_a_solved_notebook_runs_on_what_its_reader_wrote(path, tmp_path):
    write_handout(tmp_path / "course", [path], solutions=True)
    result = run_apart(tmp_path / "course" / path.name, {})
    assert result.returncode == 0, report(result)
    expected = sum(len(re.findall(r"yours\(\"", cell.source)) for cell in code_cells(read(path)))
    assert result.stdout.count("From here on, your ") == expected and "runs our" not in result.stdout


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
    new = solved(source, {"import torch", "from maml_edu.tasks import Params"})
    start = "STEPS = 3  # stays\n\n\nfrom maml_edu.tasks import Loss\nfrom torch import Tensor\n\n\ndef mine("
    assert new.startswith(start) and new.endswith('\n\n\ncheck("3.1", mine)')
    assert "return None" not in new and "create_graph=True" in new
    assert solved('x = 1\ncheck("99.9", x)') == 'x = 1\ncheck("99.9", x)'  # no such exercise
    with pytest.raises(ValueError, match="does not define"):
        solved('check("3.1", elsewhere)')


def test_a_wrong_answer_on_purpose_stays():
    cells = ['x = None\ncheck("2.1", x)', 'y = 0.1\ncheck("2.1", y)', "%time print(1)"]
    nb = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in cells])
    assert [c.source for c in handout(nb, solutions=True).cells][1:] == cells[1:]


# ---------------------------------------------------------------- the folder


def write_notebook(path, source="1 + 1", output="2"):
    path.parent.mkdir(parents=True, exist_ok=True)
    printed = nbformat.v4.new_output("stream", text=output)
    cell = nbformat.v4.new_code_cell(source, outputs=[printed])
    nbformat.write(nbformat.v4.new_notebook(cells=[cell]), path)
    return path


def files_below(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


@pytest.fixture
def home(tmp_path):
    """A folder with a lesson, what it reads, and much that is nobody's business."""
    write_notebook(tmp_path / "lesson.ipynb")
    write_notebook(tmp_path / "other.ipynb")
    for name in (
        "results/a.json",
        "results/seeds/b.json",
        "images/c.png",
        "Documents/grades.csv",
        "notes.txt",
        ".ssh/id",
        "results/.hidden",
        "images/.ipynb_checkpoints/c.png",
    ):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    return tmp_path


HANDED_OUT = ["images/c.png", "lesson.ipynb", "results/a.json", "results/seeds/b.json"]


def test_only_the_named_notebooks_and_what_they_read_are_copied(home, tmp_path_factory):
    out = tmp_path_factory.mktemp("elsewhere") / "week 1" / "course"
    assert write_handout(out, [home / "lesson.ipynb"]) == [out / "lesson.ipynb"]
    assert files_below(out) == HANDED_OUT
    assert not code_cells(read(out / "lesson.ipynb"))[0].outputs
    assert (out / "results" / "seeds" / "b.json").read_text() == "results/seeds/b.json"
    assert [path.name for path in out.parent.iterdir()] == ["course"]


def test_the_series_is_the_default_and_comes_with_its_results(tmp_path):
    written = write_handout(tmp_path / "course")
    assert [path.name for path in written] == [path.name for path in PATHS]
    for folder in ("results", "images"):
        assert files_below(tmp_path / "course" / folder) == files_below(NOTEBOOKS / folder)
    assert not (tmp_path / "course" / "teaching_guide.md").exists()


@pytest.mark.parametrize("beside", ["solved", "results/solved", "images/solved"])
def test_an_earlier_handout_is_not_handed_out(beside, home, monkeypatch):
    """Its notebooks hold the solutions."""
    monkeypatch.chdir(home)
    write_handout(beside, ["lesson.ipynb"], solutions=True)
    write_handout("course", ["lesson.ipynb"])
    assert [name for name in files_below(home / "course") if name.endswith(".ipynb")] == ["lesson.ipynb"]


@pytest.mark.parametrize("out", ["course/day1", "results/course", "images/a/b"])
def test_a_handout_does_not_copy_itself(out, home, monkeypatch):
    monkeypatch.chdir(home)
    write_handout(out, ["lesson.ipynb"])
    assert files_below(home / out) == HANDED_OUT


@pytest.mark.parametrize("there", ["folder", "file", "link to nothing"])
def test_what_exists_is_left_alone(there, home):
    out = home / "course"
    if there == "folder":
        write_notebook(out / "work.ipynb")
    elif there == "file":
        out.write_text("mine")
    else:
        out.symlink_to(home / "nowhere")
    before = files_below(home)
    with pytest.raises(FileExistsError, match="course exists and may hold somebody's work: name a new folder"):
        write_handout(out, [home / "lesson.ipynb"])
    assert files_below(home) == before


def test_a_handout_that_fails_leaves_nothing_and_can_be_repeated(home, monkeypatch):
    def full(source, target):
        raise OSError(28, "No space left on device", str(target))

    out = home / "course"
    with monkeypatch.context() as disk:
        disk.setattr("shutil.copyfile", full)
        with pytest.raises(OSError, match="No space"):
            write_handout(out, [home / "lesson.ipynb"])
    before = sorted(path.name for path in home.iterdir())
    assert before == [".ssh", "Documents", "images", "lesson.ipynb", "notes.txt", "other.ipynb", "results"]
    write_handout(out, [home / "lesson.ipynb"])
    assert files_below(out) == HANDED_OUT


@pytest.mark.parametrize(
    "content, error, message",
    [
        (None, FileNotFoundError, "there is no notebook .*bad.ipynb: give the path"),
        ("name,grade", ValueError, "bad.ipynb isn't a notebook that can be read"),
        ("{}", ValueError, "bad.ipynb isn't a notebook that can be read"),
        ("[1, 2]", ValueError, "bad.ipynb isn't a notebook that can be read"),
        (
            '{"nbformat": 4, "nbformat_minor": 5, "metadata": {}, "cells": [{}]}',
            ValueError,
            "isn't a notebook that can",
        ),
        (b"\xff\xfe", ValueError, "bad.ipynb isn't a notebook that can be read"),
    ],
)
def test_bad_notebooks_are_named_before_anything_is_written(content, error, message, home):
    bad = home / "bad.ipynb"
    if content is not None:
        bad.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(error, match=message):
        write_handout(home / "course", [home / "lesson.ipynb", bad])
    assert not (home / "course").exists()


def test_two_files_of_one_name_are_refused(home):
    twin = write_notebook(home / "week 2" / "lesson.ipynb")
    with pytest.raises(ValueError, match="two of the notebooks are called lesson.ipynb"):
        write_handout(home / "course", [home / "lesson.ipynb", twin])
    second = write_notebook(home / "week 2" / "second.ipynb")
    (home / "week 2" / "results").mkdir()
    (home / "week 2" / "results" / "a.json").write_text("another")
    with pytest.raises(ValueError, match="two folders have a results/a.json"):
        write_handout(home / "course", [home / "lesson.ipynb", second])
    assert not (home / "course").exists()


def test_a_handout_from_a_read_only_course_can_be_written_to(home):
    for path in home.rglob("*"):
        path.chmod(path.stat().st_mode & ~0o222)
    home.chmod(0o755)
    out = home / "course"
    write_handout(out, [home / "lesson.ipynb"])
    assert all(path.stat().st_mode & stat.S_IWUSR for path in [out, *out.rglob("*")])
    (home / "made by hand").mkdir()  # students may read the folder wherever they may read a new one
    assert out.stat().st_mode == (home / "made by hand").stat().st_mode
    for path in home.rglob("*"):
        path.chmod(path.stat().st_mode | 0o200)


def test_a_home_folder_is_a_home_folder(home, monkeypatch):
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(home)
    assert write_handout("~/course", ["~/lesson.ipynb"]) == [home / "course" / "lesson.ipynb"]


def test_a_notebook_is_read(home):
    assert code_cells(read_notebook(home / "lesson.ipynb"))[0].source == "1 + 1"
