"""The `tokenizer.json` that stands for the files which older models have in its place.

    vocab.json, merges.txt      BPE: GPT-2's and RoBERTa's over bytes, CLIP's and GPT-1's over words
    vocab.txt                   WordPiece: BERT's
    spiece.model, tokenizer.model       SentencePiece: T5's, Llama's (sentencepiece.py)

Such files say what the tokens are. How a text is cut before, and what stands around it, stood in
the code of each model; here it is said as the `tokenizer.json` of these models says it.
"""

from pathlib import Path

from minifm.errors import FormatError
from minifm.text.sentencepiece import from_sentencepiece
from minifm.text.tokenizer_json import (
    BYTE_LEVEL,
    END_OF_TEXT,
    read_json,
    read_text,
    special,
    template,
    tokenizer_json,
)

# What lies in every directory that has a vocabulary: one of these. Of two files the first is named.
SENTENCEPIECE = ("spiece.model", "tokenizer.model")
VOCABULARIES = ("tokenizer.json", "vocab.json", "vocab.txt", *SENTENCEPIECE)
WORD_END = "</w>"
_BERT = ("unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
_ROBERTA = ("<s>", "<pad>", "</s>", "<unk>", "<mask>")
# CLIP's words: Radford et al. 2021, as their code has it.
_CLIP_WORDS = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"


def tokenizer_json_of(directory, settings):
    """(the text of a `tokenizer.json`, the settings, the file that it was made of) for what lies in
    a directory, whose `tokenizer_config.json` says `settings`; None where nothing does.

    Raises FormatError for files that are not as expected.
    """
    directory = Path(directory)
    vocab, merges = directory / "vocab.json", directory / "merges.txt"
    if vocab.exists() and merges.exists():
        return from_bpe(vocab, merges), settings, vocab
    spm = [name for name in ("source.spm", "target.spm") if (directory / name).exists()]
    if spm and vocab.exists():
        raise FormatError(directory / spm[0], None, "Marian's vocabulary has one segmentation for "
                          "each language over one list of ids, which no tokenizer.json can say: it "
                          "is not read")
    if (directory / "vocab.txt").exists():
        return from_bert(directory / "vocab.txt", settings), settings, directory / "vocab.txt"
    for name in SENTENCEPIECE:
        if (directory / name).exists():
            return from_sentencepiece(directory / name, settings), settings, directory / name
    return None


# -- BPE -----------------------------------------------------------------------------------------


def from_bpe(vocab_file, merges_file):
    """Of a vocab.json and a merges.txt."""
    vocab, merges = read_json(vocab_file), _merges(merges_file)
    if any(token.endswith(WORD_END) for token in vocab):
        made = _from_clip if "<|startoftext|>" in vocab else _from_gpt1
        return made(vocab, merges)
    if all(token in vocab for token in _ROBERTA):
        added = [special(token, vocab[token], lstrip=token == "<mask>") for token in _ROBERTA]
        around = _around(vocab, "<s>", "</s>", trim_offsets=True)
        return tokenizer_json(vocab, merges, added, around)
    added = [special(END_OF_TEXT, vocab[END_OF_TEXT])] if END_OF_TEXT in vocab else []
    return tokenizer_json(vocab, merges, added)


def _from_clip(vocab, merges):
    added = [special(token, vocab[token]) for token in ("<|startoftext|>", END_OF_TEXT)
             if token in vocab]
    return tokenizer_json(
        vocab, merges, added, _around(vocab, "<|startoftext|>", END_OF_TEXT, trim_offsets=False),
        normalizer=[{"type": "NFC"},
                    {"type": "Replace", "pattern": {"Regex": r"\s+"}, "content": " "},
                    {"type": "Lowercase"}],
        pre_tokenizer=[{"type": "Split", "pattern": {"Regex": _CLIP_WORDS}, "behavior": "Removed",
                        "invert": True}, BYTE_LEVEL],
        model={"unk_token": END_OF_TEXT, "end_of_word_suffix": WORD_END})


def _from_gpt1(vocab, merges):
    added = [special("<unk>", vocab["<unk>"])] if "<unk>" in vocab else []
    return tokenizer_json(
        vocab, merges, added, normalizer=[_bert_normalizer({})],
        pre_tokenizer=[{"type": "BertPreTokenizer"}],
        decoder={"type": "BPEDecoder", "suffix": WORD_END},
        model={"unk_token": "<unk>", "end_of_word_suffix": WORD_END})


def _around(vocab, first, end, trim_offsets):
    """RoBERTa's post-processor, and CLIP's: first A end, first A end end B end."""
    return {"type": "RobertaProcessing", "sep": [end, vocab.get(end)],
            "cls": [first, vocab.get(first)], "trim_offsets": trim_offsets,
            "add_prefix_space": False}


def _merges(file):
    """[(token, token)] of the lines of a merges.txt."""
    merges = []
    for number, line in enumerate(read_text(file).split("\n"), 1):
        if not line.strip() or (number == 1 and line.startswith("#version")):
            continue
        pair = line.rstrip("\r").split(" ")
        if len(pair) != 2:
            raise FormatError(file, f"line {number}",
                              f"expected two tokens and a space between them, got {line!r:.60}")
        merges.append(pair)
    return merges


# -- WordPiece -----------------------------------------------------------------------------------


def from_bert(file, settings):
    """Of a vocab.txt, a token a line, and what `tokenizer_config.json` says of letters."""
    if settings.get("do_basic_tokenize") is False:
        raise FormatError(file.parent / "tokenizer_config.json", "do_basic_tokenize",
                          "expected true, found false: text that is cut into words elsewhere is "
                          "not read")
    lines = read_text(file).removesuffix("\n").split("\n")
    vocab = {line.rstrip("\r"): number for number, line in enumerate(lines)}
    roles = {role: _token(settings.get(role), f"[{role[:-6].upper()}]") for role in _BERT}
    missing = [token for token in roles.values() if token not in vocab]
    if missing:
        raise FormatError(file, None, f"{missing[0]!r} is not in it, and a vocabulary of WordPiece "
                          "has it")
    ids = {token: vocab[token] for token in roles.values()}
    return tokenizer_json(
        vocab, None, [special(token, i) for token, i in sorted(ids.items(), key=lambda x: x[1])],
        template(ids, roles["cls_token"], roles["sep_token"]),
        normalizer=[_bert_normalizer(settings)], pre_tokenizer=[{"type": "BertPreTokenizer"}],
        decoder={"type": "WordPiece", "prefix": "##", "cleanup": True},
        model={"type": "WordPiece", "unk_token": roles["unk_token"],
               "continuing_subword_prefix": "##", "max_input_chars_per_word": 100})


def _bert_normalizer(settings):
    """Accents go where case does, unless they are mentioned (null: not mentioned)."""
    return {"type": "BertNormalizer", "clean_text": True,
            "handle_chinese_chars": settings.get("tokenize_chinese_chars", True),
            "strip_accents": settings.get("strip_accents"),
            "lowercase": settings.get("do_lower_case", True)}


def _token(said, otherwise):
    """The string of a token in a `tokenizer_config.json`."""
    token = said.get("content") if isinstance(said, dict) else said
    return token if isinstance(token, str) else otherwise
