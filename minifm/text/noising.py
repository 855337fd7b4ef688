"""Texts with tokens hidden, any number of them: what a model learns from that writes by diffusion.

A masked language model sees most of each text, always; such a model has learnt too to begin with
nothing but masks (diffusion/absorbing.py says why that bounds the likelihood of a text).
"""

import numpy as np

from minifm.diffusion.absorbing import noised_to, spread_counts
from minifm.ops.loss import IGNORE
from minifm.rng import Rng
from minifm.text.rows import MadeBatches, framed


class NoisedBatches(MadeBatches):
    """(ids [B, R + 2], text [B, R + 2], weights [B]): windows of R tokens, which a model that goes
    on with its text would predict, between `first` and `separator`; of each row's tokens a number
    is hidden that is uniform in 1 … R and spread over the batch.

    text      what stands there; -100 for the marks around it
    weights   the tokens of a row over how many of them are hidden (absorbing.bound)

    The mark between two documents is a token of the text as any other: such a model writes it. What
    lies behind the end of all text is hidden, and no part of it. Which tokens are hidden is a
    function of the seed and the step.
    """

    name = "noised"

    def __init__(self, windows, *, first, separator, mask, seed):
        super().__init__(windows, first=first, separator=separator, mask=mask, seed=seed)
        self.first, self.separator, self.mask = first, separator, mask
        self.rng = Rng(seed).child("noise")

    def batch(self, step):
        rng = self.rng.child(step)
        window = self.batches.batch(step)[1]                                    # [B, R]
        text = framed(window, IGNORE, IGNORE)
        ids = framed(np.where(window == IGNORE, self.mask, window), self.first, self.separator)
        sizes = (text != IGNORE).sum(1)
        counts = spread_counts(sizes, rng.child("counts"))
        ids = noised_to(ids, counts, rng.child("places"), mask=self.mask, free=text != IGNORE)
        return ids, text, (sizes / counts).astype(np.float32)
