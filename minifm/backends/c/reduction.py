"""Sums and extremes over any axes."""

import math
from functools import lru_cache

import numpy as np
from numpy.lib.array_utils import normalize_axis_index

from minifm.backends.c.operands import F32, I64, Operands, done, pointer
from minifm.backends.native import lib


class Reduction(Operands):
    def sum(self, x, axis=None, keepdims=False):
        if x.dtype != F32:
            return self._on_numpy("sum", x, axis, keepdims)
        return self._reduce("sum", lib.minifm_sum, x, axis, keepdims)

    def max(self, x, axis=None, keepdims=False):
        return self._extreme("max", lib.MINIFM_MAXIMUM, x, axis, keepdims)

    def min(self, x, axis=None, keepdims=False):
        return self._extreme("min", lib.MINIFM_MINIMUM, x, axis, keepdims)

    def argmax(self, x, axis=-1):
        if x.dtype != F32 or not x.size:
            return self._on_numpy("argmax", x, axis)
        x, axis = self._contiguous(x, "argmax"), normalize_axis_index(axis, x.ndim)
        outer, inner = x.shape[:axis], x.shape[axis + 1:]
        places = np.empty(outer + inner, I64)
        lib.minifm_argmax(pointer(places), pointer(x), math.prod(outer), x.shape[axis],
                          math.prod(inner))
        return places

    def _extreme(self, verb, operation, x, axis, keepdims):
        if x.dtype != F32 or not x.size:
            return self._on_numpy(verb, x, axis, keepdims)

        def kernel(*arguments):
            lib.minifm_extreme(*arguments, operation)
        return self._reduce(verb, kernel, x, axis, keepdims)

    def _reduce(self, verb, kernel, x, axis, keepdims):
        """kernel(out, x, outer, n, inner) over each run of neighbouring axes, the last first."""
        x = self._contiguous(x, verb)
        shape = list(x.shape)
        for begin, end in reversed(_runs(axis, x.ndim)):     # x: [*outer, *reduced, *inner]
            outer, n = math.prod(shape[:begin]), math.prod(shape[begin:end])
            shape[begin:end] = [1] * (end - begin)
            y = np.empty(shape, F32)
            if y.size:
                done(kernel(pointer(y), pointer(x), outer, n, y.size // outer))
            x = y
        if not _runs(axis, x.ndim):     # nothing to add; still a result of its own
            x = self.copy(x)
        if keepdims:
            return x
        reduced = {i for begin, end in _runs(axis, len(shape)) for i in range(begin, end)}
        return x.reshape([size for i, size in enumerate(shape) if i not in reduced])


@lru_cache(maxsize=1024)
def _runs(axis, ndim):
    """The reduced axes as runs of neighbours: [(begin, end), …]."""
    axes = range(ndim) if axis is None else (axis,) if isinstance(axis, int) else axis
    runs = []
    for a in sorted({normalize_axis_index(a, ndim) for a in axes}):
        if runs and runs[-1][1] == a:
            runs[-1] = (runs[-1][0], a + 1)
        else:
            runs.append((a, a + 1))
    return runs
