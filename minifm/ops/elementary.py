"""Functions of one variable, element by element."""

from minifm.op import Op
from minifm.tensor import apply


class Negative(Op):
    """-x."""

    signature = "x[*X] -> [*X]"

    def forward(self, x):
        return self.backend.negative(x)

    def backward(self, dy):
        return self.backend.negative(dy)


class Absolute(Op):
    """|x|; the gradient at 0 is 0."""

    signature = "x[*X] -> [*X]"

    def forward(self, x):
        self.x = x
        return self.backend.absolute(x)

    def backward(self, dy):
        return self.backend.multiply(dy, self.backend.sign(self.x))

    @classmethod
    def examples(cls, draw):
        return (draw.away_from_zero(draw.any_shape()),), {}


class Exp(Op):
    """e^x."""

    signature = "x[*X] -> [*X]"

    def forward(self, x):
        self.y = self.backend.exp(x)
        return self.y

    def backward(self, dy):
        return self.backend.multiply(dy, self.y)


class Log(Op):
    """The natural logarithm."""

    signature = "x[*X] -> [*X]"

    def forward(self, x):
        self.x = x
        return self.backend.log(x)

    def backward(self, dy):
        return self.backend.divide(dy, self.x)

    @classmethod
    def examples(cls, draw):
        return (draw.positive(draw.any_shape()),), {}


class Sqrt(Op):
    """The square root."""

    signature = "x[*X] -> [*X]"
    examples = Log.examples

    def forward(self, x):
        self.y = self.backend.sqrt(x)
        return self.y

    def backward(self, dy):
        return self.backend.divide(dy, self.backend.multiply(self.y, 2))


class Sin(Op):
    """sin x."""

    signature = "x[*X] -> [*X]"

    def forward(self, x):
        self.x = x
        return self.backend.sin(x)

    def backward(self, dy):
        return self.backend.multiply(dy, self.backend.cos(self.x))


class Cos(Op):
    """cos x."""

    signature = "x[*X] -> [*X]"

    def forward(self, x):
        self.x = x
        return self.backend.cos(x)

    def backward(self, dy):
        return self.backend.negative(self.backend.multiply(dy, self.backend.sin(self.x)))


class Tanh(Op):
    """The hyperbolic tangent."""

    signature = "x[*X] -> [*X]"

    def forward(self, x):
        self.y = self.backend.tanh(x)
        return self.y

    def backward(self, dy):
        b = self.backend
        return b.multiply(dy, b.subtract(1, b.multiply(self.y, self.y)))


class Sigmoid(Op):
    """σ(x) = 1 / (1 + e^-x)."""

    signature = "x[*X] -> [*X]"

    def forward(self, x):
        self.y = self.backend.sigmoid(x)
        return self.y

    def backward(self, dy):
        b = self.backend
        return b.multiply(dy, b.multiply(self.y, b.subtract(1, self.y)))


class Erf(Op):
    """The error function, 2/√π ∫₀ˣ e^(-t²) dt."""

    signature = "x[*X] -> [*X]"
    SLOPE_AT_ZERO = 1.1283791670955126      # 2/√π

    def forward(self, x):
        self.x = x
        return self.backend.erf(x)

    def backward(self, dy):
        b = self.backend
        density = b.exp(b.negative(b.multiply(self.x, self.x)))
        return b.multiply(dy, b.multiply(density, self.SLOPE_AT_ZERO))


# -- the functions -----------------------------------------------------------------------------


def negative(x):
    """-x."""
    return apply(Negative, x)


def absolute(x):
    """|x|."""
    return apply(Absolute, x)


def exp(x):
    """e^x."""
    return apply(Exp, x)


def log(x):
    """The natural logarithm."""
    return apply(Log, x)


def sqrt(x):
    """The square root."""
    return apply(Sqrt, x)


def sin(x):
    """sin x."""
    return apply(Sin, x)


def cos(x):
    """cos x."""
    return apply(Cos, x)


def tanh(x):
    """The hyperbolic tangent."""
    return apply(Tanh, x)


def sigmoid(x):
    """1 / (1 + e^-x)."""
    return apply(Sigmoid, x)


def erf(x):
    """The error function."""
    return apply(Erf, x)
