"""Colours with one meaning each, and figures that carry their own description."""

import base64
import importlib
from pathlib import Path

import matplotlib.pyplot as plt
import pytest
import torch
from matplotlib.colors import is_color_like, to_rgb

from maml_edu.evaluation import StepScore
from maml_edu.figures import style
from maml_edu.figures.style import (
    COLOURS,
    STYLES,
    apply_style,
    explore,
    line,
    new_axes,
    points,
    show,
    where_none_diverged,
)

MEANINGS = {"support", "query", "before", "after", "maml", "fomaml", "reptile", "joint", "oracle", "truth"}
PNG = b"\x89PNG"
TOPICS = [p.stem for p in Path(style.__file__).parent.glob("*.py") if p.stem != "__init__"]


@pytest.fixture
def displayed(monkeypatch):
    """What goes to the notebook: a list of (bundle, metadata)."""
    seen = []
    monkeypatch.setattr(style, "display", lambda bundle, metadata, raw: seen.append((bundle, metadata)))
    yield seen
    assert not plt.get_fignums(), "a figure stayed open: the notebook would show it a second time"


def test_every_meaning_has_its_own_colour():
    assert set(COLOURS) == set(STYLES) == MEANINGS
    assert len({to_rgb(colour) for colour in COLOURS.values()}) == len(COLOURS)


def test_methods_differ_in_dashes_and_markers_too():
    methods = ("maml", "fomaml", "reptile", "joint", "oracle")
    assert len({str(STYLES[key]["linestyle"]) for key in methods}) == len(methods)
    assert len({STYLES[key]["marker"] for key in methods}) == len(methods)


@pytest.mark.parametrize("key", sorted(MEANINGS))
def test_styles_can_be_plotted(key):
    fig, ax = new_axes()
    for kind in (STYLES[key], line(key), points(key)):
        (artist,) = ax.plot([0, 1], [0, 1], **kind)
        assert is_color_like(kind["color"]) and to_rgb(artist.get_color()) == to_rgb(COLOURS[key])
    plt.close(fig)


def test_axes_fit_a_notebook():
    for columns in (1, 2, 3):
        fig, axes = new_axes(columns=columns, height=3)
        assert fig.get_figwidth() <= 8 and fig.get_figheight() == 3 and fig.dpi == 100
        assert (columns == 1) == (not hasattr(axes, "__len__"))
        plt.close(fig)


def test_apply_style_twice_is_once():
    apply_style()
    before = dict(plt.rcParams)
    apply_style()
    assert dict(plt.rcParams) == before and not plt.rcParams["axes.spines.top"]


def test_show_stores_a_picture_and_its_description(displayed):
    fig, ax = new_axes()
    ax.plot([0, 1], **line("maml"))
    assert show(fig, "A line rises from 0 to 1.") is None
    [(bundle, metadata)] = displayed
    assert base64.b64decode(bundle["image/png"]).startswith(PNG)
    assert bundle["text/plain"] == "[Figure: A line rises from 0 to 1.]"
    assert metadata == {"image/png": {"alt": "A line rises from 0 to 1."}}


def test_show_wants_a_description(displayed):
    fig, _ = new_axes()
    with pytest.raises(ValueError, match="alt is empty"):
        show(fig, " ")
    plt.close(fig)


def draw_power(power, ax):
    ax.plot([0, 1, 2], [x**power for x in (0, 1, 2)], label="power", **line("after"))
    ax.legend()


@pytest.mark.parametrize("values", [[1], [0.5, 1.0, 1.5, 2.0, 2.5, 3.0]])
def test_explore_is_a_slider_and_a_strip(values, displayed):
    explore(draw_power, values, "power", "The curve bends more and more.")
    [(bundle, metadata)] = displayed
    assert "model_id" in bundle["application/vnd.jupyter.widget-view+json"]
    assert base64.b64decode(bundle["image/png"]).startswith(PNG)
    assert bundle["text/plain"] == "[Slider over power: The curve bends more and more.]"
    assert metadata["image/png"]["alt"] == "The curve bends more and more."


def test_the_slider_changes_the_picture(displayed, monkeypatch):
    made = {}
    for name in ("SelectionSlider", "Image"):
        widget = getattr(style.ipywidgets, name)
        make = lambda widget, name: lambda **k: made.setdefault(name, widget(**k))  # noqa: E731
        monkeypatch.setattr(style.ipywidgets, name, make(widget, name))
    explore(draw_power, [1, 2, 3], "power", "The curve bends.")
    first = bytes(made["Image"].value)
    made["SelectionSlider"].value = 2
    second = bytes(made["Image"].value)
    assert first.startswith(PNG) and second.startswith(PNG) and first != second


@pytest.mark.parametrize("stills, strip", [((1, 5), [1, 5]), ((9,), [1, 2, 4, 5]), (None, [1, 2, 4, 5])])
def test_stills_choose_the_strip(stills, strip, displayed):
    drawn = []
    explore(lambda value, ax: drawn.append(value), [1, 2, 3, 4, 5], "value", "Nothing.", stills)
    assert drawn == [1, 2, 3, 4, 5, *strip]


def test_an_error_in_one_frame_is_raised(displayed):
    def fails_at_two(value, ax):
        if value == 2:
            raise ArithmeticError("two")

    with pytest.raises(ArithmeticError):
        explore(fails_at_two, [1, 2, 3], "value", "never shown")
    plt.close("all")
    with pytest.raises(ValueError, match="at least one value"):
        explore(fails_at_two, [], "value", "never shown")


def test_steps_with_a_diverged_task_have_no_mean_to_draw():
    scores = [
        StepScore(0, 4.0, 0.5, 3.9, 0, 9, torch.zeros(9)),
        StepScore(1, None, None, 2.0, 1, 9, torch.zeros(9)),
        StepScore(2, 1.0, 0.2, 0.9, 0, 9, torch.zeros(9)),
    ]
    assert where_none_diverged(scores) == ([0, 2], [4.0, 1.0], [0.5, 0.2])


def test_topics_offer_distinct_names():
    offered = [name for topic in TOPICS for name in importlib.import_module(f"maml_edu.figures.{topic}").__all__]
    assert len(offered) == len(set(offered)) and not set(offered) & set(TOPICS)
