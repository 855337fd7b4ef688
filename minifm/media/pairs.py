"""Examples made here: each is one of some things in one of some manners (a letter in a style, a
note in a timbre, a digit in a direction, a solid in a pose), drawn anew in every variation.

What is held out are pairs. Every thing and every manner occurs in training, the held-out pairs of
them never do: a model that gets those right has learnt that the two go together freely, which no
copy of a training example could teach it.
"""

import hashlib
from collections import Counter
from dataclasses import dataclass
from typing import Callable

import numpy as np

from minifm.errors import ConfigError
from minifm.media.examples import Examples
from minifm.rng import Rng


@dataclass(frozen=True)
class Maker:
    """name      of the data set, by which it is opened, and of its stream of random numbers
    kind        PICTURE, SOUND, VIDEO or SOLID
    pairs       (thing, manner) of strings, as often as there are combinations
    draw        draw(thing, manner, rng, held_out) -> (array [C, *space], caption): uint8, where 0
                is -1 and 255 is 1, or float32 in -1 … 1. `held_out` is whether the pair is
    variations  how often each pair is drawn where the user does not say
    facts       {…} that the description says of the data, such as the rate of a sound
    """

    name: str
    kind: object
    pairs: tuple
    draw: Callable
    variations: int
    facts: dict

    def make(self, config):
        """The Examples, the same for the same `config` (a MediaConfig). Labels are things."""
        rng = Rng(config.seed).child("media", self.name)
        variations = config.variations or self.variations
        away = held_out_pairs(self.pairs, config.held_out, rng.child("held out"))
        classes = tuple(dict.fromkeys(thing for thing, _ in self.pairs))
        drawn = [self.draw(thing, manner, rng.child(thing, manner, i), (thing, manner) in away)
                 for thing, manner in self.pairs for i in range(variations)]
        outside = np.repeat([pair in away for pair in self.pairs], variations)
        labels = np.repeat([classes.index(thing) for thing, _ in self.pairs], variations)
        values = np.stack([array for array, _ in drawn])
        return Examples(
            kind=self.kind, values=values,
            labels=labels.astype(np.int32), classes=classes,
            captions=tuple(caption for _, caption in drawn),
            parts={"training": np.flatnonzero(~outside), "held_out": np.flatnonzero(outside)},
            description={"name": self.name, "generated": True, "pairs": len(self.pairs),
                         "held_out_pairs": sorted(map(list, away)), "variations": variations,
                         "seed": config.seed,
                         "sha256": hashlib.sha256(values).hexdigest(), **self.facts})


def held_out_pairs(pairs, fraction, rng):
    """A set of about `fraction` of the different (thing, manner) pairs, at least one, chosen so
    that each thing and each manner remains in another pair.

    Raises ConfigError where even one pair cannot be spared.
    """
    left, away = Counter(value for pair in enumerated(pairs) for value in pair), set()
    wanted = max(1, round(fraction * len(pairs)))
    for place in rng.permutation(len(pairs)):
        first, second = enumerated(pairs)[place]
        if len(away) < wanted and left[first] > 1 and left[second] > 1:
            left.subtract((first, second))
            away.add(pairs[place])
    if not away:
        raise ConfigError("held-out: no pair can be spared, for each is the last of its kind")
    return away


def enumerated(pairs):
    """Each pair with its values marked by their place: "3" the thing is not "3" the manner."""
    return [((0, thing), (1, manner)) for thing, manner in pairs]
