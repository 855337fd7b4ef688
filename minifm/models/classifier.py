"""A small network that says of pictures which class they are of, and on the way there says in a few
numbers what is seen in them: its features, in which made pictures can be compared with real ones.

`Trunk`, what it is made of but for its last layer, also serves a network that is to tell made
pictures from real ones (gan.py).

Dimensions: B batch, C channels, H x W the picture, F features, K classes.
"""

from dataclasses import dataclass

from minifm import ops
from minifm.config import check, setting
from minifm.errors import ConfigError, ShapeError
from minifm.models import parts
from minifm.models.autoencoder import EPSILON, Stage, encoder_blocks, stage_parts
from minifm.models.stored import said
from minifm.nn import Linear, Module
from minifm.nn.image import Downsample, convolution
from minifm.nn.layers import GroupNorm


class Trunk(Module):
    """A picture down to features: residual blocks at each level, half the height and width between
    levels, and at the end the mean over what is left of space. `config` says the inputs, widths,
    layers and groups; F is the last width."""

    def __init__(self, config, rng):
        self.first = convolution(config.inputs, config.widths[0], rng=rng and rng.child("first"))
        self.stages = []
        for level, blocks in enumerate(encoder_blocks(config)):
            key = rng and rng.child("stage", level)
            resample = Downsample(config.widths[level], rng=key and key.child("resample")) \
                if level < len(config.widths) - 1 else None
            self.stages.append(Stage(config, blocks, resample, key))
        self.norm = GroupNorm(config.widths[-1], config.groups, EPSILON)

    def __call__(self, x):                                      # [B, C, H, W] -> [B, F]
        x = self.first(x)
        for stage in self.stages:
            x = stage(x)
        return self.norm(x, ops.silu).mean((2, 3))


def trunk_parts(name, config, pixels):
    """[Part] of a Trunk called `name`, for a picture of so many pixels."""
    below = len(config.widths) - 1
    yield parts.convolution(f"{name}.first", f"{name}.conv_in", config.inputs, config.widths[0], 3,
                            pixels)
    for level, blocks in enumerate(encoder_blocks(config)):
        yield from stage_parts(name, f"down_blocks.{level}", level, blocks, pixels // 4**level,
                               "downsamplers", pixels // 4 ** (level + 1), level < below)
    yield parts.norm(f"{name}.norm", f"{name}.conv_norm_out", config.widths[-1])


def check_trunk(config):
    """Raise ConfigError for widths of which no Trunk can be made; they are a tuple from then on."""
    object.__setattr__(config, "widths", tuple(config.widths))
    if not config.widths:
        raise ConfigError("widths: expected at least one level, got none")
    for width in config.widths:
        if width % config.groups:
            raise ConfigError(f"groups: {config.groups} groups do not divide the width {width}")


def check_pictures(model, x):
    """Raise ShapeError unless x is pictures that a model with a Trunk takes."""
    c = model.config
    stride = 2 ** (len(c.widths) - 1)
    if len(x.shape) != 4 or x.shape[1] != c.inputs or any(n % stride for n in x.shape[2:]):
        raise ShapeError(f"{type(model).__name__}: expected pictures [B, {c.inputs}, H, W] with H "
                         f"and W multiples of {stride}, got {list(x.shape)}")


@dataclass(frozen=True)
class ClassifierConfig:
    """The shape of a classifier of pictures."""

    inputs: int = setting(1, "channels of the pictures", least=1)
    classes: int = setting(10, "what is told apart", least=2)                           # K
    widths: tuple[int, ...] = setting(
        (24, 48), "channels at each level; a level has half the height and width of the one above "
        "it; the last is the number of features", least=1)
    layers: int = setting(1, "residual blocks of a level", least=1, most=64)
    groups: int = setting(8, "groups of channels that are normalised together", least=1)

    def __post_init__(self):
        check(self)
        check_trunk(self)

    @property
    def model(self):
        """The class of the models of this shape."""
        return PictureClassifier

    def parts(self, pixels=0):
        """[Part] of the whole model, for a picture of so many pixels."""
        return [*trunk_parts("trunk", self, pixels),
                parts.linear("output", "output", self.widths[-1], self.classes, 1)]

    @property
    def parameters(self):
        """How many numbers training adjusts."""
        return parts.count_parameters(self.parts())

    def flops(self, height, width=None, *, training=False):
        """Floating-point operations of one picture of this size; products only. In training,
        forward and backward."""
        return parts.count_flops(self.parts(height * (width or height)), training)


class PictureClassifier(parts.ListedModel):
    """Pictures in, a score for each class out. Pictures have values from -1 to 1."""

    def __init__(self, config, rng=None):
        """`rng` draws the initial weights, so that variances stay. Without `rng` all are zeros, for
        a checkpoint to replace."""
        F = config.widths[-1]
        self.config = config
        self.trunk = Trunk(config, rng and rng.child("trunk"))
        self.output = Linear(F, config.classes, std=F**-0.5, rng=rng and rng.child("output"))

    def __call__(self, x):
        """Pictures x [B, inputs, H, W] -> logits [B, K]."""
        return self.output(self.features(x))

    def features(self, x):
        """Pictures x [B, inputs, H, W] -> what is seen in them, [B, F]."""
        check_pictures(self, x)
        return self.trunk(x)

    # -- files: a layout of our own, in the ecosystem's way --------------------------------------

    @staticmethod
    def config_from_hub(stored):
        """The configuration in a `config.json`; raises ConfigError naming the key."""
        c = said(stored, DEFAULTS, {})
        return ClassifierConfig(
            inputs=c["in_channels"], classes=c["num_classes"], widths=c["block_out_channels"],
            layers=c["layers_per_block"], groups=c["norm_num_groups"])

    @staticmethod
    def config_to_hub(config, *, end_of_text=None):
        """The `config.json` that describes this model."""
        return {"_class_name": CLASS, "in_channels": config.inputs, "num_classes": config.classes,
                "block_out_channels": list(config.widths), "layers_per_block": config.layers,
                "norm_num_groups": config.groups}


CLASS = "PictureClassifier"
DEFAULTS = {"in_channels": 1, "num_classes": 10, "block_out_channels": [24, 48],
            "layers_per_block": 1, "norm_num_groups": 8}
