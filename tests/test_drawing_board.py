"""The drawing board of notebook 08: pictures like Omniglot's, and what the buttons do."""

import pytest
import torch

pytest.importorskip("ipywidgets")
from maml_edu.data.episodes import characters
from maml_edu.figures import drawing_board
from maml_edu.figures.drawing_board import EXTENT, as_picture, stored, verdict

CROSS = [[(10.0, 10.0), (200.0, 210.0)], [(200.0, 10.0), (10.0, 210.0)]]


def extents(pictures):
    """The longer side of each drawing's ink [n], as a share of the picture."""
    ink = pictures > 0.5
    lines = [ink.any(axis).int() for axis in (1, 2)]
    sides = [(line * torch.arange(1, 29)).amax(1) - line.argmax(1) for line in lines]
    return torch.stack(sides).amax(0) / 28


def test_a_drawing_becomes_a_picture_wherever_and_however_large_it_was_drawn():
    small = [[(x / 3 + 100, y / 3 + 50) for x, y in stroke] for stroke in CROSS]
    assert as_picture(CROSS).shape == (28, 28)
    assert 0 <= as_picture(CROSS).min() and as_picture(CROSS).max() <= 1
    assert torch.allclose(as_picture(CROSS), as_picture(small), atol=0.05)


def test_a_dot_is_a_picture_and_nothing_is_an_error():
    assert as_picture([[(5.0, 5.0)]]).sum() > 0
    with pytest.raises(ValueError, match="draw a stroke first"):
        as_picture([])


def test_stored_drawings_are_as_large_and_as_dark_as_those_of_omniglot():
    first, second, between = stored()
    assert first.shape == second.shape == (1, 5, 1, 28, 28) and between.shape == (1, 1, 1, 28, 28)
    drawn = torch.cat([first, second])[:, :, 0].flatten(0, 1)
    assert extents(drawn).mean() == pytest.approx(EXTENT, abs=0.06)
    data = characters("auto")
    if data.source != "omniglot":
        pytest.skip("no Omniglot here to compare with")
    theirs = data.images[::10].flatten(0, 1).float() / 255
    assert extents(drawn).mean() == pytest.approx(extents(theirs).mean().item(), abs=0.08)
    assert drawn.mean() == pytest.approx(theirs.mean().item(), rel=0.35)


def test_the_verdict_names_what_it_cannot_rule_out():
    assert verdict(torch.tensor([0.05, 0.95])) == "It's number 2 (95 %)."
    assert verdict(torch.tensor([0.999, 0.001])) == "It's number 1 (over 99 %)."
    assert "can't rule out number 1 (30 %)" in verdict(torch.tensor([0.3, 0.7]))


def test_the_line_under_the_cell_is_the_same_with_and_without_a_board(monkeypatch, capsys):
    def no_board(*_):
        raise ImportError

    monkeypatch.setattr(drawing_board, "_display", lambda bundle, alt: shown.append(bundle))
    shown, lines = [], []
    uniform = lambda support_x, query_x: torch.full((5,), 0.2)  # noqa: E731
    drawing_board.draw_your_own(uniform)
    lines.append(capsys.readouterr().out)
    monkeypatch.setattr(drawing_board, "Board", no_board)
    drawing_board.draw_your_own(uniform)
    lines.append(capsys.readouterr().out)
    assert lines[0] == lines[1] != ""
    assert all("image/png" in bundle for bundle in shown)


def test_five_drawings_then_a_sixth_is_named():
    pytest.importorskip("ipycanvas")
    seen = []

    def name(support_x, query_x):
        seen.append((support_x.shape, query_x.shape))
        return torch.tensor([0.0, 0.0, 1.0, 0.0, 0.0])

    board = drawing_board.Board(name)
    press = lambda text: board.buttons[text].click()  # noqa: E731

    def draw():
        for stroke in CROSS:
            board.start(*stroke[0])
            board.move(*stroke[1])
            board.stop()

    press("Next")
    assert "draw a stroke first" in board.says.value and not board.known
    for _ in range(5):
        draw()
        press("Next")
    assert board.buttons["Next"].disabled and not board.buttons["Name it"].disabled
    board.move(3.0, 3.0)  # no pen on the paper
    assert not board.strokes
    draw()
    press("Name it")
    assert seen == [((1, 5, 1, 28, 28), (1, 1, 1, 28, 28))]
    board.name = lambda *_: 1 / 0
    press("Name it")
    assert "ZeroDivisionError" in board.says.value
