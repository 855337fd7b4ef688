"""What observers tell: time by op, FLOPs, bytes, and where the first non-finite value came from."""

import numpy as np
import pytest

import minifm as mf
from minifm.errors import AnomalyError
from minifm.models import GPT, GPTConfig
from minifm.op import OPS, Op, observers

CONFIG = GPTConfig(vocabulary=64, context=8, layers=2, heads=2, width=16)


@pytest.fixture
def step():
    """A training step of a small GPT, as a function."""
    model, ids = GPT(CONFIG, mf.Rng(0)), mf.Rng(1).integers(0, 64, (3, 9))
    return lambda: model.loss(ids[:, :-1], ids[:, 1:]).backward()


def test_the_timer_counts_each_op_forward_and_backward(backend, step):
    with mf.OpTimer() as timer:
        step()
    assert timer.calls["Attention", "forward"] == timer.calls["Attention", "backward"] == 2
    assert timer.calls["Linear", "forward"] == 8 == timer.calls["Linear", "backward"]
    assert timer.calls["LayerNorm", "forward"] == 5
    assert all(seconds > 0 for seconds in timer.seconds.values())
    assert timer.total == pytest.approx(sum(timer.seconds.values()))
    rows = timer.table().splitlines()
    assert len(rows) == 1 + len(timer.calls) and rows[0].split() == [
        "op", "phase", "calls", "ms", "share"]


def test_observers_say_in_the_interpreter_what_they_have_seen(step):
    with mf.OpTimer() as timer, mf.FlopCounter() as counter, mf.MemoryMeter() as meter:
        step()
    assert repr(timer).startswith(f"OpTimer({sum(timer.calls.values())} calls, ")
    assert repr(counter) == f"FlopCounter({counter.total:,} FLOPs; see flops)"
    assert repr(meter).startswith(f"MemoryMeter({meter.bytes:,} bytes, the largest array ")
    assert repr(mf.MemoryMeter()).endswith("0 of no op)")


def test_flops_equal_those_of_the_configuration(backend, step):
    """What the ops declare adds up to what the model's configuration says without running.

    The fused loss computes its logits again backward, which is no useful work.
    """
    with mf.FlopCounter() as counter:
        step()
    tokens = 3 * 8
    again = 2 * tokens * CONFIG.vocabulary * CONFIG.width
    assert counter.total - again == tokens * CONFIG.flops_per_token(8, training=True)
    with mf.no_grad(), mf.FlopCounter() as counter:
        GPT(CONFIG, mf.Rng(0))(mf.Rng(1).integers(0, 64, (3, 8)))
    assert counter.total == tokens * CONFIG.flops_per_token(8)


def test_bytes_are_those_of_the_arrays_that_ops_make():
    x = mf.Tensor(np.ones((4, 8), np.float32), requires_grad=True)
    with mf.MemoryMeter() as meter:
        y = mf.exp(x)
    assert meter.bytes == 128 and meter.largest == (128, "Exp forward")
    with meter:
        y.sum().backward()
    assert meter.bytes == 128 + 4 + 128 + 128


def overflowing(x):
    return mf.exp(x * 1000.0)


def test_the_first_non_finite_value_is_traced_to_its_op_and_line(backend):
    x = mf.Tensor(np.full(3, 5.0, np.float32), requires_grad=True)
    line = overflowing.__code__.co_firstlineno + 1
    with pytest.raises(AnomalyError) as found, np.errstate(all="ignore"), mf.detect_anomaly():
        mf.log(overflowing(x)).sum()
    assert "Exp forward: first non-finite value, shape (3,)" in str(found.value)
    assert f"test_observe.py:{line} in overflowing" in str(found.value)


def test_a_non_finite_gradient_is_traced_to_the_line_of_its_forward(backend):
    x = mf.Tensor(np.zeros(3, np.float32), requires_grad=True)
    told = r"Sqrt backward.*gradient.*test_observe.py:\d+ in test_a"
    with pytest.raises(AnomalyError, match=told):
        with np.errstate(all="ignore"), mf.detect_anomaly():
            mf.sqrt(x).sum().backward()


def test_a_mask_of_infinities_passes(backend):
    mask = np.where(np.tri(4, dtype=bool), 0, -np.inf).astype(np.float32)
    x = mf.Tensor(np.ones((1, 1, 4, 2), np.float32))
    with mf.detect_anomaly():
        y = mf.attention(x, x, x, bias=mask)
    assert np.isfinite(y.numpy()).all()


def test_observers_nest_and_leave_nothing_behind():
    with mf.FlopCounter() as outer, mf.FlopCounter() as inner:
        mf.matmul(mf.Tensor(np.ones((2, 3))), mf.Tensor(np.ones((3, 4))))
    assert outer.total == inner.total == 2 * 2 * 3 * 4
    with pytest.raises(ZeroDivisionError), mf.OpTimer():
        1 / 0
    assert observers == []


def test_every_product_declares_its_flops():
    products = {"Matmul", "Linear", "Attention", "LinearCrossEntropy", "Conv2d", "ConvTranspose2d"}
    default = Op.flops.__func__
    declared = {name for name, op in OPS.items() if op.flops.__func__ is not default}
    assert declared == products
