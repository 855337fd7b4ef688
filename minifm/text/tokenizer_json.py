"""`tokenizer.json` and the files beside it: read, checked to be byte-level BPE, and made.

What is not is refused by a FormatError that names the file and the key: the library that does the
merging takes more kinds than minifm does, and says less of what is wrong.
"""

import json
from pathlib import Path

import numpy as np

from minifm.errors import FormatError, why
from minifm.text.bytelevel import ALPHABET, from_alphabet

END_OF_TEXT = "<|endoftext|>"
# The special tokens that a vocabulary may have beside it, as RoBERTa and T5 spell them.
FIRST, PADDING, MASK = "<s>", "<pad>", "<mask>"
SENTINELS = tuple(f"<extra_id_{i}>" for i in range(100))
# Chat templates (chat.py) in files of their own: the default one, and others by name.
TEMPLATE, TEMPLATES = "chat_template.jinja", "additional_chat_templates"


def open_library(text, file="tokenizer.json"):
    """The library's tokenizer for the JSON `text`; raises FormatError for what is not ours."""
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
        raise FormatError(file, None, f"not a tokenizer that can be read: {error}") from error
    library.no_truncation()
    library.no_padding()
    return library


def bytes_of_tokens(library, file):
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


def ids_of_bytes(library, file):
    """int32 [256]: the id of each byte alone; raises FormatError where one has none."""
    ids = [library.token_to_id(symbol) for symbol in ALPHABET]
    missing = [byte for byte, i in enumerate(ids) if i is None]
    if missing:
        raise FormatError(file, "model.vocab", f"no token for {len(missing)} of the 256 bytes, "
                          f"such as 0x{missing[0]:02X}: only byte-level BPE is read")
    return np.array(ids, np.int32)


def from_gpt2(vocab_file, merges_file):
    """The `tokenizer.json` equal to GPT-2's two files."""
    vocab, lines = read_json(vocab_file), read_text(merges_file).split("\n")
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
    return tokenizer_json(vocab, merges, special)


def byte_level_json(learnt, merges, specials):
    """The `tokenizer.json` of the 256 bytes, the tokens learnt by these merges, and end-of-text;
    with `specials` as in Tokenizer.train."""
    front = [token for token in (FIRST, PADDING) if token in specials]
    tokens = [*front, *ALPHABET, *learnt]
    back = [END_OF_TEXT, *(token for token in specials if token not in front)]
    ids = {token: i for i, token in enumerate([*tokens, *back])}
    return tokenizer_json({token: ids[token] for token in tokens}, merges,
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


def settings_of(specials):
    """What `tokenizer_config.json` says of a vocabulary with these; None: nothing special."""
    if not specials:
        return None
    roles = {"cls_token": FIRST, "bos_token": FIRST, "pad_token": PADDING, "mask_token": MASK}
    return {"tokenizer_class": "PreTrainedTokenizerFast", "add_prefix_space": False,
            "clean_up_tokenization_spaces": False, "eos_token": END_OF_TEXT,
            "sep_token": END_OF_TEXT,
            **{role: token for role, token in roles.items() if token in specials},
            "additional_special_tokens": [token for token in specials if token in SENTINELS]}


def tokenizer_json(vocab, merges, special, template=None):
    """The text of a `tokenizer.json`. `vocab` {token: id}, `merges` [(token, token)], `special`
    [(token, id)]; `template` is its `post_processor`."""
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


def template_files(directory):
    """{file: text} of the chat templates in files of their own; raises FormatError."""
    directory = Path(directory)
    files = [directory / TEMPLATE, *sorted((directory / TEMPLATES).glob("*.jinja"))]
    return {file.relative_to(directory).as_posix(): read_text(file)
            for file in files if file.exists()}


def read_text(file):
    """What a file says; raises FormatError where that is not UTF-8."""
    try:
        return Path(file).read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise FormatError(file, None, f"cannot be read as UTF-8 text: {why(error)}") from error


def read_json(file):
    """The JSON object in a file; raises FormatError."""
    return _parse(read_text(file), file)


def _parse(text, file):
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise FormatError(file, None, f"not JSON: {error}") from error
    if not isinstance(found, dict):
        raise FormatError(file, None, f"expected a JSON object, got {type(found).__name__}")
    return found
