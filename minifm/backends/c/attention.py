"""Attention on heads of any strides, forward and backward."""

import numpy as np

from minifm.backends.c.operands import (
    F32,
    INTEGERS,
    NULL,
    U16,
    Operands,
    done,
    pointer,
    steps,
    strided_pointer,
)
from minifm.backends.native import ffi, lib
from minifm.backends.reference import Reference
from minifm.errors import ShapeError


class Attention(Operands):
    def attention(self, q, k, v, bias, key_mask, causal, scale, lengths=None, first_keys=None):
        if q.dtype != F32 or k.dtype not in (F32, U16) or k.dtype != v.dtype:
            return Reference.attention(self, q, k, v, bias, key_mask, causal, scale, lengths,
                                       first_keys)
        q, k, v = (self._heads(x, "attention") for x in (q, k, v))
        B, H, T, _ = q.shape
        y = np.empty((B, T, H, v.shape[3]), F32).transpose(0, 2, 1, 3)      # [B, H, T, E]
        lse = np.empty((B, H, T), F32)
        shape = _attention_shape(q, k, v, causal, scale)
        _set_strides(shape, q=q, k=k, v=v, y=y)
        bias, bias_pointer = self._bias(bias, shape, "attention")
        mask = None if key_mask is None else self._contiguous(key_mask, "attention")
        done(lib.minifm_attention(
            strided_pointer(y), pointer(lse), strided_pointer(q), strided_pointer(k),
            strided_pointer(v), bias_pointer, pointer(mask),
            self._optional(lengths, "attention"), self._optional(first_keys, "attention"), shape))
        return y, lse

    def cache_append(self, keys, values, k, v, starts):
        given = keys, values, k, v
        if not (k.dtype == v.dtype == F32 and keys.dtype == values.dtype in (F32, U16)
                and keys.flags.carray and values.flags.carray):
            self._on_numpy("cache_append", *given, starts)
            return
        k, v = self._heads(k, "cache_append"), self._heads(v, "cache_append")
        (B, K, T, D), E, capacity = k.shape, v.shape[3], keys.shape[2]
        if lib.minifm_cache_append(
                *map(strided_pointer, (keys, values, k, v)),
                pointer(self._integers(starts, "cache_append")),
                ffi.new(INTEGERS, steps(k)), ffi.new(INTEGERS, steps(v)), B, K, T, capacity, D, E,
                keys.dtype == U16):
            raise ShapeError(f"cache_append: {T} tokens from slots {starts.tolist()} on do not "
                             f"fit the {capacity} that there are")

    def widen(self, x):
        if x.dtype != U16:
            return x
        x, y = self._contiguous(x, "widen"), np.empty(x.shape, F32)
        lib.minifm_widen(pointer(y), pointer(x), x.size)
        return y

    def attention_backward(
        self, dy, q, k, v, bias, key_mask, causal, scale, y, lse, needs_bias,
        lengths=None, first_keys=None,
    ):
        k, v = self.widen(k), self.widen(v)
        if not q.dtype == k.dtype == v.dtype == dy.dtype == F32:
            return Reference.attention_backward(self, dy, q, k, v, bias, key_mask, causal, scale,
                                                y, lse, needs_bias, lengths, first_keys)
        dy, q, k, v, y = (self._heads(x, "attention_backward") for x in (dy, q, k, v, y))
        dq, dk, dv = _packed_like(q, k, v)
        shape = _attention_shape(q, k, v, causal, scale)
        _set_strides(shape, q=q, k=k, v=v, y=y, dy=dy, dq=dq, dk=dk, dv=dv)
        bias, bias_pointer = self._bias(bias, shape, "attention_backward")
        dbias = np.empty((*q.shape[:3], k.shape[2]), F32) if needs_bias else None
        mask = None if key_mask is None else self._contiguous(key_mask, "attention_backward")
        done(lib.minifm_attention_backward(
            *map(strided_pointer, (dq, dk, dv)), pointer(dbias),
            *map(strided_pointer, (dy, q, k, v)), bias_pointer, pointer(mask),
            self._optional(lengths, "attention_backward"),
            self._optional(first_keys, "attention_backward"), strided_pointer(y), pointer(lse),
            shape))
        return dq, dk, dv, dbias

    def _optional(self, integers, verb):
        return pointer(None if integers is None else self._integers(integers, verb))

    def _heads(self, x, verb):
        """x [B, H, T, D] where a head's row is contiguous, else a copy, counted."""
        if (x.strides[3] == x.itemsize or x.shape[3] == 1) and steps(x) is not None:
            return x
        self.copies[verb] += 1
        return np.array(x, order="C")

    def _bias(self, bias, shape, verb):
        """The bias stretched to [B, H, T, S], and where it begins; its strides go into `shape`."""
        if bias is None:
            return None, NULL
        full = np.broadcast_to(bias, (shape.batch, shape.heads, shape.queries, shape.keys))
        if steps(full) is None or full.strides[3] not in (0, 4):
            self.copies[verb] += 1
            full = np.broadcast_to(np.array(bias, order="C"), full.shape)
        shape.bias_strides = steps(full)
        return full, strided_pointer(full)


def _attention_shape(q, k, v, causal, scale):
    (B, H, T, D), (_, K, S, E) = q.shape, v.shape
    return ffi.new("minifm_attention_shape *", {
        "batch": B, "heads": H, "key_heads": K, "queries": T, "keys": S, "width": D,
        "value_width": E, "causal": causal, "scale": scale, "bf16": k.dtype == U16})


def _set_strides(shape, **arrays):
    for name, x in arrays.items():
        setattr(shape, name + "_strides", [stride // x.itemsize for stride in x.strides[:3]])


def _packed_like(q, k, v):
    """Room for dq, dk, dv. Where q, k and v are thirds of one projection, so are these, so that
    joining them again is no copy."""
    (B, H, T, D) = q.shape
    if q.shape == k.shape == v.shape:
        packed = np.empty((B, T, 3, H, D), F32).transpose(2, 0, 3, 1, 4)    # [3, B, H, T, D]
        return tuple(packed)
    return tuple(np.empty((x.shape[0], x.shape[2], x.shape[1], x.shape[3]), F32)
                 .transpose(0, 2, 1, 3) for x in (q, k, v))
