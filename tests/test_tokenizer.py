"""The laws of tokenizers: bytes come back, ids are in range, files open here and elsewhere.

Two vocabularies stand for all: raw bytes, and one learnt from the text below.
"""

import copy
import json
import random
import subprocess
import sys
from unittest import mock

import numpy as np
import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st

from minifm.errors import ConfigError, FormatError
from minifm.text import StreamDecoder, Tokenizer, bytelevel, segments
from minifm.text.tokenizer import FIRST, MASK, PADDING, SENTINELS

TEXT = b"""The cat sat on the mat, and the cat's hat sat there too.
    def that(cat):  # the \xc3\xa9t\xc3\xa9
        return cat.hat + 1234

"""
BYTES, LEARNT = Tokenizer.bytes(), Tokenizer.train([TEXT] * 3, 300)
LIBRARY = tokenizers.Tokenizer.from_str(LEARNT.json)
LIBRARY.encode_special_tokens = True
both = pytest.mark.parametrize("vocabulary", [BYTES, LEARNT], ids=["bytes", "learnt"])

# What makes tokenizers stumble, between ordinary pieces.
PIECES = [b"the", b" cat", b"'s", b" ", b"  ", b"\n", b"\r\n", b"\t", b"x\ny", b"123", b"\0",
          b"<|endoftext|>", b"<|", b"\xff", b"\xc3", b"\xa9", b"\xc3\xa9", b"\xed\xa0\x80",
          b"\xf0\x9f\x98\x80", b"\xe2\x80", "\u0301".encode(), "\u00a0".encode(), "Ġ".encode(),
          "漢字".encode()]
texts = st.binary(max_size=40) | st.lists(st.sampled_from(PIECES), max_size=12).map(b"".join) \
    | st.text(max_size=20).map(str.encode)


# -- bytes come back -----------------------------------------------------------------------------


@both
@given(text=texts, specials=st.booleans())
def test_any_bytes_come_back_and_ids_are_in_range(vocabulary, text, specials):
    ids = vocabulary.encode(text, specials=specials)
    assert ids.dtype == np.int32 and ids.ndim == 1
    assert ((0 <= ids) & (ids < vocabulary.vocabulary)).all()
    assert vocabulary.decode(ids) == text
    if not specials:
        assert vocabulary.end_of_text not in ids


@both
@given(text=texts, specials=st.booleans())
def test_bytes_come_back_by_way_of_a_str(vocabulary, text, specials):
    """As Python reads a command line: what is not UTF-8 stands in the str as its escapes."""
    escaped = text.decode("utf-8", "surrogateescape")
    assert vocabulary.decode(vocabulary.encode(escaped, specials=specials)) == text
    halves = vocabulary.encode("\ud800" + escaped + "\udfff")
    assert vocabulary.decode(halves) == b"\xed\xa0\x80" + text + b"\xed\xbf\xbf"


@both
def test_each_id_stands_for_bytes_of_a_length(vocabulary):
    assert vocabulary.token_bytes == [vocabulary.decode([i]) for i in range(vocabulary.vocabulary)]
    assert vocabulary.token_lengths.tolist() == [len(data) for data in vocabulary.token_bytes]


@both
@given(some=st.lists(texts, max_size=5), specials=st.booleans())
def test_together_is_one_by_one(vocabulary, some, specials):
    together = vocabulary.encode_all(some, specials=specials)
    alone = [vocabulary.encode(text, specials=specials) for text in some]
    assert [x.tolist() for x in together] == [x.tolist() for x in alone]


@given(text=st.text(max_size=30))
def test_text_is_encoded_as_the_library_does(text):
    assert LEARNT.encode(text).tolist() == LIBRARY.encode(text).ids
    assert LEARNT.encode(text).tolist() == LEARNT.encode(text.encode()).tolist()


@given(some=st.lists(st.lists(st.sampled_from(PIECES), max_size=30).map(b"".join), max_size=3),
       segment=st.integers(1, 20), together=st.integers(1, 30))
def test_segments_and_groups_change_nothing(some, segment, together):
    some = [text + TEXT for text in some]
    expected = LEARNT.encode_all(some)
    with mock.patch.multiple(segments, SEGMENT=segment, TOGETHER=together):
        found = LEARNT.encode_all(some)
    assert [x.tolist() for x in found] == [x.tolist() for x in expected]


def test_a_text_is_bytes_or_str_and_an_id_of_the_vocabulary():
    for kind in (bytes, bytearray, memoryview):
        assert LEARNT.decode(LEARNT.encode(kind(TEXT))) == TEXT
    assert LEARNT.decode(LEARNT.encode("\ud800")) == b"\xed\xa0\x80"
    with pytest.raises(ConfigError, match="a text is bytes or str, got int"):
        LEARNT.encode(3)
    for wrong in (-1, LEARNT.vocabulary):
        with pytest.raises(ConfigError, match=f"token id {wrong}: expected 0 … "):
            LEARNT.decode([0, wrong])


@both
@given(text=texts)
def test_streamed_pieces_make_up_the_text(vocabulary, text):
    stream = StreamDecoder(vocabulary)
    for _ in range(2):              # finish() makes it as new
        pieces = [stream.add(int(i)) for i in vocabulary.encode(text)]
        assert "".join(pieces) + stream.finish() == text.decode("utf-8", "replace")


def test_a_streamed_character_is_held_back_until_it_is_whole():
    stream = StreamDecoder(BYTES)
    assert [stream.add(byte) for byte in "aé漢b".encode()] == ["a", "", "é", "", "", "漢", "b"]
    assert stream.finish() == ""
    assert [stream.add(0xE6), stream.finish()] == ["", "\ufffd"]


# Each is 1 MB and once took some tokenizer minutes: what is quadratic would take hours here.
ADVERSARIAL = """
import numpy as np
from minifm.text import Tokenizer
size = 1 << 20
texts = [b"a", b" ", b"\\nx", b"'s", b"a\\xff", b"<|endoftext|>"]
texts = [text * (size // len(text)) for text in texts] + [np.random.default_rng(0).bytes(size)]
vocabulary = Tokenizer.train([b"aaaaaaaa bbbb abab <|endoftext|>"] * 9, 290)
for text in texts:
    ids = vocabulary.encode(text)
    assert vocabulary.decode(ids) == text and vocabulary.end_of_text not in ids
"""


def test_a_megabyte_of_anything_is_soon_done():
    subprocess.run([sys.executable, "-c", ADVERSARIAL], check=True, timeout=240)


# -- special strings -----------------------------------------------------------------------------


@both
def test_special_strings_in_a_text_are_text_unless_asked_for(vocabulary):
    text, end = b"a<|endoftext|>b", vocabulary.end_of_text
    plain, marked = vocabulary.encode(text), vocabulary.encode(text, specials=True)
    assert end not in plain
    assert marked.tolist() == [*vocabulary.encode("a"), end, *vocabulary.encode("b")]
    assert vocabulary.decode(plain) == vocabulary.decode(marked) == text
    assert vocabulary.encode(b"\xff" + text, specials=True).tolist()[1:] == marked.tolist()


@pytest.mark.parametrize("settings, end, padding", [
    ({}, 299, None),
    ({"eos_token": "cat"}, LIBRARY.token_to_id("cat"), None),
    ({"eos_token": {"content": "<|endoftext|>"}, "pad_token": None}, 299, None),
    ({"eos_token": None, "pad_token": "!"}, 299, LIBRARY.token_to_id("!")),
    ({"pad_token": "<|endoftext|>"}, 299, None),        # what fills up must not mean an end
])
def test_settings_name_the_special_tokens(settings, end, padding):
    found = Tokenizer(LEARNT.json, settings)
    assert found.vocabulary == 300 and found.end_of_text == end
    assert found.padding == padding


def test_a_vocabulary_may_have_no_end_of_text():
    described = json.loads(LEARNT.json)
    del described["model"]["vocab"]["<|endoftext|>"]
    described["added_tokens"] = []
    for settings in ({}, {"eos_token": None}):
        assert Tokenizer(json.dumps(described), settings).end_of_text is None


@pytest.mark.parametrize("name", ["<|nowhere|>", 7, {"content": "<|nowhere|>"}, ["a"]])
def test_special_tokens_must_be_in_the_vocabulary(name):
    with pytest.raises(FormatError, match="eos_token: .* is not in the vocabulary"):
        Tokenizer(LEARNT.json, {"eos_token": name})


# -- learning ------------------------------------------------------------------------------------


def test_raw_bytes_are_their_values():
    assert (BYTES.vocabulary, BYTES.end_of_text, BYTES.padding) == (257, 256, None)
    assert BYTES.encode(bytes(range(256))).tolist() == list(range(256))


def test_learning_gives_the_vocabulary_asked_for_and_always_the_same():
    assert (LEARNT.vocabulary, LEARNT.end_of_text) == (300, 299)
    assert len(LEARNT.encode(TEXT)) < len(TEXT) / 2
    assert Tokenizer.train([TEXT] * 3, np.int64(300)).sha256 == LEARNT.sha256
    assert Tokenizer.train([TEXT] * 3, 290).sha256 != LEARNT.sha256
    assert Tokenizer.train(iter([TEXT.decode()] * 3), 300).sha256 == LEARNT.sha256


def test_a_vocabulary_with_more_special_tokens(tmp_path):
    specials = (FIRST, PADDING, MASK, *SENTINELS[:3])
    learnt = Tokenizer.train([b"hello there, hello <mask>"] * 9, 275, specials)
    for made in (learnt, Tokenizer.bytes(specials)):
        V = made.vocabulary
        assert (made.first, made.padding) == (0, 1)       # where RoBERTa has them
        assert (made.end_of_text, made.mask) == (V - 5, V - 4)
        assert made.separator == made.end_of_text
        assert made.sentinels == (V - 3, V - 2, V - 1)
        assert made.specials == (0, 1, *range(V - 5, V))
        text = b"hello <mask><pad>\xff"
        ids = made.encode(text)
        assert made.decode(ids) == text and not set(made.specials) & set(ids.tolist())
        made.save(tmp_path)
        again = Tokenizer.load(tmp_path)
        assert vars(again)["specials"] == made.specials and again.sha256 == made.sha256
        assert (again.mask, again.padding, again.first) == (V - 4, 1, 0)
        library = tokenizers.Tokenizer.from_str(made.json)
        for texts, ids in ((["a"], [[0], "a", [V - 5]]),
                           (["a", "b"], [[0], "a", [V - 5], "b", [V - 5]])):
            ids = [i for part in ids for i in
                   (made.encode(part).tolist() if isinstance(part, str) else part)]
            assert library.encode(*texts).ids == ids       # as an encoder has learnt to read
    assert learnt.vocabulary == 275
    assert (BYTES.mask, BYTES.first, BYTES.sentinels) == (None, None, ())
    with pytest.raises(ConfigError, match=r"from 263 \(the bytes, end-of-text and 6 more special"):
        Tokenizer.train([b""], 262, specials)


def test_learning_makes_up_no_merges_and_no_special_strings():
    assert Tokenizer.train([], 400).vocabulary == 257
    assert Tokenizer.train([b"abcdefg"], 400).vocabulary == 257
    found = Tokenizer.train([b"<|endoftext|> end\xff\xff\xff"] * 5, 400)
    assert 257 < found.vocabulary < 400 and found.end_of_text == found.vocabulary - 1
    assert found.decode(found.encode(b"<|endoftext|>")) == b"<|endoftext|>"
    assert found.end_of_text not in found.encode(b"<|endoftext|>")


@pytest.mark.parametrize("wrong", [256, 0, -5, 1 << 25, 300.0, True, None, "300"])
def test_a_vocabulary_has_a_sensible_size(wrong):
    with pytest.raises(ConfigError, match="vocabulary: expected an integer from 257"):
        Tokenizer.train([TEXT], wrong)


def test_the_alphabet_is_the_one_of_all_byte_level_vocabularies():
    assert len(set(bytelevel.ALPHABET)) == 256
    assert set(bytelevel.ALPHABET) == set(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    assert bytelevel.ALPHABET[ord(" ")] == "Ġ" and bytelevel.ALPHABET[ord("\n")] == "Ċ"
    for byte, symbol in enumerate(bytelevel.ALPHABET):
        assert bytelevel.from_alphabet(symbol) == bytes([byte])
    for outside in (" ", "a b", "\u0200", "漢", "\xad", "\0"):
        assert bytelevel.from_alphabet(outside) is None


# -- files ---------------------------------------------------------------------------------------


@both
def test_what_is_saved_loads_as_the_same_and_elsewhere(vocabulary, tmp_path):
    vocabulary.save(tmp_path)
    for path in (tmp_path, tmp_path / "tokenizer.json"):
        loaded = Tokenizer.load(path)
        assert loaded.sha256 == vocabulary.sha256
        assert (loaded.vocabulary, loaded.end_of_text) == \
            (vocabulary.vocabulary, vocabulary.end_of_text)
        assert loaded.encode(TEXT).tolist() == vocabulary.encode(TEXT).tolist()
    (tmp_path / "again").mkdir()
    loaded.save(tmp_path / "again")
    for file in (tmp_path / "again").iterdir():
        assert file.read_bytes() == (tmp_path / file.name).read_bytes()
    elsewhere = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert elsewhere.encode(TEXT.decode()).ids == vocabulary.encode(TEXT).tolist()
    assert elsewhere.encode("<|endoftext|>").ids == [vocabulary.end_of_text]
    assert elsewhere.decode(vocabulary.encode(TEXT).tolist()) == TEXT.decode()


def test_settings_are_kept(tmp_path):
    settings = {"eos_token": "cat", "chat_template": "é", "extra": [1, {"a": None}]}
    Tokenizer(LEARNT.json, settings).save(tmp_path)
    assert Tokenizer.load(tmp_path).settings == settings


def gpt2_files(directory, line_end="\n"):
    model = json.loads(LEARNT.json)["model"]
    merges = [" ".join(pair) for pair in model["merges"]]
    (directory / "vocab.json").write_text(json.dumps(model["vocab"]), "utf-8")
    text = line_end.join(["#version: 0.2", *merges, ""])
    (directory / "merges.txt").write_bytes(text.encode())


@pytest.mark.parametrize("line_end", ["\n", "\r\n"])
def test_the_two_files_of_gpt2_are_a_tokenizer_json(tmp_path, line_end):
    gpt2_files(tmp_path, line_end)
    found = Tokenizer.load(tmp_path)
    assert found.sha256 == LEARNT.sha256 and found.end_of_text == LEARNT.end_of_text
    assert found.encode(TEXT).tolist() == LEARNT.encode(TEXT).tolist()
    with pytest.raises(FormatError, match="no tokenizer here"):
        Tokenizer.load(tmp_path / "tokenizer.json")     # not the other files in its place


@pytest.mark.parametrize("file, text, said", [
    ("merges.txt", "#version: 0.2\nt h\nonly\n", "merges.txt: line 3: expected two tokens"),
    ("merges.txt", "t nowhere\n", "vocab.json: not a tokenizer that can be read"),
    ("vocab.json", "[]", "vocab.json: expected a JSON object, got list"),
    ("vocab.json", '{"a": 0}', "vocab.json"),
    ("vocab.json", None, "no tokenizer here; expected tokenizer.json or vocab.json and merges"),
    ("merges.txt", None, "no tokenizer here"),
    ("merges.txt", b"\xff\xff", "merges.txt: cannot be read as UTF-8 text"),
    ("tokenizer.json", "{", "tokenizer.json: not JSON"),
    ("tokenizer.json", "[" * 100_000, "tokenizer.json: not JSON"),
    ("tokenizer_config.json", "3", "tokenizer_config.json: expected a JSON object, got int"),
])
def test_bad_files_are_named(tmp_path, file, text, said):
    gpt2_files(tmp_path)
    if text is None:
        (tmp_path / file).unlink()
    else:
        (tmp_path / file).write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(FormatError) as refusal:
        Tokenizer.load(tmp_path)
    assert said in str(refusal.value)


def test_nothing_is_no_tokenizer(tmp_path):
    for path in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(FormatError, match="no tokenizer here"):
            Tokenizer.load(path)


@pytest.mark.parametrize("path, value, said", [
    (("model", "type"), "WordLevel", "model: expected BPE with vocab and merges, .* 'WordLevel'"),
    (("model", "type"), "WordPiece", "model.unk_token: None is not in the vocabulary"),
    (("model", "type"), "Unigram", "model: expected BPE"),
    (("model", "dropout"), 0.1, "model.dropout: expected none, found 0.1"),
    (("model", "continuing_subword_prefix"), "##", "model.continuing_subword_prefix"),
    (("model", "end_of_word_suffix"), "</w>", "no token for 256 of the 256 bytes"),
    (("decoder",), {"type": "CTC", "pad_token": "a", "word_delimiter_token": "b",
                    "cleanup": True}, "decoder: .* is not read"),
    (("decoder",), {"type": "WordPiece", "prefix": "##", "cleanup": True}, "decoder"),
    (("model", "vocab", "Ġ"), 5000, "no token has id"),
    (("model", "vocab", "a b"), 300, "token 300: 'a b' is no string of bytes"),
    (("pre_tokenizer",), None, "text is changed: .* becomes"),
    (("pre_tokenizer",), {"type": "Sequence", "pretokenizers": []}, "text is changed"),
    (("normalizer",), {"type": "ByteLevel"}, "text is changed"),
    (("normalizer",), {"type": "Replace", "pattern": {"String": "c"}, "content": ""}, "changed"),
    (("added_tokens", 0, "content"), "Ġ", "text is changed|without gaps"),
])
def test_what_is_no_byte_level_bpe_is_refused(path, value, said):
    described = json.loads(LEARNT.json)
    place = described
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    with pytest.raises(FormatError, match=said):
        Tokenizer(json.dumps(described), file="x.json")


def paths_in(value, path=()):
    """The path of keys to each part of a JSON value, of long lists the first few."""
    yield path
    entries = value.items() if isinstance(value, dict) else enumerate(value) \
        if isinstance(value, list) else ()
    for key, part in list(entries)[:20]:
        yield from paths_in(part, (*path, key))


DESCRIBED = json.loads(LEARNT.json)
PATHS = [path for path in paths_in(DESCRIBED) if path]
JUNK = [None, 0, -1, 1.5, True, "", "x", [], {}, [["a", "b"]], ["a"], {"a": 1}, 1 << 32, 10**30]


@given(seed=st.integers(0, 2**32 - 1))
def test_a_damaged_file_is_refused_or_loses_nothing(seed):
    chooser = random.Random(seed)
    described = copy.deepcopy(DESCRIBED)
    for path in chooser.sample(PATHS, chooser.choice([1, 1, 2, 3])):
        place = described
        try:
            for key in path[:-1]:
                place = place[key]
            if chooser.random() < 0.3:
                del place[path[-1]]
            else:
                place[path[-1]] = chooser.choice(JUNK)
        except (KeyError, IndexError, TypeError):
            pass                    # another damage has already removed this place
    described["pre_tokenizer"] = DESCRIBED["pre_tokenizer"]     # may ask for a space in front
    try:
        found = Tokenizer(json.dumps(described))
    except FormatError:
        return
    text = b"a<|endoftext|> The\tcat\n\xff " + "é漢".encode()
    assert found.decode(found.encode(text)) == text


@given(end=st.integers(0, len(LEARNT.json) - 1))
def test_a_truncated_file_is_refused(end):
    with pytest.raises(FormatError):
        Tokenizer(LEARNT.json[:end])
