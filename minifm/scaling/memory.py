"""How many bytes of a training run lie on one device, by the way in which the run is divided.

Three ways, one inside the other (Narayanan et al. 2021): `data` copies of the model read different
sequences; `pipeline` stages of a copy hold some of its blocks each; `tensor` devices of a stage
hold a part of every matrix each. ZeRO (Rajbhandari et al. 2020) then also divides among the copies
what they all hold alike.

The run is of mixed precision: weights and gradients of 2 bytes, and Adam's 12 (a float32 copy of
the weights and two moments). Activations are counted as by Korthikanti et al. 2022, from the
widths that the model really has; with a GPT's they are that paper's formulae, term for term.
Other precisions, and communication buffers, are not counted: see `headroom` in plan.py.
"""

import copy
from dataclasses import dataclass
from typing import NamedTuple

from minifm.errors import ConfigError
from minifm.models import GPTConfig, LlamaConfig

WEIGHT, GRADIENT, OPTIMIZER = 2, 2, 12          # bytes for each parameter
RECOMPUTE = ("none", "selective", "full")


@dataclass(frozen=True)
class Layout:
    """How a run is divided among data × tensor × pipeline devices.

    zero   what the data-parallel copies divide among them: 0 nothing, 1 the optimizer's state,
           2 gradients too, 3 weights too
    """

    data: int
    tensor: int
    pipeline: int
    zero: int = 1

    @property
    def count(self):
        return self.data * self.tensor * self.pipeline

    def __str__(self):
        return f"data {self.data:,} × tensor {self.tensor} × pipeline {self.pipeline}"

    def check(self, config):
        """Raise ConfigError unless a model of this configuration can be divided so."""
        for what, n in (("heads", config.heads), ("key_heads", config.key_heads),
                        ("hidden", config.hidden)):
            if n % self.tensor:
                raise ConfigError(f"tensor: {self.tensor} devices cannot share {what} {n:,} evenly")
        if config.layers % self.pipeline:
            raise ConfigError(f"pipeline: {self.pipeline} stages cannot share layers "
                              f"{config.layers} evenly")


class Memory(NamedTuple):
    """Bytes on the fullest device, that of the pipeline's first stage."""

    weights: float
    gradients: float
    optimizer: float
    activations: float

    @property
    def total(self):
        return sum(self)


def memory(config, layout, *, length, micro_batch=1, recompute="selective",
           sequence_parallel=True):
    """The Memory of training a model by `config` with sequences of `length` tokens.

    micro_batch        sequences that a device computes at a time
    recompute          what the backward pass computes again: see `activation_bytes`
    sequence_parallel  the tensor devices divide, along the sequence, what they else all keep
    """
    stage = stage_parameters(config, layout.pipeline) / layout.tensor
    states = state_bytes(stage, layout.data, layout.zero)
    return Memory(*states, activation_bytes(
        config, layout, length=length, micro_batch=micro_batch, recompute=recompute,
        sequence_parallel=sequence_parallel))


# -- weights, gradients, optimizer ---------------------------------------------------------------


def state_bytes(parameters, data, zero):
    """(weights, gradients, optimizer) in bytes on each of `data` copies of so many parameters, in
    a stage of ZeRO (figure 1 and table 1 of the paper: 2 Ψ, 2 Ψ and 12 Ψ)."""
    return (WEIGHT * parameters / (data if zero >= 3 else 1),
            GRADIENT * parameters / (data if zero >= 2 else 1),
            OPTIMIZER * parameters / (data if zero >= 1 else 1))


def block_parameters(config):
    """Parameters of one block."""
    return _with_layers(config, 2).parameters - _with_layers(config, 1).parameters


def table_parameters(config):
    """Parameters outside the blocks: tables of tokens and positions, an untied head, a norm."""
    return config.parameters - config.layers * block_parameters(config)


def _with_layers(config, layers):
    """The configuration with so many layers; not checked again, for a search asks thousands of
    times."""
    other = copy.copy(config)
    object.__setattr__(other, "layers", layers)
    return other


def stage_parameters(config, pipeline):
    """Parameters of the fullest stage, before its tensor devices divide them.

    A pipeline of several stages has the tables in its first and the head in its last: where the
    head is a table of its own, each holds one of the two; a tied one is held by both.
    """
    tables = table_parameters(config)
    if pipeline > 1 and not getattr(config, "tied", True):
        tables -= config.vocabulary * config.width
    return config.layers // pipeline * block_parameters(config) + tables


# -- activations ---------------------------------------------------------------------------------


class Kept(NamedTuple):
    """Bytes for each token that a block keeps for its backward pass.

    whole      what each of the tensor devices keeps, unless they divide the sequence
    divided    what they divide among them
    matrices   the attention matrices, which they divide too: all that grows with the length
    """

    whole: float
    divided: float
    matrices: float


def kept_in_block(config, length):
    """The Kept of one block; section 4 of Korthikanti et al. 2022, its numbers in the comments
    those of a GPT of width h: 34 h + 5 a s with dropout. Raises ConfigError for a model whose
    blocks this does not know."""
    C, Q = config.width, config.heads * config.head_width
    KV, masks = config.key_heads * config.head_width, 1 if config.dropout else 0
    whole = 2 * 2 * C                           # what the two norms read                     4 h
    whole += 2 * C + masks * C                  # what q, k, v are made of; a mask of bytes   3 h
    divided = 2 * Q + 2 * 2 * KV + 2 * Q        # q, k, v; what the output is made of         8 h
    matrices = 2 * config.heads * length        # softmax                                     2 a s
    matrices += 3 * config.heads * length * masks   # its mask, and what that leaves          3 a s
    inside, at_edges = _kept_in_perceptron(config)
    return Kept(whole + at_edges + masks * C, divided + inside, matrices)


def _kept_in_perceptron(config):
    """(what the tensor devices divide, what they do not) in bytes for each token."""
    C, F = config.width, config.hidden
    if isinstance(config, GPTConfig):
        return 2 * 2 * F, 2 * C                 # before and after the activation: 16 h, and 2 h
    if not isinstance(config, LlamaConfig):
        raise ConfigError(f"plan: the memory of a {type(config).__name__}'s blocks is not known")
    norms = 2 * (config.heads + config.key_heads) * config.head_width * config.head_norms
    gated = 3 * 2 * F                           # the gate, what it gates, and their product
    if not config.experts:
        return gated + norms, 2 * C
    chosen = config.experts_chosen              # a copy of the token goes to and comes from each
    return chosen * gated + norms, 2 * C + chosen * (2 * C + 2 * C)


def block_bytes(config, length, tensor=1, recompute="selective", sequence_parallel=True):
    """Bytes for each token that one device keeps of one block: table 2 of Korthikanti et al.

    recompute  "none": all is kept; "selective": all but the attention matrices, which the backward
               pass computes again, as fused attention does; "full": only what enters the block
    """
    kept, edges = kept_in_block(config, length), tensor if sequence_parallel else 1
    if recompute == "full":
        return 2 * config.width / edges
    matrices = kept.matrices if recompute == "none" else 0
    return kept.whole / edges + (kept.divided + matrices) / tensor


def activation_bytes(config, layout, *, length, micro_batch=1, recompute="selective",
                     sequence_parallel=True):
    """Bytes of activations on the fullest device.

    The first stage of a pipeline has as many micro-batches under way as there are stages
    (one-forward-one-backward, Narayanan et al. 2021), and so keeps as much as `layers` blocks do,
    however many stages there are. Where blocks are computed again, the inside of one is there too.
    """
    t, tokens = layout.tensor, micro_batch * length
    edges = t if sequence_parallel else 1
    block = block_bytes(config, length, t, recompute, sequence_parallel)
    again = block_bytes(config, length, t, "none", sequence_parallel) if recompute == "full" else 0
    # What the last norm and the head read, and the logits in float32: 4 s b h (1 + v / h).
    head = 2 * 2 * config.width / edges + 4 * config.vocabulary / t
    embedding = config.width / edges * (1 if config.dropout else 0)         # its mask
    if layout.pipeline == 1:
        return tokens * (config.layers * block + again + embedding + head)
    first = config.layers * block + again + layout.pipeline * embedding
    last = config.layers // layout.pipeline * block + again + head
    return tokens * max(first, last)
