"""Learning in context: what the families are, that tests are of rules never trained on, and the
command from end to end."""

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minifm import Tensor, cli
from minifm.errors import ConfigError
from minifm.rng import Rng
from minifm.tasks.incontext import (
    ARROW,
    FAMILIES,
    LENGTH,
    MODULUS,
    SHOTS,
    START,
    VOCABULARY,
    Classify,
    Episodes,
    Mapping,
    episode,
    is_held_out,
)
from minifm.training.config import TrainConfig
from minifm.training.incontext import accuracy, interval, prepare

families = pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)

# y by the definition, one example at a time, in plain Python.
BY_DEFINITION = {
    "mapping": lambda rule, x: [rule[x[0]]],
    "string": lambda rule, x: [x[place] for place in rule],
    "affine": lambda rule, x: [(rule[0] * x[0] + rule[1]) % MODULUS],
    "classify": lambda rule, x: [int(sum(w if bit else -w for w, bit in zip(rule, x)) > 0)],
}


def examples_in(ids, family):
    """[(x, y)] of a row, read as its format says; the last one may lack its answer's last token,
    and is left out then."""
    body = [ids[i : i + family.size] for i in range(1, len(ids), family.size)]
    return [(row[: family.inputs].tolist(), row[family.inputs + 1 :].tolist()) for row in body
            if len(row) == family.size and row[family.inputs] == ARROW]


# -- the families --------------------------------------------------------------------------------


@families
@given(seed=st.integers(0, 2**32))
def test_who_knows_the_rule_answers_all(family, seed):
    rule = family.draw(Rng(seed), True)
    ids, targets = episode(family, rule, Rng(seed).child("x"))
    assert ids.shape == targets.shape == (LENGTH,) and ids[0] == START
    assert 0 <= ids.min() and ids.max() < VOCABULARY
    found = examples_in(ids, family)
    assert len(found) >= SHOTS
    for i, (x, y) in enumerate(found):
        assert y == BY_DEFINITION[family.name](rule, x)
        asked = targets[i * family.size : (i + 1) * family.size]     # each predicts the next token
        assert asked[: family.inputs + 1].tolist() == [-100] * (family.inputs + 1)
    counted = targets != -100
    assert (ids[1:][counted[:-1]] == targets[:-1][counted[:-1]]).all()
    assert counted.sum() >= (SHOTS + 1) * family.outputs


@families
def test_questions_that_could_be_looked_up_never_come_twice(family):
    x = family.questions(SHOTS + 1, Rng(3))
    assert x.shape == (SHOTS + 1, family.inputs)
    if family.name in ("affine", "classify"):
        assert len({tuple(row) for row in x.tolist()}) == SHOTS + 1


def test_rules_are_what_their_families_say():
    assert sorted(Mapping().rule(Rng(1))) == list(range(8))
    everything = np.arange(32)[:, None] >> np.arange(5) & 1
    assert len(Classify.rules) == 5 * 2 + 10 * 8 + 32               # 1, 3 or 5 of five, each ± 1
    assert all(Classify().answers(rule, everything).sum() == 16 for rule in Classify.rules)


@families
def test_held_out_rules_are_disjoint_from_those_trained_on(family):
    rules = {side: {family.draw(Rng(i), side) for i in range(300)} for side in (False, True)}
    assert not rules[False] & rules[True] and len(rules[True]) > 10
    assert all(is_held_out(family.name, rule) == side for side in rules for rule in rules[side])
    everywhere = [is_held_out(family.name, family.rule(Rng(i).child("any"))) for i in range(2000)]
    # A quarter of all rules; families have as few as 122, whose hashes are as 122 coins.
    assert abs(np.mean(everywhere) - 0.25) < 5 * math.sqrt(0.25 * 0.75 / 122)


def test_the_split_is_the_same_for_all_integers():
    assert is_held_out("affine", np.array([3, 4])) == is_held_out("affine", (3, 4))


@families
def test_chance_is_what_one_who_does_not_learn_the_rule_gets(family):
    right, shots = [], SHOTS
    for i in range(2000):
        rng = Rng(i)
        x = family.questions(shots + 1, rng)
        y = family.answers(family.rule(rng.child("rule")), x)
        before = y[:-1, 0].tolist()
        if family.name == "affine":
            left = [n for n in range(MODULUS) if n not in before]
            guess = [left[i % len(left)]]
        elif family.name == "classify":
            guess = [min((0, 1), key=lambda label: (before.count(label), i % 2 ^ label))]
        elif family.name == "string":
            guess = [max(x[-1].tolist(), key=x[-1].tolist().count)] * 4
        else:
            guess = [i % 8]
        right.append(guess == y[-1].tolist())
    low, high = interval(sum(right), len(right), z=4)
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


# -- measuring -----------------------------------------------------------------------------------


class Oracle:
    """Answers by looking one token ahead, but wrongly where the answer's number is in `wrong`."""

    def __init__(self, family, wrong):
        self.family, self.wrong = family, wrong

    def __call__(self, ids):
        following = np.roll(ids, -1, 1)
        for shot in self.wrong:                     # the last token of that answer
            place = (shot + 1) * self.family.size - 1
            following[:, place] = (following[:, place] + 1) % VOCABULARY
        return Tensor(np.eye(VOCABULARY, dtype=np.float32)[following])


@families
def test_accuracy_is_by_the_number_of_examples_before(family):
    right = accuracy(Oracle(family, {0, 7}), family, episodes=60, seed=0)
    assert right.tolist() == [0 if shot in (0, 7) else 60 for shot in range(SHOTS + 1)]


def test_intervals():
    # Wilson's formula has these values: 0 of n gives z²/(n + z²) as its upper end.
    z = 1.959964
    assert interval(0, 20) == pytest.approx((0, z * z / (20 + z * z)), abs=1e-12)
    low, high = interval(30, 100)
    for end in (low, high):                         # the ends are where the score test is z
        assert abs(0.3 - end) / math.sqrt(end * (1 - end) / 100) == pytest.approx(z)
    assert interval(70, 100) == pytest.approx((1 - high, 1 - low))


# -- the command ---------------------------------------------------------------------------------


def test_the_command_trains_asks_and_draws(tmp_path, capsys):
    out = tmp_path / "run"
    assert cli.main(["incontext", "--out", str(out), "--episodes", "5", "--steps", "2"]) == 0
    said = capsys.readouterr().out
    found = json.loads((out / "incontext.json").read_text())
    assert found["step"] == 2 and list(found["families"]) == [f.name for f in FAMILIES]
    for family in found["families"].values():
        assert len(family["accuracy"]) == len(family["chance"]) == SHOTS + 1
        assert all(low <= p <= high for p, (low, high)
                   in zip(family["accuracy"], family["interval"]))
    assert "not above chance after 16 examples" in said and "affine" in said
    assert cli.main(["incontext", "--out", str(out)]) == 2
    assert "already holds a run" in capsys.readouterr().err
    assert cli.main(["incontext", "--out", str(out), "--resume", "--seed", "1"]) == 2
    assert "leave --minutes" in capsys.readouterr().err


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
