"""Layer norm, RMS norm and group norm: centre and scale a row, then gain and offset.

All three are one idea. With x̂ = (x - mean) · rstd over a row of n numbers and g = dy · gamma,
    dx = rstd (g - mean(g) - x̂ · mean(g · x̂)),
where RMS norm has no mean to subtract and so lacks the middle term.
"""

import math

import numpy as np


class Norm:
    def layernorm(self, x, gamma, beta, eps):
        """x [*B, D] -> y [*B, D], mean [*B], rstd [*B] (Ba, Kiros, Hinton 2016)."""
        mean = np.mean(x, axis=-1, keepdims=True, dtype=x.dtype)
        centred = x - mean
        variance = np.mean(centred * centred, axis=-1, keepdims=True, dtype=x.dtype)
        rstd = 1 / np.sqrt(variance + np.asarray(eps, x.dtype))
        y = centred * rstd * gamma + beta
        return y, mean[..., 0], rstd[..., 0]

    def layernorm_backward(self, dy, x, gamma, mean, rstd):
        normalised = (x - mean[..., None]) * rstd[..., None]
        lead = tuple(range(x.ndim - 1))
        g = dy * gamma
        centre = np.mean(g, axis=-1, keepdims=True, dtype=x.dtype)
        slope = np.mean(g * normalised, axis=-1, keepdims=True, dtype=x.dtype)
        dx = rstd[..., None] * (g - centre - normalised * slope)
        return dx, np.sum(dy * normalised, axis=lead), np.sum(dy, axis=lead)

    def rmsnorm(self, x, gamma, eps):
        """x [*B, D] -> y [*B, D], rstd [*B] (Zhang & Sennrich 2019)."""
        square = np.mean(x * x, axis=-1, keepdims=True, dtype=x.dtype)
        rstd = 1 / np.sqrt(square + np.asarray(eps, x.dtype))
        return x * rstd * gamma, rstd[..., 0]

    def rmsnorm_backward(self, dy, x, gamma, rstd):
        normalised = x * rstd[..., None]
        g = dy * gamma
        slope = np.mean(g * normalised, axis=-1, keepdims=True, dtype=x.dtype)
        dx = rstd[..., None] * (g - normalised * slope)
        return dx, np.sum(dy * normalised, axis=tuple(range(x.ndim - 1)))

    def groupnorm(self, x, gamma, beta, groups, eps, activation):
        """x [B, C, *S] -> y, mean [B, G], rstd [B, G]: a row is one group of channels with all
        its positions; gamma and beta [C] are per channel (Wu & He 2018). `activation` names a
        verb that y then goes through, or is None."""
        rows = _groups(x, groups)
        ones = np.ones((), x.dtype)
        normalised, mean, rstd = Norm.layernorm(self, rows, ones, 0 * ones, eps)
        z = normalised.reshape(x.shape) * _channel(gamma, x) + _channel(beta, x)
        return z if activation is None else getattr(self, activation)(z), mean, rstd

    def groupnorm_backward(self, dy, x, gamma, beta, mean, rstd, groups, activation):
        rows = _groups(x, groups)
        normalised = ((rows - mean[..., None]) * rstd[..., None]).reshape(x.shape)
        if activation is not None:
            z = normalised * _channel(gamma, x) + _channel(beta, x)
            dy = getattr(self, activation + "_backward")(dy, z)
        g = (dy * _channel(gamma, x)).reshape(rows.shape)
        dx, _, _ = Norm.layernorm_backward(self, g, rows, np.ones((), x.dtype), mean, rstd)
        lead = (0, *range(2, x.ndim))
        return dx.reshape(x.shape), np.sum(dy * normalised, axis=lead), np.sum(dy, axis=lead)


def _groups(x, groups):
    """x [B, C, *S] -> [B, G, C/G * S]: one row for each group."""
    return x.reshape(x.shape[0], groups, math.prod(x.shape[1:]) // groups)


def _channel(per_channel, x):
    """[C] -> [C, 1, …] so that it multiplies x [B, C, *S]."""
    return per_channel.reshape(-1, *(1,) * (x.ndim - 2))
