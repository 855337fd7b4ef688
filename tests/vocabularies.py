"""Small vocabularies in the layout of the published ones: what is normalised, how text is cut, what
stands around it and how it is decoded is as in the `tokenizer.json` of the models that are named;
the tokens are learnt from the text below, by the library."""

import json
import struct
from functools import lru_cache

from tokenizers import (
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

TEXT = """The cat sat on the mat, and the cat's hat sat there too. It was 1234 feet high!
Zoë met Angela Merkel in São Paulo: "où est-elle?" they asked (and others, too).
    def that(cat):  return cat.hat + 12 * 3.5
naïve café, résumé; the theatre of the other mother. 漢字 and 日本 are written so.
A cat, dog, cow or hen is an animal; an oak, elm, fir or ivy a plant. Who? It is.
"""
BERT_SPECIALS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
SENTINELS = [f"<extra_id_{i}>" for i in range(99, -1, -1)]
ALPHABET = sorted(pre_tokenizers.ByteLevel.alphabet())
CLIP_WORDS = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]


@lru_cache
def bert(lower=True):
    """WordPiece as of bert-base-uncased, or of bert-base-cased."""
    library = Tokenizer(models.WordPiece(unk_token="[UNK]", max_input_chars_per_word=100))
    library.normalizer = normalizers.BertNormalizer(lowercase=lower)
    library.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    library.decoder = decoders.WordPiece("##", True)
    _learn(library, trainers.WordPieceTrainer(vocab_size=300, special_tokens=BERT_SPECIALS,
                                              show_progress=False))
    ids = [(token, library.token_to_id(token)) for token in ("[CLS]", "[SEP]")]
    library.post_processor = processors.TemplateProcessing(
        single="[CLS]:0 $A:0 [SEP]:0", pair="[CLS]:0 $A:0 [SEP]:0 $B:1 [SEP]:1",
        special_tokens=ids)
    return library.to_str()


@lru_cache
def t5():
    """Unigram as of t5-small. Its table of characters is SentencePiece's own; NFKC stands in for
    it here."""
    library = Tokenizer(models.Unigram())
    library.normalizer = normalizers.NFKC()
    space = pre_tokenizers.Metaspace("▁", "always")
    library.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), space])
    library.decoder = decoders.Metaspace("▁", "always")
    _learn(library, trainers.UnigramTrainer(
        vocab_size=250, special_tokens=["<pad>", "</s>", "<unk>"], unk_token="<unk>",
        show_progress=False))
    described = json.loads(library.to_str())
    vocab, added = described["model"]["vocab"], described["added_tokens"]
    added += [added[0] | {"id": len(vocab) + i, "content": token}
              for i, token in enumerate(SENTINELS)]
    vocab += [[token, 0.0] for token in SENTINELS]      # as in the published file
    library = Tokenizer.from_str(json.dumps(described))
    library.post_processor = processors.TemplateProcessing(
        single="$A </s>", pair="$A </s> $B </s>",
        special_tokens=[("</s>", library.token_to_id("</s>"))])
    return library.to_str()


@lru_cache
def llama(legacy=True):
    """BPE with a byte for what is unknown, as of Llama 2; not `legacy`: as of Mistral's later
    ones, where the space stands before a text, not behind each special token."""
    library = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    spaces = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(),
              decoders.Strip(" ", 1, 0)]
    library.decoder = decoders.Sequence(spaces)
    library.pre_tokenizer = pre_tokenizers.Metaspace("▁", "always")     # to learn no long ones
    alphabet = sorted(set(TEXT) & set(map(chr, range(33, 127))))
    _learn(library, trainers.BpeTrainer(
        vocab_size=480, special_tokens=["<unk>", "<s>", "</s>", *BYTES], show_progress=False,
        initial_alphabet=alphabet, limit_alphabet=len(alphabet) + 1))
    described = json.loads(library.to_str())
    described["added_tokens"] = described["added_tokens"][:3]       # bytes are tokens as any other
    described["pre_tokenizer"] = described["normalizer"] = None
    library = Tokenizer.from_str(json.dumps(described))
    if legacy:
        library.normalizer = normalizers.Sequence(
            [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    else:
        library.pre_tokenizer = pre_tokenizers.Metaspace("▁", "first", split=False)
    library.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s>:1 $B:1", special_tokens=[("<s>", 1)])
    return library.to_str()


@lru_cache
def clip():
    """BPE over the bytes of words, as of clip-vit-base-patch32."""
    library = Tokenizer(models.BPE(
        unk_token="<|endoftext|>", continuing_subword_prefix="", end_of_word_suffix="</w>"))
    library.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()])
    library.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(CLIP_WORDS), "removed", invert=True),
        pre_tokenizers.ByteLevel(add_prefix_space=False)])
    library.decoder = decoders.ByteLevel()
    library.post_processor = processors.RobertaProcessing(
        ("<|endoftext|>", 0), ("<|startoftext|>", 1), trim_offsets=False, add_prefix_space=False)
    return _with_ends(library, ALPHABET, ["<|startoftext|>", "<|endoftext|>"])


@lru_cache
def gpt1():
    """BPE over words, as of openai-gpt."""
    library = Tokenizer(models.BPE(unk_token="<unk>", end_of_word_suffix="</w>"))
    library.normalizer = normalizers.BertNormalizer(lowercase=True)
    library.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    library.decoder = decoders.BPEDecoder("</w>")
    return _with_ends(library, sorted({*"abcdefghijklmnopqrstuvwxyz", *TEXT.lower()} - {*" \n"}),
                      ["<unk>"])


def _with_ends(library, alphabet, specials):
    """Learnt, with every letter of the alphabet as a token by itself and at the end of a word;
    what is special comes last."""
    _learn(library, trainers.BpeTrainer(
        vocab_size=2 * len(alphabet) + 150, end_of_word_suffix="</w>", show_progress=False,
        special_tokens=[]))
    described = json.loads(library.to_str())
    model = described["model"]
    single = [letter + end for end in ("", "</w>") for letter in alphabet]
    learnt = [token for token in model["vocab"] if token not in set(single)]
    ids = {token: i for i, token in enumerate([*single, *learnt, *specials])}
    model["vocab"] = ids
    described["added_tokens"] = [
        {"id": ids[token], "content": token, "single_word": False, "lstrip": False,
         "rstrip": False, "normalized": False, "special": True} for token in specials]
    for role in ("sep", "cls"):
        if described["post_processor"]:
            token = described["post_processor"][role][0]
            described["post_processor"][role][1] = ids[token]
    return Tokenizer.from_str(json.dumps(described)).to_str()


def _learn(library, trainer):
    library.train_from_iterator([TEXT] * 4, trainer)


# -- the files that older models have ------------------------------------------------------------

MERGES = [["t", "h"], ["th", "e</w>"], ["c", "a"], ["ca", "t</w>"], ["h", "a"], ["ha", "t"],
          ["hat", "s</w>"], ["th", "e"]]
BERT_SETTINGS = [{}, {"do_lower_case": False}, {"strip_accents": False}, {"strip_accents": True,
                 "do_lower_case": False}, {"tokenize_chinese_chars": False}]
BERT_WORDS = ["the", "cat", "mother", "naive", "na", "##ïve", "##ive", "zoe", "zoë", "Zoë", "The",
              "and", "sat", "hat", "un", "##aff", "##able", "ete", "été", "one", "on", "a", "A"]


def bert_files(directory, settings):
    """vocab.txt, and tokenizer_config.json."""
    letters = list("abcdefghijklmnopqrstuvwxyz")
    vocab = [*BERT_SPECIALS, *"'!,.[]<>|/漢", "漢字", "##字", "字", *letters[1:],
             *("##" + letter for letter in letters), *BERT_WORDS]
    (directory / "vocab.txt").write_text("\n".join(vocab) + "\n", "utf-8")
    (directory / "tokenizer_config.json").write_text(json.dumps(
        settings | {"tokenizer_class": "BertTokenizer"}))


def clip_files(directory, settings):
    """vocab.json and merges.txt of CLIP."""
    single = [letter + end for end in ("", "</w>") for letter in ALPHABET]
    _bpe_files(directory, [*single, *map("".join, MERGES), "<|startoftext|>", "<|endoftext|>"],
               MERGES, settings | {"tokenizer_class": "CLIPTokenizer"})


def roberta_files(directory, settings):
    """The same of RoBERTa: no mark at the end of a word."""
    merges = [[part.removesuffix("</w>") for part in pair] for pair in MERGES[:-1]]
    _bpe_files(directory, ["<s>", "<pad>", "</s>", "<unk>", *ALPHABET,
                           *map("".join, merges), "<mask>"],
               merges, settings | {"tokenizer_class": "RobertaTokenizer"})


def _bpe_files(directory, tokens, merges, settings):
    ids = {token: i for i, token in enumerate(tokens)}
    (directory / "vocab.json").write_text(json.dumps(ids), "utf-8")
    (directory / "merges.txt").write_text("\n".join(
        ["#version: 0.2", *map(" ".join, merges), ""]), "utf-8")
    (directory / "tokenizer_config.json").write_text(json.dumps(settings))


def sentencepiece_file(file, pieces, kind, **trainer):
    """A SentencePiece model, a protocol buffer: `pieces` [(text, score, type)], the model's `kind`
    and what `trainer` says of byte_fallback."""
    def varint(n):
        return bytes([n]) if n < 128 else bytes([n & 127 | 128]) + varint(n >> 7)

    def field(number, value):
        if isinstance(value, int):
            return varint(number << 3) + varint(value)
        if isinstance(value, float):
            return varint(number << 3 | 5) + struct.pack("<f", value)
        return varint(number << 3 | 2) + varint(len(value)) + value

    data = b"".join(field(1, field(1, text.encode()) + field(2, float(score)) + field(3, type))
                    for text, score, type in pieces)
    said = field(3, kind) + (field(35, 1) if trainer.get("byte_fallback") else b"")
    file.write_bytes(data + field(2, said) + field(3, field(1, b"identity") + field(3, 1)))
