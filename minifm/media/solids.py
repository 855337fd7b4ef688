"""Solids that need no scanner: shapes of three sizes in three poses, as occupied voxels.

    "small box, upright"   "large torus, on its side"   "medium cone, tilted"

The thing is a shape, the manner its size and pose; where it stands, and which way it faces, is
drawn. A voxel's value is the part of it that is inside, from eight points: -1 is empty, 1 is full.
The second half recognises a shape by its moments, and turns clouds of points into voxels.
"""

from functools import lru_cache

import numpy as np

from minifm.errors import ConfigError
from minifm.media.examples import SOLID
from minifm.media.pairs import Maker

# Shape: whether points (x, y, z), each [P], are inside; z is up, and all lie within a unit ball.
SHAPES = {
    "ball": lambda x, y, z: x**2 + y**2 + z**2 <= 0.72**2,
    "box": lambda x, y, z: (abs(x) <= 0.6) & (abs(y) <= 0.45) & (abs(z) <= 0.45),
    "cylinder": lambda x, y, z: (x**2 + y**2 <= 0.36**2) & (abs(z) <= 0.85),
    "cone": lambda x, y, z: (abs(z) <= 0.75) & (np.hypot(x, y) <= 0.6 * (0.75 - z) / 1.5),
    "torus": lambda x, y, z: (np.hypot(x, y) - 0.65) ** 2 + z**2 <= 0.25**2,
    "plate": lambda x, y, z: (x**2 + y**2 <= 0.85**2) & (abs(z) <= 0.2),
    "cross": lambda x, y, z: (abs(y) <= 0.22) & (abs(x) <= 0.8) & (abs(z) <= 0.22) |
        (abs(x) <= 0.22) & (abs(y) <= 0.22) & (abs(z) <= 0.8),
}
SIZES = {"small": 0.55, "medium": 0.75, "large": 0.95}      # of half a side: the unit ball's radius
POSES = ("upright", "on its side", "tilted")
FEWEST = 8                                                  # voxels of a side


def solids(config):
    """Examples [N, 1, size, size, size], size 16 unless `config` says otherwise; the classes are
    the shapes, the axes x, y and z, up."""
    size = config.size or 16
    if size < FEWEST:
        raise ConfigError(f"size: solids take at least {FEWEST} voxels a side, got {size}")

    def draw(shape, manner, rng, held_out):
        scale, pose = manner.split(" ", 1)
        turns = rotation(pose, rng)
        radius = SIZES[scale] * (0.95 + 0.05 * rng.child("radius").uniform_number())
        centre = (1 - radius) * (2 * rng.child("centre").host_uniform((3,)) - 1)
        return (voxels(SHAPES[shape], turns, radius, centre, size)[None],
                f"{scale} {shape}" if shape == "ball" else f"{scale} {shape}, {pose}")

    pairs = tuple((shape, f"{scale} {pose}") for shape in SHAPES for scale in SIZES
                  for pose in POSES if shape != "ball" or pose == "upright")    # it has no other
    return Maker("solids", SOLID, pairs, draw, 16, {"size": size}).make(config)


def rotation(pose, rng):
    """A rotation matrix [3, 3]: upright, about the vertical alone; on its side, laid down first;
    tilted, any, each as likely (a unit quaternion of normal numbers: Shoemake 1992)."""
    if pose == "tilted":
        w, *xyz = rng.child("turn").host_normal((4,), np.float64)
    else:
        half = np.pi * rng.child("turn").uniform_number()
        w, xyz = np.cos(half), (0.0, 0.0, np.sin(half))
    turn = of_quaternion(w, *xyz)
    return turn @ of_quaternion(1.0, 1.0, 0.0, 0.0) if pose == "on its side" else turn


def of_quaternion(w, x, y, z):
    """The rotation matrix [3, 3] of a quaternion, which need not be of length 1."""
    v, s = np.array((x, y, z)), 2 / (w * w + x * x + y * y + z * z)
    cross = np.array(((0, -z, y), (z, 0, -x), (-y, x, 0)))
    return np.eye(3) + s * (w * cross + np.outer(v, v) - v @ v * np.eye(3))


def voxels(inside, turns, radius, centre, size):
    """uint8 [size, size, size]: how much of each voxel of the cube -1 … 1 is inside the shape, of
    255. Each is asked at 2 × 2 × 2 points."""
    points = (asked(size) - centre.astype(np.float32)) @ (turns / radius).astype(np.float32)
    found = inside(*points.T).reshape((2 * size,) * 3).view(np.uint8)   # rows R = (R^T columns)^T
    eighths = sum(found[i::2, j::2, k::2] for i, j, k in np.ndindex(2, 2, 2))
    return np.round(eighths * (255 / 8)).astype(np.uint8)


@lru_cache(maxsize=2)
def asked(size):
    """float32 [(2 size)³, 3]: the points of the cube -1 … 1 at which its voxels are asked, a
    quarter of a side from their middles."""
    along = np.float32((np.arange(2 * size) + 0.5) / size - 1)
    return np.stack(np.meshgrid(along, along, along, indexing="ij")).reshape(3, -1).T


# -- from clouds of points, and back to the name of a shape ---------------------------------------


def occupied(points, size):
    """uint8 [size, size, size] of a cloud [P, 3]: 255 where a point falls, 0 elsewhere. The cloud
    keeps its proportions; its middle comes to the middle, and its longest side fills the cube."""
    low, high = points.min(0), points.max(0)
    side = (high - low).max() or 1.0
    places = ((points - (low + high) / 2) / side + 0.5) * size
    grid = np.zeros((size,) * 3, np.uint8)
    grid[tuple(np.clip(places.astype(np.int64), 0, size - 1).T)] = 255
    return grid


def moments(solid):
    """Six numbers of a solid [X, Y, Z] of values in -1 … 1 that no rotation, move or scale changes
    but for the size of voxels: the two ratios of its principal second moments, and how far from
    the middle what it is made of lies, compared with its volume.

    Raises ConfigError for one that is empty.
    """
    weight = filled(solid).reshape(-1)
    if weight.sum() < 1:
        raise ConfigError("solid: there is nothing in it")
    points = np.stack(np.meshgrid(*map(np.arange, solid.shape), indexing="ij"), -1).reshape(-1, 3)
    centred = points - weight @ points / weight.sum()
    spread = (centred * weight[:, None]).T @ centred / weight.sum()
    axes = np.sqrt(np.maximum(np.linalg.eigvalsh(spread)[::-1], 0))     # longest first
    # A voxel is no point: none is nearer to the middle than half a side of itself.
    distance = np.maximum(np.linalg.norm(centred, axis=1), 0.5) / np.cbrt(weight.sum())
    return np.array([axes[1] / axes[0], axes[2] / axes[0],
                     *(weight @ distance**power / weight.sum() for power in (1, 2, 4, -0.5))])


def filled(solid):
    """How full each voxel is, float64 in 0 … 1; little is nothing, as a network's empty is not."""
    part = np.clip((np.asarray(solid, np.float64) + 1) / 2, 0, 1)
    return np.where(part > 0.25, part, 0)


def recognised(solids, examples):
    """(shape, None) of each of `solids` [N, 1, X, Y, Z], values in -1 … 1: the shape of the one in
    the training part of `examples` whose moments, each in units of its spread, are nearest; moments
    know no size or pose. (None, None) where there is nothing."""
    training = examples.parts["training"]
    known = np.array([moments(solid) for solid in examples.take(training)[:, 0]])
    labels, spread = examples.labels[training], known.std(0)

    def shape_of(solid):
        if filled(solid).sum() < 1:
            return None
        distance = np.sum(((known - moments(solid)) / spread) ** 2, 1)
        return examples.classes[labels[distance.argmin()]]

    return [(shape_of(solid), None) for solid in solids[:, 0]]
