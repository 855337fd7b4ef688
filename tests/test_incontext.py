"""Learning in context: what the families are, that tests are of rules never trained on, and the
command from end to end."""

import itertools
import json
import math
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minifm import Tensor, cli
from minifm.errors import AnomalyError, ConfigError, FormatError
from minifm.picture import MISSING, can_draw
from minifm.rng import Rng
from minifm.tasks.incontext import (
    FAMILIES,
    LENGTH,
    START,
    VOCABULARY,
    Add,
    Classify,
    Compare,
    Copy,
    Episodes,
    Mapping,
    episodes,
    is_held_out,
    orders,
    sides_of_lines,
)
from minifm.training import incontext
from minifm.training.config import TrainConfig
from minifm.training.incontext import (
    SHAPE,
    SPREAD,
    accuracy,
    configuration,
    interval,
    new_model,
    prepare,
    shuffled_accuracy,
)

families = pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)

# y by the definition, one example at a time, in plain Python.
BY_DEFINITION = {
    "mapping": lambda rule, x: [rule[x[0]]],
    "copy": lambda rule, x: rule[3 * x[0] : 3 * x[0] + 3],
    "add": lambda rule, x: [(x[0] + rule[x[0] // 7]) % 7],
    "compare": lambda rule, x: [rule[x[0]]],
    "classify": lambda rule, x: [rule[x[0]]],
}


def examples_in(row, family):
    """[(x, y)] of a row of LENGTH + 1 tokens, in the family's own numbers, as its format says."""
    body = np.reshape(row[1 : 1 + LENGTH // family.size * family.size], (-1, family.size))
    return [((x - family.first).tolist(), (y - family.first_answer).tolist())
            for x, y in ((row[: family.inputs], row[family.inputs :]) for row in body)]


def whole(ids, targets):
    """A row and the last token of its last answer."""
    return np.append(ids, targets[-1])


# -- the families --------------------------------------------------------------------------------


@families
@given(seed=st.integers(0, 2**32))
def test_who_knows_the_rule_answers_all(family, seed):
    rules = family.draw(3, Rng(seed), True)
    ids, targets = episodes(family, rules, Rng(seed).child("x"))
    assert ids.shape == targets.shape == (3, LENGTH)
    assert (ids[:, 0] == START + FAMILIES.index(family)).all()
    assert 0 <= ids.min() and ids.max() < VOCABULARY
    for rule, row, wanted in zip(rules.tolist(), ids, targets):
        found = examples_in(whole(row, wanted), family)
        assert len(found) == family.shots + 1
        for x, y in found:
            assert all(0 <= symbol < family.asked for symbol in x)
            assert y == BY_DEFINITION[family.name](rule, x)
        mask = ([True] * family.inputs + [False] * family.outputs) * len(found)
        assert (wanted == -100).tolist() == mask            # each target is the next token
        assert (whole(row, wanted)[1:][wanted != -100] == wanted[wanted != -100]).all()


def test_families_share_no_tokens():
    spans = [(f.first, max(f.first + f.asked, f.first_answer + f.answered)) for f in FAMILIES]
    spans += [(START + i, START + i + 1) for i in range(len(FAMILIES))]
    assert [0] + [end for _, end in spans] == [start for start, _ in spans] + [VOCABULARY]


@families
@given(seed=st.integers(0, 2**32))
def test_questions_that_could_be_looked_up_never_come_twice(family, seed):
    x = family.questions(2, family.shots + 1, Rng(seed))
    assert x.shape == (2, family.shots + 1, family.inputs)
    for row in x.tolist():
        if family.name not in ("mapping", "copy"):
            for column in zip(*row):
                assert len(set(column)) == len(column)


def test_rules_are_what_their_families_say():
    assert sorted(Mapping().rules(1, Rng(1))[0].tolist()) == list(range(8))
    for words in Copy().rules(20, Rng(1)).tolist():
        assert len(set(words)) == len(words) == 12 and set(words) <= set(range(16))
    assert len(Compare.ways) == 38 and (np.abs(np.diff(Compare.ways, axis=1)).sum(1) == 1).all()
    assert len(np.unique(Compare.ways, axis=0)) == 38


def test_lines_have_a_class_on_either_side():
    ways = sides_of_lines()
    assert (ways == Classify.ways).all() and len(np.unique(ways, axis=0)) == len(ways)
    there = {tuple(way) for way in ways.tolist()}
    assert {way[::-1] for way in there} == there            # half a turn about the middle
    assert {tuple(way) for way in ways.reshape(-1, 5, 5).transpose(0, 2, 1).reshape(-1, 25).tolist()
            } == there                                      # rows for columns
    # A line is crossed at most once on a straight way, such as along a row or a column.
    grid = ways.reshape(-1, 5, 5)
    for lines in (grid, grid.transpose(0, 2, 1)):
        assert (np.abs(np.diff(lines, axis=2)).sum(2) <= 1).all()
    assert 0 < ways.sum(1).min() and ways.sum(1).max() < 25


@families
def test_held_out_rules_are_disjoint_from_those_trained_on(family):
    rules = {side: set(map(tuple, family.draw(300, Rng(1), side).tolist()))
             for side in (False, True)}
    assert not rules[False] & rules[True] and len(rules[True]) > 10
    assert all(is_held_out(family.name, rule) == side for side in rules for rule in rules[side])
    everywhere = [is_held_out(family.name, rule) for rule in family.rules(2000, Rng(2))]
    # A quarter of all rules; families have as few as 38, whose hashes are as 38 coins.
    assert abs(np.mean(everywhere) - 0.25) < 4 * math.sqrt(0.25 * 0.75 / 38)


def test_colours_take_turns():
    x = Add().questions(3, 18, Rng(0))[..., 0]
    assert (x // 7 == np.arange(18) % 3).all()


def test_every_offset_is_met_in_training():
    trained = [rule for rule in itertools.product(range(7), repeat=3)
               if not is_held_out("add", rule)]
    assert all(set(column) == set(range(7)) for column in zip(*trained))


def test_the_split_is_the_same_for_all_integers():
    assert is_held_out("add", np.array([3, 4], np.int32)) == is_held_out("add", (3, 4))
    assert len({is_held_out("add", (3, n)) for n in range(50)}) == 2


@given(things=st.integers(1, 40), seed=st.integers(0, 2**32))
def test_orders(things, seed):
    drawn = orders(5, things, Rng(seed))
    assert (np.sort(drawn, 1) == np.arange(things)).all()


@pytest.mark.parametrize("shots", [0, 8])
@families
def test_chance_is_what_one_who_does_not_learn_the_rule_gets(family, shots):
    count, rng = 1000, Rng(shots)
    x = family.questions(count, shots + 1, rng)
    y = family.answers(family.rules(count, rng.child("rule")), x)
    likelier = {}
    if family.answered == 2:                    # by how often, elsewhere, either came after so many
        elsewhere = family.answers(family.rules(20000, rng.child("more")),
                                   family.questions(20000, shots + 1, rng.child("x")))[..., 0]
        for ones in range(shots + 1):
            after = elsewhere[elsewhere[:, :-1].sum(1) == ones, -1]
            likelier[ones] = int(len(after) and after.mean() > 0.5)
    right = 0
    for i in range(count):
        if family.name == "mapping":
            guess = [i % 8]
        elif family.name == "copy":
            guess = y[i, i % shots].tolist() if shots else [0, 1, 2]
        elif family.name == "add":
            left = [n for n in range(7) if n not in y[i, shots % 3 : -1 : 3, 0]]
            guess = [left[i % len(left)]]
        else:
            guess = [likelier[int(y[i, :-1].sum())]]
        right += guess == y[i, -1].tolist()
    low, high = interval(right, count, z=4)
    assert low < family.chance(shots) < high


# -- batches -------------------------------------------------------------------------------------


def test_batches_follow_from_seed_and_step():
    ids, targets = Episodes(batch=8, seed=1).batch(5)
    again = Episodes(batch=8, seed=1)
    again.batch(0)
    assert (again.batch(5)[0] == ids).all() and (again.batch(5)[1] == targets).all()
    for other in (Episodes(batch=8, seed=2).batch(5), again.batch(6),
                  Episodes(batch=8, seed=1, held_out=True).batch(5)):
        assert (other[0] != ids).any()


def test_the_first_family_is_alone_at_first():
    source = Episodes(batch=7, seed=1, alone=2)
    assert (source.batch(1)[0][:, 0] == START).all()
    assert source.batch(2)[0][:, 0].tolist() == [START, START, START + 1, START + 1, START + 2,
                                                 START + 3, START + 4]


# -- measuring -----------------------------------------------------------------------------------


class Oracle:
    """Answers by looking one token ahead, but wrongly where the answer's number is in `wrong`."""

    def __init__(self, family, wrong):
        self.family, self.wrong = family, wrong

    def __call__(self, ids):
        following = np.roll(ids, -1, 1)
        following[:, -1] = self.last[: len(ids)]
        for shot in self.wrong:                     # the last token of that answer
            place = (shot + 1) * self.family.size - 1
            following[:, place] = (following[:, place] + 1) % VOCABULARY
        return Tensor(np.eye(VOCABULARY, dtype=np.float32)[following])


class Lookup:
    """Of `mapping`, answers as the newest example of that question is answered, else by 0."""

    def __call__(self, ids):
        logits = np.zeros((*ids.shape, VOCABULARY), np.float32)
        for row, scores in zip(ids, logits):
            known = {}
            for place in range(1, LENGTH, 2):
                scores[place, known.get(row[place], 8)] = 1
                if place + 1 < LENGTH:
                    known[row[place]] = row[place + 1]
        return Tensor(logits)


@families
def test_accuracy_is_by_the_number_of_examples_before(family, monkeypatch):
    oracle, true = Oracle(family, {0, 7}), Episodes.batch

    def batch(self, step):
        ids, targets = true(self, step)
        oracle.last = targets[:, -1]                # which no token ahead tells
        return ids, targets

    monkeypatch.setattr(Episodes, "batch", batch)
    right = accuracy(oracle, family, episodes=60, seed=0)
    assert right.tolist() == [0 if shot in (0, 7) else 60 for shot in range(family.shots + 1)]


def test_shuffled_answers_say_nothing():
    """A symbol is looked up rightly whenever it has come before, by 1 - (7/8)^17; with shuffled
    answers, as often as any answer is right."""
    family, of = Mapping(), 1000
    right = accuracy(Lookup(), family, episodes=of, seed=0)
    low, high = interval(right[-1], of, z=4)
    assert low < 1 - (7 / 8) ** 17 * (7 / 8) < high
    low, high = interval(shuffled_accuracy(Lookup(), family, episodes=of, seed=0), of, z=4)
    assert low < 1 / 8 < high


@families
def test_shuffling_keeps_questions_and_answers_and_the_last_question(family):
    seen = []

    def model(ids):
        seen.append(ids.copy())
        return Tensor(np.zeros((*ids.shape, VOCABULARY), np.float32))

    accuracy(model, family, episodes=20, seed=3)
    shuffled_accuracy(model, family, episodes=20, seed=3)
    asked = family.shots * family.size + 1
    for row, other in zip(*seen):
        before, after = (examples_in(np.append(ids, family.first_answer), family)[:-1]
                         for ids in (row, other))
        assert [x for x, _ in before] == [x for x, _ in after]
        assert sorted(y for _, y in before) == sorted(y for _, y in after)
        assert (row[asked:] == other[asked:]).all() and row[0] == other[0]
    assert (seen[0] != seen[1]).any()


def test_the_initial_weights_are_spread():
    model = new_model(3)
    plain = SHAPE.model(SHAPE, Rng(3).child("model")).parameters()
    for name, parameter in model.parameters().items():
        times = SPREAD if parameter.shape[1:] else 1
        assert (parameter.numpy() == plain[name].numpy() * np.float32(times)).all()


def test_intervals():
    # Wilson's formula has these values: 0 of n gives z²/(n + z²) as its upper end.
    z = 1.959964
    assert interval(0, 20) == pytest.approx((0, z * z / (20 + z * z)), abs=1e-12)
    low, high = interval(30, 100)
    for end in (low, high):                         # the ends are where the score test is z
        assert abs(0.3 - end) / math.sqrt(end * (1 - end) / 100) == pytest.approx(z)
    assert interval(70, 100) == pytest.approx((1 - high, 1 - low))
    for of in range(1, 500):                        # 400 of 400, say, would round to more than 1
        assert interval(0, of)[0] == 0 and interval(of, of)[1] == 1


# -- the command ---------------------------------------------------------------------------------


def test_the_command_trains_asks_and_draws(tmp_path, capsys):
    out = tmp_path / "run"
    assert cli.main(["incontext", "--out", str(out), "--episodes", "5", "--steps", "2"]) == 0
    said = capsys.readouterr().out
    found = json.loads((out / "incontext.json").read_text())
    assert found["step"] == 2 and list(found["families"]) == [f.name for f in FAMILIES]
    for family in found["families"].values():
        assert len(family["accuracy"]) == len(family["chance"]) == len(family["interval"])
        assert 0 <= family["shuffled"] <= 1
        assert all(low <= p <= high for p, (low, high)
                   in zip(family["accuracy"], family["interval"]))
    assert "not above chance after the most examples" in said and "classify" in said
    assert ("incontext.png" in said) == (out / "incontext.png").exists() == can_draw()
    assert cli.main(["incontext", "--out", str(out)]) == 2
    assert "already holds a run" in capsys.readouterr().err
    assert cli.main(["incontext", "--out", str(out), "--resume", "--seed", "1"]) == 2
    assert "leave --minutes" in capsys.readouterr().err


def test_without_matplotlib_no_picture_is_promised(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    out = tmp_path / "run"
    assert cli.main(["incontext", "--out", str(out), "--episodes", "1", "--steps", "1"]) == 0
    assert capsys.readouterr().out.endswith(f"/incontext.json; no picture: {MISSING}\n")
    assert not (out / "incontext.png").exists()


def test_a_time_becomes_a_number_of_steps(monkeypatch):
    monkeypatch.setattr(incontext, "measured_step", lambda shape, batch, length: 0.5)
    assert configuration(3, minutes=2).steps == 240 and configuration(3).seed == 3
    assert configuration(0, steps=7).steps == 7 and configuration(0).steps == incontext.STEPS


@pytest.mark.parametrize("flags, message", [
    (["--minutes", "0"], "minutes: expected a number above 0"),
    (["--minutes", "1", "--steps", "5"], "minutes: --steps says already"),
    (["--episodes", "0"], "episodes: expected at least 1"),
])
def test_what_makes_no_sense_is_refused(tmp_path, capsys, flags, message):
    assert cli.main(["incontext", "--out", str(tmp_path / "run"), *flags]) == 2
    assert message in capsys.readouterr().err and not (tmp_path / "run").exists()


def test_a_resumed_run_is_the_run_that_never_stopped(tmp_path):
    config = TrainConfig(steps=2, batch=4, evaluate_every=0, save_every=1)
    whole = prepare(tmp_path / "whole", config, shown=False)
    whole.train()
    prepare(tmp_path / "parts", config, shown=False).train(until=1)
    parts = prepare(tmp_path / "parts", shown=False)
    assert parts.step == 1
    parts.train()
    ours, theirs = whole.model.parameters(), parts.model.parameters()
    assert ours.keys() == theirs.keys()
    assert all((ours[name].numpy() == theirs[name].numpy()).all() for name in ours)


def test_there_must_be_a_run_to_resume(tmp_path):
    with pytest.raises(ConfigError, match="there is no run to resume"):
        prepare(tmp_path / "none")


def test_settings_that_are_none_are_named(tmp_path):
    (tmp_path / "run.json").write_text(json.dumps({"verb": "incontext", "settings": {"foo": 1}}))
    with pytest.raises(FormatError, match="run.json: settings: .*'foo'"):
        incontext.prepare(tmp_path, shown=False)


def test_what_is_in_the_way_of_the_results_is_said_before_training(tmp_path):
    (tmp_path / "incontext.json").mkdir()
    with pytest.raises(ConfigError, match="incontext.json: expected a file, or a name that is fre"):
        incontext.prepare(tmp_path, incontext.configuration(0, steps=2), shown=False)


def test_a_model_whose_weights_are_no_numbers_answers_nothing():
    model = incontext.new_model(0)
    model.token_embedding.weight.data[:] = np.nan
    with pytest.raises(AnomalyError, match="logits are not finite"):
        accuracy(model, FAMILIES[0], episodes=2, seed=0)
