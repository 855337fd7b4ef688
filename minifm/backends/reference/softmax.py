"""Softmax and its logarithm, along one axis.

A row whose every element is -inf (everything masked) has no distribution: its softmax is all
zeros and its log-sum-exp is -inf, so that a masked row contributes nothing instead of NaN.
"""

import numpy as np


class Softmax:
    def softmax(self, x, axis=-1):
        """y_i = e^(x_i - m) / Σ_j e^(x_j - m), m the row's maximum."""
        shifted, _ = _shift(x, axis)
        e = np.exp(shifted)
        total = np.sum(e, axis=axis, keepdims=True)
        return np.divide(e, np.where(total == 0, np.asarray(1, x.dtype), total))

    def softmax_backward(self, dy, y, axis=-1):
        """dx = y (dy - Σ_j dy_j y_j)."""
        return y * (dy - np.sum(dy * y, axis=axis, keepdims=True, dtype=dy.dtype))

    def log_softmax(self, x, axis=-1):
        """y_i = x_i - logsumexp(x)."""
        shifted, _ = _shift(x, axis)
        with np.errstate(divide="ignore", invalid="ignore"):
            return shifted - np.log(np.sum(np.exp(shifted), axis=axis, keepdims=True))

    def log_softmax_backward(self, dy, y, axis=-1):
        """dx = dy - softmax(x) Σ_j dy_j, and softmax(x) = e^y."""
        return dy - np.exp(y) * np.sum(dy, axis=axis, keepdims=True, dtype=dy.dtype)

    def logsumexp(self, x, axis=-1):
        """log Σ_j e^(x_j), the axis dropped."""
        shifted, peak = _shift(x, axis)
        with np.errstate(divide="ignore"):
            total = np.log(np.sum(np.exp(shifted), axis=axis))
        return np.squeeze(peak, axis) + total


def _shift(x, axis):
    """x minus its maximum along `axis` (0 for a row of -inf, where -inf - -inf would be NaN)."""
    if x.shape[axis] == 0:
        return x, np.full(np.sum(x, axis=axis, keepdims=True).shape, -np.inf, x.dtype)
    peak = np.max(x, axis=axis, keepdims=True)
    peak = np.where(peak == -np.inf, np.asarray(0, x.dtype), peak)
    with np.errstate(invalid="ignore", over="ignore"):     # e^-inf is the right 0
        return x - peak, peak
