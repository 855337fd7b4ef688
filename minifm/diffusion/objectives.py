"""What the network predicts, and the loss by which it learns to.

At a level x = α x₀ + σ ε, all that networks are asked for are second mixtures of the same two
unknowns, p = a x₀ + b ε:

              a     b
    epsilon   0     1      the noise                                 Ho et al. 2020
    x0        1     0      the data
    v        -σ     α      the velocity on the circle α² + σ² = 1    Salimans & Ho 2022
    flow     -1     1      the velocity on the straight line         Liu et al. 2022

Two equations in two unknowns: each prediction gives x₀ and ε, and so converts into each other,
wherever the determinant α b - σ a is not 0. The same determinant converts the weight of a loss.

`loss` trains a network (model, x0, schedule, objective, times); `Denoiser` is what samplers take.
"""

import math
from typing import NamedTuple

import numpy as np

from minifm import ops
from minifm.diffusion.process import for_each, noised, weighted
from minifm.errors import ConfigError
from minifm.tensor import Tensor, no_grad

MIXTURES = {
    "epsilon": lambda alpha, sigma: (0, 1),
    "x0": lambda alpha, sigma: (1, 0),
    "v": lambda alpha, sigma: (-sigma, alpha),
    "flow": lambda alpha, sigma: (-1, 1),
}
OBJECTIVES = tuple(MIXTURES)


class Estimate(NamedTuple):
    """What a prediction says of the data and of the noise: x = α · x0 + σ · noise."""

    x0: object
    noise: object


def mixture(objective, level):
    """(a, b) of an objective at a level; raises ConfigError for one that is unknown."""
    if objective not in MIXTURES:
        raise ConfigError(f"objective: expected one of {', '.join(OBJECTIVES)}, got {objective!r}")
    return MIXTURES[objective](level.alpha, level.sigma)


def determinant(objective, level):
    """α b - σ a: how much the prediction says beyond what x says; 0 where it says nothing."""
    a, b = mixture(objective, level)
    return level.alpha * b - level.sigma * a


def target(objective, x0, noise, level):
    """What a network of this objective is to predict, a x₀ + b ε, for x0 and noise [B, ...]."""
    a, b = mixture(objective, level)
    return weighted((a, x0), (b, noise))


def estimate(objective, prediction, x, level):
    """The Estimate of x₀ and ε [B, ...] that a prediction makes, at x [B, ...].

    Raises ConfigError where the objective does not determine them: epsilon where no signal is left
    (zero terminal SNR), x0 at clean data.
    """
    a, b = mixture(objective, level)
    d = determinant(objective, level)
    if not isinstance(d, Tensor) and np.any(d == 0):
        raise ConfigError(f"objective: {objective!r} does not say what data and noise are at "
                          f"α = {level.alpha}, σ = {level.sigma}; v and flow do at every level")
    return Estimate(weighted((b / d, x), (-level.sigma / d, prediction)),
                    weighted((-a / d, x), (level.alpha / d, prediction)))


def convert(prediction, x, level, given, wanted):
    """A prediction of the objective `given` as one of `wanted`, at x [B, ...]."""
    if given == wanted:
        return prediction
    return target(wanted, *estimate(given, prediction, x, level), level)


# -- a network as samplers see it ----------------------------------------------------------------


class Denoiser:
    """A plain function (x, t) -> prediction with its objective: called with (x, level) it gives an
    Estimate. Samplers take this, or anything that is called alike (guidance.py).

    correct      None, or a function of x0 [B, ...] that mends the estimate of the data: `clipped`,
                 `thresholded`. The noise then follows from it, so that α x0 + σ ε is still x;
    keep_noise   or, as some libraries have it in DDIM, the noise stays what was predicted
    """

    def __init__(self, model, objective, *, correct=None, keep_noise=False):
        if objective not in MIXTURES:
            raise ConfigError(f"objective: expected one of {', '.join(OBJECTIVES)}, got "
                              f"{objective!r}")
        self.model, self.objective = model, objective
        self.correct, self.keep_noise = correct, keep_noise

    def __call__(self, x, level):
        with no_grad():
            found = estimate(self.objective, self.model(x, level.time), x, level)
            if self.correct is None:
                return found
            x0 = self.correct(found.x0)
            noise = found.noise if self.keep_noise else estimate("x0", x0, x, level).noise
        return Estimate(x0, noise)


def clipped(limit=1.0):
    """A correction: no value of the data is beyond ± limit."""
    return lambda x0: ops.minimum(ops.maximum(x0, -limit), limit)


def thresholded(quantile=0.995, limit=1.0):
    """A correction, "dynamic thresholding" (Saharia et al. 2022, Imagen): of each example, values
    beyond ± s are clipped and the whole is divided by s: the `quantile` of |x0|, in 1 … limit."""
    def correct(x0):
        magnitude = np.abs(x0.numpy()).reshape(x0.shape[0], -1)
        s = np.clip(np.quantile(magnitude, quantile, axis=1), 1, max(1, limit))
        s = Tensor(for_each(s, x0))
        return ops.minimum(ops.maximum(x0, -s), s) / s
    return correct


class Preconditioned:
    """A network F in EDM's clothes: D(x; σ) = c_skip x + c_out F(c_in x, c_noise), a plain function
    of the objective "x0" for the schedule Karras (Karras et al. 2022, table 1, last column).

    The c keep what F reads and what it is to give at variance 1 whatever σ is, where the data have
    the deviation `data`; the weighting "edm" then weighs the errors of F alike.
    """

    def __init__(self, network, data=0.5):
        self.network, self.data = network, data

    def __call__(self, x, sigma, **condition):
        """x [B, ...] at noise σ, a number or [B] -> the estimate of x₀ [B, ...]."""
        skip, out, enter, told = self.coefficients(sigma)
        x = x if isinstance(x, Tensor) else Tensor(x)
        inner = self.network(x * for_each(enter, x), told, **condition)
        return weighted((skip, x), (out, inner))

    def coefficients(self, sigma):
        """(c_skip, c_out, c_in, c_noise) at noise σ."""
        total = np.hypot(sigma, self.data)
        return (self.data / total) ** 2, sigma * self.data / total, 1 / total, np.log(sigma) / 4


# -- how much each level counts --------------------------------------------------------------------
#
# A weighting is a function of (level, determinant) that weighs squared errors of the *prediction*.
# One that is stated for errors of x₀ is converted: at a given x, Δp = -(determinant / σ) Δx₀.


LEAST_SIGMA = 1e-150        # stands for 0: its square, and one over that, are numbers still


def uniform(level, d):
    """Every level alike, as the prediction has it: L_simple (Ho et al. 2020, equation 14)."""
    return np.ones_like(level.sigma)


def of_data(weigh):
    """A weighting that weighs errors of x₀ by `weigh(SNR)`; without any noise, by its limit."""
    def weighting(level, d):
        sigma = np.maximum(level.sigma, LEAST_SIGMA)
        return weigh((level.alpha / sigma) ** 2) * (sigma / d) ** 2
    return weighting


def min_snr(gamma=5.0):
    """min(SNR, γ) on x₀: levels with little noise do not outweigh the rest (Hang et al. 2023)."""
    return of_data(lambda snr: np.minimum(snr, gamma))


def truncated_snr(level, d):
    """max(SNR, 1) on x₀ (Salimans & Ho 2022, section 4)."""
    return of_data(lambda snr: np.maximum(snr, 1.0))(level, d)


def edm(data=0.5):
    """SNR + 1/data² on x₀, which is (σ² + data²) / (σ data)² where α = 1 (Karras et al. 2022)."""
    return of_data(lambda snr: snr + 1 / data**2)


def sigmoid(bias=2.0):
    """sigmoid(bias - log SNR) on ε: high-frequency detail counts less (Kingma & Gao 2023)."""
    return of_data(lambda snr: snr / (1 + snr * math.exp(-bias)))


# -- learning --------------------------------------------------------------------------------------


def losses(model, x0, *, schedule, objective, times, noise, weighting=uniform, condition=None):
    """The weighted mean squared error of each example [B], at the times [B].

    model(x [B, ...], times [B], **condition) -> prediction [B, ...]; x0 and noise [B, ...],
    the latter N(0, 1): part of the batch, so that its pieces add up to it. Raises ConfigError where
    the objective says nothing at a level, or times are not one for each example.
    """
    x0 = x0 if isinstance(x0, Tensor) else Tensor(x0)
    if np.shape(times) != x0.shape[:1]:
        raise ConfigError(f"times: expected one for each of {x0.shape[0]} examples, got shape "
                          f"{np.shape(times)}")
    level = schedule.at(times)
    d = determinant(objective, level)
    if np.any(d == 0):
        raise ConfigError(f"objective: at the times drawn {objective!r} has nothing to learn; "
                          "where no signal is left, learn v or flow")
    x = noised(x0, noise, level)
    error = model(x, times, **(condition or {})) - target(objective, x0, noise, level)
    weight = weighting(level, d * np.ones_like(level.sigma))
    return ops.mean(error * error * for_each(weight, x0), tuple(range(1, x0.ndim)))


def loss(model, x0, **settings):
    """The mean of `losses`: a scalar to call `backward` on."""
    return ops.mean(losses(model, x0, **settings))


def uniform_times(schedule, n, rng):
    """Times [n] to learn at: whole ones of a table; else spread over the schedule's span, one in
    each of n equal parts, which makes the loss vary less (Kingma et al. 2021, appendix I.1)."""
    if schedule.steps is not None:
        return rng.integers(0, schedule.steps, (n,))
    return schedule.least + (schedule.greatest - schedule.least) * stratified(n, rng)


def stratified(n, rng):
    """n numbers in [0, 1), each uniform, and one in each of n equal parts."""
    u = (np.arange(n) + rng.uniform_number()) / n
    return u[rng.child("order").permutation(n)]     # which example has which part is chance, too


def lognormal_times(schedule, n, rng, mean=-1.2, deviation=1.2):
    """Times [n] at which log(σ/α) is normal. The defaults are EDM's (Karras et al. 2022, table 1);
    mean 0 and deviation 1 are the logit-normal times of Flow (Esser et al. 2024, equation 19)."""
    ratio = np.exp(mean + deviation * rng.host_normal((n,), np.float64))
    return schedule.time_of(ratio)
