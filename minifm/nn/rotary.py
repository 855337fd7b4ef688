"""Rotary position embeddings (Su et al. 2021): each pair of a head's numbers turns by an angle that
grows with the position, so that a score depends on how far apart two tokens are.

Pair d of a head D wide turns by position · θ^(-2d/D). A model that is to look further than it was
trained to turns more slowly: the scalings below, by the names that `config.json` has for them. Two
others that it knows, `dynamic` and `longrope`, change how a token was turned when the text grows
beyond a length. No cache of keys could be exact then, and they are not here.
"""

import math

import numpy as np

from minifm import backends, ops
from minifm.errors import ConfigError
from minifm.tensor import Tensor


class Rotary:
    """The table of all angles: `rotary(positions, dtype)` is (cos, sin) for ops.rope."""

    def __init__(self, width, theta, context, scaling=None):
        """`width` D of a head; `scaling` as in `config.json`, None: none. Raises ConfigError."""
        if width % 2:
            raise ConfigError(f"rotary positions: expected heads of an even width, got {width}")
        self.frequencies, self.size = scaled_frequencies(width, theta, context, scaling)
        self.context, self.tables = context, {}

    def __call__(self, positions, dtype):
        """positions int [*P, T], all below the context -> two Tensors [*P, T, D/2]."""
        return tuple(ops.embedding(table, positions) for table in self._tables(dtype))

    def _tables(self, dtype):
        """cos and sin, [context, D/2] each, on the active backend."""
        key = backends.active(), np.dtype(dtype)
        if key not in self.tables:
            angles = np.arange(self.context)[:, None] * self.frequencies        # float64
            self.tables[key] = tuple(
                Tensor(backends.active().from_numpy((self.size * turned).astype(dtype)))
                for turned in (np.cos(angles), np.sin(angles)))
        return self.tables[key]


def scaled_frequencies(width, theta, context, scaling):
    """(radians per position of each pair, float64 [D/2], what cos and sin are multiplied by)."""
    frequencies = theta ** (-np.arange(0, width, 2) / width)
    kind = "default" if scaling is None else scaling.get("rope_type", scaling.get("type"))
    if kind not in SCALINGS:
        raise ConfigError(f"config.json: rope_scaling: expected one of {', '.join(SCALINGS)}, "
                          f"got {kind!r}")
    try:
        return SCALINGS[kind](frequencies, width, theta, context, scaling)
    except KeyError as missing:
        raise ConfigError(f"config.json: rope_scaling: {kind} lacks {missing}") from None


def unscaled(frequencies, width, theta, context, scaling):
    return frequencies, 1.0


def linear(frequencies, width, theta, context, scaling):
    """All positions closer together by `factor` (Chen et al. 2023)."""
    return frequencies / scaling["factor"], 1.0


def llama3(frequencies, width, theta, context, scaling):
    """Slow pairs by `factor`, fast ones not at all, those between in part (Llama 3.1)."""
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    turns = scaling["original_max_position_embeddings"] * frequencies / (2 * math.pi)
    kept = np.clip((turns - low) / (high - low), 0, 1)
    return frequencies * (kept + (1 - kept) / scaling["factor"]), 1.0


def yarn(frequencies, width, theta, context, scaling):
    """The same between two pairs that turn `beta_fast` and `beta_slow` times in the original
    context; and scores grow, as cos and sin do (Peng et al. 2023, equations 17 to 25)."""
    original = scaling.get("original_max_position_embeddings") or context
    factor = scaling["factor"]

    def pair(turns):        # the one that turns so often, as a fraction of D
        return width * math.log(original / (turns * 2 * math.pi)) / (2 * math.log(theta))

    first, last = pair(scaling.get("beta_fast") or 32), pair(scaling.get("beta_slow") or 1)
    if scaling.get("truncate", True):
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, width - 1)
    slow = np.clip((np.arange(width // 2) - first) / max(last - first, 0.001), 0, 1)
    return frequencies * (1 - slow + slow / factor), _yarn_size(factor, scaling)


def _yarn_size(factor, scaling):
    if scaling.get("attention_factor") is not None:
        return scaling["attention_factor"]

    def size(weight):
        return 0.1 * weight * math.log(factor) + 1.0 if factor > 1 else 1.0

    if scaling.get("mscale") and scaling.get("mscale_all_dim"):
        return size(scaling["mscale"]) / size(scaling["mscale_all_dim"])
    return size(1.0)


SCALINGS = {"default": unscaled, "linear": linear, "llama3": llama3, "yarn": yarn}
