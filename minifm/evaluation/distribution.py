"""How near many made examples are to many real ones, as two clouds of points: of what a classifier
sees in each example, its features.

    Fréchet distance   between the Gaussians that have the clouds' means and covariances (Heusel et
                       al. 2017): 0 for the same cloud, and larger the less alike they are, be it
                       that examples look wrong or that some kinds of them are missing
    precision          the part of the made examples that lies among the real ones: do they look
                       right? (Kynkäänniemi et al. 2019)
    recall             the part of the real examples that lies among the made ones: is all there?

Of few examples, a Fréchet distance comes out too large: two samples of n from the same N(0, 1) in D
dimensions are about (2 D + D (D + 1) / 2) / n apart. So distances can be compared only where all
clouds have as many points, and `quality` takes parts of one size.
"""

from dataclasses import dataclass

import numpy as np

from minifm.errors import ConfigError
from minifm.rng import Rng

NEIGHBOURS = 3          # whose distance is the radius of an example (Kynkäänniemi et al. 2019)
AT_ONCE = 1024          # rows of distances


@dataclass(frozen=True)
class Gaussian:
    """mean [D] and covariance [D, D], float64."""

    mean: np.ndarray
    covariance: np.ndarray

    @classmethod
    def of(cls, features):
        """That of features [N, D]; the covariance is the unbiased one."""
        x = np.asarray(features, np.float64)
        if x.ndim != 2 or len(x) < 2:
            raise ConfigError(f"features: expected [N, D] with N of at least 2, got "
                              f"{list(x.shape)}")
        mean = x.mean(0)
        away = x - mean
        return cls(mean, away.T @ away / (len(x) - 1))


def frechet_distance(a, b):
    """|μa - μb|² + tr(Σa + Σb - 2 (Σa^½ Σb Σa^½)^½) of two Gaussians, a float: the square of the
    Wasserstein-2 distance (Dowson & Landau 1982), as Heusel et al. (2017) have it.

    The last trace is the sum of the singular values of Σa^½ Σb^½. So no root of a rounding error is
    taken, and clouds that lie in a part of space alone are no less exact.
    """
    singular = np.linalg.svd(root(a.covariance) @ root(b.covariance), compute_uv=False)
    between = ((a.mean - b.mean) ** 2).sum()
    spread = np.trace(a.covariance) + np.trace(b.covariance) - 2 * singular.sum()
    return float(between + max(spread, 0.0))


def root(matrix):
    """The symmetric root of a symmetric positive matrix [D, D], by its eigenvalues."""
    values, vectors = np.linalg.eigh(matrix)
    return (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T


# -- which points lie among others -----------------------------------------------------------------


def radii(x, neighbours=NEIGHBOURS):
    """[N]: how far from each point of x [N, D] its `neighbours`-th nearest is, itself left out.
    Raises ConfigError for too few points."""
    if len(x) <= neighbours:
        raise ConfigError(f"features: expected more than {neighbours} points, got {len(x)}")
    return np.concatenate([np.partition(d, neighbours, 1)[:, neighbours]
                           for d in _distances(x, x)])


def within(x, others, reach):
    """bool [N]: whether each point of x [N, D] is no farther from one of the `others` [M, D] than
    the `reach` [M] of that one."""
    return np.concatenate([(d <= reach).any(1) for d in _distances(x, others)])


def _distances(x, others):
    """Blocks of the distances [rows, M] from x to the others."""
    squares = (others**2).sum(1)
    for start in range(0, len(x), AT_ONCE):
        block = x[start : start + AT_ONCE]
        found = (block**2).sum(1)[:, None] + squares - 2 * block @ others.T
        yield np.sqrt(np.maximum(found, 0))


# -- all of it -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Quality:
    """The mean over `parts` of as many examples each, `size`; `deviation` is the standard deviation
    of the Fréchet distance from part to part, None of one."""

    frechet_distance: float
    precision: float
    recall: float
    size: int
    parts: int
    deviation: float | None

    @property
    def figures(self):
        """{name: number} of what is told while a model learns."""
        return {name: getattr(self, name) for name in ("frechet_distance", "precision", "recall")}


class Real:
    """The features of real examples [N, D], to which others are compared."""

    def __init__(self, features):
        self.features = np.asarray(features, np.float64)
        self.gaussian, self.radii = Gaussian.of(self.features), radii(self.features)

    def quality(self, features, size):
        """The Quality of features [M, D], in parts of `size`, dealt out at random but always alike;
        what makes no whole part is left out. Raises ConfigError for fewer than one."""
        x = np.asarray(features, np.float64)
        count = len(x) // size
        if count < 1:
            raise ConfigError(f"features: expected at least {size}, got {len(x)}")
        dealt = Rng(0).child("parts").permutation(len(x))[: count * size].reshape(count, size)
        found = np.array([self._compared(x[part]) for part in dealt])
        deviation = float(found[:, 0].std(ddof=1)) if count > 1 else None
        return Quality(*map(float, found.mean(0)), size, count, deviation)

    def _compared(self, x):
        return (frechet_distance(self.gaussian, Gaussian.of(x)),
                within(x, self.features, self.radii).mean(),
                within(self.features, x, radii(x)).mean())
