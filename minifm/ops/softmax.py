"""Softmax and its logarithm along one axis. A row of -inf alone gives zeros (see the verb)."""

from minifm.op import Op, check_axis
from minifm.tensor import apply


class Softmax(Op):
    """y_i = e^(x_i) / Σ_j e^(x_j) along `axis`."""

    signature = "x[*B, N] -> [*B, N]"

    def forward(self, x, axis=-1):
        self.axis = axis
        self.y = self.backend.softmax(x, axis)
        return self.y

    def backward(self, dy):
        return self.backend.softmax_backward(dy, self.y, self.axis)


class LogSoftmax(Op):
    """y_i = x_i - log Σ_j e^(x_j) along `axis`."""

    signature = "x[*B, N] -> [*B, N]"

    def forward(self, x, axis=-1):
        self.axis = axis
        self.y = self.backend.log_softmax(x, axis)
        return self.y

    def backward(self, dy):
        return self.backend.log_softmax_backward(dy, self.y, self.axis)


def softmax(x, axis=-1):
    """The distribution with logits x along `axis`."""
    check_axis("softmax", x, axis)
    return apply(Softmax, x, axis=axis)


def log_softmax(x, axis=-1):
    """Log-probabilities of the distribution with logits x along `axis`."""
    check_axis("log_softmax", x, axis)
    return apply(LogSoftmax, x, axis=axis)
