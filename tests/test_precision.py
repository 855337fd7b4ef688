"""Matrix products with operands rounded to bf16: the rounding, who uses it, and the bound."""

import numpy as np
import pytest
from conftest import AVAILABLE
from hypothesis import example, given
from hypothesis import strategies as st

import minifm as mf
from minifm import backends
from minifm.errors import ConfigError
from minifm.models.gpt import GPT, GPTConfig
from minifm.ops.precision import active_precision
from minifm.rng import Rng

F32, TINY = np.float32, 2.0**-126
HOSTS = [name for name in AVAILABLE if name in ("numpy", "c")]


def rounded(x):
    """To the nearest of the two bf16 neighbours of a finite x, found by their distances."""
    x = np.asarray(x, F32)
    below = (x.view(np.uint32) & 0xFFFF0000).view(F32)
    above = ((x.view(np.uint32) & 0xFFFF0000) + np.uint32(0x10000)).view(F32)
    # What infinity stands for in rounding is the next power of two.
    beyond = np.where(np.isinf(above), np.copysign(2.0**128, above.astype(float)), above)
    down, up = np.abs(x.astype(float) - below), np.abs(beyond - x)
    even = (below.view(np.uint32) >> 16) & 1 == 0
    return np.where((down < up) | ((down == up) & even), below, above)


@pytest.fixture(params=HOSTS)
def backend(request):
    with mf.use(request.param) as chosen:
        yield chosen


@pytest.fixture(params=backends.get("c").available_isas() if "c" in AVAILABLE else [])
def every_isa(request):
    c = backends.get("c")
    before = c.isa
    c.set_isa(request.param)
    with mf.use("c"):
        yield c
    c.set_isa(before)


def normal(shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(F32)


def bound(x, y):
    """How far a float32 sum of K products may be from the exact one: (K + 1) u |x| |y|, and, where
    the processor takes what is below t = 2^-126 for zero, t (Σ|x| + Σ|y| + K) more."""
    K, x, y = x.shape[-1], np.abs(x).astype(float), np.abs(y).astype(float)
    lost = x.sum(-1, keepdims=True) + y.sum(-2, keepdims=True) + K if flushes() else 0
    return (K + 1) * 2.0**-24 * (x @ y) + TINY * lost


def flushes():
    return backends.active().name == "c" and backends.active().isa == "avx512bf16"


@pytest.mark.parametrize("M, K, N", [(1, 1, 1), (1, 400, 33), (3, 7, 5), (17, 385, 31),
                                     (40, 800, 70), (200, 96, 130)])
@pytest.mark.parametrize("layout", ["NN", "NT", "TN", "TT"])
def test_a_product_is_that_of_rounded_operands(every_isa, M, K, N, layout):
    x = normal((M, K)) if layout[0] == "N" else normal((K, M)).T
    y = normal((K, N), 1) if layout[1] == "N" else normal((N, K), 1).T
    with mf.precision("bf16"):
        found = mf.matmul(mf.Tensor(x), mf.Tensor(y)).numpy()
    wanted = rounded(x).astype(float) @ rounded(y).astype(float)
    assert (np.abs(found - wanted) <= bound(rounded(x), rounded(y))).all()
    assert np.abs(found - x.astype(float) @ y).max() > bound(x, y).max() or K == 1


@pytest.mark.parametrize("K", [1, 383, 769, 801, 1600])
def test_a_row_depends_on_no_other_row_column_or_layout(every_isa, K):
    x, y = normal((50, K)), normal((K, 70), 1)
    with mf.precision("bf16"):
        together = mf.matmul(mf.Tensor(x), mf.Tensor(y)).numpy()
        alone = [mf.matmul(mf.Tensor(x[i : i + 1]), mf.Tensor(y)).numpy() for i in range(50)]
        few = mf.matmul(mf.Tensor(x), mf.Tensor(y[:, 5:8])).numpy()
        turned = mf.matmul(mf.Tensor(x.T.copy().T), mf.Tensor(y.T.copy().T)).numpy()
    assert (together == np.concatenate(alone)).all()
    assert (together[:, 5:8] == few).all() and (together == turned).all()


@pytest.mark.parametrize("scale", [2.0**-140, 2.0**-128, 2.0**-100])
def test_what_is_lost_of_the_smallest_numbers_is_bounded(every_isa, scale):
    x, y = normal((20, 50)) * F32(scale), normal((50, 40), 1) * F32(2.0**-30)
    with mf.precision("bf16"):
        found = mf.matmul(mf.Tensor(x), mf.Tensor(y)).numpy()
        plain = mf.matmul(mf.Tensor(x), mf.Tensor(np.eye(50, dtype=F32))).numpy()
    underflow = 50 * 2.0**-150                  # of each addition, half the smallest number
    wanted = rounded(x).astype(float) @ rounded(y)
    assert (np.abs(found - wanted) <= bound(rounded(x), rounded(y)) + underflow).all()
    assert (plain == np.where(np.abs(x) < TINY, 0, rounded(x)) if flushes()
            else plain == rounded(x)).all()


@given(st.lists(st.floats(width=32), min_size=1, max_size=40))
@example([3.39617752923046e38])         # rounds to infinity
def test_rounding_is_to_the_nearest_even(numbers):
    x = np.array(numbers, F32)[:, None]
    for name in HOSTS:
        with mf.use(name), mf.precision("bf16"), np.errstate(all="ignore"):
            found = mf.matmul(mf.Tensor(x), mf.Tensor(np.ones((1, 1), F32))).numpy()
        finite = np.isfinite(x)
        with np.errstate(all="ignore"):
            wanted = rounded(x)
            wanted[flushes() & (np.abs(x) < TINY)] = 0
            assert (found[finite] == wanted[finite]).all()
        assert (np.isnan(found) == np.isnan(x)).all()
        assert (found[np.isinf(x)] == x[np.isinf(x)]).all()


def test_float64_is_never_rounded(backend):
    x = np.random.default_rng(0).standard_normal((3, 4))
    with mf.precision("bf16"):
        assert (mf.matmul(mf.Tensor(x), mf.Tensor(x.T)).numpy() == x @ x.T).all()


def test_it_is_a_setting_and_a_block(backend):
    assert active_precision() == "fp32"
    with mf.precision("bf16"):
        with mf.precision("fp32"):
            assert active_precision() == "fp32"
        assert active_precision() == "bf16"
    assert active_precision() == "fp32"
    with pytest.raises(ConfigError, match="precision: expected one of fp32, bf16, got 'fp16'"):
        mf.precision("fp16")


def test_backward_keeps_the_precision_of_its_forward(backend):
    x, w = normal((5, 30)), normal((30, 20), 1)
    dy = normal((5, 20), 2)
    tensors = [mf.Tensor(x, requires_grad=True), mf.Tensor(w, requires_grad=True)]
    with mf.precision("bf16"):
        y = mf.linear(*tensors)
    y.backward(dy)
    dx = rounded(dy).astype(float) @ rounded(w).T
    dw = rounded(x).T.astype(float) @ rounded(dy)
    assert (np.abs(tensors[0].grad - dx) <= bound(rounded(dy), rounded(w).T)).all()
    assert (np.abs(tensors[1].grad - dw) <= bound(rounded(x).T, rounded(dy))).all()


def test_the_fused_loss_rounds_as_the_plain_one_does(backend):
    x, w = normal((6, 20)), normal((11, 20), 1)
    targets = np.arange(6)
    with mf.precision("bf16"):
        fused = mf.linear_cross_entropy(mf.Tensor(x), mf.Tensor(w), targets).item()
        plain = mf.cross_entropy(mf.linear(mf.Tensor(x), mf.Tensor(w).transpose(1, 0)),
                                 targets).item()
    exact = mf.linear_cross_entropy(mf.Tensor(x), mf.Tensor(w), targets).item()
    assert abs(fused - plain) < 1e-6
    assert abs(fused - exact) > 1e-5


def test_a_model_learns_alike(backend):
    """The gradient in bf16 points where that in float32 does: its error is that of rounding."""
    config = GPTConfig(vocabulary=40, context=16, layers=2, heads=2, width=32)
    ids = np.random.default_rng(0).integers(0, 40, (2, 16))
    gradients = []
    for name in ("fp32", "bf16"):
        model = GPT(config, Rng(0))
        with mf.precision(name):
            loss = model.loss(ids, np.roll(ids, -1, 1))
        loss.backward()
        gradients.append(np.concatenate([p.grad.ravel()
                                         for p in model.parameters().values()]).astype(float))
    full, half = gradients
    error = np.linalg.norm(half - full) / np.linalg.norm(full)
    # Rounding errors of 2^-9 in some ten products, one after the other, mostly add up as squares.
    assert 0 < error < 10 * 2.0**-9
