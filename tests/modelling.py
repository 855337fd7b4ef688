"""What the tests of all models do alike: random weights, oracles, files of the real library."""

import numpy as np
from safetensors.numpy import load_file

import minifm as mf
from minifm.hub import load_model, save_model


def in_float64(model):
    for parameter in model.parameters().values():
        parameter.data = parameter.data.astype(np.float64)
    return model


def randomised(model, seed=0, std=0.2):
    """Every parameter random, gains and biases too, so that no term hides behind a 0 or a 1."""
    for name, parameter in model.parameters().items():
        noise = mf.Rng(seed).child(name).normal(parameter.shape)
        parameter.data = mf.backend().multiply(noise, std)
    return model


def assert_same_function(y, full, exact):
    """The 2-3 × rule: y may err thrice as much as the plain float32 forward, against float64."""
    error = np.abs(full - exact).max(initial=0)
    floor = np.finfo(np.float32).eps * np.abs(exact).max(initial=0)
    assert np.abs(y - exact).max(initial=0) <= 3 * error + floor


def assert_files_come_back(directory, to):
    """What the real library saved in `directory` is what we save in `to`, byte for byte."""
    model = load_model(directory)
    save_model(model, to)
    assert load_model(to).config == model.config
    ours, theirs = (load_file(place / "model.safetensors") for place in (to, directory))
    assert ours.keys() == theirs.keys()
    for name, array in theirs.items():
        assert (ours[name].dtype, ours[name].shape) == (array.dtype, array.shape), name
        assert ours[name].tobytes() == array.tobytes(), name
