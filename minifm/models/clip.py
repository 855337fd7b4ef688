"""CLIP (Radford et al. 2021): one vector for a text, one for a picture, near each other where the
text says what the picture shows.

Two transformers, one for each, and a layer behind either that leads into the space they share.
Diffusion models read prompts by the first of them alone. Read top to bottom: the configurations,
the towers, the model and what it learns by, its life in files.
"""

import math
from dataclasses import asdict, dataclass, field, fields
from functools import partial

import numpy as np

from minifm import ops
from minifm.config import check, setting
from minifm.errors import ConfigError, ShapeError
from minifm.models.activations import ACTIVATIONS
from minifm.models.dit import patches_of
from minifm.models.stored import Model, Stored, check_heads
from minifm.nn import Attention, Block, Embedding, LayerNorm, Linear, Perceptron
from minifm.nn.module import Parameter, normal
from minifm.tensor import no_grad

SCALE = math.log(1 / 0.07)      # of similarities at first, as a logarithm
MOST_SCALE = math.log(100)      # and at most (the paper's section 2.5)


@dataclass(frozen=True)
class TowerConfig:
    """What the two transformers are alike in."""

    layers: int = setting(12, "blocks, one above the other", least=1)
    heads: int = setting(8, "attention heads, each width / heads wide", least=1)
    width: int = setting(512, "numbers that stand for a token between blocks", least=1)     # C
    hidden: int | None = setting(
        None, "width inside the perceptron (default: four times the width)", least=1)
    joint: int | None = setting(
        None, "width of the space that texts and pictures share; none: there is no way into it",
        least=1)                                                                            # E
    activation: str = setting("quick_gelu", f"one of {', '.join(ACTIVATIONS)}",
                              choices=ACTIVATIONS)
    norm_epsilon: float = setting(1e-5, "inside the square root of the norms", above=0, below=1)

    def __post_init__(self):
        check(self)
        if self.hidden is None:
            object.__setattr__(self, "hidden", 4 * self.width)
        check_heads(self)

    @property
    def blocks_parameters(self):
        C, F = self.width, self.hidden
        return self.layers * (4 * (C * C + C) + 2 * C * F + F + C + 4 * C) \
            + (self.joint or 0) * C

    def flops_of(self, tokens, training):
        """Floating-point operations of a sequence of so many tokens; products only. In training,
        forward and backward."""
        C = self.width
        products = tokens * self.layers * 2 * (4 * C * C + 2 * C * self.hidden)
        products += 2 * C * (self.joint or 0)
        attention = self.layers * 4 * tokens * tokens * C
        return 3 * products + 3.5 * attention if training else products + attention


@dataclass(frozen=True)
class TextTowerConfig(TowerConfig):
    """The shape of the transformer that reads texts."""

    vocabulary: int = setting(49408, "tokens that the model knows", least=1)                # V
    context: int = setting(77, "the most tokens it can look at", least=1)
    end: int | None = setting(None, "id of the token that ends a text, by which it is read "
                                    "(default: the highest id in it)", least=0)

    @property
    def model(self):
        return TextTower

    @property
    def parameters(self):
        """How many numbers training adjusts."""
        return (self.vocabulary + self.context) * self.width + self.blocks_parameters \
            + 2 * self.width


@dataclass(frozen=True)
class ImageTowerConfig(TowerConfig):
    """The shape of the transformer that looks at pictures."""

    size: int = setting(224, "height and width of a picture", least=1)
    patch: int = setting(32, "height and width of a patch, which is a token", least=1)
    channels: int = setting(3, "of a picture", least=1)

    def __post_init__(self):
        super().__post_init__()
        if self.size % self.patch:
            raise ConfigError(f"patch: {self.patch} does not divide the size {self.size}")

    @property
    def model(self):
        return ImageTower

    @property
    def tokens(self):
        """Patches, and the token that stands for the whole."""
        return (self.size // self.patch) ** 2 + 1

    @property
    def parameters(self):
        """How many numbers training adjusts."""
        C = self.width
        return C + self.channels * self.patch**2 * C + self.tokens * C + self.blocks_parameters \
            + 4 * C


@dataclass(frozen=True)
class CLIPConfig:
    """The shape of a CLIP."""

    text: TextTowerConfig = field(default_factory=lambda: TextTowerConfig(joint=512))
    image: ImageTowerConfig = field(
        default_factory=lambda: ImageTowerConfig(heads=12, width=768, joint=512))

    def __post_init__(self):
        if self.text.joint is None or self.text.joint != self.image.joint:
            raise ConfigError(f"joint: expected the same width for texts and pictures, got "
                              f"{self.text.joint} and {self.image.joint}")

    @property
    def model(self):
        return CLIP

    @property
    def layers(self):
        return self.text.layers + self.image.layers

    @property
    def parameters(self):
        """How many numbers training adjusts."""
        return self.text.parameters + self.image.parameters + 1


@dataclass(frozen=True)
class CLIPShape:
    """A CLIPConfig as one says it: what is not for the pictures or the texts to tell."""

    joint: int = setting(512, "width of the space that texts and pictures share", least=1)     # E
    width: int = setting(768, "numbers that stand for a patch of a picture between blocks",
                         least=1)                                                              # C
    layers: int = setting(12, "blocks of the transformer that looks at pictures", least=1,
                          most=1000)
    heads: int = setting(12, "its attention heads, each width / heads wide", least=1)
    patch: int = setting(32, "height and width of a patch, which is a token", least=1)
    text_width: int = setting(512, "numbers that stand for a token of a text between blocks",
                              least=1)
    text_layers: int = setting(12, "blocks of the transformer that reads texts", least=1,
                               most=1000)
    text_heads: int = setting(8, "its attention heads", least=1)
    context: int | None = setting(
        None, "the most tokens of a text, its two ends included; of longer ones the rest is left "
        "out (default: those of the longest caption)", least=3)
    activation: str = setting("quick_gelu", f"one of {', '.join(ACTIVATIONS)}",
                              choices=ACTIVATIONS)

    __post_init__ = check

    def config(self, *, vocabulary, context, end, size, channels):
        """The CLIPConfig of texts of such tokens, which `end` ends, and of such pictures. Raises
        ConfigError for what does not go together."""
        shared = {"joint": self.joint, "activation": self.activation}
        return CLIPConfig(
            TextTowerConfig(layers=self.text_layers, heads=self.text_heads, width=self.text_width,
                            vocabulary=vocabulary, context=self.context or context, end=end,
                            **shared),
            ImageTowerConfig(layers=self.layers, heads=self.heads, width=self.width, size=size,
                             patch=self.patch, channels=channels, **shared))

    @classmethod
    def of(cls, config):
        """What a CLIPConfig says of it."""
        text, image = config.text, config.image
        return cls(joint=text.joint, width=image.width, layers=image.layers, heads=image.heads,
                   patch=image.patch, text_width=text.width, text_layers=text.layers,
                   text_heads=text.heads, context=text.context, activation=text.activation)


PRESETS = {
    "clip-tiny": dict(joint=128, width=128, layers=4, heads=4, patch=8, text_width=128,
                      text_layers=3, text_heads=4),         # letters, on any laptop
    "clip-vit-base-patch32": dict(context=77),
    "clip-vit-base-patch16": dict(context=77, patch=16),
    "clip-vit-large-patch14": dict(joint=768, width=1024, layers=24, heads=16, patch=14,
                                   text_width=768, text_heads=12, context=77),
}


# -- the towers ----------------------------------------------------------------------------------


def new_block(config, rng):
    """One block; `rng` draws its weights as the paper's are (its code, `initialize_parameters`)."""
    C, std = config.width, config.width**-0.5
    output_std = std * (2 * config.layers) ** -0.5
    return Block(
        LayerNorm(C, config.norm_epsilon),
        Attention(C, config.heads, std=std, output_std=output_std,
                  rng=rng and rng.child("attention")),
        LayerNorm(C, config.norm_epsilon),
        Perceptron(C, config.hidden, ACTIVATIONS[config.activation], std=(2 * C) ** -0.5,
                   output_std=output_std, rng=rng and rng.child("perceptron")))


class Tower(Model):
    """Blocks, one above the other, and the way into the joint space."""

    def __init__(self, config, rng=None):
        self.config = config
        self.blocks = [new_block(config, rng and rng.child("blocks", layer))
                       for layer in range(config.layers)]
        self.projection = None if config.joint is None else Linear(
            config.width, config.joint, bias=False, std=config.width**-0.5,
            rng=rng and rng.child("projection"))

    def through(self, x, *, recompute=False, **where):
        """x [B, T, C] through all blocks."""
        for block in self.blocks:
            block = partial(block, **where)
            x = ops.checkpoint(block, x) if recompute else block(x)
        return x

    def embed(self, inputs, **choice):
        """Texts or pictures -> vectors in the joint space, [B, E]; raises ConfigError where the
        tower has no way into it."""
        if self.projection is None:
            raise ConfigError(f"joint: this {type(self).__name__} has no way into a joint space")
        return self.projection(self.pooled(inputs, **choice))

    @staticmethod
    def products(config):
        """{name of each weight that products read: the axis they sum over}."""
        names = [f"blocks.{i}.{part}" for i in range(config.layers) for part in LINEAR]
        return {f"{name}.weight": 0 for name in names + ["projection"] * bool(config.joint)}


class TextTower(Tower):
    """Token ids in, a vector for each token out; causal, as GPT is. Texts are padded behind their
    end, where nothing looks."""

    def __init__(self, config, rng=None):
        super().__init__(config, rng)
        C = config.width
        self.token_embedding = Embedding(config.vocabulary, C, std=0.02,
                                         rng=rng and rng.child("token_embedding"))
        self.position_embedding = Embedding(config.context, C, std=0.01,
                                            rng=rng and rng.child("position_embedding"))
        self.norm = LayerNorm(C, config.norm_epsilon)

    def __call__(self, ids, *, recompute=False):
        """ids [B, T] -> [B, T, C], what a diffusion model looks at."""
        ids = np.asarray(ids)
        self.check_ids(ids)
        self.check_length(ids.shape[1])
        x = self.token_embedding(ids) + self.position_embedding(np.arange(ids.shape[1]))
        return self.norm(self.through(x, causal=True, recompute=recompute))

    def pooled(self, ids, *, recompute=False):
        """ids [B, T] -> [B, C], the vector at the end of each text. Raises ShapeError for a text
        without an end."""
        return self.at_end(self(ids, recompute=recompute), ids)

    def at_end(self, x, ids):
        """Of x [B, T, C], which the tower has made of ids, the vector at the end of each text."""
        ids = np.asarray(ids)
        ends = ids == self.config.end if self.config.end is not None \
            else ids == ids.max(1, keepdims=True)
        if not ends.any(1).all():
            raise ShapeError(f"TextTower: the text of row {int(np.argmin(ends.any(1)))} does not "
                             f"end: it lacks the token {self.config.end}")
        return x[np.arange(len(ids)), ends.argmax(1)]

    @staticmethod
    def stored_names(config):
        """{our parameter's name: Stored}."""
        prefix = "text_model."
        names = {"token_embedding.weight": Stored(f"{prefix}embeddings.token_embedding.weight"),
                 "position_embedding.weight": Stored(
                     f"{prefix}embeddings.position_embedding.weight")}
        return names | _of_blocks(config, prefix) | _norm("norm", f"{prefix}final_layer_norm") \
            | {"projection.weight": Stored("text_projection.weight", transposed=True)}

    @staticmethod
    def accepted_name(key):
        """Files have positions as a buffer; those of the tower alone have or have not a prefix."""
        return None if key.endswith("position_ids") else key.removeprefix("text_model.")

    @staticmethod
    def config_from_hub(stored):
        """The configuration in a `config.json`; raises ConfigError naming the key."""
        return _tower_from_hub(TextTowerConfig, stored, _is_projected(stored))

    @staticmethod
    def config_to_hub(config, *, end_of_text=None):
        return {"architectures": [PROJECTED[TEXT] if config.joint else "CLIPTextModel"],
                "model_type": TEXT, **_tower_to_hub(config), "torch_dtype": "float32"}


class ImageTower(Tower):
    """Pictures in, a vector for the whole and one for each patch out."""

    def __init__(self, config, rng=None):
        super().__init__(config, rng)
        C, p = config.width, config.patch
        self.class_embedding = normal((C,), C**-0.5, rng and rng.child("class_embedding"))
        self.patch_embedding = Linear(config.channels * p * p, C, bias=False, std=0.02,
                                      rng=rng and rng.child("patch_embedding"))
        self.position_embedding = Embedding(config.tokens, C, std=0.02,
                                            rng=rng and rng.child("position_embedding"))
        self.first_norm, self.norm = (LayerNorm(C, config.norm_epsilon) for _ in range(2))

    def __call__(self, images, *, recompute=False):
        """images [B, channels, size, size] -> [B, T, C], the whole first."""
        c = self.config
        expected = (c.channels, c.size, c.size)
        if images.ndim != 4 or images.shape[1:] != expected:
            raise ShapeError(f"ImageTower: expected images [B, {', '.join(map(str, expected))}], "
                             f"got {list(images.shape)}")
        x = self.patch_embedding(patches_of(images, (c.patch, c.patch)))        # [B, T - 1, C]
        whole = ops.broadcast_to(self.class_embedding, (x.shape[0], 1, c.width))
        x = ops.concatenate([whole, x], 1) + self.position_embedding(np.arange(c.tokens))
        return self.through(self.first_norm(x), recompute=recompute)

    def pooled(self, images, *, recompute=False):
        """images -> [B, C], the vector of the whole."""
        return self.norm(self(images, recompute=recompute)[:, 0])

    @staticmethod
    def stored_names(config):
        """{our parameter's name: Stored}."""
        prefix = "vision_model."
        names = {"class_embedding": Stored(f"{prefix}embeddings.class_embedding"),
                 "patch_embedding.weight": Stored(
                     f"{prefix}embeddings.patch_embedding.weight", transposed=True,
                     shape=(config.width, config.channels, config.patch, config.patch)),
                 "position_embedding.weight": Stored(
                     f"{prefix}embeddings.position_embedding.weight")}
        return names | _norm("first_norm", f"{prefix}pre_layrnorm") | _of_blocks(config, prefix) \
            | _norm("norm", f"{prefix}post_layernorm") \
            | {"projection.weight": Stored("visual_projection.weight", transposed=True)}

    @staticmethod
    def accepted_name(key):
        return None if key.endswith("position_ids") else key.removeprefix("vision_model.")

    @staticmethod
    def config_from_hub(stored):
        """The configuration in a `config.json`; raises ConfigError naming the key."""
        return _tower_from_hub(ImageTowerConfig, stored, _is_projected(stored))

    @staticmethod
    def config_to_hub(config, *, end_of_text=None):
        return {"architectures": [PROJECTED[IMAGE] if config.joint else "CLIPVisionModel"],
                "model_type": IMAGE, **_tower_to_hub(config), "torch_dtype": "float32"}


# -- both ----------------------------------------------------------------------------------------


class CLIP(Model):
    """Texts and pictures in, how near each is to each out."""

    def __init__(self, config, rng=None):
        """`rng` draws the initial weights. Without `rng` they are zeros, for a checkpoint to
        replace."""
        self.config = config
        self.text = TextTower(config.text, rng and rng.child("text"))
        self.image = ImageTower(config.image, rng and rng.child("image"))
        self.scale = Parameter(np.full((), SCALE if rng else 0, np.float32))

    def __call__(self, ids, images, **choice):
        """ids [T, L] and images [I, …] -> similarities [I, T], cosines times exp(scale)."""
        texts, pictures = self.text.embed(ids, **choice), self.image.embed(images, **choice)
        return ops.exp(self.scale) * (unit(pictures) @ unit(texts).transpose(1, 0))

    def loss(self, ids, images, *, denominator=None, **choice):
        """Contrastive: which of the B texts belongs to which of the B images, and the other way,
        mean cross-entropy in nats (figure 3 of the paper); `denominator` divides the sum in place
        of B.

        Where two texts are the same, neither's image is a wrong answer to the other: such pairs are
        left out, and what is asked is which of the others, beside its own, belongs to each. Whoever
        trains by this calls `limit` after each step.
        """
        logits, own = self(ids, images, **choice), np.arange(len(ids))
        logits = logits + without_repeats(np.asarray(ids), logits.dtype)
        return (ops.cross_entropy(logits, own, denominator=denominator)
                + ops.cross_entropy(logits.transpose(1, 0), own, denominator=denominator)) * 0.5

    def limit(self):
        """Bring exp(scale) back to 100, if it is more."""
        with no_grad():
            self.scale.data = ops.minimum(self.scale, MOST_SCALE).data
        self.scale.version += 1

    @staticmethod
    def products(config):
        return {f"text.{name}": axis for name, axis in TextTower.products(config.text).items()} | {
            f"image.{name}": axis for name, axis in ImageTower.products(config.image).items()}

    @staticmethod
    def stored_names(config):
        """{our parameter's name: Stored}."""
        return {f"text.{ours}": stored
                for ours, stored in TextTower.stored_names(config.text).items()} | {
            f"image.{ours}": stored
            for ours, stored in ImageTower.stored_names(config.image).items()} | {
            "scale": Stored("logit_scale")}

    @staticmethod
    def accepted_name(key):
        return None if key.endswith("position_ids") else key

    @staticmethod
    def config_from_hub(stored):
        """The configuration in a `config.json`; raises ConfigError naming the key."""
        joint = {"projection_dim": stored.get("projection_dim", 512)}
        towers = []
        for kind, key in ((TextTowerConfig, "text_config"), (ImageTowerConfig, "vision_config")):
            said = stored.get(key)
            if not isinstance(said, dict | None):
                raise ConfigError(f"config.json: {key}: expected an object, got {said!r}")
            towers.append(_tower_from_hub(kind, (said or {}) | joint))
        return CLIPConfig(*towers)

    @staticmethod
    def config_to_hub(config, *, end_of_text=None):
        return {"architectures": ["CLIPModel"], "model_type": "clip",
                "projection_dim": config.text.joint,
                "text_config": {"model_type": TEXT, **_tower_to_hub(config.text)},
                "vision_config": {"model_type": IMAGE, **_tower_to_hub(config.image)},
                "torch_dtype": "float32"}


def unit(x):
    """x [B, E], each row divided by its length."""
    return x / ops.sqrt((x * x).sum(-1, keepdims=True))


def same_texts(ids):
    """bool [B, B], whether two rows of ids [B, T] are the same."""
    return (ids[:, None] == ids[None]).all(2)


def without_repeats(ids, dtype):
    """[B, B]: -inf where another text is the same, else 0; what leaves out of a softmax."""
    same = same_texts(ids)
    np.fill_diagonal(same, False)
    return np.where(same, -np.inf, 0).astype(dtype)


# -- files: the layouts of the ecosystem ----------------------------------------------------------

TEXT, IMAGE = "clip_text_model", "clip_vision_model"
PROJECTED = {TEXT: "CLIPTextModelWithProjection", IMAGE: "CLIPVisionModelWithProjection"}
LINEAR = {"attention.query": "self_attn.q_proj", "attention.key": "self_attn.k_proj",
          "attention.value": "self_attn.v_proj", "attention.output": "self_attn.out_proj",
          "perceptron.expand": "mlp.fc1", "perceptron.output": "mlp.fc2"}
NORMS = {"attention_norm": "layer_norm1", "perceptron_norm": "layer_norm2"}
KEYS = {"layers": "num_hidden_layers", "heads": "num_attention_heads", "width": "hidden_size",
        "hidden": "intermediate_size", "activation": "hidden_act", "norm_epsilon": "layer_norm_eps",
        "joint": "projection_dim", "vocabulary": "vocab_size",
        "context": "max_position_embeddings", "end": "eos_token_id", "size": "image_size",
        "patch": "patch_size", "channels": "num_channels"}
# What the library takes for granted where a config.json does not say.
TAKEN = {TextTowerConfig: {"projection_dim": 512, "eos_token_id": 49407},
         ImageTowerConfig: {"projection_dim": 512, "num_attention_heads": 12, "hidden_size": 768,
                            "intermediate_size": 3072}}
HIGHEST = 2             # an `eos_token_id` that stands for the highest id in a text


def _norm(ours, theirs):
    return {f"{ours}.gain": Stored(f"{theirs}.weight"), f"{ours}.bias": Stored(f"{theirs}.bias")}


def _of_blocks(config, prefix):
    names = {}
    for i in range(config.layers):
        ours, theirs = f"blocks.{i}.", f"{prefix}encoder.layers.{i}."
        for part, name in LINEAR.items():
            names[f"{ours}{part}.weight"] = Stored(f"{theirs}{name}.weight", transposed=True)
            names[f"{ours}{part}.bias"] = Stored(f"{theirs}{name}.bias")
        for part, name in NORMS.items():
            names |= _norm(f"{ours}{part}", f"{theirs}{name}")
    return names


def _is_projected(stored):
    """Whether the tower of a `config.json` has a way into the joint space."""
    kind, named = stored["model_type"], (stored.get("architectures") or [None])[0]
    if named == PROJECTED[kind]:
        return True
    expected = PROJECTED[kind].removesuffix("WithProjection")
    if named not in (expected, "CLIPModel", None):
        raise ConfigError(f"config.json: architectures: expected {expected} or "
                          f"{PROJECTED[kind]}, got {named!r}")
    return False


def _tower_from_hub(kind, stored, projected=True):
    said = TAKEN[kind] | {key: value for key, value in stored.items() if value is not None}
    found = {f.name: said[KEYS[f.name]] for f in fields(kind) if KEYS[f.name] in said}
    if not projected:
        found["joint"] = None
    if found.get("end") == HIGHEST:
        found["end"] = None
    return kind(**found)


def _tower_to_hub(config):
    stored = {KEYS[name]: value for name, value in asdict(config).items()}
    stored["attention_dropout"] = 0.0
    if "eos_token_id" in stored and config.end is None:
        stored["eos_token_id"] = HIGHEST
    if config.joint is None:
        del stored["projection_dim"]
    return stored
