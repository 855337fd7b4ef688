"""Tasks from Python source: labels against a module whose every name is known, and baselines."""

import ast
import json
import sys

import pytest

from minifm import cli
from minifm.errors import ConfigError
from minifm.tasks import Answered, Classified, Question, Summary, Tagged, read, stdlib
from minifm.tasks.baselines import compare
from minifm.tasks.rules import RULES
from minifm.text.corpus import Document

SOURCE = '''\
"""Reads things — é — and nothing else."""
import os
import os.path as p
from sys import exit

LIMIT = 3

class Broken(ValueError):
    """What is raised for things that are broken."""

class Reader:
    """Someone who reads things aloud."""

    def first(self, name, size=LIMIT, *, flag=-1):
        """Read the first thing of a name."""
        # é name: name
        if os.path.exists(name) and self.second(size=size):
            raise Broken(name.size, "name")
        return Reader(name, flag)

    @os.cached
    def second(self, size="é", other=(1, 2)):
        """Say whether there is a second thing."""
        try:
            import json
            return helper(json.size, size)
        except (OSError, p.error) as error:
            raise error

def helper(a, b=None):
    """Add two things up, or do not."""
    os = a
    if b is None:
        raise TypeError("b")
    return os + b

def shadowed(x):
    """Its parameter is another one within."""
    return [x for x in range(10)] + [x, x, x, x, x, x]
'''
DOCUMENTS = [Document("pkg/things.py", SOURCE.encode())]


def named(name):
    return stdlib.build([name], DOCUMENTS)[name]


def test_every_name_in_a_function_is_known():
    found = {}
    for example in named("stdlib-ner"):
        spans = [(example.text[s:e], label) for s, e, label in example.entities]
        found[spans[0][0]] = spans[1:]
        assert example.group == "pkg/things.py"
    assert found == {
        "first": [("name", "PARAMETER"), ("size", "PARAMETER"), ("LIMIT", "DEFAULT"),
                  ("flag", "PARAMETER"), ("-1", "DEFAULT"), ("os", "MODULE"),
                  ("name", "PARAMETER"), ("second", "FUNCTION"), ("size", "PARAMETER"),
                  ("Broken", "EXCEPTION"), ("name", "PARAMETER"), ("Reader", "CLASS"),
                  ("name", "PARAMETER"), ("flag", "PARAMETER")],
        "second": [("size", "PARAMETER"), ('"é"', "DEFAULT"), ("other", "PARAMETER"),
                   ("(1, 2)", "DEFAULT"), ("json", "MODULE"), ("helper", "FUNCTION"),
                   ("json", "MODULE"), ("size", "PARAMETER"), ("OSError", "EXCEPTION"),
                   ("p.error", "EXCEPTION")],
        "helper": [("a", "PARAMETER"), ("b", "PARAMETER"), ("None", "DEFAULT"),
                   ("a", "PARAMETER"), ("b", "PARAMETER"), ("TypeError", "EXCEPTION"),
                   ("b", "PARAMETER")],
    }


def test_questions_have_their_answers():
    found = {e.question: [text for text, _ in e.answers] for e in named("stdlib-qa")}
    possible = {
        "What is the default of `size` in `first`?": ["LIMIT"],
        "What is the default of `flag` in `first`?": ["-1"],
        "What is the default of `size` in `second`?": ['"é"'],
        "What is the default of `other` in `second`?": ["(1, 2)"],
        "Which exception does `first` raise?": ["Broken"],
        "What does `first` return?": ["Reader(name, flag)"],
        "What does `second` return?": ["helper(json.size, size)"],
        "Which function calls `exists`?": ["first"], "Which function calls `second`?": ["first"],
        "Which function calls `Reader`?": ["first"], "Which function calls `Broken`?": ["first"],
        "Which function calls `helper`?": ["second"],
        "Which exception does `helper` raise?": ["TypeError"],
        "What does `helper` return?": ["os + b"],
        "What does `shadowed` return?": ["[x for x in range(10)] + [x, x, x, x, x, x]"],
        "Which function calls `TypeError`?": ["helper"],
        "Which function calls `range`?": ["shadowed"],
    }
    assert len(found) == 4 + 3 and found.items() <= possible.items()


def test_kinds_packages_and_summaries():
    kinds = {example.text: example.label for example in named("stdlib-kind")}
    assert kinds == {
        "Reads things — é — and nothing else.": "module",
        "What is raised for things that are broken.": "class",
        "Someone who reads things aloud.": "class",
        "Read the first thing of a name.": "method",
        "Say whether there is a second thing.": "method",
        "Add two things up, or do not.": "function",
        "Its parameter is another one within.": "function"}
    for example in named("stdlib-summarize"):
        tree = ast.parse(example.text)
        assert ast.get_docstring(tree.body[0]) is None and example.summary in kinds
    assert len(named("stdlib-summarize")) == 4
    with pytest.raises(ConfigError, match="stdlib-package: no example of it in the source"):
        named("stdlib-package")
    with pytest.raises(ConfigError, match="task: expected one of stdlib-ner, .* got 'x'"):
        stdlib.build(["x"], DOCUMENTS)


def test_packages_do_not_name_themselves():
    documents = [Document(f"{package}/m{i}.py", "".join(
        f"def f{j}(value):\n    return {word} + {i} * {j} + 1000000000000000000000000\n\n"
        for j in range(30)).encode())
        for package, word in (("alpha", "one"), ("beta", "two"), ("gamma", "Gammas"))
        for i in range(8)]
    found = stdlib.build(["stdlib-package"], documents)["stdlib-package"]
    assert {e.label for e in found} == {"alpha", "beta"}
    assert len(found) == 2 * 8 * 25             # at most 25 of each module


def test_source_that_is_none_is_passed_by():
    documents = [Document("a.py", b"\xff\xfe"), Document("b.py", b"def ("), *DOCUMENTS]
    assert stdlib.build(["stdlib-kind"], documents)["stdlib-kind"] == named("stdlib-kind")


# -- baselines -------------------------------------------------------------------------------------

TRAINING = {
    "classes": [Classified(f"{word} {i}", label) for i in range(20)
                for word, label in (("good fine", "+"), ("bad poor", "-"), ("nice", "+"))],
    "tags": [Tagged.of_words(["in", city, "by", name], ["O", "B-LOC", "O", "B-PER"])
             for city in ("Rome", "Oslo", "Bern") for name in ("Ada", "Bob", "Eve")],
    "questions": [Question(f"Where is {n}?", f"{n} is in {c}, says X", ((c, len(n) + 7),))
                  for n in ("Ada", "Bob", "Eve") for c in ("Rome", "Oslo", "Bern")],
    "summaries": [Summary(f"def {w}(x): go", f"The {w}.") for w in ("one", "two", "one", "one")],
    "free text": [Answered(f"plural of {w}", f"{w}s") for w in ("cat", "dog", "cat", "hen")],
}
HELD_OUT = {
    "classes": [Classified("poor 3", "-"), Classified("fine", "+")],
    "tags": [Tagged.of_words(["in", "Rome", "by", "Zed"], ["O", "B-LOC", "O", "B-PER"])],
    "questions": [Question("Where is Eve?", "Eve is in Paris, says X", (("Paris", 10),))],
    "summaries": [Summary("def two(y): stop", "The two.")],
    "free text": [Answered("the plural of a dog", "dogs"), Answered("plural: cat", "cats")],
}
# The first figure of: the majority, what is learnt.
EXPECTED = {"classes": (0.5, 1.0), "tags": (2 / 3, 1.0), "questions": (0.0, 1.0),
            "summaries": (0.5, 1.0), "free text": (0.5, 1.0)}


@pytest.mark.parametrize("name", TRAINING)
def test_baselines_learn_what_can_be_learnt(name):
    pytest.importorskip("sklearn")
    found = compare(TRAINING[name], HELD_OUT[name])
    figures = [next(iter(scores.figures.values())) for scores in found.values()]
    assert figures == pytest.approx(EXPECTED[name])
    again = compare(TRAINING[name], HELD_OUT[name])
    assert [s.figures for s in again.values()] == [s.figures for s in found.values()]


def test_without_scikit_learn_one_line_says_so(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.linear_model", None)
    with pytest.raises(ConfigError, match=r"scikit-learn is not installed; pip install"):
        compare(TRAINING["classes"], HELD_OUT["classes"])


@pytest.mark.parametrize("name, least", [("stdlib-ner", 0.85), ("stdlib-qa", 0.99)])
def test_rules_know_the_grammar(name, least):
    examples = named(name)
    scores = type(examples[0]).scores(examples, [RULES[name](e) for e in examples])
    assert next(iter(scores.figures.values())) >= least


@pytest.mark.parametrize("text, label", [
    ("This module reads mail.", "module"), ("A class that reads mail.", "class"),
    ("Called when mail comes.", "method"), ("Return the path of a file.", "function"),
    ("Go.", "method")])
def test_rules_of_kinds(text, label):
    assert RULES["stdlib-kind"](Classified(text, "?")) == label


def test_rules_of_the_others():
    assert RULES["stdlib-summarize"](Summary("def getDefault_size(x): 0", "?")) == \
        "Get default size."
    assert RULES["stdlib-package"](Classified("async def f(): await g", "?")) == "asyncio"
    assert RULES["stdlib-qa"](Question("Why?", "so", ())) == ""


# -- the command -----------------------------------------------------------------------------------


def test_the_command_writes_what_can_be_read(tmp_path, capsys, monkeypatch):
    second = [Document("pkg/others.py", SOURCE.replace("thing", "other").encode())]
    monkeypatch.setattr(stdlib, "Corpus", lambda: DOCUMENTS + second)
    words = ["dataset", "stdlib-ner", "stdlib-kind", "--out", str(tmp_path / "d"),
             "--held-out", "0.5"]
    assert cli.main(words) == 0
    out = capsys.readouterr().out
    for said in ("stdlib-ner: ", "train ", "held-out ", "majority", "regular expressions",
                 "TF-IDF + logistic regression", "macro_f1", "accuracy"):
        assert said in out
    for kind, name in ((Tagged, "stdlib-ner"), (Classified, "stdlib-kind")):
        sides = [read(tmp_path / "d" / name / f"{part}.jsonl", kind, group="group")
                 for part in ("train", "held-out")]
        assert {e.group for e in sides[0]} ^ {e.group for e in sides[1]} == \
            {"pkg/things.py", "pkg/others.py"}
    line = (tmp_path / "d" / "stdlib-ner" / "train.jsonl").read_text().splitlines()[0]
    assert json.loads(line).keys() == {"text", "entities", "group"}
    assert cli.main(words) == 2 and "exists already" in capsys.readouterr().err
