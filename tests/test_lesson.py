"""Guesses come back where they are answered, `yours` hands on what the check accepts, presets choose."""

import matplotlib.pyplot as plt
import pytest
import torch

from maml_edu import answer, by_preset, guess, seeded, yours
from maml_edu.classroom import exercises, lesson
from maml_edu.classroom.checks import check
from maml_edu.classroom.exercises import NotAllowed, registry
from maml_edu.figures import style
from maml_edu.figures.style import Picture, new_axes, show
from maml_edu.models import mse
from maml_edu.models.sine_models import amplitude_phase, sine_cosine


def test_a_guess_is_shown_again(capsys):
    guess("9.z", " (B) ")
    answer("9.z", "c")
    assert capsys.readouterr().out == "Guess 9.z: you say b. Read on to see.\nGuess 9.z: it's c. You said b.\n"
    guess("9.z", 2.5)
    answer("9.z", 3)
    assert capsys.readouterr().out.endswith("Guess 9.z: it's 3. You said 2.5.\n")


@pytest.mark.parametrize("nothing", [None, ...])
def test_no_guess_is_asked_for_and_forgets_the_old_one(nothing, capsys):
    guess("9.y", "a")
    guess("9.y", nothing)
    answer("9.y", "a")
    assert capsys.readouterr().out.splitlines()[1:] == [
        "Guess 9.y: put your choice in place of None and run this cell again. Then read on.",
        "Guess 9.y: it's a.",
    ]


def test_yours_is_the_learners_function_only_if_the_check_accepts_it(capsys):
    reference = registry()["1.2"].reference

    def mine(*arguments):
        return reference(*arguments)

    assert yours("1.2", mine) is mine
    assert yours("1.2", lambda *arguments: None) is reference
    assert yours("1.2", lambda loss, theta, batch, alpha, steps: loss(theta, batch.query_x, batch.query_y)) is reference
    assert capsys.readouterr().out.splitlines() == [
        "From here on, your 1.2 runs.",
        "From here on, the notebook runs our 1.2, because yours isn't written yet.",
        "From here on, the notebook runs our 1.2, because yours doesn't pass its check yet.",
    ]
    with pytest.raises(ValueError, match="no exercise 77.7 that asks for a function"):
        yours("77.7", mine)


def test_what_an_exercise_forbids_is_named_and_never_named_to_others(monkeypatch, capsys):
    def examine(function):
        def examined(x):
            if function is cheat:
                raise NotAllowed("no cheating")
            return function(x)

        return examined

    def cheat(x):
        return x

    def double(x):
        return 2 * x

    exercise = exercises.Exercise(
        "99.1", "t", double, {"no cheating": cheat, "that's x³": lambda x: x**3}, ("h",), lambda: [(3.0,)], examine
    )
    monkeypatch.setattr("maml_edu.classroom.checks.registry", lambda: {"99.1": exercise})
    check("99.1", cheat)
    assert capsys.readouterr().out == "Exercise 99.1: not yet.\n  no cheating\n"
    check("99.1", lambda x: x**3)
    out = capsys.readouterr().out
    assert "that's x³" in out and "no cheating" not in out
    check("99.1", lambda x: x + x)
    assert capsys.readouterr().out == "Exercise 99.1: correct.\n"


@pytest.mark.parametrize("preset, chosen", [("smoke", 1), ("quick", 2), ("full", 3), (None, 2)])
def test_presets_choose(preset, chosen, monkeypatch):
    monkeypatch.delenv("MAML_EDU_PRESET", raising=False)
    if preset:
        monkeypatch.setenv("MAML_EDU_PRESET", preset)
    assert by_preset(2, smoke=1, full=3) == chosen
    assert by_preset(2) == 2


def test_an_unknown_preset_is_refused(monkeypatch):
    monkeypatch.setenv("MAML_EDU_PRESET", "quikc")
    with pytest.raises(ValueError, match="'quikc'; expected smoke, quick or full"):
        by_preset(1)


def test_counted_counts_and_begin_sets_one_thread(capsys):
    assert list(lesson.counted(3, "counting")) == [0, 1, 2]
    assert "counting 100%" in capsys.readouterr().out
    lesson.begin()
    assert torch.get_num_threads() == 1
    assert torch.equal(torch.rand(2, generator=seeded(4)), torch.rand(2, generator=seeded(4)))


def test_a_picture_brings_its_own_alt_text(monkeypatch):
    shown = []
    monkeypatch.setattr(style, "display", lambda bundle, metadata, raw: shown.append((bundle, metadata)))
    show(Picture(new_axes()[0], "two axes and nothing else"))
    [(bundle, metadata)] = shown
    assert bundle["text/plain"] == "[Figure: two axes and nothing else]"
    assert metadata["image/png"]["alt"] == "two axes and nothing else"
    with pytest.raises(ValueError, match="alt is empty"):
        show(new_axes()[0])
    plt.close("all")


def test_both_models_of_two_numbers_draw_the_same_sine():
    x = torch.linspace(-5, 5, 7).view(1, -1, 1)
    polar, linear = (
        amplitude_phase(2.0, 0.5),
        sine_cosine(2 * torch.tensor(0.5).cos().item(), -2 * torch.tensor(0.5).sin().item()),
    )
    assert torch.allclose(polar.apply(polar.theta, x), linear.apply(linear.theta, x), atol=1e-6)
    many = {name: p.expand(3, 1, 1) for name, p in polar.theta.items()}
    assert mse(polar.apply)(many, x.expand(3, -1, -1), torch.zeros(3, 7, 1)).shape == (3,)
