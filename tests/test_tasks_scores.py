"""Scores against examples by hand, and against their definitions where those are short."""

import itertools
import math
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minifm.errors import ConfigError
from minifm.tasks.pictures import draw_confusion, draw_learning
from minifm.tasks.scores import (
    answer_scores,
    class_scores,
    entity_scores,
    exact_match,
    longest_common_subsequence,
    normalise_answer,
    rouge_l,
    rouge_n,
    summary_scores,
    table,
    text_scores,
    word_f1,
)

labels = st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from("abcd")), min_size=1)
sentences = st.lists(st.sampled_from(["the", "cat", "sat", "on", "mat"]), max_size=7)


# -- classes ---------------------------------------------------------------------------------------


def test_classes_by_hand():
    scores = class_scores(list("aaabbc"), list("aabbbb"))
    assert scores.labels == ("a", "b", "c") and scores.accuracy == pytest.approx(4 / 6)
    assert scores.matrix.tolist() == [[2, 1, 0], [0, 2, 0], [0, 1, 0]]
    precision, recall, f1 = scores.each
    assert precision == pytest.approx([1, 2 / 4, 0]) and recall == pytest.approx([2 / 3, 1, 0])
    assert f1 == pytest.approx([4 / 5, 4 / 6, 0])
    assert scores.macro == pytest.approx((1 / 2, 5 / 9, (4 / 5 + 4 / 6) / 3))
    assert scores.figures == pytest.approx({"accuracy": 4 / 6, "macro_f1": (4 / 5 + 4 / 6) / 3})
    assert scores.table().splitlines()[1].split() == ["a", "1.000", "0.667", "0.800", "3"]
    assert scores.table().endswith("accuracy 0.667")


@given(pairs=labels)
def test_classes_by_definition(pairs):
    gold, said = (list(x) for x in zip(*pairs))
    scores = class_scores(gold, said, labels=("z", "b"))
    assert scores.labels[:2] == ("z", "b") and set(scores.labels) == {"z", "b", *gold, *said}
    assert scores.matrix.sum() == len(pairs)
    f1s = []
    for i, label in enumerate(scores.labels):
        right = sum(g == s == label for g, s in pairs)
        n_said, n_gold = said.count(label), gold.count(label)
        p, r = right / n_said if n_said else 0, right / n_gold if n_gold else 0
        f1 = 2 * p * r / (p + r) if p + r else 0
        assert [x[i] for x in scores.each] == pytest.approx([p, r, f1])
        if n_said or n_gold:
            f1s.append(f1)
    assert scores.macro[2] == pytest.approx(sum(f1s) / len(f1s))
    assert scores.micro == pytest.approx([scores.accuracy] * 3)     # each has one label


def test_what_is_no_label_is_wrong_and_no_class():
    scores = class_scores(list("aab"), ["a", None, None])
    assert scores.labels == ("a", "b") and scores.matrix.tolist() == [[1, 0], [0, 0]]
    assert scores.gold.tolist() == [2, 1] and scores.predicted.tolist() == [1, 0]
    assert scores.figures == pytest.approx({"accuracy": 1 / 3, "macro_f1": (2 / 3 + 0) / 2})


# -- entities --------------------------------------------------------------------------------------


def test_entities_by_hand():
    gold = [[(0, 2, "PER"), (4, 5, "LOC")], [(0, 1, "LOC")], []]
    said = [[(0, 2, "PER"), (3, 5, "LOC")], [(0, 1, "PER")], [(7, 8, "LOC")]]
    scores = entity_scores(gold, said)      # a wrong edge, a wrong type, and one that is not there
    assert scores.labels == ("LOC", "PER")
    assert [scores.correct.tolist(), scores.predicted.tolist(), scores.gold.tolist()] == \
        [[0, 1], [2, 2], [2, 1]]
    assert scores.micro == pytest.approx((1 / 4, 1 / 3, 2 / 7))
    assert scores.macro == pytest.approx((1 / 4, 1 / 2, 1 / 3))


@given(gold=st.lists(st.lists(st.tuples(st.integers(0, 2), st.integers(3, 4),
                                        st.sampled_from("XY"))), min_size=1))
def test_perfect_and_empty_entities(gold):
    perfect, nothing = entity_scores(gold, gold), entity_scores(gold, [[]] * len(gold))
    assert perfect.micro == ((1.0,) * 3 if any(gold) else (0.0,) * 3)
    assert nothing.micro == nothing.macro == (0.0,) * 3


# -- answers ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("text, expected", [
    ("The  Cat, sat!", "cat sat"), ("an A-1 theatre", "a1 theatre"), ("a", ""), ("\tx\n", "x"),
    ("the-cat", "thecat"), ("L'été", "lété"), ("x—the—y", "x— —y"),
])
def test_answers_are_normalised_as_squad_does(text, expected):
    assert normalise_answer(text) == expected


def test_answers_by_hand():
    assert exact_match("The cat", "cat.") == 1 and exact_match("cat", "cats") == 0
    assert word_f1("the cat sat down", "cat sat there now") == pytest.approx(2 * 2 / (3 + 4))
    assert word_f1("b b", "b") == pytest.approx(2 / 3)          # as bags
    assert word_f1("a", "the") == 1 and word_f1("a", "cat") == 0
    scores = answer_scores([["the cat", "a hat"], [], ["-1"]], ["hat", "", "1"]).figures
    assert scores == pytest.approx({"exact_match": 1, "f1": 1, "same_text": 1 / 3})
    assert answer_scores([[]], ["x"]).figures["f1"] == 0


# -- summaries -------------------------------------------------------------------------------------


def test_rouge_by_hand():
    a, b = "The cat sat on the mat.", "the cat was on the mat"
    assert rouge_n(a, b, 1) == pytest.approx(5 / 6)             # the ×2, cat, on, mat
    assert rouge_n(a, b, 2) == pytest.approx(3 / 5)             # the cat, on the, the mat
    assert rouge_l(a, b) == pytest.approx(5 / 6)
    assert rouge_l("police killed the gunman", "the gunman kill police") == pytest.approx(2 / 4)
    assert rouge_n("x", "x", 2) == rouge_n("", "x", 1) == rouge_l("", "") == 0
    assert summary_scores([a, "x"], [b, "y"]).figures == \
        pytest.approx({"rouge1": 5 / 12, "rouge2": 3 / 10, "rougeL": 5 / 12})


@given(a=sentences, b=sentences)
def test_the_longest_common_subsequence_is_the_longest_of_all(a, b):
    def subsequences(words):
        return {tuple(itertools.compress(words, keep))
                for keep in itertools.product([0, 1], repeat=len(words))}
    assert longest_common_subsequence(a, b) == \
        max(map(len, subsequences(a) & subsequences(b)))
    assert rouge_l(" ".join(a), " ".join(b)) <= rouge_n(" ".join(a), " ".join(b), 1) + 1e-12


@given(a=sentences.filter(len), b=sentences)
def test_rouge_is_symmetric_and_1_of_itself(a, b):
    a, b = " ".join(a), " ".join(b)
    assert rouge_n(a, a, 1) == rouge_l(a, a) == 1
    for n in (1, 2):
        assert rouge_n(a, b, n) == rouge_n(b, a, n)


# -- texts -----------------------------------------------------------------------------------------


def test_texts_are_the_same_or_not():
    found = text_scores(["a b", " c\n", "", "D"], ["a b ", "c", "x", "d"])
    assert found.figures == {"accuracy": 0.5}


# -- all together ----------------------------------------------------------------------------------


@pytest.mark.parametrize("score", [class_scores, entity_scores, answer_scores, summary_scores,
                                   text_scores])
def test_an_answer_for_each_example(score):
    for gold, said in (([], []), (["a"], [])):
        with pytest.raises(ConfigError, match=f"got {len(said)} for {len(gold)}"):
            score(gold, said)


def test_a_table_aligns_words_left_and_numbers_right():
    assert table(("name", "score", "n"), [("a", 0.5, 1234), ("long name", 1.0, 5)]) == \
        "name       score      n\na          0.500  1,234\nlong name  1.000      5"


def test_pictures(tmp_path, monkeypatch):
    scores = class_scores(list("aab"), list("abb"))
    curves = {"ours": [(1, 0.2), (2, math.sqrt(0.5))]}
    for name, drawn in [("c.png", draw_confusion(scores, tmp_path / "c.png")),
                        ("l.png", draw_learning(curves, tmp_path / "l.png", levels={"m": 0.3},
                                               bands={"ours": [(1, 0.1, 0.3), (2, 0.6, 0.8)]}))]:
        assert drawn and (tmp_path / name).read_bytes().startswith(b"\x89PNG")
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert draw_confusion(scores, tmp_path / "d.png") is False
    assert not (tmp_path / "d.png").exists()


def test_the_matrix_has_gold_in_rows():
    assert np.array_equal(class_scores(["a"], ["b"]).matrix, [[0, 1], [0, 0]])
