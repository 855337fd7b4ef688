"""The optimizer against a scalar one, schedules, the configuration, the log, and memory."""

import json
import math
import tracemalloc
from dataclasses import fields, replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import minifm as mf
from minifm.errors import ConfigError, FormatError
from minifm.models.gpt import GPT, GPTConfig
from minifm.training import memory
from minifm.training.config import TrainConfig
from minifm.training.lr import WarmupCosine, WarmupStableDecay
from minifm.training.objectives import CausalLanguageModel
from minifm.training.optim import AdamW
from minifm.training.report import Metrics, Progress, Speed

# -- AdamW -----------------------------------------------------------------------------------


def scalar_adamw(p, grads, *, rate, beta1, beta2, epsilon, decay, scale):
    """Algorithm 2 of Loshchilov & Hutter (2019) for one number."""
    m = v = 0.0
    for t, g in enumerate(grads, 1):
        g *= scale
        m, v = beta1 * m + (1 - beta1) * g, beta2 * v + (1 - beta2) * g * g
        step = (m / (1 - beta1**t)) / (math.sqrt(v / (1 - beta2**t)) + epsilon)
        p -= rate * (step + decay * p)
    return p


@given(steps=st.integers(1, 20), beta1=st.sampled_from([0.0, 0.9]), seed=st.integers(0, 99),
       beta2=st.sampled_from([0.5, 0.999]), scale=st.sampled_from([1.0, 0.125]))
def test_adamw_equals_a_scalar_reference(steps, beta1, beta2, scale, seed):
    rng = mf.Rng(seed)
    matrix = mf.Tensor(rng.child("w").normal((2, 3), np.float64), requires_grad=True)
    bias = mf.Tensor(rng.child("b").normal((3,), np.float64), requires_grad=True)
    start = {"w": matrix.numpy().copy(), "b": bias.numpy().copy()}
    optimizer = AdamW({"w": matrix, "b": bias}, beta1=beta1, beta2=beta2, epsilon=1e-8,
                      weight_decay=0.3)
    grads = {"w": [], "b": []}
    for t in range(steps):
        for name, p in optimizer.parameters.items():
            p.grad = rng.child(name, "grad", t).normal(p.shape, np.float64)
            grads[name].append(p.grad)
        optimizer.update(0.01, scale)
    for name, p in optimizer.parameters.items():
        for place in np.ndindex(*p.shape):
            expected = scalar_adamw(
                start[name][place], [g[place] for g in grads[name]], rate=0.01, beta1=beta1,
                beta2=beta2, epsilon=1e-8, decay=0.3 if name == "w" else 0.0, scale=scale)
            assert abs(p.numpy()[place] - expected) <= 1e-12 * max(1, abs(expected))
        assert p.version == steps


def test_moving_average_follows_its_recurrence_and_lends_its_weights():
    w = mf.Tensor(np.array([[1.0, 2.0]]), requires_grad=True)
    optimizer = AdamW({"w": w}, average=0.75, weight_decay=0)
    expected = w.numpy().copy()
    for _ in range(5):
        w.grad = np.ones((1, 2))
        optimizer.update(0.1)
        expected += 0.25 * (w.numpy() - expected)
    trained, version = w.numpy().copy(), w.version
    with optimizer.averaged():
        assert np.array_equal(w.numpy(), expected) and w.version > version
    assert np.array_equal(w.numpy(), trained)
    assert not np.array_equal(expected, trained)


def test_frozen_and_unused_parameters_stay():
    frozen = mf.Tensor(np.ones((2, 2)))
    unused = mf.Tensor(np.ones((2, 2)), requires_grad=True)
    optimizer = AdamW({"frozen": frozen, "unused": unused})
    optimizer.update(0.1)
    assert list(optimizer.m) == ["unused"] and unused.version == frozen.version == 0
    assert np.array_equal(unused.numpy(), np.ones((2, 2))) and optimizer.gradient_norm() == 0


def test_gradient_norm_is_of_all_gradients_together():
    a, b = (mf.Tensor(np.zeros(2, np.float32), requires_grad=True) for _ in "ab")
    a.grad, b.grad = np.array([3, 0], np.float32), np.array([0, 4e30], np.float32)
    optimizer = AdamW({"a": a, "b": b})
    assert optimizer.gradient_norm() == float(np.float32(4e30))     # squares overflow float32
    b.grad = np.array([0, 4], np.float32)
    assert optimizer.gradient_norm() == 5


def test_optimizer_state_goes_out_and_in_bitwise_and_refuses_another():
    def trained(shape, average=0.5):
        w = mf.Tensor(np.ones(shape), requires_grad=True)
        optimizer = AdamW({"w": w}, average=average)
        w.grad = np.full(shape, 0.5)
        optimizer.update(0.1)
        return optimizer
    first, second = trained((2, 3)), trained((2, 3))
    second.parameters["w"].grad = np.full((2, 3), -7.0)
    second.update(0.3)
    second.load(first.state(), first.steps)
    assert second.steps == 1
    for key, array in first.state().items():
        assert np.array_equal(array, second.state()[key]), key
    assert set(first.state()) == {"m.w", "v.w", "average.w", "parameter.w"}
    assert second.m["w"] is not first.m["w"]
    before = second.state()["m.w"].copy()
    for other, said in [(trained((3, 2)), "m.w is [3, 2] float64, expected [2, 3] float64"),
                        (trained((2, 3), average=0.0), "lacks average.w; lacks parameter.w")]:
        with pytest.raises(FormatError) as refusal:
            second.load(other.state(), 1)
        assert said in str(refusal.value)
        assert np.array_equal(before, second.state()["m.w"])


# -- schedules and configuration ---------------------------------------------------------------


@given(warmup=st.integers(0, 20), level=st.integers(1, 40), decay=st.integers(1, 20))
def test_schedules_rise_to_their_peak_and_fall_to_their_end(warmup, level, decay):
    steps = warmup + level + decay
    for schedule in (WarmupCosine(0.5, warmup, steps, 0.125),
                     WarmupStableDecay(0.5, warmup, steps, decay, 0.125)):
        rates = [schedule(step) for step in range(steps + 3)]
        assert all(a < b for a, b in pairwise(rates[: warmup + 1]))
        assert all(a >= b for a, b in pairwise(rates[warmup:]))
        assert rates[warmup] == max(rates) == 0.5 and rates[steps:] == [0.125] * 3
        assert min(rates) > 0
    assert rates[warmup : warmup + level + 1] == [0.5] * (level + 1)    # the last is level
    assert math.isclose(WarmupCosine(0.5, 0, 2 * level, 0.125)(level), (0.5 + 0.125) / 2)


def test_every_setting_has_a_help_text_and_the_schedule_follows_decay():
    assert all(len(f.metadata["help"]) > 10 for f in fields(TrainConfig))
    assert isinstance(TrainConfig().schedule, WarmupCosine)
    assert TrainConfig(decay=7).schedule == WarmupStableDecay(1e-3, 100, 1000, 7, 1e-4)


@pytest.mark.parametrize("setting, said", [
    ({"steps": 0}, "steps: expected at least 1, got 0"),
    ({"steps": 2.0}, "steps: expected an integer, got 2.0"),
    ({"batch": True}, "batch: expected an integer, got True"),
    ({"learning_rate": math.nan}, "learning_rate: expected at least 0, got nan"),
    ({"learning_rate": "1e-3"}, "learning_rate: expected a number, got '1e-3'"),
    ({"beta2": 1.0}, "beta2: expected at least 0 and less than 1, got 1.0"),
    ({"batch": 4, "accumulate": 5}, "accumulate: 5 pieces of a batch of 4"),
    ({"steps": 100, "warmup": 100, "decay": 1}, "warmup: 100 steps of warm-up and 1 of decay"),
    ({"learning_rate": 1e-5, "final_learning_rate": 1e-4},
     "final_learning_rate: expected at most the peak 1e-05"),
])
def test_impossible_settings_are_refused_by_name(setting, said):
    with pytest.raises(ConfigError) as refusal:
        TrainConfig(**setting)
    assert str(refusal.value).startswith(said)


# -- the log ---------------------------------------------------------------------------------


def test_metrics_rewind_drops_later_and_half_written_lines(tmp_path):
    metrics = Metrics(tmp_path / "metrics.jsonl")
    for step in range(1, 6):
        metrics.append({"step": step, "loss": 1 / step})
    with open(metrics.path, "a") as file:
        file.write('{"step": 6, "lo')                   # kill -9 came here
    assert [line["step"] for line in metrics.read()] == [1, 2, 3, 4, 5]
    metrics.rewind(3)
    assert [json.loads(text)["loss"] for text in metrics.path.read_text().splitlines()] \
        == [1, 1 / 2, 1 / 3]
    metrics.path.write_text('{"step": 1}\nnonsense\n{"step": 2}\n')
    with pytest.raises(FormatError, match="line 2"):
        metrics.read()


def test_progress_in_a_file_is_a_few_lines(capsys):
    with Progress(10, 1000, True) as progress:
        for _ in range(990):
            progress.advance(loss="1.0")
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == Progress.LINES and lines[0] == "step 50 of 1,000: loss 1.0"
    assert lines[-1] == "step 1,000 of 1,000: loss 1.0"
    with Progress(0, 3, False) as progress:
        progress.advance(loss="1.0")
        progress.say("a word")
    assert capsys.readouterr().err == "a word\n"


def test_speed_is_work_over_the_time_spent_in_steps():
    speed = Speed(ceiling=100.0)
    speed.count(30, 400)
    speed.seconds = 8.0
    assert speed.figures() == {"tokens_per_second": 3.8, "utilisation": 0.5}
    speed.ceiling = None
    assert speed.figures() == {"tokens_per_second": 3.8}


# -- memory ----------------------------------------------------------------------------------

SMALL = GPTConfig(vocabulary=50, context=24, layers=2, heads=2, width=16)


def gpt_batch(config, rows, length, seed=0):
    ids = mf.Rng(seed).integers(0, config.vocabulary, (rows, length + 1))
    return ids[:, :-1], ids[:, 1:]


def measured_peak(model, batch, pieces):
    """Bytes that one step really takes at its height, gradients included."""
    rows = np.array_split(np.arange(len(batch[0])), pieces)

    def step():
        for part in rows:
            CausalLanguageModel().loss(model, tuple(x[part] for x in batch), denominator=1,
                                       rng=mf.Rng(0)).backward()

    step()                  # what is remembered by shape takes memory only once
    model.zero_grad()
    tracemalloc.start(1)
    try:
        before = tracemalloc.get_traced_memory()[0]
        step()
        return tracemalloc.get_traced_memory()[1] - before
    finally:
        tracemalloc.stop()
        model.zero_grad()


@pytest.mark.parametrize("rows, length, pieces, width", [(9, 24, 1, 32), (12, 16, 3, 64)])
def test_memory_estimate_meets_the_measured_peak(rows, length, pieces, width):
    config = replace(SMALL, width=width)
    model = GPT(config, mf.Rng(1))
    settings = TrainConfig(batch=rows, accumulate=pieces)
    need = memory.estimate(model, CausalLanguageModel(), gpt_batch(config, rows, length),
                           settings)
    assert need.weights == need.gradients == 4 * config.parameters
    assert need.moments == 8 * config.parameters and need.rows == rows // pieces
    peak = measured_peak(model, gpt_batch(config, rows, length), pieces)
    # Python's own objects differ by a few percent; one piece alone may need no gradients yet.
    spare = need.gradients if pieces == 1 else 0
    assert 0.95 * peak <= need.gradients + need.activations <= 1.05 * peak + spare
    assert all(p.grad is None for p in model.parameters().values())


@pytest.mark.parametrize("rows, length", [(1, 24), (3, 8)])
def test_kept_bytes_are_what_forward_leaves_allocated(rows, length):
    model = GPT(replace(SMALL, width=256), mf.Rng(1))      # arrays far larger than objects
    batch = gpt_batch(SMALL, rows, length)
    CausalLanguageModel().loss(model, batch, denominator=1, rng=None)       # warm caches
    tracemalloc.start(1)
    try:
        before = tracemalloc.get_traced_memory()[0]
        loss = CausalLanguageModel().loss(model, batch, denominator=1, rng=None)
        left = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    kept = memory.kept_bytes(loss)
    assert 0.85 * left <= kept <= left, "what is left besides is Python's own objects"


def test_what_does_not_fit_is_refused_with_what_to_lower():
    need = memory.Need(weights=10, gradients=10, moments=20, average=0, activations=80, rows=8,
                       row=10)
    memory.require(need, TrainConfig(batch=8), available=110)
    with pytest.raises(ConfigError, match=r"accumulate: at least 2 \(now 1\)"):
        memory.require(need, TrainConfig(batch=8), available=70)
    with pytest.raises(ConfigError, match="a smaller model or shorter sequences are needed$"):
        memory.require(need, TrainConfig(batch=8), available=39)
    with pytest.raises(ConfigError, match="or average 0"):
        memory.require(need, TrainConfig(batch=8, average=0.9), available=39)
    memory.require_parameters(100, TrainConfig(), available=1600)
    with pytest.raises(ConfigError, match="100 weights with gradients and moments"):
        memory.require_parameters(100, TrainConfig(average=0.9), available=1600)


def test_control_groups_and_meminfo_are_read(tmp_path):
    (tmp_path / "meminfo").write_text("MemTotal: 90 kB\nMemAvailable:   70 kB\n")
    assert memory._machine(tmp_path / "meminfo") == [70 * 1024]
    inner = tmp_path / "sys/fs/cgroup/outer/inner"
    inner.mkdir(parents=True)
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text("0::/outer/inner\n1:cpu,memory:/box\n")
    (inner / "memory.max").write_text("max\n")
    (inner / "memory.current").write_text("1000\n")
    (inner.parent / "memory.max").write_text("5000\n")
    (inner.parent / "memory.current").write_text("2000\n")
    (inner.parent / "memory.stat").write_text("anon 1500\ninactive_file 500\n")
    old = tmp_path / "sys/fs/cgroup/memory/box"
    old.mkdir(parents=True)
    (old / "memory.limit_in_bytes").write_text("900\n")
    (old / "memory.usage_in_bytes").write_text("800\n")
    assert sorted(memory._control_groups(tmp_path)) == [100, 3500]
    assert memory.available_bytes() > 2**20
