"""A schedule, what the network predicts, and a sampler with its levels, in one configuration: what
trains and samples a diffusion model, and what the ecosystem's `scheduler_config.json` says.

    scheduler = Scheduler(sampler="dpm_2m", noise="scaled_linear", objective="v")
    found = scheduler.levels(30)
    x = scheduler.start(found, (4, 3, 32, 32), rng)
    x = scheduler.sample(model, x, found, rng=rng)

hub/schedulers.py reads and writes those files. The levels here are those that the ecosystem's
classes visit: each of them understands the names of spacings a little differently.
"""

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from minifm.config import check, setting
from minifm.diffusion import samplers, schedule
from minifm.diffusion.levels import BY_RATIO, BY_TIME, FINAL, check_steps, checked
from minifm.diffusion.levels import times as times_of
from minifm.diffusion.objectives import OBJECTIVES, Denoiser, clipped, thresholded
from minifm.diffusion.schedule import Flow, Level, shifted
from minifm.errors import ConfigError
from minifm.tensor import Tensor

NOISES = {"linear": schedule.linear, "scaled_linear": schedule.scaled_linear,
          "sigmoid": schedule.sigmoid_betas}
COSINE, FLOW = "cosine", "flow"
# σ/α at a level of noise alone, for samplers that divide by α elsewhere in the field: ᾱ = 2^-24.
ALMOST_ALL = math.sqrt(2.0**24 - 1)


@dataclass(frozen=True)
class Scheduler:
    """What a diffusion model is trained and sampled with."""

    sampler: str = setting("ddim", "how noise becomes data", choices=tuple(samplers.SAMPLERS))
    noise: str = setting("linear", "how noise grows", choices=(*NOISES, COSINE, FLOW))
    steps: int = setting(1000, "times that the network is trained at", least=2,
                         most=1_000_000)
    beta_start: float = setting(1e-4, "variance that the first of them adds", above=0, below=1)
    beta_end: float = setting(0.02, "variance that the last of them adds", above=0, below=1)
    betas: tuple | None = None      # all variances, in place of noise, beta_start and beta_end
    objective: str = setting("epsilon", "what the network predicts", choices=OBJECTIVES)
    zero_terminal: bool = setting(False, "the last time is noise alone")
    spacing: str = setting("leading", "which times are visited", choices=tuple(BY_TIME))
    offset: int = setting(0, "leading: added to every time visited", least=0)
    curve: str = setting("time", "what goes from level to level in equal steps: the time, or a "
                         "function of σ/α", choices=("time", *BY_RATIO))
    final: str = setting("zero", "how much noise the last step leaves", choices=FINAL)
    limit: float | None = setting(None, "clip the estimate of the data to ± this", above=0)
    quantile: float | None = setting(
        None, "dynamic thresholding: clip to this quantile of the estimate of the data", above=0,
        most=1)
    quantile_limit: float = setting(1.0, "dynamic thresholding: the largest value to clip to",
                                    above=0)
    variance: str = setting("small", "ddpm: which variance is drawn", choices=("small", "large"))
    shift: float = setting(1.0, "flow: how far the levels are moved towards noise", above=0)
    first_order_end: bool = setting(
        True, "dpm_2m: of less than 15 steps, the last is of first order")
    first_order_always_ends: bool = setting(False, "dpm_2m: the last step is of first order")
    constant_step: bool = setting(
        False, "ddim: step by steps // n times, as some libraries do, instead of to the next level")

    def __post_init__(self):
        check(self)
        if (self.sampler == "flow_euler") != (self.noise == FLOW):
            raise ConfigError(f"noise: {self.noise!r} does not go with the sampler "
                              f"{self.sampler!r}; flow and flow_euler go together")
        if self.noise != FLOW and not self.beta_start < self.beta_end:
            raise ConfigError(f"beta_end: expected more than beta_start, {self.beta_start}, got "
                              f"{self.beta_end}")

    @cached_property
    def schedule(self):
        """The Schedule: a Table, or Flow."""
        if self.noise == FLOW:
            return Flow(float(self.steps))
        if self.betas is not None:
            table = schedule.from_betas(self.betas)
        elif self.noise == COSINE:
            table = schedule.tabulated(schedule.Cosine(), self.steps)
        else:
            table = NOISES[self.noise](self.steps, self.beta_start, self.beta_end)
        return schedule.zero_terminal(table) if self.zero_terminal else table

    # -- sampling ----------------------------------------------------------------------------------

    def levels(self, n):
        """[Level] of length n + 1 that the sampler visits in n steps."""
        check_steps(self.schedule, n)
        if self.noise == FLOW:
            found = self._flow_levels(n)
        elif self.curve != "time":
            found = self._ratio_levels(n)
        elif self._between:
            found = [_on_a_line(self.schedule, t) for t in self._times(n)]
        else:
            found = [self.schedule.at(t) for t in self._times(n)]
        if found[0].alpha == 0 and self.sampler in ("euler", "heun", "dpm_2m", "dpm_2m_sde"):
            found[0] = Level(found[0].time, *self.schedule.scales(ALMOST_ALL))
        end = self.schedule.clean if self.final == "zero" else self.schedule.at(self.schedule.least)
        return checked([*found, end])

    def start(self, levels, shape, rng, dtype=np.float32):
        """Noise to start from, [B, ...], of the size that it has at the first level."""
        x = samplers.starting_noise(levels, shape, rng, dtype)
        if self.sampler in ("euler", "heun") and self.spacing != "leading":
            return x
        return x * (1 / float(levels[0].sigma))         # of variance 1, as the rest of the field

    def denoiser(self, model):
        """model(x, t) -> prediction, as samplers take it, with the corrections of the settings."""
        correct = None
        if self.quantile is not None:
            correct = thresholded(self.quantile, self.quantile_limit)
        elif self.limit is not None:
            correct = clipped(self.limit)
        return Denoiser(model, self.objective, correct=correct,
                        keep_noise=self.sampler == "ddim")

    def sample(self, model, x, levels, *, rng=None, watch=None, around=None, **options):
        """x at the last level, a Tensor; model is a function (x, t) -> prediction, and `options`
        are the sampler's own, such as eta of ddim and churn of euler and heun. `around` is None, or
        makes of the denoiser another, as guidance.KnownPart."""
        if self.sampler == "ddpm":
            options = {"variance": self.variance} | options
        if self.sampler in ("dpm_2m", "dpm_2m_sde"):
            options = {"first_order_end": self.first_order_always_ends or
                       self.first_order_end and len(levels) <= 15} | options
        if self.sampler == "ddim" and self.constant_step:
            options = {"landing": self._landing(levels)} | options
        if self.sampler not in ("dpm_2m", "flow_euler"):        # which draw nothing
            options["rng"] = rng
        sampler, denoiser = samplers.SAMPLERS[self.sampler], self.denoiser(model)
        denoiser = denoiser if around is None else around(denoiser)
        return sampler(denoiser, Tensor(x), levels, watch=watch, **options)

    # -- which levels ------------------------------------------------------------------------------

    @property
    def _between(self):
        """Whether the times visited lie between those of the table."""
        return self.sampler in ("euler", "heun") and self.spacing == "linspace"

    def _times(self, n):
        table, offset = self.schedule, self.offset if self.spacing == "leading" else 0
        if self.sampler in ("dpm_2m", "dpm_2m_sde") and self.spacing != "trailing":
            return times_of(table, n + 1, self.spacing, offset)[:-1]      # never time 0
        if self._between:
            return np.linspace(0, table.greatest, n)[::-1]
        return times_of(table, n, self.spacing, offset)

    def _ratio_levels(self, n):
        """Between the ends of the table, at whole times; of euler and heun, between the levels that
        they would visit else, at times in between."""
        table = self.schedule
        if self.sampler in ("euler", "heun"):
            times, told = self._times(n), float
            least, greatest = (_on_a_line(table, t).ratio for t in (times[-1], times[0]))
        else:
            told = np.round if self.curve == "karras" and self.noise != COSINE else np.floor
            least, greatest = (table.at(t).ratio for t in (table.least, table.greatest))
        found = BY_RATIO[self.curve](least, greatest, n)
        return [Level(told(table.time_of(r)), *table.scales(r)) for r in found]

    def _flow_levels(self, n):
        """σ in equal steps from 1 to the smallest that training visits, which is shifted already;
        and then all shifted."""
        least = shifted(1 / self.steps, self.shift)
        sigmas = shifted(np.linspace(1, least, n), self.shift)
        if self.curve != "time":
            sigmas = BY_RATIO[self.curve](sigmas[-1], sigmas[0], n)
        return [self.schedule.at(self.schedule.scale * min(sigma, 1.0)) for sigma in sigmas]

    def _landing(self, levels):
        """Where ddim lands that steps by a constant number of times."""
        step = self.schedule.steps // (len(levels) - 1)
        return [levels[-1] if level.time < step else self.schedule.at(level.time - step)
                for level in levels[:-1]]


def _on_a_line(table, t):
    """The Level between two of a table where σ/α is on a line between theirs."""
    low = min(math.floor(t), table.steps - 2)
    a, b = table.ratios[low : low + 2]
    return Level(t, *table.scales(a + (t - low) * (b - a))) if t != low else table.at(t)

