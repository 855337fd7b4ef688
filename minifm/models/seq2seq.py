"""What all encoder-decoder models do alike: a source in, logits of the next target token out.

The encoder turns the source into a memory, one vector for each of its tokens; the decoder writes
the target, and each of its blocks looks at the memory. A model adds its configuration, its layers
and `encode` and `features`; here is what they are used for, and the decoder's block.

To write a target token by token, the memory's keys and values are computed once:

    memory = model.recall(model.encode(source))
    cache = model.cache(len(source))
    logits = model.decode(ids, memory, cache=cache)         # as often as there are tokens
"""

from functools import partial

import numpy as np

from minifm import ops
from minifm.errors import ConfigError, ShapeError
from minifm.models.stored import Model
from minifm.nn import Cache, Module
from minifm.nn.block import pre_norm
from minifm.nn.cache import check_format
from minifm.ops.loss import IGNORE


class MemoryBlock(Module):
    """A decoder's block: attention to the target, attention to the memory, and a perceptron, each
    with its norm, in the order of `arrange` (nn/block.py)."""

    def __init__(self, attention_norm, attention, memory_norm, memory_attention, perceptron_norm,
                 perceptron, arrange=pre_norm):
        self.attention_norm, self.attention = attention_norm, attention
        self.memory_norm, self.memory_attention = memory_norm, memory_attention
        self.perceptron_norm, self.perceptron = perceptron_norm, perceptron
        self.arrange = arrange

    def __call__(self, x, memory, *, memory_mask=None, dropout=0.0, rng=None, **where):
        """x [B, T, C] -> [B, T, C]; `memory` as attention takes it; `where` goes to the attention
        that looks at the target."""
        x = self.arrange(x, self.attention_norm, self.attention, dropout=dropout,
                         rng=rng and rng.child("attention"), **where)
        x = self.arrange(x, self.memory_norm, self.memory_attention, dropout=dropout,
                         rng=rng and rng.child("memory_attention"), memory=memory,
                         key_mask=memory_mask)
        return self.arrange(x, self.perceptron_norm, self.perceptron, dropout=dropout,
                            rng=rng and rng.child("perceptron"))


def pair_flops(config, source, target, training, *, inner, perceptron):
    """Floating-point operations for a source and a target of so many tokens. Products only; the
    causal half of the target's attention to itself. Training, as in GPTConfig.

    inner       width of all heads of an attention together
    perceptron  the weights of a block's perceptron
    """
    C, S, T, L, M = config.width, source, target, config.layers, config.decoder_layers
    weights = S * L * (4 * C * inner + perceptron)
    weights += M * (S * 2 * C * inner + T * (6 * C * inner + perceptron))
    weights += T * config.vocabulary * C
    attention = inner * (4 * L * S * S + M * (2 * T * T + 4 * S * T))
    return 6 * weights + 3.5 * attention if training else 2 * weights + attention


class Seq2SeqModel(Model):
    """A Model with `config` (vocabulary V, decoder_layers, heads, head_width, start, padding, …),
    `token_embedding`, and `decoder`, a list of MemoryBlocks."""

    def __call__(self, source, ids, *, source_mask=None, rng=None):
        """source [B, S], ids [B, T] -> logits [B, T, V]; source_mask as key_mask of `encode`."""
        memory = self.encode(source, key_mask=source_mask, rng=rng and rng.child("encoder"))
        return self.decode(ids, memory, memory_mask=source_mask,
                           rng=rng and rng.child("decoder"))

    def loss(self, source, ids, targets, *, source_mask=None, denominator=None, rng=None,
             recompute=False):
        """Mean cross-entropy in nats of targets [B, T] (-100: not counted); see ops/loss.py.

        ids        [B, T]: what the decoder has read before each target; see `read_before`
        recompute  keep only what enters each block; see ops/checkpoint.py
        """
        memory = self.encode(source, key_mask=source_mask, rng=rng and rng.child("encoder"),
                             recompute=recompute)
        x = self.features(ids, memory, memory_mask=source_mask,
                          rng=rng and rng.child("decoder"), recompute=recompute)
        return self.loss_of(x, targets, denominator)

    def loss_of(self, x, targets, denominator):
        """x [B, T, C], targets [B, T] -> a scalar."""
        return ops.linear_cross_entropy(x, self.head, targets, denominator=denominator)

    def encode(self, source, *, key_mask=None, rng=None, recompute=False):
        """source [B, S] -> the memory [B, S, C].

        key_mask  bool [B, S]: False marks padding, on either side
        rng       turns dropout on
        recompute computes the inside of each block again in the backward pass
        """
        raise NotImplementedError(f"{type(self).__name__} does not say how it encodes")

    def features(self, ids, memory, *, memory_mask=None, placement=None, rng=None,
                 recompute=False):
        """ids [B, T] -> what the head reads, [B, T, C].

        memory      of `encode`, [B, S, C], or what `recall` made of it
        memory_mask bool [B, S]: False marks the source's padding
        placement   where a Cache puts these tokens, behind those that it holds (nn/cache.py)
        others      as in `encode`
        """
        raise NotImplementedError(f"{type(self).__name__} does not say what its features are")

    def decode(self, ids, memory, *, memory_mask=None, cache=None, counts=None, rng=None):
        """ids [B, T] -> logits [B, T, V].

        cache     a Cache that holds the tokens before these; they are added to it
        counts    [B]: how many of the T tokens are real in each row, with a cache (nn/cache.py)
        others    see `features`
        """
        placement = cache.place(np.shape(ids)[-1], counts) if cache is not None else None
        return self.logits(self.features(ids, memory, memory_mask=memory_mask,
                                         placement=placement, rng=rng))

    @property
    def head(self):
        """The table [V, C] whose rows are compared with the features: here the embedding's."""
        return self.token_embedding.weight

    def logits(self, x):
        """[*B, C] -> [*B, V]."""
        return ops.linear(x, self.head.transpose(1, 0))

    def recall(self, memory):
        """[B, S, C] -> [(keys, values) for each block of the decoder], [B, K, S, D] each."""
        return [block.memory_attention.keys_and_values(memory) for block in self.decoder]

    def cache(self, batch, capacity, format=None):
        """An empty cache of the target's keys and values, for `batch` rows of at most `capacity`
        tokens; `format` "bf16" rounds them to that, None and "fp32": as they are computed."""
        check_format(format)
        c = self.config
        dtype = np.uint16 if format == "bf16" else self.token_embedding.weight.dtype
        return Cache(c.decoder_layers, batch, c.heads, c.head_width, capacity, dtype)

    def read_before(self, targets):
        """What the decoder reads when it is to write targets [B, T]: the token `start`, then all
        but the last of them. Those that do not count (-100) are read as padding."""
        targets = np.asarray(targets)
        if targets.ndim != 2:
            raise ShapeError(f"{type(self).__name__}: expected targets [B, T], got "
                             f"{list(targets.shape)}")
        if self.config.start is None or self.config.padding is None:
            raise ConfigError(f"{type(self).__name__}: a target is read from its start on, and "
                              "the configuration lacks start or padding")
        ids = np.full_like(targets, self.config.start)
        ids[:, 1:] = np.where(targets[:, :-1] == IGNORE, self.config.padding, targets[:, :-1])
        return ids

    # -- parts of encode and features -------------------------------------------------------------

    def checked(self, ids, memory=None):
        """ids as an array [B, T]; raises ShapeError, also where the memory has other rows."""
        ids = np.asarray(ids)
        self.check_ids(ids)
        if memory is not None:
            rows = (memory[0][0] if isinstance(memory, list) else memory).shape[0]
            if rows != len(ids):
                raise ShapeError(f"{type(self).__name__}: expected a memory of as many rows as "
                                 f"the ids have, {len(ids)}, got {rows}")
        return ids

    def through_encoder(self, x, *, key_mask, rng, recompute, bias=None):
        """x [B, S, C] through all blocks of the encoder; `bias` of all their scores, or None."""
        for layer, block in enumerate(self.encoder):
            block = partial(block, key_mask=key_mask, bias=bias, dropout=self.config.dropout,
                            rng=rng and rng.child("block", layer))
            x = ops.checkpoint(block, x) if recompute else block(x)
        return x

    def through_decoder(self, x, memory, *, memory_mask, placement, rng, recompute, bias=None):
        """x [B, T, C] through all blocks of the decoder; `bias` of all scores of the target."""
        for layer, block in enumerate(self.decoder):
            block = partial(block, memory=memory[layer] if isinstance(memory, list) else memory,
                            memory_mask=memory_mask, layer=layer, placement=placement,
                            causal=True, bias=bias, dropout=self.config.dropout,
                            rng=rng and rng.child("block", layer))
            x = ops.checkpoint(block, x) if recompute else block(x)
        return x
