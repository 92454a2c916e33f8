"""Synthetic characters: what runs where Omniglot cannot be had.

A character is a plan of two to four smooth pen strokes (cubic Bézier curves). A drawing of it follows the
plan with an unsteady hand: its control points move a little, the whole is sheared, scaled and shifted, and
the pen is thicker or thinner. That is the idea behind Omniglot's own generative model (Lake et al. 2015), in
its simplest form. Glyphs are easier to tell apart than Omniglot: accuracies on one say nothing about the
other.
"""

from functools import lru_cache

import torch
from torch import Tensor

from maml_edu.data.character_set import DRAWINGS, Characters

STROKES = 4  # at most
SIZE = 28
HAND = 0.12  # standard deviation of a control point from drawing to drawing; the paper is 2 wide
SLANT = 0.16  # the same for the entries of the affine map
SHIFT = 0.10  # and for the position


@lru_cache(maxsize=2)
def glyphs(classes: int = 400, seed: int = 0) -> Characters:
    """`classes` invented characters, 20 drawings each: images uint8 [classes, 20, 28, 28], ink = 255.

    The same seed always gives the same characters. Raises ValueError if `classes` is not a positive whole
    number.
    """
    if not isinstance(classes, int) or classes < 1:
        raise ValueError(f"classes must be a positive whole number, not {classes!r}")
    generator = torch.Generator().manual_seed(seed)
    plans = _plans(classes, generator)  # [C, strokes, 4, 2]
    # Two plans at a time: the distances then stay in the CPU's cache, which makes this three times as fast.
    images = [_draw(pair, generator) for pair in plans.split(2)]
    return Characters(
        images=torch.cat(images),
        names=[f"glyph/{number:04d}" for number in range(1, classes + 1)],
        alphabets=[""] * classes,
        source="glyphs",
    )


def _plans(classes: int, generator: torch.Generator) -> Tensor:
    """Control points [C, strokes, 4, 2] on paper that reaches from −1 to 1; coordinates are (x, y)."""

    def chance(probability: float) -> Tensor:  # [C, strokes, 1]
        return torch.rand(classes, STROKES, 1, generator=generator) < probability

    # Strokes run between the nine points of a 3 × 3 grid, so there are uprights, bars and diagonals as in
    # real writing, and often a stroke starts where the one before it ended.
    start = torch.randint(0, 9, (classes, STROKES), generator=generator)
    step = torch.randint(1, 9, (classes, STROKES), generator=generator)  # never 0: the end is not the start
    joined = chance(0.5)[..., 0]
    for stroke in range(1, STROKES):
        before = start[:, stroke - 1] + step[:, stroke - 1]
        start[:, stroke] = torch.where(joined[:, stroke], before, start[:, stroke])
    grid = torch.cartesian_prod(torch.arange(3.0), torch.arange(3.0)) - 1  # [9, 2]
    ends = grid[torch.stack([start, start + step], dim=-1) % 9]  # [C, strokes, 2, 2]

    # The inner control points lie a third along the chord; most of the strokes bend away from it.
    inner = torch.lerp(ends[:, :, :1], ends[:, :, 1:], torch.tensor([[1 / 3], [2 / 3]]))
    inner = inner + chance(0.6)[..., None] * torch.randn(classes, STROKES, 2, 2, generator=generator)
    plans = torch.cat([ends[:, :, :1], inner, ends[:, :, 1:]], dim=2)

    # Two to STROKES strokes are used; the others stay in the tensor, off the paper.
    strokes = torch.randint(2, STROKES + 1, (classes, 1, 1, 1), generator=generator)
    unused = torch.arange(STROKES)[:, None, None] >= strokes
    return plans.masked_fill(unused, 8.0)


def _draw(plans: Tensor, generator: torch.Generator) -> Tensor:
    """Twenty drawings of each plan: [C, strokes, 4, 2] -> uint8 [C, 20, 28, 28]."""
    C, S = plans.shape[:2]

    def noise(scale: float, *shape: int) -> Tensor:
        return scale * torch.randn(C, DRAWINGS, *shape, generator=generator)

    points = plans[:, None] + noise(HAND, S, 4, 2)  # [C, 20, S, 4, 2]
    curves = _bezier(points).flatten(2, 3)  # [C, 20, 40 · strokes, 2]
    curves = curves @ (torch.eye(2) + noise(SLANT, 2, 2)) + noise(SHIFT, 1, 2)

    # Ink by distance from each pixel's centre to the nearest sample of the curve, in pixels; the edge of the
    # pen fades over one pixel, which is what makes the drawing anti-aliased.
    axis = torch.arange(SIZE, dtype=torch.float32)
    pixels = torch.cartesian_prod(axis, axis).flip(-1)  # [784, 2] as (x, y), row by row
    samples = (curves + 1.5) * (SIZE / 3) - 0.5  # the plan with a margin: from −1.5 to 1.5
    distance = torch.cdist(pixels, samples.flatten(0, 1)).amin(-1)  # [C · 20, 784]
    pen = (0.8 + noise(0.15)).clamp(0.5, 1.2).view(-1, 1)  # radius in pixels
    ink = (pen + 0.5 - distance).clamp(0, 1)
    return (255 * ink).round().to(torch.uint8).view(C, DRAWINGS, SIZE, SIZE)


def _bezier(points: Tensor) -> Tensor:
    """Forty points on each cubic Bézier curve: control points [..., 4, 2] -> [..., 40, 2]."""
    t = torch.linspace(0, 1, 40)
    bernstein = [(1 - t) ** 3, 3 * t * (1 - t) ** 2, 3 * t**2 * (1 - t), t**3]
    return torch.stack(bernstein, dim=-1) @ points  # [40, 4] @ [..., 4, 2]
