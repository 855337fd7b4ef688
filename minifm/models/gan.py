"""A generative adversarial network (Goodfellow et al. 2014): a generator makes pictures of noise,
and a discriminator, which tells them from real ones, is what it learns from.

Both know the class: the generator reads its embedding beside the noise, in every block; the
discriminator weighs its features by it (Miyato & Koyama 2018). They are two networks, and one model
here: they learn at the same time, and are saved together. What they learn by is in
training/adversarial.py. Read top to bottom: the configuration, the parts, the model, its life in
files.

Dimensions: B batch, N noise, E width of what the generator is told, F features, K classes, C
channels, H x W the picture, h x w its size at the lowest level.
"""

from dataclasses import dataclass

from minifm import ops
from minifm.config import check, setting
from minifm.errors import ConfigError, ShapeError
from minifm.models import parts
from minifm.models.autoencoder import EPSILON
from minifm.models.classifier import Trunk, check_pictures, check_trunk, trunk_parts
from minifm.models.stored import said
from minifm.nn import Embedding, Linear, Module
from minifm.nn.image import ResidualBlock, Upsample, convolution
from minifm.nn.layers import GroupNorm


@dataclass(frozen=True)
class GANConfig:
    """The shape of both networks; counts follow from it without building the model."""

    inputs: int = setting(1, "channels of the pictures", least=1)                       # C
    size: int = setting(8, "height and width of the pictures", least=1)
    classes: int = setting(0, "classes that can be asked for; 0: none", least=0)        # K
    noise: int = setting(32, "numbers of noise that a picture is made of", least=1)     # N
    told: int = setting(64, "width of what noise and class become, which every block of the "
                        "generator reads", least=1)                                     # E
    widths: tuple[int, ...] = setting(
        (24, 48), "channels at each level, of both networks; a level has half the height and width "
        "of the one above it", least=1)
    layers: int = setting(1, "residual blocks of a level", least=1, most=64)
    groups: int = setting(8, "groups of channels that are normalised together", least=1)

    def __post_init__(self):
        check(self)
        check_trunk(self)
        if self.size % self.stride:
            raise ConfigError(f"size: expected a multiple of {self.stride}, for "
                              f"{len(self.widths)} levels, got {self.size}")

    @property
    def model(self):
        """The class of the models of this shape."""
        return GAN

    @property
    def stride(self):
        """How many times larger than at the lowest level a picture is, each way."""
        return 2 ** (len(self.widths) - 1)

    @property
    def bottom(self):
        """(F, h, w): what the generator begins with."""
        return self.widths[-1], self.size // self.stride, self.size // self.stride

    def parts(self):
        """[Part] of both networks."""
        return [*generator_parts(self), *discriminator_parts(self)]

    @property
    def parameters(self):
        """How many numbers training adjusts, of both networks."""
        return parts.count_parameters(self.parts())

    @property
    def generator_parameters(self):
        """Those of the network that makes pictures."""
        return parts.count_parameters(generator_parts(self))

    def flops(self, *, training=False):
        """Floating-point operations of making a picture; products only. In training, of a step for
        a real picture and a made one: the generator forward and backward; the discriminator forward
        and backward on both and on both again, nudged; and for the generator once more on the made
        one, without the products for its weights."""
        making = parts.count_flops(generator_parts(self), training)
        if not training:
            return making
        once = parts.count_flops(discriminator_parts(self), False)
        return making + 4 * parts.count_flops(discriminator_parts(self), True) + 2 * once


PRESETS = {
    "gan-tiny": dict(),                                         # digits, on any laptop
    "gan-small": dict(noise=64, told=128, widths=(32, 64, 128)),
}


# -- parts -----------------------------------------------------------------------------------------


def generator_blocks(config):
    """[[(inputs, outputs) of each residual block] of each level, from the lowest]."""
    widths = config.widths[::-1]
    before = (widths[0], *widths)
    return [[(width if i else before[level], width) for i in range(config.layers)]
            for level, width in enumerate(widths)]


class Rise(Module):
    """Residual blocks of one level, each of which is told of noise and class; then twice the height
    and width, but at the top."""

    def __init__(self, config, blocks, larger, rng):            # blocks: [(inputs, outputs), …]
        self.residuals = [
            ResidualBlock(*widths, time_width=config.told, groups=config.groups, epsilon=EPSILON,
                          rng=rng and rng.child("residual", i))
            for i, widths in enumerate(blocks)]
        self.resample = Upsample(blocks[-1][1], rng=rng and rng.child("resample")) if larger \
            else None

    def __call__(self, x, told):
        for residual in self.residuals:
            x = residual(x, told)
        return x if self.resample is None else self.resample(x)


class Generator(Module):
    """Noise, and a class, up to a picture."""

    def __init__(self, config, rng):
        E, (F, h, w) = config.told, config.bottom
        self.bottom = F, h, w
        self.noise = Linear(config.noise, E, std=config.noise**-0.5,
                            rng=rng and rng.child("noise"))
        self.labels = Embedding(config.classes, E, std=1.0, rng=rng and rng.child("labels")) \
            if config.classes else None
        self.first = Linear(E, F * h * w, std=E**-0.5, rng=rng and rng.child("first"))
        blocks = generator_blocks(config)
        self.stages = [Rise(config, widths, i < len(blocks) - 1, rng and rng.child("stage", i))
                       for i, widths in enumerate(blocks)]
        self.norm = GroupNorm(config.widths[0], config.groups, EPSILON)
        self.last = convolution(config.widths[0], config.inputs, rng=rng and rng.child("last"))

    def __call__(self, z, labels=None):
        """Noise z [B, N], labels int [B] -> pictures [B, C, H, W] in -1 … 1."""
        told = self.noise(z)
        if self.labels is not None:
            told = told + self.labels(labels)
        told = ops.silu(told)
        x = self.first(told).reshape((told.shape[0], *self.bottom))
        for stage in self.stages:
            x = stage(x, told)
        return ops.tanh(self.last(self.norm(x, ops.silu)))


class Discriminator(Module):
    """A picture, and its class, down to one number: the more, the more real it looks."""

    def __init__(self, config, rng):
        F = config.widths[-1]
        self.trunk = Trunk(config, rng and rng.child("trunk"))
        self.output = Linear(F, 1, std=F**-0.5, rng=rng and rng.child("output"))
        self.labels = Embedding(config.classes, F, std=F**-0.5, rng=rng and rng.child("labels")) \
            if config.classes else None

    def __call__(self, x, labels=None):
        """Pictures x [B, C, H, W], labels int [B] -> logits [B]."""
        features = self.trunk(x)
        logits = self.output(features).reshape((x.shape[0],))
        if self.labels is None:
            return logits
        return logits + (features * self.labels(labels)).sum(1)


class GAN(parts.ListedModel):
    """A generator and the discriminator that it learns from. Pictures have values from -1 to 1."""

    def __init__(self, config, rng=None):
        """`rng` draws the initial weights, so that variances stay. Without `rng` all are zeros, for
        a checkpoint to replace."""
        self.config = config
        self.generator = Generator(config, rng and rng.child("generator"))
        self.discriminator = Discriminator(config, rng and rng.child("discriminator"))

    def __call__(self, z, *, labels=None):
        """Noise z [B, N], labels int [B] of a model with classes -> pictures [B, C, H, W]."""
        if len(z.shape) != 2 or z.shape[1] != self.config.noise:
            raise ShapeError(f"GAN: expected noise [B, {self.config.noise}], got {list(z.shape)}")
        self._check_labels(labels, z.shape[0])
        return self.generator(z, labels)

    def judged(self, x, *, labels=None):
        """Pictures x [B, C, H, W] -> how real they look, logits [B]."""
        check_pictures(self, x)
        self._check_labels(labels, x.shape[0])
        return self.discriminator(x, labels)

    def _check_labels(self, labels, batch):
        if (labels is None) != (self.config.classes == 0) or (
                labels is not None and tuple(labels.shape) != (batch,)):
            wanted = f"labels [{batch}]" if self.config.classes else "no labels"
            got = "none" if labels is None else list(labels.shape)
            raise ShapeError(f"GAN: expected {wanted}, got {got}")

    # -- files: a layout of our own, in the ecosystem's way --------------------------------------

    @staticmethod
    def config_from_hub(stored):
        """The configuration in a `config.json`; raises ConfigError naming the key."""
        c = said(stored, DEFAULTS, {})
        return GANConfig(**{ours: c[theirs] for ours, theirs in KEYS.items()})

    @staticmethod
    def config_to_hub(config, *, end_of_text=None):
        """The `config.json` that describes this model."""
        stored = {theirs: getattr(config, ours) for ours, theirs in KEYS.items()}
        return {"_class_name": CLASS} | stored | {"block_out_channels": list(config.widths)}


CLASS = "GAN"
KEYS = {"inputs": "in_channels", "size": "sample_size", "classes": "num_classes",
        "noise": "latent_dim", "told": "condition_dim", "widths": "block_out_channels",
        "layers": "layers_per_block", "groups": "norm_num_groups"}
DEFAULTS = {theirs: getattr(GANConfig(), ours) for ours, theirs in KEYS.items()}


def generator_parts(config):
    """[Part] of the generator."""
    E, (F, h, w), K = config.told, config.bottom, config.classes
    found = [parts.linear("generator.noise", "generator.noise", config.noise, E, 1)]
    if K:
        found.append(parts.table("generator.labels", "generator.labels", K, E))
    found.append(parts.linear("generator.first", "generator.first", E, F * h * w, 1))
    blocks = generator_blocks(config)
    for i, widths in enumerate(blocks):
        name, positions = f"generator.stages.{i}", h * w * 4**i
        for n, pair in enumerate(widths):
            block = f"{name}.residuals.{n}"
            found += parts.residual_block(block, block, *pair, positions, time_width=E)
        if i < len(blocks) - 1:
            conv, width = f"{name}.resample.conv", widths[-1][1]
            found.append(parts.convolution(conv, conv, width, width, 3, 4 * positions))
    found += [parts.norm("generator.norm", "generator.norm", config.widths[0]),
              parts.convolution("generator.last", "generator.last", config.widths[0],
                                config.inputs, 3, config.size**2)]
    return found


def discriminator_parts(config):
    """[Part] of the discriminator."""
    F = config.widths[-1]
    found = [*trunk_parts("discriminator.trunk", config, config.size**2),
             parts.linear("discriminator.output", "discriminator.output", F, 1, 1)]
    if config.classes:
        found.append(parts.table("discriminator.labels", "discriminator.labels", config.classes, F))
    return found
