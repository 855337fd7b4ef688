"""The token ids of a corpus on disk, encoded once, read from there ever after.

    tokens/                     the directory that the caller gives: a cache
      3f2a…/                    one corpus as one tokenizer encodes it, named by both digests
        index.json              what is in it, and the digest of every file
        00000.bin, 00001.bin …  little-endian ids, SHARD in each file but the last

After each document comes the end-of-text token. The files are mapped into memory, not read into
it, so a corpus may be larger than memory. A directory appears whole or not at all; one that
has been damaged since is found out by its digests, and made anew.
"""

import hashlib
import json
import os
import shutil
from pathlib import Path

import numpy as np

from minifm.atomic import atomic_directory
from minifm.errors import FormatError, UserError
from minifm.text.corpus import Tally
from minifm.text.offsets import ids_before
from minifm.text.spelling import BYTE_LEVEL
from minifm.text.tokenizer import end_of_text_of

FORMAT = 1
SHARD = 1 << 24             # ids in one file: 32 MiB, or 64 where the vocabulary is large
TOGETHER = 4 << 20          # bytes of text that are encoded in one call
# Enough documents in one call for all processors, but not so many that their arrays weigh more
# than their text.
MOST = 1 << 14


def store(documents, tokenizer, directory, *, progress=None):
    """The Tokens of `documents` (a Corpus or a part of one), from the cache `directory`.

    Encodes them where the cache does not have them yet, or has them damaged. Any number of
    corpora and tokenizers may share one directory.

    progress   progress(done, size): called now and then, with bytes of text

    Raises ConfigError: no documents, or a tokenizer without end-of-text; FormatError: documents
    that cannot be read; UserError: they changed while they were read, or the disk is full.
    """
    expected = _expected(documents, tokenizer)
    place = Path(directory) / hashlib.sha256(json.dumps(expected).encode()).hexdigest()[:32]
    if place.exists():
        try:
            return _load(place, expected)
        except FormatError:
            _remove(place)
    try:
        with atomic_directory(place) as aside:
            _write(aside, documents, tokenizer, expected, progress)
    except UserError:
        if not (place / "index.json").exists():     # else another process was faster
            raise
    return _load(place, expected)


class Tokens:
    """One long array of token ids that stays on the disk. `tokens[a:b]` is int64 [b - a].

    count         how many ids there are, those between documents included
    documents     how many documents, each followed by `end_of_text`, an id (and, where that is the
                  vocabulary's way, led by what a text begins with)
    size          their bytes of text
    description   {"corpus": digest, "tokenizer": digest, "tokens": count}: the same description,
                  the same ids
    """

    def __init__(self, index, files):
        """`index` is what index.json says, `files` are one-dimensional arrays of ids."""
        self.count, self.documents, self.size = index["tokens"], index["documents"], index["size"]
        self.end_of_text = index["end_of_text"]
        self.description = {key: index[key] for key in ("corpus", "tokenizer", "tokens")}
        self._shard, self._files = index["shard"], files

    def __len__(self):
        return self.count

    def __getitem__(self, part):
        start, stop, step = part.indices(self.count)
        assert step == 1
        found = [np.zeros(0, np.int64)]
        while start < stop:
            number, offset = divmod(start, self._shard)
            found.append(self._files[number][offset : offset + stop - start])
            start += len(found[-1])
        return np.concatenate(found)

    def token_lengths(self, tokenizer):
        """[V]: how many bytes of text each token of the `tokenizer` stands for in these. Where
        these bytes are not the token's own, as many as there are to a token on the average."""
        before = list(ids_before(tokenizer))
        if tokenizer.spelling.kind == BYTE_LEVEL:
            lengths = tokenizer.token_lengths.copy()
        else:
            tokens = self.count - self.documents * (len(before) + 1)
            lengths = np.full(tokenizer.vocabulary, self.size / max(1, tokens))
        lengths[before] = 0
        return lengths


# -- writing -------------------------------------------------------------------------------------


def _expected(documents, tokenizer):
    """What index.json must say of these documents and this tokenizer."""
    end_of_text = end_of_text_of(tokenizer, "to put between documents")
    before = [int(i) for i in ids_before(tokenizer)]
    return {"format": FORMAT, **({"before": before} if before else {}),
            "corpus": documents.sha256, "tokenizer": tokenizer.sha256,
            "documents": documents.count, "size": documents.size,
            "end_of_text": int(end_of_text),
            "dtype": "uint16" if tokenizer.vocabulary <= 1 << 16 else "uint32"}


def _write(aside, documents, tokenizer, expected, progress):
    """Fill the directory `aside`."""
    tally, count, digests = Tally(), 0, []
    pieces = _encoded(documents, tokenizer, tally, progress)
    for number, ids in enumerate(_in_shards(pieces, _little_endian(expected["dtype"]))):
        (aside / _name(number)).write_bytes(ids)
        digests.append(hashlib.sha256(ids).hexdigest())
        count += len(ids)
    if tally.sha256 != expected["corpus"]:
        raise UserError(f"{documents.description}: changed while it was read; start again")
    index = {**expected, "tokens": count, "shard": SHARD, "sha256": digests,
             "description": documents.description}
    (aside / "index.json").write_text(json.dumps(index, indent=2) + "\n", "utf-8")


def _encoded(documents, tokenizer, tally, progress):
    """Yield the ids of each document, before each what a text begins with, and after each the
    end-of-text; count the documents in `tally`."""
    before = np.array(ids_before(tokenizer), np.int32)
    end_of_text = np.array([tokenizer.end_of_text], np.int32)
    for group in _groups(documents):
        for text, ids in zip(group, tokenizer.encode_all(group)):
            tally.add(text)
            yield before
            yield ids
            yield end_of_text
        if progress:
            progress(tally.size, documents.size)


def _groups(documents):
    """Lists of texts, each list of about TOGETHER bytes."""
    group, size = [], 0
    for document in documents:
        group.append(document.text)
        size += len(document.text)
        if size >= TOGETHER or len(group) == MOST:
            yield group
            group, size = [], 0
    if group:
        yield group


def _in_shards(pieces, dtype):
    """Arrays of SHARD ids, the last one shorter, from arrays of any length."""
    kept, count = [], 0
    for piece in pieces:
        kept.append(piece.astype(dtype))
        count += len(piece)
        while count >= SHARD:
            joined = np.concatenate(kept)
            yield joined[:SHARD]
            kept, count = [joined[SHARD:]], count - SHARD
    if count:
        yield np.concatenate(kept)


def _remove(place):
    try:
        shutil.rmtree(place)
    except OSError as problem:
        raise UserError(f"{place}: damaged, and cannot be removed to be made anew "
                        f"({problem.strerror})") from problem


def _name(number):
    return f"{number:05d}.bin"


def _little_endian(dtype):
    return np.dtype(dtype).newbyteorder("<")


# -- reading -------------------------------------------------------------------------------------


def _load(place, expected):
    """The Tokens in `place`. Raises FormatError unless its index says all that `expected` does
    and every file is what the index says; that reads all of it once."""
    index = _read_index(place / "index.json", expected)
    count, shard, dtype = index["tokens"], index["shard"], _little_endian(index["dtype"])
    files = []
    for number, digest in enumerate(index["sha256"]):
        file, length = place / _name(number), min(shard, count - number * shard)
        _check(file, length * dtype.itemsize, digest)
        files.append(np.memmap(file, dtype, "r", shape=(length,)))
    return Tokens(index, files)


def _read_index(file, expected):
    try:
        index = json.loads(file.read_text("utf-8"))
        differing = [key for key, value in expected.items() if index[key] != value]
        whole = len(index["sha256"]) == -(-index["tokens"] // index["shard"]) > 0
    except (OSError, ValueError, RecursionError, LookupError, TypeError, ArithmeticError) as why:
        raise FormatError(file, None, f"no index of tokens can be read: {why!r}") from None
    if differing:
        raise FormatError(file, differing[0], f"expected {expected[differing[0]]!r}, "
                          f"found {index[differing[0]]!r}")
    if not whole:
        raise FormatError(file, "sha256", "expected one digest for each file")
    return index


def _check(file, size, digest):
    """Raise FormatError unless `file` has `size` bytes with this digest."""
    try:
        with open(file, "rb") as opened:
            found = os.fstat(opened.fileno()).st_size
            if found != size or hashlib.file_digest(opened, "sha256").hexdigest() != digest:
                raise FormatError(file, None, f"damaged: expected {size} bytes with the digest "
                                  f"that index.json says, found {found}")
    except OSError as problem:
        raise FormatError(file, None, f"cannot be read: {problem.strerror}") from None
