"""How likely a text is to a model that writes by diffusion: a bound, by Monte Carlo.

The windows are those of perplexity.py: what stands before the scored tokens of a window can be
seen, and of those themselves a random number is hidden, as in training (diffusion/absorbing.py).
Its mean bounds their negative log-likelihood given what is before them, so the sum bounds that of
whole documents, and compares with the perplexity of a model that predicts the next token.

The mean is taken over two halves of `draws` draws, in each of which the numbers hidden are spread
over all that may be. The halves are independent: half of their difference says how far the mean is
off, whatever the spreading gains.
"""

import math
from dataclasses import dataclass
from itertools import islice

import numpy as np

from minifm.config import check, setting
from minifm.diffusion.absorbing import hidden_losses, noised_to, spread_counts
from minifm.errors import AnomalyError, ConfigError
from minifm.evaluation.perplexity import (
    FIRST_FOLLOWS,
    Measured,
    WindowConfig,
    empty_tally,
    requests_of,
)
from minifm.ops.loss import IGNORE
from minifm.rng import Rng
from minifm.tensor import no_grad
from minifm.text.offsets import before_text

MARKS = 3       # tokens of a row beside a window: one at each end, and the one that it follows


@dataclass(frozen=True)
class BoundConfig:
    """How often tokens are hidden."""

    draws: int = setting(4, "how often tokens of a window are hidden, twice", least=1)
    seed: int = setting(0, "of what is hidden", least=0)

    __post_init__ = check


@dataclass(frozen=True)
class Bounded(Measured):
    """A Measured whose `nats` are a bound, with `spread`, its standard error, also in nats."""

    spread: float
    draws: int

    @property
    def bits_per_byte_spread(self):
        """The standard error of bits_per_byte."""
        return self.spread / math.log(2) / self.bytes


def likelihood_bound(model, tokenizer, documents, config=WindowConfig(), drawn=BoundConfig()):
    """The Bounded of texts (bytes or str). Raises ConfigError for a tokenizer that lacks a mark, or
    documents without a token."""
    before_text(tokenizer, FIRST_FOLLOWS)
    if tokenizer.first is None or tokenizer.mask is None:
        raise ConfigError("tokenizer: has no first token, or no mask, with which the model reads")
    context, stride = config.of(model.config.context - MARKS)
    tally, rng = empty_tally(), Rng(drawn.seed).child("bound")
    requests = requests_of(tokenizer, documents, context, stride, config.tokens, tally)
    halves, number = [], 0              # nats of each request by each of the two halves
    while some := list(islice(requests, config.batch)):
        rows = [drawing for i, request in enumerate(some, number) for drawing in
                _hidden(request, model.config.context, tokenizer, drawn.draws, rng.child(i))]
        nats = np.concatenate([_nats(model, rows[first : first + config.batch])
                               for first in range(0, len(rows), config.batch)])
        halves.append(nats.reshape(len(some), 2, drawn.draws).mean(2))
        number += len(some)
    if not halves:
        raise ConfigError("evaluation: there is no text to score")
    halves = np.concatenate(halves)                                             # [N, 2]
    spread = np.sqrt((((halves[:, 0] - halves[:, 1]) / 2) ** 2).sum())
    return Bounded(math.fsum(halves.mean(1)), context=context, stride=stride, **tally,
                   spread=float(spread), draws=drawn.draws)


def _hidden(request, length, tokenizer, draws, rng):
    """[(ids [T], text [T], weight)], 2 · draws of a Request's window with some tokens hidden."""
    ids = np.full(length, tokenizer.mask, np.int64)     # behind the window nothing is known
    ids[0], ids[-1] = tokenizer.first, tokenizer.separator
    end, text = 1 + len(request.ids), np.full(length, IGNORE, np.int64)
    ids[1:end] = request.ids
    scored = slice(1 + request.start, end)
    text[scored] = ids[scored]
    ids, text = (np.tile(x, (2 * draws, 1)) for x in (ids, text))
    size = len(request.ids) - request.start
    counts = np.concatenate([spread_counts([size] * draws, rng.child("counts", half))
                             for half in range(2)])
    ids = noised_to(ids, counts, rng.child("places"), mask=tokenizer.mask, free=text != IGNORE)
    return list(zip(ids, text, size / counts))


def _nats(model, rows):
    """The bound by each of [(ids, text, weight)], [len(rows)]."""
    ids, text, weights = map(np.array, zip(*rows))
    with no_grad():
        losses, row = hidden_losses(model, ids, text)
    nats = np.bincount(row, losses.numpy(), minlength=len(rows)) * weights
    if not np.isfinite(nats).all():
        raise AnomalyError("the model's logits are not finite: its weights are damaged, or its "
                           "training diverged")
    return nats
