"""The names that `config.json` has for activations."""

from minifm import ops

ACTIVATIONS = {"gelu_new": ops.gelu_tanh, "gelu_pytorch_tanh": ops.gelu_tanh, "gelu": ops.gelu,
               "relu": ops.relu, "silu": ops.silu, "quick_gelu": ops.gelu_quick}
