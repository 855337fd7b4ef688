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
from minifm.text.bytelevel import ALPHABET, ESCAPED, as_bytes
from minifm.text.tokenizer_json import (
    END_OF_TEXT,
    FIRST,
    MASK,
    PADDING,
    SENTINELS,
    byte_level_json,
    bytes_of_tokens,
    from_gpt2,
    ids_of_bytes,
    open_library,
    read_json,
    read_text,
    settings_of,
    template_files,
    tokenizer_json,
)

SEGMENT = 1 << 18           # a longer text is encoded in segments of about this many characters
TOGETHER = 1 << 24          # characters that the library encodes in one call, on all processors
# Within a longer text: a line feed with text on both sides, where every pre-tokenizer cuts.
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
    token_bytes   [the bytes that each id stands for]; of a special token its name
    settings      what `tokenizer_config.json` says (chat template, special tokens, …)
    templates     {file: text}: the chat templates that lie in files of their own beside it
    """

    def __init__(self, text, settings=None, file="tokenizer.json", templates=None):
        """`text` is a `tokenizer.json`, `settings` a `tokenizer_config.json` (a dict).
        Raises FormatError, naming `file`, when it is no byte-level BPE."""
        self.file, self.settings = str(file), dict(settings or {})
        self.templates = dict(templates or {})
        self._plain = open_library(text, file)
        self._plain.encode_special_tokens = True        # "<|endoftext|>" in a text is text
        self.token_bytes = bytes_of_tokens(self._plain, file)
        self.vocabulary = len(self.token_bytes)
        self._byte_ids = ids_of_bytes(self._plain, file)
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
        return cls(byte_level_json([], [], specials), settings_of(specials))

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
        vocab = {symbol: i for i, symbol in enumerate(ALPHABET)}
        library = open_library(tokenizer_json(vocab, [], []))
        trainer = trainers.BpeTrainer(
            vocab_size=int(vocabulary) - 1 - len(specials), min_frequency=2, max_token_length=64,
            initial_alphabet=sorted(ALPHABET), special_tokens=[], show_progress=False)
        texts = (d.decode("utf-8", "ignore") if isinstance(d, bytes) else d for d in documents)
        library.train_from_iterator(texts, trainer)
        model = json.loads(library.to_str())["model"]
        tokens = sorted(model["vocab"], key=model["vocab"].get)
        learnt = [token for token in tokens if token not in set(ALPHABET)]
        return cls(byte_level_json(learnt, model["merges"], specials), settings_of(specials))

    # -- encoding --------------------------------------------------------------------------------

    def encode(self, text, *, specials=False):
        """bytes or str -> int32 [T].

        `specials=True` reads special strings such as "<|endoftext|>" as their tokens: only for
        text that no user wrote. Nothing is added in front or behind.
        """
        return self.encode_all([text], specials=specials)[0]

    def encode_all(self, texts, *, specials=False):
        """encode() of each, in a list; faster than one by one, on all processors."""
        data = [as_bytes(text) for text in texts]
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
        """The library's tokenizer that does read special strings as special."""
        return open_library(self._plain.to_str(), self.file)

    def specials_in(self, text):
        """[(id, start, end)] of the special strings in a str, in order: where `encode` with
        `specials=True` reads one, and the white space beside it that belongs to it."""
        found = self._marked.encode(text, add_special_tokens=False)
        return [(i, *place) for i, place in zip(found.ids, found.offsets)
                if self.spellings[i] is None]

    def decode(self, ids):
        """Token ids -> bytes: decode(encode(b)) == b for any bytes. A special token is its name.

        Raises ConfigError for an id outside the vocabulary. (A file that asks for normalised
        text, as some foreign ones do, gives the normalised text back.)
        """
        ids = np.asarray(ids, np.int64).reshape(-1)
        outside = ids[(ids < 0) | (ids >= self.vocabulary)]
        if outside.size:
            raise ConfigError(f"token id {outside[0]}: expected 0 … {self.vocabulary - 1}")
        return b"".join([self.token_bytes[i] for i in ids.tolist()])

    @cached_property
    def token_lengths(self):
        """int64 [V]: how many bytes each token stands for."""
        return np.array([len(data) for data in self.token_bytes], np.int64)

    @cached_property
    def spellings(self):
        """The bytes of each token that stands for text; None for a special one."""
        special = {i for i, token in self._plain.get_added_tokens_decoder().items()
                   if token.special}
        return [None if i in special else data for i, data in enumerate(self.token_bytes)]

    # -- files -----------------------------------------------------------------------------------

    @property
    def json(self):
        """The text of `tokenizer.json`."""
        return self._plain.to_str(pretty=True)

    @property
    def sha256(self):
        """What tells this tokenizer from any other."""
        return hashlib.sha256(self.json.encode()).hexdigest()

    @classmethod
    def load(cls, path):
        """From a directory (`tokenizer.json`, or GPT-2's `vocab.json` and `merges.txt`) or from
        a `tokenizer.json` itself. Raises FormatError."""
        path = Path(path)
        directory = path if path.is_dir() else path.parent
        file = path / "tokenizer.json" if path.is_dir() else path
        config = directory / "tokenizer_config.json"
        settings = read_json(config) if config.exists() else {}
        templates = template_files(directory)
        if file.exists():
            return cls(read_text(file), settings, file, templates)
        old = [path / name for name in ("vocab.json", "merges.txt")]
        if not all(f.exists() for f in old):
            raise FormatError(path, None, f"no tokenizer here; expected {' or '.join(_FILES)}")
        return cls(from_gpt2(*old), settings, old[0], templates)

    def save(self, directory):
        """Write `tokenizer.json`, `tokenizer_config.json` and the files of chat templates, if there
        are, into an existing directory."""
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
        for name, text in self.templates.items():
            file = Path(directory) / name
            file.parent.mkdir(exist_ok=True)
            file.write_bytes(text.encode())

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


def end_of_text_of(tokenizer, use):
    """The id of its end-of-text; raises ConfigError, with the `use` it would have, for none."""
    if tokenizer.end_of_text is None:
        raise ConfigError(f"tokenizer: has no end-of-text token {use}; name one as `eos_token` in "
                          "its tokenizer_config.json")
    return tokenizer.end_of_text


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
    between two lines where the pre-tokenizers cut anyway."""
    pieces = ESCAPED.split(document.decode("utf-8", "surrogateescape"))
    for text, raw in zip(pieces[::2], [*pieces[1::2], ""]):
        start = 0
        while len(text) - start > SEGMENT and (cut := _CUT.search(text, start + SEGMENT)):
            yield text[start : cut.end()], b""
            start = cut.end()
        yield text[start:], raw.encode("utf-8", "surrogateescape")
