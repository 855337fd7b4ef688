"""Activations: a forward verb and a backward verb of (dy, x) each, for a backend to fuse."""

from minifm.errors import ShapeError
from minifm.op import Op
from minifm.ops.elementary import Absolute
from minifm.tensor import apply


class Relu(Op):
    """max(x, 0); the gradient at 0 is 0."""

    signature = "x[*X] -> [*X]"
    examples = Absolute.examples

    def forward(self, x):
        self.x = x
        return self.backend.relu(x)

    def backward(self, dy):
        return self.backend.relu_backward(dy, self.x)


class Silu(Op):
    """x σ(x)."""

    signature = "x[*X] -> [*X]"

    def forward(self, x):
        self.x = x
        return self.backend.silu(x)

    def backward(self, dy):
        return self.backend.silu_backward(dy, self.x)


class Gelu(Op):
    """x Φ(x), exact, by erf."""

    signature = "x[*X] -> [*X]"

    def forward(self, x):
        self.x = x
        return self.backend.gelu(x)

    def backward(self, dy):
        return self.backend.gelu_backward(dy, self.x)


class GeluTanh(Op):
    """½x (1 + tanh(√(2/π)(x + 0.044715 x³))): GPT-2's GELU."""

    signature = "x[*X] -> [*X]"

    def forward(self, x):
        self.x = x
        return self.backend.gelu_tanh(x)

    def backward(self, dy):
        return self.backend.gelu_tanh_backward(dy, self.x)


class GeluQuick(Op):
    """x σ(1.702 x): CLIP's GELU."""

    signature = "x[*X] -> [*X]"

    def forward(self, x):
        self.x = x
        return self.backend.gelu_quick(x)

    def backward(self, dy):
        return self.backend.gelu_quick_backward(dy, self.x)


# -- the functions -----------------------------------------------------------------------------


def relu(x):
    """max(x, 0)."""
    return apply(Relu, x)


def silu(x):
    """x σ(x)."""
    return apply(Silu, x)


def gelu(x):
    """x Φ(x), exact."""
    return apply(Gelu, x)


def gelu_tanh(x):
    """x Φ(x) by its tanh approximation: GPT-2's GELU."""
    return apply(GeluTanh, x)


def gelu_quick(x):
    """x σ(1.702 x), the sigmoid approximation of x Φ(x)."""
    return apply(GeluQuick, x)


# -- what fused ops can fuse: the activation's function -> its verb ------------------------------

ACTIVATIONS = {relu: "relu", silu: "silu", gelu: "gelu", gelu_tanh: "gelu_tanh",
               gelu_quick: "gelu_quick"}


def verb_of(op, activation):
    """The verb of one of ACTIVATIONS, or None of None; raises ShapeError in the name of `op`."""
    if activation is not None and activation not in ACTIVATIONS:
        known = ", ".join(f.__name__ for f in ACTIVATIONS)
        raise ShapeError(f"{op}: activation must be one of the functions {known}")
    return None if activation is None else ACTIVATIONS[activation]
