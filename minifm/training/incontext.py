"""Learning in context, measured: a small model learns from episodes (tasks/incontext.py), and is
then asked about rules that it never met, after 0, 1, 2, … examples in its prompt; no weight
changes. As a control it is asked once more with the answers in the prompt shuffled: what it still
knows then, it has not learnt from the examples.

    DIRECTORY/
      run.json          the settings of training
      step-…/  last  metrics.jsonl  loss.png        a run like any other (training/trainer.py)
      incontext.json  incontext.png                 accuracy by family and number of examples
"""

import math
from dataclasses import asdict
from pathlib import Path

import numpy as np

from minifm import backends
from minifm.atomic import write_json
from minifm.errors import FormatError, require_finite
from minifm.models import LlamaConfig
from minifm.rng import Rng
from minifm.tasks.incontext import ALONE, FAMILIES, LENGTH, VOCABULARY, Episodes, orders
from minifm.tasks.pictures import draw_in_context
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

# Small, so that steps are cheap: what has to form is a circuit of two layers. Rotary positions (a
# Llama's), because for them "the token before" is one turn, where a GPT's positions have to learn
# it place by place; their base fits rows of 36 tokens: with the usual 10000, half of a head's 8
# angles hardly change along such a row. In trials with that base and a tied head the loss of
# mapping was 1.90 after 800 steps, where guessing has 2.08; with this it is 1.30.
SHAPE = LlamaConfig(vocabulary=VOCABULARY, context=LENGTH, layers=2, heads=4, width=64,
                    theta=100.0)
BATCH, STEPS = 40, 25_000
RECORD, PICTURE = "incontext.json", "incontext.png"
# The usual initial weights, N(0, 0.02²), are those of layers 2,500 wide (1 / √2500), and of layers
# 64 wide they make attention all but even over the prompt: a long plateau. So they are made larger.
SPREAD = 4.0
Z = 1.959964            # standard deviations to either side that hold 95 % of a normal distribution


def new_model(seed):
    """The Llama to be trained, its matrices SPREAD times as large as usual."""
    model = SHAPE.model(SHAPE, Rng(seed).child("model"))
    for parameter in model.parameters().values():
        if len(parameter.shape) == 2:
            parameter.data = backends.active().multiply(parameter.data, SPREAD)
    return model


def configuration(seed, *, steps=None, minutes=None):
    """The TrainConfig of a run of so many steps (default: STEPS), or of about so many minutes
    here: then a step is timed first."""
    if minutes is not None:
        steps = max(20, int(60 * minutes / measured_step(SHAPE, BATCH, LENGTH)))
    steps = STEPS if steps is None else steps
    every = max(1, steps // 20)
    return TrainConfig(steps=steps, batch=BATCH, seed=seed, learning_rate=3e-3, weight_decay=0.01,
                       evaluate_every=every, evaluate_batches=4, save_every=every)


def prepare(directory, config=None, *, shown=True):
    """The Trainer of a run: a new one by `config`, or, without, the one in `directory`, taken up
    at its newest checkpoint. Raises ConfigError where there is no such run, or one in the way."""
    directory = run_directory(directory, ())
    resumed = config is None
    if resumed:
        config = _stored(directory)
    newest_checkpoint(directory, resumed)
    require_writable(directory, RECORD, PICTURE)
    trainer = Trainer(
        new_model(config.seed), Episodes(batch=config.batch, seed=config.seed, alone=ALONE),
        config, directory=directory, shown=shown,
        held_out=Episodes(batch=config.batch, seed=config.seed, held_out=True))
    if resumed:
        trainer.resume()
    else:
        directory.mkdir(parents=True, exist_ok=True)
        write_run(directory, "incontext", asdict(config), trainer)
    return trainer


def _stored(directory):
    """The TrainConfig in a run's run.json; raises FormatError for settings that are none."""
    settings = read_settings(directory, "incontext")
    try:
        return TrainConfig(**settings)
    except TypeError as error:          # it names the key
        raise FormatError(directory / "run.json", "settings", str(error)) from error


def accuracy(model, family, *, episodes, seed):
    """Of how many episodes of held-out rules the answer after 0, 1, … examples is right, int64
    [shots + 1].

    An answer is right when each of its tokens is the likeliest, given those before it: then, and
    only then, greedy decoding writes it. So one pass over an episode asks at every number of
    examples at once.
    """
    right = np.zeros(family.shots + 1, np.int64)
    for ids, targets in _asked(family, episodes, seed):
        right += _right(model, family, ids, targets).sum(0)
    return right


def shuffled_accuracy(model, family, *, episodes, seed):
    """Of how many of the same episodes the last answer is right when those before it, in the
    prompt, have been shuffled among each other. Questions, answers and their form are as they were;
    of the rule there is left what the answers tell by how often each has come."""
    right, rng = 0, Rng(seed).child("shuffled answers")
    for n, (ids, targets) in enumerate(_asked(family, episodes, seed)):
        examples = ids[:, 1 : 1 + family.shots * family.size].reshape(len(ids), -1, family.size)
        order = orders(len(ids), family.shots, rng.child(n))[..., None]
        examples[..., family.inputs :] = np.take_along_axis(
            examples[..., family.inputs :], order, 1)
        ids[:, 1 : 1 + family.shots * family.size] = examples.reshape(len(ids), -1)
        right += int(_right(model, family, ids, targets)[:, -1].sum())
    return right


def _asked(family, episodes, seed):
    """(ids, targets) of so many episodes of held-out rules, at most 50 at a time."""
    source = Episodes(batch=min(episodes, 50), seed=seed, held_out=True, families=(family,))
    for first in range(0, episodes, source.rows):
        yield tuple(x[: episodes - first] for x in source.batch(first // source.rows))


def _right(model, family, ids, targets):
    """bool [B, shots + 1]: which answers the model gives."""
    with no_grad():
        logits = model(ids).numpy()                                             # [B, T, V]
    require_finite(logits)
    guessed = logits.argmax(-1)                                                 # [B, T]
    right = (guessed == targets).reshape(len(ids), -1, family.size)[..., family.inputs :]
    return right.all(-1)


def interval(right, of, z=Z):
    """The 95 % interval of a fraction seen as `right` of `of` (Wilson 1927): (low, high)."""
    p, spread = right / of, z * z / of
    half = z * math.sqrt(p * (1 - p) / of + spread / (4 * of))
    middle = p + spread / 2
    # 0 <= low <= p <= high <= 1, but for rounding
    return (max(0.0, min(p, (middle - half) / (1 + spread))),
            min(1.0, max(p, (middle + half) / (1 + spread))))


def finish(trainer, *, episodes=400):
    """Ask in `episodes` episodes about the held-out rules of each family, of which `compare` has
    fewer than a dozen; writes the results, and their picture where matplotlib is installed, and
    returns {family: {"chance": [N], "accuracy": [N], "interval": [N][2], "shuffled": …,
    "rises": …}}, N being the family's shots + 1.

    `shuffled` is the accuracy after the most examples when their answers are shuffled; `rises`,
    whether the whole interval after the most examples is above chance (Family.chance).
    """
    found, seed = {}, trainer.config.seed + 1           # other episodes than those watched
    for family in FAMILIES:
        asked = {"episodes": episodes, "seed": seed}
        right = accuracy(trainer.model, family, **asked).tolist()
        between = [interval(n, episodes) for n in right]
        chance = [family.chance(shots) for shots in range(family.shots + 1)]
        found[family.name] = {
            "chance": chance, "accuracy": [n / episodes for n in right], "interval": between,
            "shuffled": shuffled_accuracy(trainer.model, family, **asked) / episodes,
            "rises": between[-1][0] > chance[-1]}
    directory = Path(trainer.directory)
    write_json({"step": trainer.step, "tokens": trainer.tokens, "episodes": episodes,
                "families": found}, directory / RECORD)
    draw_in_context(found, directory / PICTURE)
    return found
