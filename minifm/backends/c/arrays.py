"""Joining neighbours, which moves nothing; taking from places named by arrays, and adding there."""

import math

import numpy as np

from minifm.backends.c.operands import F32, Operands, pointer
from minifm.backends.native import lib
from minifm.backends.reference import Reference
from minifm.backends.reference.arrays import only_slices


class Arrays(Operands):
    def rejoin(self, arrays, axis):
        """Attention leaves the gradients of q, k and v side by side: they join without a copy."""
        whole = _neighbours(arrays, axis)
        return self.concatenate(arrays, axis) if whole is None else whole

    def scatter_add(self, shape, index, values):
        """To slices it only moves numbers. Other places are rows of a table whose width are the
        dimensions that `index` does not speak of: what it picks of their numbers says which."""
        if only_slices(index):
            return Reference.scatter_add(self, shape, index, values)
        if values.dtype != F32:
            return self._on_numpy("scatter_add", shape, index, values)
        lead = shape[: _dimensions_of(index, len(shape))]
        rest, count = shape[len(lead):], math.prod(lead)
        self.copies["scatter_add"] += 1         # the rows
        rows = np.asarray(np.arange(count).reshape(lead)[index])
        values = np.broadcast_to(values, rows.shape + rest).reshape(rows.size, math.prod(rest))
        return self.embedding_backward(values, rows, count, None).reshape(shape)

    def take_along(self, x, index, axis):
        if x.dtype != F32:
            return Reference.take_along(self, x, index, axis)
        axis %= x.ndim
        others = np.broadcast_shapes(*(a.shape[:axis] + (1,) + a.shape[axis + 1:]
                                       for a in (x, index)))
        x, index = (np.broadcast_to(a, others[:axis] + (a.shape[axis],) + others[axis + 1:])
                    for a in (x, index))
        x, places = self._contiguous(x, "take_along"), self._integers(index, "take_along")
        out = np.empty(index.shape, F32)
        if lib.minifm_take_along(pointer(out), pointer(x), pointer(places),
                                 *_around(index.shape, axis), x.shape[axis],
                                 math.prod(others[axis + 1:])):
            return Reference.take_along(self, x, index, axis)       # raises
        return out

    def add_along(self, shape, index, values, axis):
        if values.dtype != F32:
            return self._on_numpy("add_along", shape, index, values, axis)
        axis %= len(shape)
        if index.shape[:axis] + index.shape[axis + 1:] != shape[:axis] + shape[axis + 1:]:
            places = list(np.indices(index.shape, sparse=True))
            places[axis] = index
            return self.scatter_add(shape, tuple(places), values)
        values = self._contiguous(np.broadcast_to(values, index.shape), "add_along")
        places, out = self._integers(index, "add_along"), np.empty(shape, F32)
        if lib.minifm_add_along(pointer(out), pointer(values), pointer(places),
                                *_around(index.shape, axis), shape[axis],
                                math.prod(shape[axis + 1:])):
            return Reference.add_along(self, shape, index, values, axis)        # raises
        return out


def _around(shape, axis):
    """How many numbers come before an axis, and along it."""
    return math.prod(shape[:axis]), shape[axis]


def _dimensions_of(index, ndim):
    """How many of the leading dimensions an index speaks of."""
    count = 0
    for part in index if isinstance(index, tuple) else (index,):
        if part is ...:
            return ndim
        if part is not None:
            count += part.ndim if getattr(part, "dtype", None) == np.bool_ else 1
    return count


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
