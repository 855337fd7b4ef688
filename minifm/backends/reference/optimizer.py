"""The updates that write their operands in place: AdamW and the moving average of weights."""

import numpy as np


class Optimizer:
    def adamw(self, param, grad, m, v, lr, beta1, beta2, eps, weight_decay, step, scale):
        """One step of AdamW (Loshchilov & Hutter 2019, algorithm 2), in place.

        `step` counts from 1; `scale` multiplies the gradient first (clipping). m and v are the
        running moments. Decay is decoupled: param ← param - lr · (update + weight_decay · param).
        """
        g = grad * np.asarray(scale, grad.dtype)
        m += (1 - beta1) * (g - m)
        v += (1 - beta2) * (g * g - v)
        update = (m / (1 - beta1**step)) / (np.sqrt(v / (1 - beta2**step)) + eps)
        param -= lr * (update + weight_decay * param)

    def ema(self, average, param, decay):
        """average ← decay · average + (1 - decay) · param, in place."""
        average += (1 - decay) * (param - average)
