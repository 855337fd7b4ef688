"""What `minifm finetune` does with a diffusion model: examples in, a model that has learnt them as
well, or one new thing, out."""

import sys
from pathlib import Path

from minifm.cli.arguments import add_config, add_fields, add_run, build, part_of, read_config
from minifm.errors import ConfigError, UserError

EXAMPLE = """\
example:
  minifm finetune runs/digits --data photographs/ --method lora --out runs/tuned
  minifm finetune runs/glyphs --data captioned/ --train-encoder --out runs/tuned
  minifm finetune runs/digits --concept sigma --data five/ --out runs/sigma
  minifm finetune --resume --out runs/sigma
"""

MARKS = "scheduler_config.json", "model_index.json"     # files that only diffusion models have


def is_meant(argv):
    """Whether a word of the command line, or `model` in its file of settings, is a diffusion model,
    or a run of one; or what is asked for is of these alone."""
    words, previous = [], None
    if "--concept" in argv:
        return True
    for word in argv:
        if previous == "--config":
            try:
                words.append(str(read_config(Path(word)).get("model")))
            except UserError:                           # which the verb itself will say
                pass
        elif not word.startswith("-"):
            words.append(word)
        previous = word
    return any(map(is_diffusion, words))


def is_diffusion(model):
    """Whether the directory, or a run's last checkpoint, is of a diffusion model."""
    place = Path(model).expanduser()
    return any((folder / mark).is_file() or (folder / "scheduler" / mark).is_file()
               for folder in (place, place / "last") for mark in MARKS)


def kinds():
    """{dataclass of settings: title of its flags}, the TrainConfig last."""
    from minifm.nn import AdapterConfig
    from minifm.training.concept import ConceptConfig
    from minifm.training.denoising import ExamplesConfig
    from minifm.training.tuning import TuneConfig, TuneStepsConfig, TuneTrainConfig
    return {ExamplesConfig: "examples", ConceptConfig: "a new thing from few pictures (DreamBooth)",
            TuneConfig: "what learns", TuneStepsConfig: "noise: what is learnt of it",
            AdapterConfig: "adapters, for --method lora (--targets: all attention, where they "
                           "are not said)",
            TuneTrainConfig: "training"}


def arguments(parser):
    parser.usage = "minifm finetune MODEL --out DIRECTORY --data DATA [options]"
    parser.description = "Teach a diffusion model further examples, or one new thing from a few."
    parser.epilog = EXAMPLE
    parser.add_argument("model", nargs="?", help="the diffusion model to start from, a directory")
    add_run(parser, "checkpoints, log, samples")
    add_config(parser)
    *others, (training, title) = kinds().items()
    for kind, heading in others:                        # the seed of training serves all
        add_fields(parser, kind, heading, skip={"seed", "base", "whole"},
                   without={"data", "targets"})     # none, and all attention
    add_fields(parser, training, title)


def run(args, said_in_all):
    """Fine-tune; `said_in_all(args, kinds)` gives the settings, as for text."""
    from minifm.backends.ceilings import flop_ceiling
    from minifm.cli.pretrain import trained
    from minifm.nn import AdapterConfig
    from minifm.training.tuning import prepare
    known = kinds()
    said = said_in_all(args, tuple(known))
    for name, what in (("model", "a model to start from"), ("data", "examples to learn from")):
        if said.get(name) is None:
            raise ConfigError(f"{name}: expected {what}")
    adapted = part_of(AdapterConfig, said)
    if adapted and said.get("method") != "lora":
        raise ConfigError(f"{sorted(adapted)[0]}: only for --method lora")
    *others, training = known
    built = {kind.__name__: build(kind, said) for kind in others}
    prepared = prepare(
        args.out, said["model"], built["ExamplesConfig"], built["TuneConfig"],
        part_of(training, said), steps=built["TuneStepsConfig"], concept=built["ConceptConfig"],
        adapter=adapted, resume=args.resume, force=args.force, ceiling=flop_ceiling().rate)
    for line in summary(prepared):
        print(line, file=sys.stderr)
    status = trained(prepared.trainer, "finetune")
    if status == 0:
        tell(prepared, built["ConceptConfig"])
    return status


def summary(prepared):
    """What is going to happen, a line a part."""
    import math

    from minifm.cli import summaries
    from minifm.errors import plural
    from minifm.nn import trainable
    trainer, lesson, recipe = prepared.trainer, prepared.lesson, prepared.recipe
    config, examples = trainer.config, lesson.examples
    learning = sum(math.prod(p.shape) for p in trainable(trainer.model).values())
    made = examples.count - lesson.new
    groups = " and ".join(f"{rows} of {len(places):,}" for places, rows in lesson.groups)
    beside = f" and {made:,} that the model made" if made else ""
    return summaries.summary(
        trainer,
        examples=f"{examples.description['name']}: {plural(lesson.new, recipe.kind.name)}{beside}; "
                 f"{len(lesson.held_out):,} of all to evaluate on",
        model=f"{summaries.parts_of(trainer.model)}; {learning:,} numbers learn",
        learning=f"predicts {recipe.scheduler.objective} under {recipe.scheduler.noise} noise, as "
                 "before",
        training=f"{plural(config.steps, 'step')} of {groups} examples, learning rate "
                 f"{config.learning_rate:.3g}")


def tell(prepared, concept):
    """Print the last evaluation, and what to do with the model."""
    from minifm.cli import program
    trainer = prepared.trainer
    found = next((line for line in reversed(trainer.metrics.read()) if "held_out_loss" in line), {})
    if found:
        print(f"held out   {found['held_out_loss']:.4f} {trainer.objective.scale} a "
              f"{trainer.objective.unit} (step {found['step']})")
    asked = trainer.sketch.asked[0]
    flag = "" if asked is None else \
        f' --prompt "{asked}"' if getattr(trainer.model, "tokenizer", None) else \
        f" --classes {asked}" if concept.concept else ""
    print(f"saved as   {trainer.directory}/last; try: {program()} sample {trainer.directory}/last"
          f"{flag} --out a{trainer.companion.kind.extension}")
