"""From noise to data: one function for each sampler, over a list of noise levels (levels.py).

                 x at level t → x at the next level s, of less noise          order   noise
    ddpm         a draw of the posterior q(x_s | x_t, x̂₀)                       1      fresh
    ddim         α_s x̂₀ + σ_s ε̂; with η > 0 part of ε̂ is drawn anew             1      none (η)
    euler        x/α along its slope ε̂ in σ/α                                   1      none (churn)
    heun         … along the mean of the slopes at both ends; EDM               2      none (churn)
    dpm_2m       x̂₀ extrapolated in log(σ/α) from the last two: DPM-Solver++    2      none
    dpm_2m_sde   … with a draw of the posterior                                 see below    fresh
    flow_euler   x along its velocity ε̂ - x̂₀                                    1      none

    x = ddim(Denoiser(model, "epsilon"), x, levels(linear(), 30), rng=Rng(1), eta=0.5)

All take (denoiser, x [B, ...], levels), `rng` where they draw, and `watch`, which is called after
each step with (number of the step, the level reached, x there, the Estimate that led there). All
return x at the last level, a Tensor. Step i draws from rng.child("step", i), row by row: the same
seed gives the same noise on every backend and in every batch. Noise that remains is never rounded
below 0: the sizes under roots are products (process.py), not differences.

With an x̂₀ and ε̂ that do not change, ddim, euler and flow_euler make the same step: they differ in
what they hold constant only where noise is added, or in the levels that they allow.
"""

import math
from itertools import pairwise

import numpy as np

from minifm.diffusion.levels import checked
from minifm.diffusion.process import (
    kept,
    noised_further,
    normal_like,
    posterior,
    transition,
    weighted,
)
from minifm.errors import ConfigError
from minifm.tensor import Tensor


def starting_noise(levels, shape, rng, dtype=np.float32):
    """x at the first level when nothing of the data can be seen in it: σ · N(0, 1), [B, ...]."""
    x = Tensor(rng.child("start").host_normal(tuple(shape), dtype))
    return x * float(levels[0].sigma)


# -- ancestral -------------------------------------------------------------------------------------


def ddpm(denoiser, x, levels, *, rng, variance="small", watch=None):
    """Ancestral sampling (Ho et al. 2020, algorithm 2), over any list of levels.

    variance   "small": the posterior's, right where the data are one point; "large": the forward
               step's, σ²_{t|s}, right where the data are N(0, 1) (their section 3.2)
    """
    if variance not in ("small", "large"):
        raise ConfigError(f"variance: expected small or large, got {variance!r}")
    x = Tensor(x)
    for i, (t, s) in enumerate(pairwise(checked(levels))):
        found = denoiser(x, t)
        data, state, deviation = posterior(s, t)
        if variance == "large" and s.sigma > 0:         # the last step adds no noise
            deviation = transition(s, t).deviation
        x = weighted((data, found.x0), (state, x), (deviation, _fresh(x, rng, i)))
        _tell(watch, i, s, x, found)
    return x


# -- deterministic, in three coordinates -----------------------------------------------------------


def ddim(denoiser, x, levels, *, rng=None, eta=0.0, landing=None, watch=None):
    """Denoising diffusion implicit models (Song et al. 2021, equation 12).

    eta       how much of the posterior's noise is drawn anew: 0 none, 1 all of it, which is ddpm
    landing   [Level], where each step lands, if that is not the next level of the list
    """
    if not 0 <= eta <= 1:
        raise ConfigError(f"eta: expected at least 0 and at most 1, got {eta}")
    x, ends = Tensor(x), checked(levels)[1:]
    if landing is not None:
        if len(landing) != len(ends):
            raise ConfigError(f"landing: expected a level for each of {len(ends)} steps, got "
                              f"{len(landing)}")
        ends = landing
    for i, (t, s) in enumerate(zip(levels, ends)):
        found = denoiser(x, t)
        fresh = eta * math.sqrt((1 - kept(s, t)) * (1 + kept(s, t)))
        old = math.sqrt((1 - fresh) * (1 + fresh))
        terms = [(s.alpha, found.x0), (s.sigma * old, found.noise)]
        if fresh > 0 and s.sigma > 0:
            terms.append((s.sigma * fresh, _fresh(x, rng, i)))
        x = weighted(*terms)
        _tell(watch, i, s, x, found)
    return x


def euler(denoiser, x, levels, *, rng=None, churn=None, watch=None):
    """Euler's method for x/α as a function of σ/α, whose slope is ε (Karras et al. 2022, equation
    4; "Euler" of k-diffusion). `churn` (Churn) adds noise before each step."""
    x = Tensor(x)
    for i, (t, s) in enumerate(pairwise(with_signal(levels))):
        x, t = _churned(x, t, churn, rng, i, len(levels) - 1)
        found = denoiser(x, t)
        x = weighted((s.alpha / t.alpha, x), (s.alpha * (s.ratio - t.ratio), found.noise))
        _tell(watch, i, s, x, found)
    return x


def heun(denoiser, x, levels, *, rng=None, churn=None, watch=None):
    """Heun's method in the same coordinates (Karras et al. 2022, algorithms 1 and 2): the slope is
    the mean of those at both ends. Two calls of the network for each step; one for a step to clean
    data, where there is no slope. Where σ/α falls far in one step, as at the first times of a
    schedule that all but ends without signal, a small error of the slope at its end weighs much:
    levels are best spaced by "karras".
    """
    x = Tensor(x)
    for i, (t, s) in enumerate(pairwise(with_signal(levels))):
        x, t = _churned(x, t, churn, rng, i, len(levels) - 1)
        found = denoiser(x, t)
        change = s.alpha * (s.ratio - t.ratio)
        there = weighted((s.alpha / t.alpha, x), (change, found.noise))
        if s.sigma > 0:
            ahead = denoiser(there, s)
            there = weighted((s.alpha / t.alpha, x),
                             (change / 2, found.noise), (change / 2, ahead.noise))
        x = there
        _tell(watch, i, s, x, found)
    return x


def flow_euler(denoiser, x, levels, *, watch=None):
    """Euler's method along the velocity ε - x₀, for levels of Flow, α + σ = 1 (Liu et al. 2022)."""
    for level in checked(levels):
        if abs(level.alpha + level.sigma - 1) > 1e-6:
            raise ConfigError("flow_euler: expected levels with α + σ = 1, of Flow; got "
                              f"α = {level.alpha:.6g}, σ = {level.sigma:.6g}")
    x = Tensor(x)
    for i, (t, s) in enumerate(pairwise(levels)):
        found = denoiser(x, t)
        velocity = found.noise - found.x0
        x = weighted((1, x), (s.sigma - t.sigma, velocity))
        _tell(watch, i, s, x, found)
    return x


# -- two steps at once -----------------------------------------------------------------------------


def dpm_2m(denoiser, x, levels, *, first_order_end=False, watch=None):
    """DPM-Solver++(2M) (Lu et al. 2022b, algorithm 2): the exact solution for an x̂₀ that goes on
    in a line in log(σ/α) as it went in the last two steps.

    first_order_end   the last step is one of ddim, for steadiness where steps are few; a step to
                      clean data always is
    """
    x, before = Tensor(x), None
    for i, (t, s) in enumerate(pairwise(checked(levels))):
        found = denoiser(x, t)
        ahead = _extrapolated(found.x0, before, s, t, first_order_end and i == len(levels) - 2)
        r = kept(s, t)
        x = weighted((s.sigma / t.sigma, x), (s.alpha * (1 - r), ahead))
        before = found.x0, t
        _tell(watch, i, s, x, found)
    return x


def dpm_2m_sde(denoiser, x, levels, *, rng, first_order_end=False, watch=None):
    """The stochastic SDE-DPM-Solver++(2M) (Lu et al. 2022b, section 5): a draw of the posterior
    given the same x̂₀. Without the second order it is ddpm."""
    x, before = Tensor(x), None
    for i, (t, s) in enumerate(pairwise(checked(levels))):
        found = denoiser(x, t)
        ahead = _extrapolated(found.x0, before, s, t, first_order_end and i == len(levels) - 2)
        data, state, deviation = posterior(s, t)
        x = weighted((data, ahead), (state, x), (deviation, _fresh(x, rng, i)))
        before = found.x0, t
        _tell(watch, i, s, x, found)
    return x


def _extrapolated(x0, before, s, t, first_order):
    """x̂₀ halfway from t to s in log(σ/α), on the line through it and the one `before`, (x̂₀, level);
    x̂₀ itself where there is none, or an end of the line is infinitely far."""
    if before is None or first_order or s.sigma == 0:
        return x0
    earlier, u = before                 # with u.ratio infinite, `half` is 0
    half = 0.5 * math.log(t.ratio / s.ratio) / math.log(u.ratio / t.ratio)
    return weighted((1 + half, x0), (-half, earlier))


# -- what they share -------------------------------------------------------------------------------


class Churn:
    """Noise that is added before each step, and removed by it: errors of earlier steps are washed
    out (Karras et al. 2022, algorithm 2). A level σ/α between `least` and `most` is raised to
    (1 + γ) σ/α with γ = min(amount/steps, √2 - 1), by noise of the deviation `deviation`.

    schedule   says what time the raised level has
    """

    def __init__(self, schedule, amount, *, least=0.0, most=math.inf, deviation=1.0):
        if not amount >= 0:
            raise ConfigError(f"churn: expected an amount of at least 0, got {amount}")
        self.schedule, self.amount = schedule, amount
        self.least, self.most, self.deviation = least, most, deviation

    def level(self, t, steps):
        """The level to which t is raised, of as much signal for the data as it has (α/√(α² + σ²)
        where the variance is preserved)."""
        gamma = min(self.amount / steps, math.sqrt(2) - 1)
        if gamma == 0 or not self.least <= t.ratio <= self.most:
            return t
        return self.schedule.at_ratio((1 + gamma) * t.ratio)


def _churned(x, t, churn, rng, i, steps):
    """x with noise added, and the level that it now has."""
    raised = t if churn is None else churn.level(t, steps)
    if raised is t:
        return x, t
    return noised_further(x, _fresh(x, rng, i) * churn.deviation, t, raised), raised


def with_signal(levels):
    """The list of levels, once it is known that x/α can be formed at its first."""
    if not checked(levels)[0].alpha > 0:
        raise ConfigError("levels: euler and heun divide by the signal, and the first level has "
                          "none; ddim, dpm_2m and flow_euler do not")
    return levels


def _fresh(x, rng, i):
    """The noise of step i."""
    if rng is None:
        raise ConfigError("rng: this sampler draws noise, and needs an Rng to draw it from")
    return normal_like(x, rng.child("step", i))


def _tell(watch, i, level, x, found):
    if watch is not None:
        watch(i, level, x, found)


SAMPLERS = {"ddpm": ddpm, "ddim": ddim, "euler": euler, "heun": heun, "dpm_2m": dpm_2m,
            "dpm_2m_sde": dpm_2m_sde, "flow_euler": flow_euler}
