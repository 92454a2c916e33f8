"""What every source of characters gives: small grey pictures, their names and where they come from."""

from typing import NamedTuple

from torch import Tensor

DRAWINGS = 20  # of every character, each by a different person


class Characters(NamedTuple):
    """A set of characters, drawn 20 times each."""

    images: Tensor  # uint8 [C, 20, 28, 28], paper = 0, ink = 255
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
