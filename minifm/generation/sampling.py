"""Sampling: from logits to the next token. Each filter is one function, `distribution` applies
them in order, and one number decides.

`Sampling.write` is the loop to read: prefill the cache with all prompts at once, then one token for
each row and step. Logits are NumPy rows [V]; -inf marks a token that cannot come. All arithmetic is
float64, so that a filter's cut does not depend on the backend's rounding more than the logits do.
"""

from dataclasses import dataclass

import numpy as np

from minifm.config import check, setting
from minifm.generation.decoder import Decoder
from minifm.generation.job import batched


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen. The filters act in the order in which they stand here."""

    repetition_penalty: float = setting(1.0, "divide the logits of tokens seen before (1: off)",
                                        above=0)
    temperature: float = setting(1.0, "divide the logits by this; 0 takes the likeliest token",
                                 least=0)
    top_k: int = setting(0, "keep the k likeliest tokens (0: all)", least=0)
    top_p: float = setting(
        1.0, "keep the likeliest tokens that together reach this probability (1: all)",
        above=0, most=1)
    min_p: float = setting(
        0.0, "keep tokens at least this fraction as likely as the likeliest (0: all)",
        least=0, most=1)

    __post_init__ = check

    def write(self, job):
        """Yield {row: its new token}; see Job."""
        decoder = Decoder(job.model, len(job.prompts), job.capacity, job.cache)
        texts = job.texts()
        logits, live = decoder(*batched(job.prompts)), job.live(texts)          # [B, V]
        for number in range(job.max_tokens):
            for row in live:
                text = texts[row]
                text.add(draw(text.allow(logits[row]), text.ids, self, job.uniform(row, number)))
            yield {row: texts[row].ids[-1] for row in live}
            live = job.live(texts)
            if not live:
                return
            # A finished row goes along as one token of padding, which its cache does not keep.
            ids = np.array([[text.ids[-1]] for text in texts])                  # [B, 1]
            logits = decoder(ids, np.isin(np.arange(len(texts)), live).astype(int))


def draw(logits, seen, sampling, uniform):
    """The next token of one row.

    logits [V]; seen: the row's token ids so far; uniform: one number in [0, 1), which decides.
    """
    return choose(distribution(logits, seen, sampling), uniform)


def distribution(logits, seen, sampling):
    """The probability of each token [V] to be the next one, after all filters."""
    x = logits.astype(np.float64)
    if sampling.repetition_penalty != 1:
        x = penalise_repetition(x, seen, sampling.repetition_penalty)
    if sampling.temperature == 0:
        return (np.arange(len(x)) == np.argmax(x)).astype(np.float64)
    x = x / sampling.temperature
    if sampling.top_k:
        x = keep_top_k(x, sampling.top_k)
    if sampling.top_p < 1:
        x = keep_top_p(x, sampling.top_p)
    if sampling.min_p:
        x = keep_min_p(x, sampling.min_p)
    return probabilities(x)


def penalise_repetition(x, seen, penalty):
    """Logits of tokens already in the text lose: x / penalty if positive, else x · penalty
    (Keskar et al. 2019, CTRL, section 4.1)."""
    ids = np.unique(seen)
    x = x.copy()
    x[ids] = np.where(x[ids] > 0, x[ids] / penalty, x[ids] * penalty)
    return x


def keep_top_k(x, k):
    """-inf for all but the k largest; of equal ones, the first come first (Fan et al. 2018)."""
    if k >= len(x):
        return x
    kept = np.argsort(-x, kind="stable")[:k]
    return _only(x, kept)


def keep_top_p(x, p):
    """Nucleus sampling: the shortest list of likeliest tokens with probability ≥ p in all
    (Holtzman et al. 2020). Never empty."""
    order = np.argsort(-x, kind="stable")
    before = np.cumsum(probabilities(x)[order]) - probabilities(x)[order]
    return _only(x, order[before < p])


def keep_min_p(x, fraction):
    """Tokens at least `fraction` as likely as the likeliest (Nguyen et al. 2024)."""
    return _only(x, np.flatnonzero(x >= x.max() + np.log(fraction)))


def probabilities(x):
    """softmax of one row."""
    e = np.exp(x - x.max())
    return e / e.sum()


def choose(p, uniform):
    """The token at which the cumulative probability passes `uniform` (inverse transform)."""
    cumulative = np.cumsum(p)
    token = int(np.searchsorted(cumulative, uniform * cumulative[-1], side="right"))
    return min(token, int(np.flatnonzero(p)[-1]))   # rounding must not reach a forbidden token


def _only(x, kept):
    out = np.full_like(x, -np.inf)
    out[kept] = x[kept]
    return out
