"""Random bits, uniforms, normals and dropout from the Philox streams."""

import numpy as np

from minifm.backends.c.operands import F32, Operands, pointer
from minifm.backends.native import lib
from minifm.backends.reference import Reference


class Noise(Operands):
    def random_bits(self, key, n):
        bits = np.empty(n, np.uint64)
        lib.minifm_random_bits(pointer(bits), n, *key)
        return bits

    def uniform(self, key, shape, dtype):
        return self._noise("uniform", lib.minifm_uniform, key, shape, dtype)

    def normal(self, key, shape, dtype):
        return self._noise("normal", lib.minifm_normal, key, shape, dtype)

    def _noise(self, verb, kernel, key, shape, dtype):
        if np.dtype(dtype) != F32:      # from the same bits, in NumPy
            return getattr(Reference, verb)(self, key, shape, dtype)
        out = np.empty(shape, F32)
        kernel(pointer(out), out.size, *key)
        return out

    def dropout(self, x, probability, key):
        if x.dtype != F32:
            return Reference.dropout(self, x, probability, key)
        x = self._contiguous(x, "dropout")
        y = np.empty(x.shape, F32)
        lib.minifm_dropout(pointer(y), pointer(x), y.size, *key, probability,
                           1 / (1 - probability))
        return y
