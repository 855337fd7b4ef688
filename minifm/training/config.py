"""Everything that decides how a run trains, in one frozen dataclass.

The command line makes a flag of each field.
"""

from dataclasses import dataclass

from minifm.config import check, setting
from minifm.errors import ConfigError
from minifm.ops.precision import PRECISIONS
from minifm.training.lr import WarmupCosine, WarmupStableDecay

LENGTH = 512            # tokens of a row where the model has no context (Raffel et al. 2020)


@dataclass(frozen=True)
class TrainConfig:
    """How a run trains; raises ConfigError naming the field that makes no sense."""

    steps: int = setting(1000, "updates of the weights in the whole run", least=1)
    batch: int = setting(12, "sequences in one step", least=1)
    accumulate: int = setting(
        1, "pieces in which a step's batch is computed: more pieces need less memory and give the "
        "same result, up to rounding (but other noise, with dropout)", least=1)
    precision: str = setting(
        "fp32", "of matrix products in training: fp32, or bf16, which rounds their operands and "
        "pays where the processor multiplies bf16 (evaluation stays in fp32)", choices=PRECISIONS)
    recompute: bool = setting(
        False, "activation checkpointing: keep only what enters each block and compute its inside "
        "again in the backward pass; the same result, bit for bit, in less memory and more time",
        free=True)
    seed: int = setting(0, "of the initial weights, the order of the data, and dropout", least=0)

    learning_rate: float = setting(1e-3, "at its peak", least=0)
    final_learning_rate: float | None = setting(
        None, "at the end of the run (default: a tenth of the peak)", least=0)
    warmup: int | None = setting(
        None, "steps over which the learning rate rises (default: a tenth of the run, at most "
        "100)", least=0)
    decay: int = setting(
        0, "0: the learning rate falls along a cosine after the warm-up; n: it stays at its peak "
        "and falls in a line over the last n steps", least=0)

    beta1: float = setting(0.9, "decay of AdamW's mean of gradients", least=0, below=1)
    beta2: float = setting(0.95, "decay of AdamW's mean of squared gradients", least=0, below=1)
    epsilon: float = setting(1e-8, "AdamW's guard against division by zero", least=1e-30)
    weight_decay: float = setting(0.1, "of matrices; biases and gains do not decay", least=0)
    clip: float = setting(
        1.0, "largest norm of the gradient of all weights together; 0: no limit", least=0)
    average: float = setting(
        0.0, "decay of a moving average of the weights, which is then what is evaluated and saved "
        "as the model; 0: none", least=0, below=1)

    evaluate_every: int = setting(
        250, "steps between evaluations on the held-out data; 0: never", least=0, free=True)
    evaluate_batches: int = setting(20, "held-out batches in one evaluation", least=1)
    patience: int = setting(
        0, "evaluations in a row that are no better than the best so far, after which the run "
        "ends; 0: it goes on to its last step", least=0, free=True)
    save_every: int = setting(500, "steps between checkpoints; 0: only the last", least=0,
                              free=True)
    keep: int = setting(1, "checkpoints kept besides the best", least=1, free=True)
    log_every: int = setting(1, "steps between lines of metrics.jsonl", least=1, free=True)
    skip_limit: int = setting(
        5, "steps in a row with a non-finite loss or gradient that are skipped before the run "
        "stops", least=0, free=True)

    def __post_init__(self):
        check(self)
        if self.warmup is None:
            object.__setattr__(self, "warmup", min(100, self.steps // 10))
        if self.final_learning_rate is None:
            object.__setattr__(self, "final_learning_rate", self.learning_rate / 10)
        if self.accumulate > self.batch:
            raise ConfigError(f"accumulate: {self.accumulate} pieces of a batch of {self.batch}")
        if self.warmup + self.decay > self.steps:
            raise ConfigError(f"warmup: {self.warmup} steps of warm-up and {self.decay} of decay "
                              f"do not fit {self.steps} steps")
        if self.final_learning_rate > self.learning_rate:
            raise ConfigError(f"final_learning_rate: expected at most the peak "
                              f"{self.learning_rate}, got {self.final_learning_rate}")

    @property
    def schedule(self):
        """The learning rate as a function of the step."""
        if self.decay:
            return WarmupStableDecay(self.learning_rate, self.warmup, self.steps, self.decay,
                                     self.final_learning_rate)
        return WarmupCosine(self.learning_rate, self.warmup, self.steps,
                            self.final_learning_rate)


def row_length(length, config):
    """Tokens of a row: as asked for, or, for None, the most that a model of this configuration
    looks at. Raises ConfigError for more than that."""
    if length is not None and length > (config.context or length):
        raise ConfigError(f"length: expected at most the model's context of {config.context}, "
                          f"got {length}")
    return length or config.context or LENGTH
