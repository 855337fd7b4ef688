"""Are examples that a model has made what was asked for, and its own?

    recognised   a judge looks at what was made: how often does it see the class that was asked
                 for? What it reaches on real held-out examples says how far to trust it. Of what
                 minifm makes itself (letters, tones, …), the judge is a function that reads it;
                 else it is a classifier that has learnt from the real training examples alone
    copies       how far is the nearest training example, beside the same of real examples that
                 were held out? A model that copies makes examples nearer than any real one is

Distances are root mean squares over the numbers of an example, which are in -1 … 1.
"""

from dataclasses import dataclass

import numpy as np

from minifm import media
from minifm.errors import ConfigError

NEAR = 0.05         # the part of real held-out examples that is called near the training examples


@dataclass(frozen=True)
class Recognised:
    """Fractions of examples that the judge gives the right class, real held-out ones and those
    made; and of these for each class, {name: fraction}.

    judge   what the judge is
    manner  the part of those made that also has a manner (a style, a timbre, a way to move);
            None where the judge sees none
    """

    real: float
    made: float
    by_class: dict
    judge: str
    manner: float | None = None


@dataclass(frozen=True)
class Distances:
    """From each example to the nearest training example, [N]: of real held-out ones, and of those
    made."""

    real: np.ndarray
    made: np.ndarray

    @property
    def threshold(self):
        """The distance below which NEAR of the real examples are."""
        return float(np.quantile(self.real, NEAR))

    @property
    def near(self):
        """The part of those made that is nearer than the threshold: about NEAR for a model that
        makes what is as new as real examples; 1 for one that copies."""
        return float(np.mean(self.made < self.threshold))

    @property
    def copies(self):
        """The part of those made that is nearer than half of the nearest real example."""
        return float(np.mean(self.made < 0.5 * self.real.min()))


def recognised(examples, made, labels):
    """Recognised, of `made` [N, C, *space] that were asked to be of `labels` [N], numbers of the
    Examples' classes. Raises ConfigError without classes, and where a classifier is needed without
    scikit-learn."""
    if examples.labels is None:
        raise ConfigError("check: the data have no classes to be recognised")
    name, held_out = examples.description["name"], examples.parts["held_out"]
    if name in media.READERS:
        judge, see = f"the reader of {name}", lambda x: media.READERS[name](x, examples)
    else:
        judge, see = "a support-vector machine", classifier(examples)
    found, real = see(np.clip(made, -1, 1)), see(examples.take(held_out))
    right = named(found, examples) == labels
    manners = [manner for _, manner in found]
    return Recognised(
        float(np.mean(named(real, examples) == examples.labels[held_out])), float(right.mean()),
        {examples.classes[label]: float(right[labels == label].mean())
         for label in np.unique(labels)},
        judge, None if not any(manner for _, manner in real) else
        float(np.mean([manner is not None for manner in manners])))


def resembling(examples, made, labels):
    """Recognised by what is like it: a thing is of the class that the nearest held-out example has.
    Of a class that few examples are learnt from, a classifier has learnt too little to judge; of
    these, none is known to the judge. The real ones that it is tried on are the training examples.
    """
    training, held_out = (examples.parts[part] for part in ("training", "held_out"))
    others = rows(examples.take(held_out))
    seen, real = (examples.labels[held_out][which_nearest(rows(x), others)]
                  for x in (made, examples.take(training)))
    return Recognised(
        float(np.mean(real == examples.labels[training])), float(np.mean(seen == labels)),
        {examples.classes[label]: float(np.mean(seen[labels == label] == label))
         for label in np.unique(labels)}, "the nearest held-out example")


def named(found, examples):
    """The labels [N] of the things in [(thing, manner)]; -1 for none."""
    return np.array([examples.classes.index(thing) if thing in examples.classes else -1
                     for thing, _ in found])


def classifier(examples):
    """A function of [N, C, *space] -> [(class, None)] that has learnt from the training examples:
    scikit-learn's support-vector machine with a Gaussian kernel."""
    try:
        from sklearn.svm import SVC
    except ImportError:
        raise ConfigError("check: it needs scikit-learn, which is not installed (the extra data "
                          "brings it: pip install 'minifm[data]')") from None
    training = examples.parts["training"]
    judge = SVC(C=10.0, gamma="scale").fit(rows(examples.take(training)),
                                           examples.labels[training])
    return lambda x: [(examples.classes[label], None) for label in judge.predict(rows(x))]


def distances(examples, made):
    """Distances, of `made` [N, C, *space] and of the Examples' held-out ones."""
    training = rows(examples.take(examples.parts["training"]))
    return Distances(nearest(rows(examples.take(examples.parts["held_out"])), training),
                     nearest(rows(made), training))


def rows(x):
    """[N, C, *space] as float64 [N, C · Π space], with what files could not hold clipped."""
    return np.clip(np.asarray(x, np.float64), -1, 1).reshape(len(x), -1)


def nearest(x, others, at_once=256):
    """The distance from each row of x [N, D] to the nearest of `others` [M, D]: [N]. It is 0 for a
    copy."""
    return np.sqrt(((x - others[which_nearest(x, others, at_once)]) ** 2).mean(-1))


def which_nearest(x, others, at_once=256):
    """Which of `others` [M, D] is nearest to each row of x [N, D]: int64 [N], by |b|² - 2 a·b."""
    squares = (others ** 2).sum(-1)
    return np.concatenate([(squares - 2 * part @ others.T).argmin(1)
                           for part in np.array_split(x, -(-len(x) // at_once))])
