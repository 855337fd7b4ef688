"""Activation checkpointing: memory for time. The node that does it is in the engine, tensor.py."""

from functools import partial

from minifm.ops.precision import active_precision, precision
from minifm.tensor import call_and_repeat


def checkpoint(function, *inputs):
    """function(*inputs), of which the graph keeps nothing but `inputs` until backward comes here.

    Then `function` runs once more (Chen et al. 2016, "Training deep nets with sublinear memory
    cost"): less memory for the time of one more forward. Loss and gradients are those of the
    plain call, bit for bit, if `function` computes the same again: its randomness comes from an
    explicit rng. It returns a Tensor or a tuple of Tensors, and may use tensors besides `inputs`.

    Backward raises GraphError where a tensor that it used was changed in place meanwhile.
    """
    return call_and_repeat(partial(_in_precision, active_precision(), function), *inputs)


def _in_precision(name, function, *inputs):
    """The precision of the forward, whatever holds when backward comes."""
    with precision(name):
        return function(*inputs)
