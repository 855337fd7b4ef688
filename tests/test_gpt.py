"""What is GPT's alone: its sizes, its initial weights, its mistakes. See test_decoders.py."""

import numpy as np
import pytest

import minifm as mf
from minifm.errors import ConfigError, ShapeError
from minifm.models import GPT, GPTConfig
from minifm.models.gpt import PRESETS

CONFIG = GPTConfig(vocabulary=37, context=24, layers=2, heads=2, width=16)


def random_model(seed=0, std=0.2, config=CONFIG):
    """Every parameter random, gains and biases too, so that no term hides behind a 0 or a 1."""
    model = GPT(config)
    for name, parameter in model.parameters().items():
        noise = mf.Rng(seed).child(name).normal(parameter.shape)
        parameter.data = mf.backend().multiply(noise, std)
    return model


def random_ids(*shape, seed=0):
    return mf.Rng(seed).child("ids").integers(0, CONFIG.vocabulary, shape)


def test_presets_have_the_published_sizes():
    published = {"gpt2": 124, "gpt2-medium": 355, "gpt2-large": 774, "gpt2-xl": 1558,
                 "gpt1": 117, "gpt-neo-125m": 125, "gpt-neo-1.3b": 1316, "gpt-neo-2.7b": 2651,
                 "gpt3-175b": 174604}
    assert {name: round(GPTConfig(**PRESETS[name]).parameters / 1e6)
            for name in published} == published


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
