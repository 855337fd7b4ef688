"""The UNet: the network of most diffusion models (Ronneberger et al. 2015, Ho et al. 2020).

An image goes down, level by level to half its height and width, and up again; on the way up each
block also sees what the block of the same resolution saw on the way down. Where `memory_width` is
set, the pixels look at a sequence, such as an encoded text (Rombach et al. 2022: Stable Diffusion);
else at each other. Read top to bottom: the configuration, the parts, the model, its life in files.

Dimensions: B batch, C channels, H x W the image, E width of the time, S tokens of the memory.
"""

from dataclasses import dataclass

from minifm import ops
from minifm.config import check, setting
from minifm.errors import ConfigError, ShapeError
from minifm.models import parts
from minifm.models.stored import said
from minifm.nn import Attention, Embedding, LayerNorm, Linear, Module, pre_norm
from minifm.nn.image import (
    Downsample,
    ResidualBlock,
    SpatialAttention,
    Upsample,
    convolution,
    image_of,
    tokens_of,
)
from minifm.nn.layers import GroupNorm
from minifm.nn.time import TimeEmbedding, VectorEmbedding, one_for_each

# What the original has as numbers in its code, not in its configuration.
TRANSFORMER_GROUP_EPSILON, TRANSFORMER_EPSILON = 1e-6, 1e-5


@dataclass(frozen=True)
class UNetConfig:
    """The shape of a UNet; counts follow from it without building the model."""

    inputs: int = setting(3, "channels of the images that come in", least=1)
    outputs: int = setting(3, "channels of those that go out", least=1)
    size: int | None = setting(
        32, "height and width of the images that it learns from; it takes others", least=1)
    widths: tuple[int, ...] = setting(
        (128, 256, 256), "channels at each level; a level has half the height and width of the "
        "one above it", least=1)
    layers: int = setting(2, "residual blocks of a level on the way down; there is one more on "
                             "the way up", least=1, most=64)
    attention: tuple[int, ...] = setting(
        (1, 2), "levels, counted from 0 at the top, whose blocks have attention", least=0)
    head_width: int | None = setting(
        None, "channels of an attention head (default: one head has all)", least=1)
    heads: tuple[int, ...] = setting(
        (), "attention heads at each level, in place of their width", least=1)
    memory_width: int | None = setting(
        None, "numbers that stand for a token of the sequence that pixels look at", least=1)
    vector_width: int | None = setting(
        None, "numbers of a vector that stands for a whole text or picture, and is added to the "
        "time's", least=1)
    depth: int = setting(1, "transformer blocks in a place where pixels look at a sequence",
                         least=1, most=64)
    classes: int | None = setting(
        None, "labels that images may have; by custom the last of them stands for none", least=1)
    groups: int = setting(32, "groups of channels that are normalised together", least=1)
    norm_epsilon: float = setting(1e-5, "inside the square root of the norms", above=0, below=1)
    dropout: float = setting(0.0, "in the residual blocks", least=0, below=1)
    symmetric: bool = setting(True, "padding before an image is halved stands on all sides, not "
                                    "below and to the right only")
    cosine_first: bool = setting(True, "cosines of the time come before its sines")
    frequency_shift: int = setting(0, "1: the slowest sine has the whole period (DDPM)",
                                   least=0, most=1)
    linear_projection: bool = setting(
        False, "files have the first and the last layer of a transformer as matrices, not as "
        "convolutions (Stable Diffusion 2)")

    def __post_init__(self):
        check(self)
        for name in ("widths", "attention", "heads"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        if not 1 <= len(self.widths) <= MOST_LEVELS:
            raise ConfigError(f"widths: expected 1 … {MOST_LEVELS} levels, got {len(self.widths)}")
        if any(level >= len(self.widths) for level in self.attention):
            raise ConfigError(f"attention: expected levels below {len(self.widths)}, got "
                              f"{list(self.attention)}")
        object.__setattr__(self, "attention", tuple(sorted(set(self.attention))))
        for width in self.widths:
            if width % self.groups:
                raise ConfigError(f"groups: {self.groups} groups do not divide the width {width}")
        if self.widths[0] < 4:
            raise ConfigError("widths: expected 4 at least at the top, whose width is that of the "
                              f"sines and cosines of the time, got {self.widths[0]}")
        if self.vector_width and (self.memory_width is None or self.classes is not None):
            raise ConfigError("vector_width: a vector goes beside a memory, and not beside classes")
        self._check_heads()
        if self.memory_width is not None:
            self._settle_heads()

    def _check_heads(self):
        if self.heads and (self.head_width or len(self.heads) != len(self.widths)):
            raise ConfigError(f"heads: expected one number for each of {len(self.widths)} levels "
                              f"and no head_width beside, got {list(self.heads)}")
        for level in {*self.attention, len(self.widths) - 1}:       # the middle has attention
            width, each = self.widths[level], self.heads[level] if self.heads else self.head_width
            if width % (each or 1):
                raise ConfigError(f"{'heads' if self.heads else 'head_width'}: {each} does not "
                                  f"divide the width {width}")

    def _settle_heads(self):
        """Files of networks that look at a memory have numbers of heads, whatever was chosen: so
        that the same network has the same configuration, it is one width where all heads have
        one, and else numbers."""
        numbers = tuple(map(self.heads_at, range(len(self.widths))))
        widths = {width / heads for width, heads in zip(self.widths, numbers)}
        one = int(widths.pop()) if len(widths) == 1 else None
        object.__setattr__(self, "head_width", one)
        object.__setattr__(self, "heads", numbers if one is None else ())

    @property
    def model(self):
        """The class of the models of this shape."""
        return UNet

    @property
    def time_width(self):                                                               # E
        return 4 * self.widths[0]

    @property
    def stride(self):
        """What the height and the width of an image must be a multiple of."""
        return 2 ** (len(self.widths) - 1)

    def heads_at(self, level):
        """How many attention heads a level has."""
        if self.heads:
            return self.heads[level]
        return max(1, self.widths[level] // (self.head_width or self.widths[level]))

    def parts(self, pixels=0, tokens=0):
        """[Part] of the whole model, for an image and a memory of such sizes."""
        return list_parts(self, pixels, tokens)

    @property
    def parameters(self):
        """How many numbers training adjusts."""
        return parts.count_parameters(self.parts())

    def flops(self, height, width=None, *, memory_length=0, training=False):
        """Floating-point operations of one image of this size, looking at so many tokens; products
        only. In training, forward and backward."""
        return parts.count_flops(
            self.parts(height * (width or height), memory_length), training)


MOST_LEVELS = 16        # of a UNet of more, even the top would have 2^16 pixels to a side at least
STABLE_DIFFUSION = dict(inputs=4, outputs=4, size=64, widths=(320, 640, 1280, 1280),
                        attention=(0, 1, 2), heads=(8, 8, 8, 8), memory_width=768)
PRESETS = {
    "unet-tiny": dict(inputs=1, outputs=1, size=8, widths=(32, 64), attention=(1,), layers=1,
                      head_width=32, groups=8),         # digits, on any laptop
    "unet-mini": dict(inputs=1, outputs=1, size=16, widths=(32, 64, 64), attention=(1, 2),
                      layers=1, head_width=32, groups=8),
    "unet-small": dict(widths=(64, 128, 128), attention=(1,), head_width=32),  # 6.5M
    "unet-cifar10": dict(widths=(128, 256, 256, 256), attention=(1,), norm_epsilon=1e-6,
                         symmetric=False, cosine_first=False, frequency_shift=1,
                         dropout=0.1),                  # Ho et al. 2020
    "stable-diffusion-1.5": STABLE_DIFFUSION,
    "stable-diffusion-2.1": STABLE_DIFFUSION | dict(
        heads=(5, 10, 20, 20), memory_width=1024, size=96, linear_projection=True),
}


def paths(config):
    """(down, up): for each level, in the order of the pass, (level, [(inputs, outputs), …]) of its
    residual blocks."""
    x, kept, down, up = config.widths[0], [config.widths[0]], [], []
    for level, width in enumerate(config.widths):
        down.append((level, [(width if i else x, width) for i in range(config.layers)]))
        kept += [width] * (config.layers + (level < len(config.widths) - 1))
        x = width
    for level, width in reversed(list(enumerate(config.widths))):
        blocks = []
        for _ in range(config.layers + 1):
            blocks.append((x + kept.pop(), width))
            x = width
        up.append((level, blocks))
    return down, up


# -- pixels that look at a sequence ----------------------------------------------------------------


class PackedGatedPerceptron(Module):
    """expand(x) · gelu(gate(x)), then back to C (Shazeer 2020); one matrix holds both layers."""

    def __init__(self, width, hidden, *, rng):
        self.project = Linear(width, 2 * hidden, std=width**-0.5,
                              rng=rng and rng.child("project"))
        self.output = Linear(hidden, width, std=hidden**-0.5, rng=rng and rng.child("output"))

    def __call__(self, x, residual=None, *, rng=None):          # [B, T, C] -> [B, T, C]
        x = self.project(x, rng=rng and rng.child("project"))
        F = x.shape[-1] // 2
        return self.output(x[..., :F] * ops.gelu(x[..., F:]), residual=residual,
                           rng=rng and rng.child("output"))


class TransformerBlock(Module):
    """Pixels look at each other, then at the memory; then a perceptron."""

    def __init__(self, width, heads, memory_width, *, rng):
        options = {"bias": False, "output_bias": True, "std": width**-0.5,
                   "output_std": width**-0.5}
        self.norm1, self.norm2, self.norm3 = (
            LayerNorm(width, TRANSFORMER_EPSILON) for _ in range(3))
        self.attention = Attention(width, heads, rng=rng and rng.child("attention"), **options)
        self.cross_attention = Attention(width, heads, memory_width=memory_width,
                                         rng=rng and rng.child("cross_attention"), **options)
        self.perceptron = PackedGatedPerceptron(width, 4 * width,
                                                rng=rng and rng.child("perceptron"))

    def __call__(self, x, memory, memory_mask=None, *, rng=None):
        """x [B, H W, C], memory [B, S, M], its mask bool [B, S] -> [B, H W, C]."""
        x = pre_norm(x, self.norm1, self.attention, rng=rng and rng.child("attention"))
        x = pre_norm(x, self.norm2, self.cross_attention, memory=memory, key_mask=memory_mask,
                     rng=rng and rng.child("cross_attention"))
        return pre_norm(x, self.norm3, self.perceptron, rng=rng and rng.child("perceptron"))


class SpatialTransformer(Module):
    """An image as a sequence of its pixels through a transformer; the outcome is added to it."""

    def __init__(self, config, level, *, rng):
        C = config.widths[level]
        self.norm = GroupNorm(C, config.groups, TRANSFORMER_GROUP_EPSILON)
        self.enter = Linear(C, C, std=C**-0.5, rng=rng and rng.child("enter"))
        self.blocks = [TransformerBlock(C, config.heads_at(level), config.memory_width,
                                        rng=rng and rng.child("block", i))
                       for i in range(config.depth)]
        self.leave = Linear(C, C, std=0, rng=rng and rng.child("leave"))

    def __call__(self, x, *, rng=None, **look):                 # [B, C, H, W] -> the same
        tokens = self.enter(tokens_of(self.norm(x)), rng=rng and rng.child("enter"))
        for i, block in enumerate(self.blocks):
            tokens = block(tokens, **look, rng=rng and rng.child("block", i))
        tokens = self.leave(tokens, rng=rng and rng.child("leave"))
        return x + image_of(tokens, x.shape)


# -- the levels ----------------------------------------------------------------------------------


def new_attention(config, level, rng):
    """What stands behind a residual block of a level with attention."""
    if config.memory_width is not None:
        return SpatialTransformer(config, level, rng=rng)
    return SpatialAttention(config.widths[level], config.heads_at(level), groups=config.groups,
                            epsilon=config.norm_epsilon, rng=rng)


class Level(Module):
    """Residual blocks, each with attention behind it or without."""

    def __init__(self, config, level, blocks, attentions, rng):
        """blocks: [(inputs, outputs), …]; `attentions`: how many of them have attention."""
        self.dropout = config.dropout
        self.residuals = [
            ResidualBlock(*widths, time_width=config.time_width, groups=config.groups,
                          epsilon=config.norm_epsilon, rng=rng and rng.child("residual", i))
            for i, widths in enumerate(blocks)]
        self.attentions = [new_attention(config, level, rng and rng.child("attention", i))
                           for i in range(attentions)]

    def step(self, i, x, time, look, rng):
        """Block number i: x [B, C, H, W] -> [B, O, H, W]."""
        x = self.residuals[i](x, time, dropout=self.dropout, rng=rng and rng.child("residual", i))
        if i < len(self.attentions):
            x = self.attentions[i](x, **look, rng=rng and rng.child("attention", i))
        return x


class DownLevel(Level):
    def __init__(self, config, level, blocks, rng):
        super().__init__(config, level, blocks, len(blocks) * (level in config.attention), rng)
        self.resample = Downsample(config.widths[level], symmetric=config.symmetric,
                                   rng=rng and rng.child("resample")) \
            if level < len(config.widths) - 1 else None

    def __call__(self, x, time, look, rng):
        """What each of its layers makes, in a list: the way up will see it again."""
        kept = []
        for i in range(len(self.residuals)):
            x = self.step(i, x, time, look, rng)
            kept.append(x)
        return kept if self.resample is None else [*kept, self.resample(x)]


class UpLevel(Level):
    def __init__(self, config, level, blocks, rng):
        super().__init__(config, level, blocks, len(blocks) * (level in config.attention), rng)
        self.resample = Upsample(config.widths[level], rng=rng and rng.child("resample")) \
            if level > 0 else None

    def __call__(self, x, kept, time, look, rng):
        """Takes from the end of `kept` what the way down has made in the same resolution."""
        for i in range(len(self.residuals)):
            x = self.step(i, ops.concatenate([x, kept.pop()], 1), time, look, rng)
        return x if self.resample is None else self.resample(x)


class Middle(Level):
    """Two residual blocks at the bottom, with attention between."""

    def __init__(self, config, rng):
        C = config.widths[-1]
        super().__init__(config, len(config.widths) - 1, [(C, C), (C, C)], 1, rng)

    def __call__(self, x, time, look, rng):
        return self.step(1, self.step(0, x, time, look, rng), time, look, rng)


class UNet(parts.ListedModel):
    """A noisy image and its time in, a prediction of the same height and width out."""

    folder = "unet"

    def __init__(self, config, rng=None):
        """`rng` draws the initial weights, so that variances stay; the last layer of each part
        that adds is zero. Without `rng` all are zeros, for a checkpoint to replace."""
        top, down, up = config.widths[0], *paths(config)
        self.config = config
        self.time = TimeEmbedding(top, config.time_width, cosine_first=config.cosine_first,
                                  shift=config.frequency_shift, rng=rng and rng.child("time"))
        self.labels = None if config.classes is None else Embedding(
            config.classes, config.time_width, std=1.0, rng=rng and rng.child("labels"))
        self.vector = None if config.vector_width is None else VectorEmbedding(
            config.vector_width, config.time_width, rng=rng and rng.child("vector"))
        self.first = convolution(config.inputs, top, rng=rng and rng.child("first"))
        self.down = [DownLevel(config, level, blocks, rng and rng.child("down", level))
                     for level, blocks in down]
        self.middle = Middle(config, rng and rng.child("middle"))
        self.up = [UpLevel(config, level, blocks, rng and rng.child("up", level))
                   for level, blocks in up]
        self.norm = GroupNorm(top, config.groups, config.norm_epsilon)
        self.last = convolution(top, config.outputs, zero=True, rng=rng and rng.child("last"))

    def __call__(self, x, t, *, labels=None, memory=None, memory_mask=None, vector=None, rng=None):
        """x [B, inputs, H, W] -> [B, outputs, H, W].

        t            the time, one number or one for each image [B]
        labels       int, likewise: of a model with classes
        memory       [B, S, M] to look at: of a model with a memory_width
        memory_mask  bool [B, S]: False marks padding in it (default: nothing is)
        vector       [B, P]: of a model with a vector_width
        rng          turns dropout on
        """
        self._check(x, labels, memory, vector)
        B, look = x.shape[0], {} if memory is None else {"memory": memory,
                                                        "memory_mask": memory_mask}
        time = self.time(one_for_each("t", t, B, float), x.dtype)               # [B, E]
        if labels is not None:
            time = time + self.labels(one_for_each("labels", labels, B, int))
        if vector is not None:
            time = time + self.vector(vector)
        time = ops.silu(time)
        x = self.first(x)
        kept = [x]
        for i, level in enumerate(self.down):
            kept += level(kept[-1], time, look, rng and rng.child("down", i))
        x = self.middle(kept[-1], time, look, rng and rng.child("middle"))
        for i, level in enumerate(self.up):
            x = level(x, kept, time, look, rng and rng.child("up", i))
        return self.last(self.norm(x, ops.silu))

    def _check(self, x, labels, memory, vector):
        c = self.config
        if len(x.shape) != 4 or x.shape[1] != c.inputs or any(n % c.stride for n in x.shape[2:]):
            raise ShapeError(f"UNet: expected images [B, {c.inputs}, H, W] with H and W multiples "
                             f"of {c.stride}, got {list(x.shape)}")
        for name, given, needed in (("labels", labels, c.classes),
                                    ("memory", memory, c.memory_width),
                                    ("vector", vector, c.vector_width)):
            if (given is None) != (needed is None):
                raise ConfigError(f"{name}: this UNet {'has no' if needed is None else 'needs'} "
                                  f"{name}")
        if memory is not None and (len(memory.shape), memory.shape[-1]) != (3, c.memory_width):
            raise ShapeError(f"UNet: memory: expected [{x.shape[0]}, S, {c.memory_width}], got "
                             f"{list(memory.shape)}")
        if vector is not None and tuple(vector.shape) != (x.shape[0], c.vector_width):
            raise ShapeError(f"UNet: vector: expected [{x.shape[0]}, {c.vector_width}], got "
                             f"{list(vector.shape)}")

    # -- files: the layout of the ecosystem -------------------------------------------------------

    @staticmethod
    def config_from_hub(stored):
        """The configuration in a `config.json`; raises ConfigError naming the key."""
        looks = stored.get("_class_name") == CONDITIONED
        c = said(stored, (CONDITION_DEFAULTS if looks else DEFAULTS),
                 FIXED | CONDITION_FIXED if looks else FIXED, SILENT)
        heads = c["attention_head_dim"]
        if isinstance(heads, list) and not looks:
            raise ConfigError("config.json: attention_head_dim: expected a number, got a list")
        if looks and isinstance(heads, int):
            heads = [heads] * len(c["block_out_channels"])
        return UNetConfig(
            inputs=c["in_channels"], outputs=c["out_channels"], size=_side(c["sample_size"]),
            widths=c["block_out_channels"], layers=c["layers_per_block"],
            attention=_levels_with_attention(c, looks), classes=c["num_class_embeds"],
            groups=c["norm_num_groups"], norm_epsilon=c["norm_eps"], dropout=c["dropout"],
            symmetric=bool(c["downsample_padding"]), cosine_first=c["flip_sin_to_cos"],
            frequency_shift=c["freq_shift"], **({
                "heads": heads, "memory_width": c["cross_attention_dim"],
                "vector_width": c["projection_class_embeddings_input_dim"]
                if c["class_embed_type"] else None,
                "depth": c["transformer_layers_per_block"],
                "linear_projection": c["use_linear_projection"]}
                if looks else {"head_width": heads}))

    @staticmethod
    def config_to_hub(config, *, end_of_text=None):
        """The `config.json` that describes this model to other libraries."""
        looks, L = config.memory_width is not None, len(config.widths)
        down = [KINDS[looks][level in config.attention] for level in range(L)]
        up = [kind.replace("Down", "Up") for kind in reversed(down)]
        written = {
            "_class_name": CONDITIONED if looks else "UNet2DModel",
            "sample_size": config.size, "in_channels": config.inputs,
            "out_channels": config.outputs, "block_out_channels": list(config.widths),
            "layers_per_block": config.layers, "down_block_types": down, "up_block_types": up,
            "mid_block_type": MIDDLE[looks], "num_class_embeds": config.classes,
            "norm_num_groups": config.groups, "norm_eps": config.norm_epsilon,
            "dropout": config.dropout, "downsample_padding": int(config.symmetric),
            "flip_sin_to_cos": config.cosine_first, "freq_shift": config.frequency_shift,
            "act_fn": "silu", "attention_head_dim": config.head_width}
        if looks:
            heads = [config.heads_at(level) for level in range(L)]
            written |= {"cross_attention_dim": config.memory_width,
                        "transformer_layers_per_block": config.depth,
                        "use_linear_projection": config.linear_projection,
                        "class_embed_type": "projection" if config.vector_width else None,
                        "projection_class_embeddings_input_dim": config.vector_width,
                        "attention_head_dim": heads[0] if len(set(heads)) == 1 else heads}
        elif config.heads:
            written["attention_head_dim"] = _one_width(config)
        return written


CONDITIONED = "UNet2DConditionModel"
CLASSES = ("UNet2DModel", CONDITIONED)
# What files call a level without and with attention; whose pixels look at a memory, and whose not.
KINDS = {False: ("DownBlock2D", "AttnDownBlock2D"), True: ("DownBlock2D", "CrossAttnDownBlock2D")}
MIDDLE = {False: "UNetMidBlock2D", True: "UNetMidBlock2DCrossAttn"}
DEFAULTS = {
    "sample_size": None, "in_channels": 3, "out_channels": 3, "layers_per_block": 2,
    "block_out_channels": [224, 448, 672, 896], "norm_num_groups": 32, "norm_eps": 1e-5,
    "down_block_types": ["DownBlock2D"] + ["AttnDownBlock2D"] * 3,
    "up_block_types": ["AttnUpBlock2D"] * 3 + ["UpBlock2D"], "mid_block_type": MIDDLE[False],
    "attention_head_dim": 8, "num_class_embeds": None, "dropout": 0.0, "downsample_padding": 1,
    "flip_sin_to_cos": True, "freq_shift": 0}
CONDITION_DEFAULTS = DEFAULTS | {
    "in_channels": 4, "out_channels": 4, "block_out_channels": [320, 640, 1280, 1280],
    "down_block_types": ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"],
    "up_block_types": ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3, "mid_block_type": MIDDLE[True],
    "cross_attention_dim": 1280, "transformer_layers_per_block": 1, "use_linear_projection": False,
    "class_embed_type": None, "projection_class_embeddings_input_dim": None}
FIXED = {
    "act_fn": ("silu", "swish"), "time_embedding_type": ("positional",),
    "resnet_time_scale_shift": ("default",), "downsample_type": ("conv",),
    "upsample_type": ("conv",), "mid_block_scale_factor": (1,), "add_attention": (True,),
    "resnet_out_scale_factor": (1,), "conv_in_kernel": (3,), "conv_out_kernel": (3,),
    "attention_type": ("default",), "center_input_sample": (False,),
    "downsample_padding": (0, 1)}
CONDITION_FIXED = {"class_embed_type": (None, "projection")}
SILENT = ("addition_embed_type_num_heads", "upcast_attention", "num_train_timesteps")


def _side(size):
    """`sample_size` as one number: files may have a pair of them."""
    return size[0] if isinstance(size, list) and len(size) == 2 and size[0] == size[1] else size


def _levels_with_attention(c, looks):
    """The levels whose blocks have attention, by the kinds of blocks in a `config.json`."""
    down, up, plain = c["down_block_types"], c["up_block_types"], KINDS[looks]
    if not isinstance(down, list) or any(kind not in plain for kind in down) or \
            len(down) != len(c["block_out_channels"]):
        raise ConfigError(f"config.json: down_block_types: expected {plain[0]} or {plain[1]} for "
                          f"each level, got {down!r:.200}")
    mirrored = [kind.replace("Down", "Up") for kind in reversed(down)]
    for key, given, expected in (("up_block_types", up, mirrored),
                                 ("mid_block_type", c["mid_block_type"], MIDDLE[looks])):
        if given != expected:
            raise ConfigError(f"config.json: {key}: expected {expected!r}, got {given!r:.200}")
    return [level for level, kind in enumerate(down) if kind == plain[1]]


def _one_width(config):
    """The channels of a head, which these files have once for all levels; raises ConfigError."""
    levels = {*config.attention, len(config.widths) - 1}
    widths = {config.widths[level] // config.heads[level] for level in levels}
    if len(widths) > 1:
        raise ConfigError(f"heads: files of a {CLASSES[0]} have heads of one width, these have "
                          f"{sorted(widths)}")
    return widths.pop()


def list_parts(config, pixels=0, tokens=0):
    """[Part] of the whole model, for an image of so many pixels and a memory of so many tokens."""
    top, E, down, up = config.widths[0], config.time_width, *paths(config)
    found = [*parts.time_embedding("time", "time_embedding", top, E)]
    if config.classes is not None:
        found.append(parts.table("labels", "class_embedding", config.classes, E))
    if config.vector_width is not None:
        found += parts.vector_embedding("vector", "class_embedding", config.vector_width, E)
    found.append(parts.convolution("first", "conv_in", config.inputs, top, 3, pixels))
    for name, path, theirs, change in (("down", down, "down_blocks", "downsamplers.0.conv"),
                                       ("up", up, "up_blocks", "upsamplers.0.conv")):
        step = 1 if name == "down" else -1
        for i, (level, blocks) in enumerate(path):
            width, here = config.widths[level], pixels // 4**level
            found += _level(config, f"{name}.{i}", f"{theirs}.{i}", level, blocks, here, tokens,
                            len(blocks) * (level in config.attention))
            if 0 <= level + step < len(config.widths):
                found.append(parts.convolution(
                    f"{name}.{i}.resample.conv", f"{theirs}.{i}.{change}", width, width, 3,
                    pixels // 4 ** (level + step)))
    bottom = len(config.widths) - 1
    found += _level(config, "middle", "mid_block", bottom, [(config.widths[-1],) * 2] * 2,
                    pixels // 4**bottom, tokens, 1)
    return [*found, parts.norm("norm", "conv_norm_out", top),
            parts.convolution("last", "conv_out", top, config.outputs, 3, pixels)]


def _level(config, ours, theirs, level, blocks, pixels, tokens, attentions):
    for i, widths in enumerate(blocks):
        yield from parts.residual_block(f"{ours}.residuals.{i}", f"{theirs}.resnets.{i}", *widths,
                                        pixels, config.time_width)
    each = _transformer if config.memory_width is not None else _attention
    for i in range(attentions):
        yield from each(config, f"{ours}.attentions.{i}", f"{theirs}.attentions.{i}",
                        config.widths[level], pixels, tokens)


def _attention(config, ours, theirs, width, pixels, tokens):
    return parts.spatial_attention(ours, theirs, width, pixels)


def _transformer(config, ours, theirs, width, pixels, tokens):
    stored = None if config.linear_projection else (width, width, 1, 1)
    yield parts.norm(f"{ours}.norm", f"{theirs}.norm", width)
    yield parts.linear(f"{ours}.enter", f"{theirs}.proj_in", width, width, pixels, stored=stored)
    for i in range(config.depth):
        here, there = f"{ours}.blocks.{i}", f"{theirs}.transformer_blocks.{i}"
        for n in (1, 2, 3):
            yield parts.norm(f"{here}.norm{n}", f"{there}.norm{n}", width)
        yield from parts.attention(f"{here}.attention", f"{there}.attn1", width, pixels,
                                   bias=False)
        yield from parts.attention(f"{here}.cross_attention", f"{there}.attn2", width, pixels,
                                   bias=False, memory=(config.memory_width, tokens))
        yield parts.linear(f"{here}.perceptron.project", f"{there}.ff.net.0.proj", width,
                           8 * width, pixels)
        yield parts.linear(f"{here}.perceptron.output", f"{there}.ff.net.2", 4 * width, width,
                           pixels)
    yield parts.linear(f"{ours}.leave", f"{theirs}.proj_out", width, width, pixels, stored=stored)
