"""From pictures with captions, and a CLIP, to a prior: what CLIP makes of both is computed once;
then the embeddings of pictures are what noise is put on and taken from (Ramesh et al. 2022, section
2.2).

    runs/NAME/
      run.json          the settings it was started with, and what they became
      step-…/           the prior, its scheduler, and the CLIP in clip/
      last  best  metrics.jsonl  loss.png       (training/checkpoint.py)
"""

import hashlib
from dataclasses import asdict, dataclass

import numpy as np

from minifm.config import check, setting
from minifm.errors import ConfigError
from minifm.generation.clip import Embedder, Texts, directions
from minifm.generation.condition import table_of
from minifm.generation.prior import PriorPipeline, PriorRecipe
from minifm.hub import load_model, resolve
from minifm.media import Examples
from minifm.models import Prior, PriorConfig
from minifm.rng import Rng
from minifm.training import checkpoint, memory
from minifm.training.contrastive import open_captioned
from minifm.training.denoising import (
    DenoisingTrainConfig,
    HeldOutExamples,
    NoiseConfig,
    NoiseObjective,
    TrainingExamples,
)
from minifm.training.run import begin, write_run
from minifm.training.trainer import Trainer

# Settings of a prior that follow from the CLIP.
NOT_CHOSEN = {"embedding", "context"}


@dataclass(frozen=True)
class ClipConfig:
    """By what a prior learns."""

    clip_model: str | None = setting(
        None, "the CLIP whose embeddings are learnt: a run, a directory or a name on the hub "
        "(needed)")
    drop: float = setting(0.1, "fraction of the texts left out in training, for classifier-free "
                               "guidance", least=0, below=1)

    __post_init__ = check

    @property
    def noise(self):
        """The NoiseConfig: of the embedding itself the mean squared error is made small (equation
        2 of the paper)."""
        return NoiseConfig(schedule="cosine", predict="x0", drop=self.drop)


@dataclass(frozen=True)
class PriorTrainConfig(DenoisingTrainConfig):
    """DenoisingTrainConfig, with what suits a prior."""

    steps: int = setting(3000, "updates of the weights in the whole run", least=1)
    batch: int = setting(128, "embeddings in one step", least=1)


class PriorObjective(NoiseObjective):
    """Take the noise from embeddings: the batch is (x0 [B, E], noise [B, E], times [B], and what a
    prior reads of the texts)."""

    reads = "embedding"

    def flops(self, model, batch):
        return len(batch[0]) * model.config.flops(training=True)


class Embeddings:
    """The Examples as a prior learns them: standardised directions of their embeddings [N, E]."""

    def __init__(self, values, examples):
        self.values, self.parts = values, examples.parts
        self.description = {"sha256": hashlib.sha256(np.ascontiguousarray(values)).hexdigest()}

    def take(self, places):
        """float32 [B, E]."""
        return self.values[places]


@dataclass(frozen=True)
class PreparedPrior:
    """A run that is ready to train, and the parts of which it is made."""

    trainer: Trainer
    examples: Examples


def prepare(directory, wanted, config, *, learning=ClipConfig(), shape=None, arch="prior",
            initial=None, resume=False, force=False, ceiling=None, shown=True):
    """The run in `directory`, new or (`resume`) taken up at its newest checkpoint.

    wanted    a CaptionedConfig
    config    a PriorTrainConfig;  learning  a ClipConfig
    shape     {field: value} of a PriorConfig; what the CLIP says is its own
    initial   a prior to start from, of a run by the same CLIP, in place of random weights
    ceiling, shown   as of training.pretrain.prepare

    Raises ConfigError or FormatError before anything is written, wherever it can.
    """
    directory, newest, say = begin(directory, (wanted.data,), resume, shown)
    embedder = _embedder(learning, newest, initial)
    examples = open_captioned(wanted, embedder.model, say)
    say("showing pictures and captions to the CLIP, once for all")
    raw = directions(embedder.pictures(examples.take(np.arange(examples.count))))
    model = _model(newest, initial, shape or {}, config, embedder,
                   raw[examples.parts["training"]])
    condition, noise = Texts(embedder), learning.noise
    embeddings = Embeddings(model.standardise(raw), examples)
    table = table_of(condition, examples.captions, say)
    training, held_out = (
        kind(embeddings, examples.parts[part], noise, batch=config.batch, table=table,
             description=condition.description, rng=Rng(config.seed).child("prior", part))
        for kind, part in ((TrainingExamples, "training"), (HeldOutExamples, "held_out")))
    say("measuring the memory that a step takes")
    trainer = Trainer(
        model, training, config, directory=directory, held_out=held_out,
        objective=PriorObjective(noise, config.recompute, table.keywords),
        companion=PriorRecipe(noise.scheduler, embedder), shown=shown, ceiling=ceiling)
    if resume:
        trainer.resume(force=force)
    _write_run(directory, (wanted, learning), trainer, examples)
    return PreparedPrior(trainer, examples)


def _embedder(learning, newest, initial):
    """The CLIP that is asked for, or that a prior which is there has learnt by. Raises ConfigError
    where there is none, or another, or one of which no prior can be made."""
    own = None if newest is None and initial is None else \
        PriorPipeline.load(newest or resolve(initial)).recipe.embedder
    if own is None and learning.clip_model is None:
        raise ConfigError("clip_model: whose embeddings are to be learnt? Give a CLIP, such as a "
                          "run of --arch clip")
    found = own if learning.clip_model is None else Embedder.load(learning.clip_model)
    if own is not None and own.sha256 != found.sha256:
        raise ConfigError(f"clip_model: {newest or initial} has learnt by another CLIP than "
                          f"{learning.clip_model}")
    text = found.model.config.text
    if text.width != text.joint:
        raise ConfigError(f"clip_model: a prior needs a CLIP whose texts are as wide inside "
                          f"({text.width}) as in the space they share with pictures "
                          f"({text.joint}), as other libraries' files have it")
    return found


def _model(newest, initial, shape, config, embedder, training):
    """The prior of the checkpoint `newest`, or one to start from, if it fits; or a new one, which
    brings embeddings as those of `training` [N, E] to mean 0 and deviation 1."""
    if initial is not None and newest is None and shape:
        raise ConfigError(f"{', '.join(shape)}: the model to start from has its own; leave it out")
    if newest is not None or initial is not None:
        place = newest or resolve(initial)
        model = load_model(place)
        checkpoint.refuse_differences(place, checkpoint.differences(
            {key: getattr(model.config, key) for key in shape}, shape))
        return model
    text = embedder.model.config.text
    whole = PriorConfig(**shape, embedding=text.joint, context=text.context)
    memory.require_parameters(whole.parameters, config)
    model = Prior(whole, Rng(config.seed).child("model"))
    model.measure(training)
    return model


def _write_run(directory, said, trainer, examples):
    shape = {key: value for key, value in asdict(trainer.model.config).items()
             if key not in NOT_CHOSEN}
    settings = {"arch": "prior"} | shape
    for config in (*said, trainer.config):
        settings |= asdict(config)
    write_run(directory, "pretrain", settings, trainer, examples=examples.description)
