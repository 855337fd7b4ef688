"""What a diffusion model learns from: arrays of one shape, what is known of them, and their kind.

    examples = digits()
    x = examples.take(examples.parts["training"][:16])      # float32 [16, 1, 8, 8] in -1 … 1
    examples.kind.save("sixteen.png", x)

A kind says what the axes of space mean, how an example looks and which files can hold it.
"""

import itertools
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Callable

import numpy as np

from minifm.errors import ConfigError, listed
from minifm.media import drawing


@dataclass(frozen=True)
class Kind:
    """name       picture, sound, video or solid
    space      the axes behind the channels, a letter each: "HW", "T", "FHW", "XYZ"
    extension  of the files that hold it whole, as ".wav"
    view       view(values [B, C, *space]) -> uint8 [B, H, W, 1 or 3], a picture of each
    writers    {extension: write(path, values, rate)}, beside .png (the view) and .npy
    """

    name: str
    space: str
    extension: str
    view: Callable
    writers: dict

    def save(self, path, values, *, rate=None):
        """Write `values` [B, C, *space], in -1 … 1, as the name of `path` ends: .png, a grid of
        their pictures; .npy, the array; or a file of the kind (.gif, .wav). `rate` is of sounds,
        samples a second.

        Raises ConfigError for an ending of no such file, UserError where the disk refuses.
        """
        self.check_path(path)
        self._writers()[Path(path).suffix.lower()](path, values, rate)

    def check_path(self, path):
        """Raise ConfigError now for what `save` would refuse then."""
        ending = Path(path).suffix.lower()
        if ending not in self._writers():
            raise ConfigError(f"{path}: a {self.name} is written to {', '.join(self._writers())}, "
                              f"not to {ending or 'a name without ending'}")

    def _writers(self):
        # The kind's own comes first: that is what a message should name first.
        return {self.extension: None, ".png": self._write_view, ".npy": drawing.write_array} \
            | self.writers

    def _write_view(self, path, values, rate):
        drawing.write_png(path, drawing.grid(self.view(values)))


PICTURE = Kind("picture", "HW", ".png", drawing.of_pictures, {})
SOUND = Kind("sound", "T", ".wav", drawing.of_sounds, {".wav": drawing.write_wave})
VIDEO = Kind("video", "FHW", ".gif", drawing.of_films, {".gif": drawing.write_films})
SOLID = Kind("solid", "XYZ", ".npy", drawing.of_solids, {})
KINDS = {kind.name: kind for kind in (PICTURE, SOUND, VIDEO, SOLID)}


@dataclass(frozen=True, eq=False)
class Examples:
    """kind         PICTURE, SOUND, VIDEO or SOLID
    values       [N, C, *space]: uint8, where 0 is -1 and 255 is 1, or float32 in -1 … 1
    labels       int32 [N], places in `classes`, or None
    classes      names, or ()
    captions     N strings, or None
    parts        {"training": indices, "held_out": indices}, int64, which do not overlap
    description  {…} that names the data in a run: name, sha256, generated; `skipped` and
                 `converted` {what: how many} say what was left out or changed on the way
    """

    kind: Kind
    values: np.ndarray
    labels: np.ndarray | None
    classes: tuple
    captions: tuple | None
    parts: dict
    description: dict

    @property
    def count(self):
        return len(self.values)

    def only(self, names):
        """The Examples of these classes alone. Raises ConfigError for data without classes, and for
        one that is none of theirs."""
        if self.labels is None:
            raise ConfigError(f"only: {self.description['name']} has no classes")
        unknown = [name for name in names if name not in self.classes]
        if unknown:
            raise ConfigError(f"only: {self.description['name']} has the {len(self.classes)} "
                              f"classes {listed(self.classes)}, not {listed(unknown)}")
        classes = tuple(name for name in self.classes if name in names)
        kept = np.isin(self.labels, [self.classes.index(name) for name in classes])
        renamed = np.array([classes.index(name) if name in classes else -1
                            for name in self.classes], np.int32)
        places = np.cumsum(kept) - 1                    # of what is kept, among what is kept
        return replace(
            self, values=self.values[kept], labels=renamed[self.labels[kept]], classes=classes,
            captions=self.captions and tuple(itertools.compress(self.captions, kept)),
            parts={part: places[indices[kept[indices]]] for part, indices in self.parts.items()},
            description=self.description | {"only": list(classes)})

    @property
    def shape(self):
        """(C, *space) of one."""
        return self.values.shape[1:]

    def take(self, indices):
        """float32 [B, C, *space] in -1 … 1."""
        taken = self.values[indices]
        return drawing.from_bytes(taken) if taken.dtype == np.uint8 else \
            np.asarray(taken, np.float32)
