"""Learning against an adversary: what a GAN (models/gan.py) is trained to do.

The discriminator learns to tell real pictures from made ones, the generator to make such that it
cannot (Goodfellow et al. 2014), by the non-saturating losses, softplus of the logit that is wrong.
Both sides learn in the same step, from the same made pictures: every weight belongs to one side
alone, and gets its side's gradients alone, so that one optimizer is as good as two. With gradients
of either side at where both were, it is the simultaneous descent whose convergence Mescheder et al.
(2018) show, for a discriminator whose slope is penalised at real pictures, as Roth et al. (2017)
have it at made ones too.

That penalty, |dD/dx|², would take gradients of gradients. Here it is measured by what D changes
where a picture is nudged by noise: the mean of ((D(x + σ v) - D(x)) / σ)² over v ~ N(0, 1) is
|dD/dx|² for small σ (Lin et al. 2025 train large models so).
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from minifm import ops
from minifm.config import check, setting
from minifm.errors import ConfigError
from minifm.media import drawing
from minifm.nn import held
from minifm.rng import Rng
from minifm.tensor import Tensor, no_grad
from minifm.training.denoising import DenoisingTrainConfig
from minifm.training.rounds import PictureObjective, pictures_at

COLUMNS, ROWS, AT_ONCE = 8, 4, 256          # pictures of a snapshot; made at once, at most


@dataclass(frozen=True)
class AdversarialConfig:
    """How the two sides learn."""

    penalty: float = setting(0.1, "what the square of the discriminator's slope at a picture "
                             "weighs, for a half of it", least=0)
    nudge: float = setting(0.05, "the standard deviation of the noise by which the slope is "
                           "measured", above=0)
    flip: bool = setting(False, "mirror every other picture, left and right")

    __post_init__ = check


@dataclass(frozen=True)
class AdversarialTrainConfig(DenoisingTrainConfig):
    """DenoisingTrainConfig, with what suits two sides that move at the same time."""

    beta1: float = setting(0.0, "decay of AdamW's mean of gradients", least=0, below=1)
    clip: float = setting(
        0.0, "largest norm of the gradient of all weights together; 0: no limit", least=0)


class Adversarial(PictureObjective):
    """Deceive, and not be deceived: the batch is (pictures [B, C, H, W], noise to make as many of
    [B, N], noise to nudge them by [B, C, H, W]), and labels [B], where there are classes.

    The loss is the sum of both sides'. It tells how they stand to each other, not how good the
    pictures are: for that, have them judged (training/judging.py).
    """

    name, scale, unit = "adversarial", "nats", "picture, of both sides"
    settings = AdversarialConfig
    not_chosen = {"inputs", "size", "classes"}
    kept = ("inputs", "size", "classes")

    @staticmethod
    def shape_for(examples):
        """{setting: value} of the network's configuration that follow from the pictures."""
        C, H, W = map(int, examples.shape)
        if H != W:
            raise ConfigError(f"size: a gan makes square pictures, these have {H} × {W}")
        return {"inputs": C, "size": H, "classes": len(examples.classes)}

    def sketches(self, directory, examples, seed):
        """What makes snapshots."""
        return Forgeries(directory, examples.kind, len(examples.classes), seed)

    def arrays(self, examples, places, rng):
        """A batch of the pictures at these places."""
        x = pictures_at(examples, places, rng.child("flip"), self.config.flip)
        noise = rng.child("noise").host_normal((len(x), self.model.noise))
        made = x, noise, rng.child("nudge").host_normal(x.shape)
        return (*made, examples.labels[places].astype(np.int64)) if self.model.classes else made

    def training_loss(self, model, batch, *, denominator, rng):
        x, noise, nudge, *labels = batch
        condition = {"labels": labels[0]} if labels else {}
        made = model(noise, **condition)
        with held(model.discriminator):
            deceived = ops.sum(softplus(-model.judged(made, **condition))) / denominator
        wrong, slope = self._discriminated(model, x, made.detach(), nudge, condition)
        wrong, slope = ops.sum(wrong) / denominator, ops.sum(slope) / denominator
        loss = deceived + wrong + slope * (self.config.penalty / 2)
        return loss, {"loss": loss.item(), "generator": deceived.item(),
                      "discriminator": wrong.item(), "slope": slope.item()}

    def _discriminated(self, model, x, made, nudge, condition):
        """([B] losses of the discriminator, [B] squares of its slope at real and made pictures
        together), in one pass over real, made, and both nudged."""
        B, x, moved = len(x), Tensor(x), Tensor(nudge * self.config.nudge)
        seen = ops.concatenate([x, made, x + moved, made + moved], 0)
        logits = model.judged(seen, **{name: np.tile(each, 4) for name, each in condition.items()})
        real, fake, *nudged = (logits[i * B : (i + 1) * B] for i in range(4))
        slopes = [(there - here) * (1 / self.config.nudge)
                  for here, there in zip((real, fake), nudged)]
        return softplus(-real) + softplus(fake), slopes[0] * slopes[0] + slopes[1] * slopes[1]

    def flops(self, model, batch):
        return len(batch[0]) * model.config.flops(training=True)


def softplus(x):
    """log(1 + e^x), elementwise: max(x, 0) + log(1 + e^-|x|), which does not overflow."""
    return ops.relu(x) + ops.log(ops.exp(-ops.absolute(x)) + 1.0)


class Forgeries:
    """Snapshots of what a generator makes, always of the same noise, a column for each class."""

    def __init__(self, directory, kind, classes, seed):
        self.directory, self.kind, self.seed = Path(directory), kind, seed
        self.columns = min(classes, 2 * COLUMNS) or COLUMNS

    def __call__(self, network, step):
        """Write step-N.png."""
        labels = np.tile(np.arange(self.columns), ROWS)
        seen = self.kind.view(self.made(network, labels))
        drawing.write_png(self.directory / f"step-{step:08d}.png",
                          drawing.grid(seen, self.columns))

    def made(self, network, labels):
        """float32 [B, C, H, W] of `labels`, numbers of classes, where the network knows some."""
        return forged(network, labels, Rng(self.seed).child("sample"))


def forged(network, labels, rng):
    """float32 [B, C, H, W]: a picture for each of labels [B] that a GAN makes of noise by `rng`."""
    noise, found = rng.host_normal((len(labels), network.config.noise)), []
    with no_grad():
        for start in range(0, len(labels), AT_ONCE):
            part = slice(start, start + AT_ONCE)
            condition = {"labels": labels[part]} if network.config.classes else {}
            found.append(network(noise[part], **condition).numpy())
    return np.concatenate(found)
