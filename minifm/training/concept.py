"""Teaching a diffusion model one new thing from a few pictures, while it keeps what it knows
(DreamBooth; Ruiz et al. 2023).

A model of classes gets one class more; a model of captions hears a word that it has not heard
before, within a prompt. Trained on five pictures alone it forgets: soon all that it makes looks
like them. So beside them it goes on learning from examples that it made itself, of what it knew
before any step ("prior preservation"): at a weight of λ, λ of these for each new one.
"""

from dataclasses import dataclass, fields, replace

import numpy as np

from minifm.config import check, setting
from minifm.errors import ConfigError, listed
from minifm.generation.condition import Captions, Classes
from minifm.generation.diffusion import Pipeline, SampleConfig
from minifm.models import Composite, network_of
from minifm.models.classes import with_class

HELD_OUT = 10               # of so many prior examples one is held out
PRIOR_STEPS = 30            # noise levels to make them in


@dataclass(frozen=True)
class ConceptConfig:
    """What is to be taught, and how what is known is kept."""

    concept: str | None = setting(
        None, "teach this, a name, from a few pictures: a new class, or a rare word of captions")
    prompt: str | None = setting(
        None, "the caption of its pictures, with the name in it (default: \"a NAME\")")
    prior: int = setting(
        200, "examples that the model makes, before it learns, of what it knows: its classes, in "
        "equal parts, or --prior-prompts", least=0)
    prior_weight: float = setting(
        1.0, "how many of these there are in a step for each picture of the concept; 0: none",
        least=0)
    prior_prompts: tuple[str, ...] = setting(
        (), "of a model of captions: what they are made of, such as the captions that it learnt")
    prior_guidance: float = setting(
        1.0, "classifier-free guidance by which they are made", least=0)

    def __post_init__(self):
        check(self)
        object.__setattr__(self, "prior_prompts", tuple(self.prior_prompts))
        said = [field.name for field in fields(self)
                if getattr(self, field.name) != field.default]
        if self.concept is None and said:
            raise ConfigError(f"{said[0]}: it is of --concept, which is missing")
        idle = [name for name in said if name in ("prior", "prior_prompts", "prior_guidance")]
        if not self.keeps and idle:
            raise ConfigError(f"{idle[0]}: it is of what the model is to keep, which at "
                              "--prior-weight 0 is nothing; leave it out")
        if self.concept is not None and not self.concept.strip():
            raise ConfigError("concept: expected a name, got an empty one")
        if self.prompt is not None and self.concept not in self.prompt:
            raise ConfigError(f"prompt: expected a caption with {self.concept!r} in it, got "
                              f"{self.prompt!r}")
        if self.keeps and self.prior < HELD_OUT:
            raise ConfigError(f"prior: expected at least {HELD_OUT}, of which one is held out, got "
                              f"{self.prior}; without any: --prior-weight 0")

    @property
    def keeps(self):
        """Whether what the model knows is kept."""
        return self.concept is not None and self.prior_weight > 0

    def rows(self, batch):
        """(how many examples of the concept, how many prior ones) a step of `batch` has."""
        if not self.keeps:
            return batch, 0
        old = round(batch * self.prior_weight / (1 + self.prior_weight))
        if not 0 < old < batch:
            raise ConfigError(f"prior_weight: {self.prior_weight} in a batch of {batch} leaves "
                              f"{batch - old} examples of the concept and {old} prior ones; "
                              "choose a larger batch")
        return batch - old, old

    def asked(self, condition):
        """How a model with this Condition is asked for the concept."""
        if isinstance(condition, Captions):
            return self.prompt or f"a {self.concept}"
        return self.concept

    def require(self, pipeline):
        """Raise ConfigError for a model that cannot be taught this, or not so."""
        condition, of_captions = pipeline.condition, ("prompt", "prior_prompts")
        if isinstance(condition, Captions):
            if self.keeps and not self.prior_prompts:
                raise ConfigError("prior_prompts: expected what the model is to keep, such as "
                                  "captions that it learnt (or --prior-weight 0, to keep nothing)")
            return
        if not isinstance(condition, Classes):
            raise ConfigError(f"concept: {condition.said(pipeline.place)} or captions, and cannot "
                              "be told a name; without --concept it learns the pictures")
        said = [name for name in of_captions if getattr(self, name)]
        if said:
            raise ConfigError(f"{said[0]}: {condition.said(pipeline.place)}; leave it out")
        if self.concept in condition.names:
            raise ConfigError(f"concept: {pipeline.place} knows {self.concept!r} already, among "
                              f"{listed(condition.names)}; without --concept it goes on learning "
                              "its classes")


def pupil(pipeline, concept):
    """The Pipeline that is to be taught: with a class more, where the model has classes."""
    if isinstance(pipeline.condition, Captions):
        return pipeline
    grown, model = with_class(network_of(pipeline.network)), pipeline.network
    if isinstance(model, Composite):
        grown = Composite(grown, model.encoder, model.autoencoder, tokenizer=model.tokenizer)
    classes = (*pipeline.recipe.classes, concept.concept)
    return Pipeline(grown, replace(pipeline.recipe, classes=classes), pipeline.place)


def beside(old, new, name):
    """The Examples `old`, of classes, and the `new` ones, which are all of one class more, called
    `name`; each on its side."""
    first, N = old.take(np.arange(old.count)), old.count
    return replace(
        old, values=np.concatenate([first, new.take(np.arange(new.count))]), captions=None,
        labels=np.concatenate([old.labels, np.full(new.count, len(old.classes), np.int32)]),
        classes=(*old.classes, name),
        parts={part: np.concatenate([old.parts[part], N + new.parts[part]]) for part in old.parts},
        description=old.description | {"concept": name})


def prior_asks(pipeline, concept):
    """[what each prior example is made of]: a class or a prompt."""
    if not concept.keeps:
        return []
    condition = pipeline.condition
    names = concept.prior_prompts if isinstance(condition, Captions) else condition.names
    return [names[i % len(names)] for i in range(concept.prior)]


def prior_examples(pipeline, concept, seed):
    """float32 [prior, C, *space] in -1 … 1, as the model makes them before it learns."""
    config = SampleConfig(steps=min(PRIOR_STEPS, pipeline.recipe.scheduler.steps), seed=seed,
                          guidance=concept.prior_guidance)
    return np.clip(pipeline.sample(prior_asks(pipeline, concept), config), -1, 1)
