"""A whole model in low precision: every weight that a product reads, packed in place."""

from minifm import backends
from minifm.backends.reference.packed import Packed
from minifm.errors import ConfigError
from minifm.nn import adapter_config


def pack_model(model, format):
    """Pack what `model.products` names; norms, biases and positions stay float32.

    The packed weights are frozen: the model computes as before, but is not trained, unless it is
    by adapters (nn/adapter.py). These then learn beside the numbers that the codes stand for: their
    gradients go through those, and through the rounding of a product's other factor, which the int
    formats have, as if it were not there (the straight-through estimator, Bengio et al. 2013).

    What is trained whole beside adapters stays plain, and is trained.

    Formats: backends/reference/packed.py. Raises ConfigError for a model that is packed already,
    ShapeError for weights that the format cannot hold; the model is then what it was.
    """
    if packed_format(model):
        raise ConfigError(f"format: this model is packed already, as {packed_format(model)}")
    parameters, adapted = model.parameters(), adapter_config(model) is not None
    packed = {name: backends.active().pack(parameters[name].data, format, inner)
              for name, inner in model.products(model.config).items()
              if not (adapted and parameters[name].requires_grad)}
    for name, data in packed.items():
        parameters[name].data = data
        parameters[name].requires_grad, parameters[name].grad = False, None


def unpack_model(model):
    """Give a packed model plain weights again: the numbers that its codes stand for, in float32.
    They stay frozen."""
    for parameter in model.parameters().values():
        if isinstance(parameter.data, Packed):
            parameter.data = backends.active().unpack(parameter.data)
            parameter.version += 1


def packed_format(model):
    """The format of the model's packed weights, or None."""
    return next((parameter.data.format for parameter in model.parameters().values()
                 if isinstance(parameter.data, Packed)), None)
