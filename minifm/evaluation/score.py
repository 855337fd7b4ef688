"""Log-likelihoods, many at a time: of what follows a text (score), of targets behind their sources
(score_targets), of what is hidden in a text (score_hidden).

All else here stands on these. Rows are padded on the right, where nothing looks, so that on the C
backend a score is the same to the bit whatever it is batched with.

Texts are often asked about behind one context: the answers to a question, questions behind the same
examples. What the rows of a batch have in common at their beginnings is computed once, and kept
from batch to batch as far as the next one begins alike: a cached token has the bits of any other.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from minifm import ops
from minifm.errors import ConfigError, require_finite
from minifm.generation.conditioned import Conditioned
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
    for request in requests:
        _check(request, model.config.context)
    beginning = Beginning(model)
    return _in_batches(requests, batch, lambda request: len(request.ids),
                       lambda part: _score_together(beginning, part))


def _in_batches(requests, batch, size, compute):
    """What `compute` gives for each request, of lists of `batch` that are alike in `size`."""
    if batch < 1:
        raise ConfigError(f"batch: expected at least 1, got {batch}")
    order = sorted(range(len(requests)), key=lambda i: -size(requests[i]))
    found = [None] * len(requests)
    for first in range(0, len(order), batch):
        places = order[first : first + batch]
        for place, result in zip(places, compute([requests[i] for i in places])):
            found[place] = result
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
    rows = np.repeat(np.arange(len(requests)), [len(r.ids) - r.start for r in requests])
    places = np.concatenate([np.arange(r.start, len(r.ids)) - 1 for r in requests])
    shared = min(common_prefix([r.ids for r in requests]), min(r.start for r in requests) - 1)
    shared = min(shared, ids.shape[1] - 1) if len(requests) > 1 and shared >= SHARED else 0
    with no_grad():
        features = beginning.features(ids, shared)[rows, places - shared]       # [N, C]
        return _scores(model, features, [r.ids[r.start :] for r in requests])


def _scores(model, features, targets):
    """A Score for each list of `targets`, token ids, by features [N, C] of them all, one after the
    other. Raises AnomalyError."""
    losses, likeliest = _losses(model, features,
                                np.concatenate([np.asarray(ids, np.int64) for ids in targets]))
    require_finite(losses)
    counts = [len(ids) for ids in targets]
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


# -- targets behind their sources ------------------------------------------------------------------


def score_targets(model, pairs, *, batch=8):
    """[a Score for each target] for each pair (source, targets) of a Seq2SeqModel: lists of token
    ids, and as many targets for each source; `batch` targets are computed at a time, if not more
    belong to one source.

    Raises ConfigError for an empty source or target or one that is longer than the model's context,
    and AnomalyError where the model's answer is no number.
    """
    most = model.config.context
    for source, targets in pairs:
        for what, ids in (("source", source), *(("target", ids) for ids in targets)):
            if not 1 <= len(ids) <= (most or len(ids)):
                raise ConfigError(f"score: expected a {what} of 1 … {most or 'any number of'} "
                                  f"tokens, got {len(ids)}")
    each = max(len(pairs[0][1]), 1) if pairs else 1
    return _in_batches(pairs, max(batch // each, 1) if batch > 0 else batch,
                       lambda pair: len(pair[0]), lambda part: _score_pairs(model, part))


def _score_pairs(model, pairs):
    reader = Conditioned(model, [source for source, _ in pairs])
    rows = [ids for _, targets in pairs for ids in targets]
    counts = [len(ids) for ids in rows]
    ids = padded([[model.config.start, *row[:-1]] for row in rows], model.config.padding)
    with no_grad():
        features = reader.features(ids)                                         # [B K, T, C]
        features = features[np.repeat(np.arange(len(rows)), counts),
                            np.concatenate([np.arange(n) for n in counts])]     # [N, C]
        scores = _scores(model, features, rows)
    each = len(rows) // len(pairs)
    return [scores[first : first + each] for first in range(0, len(scores), each)]


# -- what is hidden in a text ----------------------------------------------------------------------


class Hidden(NamedTuple):
    """Token ids, of which those from `start` to `stop`, not included, are to be guessed."""

    ids: list
    start: int
    stop: int


def score_hidden(model, requests, *, mask, together=False, batch=8):
    """A Score for each Hidden, of a model with a masked head.

    mask      the id that hides a token
    together  False: each token is hidden by itself and guessed by all others, before and behind it,
              and their sum is a pseudo-log-likelihood (Salazar et al. 2020); True: all are hidden,
              and guessed, at once (Schick and Schütze 2021)

    Raises ConfigError for one that has nothing to guess or is longer than the model's context, and
    AnomalyError where the model's answer is no number.
    """
    context, rows, owners = model.config.context, [], []
    for number, (ids, start, stop) in enumerate(requests):
        if not 0 <= start < stop <= len(ids) <= context:
            raise ConfigError(f"score: expected tokens to guess within at most {context}, got "
                              f"{start} … {stop} of {len(ids)}")
        parts = [range(start, stop)] if together else [[place] for place in range(start, stop)]
        rows += [(ids, part) for part in parts]
        owners += [number] * len(parts)
    found = [[] for _ in requests]
    for owner, part in zip(owners, _in_batches(rows, batch, lambda row: len(row[0]),
                                               lambda part: _guess(model, part, mask))):
        found[owner].append(part)
    return [Score(sum(s.log_likelihood for s in parts), sum(s.tokens for s in parts),
                  all(s.greedy for s in parts)) for parts in found]


def _guess(model, rows, mask):
    """A Score for each (ids, places in it to hide)."""
    lengths = np.array([len(ids) for ids, _ in rows])
    ids = padded([row for row, _ in rows], model.config.padding)                # [B, T]
    there = np.arange(ids.shape[1]) < lengths[:, None]
    owners = np.repeat(np.arange(len(rows)), [len(places) for _, places in rows])
    places = np.concatenate([np.asarray(places) for _, places in rows])
    ids[owners, places] = mask
    with no_grad():
        x = model.features(ids, key_mask=None if there.all() else there)
        return _scores(model, x[owners, places], [[row[i] for i in hidden] for row, hidden in rows])
