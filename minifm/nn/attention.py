"""Multi-head self-attention (Vaswani et al. 2017) with one packed projection for q, k and v."""

from minifm import ops
from minifm.nn.layers import Linear
from minifm.nn.module import Module


class SelfAttention(Module):
    """Every token gathers from itself and the tokens before it."""

    def __init__(self, width, heads, *, std, output_std, rng):
        self.heads = heads
        self.project = Linear(width, 3 * width, std=std, rng=rng and rng.child("project"))
        self.output = Linear(width, width, std=output_std, rng=rng and rng.child("output"))

    def __call__(self, x, residual=None, *, layer=0, placement=None, key_mask=None):
        """x [B, T, C] -> [B, T, C], plus `residual`.

        placement  where a key-value cache puts these tokens (nn/cache.py), in its `layer`
        key_mask   bool [B, T]: False hides padding; only without a cache
        """
        q, k, v = ops.split_heads(self.project(x), self.heads)  # [B, H, T, D] each
        lengths = None
        if placement is not None:
            k, v = placement.extend(layer, k, v)                # [B, H, S, D]
            lengths = placement.lengths
        y = ops.attention(q, k, v, causal=True, key_mask=key_mask, lengths=lengths)
        return self.output(ops.merge_heads(y), residual=residual)
