"""One number in, one number out: arithmetic with broadcasting, and the activations.

Names are NumPy's. An activation comes with its `…_backward(dy, x)`, the derivative written in
terms of the *input*, because that is what the fused `linear` keeps.
"""

import numpy as np

from minifm.backends.reference.erf import erf

SQRT_HALF = 0.7071067811865476            # 1 / √2
INVERSE_SQRT_2PI = 0.3989422804014327     # 1 / √(2π), the height of the normal density
SQRT_2_OVER_PI = 0.7978845608028654       # √(2/π)
GELU_CUBIC = 0.044715                     # Hendrycks & Gimpel 2016, tanh approximation
QUICK_GELU_SLOPE = 1.702                  # same paper, sigmoid approximation


class Elementwise:
    # -- arithmetic, with broadcasting -------------------------------------------------------

    def add(self, x, y):
        return np.add(x, y)

    def subtract(self, x, y):
        return np.subtract(x, y)

    def multiply(self, x, y):
        return np.multiply(x, y)

    def divide(self, x, y):
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.divide(x, y)

    def power(self, x, y):
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            return np.power(x, y)

    def maximum(self, x, y):
        return np.maximum(x, y)

    def minimum(self, x, y):
        return np.minimum(x, y)

    def where(self, condition, x, y):
        return np.where(condition, x, y)

    def add_into(self, out, x):
        """out += x, in place. Only the engine and the optimizer may call it."""
        np.add(out, x, out=out)

    # -- comparisons, to bool -----------------------------------------------------------------

    def greater(self, x, y):
        return np.greater(x, y)

    def greater_equal(self, x, y):
        return np.greater_equal(x, y)

    def less(self, x, y):
        return np.less(x, y)

    def less_equal(self, x, y):
        return np.less_equal(x, y)

    def equal(self, x, y):
        return np.equal(x, y)

    # -- functions of one variable --------------------------------------------------------------

    def negative(self, x):
        return np.negative(x)

    def absolute(self, x):
        return np.abs(x)

    def sign(self, x):
        return np.sign(x)

    def exp(self, x):
        with np.errstate(over="ignore"):
            return np.exp(x)

    def log(self, x):
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.log(x)

    def sqrt(self, x):
        with np.errstate(invalid="ignore"):
            return np.sqrt(x)

    def sin(self, x):
        return np.sin(x)

    def cos(self, x):
        return np.cos(x)

    def tanh(self, x):
        return np.tanh(x)

    def erf(self, x):
        return erf(x)

    def sigmoid(self, x):
        """1 / (1 + e^-x), from e^-|x| so that neither tail overflows."""
        small = np.exp(-np.abs(x))
        return np.where(x >= 0, 1 / (1 + small), small / (1 + small)).astype(x.dtype, copy=False)

    # -- activations ----------------------------------------------------------------------------

    def relu(self, x):
        return np.maximum(x, 0)

    def relu_backward(self, dy, x):
        return dy * (x > 0)

    def silu(self, x):
        """x σ(x) (Elfwing et al. 2017; "swish")."""
        return x * self.sigmoid(x)

    def silu_backward(self, dy, x):
        s = self.sigmoid(x)
        return dy * (s * (1 + x * (1 - s)))

    def gelu(self, x):
        """x Φ(x), Φ the normal distribution function (Hendrycks & Gimpel 2016)."""
        return x * (0.5 * (1 + erf(x * SQRT_HALF)))

    def gelu_backward(self, dy, x):
        density = INVERSE_SQRT_2PI * np.exp(-0.5 * x * x)
        return dy * (0.5 * (1 + erf(x * SQRT_HALF)) + x * density)

    def gelu_tanh(self, x):
        """½x (1 + tanh u), u = √(2/π)(x + 0.044715 x³): GPT-2's GELU."""
        u = SQRT_2_OVER_PI * x * (1 + GELU_CUBIC * x * x)
        return 0.5 * x * (1 + np.tanh(u))

    def gelu_tanh_backward(self, dy, x):
        x = np.clip(x, -1e18, 1e18)     # the slope is 0 or 1 there; x² would be infinite soon
        t = np.tanh(SQRT_2_OVER_PI * x * (1 + GELU_CUBIC * x * x))
        du = SQRT_2_OVER_PI * (1 + 3 * GELU_CUBIC * x * x)
        return dy * (0.5 * (1 + t) + 0.5 * x * (1 - t * t) * du)

    def gelu_quick(self, x):
        """x σ(1.702 x): CLIP's GELU."""
        return x * self.sigmoid(QUICK_GELU_SLOPE * x)

    def gelu_quick_backward(self, dy, x):
        s = self.sigmoid(QUICK_GELU_SLOPE * x)
        return dy * (s * (1 + QUICK_GELU_SLOPE * x * (1 - s)))
