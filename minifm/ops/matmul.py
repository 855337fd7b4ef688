"""Matrix products: `matmul`, and `linear`, the fused one that every layer uses."""

import math

import numpy as np

from minifm.errors import ShapeError
from minifm.op import Op, check_arithmetic, check_floating, explain
from minifm.ops.activation import verb_of
from minifm.ops.arithmetic import unbroadcast
from minifm.ops.packed import refuse_gradient
from minifm.ops.precision import active_precision
from minifm.tensor import apply, leaf_grad


class Matmul(Op):
    """x @ y over the last two axes; leading axes broadcast."""

    signature = "x[*X, M, K], y[*Y, K, N] -> [*XY, M, N]"

    def forward(self, x, y, precision="fp32"):
        self.x, self.y, self.precision = x, y, precision
        return self.backend.matmul(x, y, precision)

    def backward(self, dy):
        b, x, y = self.backend, self.x, self.y
        mode = self.precision
        dx = b.matmul(dy, _swap(b, y), mode) if self.needs[0] else None     # dy yᵀ
        dw = b.matmul(_swap(b, x), dy, mode) if self.needs[1] else None     # xᵀ dy
        return (None if dx is None else unbroadcast(b, dx, x),
                None if dw is None else unbroadcast(b, dw, y))

    @classmethod
    def check(cls, inputs):
        check_arithmetic(cls, inputs)
        super().check(inputs)
        lead = [x.shape[:-2] for x in inputs]
        for a, b in zip(reversed(lead[0]), reversed(lead[1])):
            if a != b and 1 not in (a, b):
                raise ShapeError(explain(cls, inputs, f"batch dimensions {a} and {b} differ"))

    @classmethod
    def examples(cls, draw):
        left, right = draw.broadcastable(2, "*M")
        M, K, N = draw.size("M"), draw.size("K"), draw.size("N")
        return (draw.normal((*left, M, K)), draw.normal((*right, K, N))), {}

    @classmethod
    def flops(cls, x, y, precision="fp32"):
        batch = math.prod(np.broadcast_shapes(x.shape[:-2], y.shape[:-2]))
        return 2 * batch * x.shape[-2] * x.shape[-1] * y.shape[-1]


def _swap(backend, x):
    n = len(x.shape)
    return backend.transpose(x, (*range(n - 2), n - 1, n - 2))


class Linear(Op):
    """activation(x @ weight + bias) + residual."""

    signature = "x[*B, K], weight[K, N], bias[N], residual[*B, N] -> [*B, N]"
    fresh = True

    def forward(self, x, weight, bias, residual, activation=None, precision="fp32"):
        if self.needs[1]:
            refuse_gradient(weight)
        self.x, self.weight, self.activation = x, weight, activation
        self.precision = precision
        y, self.z = self.backend.linear(x, weight, bias, activation, residual, precision)
        return y

    def backward(self, dy):
        dx, dw, db = self.backend.linear_backward(
            dy, self.x, self.weight, self.z, self.activation, self.needs[:3],
            leaf_grad(self, 1) if self.needs[1] else None, self.precision)
        return dx, dw, db, (self.backend.copy(dy) if self.needs[3] else None)

    @classmethod
    def check(cls, inputs):
        super().check(inputs)
        check_floating(cls, inputs)

    @classmethod
    def examples(cls, draw):
        B, K, N = draw.batch(), draw.size("K", 1), draw.size("N", 1)
        return (draw.normal((*B, K)), draw.normal((K, N)),
                draw.choice([draw.normal((N,)), None]),
                draw.choice([draw.normal((*B, N)), None])), \
            {"activation": draw.choice([None, "silu", "gelu", "gelu_tanh", "gelu_quick"])}

    @classmethod
    def flops(cls, x, weight, bias, residual, activation=None, precision="fp32"):
        return 2 * math.prod(x.shape) * weight.shape[1]


def matmul(x, y):
    """x[*X, M, K] @ y[*Y, K, N]; vectors are promoted as in NumPy. Raises ShapeError."""
    for operand in (x, y):
        if not hasattr(operand, "shape"):
            raise ShapeError(f"matmul: expected tensors or arrays, got {operand!r:.60}")
    if not x.shape or not y.shape:
        raise ShapeError("matmul: a scalar has no rows; use * to multiply by it")
    if len(x.shape) == 1:
        columns = y.shape[-1:] if len(y.shape) > 1 else ()
        return matmul(x.reshape(1, -1), y).reshape(*y.shape[:-2], *columns)
    if len(y.shape) == 1:
        return matmul(x, y.reshape(-1, 1)).reshape(*x.shape[:-1])
    return apply(Matmul, x, y, precision=active_precision())


def linear(x, weight, bias=None, activation=None, residual=None):
    """activation(x @ weight + bias) + residual, in one pass where the backend can.

    x [*B, K]; weight [K, N] (stored in, out), plain or packed (ops/packed.py); bias [N];
    residual [*B, N]; `activation` one of the functions relu, silu, gelu, gelu_tanh, gelu_quick.
    """
    return apply(Linear, x, weight, bias, residual, activation=verb_of("linear", activation),
                 precision=active_precision())
