"""The first notebook's sliders redraw their picture and say what went wrong; the map reads the notebooks' minutes."""

import base64
import json
import time
from pathlib import Path

import matplotlib.pyplot as plt
import nbformat
import pytest

from maml_edu.figures import live_sliders as start
from maml_edu.figures import nb00_start_here, style
from maml_edu.figures.live_sliders import playground
from maml_edu.figures.nb00_start_here import course_map, read_course

PNG = b"\x89PNG"
NOTEBOOK = Path(__file__).resolve().parent.parent / "notebooks" / "00_start_here.ipynb"


@pytest.fixture
def displayed(monkeypatch):
    seen = []
    monkeypatch.setattr(style, "display", lambda bundle, metadata, raw: seen.append((bundle, metadata)))
    yield seen
    assert not plt.get_fignums()


@pytest.fixture(scope="module")
def notebook():
    """What the notebook hands to `playground`: its drawing function, its sliders, its stills."""
    cells = [cell.source for cell in nbformat.read(NOTEBOOK, as_version=4).cells if cell.cell_type == "code"]
    last = next(i for i, source in enumerate(cells) if source.startswith("figures.two_networks("))
    namespace, given = {"__name__": "notebook"}, {}
    for source in cells[:last]:
        exec(source, namespace)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nb00_start_here, "playground", lambda draw, **more: given.update(more, draw=draw))
        exec(cells[last], namespace)
    return given


def test_every_slider_redraws_to_its_ends(notebook):
    live = start.live(notebook["draw"], notebook["sliders"])
    assert set(live.sliders) == {"amplitude", "phase", "shots", "steps"}
    assert bytes(live.picture.value).startswith(PNG)
    for name, slider in live.sliders.items():
        pictures = {bytes(live.picture.value)}
        for end in (slider.min, slider.max):
            slider.value = end
            pictures.add(bytes(live.picture.value))
        assert len(pictures) == 3, f"{name} does not change the picture"
        assert live.problem.value == "" and live.picture.layout.display != "none"


def test_a_redraw_is_quick(notebook):
    live, times = start.live(notebook["draw"], notebook["sliders"]), []
    for steps in (8, 9, 10):
        begin = time.process_time()  # CPU time: other programs on this machine do not count
        live.sliders["steps"].value = steps
        times.append(time.process_time() - begin)
    assert min(times) < 0.2


def test_whole_numbers_stay_whole_and_a_start_outside_widens_the_range():
    live = start.live(lambda axes, a, b: axes[0].plot([0, a * b]), {"a": (0, 5, 1, 7), "b": (1.0, 2.0, 0.5, 0.5)})
    assert (live.sliders["a"].value, live.sliders["a"].max) == (7, 7) and isinstance(live.sliders["a"].value, int)
    assert (live.sliders["b"].value, live.sliders["b"].min) == (0.5, 0.5)


def fails_at_three(axes, power, more=0):
    if power == 3:
        raise ArithmeticError("three is <too> much")
    axes[0].plot([0, 1, 2], [x**power for x in range(3)], label="power")


def test_an_error_in_a_redraw_is_shown_and_goes_away():
    live = start.live(fails_at_three, {"power": (1, 4, 1, 1)}, panels=1)
    live.sliders["power"].value = 3
    assert "ArithmeticError: three is &lt;too&gt; much" in live.problem.value
    assert "&#x27;power&#x27;: 3" in live.problem.value and "fails_at_three" in live.problem.value
    assert live.picture.layout.display == "none", "the picture of another setting would be taken for this one's"
    live.sliders["power"].value = 4
    assert live.problem.value == "" and live.picture.layout.display != "none"


def test_an_error_at_the_start_or_in_a_still_is_raised(displayed):
    with pytest.raises(ArithmeticError):
        playground(fails_at_three, {"power": (1, 4, 1, 3)}, {"a": {"power": 1}}, "never shown", panels=1)
    with pytest.raises(ArithmeticError):
        playground(fails_at_three, {"power": (1, 4, 1, 1)}, {"a": {"power": 3}}, "never shown", panels=1)
    with pytest.raises(ValueError, match="sets height; the sliders are power"):
        playground(fails_at_three, {"power": (1, 4, 1, 1)}, {"a": {"height": 3}}, "never shown", panels=1)
    with pytest.raises(ValueError, match="at least one still"):
        playground(fails_at_three, {"power": (1, 4, 1, 1)}, {}, "never shown", panels=1)
    with pytest.raises(ValueError, match="alt is empty"):
        playground(fails_at_three, {"power": (1, 4, 1, 1)}, {"a": {}}, " ", panels=1)
    assert not displayed


def test_a_playground_is_sliders_and_a_strip(displayed):
    playground(fails_at_three, {"power": (1, 4, 1, 1), "more": (0, 1, 1, 0)}, {"a": {}}, "A curve.", panels=1)
    [(bundle, metadata)] = displayed
    assert "model_id" in bundle["application/vnd.jupyter.widget-view+json"]
    assert base64.b64decode(bundle["image/png"]).startswith(PNG)
    assert bundle["text/plain"] == "[Sliders for power, more: A curve.]"
    assert metadata["image/png"]["alt"] == "A curve."


def write_notebook(folder, name, first):
    cell = {"cell_type": "markdown", "metadata": {}, "source": first.splitlines(keepends=True)}
    (folder / name).write_text(json.dumps({"cells": [cell], "nbformat": 4}), encoding="utf-8")


@pytest.fixture
def folder(tmp_path):
    write_notebook(tmp_path, "00_a.ipynb", "# 00 · First\n\n**Time:** 15 minutes. See [01](01_b.ipynb).")
    before = "**Before you start:** [00](00_a.ipynb), [07](07_x.ipynb)."
    write_notebook(tmp_path, "01_b.ipynb", f"# 01 · Second one\n[05](05_y.ipynb)\n{before} **Time** 45 minutes with …")
    write_notebook(tmp_path, "02_mine.ipynb", "my own trials")
    (tmp_path / "03_broken.ipynb").write_text('{"cells": [', encoding="utf-8")
    (tmp_path / "04_empty.ipynb").write_text('{"cells": []}', encoding="utf-8")
    return tmp_path


def test_the_course_is_read_from_the_notebooks(folder):
    assert read_course(folder) == {
        "00": ("00_a.ipynb", "First", 15, ()),
        "01": ("01_b.ipynb", "Second one", 45, ("00", "07")),
    }
    assert read_course(folder / "nothing_here") == {}


def test_the_map_names_every_notebook_and_its_minutes(folder):
    fig = course_map(read_course(folder)).figure
    [ax] = fig.axes
    assert [label.get_text() for label in ax.get_yticklabels()] == ["00 · First", "01 · Second one"]
    assert [text.get_text() for text in ax.texts] == ["15 min", "45 min"]
    assert [(bar.get_x(), bar.get_width()) for bar in ax.patches] == [(0, 15), (15, 45)]
    plt.close(fig)
    plt.close(course_map({}).figure)  # a notebook opened alone, without its neighbours
