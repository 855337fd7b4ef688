"""Activation checkpointing: bit for bit the plain call, in less memory."""

import tracemalloc
from dataclasses import replace

import numpy as np
import pytest

import minifm as mf
from minifm.errors import GraphError
from minifm.models.gpt import GPT, GPTConfig
from minifm.tensor import Checkpoint
from minifm.training import memory
from minifm.training.config import TrainConfig
from minifm.training.objectives import CausalLanguageModel

SHAPE = GPTConfig(vocabulary=60, context=48, layers=4, heads=2, width=32, dropout=0.2)
IDS = mf.Rng(5).integers(0, 60, (4, 49))
BATCH = IDS[:, :-1], IDS[:, 1:]


def leaf(*shape, seed=0):
    values = np.random.default_rng(seed).standard_normal(shape).astype(np.float32)
    return mf.Tensor(values, requires_grad=True)


def gradients(compute, leaves):
    """The value of `compute()` and the gradients that its backward leaves, as bytes."""
    for x in leaves:
        x.grad = None
    loss = compute()
    loss.backward()
    return [loss.numpy().tobytes()] + [None if x.grad is None else x.grad.tobytes()
                                       for x in leaves]


@pytest.mark.parametrize("dropout", [0.0, 0.2])
def test_gpt_is_bitwise_the_same(backend, dropout):
    model = GPT(replace(SHAPE, dropout=dropout), mf.Rng(0))
    leaves = list(model.parameters().values())

    def compute(recompute):
        return lambda: model.loss(*BATCH, rng=mf.Rng(3), recompute=recompute)

    assert gradients(compute(True), leaves) == gradients(compute(False), leaves)


def perceptron(x, w, v):
    return mf.linear(mf.linear(x, w, activation=mf.gelu_tanh), v, residual=x)


USES = {
    "an input used before, inside and after": lambda call, x, w, v:
        (call(perceptron, x * 3, w, v) * x + x).sum(),
    "tensors from around": lambda call, x, w, v:
        call(lambda y: perceptron(y, w, v) * x, x * 2).sum(),
    "an input that is used twice": lambda call, x, w, v:
        call(lambda a, b: perceptron(a, w, v) * b, *[x * 2] * 2).sum(),
    "several outputs, one unused": lambda call, x, w, v:
        sum_of(call(lambda y: (y * 2, mf.exp(y), perceptron(y, w, v)), x)[::2]),
    "an output that is an input": lambda call, x, w, v:
        sum_of(call(lambda y: (y, perceptron(y, w, v)), x)),
    "calls in a chain": lambda call, x, w, v:
        call(perceptron, call(perceptron, x, w, v), w, v).sum(),
    "calls in calls": lambda call, x, w, v:
        call(lambda y: call(perceptron, call(mf.exp, y), w, v) * y, x).sum(),
    "numbers and arrays": lambda call, x, w, v:
        call(lambda y, a, n: perceptron(y, w, v) * a * n, x, np.ones((3, 4), np.float32), 2).sum(),
}


def sum_of(tensors):
    return mf.concatenate(list(tensors)).sum()


@pytest.mark.parametrize("name", USES)
def test_any_use_is_bitwise_the_same(backend, name):
    leaves = [leaf(3, 4), leaf(4, 8, seed=1), leaf(8, 4, seed=2)]
    plain = gradients(lambda: USES[name](lambda f, *inputs: f(*inputs), *leaves), leaves)
    assert gradients(lambda: USES[name](mf.checkpoint, *leaves), leaves) == plain


def test_frozen_parts_get_no_gradient():
    x, w = mf.Tensor(np.ones((2, 3), np.float32)), leaf(3, 3)
    mf.checkpoint(lambda a: (a @ w).sum(), x).backward()
    assert x.grad is None and w.grad is not None
    y = mf.checkpoint(mf.exp, x)
    assert not y.requires_grad and y.op is None


def test_without_recording_it_is_the_plain_call():
    x = leaf(3)
    with mf.no_grad():
        assert mf.checkpoint(mf.exp, x).op is None
    y = mf.checkpoint(mf.exp, x)
    assert type(y.op) is Checkpoint
    with mf.no_grad():
        y.backward(np.ones(3, np.float32))
    assert np.array_equal(x.grad, np.exp(x.data))


def test_a_weight_changed_meanwhile_raises():
    x, w = leaf(2, 3), leaf(3, 3)
    for weights in ((x, w), (x,)):
        loss = mf.checkpoint(lambda a, b=w: (a @ b).sum(), *weights)
        w.data += 1
        w.version += 1
        with pytest.raises(GraphError, match="changed in place"):
            loss.backward()


def test_a_second_backward_raises():
    loss = mf.checkpoint(lambda a: mf.exp(a).sum(), leaf(3))
    loss.backward()
    with pytest.raises(GraphError, match="consumed"):
        loss.backward()


def test_the_call_runs_on_the_backend_of_its_forward():
    seen, x = [], leaf(3)

    def call(a):
        seen.append(mf.backend())
        return mf.exp(a).sum()

    with mf.use("numpy") as numpy:
        loss = mf.checkpoint(call, x)
    loss.backward()
    assert seen == [numpy, numpy]


def test_it_repeats_in_the_precision_of_its_forward(backend):
    leaves = [leaf(3, 4), leaf(4, 8, seed=1), leaf(8, 4, seed=2)]

    def compute(call):
        with mf.precision("bf16"):
            loss = call(perceptron, *leaves).sum()
        return loss

    plain = gradients(lambda: compute(lambda f, *inputs: f(*inputs)), leaves)
    assert gradients(lambda: compute(mf.checkpoint), leaves) == plain
    assert gradients(lambda: perceptron(*leaves).sum(), leaves) != plain


# -- memory ----------------------------------------------------------------------------------------


def peak(model, objective):
    """Bytes at the height of a step, and what its forward keeps."""
    def step():
        loss = objective.loss(model, BATCH, denominator=1, rng=mf.Rng(0))
        kept = memory.kept_bytes(loss)
        loss.backward()
        return kept

    step()
    tracemalloc.start(1)
    try:
        before = tracemalloc.get_traced_memory()[0]
        kept = step()
        return tracemalloc.get_traced_memory()[1] - before, kept
    finally:
        tracemalloc.stop()
        model.zero_grad()


def test_it_needs_less_memory_and_the_estimate_knows(backend):
    model = GPT(replace(SHAPE, layers=8), mf.Rng(0))
    plain, all_kept = peak(model, CausalLanguageModel())
    lean, kept = peak(model, CausalLanguageModel(recompute=True))
    entering = 4 * 48 * 32 * 4          # bytes of what enters a block
    assert 8 * entering < kept < 14 * entering < all_kept / 5
    assert lean < plain / 3
    needs = [memory.estimate(model, CausalLanguageModel(recompute), BATCH, TrainConfig(batch=4))
             for recompute in (False, True)]
    assert needs[1].activations < needs[0].activations / 3
    assert 0.9 * lean < needs[1].activations < 1.1 * lean
