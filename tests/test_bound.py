"""The likelihood of texts by diffusion, and the command line of models that write so."""

import itertools
import json
import math

import numpy as np
import pytest
from modelling import randomised
from test_evaluation import run

import minifm as mf
from minifm.errors import AnomalyError, ConfigError
from minifm.evaluation import BoundConfig, WindowConfig, likelihood_bound
from minifm.hub import load_model, save_model
from minifm.models import GPT, Bert, BertConfig, GPTConfig
from minifm.text import Tokenizer
from minifm.text.tokenizer import FIRST, MASK, PADDING

BYTES = Tokenizer.bytes((FIRST, PADDING, MASK))
SHAPE = BertConfig(vocabulary=BYTES.vocabulary, context=12, layers=1, heads=2, width=16,
                   padding=BYTES.padding, absorbing=True, layout="roberta", types=1)
WORDS = ["pretrain", "--arch", "roberta", "--layers", "1", "--heads", "2", "--width", "16",
         "--context", "16", "--batch", "4", "--tokenizer", "bytes", "--steps", "2",
         "--evaluate-batches", "1"]


def network(seed=0):
    return randomised(Bert(SHAPE), seed)


def by_enumeration(model, text, context, stride):
    """The mean of the bound over all numbers and all choices of hidden tokens, window by window."""
    ids, nats, scored = [BYTES.end_of_text, *BYTES.encode(text).tolist()], 0.0, 1
    while scored < len(ids):
        end = min(scored + (context if scored == 1 else stride), len(ids))
        window = ids[max(0, end - 1 - context) : end]
        new = range(len(window) - (end - scored), len(window))
        for n in range(1, len(new) + 1):
            for chosen in itertools.combinations(new, n):
                row = np.full((1, 12), BYTES.mask)
                row[0, [0, -1]] = BYTES.first, BYTES.separator
                row[0, 1 : 1 + len(window)] = window
                row[0, 1 + np.array(chosen)] = BYTES.mask
                with mf.no_grad():
                    x = model(row).numpy()[0].astype(np.float64)
                log_p = x - np.log(np.exp(x).sum(-1, keepdims=True))
                nats -= sum(log_p[1 + i, window[i]] for i in chosen) / n / math.comb(len(new), n)
        scored = end
    return nats


@pytest.mark.parametrize("text", ["ab", "abcdefghijk"])
def test_the_bound_is_its_mean_and_its_spread_what_it_says(text):
    """Over many seeds: the mean within 5 standard errors of it, the spread that of the values."""
    model, config = network(), WindowConfig(context=6, stride=2)
    exact, seeds = by_enumeration(model, text, 6, 2), 200
    found = [likelihood_bound(model, BYTES, [text], config, BoundConfig(draws=1, seed=seed))
             for seed in range(seeds)]
    nats, said = np.array([f.nats for f in found]), np.array([f.spread for f in found])
    assert nats.std() > 1e-3
    assert abs(nats.mean() - exact) < 5 * nats.std() / math.sqrt(seeds)
    # Variances of so many values are off by about √(2/seeds) of themselves.
    assert (said**2).mean() == pytest.approx(nats.var(), rel=5 * math.sqrt(3 / seeds))
    assert found[0].tokens == found[0].bytes == len(text)


def test_more_draws_are_nearer():
    model = network()
    few, many = ([likelihood_bound(model, BYTES, ["abcdefgh"], drawn=BoundConfig(draws=n, seed=s))
                  .nats for s in range(40)] for n in (1, 8))
    # Spread over 8 tokens, 8 draws have each number hidden once: far better than √8.
    assert np.std(many) < np.std(few) / 3


def test_who_knows_nothing_pays_log_v_without_a_spread():
    found = likelihood_bound(Bert(SHAPE), BYTES, ["a text of more than a window", "", "b"],
                             WindowConfig(tokens=20))
    assert found.nats == pytest.approx(20 * math.log(BYTES.vocabulary), rel=1e-6)
    assert found.spread == pytest.approx(0, abs=1e-4)
    assert (found.tokens, found.documents, found.context, found.stride) == (20, 1, 9, 4)
    assert found.bits_per_byte == pytest.approx(math.log2(BYTES.vocabulary), rel=1e-6)


def test_the_batch_never_changes_a_bound(backend):
    config = [WindowConfig(batch=batch) for batch in (1, 3, 8)]
    found = [likelihood_bound(network(), BYTES, ["abcdefghijklmnop", "xyz"], c) for c in config]
    for other in found[1:]:
        assert other.nats == pytest.approx(found[0].nats, rel=1e-6)
        assert other.spread == pytest.approx(found[0].spread, rel=1e-4)


@pytest.mark.parametrize("choice, said", [
    ({"documents": ["", ""]}, "there is no text to score"),
    ({"config": WindowConfig(context=10)}, "context: expected at most the model's 9, got 10"),
    ({"tokenizer": Tokenizer.bytes()}, "tokenizer: has no first token, or no mask"),
])
def test_what_cannot_be_bounded_is_refused(choice, said):
    with pytest.raises(ConfigError, match=said):
        likelihood_bound(**{"model": network(), "tokenizer": BYTES, "documents": ["ab"]} | choice)


def test_a_model_whose_logits_are_no_numbers_is_an_anomaly():
    model = network()
    model.masked_head.bias.data[3] = np.nan
    with pytest.raises(AnomalyError, match="logits are not finite"):
        likelihood_bound(model, BYTES, ["ab"])


# -- files, and the command line ------------------------------------------------------------------


@pytest.fixture
def saved(tmp_path):
    """A directory with a model that writes by diffusion, and one with a GPT."""
    gpt = GPT(GPTConfig(vocabulary=BYTES.vocabulary, context=12, layers=1, heads=2, width=8))
    for name, model in (("model", network()), ("gpt", randomised(gpt))):
        (tmp_path / name).mkdir()
        save_model(model, tmp_path / name, BYTES)
    (tmp_path / "text.txt").write_text("A few lines\n\nof text.\n" * 3)
    return tmp_path


def test_a_model_says_in_its_files_that_it_writes(saved):
    file = saved / "model" / "config.json"
    said = json.loads(file.read_text())
    assert said["diffusion"] == "absorbing" and said["architectures"] == ["RobertaForMaskedLM"]
    assert load_model(saved / "model").config == SHAPE
    file.write_text(json.dumps({k: v for k, v in said.items() if k != "diffusion"}))
    assert not load_model(saved / "model").absorbing
    file.write_text(json.dumps(said | {"diffusion": "uniform"}))
    with pytest.raises(mf.errors.FormatError, match="diffusion='uniform' is not supported"):
        load_model(saved / "model")


def test_what_the_masked_head_has_learnt_goes_with_it():
    body = network().as_body(mf.models.bert.BARE)
    assert not body.absorbing
    with pytest.raises(ConfigError, match="absorbing: needs the masked head"):
        BertConfig(absorbing=True, masked_head=False)


def test_a_masked_language_model_learns_to_write_and_back(saved, capsys):
    book = saved / "book.txt"
    book.write_text("".join(f"Line {i} of a text.\n\n" for i in range(2000)))
    plain, writes, again = (saved / name for name in ("plain", "writes", "again"))
    assert run(capsys, *WORDS, "--data", book, "--out", plain)[0] == 0
    status, _, err = run(capsys, "generate", plain, "Li")
    assert status == 2 and "expected a model that writes, got a Bert" in err
    status, out, _ = run(capsys, "pretrain", "--init", plain, "--diffusion", "--data", book,
                         "--steps", 1, "--out", writes)
    assert status == 0 and "bits a byte" in out and "generate" in out
    assert load_model(writes / "last").absorbing
    assert run(capsys, "generate", writes, "Li", "--max-tokens", 5)[0] == 0
    assert run(capsys, "pretrain", "--init", writes, "--data", book, "--steps", 1, "--out",
               again)[0] == 0
    assert not load_model(again / "last").absorbing


@pytest.mark.parametrize("flags", [
    [], ["--order", "ancestral", "--steps", "2"], ["--order", "confidence", "--temperature", "0"],
    ["--block", "2", "--schedule", "cosine"], ["--format", "int8"], ["--suffix", "xy"],
])
def test_generate_writes_by_diffusion(saved, capsys, flags):
    words = "generate", saved / "model", "ab", "--max-tokens", 4, "--seed", 3, *flags
    status, out, err = run(capsys, *words)
    assert status == 0 and err == "" and out.startswith("ab")
    assert out.endswith("xy\n") == ("--suffix" in flags)
    assert run(capsys, *words) == (status, out, err)
    assert run(capsys, *words[:3], "cd", *words[3:])[1].startswith("--- 1 of 2 (")


@pytest.mark.parametrize("model, flags, said", [
    ("model", ["--beams", "2"], "beams: has no meaning for a model that writes by diffusion"),
    ("model", ["--contrastive", "0.5"], "contrastive: has no meaning for a model that writes by"),
    ("model", ["--draft", "x"], "draft: has no meaning for a model that writes by diffusion"),
    ("model", ["--cache", "bf16"], "cache: expected no such setting for a model that writes by"),
    ("model", ["--regex", "a"], "constraint: expected no such setting for a model"),
    ("model", ["--steps", "1", "--block", "2"], "steps: expected one at least for each of 100"),
    ("model", ["--order", "left"], "order: expected one of random, ancestral, confidence"),
    ("gpt", ["--steps", "3"], "steps: needs a model that writes by diffusion (pretrain --diff"),
    ("gpt", ["--suffix", "x"], "suffix: needs a model that writes by diffusion"),
    ("gpt", ["--order", "left"], "order: needs a model that writes by diffusion"),
])
def test_generate_refuses_what_does_not_go_together(saved, capsys, model, flags, said):
    status, out, err = run(capsys, "generate", saved / model, "ab", *flags)
    assert status == 2 and out == "" and said in err and err.count("\n") == 1, err


def test_evaluate_prints_a_bound_and_how_sure_it_is(saved, capsys):
    words = "evaluate", saved / "model", "--data", saved / "text.txt", "--draws", 2
    status, out, _ = run(capsys, *words, "--json")
    found = json.loads(out)
    assert status == 0 and found["bound"] is True and (found["context"], found["draws"]) == (9, 2)
    assert found["bits_per_byte_spread"] == pytest.approx(
        found["nats_spread"] / math.log(2) / found["bytes"])
    status, out, _ = run(capsys, *words)
    assert f"bits per byte   {found['bits_per_byte']:.4f}" in out
    assert f"standard error is {found['bits_per_byte_spread']:.4f}" in out
    status, out, err = run(capsys, "evaluate", saved / "gpt", *words[2:])
    assert status == 2 and "draws: needs a model that writes by diffusion" in err
