"""The laws of training: pieces equal the whole, resumed equals uninterrupted, a kill loses nothing.

The model is tiny and the data are noise: what is tested is that the same numbers come out.
"""

import json
import math
import os
import signal
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import minifm as mf
from minifm import hub
from minifm.errors import ConfigError, FormatError
from minifm.models import Llama, LlamaConfig
from minifm.models.gpt import GPT, GPTConfig
from minifm.training import checkpoint, memory, report
from minifm.training.config import TrainConfig
from minifm.training.objectives import CausalLanguageModel
from minifm.training.signals import Interrupted
from minifm.training.trainer import Diverged, Trainer

MODEL = GPTConfig(vocabulary=16, context=6, layers=1, heads=2, width=8, dropout=0.1)
CONFIG = TrainConfig(steps=7, batch=4, accumulate=2, warmup=2, average=0.5, evaluate_every=3,
                     evaluate_batches=2, save_every=2, seed=5)
SPEEDS = {"tokens_per_second", "utilisation"}       # what two equal runs do not share


class Noise:
    """Random tokens, of which some targets do not count; remembers which steps were asked for."""

    count = 5       # as held-out data

    def __init__(self, seed, rows=4, length=6, before=None):
        self.seed, self.shape, self.before, self.asked = seed, (rows, length + 1), before, []
        self.description = {"kind": "noise", "seed": seed, "shape": list(self.shape)}

    def batch(self, step):
        self.asked.append(step)
        if self.before:
            self.before(step)
        rng = mf.Rng(self.seed).child("batch", step)
        ids = rng.child("ids").integers(0, MODEL.vocabulary, self.shape)
        targets = np.where(rng.child("hidden").integers(0, 4, self.shape) == 0, -100, ids)
        return ids[:, :-1], targets[:, 1:]


@dataclass
class Letters:
    """A tokenizer whose token i is i + 1 letters, so that every token has its own length."""

    vocabulary: int = MODEL.vocabulary
    end_of_text: int = 0

    @property
    def token_lengths(self):
        return np.arange(1, self.vocabulary + 1)


def trainer_in(directory, config=CONFIG, *, model=MODEL, data=None, objective=None, held_out=11,
               tokenizer=None, draw=False):
    return Trainer(GPT(model, mf.Rng(config.seed).child("model")), data or Noise(3), config,
                   directory=directory, objective=objective, shown=False, tokenizer=tokenizer,
                   held_out=None if held_out is None else Noise(held_out), draw=draw,
                   check_memory=False)


def everything(trainer):
    """All that must be equal in two equal runs."""
    log = [{k: v for k, v in line.items() if k not in SPEEDS} for line in trainer.metrics.read()]
    arrays = {name: p.numpy().copy() for name, p in trainer.model.parameters().items()}
    arrays |= {name: x.copy() for name, x in trainer.optimizer.state().items()}
    return arrays, log, (trainer.step, trainer.tokens, trainer.best, trainer.optimizer.steps)


def assert_same(found, expected):
    assert found[1:] == expected[1:]
    assert found[0].keys() == expected[0].keys()
    for name, array in expected[0].items():
        assert array.tobytes() == found[0][name].tobytes(), name


@pytest.fixture(scope="module")
def is_uninterrupted(tmp_path_factory):
    """A check that a trainer has come to where one that never stopped has come."""
    whole = trainer_in(tmp_path_factory.mktemp("whole") / "run")
    whole.train()
    expected = everything(whole)
    return lambda trainer: assert_same(everything(trainer), expected)


# -- pieces equal the whole ----------------------------------------------------------------------


@given(pieces=st.integers(1, 6), seed=st.integers(0, 99))
def test_accumulation_over_pieces_equals_one_large_batch(pieces, seed):
    def trained(accumulate):
        # epsilon 1: AdamW then is smooth and does not magnify rounding near a zero gradient.
        config = TrainConfig(steps=3, batch=6, accumulate=accumulate, warmup=0, epsilon=1.0,
                             learning_rate=0.1, clip=0.5)
        with tempfile.TemporaryDirectory() as directory:
            model = GPT(replace(MODEL, dropout=0.0), mf.Rng(seed))
            for p in model.parameters().values():
                p.data = p.data.astype(np.float64)
            trainer = Trainer(model, Noise(seed, rows=6), config, directory=directory, shown=False,
                              check_memory=False)
            losses = [trainer._update()[0]["loss"] for trainer.step in range(3)]
        return losses, {name: p.numpy() for name, p in model.parameters().items()}
    losses, weights = trained(pieces)
    whole_losses, whole = trained(1)
    np.testing.assert_allclose(losses, whole_losses, rtol=1e-12)
    for name, array in weights.items():
        np.testing.assert_allclose(array, whole[name], rtol=1e-12, atol=1e-12, err_msg=name)


# -- resumed equals uninterrupted ----------------------------------------------------------------


@given(stops=st.lists(st.integers(0, 7), min_size=1, max_size=3).map(sorted))
def test_k_steps_and_then_the_rest_equal_all_steps(stops, is_uninterrupted):
    with tempfile.TemporaryDirectory() as directory:
        asked = []
        for number, stop in enumerate([*stops, None]):
            data = Noise(3)
            trainer = trainer_in(directory, data=data)
            if number:
                trainer.resume()
            assert trainer.step == (stops[number - 1] if number else 0)
            data.asked.clear()
            trainer.train(until=stop)
            asked += data.asked
        assert asked == list(range(7))
        is_uninterrupted(trainer)


def test_resume_elsewhere_leaves_the_first_run_alone(tmp_path, is_uninterrupted):
    config = replace(CONFIG, keep=9)
    first = trainer_in(tmp_path / "first", config)
    first.train()
    with pytest.raises(ConfigError, match="has gone on to step 7, beyond step-00000004"):
        trainer_in(tmp_path / "first", config).resume(tmp_path / "first/step-00000004")
    second = trainer_in(tmp_path / "second", config)
    second.resume(tmp_path / "first/step-00000004")
    assert second.step == 4 and [line["step"] for line in second.metrics.read()][-1] == 4
    second.train()
    is_uninterrupted(second)
    assert checkpoint.steps_in(tmp_path / "first") == [2, 3, 4, 6, 7]


@pytest.mark.parametrize("change, said", [
    ({"config": replace(CONFIG, clip=0.5, beta1=0.8)},
     ["config.beta1: 0.9 in the checkpoint, 0.8 now", "config.clip: 1.0 in the checkpoint, 0.5"]),
    ({"data": Noise(4)}, ["data.training.seed: 3 in the checkpoint, 4 now"]),
    ({"held_out": None}, ["data.held_out: {", "in the checkpoint, None now"]),
    ({"model": replace(MODEL, dropout=0.2)}, ["model.dropout: 0.1 in the checkpoint, 0.2 now"]),
])
def test_resuming_another_run_is_refused_with_every_difference(tmp_path, change, said):
    trainer_in(tmp_path).train(until=3)
    other = trainer_in(tmp_path, **change)
    with pytest.raises(ConfigError) as refusal:
        other.resume()
    assert all(part in str(refusal.value) for part in said), str(refusal.value)
    assert other.step == 0
    other.resume(force=True)
    other.train()
    assert other.step == 7


def test_settings_that_leave_the_weights_alone_may_change(tmp_path):
    trainer_in(tmp_path).train(until=3)
    other = trainer_in(tmp_path, replace(CONFIG, keep=3, save_every=1, log_every=2, skip_limit=0))
    other.resume()
    other.train()
    assert checkpoint.steps_in(tmp_path) == [5, 6, 7]


# -- signals, and a kill at any moment -----------------------------------------------------------


def interrupting(*signals, step):
    def before(asked):
        if asked == step:
            for number in signals:
                os.kill(os.getpid(), number)
    return before


@pytest.mark.parametrize("number, code", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_finishes_the_step_and_saves(tmp_path, is_uninterrupted, number, code):
    handlers = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]
    trainer = trainer_in(tmp_path, data=Noise(3, before=interrupting(number, step=4)))
    with pytest.raises(Interrupted) as stop:
        trainer.train()
    assert stop.value.exit_code == code and stop.value.step == 5
    assert stop.value.checkpoint == tmp_path / "step-00000005"
    assert handlers == [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]
    resumed = trainer_in(tmp_path)
    resumed.resume()
    resumed.train()
    is_uninterrupted(resumed)


def test_a_second_interrupt_stops_at_once(tmp_path):
    before = interrupting(signal.SIGINT, signal.SIGINT, step=3)
    with pytest.raises(KeyboardInterrupt):
        trainer_in(tmp_path, data=Noise(3, before=before)).train()
    assert checkpoint.steps_in(tmp_path)[-1] == 3       # the best so far
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


KILLED = """
import os, signal, sys
sys.path[:0] = [{tests!r}, {root!r}]
from test_training import trainer_in
trainer = trainer_in({run!r})
if {resume}:
    trainer.resume()
changes, events = 0, {{"os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.symlink", "open"}}
def hook(event, arguments):     # told by Python before every change of the file system
    global changes
    if event in events and (event != "open" or "w" in str(arguments[1]) or
                            "a" in str(arguments[1])):
        changes += 1
        if changes == {kill_at}:
            os.kill(os.getpid(), signal.SIGKILL)
sys.addaudithook(hook)
trainer.train()
print(changes)
"""


def run_killed(run, kill_at, resume=False):
    """Train in a process that is killed just before its change number `kill_at` of the disk."""
    script = KILLED.format(tests=str(Path(__file__).parent), root=str(Path(mf.__file__).parents[1]),
                           run=str(run), kill_at=kill_at, resume=resume)
    return subprocess.run([sys.executable, "-c", script], capture_output=True, text=True,
                          timeout=120, check=False)


def test_a_kill_at_any_change_of_the_disk_loses_no_checkpoint(tmp_path, is_uninterrupted):
    whole = run_killed(tmp_path / "whole", -1)
    assert whole.returncode == 0, whole.stderr
    changes = int(whole.stdout)
    assert changes > 100
    seen = set()
    for kill_at in range(2, changes, changes // 12):
        run = tmp_path / str(kill_at)
        assert run_killed(run, kill_at).returncode == -signal.SIGKILL
        trainer = trainer_in(run)
        steps = checkpoint.steps_in(run)
        seen.add(steps[-1] if steps else None)
        if steps:
            trainer.resume()
            assert (run / "last").resolve().name == f"step-{steps[-1]:08d}"
        trainer.train()
        is_uninterrupted(trainer)
        assert checkpoint.steps_in(run) == sorted({7, trainer.best["step"]})
        assert not [path for path in run.iterdir() if path.name.startswith(".")]
    assert len(seen) >= 3


# -- what is not finite --------------------------------------------------------------------------


class Exploding(CausalLanguageModel):
    """The loss of chosen steps goes through log 0 or has an infinite slope."""

    def __init__(self, steps, *, slope=False):
        super().__init__()
        self.steps, self.slope = steps, slope

    def training_loss(self, model, batch, *, denominator, rng):
        loss, figures = super().training_loss(model, batch, denominator=denominator, rng=rng)
        if rng is not None and rng.path[2] in self.steps:
            loss = loss + (mf.sqrt(loss * 0.0) if self.slope else mf.log(loss * 0.0))
        return loss, figures


@pytest.mark.parametrize("slope, named", [(False, "Log forward"), (True, "backward")])
def test_a_step_that_is_not_finite_is_skipped_and_explained(tmp_path, capsys, slope, named):
    trainer = trainer_in(tmp_path, objective=Exploding({3}, slope=slope))
    trainer.train(until=3)
    before, _, _ = everything(trainer)
    trainer.train(until=4)
    after, log, _ = everything(trainer)
    for name, array in before.items():
        assert array.tobytes() == after[name].tobytes(), name
    assert (trainer.step, trainer.skipped, trainer.optimizer.steps) == (4, 1, 3)
    assert all(p.grad is None for p in trainer.model.parameters().values())
    message = log[-1]["skipped"]
    assert message.startswith("step 4 skipped, loss ") and named in message
    assert "test_training.py" in message and message in capsys.readouterr().err
    trainer.train()
    assert trainer.skipped == 0 and trainer.optimizer.steps == 6


def test_too_many_skipped_steps_in_a_row_stop_the_run(tmp_path):
    config = replace(CONFIG, skip_limit=2)
    trainer = trainer_in(tmp_path, config, objective=Exploding({1, 4, 5, 6}))
    with pytest.raises(Diverged, match="3 steps in a row"):
        trainer.train()
    assert checkpoint.steps_in(tmp_path)[-1] == 6
    resumed = trainer_in(tmp_path, config)
    resumed.resume()
    assert resumed.skipped == 2         # the row goes on over a resume
    resumed.train()
    assert resumed.skipped == 0 and resumed.step == 7


# -- evaluation, links, files --------------------------------------------------------------------


def test_evaluation_is_the_mean_over_held_out_targets(tmp_path):
    trainer = trainer_in(tmp_path, tokenizer=Letters(), config=replace(CONFIG, average=0.0))
    found = trainer.evaluate()
    nats = count = size = 0
    for i in range(2):
        ids, targets = Noise(11).batch(i)
        counted = targets[targets != -100]
        nats += mf.cross_entropy(trainer.model(ids), targets, denominator=1).item()
        count, size = count + counted.size, size + int((counted + 1)[counted != 0].sum())
    assert math.isclose(found["held_out_loss"], nats / count, rel_tol=1e-5)
    assert math.isclose(found["bits_per_byte"], nats / math.log(2) / size, rel_tol=1e-5)
    assert abs(found["held_out_loss"] - math.log(MODEL.vocabulary)) < 0.1   # nothing is learnt yet


def test_links_name_the_last_and_the_best_and_others_go(tmp_path, monkeypatch):
    losses = iter([3.0, 1.0, math.nan, 2.0])
    monkeypatch.setattr(Trainer, "evaluate", lambda self: {"held_out_loss": next(losses)})
    config = replace(CONFIG, steps=8, evaluate_every=2, save_every=1, keep=2)
    trainer_in(tmp_path, config).train()
    assert checkpoint.steps_in(tmp_path) == [4, 7, 8]
    assert os.readlink(tmp_path / "last") == "step-00000008"
    assert os.readlink(tmp_path / "best") == "step-00000004"
    state = json.loads((tmp_path / "last/trainer_state/state.json").read_text())
    assert state["best"] == {"loss": 1.0, "step": 4} and state["config"] == asdict(config)


@pytest.mark.parametrize("average", [0.0, 0.5])
def test_a_checkpoint_is_a_model_for_everyone(tmp_path, average):
    trainer = trainer_in(tmp_path, replace(CONFIG, average=average))
    trainer.train(until=3)
    own = {name: p.numpy() for name, p in trainer.model.parameters().items()}
    loaded = hub.load_model(tmp_path / "last")
    for name, p in loaded.parameters().items():
        expected = trainer.optimizer.averages[name] if average else own[name]
        assert np.array_equal(p.numpy(), expected), name
    assert loaded.config == MODEL


@pytest.mark.parametrize("file, text, said", [
    ("trainer_state/state.json", "{", "no trainer state can be read"),
    ("trainer_state/state.json", "{}", "format: is missing"),
    ("trainer_state/state.json", None, "no trainer state can be read"),
    ("trainer_state/optimizer.safetensors", "short", "optimizer.safetensors"),
    ("model.safetensors", "short", "model.safetensors"),
])
def test_a_damaged_checkpoint_is_refused_and_nothing_changes(tmp_path, file, text, said):
    trainer_in(tmp_path).train(until=2)
    damaged = tmp_path / "last" / file
    damaged.unlink() if text is None else damaged.write_text(text)
    trainer = trainer_in(tmp_path)
    before = everything(trainer)
    with pytest.raises(FormatError) as refusal:
        trainer.resume()
    assert said in str(refusal.value)
    assert_same(everything(trainer), before)


@pytest.mark.parametrize("file", ["model.safetensors", "trainer_state/optimizer.safetensors"])
def test_one_flipped_bit_in_a_checkpoint_is_refused(tmp_path, file):
    trainer_in(tmp_path).train(until=2)
    damaged = tmp_path / "last" / file
    contents = bytearray(damaged.read_bytes())
    contents[-3] ^= 1
    damaged.write_bytes(contents)
    with pytest.raises(FormatError, match=f"{file}: is damaged"):
        trainer_in(tmp_path).resume()


@pytest.mark.parametrize("change, said", [
    ({"step": 5}, "step: is 5 in step-00000002"), ({"updates": -5}, "-5 updates"),
    ({"updates": 10**30}, "updates"), ({"skipped": 3}, "3 skipped steps in 2 steps"),
    ({"best": {}}, "best: expected a loss and a step"),
    ({"best": {"loss": "a", "step": 1}}, "best: expected"), ({"sha256": {"gone": "0"}}, "missing"),
])
def test_a_state_that_contradicts_itself_is_refused(tmp_path, change, said):
    trainer_in(tmp_path).train(until=2)
    file = tmp_path / "last/trainer_state/state.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(FormatError, match=said):
        trainer_in(tmp_path).resume()


def test_a_run_whose_last_step_was_skipped_is_no_success(tmp_path):
    with pytest.raises(Diverged, match="the last 2 of 7 steps were not finite"):
        trainer_in(tmp_path, objective=Exploding({5, 6})).train()
    assert checkpoint.steps_in(tmp_path)[-1] == 7


def test_a_run_is_not_overwritten_nor_resumed_from_nothing(tmp_path):
    with pytest.raises(ConfigError, match="holds no checkpoint to resume from"):
        trainer_in(tmp_path).resume()
    trainer_in(tmp_path).train(until=1)
    with pytest.raises(ConfigError, match="already holds a run"):
        trainer_in(tmp_path).train()
    with pytest.raises(ConfigError, match="the data come 3 sequences a step"):
        trainer_in(tmp_path, data=Noise(3, rows=3))


def test_a_run_that_does_not_fit_memory_is_refused_before_it_starts(tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "available_bytes", lambda: 1000)
    with pytest.raises(ConfigError, match="memory: training needs"):
        Trainer(GPT(MODEL, mf.Rng(0)), Noise(3), CONFIG, directory=tmp_path / "run", shown=False)
    assert not (tmp_path / "run").exists()


def test_the_loss_is_drawn_and_a_missing_library_is_said_once(tmp_path, monkeypatch, capsys):
    trainer_in(tmp_path / "a", draw=True).train(until=2)
    assert (tmp_path / "a/loss.png").read_bytes().startswith(b"\x89PNG")
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    trainer_in(tmp_path / "b", draw=True).train(until=5)
    assert capsys.readouterr().err.count("matplotlib is not installed") == 1
    assert not (tmp_path / "b/loss.png").exists()


class Counting:
    """The data that a model can learn: each token is the one before plus one."""

    def __init__(self):
        self.description = {"kind": "counting"}

    def batch(self, step):
        first = mf.Rng(0).child(step).integers(0, MODEL.vocabulary, (4, 1))
        ids = (first + np.arange(7)) % MODEL.vocabulary
        return ids[:, :-1], ids[:, 1:]


def test_a_model_learns_to_count(tmp_path):
    config = TrainConfig(steps=150, batch=4, warmup=10, learning_rate=0.02, evaluate_every=0)
    trainer = trainer_in(tmp_path, config, data=Counting(), model=replace(MODEL, dropout=0.0))
    trainer.train()
    losses = [line["loss"] for line in trainer.metrics.read()]
    assert abs(losses[0] - math.log(MODEL.vocabulary)) < 0.2
    assert max(losses[-10:]) < 0.1
    assert report.plot_losses([], tmp_path / "empty.png")


@pytest.mark.parametrize("accumulate", [1, 2])
def test_the_balance_of_experts_is_learnt_and_logged(tmp_path, accumulate):
    """Only in training: the loss that is logged is that of the text alone, as the held-out one."""
    shape = LlamaConfig(vocabulary=MODEL.vocabulary, context=6, layers=2, heads=2, width=8,
                        hidden=8, experts=4, balance=0.5)
    found = {}
    for balance in (0.5, 0.0):
        model = Llama(replace(shape, balance=balance), mf.Rng(1))
        trainer = Trainer(
            model, Noise(3), replace(CONFIG, accumulate=accumulate, average=0.0),
            directory=tmp_path / str(balance), shown=False, draw=False, check_memory=False,
            held_out=Noise(11))
        first = trainer.evaluate()["held_out_loss"]
        trainer.train()
        line = trainer.metrics.read()[0]
        found[balance] = line["loss"], line.get("unevenness"), first, line["gradient_norm"]
    assert found[0.0][1] is None and found[0.5][1] >= 1.9       # two of four experts each
    assert found[0.5][0] == found[0.0][0]                       # of the weights before that step
    assert found[0.5][3] != pytest.approx(found[0.0][3], rel=1e-3)      # which learn to be even
    assert found[0.5][2] == found[0.0][2]
