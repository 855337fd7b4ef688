"""Four models that learn to make pictures of a class, of one size: how each is trained, and how it
makes what it is asked for.

    autoencoder  a plain one; pictures are made of latents that are drawn from the Gaussian which
                 the latents of a class have
    vae          a variational one, the same network; likewise, and also from N(0, 1), as its loss
                 has it, which knows no class
    gan          the generator, of noise and the class
    diffusion    a UNet, by 30 steps of DDIM

The UNet follows from the pictures; the widths of the others are chosen so that each has as many
weights as it, within a tenth, all that training adjusts counted: encoder and decoder, generator and
discriminator.
"""

from dataclasses import dataclass

import numpy as np

from minifm.errors import ConfigError
from minifm.evaluation.distribution import root
from minifm.generation.diffusion import Pipeline, SampleConfig
from minifm.models import AutoencoderConfig, GANConfig, UNetConfig
from minifm.rng import Rng
from minifm.tensor import no_grad
from minifm.training import denoising, pictures
from minifm.training.adversarial import AdversarialTrainConfig, forged
from minifm.training.autoencoding import AutoencodingConfig
from minifm.training.captioned import CaptionConfig
from minifm.training.denoising import DenoisingTrainConfig
from minifm.training.judging import widths_for

CLOSE = 0.1                 # how much two numbers of weights may differ, as a part
GROUPS, WIDEST = 8, 256     # widths are multiples of the one, up to the other
AT_ONCE = 256               # pictures that a network is asked for together
DIVERGENCE = 0.05           # of the vae: a bound of the likelihood where numbers vary by 0.16


# -- their shapes ----------------------------------------------------------------------------------


def unet_shape(height, width):
    """Settings of the UNet for pictures of this size."""
    widths = widths_for(height, width)
    return {"widths": widths, "attention": (len(widths) - 1,), "layers": 1, "head_width": 24,
            "groups": GROUPS}


def autoencoder_shape(examples, target):
    """Settings of an AutoencoderKL of about `target` weights. It has a level more than the UNet,
    where the size allows, so that latents are few."""
    C, H, W = map(int, examples.shape)
    levels = len(widths_for(H, W))
    if not (H % 2**levels or W % 2**levels):
        levels += 1
    rest = {"layers": 1, "groups": GROUPS, "latents": 8 if H < 16 else 16}
    return rest | nearest(levels, target, lambda widths: AutoencoderConfig(
        inputs=C, outputs=C, size=H, widths=widths, **rest))


def gan_shape(examples, target):
    """Settings of a GAN of about `target` weights."""
    C, H, W = map(int, examples.shape)
    return nearest(len(widths_for(H, W)), target, lambda widths: GANConfig(
        inputs=C, size=H, classes=len(examples.classes), widths=widths, groups=GROUPS)) | {
        "groups": GROUPS}


def nearest(levels, target, shape):
    """{"widths": …} of so many levels by which the configuration shape(widths) has a number of
    parameters nearest to `target`; the lower levels are as wide as the first, up to twice. Raises
    ConfigError where none is within CLOSE of it."""
    best = None
    for first in range(GROUPS, WIDEST + 1, GROUPS):
        for below in range(first, 2 * first + 1, GROUPS) if levels > 1 else (first,):
            widths = (first,) + (below,) * (levels - 1)
            away = abs(shape(widths).parameters / target - 1)
            if best is None or away < best[0]:
                best = away, widths
        if shape((first,) * levels).parameters > 2 * target:
            break
    if best[0] > CLOSE:
        raise ConfigError(f"size: no network of {levels} levels has about {target:,} weights")
    return {"widths": best[1]}


# -- how they are trained --------------------------------------------------------------------------


@dataclass(frozen=True)
class Contestant:
    """name    as above
    arch     of models.ARCHITECTURES
    shape    {setting: value} of its network
    learning AutoencodingConfig, or None
    rate     the learning rate
    """

    name: str
    arch: str
    shape: dict
    learning: object
    rate: float

    def config(self, steps, batch, seed):
        """Its TrainConfig; the average of the weights is that of about the last fifteenth."""
        kind = AdversarialTrainConfig if self.arch == "gan" else DenoisingTrainConfig
        return kind(
            steps=steps, batch=batch, seed=seed, learning_rate=self.rate,
            average=max(0.5, 1 - 15 / steps), evaluate_every=max(1, steps // 4),
            save_every=max(1, steps // 4), log_every=max(1, steps // 200))

    def prepare(self, directory, wanted, config, **options):
        """Its run: an object with `trainer` and `examples`."""
        if self.arch == "unet":
            return denoising.prepare(
                directory, wanted, config, shape=self.shape, arch=self.arch,
                captions=CaptionConfig(captions=False), **options)      # classes are what all know
        return pictures.prepare(directory, wanted, config, shape=self.shape, arch=self.arch,
                                learning=self.learning, **options)


def contestants(examples):
    """[Contestant] for these pictures; the last is the UNet, whose size the others have."""
    C, H, W = map(int, examples.shape)
    unet = unet_shape(H, W)
    target = UNetConfig(inputs=C, outputs=C, size=H, classes=len(examples.classes) + 1,
                        **unet).parameters
    coder = autoencoder_shape(examples, target)
    return [
        Contestant("autoencoder", "autoencoder", coder, AutoencodingConfig(drawn=False), 2e-3),
        Contestant("vae", "autoencoder", coder, AutoencodingConfig(divergence=DIVERGENCE), 2e-3),
        Contestant("gan", "gan", gan_shape(examples, target), None, 1e-3),
        Contestant("diffusion", "unet", unet, None, 3e-3)]


# -- how they make pictures ------------------------------------------------------------------------


def makers(contestant, prepared, labels, seed):
    """{name of a row: a maker}, in the contestant's name and variants of it. A maker's `make()`
    gives float32 [N, C, H, W], a picture for each of labels [N], and `classed` says whether it
    knows the classes."""
    network, examples = prepared.trainer.model, prepared.examples
    if contestant.arch == "unet":
        return {contestant.name: Diffused(network, prepared.recipe, labels, seed)}
    if contestant.arch == "gan":
        return {contestant.name: Forged(network, labels, seed)}
    gaussians = latent_gaussians(network, examples)
    found = {contestant.name: Fitted(network, gaussians, labels, seed)}
    if contestant.learning.drawn:
        found[f"{contestant.name}, N(0, 1)"] = Drawn(network, gaussians.shape, labels, seed)
    return found


@dataclass(frozen=True)
class Diffused:
    """By a diffusion model."""

    network: object
    recipe: object
    labels: np.ndarray
    seed: int
    classed = True

    def make(self):
        names = [self.recipe.classes[label] for label in self.labels]
        config = SampleConfig(seed=self.seed, batch=AT_ONCE)
        return Pipeline(self.network, self.recipe).sample(names, config)


@dataclass(frozen=True)
class Forged:
    """By the generator of a GAN."""

    network: object
    labels: np.ndarray
    seed: int
    classed = True

    def make(self):
        return forged(self.network, self.labels, Rng(self.seed).child("sample"))


@dataclass(frozen=True)
class Drawn:
    """By the decoder of a variational autoencoder, of latents from N(0, 1)."""

    network: object
    shape: tuple                # of one picture's latents
    labels: np.ndarray
    seed: int
    classed = False

    def make(self):
        noise = Rng(self.seed).child("sample").host_normal((len(self.labels), *self.shape))
        return decoded(self.network, noise)


@dataclass(frozen=True)
class Fitted:
    """By the decoder of an autoencoder, of latents from the Gaussian of each class (Ghosh et al.
    2020 fit what latents are drawn from after the training, too).

    The covariance is that of the class where it has more than twice as many pictures as a picture
    has latents; else that of all pictures about the means of their classes.
    """

    network: object
    gaussians: object           # LatentGaussians
    labels: np.ndarray
    seed: int
    classed = True

    def make(self):
        mean, spread = self.gaussians.mean, self.gaussians.spread
        noise = Rng(self.seed).child("sample").host_normal(
            (len(self.labels), mean.shape[1]), np.float64)
        z = mean[self.labels] + np.einsum("nij,nj->ni", spread[self.labels], noise)
        return decoded(self.network, z.astype(np.float32).reshape(-1, *self.gaussians.shape))


@dataclass(frozen=True)
class LatentGaussians:
    """mean [K, D] and spread [K, D, D], the root of the covariance, of each class; `shape` of one
    picture's latents, D numbers."""

    mean: np.ndarray
    spread: np.ndarray
    shape: tuple


def latent_gaussians(network, examples):
    """The LatentGaussians of the pictures to train on, what is drawn of each counted in."""
    places = examples.parts["training"]
    means, variances = latents(network, examples.take(places))
    labels, K, shape = examples.labels[places], len(examples.classes), means.shape[1:]
    means, variances = means.reshape(len(means), -1), variances.reshape(len(means), -1)
    centres = np.stack([means[labels == k].mean(0) if (labels == k).any() else means.mean(0)
                        for k in range(K)])
    away, spreads = means - centres[labels], []
    shared = root(away.T @ away / len(away) + np.diag(variances.mean(0)))
    for k in range(K):
        own, n = away[labels == k], np.count_nonzero(labels == k)
        spreads.append(shared if n <= 2 * means.shape[1] else root(
            own.T @ own / n + np.diag(variances[labels == k].mean(0))))
    return LatentGaussians(centres, np.stack(spreads), shape)


def latents(network, x):
    """(means, variances) float64 [N, Z, h, w] of the posteriors of pictures x."""
    found = []
    with no_grad():
        for start in range(0, len(x), AT_ONCE):
            posterior = network.encode(x[start : start + AT_ONCE])
            found.append((posterior.mean.numpy(), np.exp(posterior.log_variance.numpy())))
    return tuple(np.concatenate(each).astype(np.float64) for each in zip(*found))


def decoded(network, z):
    """float32 [N, C, H, W] of latents z."""
    with no_grad():
        return np.concatenate([network.decode(z[start : start + AT_ONCE]).numpy()
                               for start in range(0, len(z), AT_ONCE)])
