"""Evaluation: scores against the full forward, windows by what they promise, the harness's requests
answered as its own models answer them."""

import json
import math
import sys
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from modelling import randomised

import minifm as mf
from minifm import cli
from minifm.errors import AnomalyError, ConfigError, UserError
from minifm.evaluation import (
    Request,
    WindowConfig,
    harness_model,
    perplexity,
    score,
    sliding_requests,
)
from minifm.evaluation.harness import Adapter
from minifm.generation import Sampling, generate
from minifm.hub import save_model
from minifm.models import GPT, GPTConfig, Llama, LlamaConfig
from minifm.text import Tokenizer

BYTES = Tokenizer.bytes()
WORDS = Tokenizer.train(["the cat sat on the mat and the dog " * 9, "ü é " * 5], 300)


def small_model(tokenizer=BYTES, seed=0, context=12):
    config = GPTConfig(vocabulary=tokenizer.vocabulary, context=context, layers=1, heads=2, width=8)
    return randomised(GPT(config), seed, 0.7)


def log_probabilities(model, ids):
    """[T, V] of the token after each, in float64 arithmetic on the plain forward's logits."""
    with mf.no_grad():
        x = model(np.array([ids])).numpy()[0].astype(np.float64)
    x = x - x.max(-1, keepdims=True)
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


REQUESTS = st.lists(st.tuples(st.lists(st.integers(0, 256), min_size=2, max_size=13),
                              st.integers(1, 13)).map(
    lambda pair: Request(pair[0], min(pair[1], len(pair[0])))), min_size=1, max_size=7)


# -- scores ----------------------------------------------------------------------------------------


@given(REQUESTS, st.integers(0, 99), st.integers(1, 8))
def test_a_score_is_the_sum_of_log_probabilities(backend, requests, seed, batch):
    model = small_model(seed=seed)
    for request, found in zip(requests, score(model, requests, batch=batch)):
        logp = log_probabilities(model, request.ids[:-1])
        places = range(request.start - 1, len(request.ids) - 1)
        wanted = sum(logp[i, request.ids[i + 1]] for i in places)
        assert found.log_likelihood == pytest.approx(wanted, rel=1e-4, abs=1e-4)
        assert found.tokens == len(request.ids) - request.start
        margins = [logp[i].max() - logp[i, request.ids[i + 1]] for i in places]
        if all(m == 0 or m > 1e-4 for m in margins):
            assert found.greedy == (max(margins, default=0) == 0)


@given(REQUESTS, st.integers(0, 99), st.integers(1, 8))
def test_the_batch_never_changes_a_score(backend, requests, seed, batch):
    model = small_model(seed=seed)
    alone = [score(model, [request])[0] for request in requests]
    together = score(model, requests, batch=batch)
    if mf.backend().name == "c":
        assert together == alone            # bitwise
    else:
        for one, other in zip(alone, together):
            assert one.log_likelihood == pytest.approx(other.log_likelihood, rel=1e-5, abs=1e-5)


def test_logits_beyond_what_is_held_at_a_time_change_no_score(backend, monkeypatch):
    model, requests = small_model(), [Request(list(range(12)), 1), Request([5, 6, 7], 2)]
    whole = score(model, requests)
    monkeypatch.setattr(sys.modules["minifm.evaluation.score"], "TOGETHER", 1)
    for one, other in zip(whole, score(model, requests)):
        assert one.log_likelihood == pytest.approx(other.log_likelihood, rel=1e-5)
        assert mf.backend().name != "c" or one == other


ALIKE = st.lists(st.tuples(st.integers(0, 8), st.lists(st.integers(0, 256), min_size=1, max_size=4),
                           st.integers(0, 4)), min_size=1, max_size=9)


@given(ALIKE, st.integers(1, 4), st.sampled_from([GPT, Llama]))
def test_what_requests_have_in_common_is_computed_once(backend, drawn, batch, kind):
    """Beginnings that grow and shrink from batch to batch; the scores are those of each alone."""
    common = {"vocabulary": 257, "context": 12, "layers": 2, "heads": 2, "width": 8}
    model = randomised(GPT(GPTConfig(**common)) if kind is GPT else
                       Llama(LlamaConfig(**common, key_heads=1, hidden=16, window=5)), 3, 0.7)
    requests = []
    for shared, rest, scored in drawn:
        ids = [*range(shared), *rest, 7]
        requests.append(Request(ids, min(max(len(ids) - scored, 1), len(ids))))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys.modules["minifm.evaluation.score"], "SHARED", 1)
        found = score(model, requests, batch=batch)
    for one, request in zip(found, requests):
        alone = score(model, [request])[0]
        if mf.backend().name == "c":
            assert one == alone             # bitwise
        assert one.log_likelihood == pytest.approx(alone.log_likelihood, rel=1e-5, abs=1e-5)


def test_a_common_beginning_costs_once(monkeypatch):
    model, seen = small_model(context=60), []
    features = model.features

    def counted(ids, **options):
        seen.append(np.size(ids))
        return features(ids, **options)

    monkeypatch.setattr(model, "features", counted)
    score(model, [Request([*range(40), i], 40) for i in range(9)], batch=3)
    assert sum(seen) == 39 + 9              # all but the last of the 40, once


def test_the_text_that_greedy_decoding_writes_is_greedy(backend):
    model = small_model(seed=4)
    new = generate(model, BYTES, ["abc"], strategy=Sampling(temperature=0), max_tokens=6)[0].tokens
    assert score(model, [Request([*b"abc", *new], 3)])[0].greedy
    new[-1] = (new[-1] + 1) % 256
    assert not score(model, [Request([*b"abc", *new], 3)])[0].greedy


@pytest.mark.parametrize("request_, said", [
    (Request([1, 2], 0), "the first token has none before it, got 0"),
    (Request([1, 2], 3), "start: expected 1 … 2"),
    (Request(list(range(14)), 1), "13 tokens before the last one do not fit"),
])
def test_requests_that_cannot_be_scored_are_refused(request_, said):
    with pytest.raises(ConfigError, match=said):
        score(small_model(), [request_])
    assert score(small_model(), []) == []


def test_a_model_whose_logits_are_no_numbers_is_an_anomaly():
    model = small_model()
    model.norm.bias.data[:] = np.nan
    with pytest.raises(AnomalyError, match="not finite"):
        score(model, [Request([1, 2, 3], 1)])


# -- windows ---------------------------------------------------------------------------------------


@given(st.lists(st.integers(0, 255), max_size=60), st.integers(1, 15), st.data())
def test_windows_score_every_token_once_with_enough_before_it(ids, context, data):
    stride = data.draw(st.integers(1, context))
    whole, scored = [256, *ids], []
    for request in sliding_requests(ids, context, stride, 256):
        assert len(request.ids) - 1 <= context
        place = len(scored) + 1                     # of the first scored token in `whole`
        assert request.ids[request.start :] == whole[place : place + len(request.ids)
                                                     - request.start]
        assert request.ids[: request.start] == whole[place - request.start : place]
        assert request.start >= min(place, context - stride + 1)
        scored += request.ids[request.start :]
    assert scored == ids


@given(st.lists(st.text("abü ", min_size=0, max_size=30), min_size=1, max_size=4),
       st.integers(1, 12), st.sampled_from([BYTES, WORDS]), st.data())
def test_perplexity_is_that_of_every_token_by_its_window(texts, context, tokenizer, data):
    stride, model = data.draw(st.integers(1, context)), small_model(tokenizer)
    nats = tokens = 0
    for text in texts:
        ids = [tokenizer.end_of_text, *tokenizer.encode(text).tolist()]
        for place in range(1, len(ids)):
            window = 0 if place <= context else -(-(place - context) // stride)
            end = min(context + window * stride, len(ids) - 1)
            before = ids[max(0, end - context) : place]
            nats -= log_probabilities(model, before)[-1, ids[place]]
            tokens += 1
    config = WindowConfig(context=context, stride=stride, batch=2)
    if not tokens:
        with pytest.raises(ConfigError, match="no text to score"):
            perplexity(model, tokenizer, texts, config)
        return
    found = perplexity(model, tokenizer, texts, config)
    assert found.nats == pytest.approx(nats, rel=1e-4)
    assert (found.tokens, found.documents) == (tokens, sum(map(bool, texts)))
    assert found.bytes == sum(len(text.encode()) for text in texts)
    assert found.perplexity == pytest.approx(math.exp(nats / tokens), rel=1e-3)
    assert found.bits_per_byte == pytest.approx(nats / math.log(2) / found.bytes, rel=1e-4)


def test_an_evaluation_may_be_cut_short():
    model = small_model()
    found = perplexity(model, BYTES, ["abc", "defgh", "xyz"], WindowConfig(tokens=5))
    assert (found.tokens, found.bytes, found.documents) == (5, 5, 2)
    assert found.nats == pytest.approx(perplexity(model, BYTES, ["abc", "de"]).nats, rel=1e-6)


@pytest.mark.parametrize("config, said", [
    (WindowConfig(context=13), "context: expected at most the model's 12, got 13"),
    (WindowConfig(context=4, stride=5), "stride: expected at most the context of 4, got 5"),
])
def test_windows_that_the_model_cannot_hold_are_refused(config, said):
    with pytest.raises(ConfigError, match=said):
        perplexity(small_model(), BYTES, ["abc"], config)


# -- the harness -----------------------------------------------------------------------------------


def asked(*args):
    """As much of the harness's Instance as its models look at."""
    return SimpleNamespace(args=args)


def test_a_continuation_is_encoded_together_with_its_context():
    adapter = Adapter(small_model(WORDS), WORDS)
    request = adapter.request("the cat ", "sat")            # the space moves behind the context
    assert WORDS.decode(request.ids[: request.start]) == b"the cat"
    assert WORDS.decode(request.ids[request.start :]) == b" sat"
    assert request.ids == WORDS.encode("the cat sat").tolist()
    alone = adapter.request("", "the cat")
    assert alone.ids == [WORDS.end_of_text, *WORDS.encode("the cat")] and alone.start == 1
    before, whole = WORDS.encode("the c").tolist(), WORDS.encode("the cats xyz").tolist()
    straddling = adapter.request("the c", "ats xyz")        # " cat" is one token, across the two
    assert whole[: len(before)] != before
    assert straddling == Request(whole, len(before))
    with pytest.raises(ConfigError, match="nothing of 'at' is left to score"):
        adapter.request("the c", "at")


def test_a_long_context_loses_its_beginning_and_a_long_continuation_is_refused():
    adapter = Adapter(small_model(), BYTES)
    request = adapter.request("x" * 30 + "ab", "cd")
    assert bytes(request.ids) == b"x" * 9 + b"abcd" and request.start == 11
    with pytest.raises(ConfigError, match="a continuation of 13 tokens does not fit"):
        adapter.request("a", "b" * 13)


def test_loglikelihoods_are_scores(backend):
    model = small_model(seed=3)
    adapter = Adapter(model, BYTES, batch=2)
    pairs = [("ab", "cd"), ("", "x"), ("a ", "b"), ("abc", "é")]
    found = adapter.loglikelihood([asked(*pair) for pair in pairs])
    for (context, continuation), (value, greedy) in zip(pairs, found):
        ids = [*(context or "").encode(), *continuation.encode()]
        ids = ids if context else [256, *ids]
        start = len(ids) - len(continuation.encode()) - context.endswith(" ")
        logp = log_probabilities(model, ids[:-1])
        assert value == pytest.approx(sum(logp[i - 1, ids[i]] for i in range(start, len(ids))),
                                      rel=1e-4)
        assert isinstance(value, float) and isinstance(greedy, bool)


def test_rolling_loglikelihoods_are_those_of_windows_side_by_side():
    model, text = small_model(seed=5), "abcdefghijklmnopqrstuvwxyz"
    found = Adapter(model, BYTES).loglikelihood_rolling([asked(text), asked("é"), asked("")])
    config = WindowConfig(stride=12)
    assert found[0] == pytest.approx(-perplexity(model, BYTES, [text], config).nats, rel=1e-6)
    assert found[1] == pytest.approx(-perplexity(model, BYTES, ["é"], config).nats, rel=1e-6)
    assert found[2] == 0


def test_texts_are_written_until_a_string_comes(backend):
    model = small_model(seed=6, context=40)
    adapter = Adapter(model, BYTES, batch=2, max_tokens=9)
    greedy = {"strategy": Sampling(temperature=0), "max_tokens": 9}
    whole = generate(model, BYTES, ["ab"], **greedy)[0].text
    stop = whole[3:5]
    found = adapter.generate_until([
        asked("ab", {"until": [stop]}), asked("cde", {"until": [""], "max_gen_toks": 4}),
        asked("ab", {"until": stop, "do_sample": False, "temperature": 0.7}),
        asked("x" * 60 + "ab", {"until": []}),
        asked("ab", {"do_sample": True, "temperature": 0.5, "top_k": 1})])
    assert found[0] == found[2] == whole[: whole.find(stop)]
    assert found[1] == generate(model, BYTES, ["cde"], strategy=Sampling(temperature=0),
                                max_tokens=4)[0].text
    assert found[3] == generate(model, BYTES, ["x" * 29 + "ab"], **greedy)[0].text
    assert found[4] == whole
    with pytest.raises(ConfigError, match="'num_beams' is not supported"):
        adapter.generate_until([asked("a", {"num_beams": 2})])
    with pytest.raises(ConfigError, match="max_gen_toks: 40 tokens leave nothing"):
        adapter.generate_until([asked("a", {"max_gen_toks": 40})])


def test_the_harness_is_imported_when_it_is_used(monkeypatch):
    monkeypatch.setitem(sys.modules, "lm_eval.api.model", None)
    with pytest.raises(UserError, match="install it by pip install minifm\\[eval\\]"):
        harness_model(small_model(), BYTES)
    module = ModuleType("lm_eval.api.model")
    module.LM = type("LM", (), {"__init__": lambda self: setattr(self, "initialised", True)})
    monkeypatch.setitem(sys.modules, "lm_eval", ModuleType("lm_eval"))
    monkeypatch.setitem(sys.modules, "lm_eval.api", ModuleType("lm_eval.api"))
    monkeypatch.setitem(sys.modules, "lm_eval.api.model", module)
    model = harness_model(small_model(), BYTES, batch=3)
    assert isinstance(model, module.LM) and model.initialised and model.batch == 3
    assert len(model.loglikelihood([asked("a", "b")])) == 1


# -- the command line ------------------------------------------------------------------------------


@pytest.fixture
def saved(tmp_path):
    """A directory with a small model, and one with another."""
    for name, seed in (("model", 0), ("other", 1)):
        (tmp_path / name).mkdir()
        save_model(small_model(seed=seed, context=40), tmp_path / name, BYTES)
    (tmp_path / "text.txt").write_text("A few lines\n\nof text.\n" * 9)
    return tmp_path


def run(capsys, *words):
    status = cli.main([str(word) for word in words])
    return (status, *capsys.readouterr())


def test_evaluate_prints_a_table_or_json(saved, capsys):
    status, out, err = run(capsys, "evaluate", saved / "model", "--data", saved / "text.txt",
                           "--stride", 10, "--json")
    found = json.loads(out)
    assert status == 0 and found["stride"] == 10 and found["bytes"] == 198
    assert found["perplexity"] == pytest.approx(math.exp(found["nats"] / found["tokens"]))
    table = run(capsys, "evaluate", saved / "model", "--data", saved / "text.txt", "--stride", 10)
    assert f"bits per byte   {found['bits_per_byte']:.4f}" in table[1]
    status, out, err = run(capsys, "evaluate", saved / "model", "--data", saved / "text.txt",
                           "--stride", 99)
    assert status == 2 and out == "" and "stride: expected at most the context of 40" in err


@pytest.mark.parametrize("flags, check", [
    (["--beams", "3", "--length-penalty", "0.5"], lambda out, err: len(out) > 3),
    (["--contrastive", "0.6", "--top-k", "3"], lambda out, err: len(out) > 3),
    (["--draft", "OTHER", "--draft-tokens", "2", "--temperature", "0.5"],
     lambda out, err: "proposed tokens were accepted (" in err),
    (["--regex", "[0-9]{1,3}"], lambda out, err: out[2:-1].isdigit()),
    (["--choices", "yes", "no"], lambda out, err: out[2:-1] in ("yes", "no")),
    (["--json-schema", "SCHEMA"], lambda out, err: json.loads(out[2:]) in (True, None)),
    (["--choices", "y" * 30], lambda out, err: "the text is not whole" in err),
])
def test_generate_writes_as_it_is_told(saved, capsys, flags, check):
    (saved / "schema.json").write_text('{"enum": [true, null]}')
    places = {"OTHER": saved / "other", "SCHEMA": saved / "schema.json"}
    status, out, err = run(capsys, "generate", saved / "model", "ab", "--max-tokens", 12,
                           *(places.get(flag, flag) for flag in flags))
    assert status == 0 and out.startswith("ab") and check(out, err), (out, err)


@pytest.mark.parametrize("flags, said", [
    (["--beams", "2", "--temperature", "1"], "temperature: has no meaning with beams"),
    (["--beams", "2", "--draft", "x"], "beams and draft: expected one of them at most"),
    (["--regex", "a", "--choices", "b"], "regex and choices: expected one of them at most"),
    (["--length-penalty", "1"], "length_penalty: needs beams"),
    (["--draft-tokens", "1"], "draft_tokens: needs draft"),
    (["--contrastive", "0.5", "--min-p", "0.1"], "min_p: has no meaning with contrastive"),
    (["--contrastive", "2"], "alpha: expected at least 0 and at most 1"),
    (["--regex", "(a"], "a ( without its )"),
    (["--regex", "a", "--stop", "b"], "stop: a text with a constraint"),
    (["--json-schema", "missing.json"], "missing.json: cannot be read"),
    (["--draft", "WORDS"], "has another tokenizer than the model"),
])
def test_generate_refuses_what_does_not_go_together(saved, capsys, flags, said):
    (saved / "words").mkdir()
    save_model(small_model(WORDS, context=40), saved / "words", WORDS)
    flags = [saved / "words" if flag == "WORDS" else flag for flag in flags]
    status, out, err = run(capsys, "generate", saved / "model", "ab", *flags)
    assert status == 2 and out == "" and said in err and err.count("\n") == 1, err
