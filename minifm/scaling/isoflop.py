"""Approach 2 of Hoffmann et al. 2022: on each IsoFLOP curve a parabola in log N, and where it is
lowest the best size for that budget; then N ∝ C^a through those sizes."""

import math
from typing import NamedTuple

import numpy as np


class Curve(NamedTuple):
    """The runs of one budget of operations.

    parameters, loss  of its runs, by size
    parabola          (c2, c1, c0) of the loss in log N; None: fewer than three runs
    best              N of the lowest point; None where the parabola has none, or has it beyond its
                      runs by more than half their range: then it is not known
    """

    budget: float
    parameters: np.ndarray
    loss: np.ndarray
    parabola: np.ndarray | None
    best: float | None


def curves(rows):
    """The Curves of results (study.py), by ascending budget."""
    found = []
    for budget in sorted({row["budget"] for row in rows}):
        runs = sorted((row["parameters"], row["loss"]) for row in rows if row["budget"] == budget)
        N, loss = (np.array(values, np.float64) for values in zip(*runs))
        found.append(_curve(budget, N, loss))
    return found


def _curve(budget, N, loss):
    if len(np.unique(N)) < 3:
        return Curve(budget, N, loss, None, None)
    x = np.log(N)
    middle, reach = (x[0] + x[-1]) / 2, x[-1] - x[0]
    c2, c1, c0 = np.polyfit(x - middle, loss, 2)
    parabola = np.array([c2, c1 - 2 * c2 * middle, c0 - c1 * middle + c2 * middle**2])
    lowest = -c1 / (2 * c2) if c2 > 0 else math.inf
    return Curve(budget, N, loss, parabola,
                 math.exp(middle + lowest) if abs(lowest) <= reach else None)


def power_law(found):
    """(k, a) of N = k C^a through the curves' best sizes; None where fewer than two have one."""
    points = [(math.log(curve.budget), math.log(curve.best)) for curve in found if curve.best]
    if len(points) < 2:
        return None
    a, log_k = np.polyfit(*np.transpose(points), 1)
    return math.exp(log_k), float(a)
