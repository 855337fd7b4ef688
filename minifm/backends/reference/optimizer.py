"""The updates that write their operands in place: AdamW and the moving average of weights; and the
norm that clipping needs. Each takes all parameters at once, as lists of arrays."""

import math

import numpy as np


class Optimizer:
    def adamw(self, params, grads, m, v, decays, lr, beta1, beta2, eps, step, scale):
        """One step of AdamW (Loshchilov & Hutter 2019, algorithm 2), in place.

        `step` counts from 1; `scale` multiplies the gradients first (clipping). m and v are the
        running moments. Decay is decoupled, and each array has its own among the numbers
        `decays`: param ← param - lr · (update + decay · param).
        """
        for p, grad, m1, v1, decay in zip(params, grads, m, v, decays, strict=True):
            g = grad * np.asarray(scale, grad.dtype)
            m1 += (1 - beta1) * (g - m1)
            v1 += (1 - beta2) * (g * g - v1)
            update = (m1 / (1 - beta1**step)) / (np.sqrt(v1 / (1 - beta2**step)) + eps)
            p -= lr * (update + decay * p)

    def ema(self, averages, params, decay):
        """average ← decay · average + (1 - decay) · param, in place."""
        for average, param in zip(averages, params, strict=True):
            average += (1 - decay) * (param - average)

    def sum_of_squares(self, arrays):
        """Σ x² of all arrays as a Python float, accumulated in float64."""
        flat = [x.reshape(-1).astype(np.float64, copy=False) for x in arrays]
        return math.fsum(float(x @ x) for x in flat)
