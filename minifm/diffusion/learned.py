"""A noise schedule that is learned with the network: variational diffusion (Kingma et al. 2021).

Here the schedule is a Module: γ(t) = log(σ²/α²) is a network that can only rise, and α and σ are
Tensors, through which gradients flow into it. Two things pull at it:

    the bound   Where γ begins and ends decides how likely the data are. In between, the bound does
                not depend on γ at all: ½ ∫ γ'(t) E‖ε - ε̂‖² dt = ½ ∫ E‖ε - ε̂‖² dγ
    its noise   but what lies between decides how much an estimate of that integral at random times
                varies: so that part is trained to make the *square* of the estimate small
"""

import math

import numpy as np

from minifm import ops
from minifm.diffusion.process import noised
from minifm.diffusion.schedule import Level, VariancePreserving, inside
from minifm.errors import ConfigError
from minifm.nn.module import Module, constant, normal
from minifm.tensor import Tensor, no_grad


class Learned(Module, VariancePreserving):
    """γ(t) for t in 0 … 1, from `first` to `last`, both learned, along a monotone network of one
    hidden layer with positive weights (appendix H): l₁(t) + l₃(sigmoid(l₂(l₁(t)))).

    It is a schedule like any other to samplers, which see its numbers, and not its graph.
    """

    def __init__(self, *, rng, first=-13.3, last=5.0, hidden=1024):
        if not first < last:
            raise ConfigError(f"last: expected more than first, {first}, got {last}")
        self.first, self.last = constant((1,), first), constant((1,), last)
        self.rate, self.offset = constant((1,), 0), constant((1,), 0)           # l₁; rates are logs
        self.steepness = normal((hidden,), 1.0, rng and rng.child("steepness"))         # l₂
        self.places = normal((hidden,), 1.0, rng and rng.child("places"))
        self.heights = normal((hidden,), 1.0, rng and rng.child("heights"))             # l₃

    # -- differentiable ----------------------------------------------------------------------------

    def gamma(self, t):
        """(γ, γ') at times t [B], Tensors [B]; γ' > 0 is the derivative by t."""
        t = np.asarray(t, self.first.dtype).reshape(-1)
        value, slope = self._curve(np.concatenate([t, np.array([0, 1], t.dtype)]))
        low, high = value[-2:-1], value[-1:]
        scale = (self.last - self.first) / (high - low)
        return self.first + (value[:-2] - low) * scale, slope[:-2] * scale

    def _curve(self, t):
        """The network at t [N] and its derivative, before its ends are put in place."""
        rate, steepness, heights = (ops.exp(x) for x in (self.rate, self.steepness, self.heights))
        u = rate * t + self.offset                                                      # [N]
        h = ops.sigmoid(ops.reshape(u, (-1, 1)) * steepness + self.places)              # [N, H]
        value = u + ops.mean(h * heights, 1)            # a mean: of one size with u, however wide
        slope = rate * (ops.mean(h * (1 - h) * heights * steepness, 1) + 1)
        return value, slope

    def level(self, t):
        """The Level of times t [B], of Tensors [B]: what process.noised learns through."""
        return level_of(self.gamma(t)[0], t)

    # -- as a schedule of numbers ------------------------------------------------------------------

    def at(self, t):
        t = inside(self, t, 0.0, 1.0)
        with no_grad():
            gamma = self.gamma(t)[0].numpy().astype(np.float64).reshape(np.shape(t))[()]
        return Level(t, *self.scales(np.exp(0.5 * gamma)))

    def time_of(self, ratio):
        """By bisection, to the last bit of float64 or of the network's own rounding."""
        ratio = np.asarray(ratio, np.float64)
        low, high = np.zeros_like(ratio), np.ones_like(ratio)
        for _ in range(53):
            middle = (low + high) / 2
            early = self.at(middle).ratio < ratio
            low, high = np.where(early, middle, low), np.where(early, high, middle)
        return high[()]


def level_of(gamma, t):
    """The Level where log(σ²/α²) is gamma, a Tensor [B]."""
    return Level(t, ops.sqrt(ops.sigmoid(-gamma)), ops.sqrt(ops.sigmoid(gamma)))


# -- the bound, in nats for each example -----------------------------------------------------------


def diffusion_losses(model, x0, schedule, times, noise, condition=None):
    """½ γ'(t) ‖ε - ε̂‖² at the times [B], whose mean over uniform times is the bound's share of all
    that lies between data and noise (equation 17): Tensor [B]. model(x, t) predicts ε."""
    x0 = x0 if isinstance(x0, Tensor) else Tensor(x0)
    gamma, slope = schedule.gamma(times)
    x = noised(x0, noise, level_of(gamma, times))
    error = model(x, times, **(condition or {})) - noise
    return ops.sum(error * error, tuple(range(1, x0.ndim))) * slope * 0.5


def end_losses(x0, schedule):
    """The bound's shares at both ends, Tensor [B]: what the last level still shows of the data, the
    divergence of q(x_1 | x_0) from N(0, 1); and what the first hides of them, -log p(x_0 | x at
    time 0), of real numbers under the normal distribution around x/α (equations 12 and 14)."""
    x0 = x0 if isinstance(x0, Tensor) else Tensor(x0)
    axes, size = tuple(range(1, x0.ndim)), math.prod(x0.shape[1:])
    last = level_of(schedule.last, 1.0)
    remains = ops.sum(x0 * x0, axes) * (last.alpha * last.alpha)
    variance = last.sigma * last.sigma
    prior = (remains + (variance - 1 - ops.log(variance)) * size) * 0.5
    hidden = (schedule.first + (math.log(2 * math.pi) + 1)) * (0.5 * size)
    return prior + hidden


def bound(model, x0, schedule, times, noise, condition=None):
    """An upper bound of -log p(x0) in nats, the mean over examples: a scalar to train the network
    by, and the schedule's ends."""
    between = diffusion_losses(model, x0, schedule, times, noise, condition)
    return ops.mean(between + end_losses(x0, schedule))


def variance(losses):
    """The mean square of `diffusion_losses`: a scalar to train what is between the schedule's ends
    by (section 5.2). Their mean does not depend on that; so this is their variance, and a
    constant."""
    return ops.mean(losses * losses)


def inner_parameters(schedule):
    """{name: Parameter} of what shapes the curve between its ends."""
    return {name: p for name, p in schedule.parameters().items() if name not in ("first", "last")}
