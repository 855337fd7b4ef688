"""From windows of packed text to the rows that an encoder reads: <s> text </s>, or pairs of texts.

Batches are made of batches: what `batch(step)` gives is a function of a seed and the step, so that
a run may go on anywhere as if it had never stopped.
"""

import numpy as np

from minifm.errors import ConfigError
from minifm.rng import Rng


class MadeBatches:
    """Batches that are made of other ones: `batch(step)` changes what `batches.batch(step)` gives.

    Held-out batches have steps 0, 1, … at each evaluation, and so are made alike each time.
    """

    name = ""                   # what the description calls the change

    def __init__(self, batches, **choice):
        """`choice` is all that decides how they are made, as JSON has it."""
        self.batches, self.choice = batches, choice

    def batch(self, step):
        """The batch of step 0, 1, …"""
        raise NotImplementedError(f"{type(self).__name__} does not say what its batches are")

    @property
    def count(self):
        """How many batches there are, if they end."""
        return self.batches.count

    @property
    def description(self):
        """What names the data (training/trainer.py), and what was made of it."""
        return {**self.batches.description, self.name: self.choice}


def longest_document(ids, mark):
    """The longest run in ids [R] without the `mark` between documents; of equals, the first."""
    marks = np.flatnonzero(ids == mark)
    edges = np.concatenate([[-1], marks, [len(ids)]])
    longest = int(np.argmax(np.diff(edges)))
    return ids[edges[longest] + 1 : edges[longest + 1]]


def padded(rows, padding=0):
    """Lists or 1-D arrays of ids -> int64 [B, T], T that of the longest, filled up behind."""
    out = np.full((len(rows), max(map(len, rows), default=0)), padding, np.int64)
    for row, ids in enumerate(rows):
        out[row, : len(ids)] = ids
    return out


def framed(windows, first, last):
    """windows [B, R] -> [B, R + 2], each between `first` and `last`."""
    return np.pad(windows, ((0, 0), (1, 1)), constant_values=((0, 0), (first, last)))


def common_prefix(rows):
    """How many items all these sequences have in common at their beginnings."""
    for place, items in enumerate(zip(*rows)):
        if any(item != items[0] for item in items):
            return place
    return min(map(len, rows))


class EncoderRows(MadeBatches):
    """(ids [B, R + 2],): windows of R tokens between `first` and `separator`, as RoBERTa reads
    them (Liu et al. 2019, section 4.2).

    apart     None: a window reads across the ends of documents (FULL-SENTENCES there); else the
              mark between them: a row is the longest document of its window by itself, and
              `padding` (DOC-SENTENCES)
    """

    name = "rows"

    def __init__(self, windows, *, first, separator, padding=None, apart=None):
        super().__init__(windows, first=first, separator=separator, padding=padding, apart=apart)
        self.first, self.separator = first, separator
        self.padding, self.apart = padding, apart

    def batch(self, step):
        windows = self.batches.batch(step)[0]                                   # [B, R]
        B, R = windows.shape
        if self.apart is None:
            return (framed(windows, self.first, self.separator),)
        rows = np.full((B, R + 2), self.padding, np.int64)
        for row, window in enumerate(windows):
            text = longest_document(window, self.apart)
            rows[row, : len(text) + 2] = [self.first, *text, self.separator]
        return (rows,)


class SentencePairs(MadeBatches):
    """(ids [B, R + 3], types [B, R + 3], follows [B]): windows of R tokens, cut in two, as
    <s> A </s> B </s>; in half of the rows B is not what follows A, but the second part of
    another row's window (Devlin et al. 2019, section 3.1).

    types 0 up to the separator behind A, then 1; follows 0 where B does follow, else 1. All
    windows of a batch are cut at one place, in the middle half. "Sentences" are any text, there
    and here, and may reach across the end of a document. Where a batch has one row alone, B
    follows.
    """

    name = "pairs"

    def __init__(self, windows, *, first, separator, seed):
        super().__init__(windows, first=first, separator=separator, seed=seed)
        self.first, self.separator = first, separator
        self.rng = Rng(seed).child("pairs")

    def batch(self, step):
        windows, rng = self.batches.batch(step)[0], self.rng.child(step)        # [B, R]
        B, R = windows.shape
        if R < 4:
            raise ConfigError(f"length: two texts need windows of at least 4 tokens, got {R}")
        cut = int(rng.child("cut").integers(R // 4, 3 * R // 4 + 1))
        follows = rng.child("follows").integers(0, 2, (B,)) if B > 1 else np.zeros(B, np.int64)
        others = np.roll(windows, 1, axis=0)
        second = np.where(follows[:, None] == 1, others, windows)[:, cut:]      # [B, R - cut]
        first, separator = (np.full((B, 1), i) for i in (self.first, self.separator))
        ids = np.concatenate([first, windows[:, :cut], separator, second, separator], axis=1)
        types = np.broadcast_to(np.arange(R + 3) >= cut + 2, ids.shape).astype(np.int64)
        return ids, types, follows
