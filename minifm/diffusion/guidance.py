"""Sampling towards what one wants: a condition, a class, a known part, a picture to start from.

None of these is a sampler. Each changes what samplers are given: the model (classifier_free), the
denoiser (ClassifierGuided, KnownPart), or x and the list of levels (image_to_image, invert); so
each works with every sampler. Only repaint, which goes back and forth, is one itself.
"""

from itertools import pairwise

import numpy as np

from minifm import ops
from minifm.diffusion.levels import checked
from minifm.diffusion.objectives import Estimate, estimate
from minifm.diffusion.process import for_each, noised, noised_further, normal_like, weighted
from minifm.diffusion.samplers import ddpm, with_signal
from minifm.errors import ConfigError, ShapeError
from minifm.tensor import Tensor

# -- towards a condition ---------------------------------------------------------------------------


def classifier_free(model, scale, *, condition, without, rescale=0.0):
    """A function (x, t) -> prediction, of a model that knows a condition and its absence, that goes
    `scale` times as far towards the condition: p₀ + scale (p_c - p₀) (Ho & Salimans 2022; their w
    is scale - 1). 1 is the condition alone, 0 its absence; neither needs the other's call.

    condition, without   keyword arguments of the model, as {"labels": [3]} and {"labels": [10]}
    rescale              0 … 1: how far the deviation of the result, over each example, is brought
                         back to that of p_c; a large scale oversaturates (Lin et al. 2023,
                         section 3.4, there φ)
    """
    if not 0 <= rescale <= 1:
        raise ConfigError(f"rescale: expected at least 0 and at most 1, got {rescale}")

    def guided(x, t):
        if scale in (0, 1):
            return model(x, t, **(condition if scale == 1 else without))
        with_it, without_it = model(x, t, **condition), model(x, t, **without)
        found = without_it + (with_it - without_it) * scale
        if rescale == 0:
            return found
        back = _deviation(with_it) / _deviation(found)
        return found * (back * rescale + (1 - rescale))
    return guided


def _deviation(x):
    return ops.standard_deviation(x, tuple(range(1, x.ndim)), True)


class ClassifierGuided:
    """A denoiser whose noise is moved along the gradient of a classifier that reads noisy data:
    ε̂ - scale · σ_t ∇ log p(y | x_t) (Dhariwal & Nichol 2021, algorithm 2). The gradient is computed
    by this library's own backward pass.

    log_probability   (x [B, ...], t) -> the logarithm of what is wanted, [B] or in all. Freeze the
                      parameters that it uses (nn.freeze): else they collect gradients, too
    """

    def __init__(self, denoiser, log_probability, scale=1.0):
        self.denoiser, self.log_probability, self.scale = denoiser, log_probability, scale

    def __call__(self, x, level):
        found, slope = self.denoiser(x, level), self.gradient(x, level.time)
        noise = found.noise - slope * (self.scale * float(level.sigma))
        return Estimate(estimate("epsilon", noise, x, level).x0, noise)

    def gradient(self, x, t):
        """∇ log p(y | x_t), of the shape of x."""
        leaf = Tensor(x, requires_grad=True)
        ops.sum(self.log_probability(leaf, t)).backward()
        return Tensor(leaf.grad)


# -- around a known part ---------------------------------------------------------------------------


class KnownPart:
    """A denoiser that knows part of the data: there the estimate is the truth, so that every
    sampler that ends at clean data ends with it.

    known [B, ...], and mask, 1 where it holds and 0 where it is to be filled, of a shape that
    broadcasts to it
    """

    def __init__(self, denoiser, known, mask):
        self.denoiser, self.known, self.mask = denoiser, known, mask

    def __call__(self, x, level):
        x0 = mixed(self.mask, self.known, self.denoiser(x, level).x0)
        return Estimate(x0, estimate("x0", x0, x, level).noise)


def repaint(denoiser, x, levels, known, mask, *, rng, repeats=10):
    """Fill what is not known, by ddpm (Lugmayr et al. 2022, RePaint, algorithm 1): after each step
    the known part is noised data; and each step is made `repeats` times, with noise added again in
    between, so that the two parts come to fit."""
    if repeats < 1:
        raise ConfigError(f"repeats: expected at least 1, got {repeats}")
    x = Tensor(x)
    for i, (t, s) in enumerate(pairwise(checked(levels))):
        for repeat in range(repeats if s.sigma > 0 else 1):
            draw = rng.child("repaint", i, repeat)
            if repeat > 0:
                x = noised_further(x, normal_like(x, draw.child("again")), s, t)
            filled = ddpm(denoiser, x, [t, s], rng=draw.child("unknown"))
            there = noised(known, normal_like(x, draw.child("known")), s)
            x = mixed(mask, there, filled)
    return x


def mixed(mask, inside, outside):
    """`inside` where the mask is 1, `outside` where it is 0."""
    if np.any((mask != 0) & (mask != 1)):
        raise ConfigError("mask: expected 1 where data are known and 0 where they are not")
    return ops.where(np.broadcast_to(mask == 1, outside.shape), inside, outside)


# -- from a picture --------------------------------------------------------------------------------


def image_to_image(x0, levels, strength, rng):
    """(x, levels) to start from in order to keep something of x0 [B, ...]: the last `strength` of
    the steps, and x0 noised to where they begin (Meng et al. 2022, SDEdit). At strength 1 all steps
    are made, and what is kept is what the first level shows."""
    steps = len(checked(levels)) - 1
    if not 1 <= strength * steps <= steps:
        raise ConfigError(f"strength: expected a part of {steps} steps, at least one, up to 1; got "
                          f"{strength}")
    rest = levels[steps - int(strength * steps) :]
    x0 = Tensor(x0)
    return noised(x0, normal_like(x0, rng.child("start")), rest[0]), rest


def invert(denoiser, x0, levels, *, iterations=1):
    """The noise at levels[0] from which ddim makes x0 [B, ...] over these levels: ddim backwards.

    Each step solves ddim's for what it began with, by fixed-point iteration from where it ended.
    One iteration is DDIM inversion as the field knows it (Song et al. 2021, section 4.3), off by
    the change of ε̂ within a step; more come as near as one likes (Pan et al. 2023).
    """
    x = Tensor(x0)
    for s, t in pairwise(reversed(with_signal(levels))):
        begun = x
        for _ in range(iterations):
            noise = denoiser(begun, t).noise
            begun = weighted((t.alpha / s.alpha, x), (t.alpha * (t.ratio - s.ratio), noise))
        x = begun
    return x


def slerp(x, y, part):
    """Between two noises x and y [B, ...], along the great circle (Shoemake 1985): a straight line
    would leave the shell on which nearly all noise lies. part 0 is x, 1 is y."""
    if tuple(x.shape) != tuple(y.shape):
        raise ShapeError(f"slerp: shapes {tuple(x.shape)} and {tuple(y.shape)} differ")
    x, y = Tensor(x), Tensor(y)
    a, b = (z.numpy().reshape(len(z), -1).astype(np.float64) for z in (x, y))
    cosine = (a * b).sum(1) / np.sqrt((a * a).sum(1) * (b * b).sum(1))
    angle = np.arccos(np.clip(cosine, -1, 1))
    straight = np.sin(angle) < 1e-6         # nearly parallel: the limit, a line
    sine = np.where(straight, 1, np.sin(angle))
    weights = [np.where(straight, p, np.sin(p * angle) / sine) for p in (1 - part, part)]
    return x * for_each(weights[0], x) + y * for_each(weights[1], y)
