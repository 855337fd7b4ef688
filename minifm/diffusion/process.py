"""The forward process, which makes noise of data, and its posterior, which a sampler imitates.

With s before t, of levels (α_s, σ_s) and (α_t, σ_t), all of these are normal distributions:

    q(x_t | x₀)        mean α_t x₀,               deviation σ_t
    q(x_t | x_s)       mean (α_t/α_s) x_s,        deviation σ_t √(1 - r²)
    q(x_s | x_t, x₀)   mean α_s(1 - r²) x₀ + r (σ_s/σ_t) x_t,   deviation σ_s √(1 - r²)

where r = (σ_s/α_s) / (σ_t/α_t), between 0 and 1, says how much of the noise at t was there at s.
For α² + σ² = 1 these are equations 4 and 7 of Ho et al. 2020. So written they hold for every
schedule, divide by neither α_t nor 1 - ᾱ_t, and stay right where no signal is left (α_t = r = 0).
"""

from typing import NamedTuple

import numpy as np

from minifm import ops
from minifm.tensor import Tensor


class Transition(NamedTuple):
    """x_t = scale · x_s + deviation · noise."""

    scale: object
    deviation: object


class Posterior(NamedTuple):
    """x_s = data · x₀ + state · x_t + deviation · noise."""

    data: object
    state: object
    deviation: object


def noised(x0, noise, level):
    """A draw of q(x_t | x₀): α_t x₀ + σ_t ε, for x0 and noise [B, ...] and a Level of numbers, of
    arrays [B], or of Tensors [B], into which gradients then flow."""
    return weighted((level.alpha, x0), (level.sigma, noise))


def noised_further(x, noise, s, t):
    """A draw of q(x_t | x_s): x [B, ...] of level s, with noise added to be of level t."""
    scale, deviation = transition(s, t)
    return weighted((scale, x), (deviation, noise))


def kept(s, t):
    """r, the part of the noise at level t that was there at the earlier level s."""
    return (t.alpha * s.sigma) / (s.alpha * t.sigma)


def transition(s, t):
    """The Transition q(x_t | x_s) from level s to a later one, t."""
    r = kept(s, t)
    return Transition(t.alpha / s.alpha, t.sigma * np.sqrt((1 - r) * (1 + r)))


def posterior(s, t):
    """The Posterior q(x_s | x_t, x₀) of level s, before t."""
    r = kept(s, t)
    fresh = (1 - r) * (1 + r)       # 1 - r², without cancellation
    return Posterior(s.alpha * fresh, r * s.sigma / t.sigma, s.sigma * np.sqrt(fresh))


# -- arithmetic that all of diffusion does ---------------------------------------------------------


def weighted(*terms):
    """Σ coefficient · x over pairs (coefficient, x [B, ...]), as a Tensor. A coefficient is a
    number, an array [B] or a Tensor [B]. One that is the number 0 leaves its term out; not all
    are."""
    total = None
    for coefficient, x in terms:
        if isinstance(coefficient, (int, float)) and coefficient == 0:
            continue
        x = x if isinstance(x, Tensor) else Tensor(x)
        term = x * for_each(coefficient, x)
        total = term if total is None else total + term
    return total


def for_each(coefficient, x):
    """A coefficient, one number or one for each example [B], as what multiplies x [B, ...]."""
    if isinstance(coefficient, Tensor):
        return ops.reshape(coefficient, (-1,) + (1,) * (x.ndim - 1))
    if np.ndim(coefficient) == 0:
        return float(coefficient)
    return np.asarray(coefficient, x.dtype).reshape((-1,) + (1,) * (x.ndim - 1))


def normal_like(x, rng):
    """N(0, 1) of the shape and type of x, by the counter-based generator on the host: the same bits
    whatever backend computes, and in row i the same however many rows there are."""
    return Tensor(rng.host_normal(tuple(x.shape), x.dtype))
