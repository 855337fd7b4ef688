"""DiT against the real library's outputs and gradients; data of one, two and three dimensions."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from modelling import assert_same_function, in_float64, randomised
from networks import (
    FILE,
    GOLDEN,
    JSON,
    assert_any_value_loads_or_is_refused,
    assert_equal_in_float64,
    assert_file_comes_back,
    assert_outputs_equal,
    assert_parts_are_the_models,
    assert_save_load_save_is_byte_identical,
    change_json,
    randomised_input,
)
from opaque import OpaqueBackend
from safetensors.numpy import load_file, save_file

import minifm as mf
from minifm import ops
from minifm.errors import ConfigError, FormatError, ShapeError
from minifm.hub import load_model, save_model
from minifm.models import DiT, DiTConfig, pack_model
from minifm.models.dit import PRESETS, data_of, list_parts, patches_of, positions_of
from minifm.training.optim import AdamW

IMAGE = DiTConfig(inputs=2, outputs=3, size=(4, 4), patch=(2, 2), layers=2, heads=2, width=8,
                  classes=5)
CONFIGS = {
    "sound": replace(IMAGE, size=(12,), patch=(3,)),
    "image": IMAGE,
    "wide": replace(IMAGE, size=(4, 6), patch=(1, 2), shared=False, norm_epsilon=1e-3),
    "video": replace(IMAGE, inputs=1, outputs=1, size=(2, 4, 4), patch=(1, 2, 2)),
}
EACH = pytest.mark.parametrize("kind", CONFIGS)
GOLDEN_EACH = pytest.mark.parametrize("name", ["dit", "dit-transformer"])
T = np.array([0.0, 17.5, 999.0])
LABELS = np.array([0, 3, 5])


def random_model(kind):
    return randomised(DiT(CONFIGS[kind]))


def input_for(config, *size):
    return randomised_input(3, config.inputs, *(size or config.size)).numpy()


def oracle(kind, x):
    with mf.use("numpy"), mf.no_grad():
        return in_float64(random_model(kind))(x.astype(float), T, labels=LABELS).numpy()


def run(model, golden):
    return {"y": model(golden["x"], golden["t"], labels=golden["labels"])}


# -- the real library's outputs -----------------------------------------------------------------


@GOLDEN_EACH
def test_outputs_equal_the_real_librarys(backend, name):
    assert_outputs_equal(name, run)


@GOLDEN_EACH
def test_outputs_and_gradients_equal_the_real_librarys_in_float64(name):
    assert_equal_in_float64(name, run)


@GOLDEN_EACH
def test_what_the_real_library_saved_comes_back_from_our_files(name, tmp_path):
    said, meant = assert_file_comes_back(name, tmp_path)
    if name == "dit":
        assert said == {key: meant[key] for key in said} and len(said) == 15


# -- patches and places ---------------------------------------------------------------------------


@given(st.lists(st.tuples(st.integers(1, 3), st.integers(1, 3)), min_size=1, max_size=4),
       st.integers(1, 2), st.integers(1, 3))
def test_patches_put_together_again_are_the_data(axes, B, C):
    grid, patch = [g for g, _ in axes], [p for _, p in axes]
    size = [g * p for g, p in axes]
    x = np.arange(B * C * np.prod(size), dtype=np.float32).reshape(B, C, *size)
    tokens = patches_of(mf.Tensor(x), patch)
    assert tokens.shape == (B, np.prod(grid), C * np.prod(patch))
    for i, place in enumerate(np.ndindex(*grid)):
        here = tuple(slice(g * p, g * p + p) for g, p in zip(place, patch))
        np.testing.assert_array_equal(tokens.numpy()[:, i], x[(..., *here)].reshape(B, -1))
    last = tokens.reshape((B, -1, C, np.prod(patch))).transpose(0, 1, 3, 2)     # channels last
    np.testing.assert_array_equal(data_of(last.reshape(tokens.shape), grid, patch).numpy(), x)


@given(st.lists(st.integers(1, 5), min_size=1, max_size=3), st.integers(8, 20))
def test_every_place_is_another_and_a_finer_grid_lies_between(grid, width):
    places = positions_of(grid, grid, width)
    assert places.shape == (np.prod(grid), width)
    distances = np.abs(places[:, None] - places[None]).max(-1)
    assert (distances + np.eye(len(places)) > 1e-3).all()
    finer = positions_of([2 * n for n in grid], grid, width).reshape(*(2 * n for n in grid), width)
    coarse = finer[tuple(slice(None, None, 2) for _ in grid)]
    np.testing.assert_allclose(coarse.reshape(places.shape), places, atol=1e-12)


# -- laws ---------------------------------------------------------------------------------------


@EACH
def test_batched_is_each_alone(backend, kind):
    model, x = random_model(kind), input_for(CONFIGS[kind])
    together, exact = model(x, T, labels=LABELS).numpy(), oracle(kind, x)
    for b in range(3):
        alone = model(x[b : b + 1], T[b], labels=LABELS[b]).numpy()
        if backend.name == "c":
            np.testing.assert_array_equal(together[b : b + 1], alone)
        assert_same_function(together[b : b + 1], alone, exact[b : b + 1])


@EACH
def test_data_of_other_sizes(backend, kind):
    model, config = random_model(kind), CONFIGS[kind]
    x = input_for(config, *(2 * n for n in config.size))
    y = model(x, T, labels=LABELS).numpy()
    assert y.shape == (3, config.outputs, *x.shape[2:])
    exact = oracle(kind, x)
    assert np.abs(y - exact).max() < 1e-4 * np.abs(exact).max()


@EACH
def test_times_labels_places_and_every_number_count(backend, kind):
    model, x = random_model(kind), input_for(CONFIGS[kind])
    y = model(x, T, labels=LABELS).numpy()
    assert y.shape == (3, CONFIGS[kind].outputs, *CONFIGS[kind].size)
    assert np.abs(model(x, T + 1, labels=LABELS).numpy() - y).max() > 1e-3
    others = np.abs(model(x, T, labels=(LABELS + 1) % 6).numpy() - y)
    assert others.reshape(3, -1).max(1).min() > 1e-4
    np.testing.assert_array_equal(model(x, T).numpy(), model(x, T, labels=5).numpy())
    nudged = x.copy()
    nudged[0, 0].flat[-1] += 1
    assert (np.abs(model(nudged, T, labels=LABELS).numpy() - y)[0] > 0).mean() > 0.9
    same = np.ones_like(x)          # all patches alike: only their places tell them apart
    tokens = patches_of(mf.Tensor(model(same, T).numpy()), CONFIGS[kind].patch).numpy()
    assert np.abs(tokens - tokens[:, :1]).max() > 1e-3


@EACH
def test_a_new_model_predicts_zero_and_learns_from_there(backend, kind):
    config = CONFIGS[kind]
    model, x = DiT(config, mf.Rng(1)), input_for(config)
    target = randomised_input(3, config.outputs, *config.size, name="target").numpy()
    optimizer, losses = AdamW(model.parameters(), weight_decay=0.0), []
    for _ in range(8):
        y = model(x, T, labels=LABELS)
        if not losses:
            np.testing.assert_array_equal(y.numpy(), 0)
        loss = ((y - target) ** 2).mean()
        losses.append(loss.item())
        loss.backward()
        optimizer.update(0.03)
        if len(losses) < 8:
            optimizer.zero_grad()
    assert losses[-1] < 0.95 * losses[0]
    assert all(np.abs(p.grad).max() > 0 for name, p in model.parameters().items()
               if name.endswith("weight"))


@EACH
def test_recomputed_is_the_same_bit_for_bit(backend, kind):
    x, found = input_for(CONFIGS[kind]), []
    for recompute in (False, True):
        model = random_model(kind)
        y = model(x, T, labels=LABELS, recompute=recompute)
        (y * y).sum().backward()
        found.append([y.numpy()] + [p.grad for p in model.parameters().values()])
    for plain, again in zip(*found):
        np.testing.assert_array_equal(again, plain)


def test_a_shared_embedder_is_one_for_all():
    """As many as there are blocks, all the same: the same outputs, and gradients that add up."""
    x = input_for(IMAGE).astype(float)
    with mf.use("numpy"):
        one, many = in_float64(random_model("image")), DiT(replace(IMAGE, shared=False))
        ours = one.parameters()
        for name, parameter in many.parameters().items():
            parameter.data = ours[name.split(".", 2)[2] if ".embedder." in name else name].data
        found = [model(x, T, labels=LABELS) for model in (one, many)]
        np.testing.assert_allclose(found[1].numpy(), found[0].numpy(), rtol=1e-12)
        for y in found:
            (y * y).sum().backward()
    for name, parameter in ours.items():
        added = sum(p.grad for other, p in many.parameters().items()
                    if other == name or other.endswith("." + name) and "embedder" in name)
        np.testing.assert_allclose(added, parameter.grad, rtol=1e-9, atol=1e-12, err_msg=name)


@EACH
def test_a_backend_with_arrays_of_its_own(kind):
    x = input_for(CONFIGS[kind])
    with mf.use("numpy"):
        expected = random_model(kind)(x, T, labels=LABELS).numpy()
    with mf.use(OpaqueBackend()):
        y = random_model(kind)(x, T, labels=LABELS)
        y.sum().backward()
        np.testing.assert_array_equal(y.numpy(), expected)


def test_the_condition_of_each_sequence_is_its_own_gain_and_offset(backend):
    x, scale, shift = (randomised_input(*shape, name=str(shape))
                       for shape in ((3, 4, 8), (3, 8), (3, 1, 8)))
    shift = shift.reshape((3, 8))
    y = ops.adaptive_layernorm(x, scale, shift, 1e-3).numpy()
    for b in range(3):
        alone = ops.layernorm(x[b], scale[b] + 1.0, shift[b], 1e-3).numpy()
        np.testing.assert_allclose(y[b], alone, rtol=1e-5, atol=1e-5)


# -- counts -------------------------------------------------------------------------------------


@EACH
def test_the_list_of_parts_is_the_models(kind):
    assert_parts_are_the_models(CONFIGS[kind], list_parts(CONFIGS[kind]))


@EACH
def test_flops_are_those_that_are_counted(kind):
    config, model = CONFIGS[kind], random_model(kind)
    x = mf.Tensor(input_for(config), requires_grad=True)
    with mf.FlopCounter() as counter:
        y = model(x, T, labels=LABELS)
        assert counter.total == 3 * config.flops()
        y.sum().backward()
    embedders = 1 if config.shared else config.layers
    sinusoids = 2 * 256 * config.width * embedders          # whose gradient nobody needs
    assert counter.total == 3 * (config.flops(training=True) - sinusoids)
    assert config.flops([2 * n for n in config.size]) > config.flops()


def test_the_shapes_that_are_known_by_name():
    counts = {name: DiTConfig(**shape).parameters for name, shape in PRESETS.items()}
    assert counts == {
        "dit-tiny": 1_272_324, "dit-mini": 19_175_820, "dit-small": 32_865_056,
        "dit-base": 130_315_808, "dit-large": 457_840_672, "dit-xlarge": 674_834_720,
        "dit-sound": 7_383_584, "dit-video": 7_383_584}


# -- what is not possible --------------------------------------------------------------------------


@pytest.mark.parametrize("changes, said", [
    ({"size": (4,)}, "patch: expected a size for each axis of the data, (4,) are 1 … 8, got (2"),
    ({"size": (1024,)}, "; such as 16"),
    ({"size": (8, 16, 16)}, "; such as 2 4 4"),
    ({"size": (), "patch": ()}, "patch: expected a size for each axis"),
    ({"size": (4, 5)}, "patch: 2 does not divide the size 5"),
    ({"patch": (2, 0)}, "patch: expected at least 1, got 0"),
    ({"heads": 3}, "heads: 3 heads do not divide the width 8"),
    ({"layers": 1001}, "layers: expected at least 1 and at most 1000, got 1001"),
])
def test_shapes_that_are_not_possible(changes, said):
    with pytest.raises(ConfigError) as refusal:
        replace(IMAGE, **changes)
    assert said in str(refusal.value)


@pytest.mark.parametrize("x, t, labels, said", [
    (np.zeros((1, 2, 4, 5)), 1, 1, "expected [B, 2, *S] with S multiples of [2, 2], got [1, 2, 4"),
    (np.zeros((1, 2, 4)), 1, 1, "got [1, 2, 4]"),
    (np.zeros((1, 3, 4, 4)), 1, 1, "got [1, 3, 4, 4]"),
    (np.zeros((3, 2, 4, 4)), [1, 2], 1, "t: expected a number, or one for each of 3, got [2]"),
    (np.zeros((3, 2, 4, 4)), 1, 0.5, "labels: expected a number, or one for each of 3, got []"),
])
def test_inputs_that_do_not_fit(x, t, labels, said):
    with pytest.raises(ShapeError) as refusal:
        DiT(IMAGE)(x.astype(np.float32), t, labels=labels)
    assert said in str(refusal.value)


# -- files --------------------------------------------------------------------------------------


@EACH
def test_save_load_save_is_byte_identical(kind, tmp_path):
    loaded = assert_save_load_save_is_byte_identical(random_model(kind), tmp_path)
    assert loaded.config == CONFIGS[kind]


def test_a_shared_embedder_lies_in_files_once_for_each_block(tmp_path):
    save_model(random_model("image"), tmp_path)
    weights = load_file(tmp_path / FILE)
    assert weights.keys() == load_file(GOLDEN / "dit" / FILE).keys()
    key = "transformer_blocks.{}.norm1.emb.timestep_embedder.linear_1.bias"
    np.testing.assert_array_equal(weights[key.format(0)], weights[key.format(1)])
    weights[key.format(1)] = weights[key.format(1)] + 1
    save_file(weights, tmp_path / FILE)
    with pytest.raises(FormatError, match="in this model they are one tensor"):
        load_model(tmp_path)
    change_json(tmp_path / "config.json", shared_embedder=...)      # as other libraries read it
    assert not load_model(tmp_path).config.shared


def test_a_table_of_positions_is_no_weight(tmp_path):
    copy = shutil.copytree(GOLDEN / "dit", tmp_path / "copy")
    weights = load_file(copy / FILE)
    save_file(weights | {"pos_embed.pos_embed": np.zeros((1, 4, 8), np.float32)}, copy / FILE)
    load_model(copy)
    save_file(weights | {"pos_embed.other": np.zeros((1, 4, 8), np.float32)}, copy / FILE)
    with pytest.raises(FormatError, match="pos_embed.other is unknown"):
        load_model(copy)


@pytest.mark.parametrize("changes, said", [
    ({"norm_type": "ada_norm_single"}, "norm_type='ada_norm_single' is not supported"),
    ({"_class_name": "Transformer2DModel", "norm_type": ...}, "norm_type='layer_norm' is not"),
    ({"patch_size": 3}, "patch: 3 does not divide the size 4"),
    ({"sample_size": [4, 4]}, "patch: expected a list of integers, got 2"),
    ({"num_attention_heads": "2"}, "num_attention_heads, attention_head_dim: expected integers"),
    ({"dropout": 0.1}, "dropout=0.1 is not supported"),
    ({"cross_attention_dim": 8}, "cross_attention_dim=8 is not supported"),
])
def test_a_config_that_is_not_ours_names_the_file_and_the_key(tmp_path, changes, said):
    copy = shutil.copytree(GOLDEN / "dit", tmp_path / "copy")
    change_json(copy / "config.json", **changes)
    with pytest.raises(FormatError) as refusal:
        load_model(copy)
    assert said in str(refusal.value) and refusal.value.file == str(copy / "config.json")


@pytest.mark.parametrize("changes", [
    {"num_layers": 900}, {"num_embeds_ada_norm": 10**12}, {"attention_head_dim": 10**9}])
def test_a_huge_model_is_refused_before_it_takes_memory(tmp_path, changes):
    copy = shutil.copytree(GOLDEN / "dit", tmp_path / "copy")
    change_json(copy / "config.json", **changes)
    with pytest.raises(FormatError, match="are not half of the model that config.json describes"):
        load_model(copy)


@settings(max_examples=25)
@given(data=st.data())
def test_any_value_in_a_config_loads_or_is_refused(data):
    keys = sorted(json.loads((GOLDEN / "dit" / "config.json").read_text()))
    key, value = data.draw(st.sampled_from([k for k in keys if k[0] != "_"])), data.draw(JSON)
    assert_any_value_loads_or_is_refused(GOLDEN / "dit", key, value)


@pytest.mark.parametrize("format", ["bf16", "int8"])
def test_a_packed_model_comes_back_from_its_files(format, tmp_path):
    model, x = random_model("image"), input_for(IMAGE)
    exact = model(x, T, labels=LABELS).numpy()
    pack_model(model, format)
    y = model(x, T, labels=LABELS).numpy()
    assert 0 < np.abs(y - exact).max() < 0.1 * np.abs(exact).max()
    save_model(model, tmp_path)
    np.testing.assert_array_equal(load_model(tmp_path)(x, T, labels=LABELS).numpy(), y)
