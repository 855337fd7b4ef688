"""Learning in context, measured: a small GPT learns from episodes (tasks/incontext.py), and is then
asked about rules that it never met, after 0, 1, … 16 examples in its prompt; no weight changes.

    DIRECTORY/
      run.json          the settings of training
      step-…/  last  metrics.jsonl  loss.png        a run like any other (training/trainer.py)
      incontext.json  incontext.png                 accuracy by family and number of examples
"""

import math
from dataclasses import asdict
from pathlib import Path

import numpy as np

from minifm.atomic import write_json
from minifm.models import GPT, GPTConfig
from minifm.rng import Rng
from minifm.tasks.incontext import FAMILIES, LENGTH, SHOTS, VOCABULARY, Episodes
from minifm.tasks.pictures import draw_learning
from minifm.tensor import no_grad
from minifm.training.config import TrainConfig
from minifm.training.run import (
    newest_checkpoint,
    read_settings,
    require_writable,
    run_directory,
    write_run,
)
from minifm.training.timing import measured_step
from minifm.training.trainer import Trainer

SHAPE = GPTConfig(vocabulary=VOCABULARY, context=LENGTH, layers=4, heads=4, width=128, dropout=0.0)
BATCH = 16
Z = 1.959964            # standard deviations to either side that hold 95 % of a normal distribution


def configuration(minutes, seed, steps=None):
    """The TrainConfig of a run that takes about so many minutes here: a step is timed first,
    unless their number is given."""
    if steps is None:
        steps = max(20, int(60 * minutes / measured_step(SHAPE, BATCH, LENGTH)))
    every = max(1, steps // 10)
    return TrainConfig(steps=steps, batch=BATCH, seed=seed, learning_rate=3e-3, weight_decay=0.01,
                       evaluate_every=every, evaluate_batches=4, save_every=every)


def prepare(directory, config=None, *, shown=True):
    """The Trainer of a run: a new one by `config`, or, without, the one in `directory`, taken up
    at its newest checkpoint. Raises ConfigError where there is no such run, or one in the way."""
    directory = run_directory(directory, ())
    resumed = config is None
    if resumed:
        config = TrainConfig(**read_settings(directory, "incontext"))
    newest_checkpoint(directory, resumed)
    require_writable(directory)
    trainer = Trainer(
        GPT(SHAPE, Rng(config.seed).child("model")), Episodes(batch=config.batch, seed=config.seed),
        config, directory=directory, shown=shown,
        held_out=Episodes(batch=config.batch, seed=config.seed, held_out=True))
    if resumed:
        trainer.resume()
    else:
        directory.mkdir(parents=True, exist_ok=True)
        write_run(directory, "incontext", asdict(config), trainer)
    return trainer


def accuracy(model, family, *, episodes, seed, held_out=True):
    """Of how many episodes the answer after 0 … 16 examples is right, int64 [17].

    An answer is right when each of its tokens is the likeliest, given those before it: then, and
    only then, greedy decoding writes it. So one pass over an episode asks at every number of
    examples at once.
    """
    right = np.zeros(SHOTS + 1, np.int64)
    source = Episodes(batch=min(episodes, 50), seed=seed, held_out=held_out, families=(family,))
    for first in range(0, episodes, source.rows):
        ids, targets = (x[: episodes - first] for x in source.batch(first // source.rows))
        with no_grad():
            guessed = model(ids).numpy().argmax(-1)                             # [B, T]
        # Answers are at the end of each example, and predicted one token earlier.
        places = np.arange(SHOTS + 1)[:, None] * family.size \
            + family.inputs + 1 + np.arange(family.outputs)                     # [17, outputs]
        right += (guessed == targets)[:, places].all(-1).sum(0)
    return right


def interval(right, of, z=Z):
    """The 95 % interval of a fraction seen as `right` of `of` (Wilson 1927): (low, high)."""
    p, spread = right / of, z * z / of
    half = z * math.sqrt(p * (1 - p) / of + spread / (4 * of))
    return ((p + spread / 2 - half) / (1 + spread), (p + spread / 2 + half) / (1 + spread))


def finish(trainer, *, episodes=400):
    """Ask about `episodes` held-out rules of each family; writes the results and their picture,
    and returns {family: {"chance": [17], "accuracy": [17], "interval": [17][2], "rises": …}}.

    `rises` says whether the whole interval after 16 examples is above chance (Family.chance).
    """
    found, seed = {}, trainer.config.seed + 1           # other episodes than those watched
    for family in FAMILIES:
        right = accuracy(trainer.model, family, episodes=episodes, seed=seed).tolist()
        between = [interval(n, episodes) for n in right]
        found[family.name] = {
            "chance": [family.chance(shots) for shots in range(SHOTS + 1)],
            "accuracy": [n / episodes for n in right], "interval": between,
            "rises": between[-1][0] > family.chance(SHOTS)}
    directory = Path(trainer.directory)
    write_json({"step": trainer.step, "episodes": episodes, "families": found},
               directory / "incontext.json")
    draw_learning({name: list(enumerate(f["accuracy"])) for name, f in found.items()},
                  directory / "incontext.png", xlabel="examples in the prompt",
                  ylabel="accuracy on held-out rules",
                  levels={f"{name}: chance at {SHOTS}": f["chance"][-1]
                          for name, f in found.items()})
    return found
