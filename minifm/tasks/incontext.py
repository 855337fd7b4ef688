"""Episodes whose rule is told by examples alone: what a model needs to learn in context.

A row of tokens is one episode: a start mark, then x → y x → y … by one rule that is hidden and
fresh for the row. Only the examples before it say how an x is to be answered (Brown et al. 2020;
Garg et al. 2022; Chan et al. 2022). Some rules are held out: a hash of the rule decides, so that
no rule a model is tested on was ever trained on.

    mapping   one symbol to another, by a bijection of 8 symbols
    string    four symbols to four of them, by places: reversed, rotated, repeated, …
    affine    a x + b modulo 23
    classify  five signs to one of two classes, by the sign of a sum over some, negated or not

Questions of an affine or a classify episode never come twice, so that no answer can be looked up;
those of a mapping must, there is no other way to know it.
"""

import hashlib
import math
from itertools import product

import numpy as np

from minifm.ops.loss import IGNORE
from minifm.rng import Rng

MODULUS = 23
ARROW, START, VOCABULARY = MODULUS, MODULUS + 1, MODULUS + 2     # below: symbols 0 … 22
LENGTH = 160            # tokens of a row: 17 examples of the longest family fit
SHOTS = 16              # the most examples before the question that accuracy is measured at
HELD_OUT = 0.25         # of the rules of each family, about


def is_held_out(family, rule):
    """Whether a rule, a tuple of integers, is one to test on; a hash of it decides."""
    digest = hashlib.blake2b(repr((family, tuple(map(int, rule)))).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64 < HELD_OUT


class Family:
    """One kind of rule: `inputs` tokens are answered by `outputs` tokens.

    A family knows its rules, and what can be had without finding the rule out: what is above that
    is learnt from the examples.
    """

    name = ""
    inputs = outputs = 1

    def rule(self, rng):
        """A rule, a tuple of integers, all being equally likely."""
        raise NotImplementedError

    def questions(self, count, rng):
        """int64 [count, inputs]."""
        raise NotImplementedError

    def answers(self, rule, x):
        """x int64 [N, inputs] -> int64 [N, outputs]."""
        raise NotImplementedError

    def chance(self, shots):
        """The best accuracy without a look at how y follows from x: by the symbols of x alone,
        or by which answers have been given after so many examples."""
        raise NotImplementedError

    @property
    def size(self):
        """Tokens of one example: the question, the arrow, the answer."""
        return self.inputs + 1 + self.outputs

    def draw(self, rng, held_out):
        """A rule of that side of the split: the first that falls there."""
        attempt = 0
        while is_held_out(self.name, rule := self.rule(rng.child(attempt))) != held_out:
            attempt += 1
        return rule


class Mapping(Family):
    """A bijection of 8 symbols; the rule is the list of answers."""

    name, symbols = "mapping", 8

    def rule(self, rng):
        return tuple(rng.permutation(self.symbols).tolist())

    def questions(self, count, rng):
        return rng.integers(0, self.symbols, (count, 1))

    def answers(self, rule, x):
        return np.array(rule)[x]

    def chance(self, shots):
        return 1 / self.symbols


class String(Family):
    """Four of 8 symbols; the rule says from which place of x each symbol of y comes."""

    name, symbols = "string", 8
    inputs = outputs = 4

    def rule(self, rng):
        return tuple(rng.integers(0, 4, (4,)).tolist())

    def questions(self, count, rng):
        return rng.integers(0, self.symbols, (count, 4))

    def answers(self, rule, x):
        return x[:, list(rule)]

    def chance(self, shots):
        """Four times the symbol that x has most often: with n of it, (n / 4)^4 of all rules."""
        most = [max(map(x.count, x)) for x in product(range(self.symbols), repeat=4)]
        return sum((n / 4) ** 4 for n in most) / len(most)


class Affine(Family):
    """a x + b modulo 23; the rule is (a, b), a not 0."""

    name = "affine"

    def rule(self, rng):
        a, b = rng.integers(1, MODULUS, (1,)), rng.child("b").integers(0, MODULUS, (1,))
        return int(a[0]), int(b[0])

    def questions(self, count, rng):
        return rng.permutation(MODULUS)[:count, None]

    def answers(self, rule, x):
        return (rule[0] * x + rule[1]) % MODULUS

    def chance(self, shots):
        """No answer comes twice: one of those that are left."""
        return 1 / (MODULUS - shots)


class Classify(Family):
    """Five features, each 0 or 1, to class 0 or 1: a vote of an odd number of them, some of which
    are negated. The rule is the weight of each, -1, 0 or 1; half of all x are of each class."""

    name, inputs = "classify", 5
    rules = tuple(w for w in product((-1, 0, 1), repeat=5) if np.count_nonzero(w) % 2)

    def rule(self, rng):
        return self.rules[int(rng.integers(0, len(self.rules), (1,))[0])]

    def questions(self, count, rng):
        return rng.permutation(32)[:count, None] >> np.arange(5) & 1

    def answers(self, rule, x):
        return ((2 * x - 1) @ np.array(rule) > 0).astype(np.int64)[:, None]

    def chance(self, shots):
        """The class that has come less often: 16 of the 32 x are of each."""
        left = 32 - shots
        return sum(math.comb(16, n) * math.comb(16, shots - n) / math.comb(32, shots)
                   * (16 - min(n, shots - n)) / left for n in range(shots + 1))


FAMILIES = (Mapping(), String(), Affine(), Classify())


def episode(family, rule, rng):
    """(ids, targets), int64 [LENGTH]: as many examples as fit and as there are questions; targets
    are -100 but where the next token is an answer's."""
    x = family.questions((LENGTH - 1) // family.size, rng)
    y = family.answers(rule, x)
    examples = np.concatenate([x, np.full((len(x), 1), ARROW), y], 1)           # [N, size]
    asked = np.concatenate([np.full((len(x), family.inputs + 1), IGNORE), y], 1)
    row = np.full(LENGTH + 1, START, np.int64)
    guessed = np.full(LENGTH + 1, IGNORE, np.int64)
    row[1 : 1 + examples.size] = examples.ravel()
    guessed[1 : 1 + asked.size] = asked.ravel()
    return row[:-1], guessed[1:]


class Episodes:
    """`batch(i)` is (ids [B, T], targets [B, T]), int64, a function of the seed and i alone; the
    rows take turns among `families`.

    Only the answers are to be guessed: the questions are noise, and their loss would be, too.
    `count` is how many batches a held-out evaluation has; training goes on without an end.
    """

    def __init__(self, *, batch, seed, held_out=False, families=FAMILIES, count=8):
        self.rows, self.held_out, self.families, self.count = batch, held_out, families, count
        self.rng = Rng(seed).child("in context", "held out" if held_out else "training")
        self.description = {"families": [family.name for family in families], "batch": batch,
                            "length": LENGTH, "seed": seed, "held_out": held_out}

    def batch(self, step):
        """The batch of step 0, 1, …"""
        made = []
        for row in range(self.rows):
            rng = self.rng.child(step, row)
            family = self.families[row % len(self.families)]
            rule = family.draw(rng.child("rule"), self.held_out)
            made.append(episode(family, rule, rng.child("questions")))
        ids, targets = zip(*made)
        return np.stack(ids), np.stack(targets)
