"""Named arrays in one file, in the safetensors format: nothing in it can run code.

    8 bytes     n, the length of the header, little-endian
    n bytes     JSON: {"NAME": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}, …}
    the rest    the arrays, each in C order and little-endian, one after the other without gaps

The format is small enough to be written out, and the official library is not enough here: it has
no bfloat16 for NumPy, accepts one name twice, and does not force what it saves to the disk. What
is written is byte for byte what that library writes. A header is checked as a whole before the
first array is allocated, so that a bad file costs no more memory than its own size.
"""

import contextlib
import functools
import json
import math
import os
import re
import reprlib
import stat
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from minifm.atomic import atomic_file
from minifm.errors import FormatError, UserError

# What the format calls a dtype and NumPy's name for it, in the order in which the official library
# lays arrays out. NumPy has no bfloat16: its bits are read as an integer.
DTYPES = {name: np.dtype(code) for name, code in {
    "U64": "<u8", "I64": "<i8", "F64": "<f8", "C64": "<c8", "F32": "<f4", "U32": "<u4",
    "I32": "<i4", "BF16": "<u2", "F16": "<f2", "U16": "<u2", "I16": "<i2", "I8": "<i1",
    "U8": "<u1", "BOOL": "?"}.items()}
BFLOAT16 = np.dtype([("bf16", "<u2")])      # how a caller says that these are the bits of bf16
NAMES = {dtype: name for name, dtype in DTYPES.items() if name != "BF16"} | {BFLOAT16: "BF16"}
METADATA = "__metadata__"           # the one name in a header that is no array
LONGEST_HEADER = 100_000_000        # the official library's limit
MOST_DIMENSIONS = 64                # NumPy's limit
_SURROGATE = re.compile("[\ud800-\udfff]")      # half a character: JSON can say it, UTF-8 cannot


@dataclass(frozen=True)
class Entry:
    """Where one array lies: `size` bytes from byte `start` of `file`."""

    file: Path
    name: str
    dtype: str          # a key of DTYPES
    shape: tuple
    start: int
    size: int


def load_arrays(file):
    """{name: NumPy array} of a safetensors file; bfloat16 comes as float32, all else as it is.

    Raises FormatError.
    """
    return {name: read(entry) for name, entry in read_header(file).items()}


def save_arrays(arrays, file):
    """Write {name: NumPy array} to `file`, all of it or nothing; an old file is replaced.

    Equal arrays make equal bytes, in whatever order and layout they come. Raises UserError for a
    name or dtype that the format does not have, or when the disk refuses.
    """
    arrays = {name: np.asarray(array) for name, array in arrays.items()}
    for name, array in arrays.items():
        _check_saveable(name, array.dtype, file)
    rank = {name: place for place, name in enumerate(DTYPES)}
    names = sorted(arrays, key=lambda name: (rank[_dtype_name(arrays[name])], name))
    header, end = {METADATA: {"format": "pt"}}, 0
    for name in names:
        array, start = arrays[name], end
        end += array.nbytes
        header[name] = {"dtype": _dtype_name(array), "shape": array.shape,
                        "data_offsets": [start, end]}
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)         # so that the arrays begin at a multiple of 8
    with atomic_file(file) as stream:
        stream.write(len(text).to_bytes(8, "little") + text)
        for name in names:
            stream.write(_flat_bytes(arrays[name]))


def read_header(file):
    """{name: Entry} of a safetensors file, checked as far as can be without reading its arrays.

    Raises FormatError.
    """
    file = Path(file)
    header, start, length = _header(file)
    entries = {name: _entry(file, name, described, start, length)
               for name, described in header.items() if name != METADATA}
    _check_no_gaps(file, entries, start, length)
    return entries


def read_metadata(file):
    """{key: text} that a safetensors file says of itself. Raises FormatError."""
    return _header(Path(file))[0].get(METADATA) or {}


def read(entry):
    """The array of an Entry, in memory of its own; bfloat16 comes as float32.

    Raises FormatError.
    """
    array = np.empty(math.prod(entry.shape), DTYPES[entry.dtype])
    with opened(entry.file) as (stream, _):
        stream.seek(entry.start)
        if stream.readinto(array.view(np.uint8)) != entry.size:
            raise FormatError(entry.file, shown(entry.name), "the file has become shorter")
    if entry.dtype == "BF16":               # the upper half of a float32
        array = (array.astype(np.uint32) << 16).view(np.float32)
    if entry.dtype == "BOOL" and array.view(np.uint8).max(initial=0) > 1:
        raise FormatError(entry.file, shown(entry.name), "has values that are neither 0 nor 1")
    return array.reshape(entry.shape)


# -- files and JSON, for this package ------------------------------------------------------------


@contextlib.contextmanager
def opened(file):
    """`with opened(file) as (stream, length):` a file to read bytes from, and how many it has.

    Raises FormatError for what cannot be read or is no file: from a pipe, nothing might ever come.
    """
    try:
        if not stat.S_ISREG(os.stat(file).st_mode):
            raise FormatError(file, None, "is not a file")
        with open(file, "rb") as stream:
            yield stream, os.fstat(stream.fileno()).st_size
    except OSError as error:
        raise FormatError(file, None, f"cannot be read: {error.strerror}") from error


def parse_json(data, file, pairs_hook=None):
    """The JSON object in the bytes `data`, a dict; raises FormatError, naming `file`."""
    try:
        found = json.loads(data.decode("utf-8"), object_pairs_hook=pairs_hook)
    except (ValueError, RecursionError) as error:
        raise FormatError(file, None, f"not JSON: {error}") from error
    if not isinstance(found, dict):
        raise FormatError(file, None, f"expected a JSON object, got {type(found).__name__}")
    return found


def shown(name):
    """A name from a file, as one short line of an error message."""
    return name if name.isprintable() and len(name) <= 200 else f"{ascii(name):.200}"


def _header(file):
    """(the header of a safetensors file, a dict; where the arrays begin; how long the file is)."""
    with opened(file) as (stream, length):
        n = int.from_bytes(stream.read(8), "little")
        if length < 8:
            raise FormatError(file, None, f"{length} bytes are no safetensors file")
        if n > min(length - 8, LONGEST_HEADER):
            raise FormatError(file, None, f"a header of {n} bytes cannot be in these {length} "
                              "bytes; is this a safetensors file, and whole?")
        header = parse_json(stream.read(n), file, functools.partial(_each_once, file))
    _check_metadata(file, header.get(METADATA))
    return header, 8 + n, length


# -- checks --------------------------------------------------------------------------------------


def _each_once(file, pairs):
    """The dict of a JSON object's pairs."""
    found = {}
    for name, value in pairs:
        if name in found:
            raise FormatError(file, shown(name), "comes twice in the header")
        found[name] = value
    return found


def _check_metadata(file, metadata):
    if metadata is not None and not (isinstance(metadata, dict)
                                     and all(isinstance(v, str) for v in metadata.values())):
        raise FormatError(file, METADATA, "expected an object of strings")


def _entry(file, name, described, start_of_data, length):
    """The Entry that a header describes, each of its numbers checked; raises FormatError."""
    key = shown(name)
    if _SURROGATE.search(name):
        raise FormatError(file, key, "half a character in the name")
    if not isinstance(described, dict) or not {"dtype", "shape", "data_offsets"} <= set(described):
        raise FormatError(file, key, "expected dtype, shape and data_offsets")
    dtype, shape, offsets = (described[part] for part in ("dtype", "shape", "data_offsets"))
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise FormatError(file, key, f"dtype {reprlib.repr(dtype)} is not read, only "
                          f"{', '.join(DTYPES)}")
    width = DTYPES[dtype].itemsize
    if not _are_sizes(shape) or len(shape) > MOST_DIMENSIONS \
            or math.prod(size for size in shape if size) * width > sys.maxsize:
        raise FormatError(file, key, f"shape {reprlib.repr(shape)} is not that of an array")
    if not _are_sizes(offsets) or len(offsets) != 2:
        raise FormatError(file, key, "data_offsets: expected begin and end, got "
                          f"{reprlib.repr(offsets)}")
    begin, end = offsets
    if end > length - start_of_data:
        raise FormatError(file, key, f"ends at byte {end} of the data, which has "
                          f"{length - start_of_data}; is the file whole?")
    if end - begin != math.prod(shape) * width:
        raise FormatError(file, key, f"{dtype} {shape} takes {math.prod(shape) * width} bytes, "
                          f"data_offsets give it {end - begin}")
    return Entry(file, name, dtype, tuple(shape), start_of_data + begin, end - begin)


def _are_sizes(numbers):
    """Whether these are the sizes that an array in memory can have."""
    return isinstance(numbers, list) and all(
        isinstance(n, int) and not isinstance(n, bool) and 0 <= n <= sys.maxsize for n in numbers)


def _check_no_gaps(file, entries, start_of_data, length):
    """Bytes that belong to no array, or to two, could hide something from one reader or another."""
    end = start_of_data
    for entry in sorted(entries.values(), key=lambda entry: (entry.start, entry.size)):
        if entry.start != end:
            what = "overlaps another array" if entry.start < end else "comes after a gap"
            raise FormatError(file, shown(entry.name), f"{what} in the data")
        end += entry.size
    if end != length:
        raise FormatError(file, None, f"{length - end} bytes at the end belong to no array")


def _check_saveable(name, dtype, file):
    if not isinstance(name, str) or name == METADATA or _SURROGATE.search(name):
        raise UserError(f"{file}: an array cannot be called {name!r}")
    if dtype.newbyteorder("<") not in NAMES:
        raise UserError(f"{file}: {shown(name)}: an array of {dtype} cannot be saved, only of "
                        f"{', '.join(dtype.name for dtype in NAMES)}")


def _dtype_name(array):
    return NAMES[array.dtype.newbyteorder("<")]


def _flat_bytes(array):
    """The bytes of an array in C order and little-endian; without a copy where they lie so."""
    array = np.asarray(array, array.dtype.newbyteorder("<"), order="C")
    return array.reshape(-1).view(np.uint8)
