"""DiT, the diffusion transformer (Peebles & Xie 2022): a noisy image, cut into patches, is a
sequence; what tells the blocks the time and the label is the gain and the offset of their norms.

Nothing here is about images: sound is cut along one axis, an image along two, video and voxels
along three, and the same network serves them all. In two dimensions its files are those of other
libraries. Read top to bottom: the configuration, the parts, the model, its life in files.

Dimensions: B batch, T patches, C width, *S the sizes of the data, *G those of the grid of patches.
"""

import math
import re
from dataclasses import dataclass
from functools import partial

import numpy as np

from minifm import backends, ops
from minifm.config import check, setting
from minifm.errors import ConfigError, ShapeError
from minifm.models import parts
from minifm.models.stored import Stored, check_heads, said
from minifm.nn import Attention, Embedding, Linear, Module, Perceptron
from minifm.nn.time import TimeEmbedding, one_for_each, sinusoids
from minifm.tensor import Tensor

FREQUENCIES = 256           # sines and cosines of the time
EPSILON = 1e-6              # of the norms before attention and before the last layer


@dataclass(frozen=True)
class DiTConfig:
    """The shape of a DiT; counts follow from it without building the model."""

    inputs: int = setting(4, "channels of the data that comes in", least=1)
    outputs: int | None = setting(None, "channels of what goes out (default: as many as come in)",
                                  least=1)
    size: tuple[int, ...] = setting(
        (32, 32), "sizes of the data that it learns from: one of sound, height and width of "
        "images, three of video or voxels; it takes others", least=1)
    patch: tuple[int, ...] = setting((2, 2), "sizes of a patch, which is a token", least=1)
    layers: int = setting(12, "blocks, one above the other", least=1, most=1000)
    heads: int = setting(6, "attention heads, each width / heads wide", least=1)
    width: int = setting(384, "numbers that stand for a patch between blocks", least=2)     # C
    classes: int = setting(1000, "labels that data may have, besides none", least=0)
    norm_epsilon: float = setting(1e-5, "inside the square root of the perceptrons' norms",
                                  above=0, below=1)
    shared: bool = setting(True, "one layer embeds time and label for all blocks, as in the paper; "
                                 "else each block has its own")

    def __post_init__(self):
        check(self)
        for name in ("size", "patch"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        if self.outputs is None:
            object.__setattr__(self, "outputs", self.inputs)
        if not 1 <= len(self.size) == len(self.patch) <= MOST_AXES:
            raise ConfigError(f"patch: expected a size for each axis of the data, {self.size} are "
                              f"1 … {MOST_AXES}, got {self.patch}{_advice(self.size)}")
        for size, patch in zip(self.size, self.patch):
            if size % patch:
                raise ConfigError(f"patch: {patch} does not divide the size {size}")
        check_heads(self)

    @property
    def model(self):
        """The class of the models of this shape."""
        return DiT

    @property
    def no_class(self):
        """The label that stands for none."""
        return self.classes

    def parts(self, tokens=0):
        """[Part] of the whole model, for data of so many patches."""
        return list_parts(self, tokens)

    @property
    def parameters(self):
        """How many numbers training adjusts."""
        return parts.count_parameters(self.parts())

    def flops(self, size=None, *, training=False):
        """Floating-point operations of one example of this `size` (default: the usual one);
        products only. In training, forward and backward."""
        tokens = math.prod(n // p for n, p in zip(size or self.size, self.patch))
        return parts.count_flops(self.parts(tokens), training)


MOST_AXES = 8


def _advice(size):
    """What to give for data of this size: patches of which there are about 64, in a message."""
    if not 1 <= len(size) <= MOST_AXES:
        return ""
    each = [next(p for p in range(1, n + 1) if n % p == 0 and (n // p) ** len(size) <= 64)
            for n in size]
    return f"; such as {' '.join(map(str, each))}"


PAPER = dict(inputs=4, outputs=8, size=(32, 32), patch=(2, 2), classes=1000)    # latents of 256²
PRESETS = {
    "dit-tiny": dict(inputs=1, size=(8, 8), patch=(2, 2), layers=4, heads=4, width=128,
                     classes=10),                       # digits, on any laptop
    "dit-mini": dict(inputs=3, size=(32, 32), patch=(2, 2), layers=7, heads=6, width=384,
                     classes=10),                       # 20M
    "dit-small": PAPER | dict(layers=12, heads=6, width=384),
    "dit-base": PAPER | dict(layers=12, heads=12, width=768),
    "dit-large": PAPER | dict(layers=24, heads=16, width=1024),
    "dit-xlarge": PAPER | dict(layers=28, heads=16, width=1152),
    "dit-sound": dict(inputs=1, size=(8192,), patch=(32,), layers=6, heads=4, width=256,
                      classes=10),
    "dit-video": dict(inputs=1, size=(8, 32, 32), patch=(2, 4, 4), layers=6, heads=4, width=256,
                      classes=10),
}


# -- patches -------------------------------------------------------------------------------------


def patches_of(x, patch):
    """x [B, C, *S] -> [B, T, C · Π patch]: row by row, each patch as its channels have it."""
    (B, C), N = x.shape[:2], len(patch)
    grid = [n // p for n, p in zip(x.shape[2:], patch)]
    x = x.reshape((B, C, *sum(zip(grid, patch), ())))                       # [B, C, G1, p1, …]
    x = x.transpose((0, *range(2, 2 + 2 * N, 2), 1, *range(3, 3 + 2 * N, 2)))   # [B, *G, C, *p]
    return x.reshape((B, math.prod(grid), C * math.prod(patch)))


def data_of(tokens, grid, patch):
    """[B, T, Π patch · C] -> [B, C, *S]. Here channels come last within a patch, as in the
    original."""
    B, N = tokens.shape[0], len(patch)
    x = tokens.reshape((B, *grid, *patch, tokens.shape[2] // math.prod(patch)))  # [B, *G, *p, C]
    axes = sum(((1 + i, 1 + N + i) for i in range(N)), ())
    x = x.transpose((0, 1 + 2 * N, *axes))                                  # [B, C, G1, p1, …]
    return x.reshape((B, x.shape[1], *(g * p for g, p in zip(grid, patch))))


def positions_of(grid, usual, width):
    """Where each patch of a `grid` is, float64 [T, C]: sinusoids of its place along each axis, the
    last axis first. A grid of another size than the `usual` has its places closer or further."""
    N, pairs = len(grid), width // 2
    found = []
    for n, axis in enumerate(reversed(range(N))):
        share = 2 * (pairs // N + (n < pairs % N))                          # of the width
        place = np.arange(grid[axis]) * (usual[axis] / grid[axis])
        waves = sinusoids(place, share, cosine_first=False)                 # [G, share]
        waves = waves.reshape((*(-1 if i == axis else 1 for i in range(N)), share))
        found.append(np.broadcast_to(waves, (*grid, share)))
    found = np.concatenate(found, axis=-1).reshape(math.prod(grid), 2 * pairs)
    return np.pad(found, ((0, 0), (0, width % 2)))


# -- parts -----------------------------------------------------------------------------------------


class Embedder(Module):
    """A time and a label as one vector."""

    def __init__(self, config, rng):
        C = config.width
        self.time = TimeEmbedding(FREQUENCIES, C, cosine_first=True, shift=1,
                                  rng=rng and rng.child("time"))
        self.labels = Embedding(config.classes + 1, C, std=0.02, rng=rng and rng.child("labels"))

    def __call__(self, t, labels, dtype, *, rng=None):          # both [B] -> [B, C]
        time = self.time(t, dtype, rng=rng and rng.child("time"))
        return ops.silu(time + self.labels(labels))


class DiTBlock(Module):
    """Attention, then a perceptron. The condition shifts and scales what enters each, and weighs
    what each adds: at first by zero (adaLN-Zero)."""

    def __init__(self, config, rng):
        C, self.norm_epsilon = config.width, config.norm_epsilon
        self.embedder = None if config.shared else Embedder(config, rng and rng.child("embedder"))
        self.modulate = Linear(C, 6 * C, std=0, rng=rng and rng.child("modulate"))
        self.attention = Attention(C, config.heads, std=C**-0.5, output_std=C**-0.5,
                                   rng=rng and rng.child("attention"))
        self.perceptron = Perceptron(C, 4 * C, ops.gelu_tanh, std=C**-0.5,
                                     output_std=(4 * C) ** -0.5,
                                     rng=rng and rng.child("perceptron"))

    def __call__(self, x, condition, *, rng=None):
        """x [B, T, C], condition [B, C] -> [B, T, C]."""
        B, _, C = x.shape
        told = self.modulate(condition, rng=rng and rng.child("modulate")).reshape((B, 6, C))
        shift1, scale1, gate1, shift2, scale2, gate2 = (told[:, i] for i in range(6))
        y = self.attention(ops.adaptive_layernorm(x, scale1, shift1, EPSILON),
                           rng=rng and rng.child("attention"))
        x = x + y * gate1.reshape((B, 1, C))
        y = self.perceptron(ops.adaptive_layernorm(x, scale2, shift2, self.norm_epsilon),
                            rng=rng and rng.child("perceptron"))
        return x + y * gate2.reshape((B, 1, C))


class DiT(parts.ListedModel):
    """Noisy data, its time and a label in, a prediction of the same sizes out."""

    folder = "transformer"

    def __init__(self, config, rng=None):
        """`rng` draws the initial weights; those that weigh what blocks add, and the last layers',
        are zero. Without `rng` all are zeros, for a checkpoint to replace."""
        C, volume = config.width, math.prod(config.patch)
        self.config, self.tables = config, {}
        self.enter = Linear(config.inputs * volume, C, std=(config.inputs * volume) ** -0.5,
                            rng=rng and rng.child("enter"))
        self.embedder = Embedder(config, rng and rng.child("embedder")) if config.shared else None
        self.blocks = [DiTBlock(config, rng and rng.child("block", i))
                       for i in range(config.layers)]
        self.modulate = Linear(C, 2 * C, std=0, rng=rng and rng.child("modulate"))
        self.leave = Linear(C, volume * config.outputs, std=0, rng=rng and rng.child("leave"))

    def __call__(self, x, t, *, labels=None, rng=None, recompute=False):
        """x [B, inputs, *S] -> [B, outputs, *S].

        t          the time, one number or one for each example [B]
        labels     int, likewise (default: none, which is config.no_class)
        rng        turns on the dropout in adapters
        recompute  computes the inside of each block again in the backward pass
        """
        grid, B = self._grid(x), x.shape[0]
        t = one_for_each("t", t, B, float)
        labels = one_for_each(
            "labels", self.config.no_class if labels is None else labels, B, int)
        tokens = self.enter(patches_of(x, self.config.patch)) + self._positions(grid, x.dtype)
        first = None
        for i, block in enumerate(self.blocks):
            own = rng and rng.child("block", i)
            condition = first if self.embedder and i else (self.embedder or block.embedder)(
                t, labels, x.dtype, rng=own and own.child("embedder"))          # [B, C]
            first = condition if i == 0 else first      # which the last layer is told, too
            block = partial(block, rng=own)
            tokens = ops.checkpoint(block, tokens, condition) if recompute \
                else block(tokens, condition)
        told = self.modulate(first).reshape((B, 2, self.config.width))
        tokens = ops.adaptive_layernorm(tokens, told[:, 1], told[:, 0], EPSILON)
        return data_of(self.leave(tokens), grid, self.config.patch)

    def _grid(self, x):
        """How many patches x has along each axis; raises ShapeError where patches do not fit."""
        c, S = self.config, x.shape[2:]
        if len(S) != len(c.patch) or x.shape[1] != c.inputs or any(
                n % p or n == 0 for n, p in zip(S, c.patch)):
            raise ShapeError(f"DiT: expected [B, {c.inputs}, *S] with S multiples of "
                             f"{list(c.patch)}, got {list(x.shape)}")
        return tuple(n // p for n, p in zip(S, c.patch))

    def _positions(self, grid, dtype):
        """[T, C] on the active backend."""
        key = backends.active(), grid, np.dtype(dtype)
        if key not in self.tables:
            usual = [n // p for n, p in zip(self.config.size, self.config.patch)]
            self.tables[key] = Tensor(
                positions_of(grid, usual, self.config.width).astype(dtype))
        return self.tables[key]

    # -- files: the layout of the ecosystem -------------------------------------------------------

    @staticmethod
    def stored_names(config):
        """A shared embedder lies in files once for each block."""
        names = parts.ListedModel.stored_names(config)
        if config.shared:
            for ours, stored in names.items():
                if ours.startswith("embedder."):
                    copies = tuple(stored.name.replace(".0.", f".{i}.", 1)
                                   for i in range(1, config.layers))
                    names[ours] = Stored(stored.name, stored.transposed, stored.shape, copies)
        return names

    def accepted_name(self, key):
        """The name of a key in a file; None for the table of positions, which is no weight. Of a
        shared embedder, all copies are the first."""
        if key == "pos_embed.pos_embed":
            return None
        return _COPY.sub(r"transformer_blocks.0.\1", key) if self.config.shared else key

    @staticmethod
    def config_from_hub(stored):
        """The configuration in a `config.json`; raises ConfigError naming the key."""
        if stored["_class_name"] == "Transformer2DModel":       # one class for many networks
            stored = TRANSFORMER_DEFAULTS | stored
        c = said(stored, DEFAULTS, FIXED, SILENT)
        size, patch = c["sample_size"], c["patch_size"]
        if isinstance(size, int) and isinstance(patch, int):
            size, patch = [size, size], [patch, patch]
        if not all(isinstance(c[key], int) for key in ("num_attention_heads",
                                                       "attention_head_dim")):
            raise ConfigError("config.json: num_attention_heads, attention_head_dim: expected "
                              "integers")
        return DiTConfig(
            inputs=c["in_channels"], outputs=c["out_channels"], size=size, patch=patch,
            layers=c["num_layers"], heads=c["num_attention_heads"],
            width=c["num_attention_heads"] * c["attention_head_dim"],
            classes=c["num_embeds_ada_norm"], norm_epsilon=c["norm_eps"],
            shared=c["shared_embedder"])

    @staticmethod
    def config_to_hub(config, *, end_of_text=None):
        """The `config.json` that describes this model to other libraries; they do not know those
        of other data than square images."""
        square = len(config.size) == 2 and len(set(config.size)) == len(set(config.patch)) == 1
        written = {
            "_class_name": "DiTTransformer2DModel" if square else "DiT",
            "sample_size": config.size[0] if square else list(config.size),
            "patch_size": config.patch[0] if square else list(config.patch),
            "in_channels": config.inputs, "out_channels": config.outputs,
            "num_layers": config.layers, "num_attention_heads": config.heads,
            "attention_head_dim": config.width // config.heads,
            "num_embeds_ada_norm": config.classes, "norm_eps": config.norm_epsilon,
            "activation_fn": "gelu-approximate", "attention_bias": True, "dropout": 0.0,
            "norm_type": "ada_norm_zero", "norm_elementwise_affine": False}
        return written | ({"shared_embedder": True} if config.shared else {})


CLASSES = ("DiTTransformer2DModel", "Transformer2DModel", "DiT")
DEFAULTS = {"sample_size": 32, "patch_size": 2, "in_channels": 4, "out_channels": None,
            "num_layers": 28, "num_attention_heads": 16, "attention_head_dim": 72,
            "num_embeds_ada_norm": 1000, "norm_eps": 1e-5, "shared_embedder": False}
FIXED = {"activation_fn": ("gelu-approximate",), "attention_bias": (True,), "dropout": (0,),
         "norm_type": ("ada_norm_zero",), "norm_elementwise_affine": (False,)}
TRANSFORMER_DEFAULTS = {"activation_fn": "geglu", "attention_bias": False,
                        "norm_type": "layer_norm", "norm_elementwise_affine": True}
SILENT = ("norm_num_groups", "upcast_attention", "attention_type")
_COPY = re.compile(r"transformer_blocks\.\d+\.(norm1\.emb\..*)")


def list_parts(config, tokens=0):
    """[Part] of the whole model, for data of so many patches."""
    C, volume = config.width, math.prod(config.patch)
    found = [parts.linear("enter", "pos_embed.proj", config.inputs * volume, C, tokens,
                          stored=(C, config.inputs, *config.patch))]
    if config.shared:
        found += _embedder(config, "embedder", "transformer_blocks.0.norm1.emb")
    for i in range(config.layers):
        ours, theirs = f"blocks.{i}", f"transformer_blocks.{i}"
        if not config.shared:
            found += _embedder(config, f"{ours}.embedder", f"{theirs}.norm1.emb")
        found.append(parts.linear(f"{ours}.modulate", f"{theirs}.norm1.linear", C, 6 * C, 1))
        found += parts.attention(f"{ours}.attention", f"{theirs}.attn1", C, tokens)
        found += [parts.linear(f"{ours}.perceptron.expand", f"{theirs}.ff.net.0.proj", C, 4 * C,
                               tokens),
                  parts.linear(f"{ours}.perceptron.output", f"{theirs}.ff.net.2", 4 * C, C,
                               tokens)]
    return [*found, parts.linear("modulate", "proj_out_1", C, 2 * C, 1),
            parts.linear("leave", "proj_out_2", C, volume * config.outputs, tokens)]


def _embedder(config, ours, theirs):
    yield from parts.time_embedding(f"{ours}.time", f"{theirs}.timestep_embedder", FREQUENCIES,
                                    config.width)
    yield parts.table(f"{ours}.labels", f"{theirs}.class_embedder.embedding_table",
                      config.classes + 1, config.width)
