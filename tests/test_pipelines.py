"""Whole pipelines, from a prompt to a picture: published ones make here what they make in the
library that wrote them, and latents go in and out whole."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
from networks import GOLDEN, change_json, randomised
from safetensors.numpy import load_file

import minifm as mf
from minifm import cli, hub
from minifm.diffusion.scheduler import Scheduler
from minifm.errors import ConfigError, FormatError
from minifm.generation.diffusion import Known, Pipeline, Recipe, SampleConfig
from minifm.hub import load_scheduler
from minifm.hub.locate import DOWNLOADED
from minifm.media import PICTURE, SOUND, Examples
from minifm.models import AutoencoderConfig, AutoencoderKL, Composite, UNet, UNetConfig
from minifm.nn import trainable
from minifm.tensor import no_grad
from minifm.training import denoising, told
from minifm.training.captioned import CaptionConfig
from minifm.training.denoising import DenoisingTrainConfig, ExamplesConfig, NoiseConfig
from minifm.training.latents import LatentConfig

pytestmark = pytest.mark.usefixtures("undrawn")

SCHEDULER = Scheduler(objective="v", noise="cosine", spacing="trailing", limit=1.0)
PUBLISHED = GOLDEN / "stable-diffusion"
PROMPTS, STEPS, GUIDANCE = ["a red ball", "BLUE"], 5, 3.0
CLASSES = {"ddim": "DDIMScheduler", "euler": "EulerDiscreteScheduler",
           "dpm_2m": "DPMSolverMultistepScheduler"}


# -- published ones --------------------------------------------------------------------------------


class Drawn:
    """An Rng that draws what the other library drew."""

    def __init__(self, noise):
        self.noise = noise

    def child(self, *name):
        return self

    def host_normal(self, shape, dtype):
        assert self.noise.shape == shape and self.noise.dtype == dtype
        return self.noise


@pytest.mark.parametrize("sampler", CLASSES)
def test_a_guided_trajectory_ends_where_the_real_librarys_does(backend, sampler):
    """Within four times what rounding does to that library itself, and the last bits of the largest
    number."""
    golden, pipeline = load_file(PUBLISHED / "outputs.safetensors"), Pipeline.load(PUBLISHED)
    scheduler = load_scheduler(PUBLISHED, CLASSES[sampler])
    if sampler == "dpm_2m":                 # which was made with the spacing of its class
        scheduler = replace(scheduler, spacing="linspace")
    levels, noise = scheduler.levels(STEPS), golden["noise"]
    x = scheduler.start(levels, noise.shape, Drawn(noise))
    with no_grad():
        found = scheduler.sample(pipeline.model(PROMPTS, SampleConfig(guidance=GUIDANCE)), x,
                                 levels).numpy()
    pictures = pipeline.space.outward(found, 1)
    for name, array in ((sampler, found), (f"{sampler}.pictures", pictures)):
        allowed = 4 * golden[f"error.{name}"][0] + 8 * 2.0**-24 * np.abs(golden[name]).max()
        assert np.abs(array - golden[name]).max() <= allowed, name
    with no_grad():                         # the prompt has its part in it, beyond all of these
        swapped = scheduler.sample(pipeline.model(PROMPTS[::-1], SampleConfig(guidance=GUIDANCE)),
                                   x, levels).numpy()
    allowed = 4 * golden[f"error.{sampler}"][0] + 8 * 2.0**-24 * np.abs(golden[sampler]).max()
    assert np.abs(swapped - golden[sampler]).max() > 5 * allowed


def test_what_a_published_pipeline_makes_is_known_without_our_file():
    pipeline = Pipeline.load(PUBLISHED)
    assert pipeline.recipe.shape == (3, 16, 16) and pipeline.condition.flag == "prompt"
    assert pipeline.condition.length == 9
    assert pipeline.sample(PROMPTS[:1], SampleConfig(steps=2, guidance=2)).shape == (1, 3, 16, 16)


@pytest.mark.parametrize("name", ["PNDMScheduler", "UniPCMultistepScheduler"])
def test_a_scheduler_that_is_not_here_takes_a_sampler_that_is(tmp_path, capsys, name):
    place = shutil.copytree(PUBLISHED, tmp_path / "model")
    change_json(place / "scheduler" / "scheduler_config.json", _class_name=name,
                skip_prk_steps=True)
    words = ["sample", str(place), "--out", str(tmp_path / "x.npy"), "--prompt", "a red ball",
             "--count", "1", "--steps", "2"]
    assert cli.main(words) == 2
    err = capsys.readouterr().err
    assert f"{name!r}, whose sampler is not here" in err and err.count("\n") == 1
    assert cli.main([*words, "--sampler", "ddim"]) == 0
    expected = Pipeline.load(PUBLISHED).sample(["a red ball"], SampleConfig(steps=2))
    np.testing.assert_array_equal(np.load(tmp_path / "x.npy"), expected)


def test_a_scheduler_of_another_process_takes_no_sampler(tmp_path):
    place = shutil.copytree(PUBLISHED, tmp_path / "model")
    (place / "scheduler" / "scheduler_config.json").write_text(
        '{"_class_name": "FlowMatchHeunDiscreteScheduler", "shift": 3.0}')
    for sampler in ("ddim", "flow_euler", None):
        with pytest.raises(FormatError, match="FlowMatchHeun"):
            Pipeline.load(place, sampler)


def test_a_published_pipeline_comes_back_from_our_files(tmp_path):
    pipeline = Pipeline.load(PUBLISHED)
    hub.save_model(pipeline.network, tmp_path)
    pipeline.recipe.save(tmp_path)
    index, published = (json.loads((place / "model_index.json").read_text())
                        for place in (tmp_path, PUBLISHED))
    assert index["_class_name"] == "StableDiffusionPipeline"
    for part in ("unet", "vae", "text_encoder", "scheduler", "safety_checker"):
        assert index[part] == published[part]
    for part in ("unet/diffusion_pytorch_model", "vae/diffusion_pytorch_model",
                 "text_encoder/model"):
        ours, theirs = (load_file(place / f"{part}.safetensors") for place in (tmp_path, PUBLISHED))
        assert {k.removeprefix("text_model."): v.tobytes() for k, v in ours.items()} == {
            k: v.tobytes() for k, v in theirs.items()}
    x = [p.sample(PROMPTS, SampleConfig(steps=2)).tobytes()
         for p in (pipeline, Pipeline.load(tmp_path))]
    assert x[0] == x[1]


# -- latents ---------------------------------------------------------------------------------------

AUTOENCODER = AutoencoderConfig(inputs=1, outputs=1, size=8, widths=(4, 8), layers=1, latents=2,
                                groups=2, scaling=0.7, shift=0.1)
CAPTIONS = ("bold a", "thin b")
SHAPE = {"widths": (8, 16), "attention": (1,), "layers": 1, "head_width": 8, "groups": 4}
CONFIG = DenoisingTrainConfig(steps=4, batch=6, accumulate=2, warmup=1, average=0.5,
                              evaluate_every=2, evaluate_batches=2, save_every=2, seed=3)


def examples(side=8, kind=PICTURE, N=14):
    shape = (N, 1, side, side) if kind is PICTURE else (N, 1, side)
    return Examples(
        kind=kind, values=mf.Rng(7).integers(0, 256, shape).astype(np.uint8),
        labels=(np.arange(N) % 2).astype(np.int32), classes=("x", "y"),
        captions=tuple(CAPTIONS[i % 2] for i in range(N)),
        parts={"training": np.arange(N - 4), "held_out": np.arange(N - 4, N)},
        description={"name": "noise", "sha256": "0" * 64})


@pytest.fixture(autouse=True)
def data(monkeypatch):
    """The data called "noise" are those above; snapshots are made in few steps."""
    monkeypatch.setattr(told, "SHOWN_STEPS", 2)
    monkeypatch.setattr(denoising, "open_examples", lambda wanted, say: examples())


@pytest.fixture(scope="module")
def autoencoder(tmp_path_factory):
    """The directory of one that "has learnt"."""
    directory = tmp_path_factory.mktemp("autoencoder")
    hub.save_model(randomised(AutoencoderKL(AUTOENCODER)), directory)
    return directory


def run_in(directory, autoencoder, captions=False, **more):
    own = {"text_layers": 1, "text_width": 8, "text_vocabulary": 270} if captions else {}
    options = {"shape": SHAPE, "shown": False, "captions": CaptionConfig(captions=captions, **own),
               "latents": LatentConfig(latent=autoencoder and str(autoencoder))} | more
    return denoising.prepare(directory, ExamplesConfig(data="noise"), CONFIG, **options)


@pytest.mark.parametrize("captions", [False, True])
def test_a_run_in_latents_resumes_bitwise_and_leaves_the_autoencoder(tmp_path, autoencoder,
                                                                     captions):
    whole = run_in(tmp_path / "whole", autoencoder, captions).trainer
    whole.train()
    run_in(tmp_path / "run", autoencoder, captions).trainer.train(until=1)
    trainer = run_in(tmp_path / "run", autoencoder, captions, resume=True).trainer
    trainer.train()
    for name, p in whole.model.parameters().items():
        assert trainer.model.parameters()[name].numpy().tobytes() == p.numpy().tobytes(), name
    assert not trainable(trainer.model.autoencoder) and trainable(trainer.model.network)
    before = hub.load_model(autoencoder).parameters()
    for name, p in hub.load_model(tmp_path / "run" / "last").autoencoder.parameters().items():
        np.testing.assert_array_equal(p.numpy(), before[name].numpy())
    assert (tmp_path / "run" / "samples" / "step-00000004.png").exists()
    found = Pipeline.load(tmp_path / "run" / "last")
    assert found.recipe == trainer.companion and found.recipe.shape == (1, 8, 8)
    assert found.space.shape == (2, 4, 4)
    assert found.sample([CAPTIONS[0] if captions else "x"], SampleConfig(steps=2)).shape == \
        (1, 1, 8, 8)


def test_batches_are_the_likeliest_latents_scaled(tmp_path, autoencoder):
    trainer = run_in(tmp_path / "run", autoencoder).trainer
    x0 = trainer.held_out.batch(0)[0]
    pictures = examples().take(examples().parts["held_out"])
    expected = hub.load_model(autoencoder).encode(mf.Tensor(pictures)).mean.numpy()
    np.testing.assert_allclose(x0, (expected - 0.1) * 0.7, atol=1e-5)


def test_a_scale_that_no_file_says_is_that_of_the_data(tmp_path, autoencoder):
    place = shutil.copytree(autoencoder, tmp_path / "plain")
    change_json(place / "config.json", scaling_factor=...)
    batches = run_in(tmp_path / "run", place).trainer.batches
    learnt = batches.examples.values[batches.examples.parts["training"]]
    assert abs(learnt.std() - 1) < 1e-5


def in_space(**more):
    model = Composite(randomised(UNet(UNetConfig(inputs=2, outputs=2, size=4, **SHAPE))), None,
                      randomised(AutoencoderKL(AUTOENCODER)))
    return Pipeline(model, Recipe(SCHEDULER, PICTURE, (1, 8, 8), **more))


def test_samples_in_latents_do_not_depend_on_the_batch():
    pipeline = in_space()
    whole = pipeline.sample([None] * 5, SampleConfig(steps=3))
    for batch in (1, 3):
        np.testing.assert_allclose(
            pipeline.sample([None] * 5, SampleConfig(steps=3, batch=batch)), whole, atol=1e-5)


def test_what_is_known_stays_in_latents_too():
    pipeline, known = in_space(), mf.Rng(6).uniform((1, 1, 8, 8)) * 1.8 - 0.9
    known, mask = np.asarray(known, np.float32), np.zeros((1, 1, 8, 8), np.float32)
    mask[..., :3, :] = 1                    # a row of latents, and half of the next
    made = pipeline.sample([None] * 2, SampleConfig(steps=3), known=Known(part=known, mask=mask))
    np.testing.assert_array_equal(made[:, :, :3], np.broadcast_to(known[:, :, :3], (2, 1, 3, 8)))
    assert not np.allclose(made[0, :, 3:], made[1, :, 3:], atol=0.01)
    inside = pipeline.space.known(Known(part=known, mask=mask), 1)
    np.testing.assert_array_equal(inside.mask[0, 0, :, 0], [1, 0, 0, 0])
    assert inside.part.shape == (1, 2, 4, 4)


def test_a_start_and_a_strip_go_through_the_latents(tmp_path, capsys):
    pipeline = in_space()
    x0 = np.asarray(mf.Rng(6).uniform((2, 1, 8, 8)) * 1.8 - 0.9, np.float32)
    strip = pipeline.strip(x0, [None] * 2, SampleConfig(steps=4), frames=3)
    assert strip.shape == (2, 5, 1, 8, 8)
    coder, latents = pipeline.network.autoencoder, pipeline.space.inward(x0, 1)
    np.testing.assert_allclose(latents, (coder.encode(mf.Tensor(x0)).mean.numpy() - 0.1) * 0.7,
                               atol=1e-5)
    np.testing.assert_allclose(strip[:, 0], coder(mf.Tensor(x0)).numpy(), atol=1e-5)
    pytest.importorskip("PIL")
    place = tmp_path / "model"
    place.mkdir()
    hub.save_model(pipeline.network, place)
    pipeline.recipe.save(place)
    np.save(tmp_path / "start.npy", x0[:1])
    words = ["sample", str(place), "--steps", "2", "--count", "2", "--out"]
    assert cli.main([*words, str(tmp_path / "x.gif"), "--gif"]) == 0
    assert cli.main([*words, str(tmp_path / "x.png"), "--strip"]) == 0
    assert cli.main([*words, str(tmp_path / "x.npy"), "--init-image", str(tmp_path / "start.npy"),
                     "--strength", "0.5"]) == 0


@pytest.mark.parametrize("data, options, part", [
    (examples(side=5), {}, "latent: the autoencoder reads pictures of 1 channel whose sides are "
                           "multiples of 2, the data have 1 channel and 5 × 5 pixels"),
    (examples(kind=SOUND), {"arch": "dit", "shape": {}}, "an autoencoder reads pictures"),
    (examples(side=6), {}, "size: examples of 3 × 3, and a UNet of 2 levels takes multiples of 2"),
    (examples(), {"noise": NoiseConfig(flip=True)}, "flip: latents of a mirrored picture")])
def test_what_goes_into_no_latents_is_refused(tmp_path, monkeypatch, autoencoder, data, options,
                                              part):
    monkeypatch.setattr(denoising, "open_examples", lambda wanted, say: data)
    with pytest.raises(ConfigError, match=part):
        run_in(tmp_path / "run", autoencoder, **options)
    assert not (tmp_path / "run").exists()


def test_only_an_autoencoder_has_latents(tmp_path):
    with pytest.raises(ConfigError, match="expected an AutoencoderKL, got a TextTower"):
        run_in(tmp_path / "run", PUBLISHED / "text_encoder")


def test_a_dit_learns_latents_of_classes(tmp_path, autoencoder):
    trainer = run_in(tmp_path / "run", autoencoder, arch="dit",
                     shape={"patch": (2, 2), "layers": 1, "heads": 2, "width": 8}).trainer
    trainer.train(until=2)
    found = Pipeline.load(tmp_path / "run" / "last")
    assert found.sample(["x", "y"], SampleConfig(steps=2, guidance=2)).shape == (2, 1, 8, 8)
    with pytest.raises(ConfigError, match="latent: the model to start from has its own"):
        run_in(tmp_path / "more", autoencoder, arch="dit", shape={}, captions=False,
               initial=tmp_path / "run" / "last")
    begun = run_in(tmp_path / "more", None, arch="dit", shape={},
                   initial=tmp_path / "run" / "last").trainer
    assert begun.batches.batch(0)[0].shape == (6, 2, 4, 4)


def test_of_a_pipeline_on_the_hub_all_is_downloaded_that_is_read():
    from fnmatch import fnmatch
    files = [str(file.relative_to(PUBLISHED)) for file in PUBLISHED.rglob("*") if file.is_file()]
    for file in [*files, "tokenizer/tokenizer.json", "unet/diffusion_pytorch_model.bin"]:
        assert any(fnmatch(file, pattern) for pattern in DOWNLOADED) == (not file.endswith(".bin"))
