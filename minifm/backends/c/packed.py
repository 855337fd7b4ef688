"""Weights in low precision: packing them, products with them, rows of them."""

import math

import numpy as np

from minifm.backends.c.operands import (
    F32,
    FUNCTIONS,
    Operands,
    done,
    from_buffer,
    pointer,
    steps,
    strided_pointer,
)
from minifm.backends.native import lib
from minifm.backends.reference.embedding import check_ids
from minifm.backends.reference.packed import (
    CANDIDATES,
    GROUP,
    Packed,
    check_finite,
    check_inner,
    check_packable,
)
from minifm.errors import ShapeError

FORMATS = {"fp32": lib.MINIFM_FP32, "bf16": lib.MINIFM_BF16, "int8": lib.MINIFM_INT8,
           "int4": lib.MINIFM_INT4}
CACHE_LINE = 64
PANEL = 16          # columns of a panel: csrc/packed.h


class Packing(Operands):
    def pack(self, w, format, inner=0):
        check_packable(w, format, inner)
        if format in ("int8", "int4"):
            check_finite(w)
        if steps(w) is None:
            w = self._contiguous(w, "pack")
        rows = w if inner == 1 else w.T                                 # [N, K]
        codes, scales = _room(format, *rows.shape)
        lib.minifm_pack(from_buffer(codes), pointer(scales), strided_pointer(rows),
                        pointer(CANDIDATES), *rows.shape, *steps(rows), len(CANDIDATES),
                        FORMATS[format])
        return Packed(format, w.shape, inner, codes, scales)

    def packed_parts(self, packed):
        """Panels have their columns side by side; files have them one after the other."""
        N, codes, scales = packed.outputs, packed.codes, packed.scales
        rows = len(codes) * PANEL
        if scales is None:                                              # [P, K, 16]
            codes = codes.transpose(0, 2, 1).reshape(rows, packed.depth)
            return np.ascontiguousarray(codes[:N]), None
        _, groups, quads = codes.shape[:3]                              # [P, G, quads, 16, 4]
        codes = codes.transpose(0, 3, 1, 2, 4).reshape(rows, groups, quads * 4)
        scales = scales.transpose(0, 2, 1).reshape(rows, groups)        # [P, G, 16]
        return np.ascontiguousarray(codes[:N]), np.ascontiguousarray(scales[:N])

    def packed_from_parts(self, format, shape, inner, codes, scales):
        N, K = shape[1 - inner], shape[inner]
        panels, panel_scales = _room(format, N, K)
        rows = np.zeros((len(panels) * PANEL, *codes.shape[1:]), codes.dtype)
        rows[:N] = codes
        if scales is None:
            panels[:] = rows.reshape(len(panels), PANEL, K).transpose(0, 2, 1)
        else:
            P, G, quads = panels.shape[:3]
            panels[:] = rows.reshape(P, PANEL, G, quads, 4).transpose(0, 2, 3, 1, 4)
            padded = np.zeros((P * PANEL, G), np.uint16)
            padded[:N] = scales
            panel_scales[:] = padded.reshape(P, PANEL, G).transpose(0, 2, 1)
        return Packed(format, shape, inner, panels, panel_scales)

    def matmul_packed(self, x, packed):
        return self._linear_packed(x, packed, None, None, None)[0]

    def embedding_packed(self, packed, ids):
        check_inner(packed, 1, "embedding")
        return self._look_up(packed, ids)

    def unpack(self, packed):
        rows = self._look_up(packed, np.arange(packed.outputs))            # [N, K]
        return rows if packed.inner == 1 else self._contiguous(rows.T, "unpack")

    def _look_up(self, packed, ids):
        indices, N, K = self._integers(ids, "embedding"), packed.outputs, packed.depth
        y = np.empty((*ids.shape, K), F32)
        if lib.minifm_packed_rows(pointer(y), from_buffer(packed.codes), pointer(packed.scales),
                                  pointer(indices), indices.size, N, K, FORMATS[packed.format]):
            check_ids(ids, N, "embedding")
        return y

    def _linear_packed(self, x, packed, b, activation, residual):
        """`linear` with a Packed for w; x is float32."""
        check_inner(packed, 0, "linear")
        K, N = packed.shape
        if x.shape[-1] != K or x.dtype != F32:
            raise ShapeError(f"linear: expected float32 x of K = {K}, as the packed weight has, "
                             f"got {list(x.shape)} {x.dtype}")
        x = self._contiguous(x, "linear")
        b = None if b is None else self._contiguous(b, "linear")
        residual = None if residual is None else self._contiguous(residual, "linear")
        y = np.empty((*x.shape[:-1], N), F32)
        z = None if activation is None else np.empty(y.shape, F32)
        y_pointer = pointer(y)
        done(lib.minifm_packed_linear(
            y_pointer, y_pointer if z is None else pointer(z), pointer(x),
            from_buffer(packed.codes), pointer(packed.scales), pointer(b), pointer(residual),
            math.prod(x.shape[:-1]), N, K, FORMATS[packed.format], FUNCTIONS[activation]))
        return y, z


def _room(format, N, K):
    """Arrays for the codes and the scales of N packed rows: csrc/packed.c says how they lie."""
    panels, groups = -(-N // PANEL), -(-K // GROUP)
    if format in ("fp32", "bf16"):
        dtype = np.float32 if format == "fp32" else np.uint16
        return _aligned((panels, K, PANEL), dtype), None
    quads, dtype = (8, np.int8) if format == "int8" else (4, np.uint8)
    return (_aligned((panels, groups, quads, PANEL, 4), dtype),
            _aligned((panels, groups, PANEL), np.uint16))


def _aligned(shape, dtype):
    """An empty array that begins at a cache line, so that each of its rows of 64 bytes is one."""
    size = math.prod(shape) * np.dtype(dtype).itemsize
    whole = np.empty(size + CACHE_LINE, np.uint8)
    start = -whole.__array_interface__["data"][0] % CACHE_LINE
    return whole[start : start + size].view(dtype).reshape(shape)
