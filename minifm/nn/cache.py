"""The key-value cache: what attention has seen, so that a new token costs one token's work.

Every row of a batch fills its slots from 0 on, whatever the length of its neighbours: token t of
a row always lies in slot t. Slots beyond a row's length hold rubbish that the mask hides, and
hidden keys stand *behind* the visible ones, so that a row's sums are the same numbers in the same
order alone or in a batch.
"""

import numpy as np

from minifm import backends
from minifm.errors import ConfigError
from minifm.tensor import Tensor


class Cache:
    """Keys and values [B, K, capacity, D] of each layer, and `lengths` [B], the filled slots."""

    def __init__(self, layers, batch, heads, head_width, capacity, dtype=np.float32):
        empty, shape = backends.active().zeros, (batch, heads, capacity, head_width)
        self.keys = [empty(shape, dtype) for _ in range(layers)]
        self.values = [empty(shape, dtype) for _ in range(layers)]
        self.lengths = np.zeros(batch, np.int64)
        self.capacity, self.dtype = capacity, dtype

    def place(self, tokens, counts=None):
        """Where the next `tokens` tokens of each row go; the attention's view of the past.

        counts [B] says how many of them are real in each row (the rest is padding on the
        right); default: all. Returns a Placement and advances `lengths`.
        """
        starts, counts = self.lengths, np.asarray(tokens if counts is None else counts)
        if counts.min(initial=0) < 0 or counts.max(initial=0) > tokens:
            raise ConfigError(f"counts: expected 0 … {tokens}, got {counts.tolist()}")
        if starts.max(initial=0) + tokens > self.capacity:
            raise ConfigError(f"the cache holds {self.capacity} tokens a row; "
                              f"{starts.max()} are in it and {tokens} more do not fit")
        self.lengths = starts + counts
        return Placement(self, starts, tokens)


class Placement:
    """The slots of one call's tokens, and which slots each of them may look at."""

    def __init__(self, cache, starts, tokens):
        self.cache = cache
        self.positions = starts[:, None] + np.arange(tokens)            # [B, T]
        self.visible = int(starts.max(initial=0)) + tokens              # S
        self.key_mask = self.bias = None
        if (starts == starts[:1]).all():
            # All rows start together: causality alone hides the padding of shorter rows.
            self.index = (slice(None), slice(None), slice(self.visible - tokens, self.visible))
            self.rows_first = False
            return
        rows = np.arange(len(starts))[:, None]                          # [B, 1]
        self.index = (rows, slice(None), self.positions)
        self.rows_first = True
        seen = np.arange(self.visible) <= self.positions[..., None]     # [B, T, S]
        if tokens == 1:
            self.key_mask = seen[:, 0]
        else:
            self.bias = np.where(seen, 0, -np.inf).astype(cache.dtype)[:, None]     # [B, 1, T, S]

    def extend(self, layer, k, v):
        """Write k and v [B, K, T, D] of one layer; returns all visible keys and values."""
        backend, visible = backends.active(), (slice(None), slice(None), slice(0, self.visible))
        stored = []
        for store, new in ((self.cache.keys[layer], k.data), (self.cache.values[layer], v.data)):
            if self.rows_first:     # NumPy puts the indexed axes first: [B, T, K, D]
                new = backend.transpose(new, (0, 2, 1, 3))
            backend.write(store, self.index, new)
            stored.append(Tensor(backend.getitem(store, visible)))
        return stored
