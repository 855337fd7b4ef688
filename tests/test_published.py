"""Models with vocabularies as the published ones have, from the command line: a BERT finds entities
and answers in a text whose case and accents its vocabulary does not know, a T5 summarises, a Llama
writes; and each begins from text."""

import json

import numpy as np
import pytest
import vocabularies
from test_cli import minifm, refused  # noqa: F401
from test_finetune import ANIMALS, PLANTS, write

import minifm as mf
from minifm.hub import save_model
from minifm.models import GPT, T5, Bert, BertConfig, GPTConfig, Llama, LlamaConfig, T5Config
from minifm.tasks import read
from minifm.text import Tokenizer, shards
from minifm.text.corpus import Corpus
from minifm.training.labelled import TASKS

SHAPE = {"layers": 1, "heads": 2, "width": 32}
READ = {"bert": Tokenizer(vocabularies.bert()), "t5": Tokenizer(vocabularies.t5()),
        "llama": Tokenizer(vocabularies.llama()), "gpt": Tokenizer(vocabularies.gpt1())}


def saved(directory, kind):
    """A small model with random weights, and its tokenizer."""
    t = READ[kind]
    V, shape = t.vocabulary, SHAPE
    model = {
        "bert": lambda: Bert(BertConfig(vocabulary=V, context=64, padding=t.padding, dropout=0.0,
                                        types=2, **shape), mf.Rng(0)),
        "t5": lambda: T5(T5Config(vocabulary=V, head_width=16, padding=t.padding, start=t.padding,
                                  end=t.end_of_text, **shape), mf.Rng(0)),
        "llama": lambda: Llama(LlamaConfig(vocabulary=V, context=64, **shape), mf.Rng(0)),
        "gpt": lambda: GPT(GPTConfig(vocabulary=V, context=64, **shape), mf.Rng(0))}[kind]()
    directory.mkdir()
    save_model(model, directory, t)
    return directory


def variants(word):
    """The word as texts have it, and BERT's vocabulary has not."""
    accented = word[0] + "\u0301" + word[1:]
    return [word, word.upper(), accented.title()]


WORDS = [(form, kind) for words, kind in ((ANIMALS[:2], "animal"), (PLANTS[:2], "plant"))
         for word in words for form in variants(word)]


@pytest.fixture
def data(tmp_path):
    """{task: a file of examples that a small model can learn}."""
    def entity(text, word, kind):
        start = text.index(word)
        return {"start": start, "end": start + len(word), "label": kind}

    ner = [(f"A {a}, or {b}", a, k, b, l) for i, (a, k) in enumerate(WORDS)
           for b, l in WORDS if b not in a and a not in b]
    return {
        "ner": write(tmp_path / "ner.jsonl", [
            {"text": text, "entities": [entity(text, a, k), entity(text, b, l)]}
            for text, a, k, b, l in ner]),
        "qa": write(tmp_path / "qa.jsonl", [
            {"question": "Who?", "context": f"It  is {n} {a}.", "answers": [
                {"text": a, "start": 8 + len(str(n))}]} for a, _ in WORDS for n in range(6)]),
        "summarize": write(tmp_path / "summarize.jsonl", [
            {"text": f"{n} {word}, {n}", "summary": word} for word in ANIMALS[:2] + PLANTS[:1]
            for n in range(5)])}


@pytest.mark.parametrize("task, kind, steps, reached", [
    ("ner", "bert", 80, 0.9), ("qa", "bert", 80, 0.9), ("summarize", "t5", 80, 0.5),
    ("summarize", "llama", 80, 0.5)])
def test_a_task_is_learnt(minifm, data, tmp_path, task, kind, steps, reached):  # noqa: F811
    model, run = saved(tmp_path / "model", kind), tmp_path / "run"
    status, out, err = minifm("finetune", model, "--task", task, "--data", data[task], "--batch", 8,
                              "--learning-rate", 5e-3, "--steps", steps, "--length", 32,
                              "--evaluate-every", steps, "--out", run)
    assert status == 0, err
    scores = json.loads((run / "scores.json").read_text())
    assert next(iter(scores["scores"].values())) >= reached, out
    if task == "ner":
        found = json.loads(minifm("evaluate", run / "best", "--task", task, "--data", data[task],
                                  "--json")[1])["scores"]
        assert next(iter(found.values())) >= reached - 0.05
    if task == "summarize":
        text = "3 oak, 3" + ("\nTL;DR:" if kind == "llama" else "")
        status, out, err = minifm("generate", run, text, "--temperature", 0)
        assert status == 0 and out.rstrip().endswith("oak"), err


@pytest.mark.parametrize("task", ["ner", "qa"])
def test_the_right_outputs_give_the_right_spans(data, task):
    """As if the model were perfect: what rows ask for, said back, is what the examples say."""
    examples = list(read(data[task], TASKS[task].example))
    labels = ("O", "B-animal", "I-animal", "B-plant", "I-plant")
    from minifm.tasks import QuestionRows, TaggedRows
    rows = TaggedRows(examples, READ["bert"], ("animal", "plant"), length=32) if task == "ner" \
        else QuestionRows(examples, READ["bert"], length=32)
    outputs = []
    for ids, target in zip(rows.ids, rows.targets):
        said = np.zeros((len(ids), len(labels) if task == "ner" else 2))
        if task == "ner":
            said[np.arange(len(ids)), np.maximum(target, 0)] = 1
        else:
            said[target, [0, 1]] = 1
        outputs.append(said)
    found = rows.predictions(outputs)
    if task == "ner":
        assert [list(spans) for spans in found] == [list(e.entities) for e in examples]
        assert rows.facts["merged"] == rows.facts["lost"] == 0
    else:
        assert found == [e.answers[0][0] for e in examples]
        assert rows.facts["widened"] == 0


def test_a_llama_writes_what_it_is_told(minifm, tmp_path):  # noqa: F811
    model = saved(tmp_path / "model", "llama")
    status, out, err = minifm("generate", model, "the cat", "--choices", " sat ☃", " hat")
    assert status == 0 and out in ("the cat sat ☃\n", "the cat hat\n"), err
    status, out, err = minifm("generate", model, "the", "--regex", " [a-z]{3}( [0-9]+)?é")
    assert status == 0 and out.startswith("the ") and out.endswith("é\n"), err
    refused(minifm("generate", saved(tmp_path / "gpt", "gpt"), "the", "--choices", "a"),
            "end-of-text")


@pytest.mark.parametrize("kind, words", [
    ("bert", ["--arch", "bert", "--whole-words"]),
    ("t5", ["--arch", "t5"]),
    ("llama", ["--arch", "llama"])])
def test_a_model_begins_from_text_in_a_given_vocabulary(minifm, tmp_path, kind, words):  # noqa: F811
    (tmp_path / "vocabulary").mkdir()
    READ[kind].save(tmp_path / "vocabulary")
    book, run = tmp_path / "book.txt", tmp_path / "run"
    book.write_text("".join(f"The Cat sat on mat {i}, \n\n" for i in range(3000)))
    status, out, err = minifm(
        "pretrain", *words, "--data", book, "--tokenizer", tmp_path / "vocabulary", "--layers", 1,
        "--heads", 2, "--width", 16, "--length", 32, "--steps", 2, "--batch", 2, "--out", run,
        *(["--context", 32] if kind != "t5" else []))
    assert status == 0, err
    assert Tokenizer.load(run / "last").sha256 == READ[kind].sha256
    held_out = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()][-1]
    assert ("bits_per_byte" in held_out) == (kind == "llama")
    if kind == "llama":
        status, out, err = minifm("evaluate", run, "--data", book, "--tokens", 500, "--json")
        assert status == 0 and json.loads(out)["changed"] == 0, err
    again = tmp_path / "again"
    assert minifm("pretrain", *words[:2], "--init", run / "last", "--data", book, "--length", 32,
                  "--steps", 1, "--batch", 2, "--out", again)[0] == 0


def test_all_bytes_of_the_text_are_counted_once(tmp_path):
    """Whatever the vocabulary does to a text: over all of it, tokens have its bytes."""
    (tmp_path / "book.txt").write_text("@".join(f"The  Cat sat\n on Mat ☃ {i}" for i in range(9)))
    part = Corpus([str(tmp_path / "book.txt")], separator="@").split(0.1, 0)[0]
    for kind, t in READ.items():
        if t.end_of_text is None:
            continue
        tokens = shards.store(part, t, tmp_path / kind)
        lengths = tokens.token_lengths(t)
        ids = tokens[0 : tokens.count]
        assert lengths[ids[ids != t.end_of_text]].sum() == pytest.approx(tokens.size)
        assert (ids == t.end_of_text).sum() == tokens.documents
        begun = np.append(True, ids[:-1] == t.end_of_text)
        assert kind != "llama" or ((ids == t.names.index("<s>")) == begun).all()
