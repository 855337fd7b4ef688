"""What the tests of the networks of diffusion do alike: the real library's files, and lists of
parts against the models that they describe."""

import json
import shutil
import tempfile
from pathlib import Path

import numpy as np
from hypothesis import strategies as st
from modelling import in_float64
from safetensors.numpy import load_file

import minifm as mf
from minifm.errors import FormatError
from minifm.hub import load_model, save_model

GOLDEN = Path(__file__).parent / "golden"
FILE = "diffusion_pytorch_model.safetensors"


def wave(shape, function=np.cos):
    return function(np.arange(np.prod(shape), dtype=np.float64)).reshape(shape)


def assert_outputs_equal(name, run):
    """run(model, golden) -> {output: Tensor}: within twice the real library's own error."""
    golden = load_file(GOLDEN / name / "outputs.safetensors")
    found = run(load_model(GOLDEN / name), golden)
    assert found.keys() == {key.removeprefix("error.") for key in golden if key[:6] == "error."}
    for output, y in found.items():
        error = np.abs(y.numpy() - golden[output]).max()
        assert error <= 2 * golden[f"error.{output}"][0], output


def assert_equal_in_float64(name, run):
    """Outputs, and the gradients of Σ cos(i) y_i, as projected on two waves."""
    golden = load_file(GOLDEN / name / "outputs.safetensors")
    with mf.use("numpy"):
        model = in_float64(load_model(GOLDEN / name))
        widened = {key: array.astype(np.float64) if array.dtype == np.float32 else array
                   for key, array in golden.items()}
        loss = 0.0
        for output, y in run(model, widened).items():
            np.testing.assert_allclose(y.numpy(), golden[output], rtol=1e-10, atol=1e-11)
            loss = loss + (y * mf.Tensor(wave(y.shape))).sum()
        loss.backward()
    names, seen = model.stored_names(model.config), set()
    for ours, parameter in model.parameters().items():
        for there in (names[ours].name, *names[ours].copies):
            seen.add(f"gradient.{there}")
        if parameter.grad is None:
            assert f"gradient.{names[ours].name}" not in golden, ours
            continue
        g = names[ours].array_there(parameter.grad)
        expected = golden[f"gradient.{names[ours].name}"]
        projected = [(g * wave(g.shape, f)).sum() for f in (np.cos, np.sin)]
        size = max(np.abs(g).sum(), 1)
        np.testing.assert_allclose(projected, expected, rtol=1e-9, atol=1e-11 * size,
                                   err_msg=ours)
    assert {key for key in golden if key.startswith("gradient.")} <= seen


def assert_file_comes_back(name, to):
    """The weights that the real library saved are what we save, byte for byte. Returns what our
    config.json says, and what theirs does."""
    model = load_model(GOLDEN / name)
    save_model(model, to)
    assert load_model(to).config == model.config
    ours, theirs = (load_file(place / FILE) for place in (to, GOLDEN / name))
    assert ours.keys() == theirs.keys()
    for key, array in theirs.items():
        assert ours[key].shape == array.shape, key
        assert ours[key].tobytes() == array.tobytes(), key
    assert sorted(entry.name for entry in to.iterdir()) == ["config.json", FILE]
    return tuple(json.loads((place / "config.json").read_text()) for place in (to, GOLDEN / name))


def assert_save_load_save_is_byte_identical(model, directory):
    """A model that is saved, loaded and saved again: the same files, configuration and weights.
    Returns the one that was loaded."""
    for name in ("first", "second"):
        (directory / name).mkdir()
    save_model(model, directory / "first")
    loaded = load_model(directory / "first")
    save_model(loaded, directory / "second")
    for file in ("config.json", FILE):
        first, second = ((directory / name / file).read_bytes() for name in ("first", "second"))
        assert first == second
    assert loaded.config == model.config
    for name, parameter in model.parameters().items():
        np.testing.assert_array_equal(loaded.parameters()[name].numpy(), parameter.numpy())
    return loaded


def assert_parts_are_the_models(config, parts):
    """The list of parts says every parameter's name and shape, and how many there are."""
    model = config.model(config)
    names, parameters = model.stored_names(config), model.parameters()
    assert names.keys() == parameters.keys()
    assert config.parameters == sum(p.data.size for p in parameters.values())
    shapes = {f"{part.ours}.{part.weight}": part.shape for part in parts if part.shape}
    assert shapes == {name: p.shape for name, p in parameters.items() if name in shapes}
    there = [place for stored in names.values() for place in (stored.name, *stored.copies)]
    assert len(set(there)) == len(there)
    return model


def randomised_input(*shape, name="x"):
    return mf.Tensor(mf.Rng(0).child(name).normal(shape))


def randomised(network):
    """The last layers of a new network are 0: here no parameter is."""
    for i, p in enumerate(network.parameters().values()):
        p.data = mf.backends.active().from_numpy(
            0.2 * mf.Rng(i).host_normal(p.shape, np.float32))
        p.version += 1
    return network


def change_json(file, **changes):
    """Changes the values of some keys; ... takes a key away."""
    contents = json.loads(file.read_text()) | changes
    file.write_text(json.dumps({k: v for k, v in contents.items() if v is not ...}))


def assert_any_value_loads_or_is_refused(directory, key, value):
    """A config.json with any value is read as it was meant, or is one FormatError."""
    with tempfile.TemporaryDirectory() as place:
        copy = Path(shutil.copytree(directory, Path(place, "copy")))
        change_json(copy / "config.json", **{key: value})
        try:
            model = load_model(copy)
        except FormatError as refusal:
            assert str(copy) in refusal.file
        else:       # what does not change a shape may have any sensible value
            assert model.parameters().keys() == load_model(directory).parameters().keys()


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 70) | st.integers() | st.just(10**4000)
    | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=2))
