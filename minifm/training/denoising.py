"""From examples to a diffusion run: Examples → network and schedule → Trainer. Here is what a step
learns, and how a run is made ready; networks.py makes the model, told.py says what it is told.

What a step learns (which examples, at which times, under which noise, which of them without class
or caption) is a function of the seed and the step's number, and so is what it is evaluated on: a
resumed run goes on bitwise, and two evaluations differ by the network alone.

    runs/NAME/
      run.json          the settings it was started with, and what they became
      samples/          at each evaluation, what the network makes of the same noise
      judge/            where --judge asks for it, what says how good that is; and quality.png
      step-…/  last  best  metrics.jsonl  loss.png      (training/checkpoint.py)
"""

from dataclasses import asdict, dataclass

import numpy as np

from minifm import media, ops
from minifm.config import check, setting
from minifm.diffusion import objectives
from minifm.diffusion.scheduler import COSINE, FLOW, NOISES, Scheduler
from minifm.errors import ConfigError
from minifm.generation.condition import NOTHING
from minifm.generation.diffusion import FILE, Recipe
from minifm.media import Examples, MediaConfig
from minifm.models import DiT, UNet, architecture_of, network_of
from minifm.rng import Rng
from minifm.training.captioned import CaptionConfig
from minifm.training.config import TrainConfig
from minifm.training.decoder import DecoderConfig, there_already
from minifm.training.judging import JudgeConfig
from minifm.training.latents import LatentConfig, in_latents
from minifm.training.networks import Design, model_of, recipe_of
from minifm.training.objectives import Objective
from minifm.training.rounds import Rounds
from minifm.training.run import begin, write_run
from minifm.training.told import SAMPLES, Sketches, asks_of, asks_shown, told_of
from minifm.training.trainer import Trainer

# Settings of a network that follow from the examples.
NOT_CHOSEN = {"inputs", "outputs", "size", "classes", "memory_width", "vector_width", "depth",
              "linear_projection"}
WEIGHTINGS = {"uniform": objectives.uniform, "min-snr": objectives.min_snr(),
              "truncated-snr": objectives.truncated_snr, "edm": objectives.edm(),
              "sigmoid": objectives.sigmoid()}


@dataclass(frozen=True)
class StepsConfig:
    """What a step draws: at which times, with what left out; and how much each level counts."""

    weighting: str = setting("uniform", "how much each noise level counts", choices=WEIGHTINGS)
    times: str = setting(
        "uniform", "which are learnt at: all alike, or lognormal, more in the middle",
        choices=("uniform", "lognormal"))
    drop: float = setting(0.1, "fraction of the labels or captions left out in training, for "
                          "classifier-free guidance", least=0, below=1)
    flip: bool = setting(False, "mirror every other picture, left and right")

    __post_init__ = check

    def require_sides(self, kind):
        """Raise ConfigError where examples of this Kind are to be mirrored, and have no sides."""
        if self.flip and kind not in (media.PICTURE, media.VIDEO):
            raise ConfigError(f"flip: a {kind.name} has no left and right; leave it out")


@dataclass(frozen=True)
class NoiseConfig(StepsConfig):
    """What is learnt of noise."""

    schedule: str = setting("cosine", "how noise grows", choices=(*NOISES, COSINE, FLOW))
    predict: str | None = setting(
        None, "what the network predicts (default: v; flow with the schedule flow)",
        choices=objectives.OBJECTIVES)
    noise_steps: int = setting(1000, "times of the schedule; the network is told 0 … this", least=2,
                               most=1_000_000)
    zero_terminal: bool = setting(
        False, "the last time is noise alone (zero terminal SNR); predict v or x0")
    labels: bool = setting(True, "learn the classes, where the data have some")

    def __post_init__(self):
        check(self)
        if self.predict is None:
            object.__setattr__(self, "predict", "flow" if self.schedule == FLOW else "v")
        if (self.schedule == FLOW) != (self.predict == "flow"):
            raise ConfigError(f"predict: {self.predict} does not go with the schedule "
                              f"{self.schedule}; flow goes with flow alone")
        if self.zero_terminal and (self.schedule == FLOW or self.predict == "epsilon"):
            raise ConfigError("zero_terminal: at noise alone, only v and x0 of the other schedules "
                              f"have something to learn, not {self.predict} of {self.schedule}")

    @property
    def scheduler(self):
        """The Scheduler that trains and samples. The estimate of the data is clipped to ± 1 only
        where errors of the noise are much enlarged in it, at levels of little signal."""
        if self.schedule == FLOW:
            return Scheduler(sampler="flow_euler", noise=FLOW, objective="flow", spacing="trailing",
                             steps=self.noise_steps)
        return Scheduler(noise=self.schedule, objective=self.predict, steps=self.noise_steps,
                         zero_terminal=self.zero_terminal, spacing="trailing",
                         limit=1.0 if self.predict == "epsilon" else None)


@dataclass(frozen=True)
class DenoisingTrainConfig(TrainConfig):
    """TrainConfig, with what suits examples in place of text."""

    steps: int = setting(2000, "updates of the weights in the whole run", least=1)
    batch: int = setting(64, "examples in one step", least=1)
    weight_decay: float = setting(0.01, "of matrices; biases and gains do not decay", least=0)
    beta2: float = setting(0.99, "decay of AdamW's mean of squared gradients", least=0, below=1)
    average: float = setting(
        0.995, "decay of a moving average of the weights, which is then what is evaluated and "
        "saved as the model; 0: none", least=0, below=1)


@dataclass(frozen=True)
class ExamplesConfig(MediaConfig):
    """What a run learns from, and how it becomes arrays of one shape."""

    data: str = setting("digits", f"what to learn from: {', '.join(media.BUILT_IN)}, or "
                        f"{media.sources.PATHS}")


# -- what is learnt --------------------------------------------------------------------------------


class NoiseObjective(Objective):
    """Undo noise: the batch is (x0 [B, C, *space], noise [B, C, *space], times [B]), and arrays
    [B, …] of what the network is told of x0. The loss is the mean over examples of the squared
    error of what is predicted, as the weighting weighs it (diffusion/objectives.py)."""

    name, unit, reads = "denoising", "number", "example"
    scale = "squared error"

    def __init__(self, config, recompute=False, keywords=(), scheduler=None):
        """`config` is a StepsConfig; `recompute` as of TrainConfig, for a DiT; by these `keywords`
        the network is told what it is told. The Scheduler has the noise and what is predicted
        (default: that of `config`, a NoiseConfig)."""
        self.config, self.recompute, self.keywords = config, recompute, keywords
        self.scheduler = scheduler or config.scheduler
        self.weighting = WEIGHTINGS[config.weighting]

    def loss(self, model, batch, *, denominator, rng):
        """Σ losses of the examples / denominator, a scalar Tensor; `rng` turns dropout on."""
        x0, noise, times, *told = batch
        condition = {"rng": rng} | dict(zip(self.keywords, told, strict=True)) \
            | ({"recompute": True} if self.recompute else {})
        each = objectives.losses(
            model, x0, schedule=self.scheduler.schedule, objective=self.scheduler.objective,
            times=times, noise=noise, weighting=self.weighting, condition=condition)
        return ops.sum(each) / denominator

    def count(self, batch):
        """How many examples."""
        return len(batch[0])

    tokens = count              # what throughput is measured in

    def fullest(self, batch):
        return batch            # all of one shape take as much memory

    def flops(self, model, batch):
        space, config = batch[0].shape[2:], model.config
        size = (space,) if isinstance(network_of(model), DiT) else space
        told = dict(zip(self.keywords, batch[3:]))
        lengths = {name: told[name].shape[1] for name in ("ids", "memory") if name in told}
        if isinstance(model, UNet) and lengths:         # which reads no captions, but looks
            lengths = {"memory_length": lengths["memory"]}
        return len(batch[0]) * config.flops(*size, training=True, **lengths)


class NoisyBatches:
    """`batch(i)` of some of the Examples, at places [N] among them, with noise and times that
    follow from `rng` and i, and what the network is told of them. A subclass says which places
    batch i has. `config` and `scheduler` are as of the NoiseObjective.

    table        the Table of what there is to be told of the examples, all of them
    description  {…} that names what is told
    """

    def __init__(self, examples, places, config, *, batch, rng, table, description,
                 scheduler=None):
        self.examples, self.places, self.config = examples, places, config
        self.rows, self.rng, self.table = batch, rng, table
        self.schedule = (scheduler or config.scheduler).schedule
        self.description = {
            "sha256": examples.description["sha256"], "examples": len(places), "rows": batch,
            "noise": asdict(config), **description}

    def made(self, places, rng, drop, flip):
        """The arrays of one batch; `drop` and `flip` are fractions."""
        B, x0 = len(places), self.examples.take(places)
        mirrored = rng.child("flip").host_uniform((B,)) < flip
        x0[mirrored] = x0[mirrored][..., ::-1]
        draw = objectives.uniform_times
        if self.config.times == "lognormal":
            draw = lognormal
        arrays = (x0, rng.child("noise").host_normal(x0.shape),
                  np.asarray(draw(self.schedule, B, rng.child("times")), np.float64))
        rows = self.table.rows[places]
        rows[rng.child("drop").host_uniform((B,)) < drop] = NOTHING
        return *arrays, *self.table.arrays(rows)


def lognormal(schedule, n, rng):
    """Times [n] at which log(σ/α) is N(0, 1); logit-normal times of Flow (Esser et al. 2024)."""
    return objectives.lognormal_times(schedule, n, rng, mean=0.0, deviation=1.0)


class TrainingExamples(NoisyBatches):
    """Rounds through all examples without end, each in another order."""

    def __init__(self, examples, places, config, *, batch, rng, **more):
        super().__init__(examples, places, config, batch=batch, rng=rng, **more)
        self.rounds = Rounds(places, batch, rng)

    def batch(self, step):
        return self.made(self.rounds.at(step), self.rng.child("step", step), self.config.drop,
                         0.5 * self.config.flip)


class HeldOutExamples(NoisyBatches):
    """All examples once, with all that is to be told of them, always under the same noise."""

    @property
    def count(self):
        return -(-len(self.places) // self.rows)

    def batch(self, i):
        return self.made(self.places[i * self.rows : (i + 1) * self.rows],
                         self.rng.child("held out", i), drop=0, flip=0)


# -- the run ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class PreparedDenoising:
    """A run that is ready to train, and the parts of which it is made."""

    trainer: Trainer
    examples: Examples
    recipe: Recipe


def prepare(directory, wanted, config, *, noise=NoiseConfig(), captions=CaptionConfig(),
            decoding=DecoderConfig(), latents=LatentConfig(), judging=JudgeConfig(), shape=None,
            arch="unet", initial=None, resume=False, force=False, ceiling=None, shown=True):
    """The run in `directory`, new or (`resume`) taken up at its newest checkpoint.

    wanted    an ExamplesConfig
    config    a TrainConfig;  noise  a NoiseConfig
    captions  a CaptionConfig;  decoding  a DecoderConfig;  latents  a LatentConfig
    judging   a JudgeConfig
    shape     {field: value} of the network's configuration; what the examples say is theirs
    arch      unet or dit
    initial   a model's directory or hub name to start from, in place of random weights
    ceiling, shown   as of training.pretrain.prepare

    Raises ConfigError or FormatError before anything is written, wherever it can.
    """
    directory, newest, say = begin(directory, (wanted.data,), resume, shown)
    examples = open_examples(wanted, say)
    embedder = decoding.embedder(there_already(newest, initial), arch, captions)
    captioned = embedder is None and captions.learns(examples, arch, say)
    recipe = recipe_of(examples, noise, captioned, embedder)
    noise.require_sides(recipe.kind)
    if noise.flip and embedder is not None:
        raise ConfigError("flip: the embedding of a picture is not that of the mirrored one; leave "
                          "it out")
    model = model_of(newest, initial, Design(examples, recipe, shape or {}, arch, config,
                                             captions if captioned else None, latents))
    learnt = in_latents(examples, model, say, flip=noise.flip)
    condition = recipe.condition(model)
    table, description = told_of(examples, condition, model, say), condition.description
    if captioned:
        description |= {"captions": asdict(captions)}
    if learnt is not examples:
        description |= {"latents": list(learnt.shape), "autoencoder": latents.latent}
    training, held_out = (
        kind(learnt, examples.parts[part], noise, batch=config.batch, table=table,
             description=description, rng=Rng(config.seed).child("denoising", part))
        for kind, part in ((TrainingExamples, "training"), (HeldOutExamples, "held_out")))
    shown_asks = asks_shown(examples, condition)
    sketches = Sketches(directory / SAMPLES, recipe, shown_asks, config.seed)
    curve = judging.curve(directory, examples, sketches, config.seed,
                          lambda places: asks_of(examples, places, condition))
    say("measuring the memory that a step takes")
    trainer = Trainer(
        model, training, config, directory=directory, held_out=held_out, companion=recipe,
        objective=NoiseObjective(noise, config.recompute, table.keywords), shown=shown,
        ceiling=ceiling, sketch=curve.sketch if curve else sketches,
        measure=curve and curve.measure, least=True)
    if curve:
        say("teaching a judge what the pictures are")
        curve.teach()
    if resume:
        trainer.resume(force=force)
    _write_run(directory, (wanted, noise, captions, decoding, latents, judging), trainer, examples,
               shown_asks if embedder is None else None)        # embeddings are long
    return PreparedDenoising(trainer, examples, recipe)


def open_examples(wanted, say):
    """The Examples of an ExamplesConfig, what is passed by on the way said by `say`; raises
    ConfigError for data that are not known."""
    return media.open(wanted.data, wanted, say=say)


def _write_run(directory, configs, trainer, examples, asked):
    arch = architecture_of(trainer.model)
    settings = {key: value for key, value in asdict(network_of(trainer.model).config).items()
                if key not in NOT_CHOSEN} | {"arch": arch}
    for config in (*configs, trainer.config):
        settings |= asdict(config)
    write_run(directory, "pretrain", settings, trainer, examples=examples.description,
              companion=FILE, shown=asked)
