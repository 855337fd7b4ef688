"""From a text that knows whose it is (provenance.py) to tokens.

A special string becomes its token where the template wrote all of its characters: not in what the
caller gave, and not where one begins in the template and ends in a message. Special are the tokens
that `tokenizer.json` calls so; what it adds beside them ("<think>" in some) is vocabulary as any
other, here as in `Tokenizer.encode`. Between special tokens the text is encoded as one, so that
merges go across the borders of messages as they do where the whole string is encoded.
"""

import re
import unicodedata
from functools import partial
from itertools import chain

import numpy as np

from minifm.text.offsets import Encoded
from minifm.text.provenance import CALLER, SAID, plain

# What stands for the caller's white space, letters and other characters while special strings are
# looked for: the first that no special string contains.
STAND_INS = ("\u2003\u2002\u3000\u2004", "ꙮꙭꙬꚀ", "\ufffc\u2047\u203d\u2042")
# White space as the library's `\s` has it, without Python's four separators.
_SPACE = re.compile(r"[^\S\x1c-\x1f]")
_WORD = frozenset("Lu Ll Lt Lm Lo Mn Mc Me Nd Nl Pc".split())
_SPACE_IN_FRONT = re.compile(r"[^\S\x1c-\x1f]*")


def encode_traced(tokenizer, text, marked=True):
    """(ids int32 [T], said bool [T]) of a Traced: its tokens, and which of them hold a character
    that the assistant said; None for these unless the text is `marked`.

    Raises ConfigError where said cannot be told (`encode_all_with_offsets`)."""
    parts = _cut(text, tokenizer)
    if not marked:
        encoded = _encoded(parts, tokenizer, tokenizer.encode_all)
        return _joined([next(encoded) if token is None else [token] for token, _ in parts],
                       np.int32), None
    encoded, ids, said = _encoded(parts, tokenizer, partial(Encoded.all, tokenizer)), [], []
    for token, part in parts:
        if token is None:
            tokens = next(encoded)
            ids.append(tokens.ids)
            said.append(_said(tokens, part))
        else:
            ids.append([token])
            said.append([any(origin & SAID for origin in part.origins)])
    return _joined(ids, np.int32), _joined(said, bool)


def _encoded(parts, tokenizer, encode):
    """Iterate over what `encode` makes of each of the `parts` that is text. A space that the
    vocabulary puts once, before a text, is only there where the first part is one."""
    texts = [plain(part) for token, part in parts if token is None]
    ahead = len(texts) if not tokenizer.begins_once else sum(
        token is None for token, _ in parts[:1])
    return chain(encode(texts[:ahead]), encode(texts[ahead:], behind=True))


def _cut(text, tokenizer):
    """[(id of a special token or None, its part of `text`)], in order, all of the text."""
    outline, places = _outline(text, tokenizer)
    parts, end = [], 0
    for token, first, last in tokenizer.specials_in(outline):
        start, stop = places[first], places[last - 1] + 1
        parts += [(None, text[end:start]), (token, text[start:stop])]
        end = stop
    parts.append((None, text[end:]))
    return [(token, part) for token, part in parts if part]


def _outline(text, tokenizer):
    """(a str, the place in `text` of each of its characters) in which the special strings are those
    of `text` that the template wrote.

    Of each stretch of the caller's it has no more than what a special token may look at beside
    it, white space and whether a word begins, and there stand-ins that no special string has."""
    names = "".join([tokenizer.names[i] for i in tokenizer.specials])
    space, letter, other = [next(c for c in some if c not in names) for some in STAND_INS]
    written, places = [], []
    for start, end, origin in text.runs():
        run = plain(text)[start:end]
        if origin & CALLER:
            kept = _edges(run)
            written += [space if _SPACE.match(run[i]) else letter if _in_word(run[i]) else other
                        for i in kept]
        else:
            kept = range(len(run))
            written.append(re.sub("[\ud800-\udfff]", other, run))
        places += [start + i for i in kept]
    return "".join(written), places


def _in_word(character):
    """Whether it is of the library's `\\w` (Unicode Technical Standard 18), which Python's is not:
    letters, marks, decimal digits, connectors, joiners, letters in circles and squares."""
    return unicodedata.category(character) in _WORD or character in "\u200c\u200d" \
        or "\u24b6" <= character <= "\u24e9" or "\U0001f130" <= character <= "\U0001f189"


def _edges(run):
    """Where the white space at both ends of a text begins and ends, and what is next to it."""
    front = _SPACE_IN_FRONT.match(run).end()
    back = len(run) - _SPACE_IN_FRONT.match(run[::-1]).end()
    return sorted({i for i in (0, front - 1, front, back - 1, back, len(run) - 1)
                   if 0 <= i < len(run)})


def _said(encoded, part):
    """bool [T]: which tokens hold a byte that the assistant said."""
    sizes = np.diff(encoded.bytes_before)
    said = np.repeat(np.frombuffer(part.origins, np.uint8) & SAID != 0, sizes)
    before = np.append(0, np.cumsum(said))
    return before[encoded.offsets[:, 1]] > before[encoded.offsets[:, 0]]


def _joined(arrays, dtype):
    return np.concatenate([np.zeros(0, dtype), *[np.asarray(array, dtype) for array in arrays]])
