"""Whole trajectories equal to those of the `diffusers` library, for the same network in float64,
and its scheduler files, in and out (tests/golden/make_schedulers.py)."""

import dataclasses
import json
import math
from pathlib import Path

import numpy as np
import pytest

import minifm as mf
from minifm.diffusion.scheduler import Scheduler
from minifm.errors import ConfigError, FormatError, UserError
from minifm.hub import load_arrays, load_scheduler, save_scheduler
from minifm.hub.schedulers import (
    LAYOUTS,
    scheduler_from_hub,
    scheduler_to_hub,
)
from minifm.rng import Rng

GOLDEN = Path(__file__).parent / "golden" / "schedulers"
CASES = sorted(path.name for path in GOLDEN.iterdir())
OPTIONS = {"ddim-eta": {"eta": 0.6}}
CONSTANT = {"ddim-constant"}        # whose steps are not those of the list of times


def predict(x, t):
    """The network of make_schedulers.py."""
    return mf.tanh(x * 1.7 + math.sin(0.01 * float(t))) * 0.8 + x * 0.1


class Replayed:
    """An Rng that draws what the other library drew."""

    def __init__(self, drawn):
        self.drawn = drawn

    def child(self, name, *step):
        return Replayed(self.drawn[step[0]] if step else self.drawn)

    def host_normal(self, shape, dtype):
        assert self.drawn.shape == shape and self.drawn.dtype == dtype
        return self.drawn


def replay(case, scheduler):
    """(our samples after each step, theirs), in the coordinates of their class."""
    golden = load_arrays(GOLDEN / case / "trajectory.safetensors")
    found = scheduler.levels(len(golden["times"]))
    scale = [1 / level.alpha if scheduler.sampler in ("euler", "heun") else 1 for level in found]
    np.testing.assert_allclose([level.time for level in found[:-1]], golden["times"], rtol=1e-10,
                               atol=1e-9)
    x = scheduler.start(found, golden["noise"].shape, Replayed(golden["noise"]), np.float64)
    np.testing.assert_allclose(x.numpy() * scale[0], golden["start"], rtol=1e-12)
    samples = []
    scheduler.sample(predict, x, found, rng=Replayed(golden["drawn"]),
                     watch=lambda i, level, x, estimate: samples.append(x.numpy() * scale[i + 1]),
                     **OPTIONS.get(case, {}))
    return samples, golden["samples"]


@pytest.mark.parametrize("case", CASES)
def test_trajectories_are_those_of_the_other_library(case):
    """To 1e-12 of the largest value, times 2^12 where the first α is 2^-12 and is divided by. Their
    ddpm does not let a variance be less than 1e-20, and so draws noise where none is left."""
    scheduler = dataclasses.replace(load_scheduler(GOLDEN / case), constant_step=case in CONSTANT)
    samples, wanted = replay(case, scheduler)
    assert len(samples) == len(wanted)
    tolerance = 1e-12 * (2**12 if scheduler.zero_terminal else 1)
    if scheduler.sampler == "ddpm" and scheduler.spacing == "trailing":
        tolerance += 1e-10 * 6          # of noise within six deviations
    for ours, theirs in zip(samples, wanted):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=tolerance * np.abs(theirs).max())


def test_without_constant_steps_ddim_reads_the_next_time_from_its_list():
    samples, wanted = replay("ddim-constant", load_scheduler(GOLDEN / "ddim-constant"))
    assert np.abs(samples[0] - wanted[0]).max() > 1e-3


@pytest.mark.parametrize("case", CASES)
def test_scheduler_files_come_back_as_they_were(case, tmp_path):
    scheduler = load_scheduler(GOLDEN / case)
    save_scheduler(scheduler, tmp_path)
    ours, theirs = (json.loads((path / "scheduler_config.json").read_text())
                    for path in (tmp_path, GOLDEN / case))
    del theirs["_diffusers_version"]
    assert set(ours) == set(theirs)
    unread = {key for key in ours if ours[key] != theirs[key]}
    # Of a correction that is off, or that another outdoes, nothing need be said.
    assert unread <= {"clip_sample", "clip_sample_range"}
    assert not unread or not ours["clip_sample"] and (
        "clip_sample" not in unread or ours["thresholding"])
    assert load_scheduler(tmp_path) == scheduler


def test_a_models_directory_has_its_scheduler_in_a_folder(tmp_path):
    (tmp_path / "scheduler").mkdir()
    scheduler = Scheduler(sampler="dpm_2m_sde", noise="cosine", objective="v", steps=50,
                          spacing="trailing", curve="karras", zero_terminal=False)
    save_scheduler(scheduler, tmp_path / "scheduler")
    assert load_scheduler(tmp_path) == scheduler
    other = load_scheduler(tmp_path, "EulerDiscreteScheduler")
    assert (other.sampler, other.noise, other.objective) == ("euler", "cosine", "v")


def test_trained_betas_are_read_and_written():
    betas = (0.1, 0.2, 0.4)
    scheduler = scheduler_from_hub({"_class_name": "DDIMScheduler", "trained_betas": list(betas),
                                    "num_train_timesteps": 3, "clip_sample": False})
    np.testing.assert_allclose(scheduler.schedule.betas, betas, rtol=1e-12)
    assert scheduler_to_hub(scheduler)["trained_betas"] == list(betas)


def test_every_key_that_is_read_is_written():
    stored = {"_class_name": "DPMSolverMultistepScheduler", "euler_at_final": True,
              "lower_order_final": False, "algorithm_type": "sde-dpmsolver++"}
    scheduler = scheduler_from_hub(stored)
    assert scheduler.first_order_always_ends and not scheduler.first_order_end
    assert stored.items() <= scheduler_to_hub(scheduler).items()


@pytest.mark.parametrize("name", LAYOUTS)
def test_every_class_has_defaults_that_are_read(name):
    scheduler = scheduler_from_hub({"_class_name": name})
    assert scheduler_from_hub(scheduler_to_hub(scheduler)) == scheduler
    assert len(scheduler.levels(4)) == 5


@pytest.mark.parametrize("change, message", [
    ({"_class_name": "PNDMScheduler"}, "_class_name: expected one of DDPMScheduler, .*'PNDMSch"),
    ({"prediction_type": "noise"}, "prediction_type: expected one of epsilon, sample, v"),
    ({"beta_schedule": "laplace"}, "beta_schedule: expected one of linear"),
    ({"solver_order": 3}, "solver_order: 3 is not supported, only 2"),
    ({"use_flow_sigmas": True}, "use_flow_sigmas: True is not supported, only False"),
    ({"use_karras_sigmas": "yes"}, "use_karras_sigmas: expected one of True, False"),
    ({"num_train_timesteps": "many"}, "steps: expected an integer"),
    ({"num_train_timesteps": 10**12}, "steps: expected at least 2 and at most 1000000"),
    ({"beta_end": 2.0}, "beta_end: expected more than 0 and less than 1"),
    ({"beta_end": 1e-6}, "beta_end: expected more than beta_start"),
    ({"trained_betas": "none"}, "trained_betas: expected a list of numbers"),
    ({"thresholding": True, "dynamic_thresholding_ratio": 2}, "quantile: expected more than 0"),
])
def test_a_file_that_is_not_understood_is_refused_by_its_key(change, message, tmp_path):
    stored = {"_class_name": "DPMSolverMultistepScheduler"} | change
    (tmp_path / "scheduler_config.json").write_text(json.dumps(stored))
    with pytest.raises(FormatError, match=message) as problem:
        load_scheduler(tmp_path)
    assert "scheduler_config.json" in str(problem.value) and "\n" not in str(problem.value)


def test_what_no_file_can_say_is_refused(tmp_path):
    with pytest.raises(FormatError, match="cannot be read"):
        load_scheduler(tmp_path / "nowhere")
    with pytest.raises(UserError, match="expected a directory"):
        save_scheduler(Scheduler(), tmp_path / "nowhere")
    with pytest.raises(ConfigError, match="EulerDiscreteScheduler cannot say all of"):
        scheduler_to_hub(Scheduler(sampler="euler", limit=1.0))
    with pytest.raises(ConfigError, match="flow and flow_euler go together"):
        Scheduler(sampler="ddim", noise="flow")
    for scheduler in (Scheduler(), Scheduler(sampler="euler", spacing="linspace"),
                      Scheduler(sampler="flow_euler", noise="flow", objective="flow")):
        for steps in (0, 2.5, 1001)[: 2 if scheduler.noise == "flow" else 3]:
            with pytest.raises(ConfigError, match=f"steps: expected .* got {steps}"):
                scheduler.levels(steps)


@pytest.mark.parametrize("sampler", ["ddpm", "ddim", "euler", "heun", "dpm_2m", "dpm_2m_sde"])
def test_a_scheduler_samples_from_its_own_start(sampler):
    scheduler = Scheduler(sampler=sampler, noise="cosine", objective="v")
    found = scheduler.levels(5)
    x = scheduler.start(found, (2, 3, 4), Rng(1))
    y = scheduler.sample(predict, x, found, rng=Rng(1))
    assert y.shape == (2, 3, 4) and y.dtype == np.float32 and np.isfinite(y.numpy()).all()
    again = scheduler.sample(predict, x, found, rng=Rng(1))
    np.testing.assert_array_equal(y.numpy(), again.numpy())
