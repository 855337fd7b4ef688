"""`tokenizer.json` and the files beside it: read, checked, and made.

What is not read is refused by a FormatError that names the file and the key: the library that does
the merging takes more kinds than minifm does, and says less of what is wrong.
"""

import json
from pathlib import Path

from minifm.errors import FormatError, why
from minifm.text.bytelevel import ALPHABET

# What a model has, and of which type.
MODELS = {"BPE": {"vocab": dict, "merges": list}, "WordPiece": {"vocab": dict},
          "Unigram": {"vocab": list}}
BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True,
              "use_regex": True}
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
    _check_model(described.get("model"), file)
    try:
        library = tokenizers.Tokenizer.from_str(text)
    except Exception as error:      # the library raises plain Exception
        raise FormatError(file, None, f"not a tokenizer that can be read: {error}") from error
    library.no_truncation()
    library.no_padding()
    return library


def _check_model(model, file):
    """Raise FormatError for a model that is not read, or that could fail on a text."""
    kind = model.get("type", "BPE") if isinstance(model, dict) else None
    parts = MODELS.get(kind, {}) if isinstance(kind, str) else {}
    if not parts or not all(isinstance(model.get(key), type) for key, type in parts.items()):
        raise FormatError(file, "model", "expected BPE with vocab and merges, WordPiece or Unigram "
                          f"with vocab, found {kind!r:.60}")
    for key in ("dropout", "continuing_subword_prefix"):
        if kind == "BPE" and model.get(key):
            raise FormatError(file, f"model.{key}", f"expected none, found {model[key]!r:.60}: "
                              "only BPE that marks spaces and ends of words, and is never random, "
                              "is read")
    if kind == "WordPiece" and model.get("unk_token", "[UNK]") not in model["vocab"]:
        raise FormatError(file, "model.unk_token", f"{model.get('unk_token', '[UNK]')!r:.60} is "
                          "not in the vocabulary, and stands for what is not there")
    if kind == "Unigram" and not isinstance(model.get("unk_id"), int):
        raise FormatError(file, "model.unk_id", "expected the id of the token that stands for what "
                          f"is not in the vocabulary, found {model.get('unk_id')!r:.60}")


def names_of_tokens(library, file):
    """[the string of each token]; raises FormatError where their ids have gaps."""
    added = {i: token.content for i, token in library.get_added_tokens_decoder().items()}
    ids = {i: token for token, i in library.get_vocab(with_added_tokens=True).items()} | added
    if sorted(ids) != list(range(len(ids))):
        gap = next(n for n, i in enumerate(sorted(ids)) if n != i)
        raise FormatError(file, "model.vocab", f"no token has id {gap}; expected 0 … without gaps")
    return [ids[i] for i in range(len(ids))]


def byte_level_json(learnt, merges, specials):
    """The `tokenizer.json` of the 256 bytes, the tokens learnt by these merges, and end-of-text;
    with `specials` as in Tokenizer.train."""
    front = [token for token in (FIRST, PADDING) if token in specials]
    tokens = [*front, *ALPHABET, *learnt]
    back = [END_OF_TEXT, *(token for token in specials if token not in front)]
    ids = {token: i for i, token in enumerate([*tokens, *back])}
    return tokenizer_json({token: ids[token] for token in tokens}, merges,
                          [special(token, ids[token]) for token in front + back],
                          template(ids, FIRST, END_OF_TEXT) if FIRST in specials else None)


def template(ids, first, end):
    """What stands around a text for an encoder, and around two: the file's `post_processor`."""
    def piece(kind, name, part):
        return {kind: {"id": name, "type_id": part}}
    before, behind = (piece("SpecialToken", token, 0) for token in (first, end))
    single = [before, piece("Sequence", "A", 0), behind]
    pair = [*single, piece("Sequence", "B", 1), piece("SpecialToken", end, 1)]
    return {"type": "TemplateProcessing", "single": single, "pair": pair, "special_tokens": {
        token: {"id": token, "ids": [ids[token]], "tokens": [token]} for token in (first, end)}}


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


def tokenizer_json(vocab, merges, added, post_processor=None, *, normalizer=(),
                   pre_tokenizer=(BYTE_LEVEL,), decoder=BYTE_LEVEL, model=None):
    """The text of a `tokenizer.json`, of byte-level BPE unless the rest says otherwise.

    vocab          {token: id}; of Unigram [(token, score)]
    merges         [(token, token)], of BPE
    added          of `added_token`: what stands beside the vocabulary
    normalizer     its steps; so `pre_tokenizer`
    model          what it says beside these
    """
    if isinstance(vocab, dict) and merges is not None:
        vocab = vocab | {token["content"]: token["id"] for token in added}
    described = dict(model or {})
    if "type" not in described:
        described = {"type": "BPE", "dropout": None, "unk_token": None,
                     "continuing_subword_prefix": None, "end_of_word_suffix": None,
                     "fuse_unk": False, "byte_fallback": False, "ignore_merges": False} | described
    described["vocab"] = vocab
    if merges is not None:
        described["merges"] = merges
    return json.dumps({
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": added,
        "normalizer": _sequence(normalizer, "normalizers"),
        "pre_tokenizer": _sequence(pre_tokenizer, "pretokenizers"),
        "post_processor": post_processor, "decoder": decoder, "model": described})


def _sequence(steps, key):
    """One part of a `tokenizer.json`, that may have many steps."""
    if len(steps) < 2:
        return steps[0] if steps else None
    return {"type": "Sequence", key: list(steps)}


def added_token(token, i, *, special, lstrip=False):
    """An entry of `added_tokens`; `lstrip`: white space in front of it is its own."""
    return {"id": i, "content": token, "single_word": False, "lstrip": lstrip, "rstrip": False,
            "normalized": False, "special": special}


def special(token, i, *, lstrip=False):
    """The entry of a token that stands for no text."""
    return added_token(token, i, special=True, lstrip=lstrip)


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
