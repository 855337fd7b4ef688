"""Encoder-decoders write by every strategy, as the model alone says by whole forward passes."""

from dataclasses import replace

import numpy as np
import pytest
from test_cli import minifm, refused  # noqa: F401
from test_finetune import saved
from test_seq2seq import CONFIGS, model_class

import minifm as mf
from minifm.generation import Beams, Choices, Contrastive, Sampling, generate
from minifm.hub import load_model
from minifm.ops.loss import IGNORE
from minifm.text import Tokenizer

BYTES = Tokenizer.bytes()
KINDS = [kind for kind in CONFIGS if CONFIGS[kind].start is not None]


def made(kind, seed=0):
    config = replace(CONFIGS[kind], vocabulary=BYTES.vocabulary, dropout=0.0)
    return model_class(kind)(config, mf.Rng(seed))


def greedy(model, source, steps):
    """By the whole forward pass for every token, one source at a time."""
    source, target = np.array([[*source, BYTES.end_of_text]]), []
    for _ in range(steps):
        ids = model.read_before(np.array([[*target, IGNORE]]))
        target.append(int(model(source, ids).numpy()[0, -1].argmax()))
        if target[-1] == BYTES.end_of_text:
            break
    return target


@pytest.mark.parametrize("kind", KINDS)
def test_greedy_text_is_that_of_whole_forward_passes(backend, kind):
    model, texts = made(kind), ["a longer source", "b", "of some length"]
    done = generate(model, BYTES, texts, strategy=Sampling(temperature=0), max_tokens=7)
    for text, completion in zip(texts, done):
        assert completion.tokens == greedy(model, BYTES.encode(text), 7)


@pytest.mark.parametrize("strategy", [Beams(1), Contrastive(alpha=0.0, top_k=3)])
def test_strategies_that_are_greedy_write_the_same(strategy):
    model, texts = made(KINDS[0]), ["a longer source", "b"]
    plain, other = (generate(model, BYTES, texts, strategy=s, max_tokens=6)
                    for s in (Sampling(temperature=0), strategy))
    assert [c.tokens for c in other] == [c.tokens for c in plain]


def test_beams_keep_to_their_own_source():
    model, texts = made(KINDS[0], seed=3), ["a longer source", "b", "cc"]
    together = generate(model, BYTES, texts, strategy=Beams(3), max_tokens=5)
    alone = [generate(model, BYTES, [text], strategy=Beams(3), max_tokens=5)[0] for text in texts]
    assert [c.tokens for c in together] == [c.tokens for c in alone]


def test_what_is_written_may_be_constrained():
    done = generate(made(KINDS[0]), BYTES, ["which?"], constraint=Choices(["yes", "no"]),
                    strategy=Sampling(temperature=0), max_tokens=9)
    assert done[0].text in ("yes", "no") and done[0].reason == "end"


def test_generate_answers_what_it_has_read(minifm, tmp_path):  # noqa: F811
    model = saved(tmp_path / "model", "t5")
    status, out, err = minifm("generate", model, "a source", "--max-tokens", 4, "--temperature", 0)
    assert status == 0, err
    expected = generate(load_model(model), Tokenizer.load(model), ["a source"],
                        strategy=Sampling(temperature=0), max_tokens=4)[0].text
    assert out == expected + "\n"
    refused(minifm("generate", model, "x", "--draft", model), "draft: expected a model that goes")
    refused(minifm("generate", model, ""), "source 1 of 1 is empty")
    bert = saved(tmp_path / "bert", "bert")
    refused(minifm("generate", bert, "x"), "expected a model that writes")
