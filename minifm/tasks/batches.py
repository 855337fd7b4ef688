"""Batches of labelled rows, which differ in length: each batch is padded to its longest row.

Which rows a batch holds is a function of the seed and its number alone, so a run may go on
anywhere as if it had never stopped (as in text/packing.py).
"""

import hashlib

import numpy as np

from minifm.errors import ConfigError
from minifm.ops.loss import IGNORE
from minifm.rng import Rng
from minifm.text.permutation import HeldOutOrder, Permutation, turns_of
from minifm.text.rows import padded


class LabelledRows:
    """Examples as a model reads them. Each task has its own kind, which makes the rows and makes
    answers of what a model says:

    ids       [row]: int64 [T], at most `length` of them
    targets   [row]: int64, [] for a class, [T] for tags or next tokens, [2] for a span
    padding   the id that fills up a row
    facts     {what: how many} of all that aligning the examples changed, to show to the user
    types     [row]: int64 [T], of which text each token is, for a model that tells them apart;
              None: for one that does not
    by_token  whether a target stands beside each id
    masked    whether batches have a key_mask; a causal model's next tokens need none
    """

    by_token, masked = False, True

    def __init__(self, ids, targets, *, length, padding, facts, types=None):
        if not ids:
            raise ConfigError("examples: expected at least one, got none")
        self.ids = [np.asarray(row, np.int64) for row in ids]
        self.targets = [np.asarray(target, np.int64) for target in targets]
        self.length, self.padding, self.facts, self.types = length, padding, facts, types

    def __len__(self):
        return len(self.ids)

    def padded(self, places):
        """(ids [B, T], targets [B, …], key_mask bool [B, T], types [B, T]) of these rows, padded
        behind: targets by -100, types by 0. Without the key_mask where rows are not `masked`, and
        without types where there are none."""
        rows, targets = ([found[place] for place in places]
                         for found in (self.ids, self.targets))
        ids = padded(rows, self.padding)
        targets = padded(targets, IGNORE) if self.by_token else np.stack(targets)
        lengths = np.array([len(row) for row in rows])
        mask = np.arange(ids.shape[1]) < lengths[:, None]
        types = [] if self.types is None else [padded([self.types[at] for at in places], 0)]
        return ids, targets, *[mask] * self.masked, *types

    @property
    def description(self):
        """What names the rows: another tokenizer, another label or other texts are other rows."""
        digest = hashlib.sha256()
        for row in (*self.ids, *self.targets, *(self.types or ())):
            digest.update(b"%d " % row.size + row.tobytes())
        return {"task": type(self).__name__, "rows": len(self), "length": self.length,
                "sha256": digest.hexdigest()}


class TaskBatches:
    """Endless batches for training: `batch(step)` is what LabelledRows.padded gives, of B rows.
    Each epoch visits every row once, in an order of its own."""

    def __init__(self, rows, *, batch, seed):
        self.rows, self.size = rows, batch
        self.rng = Rng(seed).child("rows")
        self.description = {**rows.description, "batch": batch, "seed": seed}

    def batch(self, step):
        """The batch of step 0, 1, …; it may hold the end of one epoch and the start of the next."""
        count = len(self.rows)
        return self.rows.padded(np.concatenate([
            Permutation(count, self.rng.child(epoch))(turns)
            for epoch, turns in turns_of(step, self.size, count)]).tolist())


class HeldOutTaskBatches:
    """`count` batches that hold every row once: `batch(i)` for i in 0 … count - 1. The order is
    random but always the same, so that the first few are a fair sample; the last may be short."""

    def __init__(self, rows, *, batch):
        self.rows, self.order = rows, HeldOutOrder(len(rows), batch, "held-out rows")
        self.count = self.order.count
        self.description = {**rows.description, "batch": batch}

    def places(self, i):
        """Which rows batch i holds, a list. Raises IndexError beyond the last."""
        return self.order(i).tolist()

    def batch(self, i):
        return self.rows.padded(self.places(i))

    def outputs(self, model):
        """[row]: what `model` says of each, in the order of the rows: `model(ids, key_mask)`, or
        `model(ids, key_mask, types)` for rows with types, gives a NumPy array [B, K], or
        [B, T, K], of which the padded tokens are cut off here."""
        found = [None] * len(self.rows)
        for i in range(self.count):
            ids, _, *others = self.batch(i)
            said = np.asarray(model(ids, *(others or [None])))
            for place, output in zip(self.places(i), said):
                found[place] = output[: len(self.rows.ids[place])] if said.ndim == 3 else output
        return found


# -- what does not fit -----------------------------------------------------------------------------


def room_in(length, taken, what):
    """How many tokens of a text fit beside `taken` ones. Raises ConfigError for fewer than 1."""
    if length - taken < 1:
        raise ConfigError(f"length: expected at least {taken + 1} tokens, which are {taken} of "
                          f"{what} and one of text, got {length}")
    return length - taken


def overlapping(count, room, overlap):
    """[(start, stop)] of windows of at most `room` tokens that cover `count` tokens; neighbours
    share `overlap` tokens, the last two more, so that it is as wide as the others.

    Raises ConfigError where overlap does not leave a step: 0 ≤ overlap < room.
    """
    if not 0 <= overlap < room:
        raise ConfigError(f"overlap: expected at least 0 and less than the {room} tokens of a "
                          f"window, got {overlap}")
    starts = list(range(0, max(count - room, 0), room - overlap)) + [max(count - room, 0)]
    return [(start, min(start + room, count)) for start in starts]


def owners(spans, count):
    """int [count]: the window of `spans` in which each token has most context, which is the
    distance to the nearer edge of the window; an edge where the text ends is none (Devlin et al.
    2018 judge answers so). Of equal windows the first."""
    best, owner = np.full(count, -1.0), np.zeros(count, np.int64)
    for number, (start, stop) in enumerate(spans):
        places = np.arange(start, stop)
        left = places - start if start else np.full(stop - start, np.inf)
        right = stop - 1 - places if stop < count else np.full(stop - start, np.inf)
        context = np.minimum(left, right)
        better = context > best[start:stop]
        best[start:stop][better] = context[better]
        owner[start:stop][better] = number
    return owner
