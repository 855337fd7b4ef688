"""The autoencoder of latent diffusion (Kingma & Welling 2014, Rombach et al. 2022): pictures as
smaller images of few channels, in which a diffusion model works at a fraction of the cost.

The encoder says of each picture where its latents are, and how far from there they may be: a
Gaussian (`Posterior`). The decoder makes a picture of any latents. Read top to bottom: the
configuration, the parts, the model, its life in files.

Dimensions: B batch, C channels, H x W the picture, Z channels of the latents, h x w their size.
"""

from dataclasses import dataclass

from minifm import backends, ops
from minifm.config import check, setting
from minifm.errors import ConfigError, ShapeError
from minifm.models import parts
from minifm.models.stored import said
from minifm.nn import Module
from minifm.nn.image import Downsample, ResidualBlock, SpatialAttention, Upsample, convolution
from minifm.nn.layers import GroupNorm
from minifm.tensor import Tensor

EPSILON = 1e-6                      # of all norms: a number in the original's code
LOG_VARIANCES = (-30.0, 20.0)       # what they are kept within


@dataclass(frozen=True)
class AutoencoderConfig:
    """The shape of an autoencoder; counts follow from it without building the model."""

    inputs: int = setting(3, "channels of the pictures that come in", least=1)
    outputs: int = setting(3, "channels of those that go out", least=1)
    size: int | None = setting(
        32, "height and width of the pictures that it learns from; it takes others", least=1)
    widths: tuple[int, ...] = setting(
        (128, 256, 512, 512), "channels at each level; a level has half the height and width of "
        "the one above it", least=1)
    layers: int = setting(2, "residual blocks of a level of the encoder; the decoder has one more",
                          least=1, most=64)
    latents: int = setting(4, "channels of the latents", least=1)                       # Z
    groups: int = setting(32, "groups of channels that are normalised together", least=1)
    mixed: bool = setting(True, "another convolution mixes the latents' channels, behind the "
                                "encoder and before the decoder")
    scaling: float = setting(
        0.18215, "what latents are multiplied by for a diffusion model, so that they have a "
        "variance of 1", above=0)
    shift: float = setting(0.0, "what is taken from them before")

    def __post_init__(self):
        check(self)
        object.__setattr__(self, "widths", tuple(self.widths))
        if not 1 <= len(self.widths) <= MOST_LEVELS:
            raise ConfigError(f"widths: expected 1 … {MOST_LEVELS} levels, got {len(self.widths)}")
        for width in self.widths:
            if width % self.groups:
                raise ConfigError(f"groups: {self.groups} groups do not divide the width {width}")

    @property
    def model(self):
        """The class of the models of this shape."""
        return AutoencoderKL

    @property
    def stride(self):
        """How many times larger than the latents a picture is, each way."""
        return 2 ** (len(self.widths) - 1)

    def parts(self, pixels=0):
        """[Part] of the whole model, for a picture of so many pixels."""
        return list_parts(self, pixels)

    @property
    def parameters(self):
        """How many numbers training adjusts."""
        return parts.count_parameters(self.parts())

    def flops(self, height, width=None, *, training=False):
        """Floating-point operations of one picture of this size, there and back; products only. In
        training, forward and backward."""
        return parts.count_flops(self.parts(height * (width or height)), training)


MOST_LEVELS = 16
PRESETS = {
    "autoencoder-tiny": dict(inputs=1, outputs=1, size=16, widths=(16, 32), layers=1, groups=8,
                             scaling=1.0),              # digits, on any laptop
    "autoencoder-small": dict(size=64, widths=(32, 64, 128), layers=1, scaling=1.0),
    "autoencoder-stable-diffusion": dict(size=512),
}


# -- parts -----------------------------------------------------------------------------------------


class Stage(Module):
    """Residual blocks of one level, then a change of resolution or none."""

    def __init__(self, config, blocks, resample, rng):      # blocks: [(inputs, outputs), …]
        self.residuals = [
            ResidualBlock(*widths, groups=config.groups, epsilon=EPSILON,
                          rng=rng and rng.child("residual", i))
            for i, widths in enumerate(blocks)]
        self.resample = resample

    def __call__(self, x):
        for residual in self.residuals:
            x = residual(x)
        return x if self.resample is None else self.resample(x)


class Middle(Module):
    """Two residual blocks with attention between, of one head, at the lowest resolution."""

    def __init__(self, config, rng):
        C, options = config.widths[-1], {"groups": config.groups, "epsilon": EPSILON}
        self.residuals = [ResidualBlock(C, C, rng=rng and rng.child("residual", i), **options)
                          for i in range(2)]
        self.attention = SpatialAttention(C, 1, rng=rng and rng.child("attention"), **options)

    def __call__(self, x):                                      # [B, C, h, w] -> the same
        return self.residuals[1](self.attention(self.residuals[0](x)))


class Encoder(Module):
    """A picture down to what tells its latents."""

    def __init__(self, config, rng):
        bottom = config.widths[-1]
        self.first = convolution(config.inputs, config.widths[0], rng=rng and rng.child("first"))
        self.stages = []
        for level, blocks in enumerate(encoder_blocks(config)):
            key, width = rng and rng.child("stage", level), config.widths[level]
            resample = Downsample(width, symmetric=False, rng=key and key.child("resample")) \
                if level < len(config.widths) - 1 else None
            self.stages.append(Stage(config, blocks, resample, key))
        self.middle = Middle(config, rng and rng.child("middle"))
        self.norm = GroupNorm(bottom, config.groups, EPSILON)
        self.last = convolution(bottom, 2 * config.latents, rng=rng and rng.child("last"))

    def __call__(self, x):                                      # [B, C, H, W] -> [B, 2Z, h, w]
        x = self.first(x)
        for stage in self.stages:
            x = stage(x)
        return self.last(self.norm(self.middle(x), ops.silu))


class Decoder(Module):
    """Latents up to a picture."""

    def __init__(self, config, rng):
        top, bottom = config.widths[0], config.widths[-1]
        self.first = convolution(config.latents, bottom, rng=rng and rng.child("first"))
        self.middle = Middle(config, rng and rng.child("middle"))
        self.stages = []
        for i, blocks in enumerate(decoder_blocks(config)):
            key = rng and rng.child("stage", i)
            resample = Upsample(blocks[-1][1], rng=key and key.child("resample")) \
                if i < len(config.widths) - 1 else None
            self.stages.append(Stage(config, blocks, resample, key))
        self.norm = GroupNorm(top, config.groups, EPSILON)
        self.last = convolution(top, config.outputs, rng=rng and rng.child("last"))

    def __call__(self, z):                                      # [B, Z, h, w] -> [B, C, H, W]
        x = self.middle(self.first(z))
        for stage in self.stages:
            x = stage(x)
        return self.last(self.norm(x, ops.silu))


def encoder_blocks(config):
    """[[(inputs, outputs) of each residual block] of each level, from the top]."""
    before = (config.widths[0], *config.widths)
    return [[(width if i else before[level], width) for i in range(config.layers)]
            for level, width in enumerate(config.widths)]


def decoder_blocks(config):
    """The same from the bottom; one more block at each level."""
    widths = config.widths[::-1]
    before = (widths[0], *widths)
    return [[(width if i else before[level], width) for i in range(config.layers + 1)]
            for level, width in enumerate(widths)]


class Posterior:
    """Where the latents of pictures are: for each number, independently, N(mean, e^log_variance).

    mean, log_variance   Tensors [B, Z, h, w]
    """

    def __init__(self, told):
        """told [B, 2Z, h, w]: means, then logarithms of variances, which are kept within limits."""
        Z, (least, most) = told.shape[1] // 2, LOG_VARIANCES
        self.mean = told[:, :Z]
        self.log_variance = ops.minimum(ops.maximum(told[:, Z:], least), most)

    def sample(self, *, rng):
        """Latents that `rng` draws."""
        return self.at(Tensor(rng.normal(self.mean.shape, self.mean.dtype)))

    def at(self, noise):
        """Latents, drawn so that gradients reach mean and variance: mean + σ · noise."""
        return self.mean + ops.exp(self.log_variance * 0.5) * noise

    def divergence(self):
        """[B]: KL(this || N(0, 1)) in nats, Σ ½ (mean² + variance - 1 - log variance)."""
        terms = self.mean * self.mean + ops.exp(self.log_variance) - 1.0 - self.log_variance
        return terms.sum((1, 2, 3)) * 0.5


class AutoencoderKL(parts.ListedModel):
    """A picture in, the picture out, through few numbers. Pictures have values from -1 to 1."""

    def __init__(self, config, rng=None):
        """`rng` draws the initial weights, so that variances stay. Without `rng` all are zeros, for
        a checkpoint to replace."""
        Z = config.latents
        self.config = config
        self.encoder = Encoder(config, rng and rng.child("encoder"))
        self.decoder = Decoder(config, rng and rng.child("decoder"))
        self.behind, self.before = (
            convolution(width, width, 1, rng=rng and rng.child(name)) if config.mixed else None
            for name, width in (("behind", 2 * Z), ("before", Z)))

    def __call__(self, x, *, rng=None):
        """Pictures x [B, inputs, H, W] as they come back, [B, outputs, H, W]: from the likeliest
        latents, or from some that `rng` draws."""
        posterior = self.encode(x)
        return self.decode(posterior.mean if rng is None else posterior.sample(rng=rng))

    def encode(self, x):
        """Pictures x [B, inputs, H, W] -> the Posterior of their latents [B, Z, h, w]."""
        c = self.config
        if len(x.shape) != 4 or x.shape[1] != c.inputs or any(n % c.stride for n in x.shape[2:]):
            raise ShapeError(f"AutoencoderKL: expected pictures [B, {c.inputs}, H, W] with H and "
                             f"W multiples of {c.stride}, got {list(x.shape)}")
        told = self.encoder(x)
        return Posterior(told if self.behind is None else self.behind(told))

    def decode(self, z):
        """Latents z [B, Z, h, w] -> pictures [B, outputs, H, W]."""
        if len(z.shape) != 4 or z.shape[1] != self.config.latents:
            raise ShapeError(f"AutoencoderKL: expected latents [B, {self.config.latents}, h, w], "
                             f"got {list(z.shape)}")
        return self.decoder(z if self.before is None else self.before(z))

    def to_latents(self, x, *, rng=None):
        """Pictures -> what a diffusion model works on: latents that are shifted and scaled, the
        likeliest or some that `rng` draws."""
        posterior = self.encode(x)
        z = posterior.mean if rng is None else posterior.sample(rng=rng)
        return (z - self.config.shift) * self.config.scaling

    def to_pictures(self, latents):
        """The way back: latents of a diffusion model -> pictures."""
        return self.decode(latents * (1 / self.config.scaling) + self.config.shift)

    def errors(self, x, noise=None):
        """What is wrong with each of pictures x [B, C, H, W]: the mean square of the differences to
        what comes back, [B], and the divergence of its latents from N(0, 1) in nats, [B].

        noise   [B, Z, h, w] ~ N(0, 1), by which latents are drawn; None: the likeliest ones
        """
        posterior = self.encode(x)
        latents = posterior.mean if noise is None else posterior.at(noise)
        difference = self.decode(latents) - x
        return (difference * difference).mean((1, 2, 3)), posterior.divergence()

    def narrow(self):
        """Let every posterior be a point, as in a plain autoencoder: what the last layer of the
        encoder says of variances is the least there is, and has no weights to learn it by."""
        last = self.encoder.last if self.behind is None else self.behind
        Z, backend = self.config.latents, backends.active()
        for parameter, value in ((last.weight, 0.0), (last.bias, LOG_VARIANCES[0])):
            array = parameter.numpy().copy()
            array[Z:] = value
            parameter.data = backend.from_numpy(array)
            parameter.version += 1

    # -- files: the layout of the ecosystem -------------------------------------------------------

    @staticmethod
    def config_from_hub(stored):
        """The configuration in a `config.json`; raises ConfigError naming the key."""
        c = said(stored, DEFAULTS, FIXED, SILENT)
        levels = len(c["block_out_channels"])
        for key in ("down_block_types", "up_block_types"):
            if c[key] != [KINDS[key]] * levels:
                raise ConfigError(f"config.json: {key}: expected {KINDS[key]} for each of {levels} "
                                  f"levels, got {c[key]!r:.200}")
        mixed = c["use_quant_conv"]
        if c["use_post_quant_conv"] != mixed:
            raise ConfigError(f"config.json: use_post_quant_conv: expected {mixed!r}, as "
                              f"use_quant_conv is, got {c['use_post_quant_conv']!r}")
        return AutoencoderConfig(
            inputs=c["in_channels"], outputs=c["out_channels"], size=c["sample_size"],
            widths=c["block_out_channels"], layers=c["layers_per_block"],
            latents=c["latent_channels"], groups=c["norm_num_groups"], mixed=mixed,
            scaling=c["scaling_factor"],
            shift=0.0 if c["shift_factor"] is None else c["shift_factor"])

    @staticmethod
    def config_to_hub(config, *, end_of_text=None):
        """The `config.json` that describes this model to other libraries."""
        levels = len(config.widths)
        return {
            "_class_name": CLASS, "in_channels": config.inputs, "out_channels": config.outputs,
            "sample_size": config.size, "block_out_channels": list(config.widths),
            "layers_per_block": config.layers, "latent_channels": config.latents,
            "norm_num_groups": config.groups, "use_quant_conv": config.mixed,
            "use_post_quant_conv": config.mixed, "scaling_factor": config.scaling,
            "shift_factor": config.shift or None, "act_fn": "silu",
            "mid_block_add_attention": True,
            **{key: [kind] * levels for key, kind in KINDS.items()}}


CLASS = "AutoencoderKL"
KINDS = {"down_block_types": "DownEncoderBlock2D", "up_block_types": "UpDecoderBlock2D"}
DEFAULTS = {
    "in_channels": 3, "out_channels": 3, "sample_size": 32, "block_out_channels": [64],
    "layers_per_block": 1, "latent_channels": 4, "norm_num_groups": 32, "use_quant_conv": True,
    "use_post_quant_conv": True, "scaling_factor": 0.18215, "shift_factor": None,
    "down_block_types": ["DownEncoderBlock2D"], "up_block_types": ["UpDecoderBlock2D"]}
FIXED = {"act_fn": ("silu", "swish"), "mid_block_add_attention": (True,)}
SILENT = ("force_upcast",)


def list_parts(config, pixels=0):
    """[Part] of the whole model, for a picture of so many pixels."""
    top, bottom, Z = config.widths[0], config.widths[-1], config.latents
    below = len(config.widths) - 1
    few = pixels // 4**below                                    # positions of the latents
    found = [parts.convolution("encoder.first", "encoder.conv_in", config.inputs, top, 3, pixels)]
    for level, blocks in enumerate(encoder_blocks(config)):
        found += stage_parts("encoder", f"down_blocks.{level}", level, blocks, pixels // 4**level,
                        "downsamplers", pixels // 4 ** (level + 1), level < below)
    found += _middle("encoder", bottom, few)
    found += [parts.norm("encoder.norm", "encoder.conv_norm_out", bottom),
              parts.convolution("encoder.last", "encoder.conv_out", bottom, 2 * Z, 3, few),
              parts.convolution("decoder.first", "decoder.conv_in", Z, bottom, 3, few)]
    found += _middle("decoder", bottom, few)
    for i, blocks in enumerate(decoder_blocks(config)):
        found += stage_parts("decoder", f"up_blocks.{i}", i, blocks, few * 4**i, "upsamplers",
                        few * 4 ** (i + 1), i < below)
    found += [parts.norm("decoder.norm", "decoder.conv_norm_out", top),
              parts.convolution("decoder.last", "decoder.conv_out", top, config.outputs, 3,
                                pixels)]
    if config.mixed:
        found += [parts.convolution("behind", "quant_conv", 2 * Z, 2 * Z, 1, few),
                  parts.convolution("before", "post_quant_conv", Z, Z, 1, few)]
    return found


def stage_parts(coder, theirs, i, blocks, positions, resample, changed, changes):
    """The parts of a Stage; `changed` are its positions behind the change of resolution, if it
    `changes`."""
    ours, theirs, width = f"{coder}.stages.{i}", f"{coder}.{theirs}", blocks[-1][1]
    for n, widths in enumerate(blocks):
        yield from parts.residual_block(f"{ours}.residuals.{n}", f"{theirs}.resnets.{n}", *widths,
                                        positions)
    if changes:
        yield parts.convolution(f"{ours}.resample.conv", f"{theirs}.{resample}.0.conv", width,
                                width, 3, changed)


def _middle(coder, width, positions):
    for n in range(2):
        yield from parts.residual_block(f"{coder}.middle.residuals.{n}",
                                        f"{coder}.mid_block.resnets.{n}", width, width, positions)
    yield from parts.spatial_attention(f"{coder}.middle.attention",
                                       f"{coder}.mid_block.attentions.0", width, positions)
