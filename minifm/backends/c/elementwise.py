"""Arithmetic and comparisons of arrays of any strides, and functions of one variable."""

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
        if isinstance(y, (int, float)) and y in (2, -1):    # right to the last bit, and faster
            return self.multiply(x, x) if y == 2 else self.divide(1, x)
        return self._binary("power", lib.MINIFM_POWER, x, y)

    def where(self, condition, x, y):
        left, right = _operand(x), _operand(y)
        if left is None or right is None or not (hasattr(x, "dtype") or hasattr(y, "dtype")):
            return self._on_numpy("where", condition, x, y)
        chosen = np.asarray(condition, np.bool_)
        self.copies["where"] += chosen is not condition
        left, right = self._stepped(left, "where"), self._stepped(right, "where")
        return self._strided(lib.minifm_choose, F32, (chosen, left, right))

    def greater(self, x, y):
        return self._compare("greater", lib.MINIFM_LESS, x, y, True)

    def greater_equal(self, x, y):
        return self._compare("greater_equal", lib.MINIFM_LESS_EQUAL, x, y, True)

    def less(self, x, y):
        return self._compare("less", lib.MINIFM_LESS, x, y)

    def less_equal(self, x, y):
        return self._compare("less_equal", lib.MINIFM_LESS_EQUAL, x, y)

    def equal(self, x, y):
        return self._compare("equal", lib.MINIFM_EQUAL, x, y)

    def add_into(self, out, x):
        if not (out.dtype == F32 == x.dtype and out.flags.carray and out.shape == x.shape):
            self._on_numpy("add_into", out, x)
        elif x.flags.carray:
            p = pointer(out)
            lib.minifm_binary(p, p, pointer(x), out.size, 1, 1, lib.MINIFM_ADD)
        else:
            self._strided(lib.minifm_binary_strided, F32, (out, self._stepped(x, "add_into")),
                          lib.MINIFM_ADD, out=out)

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
        operands = self._stepped(left, verb), self._stepped(right, verb)
        return self._strided(lib.minifm_binary_strided, F32, operands, operation)

    def _compare(self, verb, operation, x, y, swapped=False):
        left, right = _operand(x), _operand(y)
        if left is None or right is None or not (hasattr(x, "dtype") or hasattr(y, "dtype")):
            return self._on_numpy(verb, x, y)
        operands = self._stepped(left, verb), self._stepped(right, verb)
        return self._strided(lib.minifm_compare, np.bool_, operands[::-1] if swapped else operands,
                             operation)

    def _stepped(self, x, verb):
        """x itself where its strides are whole elements, else a copy, counted."""
        return self._contiguous(x, verb) if steps(x) is None else x

    def _strided(self, kernel, dtype, operands, *operation, out=None):
        """The kernel's result of operands of any broadcastable strides, into `out` or a new
        array."""
        shape, plan = _broadcast_plan(*((x.shape, x.strides, x.itemsize) for x in operands))
        if out is None:
            out = np.empty(shape, dtype)
        if out.size:
            kernel(pointer(out), *map(strided_pointer, operands), len(shape), plan, *operation)
        return out

    def negative(self, x):
        return self._map("negative", lib.MINIFM_NEGATIVE, x)

    def absolute(self, x):
        return self._map("absolute", lib.MINIFM_ABSOLUTE, x)

    def sign(self, x):
        return self._map("sign", lib.MINIFM_SIGN, x)

    def log(self, x):
        return self._map("log", lib.MINIFM_LOG, x)

    def sin(self, x):
        return self._map("sin", lib.MINIFM_SIN, x)

    def cos(self, x):
        return self._map("cos", lib.MINIFM_COS, x)

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
def _broadcast_plan(*operands):
    """The common shape of operands (shape, strides, bytes of an element), and the int64 array of
    sizes and strides that the kernel reads."""
    shape = np.broadcast_shapes(*(own for own, _, _ in operands))
    plan = list(shape)
    for own, strides, each in operands:
        plan += [0] * (len(shape) - len(own))
        plan += [0 if size == 1 else stride // each for size, stride in zip(own, strides)]
    return shape, ffi.new(INTEGERS, plan)
