"""Masked diffusion of tokens: the process and its posterior, the bound, and a run that learns."""

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from modelling import (
    assert_pieces_train_as_the_whole,
    assert_recomputation_trains_to_the_same_bits,
    assert_resumed_run_is_whole,
    randomised,
)

import minifm as mf
from minifm.diffusion import absorbing
from minifm.diffusion.absorbing import (
    SCHEDULES,
    bound,
    hidden_losses,
    noised,
    noised_to,
    posterior,
    spread_counts,
    undone,
    weight,
)
from minifm.errors import ConfigError, ShapeError
from minifm.models import Bert, BertConfig
from minifm.tensor import Tensor
from minifm.text.noising import NoisedBatches
from minifm.text.packing import HeldOutBatches, TrainingBatches
from minifm.training.config import TrainConfig
from minifm.training.objectives import AbsorbingDiffusion
from minifm.training.trainer import Trainer

FIRST, MASK, EDGE, V = 0, 1, 2, 23
SEEDS = st.integers(0, 2**32)
SIGMAS = 6                      # chance is beyond these twice in 10^9 draws
EXACT = {"rtol": 1e-12, "atol": 1e-12}


def text(rows, length, seed=0, high=V):
    return mf.Rng(seed).child("text").integers(EDGE + 1, high, (rows, length))


def assert_binomial(hits, draws, probability):
    spread = math.sqrt(draws * probability * (1 - probability))
    assert abs(hits - draws * probability) <= SIGMAS * spread + 1e-9


# -- schedules ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_schedule_falls_from_1_to_0_by_its_slope(name):
    schedule, t = SCHEDULES[name], np.linspace(0, 1, 101)
    kept = schedule.kept(t)
    assert kept[0] == 1 and kept[-1] == 0           # to the bit: no mask is left over
    assert (np.diff(kept) < 0).all()
    h, inner = 1e-4, t[1:-1]
    found = (schedule.kept(inner + h) - schedule.kept(inner - h)) / (2 * h)
    # The third derivatives are at most (π/2)³: the central difference is off by that · h² / 6.
    np.testing.assert_allclose(schedule.slope(inner), found, rtol=0, atol=1e-8)


# -- the process ----------------------------------------------------------------------------------


@given(seed=SEEDS, kept=st.sampled_from([0.0, 0.1, 0.5, 0.9, 1.0]))
def test_each_token_stays_with_its_probability(seed, kept):
    ids, free = text(40, 100, seed), text(40, 100, seed + 1) % 3 > 0
    before = ids.copy()
    found = noised(ids, kept, mf.Rng(seed), mask=MASK, free=free)
    np.testing.assert_array_equal(ids, before)
    np.testing.assert_array_equal(found[~free], ids[~free])
    assert ((found == ids) | (found == MASK)).all()
    assert_binomial((found == ids)[free].sum(), free.sum(), kept)


def test_rows_have_probabilities_of_their_own():
    found = noised(text(3, 1000), [0.0, 0.3, 1.0], mf.Rng(2), mask=MASK)
    masked = (found == MASK).sum(1)
    assert masked[0] == 1000 and masked[2] == 0
    assert_binomial(masked[1], 1000, 0.7)


@given(seed=SEEDS, data=st.data())
def test_a_number_of_tokens_is_hidden_exactly(seed, data):
    rows, length = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 12))
    ids, free = text(rows, length, seed), text(rows, length, seed + 1) % 2 == 0
    counts = [data.draw(st.integers(0, n)) for n in free.sum(1).tolist()]
    found = noised_to(ids, counts, mf.Rng(seed), mask=MASK, free=free)
    np.testing.assert_array_equal((found == MASK).sum(1), counts)
    np.testing.assert_array_equal(found[~free], ids[~free])
    np.testing.assert_array_equal(found[found != MASK], ids[found != MASK])


def test_each_choice_of_so_many_is_as_likely():
    draws = 20_000
    found = noised_to(text(draws, 5), [2] * draws, mf.Rng(4), mask=MASK) == MASK
    kinds, hits = np.unique(found @ (1 << np.arange(5)), return_counts=True)
    assert len(kinds) == math.comb(5, 2)
    for hit in hits.tolist():
        assert_binomial(hit, draws, 1 / len(kinds))


@given(kept=st.tuples(*[st.floats(0, 1)] * 2).map(sorted).filter(lambda x: x[0] < x[1]),
       token=st.integers(0, 3))
def test_the_posterior_is_bayes_rule_for_the_forward_process(kept, token):
    """By enumeration of all x_s, for each x_t that can be."""
    later, earlier = kept
    mask, kinds = 4, 5

    def forward(kept):                      # q(x_t | x_0), for x_0 as rows
        return kept * np.eye(kinds) + (1 - kept) * np.eye(kinds)[mask]

    step = forward(later / earlier)         # q(x_t | x_s): a mask stays one
    assert (step[mask] == np.eye(kinds)[mask]).all()
    np.testing.assert_allclose(forward(earlier) @ step, forward(later), **EXACT)
    for x in (token, mask):
        if (there := forward(later)[token, x]) > 0:
            by_bayes = step[:, x] * forward(earlier)[token] / there
            found = posterior(np.array([x]), np.eye(kinds)[[token]], earlier, later, mask=mask)
            np.testing.assert_allclose(found[0], by_bayes, **EXACT)


def test_a_posterior_of_guesses_is_their_mean():
    x, guesses = np.array([[7, 1], [1, 3]]), randomised_rows(2, 2, 8)
    found = posterior(x, guesses, 0.6, 0.2, mask=1)
    known = sum(guesses[..., [i]] * posterior(x, np.eye(8)[np.full((2, 2), i)], 0.6, 0.2, mask=1)
                for i in range(8))
    np.testing.assert_allclose(found, known, **EXACT)
    assert undone(0.6, 0.2) == pytest.approx(0.5) and undone(1.0, 1.0) == 0


def randomised_rows(*shape):
    x = mf.Rng(5).child("rows").uniform(shape, np.float64) + 0.1
    return x / x.sum(-1, keepdims=True)


# -- the bound ------------------------------------------------------------------------------------


class Table:
    """A denoiser that knows the conditional probabilities of a joint one, [K] * L, of L tokens;
    or, with `wrong`, ones that belong to no joint probability."""

    def __init__(self, joint, mask, wrong=0.0):
        self.joint, self.mask, self.wrong = joint, mask, wrong

    def conditionals(self, ids):
        """[L, K] for one row."""
        seen = self.joint
        for place, token in enumerate(ids):
            if token != self.mask:
                seen = np.take(seen, [token], axis=place)
        found = [seen.sum(tuple(j for j in range(len(ids)) if j != i)) for i in range(len(ids))]
        hidden = sum(1 << i for i, token in enumerate(ids) if token == self.mask)
        return [np.zeros(self.joint.shape[0]) if len(p) == 1 else
                np.log(p / p.sum()) + self.wrong * np.cos((hidden + 3 * i) * np.arange(len(p)))
                for i, p in enumerate(found)]

    def features(self, ids, rng=None, recompute=False):
        return Tensor(np.array([self.conditionals(row) for row in ids.tolist()]))

    def logits(self, x):
        return x


L, K = 4, 3


def joint(seed, length=L, kinds=K):
    p = mf.Rng(seed).child("joint").uniform((kinds,) * length, np.float64) ** 3 + 1e-3
    return p / p.sum()


def every_choice(x):
    """(noised [2^L - 1, L], text, how many are hidden) of one text x [L], K being the mask."""
    hidden = np.array(list(itertools.product([0, 1], repeat=len(x)))[1:]) == 1
    return np.where(hidden, K, x), np.tile(x, (len(hidden), 1)), hidden.sum(1)


def exact_bound(model, x):
    """Its mean over all that is chance: the number hidden, and which ones they are."""
    ids, there, counts = every_choice(x)
    weights = [len(x) / n / math.comb(len(x), n) / len(x) for n in counts.tolist()]
    return bound(model, ids, there, weights, denominator=1).item()


@settings(max_examples=10)
@given(seed=SEEDS)
def test_a_perfect_denoiser_meets_the_bound_exactly(seed):
    p = joint(seed)
    for x in itertools.product(range(K), repeat=L):
        assert exact_bound(Table(p, K), np.array(x)) == pytest.approx(-math.log(p[x]), rel=1e-12)


@settings(max_examples=3)
@given(seed=SEEDS)
def test_the_bound_is_above_the_likelihood_of_writing_in_a_random_order(seed):
    """Whatever the denoiser says, drawing one token after the other, in any order, is a
    distribution of texts, whose likelihood the bound is never below."""
    model, orders = Table(joint(seed), K, wrong=0.5), list(itertools.permutations(range(L)))
    total, gaps = 0.0, []
    for x in itertools.product(range(K), repeat=L):
        ids, there, _ = every_choice(np.array(x))
        losses, rows = hidden_losses(model, ids, there)
        loss = {(tuple(ids[row]), place): nats for row, nats, place in
                zip(rows, losses.numpy(), np.nonzero(ids == K)[1].tolist())}
        likelihood = 0.0
        for order in orders:
            row, nats = np.full(L, K), 0.0
            for place in order:
                nats += loss[tuple(row), place]
                row[place] = x[place]
            likelihood += math.exp(-nats) / len(orders)
        total += likelihood
        gaps.append(exact_bound(model, np.array(x)) + math.log(likelihood))
    assert total == pytest.approx(1, rel=1e-12)
    assert min(gaps) > 0


@pytest.mark.parametrize("name", SCHEDULES)
@given(seed=SEEDS)
def test_the_integral_over_time_is_the_sum_over_counts_for_every_schedule(name, seed):
    model, schedule = Table(joint(seed), K, wrong=0.3), SCHEDULES[name]
    x = np.array([0, 2, 1, 1])
    ids, there, counts = every_choice(x)
    losses, rows = hidden_losses(model, ids, there)
    of_choice = np.bincount(rows, losses.numpy())
    nodes, parts = np.polynomial.legendre.leggauss(40)      # exact for polynomials below degree 80
    t = (nodes + 1) / 2
    kept = schedule.kept(t)[:, None]
    chance = (1 - kept) ** counts * kept ** (L - counts)    # of each choice at each time
    found = (parts / 2 * weight(schedule, t) * (chance @ of_choice)).sum()
    assert found == pytest.approx(exact_bound(model, x), rel=1e-12)


@given(seed=SEEDS, rows=st.integers(1, 20), data=st.data())
def test_counts_are_spread_over_the_batch(seed, rows, data):
    sizes = data.draw(st.lists(st.integers(1, 50), min_size=rows, max_size=rows))
    counts = spread_counts(sizes, mf.Rng(seed))
    assert counts.shape == (rows,) and (1 <= counts).all() and (counts <= sizes).all()
    alike = spread_counts([rows] * rows, mf.Rng(seed))
    np.testing.assert_array_equal(np.sort(alike), np.arange(rows) + 1)
    parts = spread_counts([7 * rows] * rows, mf.Rng(seed))
    np.testing.assert_array_equal(np.sort((parts - 1) // 7), np.arange(rows))


def test_each_count_is_as_likely():
    draws = 5000
    found = [spread_counts([4, 3], mf.Rng(seed)) for seed in range(draws)]
    for column, size in zip(np.transpose(found), (4, 3)):
        for hits in np.bincount(column, minlength=size + 1)[1:].tolist():
            assert_binomial(hits, draws, 1 / size)


@pytest.mark.parametrize("call, error, message", [
    (lambda: noised(text(2, 3), 1.5, mf.Rng(0), mask=MASK), ConfigError, r"kept: .*\[0, 1\]"),
    (lambda: noised(text(2, 3)[0], 0.5, mf.Rng(0), mask=MASK), ShapeError, r"integers \[B, T\]"),
    (lambda: noised(text(2, 3) * 1.0, 0.5, mf.Rng(0), mask=MASK), ShapeError, "float64"),
    (lambda: noised_to(text(2, 3), [1, 4], mf.Rng(0), mask=MASK), ConfigError, r"\[3, 3\]"),
    (lambda: noised_to(text(2, 3), [1], mf.Rng(0), mask=MASK), ConfigError, "each of 2 rows"),
    (lambda: noised_to(text(2, 3), [-1, 0], mf.Rng(0), mask=MASK), ConfigError, "counts"),
])
def test_what_cannot_be_noised_is_refused(call, error, message):
    with pytest.raises(error, match=message):
        call()


# -- batches --------------------------------------------------------------------------------------


class Tokens:
    """An array as text/shards.py has it; the mark between documents is EDGE."""

    end_of_text, description = EDGE, {"kind": "tokens"}

    def __init__(self, ids):
        self.ids, self.count = ids, len(ids)

    def __getitem__(self, part):
        return self.ids[part]


TEXT = Tokens(text(1, 103)[0])
GIVEN = {"first": FIRST, "separator": EDGE, "mask": MASK}


def batches(seed=3, rows=8, tokens=TEXT, **options):
    return NoisedBatches(TrainingBatches(tokens, batch=rows, length=10, seed=seed), seed=seed,
                         **GIVEN | options)


def held_out(rows=8, tokens=TEXT):
    return NoisedBatches(HeldOutBatches(tokens, batch=rows, length=10), seed=4, **GIVEN)


def test_a_batch_is_a_function_of_seed_and_step():
    for step in (0, 1, 40):
        found, again = (batches().batch(step) for _ in range(2))
        for a, b in zip(found, again, strict=True):
            np.testing.assert_array_equal(a, b)
    assert (batches().batch(0)[0] != batches().batch(1)[0]).any()
    assert batches().description != batches(seed=4).description
    assert batches().description["noised"] == {**GIVEN, "seed": 3}


def test_rows_are_text_between_marks_with_tokens_hidden():
    ids, there, weights = batches().batch(2)
    assert ids.shape == there.shape == (8, 12) and weights.dtype == np.float32
    assert (ids[:, 0] == FIRST).all() and (ids[:, -1] == EDGE).all()
    assert (there[:, [0, -1]] == -100).all() and (there[:, 1:-1] > EDGE).all()
    masked = ids[:, 1:-1] == MASK
    np.testing.assert_array_equal(ids[:, 1:-1][~masked], there[:, 1:-1][~masked])
    np.testing.assert_allclose(weights, 10 / masked.sum(1), rtol=1e-6)
    # One in each of eight equal parts of 0 … 10, rounded up.
    counts, part = np.sort(masked.sum(1)), np.arange(8)
    assert (part * 10 // 8 < counts).all() and (counts <= -(-(part + 1) * 10 // 8)).all()


def test_held_out_text_comes_once_and_nothing_else():
    data, seen = held_out(), []
    for i in range(data.count):
        ids, there, weights = data.batch(i)
        seen += there[there != -100].tolist()
        sizes, masked = (there != -100).sum(1), absorbing.hidden(ids, there).sum(1)
        np.testing.assert_allclose(weights, sizes / masked, rtol=1e-6)
        assert (ids[:, 1:-1][there[:, 1:-1] == -100] == MASK).all()     # behind the text's end
    assert sorted(seen) == sorted(TEXT.ids.tolist())


def test_the_mark_between_documents_is_hidden_and_learnt_too():
    tokens = Tokens(np.where(np.arange(103) % 5 == 4, EDGE, TEXT.ids))
    ids, there, _ = batches(rows=40, tokens=tokens).batch(0)
    assert (absorbing.hidden(ids, there) & (there == EDGE)).any()


# -- learning -------------------------------------------------------------------------------------

MODEL = BertConfig(vocabulary=V, context=12, layers=2, heads=2, width=32, padding=FIRST,
                   dropout=0.1, absorbing=True)
CONFIG = TrainConfig(steps=6, batch=8, warmup=1, evaluate_every=3, save_every=2, seed=5)


def trainer_in(directory, config=CONFIG, model=MODEL, data=None, test=None):
    return Trainer(Bert(model, mf.Rng(1)), data or batches(), config, directory=directory,
                   objective=AbsorbingDiffusion(config.recompute), held_out=test or held_out(),
                   shown=False, draw=False)


@given(seed=SEEDS)
def test_who_knows_nothing_pays_for_every_token_alike(seed):
    """Then the loss is log V whatever is hidden: the weights make it that of a whole text."""
    ids, there, weights = batches(seed).batch(0)
    model = Bert(MODEL)                         # all weights are zero
    loss = AbsorbingDiffusion().loss(model, (ids, there, weights), denominator=80, rng=None)
    assert loss.item() == pytest.approx(math.log(V), rel=1e-6)


def test_the_loss_is_weighted_cross_entropy_of_what_is_hidden(backend):
    model, (ids, there, weights) = randomised(Bert(MODEL)), batches().batch(0)
    x = np.asarray(model(ids).numpy(), np.float64)
    log_p = x - np.log(np.exp(x - x.max(-1, keepdims=True)).sum(-1, keepdims=True)) \
        - x.max(-1, keepdims=True)
    expected = -sum(weights[r] * log_p[r, i, there[r, i]]
                    for r, i in zip(*np.nonzero(ids == MASK))) / 80
    found = AbsorbingDiffusion().loss(model, (ids, there, weights), denominator=80, rng=None)
    assert found.item() == pytest.approx(expected, rel=1e-5)


def test_what_the_objective_counts():
    model, objective, batch = Bert(MODEL, mf.Rng(0)), AbsorbingDiffusion(), batches().batch(0)
    assert (objective.count(batch), objective.tokens(batch)) == (80, 96)
    lengths = np.arange(V) + 1
    assert objective.target_bytes(batch, lengths) == (batch[1][:, 1:-1] + 1).sum()
    with mf.FlopCounter() as counter:
        objective.loss(model, batch, denominator=80, rng=mf.Rng(0)).backward()
    assert counter.total == pytest.approx(objective.flops(model, batch), rel=1e-12)
    tokens, learnt = objective.learnt(batch)
    np.testing.assert_array_equal(tokens[1:-1], batch[1][0, 1:-1])
    np.testing.assert_array_equal(learnt, batch[0][0] == MASK)
    full = objective.fullest(batch)
    assert absorbing.hidden(*full[:2]).sum() == 80 and full[0].max() < V


@pytest.mark.parametrize("stop", range(1, 6))
def test_a_resumed_run_is_bitwise_the_uninterrupted_one(stop, tmp_path):
    assert_resumed_run_is_whole(trainer_in, tmp_path, stop)


@pytest.mark.parametrize("pieces", [2, 3])
def test_pieces_of_a_batch_train_as_the_whole(pieces, tmp_path):
    def trainer_of(config):
        return trainer_in(tmp_path / str(config.accumulate), config, replace(MODEL, dropout=0.0))
    assert_pieces_train_as_the_whole(trainer_of, CONFIG, pieces)


def test_recomputation_trains_to_the_same_bits(tmp_path):
    assert_recomputation_trains_to_the_same_bits(
        lambda config: trainer_in(tmp_path / str(config.recompute), config), CONFIG)


class Echoes:
    """Windows of one token, said again and again: a text has the entropy of one token."""

    count, description = 3, {"kind": "echoes"}

    def batch(self, step):
        ids = np.repeat(mf.Rng(7).child(step).integers(EDGE + 1, V, (32, 1)), 10, axis=1)
        return ids, ids


def test_a_model_learns_texts_and_their_likelihood(tmp_path):
    config = TrainConfig(steps=120, batch=32, warmup=10, learning_rate=1e-2, evaluate_every=0,
                         save_every=0)
    data, test = (NoisedBatches(Echoes(), seed=seed, **GIVEN) for seed in (3, 4))
    trainer = trainer_in(tmp_path, config, replace(MODEL, dropout=0.0), data, test)
    before = trainer.evaluate()["held_out_loss"]
    trainer.train()
    after = trainer.evaluate()["held_out_loss"]
    entropy = math.log(V - EDGE - 1) / 10           # of a text, a token: no model is below it
    assert before == pytest.approx(math.log(V), abs=0.5)
    assert entropy * 0.8 < after < math.log(V) / 4
