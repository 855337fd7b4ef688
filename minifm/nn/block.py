"""The transformer block: attention mixes tokens, the perceptron works on each; both add."""

from minifm import ops
from minifm.nn.attention import SelfAttention
from minifm.nn.layers import LayerNorm, Linear
from minifm.nn.module import Module


class Perceptron(Module):
    """Two linear layers with an activation between: C -> hidden -> C."""

    def __init__(self, width, hidden, activation, *, std, output_std, rng):
        self.activation = activation
        self.expand = Linear(width, hidden, std=std, rng=rng and rng.child("expand"))
        self.output = Linear(hidden, width, std=output_std, rng=rng and rng.child("output"))

    def __call__(self, x, residual=None):                       # [*B, C] -> [*B, C]
        return self.output(self.expand(x, self.activation), residual=residual)


class Block(Module):
    """Pre-norm: x + attention(norm(x)), then x + perceptron(norm(x)) (GPT-2's order)."""

    def __init__(self, width, heads, hidden, activation, epsilon, *, std, output_std, rng):
        self.attention_norm = LayerNorm(width, epsilon)
        self.attention = SelfAttention(width, heads, std=std, output_std=output_std,
                                       rng=rng and rng.child("attention"))
        self.perceptron_norm = LayerNorm(width, epsilon)
        self.perceptron = Perceptron(width, hidden, activation, std=std, output_std=output_std,
                                     rng=rng and rng.child("perceptron"))

    def __call__(self, x, *, layer=0, placement=None, key_mask=None, dropout=0.0, rng=None):
        """x [B, T, C] -> [B, T, C]. Dropout acts on what each half adds, if `rng` is given."""
        past = {"layer": layer, "placement": placement, "key_mask": key_mask}
        if rng is None or dropout == 0:                         # the addition is fused
            x = self.attention(self.attention_norm(x), residual=x, **past)
            return self.perceptron(self.perceptron_norm(x), residual=x)
        added = self.attention(self.attention_norm(x), **past)
        x = x + ops.dropout(added, dropout, rng=rng.child("attention"))
        added = self.perceptron(self.perceptron_norm(x))
        return x + ops.dropout(added, dropout, rng=rng.child("perceptron"))
