"""claim, check, hint and solution, on toy exercises."""

import numpy as np
import pytest
import torch
from support.toy_exercises import STEP, STUBS, TOYS, one_parameter, scaled_step, scaled_step_cases, wrong_sign

from maml_edu.classroom import checks
from maml_edu.classroom.checks import check, claim, hint, solution
from maml_edu.classroom.exercises import registry

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
# check, on toy exercises


@pytest.fixture(autouse=True)
def toys(monkeypatch):
    exercises = dict(TOYS)
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


@pytest.mark.parametrize("answer", STUBS)
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
            {"a": torch.tensor(1.0), "b": torch.tensor(1e-15)},
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
    from maml_edu.classroom.exercises import nb01_tasks_and_the_bilevel_objective as tasks
    from maml_edu.classroom.exercises import nb03_hessian_vector_products as hessian

    monkeypatch.setattr(tasks, "EXERCISES", [STEP])
    monkeypatch.setattr(hessian, "EXERCISES", [STEP])
    registry.cache_clear()
    with pytest.raises(ValueError, match="3.2 is defined twice"):
        registry()
    registry.cache_clear()
