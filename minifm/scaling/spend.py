"""How to spend a budget: what operations and seconds buy at each size, and which size is best.

Both are learnt from the cells: operations for each parameter and token (about 6; a little more,
since attention has no parameters), and seconds for a token, which grow in a line with the size,
from what a token costs beside the products.
"""

import math
from typing import NamedTuple

import numpy as np

from minifm.errors import ConfigError
from minifm.scaling.law import best, bootstrap, fit, percentile_interval

SIZES = np.geomspace(1e3, 1e13, 5001)       # parameters among which the best is looked for


class Costs(NamedTuple):
    """What a token costs: `per` operations for each parameter, and fixed + each × N seconds."""

    per: float
    fixed: float
    each: float

    @classmethod
    def of(cls, rows):
        """From the results of at least one cell."""
        N, D, flops, seconds = (np.array([row[key] for row in rows], np.float64)
                                for key in ("parameters", "tokens", "flops", "seconds"))
        return cls(float(np.exp(np.mean(np.log(flops / (N * D))))), *_line(N, seconds / D))

    def tokens_for_flops(self, flops):
        return lambda N: flops / (self.per * N)

    def tokens_for_seconds(self, seconds):
        return lambda N: seconds / (self.fixed + self.each * N)


def _line(N, seconds):
    """(fixed, each) ≥ 0 with the least relative errors of fixed + each × N."""
    ones = np.ones(len(N))
    (fixed, each), *_ = np.linalg.lstsq(np.stack([ones, N], 1) / seconds[:, None], ones)
    if min(fixed, each) >= 0 and len(np.unique(N)) > 1:
        return float(fixed), float(each)
    return 0.0, float(np.mean(seconds / N))     # one size, or too noisy: in proportion


class Choice(NamedTuple):
    """The best use of a budget by the law, and between what the bootstrap's laws lie.

    beyond   how many times the largest of the study the operations are
    """

    budget: str
    parameters: float
    tokens: float
    loss: float
    parameters_between: tuple
    loss_between: tuple
    flops: float
    seconds: float
    beyond: float


class Findings(NamedTuple):
    """All that a study's results say: the law, those of the bootstrap, and what a token costs."""

    rows: list
    law: object
    laws: list
    costs: Costs

    @classmethod
    def of(cls, rows, rng, samples=200):
        """From results (study.py), with so many laws of the bootstrap; raises ConfigError for too
        few results."""
        N, D, loss = ([row[key] for row in rows] for key in ("parameters", "tokens", "loss"))
        law = fit(N, D, loss)
        return cls(rows, law, bootstrap(N, D, loss, rng=rng, samples=samples), Costs.of(rows))

    def between(self, name):
        """The interval of a number of the law, by its name."""
        return percentile_interval([getattr(law, name) for law in self.laws])

    def choose(self, *, flops=None, seconds=None):
        """The Choice for a budget of operations or of seconds on this machine."""
        if not 0 < (flops or seconds or 0) < math.inf:
            raise ConfigError(f"budget: expected a number above 0, got {flops or seconds}")
        costs = self.costs
        buys = costs.tokens_for_flops(flops) if flops else costs.tokens_for_seconds(seconds)
        N, D = best(self.law, buys, SIZES)
        sizes = [best(law, buys, SIZES)[0] for law in self.laws]
        losses = [float(law(N, D)) for law in self.laws]
        operations = costs.per * N * D
        return Choice(f"{flops:.3g} FLOPs" if flops else f"{seconds:,.0f} seconds", N, D,
                      float(self.law(N, D)), percentile_interval(sizes),
                      percentile_interval(losses), operations,
                      (costs.fixed + costs.each * N) * D,
                      operations / max(row["flops"] for row in self.rows))
