"""Arithmetic of two arrays of any strides, and functions of one variable."""

from functools import lru_cache

import numpy as np

from minifm.backends.c.operands import (
    F32,
    FUNCTIONS,
    INTEGERS,
    Operands,
    pointer,
    steps,
    strided_pointer,
)
from minifm.backends.native import ffi, lib

MAX_DIMENSIONS = 8


class Elementwise(Operands):
    def add(self, x, y):
        return self._binary("add", lib.MINIFM_ADD, x, y)

    def subtract(self, x, y):
        return self._binary("subtract", lib.MINIFM_SUBTRACT, x, y)

    def multiply(self, x, y):
        return self._binary("multiply", lib.MINIFM_MULTIPLY, x, y)

    def divide(self, x, y):
        return self._binary("divide", lib.MINIFM_DIVIDE, x, y)

    def maximum(self, x, y):
        return self._binary("maximum", lib.MINIFM_MAXIMUM, x, y)

    def minimum(self, x, y):
        return self._binary("minimum", lib.MINIFM_MINIMUM, x, y)

    def power(self, x, y):
        """Squares and reciprocals; other exponents are NumPy's."""
        if isinstance(y, (int, float)) and y in (2, -1):
            return self.multiply(x, x) if y == 2 else self.divide(1, x)
        return self._on_numpy("power", x, y)

    def add_into(self, out, x):
        if not (out.dtype == F32 == x.dtype and out.flags.carray and out.shape == x.shape):
            self._on_numpy("add_into", out, x)
        elif x.flags.carray:
            p = pointer(out)
            lib.minifm_binary(p, p, pointer(x), out.size, 1, 1, lib.MINIFM_ADD)
        else:
            self._strided(lib.MINIFM_ADD, out, x, out)

    def _binary(self, verb, operation, x, y):
        left, right = _operand(x), _operand(y)
        if left is None or right is None or not (hasattr(x, "dtype") or hasattr(y, "dtype")):
            return self._on_numpy(verb, x, y)
        if left.shape == right.shape or not left.shape or not right.shape:
            if left.flags.carray and right.flags.carray:
                out = np.empty(left.shape or right.shape, F32)
                lib.minifm_binary(pointer(out), pointer(left), pointer(right), out.size,
                                  left.shape != () or not right.shape,
                                  right.shape != () or not left.shape, operation)
                return out
        if max(left.ndim, right.ndim) > MAX_DIMENSIONS:
            return self._on_numpy(verb, x, y)
        if steps(left) is None:
            left = self._contiguous(left, verb)
        if steps(right) is None:
            right = self._contiguous(right, verb)
        return self._strided(operation, left, right, None)

    def _strided(self, operation, x, y, out):
        """x op y of any broadcastable strides, into `out` or a new array."""
        shape, plan = _broadcast_plan(x.shape, x.strides, y.shape, y.strides)
        if out is None:
            out = np.empty(shape, F32)
        if out.size:
            lib.minifm_binary_strided(pointer(out), strided_pointer(x), strided_pointer(y),
                                      len(shape), plan, operation)
        return out

    def negative(self, x):
        return self._map("negative", lib.MINIFM_NEGATIVE, x)

    def absolute(self, x):
        return self._map("absolute", lib.MINIFM_ABSOLUTE, x)

    def sign(self, x):
        return self._map("sign", lib.MINIFM_SIGN, x)

    def exp(self, x):
        return self._map("exp", lib.MINIFM_EXP, x)

    def sqrt(self, x):
        return self._map("sqrt", lib.MINIFM_SQRT, x)

    def tanh(self, x):
        return self._map("tanh", lib.MINIFM_TANH, x)

    def erf(self, x):
        return self._map("erf", lib.MINIFM_ERF, x)

    def sigmoid(self, x):
        return self._map("sigmoid", lib.MINIFM_SIGMOID, x)

    def relu(self, x):
        return self._map("relu", lib.MINIFM_RELU, x)

    def silu(self, x):
        return self._map("silu", lib.MINIFM_SILU, x)

    def gelu(self, x):
        return self._map("gelu", lib.MINIFM_GELU, x)

    def gelu_tanh(self, x):
        return self._map("gelu_tanh", lib.MINIFM_GELU_TANH, x)

    def gelu_quick(self, x):
        return self._map("gelu_quick", lib.MINIFM_GELU_QUICK, x)

    def relu_backward(self, dy, x):
        return self._map_backward("relu", dy, x)

    def silu_backward(self, dy, x):
        return self._map_backward("silu", dy, x)

    def gelu_backward(self, dy, x):
        return self._map_backward("gelu", dy, x)

    def gelu_tanh_backward(self, dy, x):
        return self._map_backward("gelu_tanh", dy, x)

    def gelu_quick_backward(self, dy, x):
        return self._map_backward("gelu_quick", dy, x)

    def _map(self, verb, function, x):
        if x.dtype != F32:
            return self._on_numpy(verb, x)
        x = self._contiguous(x, verb)
        y = np.empty(x.shape, F32)
        lib.minifm_map(pointer(y), pointer(x), y.size, function)
        return y

    def _map_backward(self, activation, dy, x):
        verb = activation + "_backward"
        if x.dtype != F32 or dy.dtype != F32 or x.shape != dy.shape:
            return self._on_numpy(verb, dy, x)
        x, dy = self._contiguous(x, verb), self._contiguous(dy, verb)
        dx = np.empty(x.shape, F32)
        lib.minifm_map_backward(pointer(dx), pointer(dy), pointer(x), dx.size,
                                FUNCTIONS[activation])
        return dx


def _operand(x):
    """A float32 array of x: itself, or the number it is; None where it is neither."""
    if isinstance(x, np.ndarray):
        return x if x.dtype == F32 else None
    if isinstance(x, np.float32) or type(x) in (int, float):
        return np.array(x, F32)
    return None


@lru_cache(maxsize=4096)
def _broadcast_plan(x_shape, x_strides, y_shape, y_strides):
    """The common shape, and the int64 array of sizes and strides that the kernel reads."""
    shape = np.broadcast_shapes(x_shape, y_shape)
    plan = list(shape)
    for own, strides in ((x_shape, x_strides), (y_shape, y_strides)):
        plan += [0] * (len(shape) - len(own))
        plan += [0 if size == 1 else stride // 4 for size, stride in zip(own, strides)]
    return shape, ffi.new(INTEGERS, plan)
