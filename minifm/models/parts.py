"""What a network is made of, as one list that follows from its configuration alone.

Each `Part` says how a layer is called here and in files, the shape of its weight, and how many
positions (pixels, tokens) of one example it is applied to. The number of parameters, the operations
of a pass and the names in files are then sums over the list, and nothing is said twice.
"""

import math
from typing import NamedTuple

from minifm.models.stored import Model, Stored


class Part(NamedTuple):
    """A layer, or (without a shape) the two products of attention, which has no weights."""

    ours: str = ""
    theirs: str = ""
    shape: tuple = ()           # of its weight here
    weight: str = "weight"      # how that is called here: a norm's is its gain
    bias: int = 0               # how many offsets it has
    stored: Stored = Stored("") # how its weight lies in files
    flops: int = 0              # of one example's forward pass

    @property
    def parameters(self):
        return (math.prod(self.shape) if self.shape else 0) + self.bias

    @property
    def backward(self):
        """The cost of the backward pass in forward passes, as the ops have it."""
        return 2 if self.shape else 2.5


def linear(ours, theirs, inputs, outputs, positions, *, bias=True, stored=None):
    """`stored`: the weight's shape in files, where that is not [outputs, inputs]."""
    return Part(ours, theirs, (inputs, outputs), bias=outputs * bias,
                stored=Stored(f"{theirs}.weight", transposed=True, shape=stored),
                flops=2 * inputs * outputs * positions)


def convolution(ours, theirs, inputs, outputs, window, positions):
    return Part(ours, theirs, (outputs, inputs, window, window), bias=outputs,
                stored=Stored(f"{theirs}.weight"),
                flops=2 * inputs * outputs * window**2 * positions)


def norm(ours, theirs, width):
    return Part(ours, theirs, (width,), "gain", width, Stored(f"{theirs}.weight"))


def table(ours, theirs, rows, width):
    return Part(ours, theirs, (rows, width), stored=Stored(f"{theirs}.weight"))


def products(queries, keys, width):
    """Scores, and the sums that they weigh."""
    return Part(flops=4 * queries * keys * width)


# -- groups of them: what nn/ has ----------------------------------------------------------------


def vector_embedding(ours, theirs, inputs, width):
    yield linear(f"{ours}.expand", f"{theirs}.linear_1", inputs, width, 1)
    yield linear(f"{ours}.output", f"{theirs}.linear_2", width, width, 1)


time_embedding = vector_embedding       # of a time's frequencies


def residual_block(ours, theirs, inputs, outputs, positions, time_width=None):
    yield norm(f"{ours}.norm1", f"{theirs}.norm1", inputs)
    yield convolution(f"{ours}.conv1", f"{theirs}.conv1", inputs, outputs, 3, positions)
    if time_width is not None:
        yield linear(f"{ours}.time", f"{theirs}.time_emb_proj", time_width, outputs, 1)
    yield norm(f"{ours}.norm2", f"{theirs}.norm2", outputs)
    yield convolution(f"{ours}.conv2", f"{theirs}.conv2", outputs, outputs, 3, positions)
    if inputs != outputs:
        yield convolution(f"{ours}.shortcut", f"{theirs}.conv_shortcut", inputs, outputs, 1,
                          positions)


def attention(ours, theirs, width, queries, *, bias=True, memory=None):
    """`memory`: (how wide, how long) it is, where that is not what looks at it."""
    memory_width, keys = memory or (width, queries)
    yield linear(f"{ours}.query", f"{theirs}.to_q", width, width, queries, bias=bias)
    yield linear(f"{ours}.key", f"{theirs}.to_k", memory_width, width, keys, bias=bias)
    yield linear(f"{ours}.value", f"{theirs}.to_v", memory_width, width, keys, bias=bias)
    yield products(queries, keys, width)
    yield linear(f"{ours}.output", f"{theirs}.to_out.0", width, width, queries)


def spatial_attention(ours, theirs, width, positions):
    yield norm(f"{ours}.norm", f"{theirs}.group_norm", width)
    yield from attention(f"{ours}.attention", theirs, width, positions)


# -- what follows from a list ----------------------------------------------------------------------


class ListedModel(Model):
    """A Model whose configuration lists what it is made of, `config.parts()`, a list of Parts: what
    its parameters are called in files follows."""

    weights = "diffusion_pytorch_model"

    @staticmethod
    def products(config):
        """{name of each weight that may be packed: the axis that products sum over}; those of
        convolutions stay as they are."""
        return {f"{part.ours}.weight": 0 for part in config.parts()
                if part.stored.transposed and part.stored.shape is None}

    @staticmethod
    def stored_names(config):
        """{our parameter's name: Stored}."""
        names = {}
        for part in config.parts():
            if part.shape:
                names[f"{part.ours}.{part.weight}"] = part.stored
            if part.bias:
                names[f"{part.ours}.bias"] = Stored(f"{part.theirs}.bias")
        return names

    @staticmethod
    def accepted_name(key):
        """The present spelling of a key in a file: attention between pixels had other names
        once."""
        for old, new in (("query", "to_q"), ("key", "to_k"), ("value", "to_v"),
                         ("proj_attn", "to_out.0")):
            for kind in ("weight", "bias"):
                if key.endswith(f".{old}.{kind}"):
                    return key.removesuffix(f"{old}.{kind}") + f"{new}.{kind}"
        return key


def count_parameters(parts):
    """How many numbers training adjusts."""
    return sum(part.parameters for part in parts)


def count_flops(parts, training):
    """Floating-point operations of one example's pass; products only. In training, forward and
    backward."""
    return sum(part.flops * (1 + part.backward if training else 1) for part in parts)
