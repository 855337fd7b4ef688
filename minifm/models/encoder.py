"""What encoders share: tokens that look both ways, and learn by guessing those that were masked.

A model of this kind has `features(ids, key_mask=…)` and `logits(x)`; from these follow here its
loss, and what a head for sequences reads.
"""

import copy
from dataclasses import replace

import numpy as np

from minifm import ops
from minifm.errors import ShapeError
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
        targets = np.asarray(targets)
        if targets.shape != np.shape(ids):
            raise ShapeError(f"{type(self).__name__}: targets: expected {list(np.shape(ids))}, as "
                             f"the ids have, got {list(targets.shape)}")
        counted = np.nonzero(targets != IGNORE)
        return ops.cross_entropy(self.logits(x[counted]), targets[counted],
                                 denominator=denominator)

    def check_ids(self, ids, **given):
        """Raise ShapeError unless ids are [B, T] and what is `given` beside them is, too."""
        name = type(self).__name__
        if ids.ndim != 2:
            raise ShapeError(f"{name}: expected token ids [B, T], got {list(ids.shape)}")
        for what, array in given.items():
            if array is not None and np.shape(array) != ids.shape:
                raise ShapeError(f"{name}: {what}: expected {list(ids.shape)}, as the ids have, "
                                 f"got {list(np.shape(array))}")

    def check_length(self, length):
        """Raise ShapeError for more tokens than the context has."""
        if length > self.config.context:
            raise ShapeError(f"{type(self).__name__}: {length} tokens do not fit the context of "
                             f"{self.config.context}")

    def with_parts(self, parts):
        """This very model, but for its configuration, which has other `parts`."""
        body = copy.copy(self)
        body.config = replace(self.config, **parts)
        return body


def first_token(x, key_mask=None):
    """x [B, T, C] -> [B, C], the first real token of each row."""
    first = 0 if key_mask is None else np.argmax(key_mask, axis=1)
    return x[np.arange(x.shape[0]), first]
