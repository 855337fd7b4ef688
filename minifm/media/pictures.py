"""Pictures out of files, by pillow: all kinds of pixels become 8-bit grey or RGB of one square
size, and nothing is changed that is not counted.

Grey where all are grey, else RGB. Transparency is laid on white. What is not square loses both ends
of its longer side. A photograph is turned as its EXIF data say.
"""

import contextlib
import warnings
from collections import Counter
from typing import NamedTuple

import numpy as np

from minifm.errors import ConfigError, FormatError
from minifm.media.examples import PICTURE
from minifm.media.files import Reader
from minifm.picture import MISSING

GREY = ("1", "L", "LA", "La", "I", "I;16", "I;16B", "I;16L", "I;16N")
SIXTEEN_BITS = GREY[4:]
LARGEST_SIDE = 64               # that pictures have without being asked for
LARGEST_PIXELS = 100_000_000    # of one file: 300 MB as RGB
ORIENTATION = 0x0112            # the EXIF tag; 1 is upright


class Header(NamedTuple):
    shorter: int                # pixels of the shorter side
    grey: bool


class Pictures(Reader):
    kind = PICTURE
    suffixes = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".pgm", ".ppm",
                ".pnm")

    def look(self, entry):
        with opened(entry.files[0]) as image:
            return header(image)

    def settle(self, headers):
        self.side = self.config.size or most_frequent_side(headers)
        self.grey = all(found.grey for found in headers)
        self.facts = {"size": self.side, "channels": 1 if self.grey else 3}

    def read(self, entry):
        with opened(entry.files[0]) as image:
            array, done = squared(image, self.side, self.grey, entry.files[0])
        self.converted.update(done)
        return [array]


def most_frequent_side(headers):
    """The shorter side that most have, of equally many the larger; at most LARGEST_SIDE."""
    counts = Counter(found.shorter for found in headers)
    return min(LARGEST_SIDE, max(counts, key=lambda side: (counts[side], side)))


@contextlib.contextmanager
def opened(path):
    """`with opened(path) as image:` the pillow image of a file. All that goes wrong with it, within
    the block too, is a FormatError: decoders of fifty formats raise whatever they like."""
    Image = pillow()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")             # we have limits of our own
            with Image.open(path) as image:
                pixels = image.width * image.height
                if pixels > LARGEST_PIXELS:
                    raise FormatError(path, None, f"{image.width:,} × {image.height:,} pixels, "
                                      f"more than {LARGEST_PIXELS / 1e6:.0f} million")
                yield image
    except (FormatError, KeyboardInterrupt):
        raise
    except Image.DecompressionBombError:
        raise FormatError(path, None, "more pixels than any file is trusted with: more than "
                          f"{LARGEST_PIXELS / 1e6:.0f} million") from None
    except Image.UnidentifiedImageError:
        raise FormatError(path, None, "not a picture, or of a format that is not known") from None
    except Exception as error:
        raise FormatError(path, None, f"damaged, or no picture: {error}") from error


def header(image):
    """Size, and whether it is grey, without decoding any pixel."""
    return Header(min(image.size), is_grey(image))


def is_grey(image):
    """Whether mode, or palette, has no colours."""
    if image.mode in ("P", "PA"):
        colours = np.array(image.getpalette("RGB")).reshape(-1, 3)
        return bool((colours == colours[:, :1]).all())
    return image.mode in GREY


def squared(image, side, grey, path):
    """(uint8 [C, side, side], {what was done to it: 1}) of a pillow image; C is 1 if `grey`, else
    3. Raises FormatError for pixels that have no certain black and white."""
    from PIL import ImageOps
    done = Counter()
    if image.getexif().get(ORIENTATION, 1) not in (0, 1):
        image = ImageOps.exif_transpose(image)
        done["turned as EXIF says"] = 1
    image = _eight_bit(image, done, path)
    image = _opaque(image, done)
    if not grey and image.mode == "L":
        done["grey to RGB"] = 1
    elif image.mode not in ("1", "L", "P", "RGB"):
        done[f"{image.mode} to RGB"] = 1
    image = fitted(image.convert("L" if grey else "RGB"), side, done)
    array = np.asarray(image)
    return (array[None] if grey else np.ascontiguousarray(array.transpose(2, 0, 1))), done


def _eight_bit(image, done, path):
    if image.mode in SIXTEEN_BITS:
        values = np.asarray(image).astype(np.int64)
        if values.min() < 0 or values.max() > 65535:
            raise FormatError(path, None, f"pixels of {values.min()} … {values.max()}; expected 8 "
                              "or 16 bits")
        done["16 bits to 8"] = 1
        return pillow().fromarray(np.round(values / 257).astype(np.uint8))
    if image.mode == "F":
        raise FormatError(path, None, "floating-point pixels, whose black and white are not known")
    return image


def _opaque(image, done):
    """Without transparency: laid on white."""
    if not (image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info):
        return image
    grey, whole = is_grey(image), image.convert("RGBA")
    if whole.getchannel("A").getextrema()[0] < 255:
        done["transparency laid on white"] = 1
        white = pillow().new("RGBA", whole.size, "white")
        whole = pillow().alpha_composite(white, whole)
    return whole.convert("L" if grey else "RGB")


def fitted(image, side, done):
    """The middle square of a pillow image, as side × side pixels."""
    width, height = image.size
    shorter = min(width, height)
    if width != height:
        done["cropped to a square"] = 1
        left, top = (width - shorter) // 2, (height - shorter) // 2
        image = image.crop((left, top, left + shorter, top + shorter))
    if shorter != side:
        done[f"resized to {side} × {side}"] = 1
        image = image.resize((side, side), pillow().Resampling.LANCZOS)
    return image


def pillow():
    """The module PIL.Image. Raises ConfigError where it is missing."""
    try:
        import PIL.Image
    except ImportError:
        raise ConfigError(MISSING.replace("matplotlib", "pillow", 1)) from None
    return PIL.Image
