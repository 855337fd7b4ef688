"""Learning pictures there and back: what an autoencoder (models/autoencoder.py) is trained to do.

The first stage of latent diffusion (Rombach et al. 2022), a variational autoencoder (Kingma &
Welling 2014), or a plain one, by what the latents are made of and what their divergence weighs.
"""

import math
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from minifm import ops
from minifm.config import check, setting
from minifm.errors import ConfigError
from minifm.media import drawing
from minifm.tensor import no_grad
from minifm.training.rounds import PictureObjective, pictures_at

SHOWN, COLUMNS = 16, 8          # pictures of a snapshot, and how many stand beside each other
SCALED_BY = 1024                # pictures to train on, at most, by whose latents they are scaled


@dataclass(frozen=True)
class AutoencodingConfig:
    """How pictures are learnt there and back."""

    drawn: bool = setting(
        True, "latents are drawn from what the encoder says, as in a variational one; "
        "else they are points, as in a plain one")
    divergence: float | None = setting(
        None, "what the divergence of the latents from N(0, 1), in nats for each "
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


class Autoencoding(PictureObjective):
    """Give back what came in: the batch is (pictures [B, C, H, W], noise [B, Z, h, w]) or, where no
    latents are drawn, (pictures,). The loss is the mean over pictures of the squared error of a
    number, and of the divergence as it is weighed. There is no adversarial and no perceptual part.
    """

    name, scale = "autoencoding", "squared error"
    settings = AutoencodingConfig
    not_chosen = {"inputs", "outputs", "size", "scaling", "shift"}
    kept = ("inputs", "outputs")

    @staticmethod
    def shape_for(examples):
        """{setting: value} of the network's configuration that follow from the pictures."""
        C, H, W = map(int, examples.shape)
        return {"inputs": C, "outputs": C, "size": H, "scaling": 1.0}

    def begin(self, network):
        """Make a new network ready to learn: of a plain autoencoder, posteriors are points."""
        if not self.config.drawn:
            network.narrow()

    def sketches(self, directory, examples, seed):
        """What makes snapshots."""
        return ThereAndBack(directory, examples)

    def settle(self, model, examples, batch):
        """Say of a model that is saved how its latents are scaled."""
        scale_latents(model, examples, batch)

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


# -- what is seen of it, and said ------------------------------------------------------------------


class ThereAndBack:
    """Snapshots: held-out pictures, from everywhere among them, in rows, and below each row what
    comes back of it."""

    def __init__(self, directory, examples):
        self.directory, self.kind = Path(directory), examples.kind
        held_out = examples.parts["held_out"]
        shown = min(SHOWN, len(held_out))
        self.pictures = examples.take([held_out[i * len(held_out) // shown] for i in range(shown)])

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
