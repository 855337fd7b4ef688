"""Batches of windows cut from one long array of tokens, documents packed end to end.

No token is padding, but at the very end of the held-out text. Which windows a batch holds is a
function of the seed and its number alone, so a run may go on anywhere as if it had never stopped.
"""

import numpy as np

from minifm.errors import ConfigError
from minifm.ops.loss import IGNORE
from minifm.rng import Rng
from minifm.text.permutation import HeldOutOrder, Permutation, turns_of


def document_starts(ids, end_of_text):
    """Where in its row the document of each token begins, int64 [B, T] for ids [B, T].

    The mark between two documents is the first token of the second, which it predicts; the first
    document of a row begins with the row.
    """
    marks = np.where(ids == end_of_text, np.arange(ids.shape[1]), 0)
    return np.maximum.accumulate(marks, axis=1)


class TrainingBatches:
    """Endless batches: `batch(step)` is (ids [B, T], targets [B, T]), int64; if documents are
    `apart`, (ids, targets, document_starts [B, T]).

    The tokens form a ring: after the last document comes the first. In each epoch windows of T
    targets lie side by side from a random place on, so that their edges differ from epoch to
    epoch, and are visited in a random order, each once. The less than T tokens that are left
    over between the last and the first window are others each time.

    Raises ConfigError when the tokens are fewer than T + 1.
    """

    def __init__(self, tokens, *, batch, length, seed, apart=False):
        """`tokens` is a Tokens (shards.py), `batch` B, `length` T."""
        if tokens.count < length + 1:
            raise ConfigError(
                f"context: windows of {length} tokens (and one to predict) do not fit into the "
                f"training text, which has {tokens.count}: lower the context to at most "
                f"{tokens.count - 1}, or give more text")
        self.tokens, self.rows, self.length, self.apart = tokens, batch, length, apart
        self.windows = tokens.count // length       # in an epoch
        self.rng = Rng(seed).child("windows")
        self.description = {**tokens.description, "batch": batch, "length": length, "seed": seed,
                            **({"apart": True} if apart else {})}

    def batch(self, step):
        """The batch of step 0, 1, …; it may hold the end of one epoch and the start of the next."""
        starts = np.concatenate([self._starts(epoch, turns) for epoch, turns
                                 in turns_of(step, self.rows, self.windows)])
        windows = np.stack([self._window(start) for start in starts.tolist()])      # [B, T + 1]
        return with_starts(windows[:, :-1].copy(), windows[:, 1:].copy(),
                           self.tokens.end_of_text if self.apart else None)

    def _starts(self, epoch, turns):
        """Where the windows begin that have these turns in the epoch."""
        rng = self.rng.child(epoch)
        first = int(rng.child("first").uniform_number() * self.tokens.count)
        places = Permutation(self.windows, rng.child("order"))(turns)
        return (first + places * self.length) % self.tokens.count

    def _window(self, start):
        """T + 1 tokens of the ring."""
        window = self.tokens[start : start + self.length + 1]
        return np.concatenate([window, self.tokens[: self.length + 1 - len(window)]])


def with_starts(ids, targets, end_of_text):
    """(ids, targets), and the document_starts if there is a mark to tell them by."""
    if end_of_text is None:
        return ids, targets
    return ids, targets, document_starts(ids, end_of_text)


class HeldOutBatches:
    """`count` batches that predict every token once: `batch(i)` is (ids [B, T], targets [B, T]),
    int64, for i in 0 … count - 1, with document_starts as above. The last batch may have fewer
    than B rows.

    The windows lie side by side, the first token being predicted from an end-of-text before it;
    where they end, targets are -100. They come in an order that is random but always the same,
    so that the first few batches are a fair sample.
    """

    def __init__(self, tokens, *, batch, length, apart=False):
        """`tokens` is a Tokens (shards.py), `batch` B, `length` T."""
        self.tokens, self.length, self.apart = tokens, length, apart
        self.order = HeldOutOrder(-(-tokens.count // length), batch, "held-out windows")
        self.count = self.order.count
        self.description = {**tokens.description, "batch": batch, "length": length,
                            **({"apart": True} if apart else {})}

    def batch(self, i):
        """Raises IndexError beyond the last."""
        places = self.order(i)
        ids = np.full((len(places), self.length), self.tokens.end_of_text, np.int64)
        targets = np.full_like(ids, IGNORE)
        for row, place in enumerate(places.tolist()):
            start = place * self.length
            window = self.tokens[start : start + self.length]
            targets[row, : len(window)] = window
            ids[row, 1 : len(window)] = window[:-1]
            if start:
                ids[row, 0] = self.tokens[start - 1 : start][0]
        return with_starts(ids, targets, self.tokens.end_of_text if self.apart else None)
