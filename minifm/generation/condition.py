"""What a diffusion model can be asked for: nothing, one of some classes, or what a caption says.

A `Condition` turns what is asked, names or None for nothing, into keyword arguments of the network:
arrays with a row for each. Training leaves some of it out, and guidance goes away from nothing
asked: both ask for None. So all that learning and sampling know of labels and captions is here.

    condition = condition_of(model, classes=("0", "1"))
    condition.told(["1", None])                     # {"labels": [1, 2]}, where 2 stands for none
    table_of(condition, ["1", "0", "1"])            # all there is to be told of three examples
"""

from dataclasses import dataclass

import numpy as np

from minifm.errors import ConfigError, listed
from minifm.models import UNet
from minifm.models.composite import Composite, network_of, sees_padding
from minifm.tensor import Tensor, no_grad
from minifm.text.captions import caption_rows


class Condition:
    """flag      by which `minifm sample` is told what is asked, without its dashes
    keywords  of the network (or Composite), in the order in which a batch has their arrays
    """

    flag, keywords = None, ()

    def told(self, asked, say=None):
        """{keyword: array [B, …]} of what is asked, a name or None for each of B examples; `say`
        is called with a line of text for what is not told whole. Raises ConfigError for what
        cannot be asked for."""
        raise NotImplementedError(f"{type(self).__name__} does not say what the network is told")

    def said(self, model):
        """What a message says that the `model`, by its name, has learnt."""
        raise NotImplementedError(f"{type(self).__name__} does not say what it knows")

    @property
    def description(self):
        """What names it in a run, as JSON has it."""
        return {"none": None}


@dataclass(frozen=True)
class Nothing(Condition):
    """There is nothing to ask for."""

    place: str = "the model"

    def told(self, asked, say=None):
        if any(name is not None for name in asked):
            raise ConfigError(f"classes: {self.said(self.place)}; leave them out")
        return {}

    def said(self, model):
        return f"{model} has learnt without classes"


@dataclass(frozen=True)
class Classes(Condition):
    """One of the classes of these names; `none` is the label that stands for none of them."""

    names: tuple
    none: int
    place: str = "the model"
    flag, keywords = "classes", ("labels",)

    def told(self, asked, say=None):
        places = {name: i for i, name in enumerate(self.names)} | {None: self.none}
        unknown = [name for name in asked if name not in places]
        if unknown:
            raise ConfigError(f"classes: {self.place} knows {listed(self.names)}, not "
                              f"{listed(dict.fromkeys(unknown))}")
        return {"labels": np.array([places[name] for name in asked], np.int64)}

    def said(self, model):
        return f"{model} has learnt the classes {listed(self.names)}, not captions"

    @property
    def description(self):
        return {"none": self.none}


@dataclass(frozen=True)
class Captions(Condition):
    """What a caption says; None and "" are the empty caption.

    length  tokens of every row, where padding is looked at; else None, and rows are as long as the
            longest of those told
    most    the most tokens that a row may have
    """

    tokenizer: object
    length: int | None = None
    most: int | None = None
    place: str = "the model"
    flag, keywords = "prompt", ("ids", "real")

    def told(self, asked, say=None):
        ids, real = caption_rows(self.tokenizer, [name or "" for name in asked], self.length,
                                 most=self.most, say=say)
        return {"ids": ids, "real": real}

    def said(self, model):
        return f"{model} has learnt captions, not classes"

    @property
    def description(self):
        return {"none": "", "tokenizer": self.tokenizer.sha256, "length": self.length}


def condition_of(model, *, classes=(), place="the model"):
    """The Condition of a network or Composite; `classes` are the names of its classes, `place` is
    what messages call it. Raises ConfigError for one that looks at a text without a way to it."""
    network, none = network_of(model), no_label(network_of(model).config)
    if getattr(network.config, "memory_width", None) is not None:
        return _captions(model, place)
    return Nothing(place) if none is None else Classes(tuple(classes), none, place)


def _captions(model, place):
    encoder, tokenizer = (model.encoder, model.tokenizer) if isinstance(model, Composite) \
        else (None, None)
    for part, name in ((encoder, "encoder"), (tokenizer, "tokenizer")):
        if part is None:
            raise ConfigError(f"{place}: its network looks at an encoded text, which there is no "
                              f"{name} for here")
    if tokenizer.vocabulary > encoder.config.vocabulary:
        raise ConfigError(f"{place}: the tokenizer has {tokenizer.vocabulary} tokens, of which the "
                          f"encoder knows {encoder.config.vocabulary}")
    context = encoder.config.context
    if sees_padding(encoder):
        return Captions(tokenizer, length=context, place=place)
    return Captions(tokenizer, most=context, place=place)


def no_label(config):
    """The label by which a network of this configuration is told that there is none; None for one
    without classes."""
    if config.model is UNet:
        return None if config.classes is None else config.classes - 1
    return config.no_class if config.classes else None


# -- told once, and looked up ----------------------------------------------------------------------

NOTHING = -1        # the row of a table that stands for nothing asked: its last


@dataclass(frozen=True)
class Table:
    """What there is to be told of some examples, each once: `columns` {keyword: array [K + 1, …]},
    whose last row stands for nothing asked; and `rows` [N], the row of each example."""

    columns: dict
    rows: np.ndarray

    def arrays(self, rows):
        """The arrays of a batch of these rows [B], in the order of `keywords`."""
        return tuple(column[rows] for column in self.columns.values())

    @property
    def keywords(self):
        return tuple(self.columns)


def table_of(condition, asked, say=None):
    """The Table of what is asked, a name or None for each of N examples."""
    different = list(dict.fromkeys(asked))
    places = {name: i for i, name in enumerate(different)}
    return Table(condition.told([*different, None], say),
                 np.array([places[name] for name in asked], np.int64))


def encoded(model, told, at_once):
    """What a network is told, with memory in place of captions: as the encoder of a Composite reads
    them, `at_once` of them together, without gradients. What is told otherwise stays."""
    if "ids" not in told:
        return told
    with no_grad():
        parts = [model.read(*(told[key][start : start + at_once] for key in ("ids", "real")))
                 for start in range(0, len(told["ids"]), at_once)]
    return {key: np.concatenate([Tensor(part[key]).numpy() for part in parts]) for key in parts[0]}
