"""Backends against the reference, arrays that nobody may look into, and the choice of a backend."""

import os
import subprocess
import sys

import numpy as np
import pytest
from conftest import AVAILABLE
from hypothesis import given
from hypothesis import strategies as st
from opaque import OpaqueArray, OpaqueBackend

import minifm as mf
from minifm import backends
from minifm.backends.reference import Reference
from minifm.backends.reference.fallback import composed, count_fallbacks
from minifm.errors import BackendUnavailable, FallbackError
from minifm.op import OPS
from minifm.testing import laws, parity, strategies

EVERY_OP = [pytest.param(op, id=name) for name, op in list(OPS.items())]
OTHERS = [name for name in AVAILABLE if name != "numpy"]


# -- parity ------------------------------------------------------------------------------------


@pytest.mark.parametrize("op", EVERY_OP)
@given(data=st.data())
def test_agrees_with_the_reference(backend, op, data):
    parity.agrees_with_reference(data.draw(strategies.examples(op, np.float32, most=2**14)))


@pytest.mark.parametrize("name", OTHERS)
@pytest.mark.parametrize("law", laws.ANY_WIDTH, ids=lambda law: law.__name__)
@pytest.mark.parametrize("op", EVERY_OP)
@given(data=st.data())
def test_law_in_float32(name, op, law, data):
    with mf.use(name):
        law(data.draw(strategies.examples(op, np.float32)))


@pytest.mark.parametrize("op", parity.UNARY, ids=lambda op: op.__name__)
def test_special_values_agree_with_the_reference(backend, op):
    parity.special_values_agree(op)


@pytest.mark.parametrize("name", ["exp", "log", "sqrt", "sin", "cos", "tanh", "negative", "sign",
                                  "absolute"])
def test_the_reference_maps_special_values_as_numpy_does(name):
    with np.errstate(all="ignore"):
        found = getattr(Reference(), name)(parity.SPECIAL)
        wanted = getattr(np, name)(parity.SPECIAL)
    assert np.array_equal(found, wanted, equal_nan=True)


@pytest.mark.parametrize("name", ["relu", "silu", "gelu", "gelu_tanh", "gelu_quick"])
def test_the_slope_of_an_activation_far_out_is_0_or_1(backend, name):
    x = np.array([20, 3e19, 1e38, -200, -3e19, -1e38], np.float32)
    with np.errstate(over="ignore"):
        slope = getattr(backend, name + "_backward")(backend.from_numpy(np.ones_like(x)),
                                                     backend.from_numpy(x))
    np.testing.assert_array_equal(backend.to_numpy(slope), [1, 1, 1, 0, 0, 0])


WIDE = {"exp": (-80, 80), "tanh": (-12, 12), "erf": (-6, 6), "sigmoid": (-80, 80),
        "sin": (-1e3, 1e3), "cos": (-1e3, 1e3), "log": (1e-30, 1e30)}


@pytest.mark.parametrize("name", WIDE)
def test_transcendentals_are_within_4_ulp(backend, name):
    """Over the whole range in which float32 answers, densest near zero; against float64."""
    low, high = WIDE[name]
    random = np.random.default_rng(1)
    x = random.uniform(low, high, 20_000)
    near = np.exp(random.uniform(np.log(1e-30), np.log(high), 20_000))
    x = np.concatenate([x, near, -near] if low < 0 else [near]).astype(np.float32)
    found = backend.to_numpy(getattr(backend, name)(backend.from_numpy(x)))
    wanted = getattr(Reference(), name)(x.astype(np.float64))
    error = np.abs(found - wanted) / np.spacing(np.abs(wanted).astype(np.float32))
    worst = error.argmax()
    assert error[worst] <= 4, f"{name}({x[worst]!r}) is off by {error[worst]:.2f} ULP"


# -- opaque arrays -----------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("op", EVERY_OP)
@given(data=st.data())
def test_an_op_uses_verbs_only(op, dtype, data):
    """Forward and backward, through the engine, with arrays that show only shape and dtype."""
    example = data.draw(strategies.examples(op, dtype))
    with mf.use("numpy"):
        wanted = run(example)
    with mf.use(OpaqueBackend()):
        found = run(example)
    for a, b in zip(found, wanted, strict=True):
        assert np.array_equal(a, b)


def run(example):
    """Outputs, and gradients after two passes (the second accumulates in place)."""
    tensors = example.tensors()
    results = []
    for _ in range(2):
        results = [y for y in example.run(*tensors)]
        total = None
        for y in results:
            total = y.sum() if total is None else total + y.sum()
        total.backward()
    to_numpy = mf.backend().to_numpy
    return [y.numpy() for y in results] + [to_numpy(tensors[i].grad) for i in example.varied]


def test_an_opaque_array_refuses_what_numpy_would_do_to_it():
    x = OpaqueArray(np.ones(2))
    for leak in (lambda: np.asarray(x), lambda: x + 1, lambda: np.ones(2) * x, lambda: x[0],
                 lambda: np.exp(x), lambda: len(x), lambda: list(x), lambda: bool(x),
                 lambda: x == x, lambda: np.sum(x), lambda: x.T, lambda: x.sum()):
        with pytest.raises((TypeError, AttributeError)):
            leak()
    assert x.shape == (2,) and x.dtype == np.float64


def small_gpt():
    from minifm.models.gpt import GPT, GPTConfig
    config = GPTConfig(vocabulary=11, context=8, layers=2, heads=2, width=8, dropout=0.1)
    return GPT(config, mf.Rng(0))


def train_and_generate():
    """Two training steps of AdamW, then greedy text with the key-value cache."""
    backend, model = mf.backend(), small_gpt()
    random = np.random.default_rng(3)
    ids, targets = random.integers(0, 11, (2, 2, 6))
    for step in (1, 2):
        model.zero_grad()
        for piece in range(2):      # the second adds to the gradients of the first
            model.loss(ids, targets, rng=mf.Rng(step).child(piece)).backward()
        for parameter in model.parameters().values():
            zeros = backend.zeros(parameter.shape, parameter.dtype)
            backend.adamw([parameter.data], [parameter.grad], [zeros], [backend.copy(zeros)],
                          [0.1], 0.01, 0.9, 0.99, 1e-8, 1, 1.0)
            parameter.version += 1
    cache, text = model.cache(1), [3, 1]
    with mf.no_grad():
        logits = model(np.array([text]), cache=cache)
        for _ in range(4):
            text.append(int(mf.argmax(logits[:, -1]).item()))
            logits = model(np.array([text[-1:]]), cache=cache)
    return text, [p.numpy() for p in model.parameters().values()]


def test_a_gpt_trains_and_generates_on_opaque_arrays():
    with mf.use("numpy"):
        text, weights = train_and_generate()
    with mf.use(OpaqueBackend()) as backend:
        found_text, found = train_and_generate()
    assert found_text == text
    assert all(np.array_equal(a, b) for a, b in zip(found, weights, strict=True))
    assert {"adamw", "cache_append", "add_into", "matmul_into"} <= backend.calls


def test_what_is_joined_is_a_copy(backend):
    x = np.arange(8, dtype=np.float32)
    joined = backend.to_numpy(backend.concatenate([x[:4], x[4:]], 0))
    assert np.array_equal(joined, x) and not np.shares_memory(joined, x)


# -- fallbacks ---------------------------------------------------------------------------------


class Partial(Reference):
    """A backend with one kernel of its own; the rest it inherits."""

    name = "partial"

    def exp(self, x):
        return np.exp(x)


count_fallbacks(Partial, Reference)


def test_a_fallback_is_counted_by_verb():
    backend, x = Partial(), np.ones(3, np.float32)
    backend.exp(x)
    assert not backend.fallbacks
    backend.tanh(x), backend.tanh(x), backend.sum(x)
    assert backend.fallbacks == {"tanh": 2, "sum": 1}


def test_a_composed_verb_is_no_fallback_but_what_it_calls_is():
    backend = Partial()
    backend.accumulate_product(np.ones((1, 1), np.float32), np.ones((1, 1), np.float32), None)
    assert backend.fallbacks == {"matmul": 1}


def test_float64_belongs_to_the_reference_and_is_not_counted():
    backend = Partial()
    backend.tanh(np.ones(3))
    assert not backend.fallbacks


def test_strict_makes_a_fallback_an_error(monkeypatch):
    monkeypatch.setenv("MINIFM_STRICT", "1")
    backend = Partial()
    backend.exp(np.ones(3, np.float32))
    backend.tanh(np.ones(3))
    with pytest.raises(FallbackError, match="'partial' has no kernel for 'tanh'.*MINIFM_STRICT=1"):
        backend.tanh(np.ones(3, np.float32))
    assert not backend.fallbacks
    for unset in ("0", ""):
        monkeypatch.setenv("MINIFM_STRICT", unset)
        assert not Partial().strict


def test_what_is_called_composed_uses_no_numpy():
    """`composed` exempts a verb from counting, so each such verb must run on opaque arrays; the
    laws above run them all through the ops. Here: that the mark is where it should be."""
    marked = {name for name in dir(Reference) if getattr(getattr(Reference, name), "composed", 0)}
    assert {"linear", "attention", "linear_cross_entropy", "rope", "dropout"} <= marked
    assert composed(lambda: 0).composed


# -- choosing a backend --------------------------------------------------------------------------


def test_use_switches_at_once_and_back_at_the_end():
    before = mf.backend()
    mine = Reference()
    with mf.use(mine) as active:
        assert active is mine is mf.backend()
        with mf.use("numpy"):
            assert mf.backend().name == "numpy" and mf.backend() is not mine
        assert mf.backend() is mine
    assert mf.backend() is before


def test_use_without_a_block_stays():
    mf.use("numpy")
    assert mf.backend() is backends.get("numpy")


def test_use_switches_back_after_an_error():
    before = mf.backend()
    with pytest.raises(ZeroDivisionError), mf.use("numpy"):
        1 / 0
    assert mf.backend() is before


@pytest.mark.parametrize("order", [(0, 1, 2), (1, 0, 2), (1, 2, 0), (2, 0, 1), (0, 2, 1)])
def test_blocks_of_several_threads_may_end_in_any_order(order):
    """Each thread's block hands back what was there before it, never what has ended."""
    before, makers = mf.backend(), [Reference() for _ in range(3)]
    blocks, running = [], [0, 1, 2]
    for maker in makers:
        blocks.append(mf.use(maker))
        blocks[-1].__enter__()
    for place in order:
        blocks[place].__exit__(None, None, None)
        running.remove(place)
        assert mf.backend() is (makers[running[-1]] if running else before)


def test_a_tensor_goes_backward_on_the_backend_that_made_it():
    """A graph keeps its backend, though another is active when it is walked."""
    with mf.use(OpaqueBackend()) as backend:
        x = mf.Tensor(np.ones(3, np.float32), requires_grad=True)
        loss = (x * 2).sum()
    with mf.use("numpy"):
        loss.backward()
    assert np.array_equal(backend.to_numpy(x.grad), [2, 2, 2])


@pytest.mark.parametrize("name, reason", [
    ("cuda", "backend 'cuda': this version of minifm has no CUDA kernels"),
    ("tpu", "backend 'tpu' is unknown; expected numpy or c"),
])
def test_an_unavailable_backend_says_why(name, reason):
    before = mf.backend()
    with pytest.raises(BackendUnavailable, match=reason):
        mf.use(name)
    assert backends.why_not(name).startswith(reason)
    assert mf.backend() is before


# What keeps an interpreter on an extension that tests/instruments.py has built.
INSTRUMENTED = ("PYTHONSAFEPATH", "LD_PRELOAD", "ASAN_OPTIONS", "UBSAN_OPTIONS", "TSAN_OPTIONS")


def python(code, **environment):
    """What a fresh interpreter prints."""
    clean = {"PATH": "/usr/bin:/bin", "PYTHONPATH": ":".join(p for p in sys.path if p)}
    clean |= {name: os.environ[name] for name in INSTRUMENTED if name in os.environ}
    done = subprocess.run([sys.executable, "-c", code], env=clean | environment, timeout=300,
                          capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_minifm_backend_chooses():
    show = "import minifm; print(minifm.backend().name)"
    for name in AVAILABLE:
        assert python(show, MINIFM_BACKEND=name) == name
    assert python(show) == ("c" if "c" in AVAILABLE else "numpy")


def test_without_the_extension_numpy_serves_and_c_says_what_to_do():
    hide = "import sys; sys.modules['minifm.backends._csrc'] = None\n"
    assert python(hide + "import minifm; print(minifm.backend().name)").endswith("numpy")
    reason = python(hide + "from minifm import backends; print(backends.why_not('c'))")
    assert "backend 'c': the compiled extension is not there" in reason
    assert "install" in reason
    asked = "try: minifm.use('c')\nexcept minifm.UserError as e: print(type(e).__name__)"
    assert python(hide + "import minifm\n" + asked) == "BackendUnavailable"
