"""GPT against the real library's outputs, and the algebra that every causal model obeys."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file

import minifm as mf
from minifm.errors import ConfigError, ShapeError
from minifm.hub import load_model
from minifm.models import GPT, GPTConfig
from minifm.models.gpt import PRESETS

GOLDEN = Path(__file__).parent / "golden" / "gpt2"
CONFIG = GPTConfig(vocabulary=37, context=24, layers=2, heads=2, width=16)


def in_float64(model):
    for parameter in model.parameters().values():
        parameter.data = parameter.data.astype(np.float64)
    return model


def random_model(seed=0, std=0.2, config=CONFIG):
    """Every parameter random, gains and biases too, so that no term hides behind a 0 or a 1."""
    model = GPT(config)
    for name, parameter in model.parameters().items():
        noise = mf.Rng(seed).child(name).normal(parameter.shape)
        parameter.data = mf.backend().multiply(noise, std)
    return model


def random_ids(*shape, seed=0):
    return mf.Rng(seed).child("ids").integers(0, CONFIG.vocabulary, shape)


def oracle(ids, **inputs):
    """The logits in float64, by the reference."""
    with mf.use("numpy"), mf.no_grad():
        return in_float64(random_model())(ids, **inputs).numpy()


def assert_same_function(y, full, exact):
    """The 2-3 × rule: y may err thrice as much as the plain float32 forward, against float64."""
    error = np.abs(full - exact).max()
    floor = np.finfo(np.float32).eps * np.abs(exact).max()
    assert np.abs(y - exact).max() <= 3 * error + floor


# -- the real library's outputs -----------------------------------------------------------------


@pytest.fixture(scope="module")
def golden():
    return load_file(GOLDEN / "outputs.safetensors")


def test_logits_equal_the_real_librarys(backend, golden):
    model = load_model(GOLDEN)
    mask = np.arange(golden["ids"].shape[1]) < golden["lengths"][:, None]
    y = model(golden["ids"], key_mask=mask).numpy()
    assert np.abs(y - golden["logits"])[mask].max() <= 2 * golden["logits_error"][0]


def test_features_loss_and_gradients_equal_the_real_librarys_in_float64(golden):
    with mf.use("numpy"):
        model = in_float64(load_model(GOLDEN))
        ids = golden["ids"][:2]
        np.testing.assert_allclose(model.features(ids).numpy(), golden["features"][:2], rtol=1e-11)
        loss = model.loss(ids[:, :-1], ids[:, 1:])
        assert loss.item() == pytest.approx(golden["loss"][0], rel=1e-12)
        loss.backward()
    names = GPT.stored_names(model.config)
    for ours, parameter in model.parameters().items():
        expected = golden[f"gradient.{names[ours].name}"]
        np.testing.assert_allclose(parameter.grad, expected, rtol=1e-9, atol=1e-12, err_msg=ours)


def test_greedy_continuation_equals_the_real_librarys(backend, golden):
    from minifm.generation import Sampling, tokens
    model = load_model(GOLDEN)
    steps = tokens(model, [golden["ids"][0]], Sampling(temperature=0), 16, mf.Rng(0))
    assert [step[0] for step in steps] == golden["greedy"].tolist()


# -- laws ---------------------------------------------------------------------------------------


@given(t=st.integers(0, 11), token=st.integers(0, 36))
def test_causality_a_later_token_leaves_earlier_outputs_bitwise(backend, t, token):
    model, ids = random_model(), random_ids(2, 12)
    changed = ids.copy()
    changed[:, t] = token
    before, after = model(ids).numpy(), model(changed).numpy()
    np.testing.assert_array_equal(before[:, :t], after[:, :t])
    assert (ids[:, t] == token).all() or not np.array_equal(before[:, t:], after[:, t:])


@given(st.lists(st.integers(1, 5), min_size=1, max_size=6))
def test_cache_in_any_chunking_is_the_full_forward(backend, chunks):
    model, ids = random_model(), random_ids(3, min(sum(chunks), 24))
    with mf.no_grad():
        full, cache, parts = model(ids).numpy(), model.cache(3), []
        for chunk in chunks:
            piece = ids[:, int(cache.lengths[0]) :][:, :chunk]
            if piece.size:
                parts.append(model(piece, cache=cache).numpy())
    cached = np.concatenate(parts, 1)
    if backend.name == "c":
        np.testing.assert_array_equal(cached, full)
    assert_same_function(cached, full, oracle(ids))


@given(st.lists(st.integers(1, 10), min_size=2, max_size=4), st.integers(1, 4))
def test_batched_with_cache_is_each_row_alone(backend, lengths, more):
    model, ids = random_model(), random_ids(len(lengths), 10 + 2 * more)
    with mf.no_grad():
        cache = model.cache(len(lengths))
        got = [model(ids[:, : max(lengths)], cache=cache, counts=lengths).numpy()]
        pieces = np.stack([row[n : n + 2 * more] for row, n in zip(ids, lengths)])
        got.append(model(pieces[:, :1], cache=cache).numpy())
        got.append(model(pieces[:, 1:], cache=cache).numpy())
        for b, n in enumerate(lengths):
            alone = model(ids[b : b + 1, : n + 2 * more]).numpy()
            together = np.concatenate([got[0][b, :n], got[1][b], got[2][b]])
            if backend.name == "c":
                np.testing.assert_array_equal(together, alone[0])
            assert_same_function(together, alone[0], oracle(ids[b : b + 1, : n + 2 * more])[0])


@given(st.integers(0, 6), st.integers(0, 6))
def test_padding_on_either_side_never_changes_a_real_position(backend, left, right):
    model, ids = random_model(), random_ids(2, 9)
    padded = np.pad(ids, ((0, 0), (left, right)), constant_values=5)
    mask = np.pad(np.ones(ids.shape, bool), ((0, 0), (left, right)))
    y = model(padded, key_mask=mask).numpy()[:, left : left + 9]
    assert_same_function(y, model(ids).numpy(), oracle(ids))


def test_counts_follow_from_the_configuration(backend):
    model, ids = GPT(CONFIG, mf.Rng(0)), random_ids(3, 20)
    assert sum(p.numpy().size for p in model.parameters().values()) == CONFIG.parameters
    with mf.FlopCounter() as counter:
        model(ids)
    assert counter.total == 60 * CONFIG.flops_per_token(20)
    with mf.FlopCounter() as counter:
        model.loss(ids, ids).backward()
    logits_again = 60 * 2 * CONFIG.vocabulary * CONFIG.width
    assert counter.total - logits_again == 60 * CONFIG.flops_per_token(20, training=True)


def test_presets_have_the_published_sizes():
    published = {"gpt2": 124, "gpt2-medium": 355, "gpt2-large": 774, "gpt2-xl": 1558,
                 "gpt3-175b": 174604}
    assert {name: round(PRESETS[name].parameters / 1e6) for name in published} == published


def test_initial_weights_are_those_of_the_gpt2_paper(backend):
    config = GPTConfig(vocabulary=500, context=64, layers=8, heads=2, width=128)
    for name, parameter in GPT(config, mf.Rng(3)).parameters().items():
        values = parameter.numpy()
        if name.endswith(("bias", "gain")):
            np.testing.assert_array_equal(values, float(name.endswith("gain")))
            continue
        std = 0.02 / 4 if name.endswith("output.weight") else 0.02      # √(2 · 8 layers) = 4
        # The standard deviation of n draws errs by about 1/√(2n): six of those is never chance.
        assert abs(values.std() / std - 1) < 6 / np.sqrt(2 * values.size)


def test_dropout_acts_only_with_a_stream_of_noise(backend):
    model, ids = random_model(config=GPTConfig(**vars(CONFIG) | {"dropout": 0.5})), random_ids(1, 8)
    plain = random_model()(ids).numpy()
    np.testing.assert_array_equal(model(ids).numpy(), plain)
    noisy = model(ids, rng=mf.Rng(1)).numpy()
    np.testing.assert_array_equal(model(ids, rng=mf.Rng(1)).numpy(), noisy)
    assert not np.array_equal(noisy, plain)
    assert not np.array_equal(model(ids, rng=mf.Rng(2)).numpy(), noisy)


# -- mistakes -----------------------------------------------------------------------------------


@pytest.mark.parametrize("wrong, message", [
    ({"heads": 3}, "3 heads do not divide the width 16"),
    ({"layers": 0}, "layers: expected at least 1, got 0"),
    ({"width": 16.0}, "width: expected an integer, got 16.0"),
    ({"activation": "gelo"}, "activation: expected one of"),
    ({"dropout": 1.0}, "dropout: expected at least 0 and less than 1, got 1.0"),
])
def test_an_impossible_configuration_names_its_field(wrong, message):
    with pytest.raises(ConfigError, match=message):
        GPTConfig(**vars(CONFIG) | wrong)


def test_more_tokens_than_the_context_are_refused(backend):
    model = random_model()
    with pytest.raises(ShapeError, match="25 tokens do not fit the context of 24"):
        model(random_ids(1, 25))
    cache = model.cache(1)
    model(random_ids(1, 20), cache=cache)
    with pytest.raises(ConfigError, match="20 are in it and 5 more do not fit"):
        model(random_ids(1, 5), cache=cache)
    with pytest.raises(ConfigError, match="counts: expected 0 … 2"):
        model(random_ids(1, 2), cache=cache, counts=[3])
    assert cache.lengths.tolist() == [20]


def test_a_token_outside_the_vocabulary_is_refused(backend):
    with pytest.raises(ShapeError, match="index 37 is outside 0 … 36"):
        random_model()(np.array([[3, 37]]))


def test_a_foreign_feature_in_config_json_is_refused():
    stored = GPT.config_to_hub(CONFIG)
    assert GPT.config_from_hub(stored) == CONFIG
    with pytest.raises(ConfigError, match="scale_attn_by_inverse_layer_idx=True is not supported"):
        GPT.config_from_hub(stored | {"scale_attn_by_inverse_layer_idx": True})
    with pytest.raises(ConfigError, match="lacks n_embd, n_layer"):
        GPT.config_from_hub({k: v for k, v in stored.items() if k not in ("n_embd", "n_layer")})


def test_heads_are_cut_out_of_one_projection_and_merged_again():
    x = np.arange(2 * 3 * 16, dtype=np.float32).reshape(2, 3, 16)
    q, k, v = mf.split_heads(mf.Tensor(x), heads=4, key_heads=2)        # D = 2
    assert (q.numpy() == x[..., :8].reshape(2, 3, 4, 2).transpose(0, 2, 1, 3)).all()
    assert (k.numpy() == x[..., 8:12].reshape(2, 3, 2, 2).transpose(0, 2, 1, 3)).all()
    assert (v.numpy() == x[..., 12:].reshape(2, 3, 2, 2).transpose(0, 2, 1, 3)).all()
    assert (mf.merge_heads(q).numpy() == x[..., :8]).all()
    with pytest.raises(ShapeError, match=r"E a multiple of 3 \+ 2 × 3 heads, got \[2, 3, 16\]"):
        mf.split_heads(mf.Tensor(x), 3)
