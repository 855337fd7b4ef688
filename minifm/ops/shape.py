"""Moving numbers without changing them: reshape, transpose, index, concatenate, pad.

The gradient of each is the same movement backwards. Most gradients here are views.
"""

import math

import numpy as np

from minifm.errors import ShapeError
from minifm.op import Op, check_array, check_axis, check_dtypes, check_integers, explain
from minifm.ops.arithmetic import raw, unbroadcast
from minifm.tensor import apply


class Reshape(Op):
    """The same numbers, in row-major order, under another shape."""

    signature = "x[*X] -> [*Y]"

    def forward(self, x, shape):
        self.shape = x.shape
        return self.backend.reshape(x, shape)

    def backward(self, dy):
        return self.backend.reshape(dy, self.shape)

    @classmethod
    def examples(cls, draw):
        shape = draw.any_shape()
        return (draw.normal(shape),), {"shape": draw.choice([(math.prod(shape),), (*shape, 1)])}


class Transpose(Op):
    """The axes in another order."""

    signature = "x[*X] -> [*Y]"

    def forward(self, x, axes):
        self.axes = axes
        return self.backend.transpose(x, axes)

    def backward(self, dy):
        inverse = sorted(range(len(self.axes)), key=self.axes.__getitem__)
        return self.backend.transpose(dy, tuple(inverse))

    @classmethod
    def examples(cls, draw):
        shape = draw.any_shape()
        return (draw.normal(shape),), {"axes": draw.permutation(len(shape))}


class BroadcastTo(Op):
    """Stretch dimensions of size 1, and new leading ones, to `shape`."""

    signature = "x[*X] -> [*Y]"

    def forward(self, x, shape):
        self.x = x
        return self.backend.broadcast_to(x, shape)

    def backward(self, dy):
        return unbroadcast(self.backend, dy, self.x)

    @classmethod
    def examples(cls, draw):
        left, right = draw.broadcastable()
        return (draw.normal(left),), {"shape": np.broadcast_shapes(left, right)}


class GetItem(Op):
    """x[index] by NumPy's rules; places that `index` names twice receive both gradients."""

    signature = "x[*X] -> [*Y]"

    def forward(self, x, index):
        self.shape, self.index = x.shape, index
        return self.backend.getitem(x, index)

    def backward(self, dy):
        return self.backend.scatter_add(self.shape, self.index, dy)

    @classmethod
    def examples(cls, draw):
        n, m = draw.size("T", 1), draw.size("C", 1)
        kind = draw.choice(["row", "slice", "step", "twice", "new axis"])
        index = {"row": n - 1, "slice": (slice(0, n), slice(m // 2, m)), "new axis": (..., None),
                 "step": slice(None, None, -2), "twice": draw.integers((3,), 0, n)}[kind]
        return (draw.normal((n, m)),), {"index": index}


class TakeAlong(Op):
    """Gather: out[.., i, ..] = x[.., index[.., i, ..], ..] along one axis."""

    signature = "x[*X], index[*I] -> [*I]"

    def forward(self, x, index, axis):
        self.shape, self.index, self.axis = x.shape, index, axis
        return self.backend.take_along(x, index, axis)

    def backward(self, dy):
        return self.backend.add_along(self.shape, self.index, dy, self.axis), None

    @classmethod
    def check(cls, inputs):
        check_integers(cls, inputs, "index")
        x, index = inputs
        if len(x.shape) != len(index.shape):
            raise ShapeError(explain(cls, inputs, "x and index need equally many dimensions"))

    @classmethod
    def examples(cls, draw):
        n, m = draw.size("T", 1), draw.size("C", 1)
        return (draw.normal((n, m)), draw.integers((n, 2), 0, m)), {"axis": 1}


class ScatterAdd(Op):
    """x with `values` added at x[index]; places named twice receive both."""

    signature = "x[*X], values[*V] -> [*X]"

    def forward(self, x, values, index):
        self.index = index
        return self.backend.add(x, self.backend.scatter_add(x.shape, index, values))

    def backward(self, dy):
        return (dy if self.needs[0] else None,
                self.backend.getitem(dy, self.index) if self.needs[1] else None)

    @classmethod
    def examples(cls, draw):
        n, m = draw.size("T", 1), draw.size("C", 1)
        return (draw.normal((n, m)), draw.normal((3, m))), {"index": draw.integers((3,), 0, n)}


class Concatenate(Op):
    """Arrays joined along one axis. Takes any number of inputs."""

    signature = "first[*X], second[*Y] -> [*Z]"

    def forward(self, first, second, *more, axis):
        arrays = (first, second, *more)
        self.axis, self.sizes = axis % len(first.shape), [x.shape[axis] for x in arrays]
        return self.backend.concatenate(list(arrays), axis)

    def backward(self, dy):
        pieces, start = [], 0
        for size, needed in zip(self.sizes, self.needs):
            index = (slice(None),) * self.axis + (slice(start, start + size),)
            pieces.append(self.backend.getitem(dy, index) if needed else None)
            start += size
        return tuple(pieces)

    @classmethod
    def check(cls, inputs):
        check_dtypes(cls, inputs)

    @classmethod
    def examples(cls, draw):
        n, m = draw.size("T"), draw.size("C")
        return (draw.normal((n, m)), draw.normal((n, 3))), {"axis": draw.choice([1, -1])}


class Pad(Op):
    """A border of `value` around x: `widths` is one (before, after) pair for each axis."""

    signature = "x[*X] -> [*Y]"

    def forward(self, x, widths, value=0.0):
        self.index = tuple(slice(before, before + size)
                           for (before, _), size in zip(widths, x.shape))
        return self.backend.pad(x, widths, value)

    def backward(self, dy):
        return self.backend.getitem(dy, self.index)

    @classmethod
    def examples(cls, draw):
        shape = draw.shape(["T", "C"], {})
        value = draw.choice([0.0, -1.5])
        return (draw.normal(shape),), {"widths": ((1, 0), (2, 3)), "value": value}


def reshape(x, *shape):
    """The same numbers under another shape; one size may be -1. reshape(x, 2, 3) or (x, (2, 3))."""
    check_array("reshape", x)
    shape = shape[0] if len(shape) == 1 and isinstance(shape[0], (tuple, list)) else shape
    free, total = shape.count(-1), math.prod(x.shape)
    known = math.prod(shape) * (-1) ** free         # the product of all sizes but the free one
    fits = total == known if free == 0 else known != 0 and total % known == 0
    if free > 1 or min(shape, default=0) < -1 or not fits:
        raise ShapeError(f"reshape: {tuple(x.shape)} holds {total} numbers, {tuple(shape)} cannot")
    if free:
        shape = [total // known if size == -1 else size for size in shape]
    return apply(Reshape, x, shape=tuple(shape))


def transpose(x, *axes):
    """The axes in another order; without `axes`, reversed."""
    check_array("transpose", x)
    axes = axes[0] if len(axes) == 1 and isinstance(axes[0], (tuple, list)) else axes
    for axis in axes:
        check_axis("transpose", x, axis)
    axes = tuple(a % len(x.shape) for a in axes) if axes else tuple(reversed(range(len(x.shape))))
    if sorted(axes) != list(range(len(x.shape))):
        raise ShapeError(f"transpose: {axes} is no permutation of the axes of {tuple(x.shape)}")
    return apply(Transpose, x, axes=axes)


def broadcast_to(x, shape):
    """Stretch x to `shape` by the rules of broadcasting."""
    problem = None
    try:
        np.broadcast_shapes(x.shape, shape)
    except ValueError:
        problem = True
    if problem or len(shape) < len(x.shape):
        raise ShapeError(f"broadcast_to: {tuple(x.shape)} does not stretch to {tuple(shape)}")
    return apply(BroadcastTo, x, shape=tuple(shape))


def getitem(x, index):
    """x[index]: integers, slices, None, Ellipsis, integer and boolean arrays."""
    parts = index if isinstance(index, tuple) else (index,)
    parts = tuple(raw(np.asarray(p) if isinstance(p, list) else p) for p in parts)
    return apply(GetItem, x, index=parts if isinstance(index, tuple) else parts[0])


def take_along(x, index, axis=-1):
    """Gather along one axis, `index` having as many dimensions as x."""
    check_axis("take_along", x, axis)
    return apply(TakeAlong, x, index, axis=axis)


def scatter_add(x, index, values):
    """x with `values` added at x[index]; the adjoint of getitem."""
    return apply(ScatterAdd, x, values, index=raw(index))


def concatenate(tensors, axis=0):
    """Join along an existing axis; every other dimension must agree."""
    if not tensors:
        raise ShapeError("concatenate: expected at least one tensor, got none")
    first = tensors[0]
    check_axis("concatenate", first, axis)
    for x in tensors[1:]:
        rest = [list(t.shape) for t in (first, x)]
        if len(rest[0]) != len(rest[1]) or any(
                a != b for i, (a, b) in enumerate(zip(*rest)) if i != axis % len(rest[0])):
            raise ShapeError(f"concatenate along {axis}: {tuple(first.shape)} and "
                             f"{tuple(x.shape)} differ elsewhere")
    return apply(Concatenate, *tensors, axis=axis) if len(tensors) > 1 else first


def stack(tensors, axis=0):
    """Join along a new axis."""
    return concatenate([getitem(t, _new_axis(axis, t.ndim)) for t in tensors], axis)


def _new_axis(axis, ndim):
    return (slice(None),) * (axis % (ndim + 1)) + (None,)


def pad(x, widths, value=0.0):
    """A border of `value`: `widths` is one (before, after) pair for each axis."""
    if len(widths) != len(x.shape):
        raise ShapeError(f"pad: {len(widths)} pairs for {len(x.shape)} dimensions")
    return apply(Pad, x, widths=tuple(widths), value=value)
