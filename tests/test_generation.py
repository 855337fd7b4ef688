"""Sampling filters by their definitions; generation by its laws: seeds, batches, stops, streams."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

import minifm as mf
from minifm.errors import ConfigError
from minifm.generation import Beams, Contrastive, Sampling, generate, tokens
from minifm.generation import sampling as s
from minifm.models import GPT, GPTConfig
from minifm.text import Tokenizer

LOGITS = arrays(np.float64, st.integers(1, 30), elements=st.floats(-20, 20, width=32))
BYTES = Tokenizer.bytes()


def small_model(seed=0, context=32):
    config = GPTConfig(vocabulary=BYTES.vocabulary, context=context, layers=1, heads=2, width=16)
    model = GPT(config)
    for name, parameter in model.parameters().items():
        parameter.data = mf.backend().multiply(
            mf.Rng(seed).child(name).normal(parameter.shape), 0.5)
    return model


# -- filters ------------------------------------------------------------------------------------


@given(LOGITS, st.integers(1, 40))
def test_top_k_keeps_the_k_likeliest(x, k):
    kept = np.isfinite(s.keep_top_k(x, k))
    assert kept.sum() == min(k, len(x))
    assert kept.all() or x[kept].min() >= x[~kept].max()


@given(LOGITS, st.floats(0.01, 0.99))
def test_top_p_keeps_the_shortest_list_that_reaches_p(x, p):
    kept, probability = np.isfinite(s.keep_top_p(x, p)), s.probabilities(x)
    slack = len(x) * np.finfo(float).eps        # of a sum of len(x) probabilities
    assert kept.any() and probability[kept].sum() >= p - slack
    assert probability[kept].sum() - probability[kept].min() < p + slack
    assert kept.all() or x[kept].min() >= x[~kept].max()


@given(LOGITS, st.floats(0.001, 1))
def test_min_p_keeps_what_is_likely_beside_the_likeliest(x, fraction):
    kept, probability = np.isfinite(s.keep_min_p(x, fraction)), s.probabilities(x)
    near = np.isclose(probability, fraction * probability.max(), rtol=1e-9)
    np.testing.assert_array_equal(kept[~near], (probability >= fraction * probability.max())[~near])
    assert kept[np.argmax(x)]


@given(LOGITS, st.data())
def test_repetition_penalty_lowers_what_was_seen_and_nothing_else(x, data):
    seen = data.draw(st.lists(st.integers(0, len(x) - 1), max_size=5))
    y = s.penalise_repetition(x, np.array(seen, int), 1.5)
    others = ~np.isin(np.arange(len(x)), seen)
    np.testing.assert_array_equal(y[others], x[others])
    assert ((y < x) | (x == 0))[~others].all()


@given(LOGITS)
def test_inverse_transform_draws_each_token_with_its_probability(x):
    p, n = s.probabilities(x), 2000
    counts = np.bincount([s.choose(p, (i + 0.5) / n) for i in range(n)], minlength=len(p))
    # An interval of length p holds p·n of n evenly spaced points, give or take one.
    assert (np.abs(counts - p * n) <= 1 + 1e-6).all()


def test_a_forbidden_token_is_never_drawn():
    p = np.array([0.0, 0.5, 0.5, 0.0])
    assert {s.choose(p, u) for u in (0.0, 0.25, 0.5, 1 - 2**-53)} == {1, 2}


def test_temperature_zero_is_greedy_and_small_temperatures_approach_it():
    x = np.array([0.0, 2.0, 1.9])
    assert s.draw(x, [], Sampling(temperature=0), 0.999) == 1
    assert s.draw(x, [], Sampling(temperature=1e-3), 0.999) == 1
    assert s.draw(x, [], Sampling(temperature=100.0), 0.999) == 2


@pytest.mark.parametrize("wrong, message", [
    ({"temperature": -1.0}, "temperature: expected at least 0, got -1.0"),
    ({"temperature": float("nan")}, "temperature: expected"),
    ({"top_p": 0.0}, "top_p: expected more than 0 and at most 1, got 0.0"),
    ({"top_k": -3}, "top_k: expected at least 0, got -3"),
    ({"min_p": 2.0}, "min_p"),
    ({"repetition_penalty": 0.0}, "repetition_penalty"),
])
def test_impossible_sampling_names_its_field(wrong, message):
    with pytest.raises(ConfigError, match=message):
        Sampling(**wrong)


# -- generation ---------------------------------------------------------------------------------


def test_the_same_seed_writes_the_same_and_another_seed_does_not(backend):
    model = small_model()
    first, again, other = (generate(model, BYTES, ["abc"], seed=seed, max_tokens=20)[0].tokens
                           for seed in (1, 1, 2))
    assert first == again != other


@given(st.lists(st.text("abc", min_size=1, max_size=9), min_size=1, max_size=4))
def test_greedy_text_batched_is_greedy_text_alone(backend, prompts):
    model = small_model()
    greedy = {"strategy": Sampling(temperature=0), "max_tokens": 6}
    together = generate(model, BYTES, prompts, **greedy)
    for prompt, completion in zip(prompts, together):
        assert generate(model, BYTES, [prompt], **greedy)[0] == completion


def test_streamed_pieces_concatenate_to_the_text(backend):
    pieces = {0: "", 1: ""}

    def collect(row, piece):
        pieces[row] += piece

    done = generate(small_model(), BYTES, ["hello", "x"], max_tokens=20, on_text=collect)
    assert [c.text for c in done] == [pieces[0], pieces[1]]
    assert all(len(c.tokens) == 20 or c.reason == "end" for c in done)


def test_a_stop_string_ends_the_text_before_it(backend):
    model, options = small_model(), {"max_tokens": 20, "seed": 5}
    whole = generate(model, BYTES, ["ab"], **options)[0].text
    stop = whole[4:7]
    stopped = generate(model, BYTES, ["ab"], stop=[stop, "never in it"], **options)[0]
    assert stopped.text == whole[: whole.find(stop)]
    assert stopped.reason == "stop"


def test_a_row_that_stops_leaves_its_neighbours_alone(backend):
    model, greedy = small_model(), {"strategy": Sampling(temperature=0), "max_tokens": 12}
    alone = generate(model, BYTES, ["abcd"], **greedy)[0]
    stop = generate(model, BYTES, ["xy"], **greedy)[0].text[:1]
    both = generate(model, BYTES, ["xy", "abcd"], stop=[stop], **greedy)
    assert both[0].reason == "stop" and both[0].text == ""
    assert alone.text.startswith(both[1].text)


def test_end_of_text_ends_and_a_full_context_says_so(backend):
    model = small_model(context=8)
    full = generate(model, BYTES, ["abc"], max_tokens=50, seed=1)[0]
    assert full.reason == "context" and len(full.tokens) == 5
    # The head is tied: a token whose embedding is along the last norm's offset always wins.
    model.token_embedding.weight.data[BYTES.end_of_text] = 50 * model.norm.bias.data
    ended = generate(model, BYTES, ["abc"], max_tokens=4, strategy=Sampling(temperature=0))[0]
    assert ended.reason == "end" and ended.tokens == [BYTES.end_of_text] and ended.text == ""


def test_rows_of_unlike_lengths_fill_their_contexts(backend):
    model = small_model(context=8)
    steps = list(tokens(model, [[1, 2, 3, 4, 5, 6], [7]], Sampling(), 20, mf.Rng(0)))
    assert [sum(row in step for step in steps) for row in (0, 1)] == [2, 7]


@pytest.mark.parametrize("wrong", [{"prompts": "hello"}, {"prompts": ["a"], "stop": "ab"}])
def test_one_string_in_place_of_a_list_is_refused(wrong):
    with pytest.raises(ConfigError, match="expected a list of strings, got one string"):
        generate(small_model(), BYTES, **wrong)
    assert generate(small_model(), BYTES, []) == []


@pytest.mark.parametrize("prompts, message", [
    ([""], "the prompt is empty"),
    (["ok", ""], "prompt 2 of 2 is empty"),
    (["x" * 32], "the prompt has 32 tokens, and the model's context of 32"),
])
def test_prompts_that_cannot_be_continued_are_refused(prompts, message):
    with pytest.raises(ConfigError, match=message):
        generate(small_model(), BYTES, prompts)


def test_tokens_without_a_text_do_not_come(backend):
    """Some models fill their tables beyond the vocabulary, to a rounder number."""
    model = GPT(GPTConfig(vocabulary=300, context=32, layers=1, heads=2, width=8), mf.Rng(0))
    table = model.token_embedding.weight
    table.data = table.numpy() + 10 * (np.arange(300) >= 257)[:, None].astype(np.float32)
    for strategy in (Sampling(temperature=0), Sampling(), Beams(2), Contrastive(0.5, 4)):
        done = generate(model, Tokenizer.bytes(), ["once", "a"], strategy=strategy, max_tokens=9)
        assert all(token < 257 for completion in done for token in completion.tokens)
