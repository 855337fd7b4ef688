"""What a diffusion network is told of examples while it learns, and what it is asked for to show
how far it has come."""

from dataclasses import replace
from pathlib import Path

from minifm.generation.clip import Shown
from minifm.generation.condition import Captions, Classes, encoded, table_of
from minifm.generation.diffusion import Pipeline, SampleConfig
from minifm.nn import trainable
from minifm.training.decoder import embeddings_of

READ_AT_ONCE = 64                       # captions, by an encoder that does not learn
SAMPLES = "samples"                     # of a run's directory, where snapshots are
SHOWN, SHOWN_STEPS = 16, 25             # examples of a snapshot, and noise levels to make them


def told_of(examples, condition, model, say=None):
    """The Table of what a network with this Condition is told of the Examples. Pictures are shown
    to the CLIP of a Shown here, once."""
    if isinstance(condition, Shown):
        say("showing the pictures to the CLIP, once for all")
        return embeddings_of(examples, condition)
    return table_read(names_of(examples, condition), condition, model, say)


def table_read(asked, condition, model, say=None):
    """The Table of what is asked, a name, a caption or None for each example. Captions are read
    here, once, where their encoder does not learn."""
    table = table_of(condition, asked, say)
    if isinstance(condition, Captions) and not trainable(model.encoder):
        say("reading the captions, once for all")
        return replace(table, columns=encoded(model, table.columns, READ_AT_ONCE))
    return table


def names_of(examples, condition):
    """[what is to be told of each example]: the name of its class, its caption, or None."""
    if isinstance(condition, Captions):
        return examples.captions
    if isinstance(condition, Classes):
        return [examples.classes[label] for label in examples.labels]
    return [None] * examples.count


def asks_shown(examples, condition):
    """What snapshots are asked for: as many of each class; or captions or embeddings of examples
    that are held out, from everywhere among them."""
    held_out = examples.parts["held_out"]
    if isinstance(condition, (Captions, Shown)):
        return asks_of(examples, everywhere(held_out, SHOWN), condition)
    classes = condition.names if isinstance(condition, Classes) else (None,)
    return everywhere(classes[:SHOWN], SHOWN)


def everywhere(things, count):
    """[`count` of the things]: from everywhere among them, or as many of each."""
    return [things[i * len(things) // count] for i in range(count)]


def asks_of(examples, places, condition):
    """What a network is asked for to make such as the examples at these places."""
    if isinstance(condition, Shown):
        return condition.asked(examples.take(places))
    names = names_of(examples, condition)
    return [names[place] for place in places]


class Sketches:
    """Pictures of what a network makes as it learns, always of the same noise and as always asked:
    a name of a class or a caption for each, or None."""

    def __init__(self, directory, recipe, asked, seed):
        self.directory, self.recipe = Path(directory), recipe
        self.asked, self.seed = asked, seed

    def __call__(self, model, step):
        """Write step-N.png."""
        self.recipe.kind.save(self.directory / f"step-{step:08d}.png",
                              self.made(model, self.asked))

    def made(self, model, asked):
        """float32 [B, C, *space], one example for each that is asked for."""
        config = SampleConfig(steps=min(SHOWN_STEPS, self.recipe.scheduler.steps), seed=self.seed)
        return Pipeline(model, self.recipe).sample(asked, config)
