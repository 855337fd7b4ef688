"""From documents to batches: nothing is lost, nothing comes twice, nothing wrong is believed."""

import io
import json
import math
import os
import sys
import tempfile
import threading
from itertools import islice, pairwise
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import minifm as mf
from minifm.errors import ConfigError, FormatError, UserError
from minifm.models.gpt import GPT, GPTConfig
from minifm.text import Corpus, HeldOutBatches, Tokenizer, TrainingBatches, reading, shards
from minifm.text.corpus import Document, Documents
from minifm.text.permutation import HeldOutOrder, Permutation, turns_of
from minifm.training.config import TrainConfig
from minifm.training.trainer import Trainer

BYTES = Tokenizer.bytes()


class Listed(Documents):
    """Documents in memory."""

    description = "a list"

    def __init__(self, *texts):
        self.texts = texts

    def __iter__(self):
        return (Document(str(i), text) for i, text in enumerate(self.texts))


def texts_of(documents):
    return [document.text for document in documents]


def write(directory, files):
    for name, text in files.items():
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_bytes(text)
    return directory


# -- documents out of one file -------------------------------------------------------------------

# Lines, blank lines and characters of several bytes, without what a binary file would have.
prose = st.lists(st.sampled_from([b"a", b"word ", b"\n", b"\n\n", b"\n \t\r\n", b"\xff\xff", b"||",
                                  "漢".encode(), "😀".encode()]), max_size=60).map(b"".join)


@given(text=prose, size=st.integers(1, 40), block=st.integers(1, 50))
def test_sections_lose_nothing(text, size, block):
    with mock.patch.object(reading, "BLOCK", block):
        found = list(reading.sections(io.BytesIO(text), "x", size))
    assert found == list(reading.sections(io.BytesIO(text), "x", size))
    assert b"".join(piece for _, piece in found) == text
    assert all(0 < len(piece) <= size for _, piece in found)
    offsets = np.cumsum([0] + [len(piece) for _, piece in found])
    assert [name for name, _ in found] == [f"x@{offset}" for offset in offsets[:-1]]


def test_sections_end_at_blank_lines_then_lines_then_characters():
    def cut(text):
        return [piece for _, piece in reading.sections(io.BytesIO(text), "x", 10)]
    assert cut(b"one\n\ntwo\nthree four") == [b"one\n\n", b"two\n", b"three four"]
    assert cut(b"one\ntwo\n789abcdef") == [b"one\ntwo\n", b"789abcdef"]
    assert cut("aé".encode() * 5) == ["aéaéaéa".encode(), "éaé".encode()]


@given(text=prose, separator=st.sampled_from([b"||", b"\n", b"word ", b"a"]),
       block=st.integers(1, 50))
def test_separators_end_documents(text, separator, block):
    with mock.patch.object(reading, "BLOCK", block):
        found = [piece for _, piece in reading.separated(io.BytesIO(text), "x", separator)]
    first, *others = text.split(separator)
    expected = [first, *(piece.removeprefix(b"\n") for piece in others)]
    assert found == [piece.removesuffix(b"\n") for piece in expected[:-1]] + expected[-1:]


@pytest.mark.parametrize("block", [1, 2, 3, 5, 1 << 20])
def test_separated_documents_are_named_by_their_place(monkeypatch, block):
    monkeypatch.setattr(reading, "BLOCK", block)
    found = list(reading.separated(io.BytesIO(b"\none\n||\ntwo||"), "x", b"||"))
    assert found == [("x@0", b"\none"), ("x@7", b"two"), ("x@13", b"")]


@pytest.mark.parametrize("text, said", [
    (b"\x1f\x8b123", "offset 0: a gzip file, not text"),
    (b"\x89PNG\r\n\x1a\n", "offset 0: a PNG file"),
    (b"abc\0def", "offset 3: a zero byte"),
    (b"x" * 2_000_000 + b"\0", "offset 2000000: a zero byte"),
    ("text".encode("utf-16"), "a zero byte: not text .UTF-16"),
    (bytes(range(1, 256)), "offset 0: binary, not text: 25 control characters in the first 255"),
])
def test_binary_data_are_refused(tmp_path, text, said):
    path = tmp_path / "data.txt"
    path.write_bytes(text)
    for source in (path, tmp_path):
        with pytest.raises(FormatError, match=f"data.txt: .*{said}"):
            list(Corpus(source))


def test_text_of_any_encoding_stays_as_it_is(tmp_path):
    text = b"\xef\xbb\xbflatin \xe9\xff, \x1b[1mbold\x1b[0m\r\n\ttab \xed\xa0\x80 \xe6\xbc"
    path = tmp_path / "a.txt"
    path.write_bytes(text)
    assert texts_of(Corpus(path)) == texts_of(Corpus(tmp_path)) == [text]


def test_json_lines(tmp_path):
    lines = ['{"text": "one\\n"}', "", ' {"id": 3, "text": "zwei é \\ud800"} ', '{"text": ""}']
    (tmp_path / "a.jsonl").write_text("\n".join(lines), "utf-8")
    corpus = Corpus(tmp_path / "a.jsonl")
    assert texts_of(corpus) == [b"one\n", "zwei é ".encode() + b"\xed\xa0\x80"]
    assert [document.name for document in corpus] == \
        [f"{tmp_path}/a.jsonl:1", f"{tmp_path}/a.jsonl:3"]
    assert corpus.skipped == {"empty documents": 1, "hidden files": 0}


@pytest.mark.parametrize("line, said", [
    (b"{", "not JSON"), (b"\xff\xfe\xff", "not JSON"), (b"\x1f\x8b\x08", "not JSON"),
    (b"[" * 100_000, "not JSON"), (b"[]", "expected an object with `text`"),
    (b"7", "expected an object with `text`"), (b'{"txt": ""}', "expected an object with `text`"),
    (b'{"text": 7}', "expected `text` to be a string, got int"),
    (b'{"text": null}', "got NoneType"),
])
def test_bad_json_lines_are_named(tmp_path, line, said):
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "good"}\n' + line)
    with pytest.raises(FormatError, match=f"a.jsonl: line 2: .*{said}"):
        list(Corpus(tmp_path / "a.jsonl"))


# -- finding files -------------------------------------------------------------------------------


def test_a_directory_is_read_in_order_without_hidden_files(tmp_path):
    write(tmp_path, {"b.py": b"b", "a/z.py": b"z", "a/y.md": b"y", "a/.git/x": b"hidden",
                     ".env": b"hidden", "empty": b"", "c.jsonl": b'{"text": "c"}'})
    corpus = Corpus(tmp_path)
    assert texts_of(corpus) == [b"y", b"z", b"b", b"c"]
    assert corpus.skipped == {"empty documents": 1, "hidden files": 2}
    assert next(iter(corpus)).text == b"y" and corpus.skipped["empty documents"] == 1
    for pattern, expected in [("*.py", [b"z", b"b"]), ("a/*.md", [b"y"]), ("**/*.md", [b"y"]),
                              (".env", [b"hidden"])]:
        assert texts_of(Corpus(tmp_path, pattern=pattern)) == expected


def test_globs_and_several_sources_read_no_file_twice(tmp_path, monkeypatch):
    write(tmp_path, {"a/b/c.txt": b"c", "a/d.txt": b"d", "e.txt": b"e", "[x].txt": b"x"})
    monkeypatch.chdir(tmp_path)
    assert texts_of(Corpus("**/*.txt")) == [b"x", b"c", b"d", b"e"]
    assert texts_of(Corpus("a/**")) == [b"c", b"d"]
    assert texts_of(Corpus(["e.txt", "a", "a/d.txt", "e.txt"])) == [b"e", b"c", b"d"]
    assert texts_of(Corpus("[x].txt")) == [b"x"]        # a name before it is a glob
    names = [document.name for document in Corpus(["a", "*.txt"])]
    assert names == ["a/b/c.txt", "a/d.txt", "[x].txt", "e.txt"]


def test_a_file_named_by_itself_is_cut_into_documents(tmp_path):
    text = b"".join(b"paragraph %d\n\n" % i for i in range(5000))
    path = write(tmp_path, {"book.txt": text}) / "book.txt"
    alone = texts_of(Corpus(path))
    assert b"".join(alone) == text and len(alone) > 4
    assert all(len(part) <= 16 * 1024 and part.endswith(b"\n\n") for part in alone)
    assert texts_of(Corpus(tmp_path)) == [text]
    assert texts_of(Corpus(path, separator="graph 7\n")) == texts_of(Corpus(tmp_path,
                                                                            separator=b"graph 7\n"))


class Piped:
    """Standard input in place of the real one."""

    def __init__(self, text):
        self.buffer = io.BytesIO(text)


def test_standard_input_can_be_walked_over_again_and_side_by_side(monkeypatch):
    text = b"".join(b"line %d\n\n" % i for i in range(400_000))
    monkeypatch.setattr(sys, "stdin", Piped(text))
    corpus = Corpus("-")
    first, second = iter(corpus), iter(corpus)
    found = [next(first).text for _ in range(100)]
    assert b"".join(texts_of(second)) == text
    assert b"".join(found + texts_of(first)) == text
    assert next(iter(corpus)).name == "standard input@0"
    walk = iter(corpus)
    del corpus
    assert b"".join(texts_of(walk)) == text


def test_a_pipe_is_a_file_that_is_read_once(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    writer = threading.Thread(target=(tmp_path / "pipe").write_bytes, args=(b"through a pipe",))
    writer.start()
    corpus = Corpus(tmp_path / "pipe")
    writer.join()
    assert texts_of(corpus) == texts_of(corpus) == [b"through a pipe"]


def test_without_sources_it_is_the_source_of_the_standard_library():
    corpus = Corpus()
    names = [document.name for document in corpus]
    assert names == sorted(names) and len(set(names)) == len(names) > 300
    assert {"os.py", "json/decoder.py"} <= set(names)
    assert not any("test" in Path(name).parts or "site-packages" in name for name in names)
    assert corpus.size > 5_000_000 and corpus.count == len(names)
    assert corpus.sha256 == Corpus().sha256
    assert corpus.description.startswith("the source of Python 3.")


@pytest.mark.parametrize("source, options, said", [
    ("nowhere.txt", {}, "nowhere.txt: no such file or directory"),
    ("", {}, "'': no such file or directory"),
    ("x" * 5000, {}, "no such file or directory"),
    ("*.nowhere", {}, "no file matches this pattern"),
    (".", {"pattern": "*.nowhere"}, "no file in it matches '\\*.nowhere'"),
    (".", {"pattern": "/etc/*"}, "pattern: '/etc/\\*' matches no file's path"),
    (".", {"pattern": "a/**b"}, "pattern: .* matches no file|no file in it matches"),
    (".", {"separator": ""}, "separator: expected a string, got an empty one"),
    ("/dev/null", {}, "/dev/null: neither a file nor a directory"),
])
def test_what_cannot_be_a_corpus_is_named(tmp_path, monkeypatch, source, options, said):
    monkeypatch.chdir(write(tmp_path, {"a.txt": b"text"}))
    with pytest.raises(ConfigError, match=said):
        list(Corpus(source, **options))


def test_an_empty_corpus_is_refused(tmp_path):
    corpus = Corpus(write(tmp_path, {"a.txt": b"", "b.txt": b""}))
    for ask in (lambda: corpus.count, lambda: corpus.sha256, lambda: corpus.split(0.5)):
        with pytest.raises(ConfigError, match="the corpus is empty"):
            ask()


# -- digests and the split -----------------------------------------------------------------------

some_texts = st.lists(st.binary(min_size=1, max_size=3), min_size=2, max_size=30)


@given(texts=some_texts, others=some_texts)
def test_the_same_digest_is_the_same_documents(texts, others):
    found, other = Listed(*texts), Listed(*others)
    assert (found.count, found.size) == (len(texts), sum(map(len, texts)))
    assert (found.sha256 == other.sha256) == (texts == others)
    assert found.sha256 != Listed(b"".join(texts)).sha256


def corpus_of(texts):
    """A Corpus of these texts, read through JSON lines in memory."""
    lines = b"".join(json.dumps({"text": text.hex()}).encode() + b"\n" for text in texts)
    with mock.patch.object(sys, "stdin", Piped(lines)):
        corpus = Corpus("-")
    corpus._files = [corpus._files[0]._replace(name="standard input.jsonl")]
    return corpus


@given(texts=some_texts, fraction=st.floats(0.01, 0.99), seed=st.integers(0, 9))
def test_a_split_parts_the_documents_by_what_they_say(texts, fraction, seed):
    corpus = corpus_of(texts)
    try:
        parts = corpus.split(fraction, seed)
    except ConfigError:
        # Refused only where all would be held out: few documents, or nearly all asked for.
        assert len(set(texts)) == 1 or fraction ** len(set(texts)) > 1e-6
        return
    training, held_out = map(texts_of, parts)
    assert training and held_out
    assert not set(training) & set(held_out)                # copies stay together
    sides = {text: held for part, held in ((training, 0), (held_out, 1)) for text in part}
    everything = texts_of(corpus)
    assert training == [text for text in everything if not sides[text]]     # order is kept
    assert held_out == [text for text in everything if sides[text]]
    assert [texts_of(part) for part in corpus.split(fraction, seed)] == [training, held_out]
    assert parts[0].count + parts[1].count == corpus.count
    more = corpus_of([*texts, b"another", b"one more"]).split(fraction, seed)
    moved = set(held_out) & set(texts_of(more[0]))
    assert not moved or len(set(held_out)) == 1     # the one that was held out for want of others
    assert not set(training) & set(texts_of(more[1]))


def test_a_split_is_about_as_large_as_asked_for_and_differs_by_seed():
    corpus = corpus_of([b"%d" % i for i in range(4000)])
    parts = [texts_of(corpus.split(0.1, seed)[1]) for seed in range(3)]
    assert all(330 < len(part) < 470 for part in parts)
    for first, second in pairwise(parts):
        assert len(set(first) & set(second)) < 80


@pytest.mark.parametrize("fraction", [0, 1, -0.5, 1.5, math.nan])
def test_a_split_needs_a_fraction_and_different_documents(fraction):
    with pytest.raises(ConfigError, match="held-out fraction: expected a number in .0, 1."):
        corpus_of([b"a", b"b"]).split(fraction)
    with pytest.raises(ConfigError, match="different documents: 1, which leaves none to train on"):
        corpus_of([b"a", b"a"]).split(0.1)


# -- shards --------------------------------------------------------------------------------------

TEXTS = (b"first document", b"\xff\n", b"x", "drei é".encode(), b"<|endoftext|>")
EXPECTED = [i for text in TEXTS for i in (*text, BYTES.end_of_text)]


class Wide:
    """A vocabulary of more than 65,536 ids: byte i is token 1,000 i. Counts its calls."""

    vocabulary, end_of_text, sha256, calls = 256_000, 255_999, "wide", 0
    around = (), ()

    def encode_all(self, texts):
        self.calls += 1
        return [np.frombuffer(text, np.uint8).astype(np.int32) * 1000 for text in texts]


def place_in(directory):
    (place,) = Path(directory).iterdir()
    return place


@given(texts=st.lists(st.binary(min_size=1, max_size=30), min_size=1, max_size=9),
       shard=st.integers(1, 40), together=st.integers(1, 40), most=st.integers(1, 4))
def test_tokens_are_the_documents_with_an_end_after_each(texts, shard, together, most):
    expected = np.array([i for text in texts for i in (*text, BYTES.end_of_text)])
    with mock.patch.multiple(shards, SHARD=shard, TOGETHER=together, MOST=most), \
            tempfile.TemporaryDirectory() as directory:
        tokens = shards.store(Listed(*texts), BYTES, directory)
        files = sorted(place_in(directory).glob("*.bin"))
    assert len(files) == -(-len(expected) // shard)
    assert (tokens.count, tokens.documents, tokens.size) == \
        (len(expected), len(texts), sum(map(len, texts)))
    assert len(tokens) == tokens.count and tokens.end_of_text == BYTES.end_of_text
    for start in range(0, len(expected) + 2, 3):
        for stop in (start - 1, start, start + 1, start + shard, start + 2 * shard, len(expected)):
            assert np.array_equal(tokens[start:stop], expected[start:stop])
    assert tokens[:].dtype == tokens[5:5].dtype == np.int64


@pytest.mark.parametrize("vocabulary, dtype", [(BYTES, "<u2"), (Wide(), "<u4")])
def test_files_are_plain_little_endian_ids_mapped_into_memory(tmp_path, vocabulary, dtype):
    tokens = shards.store(Listed(*TEXTS), vocabulary, tmp_path)
    stored = np.fromfile(place_in(tmp_path) / "00000.bin", dtype)
    assert np.array_equal(stored, tokens[:]) and isinstance(tokens._files[0], np.memmap)
    assert stored.max() == vocabulary.end_of_text
    index = json.loads((place_in(tmp_path) / "index.json").read_text())
    assert index["description"] == "a list" and index["tokens"] == len(stored)
    assert tokens.description == {"corpus": Listed(*TEXTS).sha256, "tokens": len(stored),
                                  "tokenizer": vocabulary.sha256}


def test_what_is_stored_is_used_again_by_those_it_fits(tmp_path):
    vocabulary = Wide()
    first = shards.store(Listed(*TEXTS), vocabulary, tmp_path)
    again = shards.store(Listed(*TEXTS), vocabulary, tmp_path)
    assert vocabulary.calls == 1 and np.array_equal(first[:], again[:])
    assert shards.store(Listed(*TEXTS), BYTES, tmp_path)[:].tolist() == EXPECTED
    assert shards.store(Listed(b"x"), BYTES, tmp_path)[:].tolist() == [ord("x"), 256]
    vocabulary.end_of_text = 7
    assert shards.store(Listed(b"\1"), vocabulary, tmp_path)[:].tolist() == [1000, 7]
    assert shards.store(Listed(*TEXTS), vocabulary, tmp_path)[-1:].tolist() == [7]
    assert len(list(tmp_path.iterdir())) == 5


@given(seed=st.integers(0, 2**32 - 1), kind=st.sampled_from(["flip", "cut", "more", "gone"]))
def test_damage_anywhere_is_found_and_mended(seed, kind):
    with tempfile.TemporaryDirectory() as directory, mock.patch.object(shards, "SHARD", 10):
        shards.store(Listed(*TEXTS), BYTES, directory)
        rng = np.random.default_rng(seed)
        file = rng.choice(sorted(place_in(directory).iterdir()))
        data = bytearray(file.read_bytes())
        if kind == "flip":
            data[rng.integers(len(data))] ^= 1 << rng.integers(8)
        data = data[: rng.integers(len(data))] if kind == "cut" else data
        file.write_bytes(data + b"0" if kind == "more" else data)
        if kind == "gone":
            file.unlink()
        tokens = shards.store(Listed(*TEXTS), BYTES, directory)
        assert tokens[:].tolist() == EXPECTED
        assert (tokens.documents, tokens.size) == (len(TEXTS), sum(map(len, TEXTS)))


@pytest.mark.parametrize("change", [
    {"format": 2}, {"tokens": 1}, {"tokens": -5}, {"tokens": "x"}, {"tokens": 10**30}, {"shard": 0},
    {"shard": None}, {"sha256": []}, {"sha256": 7}, {"dtype": "uint32"}, {"end_of_text": 1},
    {"corpus": "other"}, {"size": 3},
])
def test_an_index_that_says_something_else_is_not_believed(tmp_path, change):
    shards.store(Listed(*TEXTS), BYTES, tmp_path)
    index = place_in(tmp_path) / "index.json"
    index.write_text(json.dumps(json.loads(index.read_text()) | change))
    assert shards.store(Listed(*TEXTS), BYTES, tmp_path)[:].tolist() == EXPECTED


def test_a_stop_half_way_leaves_nothing_behind(tmp_path):
    def stop(done, size):
        raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt):
        shards.store(Listed(*TEXTS), BYTES, tmp_path, progress=stop)
    assert list(tmp_path.iterdir()) == []


def test_another_process_may_be_faster(tmp_path):
    once = iter([lambda: shards.store(Listed(*TEXTS), BYTES, tmp_path)])
    tokens = shards.store(Listed(*TEXTS), BYTES, tmp_path,
                          progress=lambda done, size: [store() for store in once])
    assert tokens[:].tolist() == EXPECTED and len(list(tmp_path.iterdir())) == 1


def test_progress_is_told_in_bytes_of_text(tmp_path, monkeypatch):
    monkeypatch.setattr(shards, "TOGETHER", 15)
    told = []
    shards.store(Listed(*TEXTS), BYTES, tmp_path, progress=lambda *now: told.append(now))
    size = sum(map(len, TEXTS))
    assert told == [(16, size), (size, size)]


def test_a_corpus_that_changes_while_it_is_read_is_refused(tmp_path):
    documents = Listed(b"before")
    assert documents.sha256
    documents.texts = (b"after!",)
    with pytest.raises(UserError, match="a list: changed while it was read"):
        shards.store(documents, BYTES, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_documents_need_something_to_stand_between_them(tmp_path):
    vocabulary = Wide()
    vocabulary.end_of_text = None
    with pytest.raises(ConfigError, match="tokenizer: has no end-of-text token"):
        shards.store(Listed(*TEXTS), vocabulary, tmp_path)
    with pytest.raises(ConfigError, match="the corpus is empty"):
        shards.store(Listed(), BYTES, tmp_path)


def test_no_more_is_held_than_one_group_of_documents(tmp_path, monkeypatch):
    monkeypatch.setattr(shards, "TOGETHER", 5000)
    monkeypatch.setattr(shards, "SHARD", 1000)
    read, sizes = [], []

    class Stream(Listed):
        def __iter__(self):
            for number in range(300):
                read.append(number)
                yield Document(str(number), b"%d" % (number % 10) * 100)

    class Watching(Wide):
        def encode_all(self, texts):
            sizes.append((sum(map(len, texts)), len(read)))
            return super().encode_all(texts)

    documents = Stream()
    assert documents.count == 300
    read.clear()
    assert len(shards.store(documents, Watching(), tmp_path)) == 300 * 101
    assert sizes == [(5000, 50 * (i + 1)) for i in range(6)]


# -- an order of windows -------------------------------------------------------------------------


@given(n=st.integers(1, 5000) | st.sampled_from([1, 2, 3, 4, 5, 15, 16, 17, 64, 65, 4096, 4097]),
       seed=st.integers(0, 99))
def test_a_permutation_comes_to_each_place_once(n, seed):
    order, places = Permutation(n, mf.Rng(seed)), np.arange(n)
    found = order(places)
    assert found.dtype == np.int64 and np.array_equal(np.sort(found), places)
    assert np.array_equal(places, np.arange(n))
    assert np.array_equal(order(places[n // 2 :][:3]), found[n // 2 :][:3])     # a part alone


def test_a_permutation_needs_no_table():
    n = 10**13 + 7
    found = Permutation(n, mf.Rng(0))(np.arange(n - 1000, n))
    assert len(set(found.tolist())) == 1000 and 0 <= found.min() and found.max() < n
    assert abs(found.mean() / n - 0.5) < 0.05


def test_all_permutations_are_about_equally_likely():
    counts = {}
    for seed in range(4800):
        order = tuple(Permutation(4, mf.Rng(seed))(np.arange(4)).tolist())
        counts[order] = counts.get(order, 0) + 1
    assert len(counts) == 24
    assert sum((count - 200) ** 2 / 200 for count in counts.values()) < 60     # χ², 23 degrees


@given(st.integers(1, 9), st.integers(1, 9), st.integers(1, 9))
def test_batches_take_the_turns_of_one_epoch_after_another(steps, batch, count):
    found = [(epoch, turn) for step in range(steps) for epoch, turns in turns_of(step, batch, count)
             for turn in turns.tolist()]
    assert found == [divmod(i, count) for i in range(steps * batch)]


@given(st.integers(1, 50), st.integers(1, 9))
def test_what_is_held_out_comes_once(n, batch):
    order = HeldOutOrder(n, batch, "rows")
    found = [order(i).tolist() for i in range(order.count)]
    assert sorted(sum(found, [])) == list(range(n))
    assert all(len(places) == batch for places in found[:-1]) and len(found[-1]) > 0
    for outside in (-1, order.count):
        with pytest.raises(IndexError):
            order(outside)



# -- batches for training ------------------------------------------------------------------------


def tokens_of(ids, **known):
    """Tokens in memory."""
    index = {"tokens": len(ids), "documents": 1, "size": len(ids), "end_of_text": 0,
             "corpus": "c", "tokenizer": "t", "shard": 1 << 40}
    return shards.Tokens(index | known, [np.array(ids)])


@given(count=st.integers(2, 60), length=st.integers(1, 20), rows=st.integers(1, 7),
       seed=st.integers(0, 9))
def test_each_epoch_predicts_each_token_at_most_once(count, length, rows, seed):
    length = min(length, count - 1)
    batches = TrainingBatches(tokens_of(range(count)), batch=rows, length=length, seed=seed)
    windows = count // length
    steps = -(-3 * windows // rows)
    ids, targets = map(np.concatenate, zip(*map(batches.batch, range(steps))))
    assert ids.shape == targets.shape == (steps * rows, length)
    assert ids.dtype == targets.dtype == np.int64
    assert np.array_equal(targets, (ids + 1) % count)       # the next token, on the ring
    for epoch in range(3):
        seen = targets[epoch * windows : (epoch + 1) * windows]
        assert len(np.unique(seen)) == windows * length > count - length
        assert len(np.unique(seen[:, 0] % length)) <= 2     # side by side, but over the seam


def test_a_batch_is_a_function_of_seed_and_step():
    def batches(seed=1, rows=4):
        return TrainingBatches(tokens_of(range(1000)), batch=rows, length=8, seed=seed)
    first = [batches().batch(step)[0] for step in range(80)]
    again = batches()
    for step in (79, 3, 31, 32, 0):         # an epoch has 125 windows: 31 steps and a quarter
        assert np.array_equal(again.batch(step)[0], first[step])
    assert not np.array_equal(batches(2).batch(0)[0], first[0])
    wide = np.concatenate([batches(rows=5).batch(step)[0] for step in range(64)])
    assert np.array_equal(np.concatenate(first), wide)      # in the same order, however many rows


def test_epochs_have_other_edges_and_another_order():
    batches = TrainingBatches(tokens_of(range(1003)), batch=100, length=10, seed=0)
    firsts = [batches.batch(step)[0][:, 0] for step in range(4)]
    assert len({int(first.min()) for first in firsts}) == 4
    ranks = [np.argsort(np.argsort((first - 1) // 10)).tolist() for first in firsts]
    assert not any(one == other for one, other in pairwise(ranks))
    assert all(rank != sorted(rank) for rank in ranks)
    correlation = np.corrcoef(ranks)
    assert np.abs(correlation - np.eye(4)).max() < 0.35


def test_ids_and_targets_are_arrays_of_their_own():
    batches = TrainingBatches(tokens_of(range(100)), batch=2, length=5, seed=0)
    ids, targets = batches.batch(0)
    targets[:] = -100
    assert ids.min() >= 0 and np.array_equal(batches.batch(0)[0], ids)


def test_a_text_shorter_than_a_window_is_refused():
    with pytest.raises(ConfigError, match="context: windows of 10 tokens .* which has 10: lower "
                                          "the context to at most 9, or give more text"):
        TrainingBatches(tokens_of(range(10)), batch=1, length=10, seed=0)
    ids, targets = TrainingBatches(tokens_of(range(10)), batch=3, length=9, seed=0).batch(0)
    assert np.array_equal(targets, (ids + 1) % 10)


def test_a_description_names_all_that_decides_the_batches():
    tokens = tokens_of(range(50), corpus="abc", tokenizer="def")
    training = TrainingBatches(tokens, batch=2, length=5, seed=7).description
    assert training == {"corpus": "abc", "tokenizer": "def", "tokens": 50, "batch": 2,
                        "length": 5, "seed": 7}
    del training["seed"]
    assert HeldOutBatches(tokens, batch=2, length=5).description == training
    assert json.loads(json.dumps(training)) == training


@given(marks=st.lists(st.booleans(), min_size=30, max_size=60), length=st.integers(1, 9))
def test_documents_that_are_apart_begin_with_the_mark_before_them(marks, length):
    ids = np.where(marks, 0, 7)                         # 0 is the end-of-text
    tokens = tokens_of(ids)
    together = TrainingBatches(tokens, batch=3, length=length, seed=1)
    apart = TrainingBatches(tokens, batch=3, length=length, seed=1, apart=True)
    held_out = HeldOutBatches(tokens, batch=3, length=length, apart=True)
    assert apart.description == together.description | {"apart": True}
    assert held_out.description["apart"] is True
    for batch, plain in ((apart.batch(2), together.batch(2)),
                         (held_out.batch(0), HeldOutBatches(tokens, batch=3,
                                                            length=length).batch(0))):
        assert all(map(np.array_equal, batch, plain))   # the same tokens and targets
        rows, _, starts = batch
        for row, first in zip(rows, starts):
            for t in range(length):
                assert first[t] == max((i for i in range(t + 1) if row[i] == 0), default=0)


# -- batches for evaluation ----------------------------------------------------------------------


@given(count=st.integers(1, 80), length=st.integers(1, 20), rows=st.integers(1, 7))
def test_all_held_out_batches_predict_every_token_once(count, length, rows):
    tokens = tokens_of(np.arange(count) + 1)            # 0 is the end-of-text
    held_out = HeldOutBatches(tokens, batch=rows, length=length)
    batches = [held_out.batch(i) for i in range(held_out.count)]
    assert all(ids.shape == targets.shape == (len(ids), length) and 0 < len(ids) <= rows
               and ids.dtype == targets.dtype == np.int64 for ids, targets in batches)
    assert all(len(ids) == rows for ids, _ in batches[:-1])
    ids, targets = map(np.concatenate, zip(*batches))
    counted = targets != -100
    assert sorted(targets[counted].tolist()) == list(range(1, count + 1))
    assert np.array_equal(ids[counted], targets[counted] - 1)
    assert (counted.sum(1) > 0).all() and (np.diff(counted.astype(int), axis=1) <= 0).all()
    assert (ids[~counted] == 0).all()
    for wrong in (-1, held_out.count):
        with pytest.raises(IndexError, match=f"batch {wrong} of {held_out.count}"):
            held_out.batch(wrong)


def test_the_first_held_out_batches_are_a_sample_of_all():
    held_out = HeldOutBatches(tokens_of(range(1, 10_001)), batch=10, length=10)
    sample = np.concatenate([held_out.batch(i)[1] for i in range(10)])
    assert abs(sample.mean() - 5000) < 700
    assert np.array_equal(held_out.batch(0)[0],
                          HeldOutBatches(held_out.tokens, batch=10, length=10).batch(0)[0])


MODEL = GPTConfig(vocabulary=300, context=16, layers=1, heads=1, width=8)
CONFIG = TrainConfig(steps=9, batch=3, warmup=2, accumulate=2, evaluate_every=0, save_every=0)


def trainer_in(directory, training, held_out, vocabulary=BYTES):
    data = TrainingBatches(training, batch=CONFIG.batch, length=12, seed=CONFIG.seed)
    return Trainer(GPT(MODEL, mf.Rng(0)), data, CONFIG, directory=directory, tokenizer=vocabulary,
                   held_out=HeldOutBatches(held_out, batch=CONFIG.batch, length=12), shown=False,
                   draw=False, check_memory=False)


def test_bits_per_byte_count_the_bytes_of_all_held_out_text(tmp_path):
    text = ["The déjà vu of it. ", "<|endoftext|>", "漢字 " * 9, "x"]
    vocabulary = Tokenizer.train(text * 3, MODEL.vocabulary)
    tokens = shards.store(Listed(*map(str.encode, text)), vocabulary, tmp_path / "tokens")
    trainer = trainer_in(tmp_path / "run", tokens, tokens, vocabulary)
    batches = [trainer.held_out.batch(i) for i in range(trainer.held_out.count)]
    size = sum(trainer.objective.target_bytes(batch, trainer._lengths) for batch in batches)
    assert size == tokens.size == sum(len(part.encode()) for part in text)
    nats = sum(trainer.model.loss(*batch, denominator=1).item() for batch in batches)
    found = trainer.evaluate()              # asks for more batches than there are
    assert math.isclose(found["held_out_loss"], nats / tokens.count, rel_tol=1e-5)
    assert math.isclose(found["bits_per_byte"], nats / math.log(2) / size, rel_tol=1e-5)


def test_a_run_resumed_within_an_epoch_reads_on_where_it_stopped(tmp_path):
    text = [document.text[:100] for document in islice(Corpus(), 2)]    # 16 windows an epoch
    tokens = shards.store(Listed(*text), BYTES, tmp_path / "tokens")
    whole = trainer_in(tmp_path / "whole", tokens, tokens)
    whole.train()
    trainer_in(tmp_path / "parts", tokens, tokens).train(until=4)
    tokens = shards.store(Listed(*text), BYTES, tmp_path / "tokens")
    resumed = trainer_in(tmp_path / "parts", tokens, tokens)
    resumed.resume()
    resumed.train()
    for name, parameter in whole.model.parameters().items():
        assert parameter.numpy().tobytes() == resumed.model.parameters()[name].numpy().tobytes()
    other = shards.store(Listed(*text, b"more"), BYTES, tmp_path / "tokens")
    with pytest.raises(ConfigError, match="the text is another one"):
        trainer_in(tmp_path / "parts", other, tokens).resume()
