"""claim, check, progress, hint and solution, on toy exercises."""

import errno
import json
import os
import threading
import time

import numpy as np
import pytest
import torch

from maml_edu import checks
from maml_edu.checks import check, claim, hint, progress, solution
from maml_edu.exercises import Exercise, registry

# --------------------------------------------------------------------------------------------------
# claim


@pytest.mark.parametrize("true", [True, np.bool_(True), torch.tensor(True), np.array(True), lambda: torch.ones(()) > 0])
def test_claim_holds(true, capsys):
    assert claim("it is so", true) is None
    assert capsys.readouterr().out == "✓ it is so\n"


@pytest.mark.parametrize("false", [False, np.bool_(False), torch.tensor(False), lambda: False])
def test_claim_does_not_hold(false, capsys):
    assert claim("it is so", false) is None
    assert capsys.readouterr().out == "✗ it is so (with these settings)\n"


@pytest.mark.parametrize(
    "broken, named",
    [
        (lambda: 1 / 0, "ZeroDivisionError: division by zero"),
        (lambda: [].pop(), "IndexError"),
        (float("nan"), "type float, expected bool"),
        (torch.tensor(3.0), "dtype torch.float32, expected bool"),
        (torch.tensor([True, True]), "shape [2], expected one value"),
        (None, "type NoneType, expected bool"),
    ],
)
def test_claim_never_raises(broken, named, capsys):
    claim("it is so", broken)
    out = capsys.readouterr().out
    assert out.startswith("✗ it is so (with these settings) [") and named in out and out.count("\n") == 1


# --------------------------------------------------------------------------------------------------
# Toy exercises


def scaled_step(theta, alpha):
    """θ − α·θ, for every parameter."""
    return {name: value - alpha * value for name, value in theta.items()}


def scaled_step_cases():
    generator = torch.Generator().manual_seed(0)

    def theta():
        return {name: torch.randn(2, 3, generator=generator, dtype=torch.float64) for name in ("w", "b")}

    return [(theta(), 0.1), (theta(), 0.5)]


def wrong_sign(theta, alpha):
    return {name: value + alpha * value for name, value in theta.items()}


def one_parameter(theta, alpha):
    return {"w": theta["w"] - alpha * theta["w"]}


def steps_needed():
    return 3


STEP = Exercise(
    number="3.2",
    title="a step",
    reference=scaled_step,
    mistakes={"The sign of the step is wrong.": wrong_sign, "Some parameters are left out.": one_parameter},
    hints=("Look at the sign.", "θ − α·θ."),
    cases=scaled_step_cases,
    remark="This is weight decay.",
)
PREDICTION = Exercise(
    number="1.1",
    title="how many",
    reference=steps_needed,
    mistakes={"That counts the first point too.": lambda: 4},
    hints=("Count.",),
)


@pytest.fixture(autouse=True)
def toys(monkeypatch):
    exercises = {exercise.number: exercise for exercise in (PREDICTION, STEP)}
    monkeypatch.setattr(checks, "registry", lambda: exercises)
    return exercises


@pytest.fixture
def said(capsys, toys):
    """said(answer, number, **changes): what `check` prints."""

    def call(answer, number="3.2", **changes):
        if changes:
            from dataclasses import replace

            toys[number] = replace(toys[number], **changes)
        assert check(number, answer) is None
        return capsys.readouterr().out

    return call


def test_correct(said):
    assert said(scaled_step) == "Exercise 3.2: correct. This is weight decay.\n"
    assert said(scaled_step, remark="") == "Exercise 3.2: correct.\n"


def stub_pass(theta, alpha):
    pass


def stub_dots(theta, alpha):
    return ...


def stub_raises(theta, alpha):
    raise NotImplementedError("yours to write")


def stub_computes(theta, alpha):
    gradient = ...
    return theta["w"] - alpha * gradient


def stub_partly(theta, alpha):
    return {"w": theta["w"], "b": ...}


@pytest.mark.parametrize("answer", [None, ..., stub_pass, stub_dots, stub_raises, stub_computes, stub_partly])
def test_not_done_yet(answer, said):
    assert said(answer) == "Exercise 3.2: not done yet.\n"


@pytest.mark.parametrize("answer", [None, ..., (..., 2), (None, None), {"a": ...}])
def test_prediction_not_done_yet(answer, said):
    assert said(answer, "1.1") == "Exercise 1.1: not done yet.\n"


def test_known_mistake_is_named_and_first_entry_shown(said):
    out = said(wrong_sign)
    w = scaled_step_cases()[0][0]["w"][0, 0].item()
    assert out.splitlines() == [
        "Exercise 3.2: not yet.",
        '  case 1 of 2, at ["w"][0, 0]:',
        f"    yours     {1.1 * w:.6g}",
        f"    expected  {0.9 * w:.6g}",
        "  The sign of the step is wrong.",
    ]
    assert "Some parameters are left out." in said(one_parameter)


def test_unknown_mistake_has_no_diagnosis(said):
    out = said(lambda theta, alpha: {k: v * 0 for k, v in theta.items()})
    assert "not yet" in out and "wrong." not in out and "left out" not in out


def test_a_difference_in_a_later_case_is_found(said):
    out = said(lambda theta, alpha: {k: v - 0.1 * v for k, v in theta.items()})
    assert "case 2 of 2" in out


@pytest.mark.parametrize(
    "answer, named",
    [
        (lambda theta, alpha: 1.0, "the kind of answer differs"),
        (lambda theta, alpha: {"w": 0.0}, "the keys differ"),
        (
            lambda theta, alpha: scaled_step(theta, alpha) | {"w": torch.zeros(3)},
            'at ["w"], the shapes differ',
        ),
        (
            lambda theta, alpha: scaled_step(theta, alpha) | {"b": "text"},
            'at ["b"], the kind of answer differs',
        ),
        (
            lambda theta, alpha: scaled_step(theta, alpha) | {"b": np.array("text")},
            "the kind of answer differs",
        ),
        (lambda theta, alpha: scaled_step(theta, alpha) | {"b": None}, "the kind of answer differs"),
        (
            lambda theta, alpha: {k: v * float("nan") for k, v in theta.items()},
            "NaN (not a number) in your answer",
        ),
    ],
)
def test_structure_and_shape_come_before_values(answer, named, said):
    out = said(answer)
    assert named in out and "yours" in out and "expected" in out


def test_errors_are_reported_with_their_line(said):
    def fails(theta, alpha):
        first = theta["w"]
        return first @ first

    line = fails.__code__.co_firstlineno + 2
    out = said(fails)
    assert out.startswith("Exercise 3.2: your code raised RuntimeError: ")
    assert f"(line {line}: return first @ first)" in out and out.count("\n") == 1
    assert "TypeError" in said(lambda theta: theta)  # the wrong number of arguments
    assert "(line" in said(lambda theta, alpha: torch.zeros(2, 3).reshape(5))


def test_a_value_instead_of_a_function(said):
    assert "pass your function itself" in said(3.0)


def test_arguments_are_copied_for_every_call(said):
    def in_place(theta, alpha):
        for value in theta.values():
            value.mul_(1 - alpha)
        return theta

    shared = scaled_step_cases()[0]
    assert "correct" in said(in_place, cases=lambda: [shared, shared])


def test_generators_start_alike(said):
    def draw(generator):
        return torch.rand(2, generator=generator)

    generator = torch.Generator().manual_seed(1)
    assert "correct" in said(draw, reference=draw, cases=lambda: [(generator,)], mistakes={})


@pytest.mark.parametrize(
    "yours, expected, right",
    [
        (3, 3.0, True),
        (3.0000001, 3.0, True),
        (3.001, 3.0, False),
        (torch.tensor(3.0, requires_grad=True), 3.0, True),
        (torch.tensor([3.0]), 3.0, False),
        (True, True, True),
        (torch.tensor(True), True, True),
        (1, True, False),
        (True, 1, False),
        (np.float32(0.5), torch.tensor(0.5, dtype=torch.float64), True),
        ([1.0, 2.0], (1.0, 2.0), True),
        (np.array([1.0, 2.0]), (1.0, 2.0), True),
        ((1.0,), (1.0, 2.0), False),
        ((1.0, "Up"), (1.0, "up "), True),
        ((1.0, "up"), (1.0, "down"), False),
        ((1e9, 4), (1e9, 3), False),
        ((1.0, None), (1.0, None), True),
        (1_000_001, 1_000_000, False),
        (float("inf"), float("inf"), True),
        (float("nan"), 1.0, False),
        (1e-14, 0.0, True),
        (
            {"a": torch.tensor(1.0), "b": torch.tensor(1e-12)},
            {"a": torch.tensor(1.0), "b": torch.tensor(0.0)},
            True,
        ),
        (
            {"a": torch.tensor(1.0), "b": torch.tensor(1e-3)},
            {"a": torch.tensor(1.0), "b": torch.tensor(0.0)},
            False,
        ),
        (range(3), (0, 1, 2), False),
    ],
)
def test_kinds_of_answer(yours, expected, right, said):
    out = said(lambda: yours, "1.1", reference=lambda: expected, mistakes={})
    assert ("correct." in out) == right, out


def test_tolerance_belongs_to_the_exercise(said):
    assert "correct" in said(3.1, "1.1", tolerance=0.05)
    assert "not yet" in said(3.2, "1.1")


def test_a_wrong_prediction_does_not_give_the_answer_away(said):
    out = said(4, "1.1")
    assert out == "Exercise 1.1: not yet.\n    yours     4\n  That counts the first point too.\n"
    assert said(3, "1.1") == "Exercise 1.1: correct.\n"


def test_hints(capsys):
    hint("3.2")
    hint("3.2", n=2)
    hint("3.2", n=3)
    assert capsys.readouterr().out.splitlines() == [
        "Exercise 3.2, hint 1 of 2: Look at the sign.",
        "Exercise 3.2, hint 2 of 2: θ − α·θ.",
        'Exercise 3.2 has hints 1 to 2; solution("3.2") shows an answer.',
    ]


def test_solution_prints_the_reference(capsys):
    solution("3.2")
    out = capsys.readouterr().out
    assert out.startswith("def scaled_step(theta, alpha):") and out.endswith("for name, value in theta.items()}\n")


@pytest.mark.parametrize("call", [lambda: check("9.9", 1), lambda: hint("9.9"), lambda: solution("9.9")])
def test_unknown_number(call, capsys):
    call()
    assert capsys.readouterr().out == "There is no exercise 9.9; there are 1.1, 3.2.\n"


def test_the_registry_refuses_a_number_twice(monkeypatch):
    from maml_edu.exercises import hessian, tasks

    monkeypatch.setattr(tasks, "EXERCISES", [STEP])
    monkeypatch.setattr(hessian, "EXERCISES", [STEP])
    registry.cache_clear()
    with pytest.raises(ValueError, match="3.2 is defined twice"):
        registry()
    registry.cache_clear()


# --------------------------------------------------------------------------------------------------
# progress


@pytest.fixture
def kept(monkeypatch, tmp_path, capsys):
    """The progress file, in a folder of its own. kept.table() is what `progress` prints, without the header."""
    monkeypatch.setenv("MAML_EDU_PROGRESS", str(tmp_path))
    monkeypatch.setattr(checks, "_unsaved", {})

    class Kept:
        path = tmp_path / ".maml_edu_progress.json"

        def holds(self):
            return json.loads(self.path.read_text())

        def table(self):
            capsys.readouterr()
            assert progress() is None
            header, *lines = capsys.readouterr().out.splitlines()
            assert header.split() == ["notebook", "solved", "tried", "in", "all", "open"]
            return [" ".join(line.split()) for line in lines]

    return Kept()


def test_progress_counts_solved_tried_and_open(kept):
    assert kept.table() == ["01 0 0 1 1.1", "03 0 0 1 3.2", f"Nothing is kept yet. Outcomes will go to {kept.path}."]
    check("1.1", 3)
    check("3.2", wrong_sign)
    where = f"Kept in {kept.path}. Delete this file to start afresh."
    assert kept.table() == ["01 1 1 1 none", "03 0 1 1 3.2", where]
    kept.path.unlink()
    assert kept.table()[:2] == ["01 0 0 1 1.1", "03 0 0 1 3.2"]


def test_numbers_are_sorted_as_numbers(kept, toys):
    for number in ("3.10", "10.1", "3.9"):
        toys[number] = toys["1.1"]
    assert [line.split()[0] for line in kept.table()[:3]] == ["01", "03", "10"]
    assert kept.table()[1].endswith("3.2, 3.9, 3.10")


def raises_an_error(theta, alpha):
    return theta["no such name"]


@pytest.mark.parametrize(
    "answer, outcome",
    [(scaled_step, "correct"), (wrong_sign, "not yet"), (3.0, "not yet"), (raises_an_error, "not yet")],
)
def test_outcomes_are_recorded(answer, outcome, kept):
    check("3.2", answer)
    assert kept.holds() == {"3.2": outcome}


@pytest.mark.parametrize("answer", [None, ..., stub_pass, stub_raises, stub_computes, stub_partly])
def test_a_stub_records_nothing(answer, kept):
    check("3.2", answer)
    assert not kept.path.exists()


def test_once_correct_stays_correct(kept):
    for answer in (wrong_sign, scaled_step, wrong_sign):
        check("3.2", answer)
    assert kept.holds() == {"3.2": "correct"}


def test_the_file_stands_in_the_working_folder(kept, monkeypatch):
    monkeypatch.delenv("MAML_EDU_PROGRESS")
    monkeypatch.chdir(kept.path.parent)
    check("1.1", 3)
    assert kept.holds() == {"1.1": "correct"} and os.listdir() == [kept.path.name]


def test_a_folder_that_is_not_there_is_made(kept, monkeypatch, tmp_path):
    monkeypatch.setenv("MAML_EDU_PROGRESS", str(tmp_path / "my" / "course"))
    check("1.1", 3)
    assert (tmp_path / "my" / "course" / kept.path.name).exists()


def test_switched_off(kept, monkeypatch):
    monkeypatch.setenv("MAML_EDU_PROGRESS", "")
    monkeypatch.chdir(kept.path.parent)
    check("1.1", 3)
    assert not os.listdir()
    off = "Nothing is kept: the environment variable MAML_EDU_PROGRESS is set to nothing."
    assert kept.table() == ["01 0 0 1 1.1", "03 0 0 1 3.2", off]


DAMAGED = [
    b"",
    b'{"1.1": "corr',
    b"\xff\xfe",
    b"[1, 2]",
    b'{"1.1": {"a": []}}',
    b"[" * 100_000,
    b'{"1.1": "correct"}' + b" " * (1 << 20),
]


@pytest.mark.parametrize("content", DAMAGED, ids=range(len(DAMAGED)))
def test_a_damaged_file_is_named_and_written_anew(content, kept, said):
    kept.path.write_bytes(content)
    assert f"{kept.path} is not read: it is" in kept.table()[-1]
    assert said(3, "1.1") == "Exercise 1.1: correct.\n"
    assert kept.holds() == {"1.1": "correct"}


def test_outcomes_of_exercises_that_are_gone_do_not_show(kept):
    kept.path.write_text('{"1.9": "correct", "3.2": "correct"}')
    assert kept.table()[:2] == ["01 0 0 1 1.1", "03 1 1 1 none"]


@pytest.mark.parametrize("trouble", [errno.EACCES, errno.EROFS, errno.ENOSPC, "a file where the folder should be"])
def test_a_folder_that_cannot_be_written_is_named(trouble, kept, said, monkeypatch):
    """Also where tests run as root, who may write into any folder: the error is raised by hand."""
    if isinstance(trouble, int):

        def refuses(*arguments, **options):
            raise OSError(trouble, os.strerror(trouble))

        monkeypatch.setattr(checks.tempfile, "mkstemp", refuses)
        reason = os.strerror(trouble).lower()
    else:
        kept.path.parent.joinpath("file").touch()
        monkeypatch.setenv("MAML_EDU_PROGRESS", str(kept.path.parent / "file"))
        reason = "exists"
    assert said(3, "1.1") == "Exercise 1.1: correct.\n"
    solved, _, problem, *advice = kept.table()
    assert solved == "01 1 1 1 none"  # remembered in this kernel
    assert "cannot be kept in" in problem and reason in problem and "MAML_EDU_PROGRESS" in " ".join(advice)


def test_what_could_not_be_written_is_written_later(kept, monkeypatch):
    with monkeypatch.context() as full:
        full.setattr(checks.os, "replace", lambda *paths: (_ for _ in ()).throw(OSError(errno.ENOSPC, "No space")))
        check("1.1", 3)
        assert os.listdir(kept.path.parent) == []  # neither a half-written file nor a lock
        assert "no space" in kept.table()[2]
    check("3.2", wrong_sign)
    assert kept.holds() == {"1.1": "correct", "3.2": "not yet"}
    assert kept.table()[-1].startswith("Kept in")


def test_two_writers_at_once_lose_nothing(kept, monkeypatch):
    """Both read slowly: without the lock each would write over what the other has just added."""
    read = checks._read_progress
    monkeypatch.setattr(checks, "_read_progress", lambda path: (read(path), time.sleep(0.005))[0])

    def write(first):
        for n in range(10):
            checks._record(f"{first}.{n}", "correct")

    writers = [threading.Thread(target=write, args=(first,)) for first in (1, 2)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert len(kept.holds()) == 20
    assert os.listdir(kept.path.parent) == [kept.path.name]


@pytest.mark.parametrize("age", [0, 60])
def test_a_lock_that_was_left_delays_no_check(age, kept):
    lock = kept.path.with_name(kept.path.name + ".lock")
    lock.touch()
    os.utime(lock, (time.time() - age,) * 2)
    start = time.monotonic()
    check("1.1", 3)
    assert time.monotonic() - start < 2 and kept.holds() == {"1.1": "correct"}
    assert lock.exists() == (age == 0)  # a young one is somebody else's
