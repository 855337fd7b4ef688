"""Text to token ids and back. What is made here is byte-level BPE (Sennrich et al. 2016, over bytes
as in Radford et al. 2019), which loses not a byte; what others have published is read, too:
SentencePiece's pieces (Kudo and Richardson 2018), WordPiece (Schuster and Nakajima 2012), BPE over
words.

The `tokenizers` library does the merging, and its `tokenizer.json` is the one source of truth:
what is written here opens in other libraries, and their files open here. Raw bytes are the same
thing without merges. This module adds what the library lacks: in a byte-level vocabulary, bytes
that are not UTF-8 become the tokens of those bytes and come back exactly, and in any vocabulary
special strings inside a user's text stay text.

What other kinds lose, they lose in `encode`: BERT's lowers case, T5's joins white space, and most
have one token for all that they do not know. Every token has a text all the same (spelling.py), so
that `decode` says what is left, as the library does.
"""

import codecs
import hashlib
import json
from array import array
from functools import cached_property
from pathlib import Path

import numpy as np

from minifm.errors import ConfigError, FormatError
from minifm.text import variants
from minifm.text.bytelevel import ALPHABET, as_bytes
from minifm.text.older_files import VOCABULARIES, tokenizer_json_of
from minifm.text.segments import groups, pieces, readable, whole
from minifm.text.spelling import BYTE_LEVEL, spelling_of
from minifm.text.tokenizer_json import (
    END_OF_TEXT,
    FIRST,
    MASK,
    PADDING,
    SENTINELS,
    byte_level_json,
    names_of_tokens,
    open_library,
    read_json,
    read_text,
    settings_of,
    template_files,
    tokenizer_json,
)

_PAIR = "vocab.json and merges.txt"
_ASCII = "a b  c\n\n\td " + "".join(map(chr, range(33, 65))) + "[\\]^_`xyz{|}~"


class Tokenizer:
    """A vocabulary, and how text becomes its tokens.

    vocabulary    how many ids there are
    end_of_text   the id between documents, or None
    padding       the id that fills up rows, or None; never the same as end_of_text
    first         the id that begins a sequence, or None (cls_token)
    separator     the id behind each part of a sequence (sep_token; else end_of_text)
    mask          the id that stands for a masked token, or None
    sentinels     the ids that stand for spans left out, in order; may be empty
    specials      the ids of all tokens that the file adds to its merges, those above among them
    names         [the string that each id is called in the file]
    spelling      the Spelling: the bytes that each id stands for, and what they lose
    begins_once   whether the space before a text stands there only, not behind special tokens, too
    settings      what `tokenizer_config.json` says (chat template, special tokens, …)
    templates     {file: text}: the chat templates that lie in files of their own beside it
    """

    def __init__(self, text, settings=None, file="tokenizer.json", templates=None):
        """`text` is a `tokenizer.json`, `settings` a `tokenizer_config.json` (a dict).
        Raises FormatError, naming `file`, when it is of no kind that is read."""
        self.file, self.settings = str(file), dict(settings or {})
        self.templates = dict(templates or {})
        self._described = open_library(text, file)
        described = json.loads(self.json)
        self._added = self._described.get_added_tokens_decoder()        # {id: its token}
        self.names = names_of_tokens(self._described, file)
        self.vocabulary = len(self.names)
        self._raw = described["model"].get("merges") == []
        self.spelling = spelling_of(described, self.names, self._added.keys(), file)
        self.begins_once = variants.begins_once(described)
        self._libraries = {(False, False): self._variant(described, False, False)}
        self._check_that_text_comes_back()
        self.end_of_text = self._special("eos_token", END_OF_TEXT, "</s>", "[SEP]")
        self.padding = self._special("pad_token", PADDING, "[PAD]")
        if self.padding == self.end_of_text:
            self.padding = None
        self.first = self._special("cls_token", FIRST, "[CLS]")
        self.separator = self._special("sep_token", "[SEP]")
        if self.separator is None:
            self.separator = self.end_of_text
        self.mask = self._special("mask_token", MASK, "[MASK]")
        known = {token.content: i for i, token in self._added.items()}
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

    def encode(self, text, *, specials=False, behind=False):
        """bytes or str -> int32 [T].

        `specials=True` reads special strings such as "<|endoftext|>" as their tokens: only for
        text that no user wrote. Nothing is added in front or behind. `behind=True` is for a text
        that goes on behind another: a vocabulary that puts a space before a text does not here.
        """
        return self.encode_all([text], specials=specials, behind=behind)[0]

    def encode_all(self, texts, *, specials=False, behind=False):
        """encode() of each, in a list; faster than one by one, on all processors."""
        data = [as_bytes(text) for text in texts]
        if self._raw and self.spelling.kind == BYTE_LEVEL and not specials:
            return [self._byte_ids[np.frombuffer(d, np.uint8)] for d in data]
        library, byte_ids = self._library(specials, behind), self._byte_ids.tolist()
        found = [array("i") for _ in data]
        for group in groups(data, pieces if byte_ids else whole):
            texts = list(dict.fromkeys(text for _, text, _ in group))
            encoded = library.encode_batch_fast(texts, add_special_tokens=False)
            encoding_of = dict(zip(texts, encoded))
            for number, text, raw in group:
                found[number].extend(encoding_of[text].ids)
                found[number].extend([byte_ids[byte] for byte in raw])
        return [np.array(ids, np.int32) for ids in found]

    def aligned(self, text, behind=False):
        """(ids int32 [T], places int64 [T, 2]): encode(text, behind=behind), and the characters of
        the text, from and to, of which the library made each token. Bytes that are not UTF-8 are
        a character each."""
        found = self._library(False, behind).encode(readable(as_bytes(text)),
                                                   add_special_tokens=False)
        return np.array(found.ids, np.int32), np.array(found.offsets, np.int64).reshape(-1, 2)

    def framed(self, *texts):
        """The library's Encoding of a text, or of two, with what the file puts around them."""
        return self._described.encode(*texts)

    @cached_property
    def around(self):
        """(ids that the file puts before a text, ids that it puts behind it), tuples."""
        found = self.framed("a")
        mine = [i for i, text in enumerate(found.sequence_ids) if text is not None]
        return tuple(found.ids[: mine[0]]), tuple(found.ids[mine[-1] + 1 :])

    def specials_in(self, text):
        """[(id, start, end)] of the special strings in a str, in order: where `encode` with
        `specials=True` reads one, and the white space beside it that belongs to it."""
        found = self._library(True, False).encode(text, add_special_tokens=False)
        return [(i, start, end) for i, (start, end) in zip(found.ids, found.offsets)
                if self.spellings[i] is None            # one may also stand for what is unknown
                and self.names[i] in text[start:end]]

    def decode(self, ids):
        """Token ids -> bytes. A special token is its name.

        decode(encode(b)) == b for any bytes, where the vocabulary is byte-level (and its file asks
        for no normalised text); otherwise it is what the vocabulary keeps of them. Raises
        ConfigError for an id outside the vocabulary.
        """
        return self.spelt(ids).removeprefix(self.spelling.front).removesuffix(self.spelling.back)

    def spelt(self, ids):
        """The bytes of token ids within a text: decode() without regard to its edges."""
        ids = np.asarray(ids, np.int64).reshape(-1)
        outside = ids[(ids < 0) | (ids >= self.vocabulary)]
        if outside.size:
            raise ConfigError(f"token id {outside[0]}: expected 0 … {self.vocabulary - 1}")
        return b"".join([self.token_bytes[i] for i in ids.tolist()])

    @property
    def token_bytes(self):
        """[the bytes that each id stands for within a text]; of a special token its name."""
        return self.spelling.tokens

    @cached_property
    def token_lengths(self):
        """int64 [V]: how many bytes of a text each token stands for. None where the bytes of a
        text's tokens are not all of it."""
        if not self.spelling.whole:
            return None
        return np.array([len(data) for data in self.token_bytes], np.int64)

    @cached_property
    def spellings(self):
        """The bytes of each token that stands for text; None for a special one."""
        return [None if i in self._added and self._added[i].special else data
                for i, data in enumerate(self.token_bytes)]

    @cached_property
    def blank(self):
        """bool [V]: which tokens stand for white space alone."""
        return np.array([data != b"" and data.isspace() for data in self.token_bytes])

    # -- the library -----------------------------------------------------------------------------

    def _library(self, specials, behind):
        """The library's tokenizer that reads special strings as special, or as text; and a text, or
        what goes on behind one. Each is made once."""
        if (specials, behind) not in self._libraries:
            described = json.loads(self.json)
            self._libraries[specials, behind] = self._variant(described, specials, behind)
        return self._libraries[specials, behind]

    def _variant(self, described, specials, behind):
        """_library() of what the file says, `described`."""
        names = [token.content for token in self._added.values() if token.special]
        changed = variants.behind(described) if behind else described
        if not specials and self.spelling.kind != BYTE_LEVEL:
            changed = variants.inert(changed, names)
        own = changed is described and not specials
        library = self._described if own else open_library(json.dumps(changed), self.file)
        library.encode_special_tokens = not specials        # else "<|endoftext|>" is no text
        return library

    @cached_property
    def _byte_ids(self):
        """int32 [256]: the id of each byte alone; none in a vocabulary that is not byte-level."""
        if self.spelling.kind != BYTE_LEVEL:
            return np.zeros(0, np.int32)
        return np.array([self._described.token_to_id(symbol) for symbol in ALPHABET], np.int32)

    # -- files -----------------------------------------------------------------------------------

    @property
    def json(self):
        """The text of `tokenizer.json`."""
        return self._described.to_str(pretty=True)

    @property
    def sha256(self):
        """What tells this tokenizer from any other."""
        return hashlib.sha256(self.json.encode()).hexdigest()

    @classmethod
    def load(cls, path):
        """From a directory (`tokenizer.json`, or the files that older models have in its place, see
        older_files.py) or from a `tokenizer.json` itself. Raises FormatError."""
        path = Path(path)
        directory = path if path.is_dir() else path.parent
        file = path / "tokenizer.json" if path.is_dir() else path
        config = directory / "tokenizer_config.json"
        settings = read_json(config) if config.exists() else {}
        templates = template_files(directory)
        if file.exists():
            return cls(read_text(file), settings, file, templates)
        older = tokenizer_json_of(path, settings)
        if older is None:
            raise FormatError(path, None, "no tokenizer here; expected "
                              f"{' or '.join(VOCABULARIES).replace('vocab.json', _PAIR)}")
        return cls(*older, templates)

    def save(self, directory):
        """Write `tokenizer.json`, `tokenizer_config.json` and the files of chat templates, if there
        are, into an existing directory."""
        settings = self.settings or self._own_settings()
        files = {"tokenizer.json": self.json,
                 "tokenizer_config.json": json.dumps(settings, indent=2, ensure_ascii=False)}
        for name, text in files.items():
            (Path(directory) / name).write_text(text + "\n", "utf-8")
        for name, text in self.templates.items():
            file = Path(directory) / name
            file.parent.mkdir(exist_ok=True)
            file.write_bytes(text.encode())

    def _own_settings(self):
        """What `tokenizer_config.json` is to say where no file said anything."""
        if self.spelling.kind == BYTE_LEVEL:
            kind = {"tokenizer_class": "GPT2TokenizerFast", "add_prefix_space": False}
            roles = dict.fromkeys(("bos_token", "eos_token", "unk_token"), self.end_of_text)
        else:
            kind = {"tokenizer_class": "PreTrainedTokenizerFast"}
            roles = {"eos_token": self.end_of_text, "pad_token": self.padding,
                     "cls_token": self.first, "sep_token": self.separator, "mask_token": self.mask}
        return kind | {"clean_up_tokenization_spaces": False} | {
            role: self.names[i] for role, i in roles.items() if i is not None}

    def _check_that_text_comes_back(self):
        """The library drops what a file's settings leave without a token, and does not say so.
        A normaliser may fold letters or put a space in front, but ASCII must not get lost where
        bytes are tokens; elsewhere what is kept must be read here as it is there."""
        library = self._library(False, False)
        ids = library.encode_batch_fast([_ASCII], add_special_tokens=False)[0].ids
        found, expected = self.decode(ids).decode("utf-8", "replace"), _ASCII
        if self.spelling.kind == BYTE_LEVEL:
            found = found.removeprefix(" ")
        elif self.spelling.back:
            return
        else:
            expected = library.decode(ids, skip_special_tokens=False)
        if found != expected:
            raise FormatError(self.file, "pre_tokenizer", f"text is changed: {expected!r:.200} "
                              f"becomes {found!r:.200}, which is not read")

    def _special(self, key, *spellings):
        """The id of the special token that the settings call `key`; where they say nothing, of the
        first of `spellings` that the file calls special."""
        given = self.settings.get(key)
        if given:
            token = given.get("content") if isinstance(given, dict) else given
            found = self._described.token_to_id(token) if isinstance(token, str) else None
            if found is None:
                raise FormatError(self.file, key, f"{token!r} is not in the vocabulary")
            return found
        added = {token.content: i for i, token in self._added.items()}
        return next((added[token] for token in spellings if token in added), None)


class StreamDecoder:
    """Printable text as tokens arrive. A character that is not complete yet is held back; what
    can be no character becomes U+FFFD. All pieces and `finish()` make up
    decode(ids).decode("utf-8", "replace"); or, where what comes goes on behind a text (`begins` is
    False), the rest of it."""

    def __init__(self, tokenizer, begins=True):
        self.tokenizer = tokenizer
        self.decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self.front = tokenizer.spelling.front if begins else b""
        self._begin()

    def _begin(self):
        self.dropped, self.held = self.front, b""       # what is no text, if it comes, or is last

    def add(self, token):
        """The text that is certain now that `token`, an id, has come; often "" or a word."""
        data = self.held + self.tokenizer.spelt([token])
        if data:
            data, self.dropped = data.removeprefix(self.dropped), b""
        kept = data.removesuffix(self.tokenizer.spelling.back)
        self.held = data[len(kept) :]
        return self.decoder.decode(kept)

    def finish(self):
        """The text of an incomplete character at the end. Then it may be used anew."""
        self._begin()
        return self.decoder.decode(b"", True)


def end_of_text_of(tokenizer, use):
    """The id of its end-of-text; raises ConfigError, with the `use` it would have, for none."""
    if tokenizer.end_of_text is None:
        raise ConfigError(f"tokenizer: has no end-of-text token {use}; name one as `eos_token` in "
                          "its tokenizer_config.json")
    return tokenizer.end_of_text
