"""Documents, bytes, as the strings that the tokenizers' library takes: never too long, never too
many at a time, and in a byte-level vocabulary without a byte lost.
"""

import re

from minifm.text.bytelevel import ESCAPED

SEGMENT = 1 << 18           # a longer text is encoded in segments of about this many characters
TOGETHER = 1 << 24          # characters that the library encodes in one call, on all processors
# Within a longer text: a line feed with text on both sides, where every pre-tokenizer cuts.
_CUT = re.compile(r"(?<=[^\W_]\n)(?=[^\W_])")


def readable(document):
    """A document, bytes, as a str that the library takes: U+FFFD for a byte that is not UTF-8."""
    return re.sub("[\udc80-\udcff]", "\ufffd", document.decode("utf-8", "surrogateescape"))


def groups(data, pieces_of):
    """Lists of (number of the document, text, bytes behind it that are not UTF-8), each list of
    about TOGETHER characters: the library's result takes many bytes for each token."""
    group, size = [], 0
    for number, document in enumerate(data):
        for text, raw in pieces_of(document):
            group.append((number, text, raw))
            size += len(text) + len(raw)
            if size >= TOGETHER:
                yield group
                group, size = [], 0
    if group:
        yield group


def whole(document):
    """pieces() for a vocabulary that need not spell any bytes, nor read lines one by one."""
    return [(readable(document), b"")]


def pieces(document):
    """(text, bytes behind it that are not UTF-8) until the end. A text beyond SEGMENT is cut
    between two lines where the pre-tokenizers cut anyway."""
    pieces = ESCAPED.split(document.decode("utf-8", "surrogateescape"))
    for text, raw in zip(pieces[::2], [*pieces[1::2], ""]):
        start = 0
        while len(text) - start > SEGMENT and (cut := _CUT.search(text, start + SEGMENT)):
            yield text[start : cut.end()], b""
            start = cut.end()
        yield text[start:], raw.encode("utf-8", "surrogateescape")
