"""The autoencoder against the real library's outputs and gradients; its Gaussian; its files."""

import json
import shutil
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
    assert_save_load_save_is_byte_identical,
    change_json,
    randomised_input,
)
from opaque import OpaqueBackend

import minifm as mf
from minifm.errors import ConfigError, FormatError, ShapeError
from minifm.hub import load_model
from minifm.models import AutoencoderConfig, AutoencoderKL
from minifm.models.autoencoder import PRESETS, Posterior, list_parts
from minifm.training.optim import AdamW

NAMES = ["autoencoder", "autoencoder-plain"]
MIXED = AutoencoderConfig(inputs=2, outputs=2, size=8, widths=(4, 8), layers=1, latents=3, groups=2)
CONFIGS = {
    "mixed": MIXED,
    "deep": replace(MIXED, inputs=1, outputs=1, widths=(4, 6, 6), layers=2, mixed=False,
                    scaling=1.5, shift=0.25),
}
EACH = pytest.mark.parametrize("kind", CONFIGS)
GOLDEN_EACH = pytest.mark.parametrize("name", NAMES)


def random_model(kind):
    return randomised(AutoencoderKL(CONFIGS[kind]))


def pictures(config, B=3, H=8, W=8):
    return randomised_input(B, config.inputs, H, W).numpy()


def run(model, golden):
    posterior = model.encode(golden["x"])
    return {"mean": posterior.mean, "log_variance": posterior.log_variance,
            "y": model.decode(golden["z"])}


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
    assert said == {key: meant[key] for key in said} and len(said) == 16


# -- the Gaussian ---------------------------------------------------------------------------------


def posterior_of(mean, log_variance, shape=(1, 1, 1, 1)):
    with mf.use("numpy"):
        told = np.concatenate([np.full(shape, mean), np.full(shape, log_variance)], 1)
        return Posterior(mf.Tensor(told))


@pytest.mark.parametrize("mean, log_variance", [(0.0, 0.0), (0.5, -1.0), (-2.0, 1.5)])
def test_the_divergence_is_that_of_the_integral(mean, log_variance):
    """KL = ∫ q log(q / p), by the trapezoid rule, which is exact to rounding for Gaussians."""
    x, std = np.linspace(-40, 40, 20_001), np.exp(log_variance / 2)
    log_q = -0.5 * ((x - mean) / std) ** 2 - np.log(std)
    terms = np.exp(log_q) / np.sqrt(2 * np.pi) * (log_q + 0.5 * x * x)
    found = posterior_of(mean, log_variance).divergence().numpy()
    np.testing.assert_allclose(found, [terms.sum() * (x[1] - x[0])], rtol=1e-9, atol=1e-12)


def test_samples_have_the_moments_that_are_said():
    n = 40_000
    posterior = posterior_of(1.5, np.log(0.25), (1, 1, 200, 200))
    with mf.use("numpy"):
        drawn = posterior.sample(rng=mf.Rng(3)).numpy()
        np.testing.assert_array_equal(drawn, posterior.sample(rng=mf.Rng(3)).numpy())
        assert np.abs(drawn - posterior.sample(rng=mf.Rng(4)).numpy()).max() > 0.5
    # five standard errors of the mean, and of the variance (σ² √(2 / n))
    assert abs(drawn.mean() - 1.5) < 5 * 0.5 / np.sqrt(n)
    assert abs(drawn.var() - 0.25) < 5 * 0.25 * np.sqrt(2 / n)


def test_variances_are_kept_within_limits():
    for said, kept in ((-1e9, -30), (1e9, 20), (-30, -30), (3.25, 3.25)):
        assert posterior_of(0.0, said).log_variance.item() == kept


# -- laws ---------------------------------------------------------------------------------------


@EACH
def test_batched_is_each_picture_alone(backend, kind):
    model, x = random_model(kind), pictures(CONFIGS[kind])
    together = model(x).numpy()
    with mf.use("numpy"):
        exact = in_float64(random_model(kind))(x.astype(float)).numpy()
    for b in range(3):
        alone = model(x[b : b + 1]).numpy()
        if backend.name == "c":
            np.testing.assert_array_equal(together[b : b + 1], alone)
        assert_same_function(together[b : b + 1], alone, exact[b : b + 1])


@EACH
@pytest.mark.parametrize("H, W", [(4, 12), (16, 8)])
def test_pictures_of_other_sizes(backend, kind, H, W):
    config, model = CONFIGS[kind], random_model(kind)
    x = pictures(config, 2, H, W)
    latents = model.to_latents(x)
    assert latents.shape == (2, 3, H // config.stride, W // config.stride)
    back = model.to_pictures(latents)
    assert back.shape == (2, config.outputs, H, W)
    np.testing.assert_allclose(back.numpy(), model(x).numpy(), rtol=1e-4, atol=1e-4)


def test_latents_are_shifted_and_scaled(backend):
    model, x = random_model("deep"), pictures(CONFIGS["deep"])
    plain = model.encode(x).mean.numpy()
    np.testing.assert_allclose(model.to_latents(x).numpy(), (plain - 0.25) * 1.5, rtol=1e-5,
                               atol=1e-6)
    drawn = model.encode(x).sample(rng=mf.Rng(2)).numpy()
    np.testing.assert_allclose(model.to_latents(x, rng=mf.Rng(2)).numpy(), (drawn - 0.25) * 1.5,
                               rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(model(x, rng=mf.Rng(2)).numpy(), model.decode(drawn).numpy())


@EACH
def test_errors_are_differences_and_divergence(kind):
    x = pictures(CONFIGS[kind]).astype(float)
    with mf.use("numpy"):
        model = in_float64(random_model(kind))
        posterior = model.encode(x)
        noise = mf.Rng(5).normal(posterior.mean.shape, np.float64)
        for given, back in ((None, model(x)), (noise, model(x, rng=mf.Rng(5)))):
            squares, divergence = (y.numpy() for y in model.errors(x, given))
            expected = ((back.numpy() - x) ** 2).reshape(len(x), -1).mean(1)
            np.testing.assert_allclose(squares, expected, rtol=1e-12)
            np.testing.assert_allclose(divergence, posterior.divergence().numpy(), rtol=1e-12)


@EACH
def test_a_narrow_models_posteriors_are_points(backend, kind):
    model, x = random_model(kind), pictures(CONFIGS[kind])
    before = model.encode(x).mean.numpy()
    model.narrow()
    posterior = model.encode(x)
    np.testing.assert_array_equal(posterior.mean.numpy(), before)
    np.testing.assert_array_equal(posterior.log_variance.numpy(), np.full(before.shape, -30))


@EACH
def test_a_new_model_learns(backend, kind):
    config = CONFIGS[kind]
    model, x = AutoencoderKL(config, mf.Rng(1)), pictures(config)
    optimizer, losses = AdamW(model.parameters(), weight_decay=0.0), []
    for step in range(8):
        noise = mf.Rng(9).child(step).normal(model.encode(x).mean.shape)
        squares, divergence = model.errors(x, noise)
        loss = squares.mean() + 1e-6 * divergence.mean()
        losses.append(loss.item())
        loss.backward()
        optimizer.update(0.01)
        if step < 7:
            optimizer.zero_grad()
    assert losses[-1] < 0.9 * losses[0]
    assert all(np.abs(p.grad).max() > 0 for name, p in model.parameters().items()
               if name.endswith("weight"))


@EACH
def test_a_backend_with_arrays_of_its_own(kind):
    x = pictures(CONFIGS[kind], 1)
    with mf.use("numpy"):
        expected = random_model(kind)(x, rng=mf.Rng(0)).numpy()
    with mf.use(OpaqueBackend()):
        model = random_model(kind)
        np.testing.assert_array_equal(model(x, rng=mf.Rng(0)).numpy(), expected)
        squares, divergence = model.errors(mf.Tensor(x))
        (squares + divergence).sum().backward()


# -- counts -------------------------------------------------------------------------------------


@EACH
def test_the_list_of_parts_is_the_models(kind):
    assert_parts_are_the_models(CONFIGS[kind], list_parts(CONFIGS[kind]))


@EACH
@pytest.mark.parametrize("H, W", [(8, 8), (4, 16)])
def test_flops_are_those_that_are_counted(kind, H, W):
    config, model = CONFIGS[kind], random_model(kind)
    x = mf.Tensor(pictures(config, 3, H, W), requires_grad=True)
    with mf.FlopCounter() as counter:
        y = model(x)
        assert counter.total == 3 * config.flops(H, W)
        y.sum().backward()
    assert counter.total == 3 * config.flops(H, W, training=True)


def test_the_shapes_that_are_known_by_name():
    counts = {name: AutoencoderConfig(**shape).parameters for name, shape in PRESETS.items()}
    assert counts == {"autoencoder-tiny": 167_381, "autoencoder-small": 2_702_087,
                      "autoencoder-stable-diffusion": 83_653_863}


# -- what is not possible --------------------------------------------------------------------------


@pytest.mark.parametrize("changes, said", [
    ({"widths": ()}, "widths: expected 1 … 16 levels, got 0"),
    ({"widths": (4, 7)}, "groups: 2 groups do not divide the width 7"),
    ({"scaling": 0.0}, "scaling: expected more than 0, got 0.0"),
])
def test_shapes_that_are_not_possible(changes, said):
    with pytest.raises(ConfigError) as refusal:
        replace(MIXED, **changes)
    assert said in str(refusal.value)


def test_inputs_that_do_not_fit():
    model = AutoencoderKL(MIXED)
    for shape in ((1, 2, 7, 8), (1, 1, 8, 8), (2, 8, 8)):
        with pytest.raises(ShapeError, match=r"expected pictures \[B, 2, H, W\] with H and W mult"):
            model(np.zeros(shape, np.float32))
    with pytest.raises(ShapeError, match=r"expected latents \[B, 3, h, w\], got \[1, 2, 4, 4\]"):
        model.decode(np.zeros((1, 2, 4, 4), np.float32))


# -- files --------------------------------------------------------------------------------------


@EACH
def test_save_load_save_is_byte_identical(kind, tmp_path):
    loaded = assert_save_load_save_is_byte_identical(random_model(kind), tmp_path)
    assert loaded.config == CONFIGS[kind]


@pytest.mark.parametrize("changes, said", [
    ({"down_block_types": ["AttnDownEncoderBlock2D"] * 2}, "down_block_types: expected DownEnc"),
    ({"use_post_quant_conv": False}, "use_post_quant_conv: expected True, as use_quant_conv is"),
    ({"latents_mean": [0.1, 0.2, 0.3]}, "latents_mean=[0.1, 0.2, 0.3] is not supported"),
    ({"mid_block_add_attention": False}, "mid_block_add_attention=False is not supported"),
    ({"scaling_factor": "1"}, "scaling: expected a number, got '1'"),
    ({"latent_channels": 0}, "latents: expected at least 1, got 0"),
])
def test_a_config_that_is_not_ours_names_the_file_and_the_key(tmp_path, changes, said):
    copy = shutil.copytree(GOLDEN / "autoencoder", tmp_path / "copy")
    change_json(copy / "config.json", **changes)
    with pytest.raises(FormatError) as refusal:
        load_model(copy)
    assert said in str(refusal.value) and refusal.value.file == str(copy / "config.json")


@settings(max_examples=25)
@given(data=st.data())
def test_any_value_in_a_config_loads_or_is_refused(data):
    keys = sorted(json.loads((GOLDEN / "autoencoder" / "config.json").read_text()))
    key, value = data.draw(st.sampled_from([k for k in keys if k[0] != "_"])), data.draw(JSON)
    assert_any_value_loads_or_is_refused(GOLDEN / "autoencoder", key, value)
