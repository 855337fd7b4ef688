"""Which examples a step learns from: a function of the step's number, so that a resumed run goes on
where it was."""

import numpy as np


class Rounds:
    """Rounds through all of `places`, int64 [N], without end, each in another order, which `rng`
    decides; a step takes the next `rows` of them."""

    def __init__(self, places, rows, rng):
        self.places, self.rows, self.rng = places, rows, rng
        self._round = None, None                        # its number, its places in order

    def at(self, step):
        """int64 [rows]: the places of a step, which may come in any order."""
        first, N = step * self.rows, len(self.places)
        return np.array([self._order(n // N)[n % N] for n in range(first, first + self.rows)])

    def _order(self, number):
        if self._round[0] != number:
            order = self.rng.child("round", number).permutation(len(self.places))
            self._round = number, self.places[order]
        return self._round[1]
