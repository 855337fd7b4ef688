"""Softmax, its logarithm, log-sum-exp: one row at a time, along any axis."""

import numpy as np

from minifm.backends.c.operands import F32, Operands, pointer
from minifm.backends.native import lib


class Softmax(Operands):
    def softmax(self, x, axis=-1):
        return self._rows("softmax", lib.minifm_softmax, (x,), axis)

    def softmax_backward(self, dy, y, axis=-1):
        return self._rows("softmax_backward", lib.minifm_softmax_backward, (dy, y), axis)

    def log_softmax(self, x, axis=-1):
        return self._rows("log_softmax", lib.minifm_log_softmax, (x,), axis)

    def log_softmax_backward(self, dy, y, axis=-1):
        return self._rows("log_softmax_backward", lib.minifm_log_softmax_backward, (dy, y), axis)

    def logsumexp(self, x, axis=-1):
        if x.dtype != F32:
            return self._on_numpy("logsumexp", x, axis)
        if axis % x.ndim != x.ndim - 1:
            x = np.moveaxis(x, axis, -1)
        x = self._contiguous(x, "logsumexp")
        y = np.empty(x.shape[:-1], F32)
        lib.minifm_logsumexp(pointer(y), pointer(x), y.size, x.shape[-1])
        return y

    def _rows(self, verb, kernel, inputs, axis):
        """kernel(out, *inputs, rows, n) along `axis`, moved to the end where it is not there."""
        if any(x.dtype != F32 for x in inputs):
            return self._on_numpy(verb, *inputs, axis)
        ndim = inputs[0].ndim
        moved = axis % ndim != ndim - 1
        if moved:
            inputs = [np.moveaxis(x, axis, -1) for x in inputs]
        inputs = [self._contiguous(x, verb) for x in inputs]
        out = np.empty(inputs[0].shape, F32)
        if out.size:
            n = out.shape[-1]
            kernel(pointer(out), *map(pointer, inputs), out.size // n, n)
        return self._contiguous(np.moveaxis(out, -1, axis), verb) if moved else out
