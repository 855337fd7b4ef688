"""Where each token stands in its text, and what a tokenizer puts around a text.

Tokens of byte-level BPE are strings of bytes that make up the text when they are joined, so their
places follow from their lengths alone. Places are BYTES of the UTF-8 text: a merge may join the
end of one character with the beginning of the next, and no number of characters could say that.
`Encoded` translates between bytes, tokens and characters (Python's, code points).
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from minifm.errors import ConfigError
from minifm.text.bytelevel import as_bytes


def encode_with_offsets(tokenizer, text):
    """str or bytes -> (ids int32 [T], offsets int64 [T, 2]): token t is the bytes from
    offsets[t, 0] to offsets[t, 1], its end not included.

    Raises ConfigError where the tokenizer's file asks for normalised text and this text is not
    (NFC, say): its tokens are then those of another text.
    """
    return encode_all_with_offsets(tokenizer, [text])[0]


def encode_all_with_offsets(tokenizer, texts):
    """encode_with_offsets() of each, in a list; faster than one by one."""
    lengths, found = tokenizer.token_lengths, []
    for text, ids in zip(texts, tokenizer.encode_all(texts), strict=True):
        data = as_bytes(text)
        if tokenizer.decode(ids) != data:
            raise ConfigError(f"{tokenizer.file}: its normaliser changes the text {text!r:.60}, "
                              "so that places in it are unknown; normalise the text first")
        ends = np.cumsum(lengths[ids])
        found.append((ids, np.stack([ends - lengths[ids], ends], axis=1)))                  # [T, 2]
    return found


@dataclass(frozen=True, eq=False)
class Encoded:
    """A text, a str, as tokens: `ids` int32 [T], and `offsets` int64 [T, 2] in its bytes."""

    text: str
    ids: np.ndarray
    offsets: np.ndarray

    @classmethod
    def all(cls, tokenizer, texts):
        """[Encoded of each text]."""
        return [cls(text, *encoded)
                for text, encoded in zip(texts, encode_all_with_offsets(tokenizer, texts))]

    @cached_property
    def bytes_before(self):
        """int64 [characters + 1]: at which byte each character begins, and where the text ends."""
        code = np.frombuffer(self.text.encode("utf-32-le", "surrogatepass"), np.uint32)
        sizes = 1 + (code >= 0x80) + (code >= 0x800) + (code >= 0x10000)
        sizes[(code >= 0xDC80) & (code <= 0xDCFF)] = 1                  # each is a byte (as_bytes)
        return np.append(0, np.cumsum(sizes, dtype=np.int64))

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
        import tokenizers
        library = tokenizers.Tokenizer.from_str(tokenizer.json)
        one, two = library.encode("a"), library.encode("a", "b")
        before, _, behind = _around(one, one.ids)
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
