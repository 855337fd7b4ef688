"""Does a model that has learnt letters in styles by their captions draw what a caption says?

The captions are of pairs of a letter and a style that training never saw (media/pairs.py), and the
pictures are read by comparison with all letters there are (media/glyphs.py): no network has a part
in it. What the same reader makes of real pictures of these pairs says how far to trust it.
"""

from dataclasses import dataclass

from minifm.errors import ConfigError
from minifm.media import glyphs


@dataclass(frozen=True)
class Read:
    """Fractions of pictures that show the letter that their caption names, the style, and both."""

    letter: float
    style: float
    both: float


def read_back(pictures, captions):
    """Read, of `pictures` [N, 1, size, size], values in -1 … 1, that were to be what N captions
    say. Raises ConfigError for a caption that is none of a letter."""
    meant = [glyphs.asked(caption) for caption in captions]
    pairs = list(zip(glyphs.recognised(pictures), meant))
    letters = [seen[0] == wanted[0] for seen, wanted in pairs]
    styles = [seen[1] == wanted[1] for seen, wanted in pairs]
    return Read(*(sum(right) / len(pairs) for right in (
        letters, styles, [a and b for a, b in zip(letters, styles)])))


def require_letters(examples, captions):
    """Raise ConfigError unless the Examples are of letters, and so are these captions."""
    if examples.description["name"] != "glyphs":
        raise ConfigError("check: what is made of captions can be read back where they are of "
                          f"glyphs, not of {examples.description['name']}")
    for caption in captions:
        glyphs.asked(caption)


def held_out_captions(examples, count):
    """`count` captions of held-out Examples, from everywhere among them."""
    places = examples.parts["held_out"]
    return [examples.captions[places[i * len(places) // count]] for i in range(count)]
