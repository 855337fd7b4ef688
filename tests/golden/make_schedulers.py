"""Make the golden trajectories of samplers with the `diffusers` library:

    python tests/golden/make_schedulers.py [NAME ...]

Needs torch and diffusers; the tests need neither, they read what this writes into
tests/golden/schedulers/NAME/: the `scheduler_config.json` that the library saves, and
`trajectory.safetensors`, computed in float64:

    times [N]              what the network is told at each step
    noise [B, C, 1]         N(0, 1), from which the library's initial noise is made
    drawn [N, B, C, 1]      the noise that each step drew (zeros where it drew none)
    start [B, C, 1]         the first sample
    samples [N, B, C, 1]    the sample after each step, in the coordinates of the library's class

The network is a formula, `predict`, which the tests repeat.
"""

import contextlib
import importlib
import sys
from pathlib import Path

import diffusers
import numpy as np
import torch
from peer import all_in_float64
from safetensors.torch import save_file

HERE = Path(__file__).parent / "schedulers"
STABLE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
ZERO = {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction",
        "timestep_spacing": "trailing"}
# {name: (class, settings, steps, options of each step)}
CASES = {
    "ddpm": ("DDPM", {"clip_sample_range": 1.5}, 7, {}),
    "ddpm-large": ("DDPM", {"variance_type": "fixed_large", "clip_sample": False,
                            "beta_schedule": "squaredcos_cap_v2", "timestep_spacing": "linspace",
                            "prediction_type": "sample"}, 6, {}),
    "ddpm-sigmoid": ("DDPM", {"beta_schedule": "sigmoid", "thresholding": True,
                              "sample_max_value": 2.0, "timestep_spacing": "trailing",
                              "prediction_type": "v_prediction"}, 6, {}),
    "ddim": ("DDIM", STABLE | {"clip_sample": False, "set_alpha_to_one": False,
                               "steps_offset": 1}, 8, {}),
    "ddim-eta": ("DDIM", {"clip_sample_range": 0.8, "timestep_spacing": "trailing"}, 5,
                 {"eta": 0.6}),
    "ddim-zero": ("DDIM", ZERO | {"clip_sample": False}, 8, {}),
    "ddim-constant": ("DDIM", {"clip_sample": False, "timestep_spacing": "linspace"}, 7, {}),
    "euler": ("EulerDiscrete", STABLE, 7, {}),
    "euler-leading": ("EulerDiscrete", STABLE | {
        "timestep_spacing": "leading", "steps_offset": 1, "prediction_type": "v_prediction",
        "final_sigmas_type": "sigma_min"}, 6, {}),
    "euler-karras": ("EulerDiscrete", {"use_karras_sigmas": True, "timestep_spacing": "trailing"},
                     6, {}),
    "euler-zero": ("EulerDiscrete", ZERO, 6, {}),
    "heun": ("HeunDiscrete", {"clip_sample": True}, 5, {}),
    "heun-exponential": ("HeunDiscrete", {"use_exponential_sigmas": True,
                                          "prediction_type": "v_prediction"}, 5, {}),
    "dpm": ("DPMSolverMultistep", STABLE, 8, {}),
    "dpm-long": ("DPMSolverMultistep", {"final_sigmas_type": "sigma_min",
                                        "timestep_spacing": "leading"}, 16, {}),
    "dpm-karras": ("DPMSolverMultistep", STABLE | {
        "use_karras_sigmas": True, "final_sigmas_type": "sigma_min"}, 7, {}),
    "dpm-cosine": ("DPMSolverMultistep", {
        "beta_schedule": "squaredcos_cap_v2", "use_exponential_sigmas": True,
        "prediction_type": "sample"}, 6, {}),
    "dpm-sde": ("DPMSolverMultistep", ZERO | {"algorithm_type": "sde-dpmsolver++"}, 7, {}),
    "flow": ("FlowMatchEulerDiscrete", {}, 5, {}),
    "flow-karras": ("FlowMatchEulerDiscrete", {"use_karras_sigmas": True, "shift": 2.0}, 5, {}),
    "flow-shifted": ("FlowMatchEulerDiscrete", {"shift": 3.0}, 6, {}),
}


def predict(x, t):
    return 0.8 * torch.tanh(1.7 * x + torch.sin(0.01 * torch.as_tensor(t))) + 0.1 * x


def main(names):
    for name in names or CASES:
        make(name, *CASES[name])


def make(name, kind, settings, steps, options):
    torch.manual_seed(0)
    noise, kind = torch.randn(2, 3, 1, dtype=torch.float64), getattr(diffusers, f"{kind}Scheduler")
    directory = HERE / name
    kind(**settings).save_pretrained(directory)
    with all_in_float64(), numpy_in_float64(), recording(kind) as drawn:
        scheduler = kind(**settings)
        scheduler.set_timesteps(steps)
        start = noise * getattr(scheduler, "init_noise_sigma", 1.0)
        times, samples, noises = trajectory(scheduler, start, drawn, options)
    save_file({"times": times, "noise": noise, "start": start, "samples": samples,
               "drawn": noises}, directory / "trajectory.safetensors", metadata={"format": "pt"})


def trajectory(scheduler, x, drawn, options):
    """(times, samples, noises); of a step that asks the network twice, its end."""
    times, samples, noises = [], [], []
    for i, t in enumerate(scheduler.timesteps):
        scaled = scheduler.scale_model_input(x, t) if hasattr(scheduler, "scale_model_input") else x
        before = len(drawn)
        x = scheduler.step(predict(scaled, t), t, x, **options).prev_sample
        if getattr(scheduler, "state_in_first_order", True) or i == len(scheduler.timesteps) - 1:
            samples.append(x)
            noises.append(drawn[-1] if len(drawn) > before else torch.zeros_like(x))
        if scheduler.order == 1 or i % 2 == 1 or i == 0:
            times.append(t.double())
    return torch.stack(times), torch.stack(samples), torch.stack(noises)


@contextlib.contextmanager
def numpy_in_float64():
    """The library's tables are float32 by name."""
    before, np.float32 = np.float32, np.float64
    try:
        yield
    finally:
        np.float32 = before


@contextlib.contextmanager
def recording(kind):
    """The list of all noise that the class's module draws."""
    module, drawn = importlib.import_module(kind.__module__), []
    original = getattr(module, "randn_tensor", None)

    def recorded(*arguments, **keywords):
        drawn.append(original(*arguments, **keywords))
        return drawn[-1]
    if original is not None:
        module.randn_tensor = recorded
    try:
        yield drawn
    finally:
        if original is not None:
            module.randn_tensor = original


if __name__ == "__main__":
    main(sys.argv[1:])
