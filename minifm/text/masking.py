"""Masked tokens, and what stood there: what BERT learns from (Devlin et al. 2019, section 3.1).

Which tokens are masked is a function of a key alone, so that a run may go on anywhere as if it had
never stopped; and it is another choice each time a text comes by, as in RoBERTa.
"""

import hashlib

import numpy as np

from minifm.errors import ConfigError, ShapeError
from minifm.ops.loss import IGNORE
from minifm.rng import Rng
from minifm.text.rows import MadeBatches

MASKED, REPLACED = 0.8, 0.1     # of the chosen tokens; the others stay as they are


def mask_tokens(ids, rng, *, mask, specials, vocabulary, probability=0.15, word_starts=None):
    """ids [B, T] -> (ids with some masked, targets), int64 [B, T] both; targets are the ids that
    were chosen, -100 elsewhere.

    Each token is chosen with `probability`. Of the chosen, 80 % become `mask`, 10 % any token
    that is not special, each as likely as the other, and 10 % stay.

    mask         the id that stands for a masked token
    specials     ids that are never chosen, such as those of padding and separators
    vocabulary   V; all ids are below it
    word_starts  bool [B, T]: which tokens begin a word. Words are then chosen as a whole (each
                 of their tokens is masked, replaced or left by itself); a row begins a word, and
                 a special token ends one. Default: each token is a word
    """
    ids = np.asarray(ids)
    special = _special_ids(ids, mask, specials, vocabulary, probability)        # bool [V]
    if word_starts is not None and np.shape(word_starts) != ids.shape:
        raise ShapeError(f"word_starts: expected {list(ids.shape)}, as the ids have, got "
                         f"{list(np.shape(word_starts))}")
    chosen = _uniform(rng.child("chosen"), ids.shape) < probability
    if word_starts is not None:
        chosen = _as_first_of_word(chosen, word_starts, special[ids])
    chosen &= ~special[ids]
    fate = _uniform(rng.child("fate"), ids.shape)
    ordinary = np.flatnonzero(~special)
    others = ordinary[rng.child("others").integers(0, max(len(ordinary), 1), ids.shape)]
    masked = np.where(chosen & (fate < MASKED), mask, ids)
    masked = np.where(chosen & (fate >= MASKED) & (fate < MASKED + REPLACED), others, masked)
    return masked.astype(np.int64), np.where(chosen, ids, IGNORE).astype(np.int64)


def _special_ids(ids, mask, specials, vocabulary, probability):
    """bool [V]: the ids that are never chosen, with `mask`; raises ConfigError, ShapeError."""
    if ids.ndim != 2 or not np.issubdtype(ids.dtype, np.integer):
        raise ShapeError(f"ids: expected integers [B, T], got {ids.dtype} {list(ids.shape)}")
    if not 0 <= probability <= 1:
        raise ConfigError(f"probability: expected a number in [0, 1], got {probability}")
    for name, given in (("mask", [mask]), ("specials", specials), ("ids", ids)):
        given = np.asarray(given, np.int64)
        if given.size and not 0 <= given.min() <= given.max() < vocabulary:
            raise ConfigError(f"{name}: expected ids below the vocabulary of {vocabulary}, got "
                              f"{given.min() if given.min() < 0 else given.max()}")
    special = np.zeros(vocabulary, bool)
    special[[mask, *specials]] = True
    if special.all():
        raise ConfigError(f"specials: all {vocabulary} tokens of the vocabulary are special")
    return special


def _uniform(rng, shape):
    """float64 in [0, 1), drawn on the host."""
    return rng.integers(0, 2**31, shape) * 2.0**-31


def _as_first_of_word(chosen, word_starts, special):
    """What holds for the first token of each word, for all its tokens: bool [B, T]."""
    starts = np.array(word_starts, bool) | special
    starts[:, 1:] |= special[:, :-1]
    starts[:, :1] = True
    first = np.maximum.accumulate(np.where(starts, np.arange(starts.shape[1]), 0), axis=1)
    return np.take_along_axis(chosen, first, axis=1)


class Words:
    """Which tokens begin a word, called with ids [B, T]: bool [B, T].

    A word is letters, digits, underscores, and all beyond ASCII; every other token is a word by
    itself. A token goes on with a word if it begins as words do where the one before ends so.
    """

    def __init__(self, tokens):
        """`tokens` are the bytes of each id."""
        self.begins, self.ends = (np.array([_of_word(token[part]) for token in tokens])
                                  for part in (slice(0, 1), slice(-1, None)))   # bool [V]
        self.sha256 = hashlib.sha256(np.packbits([self.begins, self.ends])).hexdigest()

    def __call__(self, ids):
        starts = np.ones(ids.shape, bool)
        starts[:, 1:] = ~(self.begins[ids[:, 1:]] & self.ends[ids[:, :-1]])
        return starts


def _of_word(byte):
    return byte.isalnum() or byte == b"_" or byte > b"\x7f"


class MaskedBatches(MadeBatches):
    """The ids of other batches, masked: `batch(step)` is (ids [B, T], targets [B, T]), and, where
    rows are padded, key_mask [B, T], which is False there.

    One step, one choice: the same text in another epoch, at another step, is masked elsewhere.

    batches       `batch(step)` gives (ids [B, T], …), of which only the ids are looked at
    padding       the id that fills short rows, one of the specials; None: rows are full
    words         Words, to mask whole words; None: single tokens
    others        see mask_tokens
    """

    name = "masked"

    def __init__(self, batches, *, mask, specials, vocabulary, seed, probability=0.15,
                 padding=None, words=None):
        specials = tuple(int(i) for i in specials)
        if padding is not None and padding not in specials:
            raise ConfigError(f"padding: expected one of the specials {list(specials)}, which are "
                              f"never masked, got {padding}")
        self.given = {"mask": int(mask), "specials": specials, "vocabulary": vocabulary,
                      "probability": probability}
        super().__init__(batches, **self.given, seed=seed, padding=padding,
                         words=words and words.sha256)
        self.padding, self.words, self.rng = padding, words, Rng(seed).child("masks")

    def batch(self, step):
        ids = self.batches.batch(step)[0]
        masked = self.masked(ids, step)
        return masked if self.padding is None else (*masked, ids != self.padding)

    def masked(self, ids, step):
        """(ids [B, T] with some masked, targets [B, T])."""
        return mask_tokens(
            ids, self.rng.child(step), word_starts=self.words and self.words(ids), **self.given)


class MaskedPairs(MaskedBatches):
    """The same of SentencePairs: (ids [B, T], targets [B, T], types [B, T], follows [B])."""

    def batch(self, step):
        ids, types, follows = self.batches.batch(step)
        return *self.masked(ids, step), types, follows
