"""Whole pipelines, from a prompt to a picture: published ones make here what they make in the
library that wrote them, and latents go in and out whole."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
from networks import GOLDEN, change_json
from safetensors.numpy import load_file

from minifm import cli, hub
from minifm.errors import FormatError
from minifm.generation.diffusion import Pipeline, SampleConfig
from minifm.hub import load_scheduler
from minifm.tensor import no_grad

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
