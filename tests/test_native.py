"""The C backend held to its promises, on every instruction set that this machine runs.

Its results are those of the reference; bitwise the same at any number of threads, in any batch and
at any place in it; no kernel writes to an operand or beside an output, or leaves part of one
unwritten; and whatever NumPy computes in its place is counted.
"""

import os
import sys
import threading
import time
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import AVAILABLE
from hypothesis import given
from hypothesis import strategies as st
from test_backends import WIDE, python

import minifm as mf
from minifm import backends
from minifm.backends.reference import Reference
from minifm.backends.reference.arrays import Arrays
from minifm.backends.reference.convolution import _columns
from minifm.backends.reference.packed import FORMATS
from minifm.errors import ConfigError, FallbackError, ShapeError
from minifm.generation.generate import tokens
from minifm.generation.sampling import Sampling
from minifm.models.gpt import GPT, GPTConfig
from minifm.op import OPS
from minifm.tensor import apply
from minifm.testing import laws, parity, strategies
from minifm.testing.draw import Explorer
from minifm.training.optim import AdamW

if "c" not in AVAILABLE:
    pytest.skip(backends.why_not("c"), allow_module_level=True)

from minifm.backends.c import CBackend
from minifm.backends.c.product import MOST_KEPT, _batch_plan, _kept_plan
from minifm.backends.native import lib

F32 = np.float32
ISAS = backends.get("c").available_isas()
OTHER_ISAS = [isa for isa in ISAS if isa != backends.get("c").isa]
EVERY_OP = [pytest.param(op, id=name) for name, op in list(OPS.items())]


@pytest.fixture
def c():
    """The C backend, active; its instruction set and threads are put back afterwards."""
    backend = backends.get("c")
    isa, threads = backend.isa, backend.threads
    with backends.use(backend):
        yield backend
    backend.set_isa(isa)
    lib.minifm_set_threads(threads)


@pytest.fixture(params=ISAS)
def every_isa(request, c):
    c.set_isa(request.param)
    return c


@pytest.fixture(params=OTHER_ISAS or [pytest.param(None, marks=pytest.mark.skip("only one"))])
def other_isa(request, c):
    """The instruction sets that test_backends.py does not run on."""
    c.set_isa(request.param)
    return c


def normal(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(F32)


def tuple_of(result):
    return result if isinstance(result, tuple) else (result,)


def same(found, wanted):
    """Whether the arrays are the same to the bit."""
    return all(a.shape == b.shape and a.tobytes() == b.tobytes() if isinstance(a, np.ndarray)
               else a == b for a, b in zip(tuple_of(found), tuple_of(wanted), strict=True))


# -- parity on the instruction sets that are not the best ------------------------------------------


@pytest.mark.parametrize("op", EVERY_OP)
@given(data=st.data())
def test_agrees_with_the_reference(other_isa, op, data):
    parity.agrees_with_reference(data.draw(strategies.examples(op, F32, most=2**14)))


@pytest.mark.parametrize("op", parity.UNARY, ids=lambda op: op.__name__)
def test_special_values_agree_with_the_reference(other_isa, op):
    parity.special_values_agree(op)


@pytest.mark.parametrize("name", WIDE)
def test_transcendentals_are_within_4_ulp(other_isa, name):
    low, high = WIDE[name]
    x = np.concatenate([np.linspace(low, high, 20_001), np.geomspace(1e-30, high, 5_000)])
    x = x.astype(F32)
    wanted = getattr(Reference(), name)(x.astype(np.float64))
    error = np.abs(getattr(other_isa, name)(x) - wanted)
    assert (error <= 4 * np.spacing(np.abs(wanted).astype(F32))).all()


# -- products: every path, every edge --------------------------------------------------------------

# Around the tiles (4 x 16, 6 x 16, 8 x 12, 12 x 32), the blocks of 384, and each of the paths.
PRODUCTS = [(1, 65, 769), (3, 1100, 50), (4, 64, 384), (5, 33, 385), (12, 32, 767), (13, 31, 3),
            (36, 100, 1), (37, 97, 400), (100, 161, 385), (150, 310, 800), (401, 45, 129)]
SHAPES = pytest.mark.parametrize("m, n, k", PRODUCTS, ids=lambda size: str(size))


@SHAPES
def test_a_product_is_within_its_bound_whatever_the_layout(every_isa, m, n, k):
    x, w = normal(m, k), normal(k, n, seed=1)
    wide, size = x.astype(float) @ w.astype(float), np.abs(x).astype(float) @ np.abs(w)
    found = every_isa.matmul(x, w)
    bound = k * parity.U / (1 - k * parity.U) * size
    assert (np.abs(found - wide) <= bound).all()
    for a in (x, np.asfortranarray(x), np.repeat(x, 3, 1)[:, ::3]):
        for b in (w, np.asfortranarray(w), np.pad(w, 5)[5:-5, 5:-5], w[::-1].copy()[::-1]):
            assert same(every_isa.matmul(a, b), found)


@SHAPES
def test_a_product_does_not_depend_on_its_other_rows_columns_and_batch(every_isa, m, n, k):
    x, w = normal(m, k), normal(k, n, seed=1)
    whole = every_isa.matmul(x, w)
    for rows in {1, 2, m // 2, m - 1} - {0}:
        assert same(every_isa.matmul(x[:rows], w), whole[:rows])
        assert same(every_isa.matmul(x[-rows:], w), whole[-rows:])
    for columns in {1, 15, n // 2, n - 1}:
        assert same(every_isa.matmul(x, w[:, :columns]), whole[:, :columns])
        assert same(every_isa.matmul(x, w[:, -columns:]), whole[:, -columns:])
    for i, product in enumerate(every_isa.matmul(np.stack([x, -x, x]), w)):
        assert same(product, whole if i != 1 else -whole)


def test_places_of_a_batch_are_kept_if_they_are_few(c):
    """Thousands of kept plans must not fill the memory."""
    few, many = (((n,), (4,), (1,), (4,)) for n in (MOST_KEPT, MOST_KEPT + 1))
    assert _batch_plan(*few) is _batch_plan(*few)
    assert _batch_plan(*many) is not _batch_plan(*many)
    kept = _kept_plan.cache_parameters()["maxsize"] * 2 * 8 * MOST_KEPT
    assert kept <= 16 << 20
    x, y = normal(3, MOST_KEPT, 2, 1), normal(1, 1, 3, seed=1)
    assert same(c.matmul(x, y), np.matmul(x, y))


@SHAPES
@pytest.mark.parametrize("activation", [None, "relu", "gelu_tanh"])
def test_linear_is_its_parts(every_isa, m, n, k, activation):
    x, w, b, residual = normal(m, k), normal(k, n, seed=1), normal(n), normal(m, n, seed=2)
    z = every_isa.add(every_isa.matmul(x, w), b)
    y = z if activation is None else getattr(every_isa, activation)(z)
    wanted = every_isa.add(y, residual)
    assert same(every_isa.linear(x, w, b, activation, residual)[0], wanted)
    kept = every_isa.linear(x, w, b, activation, None)
    assert same(kept[0], y) and (same(kept[1], z) if activation else kept[1] is None)


@SHAPES
def test_a_product_can_be_added_to_what_is_there(every_isa, m, n, k):
    x, w = normal(m, k), normal(k, n, seed=1)
    out = np.zeros((m, n), F32)
    every_isa.matmul_into(out, x, w)
    assert same(out, every_isa.matmul(x, w))
    every_isa.matmul_into(out, x, -w)
    bound = 4 * k * parity.U * (np.abs(x) @ np.abs(w))
    assert (np.abs(out) <= bound).all()


@pytest.mark.parametrize("m, n, k", [(4700, 4650, 9), (41, 45, 104_500)], ids=str)
def test_a_product_larger_than_what_is_packed_at_once(c, m, n, k):
    """More rows and columns than a panel has, and more of K: sums of 384, added in order."""
    x, w = normal(m, k), normal(k, n, seed=1)
    whole, wanted = c.matmul(x, w), 0
    for i in (slice(0, 40), slice(m - 40, m)):
        parts = [c.matmul(x[i, j : j + 384], w[j : j + 384, -50:]) for j in range(0, k, 384)]
        wanted = parts[0]
        for part in parts[1:]:
            wanted = wanted + part
        assert same(whole[i, -50:], wanted)
    assert same(c.matmul(x, w[:, :40]), whole[:, :40])


# -- convolutions: every path, every edge ----------------------------------------------------------

# groups, inputs and outputs of one, image, window, stride, padding: one window, one pixel, rows as
# wide as a tile and wider, windows that leave pixels out or reach far beyond the image, more than
# 384 elements, strides larger than windows, depthwise.
CONVOLUTIONS = [
    (1, 1, 1, (1, 1), (1, 1), (1, 1), (0, 0)), (1, 3, 7, (5, 16), (3, 3), (1, 1), (1, 1)),
    (1, 50, 13, (7, 33), (3, 3), (1, 1), (1, 1)), (1, 45, 20, (9, 8), (3, 3), (2, 2), (1, 1)),
    (2, 400, 5, (3, 11), (1, 1), (1, 1), (0, 0)), (3, 2, 4, (12, 9), (2, 4), (1, 2), (3, 5)),
    (1, 2, 3, (20, 21), (2, 3), (3, 5), (0, 2)), (17, 1, 1, (6, 40), (3, 3), (1, 1), (1, 1)),
    (1, 5, 100, (17, 19), (5, 1), (1, 1), (0, 0)), (2, 3, 33, (13, 1), (7, 1), (2, 1), (3, 0)),
    (1, 4, 6, (15, 15), (1, 1), (2, 2), (0, 0)), (1, 64, 12, (65, 3), (3, 3), (1, 1), (0, 0)),
]
GEOMETRIES = pytest.mark.parametrize("geometry", CONVOLUTIONS, ids=str)


def convolution(geometry, batch=3):
    """x, w, dy, and what else the verbs take."""
    groups, I, O, image, window, stride, padding = geometry
    x, w = normal(batch, groups * I, *image), normal(groups * O, I, *window, seed=1)
    result = ((n + 2 * p - k) // s + 1
              for n, k, s, p in zip(image, window, stride, padding))
    return x, w, normal(batch, groups * O, *result, seed=2), (stride, padding, groups)


def within(found, terms, verb, *operands):
    """Whether `found` is off by no more than sums of so many terms may be: γ_n Σ|x||w|."""
    wide, size = (verb(*(f(x.astype(float)) if isinstance(x, np.ndarray) else x
                         for x in operands)) for f in (np.copy, np.abs))
    return (np.abs(found - wide) <= terms * parity.U / (1 - terms * parity.U) * size).all()


@GEOMETRIES
def test_a_convolution_and_its_adjoints_are_within_their_bounds(every_isa, geometry):
    c, reference, (x, w, dy, options) = every_isa, Reference(), convolution(geometry)
    (O, I, R, S), size = w.shape, x.shape[2:]
    groups = options[2]
    assert within(c.convolve(x, w, *options), I * R * S, reference.convolve, x, w, *options)
    found = c.convolve_image_adjoint(dy, w, size, *options)
    assert within(found, O // groups * R * S, reference.convolve_image_adjoint, dy, w, size,
                  *options)
    found = c.convolve_weight_adjoint(dy, x, (R, S), *options)
    assert within(found, dy[:, 0].size, reference.convolve_weight_adjoint, dy, x, (R, S), *options)


@GEOMETRIES
def test_a_convolution_is_the_product_with_its_windows_bitwise(every_isa, geometry):
    """And so does not depend on the batch, or on where in an image a window lies."""
    c, (x, w, dy, options) = every_isa, convolution(geometry)
    stride, padding, groups = options
    columns, _ = _columns(x, w.shape[2:], stride, padding, groups)      # [G, C/G R S, B P Q]
    product = c.matmul(w.reshape(groups, len(w) // groups, -1), columns)
    y = c.convolve(x, w, *options)
    assert same(y.swapaxes(0, 1).reshape(product.shape), product)
    dx = c.convolve_image_adjoint(dy, w, x.shape[2:], *options)
    for i in range(len(x)):
        assert same(c.convolve(x[i : i + 1], w, *options), y[i : i + 1])
        one = c.convolve_image_adjoint(dy[i : i + 1], w, x.shape[2:], *options)
        assert same(one, dx[i : i + 1])


@GEOMETRIES
def test_a_bias_is_added_last(every_isa, geometry):
    c, (x, w, dy, options) = every_isa, convolution(geometry)
    b, back = normal(len(w)), normal(x.shape[1])
    y, dx = c.convolve(x, w, *options), c.convolve_image_adjoint(dy, w, x.shape[2:], *options)
    assert same(c.conv2d(x, w, b, *options), y + b[:, None, None])
    found = c.conv_transpose2d(dy, w, back, x.shape[2:], *options)
    assert same(found, dx + back[:, None, None])


def test_a_convolution_of_nothing(every_isa):
    c, options = every_isa, ((1, 1), (1, 1), 1)
    for B, I, O in ((0, 3, 4), (2, 0, 4), (2, 3, 0)):
        x, w, dy, b = normal(B, I, 5, 6), normal(O, I, 3, 3), normal(B, O, 5, 6), normal(O)
        y = c.conv2d(x, w, b, *options)
        assert y.shape == dy.shape and (I or same(y, np.zeros_like(y) + b[:, None, None]))
        dx = c.convolve_image_adjoint(dy, w, (5, 6), *options)
        dw = c.convolve_weight_adjoint(dy, x, (3, 3), *options)
        assert dx.shape == x.shape and dw.shape == w.shape
        assert (O or not dx.any()) and (B or not dw.any())


@pytest.mark.parametrize("positions", [1, 7, 64, 2500])
@pytest.mark.parametrize("activation", [None, "silu", "gelu_tanh"])
def test_group_norm_is_within_its_bound_far_from_zero(every_isa, positions, activation):
    """Where the mean is 1000 times the deviation: x - mean is off by a rounding of the mean."""
    c, reference = every_isa, Reference()
    x = normal(2, 6, positions) + np.arange(-3000, 3000, 1000, dtype=F32)[:, None]
    gain, offset, dy = normal(6, seed=1), normal(6, seed=2), normal(2, 6, positions, seed=3)
    x = x[:, [0, 0, 0, 5, 5, 5]] + normal(2, 6, positions, seed=4)
    given = [a.astype(float) for a in (x, gain, offset)]
    y, mean, rstd = c.groupnorm(x, gain, offset, 2, 1e-2, activation)
    wanted, wide_mean, wide_rstd = reference.groupnorm(*given, 2, 1e-2, activation)
    off = 4 * parity.U * np.abs(x).max() * wide_rstd.max()
    assert np.abs(mean - wide_mean).max() <= 4 * parity.U * np.abs(x).max()
    assert np.abs(rstd / wide_rstd - 1).max() <= 4 * off
    assert np.abs(y - wanted).max() <= 16 * off * np.abs(gain).max() * (1 + np.abs(wanted).max())
    found = c.groupnorm_backward(dy, x, gain, offset, mean, rstd, 2, activation)
    grads = reference.groupnorm_backward(dy.astype(float), *given, wide_mean, wide_rstd, 2,
                                         activation)
    for g, w in zip(found, grads):
        assert np.abs(g - w).max() <= 64 * off * (1 + np.abs(w).max()) * np.sqrt(positions)


@pytest.mark.parametrize("activation", [None, "silu"])
def test_an_image_in_group_norm_does_not_depend_on_the_others(every_isa, activation):
    c, x, dy, gain = every_isa, normal(19, 6, 5, 7), normal(19, 6, 5, 7, seed=1), normal(6)
    assert alone(c.groupnorm, 19, x, rest=(gain, gain, 3, 1e-5, activation))
    _, mean, rstd = c.groupnorm(x, gain, gain, 3, 1e-5, activation)
    assert alone(lambda dy, x, m, r: c.groupnorm_backward(dy, x, gain, gain, m, r, 3,
                                                          activation)[0], 19, dy, x, mean, rstd)


def test_group_norm_and_pooling_of_nothing(every_isa):
    c, gain = every_isa, normal(4)
    for shape in ((0, 4, 3, 5), (2, 4, 0, 5)):
        x = normal(*shape)
        y, mean, rstd = c.groupnorm(x, gain, gain, 2, 1e-5, "silu")
        dx, dgamma, dbeta = c.groupnorm_backward(x, x, gain, gain, mean, rstd, 2, "silu")
        assert y.shape == dx.shape == shape and not dgamma.any() and not dbeta.any()
    for shape in ((0, 4, 3, 5), (2, 0, 3, 5)):
        x, options = normal(*shape), ((2, 2), (2, 2), (1, 1))
        y, place = c.max_pool2d(x, *options)
        assert y.shape == c.average_pool2d(x, *options).shape == (*shape[:2], 2, 3)
        assert c.max_pool2d_backward(y, place, (3, 5), *options).shape == shape
        assert c.average_pool2d_backward(y, (3, 5), *options).shape == shape
        assert c.upsample_nearest(x, (2, 2)).shape == (*shape[:2], 6, 10)


def test_the_largest_of_windows_with_nan_and_nothing_finite(every_isa):
    """NaN wins, the first of several; of -inf alone the first pixel, never the padding."""
    x = normal(2, 3, 6, 7)
    x[0, 0, :3], x[0, 1, 2, 2:5], x[1, 2], x[1, 1, 3, 3] = -np.inf, np.nan, np.nan, np.inf
    options, reference = ((3, 2), (2, 1), (1, 1)), Reference()
    found, wanted = (verbs.max_pool2d(x, *options) for verbs in (every_isa, reference))
    assert np.array_equal(found[0], wanted[0], equal_nan=True) and same(found[1], wanted[1])
    dy = normal(*found[0].shape)
    dy[0, 0, 1, 1] = np.inf
    back = [verbs.max_pool2d_backward(dy, wanted[1], (6, 7), *options)
            for verbs in (every_isa, reference)]
    np.testing.assert_allclose(*back, rtol=1e-6, atol=1e-6)
    assert np.isfinite(back[0][1]).all() and np.isinf(back[0][0, 0]).sum() == 1


# -- any number of threads -------------------------------------------------------------------------


def cases():
    """{verb: a call on the backend `c`}, each large enough that threads share it."""
    x, dy = normal(260, 130), normal(260, 130, seed=1)
    gain, flat = normal(130, seed=2), normal(100_003)
    a, b = normal(150, 400), normal(400, 310)
    q, k, v, g = (normal(2, 4, 130, 40, seed=i) for i in range(4))
    ids, rows = np.random.default_rng(3).integers(0, 50, 3000), normal(3000, 130)
    targets = np.where(np.arange(260) % 7, np.arange(260) % 130, -100)
    mask = np.random.default_rng(4).random((2, 130)) < 0.8
    places = np.random.default_rng(5).integers(0, 130, (260, 50))
    many = normal(5000, 7)
    photos, filters = normal(5, 12, 23, 37), normal(40, 12, 3, 3, seed=1)
    maps, narrow = normal(5, 40, 23, 37, seed=2), normal(40, 4, 3, 2, seed=3)

    def convolutions(c):
        return (c.conv2d(photos, filters, filters[:, 0, 0, 0], (1, 1), (1, 1), 1),
                c.conv2d(photos, narrow[:39], None, (2, 3), (0, 1), 3),
                c.convolve(maps, normal(70, 40, 1, 1), (1, 1), (0, 0), 1))

    def adjoints(c):
        small = normal(5, 39, 11, 13, seed=4)
        return (c.convolve_image_adjoint(maps, filters, (23, 37), (1, 1), (1, 1), 1),
                c.convolve_weight_adjoint(maps, photos, (3, 3), (1, 1), (1, 1), 1),
                c.convolve_image_adjoint(small, narrow[:39], (23, 37), (2, 3), (0, 1), 3),
                c.convolve_weight_adjoint(small, photos, (3, 2), (2, 3), (0, 1), 3))

    def attend(c, bias, key_mask, causal):
        y, lse = c.attention(q, k[:, :2], v[:, :2], bias, key_mask, causal, 0.2)
        grads = c.attention_backward(g, q, k[:, :2], v[:, :2], bias, key_mask, causal, 0.2, y,
                                     lse, bias is not None)
        return y, lse, *(x for x in grads if x is not None)

    def group_norms(c):
        results = ()
        for x, groups, activation in ((maps, 4, None), (maps, 8, "silu"), (many[:, :6], 2, "relu"),
                                      (normal(2, 3, 5003), 1, "gelu")):
            gain, dy = normal(x.shape[1], seed=5), x * 0.5 + 1
            y, mean, rstd = c.groupnorm(x, gain, gain, groups, 1e-5, activation)
            results += y, mean, rstd, *c.groupnorm_backward(dy, x, gain, gain, mean, rstd, groups,
                                                            activation)
        return results

    def pools(c):
        y, place = c.max_pool2d(maps, (3, 2), (2, 1), (1, 0))
        mean = c.average_pool2d(maps, (3, 2), (2, 1), (1, 0))
        return (y, place, c.max_pool2d_backward(mean, place, (23, 37), (3, 2), (2, 1), (1, 0)),
                mean, c.average_pool2d_backward(y, (23, 37), (3, 2), (2, 1), (1, 0)),
                c.upsample_nearest(maps, (3, 2)), c.upsample_nearest(maps, (2, 3)),
                c.upsample_nearest_backward(maps[:, :, :22, :36], (2, 3)))

    def from_a_cache(c):
        """Rows of unlike lengths, of keys and values that were appended to what was there."""
        keys, values, starts = k[:, :2] + 1, v[:, :2] - 1, np.array([100, 70])
        c.cache_append(keys, values, k[:, 2:, :30], v[:, 2:, :30], starts)
        rest = None, None, True, 0.2
        y, lse = c.attention(q, keys, values, *rest, starts + 30)
        few = c.attention(q[:, :, :2], keys, values, *rest, starts + 30)
        grads = c.attention_backward(g, q, keys, values, *rest, y, lse, False, starts + 30)
        return keys, values, y, lse, *few, *grads[:3]

    def packed(c):
        results = ()
        for format in FORMATS:
            weight = c.pack(b, format)
            results += (c.linear(a, weight, None, None, None)[0], c.unpack(weight),
                        *c.linear(a[:20], weight, b[0], "gelu", normal(20, 310)))
        return results

    def loss(c, smoothing):
        losses, lse = c.cross_entropy(x, targets, -100, smoothing)
        return losses, lse, c.cross_entropy_backward(dy[:, 0], x, targets, lse, -100, smoothing)

    def in_place(c):
        """Arrays whose seams lie within, at and beside the ranges of threads."""
        sizes = [0, 3, 8189, 1, 100_003, 0, 40_000, 5, 0]
        params, grads = ([normal(n, seed=n + k) for n in sizes] for k in (0, 1))
        m, v = [g * F32(0.5) for g in grads], [p * p for p in params]
        decays = [0.1 * (n > 8) for n in sizes]
        c.adamw(params, [g[::-1] for g in grads], m, v, decays, 0.01, 0.9, 0.99, 1e-8, 3, 0.7)
        c.ema(m, params, 0.9)
        return (*params, *m, *v)

    return {
        "matmul": lambda c: c.matmul(a, b),
        "matmul transposed": lambda c: (c.matmul(b.T, a.T), c.matmul(a.T, normal(150, 33))),
        "matmul few rows": lambda c: c.matmul(a[:3], b),
        "matmul batch": lambda c: c.matmul(normal(9, 40, 70), normal(9, 70, 50)),
        "linear": lambda c: c.linear(a, b, b[0], "gelu", normal(150, 310))[0],
        "softmax": lambda c: (c.softmax(x), c.log_softmax(x), c.logsumexp(x)),
        "softmax_backward": lambda c: (c.softmax_backward(dy, x), c.log_softmax_backward(dy, x)),
        "layernorm": lambda c: c.layernorm(x, gain, gain, 1e-5),
        "layernorm_backward": lambda c: c.layernorm_backward(dy, x, gain, x[:, 0], dy[:, 0]),
        "rmsnorm": lambda c: c.rmsnorm(x, gain, 1e-5),
        "rmsnorm_backward": lambda c: c.rmsnorm_backward(dy, x, gain, dy[:, 0]),
        "norms of many rows": lambda c: c.layernorm_backward(
            many, many, many[0], many[:, 0], many[:, 1]),
        "sum": lambda c: (c.sum(flat), c.sum(x, 0), c.sum(x, 1), c.sum(many, 0),
                          c.sum(normal(5, 700, 33), 1)),
        "sum_of_squares": lambda c: c.sum_of_squares([flat, x, flat[:0], dy[0]]),
        "attention": lambda c: attend(c, None, None, True),
        "attention of one head": lambda c: c.attention_backward(
            *(x[:1, :1] for x in (g, q, k, v)), None, None, True, 0.2,
            *c.attention(*(x[:1, :1] for x in (q, k, v)), None, None, True, 0.2), False)[:3],
        "attention with masks": lambda c: attend(c, normal(4, 130, 130), mask, False),
        "attention of few queries": lambda c: (
            *c.attention(q[:, :, :3], k[:, :2], v[:, :2], normal(2, 1, 3, 130), mask, True, 0.2),
            *c.attention(q[:, :, :1], k, v, None, None, True, 0.2)),
        "cross_entropy": lambda c: loss(c, 0.0),
        "cross_entropy smoothed": lambda c: loss(c, 0.1),
        "extremes": lambda c: (c.max(flat), c.max(x, 0), c.min(x, 1), c.argmax(x), c.argmax(x, 0)),
        "comparisons and choices": lambda c: (
            c.less(flat, 0.5), c.greater_equal(x, x[:, :1]), c.equal(x, dy.T[:1, :1]),
            c.where(c.less(x, dy), x, dy), c.where(x > 0, x[:, :1], 0.0)),
        "places": lambda c: (
            c.take_along(x, places, 1), c.add_along(x.shape, places, dy[:, :50], 1),
            c.scatter_add(x.shape, (places[:, 0], places[:, 1]), dy[:, 0]),
            c.scatter_add((9,), places.reshape(-1) % 9, dy[:, :50].reshape(-1))),
        "functions": lambda c: (c.log(np.abs(flat)), c.sin(flat * 9e3), c.cos(flat * 9e3),
                                c.power(np.abs(flat), 1.7)),
        "rope": lambda c: c.rope(q, k[0, 0, :, :20], v[0, 0, :, :20], False),
        "embedding": lambda c: c.embedding(rows[:50], ids),
        "embedding_backward": lambda c: c.embedding_backward(rows, ids, 50, None),
        "elementwise": lambda c: (c.add(flat, flat), c.multiply(x, gain), c.divide(x, x[:, :1]),
                                  c.gelu_tanh(flat), c.gelu_backward(flat, flat), c.exp(flat)),
        "convolution": convolutions,
        "adjoints of a convolution": adjoints,
        "groupnorm": group_norms,
        "pooling": pools,
        "adamw and ema": in_place,
        "attention from a cache": from_a_cache,
        "packed": packed,
        "noise": lambda c: (c.random_bits((1, 2), 300_001), c.uniform((1, 2), (50_001,), F32),
                            c.normal((1, 2), (50_001,), F32), c.dropout(flat, 0.3, (1, 2))),
    }


CASES = cases()


@pytest.mark.parametrize("name", CASES)
def test_large_results_are_the_references(every_isa, name):
    """What examples, small as they are, never reach: the seams between the shares of threads."""
    found, wanted = (tuple_of(CASES[name](backend)) for backend in (every_isa, Reference()))
    for a, b in zip(found, wanted, strict=True):
        size = np.abs(b).max(where=np.isfinite(b), initial=0)
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5 * float(size))


@pytest.mark.parametrize("name", CASES)
def test_any_number_of_threads_gives_the_same_bits(every_isa, name):
    lib.minifm_set_threads(1)
    wanted = CASES[name](every_isa)
    for threads in (2, 3, 4, 7):
        lib.minifm_set_threads(threads)
        assert same(CASES[name](every_isa), wanted), f"{threads} threads"


@pytest.mark.parametrize("name", ["matmul", "matmul batch", "layernorm_backward", "attention",
                                  "embedding_backward"])
def test_many_runs_give_the_same_bits(c, name):
    """A thousand, or as many as five seconds allow."""
    lib.minifm_set_threads(1)
    wanted, end = CASES[name](c), time.monotonic() + 5
    lib.minifm_set_threads(4)
    for run in range(1000):
        assert same(CASES[name](c), wanted), f"run {run}"
        if time.monotonic() > end:
            break


def test_python_threads_may_compute_at_once_and_change_the_number_of_threads(c):
    wanted, wrong, stop = {name: CASES[name](c) for name in CASES}, [], threading.Event()

    def compute(names):
        wrong.extend(name for name in names if not same(CASES[name](c), wanted[name]))

    def change():
        while not stop.is_set():
            for threads in (1, 3, 2, 4):
                lib.minifm_set_threads(threads)
                time.sleep(0.001)

    changer = threading.Thread(target=change)
    workers = [threading.Thread(target=compute, args=[list(CASES)[i:] + list(CASES)[:i]])
               for i in (0, 5, 10, 15)]
    for thread in (changer, *workers):
        thread.start()
    for thread in workers:
        thread.join()
    stop.set()
    changer.join()
    assert not wrong


@pytest.mark.skipif("TSAN_OPTIONS" in os.environ,
                    reason="ThreadSanitizer takes no new threads in a child of many")
def test_a_fork_computes_and_so_does_its_parent():
    """The child has none of the pool's threads; it starts its own, at whatever number."""
    python("""
import os, numpy as np, minifm
c = minifm.backend()
x = np.random.default_rng(0).standard_normal((200, 200)).astype("float32")
c.set_threads(3)
wanted = c.matmul(x, x)
for attempt in range(10):
    child = os.fork()
    if child == 0:
        right = np.array_equal(c.matmul(x, x), wanted)
        c.set_threads(2)
        os._exit(0 if right and np.array_equal(c.matmul(x, x), wanted) else 1)
    assert np.array_equal(c.matmul(x, x), wanted)
    assert os.waitpid(child, 0)[1] == 0, "the child was wrong, or died"
""", MINIFM_BACKEND="c")


# -- any batch -------------------------------------------------------------------------------------


def alone(verb, n, *batched, rest=()):
    """Whether verb(*batched, *rest) of each row, and of rows 3 on, is what it is among all n."""
    together = tuple_of(verb(*batched, *rest))
    pieces = [slice(i, i + 1) for i in range(n)] + [slice(3, n)]
    return all(same(tuple_of(verb(*(x[piece] for x in batched), *rest)),
                    tuple(y[piece] for y in together)) for piece in pieces)


@pytest.mark.parametrize("width", [1, 7, 33, 64, 130, 1000])
def test_a_row_does_not_depend_on_the_others(every_isa, width):
    c, x, dy, gain = every_isa, normal(19, width), normal(19, width, seed=1), normal(width)
    mean, rstd, targets = x[:, 0].copy(), np.abs(dy[:, 0]), np.arange(19) % width
    for verb in (c.softmax, c.log_softmax, c.logsumexp):
        assert alone(verb, 19, x)
    assert alone(c.softmax_backward, 19, dy, x) and alone(c.log_softmax_backward, 19, dy, x)
    assert alone(c.layernorm, 19, x, rest=(gain, gain, 1e-5))
    assert alone(c.rmsnorm, 19, x, rest=(gain, 1e-5))
    assert alone(lambda dy, x, m, r: c.layernorm_backward(dy, x, gain, m, r)[0], 19, dy, x, mean,
                 rstd)
    assert alone(lambda dy, x, r: c.rmsnorm_backward(dy, x, gain, r)[0], 19, dy, x, rstd)
    assert alone(c.cross_entropy, 19, x, targets, rest=(-100, 0.1))
    assert alone(c.cross_entropy_backward, 19, mean, x, targets, rstd, rest=(-100, 0.1))
    assert alone(lambda x: c.sum(x, 1), 19, x)


@pytest.mark.parametrize("length", [1, 7, 64, 65, 130, 390])
@pytest.mark.parametrize("width", [1, 16, 24, 33])
def test_attention_depends_on_what_a_query_sees_and_on_nothing_else(every_isa, length, width):
    """Not on the batch, other heads, later queries, or how many hidden keys stand behind."""
    c, (q, k, v) = every_isa, (normal(3, 4, length, width, seed=i) for i in range(3))
    y, lse = c.attention(q, k, v, None, None, True, 0.3)
    one, _ = c.attention(q[1:2, 2:3], k[1:2, 2:3], v[1:2, 2:3], None, None, True, 0.3)
    assert same(one, y[1:2, 2:3])
    for t in {0, length // 2, length - 1}:
        seen = k[:, :, : t + 1], v[:, :, : t + 1]
        last, lse_of_last = c.attention(q[:, :, t : t + 1], *seen, None, None, True, 0.3)
        assert same(last, y[:, :, t : t + 1]) and same(lse_of_last, lse[:, :, t : t + 1])
    hidden = [np.concatenate([x, normal(3, 4, 29, width, seed=9)], 2) for x in (k, v)]
    shown = np.arange(length + 29) < length
    bias = np.where(np.tri(length, length + 29, dtype=bool), 0, -np.inf).astype(F32)
    masked, _ = c.attention(q[:, :, -1:], *hidden, None, np.stack([shown] * 3), False, 0.3)
    biased, _ = c.attention(q, *hidden, bias, None, False, 0.3)
    assert same(masked, y[:, :, -1:]) and same(biased, y)


@pytest.mark.parametrize("length", [1, 2, 95, 96, 97, 192, 293])
@pytest.mark.parametrize("heads, key_heads, queries", [
    (3, 3, 1), (4, 2, 1), (3, 1, 1), (4, 1, 2), (2, 2, 5), (4, 1, 3)])
@pytest.mark.parametrize("causal", [False, True])
def test_few_queries_see_what_many_see(every_isa, length, heads, key_heads, queries, causal):
    """Keys and values are read in place for a few queries, and packed for many: the same bits."""
    c, many = every_isa, queries + 40
    rng = np.random.default_rng(length)
    shown, seen = rng.random((2, length)) < 0.8, rng.random((heads, many, length)) < 0.9
    shown[1] = False
    biases = (None, normal(2, 1, many, length), normal(heads, many, 1),
              np.where(seen, normal(many, length), -np.inf).astype(F32), None)
    for (width, value_width), bias, mask in zip(
        ((1, 1), (64, 64), (33, 20), (16, 50), (128, 150)), biases,
        (None, None, shown, shown, None)):
        q = normal(2, heads, many, width)
        cached = normal(2, key_heads, 300, width, seed=1), normal(2, 300, key_heads, value_width)
        k, v = cached[0][:, :, :length], cached[1].transpose(0, 2, 1, 3)[:, :, :length]
        y, lse = c.attention(q, k, v, bias, mask, causal, 0.3)
        last = None if bias is None else bias[..., 40:, :]
        few, few_lse = c.attention(q[:, :, 40:], k, v, last, mask, causal, 0.3)
        assert same(few, y[:, :, 40:]) and same(few_lse, lse[:, :, 40:])


@pytest.mark.parametrize("queries, length", [
    (1, 1), (7, 7), (5, 96), (200, 200), (60, 293), (3, 293), (1, 193)])
@pytest.mark.parametrize("window", [None, 1, 20, 130])
@pytest.mark.parametrize("causal", [False, True])
def test_first_keys_hide_what_a_bias_of_minus_infinity_hides(every_isa, queries, length, window,
                                                             causal):
    """Whole blocks of keys are then skipped: the same bits."""
    c, rng = every_isa, np.random.default_rng(length)
    q, dy = normal(2, 4, queries, 24), normal(2, 4, queries, 20, seed=3)
    k, v = normal(2, 2, length, 24, seed=1), normal(2, 2, length, 20, seed=2)
    if window is None:
        first = rng.integers(-2, length + 3, (2, queries))
    else:
        first = np.stack([np.arange(queries) + length - queries - window + 1] * 2)
    hidden = np.arange(length) < first[..., None]
    bias = np.where(hidden, -np.inf, 0).astype(F32)[:, None]
    plain, biased = (q, k, v, None, None, causal, 0.3), (q, k, v, bias, None, causal, 0.3)
    y, lse = c.attention(*plain, None, first)
    wanted, wanted_lse = c.attention(*biased)
    assert same(y, wanted) and same(lse, wanted_lse)
    found = c.attention_backward(dy, *plain, y, lse, True, None, first)
    *grads, dbias = c.attention_backward(dy, *biased, y, lse, True)
    for g, w in zip(found, grads):
        assert same(g, w)
    assert np.array_equal(found[3], dbias)      # 0 may be -0 where a block was not skipped


@pytest.mark.parametrize("heads, width", [(1, 48), (2, 64), (3, 96)])
@pytest.mark.parametrize("length", [1, 7, 64, 65, 130])
def test_gpt_in_a_batch_or_from_a_cache_is_the_full_forward(c, heads, width, length):
    model = GPT(GPTConfig(vocabulary=97, context=132, layers=2, heads=heads, width=width),
                mf.Rng(1))
    ids = np.random.default_rng(length).integers(0, 97, (3, length))
    counts = np.array([length, max(1, length // 2), max(1, length - 1)])
    with mf.no_grad():
        full = model(ids).numpy()
        for threads, rows in ((1, 1), (3, 2), (4, 3)):
            lib.minifm_set_threads(threads)
            assert same(model(ids[:rows]).numpy(), full[:rows])
            cache, done = model.cache(rows), 0
            for chunk in (length // 3, 1, length):
                piece = ids[:rows, done : done + chunk]
                if piece.size:
                    found = model(piece, cache=cache).numpy()
                    assert same(found, full[:rows, done : done + piece.shape[1]])
                done += piece.shape[1]
        cache = model.cache(3)
        uneven = model(ids, cache=cache, counts=counts).numpy()
        next_ids = np.array([[5], [6], [7]])
        last = model(next_ids, cache=cache).numpy()
        for row, n in enumerate(counts):
            one = model(np.append(ids[row, :n], next_ids[row])[None]).numpy()
            assert same(uneven[row, :n], one[0, :n]) and same(last[row], one[0, n:])


# -- memory ----------------------------------------------------------------------------------------

POISON = 0x7FC0DEAD     # a NaN that no kernel makes; its last byte is no truth value


def poison(word):
    """As much of it as an unsigned integer type holds."""
    return POISON & np.iinfo(word).max


class GuardedOutputs:
    """Stands in for NumPy in c.py: `empty` gives poisoned arrays between two canaries, at places
    that are aligned to a number and to nothing larger."""

    def __init__(self, margin=17):
        self.margin, self.given = margin, []
        self.numpy = SimpleNamespace(**{**vars(np), "empty": self.empty})

    def empty(self, shape, dtype):
        dtype = np.dtype(dtype)
        if dtype.itemsize < 4 and dtype.kind != "b":        # packed codes: see test_packed.py
            return np.empty(shape, dtype)
        word = np.dtype(np.uint8 if dtype.kind == "b" else np.uint32)
        each = dtype.itemsize // word.itemsize
        words = int(np.prod(shape)) * each
        room = np.full(words + 2 * self.margin + 1, poison(word), word)
        start = self.margin + (room.ctypes.data // word.itemsize + self.margin) % each
        self.given.append((room, start, start + words))
        return room[start : start + words].view(dtype).reshape(shape)

    def serve(self, monkeypatch):
        """Every output of the C backend comes from here."""
        for name, module in list(sys.modules.items()):
            if name.startswith("minifm.backends.c.") and hasattr(module, "np"):
                monkeypatch.setattr(module, "np", self.numpy)

    def check(self):
        for room, start, end in self.given:
            spoilt = room == poison(room.dtype)
            assert spoilt[:start].all() and spoilt[end:].all(), "a kernel wrote beside its output"
            assert not spoilt[start:end].any(), "a kernel left its output unwritten"


@pytest.mark.parametrize("op", EVERY_OP)
@given(data=st.data())
def test_outputs_are_written_whole_and_nothing_else(every_isa, op, data):
    example = data.draw(strategies.examples(op, F32))
    operands = [x for x in example.inputs if isinstance(x, np.ndarray)]
    before = [np.array(x) for x in operands]
    outputs = GuardedOutputs()
    with pytest.MonkeyPatch.context() as patch:
        outputs.serve(patch)
        laws.forward_backward(example, laws.cotangents(example, 1))
    outputs.check()
    assert all(same(x, y) for x, y in zip(operands, before))


@pytest.mark.parametrize("name", CASES)
def test_large_outputs_are_written_whole_and_nothing_else(every_isa, name, monkeypatch):
    outputs = GuardedOutputs()
    wanted = CASES[name](every_isa)
    outputs.serve(monkeypatch)
    assert same(CASES[name](every_isa), wanted)
    if name not in ("sum_of_squares", "embedding_backward", "adamw and ema"):  # these make none
        assert outputs.given, "no output came from the guard"
    outputs.check()


@pytest.mark.parametrize("spoil", ["beside", "unwritten"])
def test_the_guard_notices(c, monkeypatch, spoil):
    outputs = GuardedOutputs()
    y = outputs.empty((4,), F32)
    if spoil == "beside":
        y[:] = 1
        y.base[3] = 0
    with pytest.raises(AssertionError, match=spoil):
        outputs.check()


@pytest.mark.parametrize("wrong", [-1, 5])
def test_an_index_that_has_become_wrong_since_the_forward_pass_is_an_error(c, wrong):
    x, ids = normal(3, 5), np.array([0, wrong, 2])
    with pytest.raises(mf.UserError, match=f"index {wrong} is outside 0 … 4"):
        c.cross_entropy_backward(x[:, 0], x, ids, x[:, 0], -100, 0.0)
    with pytest.raises(mf.UserError, match=f"index {wrong} is outside 0 … 4"):
        c.embedding_backward(x, ids, 5, None)


def test_the_sum_of_one_number_is_no_alias_of_it(c):
    x = np.array(3.0, F32)
    assert not np.shares_memory(c.sum(x), x)


# -- numbers at the edge ---------------------------------------------------------------------------


def test_subnormals_are_left_alone():
    """By the import, by computing, and in the threads of the pool."""
    assert python("""
import numpy as np, threading
tiny = np.full(200_000, 2e-38, np.float32)
before = tiny * np.float32(0.01)
import minifm
c = minifm.backend()
c.set_threads(4)
found = [c.multiply(tiny, np.float32(0.01)), tiny * np.float32(0.01)]
thread = threading.Thread(target=lambda: found.append(tiny * np.float32(0.01)))
thread.start(), thread.join()
assert before[0] > 0 and all(np.array_equal(x, before) for x in found)
assert 0 < c.exp(np.array([-100], np.float32))[0] < 1e-43
print("good")
""", MINIFM_BACKEND="c") == "good"


def test_rows_without_a_finite_score(every_isa):
    nothing, inf, nan = F32("-inf"), F32("inf"), F32("nan")
    rows = normal(7, 37)
    rows[1], rows[2, 5], rows[3, 30], rows[4, 36] = nothing, inf, nan, nothing
    rows[5], rows[6] = 1e4, -1e4
    rows[5, 3] = -1e4
    reference = Reference()
    with np.errstate(all="ignore"):
        for verb in ("softmax", "log_softmax", "logsumexp"):
            found, wanted = getattr(every_isa, verb)(rows), getattr(reference, verb)(rows)
            np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6)
    assert not every_isa.softmax(rows)[1].any() and every_isa.logsumexp(rows)[1] == nothing


@pytest.mark.parametrize("n", [2048, 2049, 7000])
def test_the_largest_of_a_long_row_may_come_at_any_place(every_isa, n):
    """A row is summed in pieces of 2048 numbers, under the largest one so far."""
    x = normal(4, n)
    x[0] += np.linspace(0, 60, n, dtype=F32)
    x[1] -= np.linspace(0, 60, n, dtype=F32)
    x[2, :2048], x[3, -1] = -np.inf, 90
    wide = x.astype(float)
    top = np.maximum(wide.max(1), -1e30)
    with np.errstate(divide="ignore"):
        wanted = top + np.log(np.exp(wide - top[:, None]).sum(1))
    np.testing.assert_allclose(every_isa.logsumexp(x), wanted, rtol=1e-6, atol=1e-5)
    for row in (0, 1, 3):
        found = every_isa.log_softmax(x[row : row + 1])
        np.testing.assert_allclose(found[0], wide[row] - wanted[row], rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize("causal", [False, True])
def test_attention_of_queries_that_see_nothing(every_isa, causal):
    q, k, v, dy = (normal(2, 2, 9, 16, seed=i) for i in range(4))
    k, v, mask = k[:, :, :5], v[:, :, :5], np.array([[False] * 5, [True] * 5])
    given = q, k, v, None, mask, causal, 1.0
    y, lse = every_isa.attention(*given)
    wanted, wanted_lse = Reference().attention(*given)
    assert not y[0].any() and (lse[0] == -np.inf).all()
    if causal:      # the first 4 of 9 queries stand before all 5 keys
        assert not y[1, :, :4].any() and (lse[1, :, :4] == -np.inf).all()
    np.testing.assert_allclose(y, wanted, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(lse, wanted_lse, rtol=1e-5)
    grads = every_isa.attention_backward(dy, *given, y, lse, False)
    wanted = Reference().attention_backward(dy, *given, wanted, wanted_lse, False)
    for g, w in zip(grads[:3], wanted[:3]):
        assert not g[0].any()
        np.testing.assert_allclose(g, w, rtol=1e-4, atol=1e-5)


def test_attention_to_one_key_has_no_gradient_by_the_scores(every_isa):
    q, k, v, dy = (normal(1, 2, t, 24, seed=i) for i, t in enumerate((6, 1, 1, 6)))
    given = q, k, v, None, None, False, 0.2
    dq, dk, dv, _ = every_isa.attention_backward(dy, *given, *every_isa.attention(*given), False)
    assert not dq.any() and not dk.any() and dv.any()


def test_nan_in_one_place_reaches_its_row_and_no_other(every_isa):
    c, x, gain = every_isa, normal(20, 50), normal(50)
    x[7, 11] = np.nan
    w, k = normal(50, 40), normal(1, 2, 10, 50)
    q = x.reshape(k.shape)
    for y in (c.softmax(x), c.layernorm(x, gain, gain, 1e-5)[0], c.rmsnorm(x, gain, 1e-5)[0],
              c.matmul(x, w), c.linear(x, w, None, "gelu", None)[0],
              c.attention(q, k, k, None, None, False, 0.1)[0].reshape(20, 50),
              np.concatenate([c.attention(few[None, None], k[:, :1], k[:, :1], None, None, False,
                                          0.1)[0][0, 0] for few in np.split(x, 10)])):
        assert np.isnan(y[7]).all() and np.isfinite(np.delete(y, 7, 0)).all()


# -- operands of another dtype ---------------------------------------------------------------------


def outcome(example, inputs):
    """What the active backend makes of the inputs: arrays, or why it refuses them."""
    try:
        outputs = apply(example.op, *inputs, **example.options)
    except (ShapeError, TypeError, OverflowError) as refused:       # all but the first are NumPy's
        return str(refused)
    return [y.numpy() for y in (outputs if isinstance(outputs, tuple) else (outputs,))]


@pytest.mark.parametrize("dtype", [np.int32, np.bool_])
@pytest.mark.parametrize("op", EVERY_OP)
def test_numbers_that_are_no_floats_are_read_as_what_they_are_or_refused(c, op, dtype):
    """Each operand in turn; a kernel that took their bits for float32 would be far off."""
    for seed in range(6):
        example = strategies.example(op, Explorer.random(seed, dtype=F32, most=2**9))
        for i in example.varied:
            inputs = list(example.inputs)
            inputs[i] = (2 * inputs[i]).astype(dtype)
            with np.errstate(all="ignore"):
                found = outcome(example, inputs)
                with mf.use("numpy"):
                    wanted = outcome(example, inputs)
            if isinstance(wanted, str):
                assert found == wanted
            else:
                for y, x in zip(found, wanted, strict=True):
                    assert np.allclose(y, x, 1e-4, 1e-4, equal_nan=True), example


@pytest.mark.parametrize("wrong", [np.int32, np.int64, np.bool_, np.float64, np.dtype(">f4")])
def test_a_kernel_gets_no_pointer_to_what_it_does_not_read(c, wrong):
    x, w, image, kernel = normal(3, 4), normal(4, 5), normal(1, 2, 3, 3), normal(2, 2, 2, 2)
    once, packed = ((1, 1), (0, 0), 1), c.pack(w, "fp32")
    for call in (lambda: c.linear(x, w, np.ones(5, wrong), None, None),
                 lambda: c.linear(x, w, None, None, np.ones((3, 5), wrong)),
                 lambda: c.linear(x, packed, np.ones(5, wrong), None, None),
                 lambda: c.conv2d(image, kernel, np.ones(2, wrong), *once),
                 lambda: c.conv_transpose2d(image, kernel, np.ones(2, wrong), (4, 4), *once),
                 lambda: c.attention(*[image] * 3, np.ones((3, 3), wrong), None, False, 1.0),
                 lambda: c.layernorm_backward(x, x, x[0], np.ones(3, wrong), x[:, 0])):
        with pytest.raises(TypeError):
            call()
    for mask in (np.ones((1, 3), np.int8), np.ones((1, 3), np.int32)):
        with pytest.raises(TypeError):
            c.attention(*[image] * 3, None, mask, False, 1.0)


# -- what NumPy computes is counted ----------------------------------------------------------------


@pytest.mark.parametrize("op", EVERY_OP)
@given(data=st.data())
def test_numpy_computes_nothing_uncounted(c, op, data):
    """Whoever overrides a verb and hands it to the reference all the same must count that."""
    example, called = data.draw(strategies.examples(op, F32)), Counter()

    def noted(name, verb):
        def call(self, *arguments, **options):
            called[name] += self is c
            return verb(self, *arguments, **options)
        return call

    computing = [name for name in dir(Reference) if callable(getattr(Reference, name))
                 and not (name.startswith("_") or hasattr(getattr(Reference, name), "composed"))
                 and name not in ("describe", *(set(vars(Arrays)) - {"add_along"}))]
    c.fallbacks.clear()
    with pytest.MonkeyPatch.context() as patch:
        for name in computing:
            patch.setattr(Reference, name, noted(name, getattr(Reference, name)))
        laws.forward_backward(example, laws.cotangents(example, 1))
    assert called <= c.fallbacks


PLACES = [
    slice(1, 3), np.array([1, -1, 1]), np.array(2), (np.array([1, 1]), np.array([0, -4])),
    (np.array([[0], [2]]), slice(None), np.array([1, 1, 0])), (..., np.array([2, 2, 0])),
    (slice(None, None, 2), None, np.array([3, 0, 3, 3])), np.arange(5) > 1, np.zeros(5, bool),
    (1, np.arange(4) % 2 == 0), np.eye(5, 4) > 0, (np.array([[4, 4], [0, 4]]), 1), np.zeros(0, int),
    (slice(1, 4), np.eye(4, 3) > 0), (np.array([1, 0]), None, np.array([3, 3]), slice(2)),
]


@pytest.mark.parametrize("index", PLACES, ids=str)
def test_any_index_adds_what_numpy_adds(every_isa, index):
    x = np.arange(60, dtype=F32).reshape(5, 4, 3)
    values, wanted = np.arange(x[index].size, dtype=F32).reshape(x[index].shape), np.zeros_like(x)
    np.add.at(wanted, index, values)
    every_isa.fallbacks.clear()
    assert same(every_isa.scatter_add(x.shape, index, values), wanted)
    np.add.at(wanted, index, -1)
    assert same(every_isa.scatter_add(x.shape, index, values - 1), wanted)
    assert not every_isa.fallbacks


@pytest.mark.parametrize("index", [np.array([5]), (np.array([0]), np.array([-5])), np.eye(3) > 0])
def test_an_index_outside_is_numpys_error(c, index):
    with pytest.raises(IndexError):
        c.scatter_add((5, 4, 3), index, normal(3))


@pytest.mark.parametrize("shape, axis, picked", [
    ((7,), 0, (3,)), ((4, 5), 1, (4, 9)), ((4, 5), 0, (2, 5)), ((3, 6, 2500), 1, (3, 4, 2500)),
    ((3, 6, 5), -1, (3, 6, 2)), ((3, 6, 5), -2, (1, 4, 5)), ((1, 6, 5), 1, (3, 2, 1)),
    ((2, 3), 1, (2, 0)), ((0, 3), 1, (0, 2))])
def test_numbers_along_an_axis_are_numpys(every_isa, shape, axis, picked):
    index = np.random.default_rng(0).integers(-shape[axis], shape[axis], picked)
    x = normal(*shape)
    every_isa.fallbacks.clear()
    for places in (index, index.astype(np.int32), np.asfortranarray(index)):
        taken = every_isa.take_along(x, places, axis)
        assert same(taken, np.take_along_axis(x, index, axis))
        if all(a <= b for i, (a, b) in enumerate(zip(picked, shape)) if i != axis % x.ndim):
            values = np.arange(index.size, dtype=F32).reshape(picked)
            wanted = Reference().add_along(shape, index, values, axis)
            assert same(every_isa.add_along(shape, places, values, axis), wanted)
    assert not every_isa.fallbacks
    for verb, other in ((every_isa.take_along, x), (every_isa.add_along, shape)):
        values = () if verb == every_isa.take_along else (normal(*picked),)
        for wrong in (shape[axis], -shape[axis] - 1):
            if index.size:
                with pytest.raises(IndexError):
                    verb(other, np.full(picked, wrong), *values, axis)


def layouts(x):
    """x as it is, from behind, with gaps, transposed and stretched from one number a row."""
    yield from (x, x[::-1], np.repeat(x, 3, -1)[..., ::3], np.asfortranarray(x), x[:, :1], x[:1],
                np.broadcast_to(x[:, :1], x.shape), np.broadcast_to(x[0, :1], x.shape))


@pytest.mark.parametrize("n", [1, 7, 33, 700])
def test_comparisons_and_choices_are_numpys_of_any_strides(every_isa, n):
    random = np.random.default_rng(n)
    special = np.array([np.nan, np.inf, -np.inf, 0, -0.0, 1, -1, 1e-45], F32)
    x, y = (special[random.integers(0, 8, (5, n))] for _ in range(2))
    every_isa.fallbacks.clear()
    for left in layouts(x):
        for right in (*layouts(y), F32(0), 1):
            for verb in ("less", "less_equal", "greater", "greater_equal", "equal"):
                wanted = getattr(np, verb)(left, right)
                assert same(getattr(every_isa, verb)(left, right), wanted)
                assert same(getattr(every_isa, verb)(right, left), getattr(np, verb)(right, left))
            for chosen in layouts(random.random((5, n)) < 0.5):
                wanted = np.where(chosen, left, right)
                assert same(every_isa.where(chosen, left, right), wanted.astype(F32))
    assert same(every_isa.where(x, x, y), np.where(x, x, y))
    deep = normal(*[2, 1] * 6, 3)
    assert same(every_isa.add(deep, deep.T.reshape(deep.shape)),
                deep + deep.T.reshape(deep.shape))
    assert not every_isa.fallbacks


def in_ulps(found, wanted):
    """How far `found` is from float64's `wanted`, in units of its last place; 0 for the same."""
    near = wanted.astype(F32)
    off = np.abs(found - wanted) / np.spacing(np.abs(near))
    return np.where((found == near) | (np.isnan(found) & np.isnan(near)), 0, off)


@np.errstate(all="ignore")
def test_powers_are_within_2_ulp_and_their_exceptions_are_those_of_c(every_isa):
    random, n = np.random.default_rng(0), 40_000
    bases = np.concatenate([random.uniform(0.5, 2, n), random.uniform(0.98, 1.02, n),
                            np.exp(random.uniform(-80, 80, n))]).astype(F32)
    exponents = np.concatenate([random.uniform(-250, 250, n), random.uniform(-9000, 9000, n),
                                random.uniform(-3, 3, n)]).astype(F32)
    every_isa.fallbacks.clear()
    wanted = np.power(bases.astype(float), exponents.astype(float))
    assert in_ulps(every_isa.power(bases, exponents), wanted).max() <= 2
    special = np.array([0, 1, 2, 0.5, 3, 1.5, np.inf, 3.4e38, 1e-45, 1.2e-38, 2**22 + 0.5,
                        2**23 + 1, 2**24 - 1, 2**24, 2**24 + 2], F32)
    special = np.concatenate([special, -special, [F32(np.nan)]])
    found = every_isa.power(special[:, None], special)
    wanted = np.power(special[:, None].astype(float), special.astype(float))
    assert in_ulps(found, wanted).max() <= 2
    assert np.array_equal(np.signbit(found), np.signbit(wanted.astype(F32))) or (
        np.isnan(wanted[np.signbit(found) != np.signbit(wanted)]).all())
    for exponent in (0, 1, 2, -1, 0.5, 3, -2.5):
        wanted = np.power(bases.astype(float), exponent)
        assert in_ulps(every_isa.power(bases, exponent), wanted).max() <= 2
    assert not every_isa.fallbacks


@np.errstate(all="ignore")
def test_logarithm_sine_and_cosine_are_within_2_ulp_of_all_numbers(every_isa):
    """Near multiples of pi / 2, where most digits cancel, and beyond 12800, where the C library
    computes."""
    random, n = np.random.default_rng(0), 100_000
    every = random.integers(0, 2**32, n, dtype=np.uint32).view(F32)
    turns = (random.integers(-8000, 8000, n) * (np.pi / 2)).astype(F32)
    every_isa.fallbacks.clear()
    for name in ("log", "sin", "cos"):
        for x in (every, turns, random.uniform(0.5, 2, n).astype(F32), parity.SPECIAL):
            wanted = getattr(np, name)(x.astype(float))
            found = getattr(every_isa, name)(x)
            assert in_ulps(found, wanted).max() <= 2, name
            finite = np.isfinite(found)
            assert np.array_equal(np.signbit(found[finite]), np.signbit(wanted[finite]))
    assert not every_isa.fallbacks


@pytest.mark.parametrize("n", [1, 2, 7, 8, 31, 33, 1000])
def test_extremes_are_numpys_with_nan_and_infinities(every_isa, n):
    """Bitwise; the place of the largest is the first, that of a NaN before it."""
    random = np.random.default_rng(n)
    x = random.integers(-3, 4, (40, n)).astype(F32) + F32(0.5)
    special = random.random(x.shape)
    for value, share in ((np.nan, 0.01), (np.inf, 0.02), (-np.inf, 0.03)):
        x[(special > share - 0.01) & (special < share)] = value
    every_isa.fallbacks.clear()
    with np.errstate(invalid="ignore"):
        for axis in (None, 0, 1, (0, 1)):
            assert same(every_isa.max(x, axis), np.asarray(x.max(axis)))
            assert same(every_isa.min(x, axis, True), x.min(axis, keepdims=True))
        for y in (np.flip(x), x[:1], x[:, :1], F32(0.5)):
            assert same(every_isa.maximum(x, y), np.maximum(x, y))
            assert same(every_isa.minimum(x, y), np.minimum(x, y))
    for y in (x, np.repeat(x, 40, 1)):
        assert same(every_isa.argmax(y), y.argmax(-1)) and same(every_isa.argmax(y, 0), y.argmax(0))
    assert same(every_isa.argmax(x.reshape(8, 5, n), 1), x.reshape(8, 5, n).argmax(1))
    assert not every_isa.fallbacks


@pytest.mark.parametrize("B, H, T, R", [(1, 1, 1, 1), (2, 3, 5, 7), (3, 2, 70, 32)])
def test_rope_turns_heads_of_any_strides_and_back(every_isa, B, H, T, R):
    packed, angle = normal(B, T, 3, H, 2 * R), normal(B, T, R, seed=1)
    x = packed[:, :, 1].transpose(0, 2, 1, 3)
    for turn in (angle, angle[0]):
        wanted = Reference().rope(x, np.cos(turn), np.sin(turn), False)
        found = every_isa.rope(x, np.cos(turn), np.sin(turn), False)
        assert same(found, wanted)
        back = every_isa.rope(found, np.cos(turn), np.sin(turn), True)
        np.testing.assert_allclose(back, x, atol=1e-6)


def test_float64_is_no_fallback_wherever_it_stands(c):
    c.fallbacks.clear()
    c.where(np.array([True, False]), np.ones(2), 0.0)
    c.add(np.ones(2), 1.0)
    assert not c.fallbacks


def test_gpt_trains_and_writes_without_numpy(c):
    """A step of training in two pieces, with dropout, clipping and a moving average; then text
    from prompts of different lengths, with the weights' averages."""
    c.strict = True
    model = GPT(GPTConfig(vocabulary=90, context=40, layers=2, heads=2, width=48, dropout=0.1),
                mf.Rng(0))
    optimizer = AdamW(model.parameters(), average=0.9)
    ids, targets = np.random.default_rng(0).integers(0, 90, (2, 3, 33))
    targets[0, :5] = -100
    for step in (1, 2):
        for piece in range(2):
            model.loss(ids, targets, denominator=188, rng=mf.Rng(step).child(piece)).backward()
        optimizer.update(0.01, 1 / max(optimizer.gradient_norm(), 1))
        optimizer.zero_grad()
    with optimizer.averaged():
        prompts = [[1, 2, 3], [4], [5, 6]]
        steps = list(tokens(model, prompts, Sampling(), 5, mf.Rng(1)))
        with mf.no_grad():
            model(ids, key_mask=ids > 8)
    assert len(steps) == 5


def test_strict_refuses_what_has_no_kernel(c):
    c.strict = True
    for call in (lambda: c.sin(np.arange(3)), lambda: c.add(np.arange(3), np.arange(3)),
                 lambda: c.scatter_add((5,), np.arange(5) > 2, np.arange(2))):
        with pytest.raises(FallbackError, match="MINIFM_STRICT=1"):
            call()


# -- settings --------------------------------------------------------------------------------------


@pytest.mark.parametrize("threads", [None, 2.9, "2.9", [], 0, 257])
def test_a_number_of_threads_is_whole(c, threads):
    with pytest.raises(ConfigError, match="threads: expected a whole number from 1 to 256, got "):
        c.set_threads(threads)
    c.set_threads(np.int64(c.threads))


@pytest.mark.parametrize("axis", [-3, 2, 7])
def test_an_axis_that_is_not_there_is_numpys_error(c, axis):
    for verb in ("argmax", "sum", "max"):
        with pytest.raises(np.exceptions.AxisError):
            getattr(c, verb)(normal(3, 4), axis)


@pytest.mark.parametrize("name, value, message", [
    ("MINIFM_THREADS", "many", "MINIFM_THREADS: expected a whole number from 1 to 256, got 'many'"),
    ("MINIFM_THREADS", "0", "MINIFM_THREADS: expected a whole number from 1 to 256, got '0'"),
    ("MINIFM_THREADS", "2.5", "MINIFM_THREADS: expected a whole number"),
    ("MINIFM_THREADS", "10000000000000", "MINIFM_THREADS: expected a whole number"),
    ("MINIFM_ISA", "sse9", "MINIFM_ISA: this machine offers .*portable; not 'sse9'"),
])
def test_a_wrong_setting_is_one_line(c, monkeypatch, name, value, message):
    monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=message) as raised:
        CBackend()
    assert "\n" not in str(raised.value)


def test_settings_choose():
    show = "import minifm; b = minifm.backend(); print(b.isa, b.threads)"
    for isa in ISAS:
        assert python(show, MINIFM_BACKEND="c", MINIFM_ISA=isa, MINIFM_THREADS="3") == f"{isa} 3"
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    assert python(show, MINIFM_BACKEND="c") == f"{ISAS[0]} {cores}"


def test_the_backend_says_what_it_is_and_who_made_it(c):
    made_by, version = c.compiler.split(maxsplit=1)
    assert made_by in ("gcc", "clang") and version[0].isdigit()
    assert c.describe().startswith(f"c ({c.isa}, {c.threads} threads, {c.compiler}")


def test_one_setting_of_threads_rules_blas_too():
    show = """
import minifm, threadpoolctl
minifm.backend()
print({p["num_threads"] for p in threadpoolctl.threadpool_info() if p["user_api"] == "blas"})"""
    for backend in ("c", "numpy"):
        assert python(show, MINIFM_BACKEND=backend, MINIFM_THREADS="1") == "{1}"


def test_a_missing_extension_is_said_once():
    said = python("""
import contextlib, io, sys
sys.modules['minifm.backends._csrc'] = None
import minifm
with contextlib.redirect_stderr(io.StringIO()) as errors:
    minifm.backend(), minifm.backend()
print(errors.getvalue())""")
    assert said.count("the compiled extension is not there") == 1 and "NumPy computes" in said
