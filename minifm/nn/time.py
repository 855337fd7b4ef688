"""When: a number, such as the time of a diffusion process, as a vector that layers can read."""

import numpy as np

from minifm import ops
from minifm.errors import ShapeError
from minifm.nn.layers import Linear
from minifm.nn.module import Module
from minifm.tensor import Tensor

PERIOD = 10_000         # the slowest sine has 2π times as long a period


def sinusoids(t, width, *, cosine_first=True, shift=0):
    """Numbers t [*B] -> float64 [*B, width]: sines and cosines of t · PERIOD^(-i / (n - shift)) for
    i = 0 … n - 1, n = width / 2 (Vaswani et al. 2017; Ho et al. 2020 with a shift of 1). An odd
    width ends in a 0."""
    t, n = np.asarray(t, np.float64), width // 2
    angles = t[..., None] * PERIOD ** (-np.arange(n) / (n - shift))             # [*B, n]
    pair = np.sin(angles), np.cos(angles)
    found = np.concatenate(pair[::-1] if cosine_first else pair, axis=-1)
    return np.pad(found, [(0, 0)] * t.ndim + [(0, width % 2)])


class VectorEmbedding(Module):
    """Two layers with a SiLU between: what a vector adds to the time's."""

    def __init__(self, inputs, width, *, rng):
        self.expand = Linear(inputs, width, std=inputs**-0.5, rng=rng and rng.child("expand"))
        self.output = Linear(width, width, std=width**-0.5, rng=rng and rng.child("output"))

    def __call__(self, vector, *, rng=None):
        """vector [B, inputs] -> [B, E]; `rng` turns on the dropout in adapters."""
        hidden = self.expand(vector, ops.silu, rng=rng and rng.child("expand"))
        return self.output(hidden, rng=rng and rng.child("output"))


class TimeEmbedding(VectorEmbedding):
    """Sinusoids of a time, then two layers with a SiLU between."""

    def __init__(self, frequencies, width, *, cosine_first=True, shift=0, rng):
        self.frequencies, self.cosine_first, self.shift = frequencies, cosine_first, shift
        super().__init__(frequencies, width, rng=rng)

    def __call__(self, t, dtype, *, rng=None):
        """t [B] -> [B, E]; `rng` turns on the dropout in adapters."""
        waves = sinusoids(t, self.frequencies, cosine_first=self.cosine_first, shift=self.shift)
        return super().__call__(Tensor(waves.astype(dtype)), rng=rng)


def one_for_each(name, values, batch, kind):
    """One number for all of a batch, or one for each of it, as an array [B] of `kind`.

    Raises ShapeError, naming them, for another shape or numbers of another kind.
    """
    values = np.asarray(values)
    if values.shape not in ((), (batch,)) or not np.can_cast(values.dtype, kind, "same_kind"):
        raise ShapeError(f"{name}: expected a number, or one for each of {batch}, got "
                         f"{list(values.shape)} of {values.dtype}")
    return np.broadcast_to(values.astype(kind), (batch,))
