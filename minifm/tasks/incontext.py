"""Episodes whose rule is told by examples alone: what a model needs to learn in context.

A row of tokens is one episode: a start mark that says which family of rules it is of, then
x y x y … by one rule of it, that is hidden and fresh for the row. Only the examples before it say
how an x is to be answered (Brown et al. 2020; Garg et al. 2022; Chan et al. 2022). Some rules are
held out: a hash of the rule decides, so that no rule a model is tested on was ever trained on.

    mapping   one of 8 symbols to another, by a bijection
    copy      the word of three letters that belongs to a key
    add       to a number an offset, modulo 7; numbers of three colours have three offsets
    compare   a number to one of two classes: is it below a threshold?
    classify  a point of a plane to one of two classes: on which side of a line is it?

But for mapping and copying, where there is no other way to know the answer, no question of an
episode comes twice, so that no answer can be looked up.

What an episode looks like decides whether a small model learns from it within minutes. It takes an
induction head (Olsson et al. 2022): one head that tells an answer which token stood before it, and
a later one that finds the answers whose question is like the present one. So an answer follows its
question with nothing in between, and answers have tokens of their own; and mapping, for which
nothing else is needed, is trained on alone at first. To add takes more: a table of all sums, which
has to be learnt in training. Modulo 7 that is done within a thousand steps, modulo 10 it is half
done after six thousand, modulo 13 not begun after twenty-five thousand.
"""

import hashlib
import math

import numpy as np

from minifm.ops.loss import IGNORE
from minifm.rng import Rng

LENGTH = 36             # tokens that a model reads of a row: all but the last answer's last
HELD_OUT = 0.25         # of the rules of each family, about
ALONE = 1000            # steps in which the first family is trained on alone


def is_held_out(family, rule):
    """Whether a rule, a sequence of integers, is one to test on; a hash of it decides."""
    text = family.encode() + np.asarray(rule, "<i8").tobytes()
    digest = hashlib.blake2b(text, digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64 < HELD_OUT


def orders(count, things, rng):
    """int64 [count, things]: in each row 0 … things - 1, in random order: the order that sorts so
    many random words."""
    return np.argsort(rng.integers(0, 2**32 - 1, (count, things)), 1, kind="stable")


class Family:
    """One kind of rule: `inputs` symbols are answered by `outputs` symbols, each numbered from 0.

    A family knows its rules, and what can be had without finding the rule out: what is above that
    is learnt from the examples. Its tokens are `asked` for questions from `first` on and `answered`
    for answers, from where those end. B rules of R integers, a row each, are drawn and applied at
    once.
    """

    name = ""
    inputs = outputs = 1
    first = asked = answered = 0

    def rules(self, count, rng):
        """int64 [count, R]: rules, all being equally likely."""
        raise NotImplementedError

    def questions(self, rows, count, rng):
        """int64 [rows, count, inputs]."""
        raise NotImplementedError

    def answers(self, rules, x):
        """rules int64 [B, R], x int64 [B, N, inputs] -> int64 [B, N, outputs]."""
        raise NotImplementedError

    def chance(self, shots):
        """The best accuracy without a look at how y follows from x: by the symbols of x alone,
        or by which answers have been given after so many examples."""
        raise NotImplementedError

    @property
    def size(self):
        """Tokens of one example."""
        return self.inputs + self.outputs

    @property
    def shots(self):
        """The most examples before a question that a row has room for."""
        return LENGTH // self.size - 1

    @property
    def first_answer(self):
        """The token of answer 0."""
        return self.first + self.asked

    def draw(self, count, rng, held_out):
        """int64 [count, R]: the first so many rules, of all that are drawn, that fall on that side
        of the split."""
        found, attempt = [], 0
        while len(found) < count:
            drawn = self.rules(count, rng.child(attempt))
            found += [rule for rule in drawn if is_held_out(self.name, rule) == held_out]
            attempt += 1
        return np.stack(found[:count])


class Mapping(Family):
    """A bijection of 8 symbols; the rule is the list of answers."""

    name, first, asked, answered = "mapping", 0, 8, 8

    def rules(self, count, rng):
        return orders(count, self.asked, rng)

    def questions(self, rows, count, rng):
        return rng.integers(0, self.asked, (rows, count, 1))

    def answers(self, rules, x):
        return np.take_along_axis(rules, x[..., 0], 1)[..., None]

    def chance(self, shots):
        return 1 / self.answered


class Copy(Family):
    """One of 4 keys is answered by the word that belongs to it, three of 16 letters; the rule is
    the words, one after another. No letter comes twice, so that the one before tells how a word
    goes on."""

    name, first, asked, answered, outputs = "copy", 16, 4, 16, 3

    def rules(self, count, rng):
        return orders(count, self.answered, rng)[:, :self.asked * self.outputs]

    def questions(self, rows, count, rng):
        return rng.integers(0, self.asked, (rows, count, 1))

    def answers(self, rules, x):
        words = rules.reshape(-1, self.asked, self.outputs)
        return np.take_along_axis(words, x, 1)

    def chance(self, shots):
        """A word that has come before, whatever it belongs to; else three letters."""
        return 1 / self.asked if shots else 1 / math.perm(self.answered, self.outputs)


class Add(Family):
    """Numbers modulo 7 of three colours, that take turns; to those of each colour an offset is
    added. The rule is the offsets. Each is met in training, held out are triples of them.
    """

    name, first, answered, colours = "add", 36, 7, 3
    asked = answered * colours

    def rules(self, count, rng):
        return rng.integers(0, self.answered, (count, self.colours))

    def questions(self, rows, count, rng):
        """Those of the second colour are numbered from 7 on, those of the third from 14 on."""
        x = np.stack([orders(rows, self.answered, rng.child(colour)) + colour * self.answered
                      for colour in range(self.colours)], 2)                # [rows, 7, 3]
        return x.reshape(rows, -1)[:, :count, None]

    def answers(self, rules, x):
        offsets = np.take_along_axis(rules, x[..., 0] // self.answered, 1)      # [B, N]
        return (x + offsets[..., None]) % self.answered

    def chance(self, shots):
        """Of one colour no answer comes twice: one of those that are left."""
        return 1 / (self.answered - shots // self.colours)


class TwoClasses(Family):
    """Things to class 0 or 1. The rule is the class of each, one of the family's `ways`; what they
    have in common, the order of numbers or the places of points, has to be learnt in training."""

    answered = 2
    ways = np.zeros((1, 0), np.int64)       # [rules, things]

    def rules(self, count, rng):
        return self.ways[rng.integers(0, len(self.ways), (count,))]

    def questions(self, rows, count, rng):
        return orders(rows, self.asked, rng)[:, :count, None]

    def answers(self, rules, x):
        return np.take_along_axis(rules, x[..., 0], 1)[..., None]

    def chance(self, shots):
        """The class that is likelier after n of `shots` answers were 1, for each n: a rule with so
        many ones leaves so many, and lets n come as the hypergeometric distribution says."""
        total = 0.0
        for n in range(shots + 1):
            by_class = [0.0, 0.0]
            for ones in self.ways.sum(1).tolist():
                seen = math.comb(ones, n) * math.comb(self.asked - ones, shots - n)
                by_class[1] += seen * (ones - n)
                by_class[0] += seen * (self.asked - ones - (shots - n))
            total += max(by_class)
        return total / (len(self.ways) * math.comb(self.asked, shots) * (self.asked - shots))


class Compare(TwoClasses):
    """24 numbers; a threshold from 3 to 21, and which class is below it."""

    name, first, asked = "compare", 64, 24
    below = np.arange(24) < np.arange(3, 22)[:, None]                           # [19, 24]
    ways = np.concatenate([below, ~below]).astype(np.int64)


def sides_of_lines():
    """How the points of a 5 × 5 grid fall to the sides of a line, in all the ways that 32
    directions and 11 distances from the middle give: 0 or 1, int64 [ways, 25], each way once."""
    points = np.stack(np.meshgrid(range(5), range(5)), -1).reshape(-1, 2) - 2
    angles = (np.arange(32) + 0.5) * np.pi / 16
    distances = points @ np.stack([np.cos(angles), np.sin(angles)])             # [25, 32]
    beyond = distances.T[:, None] > np.arange(-5, 6)[:, None] / 4               # [32, 11, 25]
    return np.unique(beyond.reshape(-1, 25).astype(np.int64), axis=0)


class Classify(TwoClasses):
    """25 points of a plane, each a token; the rule is a line, with a class on either side."""

    name, first, asked = "classify", 90, 25
    ways = sides_of_lines()


FAMILIES = (Mapping(), Copy(), Add(), Compare(), Classify())
START = FAMILIES[-1].first_answer + 2           # of the first family; the others' follow
VOCABULARY = START + len(FAMILIES)


def episodes(family, rules, rng):
    """(ids, targets), int64 [B, LENGTH], one episode for each of `rules` [B, R]: as many examples
    as fit; targets are -100 but where the next token is an answer's."""
    B = len(rules)
    x = family.questions(B, family.shots + 1, rng)
    y = family.answers(rules, x) + family.first_answer
    examples = np.concatenate([x + family.first, y], 2)                         # [B, N, size]
    wanted = np.concatenate([np.full_like(x, IGNORE), y], 2)
    start = START + [f.name for f in FAMILIES].index(family.name)
    ids = np.concatenate([np.full((B, 1), start), examples.reshape(B, -1)[:, :-1]], 1)
    return ids, wanted.reshape(B, -1)


class Episodes:
    """`batch(i)` is (ids [B, T], targets [B, T]), int64, a function of the seed and i alone; as
    many rows of each of `families`, or one more of the first ones.

    Only the answers are to be guessed: the questions are noise, and their loss would be, too.
    The first family has all rows of the first `alone` batches. `count` is how many batches a
    held-out evaluation has; training goes on without an end.
    """

    def __init__(self, *, batch, seed, held_out=False, families=FAMILIES, alone=0, count=8):
        self.rows, self.held_out, self.families, self.count = batch, held_out, families, count
        self.alone = alone
        self.rng = Rng(seed).child("in context", "held out" if held_out else "training")
        self.description = {"families": [family.name for family in families], "batch": batch,
                            "length": LENGTH, "seed": seed, "held_out": held_out, "alone": alone}

    def batch(self, step):
        """The batch of step 0, 1, …"""
        families = self.families[:1] if step < self.alone else self.families
        made = []
        for i, family in enumerate(families):
            rng = self.rng.child(step, family.name)
            rows = len(range(i, self.rows, len(families)))
            rules = family.draw(rows, rng.child("rules"), self.held_out)
            made.append(episodes(family, rules, rng.child("questions")))
        ids, targets = zip(*made)
        return np.concatenate(ids), np.concatenate(targets)
