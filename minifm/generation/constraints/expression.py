"""What constraints are made of: regular expressions as objects, over characters.

A regular expression in text (regex.py) and a JSON schema (schema.py) both become these objects,
and these become one automaton over bytes. Each kind knows how it leads a nondeterministic
automaton from a state on (Thompson 1968): `build(nfa, start, spell)` adds what is needed and
returns the state in which it ends. `spell` says which bytes write a character: as UTF-8, or as
JSON does inside of a string.
"""

import json
from dataclasses import dataclass
from itertools import groupby

from minifm.generation.constraints import automaton

LAST = 0x10FFFF             # the last character of Unicode; the surrogates are none


@dataclass(frozen=True)
class Characters:
    """One character of some `ranges`, ((first, last), …) in order and apart from each other."""

    ranges: tuple

    def build(self, nfa, start, spell):
        end, known = nfa.state(), {}        # sequences that begin alike share their states
        for *beginning, (low, high) in spell(self.ranges):
            state = start
            for step in beginning:
                if (state, step) not in known:
                    known[state, step] = nfa.state()
                    nfa.move(state, *step, known[state, step])
                state = known[state, step]
            nfa.move(state, low, high, end)
        return end


@dataclass(frozen=True)
class Literal:
    """These very bytes, however characters are spelt."""

    data: bytes

    def build(self, nfa, start, spell):
        for byte in self.data:
            target = nfa.state()
            nfa.move(start, byte, byte, target)
            start = target
        return start


@dataclass(frozen=True)
class Sequence:
    """One part after the other; no part: the empty text."""

    parts: tuple

    def build(self, nfa, start, spell):
        for part in self.parts:
            start = part.build(nfa, start, spell)
        return start


@dataclass(frozen=True)
class Either:
    """One of the parts; no part: no text at all."""

    parts: tuple

    def build(self, nfa, start, spell):
        end = nfa.state()
        for part in self.parts:
            nfa.jump(part.build(nfa, start, spell), end)
        return end


@dataclass(frozen=True)
class Repeat:
    """`part`, from `least` to `most` times (None: without end)."""

    part: object
    least: int
    most: int | None

    def build(self, nfa, start, spell):
        for _ in range(self.least):
            start = self.part.build(nfa, start, spell)
        if self.most is None:
            again = nfa.state()             # of its own: nothing that came before may loop
            nfa.jump(start, again)
            nfa.jump(self.part.build(nfa, again, spell), again)
            return again
        end = nfa.state()
        nfa.jump(start, end)
        for _ in range(self.most - self.least):
            start = self.part.build(nfa, start, spell)
            nfa.jump(start, end)
        return end


@dataclass(frozen=True)
class Joined:
    """`parts` in order with `separator` between those that are there: part i must be where
    `required[i]`. A JSON object's members."""

    parts: tuple
    required: tuple
    separator: Literal

    def build(self, nfa, start, spell):
        first, later = start, None          # no part so far; some part
        for part, required in zip(self.parts, self.required):
            begin = nfa.state()
            if first is not None:
                nfa.jump(first, begin)
            if later is not None:
                nfa.jump(self.separator.build(nfa, later, spell), begin)
            end = part.build(nfa, begin, spell)
            if required:
                first = None
            elif later is not None:
                nfa.jump(later, end)
            later = end
        if first is not None and later is not None:
            nfa.jump(first, later)
        return start if later is None else later


@dataclass(frozen=True)
class Both:
    """What `one` and `other` both allow."""

    one: object
    other: object

    def build(self, nfa, start, spell):
        both = automaton.intersection(compiled(self.one, spell), compiled(self.other, spell))
        states = [nfa.state() for _ in both.table]
        end = nfa.state()
        nfa.jump(start, states[automaton.START])
        for state, row in zip(states, both.table.tolist()):
            for target, run in groupby(range(256), key=row.__getitem__):
                run = list(run)
                if target != automaton.DEAD:
                    nfa.move(state, run[0], run[-1], states[target])
        for state, accepting in zip(states, both.accepting):
            if accepting:
                nfa.jump(state, end)
        return end


def compiled(expression, spell):
    """The Automaton of an expression, which may accept nothing at all."""
    nfa = automaton.Nfa()
    start = nfa.state()
    return automaton.determinise(nfa, start, expression.build(nfa, start, spell))


EMPTY = Sequence(())
ANY = Characters(((0, LAST),))


# -- characters as bytes -------------------------------------------------------------------------


def utf8(ranges):
    """[[(lowest, highest) of the first byte, of the second, …]]: together, these sequences spell
    the characters of `ranges`, and no others."""
    found = []
    for first, last in ranges:
        # Between these bounds lie the characters of equal length; surrogates are in none.
        for low, high in ((0, 0x7F), (0x80, 0x7FF), (0x800, 0xD7FF), (0xE000, 0xFFFF),
                          (0x10000, LAST)):
            low, high = max(low, first), min(high, last)
            if low <= high:
                found += _between(chr(low).encode(), chr(high).encode())
    return found


def _between(low, high):
    """The sequences of bytes from `low` to `high`, which are equally long."""
    rest = len(low) - 1
    if not rest:
        return [[(low[0], high[0])]]
    least, most = b"\x80" * rest, b"\xBF" * rest
    if low[0] == high[0]:
        return [[(low[0], low[0]), *tail] for tail in _between(low[1:], high[1:])]
    found, first, last = [], low[0], high[0]
    if low[1:] != least:
        found += [[(first, first), *tail] for tail in _between(low[1:], most)]
        first += 1
    if high[1:] != most:
        found += [[(last, last), *tail] for tail in _between(least, high[1:])]
        last -= 1
    return found + ([[(first, last)] + [(0x80, 0xBF)] * rest] if first <= last else [])


_ESCAPED = [*range(0x20), ord('"'), ord("\\")]


def in_json(ranges):
    """As `utf8`, inside of a JSON string: each character has one spelling, json.dumps's with
    ensure_ascii=False."""
    found, plain = [], []
    for first, last in ranges:
        for code in _ESCAPED:
            if first <= code <= last:
                found.append([(byte, byte) for byte in json.dumps(chr(code))[1:-1].encode()])
    for first, last in ranges:
        for low, high in ((0x20, 0x21), (0x23, 0x5B), (0x5D, LAST)):
            if max(low, first) <= min(high, last):
                plain.append((max(low, first), min(high, last)))
    return found + utf8(plain)
