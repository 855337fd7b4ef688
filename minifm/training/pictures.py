"""From pictures to networks that learn them without undoing noise: pictures → network → Trainer.

    autoencoder   pictures through few numbers and back (models/autoencoder.py): the first stage of
                  latent diffusion (Rombach et al. 2022), a variational autoencoder (Kingma &
                  Welling 2014), or a plain one

What a step learns, the noise in it too, is a function of the seed and the step's number: a resumed
run goes on bitwise, and two evaluations differ by the network alone. A run's directory is that of
any run (training/checkpoint.py), with `samples/`: at each evaluation, what the network makes.
"""

import math
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from minifm import ops
from minifm.config import check, setting
from minifm.errors import ConfigError, plural
from minifm.hub import load_model, resolve
from minifm.media import PICTURE, Examples, drawing
from minifm.models import ARCHITECTURES, AutoencoderKL, architecture_of
from minifm.rng import Rng
from minifm.tensor import no_grad
from minifm.training import memory
from minifm.training.denoising import SAMPLES, open_examples
from minifm.training.objectives import Objective
from minifm.training.rounds import Rounds
from minifm.training.run import (
    model_to_resume,
    newest_checkpoint,
    require_writable,
    run_directory,
    say_on_stderr,
    write_run,
)
from minifm.training.trainer import Trainer

# Settings of a network that follow from the pictures, and from what has been learnt of them.
NOT_CHOSEN = {"inputs", "outputs", "size", "scaling", "shift"}
SHOWN, COLUMNS = 16, 8          # pictures of a snapshot, and how many stand beside each other
SCALED_BY = 1024                # pictures to train on, at most, by whose latents they are scaled


@dataclass(frozen=True)
class PictureConfig:
    """What is learnt of pictures, where an objective leaves a choice."""

    drawn: bool = setting(
        True, "autoencoder: latents are drawn from what the encoder says, as in a variational one; "
        "else they are points, as in a plain one")
    divergence: float | None = setting(
        None, "autoencoder: what the divergence of the latents from N(0, 1), in nats for each "
        "number of a picture, weighs beside the squared error; at twice the variance that numbers "
        "are taken to have around what comes back, the loss bounds their likelihood (default: "
        "1e-6, or 0 where none are drawn)", least=0)
    flip: bool = setting(False, "mirror every other picture, left and right")

    def __post_init__(self):
        check(self)
        if self.divergence is None:
            object.__setattr__(self, "divergence", 1e-6 if self.drawn else 0.0)
        if self.divergence and not self.drawn:
            raise ConfigError(f"divergence: points have none; expected 0 with --no-drawn, got "
                              f"{self.divergence}")


# -- what is learnt --------------------------------------------------------------------------------


class Autoencoding(Objective):
    """Give back what came in: the batch is (pictures [B, C, H, W], noise [B, Z, h, w]) or, where no
    latents are drawn, (pictures,). The loss is the mean over pictures of the squared error of a
    number, and of the divergence as it is weighed. There is no adversarial and no perceptual part.
    """

    name, reads = "autoencoding", "example"
    scale = "squared error"
    recompute = False

    def __init__(self, config, model):
        """`config` is a PictureConfig, `model` the configuration of an AutoencoderKL."""
        self.config, self.model = config, model

    @property
    def unit(self):
        return "number" + (f", with {self.config.divergence:g} of the divergence" *
                           bool(self.config.divergence))

    def arrays(self, examples, places, rng):
        """A batch of the pictures at these places."""
        x = pictures_at(examples, places, rng.child("flip"), self.config.flip)
        if not self.config.drawn:
            return (x,)
        c, (B, _, H, W) = self.model, x.shape
        return x, rng.child("latents").host_normal((B, c.latents, H // c.stride, W // c.stride))

    def training_loss(self, model, batch, *, denominator, rng):
        squares, divergence = (ops.sum(each) / denominator for each in model.errors(*batch))
        told = {"squared_error": squares.item(), "divergence": divergence.item()}   # of a picture
        if self.config.divergence:
            numbers = math.prod(batch[0].shape[1:])
            squares = squares + divergence * (self.config.divergence / numbers)
        return squares, {"loss": squares.item()} | told

    def loss(self, model, batch, *, denominator, rng):
        """Σ losses of the pictures / denominator, a scalar Tensor."""
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
            "learning": asdict(objective.config)}


# -- the run ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class PreparedPictures:
    """A run that is ready to train, and the pictures that it learns."""

    trainer: Trainer
    examples: Examples


def prepare(directory, wanted, config, *, learning=PictureConfig(), shape=None, arch="autoencoder",
            initial=None, resume=False, force=False, ceiling=None, shown=True):
    """The run in `directory`, new or (`resume`) taken up at its newest checkpoint.

    wanted   an ExamplesConfig;  config  a TrainConfig;  learning  a PictureConfig
    shape    {field: value} of the network's configuration; what the pictures say is theirs
    initial  a model's directory or hub name to start from, in place of random weights
    ceiling, shown   as of training.pretrain.prepare

    Raises ConfigError or FormatError before anything is written, wherever it can.
    """
    directory = run_directory(directory, (wanted.data,))
    say = say_on_stderr if shown else lambda line: None
    newest = newest_checkpoint(directory, resume)
    require_writable(directory)
    examples = open_examples(wanted, say)
    require_pictures(examples, arch)
    if config.recompute:
        raise ConfigError(f"recompute: an {arch} does not compute its blocks again; leave it out")
    network = _network(newest, initial, examples, shape or {}, arch, learning, config)
    objective = Autoencoding(learning, network.config)
    parts = [kind(objective, examples, examples.parts[part], batch=config.batch,
                  rng=Rng(config.seed).child(objective.name, part))
             for kind, part in ((TrainingPictures, "training"), (HeldOutPictures, "held_out"))]
    say("measuring the memory that a step takes")
    trainer = Trainer(
        network, parts[0], config, directory=directory, held_out=parts[1], objective=objective,
        shown=shown, ceiling=ceiling, sketch=ThereAndBack(directory / SAMPLES, examples),
        settle=lambda model: scale_latents(model, examples, config.batch))
    if resume:
        trainer.resume(force=force)
    settings = {key: value for key, value in asdict(network.config).items()
                if key not in NOT_CHOSEN}
    write_run(directory, "pretrain", {"arch": arch} | settings | asdict(wanted) | asdict(learning)
              | asdict(config), trainer, examples=examples.description)
    return PreparedPictures(trainer, examples)


def require_pictures(examples, arch):
    """Raise ConfigError for data that are no pictures, or have none to learn or evaluate on."""
    if examples.kind is not PICTURE:
        raise ConfigError(f"arch: an {arch} learns pictures, not {examples.kind.name}s")
    for part, indices in examples.parts.items():
        if not len(indices):
            raise ConfigError(f"data: {examples.description['name']} has no {part} pictures")


def _network(newest, initial, examples, shape, arch, learning, config):
    """The network of the checkpoint `newest`, or of the model `initial`, if it fits; or a new one.
    """
    if newest is not None:
        return model_to_resume(newest, arch, shape)
    C, *space = map(int, examples.shape)
    if initial is not None:
        network = _started(initial, C, shape, arch)
    else:
        whole = ARCHITECTURES[arch].config(**shape | {"inputs": C, "outputs": C, "size": space[0],
                                                      "scaling": 1.0})
        memory.require_parameters(whole.parameters, config)
        network = AutoencoderKL(whole, Rng(config.seed).child("model"))
    if any(n % network.config.stride for n in space):
        raise ConfigError(f"size: pictures of {' × '.join(map(str, space))}, and an autoencoder of "
                          f"{len(network.config.widths)} levels takes multiples of "
                          f"{network.config.stride}; choose --size, or fewer --widths")
    if not learning.drawn:
        network.narrow()
    return network


def _started(initial, channels, shape, arch):
    """The network of a model to start from; raises ConfigError where it is another."""
    if shape:
        raise ConfigError(f"{', '.join(shape)}: the model to start from has its own; leave it out")
    network = load_model(resolve(initial))
    if architecture_of(network) != arch:
        raise ConfigError(f"arch: {initial} is of {architecture_of(network)}, not of {arch}")
    if (network.config.inputs, network.config.outputs) != (channels, channels):
        raise ConfigError(f"{initial}: the model reads pictures of "
                          f"{plural(network.config.inputs, 'channel')}, and this run is of "
                          f"{plural(channels, 'channel')}")
    return network


class ThereAndBack:
    """Snapshots: held-out pictures in rows, and below each row what comes back of it."""

    def __init__(self, directory, examples):
        self.directory, self.kind = Path(directory), examples.kind
        self.pictures = examples.take(examples.parts["held_out"][:SHOWN])

    def __call__(self, network, step):
        """Write step-N.png."""
        with no_grad():
            back = network(self.pictures).numpy()
        columns, rows = min(COLUMNS, len(back)), []
        for start in range(0, len(back), columns):
            rows += [padded(x[start : start + columns], columns) for x in (self.pictures, back)]
        seen = self.kind.view(np.concatenate(rows))
        drawing.write_png(self.directory / f"step-{step:08d}.png", drawing.grid(seen, columns))


def padded(x, columns):
    """A row of pictures [columns, C, H, W], filled up with white ones."""
    return np.concatenate([x, np.ones((columns - len(x), *x.shape[1:]), np.float32)])


def scale_latents(model, examples, batch):
    """Let the model's `to_latents` give mean 0 and variance 1 over the pictures to train on, as a
    diffusion model needs them: Rombach et al. (2022) divide by the standard deviation, Esser et al.
    (2024) also take the mean off. The variance is that of latents which are drawn."""
    found, places = [], examples.parts["training"][:SCALED_BY]
    for start in range(0, len(places), batch):
        posterior = model.encode(examples.take(places[start : start + batch]))
        means, variances = (y.numpy().astype(np.float64)
                            for y in (posterior.mean, ops.exp(posterior.log_variance)))
        found.append([means.size, means.sum(), (means**2 + variances).sum()])
    count, first, second = np.sum(found, 0)
    mean, variance = first / count, second / count - (first / count) ** 2
    if np.isfinite(variance) and variance > 0:          # else the weights are damaged: all stays
        model.config = replace(model.config, shift=float(mean), scaling=float(variance**-0.5))
