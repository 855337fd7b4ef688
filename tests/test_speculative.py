"""Speculative decoding: what is written is distributed as the model alone would write it, exactly.

`every_way` runs the real code over all outcomes of its random decisions, each with its
probability; so the distribution of texts is a sum, not a sample.
"""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from modelling import in_float64, randomised

import minifm as mf
from minifm.errors import ConfigError
from minifm.generation import Regex, Sampling, Speculative, generate, speculative, tokens
from minifm.generation.generate import written
from minifm.generation.job import Job
from minifm.generation.sampling import distribution
from minifm.models import GPT, GPTConfig, Llama, LlamaConfig
from minifm.text import Tokenizer

BYTES = Tokenizer.bytes()


def gpt(vocabulary, seed=0, width=8, context=24, std=0.7):
    config = GPTConfig(vocabulary=vocabulary, context=context, layers=1, heads=2, width=width)
    return randomised(GPT(config), seed, std)


def write(model, prompts, strategy, max_tokens, seed=0, guide=None, finished=()):
    job = Job(model, prompts, max_tokens, mf.Rng(seed), finished, guide=guide)
    found = [[] for _ in prompts]
    for step in written(job, strategy):
        for row, token in step.items():
            found[row].append(token)
    return found


# -- the distribution of texts ---------------------------------------------------------------------


class Branching:
    """Stands in for `choose` and `accepts`: follows a script of decisions, and notes what else
    each of them could have been, and how likely."""

    def __init__(self, script):
        self.script, self.taken, self.probability = script, [], 1.0

    def decide(self, outcomes):
        """The outcome, of {outcome: probability} with those above 0."""
        outcomes = {o: p for o, p in outcomes.items() if p > 0}
        place = self.script[len(self.taken)] if len(self.taken) < len(self.script) else 0
        self.taken.append((place, len(outcomes)))
        outcome = list(outcomes)[place]
        self.probability *= outcomes[outcome]
        return outcome

    def choose(self, p, uniform):
        return self.decide({token: float(x) for token, x in enumerate(p)})

    def accepts(self, p, q, uniform):
        ratio = min(1.0, float(p / q))
        return self.decide({True: ratio, False: 1 - ratio})


def every_way(run, monkeypatch):
    """[(result of run(), its probability)] over all outcomes of its decisions."""
    script, found = [], []
    while script is not None:
        branching = Branching(script)
        monkeypatch.setattr(speculative, "choose", branching.choose)
        monkeypatch.setattr(speculative, "accepts", branching.accepts)
        found.append((run(), branching.probability))
        taken = branching.taken
        while taken and taken[-1][0] == taken[-1][1] - 1:
            taken.pop()
        script = [place for place, _ in taken[:-1]] + [taken[-1][0] + 1] if taken else None
    return found


@pytest.mark.parametrize("vocabulary, length, k, sampling", [
    (2, 3, 1, Sampling()), (2, 3, 2, Sampling()), (2, 3, 4, Sampling(temperature=0.7)),
    (3, 2, 1, Sampling()), (3, 2, 3, Sampling(repetition_penalty=1.5)),
    (4, 2, 2, Sampling(top_k=2)), (3, 2, 2, Sampling(top_p=0.8)),
])
def test_texts_have_the_probabilities_of_the_model_alone(monkeypatch, vocabulary, length, k,
                                                         sampling):
    """Through the whole algorithm: drafts, caches, rewinding; to 1e-12."""
    prompt = [1, 0, 1]
    with mf.use("numpy"), mf.no_grad():
        model, draft = in_float64(gpt(vocabulary, 1)), in_float64(gpt(vocabulary, 2, width=4))
        found = {}
        ways = every_way(lambda: tuple(write(model, [prompt], Speculative(draft, k, sampling),
                                             length)[0]), monkeypatch)
        for text, probability in ways:
            found[text] = found.get(text, 0) + probability
        assert len(ways) > len(found)       # more than one way leads to a text
        for text in itertools.product(range(vocabulary), repeat=length):
            wanted = 1.0
            for n, token in enumerate(text):
                ids = [*prompt, *text[:n]]
                logits = model(np.array([ids])).numpy()[0, -1]
                wanted *= distribution(logits, ids, sampling)[token]
            assert found.get(text, 0) == pytest.approx(wanted, abs=1e-12), text


@given(st.integers(2, 9), st.integers(0, 9999))
def test_one_token_is_distributed_as_the_model_says(n, seed):
    """p = q min(1, p/q) + P(refused) · what p has beyond q."""
    random = np.random.default_rng(seed)
    p, q = (random.dirichlet(np.full(n, 0.5)) * (random.random(n) < 0.8) for _ in range(2))
    p, q = ((x + 1e-300) / (x + 1e-300).sum() for x in (p, q))
    accepted = np.minimum(p, q)
    refused = 1 - accepted.sum()
    rest = speculative.beyond(p, q) if refused > 1e-15 else 0
    np.testing.assert_allclose(accepted + refused * rest, p, atol=1e-14)


@given(st.floats(0, 1), st.floats(1e-9, 1), st.integers(1, 2000))
def test_a_proposal_is_accepted_in_the_right_share_of_all_cases(p, q, n):
    kept = sum(speculative.accepts(p, q, (i + 0.5) / n) for i in range(n))
    assert abs(kept - n * min(1, p / q)) <= 1
    assert not speculative.accepts(0.0, q, 0.0)     # what the model forbids never comes


# -- greedy ----------------------------------------------------------------------------------------


@given(st.lists(st.lists(st.integers(0, 10), min_size=1, max_size=6), min_size=1, max_size=3),
       st.integers(1, 6), st.integers(0, 999), st.sampled_from([None, "bf16"]),
       st.sampled_from(["other", "itself", "near"]))
def test_greedy_is_greedy_whatever_the_draft(backend, prompts, k, seed, format, kind):
    model = gpt(11, seed)
    draft = {"other": lambda: gpt(11, seed + 1, width=4), "itself": lambda: model,
             "near": lambda: randomised(gpt(11, seed), seed, 0.69)}[kind]()
    greedy, strategy = Sampling(temperature=0), None
    strategy = Speculative(draft, k, greedy)
    alone = [[] for _ in prompts]
    for step in tokens(model, prompts, greedy, 12, mf.Rng(0), cache=format):
        for row, token in step.items():
            alone[row].append(token)
    job = Job(model, prompts, 12, mf.Rng(0), cache=format)
    found = [[] for _ in prompts]
    for step in written(job, strategy):
        for row, token in step.items():
            found[row].append(token)
    if mf.backend().name == "c":            # the same bits, so the same tokens, even in a tie
        assert found == alone
        if kind == "itself":
            assert strategy.accepted == strategy.proposed > 0
    else:
        assert [len(row) for row in found] == [len(row) for row in alone]
        for prompt, ours, theirs in zip(prompts, found, alone):
            _same_until_a_tie(model, prompt, ours, theirs)


def _same_until_a_tie(model, prompt, ours, theirs):
    for n, (one, other) in enumerate(zip(ours, theirs)):
        if one != other:
            with mf.no_grad():
                x = model(np.array([[*prompt, *ours[:n]]])).numpy()[0, -1]
            assert abs(x[one] - x[other]) < 1e-2
            return


def test_a_window_of_attention_is_kept_when_the_cache_is_rewound():
    config = LlamaConfig(vocabulary=11, context=40, layers=2, heads=2, key_heads=1, width=8,
                         hidden=12, window=4)
    model, greedy = randomised(Llama(config)), Sampling(temperature=0)
    alone = [step[0] for step in tokens(model, [[1, 2, 3]], greedy, 30, mf.Rng(0))]
    found = write(model, [[1, 2, 3]], Speculative(gpt(11, context=40), 3, greedy), 30)[0]
    if mf.backend().name == "c":
        assert found == alone
    else:
        _same_until_a_tie(model, [1, 2, 3], found, alone)


# -- its life --------------------------------------------------------------------------------------


def test_the_text_of_a_row_depends_on_no_neighbour_and_on_the_seed(backend):
    model, draft = gpt(30, 1, std=0.3), gpt(30, 2, width=4, std=0.3)
    prompts = [[1, 2, 3, 4], [5], [6, 7]]
    alone = [step[0] for step in tokens(model, prompts[:1], Speculative(draft, 3), 15, mf.Rng(7))]
    assert write(model, prompts, Speculative(draft, 3), 15, seed=7)[0] == alone
    assert write(model, prompts[:1], Speculative(draft, 3), 15, seed=8)[0] != alone


def test_rows_of_unlike_lengths_fill_their_contexts(backend):
    model, draft = gpt(9, context=8), gpt(9, 1, width=4, context=8)
    for k in (1, 2, 5, 20):
        found = write(model, [[1, 2, 3, 4, 5, 6], [7], [1, 2, 3]], Speculative(draft, k), 20)
        assert [len(new) for new in found] == [2, 7, 5]


@pytest.mark.parametrize("k", [1, 3, 8])
def test_no_more_than_max_tokens_come(backend, k):
    model = gpt(9)
    strategy = Speculative(model, k, Sampling(temperature=0))       # all is accepted
    assert [len(new) for new in write(model, [[1], [2, 3]], strategy, 5)] == [5, 5]


def test_a_finished_row_writes_no_more_and_the_others_go_on(backend):
    model, finished, found = gpt(9, 4), set(), [[], []]
    job = Job(model, [[1], [2, 3]], 10, mf.Rng(0), finished)
    for step in written(job, Speculative(model, 4)):
        for row, token in step.items():
            found[row].append(token)
        finished.add(0)
    assert [len(new) for new in found] == [1, 10]


def test_a_constraint_holds_for_proposals_too(backend):
    model, draft = gpt(BYTES.vocabulary, 1, context=40), gpt(BYTES.vocabulary, 2, 4, context=40)
    strategy = Speculative(draft, 3)
    done = generate(model, BYTES, ["a", "bc"], strategy=strategy, constraint=Regex("[ab]{3,20}!"),
                    max_tokens=30)
    for completion in done:
        assert completion.reason == "end" and set(completion.text) <= set("ab!")
    assert strategy.proposed >= strategy.accepted > 0


@pytest.mark.parametrize("make, said", [
    (lambda: Speculative(gpt(9), 0), "draft_tokens: expected at least 1, got 0"),
    (lambda: write(gpt(9), [[1]], Speculative(gpt(8)), 3),
     "draft: expected a model that knows the same 9 tokens, got one that knows 8"),
    (lambda: write(gpt(9), [[1, 2]], Speculative(gpt(9, context=6)), 30),
     "draft: its context of 6 tokens is too short for texts of up to 24"),
])
def test_a_draft_that_cannot_serve_is_refused(make, said):
    with pytest.raises(ConfigError, match=said):
        make()
