"""Fine-tuning beside the weights: what a task changes in a matrix is of low rank (Hu et al. 2021).

A frozen linear layer x @ W gets a product of two thin matrices, scale · (x @ down) @ up, which
alone is trained: of GPT-2's 124 million numbers, three hundred thousand. `up` begins at zero, so
that training begins at the model as it was. Afterwards the product can be added to W (`merge`), or
kept in a small file (hub/adapters.py). Where the frozen weights are packed in few bits
(models/packing.py), this is QLoRA (Dettmers et al. 2023).

    add_adapters(model, AdapterConfig(rank=8, targets=("query", "value")), rng=Rng(0))

An adapter is a part of its Linear, not a wrapper around it: the names of all weights stay.
"""

import math
from dataclasses import dataclass

import numpy as np

from minifm import backends, ops
from minifm.backends.reference.packed import Packed
from minifm.config import check, setting
from minifm.errors import ConfigError, listed
from minifm.nn.freezing import freeze, matches, matching
from minifm.nn.layers import Linear
from minifm.nn.module import Module, constant, normal
from minifm.tensor import no_grad

ALL_LINEAR = "all-linear"


@dataclass(frozen=True)
class AdapterConfig:
    """The shape of a model's adapters, which all have the same."""

    rank: int = setting(8, "numbers between the two matrices of an adapter", least=1)
    alpha: float = setting(16.0, "adapters are scaled by alpha / rank", above=0)
    targets: tuple[str, ...] = setting(
        (ALL_LINEAR,), "linear layers to adapt, by the ends of their names, or of those of parts "
        f"that hold them, such as query, attention.output or attention; {ALL_LINEAR}: all in the "
        "blocks")
    dropout: float = setting(0.0, "of what enters an adapter in training", least=0, below=1)
    rank_stabilised: bool = setting(
        False, "scale by alpha / √rank, so that a higher rank learns more (rsLoRA)")
    whole: tuple[str, ...] = setting(
        (), "parts that are trained whole beside the adapters, such as a new head, by their names "
        "or the ends of these")
    base: str | None = setting(None, "the model that is adapted, a directory or a name on the hub")

    def __post_init__(self):
        check(self)
        for name in ("targets", "whole"):
            object.__setattr__(self, name, tuple(getattr(self, name)))

    @property
    def scale(self):
        """What the product of the two matrices is multiplied by. With alpha / rank its size falls
        with a rising rank; √rank keeps it (Kalajdzievski 2023)."""
        return self.alpha / (math.sqrt(self.rank) if self.rank_stabilised else self.rank)


class LoRA(Module):
    """scale · (dropout(x) @ down) @ up, with down [inputs, r] and up [r, outputs]."""

    def __init__(self, inputs, outputs, config, *, rng):
        """`rng` draws `down`, of the variance 1 / (3 inputs) that the authors' code has; without
        it, zeros, for a file to replace."""
        self.config = config
        self.down = normal((inputs, config.rank), (3 * inputs) ** -0.5, rng)
        self.up = constant((config.rank, outputs), 0)

    def __call__(self, x, residual=None, *, rng=None):
        """x [*B, inputs] -> [*B, outputs], plus `residual`; `rng` turns dropout on."""
        x = ops.dropout(x, self.config.dropout, rng=rng)
        x = ops.linear(x, self.down) * self.config.scale                        # [*B, r]
        return ops.linear(x, self.up, residual=residual)

    def product(self):
        """scale · down @ up, the array [inputs, outputs] that stands for the adapter in a sum."""
        b = backends.active()
        return b.multiply(b.matmul(self.down.data, self.up.data), self.config.scale)


def add_adapters(model, config, *, rng):
    """Give the layers that `config` targets new adapters, and freeze all else but `config.whole`,
    which is trained itself and has none.

    `rng` draws them. Raises ConfigError, and changes nothing, for a target that is no layer of the
    model (all that exist are listed) or a model that has adapters.
    """
    require_plain(model)
    parts = matching(model, config.whole, "whole")
    layers = {name: layer for name, layer in target_layers(model, config.targets).items()
              if not any(f"{name}.".startswith(f"{part}.") for part in parts)}
    if not layers:
        raise ConfigError(f"targets: all of {listed(config.targets)} is trained whole")
    attach(model, {name: LoRA(*layer.weight.shape, config, rng=rng and rng.child(name))
                   for name, layer in layers.items()}, parts)


def attach(model, adapters, whole):
    """Let the layers called by {name: LoRA} have these; train them and the modules `whole`,
    {name: Module}, and nothing else. Raises ConfigError, and changes nothing, for dropout where a
    model has none."""
    outside = [name for name, adapter in adapters.items()
               if adapter.config.dropout and not in_block(name)]
    if outside:
        raise ConfigError(f"dropout: adapters have some within blocks only, not in "
                          f"{listed(outside)}")
    freeze(model)
    for part in whole.values():
        freeze(part, False)
    layers = linear_layers(model)
    for name, adapter in adapters.items():
        layers[name].adapter = adapter


def remove_adapters(model):
    """Take the adapters away: the model as it was before them. Its weights stay frozen."""
    for layer in adapted_layers(model).values():
        layer.adapter = None


def merge_adapters(model, *inputs, **told):
    """Add each adapter to its weight, in the weight's precision (float32), and take it away.

    Returns the largest change of what model(*inputs, **told) gives, which comes from rounding; None
    if no inputs are given. The weights stay frozen. Raises ConfigError where weights are packed:
    few bits cannot hold the sum (models/packing.py, `unpack_model`).
    """
    layers, b = adapted_layers(model), backends.active()
    packed = [name for name, layer in layers.items() if isinstance(layer.weight.data, Packed)]
    if packed:
        raise ConfigError(f"merge: {packed[0]} is packed as {layers[packed[0]].weight.data.format}"
                          ", which cannot hold the sum: unpack the model first")
    before = _outputs(model, inputs, told)
    for layer in layers.values():
        layer.weight.data = b.add(layer.weight.data, layer.adapter.product())
        layer.weight.version += 1
        layer.adapter = None
    return float(np.abs(_outputs(model, inputs, told) - before).max(initial=0)) if inputs else None


def _outputs(model, inputs, told):
    with no_grad():
        return np.array(model(*inputs, **told).numpy()) if inputs else None


# -- what a model has ----------------------------------------------------------------------------


def adapter_config(model):
    """The AdapterConfig of the model's adapters, or None where there are none."""
    return next((layer.adapter.config for layer in adapted_layers(model).values()), None)


def require_plain(model):
    """Raise ConfigError where the model has adapters."""
    if adapter_config(model) is not None:
        raise ConfigError("this model has adapters already: merge or remove them first")


def linear_layers(model):
    """{name: Linear} of all that can have an adapter."""
    return {name: part for name, part in model.modules().items() if isinstance(part, Linear)}


def adapted_layers(model):
    """{name: Linear} of those that have one."""
    return {name: layer for name, layer in linear_layers(model).items()
            if layer.adapter is not None}


def target_layers(model, targets):
    """{name: Linear} of the layers that `targets` say; raises ConfigError, listing what there is,
    for one that says none."""
    layers = linear_layers(model)
    if not targets:
        raise ConfigError("targets: expected the name of a layer at least")
    for target in targets:
        if target != ALL_LINEAR and not any(_targeted(name, target) for name in layers):
            last = dict.fromkeys(name.rpartition(".")[2] for name in layers)
            raise ConfigError(f"targets: no linear layer is called {target!r}; there are "
                              f"{listed(last)}, and {ALL_LINEAR}")
    return {name: layer for name, layer in layers.items()
            if any(_targeted(name, target) for target in targets)}


def _targeted(name, target):
    """Whether a target means the layer of this name: it is the end of it, or of the name of a part
    that the layer is in."""
    words = name.split(".")
    return target == ALL_LINEAR and in_block(name) or any(
        matches(".".join(words[:n]), target) for n in range(1, len(words) + 1))


def in_block(name):
    """Whether a layer of this name belongs to a block: those stand in lists."""
    return any(part.isdigit() for part in name.split("."))
