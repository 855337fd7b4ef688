"""A SentencePiece model (Kudo and Richardson 2018) as the `tokenizer.json` that says the same.

The file is a protocol buffer, of which a few fields matter: the pieces, each with a score and a
type; which algorithm segments by them; and how text is normalised before. Unigram (Kudo 2018) takes
the segmentation whose scores add up to most. BPE joins the pair that makes the piece of the highest
score: every way to make a piece of two becomes a merge, in the order of the scores.

What stands around a text was in the code of each model. Those of T5 and Llama are known here.
"""

import base64
import struct
from pathlib import Path
from typing import NamedTuple

from minifm.errors import FormatError
from minifm.text.spelling import SPACE
from minifm.text.tokenizer_json import (
    added_token,
    special,
    tokenizer_json,
)

NORMAL, UNKNOWN, CONTROL, USER_DEFINED = 1, 2, 3, 4         # types of pieces
UNIGRAM, BPE = 1, 2                                         # types of models
KINDS = {UNIGRAM: "Unigram", BPE: "BPE"}


class Piece(NamedTuple):
    """One entry of the vocabulary; its id is its place."""

    text: str
    score: float
    type: int


class Model(NamedTuple):
    """What a file says: [Piece], the type of the model, whether what is unknown becomes bytes, the
    table of the normaliser (b"": none), and whether a text gets a space in front."""

    pieces: list
    kind: int
    byte_fallback: bool
    charsmap: bytes
    prefix: bool


def from_sentencepiece(file, settings):
    """The text of the `tokenizer.json` for a .model file, in a directory whose
    `tokenizer_config.json` says `settings`. Raises FormatError."""
    model, kind = read_model(file), str(settings.get("tokenizer_class") or "")
    if kind.startswith("T5") and model.kind == UNIGRAM:
        return _t5(model, file, int(settings.get("extra_ids", 100)))
    if model.kind == BPE and model.byte_fallback and kind.startswith(("Llama", "CodeLlama")) \
            or (not kind and model.kind == BPE and model.byte_fallback):
        return _llama(model, file, settings)
    raise FormatError(file, None, f"SentencePiece of the kind {KINDS.get(model.kind, model.kind)} "
                      f"for a tokenizer_class {kind or 'that is not said'!r} is not read without a "
                      "tokenizer.json; expected T5Tokenizer or LlamaTokenizer")


def _t5(model, file, sentinels):
    """Unigram over words with a space before each; </s> behind every text (Raffel et al. 2020)."""
    vocab = [[piece.text, piece.score] for piece in model.pieces]
    ids = {piece.text: i for i, piece in enumerate(model.pieces)}
    added = _added(model) + [special(f"<extra_id_{i}>", len(vocab) + sentinels - 1 - i)
                             for i in reversed(range(sentinels))]
    normalizer = [{"type": "Precompiled",
                   "precompiled_charsmap": base64.b64encode(model.charsmap).decode()}]
    end = {"SpecialToken": {"id": "</s>", "type_id": 0}}
    first, second = ({"Sequence": {"id": part, "type_id": 0}} for part in "AB")
    around = {"type": "TemplateProcessing", "single": [first, end],
              "pair": [first, end, second, end], "special_tokens": {
                  "</s>": {"id": "</s>", "ids": [_id_of("</s>", ids, file)], "tokens": ["</s>"]}}}
    space = {"type": "Metaspace", "replacement": SPACE, "prepend_scheme": "always", "split": True}
    return tokenizer_json(
        vocab, None, added, around, normalizer=normalizer if model.charsmap else [],
        pre_tokenizer=[{"type": "WhitespaceSplit"}, space], decoder=space,
        model={"type": "Unigram", "unk_id": _unknown(model, file), "byte_fallback": False})


def _llama(model, file, settings):
    """BPE over whole texts with a space in front; <s> before every text (Touvron et al. 2023)."""
    ids = {piece.text: i for i, piece in enumerate(model.pieces)}
    once = settings.get("legacy") is False      # the space stands before a text, not behind <s> too
    prefix = model.prefix and settings.get("add_prefix_space") is not False
    ahead = [{"type": "Prepend", "prepend": SPACE}] if prefix else []
    spaces = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
    decoder = [{"type": "Replace", "pattern": {"String": SPACE}, "content": " "},
               {"type": "ByteFallback"}, {"type": "Fuse"}]
    if prefix:
        decoder.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    metaspace = {"type": "Metaspace", "replacement": SPACE, "split": False,
                 "prepend_scheme": "first" if prefix else "never"}
    return tokenizer_json(
        ids, merges_of(model.pieces), _added(model), _llama_around(ids, file, settings),
        normalizer=[] if once else [*ahead, spaces], pre_tokenizer=[metaspace] if once else [],
        decoder={"type": "Sequence", "decoders": decoder},
        model={"unk_token": model.pieces[_unknown(model, file)].text, "fuse_unk": True,
               "byte_fallback": True})


def _llama_around(ids, file, settings):
    """<s> before a text, and </s> behind it, as the settings say."""
    before = ["<s>"] if settings.get("add_bos_token", True) else []
    behind = ["</s>"] if settings.get("add_eos_token", False) else []
    used = {token: _id_of(token, ids, file) for token in before + behind}

    def part(name, number):
        around = [[{"SpecialToken": {"id": token, "type_id": number}} for token in tokens]
                  for tokens in (before, behind)]
        return [*around[0], {"Sequence": {"id": name, "type_id": number}}, *around[1]]

    return {"type": "TemplateProcessing", "single": part("A", 0),
            "pair": part("A", 0) + part("B", 1), "special_tokens": {
                token: {"id": token, "ids": [i], "tokens": [token]} for token, i in used.items()}}


def merges_of(pieces):
    """[(left, right)] by which BPE makes the pieces, best score first; of the ways to make one
    piece, that with the longest left part."""
    known = {piece.text for piece in pieces if piece.type == NORMAL}
    found = [(-piece.score, -cut, piece.text[:cut], piece.text[cut:])
             for piece in pieces if piece.type == NORMAL for cut in range(1, len(piece.text))
             if piece.text[:cut] in known and piece.text[cut:] in known]
    return [[left, right] for _, _, left, right in sorted(found, key=lambda way: way[:2])]


def _added(model):
    """What stands for no text, and what is never cut."""
    return [added_token(piece.text, i, special=piece.type != USER_DEFINED)
            for i, piece in enumerate(model.pieces)
            if piece.type in (UNKNOWN, CONTROL, USER_DEFINED)]


def _id_of(token, ids, file):
    if token not in ids:
        raise FormatError(file, None, f"no piece {token!r}, which is to stand around a text")
    return ids[token]


def _unknown(model, file):
    """The id of the piece for what is unknown; raises FormatError for none."""
    found = [i for i, piece in enumerate(model.pieces) if piece.type == UNKNOWN]
    if not found:
        raise FormatError(file, None, "no piece stands for what is unknown")
    return found[0]


# -- the file ------------------------------------------------------------------------------------

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5                # wire types of protocol buffers


def read_model(file):
    """The Model in a file; raises FormatError for what is none."""
    try:
        data = Path(file).read_bytes()
        pieces, trainer, normalizer = [], {}, {}
        for number, value in fields(data):
            if number == 1:
                said = dict(fields(value))
                score = struct.unpack("<f", said[2])[0] if 2 in said else 0.0
                pieces.append(Piece(said[1].decode("utf-8"), score, said.get(3, NORMAL)))
            elif number == 2:
                trainer = dict(fields(value))
            elif number == 3:
                normalizer = dict(fields(value))
        found = Model(pieces, trainer.get(3, UNIGRAM), bool(trainer.get(35, 0)),
                      bytes(normalizer.get(2, b"")), bool(normalizer.get(3, 1)))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, struct.error) as why:
        raise FormatError(file, None, f"no SentencePiece model can be read: {why}") from why
    if not found.pieces:
        raise FormatError(file, None, "no SentencePiece model can be read: it has no pieces")
    return found


def fields(data):
    """Yield (number, value) of a protocol buffer's message: an int, or the bytes of what is longer.
    Raises ValueError where it ends too soon."""
    place = 0
    while place < len(data):
        key, place = _varint(data, place)
        wire = key & 7
        if wire == VARINT:
            value, place = _varint(data, place)
        else:
            size = {FIXED64: 8, FIXED32: 4}.get(wire)
            if wire == BYTES:
                size, place = _varint(data, place)
            if size is None or place + size > len(data):
                raise ValueError(f"damaged at byte {place}")
            value, place = data[place : place + size], place + size
        yield key >> 3, value


def _varint(data, place):
    """(the number that begins there, where it ends): seven bits a byte, the lowest first."""
    value = shift = 0
    while True:
        if place >= len(data) or shift > 63:
            raise ValueError(f"damaged at byte {place}")
        byte = data[place]
        value |= (byte & 127) << shift
        place, shift = place + 1, shift + 7
        if byte < 128:
            return value, place
