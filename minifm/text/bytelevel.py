"""The 256 characters by which byte-level vocabularies spell bytes (Radford et al. 2019).

A printable Latin-1 byte is spelt by its own character; the others, which a text file could not
show, by the characters from U+0100 on, in order. A space is "Ġ", a line feed "Ċ".
"""

import re

from minifm.errors import ConfigError

_PRINTABLE = {*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)}


def _alphabet():
    others = iter(range(0x100, 0x200))
    return tuple(chr(byte if byte in _PRINTABLE else next(others)) for byte in range(256))


ALPHABET = _alphabet()          # ALPHABET[byte] is its character
# For str.translate: each character to that of its byte in Latin-1, all others of Latin-1 to
# one beyond it, so that encoding them fails.
_TO_LATIN1 = {byte: 0x200 for byte in range(256)} \
    | {ord(symbol): byte for byte, symbol in enumerate(ALPHABET)}


def from_alphabet(token):
    """The bytes that a token spells, or None when it holds a character outside the alphabet."""
    try:
        return token.translate(_TO_LATIN1).encode("latin-1")
    except UnicodeEncodeError:
        return None


# How Python decodes bytes that are not UTF-8: of the command line, of names of files.
ESCAPED = re.compile("([\udc80-\udcff]+)")


def as_bytes(text):
    """The bytes of a text, bytes or str: UTF-8, in which U+DC80 … U+DCFF are the bytes 0x80 … 0xFF
    that Python found where it expected UTF-8, and other halves of pairs are written as any
    character. Raises ConfigError for what is no text."""
    if isinstance(text, (bytes, bytearray, memoryview)):
        return bytes(text)
    if not isinstance(text, str):
        raise ConfigError(f"a text is bytes or str, got {type(text).__name__}")
    try:
        return text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        pieces = ESCAPED.split(text)            # text, escaped bytes, text, …
        return b"".join(piece.encode("utf-8", "surrogateescape" if n % 2 else "surrogatepass")
                        for n, piece in enumerate(pieces))
