"""What text each token of a vocabulary stands for, by the decoder that its `tokenizer.json` names.

Vocabularies differ above all in where they keep the spaces between words:

    Ġthe      byte-level BPE (GPT-2, RoBERTa, Llama 3): a space is a byte as any other
    ▁the      SentencePiece (T5, Llama 2, Mistral): a space before a word is a letter of it, and a
              text begins with one that is not there; <0x0A> is a byte without a token of its own
    the ##re  WordPiece (BERT): before each token is a space, unless it goes on with a word
    the</w>   GPT-1, CLIP: behind each token that ends a word is a space

All of them become bytes here: those that a token adds to a text. What stands at the edge of a text
and is not in it is said once, for the whole vocabulary.
"""

import re
from dataclasses import dataclass, replace
from typing import NamedTuple

from minifm.errors import FormatError
from minifm.text.bytelevel import ALPHABET, from_alphabet

SPACE = "▁"                 # SentencePiece's (Kudo and Richardson 2018)
BYTE_LEVEL, PIECES, WORD_PIECE, WORD_END = "byte-level", "pieces", "word-piece", "word-end"
_BYTE = re.compile("<0x([0-9A-Fa-f]{2})>")
_ALL_BYTES = frozenset(f"<0x{byte:02X}>" for byte in range(256))
# Before these the decoder of WordPiece leaves its space out, if it cleans up.
_CLOSE = re.compile(r" (?=[.?!,]|n't|'(?:m|s|ve|re))")


class Spelling(NamedTuple):
    """How a vocabulary spells.

    kind     BYTE_LEVEL, PIECES, WORD_PIECE or WORD_END
    tokens   [the bytes of each id, as they stand within a text]
    front    what these have in front of a text, and the text has not: b"" or b" "
    back     the same behind it
    whole    whether the bytes of a text's tokens are all of the text, but for front and back;
             else some of it may be lost (case, accents, white space, characters without a token)
    """

    kind: str
    tokens: list
    front: bytes
    back: bytes
    whole: bool


def spelling_of(described, names, added, file):
    """The Spelling of a `tokenizer.json`, `described` as the library writes it.

    names   [the string of each id]
    added   the ids of those that stand beside the model's vocabulary

    Raises FormatError for a decoder that is not read.
    """
    marks = _Marks.of(described, file)
    if marks.kind != BYTE_LEVEL and not marks.letters:
        tokens, whole = [marks.spelt(name) for name in names], _keeps_all(described, set(names))
        model = described["model"]
        if not whole and "unk_token" in model and model["unk_token"] not in names:
            raise FormatError(file, "model.unk_token", "expected the token that stands for what is "
                              f"unknown, found {model['unk_token']!r:.60}: text would get lost")
        return Spelling(marks.kind, tokens, marks.front, marks.back, whole)
    tokens = []
    for i, name in enumerate(names):
        data = name.encode() if i in added else marks.spelt(name)
        if data is None:
            raise FormatError(file, f"model.vocab: token {i}",
                              f"{name!r} is no string of bytes, as of a byte-level vocabulary")
        tokens.append(data)
    _require_bytes(set(names), marks.suffix, file)
    return Spelling(marks.kind, tokens, marks.front, marks.back, marks.kind == BYTE_LEVEL)


def steps_of(part, key):
    """The steps, in order, of a part of a `tokenizer.json`, which may be a "Sequence" of them in
    its `key`; none for null."""
    if not part:
        return []
    if part.get("type") != "Sequence":
        return [part]
    return [step for inner in part[key] for step in steps_of(inner, key)]


@dataclass(frozen=True)
class _Marks:
    """The marks in a vocabulary's tokens.

    spaces    ((mark, what it stands for), …)
    fallback  whether "<0x0A>" is a byte
    prefix    of what goes on with a word; None: no token has a space before it by itself
    clean     whether there is none before punctuation
    suffix    of what ends a word
    letters   whether all else is of the byte-level alphabet
    """

    kind: str
    spaces: tuple = ()
    fallback: bool = False
    prefix: str | None = None
    clean: bool = False
    suffix: str = ""
    letters: bool = False
    front: bytes = b""
    back: bytes = b""

    @classmethod
    def of(cls, described, file):
        """By the decoder; raises FormatError for one that is not read."""
        steps = steps_of(described.get("decoder"), "decoders")
        kinds, model = [step["type"] for step in steps], described["model"]
        suffix = model.get("end_of_word_suffix") or ""
        if kinds in ([], ["ByteLevel"]) and model["type"] == "BPE":
            if suffix:          # CLIP's decoder leaves its suffix as it is: what reads it does not
                return cls(WORD_END, suffix=suffix, letters=True, back=b" ")
            return cls(BYTE_LEVEL, letters=True)
        if kinds == ["BPEDecoder"] and suffix == steps[0]["suffix"] != "":
            return cls(WORD_END, suffix=suffix, back=b" ")
        if kinds == ["WordPiece"] == [model["type"]]:
            return cls(WORD_PIECE, prefix=steps[0]["prefix"], clean=steps[0]["cleanup"],
                       front=b" ")
        marks = cls(PIECES)
        for step in steps:
            marks = _with_step(marks, step)
            if marks is None:
                raise FormatError(file, "decoder", f"{step!r:.80} is not read: expected that of "
                                  "byte-level BPE, SentencePiece, WordPiece or BPE with </w>")
        if not steps or suffix:
            raise FormatError(file, "decoder", f"expected one that fits the model, found "
                              f"{', '.join(kinds) or 'none'}")
        return marks

    def spelt(self, token):
        """The bytes that a token adds within a text; None for what is no string of bytes."""
        found = self.fallback and _BYTE.fullmatch(token)
        if found:
            return bytes.fromhex(found[1])
        for mark, text in self.spaces:
            token = token.replace(mark, text)
        if self.prefix is not None:
            token = token.removeprefix(self.prefix) if token.startswith(self.prefix) \
                else f" {token}"
            token = _CLOSE.sub("", token, count=1) if self.clean else token
        ends = self.suffix != "" and token.endswith(self.suffix)
        token = token.removesuffix(self.suffix)
        data = from_alphabet(token) if self.letters else token.encode()
        return data + b" " if ends and data is not None else data


def _with_step(marks, step):
    """The marks, one step of SentencePiece's decoder further; None for a step that is not read."""
    match step:
        case {"type": "Metaspace", "replacement": mark, "prepend_scheme": scheme}:
            return replace(marks, spaces=(*marks.spaces, (mark, " ")),
                           front=marks.front if scheme == "never" else b" ")
        case {"type": "Replace", "pattern": {"String": mark}, "content": text}:
            return replace(marks, spaces=(*marks.spaces, (mark, text)))
        case {"type": "ByteFallback"}:
            return replace(marks, fallback=True)
        case {"type": "Fuse"}:
            return marks
        case {"type": "Strip", "content": " ", "start": 1, "stop": 0}:
            return replace(marks, front=b" ")
    return None


def _keeps_all(described, names):
    """Whether no text is changed on its way to tokens: spaces become marks, no more, and what has
    no token has bytes."""
    steps = steps_of(described.get("normalizer"), "normalizers") \
        + steps_of(described.get("pre_tokenizer"), "pretokenizers")
    keep = all(step["type"] in ("Prepend", "Metaspace")
               or (step["type"] == "Replace" and step["pattern"] == {"String": " "}
                   and step["content"] == SPACE) for step in steps)
    return bool(keep and described["model"].get("byte_fallback") and names >= _ALL_BYTES)


def _require_bytes(names, suffix, file):
    """Raise FormatError where a byte has no token of its own, within a word or at its end."""
    for end in {"", suffix}:
        missing = [byte for byte, symbol in enumerate(ALPHABET) if symbol + end not in names]
        if missing:
            raise FormatError(file, "model.vocab", f"no token for {len(missing)} of the 256 bytes, "
                              f"such as 0x{missing[0]:02X}: it is not byte-level BPE")
