"""Counter-based noise: number i of a stream is a function of (key, i), whatever came before.

Philox4x64-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", 2011), exactly as
`numpy.random.Philox(key=key, counter=0)` numbers its words. Any backend, drawing in any order,
makes the same bits.
"""

import math

import numpy as np

from minifm.backends.reference.fallback import composed


class Noise:
    def random_bits(self, key, n):
        """uint64 [n]: words 0 … n - 1 of the stream `key`, a pair of 64-bit integers."""
        return np.random.Philox(key=np.array(key, np.uint64), counter=0).random_raw(n)

    def uniform(self, key, shape, dtype):
        """[0, 1): the top 24 (float32) or 53 (float64) bits of each word, times 2^-24 (2^-53).
        Every value is exact, so it is bitwise the same on every backend."""
        bits = self.random_bits(key, math.prod(shape))
        if np.dtype(dtype) == np.float32:
            u = (bits >> np.uint64(40)).astype(np.float32) * np.float32(2.0**-24)
        else:
            u = (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53
        return u.astype(dtype, copy=False).reshape(shape)

    def normal(self, key, shape, dtype):
        """N(0, 1) by Box & Muller (1958): with u₁, u₂ from words 2i and 2i + 1 in float64,
        r = √(-2 log(1 - u₁)), and numbers 2i and 2i + 1 are r cos 2πu₂ and r sin 2πu₂."""
        n = math.prod(shape)
        bits = self.random_bits(key, n + n % 2).reshape(-1, 2)
        u = (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53
        radius = np.sqrt(-2 * np.log1p(-u[:, 0]))
        angle = 2 * np.pi * u[:, 1]
        pairs = np.stack([radius * np.cos(angle), radius * np.sin(angle)], -1)
        return pairs.reshape(-1)[:n].astype(dtype).reshape(shape)

    @composed
    def dropout(self, x, probability, key):
        """Zero each element with `probability`, scale the rest by 1 / (1 - probability).
        The mask is drawn again in the backward pass instead of being kept."""
        kept = self.greater_equal(self.uniform(key, x.shape, "float32"), probability)
        return self.where(kept, self.multiply(x, 1 / (1 - probability)), 0.0)
