"""A judge of what models make: a small classifier that has learnt from the real pictures of a run,
in whose features made pictures are compared with real ones (evaluation/distribution.py).

    judge = judge_of("runs/digits/judge", examples)     # trained, or read where it is there already
    judge.accuracy                                      # on real pictures that it has never seen
    judge.quality(made, 180)                            # beside judge.reference(180): real ones

Its directory is that of any run, with features.safetensors: what it sees in the real pictures. The
Fréchet distance of other papers is in features of a large network that has learnt other pictures;
the numbers cannot be compared.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from minifm import ops
from minifm.config import check, setting
from minifm.errors import ConfigError, FormatError, plural
from minifm.evaluation.distribution import NEIGHBOURS, Real
from minifm.hub import load_arrays, save_arrays
from minifm.media import PICTURE
from minifm.models import ClassifierConfig, PictureClassifier
from minifm.picture import COLOURS, can_draw, picture
from minifm.rng import Rng
from minifm.tensor import no_grad
from minifm.training import checkpoint
from minifm.training.config import TrainConfig
from minifm.training.report import Metrics
from minifm.training.rounds import HeldOutPictures, PictureObjective, TrainingPictures
from minifm.training.trainer import Trainer

FEATURES = "features.safetensors"
FEWEST = 2 * NEIGHBOURS     # examples to be compared
STEPS, BATCH = 400, 64
WIDTHS, SMALLEST = (24, 48), 4          # of the first level and the others; pixels of the last


@dataclass(frozen=True)
class JudgeConfig:
    """Whether a run measures how good what it makes is."""

    judge: int = setting(
        0, "pictures to make at each evaluation, to be compared with real ones in the features of "
        "a classifier that learns from the same data: the best checkpoint is then the one of the "
        f"least Fréchet distance; at least {FEWEST}, or 0: none", least=0)

    def __post_init__(self):
        check(self)
        if 0 < self.judge < FEWEST:
            raise ConfigError(f"judge: expected 0, or at least {FEWEST} pictures to be compared, "
                              f"got {self.judge}")

    def curve(self, directory, examples, maker, seed, asks):
        """The QualityCurve of a run, None where none is wanted: asks(places) is what `maker` is
        asked for to make such as the Examples at these places. Raises ConfigError."""
        if not self.judge:
            return None
        require_judged(examples)
        places = drawn_places(examples, self.judge, Rng(seed).child("judged"))
        return QualityCurve(directory, examples, asks(places), maker, seed=seed)


class Recognition(PictureObjective):
    """Say the class: the batch is (pictures [B, C, H, W], labels [B])."""

    name, unit, scale = "recognition", "picture", "nats"
    description = {"learning": "classes"}

    def arrays(self, examples, places, rng):
        return examples.take(places), examples.labels[places].astype(np.int64)

    def training_loss(self, model, batch, *, denominator, rng):
        x, labels = batch
        return ops.cross_entropy(model(x), labels, denominator=denominator), {}


@dataclass(frozen=True)
class Judge:
    """network    a PictureClassifier
    real       the Real features of the pictures that it has learnt
    held_out   features [M, F] of real pictures that it has not
    accuracy   the part of these whose class it says
    """

    network: PictureClassifier
    real: Real
    held_out: np.ndarray
    accuracy: float

    def features(self, x):
        """float64 [N, F] of pictures x [N, C, H, W], which are clipped to what files hold."""
        return seen(self.network, x)[0]

    def quality(self, made, size):
        """The Quality of made pictures [N, C, H, W], in parts of `size`."""
        return self.real.quality(self.features(made), size)

    def reference(self, size):
        """That of the real held-out pictures, to compare with. It is no bound: of what it has
        learnt from, a network sees a little more than of the same kind elsewhere, and so a model
        that has learnt from the same pictures may come nearer to them than these do."""
        return self.real.quality(self.held_out, size)

    def size(self, count):
        """How many examples are compared at once, where so many are made."""
        return min(count, len(self.held_out))


def judge_of(directory, examples, *, seed=0, shown=False):
    """The Judge of Examples, whose run lies in `directory`: read where it is finished, gone on with
    where it is not. The same for the same data and seed.

    Raises ConfigError for data without classes, or that are no pictures; where the directory holds
    one of other data; FormatError for damaged files.
    """
    require_judged(examples)
    directory = Path(directory)
    trainer = _trainer(directory, examples, seed, shown)
    if checkpoint.steps_in(directory):
        trainer.resume()
    if trainer.step < STEPS:
        trainer.train()
    features = _features(directory, trainer.model, examples)
    return Judge(trainer.model, Real(features["training"]), features["held_out"],
                 float(features["accuracy"]))


def require_judged(examples):
    """Raise ConfigError for examples of which there can be no judge."""
    if examples.kind is not PICTURE:
        raise ConfigError(f"judge: it looks at pictures, not at {examples.kind.name}s")
    if examples.labels is None or len(examples.classes) < 2:
        raise ConfigError("judge: the data have no classes that it could learn to tell apart")
    for part, places in examples.parts.items():
        if len(places) < FEWEST:
            raise ConfigError(f"judge: the data have {plural(len(places), part + ' example')}; "
                              f"expected at least {FEWEST}")


def _trainer(directory, examples, seed, shown):
    objective = Recognition()
    rng, batch = Rng(seed).child("judge"), min(BATCH, len(examples.parts["training"]))
    parts = [kind(objective, examples, examples.parts[part], batch=batch, rng=rng.child(part))
             for kind, part in ((TrainingPictures, "training"), (HeldOutPictures, "held_out"))]
    C, H, W = map(int, examples.shape)
    shape = ClassifierConfig(inputs=C, classes=len(examples.classes), widths=widths_for(H, W))
    config = TrainConfig(steps=STEPS, batch=batch, seed=seed, learning_rate=2e-3, beta2=0.99,
                         weight_decay=0.01, evaluate_every=STEPS // 4, save_every=STEPS // 4)
    return Trainer(PictureClassifier(shape, rng.child("model")), parts[0], config,
                   directory=directory, objective=objective, held_out=parts[1], shown=shown,
                   draw=False, check_memory=False)


def widths_for(height, width):
    """Widths of so many levels that at the last one few pixels are left of a side."""
    levels = 1
    while min(height, width) >= 2 * SMALLEST and height % 2 == width % 2 == 0 and levels < 4:
        height, width, levels = height // 2, width // 2, levels + 1
    return WIDTHS[:1] + WIDTHS[1:] * (levels - 1)


def _features(directory, network, examples):
    """{"training", "held_out": features, "accuracy": [1]}, from the file where there is one."""
    file = directory / FEATURES
    expected = {part: (len(places), network.config.widths[-1])
                for part, places in examples.parts.items()} | {"accuracy": ()}
    if not file.exists():
        found, right = {}, 0
        for part, places in examples.parts.items():
            found[part], labels = seen(network, examples.take(places))
            right = np.mean(labels == examples.labels[places])
            if part == "held_out":
                found["accuracy"] = np.array(right)
        save_arrays(found, file)
    found = load_arrays(file)
    if {name: array.shape for name, array in found.items()} != expected:
        raise FormatError(file, None, "has not the features of these pictures; delete it, and it "
                          "is made again")
    return found


def seen(network, x):
    """(features float64 [N, F], labels [N]) of pictures x [N, C, H, W]: what the network sees in
    them, and takes them for."""
    features, labels = [], []
    with no_grad():
        for start in range(0, len(x), BATCH):
            found = network.features(np.clip(x[start : start + BATCH], -1, 1).astype(np.float32))
            features.append(found.numpy().astype(np.float64))
            labels.append(network.output(found).numpy().argmax(1))
    return np.concatenate(features), np.concatenate(labels)


# -- while a model learns --------------------------------------------------------------------------


class QualityCurve:
    """What a run measures of the pictures that its model makes, and a picture of how that goes.

    At each evaluation `maker.made(network, asked)` makes one for each that is asked for, always of
    the same noise.
    """

    def __init__(self, directory, examples, asked, maker, *, seed=0):
        """Raises ConfigError for examples of which there can be no judge."""
        require_judged(examples)
        self.directory, self.examples, self.maker = Path(directory), examples, maker
        self.asked, self.seed, self.judge = asked, seed, None

    def teach(self):
        """Teach the judge, or read it where it has learnt already, in directory/judge."""
        self.judge = judge_of(self.directory / "judge", self.examples, seed=self.seed)
        self.size = self.judge.size(len(self.asked))
        self.reference = self.judge.reference(self.size).figures

    def measure(self, network):
        """{"frechet_distance", "precision", "recall"} of what the network makes."""
        made = self.maker.made(network, self.asked)
        return self.judge.quality(made, self.size).figures

    def sketch(self, network, step):
        """A snapshot, and quality.png: the figures of all evaluations up to this one."""
        self.maker(network, step)
        draw_quality([line for line in Metrics(self.directory / "metrics.jsonl").read()
                      if "scores" in line], self.reference, self.directory / "quality.png",
                     f"{self.size} pictures; features of a classifier that is right on "
                     f"{self.judge.accuracy:.1%} of real held-out ones")


def drawn_places(examples, count, rng):
    """int64 [count]: places of examples to train on, drawn at random. Such as these are to be made:
    their classes are then no more even than those of real held-out examples are."""
    known = examples.parts["training"]
    return known[rng.integers(0, len(known), (count,))]


def spelt(name):
    """A figure's name as people write it."""
    return name.replace("frechet_distance", "Fréchet distance")


def draw_quality(lines, reference, path, title):
    """The Fréchet distance, and precision and recall, of `lines` {"step", "scores"}, over the
    steps, and dashed the same of real held-out pictures. Draws nothing without matplotlib."""
    if not can_draw():
        return
    steps = [line["step"] for line in lines]
    with picture(path, 9, 4) as figure:
        figure.suptitle(title, fontsize=9, x=0.01, ha="left")
        for axes, names in zip(figure.subplots(1, 2),
                               (["frechet_distance"], ["precision", "recall"])):
            for name, colour in zip(names, COLOURS):
                axes.plot(steps, [line["scores"][name] for line in lines], "o-", color=colour,
                          markersize=3, linewidth=1, label=spelt(name))
                axes.axhline(reference[name], color=colour, linewidth=1, linestyle="--",
                             label="the same of real ones, held out")
            axes.set(xlabel="step", title=" and ".join(map(spelt, names)))
            axes.grid(True)
            axes.legend(fontsize=8)
        figure.axes[0].set_yscale("log")
        figure.axes[1].set_ylim(0, 1.02)
