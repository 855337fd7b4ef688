"""Rows of a table: looking them up, adding to them; and rotary positions."""

import numpy as np

from minifm.backends.c.operands import (
    F32,
    INTEGERS,
    Operands,
    pointer,
    steps,
    strided_pointer,
)
from minifm.backends.native import ffi, lib
from minifm.backends.reference import Reference
from minifm.backends.reference.embedding import check_ids
from minifm.backends.reference.packed import Packed


class Embedding(Operands):
    def embedding(self, w, ids):
        if isinstance(w, Packed):
            return self.embedding_packed(w, ids)
        if w.dtype != F32:
            return self._on_numpy("embedding", w, ids)
        w, indices = self._contiguous(w, "embedding"), self._integers(ids, "embedding")
        V, C = w.shape
        y = np.empty((*ids.shape, C), F32)
        if lib.minifm_embedding(pointer(y), pointer(w), pointer(indices), indices.size, V, C):
            check_ids(ids, V, "embedding")
        return y

    def embedding_backward(self, dy, ids, rows, weight_grad):
        if dy.dtype != F32 or not (
                weight_grad is None or weight_grad.dtype == F32 and weight_grad.flags.carray):
            return self._on_numpy("embedding_backward", dy, ids, rows, weight_grad)
        dy, C = self._contiguous(dy, "embedding_backward"), dy.shape[-1]
        indices = self._integers(ids, "embedding_backward")
        dw = np.zeros((rows, C), F32) if weight_grad is None else weight_grad
        if lib.minifm_embedding_backward(pointer(dw), pointer(dy), pointer(indices), indices.size,
                                         rows, C):
            check_ids(ids, rows, "embedding")
        return dw

    def rope(self, x, cos, sin, inverse):
        """Heads of any strides, as projections leave them; the result lies position by position."""
        if not x.dtype == cos.dtype == sin.dtype == F32:
            return Reference.rope(self, x, cos, sin, inverse)
        if steps(x) is None or not (x.strides[3] == 4 or x.shape[3] == 1):
            x = self._contiguous(x, "rope")
        cos, sin = self._contiguous(cos, "rope"), self._contiguous(sin, "rope")
        B, H, T, D = x.shape
        y = np.empty((B, T, H, D), F32)
        lib.minifm_rope(pointer(y), strided_pointer(x), pointer(cos), pointer(sin), B, T, H,
                        D // 2, ffi.new(INTEGERS, steps(x)), T * D // 2 if cos.ndim == 3 else 0,
                        inverse)
        return y.transpose(0, 2, 1, 3)
