"""Adapters of diffusion's networks: against the real libraries, the laws that they obey, and files
in both of the layouts that others read."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from modelling import in_float64, randomised
from networks import GOLDEN, change_json
from safetensors.numpy import load_file, save_file

import minifm as mf
from minifm.errors import ConfigError, FormatError
from minifm.hub import base_of, load_adapter, load_model, save_adapter, save_model
from minifm.models import DiT, DiTConfig, UNet, UNetConfig
from minifm.nn import AdapterConfig, add_adapters, merge_adapters, remove_adapters, trainable
from minifm.nn.adapter import adapted_layers, linear_layers

WEIGHTS, PIPELINE = "adapter_model.safetensors", "pytorch_lora_weights.safetensors"
NAMES = ["unet", "unet-text", "dit"]
PIPELINES = pytest.mark.parametrize("name, place, sample", [
    (name, name + place, sample) for name in ("unet-text", "dit")
    for place, sample in (("", "sample"), ("/plain", "plain"))])
EACH = pytest.mark.parametrize("name", NAMES)
SMALL = AdapterConfig(rank=3, alpha=5.0, targets=("attention",))
# A network whose files have one layer under several names, and one of other data than images.
SHARED = DiTConfig(inputs=1, size=(4, 4), patch=(2, 2), layers=3, heads=2, width=8, classes=2)
SOUND = DiTConfig(inputs=2, size=(16,), patch=(4,), layers=2, heads=2, width=8, classes=2,
                  shared=False)


def run(model, golden):
    with mf.no_grad():
        return model(golden["x"], golden["t"], **{
            key: golden[key] for key in ("labels", "memory", "memory_mask") if key in golden})


def inputs(name):
    return load_file(GOLDEN / name / "outputs.safetensors")


def adapted(model, config=SMALL, seed=1):
    """`model` with adapters of which every number is random."""
    add_adapters(model, config, rng=mf.Rng(0))
    for name, parameter in trainable(model).items():
        noise = mf.Rng(seed).child(name).normal(parameter.shape)
        parameter.data = mf.backend().multiply(noise, 0.2)
    return model


def read(base, directory):
    model = load_model(GOLDEN / base)
    load_adapter(model, directory)
    return model


# -- the real libraries ----------------------------------------------------------------------------


@EACH
def test_outputs_equal_the_real_librarys(backend, name):
    golden = load_file(GOLDEN / f"adapter-{name}" / "outputs.safetensors")
    y = run(read(name, GOLDEN / f"adapter-{name}"), inputs(name)).numpy()
    assert np.abs(y - golden["sample"]).max() <= 2 * golden["error.sample"][0]
    plain = run(load_model(GOLDEN / name), inputs(name)).numpy()
    assert np.abs(y - plain).max() > 100 * golden["error.sample"][0]


@EACH
def test_outputs_equal_the_real_librarys_in_float64(name):
    golden = load_file(GOLDEN / f"adapter-{name}" / "outputs.safetensors")
    wide = {key: x.astype(float) if x.dtype == np.float32 else x for key, x in inputs(name).items()}
    with mf.use("numpy"):
        y = run(in_float64(read(name, GOLDEN / f"adapter-{name}")), wide).numpy()
    np.testing.assert_allclose(y, golden["sample"], rtol=1e-10, atol=1e-11)


@PIPELINES
def test_a_pipelines_file_is_what_the_real_library_makes_of_it(backend, name, place, sample):
    golden = load_file(GOLDEN / f"adapter-{name}" / "outputs.safetensors")
    y = run(read(name, GOLDEN / f"lora-{place}"), inputs(name)).numpy()
    assert np.abs(y - golden[sample]).max() <= 2 * golden[f"error.{sample}"][0]


@EACH
def test_what_the_real_library_saved_comes_back_from_our_files(name, tmp_path):
    there = GOLDEN / f"adapter-{name}"
    save_adapter(read(name, there), tmp_path)
    assert (tmp_path / WEIGHTS).read_bytes() == (there / WEIGHTS).read_bytes()
    ours, theirs = (json.loads((place / "adapter_config.json").read_text())
                    for place in (tmp_path, there))
    named = {"target_modules", "modules_to_save"}       # one may name the same layers differently
    assert {key: ours[key] for key in ours.keys() - named} == \
        {key: theirs[key] for key in ours.keys() - named}
    assert (tmp_path / PIPELINE).exists() == (name != "unet")   # whose table is trained whole


@pytest.mark.parametrize("name", ["unet-text", "dit"])
def test_pipelines_read_our_file_as_they_read_their_own(name, tmp_path):
    """Without a scale it is theirs, to the byte; else the scale is in B."""
    plain = GOLDEN / f"lora-{name}" / "plain"
    save_adapter(read(name, plain), tmp_path)
    assert (tmp_path / PIPELINE).read_bytes() == (plain / PIPELINE).read_bytes()
    save_adapter(read(name, GOLDEN / f"lora-{name}"), tmp_path)
    scaled, theirs = load_file(tmp_path / PIPELINE), load_file(plain / PIPELINE)
    assert scaled.keys() == theirs.keys()
    for key, array in theirs.items():
        scale = np.float32(5 / 3) if ".lora_B." in key else 1
        np.testing.assert_array_equal(scaled[key], array * scale, err_msg=key)


OLDER = {"attn1.to_q.lora_A": "attn1.processor.to_q_lora.down",
         "attn1.to_q.lora_B": "attn1.processor.to_q_lora.up",
         "attn1.to_out.0.lora_A": "attn1.processor.to_out_lora.down",
         "attn1.to_out.0.lora_B": "attn1.processor.to_out_lora.up",
         "attn1.to_k.lora_A": "attn1.to_k.lora.down", "attn1.to_k.lora_B": "attn1.to_k.lora.up"}


@pytest.mark.parametrize("prefix", ["", "transformer."])
def test_older_spellings_and_files_without_the_pipelines_name(prefix, tmp_path):
    plain = GOLDEN / "lora-dit" / "plain"
    renamed = {}
    for key, array in load_file(plain / PIPELINE).items():
        key = prefix + key.removeprefix("transformer.")
        for now, once in OLDER.items():
            key = key.replace(now, once)
        renamed[key] = array
    assert sum(".processor." in key for key in renamed) == 8
    save_file(renamed, tmp_path / PIPELINE)
    found, expected = (read("dit", place).parameters() for place in (tmp_path, plain))
    assert found.keys() == expected.keys()
    for ours, parameter in expected.items():
        np.testing.assert_array_equal(found[ours].numpy(), parameter.numpy())


# -- laws ------------------------------------------------------------------------------------------


@EACH
def test_a_new_adapter_is_bitwise_the_base_and_a_merged_one_the_unmerged(backend, name):
    model, golden = load_model(GOLDEN / name), inputs(name)
    before = run(model, golden).numpy()
    add_adapters(model, SMALL, rng=mf.Rng(0))
    assert run(model, golden).numpy().tobytes() == before.tobytes()
    remove_adapters(model)
    after = run(adapted(model), golden).numpy()
    assert np.abs(after - before).max() > 1e-3
    merge_adapters(model)
    assert np.abs(run(model, golden).numpy() - after).max() <= 1e-5 * np.abs(after).max()


@EACH
def test_only_adapters_get_gradients(backend, name):
    model, golden = adapted(load_model(GOLDEN / name)), inputs(name)
    (model(golden["x"], golden["t"], **{key: golden[key] for key in (
        "labels", "memory", "memory_mask") if key in golden}) ** 2).sum().backward()
    for ours, parameter in model.parameters().items():
        assert (parameter.grad is not None) == (".adapter." in ours), ours
        assert parameter.grad is None or np.any(parameter.grad), ours


def test_a_target_means_a_layer_or_a_part_that_holds_some():
    model = load_model(GOLDEN / "unet-text")
    ends = {name.rpartition("attention.")[2] for name in adapted_layers(adapted(model))}
    assert ends == {"query", "key", "value", "output"}
    assert not any("cross_attention" in name for name in adapted_layers(model))
    remove_adapters(model)
    add_adapters(model, AdapterConfig(targets=("middle",)), rng=mf.Rng(0))
    assert adapted_layers(model).keys() == {
        name for name in linear_layers(model) if name.startswith("middle.")}
    remove_adapters(model)
    with pytest.raises(ConfigError, match="no linear layer is called 'ddle'"):
        add_adapters(model, AdapterConfig(targets=("ddle",)), rng=mf.Rng(0))


@pytest.mark.parametrize("config, place", [
    (UNetConfig(inputs=1, outputs=1, size=4, widths=(4, 8), attention=(1,), layers=1, groups=2,
                classes=3), "down.0.residuals.0.time"),
    (UNetConfig(inputs=1, outputs=1, size=4, widths=(4, 8), attention=(1,), layers=1, groups=2,
                classes=3), "middle.attentions.0.attention.query"),
    (SOUND, "blocks.0.embedder.time.output"), (SHARED, "blocks.0.modulate"),
    (SHARED, "blocks.0.perceptron.output")])
def test_dropout_reaches_every_adapter_in_a_block(backend, config, place):
    """What is computed in training differs from what is computed outside of it, where dropout is
    the only thing that can make a difference."""
    model = randomised(config.model(config))
    adapted(model, AdapterConfig(rank=3, targets=(place,), dropout=0.5))
    assert list(adapted_layers(model)) == [place]
    size = (4, 4) if config.model is UNet else config.size
    x = mf.Rng(1).normal((2, config.inputs, *size))
    with mf.no_grad():
        plain, one, again = (model(x, 3.0, labels=np.array([0, 1]), rng=rng).numpy()
                             for rng in (None, mf.Rng(4), mf.Rng(4)))
    assert not np.array_equal(plain, one) and one.tobytes() == again.tobytes()


# -- files -----------------------------------------------------------------------------------------


@settings(max_examples=8)
@given(rank=st.integers(1, 5), alpha=st.sampled_from([1.0, 2.5, 16.0]), stabilised=st.booleans(),
       seed=st.integers(0, 3))
@pytest.mark.parametrize("config", [SHARED, SOUND], ids=["shared", "sound"])
def test_what_is_saved_comes_back(tmp_path_factory, config, rank, alpha, stabilised, seed):
    base, place = (tmp_path_factory.mktemp(name) for name in ("base", "adapter"))
    model = randomised(DiT(config))
    save_model(model, base)
    adapted(model, AdapterConfig(
        rank=rank, alpha=alpha, rank_stabilised=stabilised, base=str(base),
        targets=("all-linear", "enter", "time", "leave")), seed)
    save_model(model, place)
    assert sorted(entry.name for entry in place.iterdir()) == [
        "adapter_base.json", "adapter_config.json", WEIGHTS, "config.json", PIPELINE]
    found = load_model(place)
    for name, parameter in model.parameters().items():
        np.testing.assert_array_equal(found.parameters()[name].numpy(), parameter.numpy())
    alone = load_model(base)
    shutil.copy(place / PIPELINE, tmp := tmp_path_factory.mktemp("alone"))
    load_adapter(alone, tmp)
    x = mf.Rng(2).normal((2, config.inputs, *config.size))
    with mf.no_grad():
        y, again = (m(x, 3.0, labels=np.array([0, 1])).numpy() for m in (model, alone))
    assert np.abs(y - again).max() <= 1e-5 * np.abs(y).max()       # the scale, rounded into B


def test_a_shared_layer_lies_in_files_once_for_each_block(tmp_path):
    model = adapted(randomised(DiT(SHARED)), AdapterConfig(
        rank=2, targets=("time.expand",), whole=("embedder.labels",)))
    save_adapter(model, tmp_path)
    stem = "base_model.model.transformer_blocks."
    keys = load_file(tmp_path / WEIGHTS)
    assert sorted(keys) == sorted(
        f"{stem}{i}.norm1.emb.{name}.weight" for i in range(3) for name in (
            "timestep_embedder.linear_1.lora_A", "timestep_embedder.linear_1.lora_B",
            "class_embedder.embedding_table"))
    said = json.loads((tmp_path / "adapter_config.json").read_text())
    assert said["modules_to_save"] == [
        f"transformer_blocks.{i}.norm1.emb.class_embedder" for i in range(3)]
    assert not (tmp_path / PIPELINE).exists()
    other = randomised(DiT(SHARED))
    load_adapter(other, tmp_path)
    for name, parameter in model.parameters().items():
        np.testing.assert_array_equal(other.parameters()[name].numpy(), parameter.numpy())
    keys[f"{stem}1.norm1.emb.timestep_embedder.linear_1.lora_A.weight"] += 1
    save_file(keys, tmp_path / WEIGHTS)
    with pytest.raises(FormatError, match="in this model they are one tensor"):
        load_adapter(randomised(DiT(SHARED)), tmp_path)


def test_a_model_saved_over_an_adapter_is_a_model(tmp_path):
    model = adapted(randomised(DiT(SHARED)))
    save_model(model, tmp_path)
    merge_adapters(model)
    save_model(model, tmp_path)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == [
        "config.json", "diffusion_pytorch_model.safetensors"]


def broken(tmp_path, change, metadata=None):
    keys = load_file(GOLDEN / "lora-dit" / "plain" / PIPELINE)
    save_file(change(keys), tmp_path / PIPELINE, metadata)
    return tmp_path


def first(keys, part):
    return next(key for key in keys if part in key)


@pytest.mark.parametrize("change, part", [
    (lambda keys: keys | {"text_encoder.a.lora_A.weight": np.zeros((3, 2), np.float32)},
     "text_encoder.a.lora_A.weight is unknown"),
    (lambda keys: {k: v for k, v in keys.items() if k != first(keys, "lora_B")}, "is missing"),
    (lambda keys: keys | {first(keys, "lora_B"): np.zeros((1, 3), np.float32)}, "expected \\["),
    (lambda keys: keys | {first(keys, "lora_A"): np.zeros((2, 8), np.float32)},
     "several ranks, \\[2, 3\\]"),
    (lambda keys: {"transformer.a.alpha": np.zeros(1, np.float32)}, "unknown"),
    (lambda keys: {}, "name no linear layer")])
def test_a_file_that_does_not_fit_is_refused_and_changes_nothing(tmp_path, change, part):
    model = load_model(GOLDEN / "dit")
    before = {name: p.numpy().tobytes() for name, p in model.parameters().items()}
    with pytest.raises(FormatError, match=part) as refusal:
        load_adapter(model, broken(tmp_path, change))
    assert PIPELINE in str(refusal.value) and "\n" not in str(refusal.value)
    assert {name: p.numpy().tobytes() for name, p in model.parameters().items()} == before


@settings(max_examples=40)
@given(said=st.one_of(st.text(), st.sampled_from([
    "{}", "[]", '{"transformer.peft_type": "LOHA"}', '{"transformer.r": 0}',
    '{"transformer.peft_type": "LORA", "transformer.rank_pattern": {"a": 2}}',
    '{"transformer.peft_type": "LORA", "transformer.r": "3"}'])))
def test_settings_in_a_header_are_read_or_refused(tmp_path_factory, said):
    model, place = load_model(GOLDEN / "dit"), tmp_path_factory.mktemp("adapter")
    with pytest.raises(FormatError, match=PIPELINE):
        load_adapter(model, broken(place, dict, {"lora_adapter_metadata": said}))


def test_an_adapter_alone_does_not_say_of_what_it_is(tmp_path):
    shutil.copy(GOLDEN / "lora-dit" / PIPELINE, tmp_path)
    with pytest.raises(FormatError, match="merge it into that by minifm merge --base MODEL"):
        base_of(tmp_path)
    with pytest.raises(FormatError, match="merge --base"):
        load_model(tmp_path)


def test_an_adapter_over_other_weights_is_refused(tmp_path):
    base = Path(shutil.copytree(GOLDEN / "dit", tmp_path / "base"))
    model = adapted(load_model(base))
    (tmp_path / "adapter").mkdir()
    save_adapter(model, tmp_path / "adapter", base=str(base))
    load_model(tmp_path / "adapter")
    weights = base / "diffusion_pytorch_model.safetensors"
    keys = load_file(weights)
    keys["proj_out_2.bias"][0] += 1
    save_file(keys, weights)
    with pytest.raises(FormatError, match="has learnt over other weights"):
        load_model(tmp_path / "adapter")
    change_json(base / "config.json", num_embeds_ada_norm=4)
    with pytest.raises(FormatError):
        load_model(tmp_path / "adapter")
