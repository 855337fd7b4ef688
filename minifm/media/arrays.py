"""Examples in NumPy's .npy files: one in a file, or many.

An array does not say what it holds: 60,000 × 28 × 28 numbers are pictures, or one solid. Where the
shape does not tell, `kind` must. Values are 0 … 255 (uint8), truth values, or floats in 0 … 1 or,
where any is negative, in -1 … 1. A file of Python objects is a pickle, and refused.
"""

from typing import NamedTuple

import numpy as np

from minifm.errors import ConfigError, FormatError
from minifm.media.examples import KINDS
from minifm.media.files import Reader
from minifm.media.solids import occupied
from minifm.media.tables import resized

SIZE = 16                       # voxels of a side that a cloud of points is put into
COLOURS = (1, 3)                # channels of a picture
CLOUD = "a cloud of points"

# kind: {the axes of an array: how they become [N, C, *space]}; the first that fits is taken.
# Axes are N examples, C channels (1 or 3), P points, and those of space.
LAYOUTS = {
    "picture": {"NCHW": "NCHW", "NHWC": "NCHW", "HWC": "NCHW", "NHW": "NCHW", "HW": "NCHW"},
    "sound": {"NCT": "NCT", "NT": "NCT"},
    "video": {"NCFHW": "NCFHW", "NFHWC": "NCFHW", "NFHW": "NCFHW", "FHW": "NCFHW"},
    "solid": {"NCXYZ": "NCXYZ", "NP3": CLOUD, "P3": CLOUD, "NXYZ": "NCXYZ", "XYZ": "NCXYZ"},
}


class Header(NamedTuple):
    layout: str                 # axes, as in LAYOUTS
    shape: tuple
    low: float                  # the least of its values


class Arrays(Reader):
    suffixes = (".npy",)

    def look(self, entry):
        path = entry.files[0]
        array = read_numpy(path)
        name = self.config.kind or guessed(path, array)
        if self.kind not in (None, KINDS[name]):
            raise FormatError(path, None, f"an array of shape {array.shape}, a {name}; the files "
                              "before hold something else")
        self.name, self.kind = name, KINDS[name]
        layout = layout_of(path, array.shape, name)
        require_values(path, array, name, layout)
        return Header(layout, array.shape, array.min())

    def settle(self, headers):
        self.negative = self.name == "sound" or min(float(found.low) for found in headers) < 0
        if self.name == "sound":
            if not self.config.rate:
                raise ConfigError("rate: an array does not say how many samples a second it has; "
                                  "say it")
            self.facts = {"rate": self.config.rate}
        self.side = self.config.size or (SIZE if LAYOUTS[self.name][headers[0].layout] == CLOUD
                                         else None)
        self.shape = None

    def read(self, entry):
        path = entry.files[0]
        array = np.asarray(read_numpy(path))
        layout = layout_of(path, array.shape, self.name)
        if LAYOUTS[self.name][layout] == CLOUD:
            clouds = array.astype(np.float64).reshape(-1, *array.shape[-2:])
            values = np.stack([occupied(cloud, self.side) for cloud in clouds])[:, None]
            self.converted["points to voxels"] += len(values)
        else:
            values = self._in_range(arranged(array, layout, LAYOUTS[self.name][layout]))
        return list(self._of_one_shape(path, values))

    def _in_range(self, values):
        """uint8 of whole numbers, float32 in -1 … 1 of others."""
        if values.dtype == np.uint8 and values.max() > 1:
            return values
        if values.dtype.kind in "bu":
            self.converted["0 and 1 to empty and full"] += len(values)
            return values.astype(np.uint8) * np.uint8(255)
        if values.dtype == np.int16:
            return (values / 32768).astype(np.float32)
        return values.astype(np.float32) if self.negative else (2 * values - 1).astype(np.float32)

    def _of_one_shape(self, path, values):
        if self.name == "picture" and self.side and values.dtype == np.uint8:
            values = resized(values, self.side, self.converted)
        self.shape = self.shape or values.shape[1:]
        if self.side and values.shape[-1] != self.side and self.name != "sound":
            raise FormatError(path, None, f"{self.name}s of side {values.shape[-1]}, which --size "
                              f"{self.side} does not resize")
        if values.shape[1:] != self.shape:
            raise FormatError(path, None, f"examples of shape {values.shape[1:]}; the files before "
                              f"have {self.shape}")
        self.facts |= {"size": values.shape[-1]} if self.name != "sound" else \
            {"length": values.shape[-1]}
        return values


def read_numpy(path):
    """The array, mapped from the file and not in memory. Raises FormatError."""
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError, TypeError, SyntaxError) as error:
        raise FormatError(path, None, f"no .npy file, damaged, or of Python objects: {error}") \
            from error
    if not isinstance(array, np.ndarray):
        raise FormatError(path, None, "an archive of arrays; expected one array")
    if not array.size:
        raise FormatError(path, None, f"there is nothing in it: its shape is {array.shape}")
    return array


def guessed(path, array):
    """What an array holds, by its shape, where there is but one thing."""
    shape = array.shape
    if len(shape) == 2 and shape[1] == 3 and array.dtype.kind == "f":
        return "solid"
    if len(shape) == 4 and (shape[-1] == 3 or shape[1] in COLOURS and shape[2] == shape[3]):
        return "picture"
    raise FormatError(path, None, f"an array of shape {shape} may hold pictures, solids or others; "
                      f"say which by --kind {', '.join(KINDS)}")


def layout_of(path, shape, name):
    """The first of the kind's LAYOUTS that the shape fits."""
    for layout in LAYOUTS[name]:
        if len(layout) == len(shape) and all(
                {"C": n in COLOURS, "3": n == 3}.get(axis, True) for axis, n in zip(layout, shape)):
            return layout
    raise FormatError(path, None, f"an array of shape {shape}; a {name} is one of "
                      f"{', '.join(LAYOUTS[name])} (N examples, C 1 or 3 channels, P points)")


def require_values(path, array, name, layout):
    """Raise FormatError for values of which it is not known what is black and what white."""
    kind = array.dtype
    if kind.kind == "f":
        if not np.isfinite(array).all():
            place = tuple(map(int, np.argwhere(~np.isfinite(array))[0]))
            raise FormatError(path, f"[{', '.join(map(str, place))}]",
                              f"{array[place]} is no number to learn from")
        if LAYOUTS[name][layout] != CLOUD and (array.min() < -1 or array.max() > 1):
            raise FormatError(path, None, f"floats of {array.min():.4g} … {array.max():.4g}; "
                              "expected 0 … 1 or -1 … 1")
    elif LAYOUTS[name][layout] == CLOUD:
        if kind.kind not in "iu":
            raise FormatError(path, None, f"points of {kind}; expected numbers")
    elif kind not in (np.uint8, bool) and (kind, name) != (np.int16, "sound"):
        raise FormatError(path, None, f"values of {kind}; expected uint8, truth values or floats")


def arranged(array, layout, wanted):
    """The array with axes `layout` as [N, C, *space]; N and C are 1 where it has none."""
    order = [layout.index(axis) for axis in wanted if axis in layout]
    missing = tuple(place for place, axis in enumerate(wanted) if axis not in layout)
    return np.expand_dims(array.transpose(order), missing)
