"""The law of Hoffmann et al. 2022 and its fit to runs: L(N, D) = E + A / N^α + B / D^β.

E is what no model of this text gets below, A / N^α what a model of N parameters lacks, B / D^β
what D tokens have not taught it. The fit is that of their approach 3: the logarithm of the law is
a log-sum-exp of three lines, and the Huber loss of its error in log L is made least from many
starts. What the fit leaves open is told by fits to cells drawn again with replacement.
"""

import math
from dataclasses import astuple, dataclass

import numpy as np

from minifm.errors import ConfigError

DELTA = 1e-3                # beyond such an error in log L the loss grows in a line
LEAST_CELLS, LEAST_KINDS = 8, 3
SPARSE = 81                 # of 243 starts a drawn set takes every so-manieth
# Logs of the three parts at the middle of the runs, and of α and β between them: what no run says
# anything about would else go on for ever.
LOWEST = np.array([-20, -20, math.log(1e-3), -20, math.log(1e-3)])
HIGHEST = np.array([5, 5, math.log(3), 5, math.log(3)])
ROUNDS, PATIENCE = 400, 20  # of the minimiser; after so many without gain it stops


@dataclass(frozen=True)
class Law:
    """L(N, D) = E + A / N^alpha + B / D^beta, in nats a token."""

    E: float
    A: float
    alpha: float
    B: float
    beta: float

    def __call__(self, parameters, tokens):
        """The loss; arrays broadcast."""
        return self.E + self.A * np.float64(parameters) ** -self.alpha \
            + self.B * np.float64(tokens) ** -self.beta

    @property
    def exponent(self):
        """a of N ∝ C^a, the best N for C operations; D goes with C^(1 - a)."""
        return self.beta / (self.alpha + self.beta)

    def optimum(self, flops, per=6.0):
        """(N, D) with the least loss among those that take so many operations, per × N × D;
        equation 4 of the paper."""
        ratio = self.alpha * self.A / (self.beta * self.B)
        N = ratio ** (1 / (self.alpha + self.beta)) * (flops / per) ** self.exponent
        return N, flops / (per * N)


def best(law, tokens_for, sizes):
    """(N, D) with the least loss among `sizes`, where a budget buys tokens_for(N) tokens."""
    sizes = np.asarray(sizes, np.float64)
    tokens = tokens_for(sizes)
    place = int(np.argmin(law(sizes, tokens)))
    return float(sizes[place]), float(tokens[place])


def percentile_interval(values, level=0.9):
    """The middle `level` of the values: (low, high)."""
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


# -- the fit -------------------------------------------------------------------------------------


def fit(parameters, tokens, loss):
    """The Law that these runs follow best. Three arrays of one length: N, D, and L in nats.

    Raises ConfigError for fewer than eight runs, or fewer than three values of N or of D.
    """
    data = _Data.of(parameters, tokens, loss)
    found, cost = _minimise(data, _starts(data), np.ones(len(data.target)))
    return data.law(found[np.argmin(cost)])


def bootstrap(parameters, tokens, loss, *, rng, samples=200):
    """Laws fitted to as many sets of runs, each drawn from these with replacement.

    Each fit starts from that to all runs and from a few starts that are far from it. A set that
    has too few values of N or D to be fitted is drawn again.
    """
    data = _Data.of(parameters, tokens, loss)
    starts = np.vstack([data.of_law(fit(parameters, tokens, loss)), _starts(data)[::SPARSE]])
    counts = _draws(data, rng, samples)                                     # [samples, n]
    each = len(starts)
    found, cost = _minimise(data, np.tile(starts, (samples, 1)), np.repeat(counts, each, axis=0))
    places = np.arange(samples) * each + cost.reshape(samples, each).argmin(axis=1)
    return [data.law(row) for row in found[places]]


def _draws(data, rng, samples):
    """How often each run is in each set, [samples, n]."""
    n, rows, turn = len(data.target), [], 0
    while len(rows) < samples:
        drawn = rng.child("bootstrap", turn).integers(0, n, (n,))
        turn += 1
        if min(len(np.unique(np.round(axis[drawn], 6))) for axis in (data.x, data.y)) \
                >= LEAST_KINDS:
            rows.append(np.bincount(drawn, minlength=n))
    return np.array(rows, np.float64)


@dataclass(frozen=True)
class _Data:
    """Runs as the fit sees them: x = log N and y = log D less their means, so that the parts of a
    law are about as large as at the middle of the runs; target = log L.

    The fit's numbers are θ = (log of E's part, log of A's, log α, log of B's, log β).
    """

    x: np.ndarray
    y: np.ndarray
    target: np.ndarray
    middle: tuple

    @classmethod
    def of(cls, parameters, tokens, loss):
        N, D, L = (np.asarray(values, np.float64) for values in (parameters, tokens, loss))
        kinds = {"sizes": len(np.unique(N)), "amounts of tokens": len(np.unique(D))}
        if len(L) < LEAST_CELLS or min(kinds.values()) < LEAST_KINDS:
            raise ConfigError(
                f"fit: expected at least {LEAST_CELLS} finished cells with {LEAST_KINDS} sizes and "
                f"{LEAST_KINDS} amounts of tokens, got {len(L)} with "
                + " and ".join(f"{n} {what}" for what, n in kinds.items()))
        if not (np.isfinite(L).all() and (L > 0).all()):
            raise ConfigError("fit: expected losses above 0, got one that is not")
        logs = np.log(N), np.log(D)
        middle = tuple(float(values.mean()) for values in logs)
        return cls(logs[0] - middle[0], logs[1] - middle[1], np.log(L), middle)

    def law(self, theta):
        e, a, log_alpha, b, log_beta = (float(t) for t in theta)
        alpha, beta = math.exp(log_alpha), math.exp(log_beta)
        return Law(math.exp(e), math.exp(a + alpha * self.middle[0]), alpha,
                   math.exp(b + beta * self.middle[1]), beta)

    def of_law(self, law):
        E, A, alpha, B, beta = astuple(law)
        return np.log([E, A, alpha, B, beta]) - [0, alpha * self.middle[0], 0,
                                                 beta * self.middle[1], 0]


def _starts(data):
    """[S, 5]: every way in which the least loss may be made up of its three parts."""
    least = data.target.min()
    parts, exponents = least + np.log([0.03, 0.15, 0.5]), np.log([0.1, 0.3, 0.7])
    grid = np.meshgrid(least + np.log([0.1, 0.5, 0.8]), parts, exponents, parts, exponents,
                       indexing="ij")
    return np.stack([axis.ravel() for axis in grid], axis=1)


def _minimise(data, theta, counts):
    """(θ [S, 5], cost [S]): from each of S starts to the bottom of Σ counts · Huber(error).

    Levenberg–Marquardt steps for all starts at once; an error beyond DELTA weighs DELTA / |error|,
    with which a least-squares step goes down the Huber loss (Huber & Ronchetti 2009, section 7.8).
    """
    counts = np.broadcast_to(counts, (len(theta), len(data.target)))
    damping, idle = np.full(len(theta), 1e-2), 0
    error, slopes = _errors(data, theta)
    cost = _huber(error, counts)
    for _ in range(ROUNDS):
        weights = counts * np.minimum(1, DELTA / np.maximum(np.abs(error), 1e-300))     # [S, n]
        weighted = slopes * weights[:, None]                                            # [S, 5, n]
        downhill = -np.einsum("skn,sn->sk", weighted, error)
        curvature = weighted @ slopes.transpose(0, 2, 1)                                # [S, 5, 5]
        trace = np.einsum("skk->s", curvature)[:, None]
        ridge = damping[:, None] * np.einsum("skk->sk", curvature) + 1e-12 * trace + 1e-300
        step = np.linalg.solve(curvature + ridge[:, :, None] * np.eye(5), downhill[..., None])
        trial = np.clip(theta + np.clip(step[..., 0], -1, 1), LOWEST, HIGHEST)
        error_there, slopes_there = _errors(data, trial)
        cost_there = _huber(error_there, counts)
        better = cost_there < cost
        gain = np.max(np.where(better, 1 - cost_there / np.maximum(cost, 1e-300), 0))
        theta = np.where(better[:, None], trial, theta)
        error = np.where(better[:, None], error_there, error)
        slopes = np.where(better[:, None, None], slopes_there, slopes)
        cost = np.where(better, cost_there, cost)
        damping = np.clip(np.where(better, damping / 3, damping * 4), 1e-12, 1e12)
        idle = 0 if gain > 1e-7 else idle + 1
        if idle == PATIENCE:
            break
    return theta, cost


def _errors(data, theta):
    """(log of the law - log L, [S, n]; its slopes in θ, [S, 5, n])."""
    e, a, log_alpha, b, log_beta = (theta[:, i, None] for i in range(5))
    falls_x, falls_y = np.exp(log_alpha) * data.x, np.exp(log_beta) * data.y        # α x, β y
    parts = np.stack([np.broadcast_to(e, falls_x.shape), a - falls_x, b - falls_y])
    top = parts.max(axis=0)
    shares = np.exp(parts - top)
    total = shares.sum(axis=0)
    of_e, of_a, of_b = shares / total
    slopes = np.stack([of_e, of_a, -of_a * falls_x, of_b, -of_b * falls_y], axis=1)
    return top + np.log(total) - data.target, slopes


def _huber(error, counts):
    size = np.abs(error)
    return np.sum(counts * np.where(size <= DELTA, size**2 / 2, DELTA * (size - DELTA / 2)), axis=1)
