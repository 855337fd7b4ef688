"""What encoders share: tokens that look both ways, and learn by guessing those that were masked.

A model of this kind has `features(ids, key_mask=…)` and `logits(x)`, unless its configuration's
`masked_head` is False; from these follow here its loss, and what a head for sequences reads.
"""

import numpy as np

from minifm import ops
from minifm.models.stored import Model
from minifm.ops.loss import IGNORE


class Encoder(Model):
    """Token ids in, a vector for each token out, and what the heads make of it."""

    def __call__(self, ids, **inputs):
        """ids [B, T] -> logits [B, T, V] of the token at each place; `inputs` as in `features`."""
        return self.logits(self.features(ids, **inputs))

    def loss(self, ids, targets, *, denominator=None, **inputs):
        """Mean cross-entropy in nats of targets [B, T] (-100: not counted). Only tokens whose
        target counts go through the head. `denominator` divides the sum in place of their count
        (ops/loss.py); `inputs` as in `features`."""
        return self.guessed(self.features(ids, **inputs), ids, targets, denominator)

    def guessed(self, x, ids, targets, denominator=None):
        """The loss of targets [B, T], by the features x [B, T, C] of ids [B, T]."""
        ids, targets = np.asarray(ids), np.asarray(targets)
        self.check_ids(ids, targets=targets)
        counted = np.nonzero(targets != IGNORE)
        return ops.cross_entropy(self.logits(x[counted]), targets[counted],
                                 denominator=denominator)


def first_token(x, key_mask=None):
    """x [B, T, C] -> [B, C], the first real token of each row."""
    first = 0 if key_mask is None else np.argmax(key_mask, axis=1)
    return x[np.arange(x.shape[0]), first]
