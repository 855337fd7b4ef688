"""Scaled dot-product attention as one op, so that a backend may fuse it."""

import math

import numpy as np

from minifm.errors import ShapeError
from minifm.op import Op, check_array, check_floating, check_integers, explain
from minifm.tensor import apply


class Attention(Op):
    """softmax(scale · q kᵀ + bias, masked) v, with grouped query heads."""

    signature = ("q[B, H, T, D], k[B, K, S, D], v[B, K, S, E], bias[*X], key_mask[B, S], "
                 "lengths[B], first_keys[B, T] -> [B, H, T, E]")
    fresh = True

    def forward(self, q, k, v, bias, key_mask, lengths, first_keys, causal, scale):
        self.given, self.limits = (q, k, v, bias, key_mask, causal, scale), (lengths, first_keys)
        self.y, self.lse = self.backend.attention(*self.given, *self.limits)
        return self.y

    def backward(self, dy):
        dq, dk, dv, dbias = self.backend.attention_backward(
            dy, *self.given, self.y, self.lse, self.needs[3], *self.limits)
        if dbias is not None:
            dbias = _sum_to(self.backend, dbias, self.given[3].shape)
        return self.only_needed(dq, dk, dv, dbias, None, None, None)

    @classmethod
    def check(cls, inputs):
        super().check(inputs)
        q, k, _, bias, key_mask, lengths, first_keys = inputs
        if key_mask is not None and key_mask.dtype != np.bool_:
            raise ShapeError(explain(cls, inputs, "key_mask must be bool (write mask != 0)"))
        check_floating(cls, inputs, "bias")
        for name, given in (("lengths", lengths), ("first_keys", first_keys)):
            if given is not None:
                check_integers(cls, inputs, name)
        if k.shape[1] == 0 or q.shape[1] % k.shape[1]:
            raise ShapeError(explain(cls, inputs, "H must be a multiple of K"))
        full = (*q.shape[:3], k.shape[2])
        if bias is not None and (len(bias.shape) > 4 or any(
                size not in (1, target)
                for size, target in zip(reversed(bias.shape), reversed(full)))):
            raise ShapeError(explain(cls, inputs, f"bias must broadcast to [B, H, T, S] = {full}"))

    @classmethod
    def examples(cls, draw):
        B, K, G, T, S, D = (draw.size(n, 1) for n in ("B", "H", "G", "T", "S", "D"))
        bias = draw.choice([None, (B, K * G, T, S), (T, S), (1, K * G, 1, S)])
        return (draw.normal((B, K * G, T, D)), draw.normal((B, K, S, D)), draw.normal((B, K, S, D)),
                None if bias is None else draw.normal(bias),
                draw.choice([None, draw.booleans((B, S))]),
                draw.choice([None, draw.integers((B,), 0, S + 1)]),
                draw.choice([None, draw.integers((B, T), 0, S)])), \
            {"causal": draw.flag(), "scale": 1 / math.sqrt(D)}

    @classmethod
    def flops(cls, q, k, v, bias, key_mask, lengths, first_keys, causal, scale):
        (B, H, T, D), (S, E) = q.shape, v.shape[2:]
        seen = 2 * T * S                # twice the pairs of a query and a key that it looks at
        if causal:                      # the last of T queries looks at S keys, the first at S - T
            seen -= T * T if T <= S else 2 * T * S - S * S
        return B * H * seen * (D + E)

    def backward_products(self):
        return 2.5          # five products against forward's two: scores, dv, dp, dq, dk


class SplitHeads(Op):
    """One projection cut into queries, keys and values: H heads, then K, and K again."""

    signature = "x[B, T, E] -> q[B, H, T, D], k[B, K, T, D], v[B, K, T, D]"

    def forward(self, x, heads, key_heads):
        b, (B, T, E) = self.backend, x.shape
        every = heads + 2 * key_heads
        self.counts, self.shape, self.dtype = (heads, key_heads, key_heads), x.shape, x.dtype
        x = b.transpose(b.reshape(x, (B, T, every, E // every)), (0, 2, 1, 3))  # [B, H+2K, T, D]
        ends = heads, heads + key_heads, every
        return tuple(b.getitem(x, (slice(None), slice(end - count, end)))
                     for end, count in zip(ends, self.counts))

    def backward(self, *dys):
        b, (B, T, E) = self.backend, self.shape
        D = E // (self.counts[0] + 2 * self.counts[1])
        parts = [b.zeros((B, T, count, D), self.dtype) if dy is None
                 else b.transpose(dy, (0, 2, 1, 3)) for dy, count in zip(dys, self.counts)]
        return b.reshape(b.rejoin(parts, 2), self.shape)            # [B, T, H+2K, D] -> [B, T, E]

    @classmethod
    def examples(cls, draw):
        B, K, G, T, D = (draw.size(n, 1) for n in ("B", "H", "G", "T", "D"))
        return (draw.normal((B, T, (G + 2) * K * D)),), {"heads": G * K, "key_heads": K}


class MergeHeads(Op):
    """What all heads found, side by side for each token."""

    signature = "x[B, H, T, D] -> [B, T, C]"

    def forward(self, x):
        self.shape = B, H, T, D = x.shape
        return self.backend.reshape(self.backend.transpose(x, (0, 2, 1, 3)), (B, T, H * D))

    def backward(self, dy):
        B, H, T, D = self.shape
        return self.backend.transpose(self.backend.reshape(dy, (B, T, H, D)), (0, 2, 1, 3))


def _sum_to(backend, g, shape):
    """Sum g [B, H, T, S] to the shape from which the bias was broadcast."""
    padded = (1,) * (4 - len(shape)) + tuple(shape)
    axes = tuple(i for i in range(4) if padded[i] == 1 and g.shape[i] != 1)
    return backend.reshape(backend.sum(g, axes) if axes else g, shape)


def split_heads(x, heads, key_heads=None):
    """x [B, T, (H + 2K) D] -> q [B, H, T, D], k and v [B, K, T, D]; K is H where not given.

    Raises ShapeError where so many heads do not divide the last dimension.
    """
    check_array("split_heads", x)
    key_heads = heads if key_heads is None else key_heads
    if len(x.shape) != 3 or heads < 1 or key_heads < 1 or x.shape[-1] % (heads + 2 * key_heads):
        raise ShapeError(f"split_heads: expected [B, T, E] with E a multiple of {heads} + 2 × "
                         f"{key_heads} heads, got {list(x.shape)}")
    return apply(SplitHeads, x, heads=heads, key_heads=key_heads)


def merge_heads(x):
    """[B, H, T, D] -> [B, T, H D]."""
    check_array("merge_heads", x)
    return apply(MergeHeads, x)


def attention(q, k, v, *, causal=False, bias=None, key_mask=None, lengths=None, first_keys=None,
              scale=None):
    """Attention of q [B, H, T, D] over k, v [B, K, S, D]; H is a multiple of K.

    k and v may be uint16, the bits of bf16, as a cache keeps them; they receive no gradient then.

    lengths   integers [B]: row b has only its first lengths[b] keys, as in a cache that is not
              full, or a batch padded on the right; what lies behind them is not read
    causal    query i, standing at position S - T + i, looks only at keys up to its own position;
              with lengths, at lengths[b] - T + i
    first_keys  integers [B, T]: query i of row b looks at no key before first_keys[b, i]: a sliding
              window, or documents that share a row
    bias      added to the scores; broadcasts to [B, H, T, S]; receives a gradient
    key_mask  bool [B, S]: False hides a key (padding). A query that may look at nothing: zeros
    scale     of the scores; default 1/√D
    """
    if scale is None:
        scale = 1 / math.sqrt(max(1, q.shape[-1]))      # without a width all scores are 0
    return apply(Attention, q, k, v, bias, key_mask, lengths, first_keys, causal=causal,
                 scale=scale)
