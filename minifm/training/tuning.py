"""From a diffusion model and examples to one that has learnt these as well: the model's own Recipe
(noise, what it predicts, sizes, classes) is kept, and the examples have to fit it.

    runs/NAME/
      run.json, step-…/, last, best, samples/, …      as of any run of denoising (denoising.py)
      prior.npy       what the model made before it learnt, where a concept is taught (concept.py)

With adapters, a checkpoint has these alone, and names the model that they are of.
"""

import hashlib
from dataclasses import asdict, dataclass, replace

import numpy as np

from minifm.config import check, setting
from minifm.errors import ConfigError, listed, plural
from minifm.generation.condition import Captions, Classes
from minifm.generation.diffusion import FILE, Pipeline, Recipe, network_folder
from minifm.hub import resolve
from minifm.media import SOUND, VIDEO, Examples
from minifm.media.arrays import read_numpy
from minifm.media.drawing import write_array
from minifm.models import Composite, architecture_of, network_of
from minifm.models.classes import class_tables
from minifm.nn import AdapterConfig, add_adapters, freeze, freeze_layers
from minifm.rng import Rng
from minifm.training import denoising, told
from minifm.training.concept import HELD_OUT, ConceptConfig, prior_asks, prior_examples, pupil
from minifm.training.denoising import (
    DenoisingTrainConfig,
    ExamplesConfig,
    HeldOutExamples,
    NoiseObjective,
    NoisyBatches,
    StepsConfig,
)
from minifm.training.finetune import name_of_base
from minifm.training.latents import in_latents
from minifm.training.pretrain import require_plain_weights
from minifm.training.rounds import Rounds
from minifm.training.run import begin, write_run
from minifm.training.told import SAMPLES, Sketches, asks_shown, everywhere, names_of, table_read
from minifm.training.trainer import Trainer

PRIOR = "prior.npy"
METHODS = ("full", "lora")
LEARNING_RATES = {"full": 2e-4, "lora": 1e-3}


@dataclass(frozen=True)
class TuneConfig:
    """Which examples are learnt from, and which weights learn."""

    method: str = setting("full", "full: all weights of the network; lora: adapters beside frozen "
                          "weights", choices=METHODS)
    freeze: int = setting(0, "full: leave what comes first and so many blocks as they are; 0: none",
                          least=0)
    train_encoder: bool = setting(False, "full: the encoder of captions learns, too")
    examples: int = setting(0, "train on so many examples, chosen by the seed; 0: on all", least=0)
    held_out_data: str | None = setting(
        None, "examples to evaluate on (default: those of --data that are held out)")

    def __post_init__(self):
        check(self)
        for name in ("freeze", "train_encoder"):
            if getattr(self, name) and self.method != "full":
                raise ConfigError(f"{name}: only for method full, got {self.method}")


@dataclass(frozen=True)
class TuneStepsConfig(StepsConfig):
    """StepsConfig of a model that has its own way to do without class or caption, or none."""

    drop: float | None = setting(
        None, "fraction of the labels or captions left out in training (default: 0.1 of a model "
        "that has learnt to do without, else 0)", least=0, below=1)


@dataclass(frozen=True)
class TuneTrainConfig(DenoisingTrainConfig):
    """DenoisingTrainConfig, with what suits a model that has learnt before."""

    steps: int = setting(500, "updates of the weights in the whole run", least=1)
    batch: int = setting(32, "examples in one step", least=1)
    average: float = setting(
        0.99, "decay of a moving average of the weights, which is then what is evaluated and "
        "saved as the model; 0: none", least=0, below=1)


@dataclass(frozen=True)
class Lesson:
    """What a run learns from.

    examples  all there are, also those that the model made
    asked     what the network is told of each: a name, a caption or None
    groups    [(places, rows)]: each step takes so many rows of those places
    held_out  places
    new       how many of the examples, the first ones, are the user's
    """

    examples: Examples
    asked: list
    groups: list
    held_out: np.ndarray
    new: int


@dataclass(frozen=True)
class PreparedTuning:
    """A run that is ready to train, and the parts of which it is made."""

    trainer: Trainer
    lesson: Lesson
    recipe: Recipe


class GroupedExamples(NoisyBatches):
    """In each step so many examples of each group, each group in rounds of its own."""

    def __init__(self, examples, groups, config, *, batch, rng, **more):
        super().__init__(examples, np.concatenate([places for places, _ in groups]), config,
                         batch=batch, rng=rng, **more)
        self.rounds = [Rounds(places, rows, rng.child("group", i))
                       for i, (places, rows) in enumerate(groups)]
        self.description |= {"groups": [[len(places), rows] for places, rows in groups]}

    def batch(self, step):
        places = np.concatenate([rounds.at(step) for rounds in self.rounds])
        return self.made(places, self.rng.child("step", step), self.config.drop,
                         0.5 * self.config.flip)


def prepare(directory, model, wanted, tune=TuneConfig(), config=(), *, steps=TuneStepsConfig(),
            concept=ConceptConfig(), adapter=(), resume=False, force=False, ceiling=None,
            shown=True):
    """The run in `directory`, new or (`resume`) taken up at its newest checkpoint.

    model    a diffusion model's directory, or its name on the hub
    wanted   an ExamplesConfig;  tune  a TuneConfig;  steps  a TuneStepsConfig
    config   {setting of TuneTrainConfig: value}; the learning rate follows from the method
    concept  a ConceptConfig
    adapter  {setting of AdapterConfig: value}, for the method lora; on all attention unless it is
             said

    Raises ConfigError or FormatError before anything is written.
    """
    sources = [wanted.data] + ([tune.held_out_data] if tune.held_out_data else [])
    directory, _, say = begin(directory, sources, resume, shown)
    place = resolve(model)
    base = Pipeline.load(place)
    require_trainable(base, model, tune)
    config, steps = tuned(dict(config), tune), settled(steps, base.recipe)
    learner, lesson, prior = lesson_of(base, wanted, tune, concept, config, say,
                                       directory / PRIOR if resume else None)
    recipe = replace(learner.recipe, classless=base.recipe.classless or steps.drop > 0)
    network, condition = learner.network, learner.condition
    adapter = adapter_of(network, dict(adapter))
    choose_weights(network, tune, adapter, model, place,
                   taught=concept.concept is not None, rng=Rng(config.seed).child("fine-tuning"))
    table = table_read(lesson.asked, condition, network, say)
    options = {"batch": config.batch, "table": table, "scheduler": recipe.scheduler,
               "description": condition.description | {
                   "concept": concept.concept, "scheduler": asdict(recipe.scheduler)}}
    rng = Rng(config.seed).child("tuning")
    learnt = in_latents(lesson.examples, network, say, flip=steps.flip)
    training = GroupedExamples(learnt, lesson.groups, steps, rng=rng.child("training"),
                               **options)
    held_out = HeldOutExamples(learnt, lesson.held_out, steps, rng=rng.child("held out"),
                               **options)
    say("measuring the memory that a step takes")
    asked = shown_asks(lesson, condition, concept)
    trainer = Trainer(
        network, training, config, directory=directory, held_out=held_out, companion=recipe,
        objective=NoiseObjective(steps, config.recompute, table.keywords, recipe.scheduler),
        shown=shown, ceiling=ceiling,
        sketch=Sketches(directory / SAMPLES, recipe, asked, config.seed))
    if resume:
        trainer.resume(force=force)
    settings = asdict(wanted) | asdict(tune) | asdict(steps) | asdict(concept) | asdict(config)
    if tune.method == "lora":
        settings |= {key: value for key, value in asdict(adapter).items()
                     if key not in ("base", "whole")}
    write_run(directory, "finetune", settings | {"model": str(model)}, trainer,
              arch=architecture_of(network), examples=lesson.examples.description, companion=FILE,
              shown=asked)
    if prior is not None:
        write_array(directory / PRIOR, prior)
    return PreparedTuning(trainer, lesson, recipe)


def tuned(said, tune):
    """The TuneTrainConfig of what the user said: evaluated four times, unless they say."""
    steps = said.get("steps", TuneTrainConfig.steps)
    return TuneTrainConfig(**{"learning_rate": LEARNING_RATES[tune.method], "save_every": 0,
                              "evaluate_every": max(1, steps // 4)} | said)


def settled(steps, recipe):
    """A TuneStepsConfig whose `drop` is a number."""
    steps.require_sides(recipe.kind)
    drop = steps.drop if steps.drop is not None else 0.1 * recipe.classless
    return replace(steps, drop=drop)


# -- what is learnt from ---------------------------------------------------------------------------


def lesson_of(base, wanted, tune, concept, config, say, kept):
    """(the Pipeline that learns, the Lesson, the prior examples or None). `kept` is the file that a
    run to be resumed keeps its prior examples in, or None. Raises ConfigError for examples that do
    not fit the model."""
    if concept.concept is not None:
        concept.require(base)
    rows = concept.rows(config.batch)
    examples, asked = sides(base, wanted, tune, config.seed, say, concept)
    training, held_out = (examples.parts[part] for part in ("training", "held_out"))
    new, groups, prior = examples.count, [(training, rows[0])], None
    learner = base if concept.concept is None else pupil(base, concept)
    if concept.keeps:
        prior = _prior(base, concept, config.seed, say, kept)
        places = new + np.arange(len(prior))
        examples = joined(examples, prior, hashlib.sha256(prior).hexdigest())
        asked = asked + prior_asks(base, concept)
        groups.append((places[len(prior) // HELD_OUT :], rows[1]))
        held_out = np.concatenate([held_out, places[: len(prior) // HELD_OUT]])
    return learner, Lesson(examples, asked, groups, held_out, new), prior


def sides(base, wanted, tune, seed, say, concept=None):
    """(the Examples that are learnt from, and those to evaluate on, as their parts say; what the
    network is told of each, where a ConceptConfig is given)."""
    def opened(data):
        found = fitting(base, replace(wanted, data=data), say)
        return found, concept and asked_of(base, found, concept, data)

    examples, asked = opened(wanted.data)
    parts = examples.parts
    if tune.held_out_data is not None:
        other, more = opened(tune.held_out_data)
        parts = {"training": np.arange(examples.count),
                 "held_out": examples.count + np.arange(other.count)}
        asked = concept and asked + more
        examples = joined(examples, other.take(np.arange(other.count)),
                          other.description["sha256"])
    parts = parts | {"training": chosen_of(parts["training"], tune.examples, seed)}
    for name, places in parts.items():
        if not len(places):
            raise ConfigError(f"data: {wanted.data} has no {name.replace('_', '-')} examples "
                              "(--held-out-data names some to evaluate on)")
    return replace(examples, parts=parts), asked


def _prior(base, concept, seed, say, kept):
    """The prior examples, as made before, or made now."""
    if kept is not None and kept.exists():
        return np.asarray(read_numpy(kept), np.float32)
    say(f"making {concept.prior} examples of what the model knows")
    return prior_examples(base, concept, seed)


def chosen_of(places, count, seed):
    """`count` of the places, chosen by the seed; 0: all. Raises ConfigError for more than all."""
    if count > len(places):
        raise ConfigError(f"examples: expected at most the {len(places):,} that there are to train "
                          f"on, got {count:,}")
    if not count:
        return places
    order = Rng(seed).child("fine-tuning", "examples").permutation(len(places))
    return np.sort(places[order[:count]])


def joined(examples, values, sha256):
    """Examples, and behind them others, float32 [M, C, *space], whose digest is `sha256`. Of the
    sum only the arrays are known, not classes or captions."""
    first = examples.take(np.arange(examples.count))
    both = hashlib.sha256((examples.description["sha256"] + sha256).encode()).hexdigest()
    return replace(examples, values=np.concatenate([first, values]), labels=None, classes=(),
                   captions=None, description=examples.description | {"sha256": both})


def fitting(base, wanted, say):
    """The Examples of an ExamplesConfig, of the kind and the size that the model makes, where the
    user does not say another. Raises ConfigError where they are not as the model makes them."""
    recipe, usual = base.recipe, ExamplesConfig()
    C, *space = recipe.shape
    own = {"kind": recipe.kind.name} | ({"length": space[0], "rate": recipe.rate}
                                        if recipe.kind is SOUND else {"size": space[-1]})
    if recipe.kind is VIDEO:
        own["frames"] = space[0]
    examples = denoising.open_examples(replace(wanted, **{
        name: value for name, value in own.items()
        if getattr(wanted, name) == getattr(usual, name)}), say)
    for what, theirs, ours in (
            ("", examples.kind.name + "s", recipe.kind.name + "s"),
            (f"{recipe.kind.name}s of ", plural(examples.shape[0], "channel"),
             plural(C, "channel")),
            (f"{recipe.kind.name}s of ", " × ".join(map(str, examples.shape[1:])),
             " × ".join(map(str, space))),
            ("samples a second: ", examples.description.get("rate"), recipe.rate)):
        if theirs != ours:
            raise ConfigError(f"data: {wanted.data} has {what}{theirs}, and {base.place} makes "
                              f"{what}{ours}")
    return examples


def asked_of(base, examples, concept, name):
    """[what the network is told of each of the examples]. Raises ConfigError where they lack it, or
    the model does not know it."""
    condition = base.condition
    if concept.concept is not None:
        return [concept.asked(condition)] * examples.count
    if isinstance(condition, Captions) and examples.captions is None:
        raise ConfigError(f"data: {name} has no captions, which {base.place} learns by; "
                          "--concept NAME teaches what all of it shows")
    if isinstance(condition, Classes):
        if examples.labels is None:
            raise ConfigError(f"data: {name} has no classes, which {base.place} learns by; "
                              "--concept NAME teaches what all of it shows")
        unknown = [name for name in examples.classes if name not in condition.names]
        if unknown:
            raise ConfigError(f"data: {name} has the classes {listed(unknown)}, which {base.place} "
                              f"does not know ({listed(condition.names)}); --only chooses among "
                              "them, --concept NAME teaches a new one")
    return list(names_of(examples, condition))


def shown_asks(lesson, condition, concept):
    """What snapshots are asked for: half of them for the concept, where there is one."""
    if concept.concept is None and isinstance(condition, Captions):
        return [lesson.asked[place] for place in everywhere(lesson.held_out, told.SHOWN)]
    if concept.concept is None:
        return asks_shown(lesson.examples, condition)
    known = list(dict.fromkeys(lesson.asked[lesson.new :])) or [None]
    half = told.SHOWN // 2
    return [concept.asked(condition)] * half + everywhere(known[:half], half)


# -- which weights learn ---------------------------------------------------------------------------


def require_trainable(base, name, tune):
    """Raise ConfigError for a model that is not trained here, or not so."""
    network = network_of(base.network)
    if base.recipe.embedder is not None:
        raise ConfigError(f"{name}: {base.condition.said('its network')}, which finetune does not "
                          "teach; pretrain --init goes on with them")
    require_plain_weights(network, name)
    if network.config.outputs != network.config.inputs:
        raise ConfigError(f"{name}: its network makes {network.config.outputs} channels of "
                          f"{network.config.inputs}, with variances that are not learnt here")
    if tune.train_encoder and not isinstance(base.condition, Captions):
        raise ConfigError(f"train_encoder: {base.condition.said(name)}; leave it out")


def adapter_of(model, said):
    """The AdapterConfig of what the user said, {setting: value}: of all attention, also that which
    looks at texts, unless they say."""
    looks = getattr(network_of(model).config, "memory_width", None) is not None
    return AdapterConfig(**{"targets": ("attention", *(["cross_attention"] if looks else []))}
                         | said)


def choose_weights(model, tune, adapter, name, place, *, taught, rng):
    """Freeze what does not learn, and give the network adapters, for lora. `name` and the directory
    `place` are of the model that it begins as. The vectors of classes learn in any case where a
    class is `taught`."""
    network = network_of(model)
    tables = class_tables(network) if taught else {}
    if isinstance(model, Composite):
        for part in model.parts().values():
            freeze(part, part is not network and not (tune.train_encoder and part is model.encoder))
    if tune.method == "lora":
        folder = network_folder(place)
        base = name_of_base(name, place) if folder == place else str(folder.resolve())
        add_adapters(network, replace(adapter, base=base, whole=tuple(tables)), rng=rng)
    elif tune.freeze:
        freeze_layers(network, tune.freeze)
        for table in tables.values():
            freeze(table, False)
