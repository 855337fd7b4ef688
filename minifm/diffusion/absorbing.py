"""Masked diffusion of tokens: noise hides tokens behind a mask, and undoing it gives text.

At time t a token of the text x₀ is still there with probability α_t, which falls from α_0 = 1 to
α_1 = 0, each independently of the others; else the mask stands in its place, and stays there
("absorbing": Austin et al. 2021, D3PM; Sahoo et al. 2024, MDLM). With s before t:

    q(x_t | x₀)         the token with probability α_t, else the mask
    q(x_s | x_t, x₀)    what can be seen stays; a mask is undone, that is, becomes the token, with
                        probability (α_s - α_t) / (1 - α_t)

A network guesses what stands behind each mask, p(x₀ⁱ | x_t). That bounds the likelihood of a text:

    -log p(x₀) ≤ ∫₀¹ -α'_t / (1 - α_t) · E Σ_{i masked in x_t} -log p(x₀ⁱ | x_t) dt

Counted in the part that is masked, m = 1 - α_t, the weight is dm / m: the bound is the same for
every schedule. For m uniform, the number of masked tokens among L is uniform in 0 … L, and, given
that it is n, each choice of n is as likely as any other. So the integral is a sum,

    -log p(x₀) ≤ Σ_{n = 1 … L} (1/n) E Σ_{i among n masked} -log p(x₀ⁱ | the others)

which is what is learnt and measured here (equation 14 of Nie et al. 2025, LLaDA): the same number,
with less to be left to chance, and no time at which a weight is infinite. It is also the chain rule
in a random order, averaged over all orders; so a network that knows the conditional probabilities
meets the bound with equality.

Token ids and masks are NumPy arrays; a time is what a Schedule makes of it, nothing else asks.
"""

import math
from typing import NamedTuple

import numpy as np

from minifm import ops
from minifm.diffusion.objectives import stratified
from minifm.errors import ConfigError, ShapeError
from minifm.ops.loss import IGNORE
from minifm.tensor import Tensor


class Schedule(NamedTuple):
    """How likely a token can still be seen at time t in [0, 1]: `kept`(t) = α_t, and `slope`(t),
    its derivative."""

    kept: object
    slope: object


SCHEDULES = {
    # As many tokens are hidden in each part of the time: MDLM's "log-linear".
    "linear": Schedule(lambda t: 1 - t, lambda t: -np.ones_like(t)),
    # On the way back, few come first, while little is known (Chang et al. 2022, MaskGIT).
    "cosine": Schedule(lambda t: 1 - np.sin(math.pi / 2 * t),
                       lambda t: -math.pi / 2 * np.cos(math.pi / 2 * t)),
    # On the way back, few come last, when each may contradict another.
    "square": Schedule(lambda t: (1 - t) ** 2, lambda t: -2 * (1 - t)),
}


# -- the process and its posterior -----------------------------------------------------------------


def noised(ids, kept, rng, *, mask, free=True):
    """A draw of q(x_t | x₀): ids [B, T], each token replaced by `mask` with probability 1 - kept.

    kept   α_t, a number or one for each row [B]
    free   bool [B, T]: which tokens may be hidden at all (default: all)
    """
    ids, kept = _rows(ids), np.asarray(kept, np.float64)
    if not ((kept >= 0) & (kept <= 1)).all():
        raise ConfigError(f"kept: expected probabilities in [0, 1], got {kept}")
    u = rng.integers(0, 2**31, ids.shape) * 2.0**-31
    return np.where(free & (u >= kept.reshape(-1, 1)), mask, ids)


def noised_to(ids, counts, rng, *, mask, free=None):
    """The same, given how many are hidden: `counts` [B] of the tokens of each row that are `free`,
    each choice of so many as likely as any other. Raises ConfigError where a row has fewer."""
    ids, counts = _rows(ids), np.asarray(counts)
    free = np.ones(ids.shape, bool) if free is None else np.asarray(free, bool)
    if counts.shape != ids.shape[:1] or (counts < 0).any() or (counts > free.sum(1)).any():
        raise ConfigError(f"counts: expected a number of tokens for each of {len(ids)} rows, at "
                          f"most {free.sum(1).tolist()}, got {counts.tolist()}")
    keys = np.where(free, rng.integers(0, 2**31, ids.shape), 2**31)
    ranks = np.argsort(np.argsort(keys, axis=1, kind="stable"), axis=1)     # places in that order
    return np.where(ranks < counts[:, None], mask, ids)


def undone(kept_s, kept_t):
    """The probability that a mask at time t is none at the earlier time s: (α_s - α_t)/(1 - α_t);
    0 where nothing is masked yet."""
    return (kept_s - kept_t) / np.maximum(1 - kept_t, np.finfo(np.float64).tiny)


def posterior(x, x0, kept_s, kept_t, *, mask):
    """q(x_s | x_t, x₀) for ids x [*B] of time t: the probability [*B, V] of each token at time s.

    x0   probabilities [*B, V] of what stands behind each mask; one-hot where that is known
    """
    x, x0 = np.asarray(x), np.asarray(x0, np.float64)
    there = np.eye(x0.shape[-1])
    part = undone(kept_s, kept_t)
    behind = part * x0 + (1 - part) * there[mask]
    return np.where((x == mask)[..., None], behind, there[x])


# -- the bound -------------------------------------------------------------------------------------


def weight(schedule, t):
    """-α'_t / (1 - α_t): what the bound weighs the losses of masked tokens by, at time t > 0."""
    return -schedule.slope(t) / (1 - schedule.kept(t))


def spread_counts(sizes, rng):
    """How many tokens to hide in each row, [B], in 1 … sizes[b] of the row: uniform, and spread
    over the batch, which makes the bound vary less (as times are in uniform_times)."""
    sizes = np.asarray(sizes)
    return np.minimum((stratified(len(sizes), rng) * sizes).astype(np.int64) + 1, sizes)


def bound(model, ids, text, weights, *, denominator, rng=None, recompute=False):
    """Σ_rows weight · Σ_masked -log p(token | what can be seen) / denominator, a scalar Tensor.

    model    `features` and `logits` of ids [B, T], every token looking at all others
    ids      [B, T], of which some are hidden
    text     ids [B, T] of what stands there; -100: part of no text, such as marks around it
    weights  [B] tokens of a row over how many of them are hidden: then the sum is the bound, in
             nats, of all rows; and with their number as denominator, in nats a token
    """
    losses, rows = hidden_losses(model, ids, text, rng=rng, recompute=recompute)
    return (losses * Tensor(np.asarray(weights, losses.dtype)[rows])).sum() * (1 / denominator)


def hidden_losses(model, ids, text, *, rng=None, recompute=False):
    """(-log p of each hidden token [N], a Tensor, row after row; the row of each [N])."""
    ids, text = np.asarray(ids), np.asarray(text)
    rows, places = np.nonzero(hidden(ids, text))
    x = model.features(ids, rng=rng, recompute=recompute)[rows, places]          # [N, C]
    return ops.token_losses(model.logits(x), text[rows, places]), rows


def hidden(ids, text):
    """bool [B, T]: which tokens of the text are hidden."""
    return (text != IGNORE) & (ids != text)


def _rows(ids):
    ids = np.asarray(ids)
    if ids.ndim != 2 or not np.issubdtype(ids.dtype, np.integer):
        raise ShapeError(f"ids: expected integers [B, T], got {ids.dtype} {list(ids.shape)}")
    return ids
