"""Pieces of arrays that need no kernel: joining neighbours, adding to slices."""

import numpy as np

from minifm.backends.c.operands import F32, Operands
from minifm.backends.reference import Reference
from minifm.backends.reference.arrays import only_slices


class Arrays(Operands):
    def rejoin(self, arrays, axis):
        """Attention leaves the gradients of q, k and v side by side: they join without a copy."""
        whole = _neighbours(arrays, axis)
        return self.concatenate(arrays, axis) if whole is None else whole

    def scatter_add(self, shape, index, values):
        """To slices it only moves numbers; to rows it adds as an embedding's gradient does; to
        other places named by arrays it adds in NumPy."""
        if only_slices(index):
            return Reference.scatter_add(self, shape, index, values)
        if values.dtype == F32 and isinstance(index, np.ndarray) and index.dtype.kind in "iu":
            rows = np.where(index < 0, index + shape[0], index)
            if index.size and 0 <= rows.min() and rows.max() < shape[0]:
                values = values.reshape(rows.size, -1)
                return self.embedding_backward(values, rows, shape[0], None).reshape(shape)
        return self._on_numpy("scatter_add", shape, index, values)

    def add_along(self, shape, index, values, axis):
        return self._on_numpy("add_along", shape, index, values, axis)


def _neighbours(arrays, axis):
    """The view of which `arrays` are consecutive slices along `axis`, or None."""
    first = arrays[0]
    if not isinstance(first.base, np.ndarray):
        return None
    place, total = first.__array_interface__["data"][0], 0
    for x in arrays:
        if (x.base is not first.base or x.strides != first.strides or x.dtype != first.dtype
                or x.__array_interface__["data"][0] != place + total * first.strides[axis]):
            return None
        total += x.shape[axis]
    shape = list(first.shape)
    shape[axis] = total
    return np.lib.stride_tricks.as_strided(first, shape, first.strides)
