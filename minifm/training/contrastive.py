"""From pictures with captions to a CLIP: captions → tokenizer → towers → Trainer (Radford et al.
2021).

What tells a text from another is the rest of its batch: so the loss of a batch is no sum over its
pieces, and nothing here accumulates. What a step learns from is a function of the seed and the
step's number.

    runs/NAME/
      run.json          the settings it was started with, and what they became
      step-…/  last  best  metrics.jsonl  loss.png      (training/checkpoint.py)
"""

import hashlib
from dataclasses import asdict, dataclass, replace

import numpy as np

from minifm import media
from minifm.config import setting
from minifm.errors import ConfigError
from minifm.evaluation.contrastive import check_prompts, classified, retrieval
from minifm.hub import load_model, resolve
from minifm.hub.pictures import PictureScale
from minifm.media import Examples, MediaConfig
from minifm.models import CLIP, CLIPShape
from minifm.rng import Rng
from minifm.tensor import Tensor
from minifm.text import Tokenizer
from minifm.text.captions import caption_rows, caption_tokenizer
from minifm.training import checkpoint, memory
from minifm.training.config import TrainConfig
from minifm.training.objectives import Objective
from minifm.training.rounds import Rounds
from minifm.training.run import begin, write_run
from minifm.training.trainer import Trainer


@dataclass(frozen=True)
class CaptionedConfig(MediaConfig):
    """Pictures, and what is said of them."""

    data: str = setting("glyphs", "pictures with captions: glyphs, or a folder with a "
                        "metadata.jsonl")


@dataclass(frozen=True)
class CaptionsConfig(CaptionedConfig):
    """What a run learns from, and what it is judged by."""

    vocabulary: int = setting(512, "the most tokens of the vocabulary, which is learnt from the "
                              "captions", least=259)
    prompts: tuple[str, ...] = setting(
        (), "what is said of a picture of each class, {} where the class is named: then, how many "
        "held-out pictures are nearest to the prompts of their own class is reported, too "
        "(of several prompts for a class, their mean)")


@dataclass(frozen=True)
class ContrastiveTrainConfig(TrainConfig):
    """TrainConfig, with what suits contrastive learning; most is the paper's (its table 18)."""

    steps: int = setting(2000, "updates of the weights in the whole run", least=1)
    batch: int = setting(128, "pairs of a picture and a text in one step, which are told from each "
                         "other", least=2)
    weight_decay: float = setting(0.2, "of matrices; biases and gains do not decay", least=0)
    beta2: float = setting(0.98, "decay of AdamW's mean of squared gradients", least=0, below=1)
    epsilon: float = setting(1e-6, "AdamW's guard against division by zero", least=1e-30)

    def __post_init__(self):
        super().__post_init__()
        if self.accumulate > 1:
            raise ConfigError("accumulate: each text is told from all others of its batch, so that "
                              "no pieces add up to it; recompute saves memory with the same result")


# -- what is learnt --------------------------------------------------------------------------------


class Contrastive(Objective):
    """Tell which text belongs to which picture: the batch is (ids [B, T], pictures [B, C, S, S]),
    its loss CLIP's (models/clip.py)."""

    name, unit, reads, scale = "contrastive", "pair", "pair", "nats"
    divisible = False

    def __init__(self, recompute=False):
        self.recompute = recompute

    def loss(self, model, batch, *, denominator, rng):
        ids, pictures = batch
        return model.loss(ids, Tensor(pictures), denominator=denominator, recompute=self.recompute)

    def count(self, batch):
        """How many pairs."""
        return len(batch[0])

    tokens = count              # what throughput is measured in

    def flops(self, model, batch):
        (B, T), c = batch[0].shape, model.config
        patches = 2 * (c.image.tokens - 1) * c.image.channels * c.image.patch**2 * c.image.width
        each = c.text.flops_of(T, True) + c.image.flops_of(c.image.tokens, True) + 2 * patches
        return B * each + 3 * 2 * B * B * c.text.joint

    def constrain(self, model):
        model.limit()


class Pairs:
    """The captions and pictures of some of the Examples as rows: `take(places)` is (ids [B, T],
    pictures [B, C, S, S])."""

    def __init__(self, examples, tokenizer, scale, *, length, say):
        self.examples, self.scale = examples, scale
        self.ids, _ = caption_rows(tokenizer, examples.captions, most=length, say=say)
        self.description = {
            "sha256": examples.description["sha256"],
            "captions": hashlib.sha256(np.ascontiguousarray(self.ids)).hexdigest()}

    def take(self, places):
        return self.ids[places], self.scale(self.examples.take(places))


class TrainingPairs:
    """Rounds through all pairs without end, each in another order."""

    def __init__(self, pairs, places, *, batch, rng):
        self.pairs, self.rounds = pairs, Rounds(places, batch, rng)
        self.description = pairs.description | {"pairs": len(places), "batch": batch}

    def batch(self, step):
        return self.pairs.take(self.rounds.at(step))


class HeldOutPairs:
    """The pairs in an order that is always the same, and not that of the data, in batches as large
    as those of training, without which losses could not be compared; the last few are left out
    where they fill none. Raises ConfigError where there are not two."""

    def __init__(self, pairs, places, *, batch, rng):
        if len(places) < 2:
            raise ConfigError("held_out: expected two pairs at least, to tell one from the other, "
                              f"got {len(places)}")
        self.pairs, self.rows = pairs, min(batch, len(places))
        self.places = places[rng.permutation(len(places))]
        self.count = len(places) // self.rows
        self.description = pairs.description | {"pairs": len(places), "batch": batch}

    def batch(self, i):
        return self.pairs.take(self.places[i * self.rows : (i + 1) * self.rows])


class Judge:
    """Scores of a CLIP on what is held out, for the Trainer: {"zero_shot": …} where there are
    prompts, and those of evaluation.contrastive.retrieval."""

    def __init__(self, held_out, tokenizer, prompts):
        self.held_out, self.tokenizer, self.prompts = held_out, tokenizer, prompts

    def __call__(self, model):
        batches = [self.held_out.batch(i) for i in range(self.held_out.count)]
        found = {}
        if self.prompts:
            examples = self.held_out.pairs.examples
            places = self.held_out.places
            seen = classified(model, self.tokenizer, self.held_out.pairs.take(places)[1],
                              examples.classes, self.prompts)
            found["zero_shot"] = float((seen == examples.labels[places]).mean())
        return found | retrieval(model, batches)


@dataclass(frozen=True)
class Preprocessing:
    """What else is saved with the model: how pictures are scaled, for other libraries."""

    scale: PictureScale
    size: int

    def save(self, directory):
        self.scale.save(directory, self.size)


# -- the run ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class PreparedContrastive:
    """A run that is ready to train, and the parts of which it is made."""

    trainer: Trainer
    examples: Examples


def prepare(directory, wanted, config, *, shape=None, arch="clip", initial=None, resume=False,
            force=False, ceiling=None, shown=True):
    """The run in `directory`, new or (`resume`) taken up at its newest checkpoint.

    wanted   a CaptionsConfig
    config   a ContrastiveTrainConfig
    shape    {field: value} of a CLIPShape
    initial  a CLIP's directory or hub name to start from, in place of random weights
    ceiling, shown   as of training.pretrain.prepare

    Raises ConfigError or FormatError before anything is written, wherever it can.
    """
    directory, newest, say = begin(directory, (wanted.data,), resume, shown)
    check_prompts(wanted.prompts)
    place = newest if initial is None or newest else resolve(initial)
    model = None if place is None else _started(newest, place, shape or {})
    examples = open_captioned(wanted, model, say)
    if wanted.prompts and examples.labels is None:
        raise ConfigError(f"prompts: {examples.description['name']} has no classes that prompts "
                          "could name")
    if model is None:
        tokenizer, model = _new(examples, wanted, shape or {}, config)
        scale = PictureScale.own(model.config.image.channels)
    else:
        tokenizer = Tokenizer.load(place)
        scale = PictureScale.load(place, model.config.image.channels)
    pairs = Pairs(examples, tokenizer, scale, length=model.config.text.context, say=say)
    _check_ends(pairs.ids, model.config.text)
    rng = Rng(config.seed).child("contrastive")
    training, held_out = (
        kind(pairs, examples.parts[part], batch=config.batch, rng=rng.child(part))
        for kind, part in ((TrainingPairs, "training"), (HeldOutPairs, "held_out")))
    say("measuring the memory that a step takes")
    trainer = Trainer(
        model, training, config, directory=directory, objective=Contrastive(config.recompute),
        held_out=held_out, tokenizer=tokenizer, measure=Judge(held_out, tokenizer, wanted.prompts),
        companion=Preprocessing(scale, model.config.image.size), shown=shown, ceiling=ceiling)
    if resume:
        trainer.resume(force=force)
    write_run(directory, "pretrain",
              {"arch": arch} | asdict(CLIPShape.of(model.config)) | asdict(wanted)
              | asdict(config), trainer, examples=examples.description)
    return PreparedContrastive(trainer, examples)


def open_captioned(wanted, model, say):
    """The Examples of a CaptionedConfig, as large as a `model` that is there already takes them.
    Raises ConfigError for what are no pictures with captions."""
    if model is not None:
        wanted = replace(wanted, size=wanted.size or model.config.image.size)
    examples = media.open(wanted.data, wanted, say=say)
    name = examples.description["name"]
    if examples.kind is not media.PICTURE:
        raise ConfigError(f"data: {name} is of {examples.kind.name}s, and a CLIP looks at pictures")
    if examples.captions is None:
        raise ConfigError(f"data: {name} has no captions; give a folder with a metadata.jsonl, or "
                          "glyphs")
    if len(examples.parts["training"]) < 2:
        raise ConfigError(f"data: {name} has fewer than two examples to learn from")
    C, S = examples.shape[0], examples.shape[-1]
    if model is not None and (C, S) != (model.config.image.channels, model.config.image.size):
        raise ConfigError(f"data: pictures of {C} channels and {S} pixels a side; the model looks "
                          f"at {model.config.image.channels} of {model.config.image.size}")
    return examples


def _new(examples, wanted, shape, config):
    """(tokenizer, CLIP) that begin from nothing. The tokenizer learns from the training captions
    alone."""
    told = [examples.captions[i] for i in examples.parts["training"]]
    tokenizer = caption_tokenizer(told, wanted.vocabulary)
    longest = caption_rows(tokenizer, told)[0].shape[1]
    whole = CLIPShape(**shape).config(
        vocabulary=tokenizer.vocabulary, context=longest, end=tokenizer.end_of_text,
        channels=examples.shape[0], size=examples.shape[-1])
    memory.require_parameters(whole.parameters, config)
    return tokenizer, CLIP(whole, Rng(config.seed).child("model"))


def _started(newest, place, shape):
    """The model of the checkpoint `newest`, or of the one at `place` to start from. Raises
    ConfigError for another kind, or another shape than the run's."""
    model = load_model(place)
    if not isinstance(model, CLIP):
        raise ConfigError(f"{place}: expected a CLIP, got a {type(model).__name__}")
    if newest is None and shape:
        raise ConfigError(f"{', '.join(shape)}: the model to start from has its own; leave it out")
    stored = asdict(CLIPShape.of(model.config))
    checkpoint.refuse_differences(place, checkpoint.differences(
        {key: stored[key] for key in shape}, shape))
    return model


def _check_ends(ids, config):
    """Raise ConfigError where the tokenizer of a model does not end texts as the model expects."""
    if config.end is not None and not (ids == config.end).any(1).all():
        raise ConfigError(f"tokenizer: its texts do not end with the token {config.end}, at which "
                          "the model reads them")
