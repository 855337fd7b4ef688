"""Text to token ids and back, without losing a byte: byte-level BPE (Sennrich et al. 2016, over
bytes as in Radford et al. 2019).

The `tokenizers` library does the merging, and its `tokenizer.json` is the one source of truth:
what is written here opens in other libraries, and their files open here. Raw bytes are the same
thing without merges. This module adds what the library lacks: bytes that are not UTF-8 become the
tokens of those bytes and come back exactly, and special strings inside a user's text stay text.
"""

import codecs
import hashlib
import json
import re
from array import array
from functools import cached_property
from pathlib import Path

import numpy as np

from minifm.errors import ConfigError, FormatError
from minifm.text.bytelevel import ALPHABET, from_alphabet

END_OF_TEXT = "<|endoftext|>"
# The special tokens that a vocabulary may have beside it, as RoBERTa and T5 spell them.
FIRST, PADDING, MASK = "<s>", "<pad>", "<mask>"
SENTINELS = tuple(f"<extra_id_{i}>" for i in range(100))
SEGMENT = 1 << 18           # a longer text is encoded in segments of about this many characters
TOGETHER = 1 << 24          # characters that the library encodes in one call, on all processors
_NOT_UTF8 = re.compile("([\udc80-\udcff]+)")        # how Python decodes such bytes
# Within a longer text: a line feed with text on both sides, where every pre-tokeniser cuts.
_CUT = re.compile(r"(?<=[^\W_]\n)(?=[^\W_])")
_ASCII = "a b  c\n\n\td " + "".join(map(chr, range(33, 65))) + "[\\]^_`xyz{|}~"
_FILES = ("tokenizer.json", "vocab.json and merges.txt")


class Tokenizer:
    """A byte-level BPE vocabulary.

    vocabulary    how many ids there are
    end_of_text   the id between documents, or None
    padding       the id that fills up rows, or None; never the same as end_of_text
    first         the id that begins a sequence, or None (cls_token)
    separator     the id behind each part of a sequence (sep_token; else end_of_text)
    mask          the id that stands for a masked token, or None
    sentinels     the ids that stand for spans left out, in order; may be empty
    specials      the ids of all tokens that the file adds to its merges, those above among them
    settings      what `tokenizer_config.json` says (chat template, special tokens, …)
    """

    def __init__(self, text, settings=None, file="tokenizer.json"):
        """`text` is a `tokenizer.json`, `settings` a `tokenizer_config.json` (a dict).
        Raises FormatError, naming `file`, when it is no byte-level BPE."""
        self.file, self.settings = str(file), dict(settings or {})
        self._plain = _open(text, file)
        self._plain.encode_special_tokens = True        # "<|endoftext|>" in a text is text
        self._bytes = _bytes_of_tokens(self._plain, file)
        self.vocabulary = len(self._bytes)
        self._byte_ids = _ids_of_bytes(self._plain, file)
        self._merges = len(json.loads(text)["model"]["merges"])
        self._check_that_text_comes_back()
        self.end_of_text = self._special("eos_token", END_OF_TEXT, "</s>")
        self.padding = self._special("pad_token", PADDING, "[PAD]")
        if self.padding == self.end_of_text:
            self.padding = None
        self.first = self._special("cls_token", FIRST, "[CLS]")
        self.separator = self._special("sep_token", "[SEP]")
        if self.separator is None:
            self.separator = self.end_of_text
        self.mask = self._special("mask_token", MASK, "[MASK]")
        known = {token.content: i for i, token in self._plain.get_added_tokens_decoder().items()}
        self.sentinels = tuple(known[token] for token in SENTINELS if token in known)
        self.specials = tuple(sorted(known.values()))

    # -- making one ------------------------------------------------------------------------------

    @classmethod
    def bytes(cls, specials=()):
        """The vocabulary of the 256 bytes, id = value, and end-of-text, 256; with `specials` as
        in `train`."""
        return cls(_byte_level_json([], [], specials), _settings(specials))

    @classmethod
    def train(cls, documents, vocabulary, specials=()):
        """Learn the merges from an iterable of documents (bytes or str).

        `vocabulary` counts all ids: 256 bytes, merges, end-of-text (the last id). Merges that
        the documents do not have (seen at least twice) are not made up: it may come out smaller.

        specials  those of FIRST, PADDING, MASK and SENTINELS that it is to have, too. The first
                  two get the first ids, as RoBERTa's and T5's have them, the others the last
        """
        least = 257 + len(specials)
        if isinstance(vocabulary, bool) or not isinstance(vocabulary, (int, np.integer)) \
                or not least <= vocabulary <= 1 << 24:
            what = "the bytes and end-of-text" if least == 257 else \
                f"the bytes, end-of-text and {len(specials)} more special tokens"
            raise ConfigError(f"vocabulary: expected an integer from {least} ({what}) to "
                              f"{1 << 24}, got {vocabulary!r}")
        from tokenizers import trainers
        # Without special tokens: the library would learn their strings, where documents spell them.
        library = _open(_json({symbol: i for i, symbol in enumerate(ALPHABET)}, [], []))
        trainer = trainers.BpeTrainer(
            vocab_size=int(vocabulary) - 1 - len(specials), min_frequency=2, max_token_length=64,
            initial_alphabet=sorted(ALPHABET), special_tokens=[], show_progress=False)
        texts = (d.decode("utf-8", "ignore") if isinstance(d, bytes) else d for d in documents)
        library.train_from_iterator(texts, trainer)
        model = json.loads(library.to_str())["model"]
        tokens = sorted(model["vocab"], key=model["vocab"].get)
        learnt = [token for token in tokens if token not in set(ALPHABET)]
        return cls(_byte_level_json(learnt, model["merges"], specials), _settings(specials))

    # -- encoding --------------------------------------------------------------------------------

    def encode(self, text, *, specials=False):
        """bytes or str -> int32 [T].

        `specials=True` reads special strings such as "<|endoftext|>" as their tokens: only for
        text that no user wrote. Nothing is added in front or behind.
        """
        return self.encode_all([text], specials=specials)[0]

    def encode_all(self, texts, *, specials=False):
        """encode() of each, in a list; faster than one by one, on all processors."""
        data = [_as_bytes(text) for text in texts]
        if not self._merges and not specials:
            return [self._byte_ids[np.frombuffer(d, np.uint8)] for d in data]
        library = self._marked if specials else self._plain
        byte_ids, found = self._byte_ids.tolist(), [array("i") for _ in data]
        for group in _groups(data):
            texts = list(dict.fromkeys(text for _, text, _ in group))
            encoded = library.encode_batch_fast(texts, add_special_tokens=False)
            encoding_of = dict(zip(texts, encoded))
            for number, text, raw in group:
                found[number].extend(encoding_of[text].ids)
                found[number].extend([byte_ids[byte] for byte in raw])
        return [np.array(ids, np.int32) for ids in found]

    @cached_property
    def _marked(self):
        """The library's tokeniser that does read special strings as special."""
        return _open(self._plain.to_str(), self.file)

    def decode(self, ids):
        """Token ids -> bytes: decode(encode(b)) == b for any bytes. A special token is its name.

        Raises ConfigError for an id outside the vocabulary. (A file that asks for normalised
        text, as some foreign ones do, gives the normalised text back.)
        """
        ids = np.asarray(ids, np.int64).reshape(-1)
        outside = ids[(ids < 0) | (ids >= self.vocabulary)]
        if outside.size:
            raise ConfigError(f"token id {outside[0]}: expected 0 … {self.vocabulary - 1}")
        return b"".join([self._bytes[i] for i in ids.tolist()])

    @cached_property
    def spellings(self):
        """The bytes of each token that stands for text; None for a special one."""
        special = {i for i, token in self._plain.get_added_tokens_decoder().items()
                   if token.special}
        return [None if i in special else data for i, data in enumerate(self._bytes)]

    # -- files -----------------------------------------------------------------------------------

    @property
    def json(self):
        """The text of `tokenizer.json`."""
        return self._plain.to_str(pretty=True)

    @property
    def sha256(self):
        """What tells this tokeniser from any other."""
        return hashlib.sha256(self.json.encode()).hexdigest()

    @classmethod
    def load(cls, path):
        """From a directory (`tokenizer.json`, or GPT-2's `vocab.json` and `merges.txt`) or from
        a `tokenizer.json` itself. Raises FormatError."""
        path = Path(path)
        directory = path if path.is_dir() else path.parent
        file = path / "tokenizer.json" if path.is_dir() else path
        config = directory / "tokenizer_config.json"
        settings = _read_json(config) if config.exists() else {}
        if file.exists():
            return cls(_read_text(file), settings, file)
        old = [path / name for name in ("vocab.json", "merges.txt")]
        if not all(f.exists() for f in old):
            raise FormatError(path, None, f"no tokeniser here; expected {' or '.join(_FILES)}")
        return cls(_from_gpt2(*old), settings, old[0])

    def save(self, directory):
        """Write `tokenizer.json` and `tokenizer_config.json` into an existing directory."""
        settings = self.settings
        if not settings:
            settings = {"tokenizer_class": "GPT2TokenizerFast", "add_prefix_space": False,
                        "clean_up_tokenization_spaces": False}
            if self.end_of_text is not None:
                token = self.decode([self.end_of_text]).decode()
                settings |= dict.fromkeys(("bos_token", "eos_token", "unk_token"), token)
        files = {"tokenizer.json": self.json,
                 "tokenizer_config.json": json.dumps(settings, indent=2, ensure_ascii=False)}
        for name, text in files.items():
            (Path(directory) / name).write_text(text + "\n", "utf-8")

    def _check_that_text_comes_back(self):
        """The library drops what a file's settings leave without a token, and does not say so.
        A normaliser may fold letters or put a space in front, but ASCII must not get lost."""
        encoding = self._plain.encode_batch_fast([_ASCII], add_special_tokens=False)[0]
        found = self.decode(encoding.ids).decode("utf-8", "replace")
        if found.removeprefix(" ") != _ASCII:
            raise FormatError(self.file, "pre_tokenizer", "only byte-level BPE is read, and here "
                              f"text is changed: {_ASCII!r} becomes {found!r:.200}")

    def _special(self, key, *spellings):
        """The id of the special token that the settings call `key`; where they say nothing, of the
        first of `spellings` that the file calls special."""
        given = self.settings.get(key)
        if given:
            token = given.get("content") if isinstance(given, dict) else given
            found = self._plain.token_to_id(token) if isinstance(token, str) else None
            if found is None:
                raise FormatError(self.file, key, f"{token!r} is not in the vocabulary")
            return found
        added = {token.content: i for i, token in self._plain.get_added_tokens_decoder().items()}
        return next((added[token] for token in spellings if token in added), None)


class StreamDecoder:
    """Printable text as tokens arrive. A character that is not complete yet is held back; what
    can be no character becomes U+FFFD. All pieces and `finish()` make up
    decode(ids).decode("utf-8", "replace")."""

    def __init__(self, tokenizer):
        self.tokenizer = tokenizer
        self.decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def add(self, token):
        """The text that is certain now that `token`, an id, has come; often "" or a word."""
        return self.decoder.decode(self.tokenizer.decode([token]))

    def finish(self):
        """The text of an incomplete character at the end. Then it may be used anew."""
        return self.decoder.decode(b"", True)


def _as_bytes(text):
    if isinstance(text, str):
        return text.encode("utf-8", "surrogatepass")
    if isinstance(text, (bytes, bytearray, memoryview)):
        return bytes(text)
    raise ConfigError(f"a text is bytes or str, got {type(text).__name__}")


def _groups(data):
    """Lists of (number of the document, text, bytes behind it that are not UTF-8), each list of
    about TOGETHER characters: the library's result takes many bytes for each token."""
    group, size = [], 0
    for number, document in enumerate(data):
        for text, raw in _pieces(document):
            group.append((number, text, raw))
            size += len(text) + len(raw)
            if size >= TOGETHER:
                yield group
                group, size = [], 0
    if group:
        yield group


def _pieces(document):
    """(text, bytes behind it that are not UTF-8) until the end. A text beyond SEGMENT is cut
    between two lines where the pre-tokenisers cut anyway."""
    pieces = _NOT_UTF8.split(document.decode("utf-8", "surrogateescape"))
    for text, raw in zip(pieces[::2], [*pieces[1::2], ""]):
        start = 0
        while len(text) - start > SEGMENT and (cut := _CUT.search(text, start + SEGMENT)):
            yield text[start : cut.end()], b""
            start = cut.end()
        yield text[start:], raw.encode("utf-8", "surrogateescape")


# -- reading and checking files ------------------------------------------------------------------


def _open(text, file="tokenizer.json"):
    """The library's tokeniser for the JSON `text`; raises FormatError for what is not ours."""
    import tokenizers
    described = _parse(text, file)
    model = described.get("model")
    if not isinstance(model, dict) or model.get("type", "BPE") != "BPE" \
            or not isinstance(model.get("vocab"), dict) \
            or not isinstance(model.get("merges"), list):
        raise FormatError(file, "model", "expected a byte-level BPE with vocab and merges")
    for key in ("dropout", "continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(key):
            raise FormatError(file, f"model.{key}", f"expected none, found {model[key]!r:.60}: "
                              "only plain byte-level BPE, which is never random, is read")
    try:
        library = tokenizers.Tokenizer.from_str(text)
    except Exception as error:      # the library raises plain Exception
        raise FormatError(file, None, f"not a tokeniser that can be read: {error}") from error
    library.no_truncation()
    library.no_padding()
    return library


def _bytes_of_tokens(library, file):
    """[the bytes of each token]; raises FormatError where ids or tokens are not byte-level."""
    added = {i: token.content for i, token in library.get_added_tokens_decoder().items()}
    ids = {i: token for token, i in library.get_vocab(with_added_tokens=True).items()} | added
    if sorted(ids) != list(range(len(ids))):
        gap = next(n for n, i in enumerate(sorted(ids)) if n != i)
        raise FormatError(file, "model.vocab", f"no token has id {gap}; expected 0 … without gaps")
    table = []
    for i in range(len(ids)):
        data = ids[i].encode() if i in added else from_alphabet(ids[i])
        if data is None:
            raise FormatError(file, f"model.vocab: token {i}",
                              f"{ids[i]!r} is no string of bytes: only byte-level BPE is read")
        table.append(data)
    return table


def _ids_of_bytes(library, file):
    ids = [library.token_to_id(symbol) for symbol in ALPHABET]
    missing = [byte for byte, i in enumerate(ids) if i is None]
    if missing:
        raise FormatError(file, "model.vocab", f"no token for {len(missing)} of the 256 bytes, "
                          f"such as 0x{missing[0]:02X}: only byte-level BPE is read")
    return np.array(ids, np.int32)


def _from_gpt2(vocab_file, merges_file):
    """The `tokenizer.json` equal to GPT-2's two files."""
    vocab, lines = _read_json(vocab_file), _read_text(merges_file).split("\n")
    merges = []
    for number, line in enumerate(lines, 1):
        if not line.strip() or (number == 1 and line.startswith("#version")):
            continue
        pair = line.rstrip("\r").split(" ")
        if len(pair) != 2:
            raise FormatError(merges_file, f"line {number}",
                              f"expected two tokens and a space between them, got {line!r:.60}")
        merges.append(pair)
    special = [(END_OF_TEXT, vocab[END_OF_TEXT])] if END_OF_TEXT in vocab else []
    return _json(vocab, merges, special)


def _byte_level_json(learnt, merges, specials):
    front = [token for token in (FIRST, PADDING) if token in specials]
    tokens = [*front, *ALPHABET, *learnt]
    back = [END_OF_TEXT, *(token for token in specials if token not in front)]
    ids = {token: i for i, token in enumerate([*tokens, *back])}
    return _json({token: ids[token] for token in tokens}, merges,
                 [(token, ids[token]) for token in front + back],
                 _template(ids) if FIRST in specials else None)


def _template(ids):
    """What stands around a text for an encoder, and around two: the file's `post_processor`."""
    def piece(kind, name, part):
        return {kind: {"id": name, "type_id": part}}
    first, end = (piece("SpecialToken", token, 0) for token in (FIRST, END_OF_TEXT))
    single = [first, piece("Sequence", "A", 0), end]
    pair = [*single, piece("Sequence", "B", 1), piece("SpecialToken", END_OF_TEXT, 1)]
    return {"type": "TemplateProcessing", "single": single, "pair": pair, "special_tokens": {
        token: {"id": token, "ids": [ids[token]], "tokens": [token]}
        for token in (FIRST, END_OF_TEXT)}}


def _settings(specials):
    """What `tokenizer_config.json` says of a vocabulary with these; None: nothing special."""
    if not specials:
        return None
    roles = {"cls_token": FIRST, "bos_token": FIRST, "pad_token": PADDING, "mask_token": MASK}
    return {"tokenizer_class": "PreTrainedTokenizerFast", "add_prefix_space": False,
            "clean_up_tokenization_spaces": False, "eos_token": END_OF_TEXT,
            "sep_token": END_OF_TEXT,
            **{role: token for role, token in roles.items() if token in specials},
            "additional_special_tokens": [token for token in specials if token in SENTINELS]}


def _json(vocab, merges, special, template=None):
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True,
             "use_regex": True}
    added = [{"id": i, "content": token, "single_word": False, "lstrip": False, "rstrip": False,
              "normalized": False, "special": True} for token, i in special]
    return json.dumps({
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": added,
        "normalizer": None, "pre_tokenizer": level, "post_processor": template, "decoder": level,
        "model": {"type": "BPE", "dropout": None, "unk_token": None,
                  "continuing_subword_prefix": None, "end_of_word_suffix": None,
                  "fuse_unk": False, "byte_fallback": False, "ignore_merges": False,
                  "vocab": vocab | dict(special), "merges": merges}})


def _read_text(file):
    try:
        return Path(file).read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise FormatError(file, None, f"cannot be read as UTF-8 text: {error}") from error


def _read_json(file):
    return _parse(_read_text(file), file)


def _parse(text, file):
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise FormatError(file, None, f"not JSON: {error}") from error
    if not isinstance(found, dict):
        raise FormatError(file, None, f"expected a JSON object, got {type(found).__name__}")
    return found
