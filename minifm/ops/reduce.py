"""Sums, means and extremes along axes."""

import math

import numpy as np

from minifm import backends
from minifm.errors import ShapeError
from minifm.op import Op, check_array, check_axis
from minifm.ops.arithmetic import multiply, raw, subtract
from minifm.ops.elementary import sqrt
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
        y = self.extreme(x, axis, keepdims)
        self.y = self.backend.reshape(y, self.kept)
        return y

    def backward(self, dy):
        b = self.backend
        chosen = b.where(b.equal(self.x, self.y), b.full((), 1, dy.dtype), 0.0)
        share = b.divide(b.reshape(dy, self.kept), b.sum(chosen, self.axis, True))
        return b.multiply(chosen, share)

    def extreme(self, x, axis, keepdims):
        return self.backend.max(x, axis, keepdims)

    @classmethod
    def examples(cls, draw):
        shape = draw.any_shape(smallest=1)
        return (draw.distinct(shape),), {"axis": draw.axis(len(shape)), "keepdims": draw.flag()}


class Min(Max):
    """The smallest along `axis`; equal smallest share the gradient equally."""

    signature = Max.signature

    def extreme(self, x, axis, keepdims):
        return self.backend.min(x, axis, keepdims)


def sum(x, axis=None, keepdims=False):
    """The sum along `axis` (None: all; an int or a tuple). Integers and truth values add up as
    int64."""
    return apply(Sum, _in("sum", x, np.int64), axis=_checked("sum", x, axis), keepdims=keepdims)


def mean(x, axis=None, keepdims=False):
    """The mean along `axis`; of integers and truth values too, as float32."""
    axis, x = _checked("mean", x, axis), _in("mean", x, np.float32)
    total = sum(x, axis, keepdims)
    kept = _kept_shape(x.shape, axis)
    count = math.prod(x.shape) / math.prod(kept) if math.prod(kept) else 1
    return multiply(total, 1 / count if count else math.nan)


def variance(x, axis=None, keepdims=False):
    """The mean squared distance from the mean (divided by n, not n - 1)."""
    x = _in("variance", x, np.float32)
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
    return apply(Min, x, axis=_checked("min", x, axis, empty=False), keepdims=keepdims)


def argmax(x, axis=-1):
    """The first place of the largest element along `axis`, int64. It has no gradient."""
    check_axis("argmax", x, axis)
    return Tensor(backends.active().argmax(raw(x), axis))


def _in(name, x, dtype):
    """Integers and truth values as `dtype`, so that their sum does not overflow; floating-point
    numbers as they are."""
    check_array(name, x)
    if np.dtype(x.dtype).kind == "f":
        return x
    return Tensor(backends.active().astype(raw(x), dtype))


def _kept_shape(shape, axis):
    """`shape` with the reduced axes kept at size 1."""
    axes = range(len(shape)) if axis is None else (axis,) if isinstance(axis, int) else axis
    reduced = {a % len(shape) for a in axes} if shape else ()
    return tuple(1 if i in reduced else size for i, size in enumerate(shape))


def _checked(name, x, axis, empty=True):
    """`axis`, once it is known to name axes of x (and, unless `empty`, none of size 0)."""
    check_array(name, x)
    ndim = len(x.shape)
    if isinstance(axis, np.integer):
        axis = int(axis)
    axes = tuple(range(ndim)) if axis is None else (axis,) if isinstance(axis, int) else axis
    for a in axes:
        check_axis(name, x, a)
        if not empty and x.shape[a] == 0:
            raise ShapeError(f"{name}: axis {a} of {tuple(x.shape)} is empty")
    if len({a % ndim for a in axes}) < len(axes):
        raise ShapeError(f"{name}: axes {tuple(axes)} name one of {tuple(x.shape)} twice")
    return tuple(axis) if isinstance(axis, list) else axis
