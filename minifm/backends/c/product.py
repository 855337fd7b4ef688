"""Matrix products, plain, batched and accumulated, and the fused `linear`."""

import math
from functools import lru_cache

import numpy as np

from minifm.backends.c.operands import (
    F32,
    FUNCTIONS,
    NULL,
    Operands,
    done,
    pointer,
    strided_pointer,
)
from minifm.backends.native import lib
from minifm.backends.reference import Reference
from minifm.backends.reference.packed import Packed

# Whether the kernels round operands to bf16.
PRECISIONS = {"fp32": 0, "bf16": 1}
MOST_KEPT = 1024        # matrices of a batch whose places are kept for the next product


class Product(Operands):
    def matmul(self, x, y, precision="fp32"):
        if not (x.dtype == F32 == y.dtype and x.ndim >= 2 and y.ndim >= 2):
            return self._on_numpy("matmul", x, y, precision)
        x, x_steps = self._matrix(x, "matmul")
        y, y_steps = self._matrix(y, "matmul")
        (m, k), n = x.shape[-2:], y.shape[-1]
        if x.ndim == 2 == y.ndim:
            batch, x_offsets, y_offsets = (), NULL, NULL
        else:
            batch, x_offsets, y_offsets = _batch_plan(
                x.shape[:-2], x.strides[:-2], y.shape[:-2], y.strides[:-2])
        out = np.empty((*batch, m, n), F32)
        done(lib.minifm_matmul(pointer(out), strided_pointer(x), strided_pointer(y),
                               math.prod(batch), m, n, k, x_offsets, y_offsets, *x_steps,
                               *y_steps, 0, PRECISIONS[precision]))
        return out

    def matmul_into(self, out, x, y, precision="fp32"):
        if not (x.dtype == F32 == y.dtype and out.dtype == F32 and out.flags.carray):
            return self._on_numpy("matmul_into", out, x, y, precision)
        x, x_steps = self._matrix(x, "matmul_into")
        y, y_steps = self._matrix(y, "matmul_into")
        (m, k), n = x.shape, y.shape[1]
        done(lib.minifm_matmul(pointer(out), strided_pointer(x), strided_pointer(y), 1, m, n, k,
                               NULL, NULL, *x_steps, *y_steps, 1, PRECISIONS[precision]))

    def linear(self, x, w, b, activation, residual, precision="fp32"):
        if isinstance(w, Packed):
            return self._linear_packed(x, w, b, activation, residual)
        if not x.dtype == w.dtype == F32:
            return Reference.linear(self, x, w, b, activation, residual, precision)
        K, N = w.shape
        rows, x_steps = self._matrix(x if x.ndim == 2 else self._flat(x, K, "linear"), "linear")
        w, w_steps = self._matrix(w, "linear")
        b = None if b is None else self._contiguous(b, "linear")
        residual = None if residual is None else self._contiguous(residual, "linear")
        y = np.empty((*x.shape[:-1], N), F32)
        z = None if activation is None else np.empty(y.shape, F32)
        y_pointer = pointer(y)
        done(lib.minifm_linear(
            y_pointer, y_pointer if z is None else pointer(z), strided_pointer(rows),
            strided_pointer(w), pointer(b), pointer(residual), rows.shape[0], N, K, *x_steps,
            *w_steps, FUNCTIONS[activation], PRECISIONS[precision]))
        return y, z

    def _flat(self, x, width, verb):
        """x [*B, width] as a matrix: [M, width]."""
        return self._contiguous(x, verb).reshape(math.prod(x.shape[:-1]), width)


def _batch_plan(*layouts):
    """The common batch shape, and where the matrices of each operand begin; see `_plan`."""
    return _kept_plan(*layouts) or _plan(*layouts)


@lru_cache(maxsize=1024)
def _kept_plan(x_shape, x_strides, y_shape, y_strides):
    """The plan; None where it is so large that thousands of them would fill the memory, and its
    product so long that making it again does not count."""
    small = math.prod(np.broadcast_shapes(x_shape, y_shape)) <= MOST_KEPT
    return _plan(x_shape, x_strides, y_shape, y_strides) if small else None


def _plan(x_shape, x_strides, y_shape, y_strides):
    shape = np.broadcast_shapes(x_shape, y_shape)
    offsets = []
    for own, strides in ((x_shape, x_strides), (y_shape, y_strides)):
        total = np.zeros((), np.int64)
        own = (1,) * (len(shape) - len(own)) + own
        strides = (0,) * (len(shape) - len(strides)) + strides
        for size, full, stride in zip(own, shape, strides):
            places = np.arange(full, dtype=np.int64) * (0 if size == 1 else stride // 4)
            total = np.add.outer(total, places)
        offsets.append(pointer(total.reshape(-1)))
    return shape, *offsets
