"""A regular expression in text, read into the objects of expression.py.

The usual subset: characters and their escapes, `.`, classes, groups, `|`, `* + ?` and `{m,n}`,
with the meaning that Python's `re` gives them under re.ASCII: \\d, \\w and \\s are ASCII, `.` is
any character but a line feed, and [^…] is any other character of Unicode. The whole text has to
match, as in re.fullmatch. What a finite automaton cannot know, such as a backreference, or what
looks around, is refused.
"""

import re

from minifm.errors import ConfigError
from minifm.generation.constraints.expression import (
    ANY,
    EMPTY,
    LAST,
    Characters,
    Either,
    Repeat,
    Sequence,
)

DEEPEST = 100               # groups within each other
DIGIT = ((ord("0"), ord("9")),)
WORD = (*DIGIT, (ord("A"), ord("Z")), (ord("_"), ord("_")), (ord("a"), ord("z")))
SPACE = ((9, 13), (32, 32))
_CLASSES = {"d": DIGIT, "w": WORD, "s": SPACE}
_CONTROLS = {"a": 7, "f": 12, "n": 10, "r": 13, "t": 9, "v": 11}
_HEXADECIMAL = {"x": 2, "u": 4, "U": 8}
_BOUNDS = re.compile(r"\{([0-9]*)(?:(,)([0-9]*))?\}")
_NAME = re.compile(r"P<[^\W\d]\w*>")
ANYTHING = Repeat(ANY, 0, None)


def parse(pattern, around=EMPTY):
    """The expression of `pattern`.

    `around` stands in front of every alternative that does not begin with ^, and behind every one
    that does not end in $: EMPTY where the pattern is the whole text, ANYTHING where it is
    searched for. Raises ConfigError, in one line, for what is not understood.
    """
    if not isinstance(pattern, str):
        raise ConfigError(f"regex: expected a string, got {pattern!r:.60}")
    return _Parser(pattern).whole(around)


def complement(ranges):
    """All characters that are not in `ranges`."""
    found, start = [], 0
    for first, last in normalised(ranges):
        if start < first:
            found.append((start, first - 1))
        start = last + 1
    return (*found, (start, LAST)) if start <= LAST else tuple(found)


def normalised(ranges):
    """The same characters in ranges that are in order and do not touch."""
    found = []
    for first, last in sorted(ranges):
        if found and first <= found[-1][1] + 1:
            found[-1] = found[-1][0], max(last, found[-1][1])
        else:
            found.append((first, last))
    return tuple(found)


class _Parser:
    """Recursive descent: whole > alternatives > sequence > repeated > atom."""

    def __init__(self, pattern):
        self.pattern, self.place, self.depth = pattern, 0, 0

    def whole(self, around):
        parts = [self._anchored(around)]
        while self._take("|"):
            parts.append(self._anchored(around))
        if self.place < len(self.pattern):
            self._refuse("a ) without its (")
        return Either(tuple(parts)) if len(parts) > 1 else parts[0]

    def _anchored(self, around):
        """One alternative of the whole, between its anchors."""
        before = EMPTY if self._take("^") else around
        inside = self._sequence()
        behind = EMPTY if self._take("$") else around
        if self._next() not in ("", "|", ")"):
            self._refuse("an anchor inside of the text, where none is supported")
        return Sequence((before, inside, behind))

    def _alternatives(self):
        parts = [self._sequence()]
        while self._take("|"):
            parts.append(self._sequence())
        return Either(tuple(parts)) if len(parts) > 1 else parts[0]

    def _sequence(self):
        parts = []
        while self._next() not in ("", "|", ")", "$"):
            parts.append(self._repeated())
        return Sequence(tuple(parts))

    def _repeated(self):
        part, bounds = self._atom(), self._bounds()
        if bounds is None:
            return part
        if self._next() == "+":
            self._refuse("a possessive repetition, which is not supported")
        self._take("?")         # a lazy repetition matches the same texts
        if self._bounds() is not None:
            self._refuse("a repetition of a repetition")
        least, most = bounds
        if most is not None and most < least:
            self._refuse(f"a repetition from {least} to {most} times")
        return Repeat(part, least, most)

    def _bounds(self):
        """(least, most) of a repetition that stands here, or None."""
        for symbol, bounds in (("*", (0, None)), ("+", (1, None)), ("?", (0, 1))):
            if self._take(symbol):
                return bounds
        found = _BOUNDS.match(self.pattern, self.place)
        if not found or found[0] == "{}":           # then it stands for itself
            return None
        self.place = found.end()
        low, comma, high = found.groups()
        if max(len(low), len(high or "")) > 9:
            self._refuse("a repetition beyond all bounds")
        least = int(low or 0)
        return least, least if not comma else int(high) if high else None

    def _atom(self):
        symbol = self._advance()
        if symbol == "(":
            return self._group()
        if symbol == "[":
            return Characters(self._class())
        if symbol == ".":
            return Characters(complement(((10, 10),)))
        if symbol == "\\":
            return Characters(self._escape())
        if symbol == "^":
            self._refuse("an anchor inside of the text, where none is supported")
        if symbol in "*+?":
            self._refuse("nothing to repeat")
        return Characters(self._one(symbol))

    def _group(self):
        self.depth += 1
        if self.depth > DEEPEST:
            self._refuse(f"more than {DEEPEST} groups within each other")
        if self._take("?"):
            name = _NAME.match(self.pattern, self.place)
            if name:
                self.place = name.end()
            elif not self._take(":"):
                self._refuse("(? that begins no plain group: flags and looking around are not "
                             "supported")
        inside = self._alternatives()
        if self._next() == "$":
            self._refuse("an anchor inside of a group, where none is supported")
        if not self._take(")"):
            self._refuse("a ( without its )")
        self.depth -= 1
        return inside

    def _class(self):
        """The characters of a class, behind its [."""
        negated, found = self._take("^"), []
        while True:
            symbol = self._advance()
            if symbol == "]" and found:
                break
            low = self._escape(in_class=True) if symbol == "\\" else self._one(symbol)
            if self._next() == "-" and self.pattern[self.place + 1 : self.place + 2] != "]":
                self._advance()
                symbol = self._advance()
                high = self._escape(in_class=True) if symbol == "\\" else self._one(symbol)
                low = self._range(low, high)
            found += low
        return complement(found) if negated else normalised(found)

    def _range(self, low, high):
        for end in (low, high):
            if len(end) != 1 or end[0][0] != end[0][1]:
                self._refuse("a range between what is not one character each")
        if low[0][0] > high[0][0]:
            self._refuse("a range whose end comes before its beginning")
        return ((low[0][0], high[0][0]),)

    def _escape(self, in_class=False):
        """The characters of an escape, behind its backslash."""
        symbol = self._advance()
        if symbol.lower() in _CLASSES:
            ranges = _CLASSES[symbol.lower()]
            return ranges if symbol.islower() else complement(ranges)
        if symbol in _CONTROLS:
            return self._one(chr(_CONTROLS[symbol]))
        if symbol == "b" and in_class:
            return self._one("\b")
        if symbol in _HEXADECIMAL:
            return self._hexadecimal(_HEXADECIMAL[symbol])
        if symbol.isascii() and symbol.isalnum():
            self._refuse(f"\\{symbol}, which is not supported")
        return self._one(symbol)

    def _hexadecimal(self, digits):
        text = self.pattern[self.place : self.place + digits]
        if not re.fullmatch(f"[0-9a-fA-F]{{{digits}}}", text):
            self._refuse(f"an escape without its {digits} hexadecimal digits")
        self.place += digits
        code = int(text, 16)
        if code > LAST:
            self._refuse("an escape beyond the last character")
        return self._one(chr(code))

    def _one(self, symbol):
        if "\ud800" <= symbol <= "\udfff":
            self._refuse("a surrogate, which is no character")
        return ((ord(symbol), ord(symbol)),)

    # -- the text ------------------------------------------------------------------------------

    def _next(self):
        return self.pattern[self.place : self.place + 1]

    def _take(self, symbol):
        if self._next() != symbol:
            return False
        self.place += 1
        return True

    def _advance(self):
        symbol = self._next()
        if not symbol:
            self._refuse("the end, where something is missing")
        self.place += 1
        return symbol

    def _refuse(self, what):
        raise ConfigError(f"regex {self.pattern!r:.200}: at character {self.place}: {what}")
