"""A board to draw on with the mouse: strokes become pictures like Omniglot's, and a network names the last one.

Without a kernel or without ipycanvas, a picture made from stored strokes takes the board's place.
"""

from __future__ import annotations

import base64
import functools
import html
import traceback
from collections.abc import Callable, Sequence

import ipywidgets
import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.axes import Axes
from PIL import Image, ImageDraw
from torch import Tensor

from maml_edu.figures.stored_drawings import BETWEEN, FIRST, SECOND
from maml_edu.figures.style import COLOURS, Picture, _display, _png, apply_style

__all__ = ["Board", "as_picture", "draw_your_own", "named", "stored", "verdict"]

Drawing = Sequence[Sequence[tuple[float, float]]]  # strokes, each from pen down to pen up, as points (x, y)
Namer = Callable[[Tensor, Tensor], Tensor]  # support_x [1, n, 1, 28, 28], query_x [1, 1, 1, 28, 28] -> probability [n]

# What Omniglot's drawings look like, measured on all 32,460: tests/test_drawing_board.py.
SIDE, PEN = 105, 5  # pixels of an original drawing, and of its pen
EXTENT = 18 / 28  # of the longer side of a character, ink included, as a share of the picture
BOARD = 260  # pixels on the screen


def as_picture(drawing: Drawing) -> Tensor:
    """[28, 28] from 0, paper, to 1, ink: in the middle, as large as Omniglot's characters are, drawn with their pen.

    Raises ValueError if nothing has been drawn.
    """
    if not any(len(stroke) for stroke in drawing):
        raise ValueError("there's nothing on the board yet: draw a stroke first")
    strokes = [np.asarray(stroke, dtype=float) for stroke in drawing if len(stroke)]
    low, high = np.vstack(strokes).min(0), np.vstack(strokes).max(0)
    scale = (EXTENT * SIDE - PEN) / max(1.0, (high - low).max())
    paper = Image.new("L", (SIDE, SIDE))
    pen = ImageDraw.Draw(paper)
    for stroke in strokes:
        points = [(float(x), float(y)) for x, y in (stroke - (low + high) / 2) * scale + SIDE // 2]
        pen.line(points, fill=255, width=PEN)
        for x, y in points:  # round joints and ends
            pen.ellipse((x - PEN // 2, y - PEN // 2, x + PEN // 2, y + PEN // 2), fill=255)
    small = paper.resize((28, 28), Image.Resampling.LANCZOS)  # as Omniglot is made small
    return torch.from_numpy(np.array(small)).float() / 255


def stored() -> tuple[Tensor, Tensor, Tensor]:
    """Five invented characters and the same five again [1, 5, 1, 28, 28], then one between two [1, 1, 1, 28, 28]."""
    first, second = (_task([as_picture(_points(d)) for d in drawings]) for drawings in (FIRST, SECOND))
    return first, second, _task([as_picture(_points(BETWEEN))])


def _points(drawing: Sequence[str]) -> Drawing:
    return [[(float(x), float(y)) for x, y in (p.split(",") for p in stroke.split())] for stroke in drawing]


def _task(drawings: Sequence[Tensor]) -> Tensor:
    """Pictures [28, 28] as the examples of one task, [1, n, 1, 28, 28]."""
    return torch.stack(list(drawings))[None, :, None]


def verdict(probability: Tensor) -> str:
    """What the network says, and what it can't rule out: every other number with at least 10 %."""
    percent = [round(100 * p) for p in probability.tolist()]
    best, *others = sorted(range(len(percent)), key=percent.__getitem__, reverse=True)
    rivals = [f"number {i + 1} ({percent[i]} %)" for i in others if percent[i] >= 10]
    answer = f"It's number {best + 1} ({'over 99' if percent[best] == 100 else percent[best]} %)."
    return f"{answer} The network can't rule out {' or '.join(rivals)}." if rivals else answer


def named(known: Sequence[Tensor], query: Tensor | None, probability: Tensor | None, ways: int = 5) -> Picture:
    """The drawings to learn from in a row, with a bar of probability over each; at the left the one to name."""
    apply_style()
    figure = plt.figure(figsize=(8, 3.2))
    grid = figure.add_gridspec(2, ways + 2, height_ratios=(1.3, 1), wspace=0.08, hspace=0.06, bottom=0.1, top=0.86)
    _paper(figure.add_subplot(grid[:, :2]), query, "which one is it?", "query")
    for i in range(ways):
        _paper(figure.add_subplot(grid[1, i + 2]), known[i] if i < len(known) else None, f"{i + 1}", "support")
        if probability is not None:
            _bar(figure.add_subplot(grid[0, i + 2]), float(probability[i]), i == int(probability.argmax()))
    said = "" if probability is None else verdict(probability)
    figure.suptitle(said, fontsize=13)
    return Picture(figure, f"A drawing, {len(known)} characters, and a bar over each. {said}")


def _paper(ax: Axes, picture: Tensor | None, label: str, key: str) -> None:
    ax.imshow(np.zeros((28, 28)) if picture is None else picture, cmap="gray_r", vmin=0, vmax=1)
    ax.set(xticks=[], yticks=[], xlabel=label)
    for spine in ax.spines.values():
        spine.set(visible=True, color=COLOURS[key], linewidth=2)


def _bar(ax: Axes, share: float, best: bool) -> None:
    ax.bar(0, share, width=0.6, color=COLOURS["maml" if best else "before"])
    ax.text(
        0,
        share + 0.03,
        "> 99 %" if share > 0.995 else f"{100 * share:.0f} %",
        ha="center",
        fontweight="bold" if best else "normal",
    )
    ax.set(xlim=(-0.5, 0.5), ylim=(0, 1.2))
    ax.axis("off")


def draw_your_own(name: Namer, ways: int = 5) -> None:
    """The board in a live notebook; everywhere else, what `name` says of the stored drawings.

    The line printed is the same everywhere, so that stored outputs are too.
    """
    first, _, between = stored()
    still = named(list(first[0, :, 0]), between[0, 0, 0], name(first, between))
    bundle = {"image/png": base64.b64encode(_png(still.figure)).decode(), "text/plain": f"[Drawing board: {still.alt}]"}
    try:
        bundle = Board(name, ways).view() | bundle
    except ImportError:
        pass  # the next line says what to do
    print("No board below, only a picture of stored drawings? Use JupyterLab, with ipycanvas installed.")
    _display(bundle, still.alt)


class Board:
    """The widgets, and what has been drawn. Raises ImportError without ipycanvas."""

    def __init__(self, name: Namer, ways: int = 5) -> None:
        from ipycanvas import Canvas

        self.name, self.ways = name, ways
        self.known: list[Tensor] = []  # the drawings to learn from, as pictures
        self.strokes: list[list[tuple[float, float]]] = []  # on the board now
        self.pen_down = False
        layout = ipywidgets.Layout(width=f"{BOARD}px", height=f"{BOARD}px", border="2px solid #666666")
        self.canvas = Canvas(width=BOARD, height=BOARD, layout=layout)
        self.canvas.line_width, self.canvas.line_cap = BOARD * PEN / SIDE, "round"
        self.canvas.on_mouse_down(self.start)
        self.canvas.on_mouse_move(self.move)
        self.canvas.on_mouse_up(self.stop)
        self.canvas.on_mouse_out(self.stop)
        self.canvas.on_touch_start(lambda touches: self.start(*touches[0]))
        self.canvas.on_touch_move(lambda touches: self.move(*touches[0]))
        self.canvas.on_touch_end(self.stop)
        self.buttons = {}
        for text, action in (("Clear", self.clear), ("Next", self.next), ("Name it", self.name_it)):
            self.buttons[text] = ipywidgets.Button(description=text, layout=ipywidgets.Layout(width="82px"))
            self.buttons[text].on_click(functools.partial(self._safely, action))
        self.says, self.picture = ipywidgets.HTML(), ipywidgets.Image(format="png")
        self.picture.layout.max_width = "100%"
        self._show()

    def view(self) -> dict:
        """What a live notebook displays."""
        board = ipywidgets.VBox([self.says, self.canvas, ipywidgets.HBox(list(self.buttons.values()))])
        bundle = ipywidgets.VBox([board, self.picture])._repr_mimebundle_()
        return dict(bundle[0] if isinstance(bundle, tuple) else bundle)

    def start(self, x: float, y: float) -> None:
        self.pen_down = True
        self.strokes.append([(x, y)])
        self.canvas.stroke_line(x, y, x + 0.1, y)

    def move(self, x: float, y: float) -> None:
        if self.pen_down:
            self.canvas.stroke_line(*self.strokes[-1][-1], x, y)
            self.strokes[-1].append((x, y))

    def stop(self, *_: object) -> None:
        self.pen_down = False

    def clear(self) -> None:
        """Wipe the board. What has been handed over by Next stays."""
        self.strokes, self.pen_down = [], False
        self.canvas.clear()
        self._show()

    def next(self) -> None:
        """Keep the drawing as one to learn from, and wipe the board for another."""
        self.known.append(as_picture(self.strokes))
        self.clear()

    def name_it(self) -> None:
        query = as_picture(self.strokes)
        self._show(query, self.name(_task(self.known), _task([query])))

    def _show(self, query: Tensor | None = None, probability: Tensor | None = None) -> None:
        complete = len(self.known) == self.ways
        self.buttons["Next"].disabled, self.buttons["Name it"].disabled = complete, not complete
        draw = f"Draw character {len(self.known) + 1} of {self.ways}, then press <b>Next</b>."
        self.says.value = "Draw one of them again, then press <b>Name it</b>." if complete else draw
        self.picture.value = _png(named(self.known, query, probability, self.ways).figure, tight=False)

    def _safely(self, action: Callable[[], None], _: object = None) -> None:
        """A callback's error would go to a log that nobody reads."""
        try:
            action()
        except ValueError as error:
            self.says.value = f"<b>{html.escape(str(error))}</b>"
        except Exception:
            self.says.value = f"<pre>{html.escape(traceback.format_exc(limit=-3))}</pre>"
