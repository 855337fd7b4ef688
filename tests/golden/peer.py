"""What the makers of golden files share: a tiny model of another library with EVERY parameter
random, in float64, and its gradients by the names that they have in files."""

import contextlib
import copy
import tempfile
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file


def fill(model):
    """Draw every parameter from N(0, 0.2²), biases and norm gains included."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.2)
    return model


def save_outputs(found, directory):
    save_file({name: value.detach().contiguous() for name, value in found.items()},
              Path(directory) / "outputs.safetensors", metadata={"format": "pt"})


@contextlib.contextmanager
def all_in_float64():
    """The library computes norms, softmax and angles in float32 whatever the model's type is."""
    before = torch.float32, torch.float, torch.Tensor.float
    torch.float32 = torch.float = torch.float64
    torch.Tensor.float = torch.Tensor.double
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.float32, torch.float, torch.Tensor.float = before
        torch.set_default_dtype(torch.float32)


def gradients(model):
    """{gradient.<name>: …} by the names that the library gives to parameters in files; those that
    did not take part are zeros."""
    holder = copy.deepcopy(model)
    with torch.no_grad():
        for to, parameter in zip(holder.parameters(), model.parameters()):
            to.copy_(0 if parameter.grad is None else parameter.grad)
    with tempfile.TemporaryDirectory() as directory:
        holder.save_pretrained(directory)
        found = load_file(Path(directory) / "model.safetensors")
    return {f"gradient.{name}": value for name, value in found.items()}
