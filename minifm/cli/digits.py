"""The second act of `minifm demo`: from noise to handwritten digits.

A small UNet learns to undo noise on scikit-learn's digits; then it makes new ones, and shows the
way there. The same is done by `pretrain --arch unet` and `sample`, with your own pictures.
"""

import time
from typing import NamedTuple

import numpy as np

from minifm.cli.sample import write_animation, write_strip

SHAPE = {"widths": (24, 48), "attention": (1,), "layers": 1, "head_width": 24, "groups": 8}
BATCH, RATE = 64, 3e-3
LEAST = 50                              # steps
GRID, STRIP, FILM = 40, ("2", "5", "8"), 20
PICTURES = ("grid.png", "strip.png", "denoising.gif")


class Act(NamedTuple):
    """What there is to tell of the second act."""

    facts: dict         # what -> how it was
    folder: str         # of PICTURES, beneath that of the demo
    commands: tuple


def act(out, minutes, seed):
    """Learn for about so many minutes, in the directory `out`/digits, and draw: (exit status, the
    Act or None)."""
    from minifm.cli.pretrain import trained
    from minifm.cli.summaries import of_examples
    print("\nsecond act: a small UNet learns to make handwritten digits out of noise\n")
    prepared = prepared_in(out / "digits", minutes, seed)
    print("\n".join(of_examples(prepared)), end="\n\n", flush=True)
    started = time.perf_counter()
    status = trained(prepared.trainer, after=" (which trains to the end, and draws nothing)")
    if status:
        return status, None
    seconds = time.perf_counter() - started
    with prepared.trainer.judged():
        draw(prepared, out / "digits", seed)
    print(f"\npictures    {', '.join(str(out / 'digits' / name) for name in PICTURES)}")
    trainer = prepared.trainer
    return 0, Act(facts={
        "model": f"UNet, {trainer.model.config.parameters:,} parameters",
        "examples": f"{prepared.examples.count:,} digits of 8 × 8 pixels, written by people; "
                    f"{len(prepared.examples.parts['held_out'])} of them held out",
        "training": f"{trainer.step:,} steps of {BATCH} digits in {seconds / 60:.1f} minutes",
    }, folder="digits", commands=(
        "{minifm} sample {out}/digits --classes 3,7 --guidance 2 --out digits.png",
        "{minifm} sample {out}/digits --count 1000 --check --out digits.npy",
        "{minifm} pretrain --arch unet --data YOUR-PICTURES/ --size 32 --preset unet-small "
        "--out runs/pictures"))


def prepared_in(directory, minutes, seed):
    """The run, of as many steps as the minutes allow: a step is timed first."""
    from minifm.backends.ceilings import flop_ceiling
    from minifm.training.denoising import DenoisingTrainConfig, ExamplesConfig, prepare
    steps = max(LEAST, int(60 * minutes / measured()))
    config = DenoisingTrainConfig(
        steps=steps, batch=BATCH, seed=seed, learning_rate=RATE,
        average=max(0.9, 1 - 15 / steps),       # of about the last fifteenth of the run
        evaluate_every=max(1, steps // 6), save_every=0)
    return prepare(directory, ExamplesConfig(), config, shape=SHAPE, ceiling=flop_ceiling().rate)


def measured():
    """The seconds of a step."""
    from minifm.generation.condition import condition_of
    from minifm.media import digits
    from minifm.models import UNet, UNetConfig
    from minifm.rng import Rng
    from minifm.training.denoising import NoiseConfig, NoiseObjective, TrainingExamples
    from minifm.training.networks import recipe_of, shape_for
    from minifm.training.timing import seconds_of_update
    from minifm.training.told import told_of
    examples, noise = digits(), NoiseConfig()
    recipe = recipe_of(examples, noise)
    network = UNet(UNetConfig(**SHAPE | shape_for("unet", recipe)), Rng(0))
    table = told_of(examples, condition_of(network, classes=recipe.classes), network)
    batch = TrainingExamples(examples, examples.parts["training"], noise, batch=BATCH, rng=Rng(0),
                             table=table, description={}).batch(0)
    objective = NoiseObjective(noise, keywords=table.keywords)
    return seconds_of_update(
        network, lambda: objective.loss(network, batch, denominator=BATCH, rng=None))


def draw(prepared, directory, seed):
    """PICTURES: a grid with a column for each class, noising and denoising of real held-out digits,
    and the way from noise as an animation."""
    from minifm.generation.diffusion import Pipeline, SampleConfig
    from minifm.media import drawing
    pipeline, examples = Pipeline(prepared.trainer.model, prepared.recipe), prepared.examples
    kind, classes = prepared.recipe.kind, prepared.recipe.classes
    config = SampleConfig(seed=seed, guidance=1.5)
    made = pipeline.sample([classes[i % len(classes)] for i in range(GRID)], config)
    drawing.write_png(directory / PICTURES[0], drawing.grid(kind.view(made), len(classes)))
    places = [next(i for i in examples.parts["held_out"] if classes[examples.labels[i]] == name)
              for name in STRIP]
    strip = pipeline.strip(examples.take(np.array(places)), list(STRIP), config)
    write_strip(directory / PICTURES[1], kind, strip)
    states = []
    pipeline.sample([classes[i % len(classes)] for i in range(FILM)], config,
                    watch=lambda i, level, x, found: states.append(x.numpy()))
    write_animation(directory / PICTURES[2], kind, states)
