"""Where text comes from: files, directories, JSON lines, standard input, or Python's own source.

A corpus is a list of documents that can be walked as often as wanted, always in the same order,
without ever being in memory as a whole. Documents are bytes: nothing is decoded, so nothing is
lost. Which documents are held out from training is decided by what they say, not by where they
stand: see Corpus.split.
"""

import glob
import hashlib
import os
import platform
import sys
import sysconfig
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

from minifm.errors import ConfigError
from minifm.text import reading

SECTION = 16 * 1024         # bytes: how much of a single long text is one document


class Document(NamedTuple):
    name: str               # unique in its corpus: "path", "path:4" (line 4), "path@1024" (byte)
    text: bytes


class Documents:
    """A list of documents to iterate over, and what one pass over it tells:

    count, size   how many documents, and their bytes
    sha256        of their contents, in order: the same digest, the same documents
    """

    @cached_property
    def _tally(self):
        tally = Tally()
        for document in self:
            tally.add(document.text)
        if not tally.count:
            raise ConfigError(f"{self.description}: the corpus is empty")
        return tally

    @property
    def count(self):
        return self._tally.count

    @property
    def size(self):
        return self._tally.size

    @property
    def sha256(self):
        return self._tally.sha256


class Corpus(Documents):
    """All documents of `sources`: paths, globs, or "-" (standard input); none: the source of the
    Python standard library on this machine (its own tests and site-packages left out).

    pattern     which files of a directory are read, as a glob such as "*.py" or "src/**/*.md";
                without one, all that are not hidden. A pattern of one part matches at any depth
    separator   a string that ends a document within plain files, such as "<|endoftext|>"

    A .jsonl file holds one object a line, its `text` a document; each plain file of a directory
    is one document. A plain file named by itself, and standard input, is cut at blank lines (else
    line feeds) into documents of about 16 KiB, since a book needs parts that training never sees.
    Empty documents are left out; `skipped` counts them and the hidden files.

    Raises ConfigError: a source that is not there, a pattern without a match, nothing to read.
    While iterating, FormatError: binary data (the file and the offset), a bad JSON line.
    """

    def __init__(self, sources=(), *, pattern=None, separator=None):
        if isinstance(sources, (str, os.PathLike)):
            sources = [sources]
        sources = list(dict.fromkeys(sources))      # "-" above all can be read only once
        if separator is not None and not separator:
            raise ConfigError("separator: expected a string, got an empty one")
        self.pattern = pattern
        self.separator = _as_bytes(separator)
        self.description = ", ".join(
            "standard input" if source == "-" else str(source) for source in sources) or \
            f"the source of Python {platform.python_version()}'s standard library"
        self._skipped = {"empty documents": 0, "hidden files": 0}
        found = [file for source in sources for file in self._find(source)] if sources \
            else _standard_library()
        self._files = list({file.name: file for file in found}.values())    # each once

    def __iter__(self):
        empty = 0
        for file in self._files:
            for document in self._read(file):
                if document.text:
                    yield document
                else:
                    empty += 1
        self._skipped["empty documents"] = empty

    @property
    def skipped(self):
        """{what: how many} of all that was found and is no document."""
        self._tally
        return dict(self._skipped)

    def split(self, fraction, seed=0):
        """(training, held out): two Documents; about `fraction` of all are in the second.

        A hash of the seed and the document's contents decides, so that its side does not change
        when others are added, and copies of one document never stand on both sides. At least one
        is held out. Raises ConfigError where no such split exists.
        """
        if not 0 < fraction < 1:
            raise ConfigError(f"held-out fraction: expected a number in (0, 1), got {fraction}")
        hashes = [_side(seed, digest) for digest in self._tally.digests]
        threshold = max(int(fraction * 2**64), min(hashes) + 1)
        if max(hashes) < threshold:
            raise ConfigError(
                f"{self.description}: different documents: {len(set(hashes))}, which leaves "
                f"none to train on when {fraction:g} of them are held out; give more text")
        return _Part(self, seed, threshold, False), _Part(self, seed, threshold, True)

    # -- finding files ---------------------------------------------------------------------------

    def _find(self, source):
        """The files of one source: a list of _File."""
        text = os.fspath(source)
        path = Path(os.path.expanduser(text))
        if text == "-":
            return [_File("standard input", reading.Spool(sys.stdin.buffer), True)]
        if not text or not os.path.exists(path):
            return self._match(text, path)
        if path.is_dir():
            return self._find_in(path)
        if path.is_fifo():
            with open(path, "rb") as stream:
                return [_File(text, reading.Spool(stream), True)]
        if not path.is_file():
            raise ConfigError(f"{text}: neither a file nor a directory")
        return [_File(text, path, True)]

    def _match(self, text, path):
        """The files of a glob, and those of the directories that it matches."""
        if not glob.has_magic(text):
            raise ConfigError(f"{text or repr(text)}: no such file or directory")
        found = sorted(Path(p) for p in glob.glob(str(path), recursive=True))
        if not found:
            raise ConfigError(f"{text}: no file matches this pattern")
        return [file for p in found for file in
                (self._find_in(p) if p.is_dir() else [_File(str(p), p, len(found) == 1)])
                if p.is_dir() or p.is_file()]

    def _find_in(self, directory):
        pattern = self.pattern or "*"
        try:
            paths = sorted(directory.glob(pattern if "/" in pattern else f"**/{pattern}"))
        except (ValueError, NotImplementedError) as error:
            raise ConfigError(f"pattern: {pattern!r} matches no file's path: {error}") from error
        found = []
        for path in paths:
            if not path.is_file():
                continue
            parts = path.relative_to(directory).parts
            if any(part.startswith(".") for part in parts) and "." != pattern[:1]:
                self._skipped["hidden files"] += 1
            else:
                found.append(_File(str(path), path, False))
        if not found:
            raise ConfigError(f"{directory}: no file in it matches {pattern!r}")
        return found

    def _read(self, file):
        with file.open() as opened:
            if file.name.endswith((".jsonl", ".ndjson")):
                pieces = reading.json_lines(opened, file.name)
            elif self.separator is not None:
                pieces = reading.separated(opened, file.name, self.separator)
            elif file.alone:
                pieces = reading.sections(opened, file.name, SECTION)
            else:
                pieces = reading.whole(opened, file.name)
            for name, text in pieces:
                yield Document(name, text)


class _Part(Documents):
    """One side of a split."""

    def __init__(self, corpus, seed, threshold, held_out):
        self.corpus, self.seed, self.threshold = corpus, seed, threshold
        self.held_out = held_out
        self.description = f"{'held out' if held_out else 'training'} part of {corpus.description}"

    def __iter__(self):
        for document in self.corpus:
            digest = hashlib.sha256(document.text).digest()
            if (_side(self.seed, digest) < self.threshold) == self.held_out:
                yield document


class Tally:
    """What one walk over texts tells: count, size in bytes, and their digests."""

    def __init__(self):
        self.count = self.size = 0
        self._digests = bytearray()

    def add(self, text):
        self._digests += hashlib.sha256(text).digest()
        self.count += 1
        self.size += len(text)

    @property
    def digests(self):
        """The SHA-256 of each text."""
        return (bytes(self._digests[i : i + 32]) for i in range(0, len(self._digests), 32))

    @property
    def sha256(self):
        """Of all texts, in order."""
        return hashlib.sha256(self._digests).hexdigest()


class _File(NamedTuple):
    name: str
    path: object            # a Path or a reading.Spool
    alone: bool             # the user named this very file

    def open(self):
        try:
            return self.path.open("rb")
        except OSError as error:
            raise ConfigError(f"{self.name}: cannot be read ({error.strerror})") from error


def _as_bytes(separator):
    """The separator as it stands in a file; what came from a command line may be no UTF-8."""
    if not isinstance(separator, str):
        return separator
    try:
        return separator.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        raise ConfigError(f"separator: {separator!r} is no text") from None


def _side(seed, digest):
    """A number in 0 … 2^64 - 1 by seed and contents."""
    return int.from_bytes(hashlib.sha256(b"%d " % seed + digest).digest()[:8], "big")


def _standard_library():
    root = Path(sysconfig.get_path("stdlib"))
    left_out = {"site-packages", "dist-packages", "test", "tests", "idle_test", "lib-dynload"}
    found = [path for path in sorted(root.rglob("*.py"))
             if not left_out & set(path.relative_to(root).parts) and path.is_file()]
    if not found:
        raise ConfigError(f"{root}: Python's standard library has no source here; name some text")
    return [_File(path.relative_to(root).as_posix(), path, False) for path in found]
