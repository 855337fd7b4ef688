"""The prior of DALL·E 2 against the real library's outputs, its laws, its files."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from modelling import assert_same_function, in_float64, randomised
from networks import (
    GOLDEN,
    JSON,
    assert_any_value_loads_or_is_refused,
    assert_equal_in_float64,
    assert_file_comes_back,
    assert_outputs_equal,
    assert_parts_are_the_models,
    change_json,
    randomised_input,
)
from opaque import OpaqueBackend

import minifm as mf
from minifm.errors import ConfigError, FormatError, ShapeError
from minifm.hub import load_model, save_model
from minifm.models import Prior, PriorConfig, pack_model
from minifm.models.prior import PRESETS
from minifm.training.optim import AdamW

pytestmark = pytest.mark.usefixtures("undrawn")

CONFIG = PriorConfig(embedding=6, context=5, layers=2, heads=2, width=8)
T = np.array([0.0, 17.0, 999.0])
REAL = np.arange(5) < np.array([[5], [3], [1]])


def run(model, golden):
    return {"y": model(golden["x"], golden["t"], summary=mf.Tensor(golden["summary"]),
                       memory=mf.Tensor(golden["memory"]), memory_mask=golden["memory_mask"])}


def told(dtype=np.float32):
    """What a prior reads beside x and t, of three texts."""
    memory, summary = (randomised_input(*shape, name=str(shape)).numpy().astype(dtype)
                       for shape in ((3, 5, 6), (3, 6)))
    return {"memory": memory, "memory_mask": REAL, "summary": summary}


def called(model, x, t=T, **changes):
    inputs = {key: mf.Tensor(value) if value.dtype.kind == "f" else value
              for key, value in (told(x.dtype) | changes).items()}
    return model(mf.Tensor(x), t, **inputs)


X = np.asarray(mf.Rng(0).child("x").host_normal((3, 6)), np.float32)


# -- the real library's outputs -----------------------------------------------------------------


def test_outputs_equal_the_real_librarys(backend):
    assert_outputs_equal("prior", run)


def test_outputs_and_gradients_equal_the_real_librarys_in_float64():
    assert_equal_in_float64("prior", run)


def test_what_the_real_library_saved_comes_back_from_our_files(tmp_path):
    said, meant = assert_file_comes_back("prior", tmp_path)
    assert said == {key: meant[key] for key in said} and len(said) == 8


# -- laws ------------------------------------------------------------------------------------------


def test_batched_is_each_alone(backend):
    model = randomised(Prior(CONFIG))
    together = called(model, X).numpy()
    with mf.use("numpy"), mf.no_grad():
        exact = called(in_float64(randomised(Prior(CONFIG))), X.astype(float)).numpy()
    for b in range(3):
        part = slice(b, b + 1)
        alone = called(model, X[part], T[b], **{k: v[part] for k, v in told().items()}).numpy()
        if backend.name == "c":
            np.testing.assert_array_equal(together[part], alone)
        assert_same_function(together[part], alone, exact[part])


def test_padding_of_the_text_changes_nothing_and_its_tokens_do(backend):
    model, memory = randomised(Prior(CONFIG)), told()["memory"]
    y = called(model, X).numpy()
    filled = np.where(REAL[..., None], memory, 3.0).astype(np.float32)
    np.testing.assert_array_equal(called(model, X, memory=filled).numpy(), y)
    for place in range(5):
        changed = memory.copy()
        changed[:, place, 0] += 1
        moved = np.abs(called(model, X, memory=changed).numpy() - y).max(1) > 0
        np.testing.assert_array_equal(moved, REAL[:, place])


def test_all_that_it_is_told_counts(backend):
    model = randomised(Prior(CONFIG))
    y = called(model, X).numpy()
    assert np.abs(called(model, X, T + 50).numpy() - y).max(1).min() > 1e-4
    for changes in ({"x": X + 1}, {"summary": told()["summary"] + 1}):
        other = called(model, changes.pop("x", X), **changes).numpy()
        assert np.abs(other - y).max(1).min() > 1e-4


def test_a_new_prior_predicts_the_mean_and_learns_from_there(backend):
    model, target = Prior(CONFIG, mf.Rng(1)), randomised_input(3, 6, name="target").numpy()
    optimizer, losses = AdamW(model.parameters(), weight_decay=0.0), []
    for _ in range(10):
        y = called(model, X)
        if not losses:
            np.testing.assert_array_equal(y.numpy(), 0)
        loss = ((y - target) ** 2).mean()
        losses.append(loss.item())
        loss.backward()
        optimizer.update(0.03)
        if len(losses) < 10:
            optimizer.zero_grad()
    assert losses[-1] < 0.5 * losses[0]
    measured = {"mean", "deviation"}
    for name, parameter in model.parameters().items():
        assert (parameter.grad is None) == (name in measured), name
    np.testing.assert_array_equal(model.mean.numpy(), 0)            # measured, never learnt
    np.testing.assert_array_equal(model.deviation.numpy(), 1)


@given(st.integers(1, 5))
def test_standardised_and_restored_is_the_same(rows):
    model = randomised(Prior(CONFIG))
    x = np.asarray(mf.Rng(rows).host_normal((rows, 6)), np.float32)
    deviation = np.abs(model.deviation.numpy())
    bound = 8 * np.finfo(np.float32).eps * (np.abs(x) + np.abs(model.mean.numpy()) + deviation)
    assert (np.abs(model.restore(model.standardise(x)) - x) <= bound).all()


def test_recomputed_is_the_same_bit_for_bit(backend):
    found = []
    for recompute in (False, True):
        model = randomised(Prior(CONFIG))
        inputs = {key: mf.Tensor(v) if v.dtype.kind == "f" else v for key, v in told().items()}
        y = model(mf.Tensor(X), T, recompute=recompute, **inputs)
        (y * y).sum().backward()
        found.append([y.numpy()] + [p.grad for p in model.parameters().values()
                                    if p.grad is not None])
    for plain, again in zip(*found, strict=True):
        np.testing.assert_array_equal(again, plain)


def test_a_backend_with_arrays_of_its_own():
    with mf.use("numpy"):
        expected = called(randomised(Prior(CONFIG)), X).numpy()
    with mf.use(OpaqueBackend()):
        y = called(randomised(Prior(CONFIG)), X)
        y.sum().backward()
        np.testing.assert_array_equal(y.numpy(), expected)


# -- counts ----------------------------------------------------------------------------------------


def test_the_list_of_parts_is_the_models():
    assert_parts_are_the_models(CONFIG, CONFIG.parts())


def test_flops_are_those_that_are_counted():
    model = randomised(Prior(CONFIG))
    with mf.FlopCounter() as counter:
        called(model, X)
    halved = CONFIG.layers * 2 * CONFIG.tokens**2 * CONFIG.width     # what nothing looks at
    assert counter.total == 3 * (CONFIG.flops() - halved)
    assert CONFIG.flops(training=True) > 2.9 * CONFIG.flops()


def test_the_shapes_that_are_known_by_name():
    counts = {name: PriorConfig(**shape).parameters for name, shape in PRESETS.items()}
    assert counts == {"prior-tiny": 1_232_768, "prior-karlo": 1_022_030_080}


@pytest.mark.parametrize("format", ["bf16", "int8"])
def test_packed_weights_come_back_from_files(format, tmp_path):
    config = replace(CONFIG, embedding=32, width=32)
    model = randomised(config.model(config))
    pack_model(model, format)
    save_model(model, tmp_path)
    inputs = {"memory": mf.Tensor(np.ones((2, 5, 32), np.float32)), "memory_mask": REAL[:2],
              "summary": mf.Tensor(np.ones((2, 32), np.float32))}
    x = mf.Tensor(np.ones((2, 32), np.float32))
    np.testing.assert_array_equal(load_model(tmp_path)(x, T[:2], **inputs).numpy(),
                                  model(x, T[:2], **inputs).numpy())


# -- what is not possible --------------------------------------------------------------------------


@pytest.mark.parametrize("changes, message", [
    ({"memory": np.zeros((3, 4, 6), np.float32)}, r"memory: expected \[3, 5, 6\], got \[3, 4, 6\]"),
    ({"summary": np.zeros((2, 6), np.float32)}, r"summary: expected \[3, 6\]"),
    ({"memory_mask": REAL[:, :3]}, r"memory_mask: expected \[3, 5\]"),
    ({"x": X[:, :5]}, r"x: expected \[3, 6\], got \[3, 5\]")])
def test_other_shapes_are_refused(changes, message):
    with pytest.raises(ShapeError, match=message):
        called(randomised(Prior(CONFIG)), changes.pop("x", X), **changes)
    with pytest.raises(ConfigError, match="heads: 3 heads do not divide the width 8"):
        replace(CONFIG, heads=3)


@pytest.mark.parametrize("key, value, message", [
    ("added_emb_type", None, "added_emb_type=None is not supported"),
    ("encoder_hid_proj_type", None, "encoder_hid_proj_type=None is not"),
    ("time_embed_dim", 9, "time_embed_dim=9 is not supported, only 8"),
    ("clip_embed_dim", 5, "clip_embed_dim=5 is not supported, only 6"),
    ("additional_embeddings", 3, "additional_embeddings=3"), ("what", 3, "what=3 is not")])
def test_a_foreign_feature_in_config_json_is_refused(key, value, message, tmp_path):
    save_model(load_model(GOLDEN / "prior"), tmp_path)
    change_json(tmp_path / "config.json", **{key: value})
    with pytest.raises(FormatError, match=message):
        load_model(tmp_path)


@settings(max_examples=100)
@given(key=st.sampled_from(["embedding_dim", "num_embeddings", "num_layers", "num_attention_heads",
                            "attention_head_dim", "dropout", "norm_in_type", "time_embed_dim"]),
       value=JSON)
def test_any_value_is_read_or_refused(key, value):
    assert_any_value_loads_or_is_refused(GOLDEN / "prior", key, value)
