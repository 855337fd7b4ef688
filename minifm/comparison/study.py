"""The comparison: every contestant learns the same pictures, with as many weights and as many
floating-point operations; then each makes pictures of the same classes, and the same is measured of
all of them.

    runs/NAME/
      compare.json       the settings, the steps of each contestant, and the data's digest
      judge/             the classifier in whose features pictures are compared
      autoencoder/ …     the run of each, with made.npy and made.png
      results.jsonl      a line for each finished contestant
      report.json  report.html  samples.png

Operations, not seconds, are what all have the same of: they are the same on a busy machine, and a
study that is stopped goes on as if it had not been. How long each took is in the report. It may be
killed at any moment: a finished contestant has its lines, and the one at hand goes on from its
checkpoint.
"""

import json
import os
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

import minifm
from minifm import backends
from minifm.atomic import exclusive, write_json
from minifm.comparison.contestants import contestants, makers
from minifm.config import check, setting
from minifm.errors import ConfigError, FormatError, plural
from minifm.evaluation.made import distances, recognised
from minifm.generation.condition import condition_of
from minifm.media import Examples, drawing
from minifm.models import ARCHITECTURES, UNet, UNetConfig
from minifm.rng import Rng
from minifm.training import checkpoint
from minifm.training.denoising import (
    ExamplesConfig,
    NoiseConfig,
    NoiseObjective,
    TrainingExamples,
    open_examples,
)
from minifm.training.judging import FEWEST, drawn_places, judge_of, require_judged
from minifm.training.networks import recipe_of, shape_for
from minifm.training.pictures import OBJECTIVES
from minifm.training.report import Metrics, seconds_of
from minifm.training.run import require_writable, run_directory
from minifm.training.timing import seconds_of_update
from minifm.training.told import told_of

FILE, RESULTS, FORMAT = "compare.json", "results.jsonl", 1
LEAST_STEPS = 10
ROWS = 4                    # of pictures shown of each


@dataclass(frozen=True)
class CompareConfig:
    """How long all learn, and how much is made to be measured."""

    minutes: float = setting(2.0, "about so long learns the diffusion model; all others learn for "
                             "as many operations", above=0)
    steps: int | None = setting(None, "so many steps learns the diffusion model, in place of "
                                "--minutes", least=LEAST_STEPS)
    batch: int = setting(64, "pictures in one step", least=1)
    count: int = setting(540, "pictures that each makes to be measured", least=FEWEST)

    __post_init__ = check


@dataclass(frozen=True)
class Study:
    """A comparison in its directory.

    steps   {name of a contestant: its steps}
    flops   operations of the training of each, about
    """

    directory: Path
    config: CompareConfig
    wanted: ExamplesConfig
    examples: Examples
    contestants: list
    steps: dict
    flops: float

    @property
    def results(self):
        return Metrics(self.directory / RESULTS)

    @property
    def labels(self):
        """int64 [count]: the classes that all are asked for, as often as they are in the data."""
        rng = Rng(self.wanted.seed).child("compare", "labels")
        return self.examples.labels[drawn_places(self.examples, self.config.count, rng)]

    def remaining(self):
        """The contestants that have no results yet."""
        done = {row["contestant"] for row in self.results.read()}
        return [each for each in self.contestants if each.name not in done]

    def run(self, say=lambda line: None, shown=True):
        """Train and measure what remains; returns what there is to report, a dictionary. Raises
        Interrupted after SIGINT or SIGTERM, when the run at hand has been saved."""
        with exclusive(self.directory):
            rows = self.results.read()
            self.results.rewind(max((row["step"] for row in rows), default=0), rows)
            say("teaching a judge what the pictures are …")
            judge = judge_of(self.directory / "judge", self.examples, seed=self.wanted.seed)
            for contestant in self.remaining():
                say(f"\n{contestant.name}: {plural(self.steps[contestant.name], 'step')}")
                line = self.train(contestant, judge, shown)
                self.results.append(line)
                self.results.sync()
                for row in line["rows"]:
                    say(told(row))
            found = self.report(judge)
            write_json(found, self.directory / "report.json")
            return found

    def train(self, contestant, judge, shown):
        """The results of one contestant, trained from where its directory says: what it took, and
        in `rows` what is measured of each of its makers."""
        place, steps = self.directory / contestant.name, self.steps[contestant.name]
        config = contestant.config(steps, self.config.batch, self.wanted.seed)
        prepared = contestant.prepare(place, self.wanted, config, shown=shown,
                                      resume=bool(checkpoint.steps_in(place)))
        trainer = prepared.trainer
        trainer.train()
        objective, batch = trainer.objective, trainer.batches.batch(0)
        line = {
            "step": steps, "contestant": contestant.name,
            "parameters": trainer.model.config.parameters,
            "flops": objective.flops(trainer.model, batch) * steps,
            "training_seconds": seconds_of(trainer.metrics.read(), objective.reads)}
        with trainer.judged():
            made = makers(contestant, prepared, self.labels, self.wanted.seed)
            line["rows"] = [{"name": name} | self.measured(place, maker, judge)
                            for name, maker in made.items()]
        return line

    def measured(self, place, maker, judge):
        """What is measured of the pictures of a maker, which are kept in `place`."""
        started = time.perf_counter()
        x = np.clip(maker.make(), -1, 1)
        seconds = (time.perf_counter() - started) / len(x)
        stem = "made" if maker.classed else "made-unasked"
        drawing.write_array(place / f"{stem}.npy", x)
        self.show(place / f"{stem}.png", x, self.labels)
        far = distances(self.examples, x)
        found = recognised(self.examples, x, self.labels) if maker.classed else None
        return {"seconds_of_a_sample": seconds, "pictures": f"{place.name}/{stem}.png",
                "recognised": found and found.made, "nearest": float(np.median(far.made)),
                "near": far.near, "copies": far.copies,
                **asdict(judge.quality(x, judge.size(len(x))))}

    def show(self, path, x, labels):
        """ROWS pictures of each class below each other, as far as there are so many."""
        seen = picked(x, labels, len(self.examples.classes))
        drawing.write_png(path, drawing.grid(self.examples.kind.view(seen), seen.shape[0] // ROWS))

    def report(self, judge):
        """All that was found, as a dictionary of what JSON holds."""
        held_out = self.examples.parts["held_out"]
        x, labels = self.examples.take(held_out), self.examples.labels[held_out]
        self.show(self.directory / "real.png", x, labels)
        size = judge.size(self.config.count)
        far, seen = distances(self.examples, x), recognised(self.examples, x, labels)
        reference = {
            "name": "real, held out", "pictures": "real.png", "recognised": seen.real,
            "nearest": float(np.median(far.real)), "near": far.near, "copies": far.copies,
            **asdict(judge.reference(size))}
        return {
            "data": self.examples.description["name"],
            "shape": list(map(int, self.examples.shape)),
            "training": len(self.examples.parts["training"]),
            "held_out": len(held_out), "classes": len(self.examples.classes),
            "count": self.config.count, "size": size, "flops": self.flops,
            "judge_accuracy": judge.accuracy, "recognised_by": seen.judge,
            "near_threshold": far.threshold, "minifm": minifm.__version__,
            "backend": backends.active().describe(), "reference": reference,
            "contestants": self.results.read()}


def picked(x, labels, classes, most=16):
    """[ROWS · K, C, H, W]: of each of K classes, at most so many, ROWS pictures, a column each;
    where there are fewer, the places stay white."""
    K = min(classes, most)
    shown = np.ones((ROWS, K, *x.shape[1:]), x.dtype)
    for k in range(K):
        found = x[labels == k][:ROWS]
        shown[: len(found), k] = found
    return shown.reshape(-1, *x.shape[1:])


def told(row):
    """A line of a result."""
    seen = "" if row["recognised"] is None else f", recognised {row['recognised']:.1%}"
    return (f"{row['name']}: Fréchet distance {row['frechet_distance']:.3f}, precision "
            f"{row['precision']:.3f}, recall {row['recall']:.3f}{seen}")


# -- beginning and going on ------------------------------------------------------------------------


def begin(directory, wanted, config, *, say=lambda line: None):
    """A new Study in `directory`; nothing is trained yet.

    wanted   an ExamplesConfig;  config  a CompareConfig

    Raises ConfigError where the directory holds a study, or the data cannot be compared on.
    """
    directory = run_directory(directory, (wanted.data,))
    if (directory / FILE).exists():
        raise ConfigError(f"{directory} already holds a comparison: go on with it by --resume, or "
                          "choose another --out")
    require_writable(directory)
    examples = examples_of(wanted, say)
    all_of_them = contestants(examples)
    if config.steps is None:
        say("timing a step of the diffusion model …")
        steps = max(LEAST_STEPS, round(60 * config.minutes / seconds_of_diffusion(
            examples, all_of_them[-1], config.batch)))
    else:
        steps = config.steps
    costs = {each.name: cost(each, examples) for each in all_of_them}
    flops = steps * costs["diffusion"]
    planned = {name: max(LEAST_STEPS, round(flops / each)) for name, each in costs.items()}
    study = Study(directory, config, wanted, examples, all_of_them, planned,
                  flops * config.batch)
    write_json({"format": FORMAT, "compare": asdict(config), "examples": asdict(wanted),
                "steps": planned, "flops": study.flops,
                "sha256": examples.description["sha256"]}, directory / FILE)
    return study


def take_up(directory, *, say=lambda line: None):
    """The Study in `directory`, as it was begun. Raises ConfigError where there is none or where
    the data have changed, FormatError for a damaged file."""
    directory = Path(os.path.expanduser(directory))
    file = directory / FILE
    if not file.exists():
        raise ConfigError(f"{directory}: there is no comparison to go on with (no {FILE})")
    try:
        stored = json.loads(file.read_text("utf-8"))
        if stored["format"] != FORMAT:
            raise ValueError(f"its format is {stored['format']}, this version reads {FORMAT}")
        wanted, config = ExamplesConfig(**stored["examples"]), CompareConfig(**stored["compare"])
        steps = {name: int(count) for name, count in stored["steps"].items()}
        flops, digest = float(stored["flops"]), str(stored["sha256"])
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise FormatError(file, None, f"no comparison can be read: {error!r}") from error
    examples = examples_of(wanted, say)
    if examples.description["sha256"] != digest:
        raise ConfigError(f"{directory}: the data are not those of the comparison any more; give "
                          "back what they were, or begin another one")
    return Study(directory, config, wanted, examples, contestants(examples), steps, flops)


def examples_of(wanted, say):
    """The Examples; raises ConfigError for those that models cannot be compared on."""
    examples = open_examples(wanted, say)
    require_judged(examples)
    if examples.shape[1] != examples.shape[2]:
        raise ConfigError(f"size: a gan makes square pictures, these have {examples.shape[1]} × "
                          f"{examples.shape[2]}")
    return examples


def cost(contestant, examples):
    """Floating-point operations of training on one picture."""
    kind = ARCHITECTURES[contestant.arch].config
    follows = shape_for("unet", recipe_of(examples, NoiseConfig())) if contestant.arch == "unet" \
        else OBJECTIVES[contestant.arch].shape_for(examples)
    config, size = kind(**contestant.shape | follows), map(int, examples.shape[1:])
    return config.flops(*(() if contestant.arch == "gan" else size), training=True)


def seconds_of_diffusion(examples, contestant, batch):
    """The seconds of a step of the diffusion model."""
    noise = NoiseConfig()
    recipe = recipe_of(examples, noise)
    network = UNet(UNetConfig(**contestant.shape | shape_for("unet", recipe)), Rng(0))
    table = told_of(examples, condition_of(network, classes=recipe.classes), network)
    objective = NoiseObjective(noise, keywords=table.keywords)
    arrays = TrainingExamples(examples, examples.parts["training"], noise, batch=batch, rng=Rng(0),
                              table=table, description={}).batch(0)
    return seconds_of_update(
        network, lambda: objective.loss(network, arrays, denominator=batch, rng=None))
