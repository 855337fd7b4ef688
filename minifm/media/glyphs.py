"""Letters in styles: pictures with captions that any machine can make, of the fonts that matplotlib
brings along.

    "bold italic letter A"   "regular latin small letter g"   "serif italic digit seven"

Style is weight and slant. What is held out are pairs of a letter and a style, in every typeface.
Captions are the letter's Unicode name with the style, and of three kinds, as people would ask. At
the end `recognised` reads pictures, so that what a model makes can be checked.
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


def asked(text):
    """(letter, style) that a caption means. Raises ConfigError for one that is of no form.

    >>> asked("bold italic letter A"), asked("serif regular digit seven")
    (('A', 'bold italic'), ('7', 'regular'))
    """
    if text not in meanings():
        raise ConfigError(f"caption: {text!r} is none of a letter; expected one such as "
                          f"{caption('A', 'bold italic', 'serif', 0)!r}")
    return meanings()[text]


@lru_cache(maxsize=1)
def meanings():
    """{caption: (letter, style)} of all captions there are."""
    return {caption(letter, style, face, form): (letter, style)
            for letter in LETTERS for style in STYLES for face in FONTS for form in range(3)}


def rendered(letter, path, size, em, across, down):
    """A letter as uint8 [1, size, size]. `em`, `across` and `down` in [0, 1) say how large it is
    and where it stands, each between its least and its most."""
    from PIL import Image, ImageDraw
    font = open_font(str(path), between(*ems(size), em))
    x, y = size // 2, round(BASELINE * size)
    left, top, right, bottom = font.getbbox(letter, anchor="ms")
    place = (x + moved(across, x + left, size - x - right, round(SHIFT * size)),
             y + moved(down, y + top, size - y - bottom, round(SHIFT * size)))
    image = Image.new("L", (size, size), 255)
    ImageDraw.Draw(image).text(place, letter, fill=0, font=font, anchor="ms")
    return np.asarray(image)[None]


def ems(size):
    """The least and the most pixels of a font for pictures of `size`."""
    return tuple(round(part * size) for part in EM)


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


# -- what is in a picture --------------------------------------------------------------------------


def recognised(pictures):
    """(letter, style) of each of `pictures` [B, 1, size, size], values in -1 … 1: of all letters in
    all styles, typefaces and sizes, the one whose ink differs least, in squares, once both are
    moved so that their middles fall together, give or take a pixel. No network has a part in it.

    Letters that one typeface draws alike, as l and I of some, are told apart no better than by eye.
    """
    names, known = renderings(pictures.shape[-1])
    least = np.full(len(pictures), np.inf, np.float32)
    found = np.zeros(len(pictures), np.int64)
    ink = np.stack([centred(picture) for picture in (1 - pictures[:, 0]) / 2])
    for down, across in np.ndindex(3, 3):
        flat = np.roll(ink, (down - 1, across - 1), (1, 2)).reshape(len(ink), -1)
        # |a - b|² = |a|² - 2 a·b + |b|², where |a|² is the same for every b
        distance = np.sum(known**2, 1) - 2 * flat @ known.T
        nearest = distance.argmin(1)
        better = distance.min(1) < least
        least, found = np.where(better, distance.min(1), least), np.where(better, nearest, found)
    return [names[place] for place in found]


@lru_cache(maxsize=2)
def renderings(size):
    """([(letter, style)], ink float32 [R, size²], its middle in the middle) of all there are."""
    fonts, (least, most) = font_directory(), ems(size)
    names, drawn = [], []
    for files in FONTS.values():
        for style, file in zip(STYLES, files):
            for letter in LETTERS:
                for em in range(most - least + 1):
                    picture = rendered(letter, fonts / f"{file}.ttf", size,
                                       (em + 0.5) / (most - least + 1), 0.5, 0.5)
                    names.append((letter, style))
                    drawn.append(centred(1 - picture[0] / np.float32(255)).reshape(-1))
    return names, np.stack(drawn)


def centred(ink):
    """Ink [H, W] in 0 … 1 as float32, moved by whole pixels so that its middle is in the middle."""
    ink = np.clip(ink, 0, 1).astype(np.float32)
    weight = np.where(ink > 0.25, ink, 0)               # a network's white is not all white
    if not weight.any():
        return ink
    middle = [np.average(np.arange(side), weights=weight.sum(1 - axis))
              for axis, side in enumerate(ink.shape)]
    return np.roll(ink, [round((side - 1) / 2 - place) for side, place in zip(ink.shape, middle)],
                   (0, 1))
