"""Which examples a step learns from, and what objectives make of them: functions of the step's
number, so that a resumed run goes on where it was."""

from dataclasses import asdict

import numpy as np

from minifm.training.objectives import Objective


class Rounds:
    """Rounds through all of `places`, int64 [N], without end, each in another order, which `rng`
    decides; a step takes the next `rows` of them."""

    def __init__(self, places, rows, rng):
        self.places, self.rows, self.rng = places, rows, rng
        self._round = None, None                        # its number, its places in order

    def at(self, step):
        """int64 [rows]: the places of a step, which may come in any order."""
        first, N = step * self.rows, len(self.places)
        return np.array([self._order(n // N)[n % N] for n in range(first, first + self.rows)])

    def _order(self, number):
        if self._round[0] != number:
            order = self.rng.child("round", number).permutation(len(self.places))
            self._round = number, self.places[order]
        return self._round[1]


class PictureObjective(Objective):
    """What objectives do alike whose batch begins with pictures [B, C, H, W]."""

    name = ""
    reads = "example"           # what throughput is counted in
    recompute = False
    settings = None             # the class of what it can be set to
    not_chosen = set()          # settings of the network that follow from the pictures
    kept = ()                   # those of them in which a model to start from must agree

    def __init__(self, config=None):
        """`config` is of the class `settings`; `model`, the network's configuration, is told once
        there is one."""
        self.config, self.model = config, None

    def arrays(self, examples, places, rng):
        """A batch of the examples at `places`, with what `rng` decides."""
        raise NotImplementedError(f"{type(self).__name__} does not say what its batches are")

    def begin(self, network):
        """Make a new network ready to learn: most are."""

    def settle(self, model, examples, batch):
        """Give model.config, when it is saved, what follows from its weights: of most nothing."""

    @property
    def description(self):
        """What tells its batches from others of the same pictures."""
        return {"learning": asdict(self.config)}

    def loss(self, model, batch, *, denominator, rng):
        return self.training_loss(model, batch, denominator=denominator, rng=rng)[0]

    def count(self, batch):
        """How many pictures."""
        return len(batch[0])

    tokens = count              # what throughput is measured in

    def flops(self, model, batch):
        return len(batch[0]) * model.config.flops(*batch[0].shape[2:], training=True)


def pictures_at(examples, places, rng, flip):
    """float32 [B, C, H, W], every other one of them mirrored where `flip` says so."""
    x = examples.take(places)
    if flip:
        mirrored = rng.host_uniform((len(x),)) < 0.5
        x[mirrored] = x[mirrored][..., ::-1]
    return x


class TrainingPictures:
    """`batch(step)` of some of the Examples, at `places` among them, made by the objective."""

    def __init__(self, objective, examples, places, *, batch, rng):
        self.objective, self.examples, self.rng = objective, examples, rng
        self.rounds = Rounds(places, batch, rng)
        self.description = described(objective, examples, places, batch)

    def batch(self, step):
        return self.objective.arrays(self.examples, self.rounds.at(step),
                                     self.rng.child("step", step))


class HeldOutPictures:
    """All of the pictures at `places` once, always with the same noise."""

    def __init__(self, objective, examples, places, *, batch, rng):
        self.objective, self.examples, self.places = objective, examples, places
        self.rows, self.rng = batch, rng
        self.description = described(objective, examples, places, batch)

    @property
    def count(self):
        return -(-len(self.places) // self.rows)

    def batch(self, i):
        return self.objective.arrays(
            self.examples, self.places[i * self.rows : (i + 1) * self.rows],
            self.rng.child("held out", i))


def described(objective, examples, places, batch):
    """What names the data in a run."""
    return {"sha256": examples.description["sha256"], "examples": len(places), "rows": batch,
            **objective.description}
