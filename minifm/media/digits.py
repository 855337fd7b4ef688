"""Handwritten digits, 1,797 of 8 × 8 pixels, which come with scikit-learn.

They are the test part of the UCI set "Optical Recognition of Handwritten Digits" (Alpaydin & Kaynak
1998), 17 shades of grey: real data, on any machine, small enough to learn in minutes.
"""

import hashlib

import numpy as np

from minifm.errors import ConfigError
from minifm.media.examples import PICTURE, Examples
from minifm.media.wanted import MediaConfig
from minifm.rng import Rng

SIDE = 8
MISSING = "digits: they come with scikit-learn, which is not installed (the extra data brings " \
    "it: pip install 'minifm[data]')"


def digits(config=MediaConfig()):
    """Examples [1797, 1, 8, 8], white on black; the classes are "0" … "9".

    Raises ConfigError without scikit-learn, and for a size other than 8.
    """
    if config.size not in (None, SIDE):
        raise ConfigError(f"size: the digits have {SIDE} pixels a side, got {config.size}")
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise ConfigError(MISSING) from None
    found = load_digits()
    values = np.round(found.images * (255 / 16)).astype(np.uint8)[:, None]
    order = Rng(config.seed).child("media", "digits", "held out").permutation(len(values))
    away = max(1, round(config.held_out * len(values)))
    return Examples(
        kind=PICTURE, values=values, labels=found.target.astype(np.int32),
        classes=tuple(map(str, range(10))), captions=None,
        parts={"training": np.sort(order[away:]), "held_out": np.sort(order[:away])},
        description={"name": "digits", "generated": False, "size": SIDE, "seed": config.seed,
                     "held_out": config.held_out, "sha256": hashlib.sha256(values).hexdigest()})
