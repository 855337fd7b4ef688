"""Labelled examples: what is written comes back, and what is wrong is said with file and line."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minifm.errors import ConfigError, FormatError
from minifm.tasks import (
    Classified,
    Question,
    Summary,
    Tagged,
    describe,
    labels_of,
    read,
    split,
    write,
)
from minifm.tasks.qa import Answer
from minifm.tasks.spans import (
    OUTSIDE,
    Span,
    check_tags,
    entities_in,
    iob2,
    spans_of,
    tags_of,
    words_in,
)

# Text that is not blank, with what files stumble over: quotes, commas, line ends, other alphabets.
texts = st.text(st.sampled_from('ab,"\n\r\t é漢😀\\{}'), min_size=1).filter(str.strip)


def written(tmp_path, text, name="data.jsonl"):
    path = tmp_path / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def lines(*records):
    return "".join(json.dumps(record) + "\n" for record in records)


# -- each kind comes back --------------------------------------------------------------------------


@st.composite
def tagged(draw):
    """With entities that are runs of words."""
    text = draw(texts)
    words, found, place = words_in(text), [], 0
    while place < len(words):
        stop = draw(st.integers(place + 1, len(words)))
        if draw(st.booleans()):
            found.append(Span(words[place][0], words[stop - 1][1], draw(st.sampled_from("XY"))))
        place = stop
    return Tagged(text, tuple(found), group=draw(st.none() | st.just("g")))


@st.composite
def questions(draw):
    context = draw(texts)
    start = draw(st.integers(0, len(context) - 1))
    end = draw(st.integers(start + 1, len(context)))
    answers = (Answer(context[start:end], start),) if context[start:end].strip() else ()
    return Question(draw(texts), context, answers)


kinds = st.one_of(
    st.builds(Classified, texts, texts.map(str.strip), st.none() | texts), tagged(), questions(),
    st.builds(Summary, texts, texts))


@given(examples=kinds.flatmap(lambda e: st.lists(st.just(e), min_size=1, max_size=3)))
def test_what_is_written_comes_back(examples, tmp_path_factory):
    path = tmp_path_factory.mktemp("w") / "x.jsonl"
    write(examples, path)
    group = "group" if examples[0].group is not None else None
    found = read(path, type(examples[0]), group=group)
    assert found == examples
    assert [example.origin.key for example in found] == \
        [f"line {i + 1}" for i in range(len(examples))]


def test_words_with_tags_come_back(tmp_path):
    example = Tagged.of_words(["New", "York", "Rome", "is"], ["B-LOC", "I-LOC", "B-LOC", "O"])
    assert example.text == "New York Rome is"
    assert example.entities == (Span(0, 8, "LOC"), Span(9, 13, "LOC"))
    write([example], tmp_path / "x.jsonl")
    assert read(tmp_path / "x.jsonl", Tagged) == [example]
    assert json.loads((tmp_path / "x.jsonl").read_text())["tags"] == \
        ["B-LOC", "I-LOC", "B-LOC", "O"]


# -- formats ---------------------------------------------------------------------------------------


def test_csv_with_quotes_line_ends_and_a_byte_order_mark(tmp_path):
    path = written(tmp_path, '\ufefftext,label,x\r\n"one, ""two""\nthree",a,\r\n\r\nfour,b,5\r\n',
                   "x.csv")
    found = read(path, Classified)
    assert [(e.text, e.label, e.origin.key) for e in found] == \
        [('one, "two"\nthree', "a", "line 2"), ("four", "b", "line 5")]
    path = written(tmp_path, 'tokens\ttags\n["a", "b"]\t["B-X", "I-X"]\n', "x.tsv")
    assert read(path, Tagged)[0].entities == (Span(0, 3, "X"),)
    path = written(tmp_path, "text,label\n" + "x" * 200_000 + ",a\n", "long.csv")
    assert len(read(path, Classified)[0].text) == 200_000


CONLL = """\
-DOCSTART- -X- -X- O

EU NNP B-NP I-ORG
rejects VBZ B-VP O
German JJ B-NP I-MISC

-DOCSTART- -X- -X- O

Peter NNP B-NP I-PER
Blackburn NNP I-NP I-PER
Rome NNP B-NP B-PER
"""


def test_conll_in_iob1_by_documents(tmp_path):
    path = written(tmp_path, CONLL, "eng.conll")
    found = read(path, Tagged, scheme="iob1", group="document")
    assert [e.text for e in found] == ["EU rejects German", "Peter Blackburn Rome"]
    assert [e.group for e in found] == ["1", "2"]
    assert [e.origin.key for e in found] == ["line 3", "line 9"]
    assert found[1].entities == (Span(0, 15, "PER"), Span(16, 20, "PER"))
    with pytest.raises(FormatError, match="line 3: tag 0: 'I-ORG' after 'the beginning'.*iob1"):
        read(path, Tagged)


def test_squad_in_all_its_nestings(tmp_path):
    asked = {"question": "Who?", "id": "1", "answers": [{"text": "Ada", "answer_start": 4}]}
    none = {"question": "When?", "is_impossible": True}
    nested = {"data": [{"title": "T", "paragraphs": [
        {"context": "It's Ada", "qas": [asked | {"answers": [{"text": "Ada", "answer_start": 5}]},
                                        none]}]}]}
    found = read(written(tmp_path, json.dumps(nested), "s.json"), Question, group="title")
    assert [e.answers for e in found] == [(Answer("Ada", 5),), ()]
    assert found[1].origin.key == "data[0].paragraphs[0].qas[1]" and found[1].group == "T"
    flat = {"question": "Who?", "context": "Ada", "answers": {"text": ["Ada"],
                                                              "answer_start": [0]}}
    assert read(written(tmp_path, json.dumps([flat]), "f.json"), Question)[0].answers == \
        (Answer("Ada", 0),)


# -- what is wrong ---------------------------------------------------------------------------------

WRONG = [
    (Classified, {"text": "a"}, "expected a field 'label'; the fields here are: text"),
    (Classified, {"text": 7, "label": "x"}, "expected 'text' to be a string, got int 7"),
    (Classified, {"text": "a", "label": True}, "'label' to be an integer, got bool True"),
    (Classified, {"text": " \n", "label": "x"}, "'text' is empty"),
    (Classified, {"text": "a", "label": "x", "text_pair": 3}, "'text_pair' to be a string"),
    (Tagged, {"tokens": ["a"], "tags": []}, "a tag for each of 1 tokens, got 0"),
    (Tagged, {"tokens": [], "tags": []}, "'tokens' is empty"),
    (Tagged, {"tokens": ["a"], "tags": ["X-Y"]}, "tag 0: expected O, B-… or I-…, got 'X-Y'"),
    (Tagged, {"tokens": ["a", "b"], "tags": ["O", "I-X"]}, "tag 1: 'I-X' after 'O'"),
    (Tagged, {"tokens": ["a", "b"], "tags": ["B-Y", "I-X"]}, "tag 1: 'I-X' after 'B-Y'"),
    (Tagged, {"tokens": ["a", 4], "tags": ["O", "O"]}, r"tokens\[1\] to be a string, got int 4"),
    (Tagged, {"text": "ab cd", "entities": [{"start": 0, "end": 9, "label": "X"}]},
     "X from 0 to 9: expected a span within the text's 5 characters"),
    (Tagged, {"text": "ab cd", "entities": [{"start": 0, "end": 3, "label": "X"}]}, "misaligned"),
    (Tagged, {"text": "ab cd", "entities": [{"start": 0, "end": 5, "label": "X"},
                                            {"start": 3, "end": 5, "label": "Y"}]},
     "Y 'cd' from 3 to 5 overlaps X 'ab cd' from 0 to 5"),
    (Tagged, {"text": "ab cd", "entities": [{"start": 0, "end": 2, "label": "X", "text": "cd"}]},
     "expected 'cd', found 'ab'; it stands at 3"),
    (Question, {"question": "?", "context": "ab cd", "answers": [{"text": "cd", "start": 1}]},
     "answer 'cd': expected it at character 1 of the context; it stands at 3"),
    (Question, {"question": "?", "context": "ab", "answers": [{"text": "x", "start": 0}]},
     "the context does not have it"),
    (Question, {"question": "?", "context": "ab", "answers": [{"text": "b", "start": -1}]},
     "at character -1 of the context; it stands at 1"),
    (Question, {"question": "?", "context": "ab", "answers": ["b"]},
     r"answers\[0\] to be an object, got str 'b'"),
    (Question, {"question": "?", "context": "ab"}, "expected a field 'answers'"),
    (Summary, {"text": "ab", "summary": ""}, "'summary' is empty"),
]


@pytest.mark.parametrize("kind, record, said", WRONG)
def test_a_bad_example_is_named_by_its_line(tmp_path, kind, record, said):
    path = written(tmp_path, "\n\n" + lines(record))
    with pytest.raises(FormatError, match=f"data.jsonl: line 3: .*{said}") as caught:
        read(path, kind)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name, text, said", [
    ("x.jsonl", '{"text"', "line 1: the line is not JSON"),
    ("x.jsonl", "[1]", "line 1: expected an object with fields, got list"),
    ("x.jsonl", b'{}\n\xff', "line 2: not UTF-8: byte 0xFF"),
    ("x.jsonl", "\n", "no example in it"),
    ("x.csv", "text,label\na,b,c\n", "line 2: expected 2 cells, as in the header, got 3"),
    ("x.csv", 'text,label\n"a,b\n', "line 2: not CSV"),
    ("x.csv", "text,text\n", "line 1: the column 'text' stands twice"),
    ("x.csv", "", "line 1: expected a header row"),
    ("x.csv", "text,label\na,\n", "line 2: expected a field 'label'"),
    ("x.conll", "a O\nb\n", "line 2: expected a token and a tag"),
    ("x.json", '{"data": 3}', "expected a list 'data', as SQuAD has"),
])
def test_a_bad_file_is_named_by_its_line(tmp_path, name, text, said):
    path = written(tmp_path, text, name)
    kind = Tagged if name == "x.conll" else Question if name == "x.json" else Classified
    with pytest.raises(FormatError, match=f"{name}: .*{said}|{said}"):
        read(path, kind)


def test_what_no_file_is(tmp_path):
    with pytest.raises(ConfigError, match="nowhere.csv: cannot be read"):
        read(tmp_path / "nowhere.csv", Classified)
    with pytest.raises(ConfigError, match="x.doc: expected a file that ends in one of .jsonl"):
        read(written(tmp_path, "", "x.doc"), Classified)
    with pytest.raises(ConfigError, match="scheme: expected one of iob2, iob1"):
        read(tmp_path / "x.conll", Tagged, scheme="bilou")
    path = written(tmp_path, lines({"text": "a", "label": 1}))
    with pytest.raises(FormatError, match="line 1: expected a field 'who'.* to group by"):
        read(path, Classified, group="who")
    with pytest.raises(FormatError, match="line 1: label '1' is unknown; expected one of x, y"):
        read(path, Classified, labels=("y", "x"))


# -- tags and spans --------------------------------------------------------------------------------

any_tags = st.lists(st.sampled_from(["O", "B-X", "I-X", "B-Y", "I-Y"]), min_size=1, max_size=9)


@given(tags=any_tags)
def test_spans_and_tags_translate_into_each_other(tags):
    """Whatever the tags, their spans have consistent tags, which have the same spans."""
    words = [(3 * i, 3 * i + 2) for i in range(len(tags))]
    spans = spans_of(tags, words)
    again, widened, lost = tags_of(spans, words)
    assert spans_of(again, words) == spans and (widened, lost) == (0, 0)
    check_tags(again, Classified.origin)
    # Inside and outside never change; what begins anew does.
    assert [t == OUTSIDE for t in tags] == [t == OUTSIDE for t in again]


@given(tags=any_tags)
def test_iob1_begins_where_it_must(tags):
    """From consistent IOB2 to IOB1, by its definition, and back."""
    words = [(3 * i, 3 * i + 2) for i in range(len(tags))]
    new = tags_of(spans_of(tags, words), words)[0]
    old = [tag if tag[0] != "B" or (i and new[i - 1][2:] == tag[2:]) else f"I{tag[1:]}"
           for i, tag in enumerate(new)]
    assert iob2(old, Classified.origin) == new


def test_entities_of_inconsistent_tags():
    assert entities_in(["I-X", "I-X", "I-Y", "O", "B-X", "B-X"]) == \
        [(0, 2, "X"), (2, 3, "Y"), (4, 5, "X"), (5, 6, "X")]


def test_spans_that_fit_no_word_are_widened_or_lost():
    words = words_in("ab-cd ef")
    assert words == [(0, 2), (2, 3), (3, 5), (6, 8)]
    assert tags_of([Span(1, 4, "X")], words) == (["B-X", "I-X", "I-X", "O"], 1, 0)
    assert tags_of([Span(6, 7, "X"), Span(7, 8, "Y")], words) == (["O", "O", "O", "B-X"], 1, 1)


# -- sets of examples ------------------------------------------------------------------------------


def classified(count, groups=None):
    return [Classified(f"text {i}", "ab"[i % 3 == 0], group=groups and groups[i % len(groups)])
            for i in range(count)]


def test_labels_are_sorted_and_described():
    examples = classified(9)
    assert labels_of(examples) == ("a", "b")
    line = describe(examples)
    assert line == "9 examples in 9 groups; 9 labels of 2 kinds: a 6 (67%), b 3 (33%); " \
                   "largest to smallest 2 : 1"


@given(seed=st.integers(0, 99), groups=st.lists(st.text(max_size=3), min_size=2, unique=True),
       fraction=st.floats(0.05, 0.95))
def test_a_split_keeps_groups_together_and_loses_nothing(seed, groups, fraction):
    examples = classified(3 * len(groups), groups)
    training, held_out = split(examples, fraction, seed)
    assert training and held_out
    assert sorted(e.text for e in training + held_out) == sorted(e.text for e in examples)
    assert not {e.group for e in training} & {e.group for e in held_out}
    assert split(examples, fraction, seed) == (training, held_out)


def test_a_split_stays_when_examples_are_added_and_has_the_size_asked_for():
    many = classified(2000)
    few = many[:500]
    side = {e.text for e in split(many, 0.2)[1]}
    assert {e.text for e in split(few, 0.2)[1]} == side & {e.text for e in few}
    assert abs(len(side) - 400) < 6 * (2000 * 0.2 * 0.8) ** 0.5
    assert {e.text for e in split(many, 0.2, seed=1)[1]} != side
    with pytest.raises(ConfigError, match="groups of examples: 1"):
        split(classified(5, ["one"]), 0.2)
    with pytest.raises(ConfigError, match="held-out fraction"):
        split(many, 1.0)


def test_a_document_ends_the_sentence_before_it(tmp_path):
    path = tmp_path / "two.conll"
    path.write_text("A B-P\n-DOCSTART- O\nB O\n")
    assert [example.text for example in read(path, Tagged)] == ["A", "B"]


def test_a_label_with_white_space_at_its_ends_is_refused(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text('text,label\na,1\nb," 1"\n')
    with pytest.raises(FormatError, match="line 3: label ' 1': expected none with white space"):
        read(path, Classified)
