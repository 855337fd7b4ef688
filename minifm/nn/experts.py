"""A mixture of experts (Shazeer et al. 2017, Jiang et al. 2024): many perceptrons, of which each
token goes through a few, so that a model holds more than it computes with.
"""

import numpy as np

from minifm import backends, ops
from minifm.nn.block import GatedPerceptron
from minifm.nn.layers import Linear
from minifm.nn.module import Module


class Experts(Module):
    """Σ over the `chosen` likeliest experts of p · expert(x), p = softmax(router(x)) over these.

    Which experts those are is a choice and has no gradient; p has one, and so the router learns.
    """

    def __init__(self, width, hidden, activation, experts, chosen, *, std, output_std, rng):
        self.chosen = chosen
        self.router = Linear(width, experts, bias=False, std=std, rng=rng and rng.child("router"))
        self.experts = [
            GatedPerceptron(width, hidden, activation, std=std, output_std=output_std,
                            rng=rng and rng.child("expert", i)) for i in range(experts)]

    def __call__(self, x, residual=None, *, rng=None):
        """x [B, T, C] -> [B, T, C], plus `residual`; `rng` of the dropout in adapters."""
        tokens = x.reshape((-1, x.shape[-1]))                               # [N, C]
        logits = self.router(tokens, rng=rng and rng.child("router"))       # [N, experts]
        best = self.best(logits)                                            # [N, chosen]
        weights = ops.softmax(ops.take_along(logits, best, -1), -1)
        total = x * 0.0 if residual is None else residual
        total = total.reshape(tokens.shape)
        for i, expert in enumerate(self.experts):
            rows, ranks = np.nonzero(best == i)
            if len(rows):
                y = expert(tokens[rows], rng=rng and rng.child("expert", i))
                y = y * weights[rows, ranks].reshape((-1, 1))
                total = ops.scatter_add(total, rows, y)
        return total.reshape(x.shape)

    def best(self, logits):
        """The indices of the largest, first those of equals that come first, int [N, chosen]."""
        values = backends.active().to_numpy(logits.data)
        return np.argsort(-values, axis=-1, kind="stable")[:, : self.chosen]
