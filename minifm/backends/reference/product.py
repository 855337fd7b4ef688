"""Matrix products: the plain one, and `linear`, the fused one that every layer uses."""

import math

import numpy as np

from minifm.backends.reference.fallback import composed
from minifm.backends.reference.packed import Packed, rounded_to_bf16, widened


class Product:
    def matmul(self, x, y, precision="fp32"):
        """x[*B, M, K] @ y[*B, K, N] -> [*B, M, N]; the batch dimensions broadcast.

        With `precision` "bf16", operands of float32 are rounded to bf16 (packed.py) first.
        """
        if precision == "bf16":
            x, y = _rounded(x), _rounded(y)
        return np.matmul(x, y)

    def matmul_into(self, out, x, y, precision="fp32"):
        """out[M, N] += x[M, K] @ y[K, N], in place: how a weight gradient accumulates."""
        out += Product.matmul(self, x, y, precision)

    @composed
    def linear(self, x, w, b, activation, residual, precision="fp32"):
        """y = act(x @ w + b) + residual.

        x [*B, K], w [K, N], plain or Packed (packed.py), b [N] or None, residual [*B, N] or None;
        `activation` names a verb ("gelu_tanh", …) or is None. Returns y [*B, N] and z = x @ w + b,
        or None for z where there is no activation, because then no backward needs it.
        """
        *batch, K = x.shape
        rows = self.reshape(x, (math.prod(batch), K)) if len(batch) != 1 else x
        z = (self.matmul_packed(rows, w) if isinstance(w, Packed)
             else self.matmul(rows, w, precision))
        z = self.reshape(z, (*batch, w.shape[1]))
        if b is not None:
            z = self.add(z, b)
        y = z if activation is None else getattr(self, activation)(z)
        if residual is not None:
            y = self.add(y, residual)
        return y, (None if activation is None else z)

    @composed
    def linear_backward(self, dy, x, w, z, activation, needs, weight_grad, precision="fp32"):
        """The gradients of `linear` by x, w and b; each is None where `needs` says so.

        `weight_grad`, if given, is an array [K, N] to which dw is added in place of a new one.
        """
        K, N = w.shape
        if activation is not None:
            dy = getattr(self, activation + "_backward")(dy, z)
        M = math.prod(x.shape[:-1])
        rows = self.reshape(dy, (M, N))
        dx = dw = db = None
        if needs[0]:
            columns = self.unpacked(self.transpose(w, (1, 0)))              # [N, K]
            dx = self.reshape(self.matmul(rows, columns, precision), x.shape)
        if needs[1]:
            columns = self.transpose(self.reshape(x, (M, K)), (1, 0))      # [K, M]
            dw = self.accumulate_product(columns, rows, weight_grad, precision)
        if needs[2]:
            db = self.sum(rows, axis=0)
        return dx, dw, db

    @composed
    def accumulate_product(self, x, y, out, precision="fp32"):
        """x @ y, added to `out` where there is one."""
        if out is None:
            return self.matmul(x, y, precision)
        self.matmul_into(out, x, y, precision)
        return out


def _rounded(x):
    return widened(rounded_to_bf16(x)) if x.dtype == np.float32 else x
