"""Examples as files, so that people can look at them, and other programs read them.

    DIR/train/0000.png …             one file each, and a metadata.jsonl with captions and classes
    DIR/held-out/…
    DIR/description.json             what the data are, and how they were made

`open(DIR)` reads the same examples back, on the same sides; of solids with kind="solid".
"""

import json

import numpy as np

from minifm.atomic import atomic_directory
from minifm.media import drawing
from minifm.media.files import DESCRIPTION, METADATA

FOLDERS = {"training": "train", "held_out": "held-out"}
SHOWN = 64                      # examples in the picture of all


def write(examples, directory):
    """Write Examples to a directory, which must not exist: all of it or nothing.

    Raises UserError where it exists, or the disk refuses; ConfigError for films without pillow.
    """
    with atomic_directory(directory) as aside:
        for part, folder in FOLDERS.items():
            (aside / folder).mkdir()
            _write_part(examples, examples.parts[part], aside / folder)
        (aside / DESCRIPTION).write_text(
            json.dumps(examples.description, indent=2, ensure_ascii=False) + "\n", "utf-8")


def shown(examples):
    """The indices of the examples that a picture shows: SHOWN, evenly from all."""
    return np.unique(np.linspace(0, examples.count - 1, SHOWN).astype(np.int64))


def _write_part(examples, indices, folder):
    digits, rate = len(str(examples.count - 1)), examples.description.get("rate")
    with open(folder / METADATA, "w", encoding="utf-8") as metadata:
        for index in map(int, indices):
            name = f"{index:0{digits}}{examples.kind.extension}"
            WRITERS[examples.kind.name](folder / name, examples.take([index]), rate)
            record = {"file_name": name, **_said(examples, index)}
            metadata.write(json.dumps(record, ensure_ascii=False) + "\n")


def _said(examples, index):
    """What is known of an example, {} without captions and classes."""
    said = {}
    if examples.captions is not None:
        said["text"] = examples.captions[index]
    if examples.labels is not None:
        said["label"] = examples.classes[examples.labels[index]]
    return said


# -- one example, [1, C, *space], pixel by pixel: what a kind saves is for people, and enlarged ----


def _write_picture(path, values, rate):
    path.write_bytes(drawing.png(drawing.of_pictures(values)[0]))


def _write_film(path, values, rate):
    drawing.write_gif(path, drawing.of_pictures(np.moveaxis(values[0], 1, 0)))


def _write_solid(path, values, rate):
    np.save(path, values[0, 0])


WRITERS = {"picture": _write_picture, "sound": drawing.write_wave, "video": _write_film,
           "solid": _write_solid}
