"""Where each token stands in its text, and what a tokenizer puts around a text.

Places are BYTES of the UTF-8 text: in byte-level BPE a merge may join the end of one character with
the beginning of the next, and no number of characters could say that. Where the tokens' bytes make
up the text when they are joined, their places follow from their lengths alone. Where a vocabulary
changes the text first (BERT's lowers case, T5's joins white space), the library has kept count of
which characters became which, and a token's place is that of all of them.
`Encoded` translates between bytes, tokens and characters (Python's, code points).
"""

import unicodedata
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from minifm.errors import ConfigError
from minifm.text.bytelevel import as_bytes
from minifm.text.tokenizer import end_of_text_of


def encode_with_offsets(tokenizer, text):
    """str or bytes -> (ids int32 [T], offsets int64 [T, 2]): token t is the bytes from
    offsets[t, 0] to offsets[t, 1], its end not included. From one token to the next neither column
    falls; a token that no byte of the text has made (a space before a word, where there is none)
    begins and ends at one place.

    Raises ConfigError where a byte-level vocabulary normalises the text (NFC, say), and some of
    it is not UTF-8.
    """
    return encode_all_with_offsets(tokenizer, [text])[0]


def encode_all_with_offsets(tokenizer, texts, *, behind=False):
    """encode_with_offsets() of each, in a list; faster than one by one. `behind` as of encode()."""
    lengths, found = tokenizer.token_lengths, []
    said = tokenizer.spelt if behind else tokenizer.decode
    for text, ids in zip(texts, tokenizer.encode_all(texts, behind=behind), strict=True):
        data = as_bytes(text)
        if tokenizer.spelling.whole and said(ids) == data:
            ends = np.cumsum(lengths[ids])
            offsets = np.stack([ends - lengths[ids], ends], axis=1)                     # [T, 2]
            before = offsets[-1:, 1].sum() - len(data)      # a space that the text has not
            found.append((ids, np.maximum(offsets - before, 0)))
        else:
            found.append((ids, _aligned(tokenizer, data, ids, behind)))
    return found


def _aligned(tokenizer, data, ids, behind):
    """The offsets [T, 2] of the `ids` of a text, bytes, that the tokenizer changed."""
    again, places = tokenizer.aligned(data, behind)
    if not np.array_equal(ids, again):
        raise ConfigError(f"{tokenizer.file}: its normaliser changes the text {data!r:.60}, which "
                          "is not all UTF-8, so that places in it are unknown; mend the text first")
    text = data.decode("utf-8", "surrogateescape")
    for t in np.flatnonzero(tokenizer.blank[ids]).tolist():
        start, end = places[t]
        if text[start:end].strip():             # a space that the vocabulary put there
            places[t, 1] = start
    places = _with_marks(text, np.maximum.accumulate(places, axis=0))
    return _bytes_before(text)[places]


def _with_marks(text, places):
    """places [T, 2] in characters, with those marks (accents and the like) that a token's last
    character has behind it: the library counts them to no token once they are joined or gone."""
    marks = {character for character in set(text) if unicodedata.category(character)[0] == "M"}
    if not marks:
        return places
    starts, ends = places.T
    following = np.append(starts, len(text))[np.searchsorted(starts, ends, "left")]
    for t in np.flatnonzero((ends > starts) & (following > ends)).tolist():
        while ends[t] < following[t] and text[ends[t]] in marks:
            ends[t] += 1
    return places


def _bytes_before(text):
    """int64 [characters + 1]: at which byte each character of a str begins, and where the text
    ends."""
    code = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)
    sizes = 1 + (code >= 0x80) + (code >= 0x800) + (code >= 0x10000)
    sizes[(code >= 0xDC80) & (code <= 0xDCFF)] = 1                  # each is a byte (as_bytes)
    return np.append(0, np.cumsum(sizes, dtype=np.int64))


@dataclass(frozen=True, eq=False)
class Encoded:
    """A text, a str, as tokens: `ids` int32 [T], and `offsets` int64 [T, 2] in its bytes."""

    text: str
    ids: np.ndarray
    offsets: np.ndarray

    @classmethod
    def all(cls, tokenizer, texts, *, behind=False):
        """[Encoded of each text]; `behind` as of Tokenizer.encode."""
        encoded = encode_all_with_offsets(tokenizer, texts, behind=behind)
        return [cls(text, *found) for text, found in zip(texts, encoded)]

    @cached_property
    def bytes_before(self):
        """int64 [characters + 1]: at which byte each character begins, and where the text ends."""
        return _bytes_before(self.text)

    def tokens(self, start, end):
        """The fewest tokens that hold the characters from `start` to `end`, one or more: (first,
        one after the last)."""
        low, high = self.bytes_before[start], self.bytes_before[end]
        first = np.searchsorted(self.offsets[:, 1], low, "right")       # that ends behind low
        stop = np.searchsorted(self.offsets[:, 0], high, "left")        # that begins behind high
        return int(first), int(stop)

    def characters(self, first, stop):
        """The characters of which tokens first … stop - 1, one or more, hold a part: (start, end),
        without white space at either end, which a token often has in front."""
        low, high = self.offsets[first, 0], self.offsets[stop - 1, 1]
        start = int(np.searchsorted(self.bytes_before, low, "right")) - 1
        end = int(np.searchsorted(self.bytes_before, high, "left"))
        inside = self.text[start:end]
        if not inside.strip():
            return start, end
        return (start + len(inside) - len(inside.lstrip()),
                end - len(inside) + len(inside.rstrip()))

    def fits(self, start, end):
        """Whether the tokens of these characters are these characters and no more."""
        return self.characters(*self.tokens(start, end)) == (start, end)


@dataclass(frozen=True)
class Frame:
    """The ids that a model of this vocabulary reads before a text, between two, and behind the
    last; and the one that fills short rows, which a mask hides.

    types   of the five parts of a pair (what stands before, the first text, between, the second,
            behind), of which kind each token is, for a model that tells them apart: of a text, one
            for all of its tokens. BERT's files say 0 up to the first separator, then 1
    """

    before: tuple
    between: tuple
    behind: tuple
    padding: int
    types: tuple = ((), (0,), (), (0,), ())

    @classmethod
    def of(cls, tokenizer):
        """As `tokenizer.json` says (its post-processor), so that a model reads here what it reads
        elsewhere. Where the file puts nothing between two texts, end-of-text stands there.

        Raises ConfigError for a vocabulary without end-of-text that needs one.
        """
        (before, behind), two = tokenizer.around, tokenizer.framed("a", "b")
        _, between, _ = _around(two, two.ids)
        end = tokenizer.end_of_text
        padding = tokenizer.padding if tokenizer.padding is not None else end
        if padding is None or (not between and end is None):
            raise ConfigError(f"{tokenizer.file}: the vocabulary has no end-of-text (eos_token) "
                              "to stand between texts and to fill short rows")
        around, texts = _around(two, two.type_ids), _texts(two)
        first, second = ((two.type_ids[place],) for place in (texts[0], texts[-1]))
        types = around[0], first, around[1] or first, second, around[2]
        return cls(before, between or (end,), behind, padding, types)

    def around(self, first, second=None):
        """(ids, types) of a text, or of two, in this frame: int64 [T] each."""
        if second is None:
            ids = np.concatenate([self.before, first, self.behind]).astype(np.int64)
            return ids, np.zeros_like(ids)
        parts = self.before, first, self.between, second, self.behind
        ids = np.concatenate(parts).astype(np.int64)
        return ids, np.concatenate([np.resize(types, len(part)) for types, part
                                    in zip(self.types, parts)]).astype(np.int64)


def ids_before(tokenizer):
    """The ids that every text begins with for a model that goes on writing: Llama's <s>; mostly ().
    Where something stands behind a text, too, both belong to an encoder's rows."""
    before, behind = tokenizer.around
    return () if behind else before


def before_text(tokenizer, use):
    """The id that a text's first token follows, for a model that guesses every token: the last of
    `ids_before`, else end-of-text. Raises ConfigError, with the `use` it would have, for
    neither."""
    before = ids_before(tokenizer)
    return before[-1] if before else end_of_text_of(tokenizer, use)


def _texts(encoding):
    """Where the tokens of texts stand in a library's Encoding, not those around them."""
    return [i for i, text in enumerate(encoding.sequence_ids) if text is not None]


def _around(encoding, values):
    """Of `values`, one for each token of a library's Encoding, those (before the first text,
    between the two, behind the last)."""
    texts = _texts(encoding)
    first, last = texts[0], texts[-1]
    between = [values[i] for i in range(first, last) if encoding.sequence_ids[i] is None]
    return tuple(values[:first]), tuple(between), tuple(values[last + 1 :])
