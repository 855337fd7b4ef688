"""Examples as rows of tokens: every label arrives at its token, and every answer comes back."""

import json
import unicodedata
from unittest import mock

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minifm.errors import ConfigError
from minifm.tasks import (
    Classified,
    ClassifiedRows,
    HeldOutTaskBatches,
    Question,
    QuestionRows,
    Summary,
    SummaryRows,
    Tagged,
    TaggedRows,
    TaskBatches,
)
from minifm.tasks.batches import overlapping, owners
from minifm.tasks.classify import sizes_in
from minifm.tasks.qa import Answer, best_span
from minifm.tasks.spans import Span, combines, words_in
from minifm.tasks.summarize import PairRows
from minifm.text import Tokenizer
from minifm.text.offsets import Encoded, Frame, encode_with_offsets
from minifm.text.tokenizer import FIRST, MASK, PADDING

TEXT = "The cat sat on the mat; it's é漢字漢字 there ((x)) = None, that's 😀😀 the cat's hat. " * 3
BYTES, LEARNT = Tokenizer.bytes(), Tokenizer.train([TEXT], 330)
both = pytest.mark.parametrize("tokenizer", [BYTES, LEARNT], ids=["bytes", "learnt"])
texts = st.text(st.sampled_from("the cat's é漢字😀(x)\n\ud800\udcff\udc80\u0301"), max_size=40)
written = texts.filter(str.strip)


def bytes_of(character):
    """Each by itself: a byte that was not UTF-8 is itself, half of a pair three bytes."""
    code = ord(character)
    return bytes([code - 0xDC00]) if 0xDC80 <= code <= 0xDCFF else \
        character.encode("utf-8", "surrogatepass")


def framed(processor):
    """LEARNT, with <s> and </s> put around texts as files of RoBERTa or BERT ask for."""
    described = json.loads(LEARNT.json)
    count = LEARNT.vocabulary
    for i, token in enumerate(("<s>", "</s>")):
        described["added_tokens"].append({
            "id": count + i, "content": token, "single_word": False, "lstrip": False,
            "rstrip": False, "normalized": False, "special": True})
    described["post_processor"] = {
        "type": processor, "cls": ["<s>", count], "sep": ["</s>", count + 1]} | (
        {"trim_offsets": True, "add_prefix_space": False} if processor == "RobertaProcessing"
        else {})
    return Tokenizer(json.dumps(described))


ROBERTA, BERT = framed("RobertaProcessing"), framed("BertProcessing")
OWN = Tokenizer.train([TEXT], 330, (FIRST, PADDING, MASK))
CLS, SEP = LEARNT.vocabulary, LEARNT.vocabulary + 1
some = pytest.mark.parametrize("tokenizer", [BYTES, LEARNT, ROBERTA, BERT],
                               ids=["bytes", "learnt", "roberta", "bert"])


# -- offsets ---------------------------------------------------------------------------------------


@both
@given(text=texts | st.binary(max_size=30))
def test_tokens_are_the_bytes_at_their_offsets(tokenizer, text):
    ids, offsets = encode_with_offsets(tokenizer, text)
    data = b"".join(map(bytes_of, text)) if isinstance(text, str) else text
    assert offsets.shape == (len(ids), 2) and offsets.dtype == np.int64
    np.testing.assert_array_equal(ids, tokenizer.encode(text))
    for token, (start, end) in zip(ids, offsets):
        assert tokenizer.decode([token]) == data[start:end]
    assert b"".join(data[a:b] for a, b in offsets) == data


def test_a_merge_may_cross_characters():
    """The last byte of one character and the first of the next, in one token."""
    a, b = "漢".encode(), "字".encode()
    byte = bytes([a[-1], b[0]])
    described = json.loads(BYTES.json)
    symbols = [next(s for s, i in described["model"]["vocab"].items() if i == x) for x in byte]
    described["model"]["vocab"]["".join(symbols)] = 257
    described["model"]["merges"] = [symbols]
    crossing = Tokenizer(json.dumps(described))
    encoded = Encoded.all(crossing, ["漢字"])[0]
    assert encoded.offsets.tolist() == [[0, 1], [1, 2], [2, 4], [4, 5], [5, 6]]
    assert encoded.tokens(0, 1) == (0, 3) and encoded.tokens(1, 2) == (2, 5)
    assert encoded.characters(0, 3) == (0, 2)           # widened: the token has a part of both
    assert not encoded.fits(0, 1) and encoded.fits(0, 2)


@both
@given(text=written, data=st.data())
def test_spans_become_tokens_and_come_back_or_are_widened(tokenizer, text, data):
    encoded = Encoded.all(tokenizer, [text])[0]
    start = data.draw(st.integers(0, len(text) - 1))
    end = data.draw(st.integers(start + 1, len(text)))
    first, stop = encoded.tokens(start, end)
    low, high = (sum(len(bytes_of(c)) for c in text[:place]) for place in (start, end))
    overlap = [t for t, (a, b) in enumerate(encoded.offsets) if a < high and b > low]
    assert list(range(first, stop)) == overlap
    back = encoded.characters(first, stop)
    inside = text[start:end]
    if inside == inside.strip():
        assert back[0] <= start and end <= back[1]
        assert encoded.fits(start, end) == (back == (start, end))
        if tokenizer is BYTES:
            assert back == (start, end)


def test_places_are_those_of_the_text_before_it_was_normalised():
    described = json.loads(LEARNT.json)
    described["normalizer"] = {"type": "NFC"}
    nfc = Tokenizer(json.dumps(described))
    ids, offsets = encode_with_offsets(nfc, "ae\u0301b")
    assert nfc.decode(ids).decode() == "a\u00e9b"
    assert offsets.tolist() == [[0, 1], [1, 4], [1, 4], [4, 5]]
    with pytest.raises(ConfigError, match="its normaliser changes the text .* not all UTF-8"):
        encode_with_offsets(nfc, b"e\xcc\x81\xff")


def test_a_frame_is_what_the_file_says():
    alike = ((0,), (0,), (0, 0), (0,), (0,))
    assert Frame.of(ROBERTA) == Frame((CLS,), (SEP, SEP), (SEP,), LEARNT.end_of_text, alike)
    end = LEARNT.end_of_text
    assert Frame.of(LEARNT) == Frame((), (end,), (), end, ((), (0,), (0,), (1,), ()))
    assert Frame.of(BERT).types == ((0,), (0,), (0,), (1,), (1,))


@pytest.mark.parametrize("described", [ROBERTA.json, BERT.json, OWN.json])
@given(first=written, second=written)
def test_a_frame_around_texts_is_the_librarys(described, first, second):
    import tokenizers
    library, tokenizer = tokenizers.Tokenizer.from_str(described), Tokenizer(described)
    frame, (one, two) = Frame.of(tokenizer), (t.encode("utf-8", "replace").decode()
                                              for t in (first, second))
    ids, types = frame.around(tokenizer.encode(one), tokenizer.encode(two))
    expected = library.encode(one, two)
    assert (ids.tolist(), types.tolist()) == (expected.ids, expected.type_ids)
    ids, types = frame.around(tokenizer.encode(one))
    expected = library.encode(one)
    assert (ids.tolist(), types.tolist()) == (expected.ids, expected.type_ids)


# -- windows ---------------------------------------------------------------------------------------


@given(count=st.integers(1, 60), room=st.integers(1, 20), data=st.data())
def test_windows_cover_and_each_token_has_the_most_context(count, room, data):
    overlap = data.draw(st.integers(0, room - 1))
    spans = overlapping(count, room, overlap)
    assert spans[0][0] == 0 and spans[-1][1] == count
    for (a, b), (c, d) in zip(spans, spans[1:]):
        assert a < c <= b - overlap and b < d and d - c == room
    owner = owners(spans, count)
    for t in range(count):
        def context(window, t=t):
            start, stop = spans[window]
            return min(t - start if start else count, stop - 1 - t if stop < count else count)
        holding = [w for w, (a, b) in enumerate(spans) if a <= t < b]
        best = max(context(w) for w in holding)
        assert owner[t] == min(w for w in holding if context(w) == best)


@pytest.mark.parametrize("overlap", [-1, 5, 9])
def test_windows_must_go_on(overlap):
    with pytest.raises(ConfigError, match="overlap: expected at least 0 and less than the 5"):
        overlapping(30, 5, overlap)


# -- classification --------------------------------------------------------------------------------


@given(room=st.integers(2, 30), first=st.integers(1, 30), second=st.integers(1, 30))
def test_the_longer_of_two_texts_loses_first(room, first, second):
    expected = [first, second]
    while sum(expected) > room:         # one token at a time; of equal ones the second
        expected[int(expected[1] >= expected[0])] -= 1
    assert sizes_in(room, first, second) == tuple(expected)


@some
def test_rows_of_classes(tokenizer):
    examples = [Classified("the cat sat", "b"), Classified("the", "a", "hat " * 30)]
    rows = ClassifiedRows(examples, tokenizer, ("a", "b"), length=20)
    frame = Frame.of(tokenizer)
    assert rows.ids[0].tolist() == [*frame.before, *tokenizer.encode("the cat sat"),
                                    *frame.behind]
    kept = 20 - len(frame.before + frame.between + frame.behind) - len(tokenizer.encode("the"))
    assert rows.ids[1].tolist() == [
        *frame.before, *tokenizer.encode("the"), *frame.between,
        *tokenizer.encode("hat " * 30)[:kept], *frame.behind]
    assert [int(t) for t in rows.targets] == [1, 0]
    assert rows.facts == {"truncated": 1, "tokens cut": len(tokenizer.encode("hat " * 30)) - kept}
    assert rows.predictions([np.array([0.0, 1.0]), np.array([3.0, 1.0])]) == ["b", "a"]
    ids, targets, mask = rows.padded([1, 0])
    assert targets.tolist() == [0, 1] and mask.sum(1).tolist() == [20, len(rows.ids[0])]
    assert (ids[~mask] == frame.padding).all()


def test_rows_that_cannot_be():
    with pytest.raises(ConfigError, match="length: expected at least 3 tokens, .* got 2"):
        ClassifiedRows([Classified("x", "a")], ROBERTA, ("a",), length=2)
    with pytest.raises(ConfigError, match="examples: expected at least one"):
        ClassifiedRows([], LEARNT, ("a",), length=2)


def test_types_tell_the_texts_of_a_row_apart():
    """0 up to the first separator, then 1, and 0 in padding, cut or not; of one text 0."""
    examples = [Classified("the cat", "a", "sat " * 30), Classified("the cat sat", "b")]
    rows = ClassifiedRows(examples, BERT, ("a", "b"), length=20, typed=True)
    _, _, mask, types = rows.padded([0, 1])
    first = len(BERT.encode("the cat")) + 2
    assert types[0].tolist() == [0] * first + [1] * (20 - first) and not types[1].any()
    assert types.shape == mask.shape
    plain = ClassifiedRows(examples, BERT, ("a", "b"), length=20)
    assert len(plain.padded([0, 1])) == 3 and plain.description != rows.description
    asked = Question("the?", TEXT, (Answer("cat", 4),))
    rows = QuestionRows([asked], BERT, length=30, typed=True)
    first = len(BERT.encode("the?")) + 2
    assert len(rows) > 2
    for types in rows.types:
        assert types.tolist() == [0] * first + [1] * (len(types) - first)
    seen = []
    HeldOutTaskBatches(rows, batch=2).outputs(
        lambda ids, mask, types: seen.append(types) or np.zeros((*ids.shape, 2)))
    assert sum(len(types) for types in seen) == len(rows) and all(t.any() for t in seen)


# -- entities --------------------------------------------------------------------------------------


@st.composite
def tagged(draw):
    text = draw(written)
    words, found, place = words_in(text), [], 0
    while place < len(words):
        stop = draw(st.integers(place + 1, min(place + 3, len(words))))
        if draw(st.booleans()):
            found.append(Span(words[place][0], words[stop - 1][1], draw(st.sampled_from("XY"))))
        place = stop
    return Tagged(text, tuple(found))


def perfect(rows, K):
    """Outputs that say each target, and nonsense where there is none."""
    noise = np.random.default_rng(0)
    return [np.where(target[:, None] >= 0, 9.0 * (target[:, None] == np.arange(K)),
                     noise.normal(size=(len(target), K))) for target in rows.targets]


@some
@given(examples=st.lists(tagged(), min_size=1, max_size=3), room=st.integers(2, 12),
       overlap=st.integers(0, 1))
def test_a_perfect_tagger_scores_perfectly(tokenizer, examples, room, overlap):
    around = Frame.of(tokenizer)
    length = room + len(around.before) + len(around.behind)
    rows = TaggedRows(examples, tokenizer, ("X", "Y"), length=length, overlap=overlap)
    said = rows.predictions(perfect(rows, 5))
    counted = sum(int((target >= 0).sum()) for target in rows.targets)
    words = sum(len(example.word_spans) for example in examples)
    assert counted == words - rows.facts["merged"]      # each word is learnt once
    assert max(map(len, rows.ids)) <= length
    if not rows.facts["merged"]:
        assert said == [example.entities for example in examples]
        assert Tagged.scores(examples, said).micro in ((1.0, 1.0, 1.0), (0.0, 0.0, 0.0))


def test_the_first_piece_of_a_word_carries_its_tag():
    example = Tagged("é漢 hat", (Span(0, 2, "X"),))
    rows = TaggedRows([example], BYTES, ("X",), length=30)
    assert rows.targets[0].tolist() == [1, *[-100] * 5, 0, -100, -100]
    assert BYTES.encode("é漢 hat").tolist() == rows.ids[0].tolist()


def test_a_word_within_the_token_of_another_goes_on_with_it():
    merged = Tokenizer.train(["((x)) " * 9], 262)
    ids = merged.encode("((x))")
    assert len(ids) < 5
    example = Tagged("((x))", (Span(0, 5, "X"),))
    rows = TaggedRows([example], merged, ("X",), length=9)
    assert rows.facts["merged"] == 5 - len(ids)
    assert rows.predictions(perfect(rows, 3)) == [(Span(0, 5, "X"),)]
    assert merged.decode(ids[:1]).startswith(b"((")
    second = TaggedRows([Tagged("((x", (Span(1, 2, "X"),))], merged, ("X",), length=9)
    assert second.targets[0][0] == 0            # the first word of a token has its tag: O


@given(text=st.text(st.sampled_from("ab (é)e\u0301\u0302\u0903\u093f\u0928\u200d😀 \n_7"),
                    max_size=12))
def test_no_word_begins_with_a_mark_on_the_character_before(text):
    """Unless nothing that it could be on stands before it; and words cover all but white space."""
    words = words_in(text)
    for start, end in words:
        assert start == 0 or text[start - 1].isspace() or not combines(text[start])
        assert not any(c.isspace() for c in text[start:end])
    assert "".join(text[a:b] for a, b in words) == "".join(text.split())
    composed = unicodedata.normalize("NFC", text)
    if len(composed) < len(text) and not any(map(combines, composed)):
        assert len(words) == len(words_in(composed))    # however the same text is spelt


@pytest.mark.parametrize("text, expected", [
    ("cafe\u0301s (e\u0301)", ["cafe\u0301s", "(", "e\u0301", ")"]),
    ("हिन्दी भाषा", ["हिन्दी", "भाषा"]),
    ("a\u0301-b", ["a\u0301", "-", "b"]), ("x + y", ["x", "+", "y"])])
def test_a_word_ends_behind_its_marks(text, expected):
    assert [text[start:end] for start, end in words_in(text)] == expected
    entity = Tagged(text, (Span(0, len(expected[0]), "X"),))
    rows = TaggedRows([entity], BYTES, ("X",), length=60)
    assert rows.facts["widened"] == 0 and rows.predictions(perfect(rows, 3)) == [entity.entities]


# -- questions -------------------------------------------------------------------------------------


@st.composite
def questions(draw):
    context = draw(written)
    start = draw(st.integers(0, len(context) - 1))
    end = draw(st.integers(start + 1, min(len(context), start + 4)))
    inside = context[start:end]
    answers = (Answer(inside, start),) if inside == inside.strip() else ()
    return Question(draw(written), context, answers)


def pointing(rows):
    """Outputs that point to the targets; where a window has no answer, to its first token, but
    less surely."""
    outputs = []
    for ids, (first, last) in zip(rows.ids, rows.targets):
        output = np.zeros((len(ids), 2))
        output[first, 0] = output[last, 1] = 9.0 if last or first else 3.0
        outputs.append(output)
    return outputs


@some
@given(examples=st.lists(questions(), min_size=1, max_size=3), length=st.integers(40, 60))
def test_an_answer_comes_back_from_tokens(tokenizer, examples, length):
    rows = QuestionRows(examples, tokenizer, length=length)
    assert max(map(len, rows.ids)) <= length
    said = rows.predictions(pointing(rows), may_be_none=True)
    held = iter(rows.predictions(pointing(rows)))
    for example, answer, context in zip(examples, said, rows.contexts):
        other = next(held)
        if not example.answers:
            assert answer == ""
            continue
        text, start = example.answers[0]
        if context.fits(start, start + len(text)) and len(rows.ids) == len(examples):
            assert answer == other == text
        assert other in example.context


def test_long_contexts_are_read_in_windows_and_judged_where_context_is():
    context = "".join(f"{i:03} " for i in range(100))
    example = Question("?", context, (Answer("055", 220), Answer("099", 396)))
    rows = QuestionRows([example], BYTES, length=62, overlap=40)
    assert rows.facts["windows"] == len(rows) == 18 and rows.facts["widened"] == 0
    assert 0 < rows.facts["with an answer"] < 18
    for ids, (first, last) in zip(rows.ids, rows.targets):
        assert (first, last) == (0, 0) or BYTES.decode(ids[first : last + 1]) in (b"055", b"099")
    assert rows.predictions(pointing(rows)) == ["055"]
    # Sure of an answer at the edge of a window, where it may not begin: another window decides.
    outputs = [np.zeros((len(ids), 2)) for ids in rows.ids]
    edge = len(rows.ids[0]) - 1
    outputs[0][edge, 0] = 50.0
    outputs[3][30:33] = [[5, 0], [0, 0], [0, 5]]
    decoded = BYTES.decode(rows.ids[3][30:33]).decode()
    assert rows.predictions(outputs) == [decoded.strip()]


@some
@given(context=st.text(st.sampled_from("the cat's é漢字😀(x)\n"), min_size=30, max_size=90).filter(
    str.strip), data=st.data(), length=st.integers(24, 40))
def test_an_answer_at_any_edge_of_a_window_is_learnt_and_comes_back(tokenizer, context, data,
                                                                    length):
    """One of at most as many tokens as windows share lies whole in some window; the target of each
    such window is that answer, the others say that there is none, and a model that says the
    targets is understood."""
    start = data.draw(st.integers(0, len(context) - 1))
    end = data.draw(st.integers(start + 1, min(len(context), start + 9)))
    text = context[start:end]
    if text != text.strip():
        return
    example = Question("?", context, (Answer(text, start),))
    overlap = data.draw(st.one_of(st.none(), st.integers(0, 8)), "overlap")
    rows = QuestionRows([example], tokenizer, length=length, overlap=overlap, longest=99)
    encoded = rows.contexts[0]
    first, stop = encoded.tokens(start, end)
    frame = Frame.of(tokenizer)
    before = len(frame.before) + len(tokenizer.encode("?")) + len(frame.between)
    room = length - before - len(frame.behind)
    shared = room // 2 if overlap is None else overlap
    spans = overlapping(len(encoded.ids), room, shared)
    held = [a <= first and stop <= b for a, b in spans]
    assert any(held) or stop - first > shared
    for whole, (a, _), target, ids in zip(held, spans, rows.targets, rows.ids, strict=True):
        assert target.tolist() == ([before + first - a, before + stop - 1 - a] if whole else [0, 0])
        if whole:
            said = ids[target[0] : target[1] + 1]
            assert said.tolist() == encoded.ids[first:stop].tolist()
    outputs = pointing(rows)
    if any(held) and encoded.fits(start, end):
        assert rows.predictions(outputs, may_be_none=True) == [text]


def test_an_answer_counts_by_a_token_in_its_middle():
    """Of the windows of 5 that share 4, two hold all of "cdef": one has most context of its d, the
    other of its e; those that have most of c and f hold a part of it."""
    example = Question("?", "abcdefgh", (Answer("cdef", 2),))
    around = len(QuestionRows([example], BYTES, length=30).ids[0]) - 8
    rows = QuestionRows([example], BYTES, length=around + 5, overlap=4)
    assert sum(tuple(target) != (0, 0) for target in rows.targets) > 0
    assert rows.predictions(pointing(rows), may_be_none=True) == ["cdef"]


@given(scores=st.lists(st.tuples(st.integers(-3, 3), st.integers(-3, 3)), min_size=1, max_size=9),
       longest=st.sampled_from([1, 2, 3, 9, 10]), data=st.data())
def test_the_best_span_is_that_of_all(scores, longest, data):
    scores = np.array(scores, float)
    start = data.draw(st.integers(0, len(scores)))
    stop = data.draw(st.integers(start, min(start + 2, len(scores))))
    allowed = np.isin(np.arange(len(scores)), range(start, stop))
    every = [(scores[i, 0] + scores[j, 1], -i, -j) for i in range(len(scores))
             for j in range(i, min(i + longest, len(scores))) if allowed[i : j + 1].any()]
    score, first, last = best_span(scores, allowed, longest)
    if every:
        assert (score, -first, -last) == max(every)
    else:
        assert score == -np.inf


# -- summaries -------------------------------------------------------------------------------------


@some
@given(text=written, summary=written, length=st.integers(30, 60))
def test_only_the_summary_and_the_end_are_learnt(tokenizer, text, summary, length):
    rows = SummaryRows([Summary(text, summary)], tokenizer, length=length)
    ids, targets = rows.padded([0])
    assert len(ids[0]) <= length
    learnt = targets[0][targets[0] >= 0]
    whole = [*tokenizer.encode(" " + summary.strip()), tokenizer.end_of_text]
    assert learnt.tolist() == whole[: len(learnt)]
    assert (len(learnt) == len(whole)) == (rows.facts["summaries cut"] == 0)
    assert [*rows.prompts[0], *learnt] == [*ids[0], learnt[-1]]
    prompt = tokenizer.decode(rows.prompts[0][len(Frame.of(tokenizer).before) :])
    assert prompt.endswith(b"\nTL;DR:")
    assert b"".join(map(bytes_of, text)).startswith(prompt.removesuffix(b"\nTL;DR:"))


@both
def test_where_a_text_is_cut_tells_nothing_of_its_summary(tokenizer):
    for kind in (SummaryRows, PairRows):
        rows = kind([Summary("word " * 99, summary) for summary in ("a", "ab cd ef", "x" * 99)],
                    tokenizer, length=64)
        assert len({tuple(prompt.tolist()) for prompt in rows.prompts}) == 1
        assert rows.longest == kind([Summary("a", "b")], tokenizer, length=64).longest == 17


# -- batches ---------------------------------------------------------------------------------------


def rows_of(count, seed=0, label="a"):
    examples = [Classified("x" * (1 + (7 * i + seed) % 11), label) for i in range(count)]
    return ClassifiedRows(examples, BYTES, ("a", "b"), length=20)


@given(count=st.integers(1, 12), batch=st.integers(1, 5), seed=st.integers(0, 9))
def test_each_epoch_visits_every_row_once(count, batch, seed):
    rows = rows_of(count)
    seen = []
    with mock.patch.object(rows, "padded", side_effect=seen.extend):
        for step in range(3 * count):
            TaskBatches(rows, batch=batch, seed=seed).batch(step)
    for epoch in range(3 * batch):
        assert sorted(seen[epoch * count : (epoch + 1) * count]) == list(range(count))


def test_another_epoch_has_another_order():
    batches = TaskBatches(rows_of(11), batch=11, seed=0)
    assert batches.batch(0)[0].tolist() != batches.batch(1)[0].tolist()


def test_a_batch_is_a_function_of_seed_and_step():
    first, again, other = (TaskBatches(rows_of(9), batch=4, seed=seed) for seed in (1, 1, 2))
    for step in (5, 0):
        for a, b in zip(first.batch(step), again.batch(step), strict=True):
            assert a.tobytes() == b.tobytes() and a.shape == b.shape
    assert any(a.batch(s)[0].tobytes() != b.batch(s)[0].tobytes()
               for s in range(3) for a, b in [(first, other)])
    seen = [first.description, other.description, TaskBatches(rows_of(9), batch=3,
                                                              seed=1).description,
            TaskBatches(rows_of(9, 1), batch=4, seed=1).description,
            TaskBatches(rows_of(9, label="b"), batch=4, seed=1).description]
    assert again.description == first.description
    assert all(a != b for i, a in enumerate(seen) for b in seen[:i])
    assert json.loads(json.dumps(first.description)) == first.description


@given(count=st.integers(1, 12), batch=st.integers(1, 5))
def test_outputs_come_back_in_the_order_of_the_rows(count, batch):
    held_out = HeldOutTaskBatches(rows_of(count), batch=batch)
    by_token = held_out.outputs(lambda ids, mask: ids[..., None] * mask[..., None])
    assert [o[:, 0].tolist() for o in by_token] == [r.tolist() for r in held_out.rows.ids]
    whole = held_out.outputs(lambda ids, mask: mask.sum(1, keepdims=True))
    assert [int(o[0]) for o in whole] == [len(row) for row in held_out.rows.ids]
    assert sum(len(held_out.batch(i)[0]) for i in range(held_out.count)) == count
    with pytest.raises(IndexError):
        held_out.batch(held_out.count)
