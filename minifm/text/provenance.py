"""Whose text it is, character by character: a str that knows which of its characters the caller of
a template gave, and goes on knowing while the template cuts, joins and rewrites it.

That tells "<|im_end|>" that a template wrote from "<|im_end|>" that a user typed, although they are
the same characters in one string. A plain str is the template's own. A method here returns what
str's would, with the origin of each of its characters; where that cannot be told, it raises
Untraceable and does not guess.
"""

import json
import re
from dataclasses import dataclass

CALLER, SAID = 1, 2         # bits of an origin: from the caller; said by the assistant
_SAY = bytes(origin | SAID for origin in range(256))
LONGEST = 1 << 24           # characters of a text that is made of others
PIECES = 1 << 20            # that a text may be cut into
_RUNS = re.compile(rb"\x00+|\x01+|\x02+|\x03+")
# What str tells of a text in numbers and truth values, for which no origin matters.
ANSWERS = frozenset("""count endswith find index isalnum isalpha isascii isdecimal isdigit
    isidentifier islower isnumeric isprintable isspace istitle isupper rfind rindex
    startswith""".split())


class Untraceable(Exception):
    """A text of which it cannot be told whose it is."""


class Traced(str):
    """A str and its `origins`: bytes, one for each character, of the bits CALLER and SAID."""

    __slots__ = ("origins",)

    def __new__(cls, text, origins):
        self = super().__new__(cls, text)
        self.origins = origins
        return self

    @classmethod
    def of(cls, text):
        """`text` itself if it is one, else the template's own."""
        return text if isinstance(text, Traced) else cls(text, bytes(len(text)))

    def runs(self):
        """Yield (start, end, origin) of the longest stretches of one origin."""
        for match in _RUNS.finditer(self.origins):
            yield *match.span(), match[0][0]

    def __str__(self):
        return self             # str() in a template keeps what is known

    def __getitem__(self, key):
        origins = self.origins[key]
        return Traced(super().__getitem__(key),
                      bytes((origins,)) if isinstance(origins, int) else origins)

    def __iter__(self):
        require_fewer(len(self), PIECES, "pieces of a text")
        return (self[place] for place in range(len(self)))

    def __add__(self, other):
        return concat((self, other)) if isinstance(other, str) else NotImplemented

    def __radd__(self, other):
        return concat((other, self)) if isinstance(other, str) else NotImplemented

    def __mul__(self, count):
        return Traced(super().__mul__(count), self.origins * count)

    __rmul__ = __mul__

    # -- cutting ---------------------------------------------------------------------------------

    def strip(self, chars=None):
        return self.lstrip(chars).rstrip(chars)

    def lstrip(self, chars=None):
        return self[len(self) - len(super().lstrip(chars)) :]

    def rstrip(self, chars=None):
        return self[: len(super().rstrip(chars))]

    def removeprefix(self, prefix):
        return self[len(self) - len(super().removeprefix(prefix)) :]

    def removesuffix(self, suffix):
        return self[: len(super().removesuffix(suffix))]

    def split(self, sep=None, maxsplit=-1):
        return self._found(super().split(sep, maxsplit), len(sep or ""))

    def rsplit(self, sep=None, maxsplit=-1):
        return self._found(super().rsplit(sep, maxsplit), len(sep or ""))

    def splitlines(self, keepends=False):
        return self._found(super().splitlines(keepends), 0)

    def partition(self, sep):
        before, middle, _ = super().partition(sep)
        end = len(before) + len(middle)
        return self[: len(before)], self[len(before) : end], self[end:]

    def rpartition(self, sep):
        _, middle, after = super().rpartition(sep)
        end = len(self) - len(after)
        return self[: end - len(middle)], self[end - len(middle) : end], self[end:]

    def _found(self, pieces, between):
        """The same `pieces` of this text, in order; `between` characters stand between two, or,
        if 0, white space with which none but the first begins."""
        require_fewer(len(pieces), PIECES, "pieces of a text")
        found, place = [], 0
        for piece in pieces:
            start = self.find(piece, place)
            found.append(self[start : start + len(piece)])
            place = start + len(piece) + between
        return found

    # -- joining and rewriting -------------------------------------------------------------------

    def join(self, pieces):
        joined = []
        for number, piece in enumerate(pieces):
            if not isinstance(piece, str):
                raise TypeError(f"sequence item {number}: expected str instance, "
                                f"{type(piece).__name__} found")
            joined += (self, piece) if number else (piece,)
        return concat(joined)

    def replace(self, old, new, count=-1):
        if old:
            return Traced.of(new).join(self.split(old, count))
        count = len(self) + 1 if count < 0 else min(count, len(self) + 1)
        if not count:
            return self
        return Traced.of(new).join(["", *self[: count - 1], self[count - 1 :]])

    def upper(self):
        return self.in_place(super().upper())

    def lower(self):
        return self.in_place(super().lower())

    def capitalize(self):
        return self.in_place(super().capitalize())

    def title(self):
        return self.in_place(super().title())

    def swapcase(self):
        return self.in_place(super().swapcase())

    def casefold(self):
        return self.in_place(super().casefold())

    def expandtabs(self, tabsize=8):
        return self.as_one(super().expandtabs(tabsize))

    def zfill(self, width):
        return self.as_one(super().zfill(width))

    def center(self, width, fill=" "):
        return self.as_one(super().center(width, fill), fill)

    def ljust(self, width, fill=" "):
        return self + Traced.of(fill) * max(width - len(self), 0) if len(fill) == 1 else \
            super().ljust(width, fill)          # which raises

    def rjust(self, width, fill=" "):
        return Traced.of(fill) * max(width - len(self), 0) + self if len(fill) == 1 else \
            super().rjust(width, fill)

    def in_place(self, text):
        """`text`: this one in another case, by which a character may become several."""
        return Traced(text, self.origins) if len(text) == len(self) else self.as_one(text)

    def as_one(self, text, *others):
        """`text`, made of this one and `others`, whose characters all have one origin; white space
        of the template's may come among them. Raises Untraceable where they have several."""
        origins = set(self.origins).union(*(origins_of(other) for other in others
                                            if not other.isspace()))
        if len(origins) > 1:
            raise Untraceable("a text of both the caller's and the template's that is filled up or "
                              f"changes its length, {plain(self)!r:.60}")
        return Traced(text, bytes(origins or {0}) * len(text))


# Every method of str that returns text and keeps track of it; those that are here, and no other.
METHODS = ANSWERS | {name for name, method in vars(Traced).items()
                     if not name.startswith("_") and hasattr(str, name)}


def from_caller(text):
    """A text that the caller gave."""
    return Traced(text, bytes((CALLER,)) * len(text))


def said(text):
    """The same text, as said by the assistant."""
    text = Traced.of(text)
    return Traced(text, text.origins.translate(_SAY))


def plain(text):
    """The same characters as a str that knows nothing of them."""
    return str.__str__(text)


def origins_of(text):
    """The origin of each character, as bytes."""
    return text.origins if isinstance(text, Traced) else bytes(len(text))


def require_fewer(count, most, what):
    """Raise OverflowError for more than a template of good will would make."""
    if count > most:
        raise OverflowError(f"more than {most:,} {what}")


def concat(pieces):
    """One after the other; a plain str if all of them are. Raises OverflowError for a text that is
    too long."""
    found, length = [], 0
    for piece in pieces:        # which come from a template that is still at work
        length += len(piece)
        require_fewer(length, LONGEST, "characters in a text")
        found.append(piece)
    text, pieces = "".join(found), found
    if not any(isinstance(piece, Traced) for piece in pieces):
        return text
    return Traced(text, b"".join(map(origins_of, pieces)))


# -- containers as text --------------------------------------------------------------------------


def literal(value):
    """repr() of what JSON can hold. Raises Untraceable for anything else."""
    if isinstance(value, str):
        quote = repr(plain(value))[0]
        return concat((quote, _escaped(value, lambda run: _python_escapes(run, quote)), quote))
    if isinstance(value, dict):
        return _between("{}", [concat((literal(key), ": ", literal(item)))
                               for key, item in value.items()])
    if isinstance(value, tuple) and len(value) == 1:
        return concat(("(", literal(value[0]), ",)"))
    if isinstance(value, (list, tuple)):
        return _between("[]" if isinstance(value, list) else "()", map(literal, value))
    if value is None or isinstance(value, (bool, int, float)):
        return repr(value)
    raise Untraceable(f"a {type(value).__name__} as text")


def to_json(value, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
    """json.dumps() of the same arguments."""
    if separators is None:
        separators = (", " if indent is None else ",", ": ")
    step = " " * indent if isinstance(indent, int) else indent
    return _Json(ensure_ascii, step, *separators, sort_keys).write(value)


@dataclass(frozen=True)
class _Json:
    """How JSON is written; `step` is what each level is indented by, None: all on one line."""

    ensure_ascii: bool
    step: str | None
    between: str
    colon: str
    sort_keys: bool

    def write(self, value, newline="\n"):
        if isinstance(value, str):
            return concat(('"', _escaped(value, self._escapes), '"'))
        inner = "" if self.step is None else newline + self.step
        if isinstance(value, dict):
            entries = sorted(value.items()) if self.sort_keys else value.items()
            items = [concat((self._key(key), self.colon, self.write(item, inner)))
                     for key, item in entries]
        elif isinstance(value, (list, tuple)):
            items = [self.write(item, inner) for item in value]
        else:
            return json.dumps(value)            # raises TypeError for what JSON does not know
        inside = concat((inner, Traced.of(self.between + inner).join(items),
                         "" if self.step is None else newline)) if items else ""
        return concat(("{" if isinstance(value, dict) else "[", inside,
                       "}" if isinstance(value, dict) else "]"))

    def _key(self, key):
        return self.write(key) if isinstance(key, str) else json.dumps({key: 0})[1:-4]

    def _escapes(self, run):
        return json.dumps(run, ensure_ascii=self.ensure_ascii)[1:-1]


def _between(brackets, items):
    return concat((brackets[0], Traced.of(", ").join(items), brackets[1]))


def _escaped(text, escape):
    """`text` with every stretch of one origin written by `escape`, which goes by characters."""
    text = Traced.of(text)
    pieces = []
    for start, end, origin in text.runs():
        written = escape(plain(text)[start:end])
        pieces.append(Traced(written, bytes((origin,)) * len(written)))
    return concat(pieces)


def _python_escapes(run, quote):
    return "".join([("\\" + c if c == quote else c) if c in "'\"" else repr(c)[1:-1]
                    for c in run])
