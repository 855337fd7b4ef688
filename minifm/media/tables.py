"""The files of MNIST and of CIFAR: many pictures in one, with labels, as they are published.

Each becomes Tables, stretches of examples with labels and a side, and they the Examples: MNIST's
`t10k` and CIFAR's `test_batch` are what is held out; without such a file, a part is by contents.
"""

import gzip
import hashlib
import math
import re
import struct
import zlib
from collections import Counter
from typing import NamedTuple

import numpy as np

from minifm.errors import ConfigError, FormatError
from minifm.media import pictures
from minifm.media.examples import PICTURE
from minifm.media.files import by_contents, counted, examples_of, visible
from minifm.media.pickled import read_pickle

IDX = re.compile(r"images[.-]idx3-ubyte(\.gz)?$")
CIFAR = re.compile(r"^((data|test)_batch(_\d+)?|train|test)(\.bin)?$")
NAMES = ("batches.meta", "batches.meta.txt", "meta", "fine_label_names.txt")
ROW = 3 * 32 * 32               # bytes of one of CIFAR's pictures
DENSEST = 1100                  # bytes that gzip can make of one, and some more


class Table(NamedTuple):
    """values uint8 [N, C, H, W]; labels int [N] or None; and `held_out`, whether the file's name
    says so (None: it does not tell)."""

    values: np.ndarray
    labels: np.ndarray | None
    held_out: bool | None


def joined(source, tables, config, say, *, classes=(), files):
    """The Examples of Tables. Raises ConfigError where their shapes, or labels, do not fit."""
    done = Counter()
    if config.size:
        tables = [table._replace(values=resized(table.values, config.size, done))
                  for table in tables]
    if done:
        say(counted("converted", done))
    if len({table.values.shape[1:] for table in tables}) > 1:
        raise ConfigError(f"{source}: pictures of different sizes; choose one by --size")
    values = np.concatenate([table.values for table in tables])
    labels, classes = _labels(source, tables, classes)
    digests = [hashlib.sha256(value).digest() for value in values]
    outside = np.repeat([table.held_out for table in tables],
                        [len(table.values) for table in tables])
    if {table.held_out for table in tables} != {True, False}:
        outside = by_contents(digests, config.held_out, config.seed, source)
    return examples_of(
        source, PICTURE, values, digests, outside, labels=labels, classes=classes, captions=None,
        facts={"files": len(files), "skipped": {}, "converted": dict(done),
               "size": values.shape[-1], "channels": values.shape[1]})


def _labels(source, tables, classes):
    """(int32 [N], names of the classes), or (None, ()) where a file has no labels."""
    if any(table.labels is None for table in tables):
        return None, ()
    labels = np.concatenate([table.labels for table in tables])
    classes = classes or tuple(map(str, range(int(labels.max()) + 1)))
    if labels.max() >= len(classes):
        raise ConfigError(f"{source}: a label {labels.max()}, and names of {len(classes)} classes")
    return labels, classes


def resized(values, side, done):
    """uint8 [N, C, side, side] of [N, C, H, W]; what was done is counted in `done`."""
    N, C, H, W = values.shape
    if (H, W) == (side, side):
        return values
    found = np.empty((N, C, side, side), np.uint8)
    for place, value in enumerate(values):
        what = Counter()
        for channel in range(C):
            image = pictures.pillow().fromarray(value[channel])
            found[place, channel] = np.asarray(pictures.fitted(image, side, what))
        done.update(what)
    return found


# -- MNIST -----------------------------------------------------------------------------------------


def idx_files(path):
    """The files of pictures in MNIST's format, of a directory, or the one named."""
    if path.is_file():
        return [path] if IDX.search(path.name) else []
    return [found for found in visible(path) if IDX.search(found.name)]


def mnist(source, paths, config, say):
    """Examples of idx files of pictures; the file of labels of each stands beside it."""
    tables = []
    for path in paths:
        values = read_idx(path)[:, None]
        beside = path.with_name(path.name.replace("images", "labels").replace("idx3", "idx1"))
        labels = read_idx(beside) if beside != path and beside.exists() else None
        if labels is not None and labels.shape != values.shape[:1]:
            raise FormatError(beside, None, f"{labels.size:,} labels for {len(values):,} pictures")
        held_out = None if len(paths) == 1 else bool(re.search("t10k|test", path.name))
        tables.append(Table(values, labels, held_out))
    return joined(source, tables, config, say, files=paths)


def read_idx(path):
    """uint8 [N, …] of an idx file, which gzip may have packed: two zeros, the type, the number of
    axes, the length of each, big-endian, then the bytes. Raises FormatError.

    No more is unpacked than the header says, and that is believed only as far as the file goes.
    """
    packed = path.suffix == ".gz"
    try:
        with (gzip.open if packed else open)(path, "rb") as file:
            shape = _idx_header(path, file)
            wanted = math.prod(shape)
            held = path.stat().st_size * (DENSEST if packed else 1)
            content = file.read(wanted + 1) if wanted <= held else b""
    except (OSError, EOFError, zlib.error) as error:
        raise FormatError(path, None, f"cannot be read: {error}") from error
    if len(content) != wanted or not wanted:
        found = "more" if len(content) > wanted else f"{len(content):,}"
        raise FormatError(path, None, "expected " + " × ".join(map(str, shape)) + " bytes, as its "
                          f"header says, got {found}")
    return np.frombuffer(content, np.uint8).reshape(shape)


def _idx_header(path, file):
    start = file.read(4)
    if len(start) < 4 or start[:2] != b"\0\0" or start[2] != 8:
        raise FormatError(path, None, "not an idx file of unsigned bytes")
    lengths = file.read(4 * start[3])
    if not lengths or len(lengths) < 4 * start[3]:
        raise FormatError(path, None, "cut short in its header")
    return struct.unpack(f">{start[3]}I", lengths)


# -- CIFAR -----------------------------------------------------------------------------------------


def cifar_files(path):
    """The batches of CIFAR-10 or CIFAR-100, binary or pickled, of a directory, or the one named."""
    files = [path] if path.is_file() else visible(path)
    return [found for found in files if CIFAR.match(found.name)]


def cifar(source, paths, config, say):
    """Examples of CIFAR's batches [N, 3, 32, 32]; of CIFAR-100 the fine classes."""
    tables = [read_binary(path) if path.suffix == ".bin" else read_batch(path) for path in paths]
    sides = ["test" in path.name for path in paths]
    tables = [Table(values, labels, side if len(set(sides)) == 2 else None)
              for (values, labels), side in zip(tables, sides)]
    return joined(source, tables, config, say, classes=class_names(paths[0].parent), files=paths)


def read_binary(path):
    """(uint8 [N, 3, 32, 32], labels [N]): rows of a label (CIFAR-100: the coarse, then the fine)
    and the planes red, green, blue."""
    content = np.frombuffer(path.read_bytes(), np.uint8)
    before = next((n for n in (1, 2) if content.size and content.size % (ROW + n) == 0), None)
    if before is None:
        raise FormatError(path, None, f"{content.size:,} bytes, which is not a number of rows of "
                          f"{ROW + 1:,} (CIFAR-10) or {ROW + 2:,} (CIFAR-100)")
    rows = content.reshape(-1, ROW + before)
    return rows[:, before:].reshape(-1, 3, 32, 32), rows[:, before - 1]


def read_batch(path):
    """(uint8 [N, 3, 32, 32], labels [N]) of a pickled batch; no pickle is ever run."""
    found = read_pickle(path.read_bytes(), path)
    if not isinstance(found, dict) or "data" not in found:
        raise FormatError(path, None, "expected a dict with `data`, as CIFAR's batches have")
    values, labels = found["data"], found.get("fine_labels", found.get("labels"))
    if not isinstance(values, np.ndarray) or values.ndim != 2 or values.shape[1] != ROW:
        raise FormatError(path, "data", f"expected an array of rows of {ROW:,} bytes")
    if not isinstance(labels, list) or len(labels) != len(values) or \
            not all(isinstance(label, int) and 0 <= label < 256 for label in labels):
        raise FormatError(path, "labels", "expected a list with a small integer for each row")
    return values.reshape(-1, 3, 32, 32), np.array(labels)


def class_names(directory):
    """The classes that the data set's own file names, in order; () without one."""
    for name in NAMES:
        path = directory / name
        if path.is_file() and path.suffix == ".txt":
            return tuple(path.read_text("utf-8").split())
        if path.is_file():
            found = read_pickle(path.read_bytes(), path)
            names = found.get("fine_label_names", found.get("label_names", ()))
            return tuple(n.decode("latin-1") if isinstance(n, bytes) else n for n in names)
    return ()
