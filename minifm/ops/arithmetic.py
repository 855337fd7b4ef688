"""Arithmetic and comparisons of two arrays, with broadcasting.

Where an operand was broadcast, its gradient is summed back to its own shape (`unbroadcast`).
"""

import numpy as np

from minifm import backends
from minifm.errors import ShapeError
from minifm.op import Op, check_arithmetic, explain
from minifm.tensor import Tensor, apply


def unbroadcast(backend, g, operand):
    """Sum `g` over the axes along which `operand` was stretched to g's shape."""
    shape = operand.shape
    if g.shape == shape:
        return g
    lead = len(g.shape) - len(shape)
    stretched = [lead + i for i, size in enumerate(shape) if size == 1 and g.shape[lead + i] != 1]
    axes = (*range(lead), *stretched)
    return backend.reshape(backend.sum(g, axes), shape)


def check_broadcast(cls, inputs):
    """Raise ShapeError, naming the dimension, unless all arrays broadcast together."""
    check_arithmetic(cls, inputs)
    arrays = [(name, x.shape) for (name, _), x in zip(cls.inputs, inputs) if hasattr(x, "shape")]
    for i, (first, left) in enumerate(arrays):
        for second, right in arrays[i + 1 :]:
            for place in range(1, 1 + min(len(left), len(right))):
                a, b = left[-place], right[-place]
                if a != b and 1 not in (a, b):
                    raise ShapeError(explain(cls, inputs, (
                        f"dimension {-place} is {a} in {first} and {b} in {second}; "
                        "they broadcast only if equal or 1")))


class Add(Op):
    """x + y, broadcasting."""

    signature = "x[*X], y[*Y] -> [*XY]"
    check = classmethod(check_broadcast)

    def forward(self, x, y):
        self.x, self.y = x, y
        return self.backend.add(x, y)

    def backward(self, dy):
        return (unbroadcast(self.backend, dy, self.x) if self.needs[0] else None,
                unbroadcast(self.backend, dy, self.y) if self.needs[1] else None)

    @classmethod
    def examples(cls, draw):
        left, right = draw.broadcastable()
        return (draw.normal(left), draw.normal(right)), {}


class Subtract(Op):
    """x - y, broadcasting."""

    signature = "x[*X], y[*Y] -> [*XY]"
    check = classmethod(check_broadcast)
    examples = Add.examples

    def forward(self, x, y):
        self.x, self.y = x, y
        return self.backend.subtract(x, y)

    def backward(self, dy):
        b = self.backend
        return (unbroadcast(b, dy, self.x) if self.needs[0] else None,
                unbroadcast(b, b.negative(dy), self.y) if self.needs[1] else None)


class Multiply(Op):
    """x · y, elementwise, broadcasting."""

    signature = "x[*X], y[*Y] -> [*XY]"
    check = classmethod(check_broadcast)
    examples = Add.examples

    def forward(self, x, y):
        self.x, self.y = x, y
        return self.backend.multiply(x, y)

    def backward(self, dy):
        b = self.backend
        return (unbroadcast(b, b.multiply(dy, self.y), self.x) if self.needs[0] else None,
                unbroadcast(b, b.multiply(dy, self.x), self.y) if self.needs[1] else None)


class Divide(Op):
    """x / y, elementwise, broadcasting."""

    signature = "x[*X], y[*Y] -> [*XY]"
    check = classmethod(check_broadcast)

    def forward(self, x, y):
        self.x, self.y = x, y
        self.quotient = self.backend.divide(x, y)
        return self.quotient

    def backward(self, dy):
        b = self.backend
        dx = b.divide(dy, self.y)
        return (unbroadcast(b, dx, self.x) if self.needs[0] else None,
                unbroadcast(b, b.negative(b.multiply(dx, self.quotient)), self.y)
                if self.needs[1] else None)

    @classmethod
    def examples(cls, draw):
        left, right = draw.broadcastable()
        return (draw.normal(left), draw.away_from_zero(right)), {}


class Power(Op):
    """x ** exponent, the exponent a Python number."""

    signature = "x[*X], exponent[] -> [*X]"

    def forward(self, x, exponent):
        self.x, self.exponent = x, exponent
        return self.backend.power(x, exponent)

    def backward(self, dy):
        b, n = self.backend, self.exponent
        if n == 0:      # 0 · x^-1 would be NaN at x = 0
            return b.zeros(dy.shape, dy.dtype), None
        return b.multiply(dy, b.multiply(b.power(self.x, n - 1), n)), None

    @classmethod
    def examples(cls, draw):
        return (draw.positive(draw.any_shape()), draw.choice([2, 3.0, 0.5, -1, 0])), {}


class Maximum(Op):
    """The larger of x and y; where they are equal, the gradient goes to x."""

    signature = "x[*X], y[*Y] -> [*XY]"
    check = classmethod(check_broadcast)

    def forward(self, x, y):
        self.x, self.y = x, y
        return self.backend.maximum(x, y)

    def backward(self, dy):
        b = self.backend
        chosen = self.choice()
        return (unbroadcast(b, b.where(chosen, dy, 0.0), self.x) if self.needs[0] else None,
                unbroadcast(b, b.where(chosen, 0.0, dy), self.y) if self.needs[1] else None)

    def choice(self):
        """True where x was taken."""
        return self.backend.greater_equal(self.x, self.y)

    @classmethod
    def examples(cls, draw):
        left, right = draw.broadcastable()
        # x on odd multiples of a quarter, y on even ones: never within a quarter of a tie.
        return (draw.grid(left, 0.25), draw.grid(right, 0.0)), {}


class Minimum(Maximum):
    """The smaller of x and y; where they are equal, the gradient goes to x."""

    signature = Maximum.signature

    def forward(self, x, y):
        self.x, self.y = x, y
        return self.backend.minimum(x, y)

    def choice(self):
        return self.backend.less_equal(self.x, self.y)


class Where(Op):
    """x where condition holds, else y; no NaN leaks from the branch not taken."""

    signature = "condition[*M], x[*X], y[*Y] -> [*MXY]"
    check = classmethod(check_broadcast)

    def forward(self, condition, x, y):
        self.condition, self.x, self.y = condition, x, y
        return self.backend.where(condition, x, y)

    def backward(self, dy):
        b, c = self.backend, self.condition
        return (None,
                unbroadcast(b, b.where(c, dy, 0.0), self.x) if self.needs[1] else None,
                unbroadcast(b, b.where(c, 0.0, dy), self.y) if self.needs[2] else None)

    @classmethod
    def examples(cls, draw):
        left, right = draw.broadcastable()
        return (draw.booleans(left), draw.normal(left), draw.normal(right)), {}


# -- the functions -----------------------------------------------------------------------------


def add(x, y):
    """x + y, broadcasting."""
    return apply(Add, x, y)


def subtract(x, y):
    """x - y, broadcasting."""
    return apply(Subtract, x, y)


def multiply(x, y):
    """x · y, elementwise, broadcasting."""
    return apply(Multiply, x, y)


def divide(x, y):
    """x / y, elementwise, broadcasting."""
    return apply(Divide, x, y)


def power(x, exponent):
    """x ** exponent, the exponent a Python number."""
    if not isinstance(exponent, (int, float)):
        raise ShapeError(f"power: the exponent must be a Python number, not {type(exponent)}; "
                         "write exp(y * log(x)) for a tensor y")
    return apply(Power, x, exponent)


def maximum(x, y):
    """The larger of x and y, elementwise."""
    return apply(Maximum, x, y)


def minimum(x, y):
    """The smaller of x and y, elementwise."""
    return apply(Minimum, x, y)


def where(condition, x, y):
    """x where `condition` (bool) holds, else y; of two numbers, float32."""
    if not (hasattr(x, "dtype") or hasattr(y, "dtype")):
        x = Tensor(np.full((), x, np.float32))
    return apply(Where, condition, x, y)


# -- comparisons: they have no gradient, so no op ------------------------------------------------


def greater(x, y):
    """x > y, bool."""
    return Tensor(backends.active().greater(raw(x), raw(y)))


def greater_equal(x, y):
    """x >= y, bool."""
    return Tensor(backends.active().greater_equal(raw(x), raw(y)))


def less(x, y):
    """x < y, bool."""
    return Tensor(backends.active().less(raw(x), raw(y)))


def less_equal(x, y):
    """x <= y, bool."""
    return Tensor(backends.active().less_equal(raw(x), raw(y)))


def equal(x, y):
    """x == y, bool."""
    return Tensor(backends.active().equal(raw(x), raw(y)))


def raw(x):
    """The backend's array of a Tensor or NumPy array; a Python number as it is."""
    if isinstance(x, Tensor):
        return x.data
    return backends.active().from_numpy(x) if isinstance(x, np.ndarray) else x
