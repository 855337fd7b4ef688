"""What tests of models do alike: random weights, oracles, files of the real library; then runs."""

from dataclasses import replace

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


def assert_gradients(model, outputs):
    """Of each parameter, in float64, that of the real library in a golden file."""
    names = model.stored_names(model.config)
    for ours, parameter in model.parameters().items():
        expected = names[ours].array_here(outputs[f"gradient.{names[ours].name}"], parameter.shape)
        np.testing.assert_allclose(parameter.grad, expected, rtol=1e-8, atol=1e-11, err_msg=ours)


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


# -- runs ------------------------------------------------------------------------------------------


def weights_of(trainer):
    """{name: a copy} of what it has learnt."""
    return {name: p.numpy().copy() for name, p in trainer.model.parameters().items()}


def assert_same_weights(trainer, other):
    """Bitwise."""
    theirs = weights_of(other)
    for name, array in weights_of(trainer).items():
        assert array.tobytes() == theirs[name].tobytes(), name


def assert_resumed_run_is_whole(trainer_in, directory, stop):
    """Bitwise; `trainer_in(directory)` makes the trainer of a run."""
    whole = trainer_in(directory / "whole")
    whole.train()
    trainer_in(directory / "parts").train(until=stop)
    resumed = trainer_in(directory / "parts")
    resumed.resume()
    resumed.train()
    assert resumed.best == whole.best
    assert_same_weights(resumed, whole)


def assert_pieces_train_as_the_whole(trainer_of, config, pieces):
    """`trainer_of(config)` makes the trainer of a run of a model without dropout."""
    found = []
    for accumulate in (1, pieces):
        # epsilon 1: AdamW then is smooth and does not magnify rounding near a zero gradient.
        trainer = trainer_of(replace(config, accumulate=accumulate, epsilon=1.0, learning_rate=0.1))
        before = weights_of(trainer)
        trainer.train()
        found.append(weights_of(trainer))
    for name, array in found[0].items():
        np.testing.assert_allclose(found[1][name], array, rtol=1e-4, atol=1e-6, err_msg=name)
    assert any(np.abs(array - before[name]).max() > 1e-3 for name, array in found[0].items())


def assert_recomputation_trains_to_the_same_bits(trainer_of, config):
    """As above; with dropout, too."""
    plain, again = (trainer_of(replace(config, recompute=recompute)) for recompute in (False, True))
    plain.train()
    again.train()
    assert_same_weights(again, plain)
