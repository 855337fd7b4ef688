"""The noise levels that a sampler visits, from much noise to none: a list, spaced as one likes.

A sampler steps from each level to the next *in this list*, whatever the spacing; nothing is assumed
of the distances. The last level is usually that of clean data, at which no network is asked.

    trailing      equal steps of time, counted from the last time              Lin et al. 2023
    leading       equal steps of time, counted from the first (tables only)    Ho et al. 2020
    linspace      from the last time to the first, both included
    karras        equal steps of (σ/α)^(1/7)                                   Karras et al. 2022
    exponential   equal steps of log(σ/α), that is, of the log-SNR             Lu et al. 2022
"""

import numpy as np

from minifm.diffusion.schedule import Flow, shifted
from minifm.errors import ConfigError

FINAL = ("zero", "smallest")


def levels(schedule, steps, spacing="trailing", *, offset=0, shift=1.0, final="zero"):
    """[Level] of length steps + 1: `steps` at which the network is asked, and where the last step
    ends.

    offset   "leading": added to every time
    shift    of Flow: how far towards noise the levels are moved (schedule.shifted)
    final    "zero": the last step ends at clean data; "smallest": at the schedule's least noise

    Raises ConfigError for a spacing that the schedule does not allow, or that gives one time twice.
    """
    if final not in FINAL:
        raise ConfigError(f"final: expected one of {', '.join(FINAL)}, got {final!r}")
    if shift != 1 and not isinstance(schedule, Flow):
        raise ConfigError(f"shift: only the levels of Flow are shifted, not of "
                          f"{type(schedule).__name__}")
    if spacing in BY_RATIO:
        found = [schedule.at_ratio(r) for r in ratios(schedule, steps, spacing)]
    else:
        found = [schedule.at(t) for t in times(schedule, steps, spacing, offset)]
    if shift != 1:
        found = [schedule.at(schedule.scale * shifted(level.sigma, shift)) for level in found]
    end = schedule.clean if final == "zero" else schedule.at(schedule.least)
    return checked([*found, end])


def checked(found):
    """The list of levels itself, once it is known that noise becomes less from each to the next."""
    if len(found) < 2:
        raise ConfigError(f"levels: a sampler needs at least two, got {len(found)}")
    for i, (now, after) in enumerate(zip(found, found[1:])):
        if not after.ratio < now.ratio:
            raise ConfigError(f"levels: noise must become less from each to the next; number {i} "
                              f"has σ/α {now.ratio:.6g}, number {i + 1} has {after.ratio:.6g}")
    return found


def times(schedule, steps, spacing="trailing", offset=0):
    """The times at which the network is asked [steps], descending; whole numbers for a table."""
    if spacing not in BY_TIME:
        raise ConfigError(f"spacing: expected one of {', '.join((*BY_TIME, *BY_RATIO))}, got "
                          f"{spacing!r}")
    check_steps(schedule, steps)
    if offset and spacing != "leading":
        raise ConfigError(f"offset: only 'leading' times have one, not {spacing!r}")
    return BY_TIME[spacing](schedule, steps) + offset


def ratios(schedule, steps, spacing):
    """The σ/α at which the network is asked [steps], descending."""
    check_steps(schedule, steps)
    least, greatest = (schedule.at(t).ratio for t in (schedule.least, schedule.greatest))
    if not (0 < least and greatest < np.inf):
        raise ConfigError(f"spacing: {spacing!r} needs levels with both signal and noise in them, "
                          f"{type(schedule).__name__} ends at σ/α = {least:.3g} and {greatest:.3g}")
    return BY_RATIO[spacing](least, greatest, steps)


def check_steps(schedule, steps):
    """Raise ConfigError unless a schedule has so many levels to visit."""
    most = schedule.steps
    if not (isinstance(steps, (int, np.integer)) and 1 <= steps) or (most and steps > most):
        there = f"1 … {most}, as many as the schedule has" if most else "at least 1"
        raise ConfigError(f"steps: expected {there}, got {steps}")


def trailing(schedule, steps):
    if schedule.steps is None:
        return schedule.greatest * (1 - np.arange(steps) / steps)
    return np.round(schedule.steps - np.arange(steps) * (schedule.steps / steps)).astype(int) - 1


def leading(schedule, steps):
    if schedule.steps is None:
        raise ConfigError("spacing: 'leading' would ask the network for clean data, where time is "
                          "continuous; 'trailing' does not")
    return np.arange(steps)[::-1] * (schedule.steps // steps)


def linspace(schedule, steps):
    found = np.linspace(schedule.least, schedule.greatest, steps)[::-1]
    return found if schedule.steps is None else np.round(found).astype(int)


def karras(least, greatest, steps, rho=7.0):
    """Equal steps of ratio^(1/ρ), so that they are finest where noise is least (equation 5)."""
    ramp = np.linspace(0, 1, steps)
    return (greatest ** (1 / rho) + ramp * (least ** (1 / rho) - greatest ** (1 / rho))) ** rho


def exponential(least, greatest, steps):
    return np.exp(np.linspace(np.log(greatest), np.log(least), steps))


BY_TIME = {"trailing": trailing, "leading": leading, "linspace": linspace}
BY_RATIO = {"karras": karras, "exponential": exponential}
