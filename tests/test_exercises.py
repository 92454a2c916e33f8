"""Every exercise: the reference is accepted, each mistake named, and the notebooks use the same titles."""

import re
from pathlib import Path

import nbformat
import pytest

from maml_edu.classroom.checks import check, hint, solution
from maml_edu.classroom.exercises import registry

NOTEBOOKS = sorted((Path(__file__).resolve().parent.parent / "notebooks").glob("*.ipynb"))
each_exercise = pytest.mark.parametrize("exercise", registry().values(), ids=registry())


def answer(exercise, function):
    """What a student would hand in: the function, or for a prediction its value."""
    return function() if exercise.is_prediction else function


def raises(*arguments):
    raise NotImplementedError


@each_exercise
def test_reference_is_accepted(exercise, capsys):
    check(exercise.number, answer(exercise, exercise.reference))
    assert capsys.readouterr().out.startswith(f"Exercise {exercise.number}: correct.")


@each_exercise
def test_stubs_are_not_done_yet(exercise, capsys):
    for stub in (None, ..., lambda *arguments: None, lambda *arguments: ..., raises):
        check(exercise.number, stub)
        assert capsys.readouterr().out == f"Exercise {exercise.number}: not done yet.\n"


@each_exercise
def test_every_mistake_is_named(exercise, capsys):
    assert len(exercise.mistakes) >= 3
    for message, wrong in exercise.mistakes.items():
        check(exercise.number, answer(exercise, wrong))
        out = capsys.readouterr().out
        assert out.startswith(f"Exercise {exercise.number}: not yet.")
        assert message in out
        assert not any(other in out for other in exercise.mistakes if other not in message)


@each_exercise
def test_hints_and_solution(exercise, capsys):
    assert exercise.hints and all(text.strip() for text in exercise.hints)
    for n, text in enumerate(exercise.hints, start=1):
        hint(exercise.number, n=n)
        assert text in capsys.readouterr().out
    solution(exercise.number)
    assert capsys.readouterr().out.startswith("def ")


def test_notebooks_and_registry_agree():
    """The headings `### Exercise N.M · title` in notebook N are the registered exercises, word for word."""
    headed = {}
    for path in NOTEBOOKS:
        for cell in nbformat.read(path, as_version=4).cells:
            if cell.cell_type == "markdown":
                for number, title in re.findall(r"(?m)^#+ Exercise (\S+) · (.+?)\s*$", cell.source):
                    assert number not in headed, f"exercise {number} is headed twice"
                    assert int(number.split(".")[0]) == int(path.name[:2]), f"exercise {number} stands in {path.name}"
                    headed[number] = title
    assert headed == {number: exercise.title for number, exercise in registry().items()}


@pytest.mark.parametrize("answer", [{"A", "B"}, {"b", "a"}, "AB", "b, a", ["A", "B"], ("b", "A"), frozenset("ab")])
def test_a_set_of_letters_in_any_case_and_form(answer, capsys):
    check("6.2", answer)
    assert capsys.readouterr().out.startswith("Exercise 6.2: correct.")


def test_a_wrong_set_of_letters_is_printed_in_order(capsys):
    check("6.2", {"d", "a"})
    out = capsys.readouterr().out
    assert "{'a', 'd'}" in out and "B belongs in" in out and "D doesn't" in out and "C doesn't" not in out


def test_nan_is_not_told_the_answer(capsys):
    check("2.1", float("nan"))
    assert "NaN" in (out := capsys.readouterr().out) and "expected" not in out


@pytest.mark.parametrize("answer", [[1, 2], {1, "A"}, ("A", None), [["A"]], {"A": 1}, "", set(), 3.0, {("A",)}, b"AB"])
def test_a_set_of_anything_else_is_not_yet(answer, capsys):
    check("6.2", answer)
    assert capsys.readouterr().out.startswith("Exercise 6.2: not yet.")


@pytest.mark.parametrize("tasks", [float("nan"), float("inf"), "many", (1, 2), 1j, [13830]])
def test_tasks_that_are_no_number_of_tasks(tasks, capsys):
    check("8.3", lambda s, half_width: tasks)
    assert capsys.readouterr().out.startswith("Exercise 8.3: not yet.")
