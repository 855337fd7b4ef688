"""A mixture of experts (Shazeer et al. 2017, Jiang et al. 2024): many perceptrons, of which each
token goes through a few, so that a model holds more than it computes with.

Left alone, a router comes to prefer a few experts, which then learn the most. Training therefore
adds a little of how unevenly the tokens are spread (`unevenness`).
"""

import numpy as np

from minifm import backends, ops
from minifm.nn.block import GatedPerceptron
from minifm.nn.layers import Linear
from minifm.nn.module import Module
from minifm.tensor import Tensor


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

    def __call__(self, x, residual=None, *, rng=None, routing=None):
        """x [B, T, C] -> [B, T, C], plus `residual`; `rng` of the dropout in adapters; `routing`,
        a list, gets what `shares` says of these tokens."""
        tokens = x.reshape((-1, x.shape[-1]))                               # [N, C]
        logits = self.router(tokens, rng=rng and rng.child("router"))       # [N, experts]
        best = self.best(logits)                                            # [N, chosen]
        if routing is not None:
            routing.append(self.shares(logits, best))
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

    def shares(self, logits, best):
        """A Tensor [2, experts]: the part of the tokens that go to each expert, a constant, and
        the mean of its probability among all, by which the router learns."""
        taken = np.bincount(best.reshape(-1), minlength=len(self.experts)) / max(len(best), 1)
        taken = Tensor(backends.active().from_numpy(taken.astype(logits.dtype)))
        return ops.stack([taken, ops.softmax(logits, -1).mean(0)], 0)

    def best(self, logits):
        """The indices of the largest, first those of equals that come first, int [N, chosen]."""
        values = backends.active().to_numpy(logits.data)
        return np.argsort(-values, axis=-1, kind="stable")[:, : self.chosen]


def unevenness(shares):
    """How unevenly tokens go to the experts: N Σ f P over the N experts, f the part of the tokens
    that take one and P its mean probability, both means over all layers (Fedus et al. 2022,
    equations 4 to 6, as Mixtral has it). It is as many as a token takes where all get alike, and
    more, up to N, where the experts with the most tokens are also the likeliest. That is no bound
    from below: f has no gradient, and where few tokens take what is likely in the mean, it is less.

    shares  what Experts.shares says of each layer. Returns a scalar Tensor
    """
    mean = ops.stack(shares, 0).mean(0)                                     # [2, N]
    return (mean[0] * mean[1]).sum() * mean.shape[1]
