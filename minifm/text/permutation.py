"""A random order of n things of which any part can be known without the rest.

To shuffle a billion windows by a table would take 8 GB; a Feistel network takes none. It splits a
number into two halves of equal bits and repeats (left, right) → (right, left ⊕ f(right)). Whatever
f is, each such round can be undone, so that the whole is a permutation (Luby and Rackoff 1988).
"""

import numpy as np

from minifm.rng import Rng

ROUNDS = 8


class Permutation:
    """0 … n - 1 in an order that `rng` names: `order(positions)` says what stands there.

    A Feistel network permutes 0 … 4^h - 1. A result that is not below n is put in again, until
    one is; since each number has one successor and one predecessor, what remains is a permutation
    too ("cycle walking", Black and Rogaway 2002).
    """

    def __init__(self, n, rng):
        self.n = n
        self._half = np.uint64(max(1, ((n - 1).bit_length() + 1) // 2))     # bits: 4^h <= 4n
        self._keys = [np.uint64(rng.child(i).key[0]) for i in range(ROUNDS)]

    def __call__(self, positions):
        """int64 [K] in 0 … n - 1 -> int64 [K], different for different positions."""
        found = self._network(np.asarray(positions, np.uint64))
        while (outside := found >= self.n).any():
            found[outside] = self._network(found[outside])
        return found.astype(np.int64)

    def _network(self, x):
        mask = (np.uint64(1) << self._half) - np.uint64(1)
        left, right = x >> self._half, x & mask
        for key in self._keys:
            left, right = right, left ^ (_mixed(right ^ key) & mask)
        return left << self._half | right


def turns_of(step, batch, count):
    """[(epoch, int64 [K] in 0 … count - 1)]: of which epochs, and which of its turns, batch `step`
    of `batch` things is made, where an epoch is `count` things, and another follows each."""
    turns = step * batch + np.arange(batch)
    epochs = turns // count
    return [(epoch, turns[epochs == epoch] % count) for epoch in np.unique(epochs).tolist()]


class HeldOutOrder:
    """Batches of at most `batch` of 0 … n - 1, each of which comes once: `count` of them, in an
    order that is random but always the same, so that the first few are a fair sample."""

    def __init__(self, n, batch, name):
        """`name` is the stream of the order."""
        self.n, self.batch, self.count = n, batch, -(-n // batch)
        self.order = Permutation(n, Rng(0).child(name))

    def __call__(self, i):
        """int64 [at most batch]: batch i. Raises IndexError beyond the last."""
        if not 0 <= i < self.count:
            raise IndexError(f"batch {i} of {self.count}")
        return self.order(np.arange(i * self.batch, min((i + 1) * self.batch, self.n)))


def _mixed(x):
    """64 bits, each of which depends on all of x: the last steps of SplitMix64 (Steele 2014)."""
    x = (x ^ x >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ x >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
    return x ^ x >> np.uint64(31)
