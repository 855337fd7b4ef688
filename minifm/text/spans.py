"""From windows of packed text to what an encoder-decoder learns from: a source and a target.

Span corruption (Raffel et al. 2020, section 3.1.4): spans are left out of the source, each replaced
by a sentinel, and the target says what stood where:

    source   the <0> sat on <1> mat </s>
    target   <0> cat <1> the </s>

Prefix language modelling (section 3.2.3 there): the source is how a text begins, the target how it
goes on.
"""

import numpy as np

from minifm.errors import ConfigError
from minifm.ops.loss import IGNORE
from minifm.rng import Rng
from minifm.text.rows import MadeBatches, longest_document, padded


def counts(length, density, span):
    """(tokens left out, spans) of a text of `length` ≥ 2 tokens: `density` of them in spans of
    `span` tokens on average, each between two that stay; at least one of each."""
    noise = min(max(round(length * density), 1), length - 1)
    return noise, min(max(round(noise / span), 1), noise, length - noise)


def window_for(length, density, span):
    """The longest window that becomes a source of `length` tokens, its end included; raises
    ConfigError where there is none."""
    if length < 3:
        raise ConfigError(f"length: a source with a span left out needs at least 3 tokens, got "
                          f"{length}")
    window = 2
    while True:         # a token more makes a source that is as long, or one longer
        noise, spans = counts(window + 1, density, span)
        if window + 1 - noise + spans + 1 > length:
            return window
        window += 1


def corrupt_spans(ids, rng, *, sentinels, end, density=0.15, span=3.0):
    """ids [R] -> (source, target), both with sentinels, both ended by `end`.

    Where the spans are and how long each is, is chosen such that all divisions with a token or
    more between two spans are equally likely. (The published code always leaves out the end, and
    so of a short text nothing else.) A text of less than two tokens stays whole.
    """
    if len(ids) < 2:
        return np.append(ids, end), np.array([end])
    noise, spans = counts(len(ids), density, span)
    if spans > len(sentinels):
        raise ConfigError(f"length: {len(ids)} tokens have {spans} spans, and the vocabulary has "
                          f"{len(sentinels)} sentinels; choose shorter sequences")
    hidden = divide(noise, spans, rng.child("hidden"))
    kept = divide(len(ids) - noise + 2, spans + 1, rng.child("kept"))
    kept[[0, -1]] -= 1                                  # a span may begin the text, or end it
    lengths = np.zeros(2 * spans + 1, np.int64)         # kept, hidden, kept, …, kept
    lengths[::2], lengths[1::2] = kept, hidden
    parts = np.split(ids, np.cumsum(lengths)[:-1])
    marks = [[sentinel] for sentinel in sentinels[:spans]]
    source = [part for pair in zip(parts[::2], marks) for part in pair]
    target = [part for pair in zip(marks, parts[1::2]) for part in pair]
    return np.concatenate([*source, parts[-1], [end]]), np.concatenate([*target, [end]])


def divide(n, parts, rng):
    """int64 [parts], each at least 1, their sum n: every such division is equally likely."""
    cuts = np.sort(rng.permutation(n - 1)[: parts - 1]) + 1
    return np.diff(np.concatenate([[0], cuts, [n]]))


class PairBatches(MadeBatches):
    """(source [B, S], targets [B, T], source_mask [B, S]): pairs made of windows, padded behind;
    targets are -100 there, and the mask is False.

    apart    None: windows read across the ends of documents; else the mark between them: of each
             window its longest document is taken alone
    padding  the id that fills up sources
    """

    def __init__(self, windows, *, seed, padding, apart=None, **choice):
        super().__init__(windows, seed=seed, padding=padding, apart=apart, **choice)
        self.padding, self.apart = padding, apart
        self.rng = Rng(seed).child(self.name)

    def pair(self, ids, rng, step):
        """ids [R] -> (source, target); `rng` is of this row, `step` of all rows of its step."""
        raise NotImplementedError(f"{type(self).__name__} does not say what its pairs are")

    def batch(self, step):
        windows, *targets = self.batches.batch(step)
        if targets:             # held-out text ends somewhere: a window that is not full is none
            windows = windows[(targets[0] != IGNORE).all(axis=1)]
        rng, pairs = self.rng.child(step), []
        for row, ids in enumerate(windows):
            text = ids if self.apart is None else longest_document(ids, self.apart)
            pairs.append(self.pair(text, rng.child(row), rng))
        source, targets = ([pair[i] for pair in pairs] for i in (0, 1))
        mask = padded([np.ones(len(ids), np.int64) for ids in source], 0)
        return padded(source, self.padding), padded(targets, IGNORE), mask == 1


class SpanBatches(PairBatches):
    """Texts with spans left out; `choice` as in corrupt_spans."""

    name = "spans"

    def pair(self, ids, rng, step):
        return corrupt_spans(ids, rng, **{key: self.choice[key] for key in (
            "sentinels", "end", "density", "span")})


class PrefixBatches(PairBatches):
    """Texts cut in two. All of a step are cut at the same fraction of their length, drawn from
    the middle half, so that no row waits for another."""

    name = "prefixes"

    def pair(self, ids, rng, step):
        fraction = 0.25 + 0.5 * step.child("cut").uniform_number()
        cut = max(1, int(len(ids) * fraction))
        return ids[:cut], ids[cut:]
