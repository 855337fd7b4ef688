"""Folders of files as examples: what their places and a metadata.jsonl say of them, and how those
that cannot be read are passed by, each named.

    flowers/train/rose/1.png        a part (train, held-out, …), a class (rose)
    flowers/metadata.jsonl          {"file_name": "train/rose/1.png", "text": "a red rose"}

A line of metadata.jsonl may also name the class, as "label"; so it must, where no folders do.

What a file of one kind holds is for its Reader to say (pictures.py, films.py, waves.py). Which
files are held out is decided by what is in them, so that copies stand on one side, and a file's
side does not change when others come.
"""

import hashlib
import json
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import numpy as np

from minifm.errors import LISTED, ConfigError, FormatError, plural
from minifm.media.examples import Examples

PARTS = {"train": "training", "training": "training", "test": "held_out", "held-out": "held_out",
         "held_out": "held_out", "validation": "held_out", "valid": "held_out", "val": "held_out"}
METADATA, DESCRIPTION = "metadata.jsonl", "description.json"


class Entry(NamedTuple):
    """One thing to read: the file, or the files in order, that it is in."""

    name: str                   # path, as the user would write it
    files: tuple                # of Paths
    caption: str | None = None
    label: str | None = None
    part: str | None = None     # "training" or "held_out" where its folder says so


class Reader:
    """How files of one kind become arrays of one shape. `converted` counts what was changed on the
    way, by what was done.

    kind      PICTURE, SOUND, VIDEO or SOLID
    suffixes  of its files, in small letters
    facts     {…} that the description says of the data, once `settle` has been called
    """

    kind, suffixes = None, ()

    def __init__(self, config):
        self.config, self.converted, self.skipped, self.facts = config, Counter(), Counter(), {}

    def entries(self, directory):
        """[Entry] of all in a directory, without captions and labels."""
        return [Entry(str(path), (path,)) for path in visible(directory)
                if path.suffix.lower() in self.suffixes]

    def look(self, entry):
        """What the file's header says, for `settle`. Raises FormatError for one that is damaged."""
        raise NotImplementedError

    def settle(self, headers):
        """Decide, from all headers, on the one shape of all."""
        raise NotImplementedError

    def read(self, entry):
        """[arrays [C, *space]], uint8 or float32, that are in it: one, or several pieces. Raises
        FormatError for one that is damaged."""
        raise NotImplementedError


# -- finding ---------------------------------------------------------------------------------------


def visible(directory):
    """The files beneath a directory in order of their paths, none hidden."""
    return [path for path in sorted(Path(directory).rglob("*")) if path.is_file() and
            not any(part.startswith(".") for part in path.relative_to(directory).parts)]


def listed_in(directory, reader):
    """[Entry] of a directory, with captions, classes and parts. Raises ConfigError where nothing
    in it is of the reader's kind, FormatError for a metadata.jsonl that does not fit."""
    entries = reader.entries(directory)
    if not entries:
        raise ConfigError(f"{directory}: no file in it ends in {', '.join(reader.suffixes)}")
    read = {path for entry in entries for path in entry.files}
    others = sum(path not in read and path.name not in (METADATA, DESCRIPTION)
                 for path in visible(directory))
    if others:
        reader.skipped["files of other kinds"] += others
    said = read_metadata(directory, {Path(entry.name) for entry in entries})
    folders = [Path(entry.name).relative_to(directory).parts[:-1] for entry in entries]
    parts = [None] * len(entries)
    if all(folder and folder[0].lower() in PARTS for folder in folders):
        parts = [PARTS[folder[0].lower()] for folder in folders]
        folders = [folder[1:] for folder in folders]
    labels = [folder[0] for folder in folders] if all(folders) else [None] * len(entries)
    records = [said.get(Path(entry.name), {}) for entry in entries]
    return [entry._replace(caption=record.get("text"), label=record.get("label", label), part=part)
            for entry, record, label, part in zip(entries, records, labels, parts)]


def read_metadata(directory, known):
    """{Path: {"text": caption, "label": class}} of each metadata.jsonl beneath the directory, of
    each what there is; its `file_name` is relative to where it stands. Raises FormatError, with the
    line, for one without its file in `known`."""
    found = {}
    for path in visible(directory):
        if path.name == METADATA:
            for number, record in _records(path):
                name = record.get("file_name")
                said = {key: record[key] for key in ("text", "label") if key in record}
                if not all(isinstance(value, str) for value in (name, *said.values())):
                    raise FormatError(path, f"line {number}", "expected an object with a string "
                                      "`file_name`, and strings `text` and `label` or either, got "
                                      f"{json.dumps(record):.80}")
                if path.parent / name not in known:
                    raise FormatError(path, f"line {number}", f"a caption without its file: {name} "
                                      "is not there, or of another kind")
                found[path.parent / name] = said
    return found


def _records(path):
    """(number, object) of each line that is not blank."""
    try:
        lines = path.read_text("utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise FormatError(path, None, f"cannot be read as UTF-8: {error}") from error
    for number, line in enumerate(lines, 1):
        if line.strip():
            try:
                record = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise FormatError(path, f"line {number}", f"not JSON: {error}") from error
            if not isinstance(record, dict):
                raise FormatError(path, f"line {number}",
                                  f"expected an object, got {type(record).__name__}")
            yield number, record


# -- reading ---------------------------------------------------------------------------------------


def gathered(source, entries, reader, config, say):
    """The Examples of all entries that can be read. `say` is called with one line for each that
    cannot, and with one that counts what was left out, and one what was changed.

    Raises ConfigError where none can be read.
    """
    found, failures = _read_all(entries, reader)
    for failure in failures[:LISTED]:
        say(f"skipped: {failure}")
    if len(failures) > LISTED:
        say(f"skipped: {len(failures) - LISTED:,} more files that cannot be read")
    if not found:
        first = f", such as {failures[0]}" if failures else \
            "".join(f"; {what}: {n:,}" for what, n in reader.skipped.items())
        raise ConfigError(f"{source}: nothing to learn from in "
                          f"{plural(len(entries), 'file')}{first}")
    for what, counts in (("left out", reader.skipped), ("converted", reader.converted)):
        if counts:
            say(counted(what, counts))
    skipped = dict(reader.skipped) | ({"files that cannot be read": len(failures)} if failures
                                      else {})
    return _examples(source, found, reader, config, skipped, say)


def counted(what, counts):
    """
    >>> counted("converted", {"grey to RGB": 1200, "resized": 3})
    'converted: grey to RGB (1,200), resized (3)'
    """
    return f"{what}: " + ", ".join(f"{name} ({n:,})" for name, n in counts.items())


def _read_all(entries, reader):
    """([(Entry, arrays)], [FormatError])."""
    failures, headers, kept, found = [], [], [], []
    for entry in entries:
        try:
            headers.append(reader.look(entry))
            kept.append(entry)
        except FormatError as error:
            failures.append(error)
    if headers:
        reader.settle(headers)
    for entry in kept:
        try:
            arrays = reader.read(entry)
        except FormatError as error:
            failures.append(error)
            continue
        if arrays:
            found.append((entry, arrays))
    return found, sorted(failures, key=lambda failure: failure.file)


def _examples(source, found, reader, config, skipped, say):
    if len(found) == 1:                 # its pieces must do as if each were a file
        found = [(found[0][0], [array]) for array in found[0][1]]
    entries, repeats = [entry for entry, _ in found], [len(arrays) for _, arrays in found]
    digests = [hashlib.sha256(np.ascontiguousarray(array)).digest() for _, (array,) in found] \
        if len(set(entries)) == 1 else [digest(entry.files) for entry in entries]
    labels, classes = None, ()
    if all(entry.label is not None for entry in entries):
        classes = tuple(sorted({entry.label for entry in entries}))
        labels = np.repeat([classes.index(entry.label) for entry in entries], repeats)
    return examples_of(
        source, reader.kind, np.stack([array for _, arrays in found for array in arrays]), digests,
        np.repeat(_held_out(entries, digests, config, source), repeats), labels=labels,
        classes=classes, captions=_captions(entries, repeats, say),
        facts={"files": len(set(entries)), "skipped": skipped,
               "converted": dict(reader.converted), **reader.facts})


def examples_of(source, kind, values, digests, outside, *, labels, classes, captions, facts):
    """The Examples out of files, whose contents have the SHA-256 `digests`. `outside` [N] says what
    is held out; `facts` are for the description."""
    return Examples(
        kind=kind, values=values, labels=None if labels is None else labels.astype(np.int32),
        classes=classes, captions=captions,
        parts={"training": np.flatnonzero(~outside), "held_out": np.flatnonzero(outside)},
        description={"name": str(source), "generated": False,
                     "sha256": hashlib.sha256(b"".join(digests)).hexdigest(), **facts})


def _held_out(entries, digests, config, source):
    """[bool] for each entry, as folders say, or else by contents."""
    outside = [entry.part == "held_out" for entry in entries]
    return outside if len(set(outside)) == 2 else \
        by_contents(digests, config.held_out, config.seed, source)


def _captions(entries, repeats, say):
    """One for each example, "" for those without; None where there is none at all."""
    captions = [entry.caption for entry in entries]
    missing = captions.count(None)
    if missing == len(captions):
        return None
    if missing:
        say(f"files without a caption, learnt as if it were empty: {missing:,}")
    return tuple(caption or "" for caption, n in zip(captions, repeats) for _ in range(n))


def digest(files):
    """SHA-256 of what is in the files, in order."""
    found = hashlib.sha256()
    for path in files:
        with open(path, "rb") as file:
            found.update(hashlib.file_digest(file, "sha256").digest())
    return found.digest()


def by_contents(digests, fraction, seed, source):
    """[bool], whether each is held out: about `fraction` of all, at least one, by a hash of the
    seed and its digest. Raises ConfigError where all are the same."""
    sides = [int.from_bytes(hashlib.sha256(b"%d " % seed + found).digest()[:8], "big")
             for found in digests]
    if len(set(sides)) < 2:
        raise ConfigError(f"{source}: different examples in it: {len(set(sides))}, which leaves "
                          "none to learn from when one is held out; give more")
    threshold = min(max(int(fraction * 2**64), min(sides) + 1), max(sides))
    return np.array([side < threshold for side in sides])
