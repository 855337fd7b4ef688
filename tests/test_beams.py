"""Beam search against all texts there are; contrastive search against its equation; the cache
whose rows are copied and rewound."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from modelling import randomised
from opaque import OpaqueBackend

import minifm as mf
from minifm.errors import AnomalyError, ConfigError
from minifm.evaluation import Request
from minifm.evaluation import score as score_all
from minifm.generation import (
    Beams,
    Contrastive,
    Regex,
    Sampling,
    Speculative,
    generate,
    tokens,
)
from minifm.generation.decoder import Decoder
from minifm.generation.generate import written
from minifm.generation.job import Job
from minifm.models import GPT, GPTConfig, Llama, LlamaConfig
from minifm.text import Tokenizer

BYTES = Tokenizer.bytes()


def small_model(vocabulary=5, seed=0, context=12, std=0.7):
    config = GPTConfig(vocabulary=vocabulary, context=context, layers=1, heads=2, width=8)
    return randomised(GPT(config), seed, std)


def log_probabilities(model, ids):
    """[T, V]: of the token after each, by the whole text at once."""
    with mf.no_grad():
        x = model(np.array([ids])).numpy()[0].astype(np.float64)
    x = x - x.max(-1, keepdims=True)
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


def search(model, prompts, strategy, max_tokens, *ends, guide=None):
    """The new tokens of each row; a text ends with one of `ends`."""
    job = Job(model, prompts, max_tokens, mf.Rng(0), guide=guide, ends=frozenset(ends))
    found = [[] for _ in prompts]
    for step in written(job, strategy):
        for row, token in step.items():
            found[row].append(token)
    return found


def score(model, prompt, new, alpha):
    logp = log_probabilities(model, [*prompt, *new])[len(prompt) - 1 :]
    return sum(logp[i, token] for i, token in enumerate(new)) / len(new) ** alpha


def all_texts(vocabulary, length, end):
    """Every text of at most `length` tokens: shorter ones end in `end`, which stands nowhere
    else."""
    others = [token for token in range(vocabulary) if token != end]
    for n in range(length):
        for body in itertools.product(others, repeat=n):
            yield [*body, end]
    for body in itertools.product(others, repeat=length):
        yield list(body)


# -- beam search -----------------------------------------------------------------------------------


@given(st.integers(0, 999), st.sampled_from([0.0, 0.6, 1.0, 2.0]), st.integers(1, 4))
def test_with_beams_for_all_texts_the_best_of_all_is_found(backend, seed, alpha, length):
    model, V, end = small_model(3, seed), 3, 2
    prompts = [[0, 1], [1]]
    found = search(model, prompts, Beams(V**length, alpha), length, end)
    for prompt, new in zip(prompts, found):
        texts = list(all_texts(V, length, end))
        scores = [score(model, prompt, text, alpha) for text in texts]
        best = max(scores)
        assert new in texts
        assert score(model, prompt, new, alpha) == pytest.approx(best, rel=1e-4, abs=1e-5)


def plain_beam_search(model, prompt, beams, alpha, length, ends):
    """The same search, written down without a cache, and without stopping early."""
    live, finished = [(0.0, [])], []
    for n in range(1, length + 1):
        ranked = []
        for total, new in live:
            logp = log_probabilities(model, [*prompt, *new])[-1]
            ranked += [(total + float(x), [*new, token]) for token, x in enumerate(logp)]
        ranked.sort(key=lambda pair: -pair[0])
        finished += [(s / n**alpha, text) for s, text in ranked[:beams] if text[-1] in ends]
        live = [(s, text) for s, text in ranked if text[-1] not in ends][:beams]
    return max(finished + [(s / length**alpha, text) for s, text in live])


@given(st.integers(0, 999), st.integers(1, 5), st.sampled_from([0.0, 1.0, 1.5]),
       st.sampled_from([(), (5,), (2, 5), (0, 2, 3)]))
def test_beam_search_is_what_its_definition_says(backend, seed, beams, alpha, ends):
    model = small_model(6, seed)
    prompts = [[0, 1, 2], [3], [4, 4]]
    found = search(model, prompts, Beams(beams, alpha), 5, *ends)
    for prompt, new in zip(prompts, found):
        wanted, text = plain_beam_search(model, prompt, beams, alpha, 5, ends)
        assert new == text or score(model, prompt, new, alpha) == pytest.approx(wanted, abs=1e-5)


def test_one_beam_is_greedy(backend):
    model = small_model(7, 3)
    steps = tokens(model, [[1, 2]], Sampling(temperature=0), 8, mf.Rng(0))
    assert search(model, [[1, 2]], Beams(1, 0.0), 8) == [[step[0] for step in steps]]


def test_a_full_context_ends_a_search(backend):
    found = search(small_model(6, context=7), [[0, 1, 2, 3], [1]], Beams(3), 20)
    assert [len(new) for new in found] == [3, 6]


@given(st.integers(0, 99))
def test_beams_of_rows_side_by_side_are_those_of_each_alone(seed):
    """Bitwise, where the kernels promise it."""
    model, prompts = small_model(9, seed), [[0, 1, 2, 3], [8], [5, 5]]
    together = search(model, prompts, Beams(3), 5, 4)
    alone = [search(model, [prompt], Beams(3), 5, 4)[0] for prompt in prompts]
    if mf.backend().name == "c":
        assert together == alone


def test_a_search_under_a_constraint_finds_the_likeliest_text_that_is_allowed(backend):
    model = small_model(BYTES.vocabulary, 1, context=12)
    guide = Regex("a|b[cd]|efg?").guide(BYTES, BYTES.vocabulary)
    found = search(model, [[65]], Beams(16, 0.0), 6, BYTES.end_of_text, guide=guide)[0]
    texts = [[*text.encode(), BYTES.end_of_text] for text in ("a", "bc", "bd", "ef", "efg")]
    assert found == max(texts, key=lambda text: score(model, [65], text, 0.0))


def test_a_stop_string_cuts_what_the_search_has_found(backend):
    model = small_model(BYTES.vocabulary, 2, context=30)
    whole = generate(model, BYTES, ["ab"], strategy=Beams(2), max_tokens=9)[0]
    stop = whole.text[3:5]
    cut = generate(model, BYTES, ["ab"], strategy=Beams(2), max_tokens=9, stop=[stop])[0]
    assert cut.reason == "stop" and cut.text == whole.text[: whole.text.find(stop)]


@pytest.mark.parametrize("strategy", [Beams(2), Contrastive(), Sampling()])
def test_logits_that_are_not_finite_are_an_anomaly(strategy):
    model = small_model()
    model.norm.bias.data[:] = np.nan
    with pytest.raises(AnomalyError, match="logits are not finite"):
        search(model, [[1]], strategy, 3)


@pytest.mark.parametrize("make, said", [
    (lambda: Beams(0), "beams: expected at least 1, got 0"),
    (lambda: Beams(2, -1.0), "length_penalty: expected at least 0"),
    (lambda: Contrastive(1.5), "alpha: expected at least 0 and at most 1, got 1.5"),
    (lambda: Contrastive(0.5, 0), "top_k: expected at least 1"),
])
def test_impossible_settings_name_their_field(make, said):
    with pytest.raises(ConfigError, match=said):
        make()


# -- contrastive search ----------------------------------------------------------------------------


def plain_contrastive(model, prompt, alpha, k, length):
    """Equation 5, every candidate by a forward pass of its own."""
    def features(ids):
        with mf.no_grad():
            h = model.features(np.array([ids])).numpy()[0].astype(np.float64)
        return h / np.linalg.norm(h, axis=-1, keepdims=True)

    ids, margins = list(prompt), []
    for _ in range(length):
        p = np.exp(log_probabilities(model, ids)[-1])
        candidates, seen = np.argsort(-p, kind="stable")[:k], features(ids)
        scores = [(1 - alpha) * p[v] - alpha * (seen @ features([*ids, v])[-1]).max()
                  for v in candidates]
        margins.append(np.diff(np.sort(scores)[-2:]).min(initial=1))
        ids.append(int(candidates[np.argmax(scores)]))
    return ids[len(prompt) :], min(margins)


@given(st.integers(0, 999), st.sampled_from([0.0, 0.3, 0.6, 1.0]), st.integers(1, 5))
def test_contrastive_search_is_what_its_equation_says(backend, seed, alpha, k):
    model, prompts = small_model(9, seed), [[0, 1, 2], [3], [4, 4]]
    found = search(model, prompts, Contrastive(alpha, k), 4)
    for prompt, new in zip(prompts, found):
        wanted, margin = plain_contrastive(model, prompt, alpha, k, 4)
        assert new == wanted or margin < 1e-4


def test_rows_of_unlike_lengths_fill_their_contexts(backend):
    model = small_model(9, context=8)
    for strategy in (Contrastive(0.6, 3), Beams(2)):
        found = search(model, [[1, 2, 3, 4, 5, 6], [7]], strategy, 20)
        assert [len(new) for new in found] == [2, 7]


def test_alpha_zero_is_greedy(backend):
    model = small_model(9, 5)
    steps = tokens(model, [[1, 2]], Sampling(temperature=0), 8, mf.Rng(0))
    assert search(model, [[1, 2]], Contrastive(0.0, 4), 8) == [[step[0] for step in steps]]


# -- the cache -------------------------------------------------------------------------------------

LLAMA = LlamaConfig(vocabulary=11, context=16, layers=2, heads=2, key_heads=1, width=8, hidden=12,
                    window=5)


@given(st.lists(st.lists(st.integers(0, 10), min_size=1, max_size=6), min_size=3, max_size=3),
       st.lists(st.integers(0, 2), min_size=2, max_size=4), st.integers(0, 99),
       st.sampled_from([None, "bf16"]), st.booleans())
def test_copied_and_rewound_rows_go_on_as_if_nothing_had_been(backend, texts, rows, seed, format,
                                                              llama):
    """Rows of one cache in another, a token tried and forgotten, then two more: as from new."""
    model = randomised(Llama(LLAMA)) if llama else small_model(11, context=16)
    first, lengths = Decoder(model, 3, format=format), np.array([len(text) for text in texts])
    ids = np.zeros((3, lengths.max()), np.int64)
    for row, text in enumerate(texts):
        ids[row, : len(text)] = text
    first(ids, lengths)
    second = Decoder(model, len(rows), format=format)
    second.cache.take(first.cache, rows)
    second(np.random.default_rng(seed).integers(0, 11, (len(rows), 3)))     # tried …
    second.cache.rewind(lengths[rows])                                      # … and forgotten
    second.cache.take(second.cache, range(len(rows)), since=int(lengths[rows].min()))
    more = np.random.default_rng(seed + 1).integers(0, 11, (len(rows), 2))
    found = second.every(more)
    for place, row in enumerate(rows):
        alone = Decoder(model, 1, format=format)
        alone(np.array([texts[row]]))
        wanted = alone.every(more[place : place + 1])[0]
        if mf.backend().name == "c":
            assert np.array_equal(found[place], wanted)
        else:
            np.testing.assert_allclose(found[place], wanted, rtol=1e-4, atol=1e-5)


def test_a_cache_refuses_what_it_cannot_hold(backend):
    model = small_model()
    cache, large = model.cache(2, 3), model.cache(2, 9)
    with mf.no_grad():
        model(np.zeros((2, 5), int), cache=large)
    with pytest.raises(ConfigError, match="the cache holds 3 tokens a row; 5 do not fit"):
        cache.take(large, [0, 1])
    with pytest.raises(ConfigError, match="rewind: expected at most"):
        large.rewind([6, 5])
    with pytest.raises(ConfigError, match="rewind: expected at most"):
        large.rewind([-1, 5])


def test_every_strategy_decodes_on_arrays_that_show_only_shape_and_dtype():
    strategies = [Sampling(temperature=0), Beams(3), Contrastive(0.5, 3),
                  Speculative(small_model(9, 1), 2, Sampling(temperature=0))]
    with mf.use("numpy"):
        wanted = [search(small_model(9), [[1, 2], [3]], s, 6, 8) for s in strategies]
    with mf.use(OpaqueBackend()):
        model, draft = small_model(9), small_model(9, 1)
        strategies[3] = Speculative(draft, 2, Sampling(temperature=0))
        assert [search(model, [[1, 2], [3]], s, 6, 8) for s in strategies] == wanted
        assert score_all(model, [Request([1, 2, 3], 1)])[0].tokens == 2
