"""Rows of a table: looking them up, adding to them."""

import numpy as np

from minifm.backends.c.operands import F32, INTEGERS, Operands, from_buffer, indices_of, pointer
from minifm.backends.native import lib
from minifm.backends.reference.embedding import check_ids
from minifm.backends.reference.packed import Packed


class Embedding(Operands):
    def embedding(self, w, ids):
        if isinstance(w, Packed):
            return self.embedding_packed(w, ids)
        if w.dtype != F32:
            return self._on_numpy("embedding", w, ids)
        w, indices = self._contiguous(w, "embedding"), indices_of(ids)
        V, C = w.shape
        y = np.empty((*ids.shape, C), F32)
        if lib.minifm_embedding(pointer(y), pointer(w), from_buffer(INTEGERS, indices),
                                indices.size, V, C):
            check_ids(ids, V, "embedding")
        return y

    def embedding_backward(self, dy, ids, rows, weight_grad):
        if dy.dtype != F32 or not (weight_grad is None or weight_grad.flags.carray):
            return self._on_numpy("embedding_backward", dy, ids, rows, weight_grad)
        dy, indices, C = self._contiguous(dy, "embedding_backward"), indices_of(ids), dy.shape[-1]
        dw = np.zeros((rows, C), F32) if weight_grad is None else weight_grad
        if lib.minifm_embedding_backward(pointer(dw), pointer(dy), from_buffer(INTEGERS, indices),
                                         indices.size, rows, C):
            check_ids(ids, rows, "embedding")
        return dw
