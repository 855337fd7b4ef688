"""Fine-tuning from the command line: each task, each way to learn, every mistake one line."""

import json
import re
import shutil

import numpy as np
import pytest
from test_cli import minifm, refused  # noqa: F401

import minifm as mf
from minifm.hub import load_model, save_model
from minifm.models import GPT, T5, Bert, BertConfig, GPTConfig, T5Config
from minifm.models.heads import QuestionAnswerer, SequenceClassifier
from minifm.nn import adapter_config
from minifm.tasks import read
from minifm.text import Tokenizer
from minifm.text.tokenizer import FIRST, MASK, PADDING
from minifm.training.labelled import TASKS

pytestmark = pytest.mark.usefixtures("undrawn")

SHAPE = {"layers": 2, "heads": 2, "width": 32}
ANIMALS, PLANTS = ("cat", "dog", "cow", "hen"), ("oak", "elm", "fir", "ivy")


def saved(directory, kind):
    """A small model with random weights, and its tokenizer."""
    specials = {"bert": (FIRST, PADDING, MASK), "t5": (PADDING,), "gpt": ()}[kind]
    tokenizer = Tokenizer.bytes(specials)
    V, pad, end = tokenizer.vocabulary, tokenizer.padding, tokenizer.end_of_text
    model = {
        "bert": lambda: Bert(BertConfig(vocabulary=V, context=64, padding=pad, layout="roberta",
                                        dropout=0.0, **SHAPE), mf.Rng(0)),
        "gpt": lambda: GPT(GPTConfig(vocabulary=V, context=64, **SHAPE), mf.Rng(0)),
        "t5": lambda: T5(T5Config(vocabulary=V, head_width=16, padding=pad, start=pad, end=end,
                                  **SHAPE), mf.Rng(0))}[kind]()
    directory.mkdir()
    save_model(model, directory, tokenizer)
    return directory


def write(path, records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


@pytest.fixture
def data(tmp_path):
    """{task: a file of examples that a small model can learn}."""
    words = [(word, kind) for words, kind in ((ANIMALS, "animal"), (PLANTS, "plant"))
             for word in words]
    pairs = [(a, b) for a in words for b in words]
    return {
        "classify": write(tmp_path / "classify.jsonl", [
            {"text": f"the {word} {n}", "label": kind} for word, kind in words for n in range(12)]),
        "ner": write(tmp_path / "ner.jsonl", [
            {"text": f"a {a} or {b}", "entities": [
                {"start": 2, "end": 5, "label": k}, {"start": 9, "end": 12, "label": l}]}
            for (a, k), (b, l) in pairs]),
        "qa": write(tmp_path / "qa.jsonl", [
            {"question": "who?", "context": f"it is {n} {a}", "answers": [
                {"text": a, "start": 7 + len(str(n)) }]} for a, _ in words for n in range(9)]),
        "summarize": write(tmp_path / "summarize.jsonl", [
            {"text": f"{n} {word} {n}", "summary": word} for word, _ in words for n in range(9)])}


RUN = ["--epochs", 30, "--batch", 8, "--learning-rate", 3e-3]


@pytest.mark.parametrize("task, kind, method, architecture, reached", [
    ("classify", "bert", "full", "RobertaForSequenceClassification", 0.95),
    ("classify", "gpt", "lora", None, 0.9),
    ("ner", "bert", "full", "RobertaForTokenClassification", 0.9),
    ("qa", "bert", "full", "RobertaForQuestionAnswering", 0.9),
    ("summarize", "gpt", "full", "GPT2LMHeadModel", 0.5),
    ("summarize", "t5", "full", "T5ForConditionalGeneration", 0.5),
])
def test_a_task_is_learnt(minifm, data, tmp_path, task, kind, method, architecture,  # noqa: F811
                          reached):
    model, run = saved(tmp_path / "model", kind), tmp_path / "run"
    status, out, err = minifm("finetune", model, "--task", task, "--data", data[task], "--method",
                              method, *RUN, "--out", run)
    assert status == 0, err
    scores = json.loads((run / "scores.json").read_text())
    assert next(iter(scores["scores"].values())) >= reached, out
    for part in ("training ", "held out ", "rows ", "model ", "steps "):
        assert f"\n{part}" in f"\n{err}"
    assert f"saved as   {run}/best" in out
    assert (run / "learning.png").read_bytes().startswith(b"\x89PNG")
    assert (run / "confusion.png").exists() == (task == "classify")
    found = json.loads(minifm("evaluate", run / "best", "--task", task, "--data", data[task],
                              "--json")[1])["scores"]     # learnt from, most of them
    assert next(iter(found.values())) >= reached - 0.05
    loaded = load_model(run / "best")
    if architecture:
        config = json.loads((run / "best/config.json").read_text())
        assert config["architectures"] == [architecture]
    else:
        assert adapter_config(loaded) is not None
        assert loaded.config.labels == ("animal", "plant")
    ids = np.array([[10, 20, 30]])
    assert np.isfinite(loaded(ids, ids).numpy() if kind == "t5" else loaded(ids).numpy()).all()


@pytest.mark.parametrize("words", [
    [], ["--method", "head"], ["--method", "lora", "--format", "int8", "--rank", 2],
    ["--freeze", 1], ["--scratch"]])
def test_each_way_to_learn_resumes_bitwise(minifm, data, tmp_path, words):  # noqa: F811
    model, whole, run = saved(tmp_path / "model", "bert"), tmp_path / "whole", tmp_path / "run"
    status, _, err = minifm(
        "finetune", model, "--task", "classify", "--data", data["classify"], *words, "--steps", 4,
        "--batch", 4, "--evaluate-every", 2, "--save-every", 2, "--keep", 9, "--out", whole)
    assert status == 0, err
    shutil.copytree(whole, run, symlinks=True)
    shutil.rmtree(run / "step-00000004")
    assert minifm("finetune", "--resume", "--out", run)[0] == 0
    weights = "adapter_model.safetensors" if "lora" in words else "model.safetensors"
    for file in (f"last/{weights}", "last/trainer_state/optimizer.safetensors", "scores.json"):
        assert (run / file).read_bytes() == (whole / file).read_bytes(), file


@pytest.mark.parametrize("words", [[], ["--method", "lora", "--format", "int4", "--rank", 2],
                                   ["--freeze", 1]])
def test_text_without_labels_resumes_bitwise(minifm, tmp_path, words):  # noqa: F811
    model, whole, run = saved(tmp_path / "model", "gpt"), tmp_path / "whole", tmp_path / "run"
    book = tmp_path / "book.txt"
    book.write_text("".join(f"Line {i} of a text about lines.\n\n" for i in range(2000)))
    status, out, err = minifm(
        "finetune", model, "--task", "lm", "--data", book, *words, "--steps", 4, "--batch", 4,
        "--length", 16, "--evaluate-every", 2, "--save-every", 2, "--keep", 9, "--out", whole)
    assert status == 0 and "bits a byte" in out, err
    shutil.copytree(whole, run, symlinks=True)
    shutil.rmtree(run / "step-00000004")
    refused(minifm("pretrain", "--resume", "--out", run), "is a run of finetune")
    assert minifm("finetune", "--resume", "--out", run)[0] == 0
    weights = "adapter_model.safetensors" if "lora" in words else "model.safetensors"
    for file in (f"last/{weights}", "last/trainer_state/optimizer.safetensors"):
        assert (run / file).read_bytes() == (whole / file).read_bytes(), file


def test_a_run_in_the_way_is_left_as_it_is(minifm, data, tmp_path):  # noqa: F811
    model, run = saved(tmp_path / "model", "bert"), tmp_path / "run"
    words = ["--task", "classify", "--data", data["classify"], "--batch", 4, "--out", run]
    assert minifm("finetune", model, *words, "--steps", 2)[0] == 0
    before = (run / "run.json").read_bytes()
    refused(minifm("finetune", model, *words, "--steps", 3), "already holds a run of 2 steps")
    resume = ["finetune", "--resume", "--out", run]
    refused(minifm(*resume, "--method", "head"), "method: 'full' in the checkpoint, 'head' now")
    refused(minifm(*resume, "--task", "ner"), "task: 'classify' in the checkpoint, 'ner' now")
    assert (run / "run.json").read_bytes() == before


def test_other_examples_in_the_same_file_are_called_so(minifm, data, tmp_path):  # noqa: F811
    model, run = saved(tmp_path / "model", "bert"), tmp_path / "run"
    words = ["--task", "classify", "--data", data["classify"], "--batch", 4, "--steps", 2]
    assert minifm("finetune", model, *words, "--out", run)[0] == 0
    lines = data["classify"].read_text().splitlines(keepends=True)
    data["classify"].write_text("".join(lines[:-4]))
    refused(minifm("finetune", "--resume", "--out", run), "(--force goes on anyway): the examples, "
            "as rows of tokens, are other ones than in the checkpoint\n")


def parameters_of(directory):
    return {name: p.numpy() for name, p in load_model(directory).parameters().items()}


@pytest.mark.parametrize("words, changes", [
    (["--method", "head"], lambda name: not name.startswith("body.")),
    (["--freeze", 1], lambda name: name.startswith(("body.blocks.1", "output", "dense"))),
    (["--freeze", 0], lambda name: True)])
def test_only_those_weights_change_that_should(minifm, data, tmp_path, words,  # noqa: F811
                                               changes):
    model, found = saved(tmp_path / "model", "bert"), {}
    for steps in (1, 4):
        run = tmp_path / str(steps)
        assert minifm("finetune", model, "--task", "classify", "--data", data["classify"], *words,
                      "--steps", steps, "--seed", 0, "--batch", 4, "--out", run)[0] == 0
        found[steps] = parameters_of(run / "last")
    for name, array in found[1].items():
        if not changes(name):
            np.testing.assert_array_equal(array, found[4][name], name)
        else:
            assert not np.array_equal(array, found[4][name]), name


def test_a_run_ends_when_patience_does(minifm, data, tmp_path):  # noqa: F811
    model, run = saved(tmp_path / "model", "bert"), tmp_path / "run"
    status, _, err = minifm(
        "finetune", model, "--task", "classify", "--data", data["classify"], "--steps", 40,
        "--learning-rate", 0, "--evaluate-every", 2, "--patience", 3, "--out", run)
    assert status == 0 and "step 8: no evaluation was better than that of step 2" in err
    assert (run / "last").resolve().name == "step-00000008"
    assert json.loads((run / "scores.json").read_text())["step"] == 2


@pytest.mark.parametrize("types", [1, 2])
@pytest.mark.parametrize("task, head, records", [
    ("classify", SequenceClassifier, [
        {"text": "cat", "text_pair": "dog", "label": "a"}, {"text": "c", "label": "b"}]),
    ("qa", QuestionAnswerer, [{"question": "who?", "context": "a cat",
                               "answers": [{"text": "cat", "start": 2}]}])])
def test_a_model_that_tells_texts_apart_is_told(tmp_path, task, head, records, types):
    """In training and in its answers, as other libraries tell it: by the tokenizer's file."""
    kind, tokenizer = TASKS[task], Tokenizer.bytes((FIRST, PADDING, MASK))
    bert = Bert(BertConfig(vocabulary=tokenizer.vocabulary, context=32, types=types, dropout=0.0,
                           padding=tokenizer.padding, **SHAPE), mf.Rng(0))
    bert.type_embedding.weight.data += 0.5 * np.arange(types, dtype="f4")[:, None]
    examples = list(read(write(tmp_path / "x.jsonl", records), kind.example))
    model = kind.model(bert, examples, tokenizer, mf.Rng(1))
    rows = kind.rows(model, examples, tokenizer, 32)
    batch = rows.padded(range(len(rows)))
    assert len(batch) == 2 + types
    ids, targets, mask = batch[:3]
    second = np.cumsum(ids == tokenizer.separator, 1) > (ids == tokenizer.separator)
    told = {"types": (second & mask).astype(int)} if types == 2 else {}
    loss = kind.objective(model).loss(model, batch, denominator=None, rng=None).item()
    assert loss == model.loss(ids, targets, key_mask=mask, **told).item()
    assert (types == 2) == (loss != model.loss(ids, targets, key_mask=mask).item())
    said = []
    rows.predictions = lambda outputs, **choice: said.extend(outputs)
    kind.answers(model, rows, tokenizer, len(rows))
    expected = model(ids, key_mask=mask, **told).numpy()
    for row, output in enumerate(said):
        np.testing.assert_allclose(output, expected[row][: len(output)], atol=1e-6)


def test_an_adapter_over_packed_weights_is_scored_as_in_its_run(minifm, data,  # noqa: F811
                                                                tmp_path):
    model, run = saved(tmp_path / "model", "bert"), tmp_path / "run"
    words = ["--task", "classify", "--data", data["classify"]]
    assert minifm("finetune", model, *words, "--held-out-data", data["classify"], "--method",
                  "lora", "--format", "int4", "--steps", 40, "--learning-rate", 1e-2, "--batch", 8,
                  "--out", run)[0] == 0
    scores = json.loads((run / "scores.json").read_text())["scores"]
    assert json.loads(minifm("evaluate", run, *words, "--json")[1])["scores"] == scores
    assert scores["accuracy"] > 0.6
    refused(minifm("evaluate", run, *words, "--format", "int8"), "is packed already, as int4")


@pytest.mark.parametrize("task, kind, expected", [
    ("summarize", "gpt", r"learnt     5 of the first row's 19 tokens, in \[\[ \]\]: "
     r"(\d) (\w{3}) \1\\nTL;DR:\[\[ \2<\|endoftext\|>\]\]"),
    ("summarize", "t5", r"learnt     4 of the first row's 12 tokens, in \[\[ \]\]: "
     r"(\d) (\w{3}) \1<\|endoftext\|>\[\[\2<\|endoftext\|>\]\]"),
    ("lm", "gpt", r"learnt     64 of the first row's 65 tokens, in \[\[ \]\]: .\[\[.*\]\]"),
    ("lm", "bert", r"learnt     \d+ of the first row's 64 tokens, in \[\[ \]\]: .*\[\[.+\]\]"),
    ("classify", "bert", "show_mask: is for lm and summarize; what classify learns are no token")])
def test_what_is_learnt_is_shown(minifm, data, tmp_path, task, kind, expected):  # noqa: F811
    model, text = saved(tmp_path / "model", kind), tmp_path / "text"
    text.mkdir()
    for i in range(20):
        (text / f"{i}.txt").write_text(f"some text of {i} words " * 30)
    words = ["--length", 64] if task == "lm" else []
    _, _, err = minifm("finetune", model, "--task", task, "--data",
                       text if task == "lm" else data[task], "--steps", 1, "--batch", 2, *words,
                       "--show-mask", "--out", tmp_path / "run")
    assert re.search(expected, err), err
    assert (tmp_path / "run").exists() == ("show_mask:" not in err)     # refused at once


def test_labels_of_a_model_whose_weights_are_no_numbers(minifm, data, tmp_path):  # noqa: F811
    """Not the first label, which argmax would say."""
    model, run = saved(tmp_path / "model", "bert"), tmp_path / "run"
    assert minifm("finetune", model, "--task", "classify", "--data", data["classify"], "--steps", 1,
                  "--batch", 2, "--out", run)[0] == 0
    damaged, broken = load_model(run / "last"), tmp_path / "broken"
    damaged.body.token_embedding.weight.data[:] = np.nan
    broken.mkdir()
    save_model(damaged, broken, Tokenizer.load(run / "last"))
    refused(minifm("evaluate", broken, "--task", "classify", "--data", data["classify"]),
            "the model's logits are not finite")


@pytest.mark.parametrize("task, kind, key", [("classify", "bert", "attention_probs_dropout_prob"),
                                             ("lm", "gpt", "attn_pdrop")])
def test_dropout_of_attention_is_said_to_be_left_out(minifm, data, tmp_path, task,  # noqa: F811
                                                     kind, key):
    model, said = saved(tmp_path / "model", kind), f"model asks for ({key} 0.1)"
    text = write(tmp_path / "text.jsonl", [{"text": f"{i} words " * 40} for i in range(9)])
    config = json.loads((model / "config.json").read_text())
    for value in (0.0, 0.1):
        (model / "config.json").write_text(json.dumps(config | {key: value}))
        status, _, err = minifm("finetune", model, "--task", task, "--data", data.get(task, text),
                                "--steps", 1, "--batch", 2, "--out", tmp_path / str(value))
        assert status == 0 and err.count(said) == (value > 0), err


def test_a_head_goes_on_learning_and_refuses_other_labels(minifm, data, tmp_path):  # noqa: F811
    model, run = saved(tmp_path / "model", "bert"), tmp_path / "run"
    common = ["--task", "classify", "--steps", 2, "--batch", 4]
    assert minifm("finetune", model, *common, "--data", data["classify"], "--out", run)[0] == 0
    status, _, err = minifm("finetune", run, *common, "--data", data["classify"], "--out",
                            tmp_path / "on")
    assert status == 0 and "; new: " not in err
    other = write(tmp_path / "other.jsonl", [{"text": str(n), "label": "mineral"}
                                             for n in range(9)])
    refused(minifm("finetune", run, *common, "--data", other, "--out", tmp_path / "no"),
            "labels: the model knows animal, plant, and the examples have mineral")


@pytest.mark.parametrize("words, said", [
    (["--data", "CLASSIFY"], "task: expected one of classify, ner, qa, summarize"),
    (["--task", "ner", "--data", "stdlib-kind"], "task: stdlib-kind is for classify, not for ner"),
    (["--task", "ner", "--data", "CLASSIFY"], 'classify.jsonl: line 1: expected a field'),
    (["--task", "classify"], "data: expected files of examples, or one of stdlib-"),
    (["--task", "classify", "--data", "CLASSIFY", "--length", "65"], "length: expected at most"),
    (["--task", "classify", "--data", "CLASSIFY", "--rank", "4"], "rank: only for --method lora"),
    (["--task", "classify", "--data", "CLASSIFY", "--format", "int8"], "format: only for method"),
    (["--task", "classify", "--data", "CLASSIFY", "--freeze", "3"], "expected 0 … 2, got 3"),
    (["--task", "summarize", "--data", "SUMMARIZE"], "summarize: expected a model that writes"),
    (["--task", "classify", "--data", "CLASSIFY", "--held-out-data", "OTHER"],
     "other.jsonl: line 1: label 'mineral' is unknown; expected one of animal, plant"),
    (["--task", "classify", "--data", "CLASSIFY", "--held-out-data", "CLASSIFY", "--held-out",
      "0.2"], "held_out: what is held out is held_out_data; leave one of them out"),
    (["--task", "classify", "--data", "CLASSIFY", "--scheme", "iob1"], "scheme: only for ner"),
    (["--task", "classify", "--data", "CLASSIFY", "--method", "lora", "--targets", "nowhere"],
     "targets: no linear layer is called 'nowhere'"),
])
def test_mistakes_are_one_line_and_leave_nothing(minifm, data, tmp_path, words,  # noqa: F811
                                                 said):
    other = write(tmp_path / "other.jsonl", [{"text": "x", "label": "mineral"}])
    places = {"CLASSIFY": data["classify"], "SUMMARIZE": data["summarize"], "OTHER": other}
    run = tmp_path / "run"
    refused(minifm("finetune", saved(tmp_path / "model", "bert"), "--out", run,
                   *(places.get(word, word) for word in words)), said)
    assert not run.exists()


def test_an_adapter_and_its_head_become_one_model(minifm, data, tmp_path):  # noqa: F811
    model, run, out = saved(tmp_path / "model", "bert"), tmp_path / "run", tmp_path / "merged"
    assert minifm("finetune", model, "--task", "classify", "--data", data["classify"], "--method",
                  "lora", "--steps", 3, "--batch", 4, "--out", run)[0] == 0
    status, text, err = minifm("merge", run / "best", "--out", out)
    assert status == 0 and "a SequenceClassifier" in text, err
    ids = np.arange(24).reshape(2, 12)
    np.testing.assert_allclose(load_model(out)(ids).numpy(), load_model(run / "best")(ids).numpy(),
                               rtol=1e-4, atol=1e-6)
    assert load_model(out).config.labels == ("animal", "plant")


def test_labels_are_few_or_many(minifm, data, tmp_path):  # noqa: F811
    pytest.importorskip("sklearn")
    model, out = saved(tmp_path / "model", "bert"), tmp_path / "labels"
    words = ["labels", model, "--task", "classify", "--data", data["classify"], "--counts", 8, 40,
             "--steps", 4, "--batch", 4, "--validation", 8, "--out", out]
    status, text, err = minifm(*words)
    assert status == 0, err
    found = json.loads((out / "labels.json").read_text())
    names = ["majority", "TF-IDF + logistic regression", "pretrained", "scratch"]
    assert list(found["scores"]) == names and (out / "labels.png").exists()
    for name in names:
        assert list(found["scores"][name]) == ["8", "40"]
        assert f"{found['scores'][name]['40']['accuracy']:.3f}" in text
    assert found["test"] == json.loads((out / "scratch-8/scores.json").read_text())["test"]
    begun = {name: load_model(out / f"{name}-8/last") for name in ("pretrained", "scratch")}
    ids = np.array([[5, 6, 7]])
    assert (begun["pretrained"](ids).numpy() != begun["scratch"](ids).numpy()).any()
    before = (out / "labels.json").read_bytes()
    status, _, err = minifm(*words)         # what is finished is kept
    assert status == 0 and "step" not in err and (out / "labels.json").read_bytes() == before
    refused(minifm("labels", model, "--task", "classify", "--data", data["classify"], "--counts",
                   1000, "--out", tmp_path / "no"), "counts: expected from 2 to the")


def test_what_a_run_of_labels_has_no_text_for(minifm, data, tmp_path):  # noqa: F811
    """It learnt from no text that could be measured on, and is no other verb's to resume."""
    model, run = saved(tmp_path / "model", "gpt"), tmp_path / "run"
    assert minifm("finetune", model, "--task", "summarize", "--data", data["summarize"], "--steps",
                  1, "--batch", 4, "--out", run)[0] == 0
    status, out, err = minifm("quantize", run, "--format", "int8", "--out", tmp_path / "small")
    assert status == 0 and "perplexity" not in out, err
    for verb in ("pretrain", "incontext"):
        refused(minifm(verb, "--resume", "--out", run), "is a run of finetune, which resumes it")


def test_what_is_scored_is_the_averaged_model_that_is_saved(minifm, data, tmp_path):  # noqa: F811
    model, run = saved(tmp_path / "model", "bert"), tmp_path / "run"
    words = ["--task", "classify", "--data", data["classify"]]
    assert minifm("finetune", model, *words, "--held-out-data", data["classify"], "--validation",
                  200, "--steps", 30, "--learning-rate", 3e-3, "--average", 0.9, "--batch", 8,
                  "--out", run)[0] == 0
    scores = json.loads((run / "scores.json").read_text())["scores"]
    for place in (run, run / "best"):           # of a scored run, its best
        found = json.loads(minifm("evaluate", place, *words, "--json")[1])["scores"]
        assert found == scores


def test_a_study_is_of_one_model_and_one_task(minifm, data, tmp_path):  # noqa: F811
    pytest.importorskip("sklearn")
    model, out = saved(tmp_path / "model", "bert"), tmp_path / "labels"
    words = ["--task", "classify", "--data", data["classify"], "--counts", 8, "--validation", 8,
             "--batch", 4, "--out", out]
    assert minifm("labels", model, *words, "--steps", 2)[0] == 0
    refused(minifm("labels", model, *words, "--steps", 3), "another study (it differs in settings)")
    other = saved(tmp_path / "other", "bert")
    refused(minifm("labels", other, *words, "--steps", 2), "another study (it differs in model)")


def test_only_plain_weights_are_fine_tuned(minifm, data, tmp_path):  # noqa: F811
    model, run, small = saved(tmp_path / "model", "gpt"), tmp_path / "run", tmp_path / "small"
    words = ["--task", "classify", "--data", data["classify"], "--steps", 1, "--batch", 4]
    assert minifm("finetune", model, *words, "--method", "lora", "--out", run)[0] == 0
    refused(minifm("finetune", run, *words, "--out", tmp_path / "a"), "this is an adapter of one")
    assert minifm("quantize", model, "--format", "int8", "--out", small)[0] == 0
    refused(minifm("finetune", small, *words, "--out", tmp_path / "b"), "are packed as int8")
    refused(minifm("finetune", model, *words, "--examples", 5000, "--out", tmp_path / "c"),
            "examples: expected at most the")


def test_labels_are_drawn_letter_for_letter(minifm, tmp_path):  # noqa: F811
    data, run = tmp_path / "odd.jsonl", tmp_path / "run"
    write(data, [{"text": str(n), "label": [r"$\frac$", "bad\ud800"][n % 2]} for n in range(40)])
    words = ["--task", "classify", "--data", data, "--steps", 1, "--batch", 4, "--out", run]
    assert minifm("finetune", saved(tmp_path / "model", "bert"), *words)[0] == 0
    assert (run / "confusion.png").read_bytes().startswith(b"\x89PNG")


def test_tags_of_both_schemes_are_evaluated(minifm, data, tmp_path):  # noqa: F811
    model, run, old = saved(tmp_path / "model", "bert"), tmp_path / "run", tmp_path / "old.conll"
    old.write_text("".join(f"{a} I-animal\nis O\n\n" for a in ANIMALS * 5))
    assert minifm("finetune", model, "--task", "ner", "--data", old, "--scheme", "iob1", "--steps",
                  1, "--batch", 4, "--out", run)[0] == 0
    words = ["evaluate", run, "--task", "ner", "--data", old]
    refused(minifm(*words), "in IOB2 an entity begins with 'B-animal'")
    assert minifm(*words, "--scheme", "iob1")[0] == 0


def test_evaluate_refuses_a_model_without_the_task(minifm, data, tmp_path):  # noqa: F811
    model = saved(tmp_path / "model", "bert")
    words = ["evaluate", model, "--task", "classify", "--data", data["classify"]]
    refused(minifm(*words), "expected a SequenceClassifier, got a Bert: fine-tune it first")
    refused(minifm(*words, "--stride", 4), "stride: is for text without labels")
    refused(minifm(*words, "--scheme", "iob2"), "scheme: only for --task ner")
    refused(minifm("evaluate", model, "--data", data["classify"], "--scheme", "iob1"),
            "scheme: only for --task ner")


def test_a_model_is_needed(minifm, tmp_path):  # noqa: F811
    refused(minifm("finetune", "--out", tmp_path / "run"), "model: expected a model to start from")
    refused(minifm("finetune", "--resume", "--out", tmp_path), "there is no run to resume")


@pytest.mark.parametrize("flag, message", [
    (("--task", "answer"), "task: expected one of classify, ner, qa, summarize, lm, got 'answer'"),
    (("--task", "classify", "--method", "lora", "--format", "int2"),
     "format: expected one of bf16, int8, int4, got 'int2'")])
def test_a_choice_that_there_is_not_is_named_beside_those_there_are(minifm, tmp_path,  # noqa: F811
                                                                    flag, message):
    refused(minifm("finetune", tmp_path, *flag, "--data", tmp_path / "a.jsonl",
                   "--out", tmp_path / "out"), message)
