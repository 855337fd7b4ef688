"""How much of the data and how much noise there is at each time: x_t = α_t x₀ + σ_t ε.

That is all that a schedule says. `at(t)` gives the `Level` of a time, and `time_of(σ/α)` goes back;
forward process, objectives and samplers know nothing else of it, and so take any schedule:

    Table       T steps of noising, by ᾱ: linear, scaled_linear, sigmoid_betas, tabulated(Cosine())
    LinearBeta, Cosine, Sigmoid     continuous in t, α² + σ² = 1: the variance is preserved
    Karras      α = 1, σ = t: the variance explodes; the time *is* the noise
    Flow        α = 1 - t, σ = t: a straight line from data to noise

The first four preserve the variance of data that have variance 1. A schedule that is *learned* is
in learned.py. Numbers are float64 throughout; only what multiplies x takes x's type.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from minifm.config import check, setting
from minifm.errors import ConfigError


class Level(NamedTuple):
    """One noise level: x = alpha · x₀ + sigma · ε, and the time that the network is told.

    Each is a number, an array [B] with one for each example, or (alpha, sigma) a Tensor [B].
    """

    time: object
    alpha: object
    sigma: object

    @property
    def ratio(self):
        """σ/α, the noise in units of the data: 0 for clean data, infinite where only noise is left.
        Of two levels of a schedule, the later has the larger ratio, whatever the schedule."""
        with np.errstate(divide="ignore"):
            return np.divide(self.sigma, self.alpha)


CLEAN = Level(0.0, 1.0, 0.0)


class Schedule:
    """What all schedules offer.

    least, greatest   the times at which a network is trained, and so may be asked
    steps             how many times a table has; None where time is continuous
    clean             the level of the data themselves
    """

    least, greatest, steps, clean = 0.0, 1.0, None, CLEAN

    def at(self, t):
        """The Level of time t, a number or an array of numbers; raises ConfigError outside the
        schedule."""
        raise NotImplementedError(f"{type(self).__name__} does not say its levels")

    def time_of(self, ratio):
        """The time at which σ/α is `ratio`: the inverse of `at`."""
        raise NotImplementedError(f"{type(self).__name__} does not say when a ratio is reached")

    def scales(self, ratio):
        """(α, σ) where σ/α is `ratio`, from 0 to infinity; here, where variance is preserved."""
        with np.errstate(divide="ignore"):
            return 1 / np.hypot(1, ratio), 1 / np.hypot(1, np.divide(1, ratio))

    def at_ratio(self, ratio):
        """The Level at which σ/α is `ratio`."""
        return Level(self.time_of(ratio), *self.scales(ratio))


def inside(schedule, t, first, last):
    """t as float64; raises ConfigError for a time before `first` or after `last`."""
    t = np.asarray(t, np.float64)[()]
    if not np.all((first <= t) & (t <= last)):
        raise ConfigError(f"time: {type(schedule).__name__} goes from {first} to {last}, got {t}")
    return t


# -- tables ----------------------------------------------------------------------------------------


class Table(Schedule):
    """T steps of noising: at time t = 0 … T - 1, α² = ᾱ_t, the product of 1 - β_0 … 1 - β_t
    (Ho et al. 2020). Time -1 is that of clean data. Between two times log(σ/α) is a line.

    alpha_bar [T] strictly decreasing in (0, 1); the last may be 0, where no signal is left.
    """

    least, clean = 0, Level(-1, 1.0, 0.0)

    def __init__(self, alpha_bar):
        alpha_bar = np.asarray(alpha_bar, np.float64)
        if alpha_bar.ndim != 1 or len(alpha_bar) < 2:
            raise ConfigError("a table of noise levels has at least two, in one dimension; got "
                              f"shape {alpha_bar.shape}")
        if not (1 > alpha_bar[0] and np.all(np.diff(alpha_bar) < 0) and alpha_bar[-1] >= 0):
            raise ConfigError("a table of noise levels falls strictly from below 1, to 0 at the "
                              "least; this one does not")
        self.alpha_bar, self.steps = alpha_bar, len(alpha_bar)
        self.greatest = self.steps - 1
        with np.errstate(divide="ignore"):      # ᾱ = 0 has an infinite ratio
            self.ratios = np.sqrt((1 - alpha_bar) / alpha_bar)

    @property
    def betas(self):
        """β_t [T], the variance that step t adds: 1 - ᾱ_t / ᾱ_{t-1}."""
        return 1 - self.alpha_bar / np.concatenate([[1.0], self.alpha_bar[:-1]])

    def at(self, t):
        t = inside(self, t, -1, self.greatest)
        whole = np.floor(t).astype(int)
        padded = np.append(self.alpha_bar, 1.0)             # place -1, the last, is clean data
        alpha_bar = padded[whole]
        level = Level(t, np.sqrt(alpha_bar), np.sqrt(1 - alpha_bar))
        if np.all(whole == t):                              # the table itself, to the bit
            return level
        between = Level(t, *self.scales(self._ratio_between(t)))
        return Level(t, *(np.where(whole == t, *pair) for pair in zip(level[1:], between[1:])))

    def _ratio_between(self, t):
        if np.any((t < 0) & (t != -1)):
            raise ConfigError(f"time: between -1 and 0 a table has no levels, got {t}")
        low = np.clip(np.floor(t).astype(int), 0, self.steps - 2)
        logs = np.log(self.ratios)
        with np.errstate(invalid="ignore"):                 # 0 · ∞ at whole times, not used
            return np.exp(logs[low] + (t - low) * (logs[low + 1] - logs[low]))

    def time_of(self, ratio):
        """Ratios beyond the table's ends have the times of its ends."""
        with np.errstate(divide="ignore"):
            wanted, logs = np.log(ratio), np.log(self.ratios)
        low = np.clip(np.searchsorted(logs, wanted, side="right") - 1, 0, self.steps - 2)
        with np.errstate(invalid="ignore"):                 # ∞/∞: only the last level is infinite
            part = (wanted - logs[low]) / (logs[low + 1] - logs[low])
        part = np.where(np.isposinf(wanted), 1.0, part)
        return (low + np.clip(part, 0, 1))[()]


def from_betas(betas):
    """The Table of variances β_t [T] that the steps add."""
    return Table(np.cumprod(1 - np.asarray(betas, np.float64)))


def linear(steps=1000, start=1e-4, end=0.02):
    """β in a line from `start` to `end` (Ho et al. 2020)."""
    return from_betas(np.linspace(start, end, steps))


def scaled_linear(steps=1000, start=0.00085, end=0.012):
    """√β in a line: what latent diffusion is trained with (Rombach et al. 2022)."""
    return from_betas(np.linspace(start**0.5, end**0.5, steps) ** 2)


def sigmoid_betas(steps=1000, start=1e-4, end=0.02):
    """β along a logistic curve, -6 … 6, between `start` and `end` (Xu et al. 2022, GeoDiff)."""
    return from_betas(start + (end - start) / (1 + np.exp(-np.linspace(-6, 6, steps))))


def tabulated(schedule, steps=1000, largest_beta=0.999):
    """The Table of a continuous schedule that preserves variance, at t = 1/T … 1.

    No step adds a variance of more than `largest_beta`: cosine's last ones would leave no signal
    (Nichol & Dhariwal 2021, below equation 17).
    """
    alpha = schedule.at(np.linspace(0, 1, steps + 1)).alpha
    return from_betas(np.minimum(1 - (alpha[1:] / alpha[:-1]) ** 2, largest_beta))


def zero_terminal(table):
    """The table with √ᾱ moved and stretched so that the last level is noise alone and the first is
    what it was (Lin et al. 2023, algorithm 1). A network of it is trained on v, since ε says
    nothing where no signal is left."""
    root = np.sqrt(table.alpha_bar)
    return Table(((root - root[-1]) * (root[0] / (root[0] - root[-1]))) ** 2)


# -- continuous, the variance preserved ------------------------------------------------------------


class VariancePreserving(Schedule):
    """α² = ᾱ(t) and σ² = 1 - ᾱ(t) for t in 0 … 1; a kind of it says ᾱ and its inverse.

    Where ᾱ(1) is 0, or ᾱ(0) is 1, the network is not asked for the ends themselves: `least` and
    `greatest` keep a thousandth away, as is usual (Song et al. 2021, appendix C).
    """

    least = 1e-3

    def at(self, t):
        alpha_bar = self.alpha_bar(inside(self, t, 0.0, 1.0))
        return Level(t, np.sqrt(alpha_bar), np.sqrt(1 - alpha_bar))

    def time_of(self, ratio):
        return self.time_of_alpha_bar(np.square(self.scales(ratio)[0]))


@dataclass(frozen=True)
class LinearBeta(VariancePreserving):
    """β(t) in a line from `start` to `end`, ᾱ = exp(-∫β): the limit of `linear` for many steps,
    whose β are a T-th of these (Song et al. 2021, equation 33)."""

    start: float = setting(0.1, "β at time 0", above=0)
    end: float = setting(20.0, "β at time 1", above=0)

    def __post_init__(self):
        check(self)
        if self.end <= self.start:
            raise ConfigError(f"end: expected more than start, {self.start}, got {self.end}")

    def alpha_bar(self, t):
        return np.exp(-t * (self.start + 0.5 * t * (self.end - self.start)))

    def time_of_alpha_bar(self, alpha_bar):
        # The positive root of ½ (end - start) t² + start t + log ᾱ, without cancellation.
        with np.errstate(divide="ignore"):
            total = -np.log(alpha_bar)
        discriminant = self.start**2 + 2 * (self.end - self.start) * total
        return 2 * total / (self.start + np.sqrt(discriminant))


@dataclass(frozen=True)
class Cosine(VariancePreserving):
    """√ᾱ = cos(½π (t + s)/(1 + s)) over its value at 0 (Nichol & Dhariwal 2021, equation 17)."""

    offset: float = setting(0.008, "s, which keeps the first steps from being too small", least=0)
    greatest = 0.999            # at 1 only rounding would be left of the signal

    __post_init__ = check

    def alpha_bar(self, t):
        return (self._cosine(t) / self._cosine(0)) ** 2

    def time_of_alpha_bar(self, alpha_bar):
        angle = np.arccos(np.clip(np.sqrt(alpha_bar) * self._cosine(0), 0, 1))
        return np.maximum(angle / (0.5 * np.pi) * (1 + self.offset) - self.offset, 0)

    def _cosine(self, t):
        return np.cos(0.5 * np.pi * (t + self.offset) / (1 + self.offset))


@dataclass(frozen=True)
class Sigmoid(VariancePreserving):
    """ᾱ along a logistic curve from 1 to 0 (Jabri et al. 2022, algorithm 1, not clipped)."""

    start: float = setting(-3.0, "where on the curve time 0 is")
    end: float = setting(3.0, "where on the curve time 1 is")
    temperature: float = setting(1.0, "how wide the curve is", above=0)
    greatest = 0.999            # at 1 no signal is left

    def __post_init__(self):
        check(self)
        if self.end <= self.start:
            raise ConfigError(f"end: expected more than start, {self.start}, got {self.end}")

    def alpha_bar(self, t):
        first, last = self._ends()
        x = (self.start + t * (self.end - self.start)) / self.temperature
        return np.clip((last - 1 / (1 + np.exp(-x))) / (last - first), 0, 1)

    def time_of_alpha_bar(self, alpha_bar):
        first, last = self._ends()
        y = last - np.asarray(alpha_bar) * (last - first)
        x = np.log(y / (1 - y)) * self.temperature
        return np.clip((x - self.start) / (self.end - self.start), 0, 1)

    def _ends(self):
        return (1 / (1 + math.exp(-x / self.temperature)) for x in (self.start, self.end))


# -- continuous, others ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Karras(Schedule):
    """α = 1 and σ = t: the time is the noise (Karras et al. 2022, "EDM"; the variance explodes).

    Its times are usually spaced by "karras" (levels.py).
    """

    least: float = setting(0.002, "the smallest σ that the network is asked for", above=0)
    greatest: float = setting(80.0, "the largest", above=0)

    def __post_init__(self):
        check(self)
        if self.greatest <= self.least:
            raise ConfigError(f"greatest: expected more than least, {self.least}, got "
                              f"{self.greatest}")

    def at(self, t):
        t = inside(self, t, 0.0, math.inf)
        return Level(t, np.ones_like(t)[()], t)

    def time_of(self, ratio):
        return ratio

    def scales(self, ratio):
        return np.ones_like(ratio, np.float64)[()], ratio


@dataclass(frozen=True)
class Flow(Schedule):
    """α = 1 - t and σ = t: the straight line of rectified flow and flow matching (Liu et al. 2022,
    Lipman et al. 2022). `scale` is the number by which the network is told that t is 1."""

    scale: float = setting(1.0, "what the network is told for t = 1", above=0)

    __post_init__ = check

    @property
    def greatest(self):
        return self.scale

    def at(self, t):
        t = inside(self, t, 0.0, self.scale)
        return Level(t, 1 - t / self.scale, t / self.scale)

    def time_of(self, ratio):
        return self.scale * self.scales(ratio)[1]

    def scales(self, ratio):
        with np.errstate(divide="ignore"):
            return 1 / (1 + np.asarray(ratio))[()], 1 / (1 + np.divide(1, ratio))


def shifted(sigma, shift):
    """The σ of Flow, moved towards noise: shift · σ / (1 + (shift - 1) σ), which multiplies σ/α by
    `shift`. A larger image averages noise away, and so needs more of it for as much to be hidden
    (Esser et al. 2024, equation 23)."""
    return shift * sigma / (1 + (shift - 1) * sigma)
