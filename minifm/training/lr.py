"""Learning-rate schedules: a frozen dataclass that is called with the step, counted from 0."""

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class WarmupCosine:
    """Up in a line over `warmup` steps, then down to `final` along half a cosine.

    The peak is reached in step `warmup`, `final` with step `steps` (Loshchilov & Hutter 2017,
    without restarts). Beyond `steps` it stays at `final`.
    """

    peak: float
    warmup: int
    steps: int
    final: float = 0.0

    def __call__(self, step):
        if step < self.warmup:
            return self.peak * (step + 1) / (self.warmup + 1)
        progress = min(1.0, (step - self.warmup) / max(1, self.steps - self.warmup))
        return self.final + (self.peak - self.final) * (0.5 + 0.5 * math.cos(math.pi * progress))


@dataclass(frozen=True)
class WarmupStableDecay:
    """Up in a line over `warmup` steps, level, then down in a line over the last `decay` steps.

    The level part does not depend on `steps`, so a run can be prolonged from any checkpoint made
    before the decay (Hu et al. 2024, MiniCPM; Hägele et al. 2024).
    """

    peak: float
    warmup: int
    steps: int
    decay: int
    final: float = 0.0

    def __call__(self, step):
        if step < self.warmup:
            return self.peak * (step + 1) / (self.warmup + 1)
        progress = (step - (self.steps - self.decay)) / max(1, self.decay)
        return self.peak + (self.final - self.peak) * min(1.0, max(0.0, progress))
