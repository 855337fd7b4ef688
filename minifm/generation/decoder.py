"""The logits of the next token, after all the tokens of before: a model with its cache.

Prompts go through the model whole. After them comes one token for each row, and that is the same
work each time; so the backend may record it once and repeat it (`capture` in
backends/reference/arrays.py, backends/c/capture.py). A repeated token gives the bits of any other.
"""

import sys

import numpy as np

from minifm import backends
from minifm.errors import CaptureError
from minifm.nn.cache import Placement
from minifm.op import observers
from minifm.tensor import no_grad


class Decoder:
    """`batch` rows of at most `capacity` tokens, side by side; `format` is the cache's.

    features   of the tokens added last, [B, T, C] as NumPy; they hold until the next call
    """

    def __init__(self, model, batch, capacity=None, format=None):
        self.model = model
        self.cache = model.cache(batch, capacity, format)
        self.ids = np.zeros((batch, 1), np.int64)
        self.placement = Placement(self.cache, 1)
        self.repeat = backends.active().capture(self._next)

    def __call__(self, ids, counts=None):
        """Add ids [B, T], of which counts[b] in row b are real (default: all; padding stands on
        the right). Returns the logits after the last real one, [B, V] as NumPy, which hold until
        the next call."""
        if np.shape(ids)[1] == 1:
            self.ids[:] = ids
            self.placement.advance(counts)
            # Who looks on, an observer or a debugger, wants to see the ops; a recording has none.
            watched = observers or sys.gettrace()
            features, logits = self._next() if watched else self._repeated()
        else:
            features, logits = self._prefill(ids, counts)
        self.features = backends.active().to_numpy(features)
        return backends.active().to_numpy(logits)

    def every(self, ids, counts=None):
        """The same, but the logits after every one of them, [B, T, V]."""
        if np.shape(ids)[1] == 1:
            return self(ids, counts)[:, None]
        with no_grad():
            x = self.model.features(ids, placement=self.cache.place(np.shape(ids)[1], counts))
            self.features = x.numpy()
            return self.model.logits(x).numpy()

    def _repeated(self):
        try:
            return self.repeat()
        except CaptureError:        # NumPy computes, as in float64: each token goes the whole way
            self.repeat = self._next
            return self._next()     # writes the same slots again

    def _next(self):
        with no_grad():
            x = self.model.features(self.ids, placement=self.placement)     # [B, 1, C]
            return x.data, self.model.logits(x[:, 0]).data

    def _prefill(self, ids, counts):
        batch, tokens = np.shape(ids)
        with no_grad():
            x = self.model.features(ids, placement=self.cache.place(tokens, counts))
            last = np.full(batch, tokens) if counts is None else np.asarray(counts)
            last = x[np.arange(batch), np.maximum(last - 1, 0)]                 # [B, C]
            return x.data, self.model.logits(last).data
