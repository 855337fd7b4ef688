"""Randomness as a value: an `Rng` is a key, and a key names an endless stream of numbers.

The same key draws the same numbers every time, on every backend, in any order; nothing advances
and so nothing needs saving. To draw something else, derive another key:

    rng = Rng(seed)
    step = rng.child("step", 17)            # the stream of training step 17
    mask_key = step.child("dropout", 3)     # of layer 3 within it

The bits are Philox4x64-10 by (key, counter); see backends/reference/noise.py.
"""

import hashlib
import math
from dataclasses import dataclass

import numpy as np

from minifm import backends
from minifm.errors import ConfigError

_MASK = 2**64 - 1


@dataclass(frozen=True, slots=True)
class Rng:
    """A stream of noise, named by `seed` and the path of names that led here.

    Equal paths are equal streams; streams of different paths are independent, because their keys
    are digests (BLAKE2b) of the path.
    """

    seed: int
    path: tuple = ()

    def __post_init__(self):
        if not isinstance(self.seed, (int, np.integer)):
            raise ConfigError(f"seed: expected an integer, got {self.seed!r}")
        object.__setattr__(self, "seed", int(self.seed))
        object.__setattr__(self, "path", tuple(map(_plain, self.path)))

    def child(self, *names):
        """The stream called `names` (strings and integers) beneath this one."""
        return Rng(self.seed, self.path + names)

    @property
    def key(self):
        """Two 64-bit integers: the Philox key."""
        if not self.path:
            return self.seed & _MASK, (self.seed >> 64) & _MASK
        text = repr((self.seed, self.path)).encode()
        digest = hashlib.blake2b(text, digest_size=16).digest()
        return int.from_bytes(digest[:8], "little"), int.from_bytes(digest[8:], "little")

    # -- arrays of the active backend ----------------------------------------------------------

    def uniform(self, shape, dtype=np.float32):
        """[0, 1), bitwise the same on every backend."""
        return backends.active().uniform(self.key, shape, dtype)

    def normal(self, shape, dtype=np.float32):
        """N(0, 1), within 4 units in the last place on every backend."""
        return backends.active().normal(self.key, shape, dtype)

    # -- choices made on the host: NumPy arrays --------------------------------------------------

    def integers(self, low, high, shape=()):
        """int64 in low … high - 1, by multiply-and-shift of 32 random bits, the upper half
        of a word: no number is likelier than another by more than 2^-32."""
        if not 0 < high - low < 2**32:
            raise ConfigError(f"integers: the range {low} … {high - 1} is empty or 2^32 or more")
        bits = self._host_bits(math.prod(shape)) >> np.uint64(32)
        drawn = (bits * np.uint64(high - low)) >> np.uint64(32)
        return (drawn.astype(np.int64) + low).reshape(shape)

    def host_normal(self, shape, dtype=np.float32):
        """N(0, 1), bitwise the same whatever backend is active."""
        return backends.get("numpy").normal(self.key, shape, dtype)

    def host_uniform(self, shape, dtype=np.float64):
        """[0, 1), bitwise the same whatever backend is active."""
        return backends.get("numpy").uniform(self.key, shape, dtype)

    def uniform_number(self):
        """One float in [0, 1): the number that decides a random choice."""
        return int(self._host_bits(1)[0] >> np.uint64(11)) * 2.0**-53

    def permutation(self, n):
        """0 … n - 1 in random order: the order that sorts n random words."""
        return np.argsort(self._host_bits(n), kind="stable")

    def _host_bits(self, n):
        return np.random.Philox(key=np.array(self.key, np.uint64), counter=0).random_raw(n)


def _plain(name):
    """A name of a stream as a plain str or int, so that equal names are equal streams."""
    if isinstance(name, str):
        return str(name)
    if isinstance(name, (int, np.integer)):
        return int(name)
    raise ConfigError(f"a stream's name is a string or an integer, got {name!r}")
