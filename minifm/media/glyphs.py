"""Letters in styles: pictures with captions that any machine can make, of the fonts that matplotlib
brings along.

    "bold italic letter A"   "regular latin small letter g"   "serif italic digit seven"

Style is weight and slant. What is held out are pairs of a letter and a style, in every typeface.
Captions are the letter's Unicode name with the style, and of three kinds, as people would ask.
"""

import unicodedata
from functools import lru_cache
from pathlib import Path

import numpy as np

from minifm.errors import ConfigError
from minifm.media.examples import PICTURE
from minifm.media.pairs import Maker
from minifm.picture import MISSING

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"
STYLES = ("regular", "bold", "italic", "bold italic")
FONTS = {                       # typeface: its files, in the order of STYLES
    "sans": ("DejaVuSans", "DejaVuSans-Bold", "DejaVuSans-Oblique", "DejaVuSans-BoldOblique"),
    "serif": ("DejaVuSerif", "DejaVuSerif-Bold", "DejaVuSerif-Italic", "DejaVuSerif-BoldItalic"),
    "mono": ("DejaVuSansMono", "DejaVuSansMono-Bold", "DejaVuSansMono-Oblique",
             "DejaVuSansMono-BoldOblique"),
    "stix": ("STIXGeneral", "STIXGeneralBol", "STIXGeneralItalic", "STIXGeneralBolIta"),
}
SMALLEST = 12                   # pixels of a side, below which styles are not told apart
EM = (0.58, 0.70)               # of a side: the least and the largest font
SHIFT = 1 / 16                  # of a side: how far a letter is moved at most
BASELINE = 0.71                 # of a side, from above


def glyphs(config):
    """Examples [N, 1, size, size], black on white, size 32 unless `config` says otherwise; the
    classes are the letters. Raises ConfigError without matplotlib and pillow."""
    size = config.size or 32
    if size < SMALLEST:
        raise ConfigError(f"size: letters take at least {SMALLEST} pixels a side, got {size}")
    fonts = font_directory()

    def draw(letter, style, rng, held_out):
        of_faces, of_forms, *of_picture = rng.host_uniform((5,)).tolist()
        face = list(FONTS)[int(of_faces * len(FONTS))]
        path = fonts / f"{FONTS[face][STYLES.index(style)]}.ttf"
        return (rendered(letter, path, size, *of_picture),
                caption(letter, style, face, int(of_forms * 3)))

    pairs = tuple((letter, style) for letter in LETTERS for style in STYLES)
    return Maker("glyphs", PICTURE, pairs, draw, 32, {"size": size}).make(config)


def caption(letter, style, face, form):
    """The caption of a letter in one of three forms: 0, as short as people ask; 1, by its Unicode
    name; 2, by that and its typeface.

    >>> [caption("A", "bold", "serif", form) for form in range(3)]
    ['bold letter A', 'bold latin capital letter a', 'serif bold latin capital letter a']
    """
    if form == 0:
        return f"{style} {'digit' if letter.isdigit() else 'letter'} {letter}"
    named = f"{style} {unicodedata.name(letter).lower()}"
    return named if form == 1 else f"{face} {named}"


def rendered(letter, path, size, em, across, down):
    """A letter as uint8 [1, size, size]. `em`, `across` and `down` in [0, 1) say how large it is
    and where it stands, each between its least and its most."""
    from PIL import Image, ImageDraw
    least, most = (round(part * size) for part in EM)
    font = open_font(str(path), between(least, most, em))
    x, y = size // 2, round(BASELINE * size)
    left, top, right, bottom = font.getbbox(letter, anchor="ms")
    place = (x + moved(across, x + left, size - x - right, round(SHIFT * size)),
             y + moved(down, y + top, size - y - bottom, round(SHIFT * size)))
    image = Image.new("L", (size, size), 255)
    ImageDraw.Draw(image).text(place, letter, fill=0, font=font, anchor="ms")
    return np.asarray(image)[None]


def moved(part, before, after, most):
    """Pixels to move by, at most `most`, and so that what has `before` and `after` pixels free on
    its two sides stays whole: the widest, bold M and W, have hardly any."""
    return between(-min(most, before), min(most, after), part)


def between(low, high, part):
    """The integer low … high that `part` in [0, 1) falls on."""
    return low + int(part * (high - low + 1))


@lru_cache(maxsize=256)
def open_font(path, em):
    """A font of `em` pixels. The basic layout is the same on machines with and without Raqm."""
    from PIL import ImageFont
    return ImageFont.truetype(path, em, layout_engine=ImageFont.Layout.BASIC)


def font_directory():
    """Where matplotlib keeps its fonts. Raises ConfigError where it, or pillow, is missing."""
    try:
        import matplotlib
        import PIL.ImageFont  # noqa: F401
    except ImportError as error:
        missing = "pillow" if error.name.startswith("PIL") else "matplotlib"
        raise ConfigError(f"glyphs: {MISSING.replace('matplotlib', missing, 1)}") from None
    return Path(matplotlib.get_data_path()) / "fonts" / "ttf"
