"""Sums, means and extremes along axes."""

import math

from minifm import backends
from minifm.errors import ShapeError
from minifm.op import Op
from minifm.ops.elementwise import multiply, raw, sqrt, subtract
from minifm.tensor import Tensor, apply


class Sum(Op):
    """The sum along `axis`."""

    signature = "x[*X] -> [*Y]"

    def forward(self, x, axis=None, keepdims=False):
        self.shape, self.kept = x.shape, _kept_shape(x.shape, axis)
        return self.backend.sum(x, axis, keepdims)

    def backward(self, dy):
        b = self.backend
        return b.broadcast_to(b.reshape(dy, self.kept), self.shape)

    @classmethod
    def examples(cls, draw):
        shape = draw.any_shape()
        return (draw.normal(shape),), {"axis": draw.axis(len(shape)), "keepdims": draw.flag()}


class Max(Op):
    """The largest along `axis`; equal largest share the gradient equally."""

    signature = "x[*X] -> [*Y]"

    def forward(self, x, axis=None, keepdims=False):
        self.x, self.axis, self.kept = x, axis, _kept_shape(x.shape, axis)
        y = self.backend.max(x, axis, keepdims)
        self.y = self.backend.reshape(y, self.kept)
        return y

    def backward(self, dy):
        b = self.backend
        chosen = b.where(b.equal(self.x, self.y), b.full((), 1, dy.dtype), 0.0)
        share = b.divide(b.reshape(dy, self.kept), b.sum(chosen, self.axis, True))
        return b.multiply(chosen, share)

    @classmethod
    def examples(cls, draw):
        shape = draw.any_shape(smallest=1)
        return (draw.distinct(shape),), {"axis": draw.axis(len(shape)), "keepdims": draw.flag()}


def sum(x, axis=None, keepdims=False):
    """The sum along `axis` (None: all; an int or a tuple)."""
    return apply(Sum, x, axis=_checked("sum", x, axis), keepdims=keepdims)


def mean(x, axis=None, keepdims=False):
    """The mean along `axis`."""
    axis = _checked("mean", x, axis)
    total = sum(x, axis, keepdims)
    kept = _kept_shape(x.shape, axis)
    count = math.prod(x.shape) / math.prod(kept) if math.prod(kept) else 1
    return multiply(total, 1 / count if count else math.nan)


def variance(x, axis=None, keepdims=False):
    """The mean squared distance from the mean (divided by n, not n - 1)."""
    centred = subtract(x, mean(x, axis, True))
    return mean(multiply(centred, centred), axis, keepdims)


def standard_deviation(x, axis=None, keepdims=False):
    """√variance."""
    return sqrt(variance(x, axis, keepdims))


def max(x, axis=None, keepdims=False):
    """The largest along `axis`."""
    return apply(Max, x, axis=_checked("max", x, axis, empty=False), keepdims=keepdims)


def min(x, axis=None, keepdims=False):
    """The smallest along `axis`."""
    return -max(-x, axis, keepdims)


def argmax(x, axis=-1):
    """The first place of the largest element along `axis`, int64. It has no gradient."""
    return Tensor(backends.active().argmax(raw(x), axis))


def _kept_shape(shape, axis):
    """`shape` with the reduced axes kept at size 1."""
    axes = range(len(shape)) if axis is None else (axis,) if isinstance(axis, int) else axis
    reduced = {a % len(shape) for a in axes} if shape else ()
    return tuple(1 if i in reduced else size for i, size in enumerate(shape))


def _checked(name, x, axis, empty=True):
    """`axis`, once it is known to name axes of x (and, unless `empty`, none of size 0)."""
    ndim = len(x.shape)
    axes = tuple(range(ndim)) if axis is None else (axis,) if isinstance(axis, int) else axis
    for a in axes:
        if not -ndim <= a < ndim:
            raise ShapeError(f"{name}: axis {a} of a tensor of shape {tuple(x.shape)}")
        if not empty and x.shape[a] == 0:
            raise ShapeError(f"{name}: axis {a} of {tuple(x.shape)} is empty")
    return tuple(axis) if isinstance(axis, list) else axis
