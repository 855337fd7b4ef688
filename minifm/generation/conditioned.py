"""An encoder-decoder that has read its sources, as a model that writes on from a prompt: so all
that writes with a decoder writes with it, too (`generate` sees to it).
"""

from typing import NamedTuple

import numpy as np

from minifm.errors import ConfigError
from minifm.tensor import no_grad
from minifm.text.rows import padded

LONGEST = 1 << 16       # tokens of a target, where the model sets no limit


class Limits(NamedTuple):
    """What who writes asks of a configuration."""

    vocabulary: int
    context: int


class Conditioned:
    """`model`, a Seq2SeqModel, once it has read `sources`, lists of token ids, one a row.

    prompts   what the target of each row begins with: the model's start
    config    its vocabulary, and the most tokens of a target
    """

    def __init__(self, model, sources):
        c = model.config
        if c.start is None or c.padding is None:
            raise ConfigError(f"{type(model).__name__}: the configuration lacks start or padding, "
                              "without which nothing can be written")
        require_sources(sources)
        self.model, self.config = model, Limits(c.vocabulary, c.context or LONGEST)
        self.prompts = [[c.start] for _ in sources]
        lengths = np.array([len(source) for source in sources])
        ids = padded(sources, c.padding)                                        # [B, S]
        mask = np.arange(ids.shape[1]) < lengths[:, None]
        self.mask = None if mask.all() else mask
        with no_grad():
            self.memory = model.recall(model.encode(ids, key_mask=self.mask))
        self._repeated = {1: (self.memory, self.mask)}      # {rows of each source: …}

    def cache(self, batch, capacity=None, format=None):
        """An empty cache; see Seq2SeqModel.cache."""
        return self.model.cache(batch, min(capacity or self.config.context, self.config.context),
                                format)

    def features(self, ids, *, placement=None):
        """ids [B, T] of the targets -> what the head reads, [B, T, C]. Where there are k B rows,
        the first k are of the first source, and so on."""
        times = len(ids) // len(self.prompts)
        if times not in self._repeated:
            rows = np.repeat(np.arange(len(self.prompts)), times)
            self._repeated[times] = (
                [(keys[rows], values[rows]) for keys, values in self.memory],
                None if self.mask is None else self.mask[rows])
        memory, mask = self._repeated[times]
        return self.model.features(ids, memory, memory_mask=mask, placement=placement)

    def logits(self, x):
        return self.model.logits(x)


def require_sources(sources):
    """Raise ConfigError for a source, a list of token ids, without any."""
    for number, source in enumerate(sources, 1):
        if len(source) == 0:
            raise ConfigError(f"source {number} of {len(sources)} is empty; expected at least one "
                              "token")
