"""The transformer block: attention mixes tokens, the perceptron works on each; both add.

What a block is made of, and in which order norm and addition come, the model says when it builds
one: `pre_norm` (GPT-2 onwards), or `post_norm` (the Transformer of 2017, GPT-1, BERT).
"""

from minifm import ops
from minifm.nn.layers import Linear
from minifm.nn.module import Module


class Perceptron(Module):
    """Two linear layers with an activation between: C -> hidden -> C."""

    def __init__(self, width, hidden, activation, *, bias=True, std, output_std, rng):
        self.activation = activation
        self.expand = Linear(width, hidden, bias=bias, std=std, rng=rng and rng.child("expand"))
        self.output = Linear(hidden, width, bias=bias, std=output_std,
                             rng=rng and rng.child("output"))

    def __call__(self, x, residual=None, *, rng=None):
        """x [*B, C] -> [*B, C], plus `residual`; `rng` of the dropout in adapters."""
        x = self.expand(x, self.activation, rng=rng and rng.child("expand"))
        return self.output(x, residual=residual, rng=rng and rng.child("output"))


class GatedPerceptron(Module):
    """activation(gate(x)) · expand(x), then back to C; with SiLU, SwiGLU (Shazeer 2020)."""

    def __init__(self, width, hidden, activation, *, bias=False, std, output_std, rng):
        self.activation = activation
        self.gate = Linear(width, hidden, bias=bias, std=std, rng=rng and rng.child("gate"))
        self.expand = Linear(width, hidden, bias=bias, std=std, rng=rng and rng.child("expand"))
        self.output = Linear(hidden, width, bias=bias, std=output_std,
                             rng=rng and rng.child("output"))

    def __call__(self, x, residual=None, *, rng=None):
        """x [*B, C] -> [*B, C], plus `residual`; `rng` of the dropout in adapters."""
        gate = self.gate(x, self.activation, rng=rng and rng.child("gate"))
        x = gate * self.expand(x, rng=rng and rng.child("expand"))
        return self.output(x, residual=residual, rng=rng and rng.child("output"))


def pre_norm(x, norm, part, *, dropout=0.0, rng=None, **given):
    """x + part(norm(x), **given). Dropout acts on what is added, and in the part's adapters, if
    `rng` is given."""
    if rng is None or dropout == 0:
        return part(norm(x), residual=x, rng=rng, **given)      # the addition is fused
    return x + ops.dropout(part(norm(x), rng=rng, **given), dropout, rng=rng)


def post_norm(x, norm, part, *, dropout=0.0, rng=None, **given):
    """norm(x + part(x, **given)), likewise."""
    if rng is None or dropout == 0:
        return norm(part(x, residual=x, rng=rng, **given))
    return norm(x + ops.dropout(part(x, rng=rng, **given), dropout, rng=rng))


class Block(Module):
    """Attention and a perceptron, each with its norm, in the order of `arrange`."""

    def __init__(self, attention_norm, attention, perceptron_norm, perceptron, arrange=pre_norm):
        self.attention_norm, self.attention = attention_norm, attention
        self.perceptron_norm, self.perceptron = perceptron_norm, perceptron
        self.arrange = arrange

    def __call__(self, x, *, dropout=0.0, rng=None, routing=None, **where):
        """x [B, T, C] -> [B, T, C]; `where` goes to the attention, `routing` to a mixture of
        experts."""
        given = {} if routing is None else {"routing": routing}
        x = self.arrange(x, self.attention_norm, self.attention, dropout=dropout,
                         rng=rng and rng.child("attention"), **where)
        return self.arrange(x, self.perceptron_norm, self.perceptron, dropout=dropout,
                            rng=rng and rng.child("perceptron"), **given)
