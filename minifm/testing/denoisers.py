"""Networks that undo noise, as they are timed: a training step, the Trainer's own step, and the
call that samplers make.

A peer is given the same weights: `share` writes them, in the layout of the ecosystem, beside what
the network is shown, and says what we make of it. What a peer makes of it is compared with that
before it is timed (benchmark.py). No weight is zero, as those of the last layers of a new network
are: all would agree on a prediction of zeros.
"""

import shutil
import tempfile
import weakref
from pathlib import Path

import numpy as np

from minifm import backends
from minifm.generation.condition import condition_of
from minifm.hub import save_arrays, save_model
from minifm.media import PICTURE, Examples
from minifm.models import ARCHITECTURES, DiT
from minifm.models.dit import positions_of
from minifm.ops.precision import precision
from minifm.rng import Rng
from minifm.tensor import Tensor, no_grad
from minifm.testing.subjects import StepSubject, Subject, observed
from minifm.training.denoising import (
    DenoisingTrainConfig,
    NoiseConfig,
    NoiseObjective,
    TrainingExamples,
)
from minifm.training.report import Progress
from minifm.training.told import told_of
from minifm.training.trainer import Trainer

SMALL = 0.02            # deviation of the weights that a new network has at zero
PICTURES = 256          # that a Trainer learns from
ENDLESS = 1_000_000     # steps: no run ends while it is timed
SHARED = "shared.safetensors"


def new_network(family, preset=None, B=None, **settings):
    """A UNet or DiT of that preset, or of these settings, none of whose weights is zero."""
    kind = ARCHITECTURES[family]
    config = kind.config(**(kind.presets[preset] if preset else settings))
    network, rng = config.model(config, Rng(0)), Rng(1)
    for i, p in enumerate(network.parameters().values()):
        if not backends.active().to_numpy(p.data).any():
            p.data = backends.active().multiply(rng.child(i).normal(p.shape), SMALL)
    return network


def shape_of(config):
    """[C, *S] of what the network reads."""
    space = config.size if isinstance(config.size, tuple) else (config.size,) * 2
    return config.inputs, *space


def noisy_batch(config, B):
    """What NoiseObjective learns from, made of numbers like those of pictures: (x0, noise, times),
    and labels where the network has some."""
    shape, rng = (B, *shape_of(config)), Rng(2)
    x0 = rng.child("x0").host_uniform(shape, np.float32) * 2 - 1
    noise = rng.child("noise").host_normal(shape)
    times = (np.arange(B) + 0.5) * NoiseConfig().noise_steps // B
    return (x0, noise, times) + ((np.arange(B) % config.classes,) if config.classes else ())


def objective_of(network):
    """The NoiseObjective of such batches."""
    return NoiseObjective(NoiseConfig(), keywords=condition_of(network).keywords)


def share_batch(network, objective, batch, folder):
    """Write the network, the batch and what the objective knows of noise into the folder."""
    save_model(network, folder)
    level = objective.scheduler.schedule.at(np.arange(objective.scheduler.steps))
    x0, noise, times, *labels = batch
    arrays = {"x0": x0, "noise": noise, "times": times.astype(np.int64),
              "alpha": level.alpha.astype(np.float32), "sigma": level.sigma.astype(np.float32)}
    if labels:
        arrays["labels"] = labels[0].astype(np.int64)
    if isinstance(network, DiT):
        c = network.config
        grid = [n // p for n, p in zip(c.size, c.patch)]
        arrays["positions"] = positions_of(grid, grid, c.width).astype(np.float32)
    save_arrays(arrays, Path(folder) / SHARED)


def outcome(loss, optimizer):
    """{"loss", "gradient_norm"} after a backward pass, which is then forgotten."""
    found = {"loss": loss.item(), "gradient_norm": optimizer.gradient_norm()}
    optimizer.zero_grad()
    return found


class DenoisingStep(StepSubject):
    """A StepSubject of a UNet or a DiT, on one noisy batch."""

    def parts(self, family, sizes):
        model = new_network(family, **sizes)
        return model, noisy_batch(model.config, sizes["B"]), objective_of(model)

    def share(self, folder):
        with backends.use(self.backend):
            share_batch(self.model, self.objective, self.batch, folder)
            return outcome(self.forward_backward(), self.optimizer)


class TrainerStep(Subject):
    """A step as `minifm pretrain` makes it: examples are drawn, and times, noise and labels; then
    what DenoisingStep does; then the moving average of the weights, and a line of the log."""

    def __init__(self, backend, family, sizes, precision="fp32"):
        self.backend, folder = backend, tempfile.mkdtemp()
        weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
        with backends.use(backend):
            self.model, B = new_network(family, **sizes), sizes["B"]
            self.objective = objective_of(self.model)
            self.trainer = Trainer(
                self.model, self._batches(B), DenoisingTrainConfig(
                    steps=ENDLESS, batch=B, precision=precision, evaluate_every=0, save_every=0),
                directory=folder, objective=self.objective, shown=False, draw=False,
                check_memory=False)
        self.flops = self.objective.flops(self.model, self.trainer.batches.batch(0))
        self.costs = observed(backend, "step", self.calls, self.flops, 0)

    def _batches(self, B):
        count, shape = self.model.config.classes or 1, shape_of(self.model.config)
        values = Rng(3).integers(0, 256, (PICTURES, *shape)).astype(np.uint8)
        examples = Examples(
            PICTURE, values, np.arange(PICTURES) % count, tuple(map(str, range(count))), None,
            {"training": np.arange(PICTURES), "held_out": np.arange(0)}, {"sha256": ""})
        condition = condition_of(self.model, classes=examples.classes)
        return TrainingExamples(
            examples, examples.parts["training"], NoiseConfig(), batch=B, rng=Rng(4),
            table=told_of(examples, condition, self.model), description=condition.description)

    def calls(self, phase):
        with Progress(0, ENDLESS, shown=False) as bar:
            while True:
                with backends.use(self.backend):
                    self.trainer.advance(bar)
                yield

    def share(self, folder):
        batch = self.trainer.batches.batch(0)
        with backends.use(self.backend):
            share_batch(self.model, self.objective, batch, folder)
            with precision(self.trainer.config.precision):
                loss = self.objective.loss(self.model, batch, denominator=len(batch[0]), rng=None)
                loss.backward()
            return outcome(loss, self.trainer.optimizer)


class NetworkCall(Subject):
    """What a network predicts of a noisy batch, as samplers ask for it: without gradients."""

    def __init__(self, backend, family, sizes, precision="fp32"):
        self.backend, self.precision = backend, precision
        with backends.use(backend):
            self.model = new_network(family, **sizes)
        config = self.model.config
        self.batch = noisy_batch(config, sizes["B"])
        size = config.size if isinstance(config.size, tuple) else (config.size,)
        flops = sizes["B"] * config.flops(size if isinstance(self.model, DiT) else size[0])
        self.costs = observed(backend, "call", self.calls, flops, 0)

    def predict(self):
        x0, noise, times, *labels = self.batch
        with backends.use(self.backend), no_grad(), precision(self.precision):
            return self.model(Tensor(noise), times, **({"labels": labels[0]} if labels else {}))

    def calls(self, phase):
        while True:
            self.predict()
            self.backend.sync()
            yield

    def share(self, folder):
        with backends.use(self.backend):
            share_batch(self.model, objective_of(self.model), self.batch, folder)
        return {"prediction": self.predict().numpy().ravel().tolist()}
