"""Masked tokens: which are chosen, what becomes of them, and a run that learns from them."""

import math
import re
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from modelling import (
    assert_pieces_train_as_the_whole,
    assert_recomputation_trains_to_the_same_bits,
    assert_resumed_run_is_whole,
)

import minifm as mf
from minifm.errors import ConfigError, ShapeError
from minifm.models import Bert, BertConfig
from minifm.text.masking import MaskedBatches, Words, mask_tokens
from minifm.training.config import TrainConfig
from minifm.training.objectives import MaskedLanguageModel
from minifm.training.trainer import Trainer

PAD, MASK, EDGE, V = 0, 1, 2, 23
SPECIALS = (PAD, EDGE)
GIVEN = {"mask": MASK, "specials": SPECIALS, "vocabulary": V}
SEEDS = st.integers(0, 2**32)
SIGMAS = 6                      # chance is beyond these twice in 10^9 draws


def text(rows, length, seed=0, low=0):
    return mf.Rng(seed).child("text").integers(low, V, (rows, length))


def assert_binomial(hits, draws, probability):
    spread = math.sqrt(draws * probability * (1 - probability))
    assert abs(hits - draws * probability) <= SIGMAS * spread + 1e-9


# -- one batch ------------------------------------------------------------------------------------


@given(seed=SEEDS, probability=st.sampled_from([0.0, 0.1, 0.15, 0.5, 1.0]))
def test_fractions_are_those_of_the_paper(seed, probability):
    ids = text(40, 200, seed)
    masked, targets = mask_tokens(ids, mf.Rng(seed), probability=probability, **GIVEN)
    real, chosen = ids > EDGE, targets != -100
    assert_binomial(chosen.sum(), real.sum(), probability)
    assert_binomial((masked == MASK)[chosen].sum(), chosen.sum(), 0.8)
    # Of the replaced tokens, one in 20 is by chance what it was.
    kept = 0.1 + 0.1 / (V - 3)
    assert_binomial((masked == ids)[chosen].sum(), chosen.sum(), kept)


@given(seed=SEEDS, rows=st.integers(0, 4), length=st.integers(0, 30), words=st.booleans())
def test_only_chosen_tokens_change_and_only_they_are_targets(seed, rows, length, words):
    ids = text(rows, length, seed)
    before, starts = ids.copy(), text(rows, length, seed + 1) % 3 == 0 if words else None
    masked, targets = mask_tokens(ids, mf.Rng(seed), word_starts=starts, probability=0.5, **GIVEN)
    chosen = targets != -100
    np.testing.assert_array_equal(ids, before)
    assert masked.shape == targets.shape == ids.shape and masked.dtype == targets.dtype == np.int64
    np.testing.assert_array_equal(masked[~chosen], ids[~chosen])
    np.testing.assert_array_equal(targets[chosen], ids[chosen])
    assert not np.isin(ids[chosen], [PAD, MASK, EDGE]).any()
    assert not np.isin(masked[chosen], SPECIALS).any()      # nothing becomes padding


@given(seed=SEEDS)
def test_equal_keys_choose_equally_and_others_otherwise(backend, seed):
    ids = text(8, 60, low=EDGE + 1)
    first, again = (mask_tokens(ids, mf.Rng(seed), **GIVEN) for _ in range(2))
    other = mask_tokens(ids, mf.Rng(seed + 1), **GIVEN)
    for a, b, c in zip(first, again, other):
        np.testing.assert_array_equal(a, b)
        assert (a != c).any()


def test_each_ordinary_token_is_as_likely_a_replacement():
    ids = np.full((200, 500), 5)
    masked, _ = mask_tokens(ids, mf.Rng(1), probability=1.0, **GIVEN)
    counts = np.bincount(masked.ravel(), minlength=V)
    assert (counts[[PAD, EDGE]] == 0).all()
    for token in set(range(EDGE + 1, V)) - {5}:
        assert_binomial(counts[token], ids.size, 0.1 / (V - 3))


@given(seed=SEEDS)
def test_words_are_chosen_as_a_whole(seed):
    """Those of a table in which a third of the tokens go on with a word."""
    ids = text(30, 60, seed)
    goes_on = (ids % 3 == 0) & (ids > EDGE)
    masked, targets = mask_tokens(ids, mf.Rng(seed), word_starts=~goes_on, **GIVEN)
    chosen, words, hits, broken = targets != -100, 0, 0, 0
    for b in range(len(ids)):
        for word in words_of(ids[b], goes_on[b]):
            assert len(set(chosen[b, word])) == 1, (b, word)
            words, hits = words + 1, hits + chosen[b, word[0]]
            fates = masked[b, word][chosen[b, word]] == MASK
            broken += 0 < fates.sum() < len(fates)
    assert_binomial(hits, words, 0.15)
    assert broken > 0           # each token of a chosen word has a fate of its own


def words_of(ids, goes_on):
    """Lists of places, in plain Python: special tokens are in none, and none goes across them."""
    words, within = [], False
    for t, token in enumerate(ids.tolist()):
        if token <= EDGE:
            within = False
        elif within and goes_on[t]:
            words[-1].append(t)
        else:
            words.append([t])
            within = True
    return words


@pytest.mark.parametrize("wrong, message", [
    ({"probability": 1.5}, r"probability: expected a number in \[0, 1\], got 1.5"),
    ({"mask": V}, f"mask: expected ids below the vocabulary of {V}, got {V}"),
    ({"specials": (-1,)}, "specials: expected ids below the vocabulary of 23, got -1"),
    ({"vocabulary": 10}, "ids: expected ids below the vocabulary of 10, got"),
    ({"specials": range(V)}, "specials: all 23 tokens of the vocabulary are special"),
    ({"word_starts": np.ones((2, 3), bool)}, r"word_starts: expected \[4, 9\], .* got \[2, 3\]"),
])
def test_what_cannot_be_masked_is_refused(wrong, message):
    with pytest.raises((ConfigError, ShapeError), match=message):
        mask_tokens(text(4, 9), mf.Rng(0), **GIVEN | wrong)


@pytest.mark.parametrize("ids", [np.zeros(4, int), np.zeros((2, 2))])
def test_ids_are_integers_of_rows_and_places(ids):
    with pytest.raises(ShapeError, match=r"ids: expected integers \[B, T\], got"):
        mask_tokens(ids, mf.Rng(0), **GIVEN)


# -- many batches, and a run ----------------------------------------------------------------------


class Ladders:
    """Rows that count up from anywhere, so that a masked token follows from its neighbours; the
    last two places of every other row are padding. Held-out data, too: 3 batches."""

    count = 3
    description = {"kind": "ladders"}

    def batch(self, step):
        start = mf.Rng(7).child(step).integers(0, V - 3, (8, 1))
        ids = EDGE + 1 + (start + np.arange(10)) % (V - 3)
        ids[::2, -2:] = PAD
        return ids, np.zeros_like(ids)


def batches(seed=3, **options):
    return MaskedBatches(Ladders(), seed=seed, padding=PAD, **GIVEN | options)


MODEL = BertConfig(vocabulary=V, context=10, layers=2, heads=2, width=32, padding=PAD, dropout=0.1)
CONFIG = TrainConfig(steps=6, batch=8, warmup=1, evaluate_every=3, save_every=2, seed=5)


def trainer_in(directory, config=CONFIG, model=MODEL, data=None, held_out=None):
    return Trainer(Bert(model, mf.Rng(1)), data or batches(), config, directory=directory,
                   objective=MaskedLanguageModel(config.recompute),
                   held_out=held_out or batches(seed=4), shown=False, draw=False)


def test_a_batch_is_a_function_of_seed_and_step():
    for step in (0, 1, 5):
        found, again = (batches().batch(step) for _ in range(2))
        ids = Ladders().batch(step)[0]
        for a, b in zip(found, again, strict=True):
            np.testing.assert_array_equal(a, b)
        np.testing.assert_array_equal(found[2], ids != PAD)
        assert (found[1][ids == PAD] == -100).all()
    assert (batches().batch(0)[1] != batches(seed=4).batch(0)[1]).any()


def test_the_same_text_is_masked_otherwise_at_another_step():
    class Same(Ladders):
        def batch(self, step):
            return super().batch(0)
    found = [MaskedBatches(Same(), seed=3, **GIVEN).batch(step) for step in (0, 1)]
    assert len(found[0]) == 2                   # without padding there is no mask
    assert (found[0][1] != found[1][1]).any()


def pairs_of_ids():
    """Words of one or two tokens: what is odd goes on with what is even."""
    return Words([b" a" if i % 2 == 0 else b"a " for i in range(V)])


def test_whole_words_of_pairs():
    ids, (_, targets, _) = Ladders().batch(2)[0], batches(words=pairs_of_ids()).batch(2)
    chosen, pairs = targets != -100, (ids[:, :-1] % 2 == 0) & (ids[:, 1:] > EDGE) \
        & (ids[:, 1:] % 2 == 1)
    assert chosen.any() and pairs.any()
    np.testing.assert_array_equal(chosen[:, :-1][pairs], chosen[:, 1:][pairs])


def test_the_description_names_all_that_decides_the_masks():
    plain = batches().description
    assert plain["kind"] == "ladders" and plain == batches().description
    other = [batches(seed=4), batches(probability=0.2), batches(words=pairs_of_ids()),
             batches(words=Words([b"a"] * V)), batches(specials=(PAD, EDGE, 9))]
    seen = [data.description for data in other] + [plain]
    assert all(a != b for i, a in enumerate(seen) for b in seen[:i])


@given(st.lists(st.sampled_from([b" the", b"cat", b"s", b"_x1", b"(", b")\n", "漢".encode()[:2],
                                 "漢".encode()[2:], b" ", b"9"]), min_size=1))
def test_words_by_their_bytes(tokens):
    starts = Words(tokens)(np.arange(len(tokens))[None])[0]
    text, start = b"".join(tokens), 0
    for i, token in enumerate(tokens):
        before, here = text[:start][-1:], text[start : start + 1]
        within = all(re.fullmatch(rb"[0-9A-Za-z_\x80-\xff]", byte) for byte in (before, here))
        assert starts[i] == (not within), (tokens, i)
        start += len(token)


@pytest.mark.parametrize("wrong, message", [
    ({"specials": (EDGE,)}, r"padding: expected one of the specials \[2\], .*, got 0"),
])
def test_batches_that_cannot_be_masked_are_refused(wrong, message):
    with pytest.raises(ConfigError, match=message):
        batches(**wrong)


@pytest.mark.parametrize("stop", range(1, 6))
def test_a_resumed_run_is_bitwise_the_uninterrupted_one(stop, tmp_path):
    assert_resumed_run_is_whole(trainer_in, tmp_path, stop)


def test_another_masking_is_another_run(tmp_path):
    trainer_in(tmp_path).train(until=2)
    with pytest.raises(ConfigError, match="masked"):
        trainer_in(tmp_path, data=batches(probability=0.2)).resume()


@pytest.mark.parametrize("pieces", [2, 3])
def test_pieces_of_a_batch_train_as_the_whole(pieces, tmp_path):
    def trainer_of(config):
        return trainer_in(tmp_path / str(config.accumulate), config, replace(MODEL, dropout=0.0))
    assert_pieces_train_as_the_whole(trainer_of, CONFIG, pieces)


def test_recomputation_trains_to_the_same_bits(tmp_path):
    assert_recomputation_trains_to_the_same_bits(
        lambda config: trainer_in(tmp_path / str(config.recompute), config), CONFIG)


class Echoes(Ladders):
    """Rows of one token, said again and again."""

    def batch(self, step):
        ids = np.repeat(mf.Rng(7).child(step).integers(EDGE + 1, V, (32, 1)), 10, axis=1)
        ids[::2, -2:] = PAD
        return (ids,)


def test_a_model_learns_what_its_neighbours_tell(backend, tmp_path):
    config = TrainConfig(steps=100, batch=32, warmup=10, learning_rate=1e-2, evaluate_every=0,
                         save_every=0)
    data, held_out = (MaskedBatches(Echoes(), seed=seed, padding=PAD, **GIVEN) for seed in (3, 4))
    trainer = trainer_in(tmp_path, config, replace(MODEL, dropout=0.0), data, held_out)
    before = trainer.evaluate()["held_out_loss"]
    trainer.train()
    after = trainer.evaluate()["held_out_loss"]
    # All 20 tokens are alike by themselves: what is learnt beyond that comes from the others.
    assert before == pytest.approx(math.log(20), abs=0.4)
    assert after < 0.2 * math.log(20)


def test_what_an_objective_counts():
    model, objective, batch = Bert(MODEL, mf.Rng(0)), MaskedLanguageModel(), batches().batch(0)
    chosen = (batch[1] != -100).sum()
    assert (objective.count(batch), objective.tokens(batch)) == (chosen, 80)
    lengths = np.arange(V) + 1
    assert objective.target_bytes(batch, lengths) == 0     # what is masked is no text of its own
    with mf.FlopCounter() as counter:
        objective.loss(model, batch, denominator=chosen, rng=mf.Rng(0)).backward()
    assert counter.total == pytest.approx(objective.flops(model, batch), rel=1e-12)
    loss = objective.loss(model, batch, denominator=chosen, rng=None).item()
    assert loss == model.loss(*batch[:2], key_mask=batch[2]).item()
