"""The log-likelihood of what follows a text, many at a time.

All else here stands on `score`. Rows are padded on the right, where nothing looks, so that on the C
backend a score is the same to the bit whatever it is batched with.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from minifm import ops
from minifm.errors import AnomalyError, ConfigError
from minifm.tensor import Tensor, no_grad
from minifm.text.rows import padded

TOGETHER = 1 << 23          # logits that are held at a time: 32 MB


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
    found = [None] * len(requests)
    for first in range(0, len(order), batch):
        rows = order[first : first + batch]
        for row, result in zip(rows, _score_together(model, [requests[row] for row in rows])):
            found[row] = result
    return found


def _check(request, context):
    if not 1 <= request.start <= len(request.ids):
        raise ConfigError(f"score: start: expected 1 … {len(request.ids)}, since the first token "
                          f"has none before it, got {request.start}")
    if len(request.ids) - 1 > context:
        raise ConfigError(f"score: {len(request.ids) - 1} tokens before the last one do not fit "
                          f"the model's context of {context}")


def _score_together(model, requests):
    ids = padded([request.ids[:-1] or [0] for request in requests])             # [B, T]
    # The scored tokens of all rows, one after the other: the place before each, and the token.
    counts = [len(request.ids) - request.start for request in requests]
    rows = np.repeat(np.arange(len(requests)), counts)
    places = np.concatenate([np.arange(r.start, len(r.ids)) - 1 for r in requests])
    targets = np.concatenate([np.asarray(r.ids[r.start :], np.int64) for r in requests])
    with no_grad():
        features = model.features(ids)[rows, places]                            # [N, C]
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
