"""What a model is made of: a `Parameter` is a trained tensor, a `Module` holds some.

A module is a plain object. Its parameters are found by walking its attributes, in the order in
which `__init__` set them, so that a name like "blocks.3.attention.output.weight" is also the
expression that reaches the tensor.
"""

import numpy as np

from minifm import backends
from minifm.tensor import Tensor


class Parameter(Tensor):
    """A tensor that belongs to the model; training changes it unless it is frozen.

    Freeze it by `requires_grad = False`: it stays a parameter and is saved with the others.
    """

    __slots__ = ()

    def __init__(self, data):
        super().__init__(data, requires_grad=True)


class Module:
    """A part of a model; calling it is its forward pass."""

    def __call__(self, *inputs):
        raise NotImplementedError(f"{type(self).__name__} does not say what calling it computes")

    def parameters(self):
        """{name: Parameter} of this module and all inside it; a tied one under its first name."""
        return _found(self, Parameter)

    def modules(self):
        """{name: Module} of this module, called "", and all inside it."""
        return _found(self, Module)

    def zero_grad(self):
        """Forget the gradients of the last backward pass."""
        for parameter in self.parameters().values():
            parameter.grad = None


def _found(module, kind):
    found, seen = {}, set()
    for name, part in _walk(module, ""):
        if isinstance(part, kind) and id(part) not in seen:
            seen.add(id(part))
            found[name] = part
    return found


def _walk(value, name):
    """(name, part) of each Module and Parameter in `value`, which comes first itself."""
    if isinstance(value, (Parameter, Module)):
        yield name, value
    if isinstance(value, Module):
        for key, inner in vars(value).items():
            yield from _walk(inner, f"{name}.{key}" if name else key)
    elif isinstance(value, (list, tuple)):
        for i, inner in enumerate(value):
            yield from _walk(inner, f"{name}.{i}")


def normal(shape, std, rng):
    """A parameter drawn from N(0, std²); without `rng`, zeros that a checkpoint will replace."""
    if rng is None:
        return Parameter(np.zeros(shape, np.float32))
    backend = backends.active()
    return Parameter(backend.multiply(rng.normal(shape), std))


def constant(shape, value):
    """A parameter that starts at `value` everywhere."""
    return Parameter(np.full(shape, value, np.float32))
