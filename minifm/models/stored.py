"""What every model is: a module with a configuration, and a life in the files of the ecosystem.

A file of a model says, in static functions at its end, what its parameters are called in files and
how `config.json` describes it; the hub reads and writes any model by these. What stands on a model
in place of its own head, for another task, is in heads.py.
"""

import copy
from dataclasses import dataclass, field, replace

import numpy as np

from minifm.errors import ConfigError, ShapeError
from minifm.nn.module import Module


@dataclass(frozen=True)
class Stored:
    """One tensor of a checkpoint: its name there, whether it lies transposed there, and its shape
    there where that is not the same in other ways, too (`transposed` comes before). Files may say
    it again under other names, `copies`."""

    name: str
    transposed: bool = False
    shape: tuple | None = None
    copies: tuple = ()

    def shape_there(self, shape):
        """The shape in files of a parameter of this `shape`."""
        return self.shape or (shape[::-1] if self.transposed else tuple(shape))

    def array_there(self, array):
        """A parameter's NumPy array as files have it."""
        array = array.T if self.transposed else array
        return array if self.shape is None else array.reshape(self.shape)

    def array_here(self, array, shape):
        """The array of a file as the parameter of this `shape` has it, in C order."""
        if self.transposed:
            array = array.reshape(shape[::-1]).T
        # ascontiguousarray turns a single number into an array of one
        return np.ascontiguousarray(array.reshape(shape)).reshape(shape)


@dataclass(frozen=True)
class HeadLayout:
    """A head for one task on one kind of model, as other libraries have it (heads.py).

    architecture  what they call the two together
    output        the name, in files, of the layer that makes logits
    prefix        what the names of the body's tensors begin with, in place of the model's `prefix`
    parts         {setting: value} of the body: what it has and leaves out, below this head
    whole         the head reads one vector for a sequence, the body's `summary`; else each token
    reader        what it reads has gone through one more layer of the body, C to C
    dense         the name of a layer with a tanh before the output, if there is one
    bias          the output has offsets
    dropout       of what the layers read; 0: there is none; None: as much as in the body
    """

    architecture: str
    output: str
    prefix: str
    parts: dict = field(default_factory=dict)
    whole: bool = False
    reader: bool = False
    dense: str | None = None
    bias: bool = True
    dropout: float | None = 0.0


class Model(Module):
    """A Module with `config`, a frozen dataclass whose `model` is the model's class. It says:

    stored_names(config)     {our parameter's name: Stored}
    products(config)         {name of each weight that products read: the axis they sum over}
    config_from_hub(stored)  the configuration in a `config.json`; raises ConfigError
    config_to_hub(config, *, end_of_text=None)      the `config.json`
    """

    prefix = ""     # what the names of its tensors begin with in files
    weights = "model"       # what the file of its weights is called, before ".safetensors"
    folder = None           # what the files of a pipeline call it, where it may be a part of one
    tasks = {}      # {model_type: {task: HeadLayout}}

    @property
    def absorbing(self):
        """Whether it has learnt to guess behind any number of masks, and so writes by diffusion
        (diffusion/absorbing.py)."""
        return getattr(self.config, "absorbing", False)

    def each(self, x):
        """Features x [B, T, C] -> [B, T, C], what a head for tokens reads (heads.py)."""
        return x

    def with_parts(self, parts):
        """A model of these very layers, but for its configuration, which has other `parts`."""
        body = copy.copy(self)
        body.config = replace(self.config, **parts)
        return body

    def check_ids(self, ids, **given):
        """Raise ShapeError unless ids are [B, T] and what is `given` beside them is, too."""
        name = type(self).__name__
        if ids.ndim != 2:
            raise ShapeError(f"{name}: expected token ids [B, T], got {list(ids.shape)}")
        for what, array in given.items():
            if array is not None and np.shape(array) != ids.shape:
                raise ShapeError(f"{name}: {what}: expected {list(ids.shape)}, as the ids have, "
                                 f"got {list(np.shape(array))}")

    def check_length(self, length):
        """Raise ShapeError for more tokens than the context has."""
        if length > self.config.context:
            raise ShapeError(f"{type(self).__name__}: {length} tokens do not fit the context of "
                             f"{self.config.context}")

    @staticmethod
    def accepted_name(key):
        """The present spelling of a key in a file; None for a buffer that is not a weight."""
        return key

    @staticmethod
    def told_by(model_type, keys):
        """The architecture of a `config.json` that names none, told by the names of the tensors
        that lie beside it; None where these do not tell, or need not."""
        return None


def check_heads(config):
    """Raise ConfigError unless the width of a model is shared out evenly among its heads."""
    if config.width % config.heads:
        raise ConfigError(f"heads: {config.heads} heads do not divide the width {config.width}")


DIFFUSION, ABSORBING = "diffusion", "absorbing"     # the key of config.json, and what it may say


def diffusion_to_hub(config):
    """What a `config.json` says of an encoder that writes by diffusion. The key is ours: published
    models of the kind differ from others by the name of their class alone, and other libraries open
    this one as what it is, too, a model that guesses behind masks."""
    return {DIFFUSION: ABSORBING} if config.absorbing else {}


def diffusion_from_hub(stored):
    """{"absorbing": whether the `config.json` says so}; raises ConfigError for other diffusion."""
    if stored.get(DIFFUSION) not in (None, ABSORBING):
        raise ConfigError(f"config.json: {DIFFUSION}={stored[DIFFUSION]!r:.80} is not supported, "
                          f"only {ABSORBING!r}")
    return {"absorbing": stored.get(DIFFUSION) == ABSORBING}


def said(stored, defaults, fixed, silent=()):
    """{key: value} of what a `config.json` says, and of `defaults` for what it leaves out.

    fixed   {key: the values that are supported}
    silent  keys that say nothing of what the model computes

    Raises ConfigError for another value of a `fixed` key, and for a key that is not known and not
    empty: who knows what it would mean.
    """
    for key, value in stored.items():
        if key in fixed:
            if value not in fixed[key]:
                raise ConfigError(f"config.json: {key}={value!r:.80} is not supported, only "
                                  f"{' or '.join(map(repr, fixed[key]))}")
        elif not (key in defaults or key in silent or key.startswith("_") or value in EMPTY):
            raise ConfigError(f"config.json: {key}={value!r:.80} is not supported")
    return defaults | {key: value for key, value in stored.items() if key in defaults}


EMPTY = (None, False, [], {})
