"""What every source of characters gives: small pictures, their names and where they come from."""

from typing import NamedTuple

from torch import Tensor

DRAWINGS = 20  # of every character, each by a different person


class Characters(NamedTuple):
    """A set of characters, drawn 20 times each; or classes of pictures of your own, as many of each class.

    images: uint8 [C, 20, 28, 28], paper = 0, ink = 255. Your own may be [C, m, H, W], grey, or [C, m, channels, H, W],
    as uint8 from 0 to 255 or as floating-point numbers on any scale.
    """

    images: Tensor
    names: list[str]  # "background/Greek/character01", "evaluation/…", "glyph/0001"
    alphabets: list[str]  # one per character; "" where there are none
    source: str  # "omniglot" or "glyphs"

    def take(self, indices: list[int]) -> "Characters":
        """The characters at `indices`, in that order."""
        return Characters(
            self.images[indices],
            [self.names[i] for i in indices],
            [self.alphabets[i] for i in indices],
            self.source,
        )
