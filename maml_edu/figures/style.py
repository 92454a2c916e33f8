"""How figures look and get into a notebook: colours by meaning, `show`, and sliders that survive storage."""

from __future__ import annotations

import base64
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple, TypeVar, overload

import ipywidgets
import matplotlib.pyplot as plt
import numpy as np
from IPython.core.pylabtools import print_figure
from IPython.display import display
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from maml_edu.evaluation import StepScore

__all__ = [
    "COLOURS",
    "STYLES",
    "Look",
    "Picture",
    "apply_style",
    "explore",
    "figure_of",
    "line",
    "new_axes",
    "points",
    "show",
    "where_none_diverged",
]

Look = dict[str, Any]  # keyword arguments of a matplotlib call: colour, dashes, marker, …
Value = TypeVar("Value")  # of a slider

# One colour per meaning through the whole series. The first six are Okabe and Ito's, with the four that are
# easiest to tell apart for the methods; the others are dark or grey, chosen to stay clear of them for every
# common colour blindness.
COLOURS = {
    "maml": "#0072B2",  # blue
    "fomaml": "#D55E00",  # vermillion
    "reptile": "#009E73",  # green
    "joint": "#CC79A7",  # reddish purple: pre-training on all tasks at once
    "support": "#E69F00",  # orange
    "query": "#56B4E9",  # sky blue
    "truth": "#000000",
    "after": "#7A0177",  # deep magenta: φ, adapted
    "before": "#666666",  # grey: θ, not yet adapted
    "oracle": "#661100",  # dark brown: is told the task
}

# The second channel, for greyscale prints: (dashes of a line, marker of a point).
_DASHES_AND_MARKERS = {
    "maml": ("-", "o"),
    "fomaml": ("--", "s"),
    "reptile": ("-.", "^"),
    "joint": (":", "D"),
    "support": ("-", "o"),
    "query": ("--", "s"),
    "truth": ("-", "."),
    "after": ("-", "P"),
    "before": ("--", "X"),
    "oracle": ((0, (5, 1, 1, 1, 1, 1)), "v"),
}

# For ax.plot(x, y, **STYLES["maml"]). Support and query are sets of examples: points without a line.
STYLES: dict[str, Look] = {
    key: {
        "color": COLOURS[key],
        "linestyle": "none" if key in ("support", "query") else dashes,
        "marker": marker,
    }
    for key, (dashes, marker) in _DASHES_AND_MARKERS.items()
}

_RC: dict[Any, object] = {
    "figure.dpi": 100,
    "savefig.dpi": "figure",
    "font.size": 12,
    "axes.titlesize": 13,
    "axes.labelsize": 12,
    "legend.fontsize": 11,
    "legend.frameon": False,
    "lines.linewidth": 2,
    "lines.markersize": 7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "figure.facecolor": "white",
}
_WIDTH, _HEIGHT = 8.0, 3.4  # inches; 8 is the widest a notebook column shows without shrinking
_STILLS = 4  # pictures in the strip that stands in for a slider


def line(key: str) -> Look:
    """Colour and dashes without markers: for curves of many points."""
    return {"color": COLOURS[key], "linestyle": _DASHES_AND_MARKERS[key][0], "marker": ""}


def points(key: str) -> Look:
    """Colour and marker without a line: for scattered points drawn with `ax.plot`."""
    return {"color": COLOURS[key], "linestyle": "none", "marker": _DASHES_AND_MARKERS[key][1]}


def apply_style() -> None:
    """Make the look of the series matplotlib's default in this session. Calling it again changes nothing."""
    plt.rcParams.update(_RC)


@overload
def new_axes(columns: Literal[1] = 1, height: float = _HEIGHT) -> tuple[Figure, Axes]: ...
@overload
def new_axes(columns: int, height: float = _HEIGHT) -> tuple[Figure, Any]: ...
def new_axes(columns: int = 1, height: float = _HEIGHT) -> tuple[Figure, Any]:
    """A styled figure and its axes: one `Axes` for one column, otherwise an array of them."""
    apply_style()
    width = 6.0 if columns == 1 else _WIDTH
    return plt.subplots(1, columns, figsize=(width, height), layout="constrained")


def figure_of(ax: Axes) -> Figure:
    """The figure that holds these axes."""
    figure = ax.figure
    assert isinstance(figure, Figure)  # no figure of the series has another within it
    return figure


def where_none_diverged(scores: Sequence[StepScore]) -> tuple[list[int], list[float], list[float]]:
    """The steps at which every task has a finite loss, and the mean and the half-width of its interval there."""
    known = [(s.step, s.mean, s.half_width) for s in scores if s.mean is not None and s.half_width is not None]
    return [step for step, _, _ in known], [mean for _, mean, _ in known], [half for _, _, half in known]


class Picture(NamedTuple):
    """A finished figure, and a sentence for readers who can't see it."""

    figure: Figure
    alt: str


def show(picture: Picture | Figure, alt: str | None = None) -> None:
    """Put a finished figure into the notebook as PNG, and close it.

    The alt text is stored twice: as the alternative text of the picture, and as the plain text of the output, where
    readers without pictures find it and the notebook tests compare it. A bare figure needs one as second argument.
    """
    figure, text = picture if isinstance(picture, Picture) else (picture, alt or "")
    _require_alt(text)
    png = base64.b64encode(_png(figure)).decode()
    _display({"image/png": png, "text/plain": f"[Figure: {text}]"}, text)


def explore(
    draw: Callable[[Value, Axes], object],
    values: Sequence[Value],
    name: str,
    alt: str,
    stills: Sequence[Value] | None = None,
) -> None:
    """A slider over `values` in a live notebook, and a strip of stills wherever the notebook is only read.

    `draw(value, ax)` draws one picture. All are drawn at once, so an error in any appears in this cell. stills: the
    values shown in the strip; by default four, evenly spaced.
    """
    _require_alt(alt)
    if not len(values):
        raise ValueError("explore needs at least one value to draw, got none")
    apply_style()

    frames = []
    for value in values:
        fig, ax = new_axes()
        assert isinstance(ax, Axes)
        _draw(draw, value, name, ax)
        frames.append(_png(fig, tight=False))  # every frame the same size: the picture must not jump

    chosen = np.unique(np.linspace(0, len(values) - 1, min(_STILLS, len(values))).round().astype(int)).tolist()
    if stills is not None:
        chosen = [i for i, value in enumerate(values) if value in stills] or chosen
    fig, axes = plt.subplots(
        1, len(chosen), figsize=(_WIDTH, 2.6), sharex=True, sharey=True, squeeze=False, layout="constrained"
    )
    for ax, index in zip(axes[0], chosen, strict=True):
        _draw(draw, values[index], name, ax)
        ax.label_outer()
        for text in [ax.title, ax.xaxis.label, ax.yaxis.label, *ax.texts]:
            text.set_fontsize(10)
    _one_legend(fig, axes[0])
    strip = base64.b64encode(_png(fig)).decode()

    options = [(_label(value), i) for i, value in enumerate(values)]
    slider = ipywidgets.SelectionSlider(options=options, description=name, continuous_update=True)
    picture = ipywidgets.Image(value=frames[0], format="png")
    slider.observe(lambda change: setattr(picture, "value", frames[change["new"]]), "value")
    bundle = ipywidgets.VBox([slider, picture])._repr_mimebundle_()
    bundle = dict(bundle[0] if isinstance(bundle, tuple) else bundle)
    _display(bundle | {"image/png": strip, "text/plain": f"[Slider over {name}: {alt}]"}, alt)


def _one_legend(fig: Figure, axes: Sequence[Axes]) -> None:
    """The legend of the first panel, below all of them, in place of one in each."""
    legends = [ax.get_legend() for ax in axes]
    if legends[0] is not None:
        handles, labels = axes[0].get_legend_handles_labels()
        fig.legend(handles, labels, loc="outside lower center", ncols=min(len(labels), 5), fontsize=10)
        fig.set_figheight(fig.get_figheight() + 0.3)
    for legend in legends:
        if legend is not None:
            legend.remove()


def _draw(draw: Callable[[Value, Axes], object], value: Value, name: str, ax: Axes) -> None:
    draw(value, ax)
    if not ax.get_title():
        ax.set_title(f"{name} = {_label(value)}")


def _label(value: object) -> str:
    return f"{value:g}" if isinstance(value, (float, np.floating)) else str(value)


def _png(fig: Figure, tight: bool = True) -> bytes:
    """The picture as bytes; `tight` grows or trims the page so that no label is cut off."""
    png = print_figure(fig, "png", bbox_inches="tight" if tight else None, pad_inches=0.08)
    plt.close(fig)
    return png


def _require_alt(alt: str) -> None:
    if not alt.strip():
        raise ValueError("alt is empty: say in a sentence what the figure shows")


def _display(bundle: dict[str, str], alt: str) -> None:
    display(bundle, metadata={"image/png": {"alt": alt}}, raw=True)
