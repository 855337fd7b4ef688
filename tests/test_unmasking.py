"""Writing by diffusion: what samplers draw, by enumeration of all that is chance; what stays."""

import itertools
import math
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from modelling import randomised
from test_absorbing import Table, joint

from minifm.diffusion.absorbing import SCHEDULES, posterior
from minifm.errors import AnomalyError, ConfigError
from minifm.generation import Sampling, Unmasking, generate, unmasking
from minifm.generation.generate import written
from minifm.generation.job import Job
from minifm.generation.unmasking import Canvas, Filler, left
from minifm.models import GPT, Bert, BertConfig, GPTConfig
from minifm.rng import Rng
from minifm.tensor import Tensor
from minifm.text import Tokenizer
from minifm.text.tokenizer import FIRST, MASK, PADDING

K = 3                               # tokens 0 … K - 1; then the marks
MARK_FIRST, MARK_END, MARK_MASK = K, K + 1, K + 2
MARKS = SimpleNamespace(first=MARK_FIRST, end_of_text=MARK_END, separator=MARK_END, mask=MARK_MASK,
                        vocabulary=K + 3, spellings=[b"a", b"b", b"c", None, None, None])


# -- what is drawn, by enumeration ----------------------------------------------------------------


class Chance:
    """All that may happen in a program that asks `pick` which way to go: it is run again and again,
    each time another way, depth first."""

    def __init__(self):
        self.ways, self.place, self.probability = [], 0, 1.0

    def pick(self, probabilities):
        if self.place == len(self.ways):
            self.ways.append([0, [i for i, p in enumerate(probabilities) if p > 0]])
        turn, possible = self.ways[self.place]
        self.place += 1
        self.probability *= probabilities[possible[turn]]
        return possible[turn]

    def every(self, run):
        """Yield (probability, what `run` returns) for all that may happen."""
        while True:
            self.place, self.probability = 0, 1.0
            result = run()
            yield self.probability, result
            while self.ways and self.ways[-1][0] == len(self.ways[-1][1]) - 1:
                self.ways.pop()
            if not self.ways:
                return
            self.ways[-1][0] += 1


class Toss:
    """A number in [0, 1) that may be anything: `toss < p` with probability p."""

    def __init__(self, chance):
        self.chance = chance

    def __lt__(self, p):
        return self.chance.pick([float(p), 1 - float(p)]) == 0


class Text(Table):
    """A Table between two marks, as a network is seen by a Filler."""

    config = SimpleNamespace(vocabulary=K + 3, context=5)

    def features(self, ids, rng=None, recompute=False):
        inner = np.where(ids[:, 1:-1] == MARK_MASK, K, ids[:, 1:-1])
        out = np.full((*ids.shape, K + 3), -1e4)
        out[:, 1:-1, :K] = super().features(inner).data
        return Tensor(out)


def drawn(monkeypatch, model, strategy, prompt=(), count=3, suffix=()):
    """{text: its probability} of all texts that the strategy may write."""
    chance, found = Chance(), {}

    def shuffled(n):
        rest = list(range(n))
        return np.array([rest.pop(chance.pick([1 / len(rest)] * len(rest))) for _ in range(n)], int)

    monkeypatch.setattr(unmasking, "draw", lambda logits, *_: chance.pick(
        unmasking.probabilities(logits)))
    monkeypatch.setattr(Canvas, "rng", lambda *_: SimpleNamespace(permutation=shuffled))
    monkeypatch.setattr(Canvas, "uniform", lambda *_: Toss(chance))

    def run():
        filler = Filler(model, MARKS, [prompt], suffix)
        job = Job(filler, filler.prompts, count, Rng(0), set())
        return tuple(step[0] for step in written(job, strategy))

    for probability, result in chance.every(run):
        found[result] = found.get(result, 0) + probability
    assert sum(found.values()) == pytest.approx(1, rel=1e-12)
    return found


def assert_same_distribution(found, expected):
    """`expected` [K] * n."""
    for x in itertools.product(range(K), repeat=expected.ndim):
        assert found.get(x, 0) == pytest.approx(expected[x], rel=1e-11, abs=1e-14), x


@pytest.mark.parametrize("block", [None, 1, 2])
@pytest.mark.parametrize("seed", range(2))
def test_one_token_a_step_draws_the_distribution_itself(monkeypatch, seed, block):
    p = joint(seed, 3)
    assert_same_distribution(drawn(monkeypatch, Text(p, K), Unmasking(block=block)), p)


@pytest.mark.parametrize("prompt, suffix", [((1,), ()), ((), (2,)), ((0,), (2,))])
def test_what_stands_around_is_conditioned_on(monkeypatch, prompt, suffix):
    p = joint(5, 3)
    count = 3 - len(prompt) - len(suffix)
    given_ = p[(*prompt, *[slice(None)] * count, *suffix)]
    found = drawn(monkeypatch, Text(p, K), Unmasking(), prompt, count, suffix)
    assert_same_distribution(found, given_ / given_.sum())


def test_what_is_behind_is_text_that_nothing_is_known_of(monkeypatch):
    p = joint(6, 3)
    assert_same_distribution(drawn(monkeypatch, Text(p, K), Unmasking(), count=2), p.sum(2))


def test_all_in_one_step_are_drawn_as_if_they_did_not_depend_on_each_other(monkeypatch):
    p = joint(7, 3)
    alone = p.sum((1, 2))[:, None, None] * p.sum((0, 2))[:, None] * p.sum((0, 1))
    for order in ("random", "ancestral", "confidence"):
        found = drawn(monkeypatch, Text(p, K), Unmasking(steps=1, order=order))
        assert_same_distribution(found, alone)


def exact_ancestral(model, kept):
    """The distribution after the steps of posterior(), by a sum over all states."""
    states = {(K,) * 3: 1.0}
    for t, s in itertools.pairwise(kept):
        after = {}
        for state, probability in states.items():
            guesses = np.exp(model.conditionals(state))             # [3, K]
            guesses = np.pad(guesses / guesses.sum(1, keepdims=True), ((0, 0), (0, 1)))
            q = posterior(np.array(state), guesses, s, t, mask=K)   # [3, K + 1]
            for new in itertools.product(*[np.flatnonzero(row).tolist() for row in q]):
                chance = probability * math.prod(q[range(3), new])
                after[new] = after.get(new, 0) + chance
        states = after
    return states


@pytest.mark.parametrize("name", SCHEDULES)
def test_ancestral_steps_are_draws_of_the_posterior(monkeypatch, name):
    p, schedule = joint(8, 3), SCHEDULES[name]
    strategy = Unmasking(steps=3, order="ancestral", schedule=name)
    expected = exact_ancestral(Table(p, K), [schedule.kept(t) for t in (1, 2 / 3, 1 / 3, 0)])
    found = drawn(monkeypatch, Text(p, K), strategy)
    for x, probability in expected.items():
        assert found[x] == pytest.approx(probability, rel=1e-9, abs=1e-12)


def test_ancestral_sampling_converges_to_the_distribution_in_first_order():
    """Two tokens come in one step with a chance of 1/steps: half of it for twice as many."""
    p = joint(9, 3)
    errors = []
    for steps in (8, 16, 32):
        found = exact_ancestral(Table(p, K), np.linspace(0, 1, steps + 1))
        errors.append(sum(abs(found[x] - p[x]) for x in itertools.product(range(K), repeat=3)))
    assert errors[0] > 0.02
    for before, after in itertools.pairwise(errors):
        assert before / after == pytest.approx(2, rel=0.1)


def test_the_surest_tokens_are_kept_first(monkeypatch):
    """The likeliest token of the surest place, then, with it seen, of the other places."""
    p = joint(10, 3)
    strategy = Unmasking(order="confidence", sampling=Sampling(temperature=0))
    seen, slots = p, [slice(None)] * 3
    for _ in range(3):
        seen = p[tuple(slots)] if any(s != slice(None) for s in slots) else p
        rest = [i for i, s in enumerate(slots) if s == slice(None)]
        marginals = {place: (m := seen.sum(tuple(a for a in range(len(rest)) if a != axis)))
                     / m.sum() for axis, place in enumerate(rest)}
        best = max(rest, key=lambda place: marginals[place].max())
        slots[best] = int(marginals[best].argmax())
    filler = Filler(Text(p, K), MARKS, [()])
    job = Job(filler, filler.prompts, 3, Rng(0), set())
    assert [step[0] for step in written(job, strategy)] == slots


@given(n=st.integers(0, 40), steps=st.integers(1, 60), name=st.sampled_from(sorted(SCHEDULES)))
def test_every_mask_is_undone_once(n, steps, name):
    counts = [left(n, SCHEDULES[name], t) for t in np.arange(steps, -1, -1) / steps]
    assert counts[0] == n and counts[-1] == 0
    assert all(a >= b for a, b in itertools.pairwise(counts))
    if name == "linear" and steps == n:
        assert counts == list(range(n, -1, -1))


# -- a network's texts ----------------------------------------------------------------------------

BYTES = Tokenizer.bytes((FIRST, PADDING, MASK))
SHAPE = BertConfig(vocabulary=BYTES.vocabulary, context=24, layers=2, heads=2, width=16,
                   padding=BYTES.padding, absorbing=True, layout="roberta", types=1)
WAYS = st.builds(Unmasking, steps=st.sampled_from([None, 3, 5]), block=st.sampled_from([None, 4]),
                 order=st.sampled_from(unmasking.ORDERS),
                 schedule=st.sampled_from(sorted(SCHEDULES)),
                 sampling=st.sampled_from([Sampling(), Sampling(temperature=0),
                                           Sampling(top_k=3, repetition_penalty=1.2)]))


def network(seed=0):
    return randomised(Bert(SHAPE), seed)


def texts(prompts, strategy, count=9, **choice):
    return [c.tokens for c in generate(network(), BYTES, prompts, strategy=strategy,
                                       max_tokens=count, **choice)]


@settings(max_examples=8)
@given(strategy=WAYS, seed=st.integers(0, 99))
def test_one_seed_is_one_text_whatever_it_is_written_beside(backend, strategy, seed):
    prompts = ["ab", "", "a longer one"]
    first = texts(prompts, strategy, seed=seed)
    assert first == texts(prompts, strategy, seed=seed)
    # The first prompt alone is the first row again; the network's rows do not see each other.
    assert texts(prompts[:1], strategy, seed=seed) == first[:1]
    for tokens in first:
        assert all(BYTES.spellings[i] is not None or i == BYTES.end_of_text for i in tokens)
        assert 1 <= len(tokens) <= 9
        assert len(tokens) == 9 or tokens[-1] == BYTES.end_of_text


@settings(max_examples=8)
@given(strategy=WAYS, suffix=st.sampled_from([b"xyz", b"\xff"]))
def test_what_is_not_masked_stays(strategy, suffix):
    seen = []

    class Watched(Bert):
        def features(self, ids, **inputs):
            seen.append(ids.copy())
            return super().features(ids, **inputs)

    model = Watched(SHAPE)
    model.__dict__.update(vars(network()))
    done = generate(model, BYTES, ["pq"], strategy=strategy, max_tokens=8, suffix=suffix)
    end = 3 + 8
    before, behind = np.array([BYTES.first, *BYTES.encode("pq")]), BYTES.encode(suffix)
    for ids in seen:
        np.testing.assert_array_equal(ids[0, :3], before)
        np.testing.assert_array_equal(ids[0, end : end + len(suffix)], behind)
        assert (ids[0, end + len(suffix) : -1] == BYTES.mask).all()
        assert ids[0, -1] == BYTES.separator
    assert (seen[0][0, 3:end] == BYTES.mask).all()
    # Text does not end before what stands behind it.
    assert len(done[0].tokens) == 8 and BYTES.end_of_text not in done[0].tokens
    if strategy.steps is None and strategy.schedule == "linear" and strategy.order != "ancestral":
        assert len(seen) == 8


def test_marks_are_no_text_however_likely():
    model = randomised(Bert(replace(SHAPE, vocabulary=SHAPE.vocabulary + 5)))
    bias = model.masked_head.bias.data
    bias[list(BYTES.specials)] = bias[BYTES.vocabulary :] = 99
    bias[BYTES.end_of_text] = 50                    # likelier than all that is text
    for order in unmasking.ORDERS:
        strategy = Unmasking(order=order)
        done = generate(model, BYTES, ["a"], strategy=strategy, max_tokens=6)[0]
        assert (done.tokens, done.reason, done.text) == ([BYTES.end_of_text], "end", "")
        done = generate(model, BYTES, ["a"], strategy=strategy, max_tokens=6, suffix="b")[0]
        assert len(done.tokens) == 6 and done.reason == "length"
        assert all(BYTES.spellings[token] is not None for token in done.tokens)


def test_blocks_are_written_from_left_to_right():
    pieces = []
    strategy = Unmasking(block=3, steps=3)
    done = generate(network(), BYTES, ["ab"], strategy=strategy, max_tokens=8, seed=1,
                    on_text=lambda row, piece: pieces.append(piece))
    assert "".join(pieces) == done[0].text
    # The first block does not know of those behind it.
    assert texts(["ab"], Unmasking(block=3, steps=1), 3, seed=1)[0] == done[0].tokens[:3]


def test_a_full_row_ends_the_text_and_stop_strings_do():
    done = generate(network(), BYTES, ["a" * 15], strategy=Unmasking(), max_tokens=50, seed=3)[0]
    assert done.reason == "context" and len(done.tokens) == 24 - 2 - 15
    stop = done.text[2]
    again = generate(network(), BYTES, ["a" * 15], strategy=Unmasking(), max_tokens=50, seed=3,
                     stop=[stop])[0]
    assert again.reason == "stop" and again.text == done.text[: done.text.index(stop)]


@pytest.mark.parametrize("choice, message", [
    ({"strategy": Sampling()}, "strategy: expected no such setting for a model that"),
    ({"cache": "bf16"}, "cache: expected no such setting"),
    ({"prompts": ["a" * 23]}, "the prompt has 24 tokens, and the model's context of 23"),
    ({"suffix": "a" * 22}, "suffix: has 22 tokens, and rows of 24"),
    ({"strategy": Unmasking(block=2, steps=3), "max_tokens": 8}, "steps: expected one at least for "
     "each of 4 blocks, got 3"),
    ({"tokenizer": Tokenizer.bytes()}, "tokenizer: has no first token"),
    ({"model": GPT(GPTConfig(vocabulary=300, context=8, layers=1, heads=1, width=8), Rng(0)),
      "strategy": Unmasking()}, "strategy: expected a model that writes by diffusion, not a GPT"),
    ({"model": GPT(GPTConfig(vocabulary=300, context=8, layers=1, heads=1, width=8), Rng(0)),
      "suffix": "b"}, "suffix: expected a model that writes by diffusion"),
])
def test_what_makes_no_sense_is_refused(choice, message):
    given_ = {"model": network(), "tokenizer": BYTES, "prompts": ["ab"], "max_tokens": 4} | choice
    with pytest.raises(ConfigError, match=message):
        generate(**given_)


@pytest.mark.parametrize("wrong, message", [
    ({"order": "left"}, "order: expected one of random, ancestral, confidence"),
    ({"steps": 0}, "steps: expected at least 1"), ({"schedule": "x"}, "schedule: expected one of"),
    ({"block": 0}, "block: expected at least 1"),
    ({"steps": 10**10}, "steps: expected .*at most 1048576, got"),
])
def test_impossible_settings_are_refused(wrong, message):
    with pytest.raises(ConfigError, match=message):
        Unmasking(**wrong)


def test_a_damaged_network_is_an_anomaly():
    model = network()
    model.masked_head.bias.data[3] = np.nan
    with pytest.raises(AnomalyError, match="logits are not finite"):
        generate(model, BYTES, ["a"], max_tokens=2)
