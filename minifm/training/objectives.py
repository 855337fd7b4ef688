"""What a model is trained to do: an objective knows the loss of a batch and what it counts.

A batch is a tuple of arrays with the sequences along their first axis, so that the trainer can
cut it into pieces. The loss of a piece is its *sum* divided by `denominator`, the count of the
whole batch: the losses and gradients of the pieces then add up to those of the batch.
"""

from minifm import ops


class TokenObjective:
    """What objectives do alike whose batch is (ids [B, T], targets [B, T], …), target -100 not
    counted.

    recompute  keep only what enters each block of the model, for less memory (ops/checkpoint.py)
    """

    unit = "token"

    def __init__(self, recompute=False):
        self.recompute = recompute

    def loss(self, model, batch, *, denominator, rng):
        """Σ cross-entropy in nats / denominator, a scalar Tensor; `rng` turns dropout on."""
        raise NotImplementedError(f"{type(self).__name__} does not say what its loss is")

    def count(self, batch):
        """How many targets count."""
        return ops.count_targets(batch[1])

    def tokens(self, batch):
        """How many tokens the model reads: what throughput is measured in."""
        return batch[0].size

    def flops(self, model, batch):
        """Floating-point operations of one training step on the batch (forward and backward)."""
        ids = batch[0]
        return ids.size * model.config.flops_per_token(ids.shape[-1], training=True)

    def target_bytes(self, batch, lengths):
        """Bytes of text that the counted targets stand for; `lengths` [V] in bytes by id."""
        targets = batch[1]
        return int(lengths[targets[targets != ops.loss.IGNORE]].sum())


class CausalLanguageModel(TokenObjective):
    """Predict the next token; where documents must not see each other, the batch has
    document_starts [B, T], too (models/causal.py)."""

    def loss(self, model, batch, *, denominator, rng):
        ids, targets, *starts = batch
        return model.loss(ids, targets, document_starts=starts[0] if starts else None,
                          denominator=denominator, rng=rng, recompute=self.recompute)


class MaskedLanguageModel(TokenObjective):
    """Guess what stood where tokens were masked, as text/masking.py does; where rows are padded,
    the batch has key_mask [B, T], too (models/bert.py)."""

    def loss(self, model, batch, *, denominator, rng):
        ids, targets, *mask = batch
        return model.loss(ids, targets, key_mask=mask[0] if mask else None,
                          denominator=denominator, rng=rng, recompute=self.recompute)

    def flops(self, model, batch):
        """The head reads only what was chosen."""
        ids = batch[0]
        return ids.size * model.config.flops_per_token(
            ids.shape[-1], training=True, counted=self.count(batch) / ids.size)
