"""CLIP against the real library's outputs, its laws, its files."""

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from modelling import assert_same_function, in_float64, randomised
from safetensors.numpy import load_file, save_file

import minifm as mf
from minifm.errors import ConfigError, FormatError, ShapeError
from minifm.hub import load_model, save_model
from minifm.models import CLIP, CLIPConfig, clip, pack_model
from minifm.models.clip import CLIPShape, ImageTowerConfig, TextTowerConfig, unit
from minifm.training.optim import AdamW

GOLDEN = Path(__file__).parent / "golden"
NAMES = ["clip", "clip-text", "clip-text-joint", "clip-image-joint"]
V = 21
TEXT = TextTowerConfig(layers=2, heads=2, width=12, joint=6, vocabulary=V, context=9)
IMAGE = ImageTowerConfig(layers=2, heads=2, width=8, joint=6, size=8, patch=4, channels=2)
BOTH = CLIPConfig(TEXT, IMAGE)


def texts(rows, length=7, name="ids"):
    """Rows of tokens that end with the highest id."""
    ids = mf.Rng(0).child(name).integers(0, V - 1, (rows, length))
    ids[:, -1] = V - 1
    return ids


def images(rows, name="images"):
    return mf.Rng(0).child(name).host_normal((rows, 2, 8, 8)).astype(np.float32)


def found_by(model, outputs):
    """{name: array} of each of the model's outputs that the golden file has."""
    dtype = next(iter(model.parameters().values())).dtype
    pixels = mf.Tensor(mf.backend().from_numpy(outputs["images"].astype(dtype)))
    if isinstance(model, CLIP):
        return {"logits": model(outputs["ids"], pixels).numpy()}, \
            model.loss(outputs["ids"], pixels)
    inputs = pixels if isinstance(model, clip.ImageTower) else outputs["ids"]
    found = {"features": model(inputs), "pooled": model.pooled(inputs)}
    if model.config.joint:
        found["embedded"] = model.embed(inputs)
    last = found["embedded" if model.config.joint else "pooled"]
    return {name: y.numpy() for name, y in found.items() if name in outputs}, (last * last).sum()


@pytest.fixture(scope="module", params=NAMES)
def golden(request):
    return GOLDEN / request.param, load_file(GOLDEN / request.param / "outputs.safetensors")


def test_outputs_equal_the_real_librarys(backend, golden):
    directory, outputs = golden
    found, _ = found_by(load_model(directory), outputs)
    assert found.keys() == {name.removeprefix("error.") for name in outputs
                            if name.startswith("error.")}
    worst = max(float(outputs[f"error.{name}"][0]) for name in found)
    for name, y in found.items():           # a few numbers may all be near by luck
        assert np.abs(y - outputs[name]).max() <= 2 * worst, name


def test_outputs_loss_and_gradients_equal_the_real_librarys_in_float64(golden):
    directory, outputs = golden
    with mf.use("numpy"):
        model = in_float64(load_model(directory))
        found, loss = found_by(model, outputs)
        for name, y in found.items():
            np.testing.assert_allclose(y, outputs[name], rtol=1e-9, atol=1e-11)
        assert loss.item() == pytest.approx(outputs["loss"][0], rel=1e-11)
        loss.backward()
    names = model.stored_names(model.config)
    theirs = {name.removeprefix("gradient."): value for name, value in outputs.items()
              if name.startswith("gradient.")}
    theirs = {model.accepted_name(name): value for name, value in theirs.items()}
    for ours, parameter in model.parameters().items():
        expected = theirs[model.accepted_name(names[ours].name)]
        expected = names[ours].array_here(expected, parameter.shape)
        given_ = 0 if parameter.grad is None else parameter.grad
        np.testing.assert_allclose(given_, expected, rtol=1e-7, atol=1e-11, err_msg=ours)


def test_what_the_real_library_saved_comes_back_from_our_files(golden, tmp_path):
    directory, _ = golden
    model = load_model(directory)
    save_model(model, tmp_path)
    assert load_model(tmp_path).config == model.config
    ours, theirs = (load_file(place / "model.safetensors") for place in (tmp_path, directory))
    theirs = {model.accepted_name(name): array for name, array in theirs.items()}
    assert {model.accepted_name(name) for name in ours} == theirs.keys()
    for name, array in ours.items():
        assert array.tobytes() == theirs[model.accepted_name(name)].tobytes(), name
    said, meant = (json.loads((place / "config.json").read_text())
                   for place in (tmp_path, directory))
    for a, b in ((said, meant), *((said.get(key, {}), meant.get(key, {}))
                                  for key in ("text_config", "vision_config"))):
        shared = (a.keys() & b.keys()) - {"torch_dtype", "text_config", "vision_config"}
        assert {key: a[key] for key in shared} == {key: b[key] for key in shared}


# -- laws ---------------------------------------------------------------------------------------


@given(padding=st.integers(0, 2), filler=st.integers(0, V - 1))
def test_what_stands_behind_the_end_changes_nothing(backend, padding, filler):
    model, ids = randomised(TEXT.model(TEXT)), texts(3)
    longer = np.pad(ids, ((0, 0), (0, padding)), constant_values=filler)
    with mf.use("numpy"), mf.no_grad():
        exact = in_float64(randomised(TEXT.model(TEXT))).embed(ids).numpy()
    assert_same_function(model.embed(longer).numpy(), model.embed(ids).numpy(), exact)


def test_an_end_is_the_first_of_its_kind_or_the_highest_id(backend):
    ids = texts(2)
    ids[:, 2] = 5
    model = randomised(replace(TEXT, end=5).model(replace(TEXT, end=5)))
    x = model(ids).numpy()
    np.testing.assert_array_equal(model.pooled(ids).numpy(), x[:, 2])
    other = randomised(TEXT.model(TEXT))
    np.testing.assert_array_equal(other.pooled(ids).numpy(), x[:, -1])
    with pytest.raises(ShapeError, match="the text of row 1 does not end: it lacks the token 5"):
        model.pooled(np.where(np.arange(2)[:, None] == 1, 0, ids))


def test_the_loss_is_of_both_directions_and_falls_when_partners_are_near(backend):
    model, ids, pictures = randomised(CLIP(BOTH)), texts(4), mf.Tensor(images(4))
    logits = model(ids, pictures).numpy().astype(np.float64)
    log_p = [table - np.log(np.exp(table).sum(1, keepdims=True)) for table in (logits, logits.T)]
    expected = -sum(np.diag(table).mean() for table in log_p) / 2
    assert model.loss(ids, pictures).item() == pytest.approx(expected, rel=1e-5)
    cosines = logits / math.exp(model.scale.item())
    assert np.abs(cosines).max() <= 1 + 1e-5
    order = np.array([2, 0, 3, 1])
    shuffled = model(ids[order], pictures[order]).numpy()
    np.testing.assert_allclose(shuffled, logits[order][:, order], rtol=1e-4, atol=1e-5)


def test_texts_and_pictures_that_belong_together_are_learnt(backend):
    """Eight pairs, in which only the partner tells one from another."""
    model, ids, pictures = CLIP(BOTH, mf.Rng(1)), texts(8), mf.Tensor(images(8))
    optimizer = AdamW(model.parameters(), weight_decay=0.0)
    before = model.loss(ids, pictures).item()
    for _ in range(100):
        model.loss(ids, pictures).backward()
        optimizer.update(1e-3)
        optimizer.zero_grad()
    with mf.no_grad():
        logits = model(ids, pictures).numpy()
    assert (logits.argmax(0) == np.arange(8)).all() and (logits.argmax(1) == np.arange(8)).all()
    assert model.loss(ids, pictures).item() < 0.5 * before


def test_unit_vectors_have_length_one(backend):
    y = unit(mf.Tensor(images(2).reshape(2, -1))).numpy()
    np.testing.assert_allclose((y * y).sum(-1), 1, rtol=1e-5)


def test_recomputation_gives_the_same_bits(backend):
    found = []
    for recompute in (False, True):
        model = randomised(CLIP(BOTH))
        model.loss(texts(3), mf.Tensor(images(3)), recompute=recompute).backward()
        found.append([p.grad for p in model.parameters().values()])
    for plain, again in zip(*found, strict=True):
        np.testing.assert_array_equal(plain, again)


@pytest.mark.parametrize("name, count", [
    ("clip-vit-base-patch32", 151277313), ("clip-vit-base-patch16", 149620737),
    ("clip-vit-large-patch14", 427616513)])
def test_published_models_have_their_published_size(name, count):
    shape = CLIPShape(**clip.PRESETS[name])
    config = shape.config(vocabulary=49408, context=9, end=49407, size=224, channels=3)
    assert config.parameters == count and CLIPShape.of(config) == shape


def test_counts_follow_from_the_configuration(backend):
    model = CLIP(BOTH, mf.Rng(0))
    assert sum(p.numpy().size for p in model.parameters().values()) == BOTH.parameters
    for tower, inputs, tokens in ((model.text, texts(3), 7), (model.image, mf.Tensor(images(3)),
                                                              5)):
        with mf.FlopCounter() as counter:
            tower.embed(inputs)
        patches = 3 * 2 * 4 * (2 * 16) * 8 if tower is model.image else 0
        causal = 2 * 3 * 2 * 7 * 7 * 12 if tower is model.text else 0   # half is not computed
        assert counter.total == 3 * tower.config.flops_of(tokens, False) + patches - causal


@pytest.mark.parametrize("format", ["bf16", "int8"])
def test_packed_weights_come_back_from_files(format, tmp_path):
    config = replace(TEXT, width=32, heads=4, hidden=64, joint=32)
    model = randomised(config.model(config))
    pack_model(model, format)
    save_model(model, tmp_path)
    np.testing.assert_array_equal(load_model(tmp_path).embed(texts(2)).numpy(),
                                  model.embed(texts(2)).numpy())


# -- files and mistakes -------------------------------------------------------------------------


def changed(tmp_path, name, change=dict, **config):
    arrays = change(load_file(GOLDEN / name / "model.safetensors"))
    save_file(arrays, tmp_path / "model.safetensors", metadata={"format": "pt"})
    stored = json.loads((GOLDEN / name / "config.json").read_text()) | config
    (tmp_path / "config.json").write_text(json.dumps(stored))
    return tmp_path


def test_older_spellings_load(tmp_path):
    """With a prefix, and positions as a buffer, as in the text encoders of diffusion models."""
    copy = changed(tmp_path, "clip-text", lambda arrays: {
        f"text_model.{name}": array for name, array in arrays.items()} | {
        "text_model.embeddings.position_ids": np.arange(12)[None]})
    theirs = load_model(GOLDEN / "clip-text").parameters()
    for name, parameter in load_model(copy).parameters().items():
        np.testing.assert_array_equal(parameter.numpy(), theirs[name].numpy())


@pytest.mark.parametrize("name, change, message", [
    ("clip-text", {"hidden_act": "tanh"}, "activation: expected one of .*, got 'tanh'"),
    ("clip-text", {"num_attention_heads": 5}, "heads: 5 heads do not divide the width 16"),
    ("clip-text", {"architectures": ["BertModel"]}, "architectures: expected CLIPTextModel or"),
    ("clip-image-joint", {"patch_size": 5}, "patch: 5 does not divide the size 12"),
    ("clip", {"text_config": []}, r"text_config: expected an object, got \[\]"),
    ("clip", {"vision_config": "x"}, "vision_config: expected an object, got 'x'"),
    ("clip", {"projection_dim": 0}, "joint: expected at least 1, got 0"),
])
def test_a_foreign_feature_in_config_json_is_refused(name, change, message, tmp_path):
    with pytest.raises(FormatError, match=message):
        load_model(changed(tmp_path, name, **change))


def test_mistakes_in_use_are_named(backend):
    model = randomised(CLIP(BOTH))
    with pytest.raises(ShapeError, match=r"TextTower: expected token ids \[B, T\], got \[7\]"):
        model.text(texts(1)[0])
    with pytest.raises(ShapeError, match="TextTower: 10 tokens do not fit the context of 9"):
        model.text(texts(1, 10))
    with pytest.raises(ShapeError, match=r"expected images \[B, 2, 8, 8\], got \[1, 2, 4, 4\]"):
        model.image(mf.Tensor(images(1)[..., :4, :4]))
    alone = replace(TEXT, joint=None)
    with pytest.raises(ConfigError, match="joint: this TextTower has no way into a joint space"):
        randomised(alone.model(alone)).embed(texts(1))
    with pytest.raises(ConfigError, match="joint: expected the same width for texts and pictures"):
        CLIPConfig(TEXT, replace(IMAGE, joint=7))
