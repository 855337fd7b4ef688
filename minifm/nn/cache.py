"""The key-value cache: what attention has seen, so that a new token costs one token's work.

Every row of a batch fills its slots from 0 on, whatever the length of its neighbours: token t of
a row always lies in slot t. Slots beyond a row's length hold rubbish that the mask hides, and
hidden keys stand *behind* the visible ones, so that a row's sums are the same numbers in the same
order alone or in a batch.

A row may be rewound, where tokens were tried and are not wanted, and rows may be copied, where
several texts go on from one.

As bf16 the cache takes half the memory, and each token reads half of it: late in a long text that
is more than the packed weights. Keys and values are then rounded once, when they are written.
"""

import numpy as np

from minifm import backends
from minifm.errors import ConfigError
from minifm.tensor import Tensor

FORMATS = ("fp32", "bf16")


def check_format(format):
    """Raise ConfigError unless a cache may hold its numbers as `format`; None: as they come."""
    if format is not None and format not in FORMATS:
        raise ConfigError(f"cache: expected one of {', '.join(FORMATS)}, got {format!r}")


class Cache:
    """Keys and values [B, K, capacity, D] of each layer, and `lengths` [B], the filled slots.

    dtype   of the keys and values: float32, float64, or uint16, which holds the bits of bf16
    """

    def __init__(self, layers, batch, heads, head_width, capacity, dtype=np.float32):
        empty, shape = backends.active().zeros, (batch, heads, capacity, head_width)
        self.keys = [empty(shape, dtype) for _ in range(layers)]
        self.values = [empty(shape, dtype) for _ in range(layers)]
        self.lengths = np.zeros(batch, np.int64)
        self.capacity, self.dtype = capacity, dtype

    def place(self, tokens, counts=None):
        """The Placement of the next `tokens` tokens of each row; see Placement.advance."""
        return Placement(self, tokens).advance(counts)

    def rewind(self, lengths):
        """Forget what stands behind the first lengths[b] tokens of each row [B]."""
        lengths = np.asarray(lengths, np.int64)
        if lengths.min(initial=0) < 0 or (lengths > self.lengths).any():
            raise ConfigError(f"rewind: expected at most {self.lengths.tolist()} tokens, got "
                              f"{lengths.tolist()}")
        self.lengths = lengths.copy()

    def take(self, source, rows, since=0):
        """Row b becomes row rows[b] of `source`, a Cache of the same model, or this one.

        since   the slots in front of it are alike already, and stay as they are
        """
        backend, rows = backends.active(), np.asarray(rows)
        end = int(source.lengths[rows].max(initial=0))
        if end > self.capacity:
            raise ConfigError(f"the cache holds {self.capacity} tokens a row; {end} do not fit")
        if end > since:
            index = backend.from_numpy(rows), slice(None), slice(since, end)
            starts = backend.from_numpy(np.full(len(rows), since))
            for layer, (keys, values) in enumerate(zip(self.keys, self.values)):
                k, v = (backend.widen(backend.getitem(x[layer], index))
                        for x in (source.keys, source.values))
                backend.cache_append(keys, values, k, v, starts)
        self.lengths = source.lengths[rows]


class Placement:
    """The slots of one call's T tokens, and how far each of them may look.

    starts [B]          the slot of each row's first token
    positions [B, T]    the slot of every token, which is its position
    lengths [B]         the slots that are filled once all these tokens are in

    All of these, and first_keys, are arrays that `advance` changes in place.
    """

    def __init__(self, cache, tokens):
        self.cache, self.tokens = cache, tokens
        self.starts, self.lengths = np.zeros_like(cache.lengths), np.zeros_like(cache.lengths)
        self.positions = np.zeros((len(cache.lengths), tokens), np.int64)
        self.windows = {}

    def advance(self, counts=None):
        """Move behind all that the cache holds, and let its `lengths` grow by counts [B].

        counts says how many of the tokens are real in each row (the rest is padding on the
        right); default: all. The arrays stay the same and change their values, so that calls
        which were recorded (backend.capture) find the new ones. Returns self.
        """
        starts, tokens = self.cache.lengths, self.tokens
        counts = np.asarray(tokens if counts is None else counts)
        if counts.min(initial=0) < 0 or counts.max(initial=0) > tokens:
            raise ConfigError(f"counts: expected 0 … {tokens}, got {counts.tolist()}")
        if starts.max(initial=0) + tokens > self.cache.capacity:
            raise ConfigError(f"the cache holds {self.cache.capacity} tokens a row; "
                              f"{starts.max()} are in it and {tokens} more do not fit")
        self.starts[:] = starts
        self.positions[:] = starts[:, None] + np.arange(tokens)
        self.lengths[:] = starts + tokens
        for window, first in self.windows.items():
            np.maximum(self.positions - window + 1, 0, out=first)
        self.cache.lengths = starts + counts
        return self

    def first_keys(self, window):
        """[B, T]: the first slot that each token looks at, `window` tokens back with itself."""
        if window not in self.windows:
            self.windows[window] = np.maximum(self.positions - window + 1, 0)
        return self.windows[window]

    def extend(self, layer, k, v):
        """Write k and v [B, K, T, D] of one layer; returns all its keys and values, of which row
        b has the first lengths[b]."""
        backend, keys, values = backends.active(), self.cache.keys[layer], self.cache.values[layer]
        backend.cache_append(keys, values, k.data, v.data, backend.from_numpy(self.starts))
        return Tensor(keys), Tensor(values)
