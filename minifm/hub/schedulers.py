"""`scheduler_config.json`: how a diffusion model is trained and sampled, as other libraries say it.

A class of theirs is one or two samplers here. Every key of a class stands below with its default.
What a key means here stands in one table, `MEANINGS`; a value that has no meaning here is refused
by name, because it would change the pictures. Keys of other classes are ignored, as there.
"""

import math
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from minifm.atomic import write_json
from minifm.diffusion.scheduler import COSINE, FLOW, Scheduler
from minifm.errors import ConfigError, FormatError, UserError
from minifm.hub.arrays import opened, parse_json
from minifm.hub.pipelines import INDEX, add_scheduler

FILE, FOLDER, CLASS = "scheduler_config.json", "scheduler", "_class_name"
LONGEST = 10_000_000        # bytes: room for a million variances


def has_scheduler(directory):
    """Whether a directory says how its model is sampled."""
    return any((Path(directory) / folder / FILE).is_file() for folder in ("", FOLDER))


def load_scheduler(directory, class_name=None, *, instead=None):
    """The Scheduler of a model's directory (which has it in scheduler/), or of that folder itself.

    class_name   read the file as if it were of this class: the classes share their keys, and so any
                 sampler can be had for a model
    instead      the sampler of a file whose class has none here

    Raises FormatError, naming file and key, for what cannot be read or is not known here.
    """
    file = Path(directory) / FILE
    if not file.exists():
        file = Path(directory) / FOLDER / FILE
    with opened(file) as (stream, length):
        if length > LONGEST:
            raise FormatError(file, None, f"{length} bytes are no configuration")
        stored = parse_json(stream.read(), file)
    try:
        if instead not in (None, "flow_euler") and stored.get(CLASS) not in LAYOUTS \
                and "beta_schedule" in stored:          # else it is of another process
            class_name = _class_of(instead)
        return scheduler_from_hub(stored | ({} if class_name is None else {CLASS: class_name}))
    except ConfigError as problem:
        raise FormatError(file, None, str(problem)) from problem


def save_scheduler(scheduler, directory):
    """Write scheduler_config.json into an existing directory, or where it holds parts that work as
    one (pipelines.py), into its folder scheduler/; raises UserError where there is none or the disk
    refuses, ConfigError for settings that no class of the ecosystem has."""
    directory, described = Path(directory), scheduler_to_hub(scheduler)
    if not directory.is_dir():
        raise UserError(f"{directory}: expected a directory that exists")
    if (directory / INDEX).exists():
        add_scheduler(directory, described[CLASS])
        directory /= FOLDER
        directory.mkdir(exist_ok=True)
    write_json(described, directory / FILE)


# -- the classes, and what their keys mean ---------------------------------------------------------


class Layout(NamedTuple):
    """One class: its samplers here, and all its keys with their defaults."""

    samplers: tuple
    keys: dict


_BETAS = {"num_train_timesteps": 1000, "beta_start": 0.0001, "beta_end": 0.02,
          "beta_schedule": "linear", "trained_betas": None, "prediction_type": "epsilon",
          "timestep_spacing": "linspace", "steps_offset": 0}
_CLIP = {"clip_sample": True, "clip_sample_range": 1.0}
_THRESHOLD = {"thresholding": False, "dynamic_thresholding_ratio": 0.995, "sample_max_value": 1.0}
_SIGMAS = {"use_karras_sigmas": False, "use_exponential_sigmas": False, "use_beta_sigmas": False}
_ZERO, _FINAL = {"rescale_betas_zero_snr": False}, {"final_sigmas_type": "zero"}
LAYOUTS = {
    "DDPMScheduler": Layout(("ddpm",), {
        **_BETAS, **_CLIP, **_THRESHOLD, **_ZERO, "timestep_spacing": "leading",
        "variance_type": "fixed_small"}),
    "DDIMScheduler": Layout(("ddim",), {
        **_BETAS, **_CLIP, **_THRESHOLD, **_ZERO, "timestep_spacing": "leading",
        "set_alpha_to_one": True}),
    "EulerDiscreteScheduler": Layout(("euler",), {
        **_BETAS, **_SIGMAS, **_ZERO, **_FINAL, "interpolation_type": "linear", "sigma_min": None,
        "sigma_max": None, "timestep_type": "discrete"}),
    "HeunDiscreteScheduler": Layout(("heun",), {
        **_BETAS, **_SIGMAS, **_CLIP, "clip_sample": False, "beta_start": 0.00085,
        "beta_end": 0.012}),
    "DPMSolverMultistepScheduler": Layout(("dpm_2m", "dpm_2m_sde"), {
        **_BETAS, **_SIGMAS, **_THRESHOLD, **_ZERO, **_FINAL, "solver_order": 2,
        "algorithm_type": "dpmsolver++", "solver_type": "midpoint", "lower_order_final": True,
        "euler_at_final": False, "use_lu_lambdas": False, "use_flow_sigmas": False,
        "flow_shift": 1.0, "lambda_min_clipped": -math.inf, "variance_type": None,
        "use_dynamic_shifting": False, "time_shift_type": "exponential"}),
    "FlowMatchEulerDiscreteScheduler": Layout(("flow_euler",), {
        "num_train_timesteps": 1000, "shift": 1.0, "use_dynamic_shifting": False,
        "base_shift": 0.5, "max_shift": 1.15, "base_image_seq_len": 256,
        "max_image_seq_len": 4096, "invert_sigmas": False, "shift_terminal": None, **_SIGMAS,
        "time_shift_type": "exponential", "stochastic_sampling": False}),
}
# {key: (our setting, {its value: ours}, or None where it is the value)}
MEANINGS = {
    "num_train_timesteps": ("steps", None), "beta_start": ("beta_start", None),
    "beta_end": ("beta_end", None), "steps_offset": ("offset", None), "shift": ("shift", None),
    "rescale_betas_zero_snr": ("zero_terminal", None),
    "lower_order_final": ("first_order_end", None),
    "euler_at_final": ("first_order_always_ends", None),
    "beta_schedule": ("noise", {"linear": "linear", "scaled_linear": "scaled_linear",
                                "squaredcos_cap_v2": COSINE, "sigmoid": "sigmoid"}),
    "prediction_type": ("objective", {"epsilon": "epsilon", "sample": "x0", "v_prediction": "v"}),
    "timestep_spacing": ("spacing", {n: n for n in ("leading", "trailing", "linspace")}),
    "variance_type": ("variance", {"fixed_small": "small", "fixed_large": "large"}),
    "algorithm_type": ("sampler", {"dpmsolver++": "dpm_2m", "sde-dpmsolver++": "dpm_2m_sde"}),
    "final_sigmas_type": ("final", {"zero": "zero", "sigma_min": "smallest"}),
    "set_alpha_to_one": ("final", {True: "zero", False: "smallest"}),
}
CURVES = {"use_karras_sigmas": "karras", "use_exponential_sigmas": "exponential"}
# Keys that mean something only beside others, which are refused or are read with them.
BESIDE = ("trained_betas", "clip_sample", "clip_sample_range", "thresholding",
          "dynamic_thresholding_ratio", "sample_max_value", "base_shift", "max_shift",
          "base_image_seq_len", "max_image_seq_len", "flow_shift", "time_shift_type")


def scheduler_from_hub(stored):
    """The Scheduler that the object of a `scheduler_config.json` describes; raises ConfigError,
    naming the key."""
    name = stored.get(CLASS)
    if name not in LAYOUTS:
        raise ConfigError(f"{CLASS}: expected one of {', '.join(LAYOUTS)}, got {name!r:.80}, whose "
                          "sampler is not here; say which to use (minifm sample --sampler)")
    keys = LAYOUTS[name].keys
    values = keys | {key: stored[key] for key in keys if key in stored}
    settings = {"sampler": LAYOUTS[name].samplers[0]}
    for key, value in values.items():
        if key in MEANINGS and not (value is None and keys[key] is None):
            ours, meaning = MEANINGS[key]
            settings[ours] = value if meaning is None else _meaning(key, value, meaning)
        elif key in CURVES:
            if _meaning(key, value, {True: True, False: False}):
                settings["curve"] = CURVES[key]
        elif key not in BESIDE and value != keys[key]:
            raise ConfigError(f"{key}: {value!r:.80} is not supported, only {keys[key]!r}")
    if name == "FlowMatchEulerDiscreteScheduler":
        return Scheduler(**settings, noise=FLOW, objective="flow", spacing="trailing")
    return Scheduler(**settings, betas=_variances(values["trained_betas"]), **_corrections(values))


def _class_of(sampler):
    return next(name for name, layout in LAYOUTS.items() if sampler in layout.samplers)


def _meaning(key, value, meanings):
    for theirs, ours in meanings.items():
        if type(value) is type(theirs) and value == theirs:
            return ours
    raise ConfigError(f"{key}: expected one of {', '.join(map(str, meanings))}, got {value!r:.80}")


def _variances(betas):
    if betas is None:
        return None
    if not (isinstance(betas, list) and all(
            isinstance(b, (int, float)) and not isinstance(b, bool) for b in betas)):
        raise ConfigError("trained_betas: expected a list of numbers")
    return tuple(betas)


def _corrections(values):
    """What the estimate of the data is corrected by."""
    if values.get("thresholding"):
        return {"quantile": values["dynamic_thresholding_ratio"],
                "quantile_limit": values["sample_max_value"]}
    return {"limit": values["clip_sample_range"]} if values.get("clip_sample") else {}


def scheduler_to_hub(scheduler):
    """The object of a `scheduler_config.json` that describes a Scheduler to other libraries; raises
    ConfigError for settings that their class does not have."""
    name = _class_of(scheduler.sampler)
    described = {CLASS: name} | LAYOUTS[name].keys
    for key in described.keys() & MEANINGS.keys():
        ours, meaning = MEANINGS[key]
        value = getattr(scheduler, ours)
        if meaning is None:
            described[key] = value
        elif not (key == "variance_type" and described[key] is None):
            described[key] = next(t for t, o in meaning.items() if o == value) \
                if value in meaning.values() else value
    for key in described.keys() & CURVES.keys():
        described[key] = scheduler.curve == CURVES[key]
    if "trained_betas" in described and scheduler.betas is not None:
        described["trained_betas"] = list(scheduler.betas)
    if "clip_sample" in described:
        described["clip_sample"] = scheduler.limit is not None and scheduler.quantile is None
        if scheduler.limit is not None:
            described["clip_sample_range"] = scheduler.limit
    if "thresholding" in described and scheduler.quantile is not None:
        described |= {"thresholding": True, "dynamic_thresholding_ratio": scheduler.quantile,
                      "sample_max_value": scheduler.quantile_limit}
    if scheduler_from_hub(described) != replace(scheduler, constant_step=False):
        raise ConfigError(f"{FILE}: {name} cannot say all of {scheduler}")
    return described
