"""Multi-head attention (Vaswani et al. 2017): of a sequence to itself or to another one.

Where a token may look is said by the same four words everywhere:

    causal      at itself and at what came before it
    key_mask    bool [B, S]: False hides padding
    first_keys  [B, T]: not before this key, as in a sliding window (ops/attention.py)
    placement   at what a key-value cache holds, too; and where these tokens go in it (cache.py)
"""

from minifm import ops
from minifm.nn.layers import Linear, RMSNorm
from minifm.nn.module import Module


class SelfAttention(Module):
    """Every token gathers from the tokens of its own sequence, with one packed projection for q, k
    and v; causal, as GPT's, unless told otherwise."""

    def __init__(self, width, heads, *, bias=True, std, output_std, rng):
        self.heads = heads
        self.project = Linear(width, 3 * width, bias=bias, std=std,
                              rng=rng and rng.child("project"))
        self.output = Linear(width, width, bias=bias, std=output_std,
                             rng=rng and rng.child("output"))

    def __call__(self, x, residual=None, *, layer=0, causal=True, rotation=None, rng=None, **where):
        """x [B, T, C] -> [B, T, C], plus `residual`; `layer` is this one's in the cache.

        rotation  (cos, sin) that turn queries and keys by their positions (rotary.py)
        rng       of the dropout in adapters
        """
        packed = self.project(x, rng=rng and rng.child("project"))
        q, k, v = ops.split_heads(packed, self.heads)           # [B, H, T, D] each
        if rotation is not None:
            q, k = ops.rope(q, *rotation), ops.rope(k, *rotation)
        y = attend(q, k, v, layer=layer, causal=causal, **where)
        return self.output(ops.merge_heads(y), residual=residual,
                           rng=rng and rng.child("output"))


class Attention(Module):
    """Queries of x look at keys and values of x, or of another sequence, `memory`.

    H query heads share K key heads (Ainslie et al. 2023), all D wide; by default K is H, and D is
    width / H. The memory is as wide as x, or `memory_width`. `bias` puts offsets into the
    projections of q, k and v, `output_bias` into the last; `head_norm` an RMS norm of that epsilon
    on each head's queries and keys (Henry et al. 2020); `scale` of the scores: default 1/√D.
    """

    def __init__(self, width, heads, *, key_heads=None, head_width=None, memory_width=None,
                 bias=True, output_bias=None, head_norm=None, scale=None, std, output_std, rng):
        self.key_heads, self.head_width = key_heads or heads, head_width or width // heads
        self.scale, D, S = scale, self.head_width, memory_width or width
        self.query, self.key, self.value = (
            Linear(inputs, count * D, bias=bias, std=std, rng=rng and rng.child(name))
            for name, inputs, count in (("query", width, heads), ("key", S, self.key_heads),
                                        ("value", S, self.key_heads)))
        self.output = Linear(heads * D, width, bias=bias if output_bias is None else output_bias,
                             std=output_std, rng=rng and rng.child("output"))
        self.query_norm, self.key_norm = (
            None if head_norm is None else RMSNorm(D, head_norm) for _ in range(2))

    def __call__(self, x, residual=None, *, memory=None, rotation=None, rng=None, **where):
        """x [B, T, C] -> [B, T, C], plus `residual`.

        memory    [B, S, C] to look at, or the keys and values of one (default: x)
        rotation  (cos, sin) that turn queries and keys by their positions (rotary.py)
        rng       of the dropout in adapters
        """
        q = self.query(x, rng=rng and rng.child("query"))
        q = self.by_head(q, self.query_norm)                                # [B, H, T, D]
        k, v = memory if isinstance(memory, tuple) else self.keys_and_values(
            x if memory is None else memory, rng)                           # [B, K, S, D] each
        if rotation is not None:
            q, k = ops.rope(q, *rotation), ops.rope(k, *rotation)
        y = attend(q, k, v, scale=self.scale, **where)
        return self.output(ops.merge_heads(y), residual=residual,
                           rng=rng and rng.child("output"))

    def keys_and_values(self, source, rng=None):
        """source [B, S, C] -> two [B, K, S, D]. Of a memory that many tokens will look at, one
        after another, they are computed once and given as `memory`."""
        k = self.key(source, rng=rng and rng.child("key"))
        v = self.value(source, rng=rng and rng.child("value"))
        return self.by_head(k, self.key_norm), self.by_head(v)

    def by_head(self, x, norm=None):
        """[B, T, H D] -> [B, H, T, D], each head normalised."""
        B, T, E = x.shape
        x = x.reshape((B, T, E // self.head_width, self.head_width))        # [B, T, H, D]
        return (norm(x) if norm else x).transpose(0, 2, 1, 3)


def attend(q, k, v, *, layer=0, placement=None, causal=False, key_mask=None, first_keys=None,
           bias=None, scale=None):
    """q [B, H, T, D] over k, v [B, K, S, D], and over what the cache holds; [B, H, T, D]."""
    lengths = None
    if placement is not None:
        k, v = placement.extend(layer, k, v)                                # [B, K, S, D]
        lengths = placement.lengths
    return ops.attention(q, k, v, causal=causal, key_mask=key_mask, lengths=lengths,
                         first_keys=first_keys, bias=bias, scale=scale)
