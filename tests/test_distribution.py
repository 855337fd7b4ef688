"""Two clouds of points: the Fréchet distance against what is known exactly, its bias, and which
points lie among others against counting one by one."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minifm.errors import ConfigError
from minifm.evaluation.distribution import Gaussian, Real, frechet_distance, radii, root, within
from minifm.rng import Rng

SEEDS = st.integers(0, 2**32)


def cloud(seed, N, D, rank=None):
    """[N, D] of N(μ, Σ), Σ of that rank."""
    rng, rank = Rng(seed), rank or D
    mixed = rng.child("mixed").host_normal((rank, D), np.float64)
    return rng.child("x").host_normal((N, rank), np.float64) @ mixed + rng.child(
        "mean").host_normal((D,), np.float64)


def rotation(seed, D):
    return np.linalg.qr(Rng(seed).child("turn").host_normal((D, D), np.float64))[0]


# -- the Fréchet distance --------------------------------------------------------------------------


@given(SEEDS, st.integers(1, 12))
def test_exact_where_covariances_commute(seed, D):
    """Both diagonal in one turned frame: Σ (√a - √b)² + |μa - μb|², the sum over axes."""
    rng, turn = Rng(seed), rotation(seed, D)
    (a, b), (mean_a, mean_b) = (rng.child(name).host_uniform((2, D)) * 4 for name in ("v", "m"))
    found = frechet_distance(*(Gaussian(mean, turn * variances @ turn.T)
                               for mean, variances in ((mean_a, a), (mean_b, b))))
    expected = ((np.sqrt(a) - np.sqrt(b)) ** 2).sum() + ((mean_a - mean_b) ** 2).sum()
    assert found == pytest.approx(expected, abs=1e-12 * D * 16)


def test_exact_in_two_dimensions():
    """tr (Σa Σb)^½ = √(tr(Σa Σb) + 2 √(det Σa det Σb)), where they do not commute."""
    a, b = np.array([[2.0, 0.5], [0.5, 1.0]]), np.array([[1.0, -0.7], [-0.7, 3.0]])
    mixed = np.sqrt(np.trace(a @ b) + 2 * np.sqrt(np.linalg.det(a) * np.linalg.det(b)))
    found = frechet_distance(Gaussian(np.array([1.0, 0]), a), Gaussian(np.array([0, 2.0]), b))
    assert found == pytest.approx(1 + 4 + np.trace(a + b) - 2 * mixed, rel=1e-13)


@given(SEEDS, st.integers(2, 30), st.integers(1, 20), st.integers(1, 20))
def test_zero_for_the_same_cloud_of_any_rank(seed, N, D, rank):
    x = Gaussian.of(cloud(seed, N, D, min(rank, D)))
    scale = max(np.trace(x.covariance), 1.0)
    assert 0 <= frechet_distance(x, x) <= 1e-13 * D * scale


@given(SEEDS, st.integers(2, 8))
def test_laws_of_a_distance(seed, D):
    x, y = (cloud(seed + i, 40, D) for i in range(2))
    turn, d = rotation(seed, D), lambda x, y: frechet_distance(Gaussian.of(x), Gaussian.of(y))
    found = d(x, y)
    scale = np.trace(Gaussian.of(x).covariance + Gaussian.of(y).covariance) + found
    near = pytest.approx(found, abs=1e-12 * scale)
    assert d(y, x) == near
    assert d(x @ turn + 3, y @ turn + 3) == near            # turned and moved together
    assert d(x * 2, y * 2) / 4 == near                      # it is a square
    away = np.ones(D)
    assert d(x, x + away) == pytest.approx(D, abs=1e-12 * scale)


def test_a_gaussian_has_the_moments_of_its_cloud():
    x = cloud(3, 20, 4)
    np.testing.assert_allclose(Gaussian.of(x).mean, x.mean(0), rtol=1e-13)
    np.testing.assert_allclose(Gaussian.of(x).covariance, np.cov(x.T), rtol=1e-12)


def test_the_root_of_a_matrix_is_its_root():
    x = Gaussian.of(cloud(5, 30, 6, 3)).covariance
    np.testing.assert_allclose(root(x) @ root(x), x, atol=1e-13 * np.trace(x))


@pytest.mark.parametrize("n", [100, 400])
def test_few_examples_are_too_far_by_what_is_said(n):
    """Means of 40 pairs of samples of one N(0, 1) in 8 dimensions; the expression is the first
    order in 1/n. Each distance varies by about a quarter of itself."""
    D, pairs = 8, 40
    found = [frechet_distance(*(Gaussian.of(Rng(i).child(side, n).host_normal((n, D), np.float64))
                                for side in "ab")) for i in range(pairs)]
    assert np.mean(found) == pytest.approx((2 * D + D * (D + 1) / 2) / n, rel=0.15)


# -- points among others ---------------------------------------------------------------------------


@given(SEEDS, st.integers(5, 40), st.integers(1, 5), st.integers(1, 3))
def test_radii_and_who_lies_within_counted_one_by_one(seed, N, D, k):
    x, y = cloud(seed, N, D), cloud(seed + 1, 7, D)
    distance = np.linalg.norm(x[:, None] - x, axis=-1)
    np.testing.assert_allclose(radii(x, k), np.sort(distance, 1)[:, k], rtol=1e-6, atol=1e-6)
    reach = radii(x, k) * (1 + 1e-4)                        # no ties between the two ways
    expected = [any(np.linalg.norm(p - q) <= r for q, r in zip(x, reach)) for p in y]
    assert within(y, x, reach).tolist() == expected


def test_quality_of_clouds_that_are_known():
    """The same distribution, one that has but half of it, one that is elsewhere."""
    x = Rng(0).host_normal((600, 2), np.float64) + 6 * (np.arange(600) % 2)[:, None]
    real, y = Real(x[:400]), x[400:]
    same, half, away = (real.quality(z, 100) for z in (y, y[y[:, 0] < 3], y + 40))
    assert same.precision > 0.9 and same.recall > 0.9 and same.frechet_distance < 0.5
    assert half.precision > 0.9 and half.recall < 0.6 and half.frechet_distance > 5
    assert (away.precision, away.recall) == (0, 0) and away.frechet_distance > 1000
    assert (same.size, same.parts, half.parts, half.deviation) == (100, 2, 1, None)
    dealt = np.split(Rng(0).child("parts").permutation(200), 2)
    parts = [real.quality(y[part], 100).frechet_distance for part in dealt]
    assert same.frechet_distance == pytest.approx(np.mean(parts))
    assert same.deviation == pytest.approx(np.std(parts, ddof=1))
    assert list(same.figures) == ["frechet_distance", "precision", "recall"]


def test_too_few_are_refused():
    with pytest.raises(ConfigError, match=r"expected \[N, D\] with N of at least 2, got \[1, 3\]"):
        Gaussian.of(np.zeros((1, 3)))
    with pytest.raises(ConfigError, match="expected more than 3 points, got 3"):
        radii(np.zeros((3, 2)))
    with pytest.raises(ConfigError, match="expected at least 9, got 8"):
        Real(cloud(0, 20, 2)).quality(cloud(0, 8, 2), 9)
