"""What all causal models do alike: tokens in, logits of the next token out, cached or not.

A model adds its configuration, its layers (`token_embedding` among them) and `features`, which
says how a token's features come about; here is what they are used for.
"""

import numpy as np

from minifm import ops
from minifm.errors import ConfigError
from minifm.models.stored import Model
from minifm.nn import Cache
from minifm.nn.cache import check_format


class CausalModel(Model):
    """A Model with `config` (vocabulary V, context, layers, heads, …) and `token_embedding`."""

    def __call__(self, ids, *, cache=None, counts=None, key_mask=None, document_starts=None,
                 rng=None):
        """ids [B, T] -> logits [B, T, V].

        cache     a Cache that holds the tokens before these; they are added to it
        counts    [B]: how many of the T tokens are real in each row, with a cache (nn/cache.py)
        others    see `features`
        """
        placement = cache.place(np.shape(ids)[-1], counts) if cache is not None else None
        x = self.features(ids, placement=placement, key_mask=key_mask,
                          document_starts=document_starts, rng=rng)
        return self.logits(x)

    def loss(self, ids, targets, *, document_starts=None, denominator=None, rng=None,
             recompute=False):
        """Mean cross-entropy in nats of targets [B, T] (-100: not counted); see ops/loss.py.

        recompute  keep only what enters each block; see ops/checkpoint.py
        """
        x = self.features(ids, document_starts=document_starts, rng=rng, recompute=recompute)
        return ops.linear_cross_entropy(x, self.head, targets, denominator=denominator)

    def training_loss(self, ids, targets, **inputs):
        """(what training makes small: `loss` and whatever a model adds to it; where it adds
        something, {"loss": `loss` alone, name: figure} of that); arguments as of `loss`."""
        return self.loss(ids, targets, **inputs), {}

    def features(self, ids, *, placement=None, key_mask=None, document_starts=None, rng=None,
                 recompute=False):
        """ids [B, T] -> what the head reads, [B, T, C].

        placement where a Cache puts these tokens, behind those that it holds (nn/cache.py)
        key_mask  bool [B, T], without a cache: False marks padding, on either side
        document_starts  int [B, T], without a cache: where in its row each token's document
                  begins; tokens see only their own document, and positions begin with it
        rng       turns dropout on
        recompute computes the inside of each block again in the backward pass
        """
        raise NotImplementedError(f"{type(self).__name__} does not say what its features are")

    @property
    def head(self):
        """The table [V, C] whose rows are compared with the features: here the embedding's."""
        return self.token_embedding.weight

    def logits(self, x):
        """[*B, C] -> [*B, V]."""
        return ops.linear(x, self.head.transpose(1, 0))

    def summary(self, x, key_mask=None):
        """Features x [B, T, C] -> [B, C], those of each row's last real token: it has seen all."""
        B, T, _ = x.shape
        last = np.full(B, T - 1) if key_mask is None else \
            T - 1 - np.argmax(np.asarray(key_mask)[:, ::-1], axis=1)
        return x[np.arange(B), last]

    def as_body(self, parts, rng=None):
        """A model of these very layers, with other `parts`, for a head to stand on (heads.py)."""
        return self.with_parts(parts)

    def positions(self, ids, placement, key_mask, document_starts):
        """The position of each token: [T], or [B, T] where rows differ."""
        self.check_ids(ids)
        if placement is not None:
            if key_mask is not None or document_starts is not None:
                raise ConfigError(f"{type(self).__name__}: with a cache, rows are of one document, "
                                  "and padding is said by `counts`")
            positions = placement.positions
        elif key_mask is not None:      # padding, on either side, does not count
            positions = np.maximum(np.cumsum(key_mask, axis=-1) - 1, 0)
        elif document_starts is not None:
            positions = np.arange(ids.shape[1]) - document_starts
        else:
            positions = np.arange(ids.shape[1])
        self.check_length(positions.max(initial=-1) + 1)
        return positions

    @staticmethod
    def first_keys(ids, placement, document_starts, window):
        """[B, T]: the first key that each token looks at, `window` tokens back with itself (None:
        as far as its document goes); None where that is 0 for all."""
        if placement is not None:
            return None if window is None else placement.first_keys(window)
        if window is None:
            return document_starts
        first = np.maximum(np.arange(ids.shape[1]) - window + 1, 0)
        first = np.broadcast_to(first, ids.shape)
        return first if document_starts is None else np.maximum(first, document_starts)

    def cache(self, batch, capacity=None, format=None):
        """An empty key-value cache for `batch` rows of at most `capacity` tokens.

        format "bf16" rounds keys and values to that; None and "fp32": as they are computed
        """
        check_format(format)
        c = self.config
        dtype = np.uint16 if format == "bf16" else self.token_embedding.weight.dtype
        return Cache(c.layers, batch, c.key_heads, c.head_width,
                     min(capacity or c.context, c.context), dtype)


def seen(length, window):
    """Twice the tokens that a token sees on the average (without a window, `length`)."""
    if window is None or window >= length:
        return length
    return window * (2 * length - window) / length
