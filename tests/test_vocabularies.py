"""Vocabularies that others have published, of every kind that is read: ids are those of the
library, what a vocabulary keeps of a text comes back, places are those of the text that was given,
and what a user writes is never a special token.

The vocabularies are small, in the layout of the published ones (vocabularies.py); of older files
the golden ids are transformers' (golden/make_vocabularies.py).
"""

import json
import random
import re
import unicodedata
from pathlib import Path

import numpy as np
import pytest
import tokenizers
import vocabularies
from hypothesis import example, given
from hypothesis import strategies as st

import minifm as mf
from minifm.errors import ConfigError, FormatError
from minifm.evaluation import perplexity
from minifm.evaluation.perplexity import WindowConfig
from minifm.generation import Choices, Regex, Sampling, generate
from minifm.models import GPT, T5, GPTConfig, T5Config
from minifm.text import ChatTemplate, StreamDecoder, Tokenizer, variants
from minifm.text.masking import Words
from minifm.text.offsets import Encoded, Frame, encode_with_offsets
from minifm.text.sentencepiece import fields, read_model
from minifm.text.spelling import PIECES, WORD_END, WORD_PIECE

FILES = {"bert": vocabularies.bert(), "bert-cased": vocabularies.bert(lower=False),
         "t5": vocabularies.t5(), "llama": vocabularies.llama(),
         "mistral": vocabularies.llama(legacy=False), "clip": vocabularies.clip(),
         "gpt1": vocabularies.gpt1()}
READ = {name: Tokenizer(text) for name, text in FILES.items()}
LIBRARY = {name: tokenizers.Tokenizer.from_str(text) for name, text in FILES.items()}
for library in LIBRARY.values():
    library.encode_special_tokens = True
every = pytest.mark.parametrize("name", FILES)
LOSSLESS = ("llama", "mistral")
GOLDEN = json.loads((Path(__file__).parent / "golden" / "vocabularies.json").read_text("utf-8"))

SPECIALS = ["[SEP]", "[UNK]", "</s>", "<s>", "<unk>", "<pad>", "<extra_id_7>", "<|endoftext|>",
            "[CLS]", "<0x41>"]
PIECES_OF_TEXT = ["the", " cat", "The", "'s", " ", "  ", "\n", "\t", "hat.", ", ", "!", "naïve",
                  "Ω", "e\u0301", "漢字", "☃", "😀", "ﬁ", "①", "\u00a0", "\u3000", "12", "##s", "▁"]
plain = st.lists(st.sampled_from(PIECES_OF_TEXT), max_size=10).map("".join) \
    | st.text(max_size=12).filter(str.isprintable)
written = plain | st.lists(st.sampled_from(PIECES_OF_TEXT + SPECIALS), max_size=8).map("".join)


# -- text to ids and back ------------------------------------------------------------------------


@every
def test_a_vocabulary_knows_its_roles(name):
    t, said = READ[name], vars(READ[name])
    roles = {role: said[role] is not None and t.names[said[role]]
             for role in ("end_of_text", "padding", "first", "separator", "mask")}
    bert = {"end_of_text": "[SEP]", "padding": "[PAD]", "first": "[CLS]", "separator": "[SEP]",
            "mask": "[MASK]"}
    llama = {"end_of_text": "</s>", "padding": False, "first": "<s>", "separator": "</s>",
             "mask": False}
    none = dict.fromkeys(bert, False)
    clip = none | {"end_of_text": "<|endoftext|>", "separator": "<|endoftext|>"}
    t5 = none | {"end_of_text": "</s>", "padding": "<pad>", "separator": "</s>"}
    assert roles == {"bert": bert, "bert-cased": bert, "t5": t5, "llama": llama, "mistral": llama,
                     "clip": clip, "gpt1": none}[name]
    assert t.spelling.kind == {"b": WORD_PIECE, "t": PIECES, "l": PIECES, "m": PIECES}.get(
        name[0], WORD_END)
    assert t.spelling.whole == (name in LOSSLESS) == (t.token_lengths is not None)
    assert len(t.sentinels) == (100 if name == "t5" else 0)
    assert [t.names[i] for i in t.sentinels[:2]] == ["<extra_id_0>", "<extra_id_1>"][: len(
        t.sentinels)]
    frame = Frame.of(t) if t.end_of_text is not None else None
    assert frame is None or [[t.names[i] for i in ids] for ids in (
        frame.before, frame.between, frame.behind)] == {
            "b": [["[CLS]"], ["[SEP]"], ["[SEP]"]], "t": [[], ["</s>"], ["</s>"]],
            "l": [["<s>"], ["<s>"], []], "m": [["<s>"], ["<s>"], []],
            "c": [["<|startoftext|>"], ["<|endoftext|>"] * 2, ["<|endoftext|>"]]}[name[0]]


@every
@given(texts=st.lists(plain, max_size=3))
def test_ids_are_those_of_the_library(name, texts):
    expected = [LIBRARY[name].encode(text, add_special_tokens=False).ids for text in texts]
    assert [ids.tolist() for ids in READ[name].encode_all(texts)] == expected
    assert [READ[name].encode(text.encode()).tolist() for text in texts] == expected


@every
@given(text=written)
def test_what_a_user_writes_is_never_special(name, text):
    t = READ[name]
    found = {t.names[i] for i in t.encode(text) if t.spellings[i] is None}
    assert found <= {"[UNK]", "<unk>"}
    for behind in (False, True):            # unknown, not read: a text that knows all has none
        known = [s for s in SPECIALS if s in t.names and t.names.index(s) in t.specials]
        ids = t.encode("".join(known), behind=behind)
        assert not {t.names[i] for i in ids} & set(known) - {"[UNK]", "<unk>"}


@pytest.mark.parametrize("special", ["</s>", "<unk>", "<extra_id_3>"])
def test_a_special_string_that_the_model_knows_as_a_piece_is_text(special):
    described = json.loads(FILES["t5"])
    described["model"]["vocab"] += [[letter, -9.0] for letter in "<>/_x" if letter not in {
        piece for piece, _ in described["model"]["vocab"]}]
    t = Tokenizer(json.dumps(described))
    raw = tokenizers.Tokenizer.from_str(json.dumps(described))
    raw.encode_special_tokens = True
    assert t.names.index(special) in raw.encode(f"a{special} cat").ids       # the danger is real
    assert t.decode(t.encode(f"a{special} cat")).decode() == f"a{special} cat"
    assert t.names.index(special) not in t.encode(f"a{special} cat")
    assert t.names.index(special) in t.encode(f"a{special} cat", specials=True)


@every
@given(text=written)
def test_special_strings_are_found_where_they_stand(name, text):
    t = READ[name]
    for i, start, end in t.specials_in(text):
        assert t.names[i] in text[start:end] and t.spellings[i] is None
    known = [s for s in ("[SEP]", "</s>", "<|endoftext|>") if s in t.names]
    for s in known:
        assert (t.names.index(s), 2, 2 + len(s)) in t.specials_in(f"a {s}☃")
        assert len(t.specials_in(f"a {s}☃")) == 1       # ☃ is unknown to most, and none is there


@every
@given(text=written)
def test_what_is_decoded_is_the_text_of_the_library(name, text):
    ids = READ[name].encode(text)
    found = READ[name].decode(ids).decode("utf-8", "replace")
    expected = LIBRARY[name].decode(ids.tolist(), skip_special_tokens=False)
    if name == "clip":          # whose decoder leaves the mark of a word's end
        expected = expected.replace("</w>", " ").removesuffix(" ")
    assert found == expected


@pytest.mark.parametrize("name", LOSSLESS)
@given(text=written)
def test_where_bytes_stand_for_what_is_unknown_all_comes_back(name, text):
    found = READ[name].decode(READ[name].encode(text)).decode()
    expected = text.replace("▁", " ")           # the mark itself is read as what it stands for
    if name == "mistral":                       # a space that is there already is not put there
        expected = expected.removeprefix(" ")
    assert found == expected


def test_what_is_lost_is_what_the_vocabulary_loses():
    text = "The  naïve\tCat's ☃"
    assert {name: t.decode(t.encode(text)).decode() for name, t in READ.items()} == {
        "bert": "the naive cat ' s [UNK]", "bert-cased": "The naïve [UNK] ' s [UNK]",
        "t5": "The naïve <unk>at's <unk>", "llama": text, "mistral": text,
        "clip": "the naïve cat 's ☃", "gpt1": "the naive cat ' s <unk>"}


@every
def test_what_is_no_utf8_is_one_replacement_for_each_byte(name):
    t = READ[name]
    assert t.encode(b"a\xff\xfe cat").tolist() == t.encode("a\ufffd\ufffd cat").tolist()
    assert t.encode("\ud800").tolist() == t.encode("\ufffd" * 3).tolist()


@every
@given(text=written, data=st.data())
def test_streamed_pieces_make_up_the_text(name, text, data):
    t = READ[name]
    ids = t.encode(text).tolist() + data.draw(st.lists(st.integers(0, t.vocabulary - 1),
                                                       max_size=4))
    for begins, said in ((True, t.decode(ids)), (False, t.spelt(ids))):
        stream = StreamDecoder(t, begins)
        for _ in range(2):
            pieces = "".join([stream.add(i) for i in ids]) + stream.finish()
            assert pieces == said.removesuffix(t.spelling.back).decode("utf-8", "replace")


@pytest.mark.parametrize("name", LOSSLESS)
@given(first=plain, second=plain)
def test_a_text_behind_another_has_no_space_of_its_own(name, first, second):
    t, first = READ[name], f"a{first}"
    ids = [*t.encode(first), *t.encode(second, behind=True)]
    assert t.decode(ids).decode() == (first + second).replace("▁", " ")
    encoded = Encoded.all(t, [second], behind=True)[0]
    assert encoded.ids.tolist() == t.encode(second, behind=True).tolist()
    if "▁" not in second:
        assert [second.encode()[start:end] for start, end in encoded.offsets] == [
            t.token_bytes[i] for i in encoded.ids]


@every
def test_where_each_word_has_its_space_it_has_it_behind_a_text_too(name):
    if name not in LOSSLESS:
        for text in ("the cat", " the", ""):
            assert READ[name].encode(text, behind=True).tolist() == \
                READ[name].encode(text).tolist()


@every
def test_what_is_saved_opens_here_and_elsewhere(name, tmp_path):
    READ[name].save(tmp_path)
    again = Tokenizer.load(tmp_path)
    assert again.sha256 == READ[name].sha256 and again.spelling == READ[name].spelling
    for role in ("end_of_text", "padding", "first", "separator", "mask"):
        assert vars(again)[role] == vars(READ[name])[role]
    library = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert library.encode("the cat").ids == tokenizers.Tokenizer.from_str(
        FILES[name]).encode("the cat").ids
    assert len({t.sha256 for t in READ.values()}) == len(READ)


# -- places --------------------------------------------------------------------------------------


def plainest(text):
    """What is left of a text when all that some vocabulary changes is changed."""
    text = unicodedata.normalize("NFKD", text).lower()
    return "".join(c for c in text if unicodedata.category(c) not in ("Mn", "Cc", "Cf")
                   and not c.isspace() and c != "▁")


@every
@given(text=written)
@example("  two e\u0301te\u0301  ﬁx 漢字\u0301 ")
def test_places_are_those_of_the_text_that_was_given(name, text):
    t, data = READ[name], text.encode()
    ids, offsets = encode_with_offsets(t, text)
    assert ids.tolist() == t.encode(text).tolist()
    assert offsets.shape == (len(ids), 2) and (np.diff(offsets, axis=0) >= 0).all()
    assert (offsets[:, 0] <= offsets[:, 1]).all() and (offsets <= len(data)).all() \
        and (offsets >= 0).all()
    whole = t.decode(ids) == data and name in LOSSLESS
    for token, (start, end) in zip(ids, offsets.tolist()):
        if whole:
            assert t.token_bytes[token].removeprefix(b" " * (start == 0)) \
                == data[start:end].removeprefix(b" " * (start == 0))
        elif t.spellings[token] is not None and name not in ("clip", *LOSSLESS):
            said = plainest(t.token_bytes[token].decode())      # a letter may become several
            assert said in plainest(data[start:end].decode())
    covered = {i for start, end in offsets.tolist() for i in range(start, end)}
    lost = bytes(byte for i, byte in enumerate(data) if i not in covered).decode()
    if name != "clip":                  # which removes what is neither letter, digit nor mark
        assert plainest(lost) == ""


@every
def test_a_space_that_is_not_in_the_text_has_no_place(name):
    ids, offsets = encode_with_offsets(READ[name], "漢 Zoë")
    for token, (start, end) in zip(ids.tolist(), offsets.tolist()):
        assert (READ[name].token_bytes[token] == b" ") <= (start == end or (start, end) == (3, 4))


@every
@given(text=plain, data=st.data())
def test_a_span_of_words_comes_back_as_it_was(name, text, data):
    text = f"the {text} cat sat on"
    for word in ("the", "cat", "sat", "on"):
        encoded = Encoded.all(READ[name], [text])[0]
        start = text.rfind(word)
        if text[start - 1 : start].strip() == "" and text[start + len(word) :][:1].strip() == "":
            assert encoded.fits(start, start + len(word)) or name in LOSSLESS
    start = text.rfind("cat")
    first, stop = encoded.tokens(start, start + 3)
    low, high = encoded.characters(first, stop)
    assert low <= start and high >= start + 3


def test_a_mark_belongs_to_the_letter_before_it():
    for name in ("bert", "t5", "gpt1", "clip"):
        encoded = Encoded.all(READ[name], ["cafe\u0301 e\u0301"])[0]
        assert encoded.characters(0, len(encoded.ids)) == (0, 8)
        assert encoded.characters(*encoded.tokens(0, 5)) == (0, 5)


@pytest.mark.parametrize("name", ["bert", "t5", "llama", "clip", "gpt1"])
def test_a_word_is_masked_as_a_whole(name):
    t = READ[name]
    compound = "thehat" if name == "bert" else "mothercat"
    ids = t.encode(f"A {compound} , the theatre of the animals")
    words = re.findall(r"\w+|[^\w\s]", t.decode(ids).decode())
    starts = Words(t.token_bytes)(ids[None])[0]
    solid = ~t.blank[ids]
    assert words[1:3] == [compound, ","] and starts[solid].sum() == len(words) < solid.sum()


# -- around texts --------------------------------------------------------------------------------


CHAT = ("{{ bos_token }}[INST] {{ messages[0].content }} [/INST] the cat</s>{{ bos_token }}[INST] "
        "hat")


@pytest.mark.parametrize("name", LOSSLESS)
@pytest.mark.parametrize("said", ["the cat", " </s> sat", "<s>", ""])
def test_a_conversation_is_encoded_as_the_library_does(name, said):
    chat = ChatTemplate({"default": (CHAT, "x.jinja", "")}, {"bos_token": "<s>"})
    ids, _ = chat.encode(READ[name], [{"role": "user", "content": said}])
    whole = tokenizers.Tokenizer.from_str(FILES[name])
    if "s>" not in said:
        text = chat.render([{"role": "user", "content": said}])
        assert ids.tolist() == whole.encode(text, add_special_tokens=False).ids
    assert sum(ids == 1) == 2 and sum(ids == 2) == 1        # the template's, not the user's


def writer(t, seed=0):
    return GPT(GPTConfig(vocabulary=t.vocabulary, context=64, layers=1, heads=2, width=16),
               mf.Rng(seed))


def test_a_prompt_stands_in_what_the_file_puts_around_a_text():
    t = READ["llama"]
    model = writer(t)
    options = {"strategy": Sampling(temperature=0), "max_tokens": 8}
    text = generate(model, t, ["the cat"], **options)[0]
    assert generate(model, t, [[1, *t.encode("the cat").tolist()]], **options)[0] == text
    assert text.text == t.spelt(text.tokens).decode("utf-8", "replace")
    assert generate(model, t, [""], **options)[0].tokens        # there is <s> to go on from
    with pytest.raises(ConfigError, match="prompt is empty"):
        generate(writer(READ["gpt1"]), READ["gpt1"], [""], **options)


def test_an_encoder_decoder_reads_a_source_with_its_end_and_begins_its_text():
    t = READ["t5"]
    model = T5(T5Config(vocabulary=t.vocabulary, layers=1, heads=2, width=16, head_width=8,
                        padding=t.padding, start=t.padding, end=t.end_of_text), mf.Rng(1))
    options = {"strategy": Sampling(temperature=0), "max_tokens": 8}
    done = generate(model, t, ["the cat"], **options)[0]
    ids = [*t.encode("the cat").tolist(), t.end_of_text]
    assert generate(model, t, [ids], **options)[0] == done
    assert done.text == t.decode([i for i in done.tokens if i != t.end_of_text]).decode()


# -- constraints ---------------------------------------------------------------------------------


def texts_under(constraint, t, begins, runs=60):
    """Texts that random choices among the tokens which may come lead to."""
    guide, rng, found = constraint.guide(t, t.vocabulary, begins), random.Random(0), set()
    for _ in range(runs):
        state, ids = guide.start, []
        while t.end_of_text not in ids:
            allowed = np.flatnonzero(guide.allowed(state, room=40 - len(ids)))
            assert len(allowed), "a dead end"
            ids.append(int(rng.choice(allowed.tolist())))
            state = guide.advance(state, ids[-1])
            assert len(ids) <= 40
        found.add((t.decode if begins else t.spelt)(ids[:-1]).decode())
    return found


@pytest.mark.parametrize("name, begins", [("llama", False), ("llama", True), ("t5", True),
                                          ("t5", False), ("bert", True)])
def test_texts_under_a_constraint_are_those_that_it_accepts(name, begins):
    t = READ[name]
    assert texts_under(Choices(["the cat", "hat", "the"]), t, begins) <= {"the cat", "hat", "the"}
    assert texts_under(Choices(["the cat", "that"]), t, begins) == (
        {"the cat", "that"} if name != "bert" or begins else {"that"})
    for text in texts_under(Regex("(the|cat)( hat)?( a)*"), t, begins):
        assert set(text.split()) <= {"the", "cat", "hat", "a"} and text == " ".join(text.split())


@pytest.mark.parametrize("name", ["llama", "t5", "bert"])
def test_a_text_begins_with_a_word_as_the_vocabulary_writes_it(name):
    t = READ[name]
    word = next(i for i, data in enumerate(t.token_bytes) if data in (b" the", b" cat", b" mat"))
    choices = Choices([t.token_bytes[word].decode().strip() + " hat"])
    for begins in (False, True):
        guide = choices.guide(t, t.vocabulary, begins) if begins or name != "bert" else None
        assert guide is None or guide.allowed(guide.start)[word] == begins


def test_what_no_tokens_spell_is_left_out_or_refused():
    t = READ["t5"]
    assert texts_under(Choices(["the", "the ☃", "☃"]), t, True) == {"the"}
    assert texts_under(Choices(["the ☃", "☃", "thé"]), READ["llama"], False) == {
        "the ☃", "☃", "thé"}
    with pytest.raises(ConfigError, match="the tokens of tokenizer.json spell no text"):
        Choices(["☃", "a☃"]).guide(t, t.vocabulary, True)
    with pytest.raises(ConfigError, match="marks where words end"):
        Choices(["a"]).guide(READ["clip"], 700)


# -- how good a model is -------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["llama", "t5", "bert"])
def test_bits_are_counted_over_the_bytes_that_were_given(name):
    t, texts = READ[name], ["The cat's hat, sat ☃", b"a  hat", "the\xff"]
    found = perplexity(writer(t), t, texts)
    assert found.bytes == sum(len(x if isinstance(x, bytes) else x.encode()) for x in texts)
    assert found.tokens == sum(len(t.encode(text)) for text in texts)
    assert found.changed == {"llama": 0, "t5": 3, "bert": 3}[name]
    ids, offsets = encode_with_offsets(t, texts[0])
    for most in (1, 4, len(ids)):
        cut = perplexity(writer(t), t, texts, WindowConfig(tokens=most))
        assert (cut.tokens, cut.documents, cut.bytes) == (most, 1, offsets[most - 1, 1])


def test_a_first_token_follows_what_stands_before_a_text():
    t = READ["llama"]
    model = writer(t)
    found = perplexity(model, t, ["the cat sat"])
    ids = np.array([[1, *t.encode("the cat sat")]])
    x = model(ids[:, :-1]).numpy().astype(np.float64)
    x -= np.logaddexp.reduce(x, axis=-1, keepdims=True)
    expected = -x[0, np.arange(len(ids[0]) - 1), ids[0, 1:]].sum()
    assert abs(found.nats - expected) < 1e-4 * abs(expected)


# -- older files ---------------------------------------------------------------------------------


@pytest.mark.parametrize("kind, number", [(kind, i) for kind in ("bert", "clip", "roberta")
                                          for i in range(len(GOLDEN[kind]))])
def test_older_files_are_read_as_transformers_reads_them(kind, number, tmp_path):
    golden = GOLDEN[kind][number]
    getattr(vocabularies, f"{kind}_files")(tmp_path, golden["settings"])
    t = Tokenizer.load(tmp_path)
    frame = Frame.of(t)
    for text, ids in zip(GOLDEN["texts"], golden["ids"]):
        assert [*frame.before, *t.encode(text).tolist(), *frame.behind] == ids
    assert frame.around(t.encode("a cat"), t.encode("the hat"))[0].tolist() == golden["pair"]
    assert t.decode(t.encode(GOLDEN["texts"][0])).decode() == golden["decoded"]
    (tmp_path / "new").mkdir()
    t.save(tmp_path / "new")
    again = Tokenizer.load(tmp_path / "new")
    assert again.sha256 == t.sha256 and again.mask == t.mask and again.settings == t.settings


def test_the_two_files_of_gpt1(tmp_path):
    model = json.loads(FILES["gpt1"])["model"]
    (tmp_path / "vocab.json").write_text(json.dumps(model["vocab"]), "utf-8")
    (tmp_path / "merges.txt").write_text("\n".join(map(" ".join, model["merges"])), "utf-8")
    assert Tokenizer.load(tmp_path).sha256 == READ["gpt1"].sha256


NORMAL, UNKNOWN, CONTROL, BYTE = 1, 2, 3, 6


def llama_pieces():
    """Those of the vocabulary above: each merge's piece scores less than the one before."""
    model = json.loads(FILES["llama"])["model"]
    types = {"<unk>": UNKNOWN, "<s>": CONTROL, "</s>": CONTROL} \
        | dict.fromkeys(vocabularies.BYTES, BYTE)
    return [(token, -i, types.get(token, NORMAL)) for i, token in enumerate(model["vocab"])]


def joined_by_score(text, pieces):
    """SentencePiece's BPE by its definition: of all neighbours that make a piece, join those of the
    best one, the first of equals; then spell out what is none in bytes."""
    scores = {piece: score for piece, score, type in pieces if type == NORMAL}
    parts = list("▁" + text.replace(" ", "▁"))
    while True:
        ways = [(-scores[a + b], i) for i, (a, b) in enumerate(zip(parts, parts[1:]))
                if a + b in scores]
        if not ways:
            return [p for part in parts for p in (
                [part] if part in scores else [f"<0x{byte:02X}>" for byte in part.encode()])]
        i = min(ways)[1]
        parts[i : i + 2] = ["".join(parts[i : i + 2])]


def test_a_sentencepiece_model_of_bpe(tmp_path):
    file = tmp_path / "tokenizer.model"
    vocabularies.sentencepiece_file(file, llama_pieces(), 2, byte_fallback=True)
    for said in ({}, {"tokenizer_class": "LlamaTokenizer", "add_eos_token": True},
                     {"tokenizer_class": "LlamaTokenizerFast", "legacy": False}):
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(said))
        t = Tokenizer.load(tmp_path)
        assert t.names == READ["llama"].names and t.spelling == READ["llama"].spelling
        assert t.begins_once == (said.get("legacy") is False)
        assert Frame.of(t).before == (1,)
        assert Frame.of(t).behind == ((2,) if said.get("add_eos_token") else ())
        for text in ("the cat's hat", "  that  cat", "naïve ☃", "</s> othermother", "thethethe"):
            ids = t.encode(text)
            if t.begins_once:               # a space that is there already is not put there
                text = text.removeprefix(" ")
            assert [t.names[i] for i in ids] == joined_by_score(text, llama_pieces())


@given(scores=st.dictionaries(st.text("abc", min_size=2, max_size=4), st.integers(-99, 0),
                              min_size=3, max_size=20),
       texts=st.lists(st.text("abc ", max_size=12), min_size=5, max_size=5))
@example({"ab": -5, "bc": -4, "abc": 0}, ["abc", "abcabc", "ab c"])
def test_pairs_are_joined_by_their_scores_not_their_places(tmp_path_factory, scores, texts):
    # No two scores are equal: then the definition leaves no choice.
    scores = {piece: 100 * score - i for i, (piece, score) in enumerate(scores.items())}
    pieces = [*llama_pieces()[:3], *((byte, 0, BYTE) for byte in vocabularies.BYTES),
              *((letter, -99_999, NORMAL) for letter in "▁abc"),
              *((piece, score, NORMAL) for piece, score in scores.items())]
    file = tmp_path_factory.mktemp("model") / "tokenizer.model"
    vocabularies.sentencepiece_file(file, pieces, 2, byte_fallback=True)
    t = Tokenizer.load(file.parent)
    for text in filter(None, texts):
        assert [t.names[i] for i in t.encode(text)] == joined_by_score(text, pieces)


def test_a_sentencepiece_model_of_unigram(tmp_path):
    vocab = json.loads(FILES["t5"])["model"]["vocab"][:-100]
    types = {"<pad>": CONTROL, "</s>": CONTROL, "<unk>": UNKNOWN}
    vocabularies.sentencepiece_file(
        tmp_path / "spiece.model", [(p, s, types.get(p, NORMAL)) for p, s in vocab], 1)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(
        {"tokenizer_class": "T5Tokenizer", "extra_ids": 100, "eos_token": "</s>"}))
    t = Tokenizer.load(tmp_path)
    assert (t.names, t.sentinels) == (READ["t5"].names, READ["t5"].sentinels)
    assert Frame.of(t) == Frame.of(READ["t5"])
    for text in ("the cat's hat", "  that  cat", "naïve ☃", "</s> <extra_id_3> othermother"):
        assert t.encode(text).tolist() == READ["t5"].encode(text).tolist()


def edited(name, *path, value):
    described = json.loads(FILES[name])
    place = described
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    return json.dumps(described)


@pytest.mark.parametrize("name, path, value, said", [
    ("bert", ("model", "unk_token"), "[NONE]", r"model.unk_token: '\[NONE\]' is not in the voc"),
    ("bert", ("decoder",), None, "decoder: expected one that fits the model, found none"),
    ("llama", ("decoder", "decoders", 3), {"type": "Replace", "pattern": {"String": '"#'},
                                           "content": ""}, "text is changed"),
    ("bert", ("model", "vocab"), [], "model: expected BPE .* found 'WordPiece'"),
    ("t5", ("model", "unk_id"), None, "model.unk_id: expected the id"),
    ("t5", ("decoder",), {"type": "WordPiece", "prefix": "#", "cleanup": False}, "decoder"),
    ("llama", ("decoder", "decoders", 0, "pattern"), {"Regex": "▁"}, "decoder: .* is not read"),
    ("llama", ("decoder", "decoders", 3, "start"), 2, "decoder: .* is not read"),
    ("llama", ("model", "dropout"), 0.5, "model.dropout: expected none"),
    ("clip", ("model", "vocab", "a</w>"), 9999, "no token has id"),
    ("gpt1", ("model", "unk_token"), None, "model.unk_token: expected the token that stands for"),
    ("gpt1", ("model", "unk_token"), "[NONE]", r"model.unk_token: .* found '\[NONE\]'"),
    ("gpt1", ("decoder", "suffix"), "@", "decoder"),
])
def test_what_is_not_read_is_refused_in_one_line(name, path, value, said):
    with pytest.raises(FormatError, match=said) as refusal:
        Tokenizer(edited(name, *path, value=value), file="x.json")
    assert "\n" not in str(refusal.value) and str(refusal.value).startswith("x.json: ")


@pytest.mark.parametrize("change", [
    lambda d: d["model"]["vocab"].update({"<0xAF!": d["model"]["vocab"].pop("<0xAF>")}),
    lambda d: d["model"].update(byte_fallback=False),
    lambda d: d["normalizer"]["normalizers"].append({"type": "NFC"}),
    lambda d: d.update(pre_tokenizer={"type": "WhitespaceSplit"})])
def test_a_vocabulary_that_may_lose_something_is_not_called_whole(change):
    described = json.loads(FILES["llama"])
    change(described)
    assert not Tokenizer(json.dumps(described)).spelling.whole


def test_older_files_that_are_not_read_say_so(tmp_path):
    def refused(said, **files):
        for name, data in files.items():
            name = name.replace("_", ".", 1)
            (tmp_path / name).write_bytes(data if isinstance(data, bytes) else data.encode())
        with pytest.raises(FormatError, match=said) as refusal:
            Tokenizer.load(tmp_path)
        assert "\n" not in str(refusal.value)
        for file in tmp_path.iterdir():
            file.unlink()

    vocabularies.bert_files(tmp_path, {"do_basic_tokenize": False})
    refused("do_basic_tokenize: expected true, found false")
    refused(r"vocab.txt: '\[UNK\]' is not in it", vocab_txt="a\nb\n")
    refused("Marian's vocabulary .* is not read", source_spm=b"", vocab_json="{}")
    refused("no SentencePiece model can be read: it has no pieces", spiece_model=b"")
    vocabularies.sentencepiece_file(tmp_path / "spiece.model", [("a", 0, NORMAL)], 1)
    refused("Unigram for a tokenizer_class 'that is not said' is not read")
    vocabularies.sentencepiece_file(tmp_path / "spiece.model", [("a", 0, NORMAL)], 1)
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "T5Tokenizer"}')
    refused("no piece stands for what is unknown|no piece '</s>'")


@given(end=st.integers(0, 4000), change=st.integers(0, 255))
def test_a_damaged_sentencepiece_model_is_refused_or_read(tmp_path_factory, end, change):
    file = tmp_path_factory.mktemp("damaged") / "tokenizer.model"
    vocabularies.sentencepiece_file(file, llama_pieces(), 2, byte_fallback=True)
    data = bytearray(file.read_bytes())
    file.write_bytes(data[:end])
    if end:
        data[end % len(data)] = change
    for damaged in (file, file.with_suffix(".changed")):
        damaged.write_bytes(data[:end] if damaged is file else data)
        try:
            assert read_model(damaged).pieces
        except FormatError as refusal:
            assert "no SentencePiece model can be read" in str(refusal)


@given(data=st.binary(max_size=40))
def test_fields_of_anything_end_or_say_that_they_are_damaged(data):
    try:
        assert all(number >= 0 for number, _ in fields(data))
    except ValueError as error:
        assert "damaged" in str(error)


def test_a_cut_is_where_a_special_string_could_be_made():
    llama = json.loads(FILES["llama"])
    assert variants.inert(llama, ["</s>", "<s>"]) is llama      # no merge leads there
    llama["model"]["merges"].append(["<", "s>"])
    assert variants.inert(llama, ["</s>", "<s>"]) != llama
