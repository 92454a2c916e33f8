"""A picture with sliders that is redrawn live, and a strip of stills wherever the notebook is only read."""

from __future__ import annotations

import base64
import html
import io
import traceback
from collections.abc import Callable, Mapping
from typing import NamedTuple

import ipywidgets
from matplotlib.artist import Artist
from matplotlib.figure import Figure

from maml_edu.figures.style import _display, _png, _require_alt, apply_style

__all__ = ["live", "playground"]

Draw = Callable[..., None]  # draw(axes, **values): one value per slider, as many axes as there are panels
Limits = tuple[float, float, float, float]  # lowest, highest, step, start; whole numbers make a slider of whole numbers

_PANEL_HEIGHT = 3.5  # inches
_STILL_SIZES = {"title": 10, "label": 10, "ticks": 9, "legend": 10}  # points; stills are small pictures


class Live(NamedTuple):
    """The widgets of a playground: all of them, and one by one."""

    box: ipywidgets.VBox
    sliders: dict[str, ipywidgets.Widget]
    picture: ipywidgets.Image
    problem: ipywidgets.HTML  # what went wrong in the last redraw, "" if nothing did


def playground(
    draw: Draw, sliders: Mapping[str, Limits], stills: Mapping[str, Mapping[str, float]], alt: str, panels: int = 2
) -> None:
    """Several sliders and one picture that follows them; a strip of stills wherever the notebook is only read.

    `draw(axes, **values)` draws the picture on `panels` axes side by side. `stills` names the pictures of the strip
    and says in which values each differs from the start. The same function draws both, so an error in it appears in
    this cell; an error at another setting is shown in place of the picture.
    """
    _require_alt(alt)
    apply_style()
    strip = base64.b64encode(_strip(draw, sliders, stills, panels)).decode()
    bundle = live(draw, sliders, panels).box._repr_mimebundle_()
    bundle = dict(bundle[0] if isinstance(bundle, tuple) else bundle)
    _display(bundle | {"image/png": strip, "text/plain": f"[Sliders for {', '.join(sliders)}: {alt}]"}, alt)


def live(draw: Draw, sliders: Mapping[str, Limits], panels: int = 2) -> Live:
    """The widgets, wired up, with the first picture drawn."""
    controls = {name: _slider(name, *limits) for name, limits in sliders.items()}
    picture, problem = ipywidgets.Image(format="png"), ipywidgets.HTML()
    picture.layout.width, picture.layout.max_width = "800px", "100%"

    def values() -> dict[str, float]:
        return {name: control.value for name, control in controls.items()}

    def redraw(change: object) -> None:
        try:
            picture.value = _frame(draw, values(), panels)
            problem.value, picture.layout.display = "", ""
        except Exception:  # what a callback raises goes to a log that nobody reads
            text = f"No picture for {values()}.\n\n{traceback.format_exc(limit=-3)}"
            problem.value, picture.layout.display = f"<pre style='color:#b00020'>{html.escape(text)}</pre>", "none"

    picture.value = _frame(draw, values(), panels)  # an error at the start is raised, not shown
    for control in controls.values():
        control.observe(redraw, "value")
    columns = "repeat(auto-fit, minmax(340px, 1fr))"  # two in a row where there is room
    layout = ipywidgets.Layout(grid_template_columns=columns, width="100%", max_width="800px")
    rows = ipywidgets.GridBox(list(controls.values()), layout=layout)
    return Live(ipywidgets.VBox([rows, picture, problem]), controls, picture, problem)


def _slider(name: str, low: float, high: float, step: float, start: float) -> ipywidgets.Widget:
    integers = all(isinstance(number, int) for number in (low, high, step, start))
    kind = ipywidgets.IntSlider if integers else ipywidgets.FloatSlider
    more = {} if integers else {"readout_format": ".1f"}
    ends = {"min": min(low, start), "max": max(high, start)}  # a start outside of the range widens it
    layout = ipywidgets.Layout(width="340px")
    return kind(value=start, step=step, description=name, layout=layout, **ends, **more)


def _frame(draw: Draw, values: Mapping[str, float], panels: int) -> bytes:
    """One picture as PNG. Fixed margins: measuring every label would take longer than drawing."""
    fig = Figure(figsize=(8, _PANEL_HEIGHT))  # not pyplot's: it needs no closing
    axes = fig.subplots(1, panels, sharey=True, squeeze=False)[0]
    fig.subplots_adjust(left=0.07, right=0.99, top=0.9, bottom=0.24, wspace=0.06)
    draw(axes, **values)
    handles, labels = axes[0].get_legend_handles_labels()
    if handles:
        fig.legend(handles, labels, loc="lower center", ncols=len(labels), fontsize=11)
    out = io.BytesIO()
    fig.savefig(out, format="png", pil_kwargs={"compress_level": 1})
    return out.getvalue()


def _strip(draw: Draw, sliders: Mapping[str, Limits], stills: Mapping[str, Mapping[str, float]], panels: int) -> bytes:
    """The stills as columns, their panels below each other."""
    if not stills:
        raise ValueError("playground needs at least one still, for readers without a running kernel")
    start = {name: limits[3] for name, limits in sliders.items()}
    fig = Figure(figsize=(8, 2.35 * panels + 0.5), layout="constrained")
    axes = fig.subplots(panels, len(stills), sharex=True, sharey=True, squeeze=False)
    for column, (caption, changes) in enumerate(stills.items()):
        if unknown := sorted(set(changes) - set(start)):
            raise ValueError(f"still {caption!r} sets {', '.join(unknown)}; the sliders are {', '.join(start)}")
        draw(axes[:, column], **(start | dict(changes)))
        axes[0, column].set_title(f"{caption}\n{axes[0, column].get_title()}")
    for ax in axes.flat:
        ax.label_outer()
        ax.title.set_fontsize(_STILL_SIZES["title"])
        ax.tick_params(labelsize=_STILL_SIZES["ticks"])
        for label in (ax.xaxis.label, ax.yaxis.label):
            label.set_fontsize(_STILL_SIZES["label"])
    handles: dict[str, Artist] = {}
    for ax in axes.flat:
        for handle, label in zip(*ax.get_legend_handles_labels()):
            handles.setdefault(label, handle)
    if handles:
        fig.legend(
            handles.values(),
            handles,
            loc="outside lower center",
            ncols=len(handles),
            fontsize=_STILL_SIZES["legend"],
        )
    return _png(fig)
