"""Many numbers to one, along axes. `axis` is None (all), an int or a tuple."""

import numpy as np


class Reduction:
    def sum(self, x, axis=None, keepdims=False):
        return np.asarray(np.sum(x, axis=axis, keepdims=keepdims, dtype=x.dtype))

    def max(self, x, axis=None, keepdims=False):
        return np.asarray(np.max(x, axis=axis, keepdims=keepdims))

    def min(self, x, axis=None, keepdims=False):
        return np.asarray(np.min(x, axis=axis, keepdims=keepdims))

    def argmax(self, x, axis=-1):
        """The first place of the largest element, int64."""
        return np.asarray(np.argmax(x, axis=axis))
