"""Layer norm and RMS norm over the last axis; group norm, with an activation behind it."""

import math

import numpy as np

from minifm.backends.c.operands import F32, FUNCTIONS, Operands, done, pointer
from minifm.backends.native import lib


class Norm(Operands):
    def layernorm(self, x, gamma, beta, eps):
        if not x.dtype == gamma.dtype == beta.dtype == F32:
            return self._on_numpy("layernorm", x, gamma, beta, eps)
        x, gamma, beta = (self._contiguous(a, "layernorm") for a in (x, gamma, beta))
        y, mean, rstd = (np.empty(shape, F32) for shape in (x.shape, x.shape[:-1], x.shape[:-1]))
        lib.minifm_layernorm(pointer(y), pointer(mean), pointer(rstd), pointer(x), pointer(gamma),
                             pointer(beta), mean.size, x.shape[-1], eps)
        return y, mean, rstd

    def layernorm_backward(self, dy, x, gamma, mean, rstd):
        if not dy.dtype == x.dtype == gamma.dtype == F32:
            return self._on_numpy("layernorm_backward", dy, x, gamma, mean, rstd)
        dy, x, gamma, mean, rstd = (self._contiguous(a, "layernorm_backward")
                                    for a in (dy, x, gamma, mean, rstd))
        dx, sums = np.empty(x.shape, F32), np.empty((2, x.shape[-1]), F32)
        done(lib.minifm_layernorm_backward(
            pointer(dx), pointer(sums), pointer(dy), pointer(x), pointer(gamma), pointer(mean),
            pointer(rstd), mean.size, x.shape[-1]))
        return dx, sums[0], sums[1]

    def rmsnorm(self, x, gamma, eps):
        if not x.dtype == gamma.dtype == F32:
            return self._on_numpy("rmsnorm", x, gamma, eps)
        x, gamma = self._contiguous(x, "rmsnorm"), self._contiguous(gamma, "rmsnorm")
        y, rstd = np.empty(x.shape, F32), np.empty(x.shape[:-1], F32)
        lib.minifm_rmsnorm(pointer(y), pointer(rstd), pointer(x), pointer(gamma), rstd.size,
                           x.shape[-1], eps)
        return y, rstd

    def rmsnorm_backward(self, dy, x, gamma, rstd):
        if not dy.dtype == x.dtype == gamma.dtype == F32:
            return self._on_numpy("rmsnorm_backward", dy, x, gamma, rstd)
        dy, x, gamma, rstd = (self._contiguous(a, "rmsnorm_backward")
                              for a in (dy, x, gamma, rstd))
        dx, dgamma = np.empty(x.shape, F32), np.empty(x.shape[-1], F32)
        done(lib.minifm_rmsnorm_backward(pointer(dx), pointer(dgamma), pointer(dy), pointer(x),
                                         pointer(gamma), pointer(rstd), rstd.size, x.shape[-1]))
        return dx, dgamma

    def groupnorm(self, x, gamma, beta, groups, eps, activation):
        if not x.dtype == gamma.dtype == beta.dtype == F32:
            return self._on_numpy("groupnorm", x, gamma, beta, groups, eps, activation)
        x, gamma, beta = (self._contiguous(a, "groupnorm") for a in (x, gamma, beta))
        B, C, *S = x.shape
        y, mean, rstd = (np.empty(shape, F32) for shape in (x.shape, (B, groups), (B, groups)))
        lib.minifm_groupnorm(
            pointer(y), pointer(mean), pointer(rstd), pointer(x), pointer(gamma), pointer(beta),
            B, groups, C // groups, math.prod(S), eps, FUNCTIONS[activation])
        return y, mean, rstd

    def groupnorm_backward(self, dy, x, gamma, beta, mean, rstd, groups, activation):
        if not dy.dtype == x.dtype == gamma.dtype == beta.dtype == F32:
            return self._on_numpy("groupnorm_backward", dy, x, gamma, beta, mean, rstd, groups,
                                  activation)
        dy, x, gamma, beta, mean, rstd = (self._contiguous(a, "groupnorm_backward")
                                          for a in (dy, x, gamma, beta, mean, rstd))
        B, C, *S = x.shape
        dx, sums = np.empty(x.shape, F32), np.empty((2, C), F32)
        done(lib.minifm_groupnorm_backward(
            pointer(dx), pointer(sums), pointer(dy), pointer(x), pointer(gamma), pointer(beta),
            pointer(mean), pointer(rstd), B, groups, C // groups, math.prod(S),
            FUNCTIONS[activation]))
        return dx, sums[0], sums[1]
