"""The log-likelihood of what follows a text, many at a time.

All else here stands on `score`. Rows are padded on the right, where nothing looks, so that on the C
backend a score is the same to the bit whatever it is batched with.

Texts are often asked about behind one context: the answers to a question, questions behind the same
examples. What the rows of a batch have in common at their beginnings is computed once, and kept
from batch to batch as far as the next one begins alike: a cached token has the bits of any other.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from minifm import ops
from minifm.errors import AnomalyError, ConfigError
from minifm.tensor import Tensor, no_grad
from minifm.text.rows import common_prefix, padded

TOGETHER = 1 << 23          # logits that are held at a time: 32 MB
SHARED = 16                 # tokens at the beginning of rows, from which on they are computed once


class Request(NamedTuple):
    """Token ids, of which those from `start` on are to be scored, each by all before it."""

    ids: list
    start: int


@dataclass(frozen=True)
class Score:
    """What a model says of the scored tokens of a Request.

    log_likelihood   the sum of their log-probabilities, in nats
    tokens           how many there are
    greedy           whether each of them is the likeliest in its place
    """

    log_likelihood: float
    tokens: int
    greedy: bool


def score(model, requests, *, batch=8):
    """A Score for each Request; `batch` are computed at a time.

    Raises ConfigError for one that has nothing before its first scored token or is longer than
    the model's context, and AnomalyError where the model's answer is no number.
    """
    if batch < 1:
        raise ConfigError(f"batch: expected at least 1, got {batch}")
    for request in requests:
        _check(request, model.config.context)
    order = sorted(range(len(requests)), key=lambda i: -len(requests[i].ids))   # alike together
    found, beginning = [None] * len(requests), Beginning(model)
    for first in range(0, len(order), batch):
        rows = order[first : first + batch]
        for row, result in zip(rows, _score_together(beginning, [requests[r] for r in rows])):
            found[row] = result
    return found


class Beginning:
    """The keys and values of one text, behind which rows go on that begin so."""

    def __init__(self, model):
        self.model, self.ids, self.cache = model, [], None

    def features(self, ids, shared):
        """ids [B, T], whose rows have the first `shared` in common -> the features of all those
        behind them, [B, T - shared, C]."""
        if not shared:
            return self.model.features(ids)
        self._become(ids[0, :shared].tolist())
        cache = self.model.cache(*ids.shape)
        cache.take(self.cache, np.zeros(len(ids), np.int64))
        return self.model.features(ids[:, shared:], placement=cache.place(ids.shape[1] - shared))

    def _become(self, ids):
        """Forget what is not the beginning of these ids, and add the rest of them."""
        if self.cache is None:
            self.cache = self.model.cache(1)
        kept = common_prefix([self.ids, ids])
        self.cache.rewind([kept])
        if kept < len(ids):
            self.model.features(np.array([ids[kept:]]), placement=self.cache.place(len(ids) - kept))
        self.ids = ids


def _check(request, context):
    if not 1 <= request.start <= len(request.ids):
        raise ConfigError(f"score: start: expected 1 … {len(request.ids)}, since the first token "
                          f"has none before it, got {request.start}")
    if len(request.ids) - 1 > context:
        raise ConfigError(f"score: {len(request.ids) - 1} tokens before the last one do not fit "
                          f"the model's context of {context}")


def _score_together(beginning, requests):
    model = beginning.model
    ids = padded([request.ids[:-1] or [0] for request in requests])             # [B, T]
    # The scored tokens of all rows, one after the other: the place before each, and the token.
    counts = [len(request.ids) - request.start for request in requests]
    rows = np.repeat(np.arange(len(requests)), counts)
    places = np.concatenate([np.arange(r.start, len(r.ids)) - 1 for r in requests])
    targets = np.concatenate([np.asarray(r.ids[r.start :], np.int64) for r in requests])
    shared = min(common_prefix([r.ids for r in requests]), min(r.start for r in requests) - 1)
    shared = min(shared, ids.shape[1] - 1) if len(requests) > 1 and shared >= SHARED else 0
    with no_grad():
        features = beginning.features(ids, shared)[rows, places - shared]       # [N, C]
        losses, likeliest = _losses(model, features, targets)
    if not np.isfinite(losses).all():
        raise AnomalyError("the model's logits are not finite: its weights are damaged, or its "
                           "training diverged")
    ends = np.cumsum(counts)
    return [Score(-float(losses[end - n : end].sum()), n, bool(likeliest[end - n : end].all()))
            for n, end in zip(counts, ends)]


def _losses(model, features, targets):
    """(nats of each target [N], whether it is the likeliest token [N]), by features [N, C]."""
    losses, likeliest = np.zeros(len(targets)), np.zeros(len(targets), bool)
    step = max(1, TOGETHER // model.config.vocabulary)
    for first in range(0, len(targets), step):
        part = slice(first, first + step)
        logits = model.logits(features[part])
        losses[part] = ops.token_losses(logits, Tensor(targets[part])).numpy()
        likeliest[part] = ops.argmax(logits).numpy() == targets[part]
    return losses, likeliest
