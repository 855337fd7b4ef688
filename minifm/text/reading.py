"""Documents out of one open file: whole, in sections, between separators, or by JSON line.

Each function yields (name, bytes) and never holds more than one document (or one line). Each
refuses binary data: a vocabulary full of a PNG's bytes is a mistake that shows only much later.
"""

import io
import json
import os
import re
import shutil
import tempfile

import numpy as np

from minifm.errors import FormatError
from minifm.text.bytelevel import as_bytes

BLOCK = 1 << 20
SNIFFED = 8192              # bytes from the start that are checked for control characters
TOLERATED = 1 / 32          # of them may be control characters; random bytes have 1 in 10
_MAGIC = {b"\x1f\x8b": "gzip", b"PK\x03\x04": "zip", b"%PDF-": "PDF", b"\x28\xb5\x2f\xfd": "zstd",
          b"\xfd7zXZ": "xz", b"BZh": "bzip2", b"\x89PNG": "PNG", b"\x7fELF": "ELF"}
_CONTROL = np.zeros(256, bool)
_CONTROL[[*range(1, 8), *range(14, 27), *range(28, 32), 127]] = True    # \b … \r and ESC are text
_BLANK_LINE = re.compile(rb"\n[ \t\r]*\n")


def whole(file, name):
    """The file as one document."""
    yield name, b"".join(_blocks(file, name))


def sections(file, name, size):
    """Pieces of at most about `size` bytes, each cut after the last blank line in it, else after
    the last line feed, else where a character begins."""
    offset, kept = 0, b""
    for block in _blocks(file, name):
        kept += block
        start = 0
        while len(kept) - start > size:
            end = start + _cut(kept[start : start + size])
            yield f"{name}@{offset}", kept[start:end]
            offset, start = offset + end - start, end
        kept = kept[start:]
    if kept:
        yield f"{name}@{offset}", kept


def separated(file, name, separator):
    """What stands between separators; one line feed on either side of a separator goes with it."""
    offset, kept, searched, before = 0, bytearray(), 0, b""
    for block in _blocks(file, name):
        kept += block
        while (end := kept.find(separator, searched)) >= 0:
            yield f"{name}@{offset}", bytes(kept[:end]).removeprefix(before).removesuffix(b"\n")
            del kept[: end + len(separator)]
            offset, searched, before = offset + end + len(separator), 0, b"\n"
        searched = max(0, len(kept) - len(separator) + 1)       # half of one may end the block
    yield f"{name}@{offset}", bytes(kept).removeprefix(before)


def json_lines(file, name):
    """The `text` of each line's object. Blank lines are no documents."""
    for number, line in enumerate(file, 1):
        if not line.strip():
            continue
        try:
            text = json.loads(line)["text"]
        except json.JSONDecodeError as error:       # which counts this one line as its line 1
            raise FormatError(name, f"line {number}",
                              f"not JSON: {error.msg} at column {error.colno}") from error
        except (ValueError, RecursionError) as error:
            raise FormatError(name, f"line {number}", f"not JSON: {error}") from error
        except (KeyError, TypeError, IndexError) as error:
            raise FormatError(name, f"line {number}", "expected an object with `text`") from error
        if not isinstance(text, str):
            raise FormatError(name, f"line {number}",
                              f"expected `text` to be a string, got {type(text).__name__}")
        yield f"{name}:{number}", as_bytes(text)


class Spool:
    """All of a stream that can be read only once, in a temporary file. `open()` gives a reader
    with a place of its own, as opening a file does."""

    def __init__(self, stream):
        self.file = tempfile.TemporaryFile()
        shutil.copyfileobj(stream, self.file, BLOCK)
        self.file.flush()

    def open(self, mode="rb"):
        return io.BufferedReader(_SpoolReader(self))

    def __del__(self):
        self.file.close()


class _SpoolReader(io.RawIOBase):
    def __init__(self, spool):
        self.spool, self.place = spool, 0

    def readable(self):
        return True

    def readinto(self, buffer):
        data = os.pread(self.spool.file.fileno(), len(buffer), self.place)
        buffer[: len(data)] = data
        self.place += len(data)
        return len(data)


def _blocks(file, name):
    """The file's blocks, checked to be text."""
    offset = 0
    while block := file.read(BLOCK):
        if offset == 0:
            _sniff(block[:SNIFFED], name)
        zero = block.find(0)
        if zero >= 0:
            raise FormatError(name, f"offset {offset + zero}",
                              "a zero byte: not text (UTF-16 has them: convert it to UTF-8)")
        yield block
        offset += len(block)


def _sniff(start, name):
    for magic, kind in _MAGIC.items():
        if start.startswith(magic):
            article = "an" if kind in ("ELF", "xz") else "a"
            raise FormatError(name, "offset 0", f"{article} {kind} file, not text")
    control = np.flatnonzero(_CONTROL[np.frombuffer(start, np.uint8)])
    if len(control) > max(1, TOLERATED * len(start)):
        raise FormatError(name, f"offset {control[0]}",
                          f"binary, not text: {len(control)} control characters in the first "
                          f"{len(start)} bytes")


def _cut(piece):
    """Where to cut a piece that goes on after its end."""
    blank = None
    for blank in _BLANK_LINE.finditer(piece):
        pass
    if blank and blank.end() > len(piece) // 4:
        return blank.end()
    line = piece.rfind(b"\n") + 1
    if line > len(piece) // 4:
        return line
    end = len(piece)
    while end > len(piece) - 4 and end > 1 and piece[end - 1] & 0xC0 == 0x80:
        end -= 1                    # before the continuation bytes of a character
    return end - 1 if end > 1 and piece[end - 1] >= 0xC0 else len(piece)
