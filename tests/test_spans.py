"""Rows, pairs of texts, spans left out, texts cut in two: what is made of windows of text."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import minifm as mf
from minifm.errors import ConfigError
from minifm.models import T5, T5Config, Transformer, TransformerConfig
from minifm.text.rows import EncoderRows, SentencePairs, longest_document, padded
from minifm.text.spans import PrefixBatches, SpanBatches, corrupt_spans, counts, divide, window_for
from minifm.training.objectives import Denoising, LearningConfig

FIRST, PADDING, MARK = 0, 1, 2          # `MARK` also ends sources and targets
SENTINELS = tuple(range(100, 200))
GIVEN = {"sentinels": SENTINELS, "end": MARK}
densities = st.floats(0.01, 0.99)
spans = st.floats(1, 20)


class Windows:
    """Windows of R tokens that say where they are from; between some, the mark of documents."""

    count = 3
    description = {"kind": "windows"}

    def __init__(self, rows=6, length=20, marks=()):
        self.rows, self.length, self.marks = rows, length, marks

    def batch(self, step):
        ids = 200 + 1000 * step + 100 * np.arange(self.rows)[:, None] + np.arange(self.length)
        ids[:, list(self.marks)] = MARK
        return (ids,)


# -- rows ------------------------------------------------------------------------------------------


@given(st.lists(st.sampled_from([MARK, 7, 8, 9]), max_size=30))
def test_the_longest_document_of_a_window(ids):
    found = longest_document(np.array(ids, np.int64), MARK).tolist()
    texts = "".join("|" if i == MARK else str(i) for i in ids).split("|")
    assert "".join(map(str, found)) == max(texts, key=len)      # of equals, the first


def test_rows_stand_between_marks():
    (ids,) = EncoderRows(Windows(), first=FIRST, separator=MARK).batch(1)
    assert ids.shape == (6, 22)
    assert (ids[:, 0] == FIRST).all() and (ids[:, -1] == MARK).all()
    np.testing.assert_array_equal(ids[:, 1:-1], Windows().batch(1)[0])


def test_rows_of_one_document_each():
    rows = EncoderRows(Windows(marks=(3, 12)), first=FIRST, separator=MARK, padding=PADDING,
                       apart=MARK)
    (ids,), windows = rows.batch(1), Windows().batch(1)[0]
    np.testing.assert_array_equal(ids[:, 1:9], windows[:, 4:12])        # 8 tokens, the longest
    assert (ids[:, 0] == FIRST).all() and (ids[:, 9] == MARK).all()
    assert (ids[:, 10:] == PADDING).all() and ids.shape == (6, 22)


def test_a_second_text_follows_or_is_another_rows():
    windows, drawn = Windows(rows=40), []
    pairs = SentencePairs(windows, first=FIRST, separator=MARK, seed=3)
    for step in range(12):
        ids, types, follows = pairs.batch(step)
        text = windows.batch(step)[0]
        cut = int(np.argmax(types[0])) - 2
        assert 5 <= cut <= 15 and ids.shape == (40, 23)
        np.testing.assert_array_equal(types, np.broadcast_to(np.arange(23) >= cut + 2, (40, 23)))
        assert (ids[:, 0] == FIRST).all() and (ids[:, [cut + 1, -1]] == MARK).all()
        np.testing.assert_array_equal(ids[:, 1 : cut + 1], text[:, :cut])
        second, own = ids[:, cut + 2 : -1], text[:, cut:]
        np.testing.assert_array_equal((second == own).all(axis=1), follows == 0)
        np.testing.assert_array_equal(second[follows == 1], np.roll(own, 1, axis=0)[follows == 1])
        drawn += follows.tolist()
    assert abs(np.mean(drawn) - 0.5) < 5 * 0.5 / np.sqrt(len(drawn))
    assert len({int(np.argmax(pairs.batch(step)[1][0])) for step in range(12)}) > 4


# -- spans -----------------------------------------------------------------------------------------


@given(st.integers(2, 200), densities, spans)
def test_counts_leave_something_on_both_sides(length, density, span):
    noise, count = counts(length, density, span)
    assert 1 <= count <= noise < length and count <= length - noise


def test_counts_of_the_paper():
    # Raffel et al. 2020: 512 tokens of a source come from 568, of which 85 are left out in 28
    # spans; with its end the target has 114 tokens.
    assert window_for(512, 0.15, 3.0) == 568
    assert counts(568, 0.15, 3.0) == (85, 28) and 85 + 28 + 1 == 114


@given(st.integers(3, 100), densities, spans)
def test_a_window_fills_its_row(length, density, span):
    window = window_for(length, density, span)
    for n, fits in ((window, True), (window + 1, False)):
        noise, count = counts(n, density, span)
        assert (n - noise + count + 1 <= length) is fits


@given(st.integers(2, 100), st.integers(0, 5), st.floats(0.05, 0.5), spans)
def test_the_target_says_what_the_source_lacks(length, seed, density, span):
    ids = 1000 + np.arange(length)
    source, target = corrupt_spans(ids, mf.Rng(seed), **GIVEN, density=density, span=span)
    noise, count = counts(length, density, span)
    assert (len(source), len(target)) == (length - noise + count + 1, noise + count + 1)
    assert source[-1] == target[-1] == MARK and target[0] == SENTINELS[0]
    parts = [{}, {}]
    for part, side in zip(parts, (source[:-1], target[:-1])):
        key = None
        for token in side.tolist():
            if token in SENTINELS:
                key = token
                part[key] = []
            else:
                part.setdefault(key, []).append(token)
    # Put together again: what stays before the first, then each span and what stays behind it.
    text = list(parts[0].pop(None, []))
    assert list(parts[0]) == list(parts[1]) == list(SENTINELS[:count])
    for key in parts[1]:
        assert parts[1][key]
        text += parts[1][key] + parts[0][key]
    assert text == ids.tolist()


def test_all_divisions_are_equally_likely():
    found = [tuple(divide(5, 3, mf.Rng(seed)).tolist()) for seed in range(6000)]
    kinds = sorted(set(found))
    assert len(kinds) == 6 and all(sum(kind) == 5 and min(kind) >= 1 for kind in kinds)
    for kind in kinds:              # binomial: within five standard deviations
        assert abs(found.count(kind) - 1000) < 5 * np.sqrt(6000 / 6 * 5 / 6)


def test_a_span_may_be_anywhere():
    found = set()
    for seed in range(200):
        source, _ = corrupt_spans(1000 + np.arange(10), mf.Rng(seed), **GIVEN)     # one span of 2
        found.add(int(np.argmax(source == SENTINELS[0])))
    assert found == set(range(9))


def test_texts_too_short_stay_whole():
    for ids in ([], [7]):
        source, target = corrupt_spans(np.array(ids, np.int64), mf.Rng(0), **GIVEN)
        assert source.tolist() == [*ids, MARK] and target.tolist() == [MARK]


def test_too_few_sentinels_are_refused():
    with pytest.raises(ConfigError, match="100 tokens have 5 spans, and the vocabulary has 3"):
        corrupt_spans(np.arange(100), mf.Rng(0), sentinels=(1, 2, 3), end=0)
    with pytest.raises(ConfigError, match="at least 3 tokens, got 2"):
        window_for(2, 0.15, 3.0)
    with pytest.raises(ConfigError, match=r"length: 3000 tokens have \d+ spans"):
        Denoising().window(3000)


# -- batches ---------------------------------------------------------------------------------------


def span_batches(windows, apart=None, seed=3):
    return SpanBatches(windows, seed=seed, padding=PADDING, apart=apart, density=0.15, span=3.0,
                       **GIVEN)


@pytest.mark.parametrize("made", [span_batches, lambda windows, apart=None, seed=3: PrefixBatches(
    windows, seed=seed, padding=PADDING, apart=apart)])
def test_batches_are_a_function_of_seed_and_step(made):
    differing = 0
    for step in range(6):
        found, again, other = (made(Windows(), seed=seed).batch(step) for seed in (3, 3, 4))
        for a, b in zip(found, again, strict=True):
            np.testing.assert_array_equal(a, b)
        differing += any(a.shape != b.shape or (a != b).any() for a, b in zip(found, other))
        assert found[2].all() and (found[1] != -100).all()      # of equal windows, nothing is empty
    assert differing >= 3               # two seeds may cut at one place by chance
    assert made(Windows()).description != made(Windows(), seed=4).description
    assert made(Windows()).count == 3


def test_rows_are_corrupted_each_by_itself():
    source, _, _ = span_batches(Windows()).batch(0)
    kept = [tuple((row[row >= 200] - 200) % 100) for row in source]
    assert len(set(kept)) > 1


def test_a_prefix_and_how_it_goes_on():
    batches, lengths = PrefixBatches(Windows(), seed=3, padding=PADDING), set()
    for step in range(8):
        source, targets, mask = batches.batch(step)
        np.testing.assert_array_equal(np.concatenate([source, targets], 1),
                                      Windows().batch(step)[0])
        lengths.add(source.shape[1])
    assert len(lengths) > 2 and 5 <= min(lengths) and max(lengths) <= 15


@pytest.mark.parametrize("made", [span_batches, lambda windows, apart: PrefixBatches(
    windows, seed=3, padding=PADDING, apart=apart)])
def test_apart_no_row_has_two_documents(made):
    class Uneven(Windows):
        def batch(self, step):
            ids = super().batch(step)[0]
            ids[::2, 8] = MARK
            return (ids,)
    source, targets, mask = made(Uneven(), apart=MARK).batch(0)
    text = [set(np.concatenate([s[m], t[t >= 200]]).tolist()) for s, t, m in
            zip(source, targets, mask)]
    for row, ids in enumerate(Uneven().batch(0)[0]):
        longest = set(longest_document(ids, MARK).tolist())
        assert {i for i in text[row] if i >= 200} == longest
    assert (source[~mask] == PADDING).all() and not mask.all() and mask[:, 0].all()


def test_held_out_windows_that_are_not_full_are_left_out():
    class Ending(Windows):
        def batch(self, step):
            ids = super().batch(step)[0]
            targets = ids + 1
            targets[-1, -5:] = -100
            return ids, targets
    source, targets, mask = span_batches(Ending()).batch(0)
    assert len(source) == len(targets) == len(mask) == 5


@given(st.lists(st.lists(st.integers(0, 9), max_size=5), max_size=4))
def test_padding_stands_behind(rows):
    out = padded([np.array(row, np.int64) for row in rows], -1)
    assert out.shape == (len(rows), max(map(len, rows), default=0))
    assert [row[row >= 0].tolist() for row in out] == rows
    assert all((np.diff((row == -1).astype(int)) >= 0).all() for row in out)


@pytest.mark.parametrize("prefix", [False, True])
@pytest.mark.parametrize("model", [
    T5(T5Config(vocabulary=200, layers=1, heads=2, width=8, head_width=4), mf.Rng(0)),
    Transformer(TransformerConfig(vocabulary=200, context=64, layers=1, heads=2, width=8,
                                  start=PADDING, end=MARK, padding=PADDING), mf.Rng(0))])
def test_what_denoising_counts(model, prefix):
    class Small(Windows):
        def batch(self, step):
            return (3 + super().batch(step)[0] % 90,)
    objective = Denoising(learning=LearningConfig(prefix=prefix))
    made = PrefixBatches(Small(), seed=0, padding=PADDING) if prefix else span_batches(Small())
    batch = made.batch(0)
    assert objective.tokens(batch) == batch[0].size + batch[1].size
    assert objective.count(batch) == batch[1].size
    with mf.FlopCounter() as counter:
        loss = objective.loss(model, batch, denominator=batch[1].size, rng=None)
        loss.backward()
    # linear_cross_entropy computes its logits again in the backward pass.
    again = 2 * batch[1].size * 200 * 8
    assert counter.total - again == pytest.approx(objective.flops(model, batch), rel=1e-12)
    ids = model.read_before(batch[1])
    assert loss.item() == model.loss(batch[0], ids, batch[1]).item()
