"""Noise as a value: the same numbers on every backend, in any order; and they are random."""

import math

import numpy as np
import pytest
from conftest import AVAILABLE
from hypothesis import given
from hypothesis import strategies as st

import minifm as mf
from minifm.errors import ConfigError

SHAPES = st.lists(st.sampled_from([0, 1, 2, 3, 4, 5, 8, 17, 63]), max_size=3).map(tuple)
NAMES = st.lists(st.one_of(st.integers(-5, 5), st.text(max_size=3)), max_size=3)


def uniform(name, rng, shape, dtype=np.float32):
    with mf.use(name) as backend:
        return backend.to_numpy(rng.uniform(shape, dtype))


def normal(name, rng, shape, dtype=np.float32):
    with mf.use(name) as backend:
        return backend.to_numpy(rng.normal(shape, dtype))


@given(seed=st.integers(-2**70, 2**70), path=NAMES, shape=SHAPES,
       dtype=st.sampled_from([np.float32, np.float64]))
def test_every_backend_draws_the_same(seed, path, shape, dtype):
    """Uniforms bitwise; normals within 4 ULP of the float64 ones."""
    rng = mf.Rng(seed).child(*path)
    wanted, exact = uniform("numpy", rng, shape, dtype), normal("numpy", rng, shape, np.float64)
    for name in AVAILABLE:
        found = uniform(name, rng, shape, dtype)
        assert found.shape == shape and found.dtype == dtype
        assert found.tobytes() == wanted.tobytes()
        error = np.abs(normal(name, rng, shape, dtype) - exact)
        assert (error <= 4 * np.spacing(np.abs(exact).astype(dtype))).all()


def test_the_words_are_those_of_numpys_philox(backend):
    key = (3, 2**64 - 5)
    words = np.random.Philox(key=np.array(key, np.uint64), counter=0).random_raw(1000)
    np.testing.assert_array_equal(backend.to_numpy(backend.random_bits(key, 1000)), words)


@given(NAMES, NAMES)
def test_streams_are_equal_only_if_their_paths_are(first, second):
    a, b = mf.Rng(1).child(*first), mf.Rng(1).child(*second)
    assert (a.key == b.key) == (first == second)
    assert mf.Rng(1).child(*first).child(*second).key == mf.Rng(1).child(*first, *second).key


def test_equal_names_of_any_integer_type_are_one_stream():
    assert mf.Rng(np.int64(5)).child(np.int32(3), True).key == mf.Rng(5).child(3, 1).key
    assert isinstance(mf.Rng(np.int64(3)).key[0], int)
    with pytest.raises(ConfigError, match="a string or an integer"):
        mf.Rng(0).child(1.5)


def test_drawing_consumes_nothing_and_order_does_not_matter(backend):
    rng = mf.Rng(7)
    first = rng.child("a").normal((5,))
    rng.child("b").uniform((100,))
    np.testing.assert_array_equal(rng.child("a").normal((5,)), first)


@given(n=st.sampled_from([1, 4, 5, 63]), more=st.integers(0, 70))
def test_a_longer_draw_begins_with_the_shorter(backend, n, more):
    rng = mf.Rng(3)
    np.testing.assert_array_equal(rng.uniform((n + more,))[:n], rng.uniform((n,)))
    np.testing.assert_array_equal(rng.normal((2 * n + 2 * more,))[: 2 * n], rng.normal((2 * n,)))


def test_moments_and_distribution_are_right(backend):
    """Bounds of five standard errors, at a fixed seed."""
    n = 200_000
    u = mf.Rng(0).uniform((n,), np.float64)
    z = mf.Rng(1).normal((n,), np.float64)
    assert u.min() >= 0 and u.max() < 1
    assert abs(u.mean() - 0.5) < 5 / math.sqrt(12 * n)
    counts = np.bincount((u * 64).astype(int), minlength=64)
    assert ((counts - n / 64) ** 2 / (n / 64)).sum() < 63 + 5 * math.sqrt(2 * 63)
    for power, moment, variance in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)):
        assert abs((z**power).mean() - moment) < 5 * math.sqrt(variance / n)
    assert abs(np.corrcoef(z[::2], z[1::2])[0, 1]) < 5 / math.sqrt(n / 2)


@given(seed=st.integers(0, 1000), low=st.integers(-100, 100), size=st.integers(1, 200))
def test_integers_stay_in_their_range(seed, low, size):
    drawn = mf.Rng(seed).integers(low, low + size, (64,))
    assert drawn.dtype == np.int64 and low <= drawn.min() and drawn.max() < low + size
    order = mf.Rng(seed).permutation(size)
    np.testing.assert_array_equal(np.sort(order), np.arange(size))


def test_integers_reach_all_of_a_small_range_evenly():
    counts = np.bincount(mf.Rng(5).integers(0, 6, (60_000,)))
    assert len(counts) == 6 and ((counts - 10_000) ** 2 / 10_000).sum() < 5 + 5 * math.sqrt(10)


@given(probability=st.sampled_from([0.1, 0.5, 0.9]), shape=SHAPES)
def test_dropout_is_the_same_on_every_backend_and_keeps_the_mean(probability, shape):
    x, results = np.ones(shape, np.float32), []
    for name in AVAILABLE:
        with mf.use(name):
            results.append(mf.dropout(x, probability, rng=mf.Rng(2)).numpy())
    for y in results:
        np.testing.assert_array_equal(y, results[0])
        kept = y != 0
        np.testing.assert_allclose(y[kept], 1 / (1 - probability), rtol=1e-6)
        assert not y.size or abs(kept.mean() - (1 - probability)) < 2.5 / math.sqrt(y.size)


@pytest.mark.parametrize("wrong, said", [
    (lambda: mf.Rng(1.5), "seed: expected an integer, got 1.5"),
    (lambda: mf.Rng(0).integers(3, 3), "empty"),
    (lambda: mf.Rng(0).integers(0, 2**33), "2\\^32 or more"),
    (lambda: mf.dropout(np.ones(2), 1.0, rng=mf.Rng(0)), "expected a probability"),
])
def test_what_makes_no_sense_is_refused(wrong, said):
    with pytest.raises(ConfigError, match=said):
        wrong()
